//! Keys that change, and connections that have carried all they may.

use super::*;
use crate::limits::{RECORDS_MAX, REKEY_MS, REKEY_RECORDS};

#[test]
fn after_so_many_records_the_key_changes() {
    let (mut client, mut peer) = welcomed();
    let ping = |client: &mut Client, peer: &mut Peer| {
        let record = peer.seal(RecordType::Ping, &proto::Ping { nonce: 1, ..Default::default() });
        client.handle_bytes(&record, 2);
        peer.kinds(client)
    };
    let pongs = [RecordType::Pong];
    for round in 1..=3 {
        let last = round * REKEY_RECORDS - 1;
        client.link.keys_mut().sending.skip_to(last);
        peer.keys().receiving.skip_to(last);
        assert_eq!(ping(&mut client, &mut peer), pongs, "the last under this key");
        assert_eq!(ping(&mut client, &mut peer), [RecordType::Rekey, RecordType::Pong]);
        // The server answers with a REKEY of its own, and that gets none.
        let rekey = peer.rekey();
        client.handle_bytes(&rekey, 3);
        assert_eq!(ping(&mut client, &mut peer), pongs);
    }
    assert_eq!(events(&mut client), []);
}

#[test]
fn the_first_record_after_an_hour_comes_behind_a_new_key() {
    let (mut client, mut peer) = welcomed();
    let hour_us = REKEY_MS * 1000;
    for hours in 1..=3 {
        // The first keys are there since 1.
        let mut now_us = hours * hour_us;
        client.handle_timeout(now_us);
        assert_eq!(peer.kinds(&mut client), [RecordType::Ping], "a keep-alive, not quite an hour after the last");
        now_us += 1;
        let record = peer.seal(RecordType::Ping, &proto::Ping { nonce: 1, ..Default::default() });
        client.handle_bytes(&record, now_us);
        assert_eq!(peer.kinds(&mut client), [RecordType::Rekey, RecordType::Pong]);
        let mut flight = peer.rekey();
        flight.extend(peer.seal(RecordType::Ping, &proto::Ping { nonce: 2, ..Default::default() }));
        client.handle_bytes(&flight, now_us);
        assert_eq!(peer.kinds(&mut client), [RecordType::Pong]);
    }
    assert_eq!(events(&mut client), []);
}

#[test]
fn the_hour_begins_with_the_last_change() {
    let (mut client, mut peer) = welcomed();
    let hour_us = REKEY_MS * 1000;
    client.link.keys_mut().sending.skip_to(REKEY_RECORDS);
    peer.keys().receiving.skip_to(REKEY_RECORDS);
    for (now_us, is_due) in [(hour_us / 2, true), (hour_us + 1, false), (hour_us + hour_us / 2, true)] {
        let record = peer.seal(RecordType::Ping, &proto::Ping { nonce: 1, ..Default::default() });
        client.handle_bytes(&record, now_us);
        assert_eq!(peer.kinds(&mut client).contains(&RecordType::Rekey), is_due, "{now_us}");
    }
}

#[test]
fn a_server_changes_its_key_by_itself() {
    let (mut client, mut peer) = welcomed();
    let rekey = peer.rekey();
    client.handle_bytes(&rekey, 2);
    assert!(take(&mut client).is_empty(), "it is followed, not answered");
    let record = peer.seal(RecordType::Deliver, &proto::Deliver { previous: 3, entries: vec![entry(4)] });
    client.handle_bytes(&record, 3);
    assert_eq!(events(&mut client), [Event::Delivered(entry(4))]);
    // Said, but not done.
    let mut out = Vec::new();
    out.extend(peer.seal(RecordType::Rekey, &proto::Ready {}));
    out.extend(peer.seal(RecordType::Ping, &proto::Ping { nonce: 1, ..Default::default() }));
    client.handle_bytes(&out, 4);
    assert_eq!(events(&mut client), [forged(), Event::Disconnect]);
}

#[test]
fn sends_between_two_keys_all_open() {
    let (mut client, mut peer) = welcomed();
    client.link.keys_mut().sending.skip_to(REKEY_RECORDS - 10);
    peer.keys().receiving.skip_to(REKEY_RECORDS - 10);
    let conversation = ConversationId::direct(UserId(1), UserId(2));
    for id in 0..20 {
        client.send(ClientMessageId([id; 16]), conversation, Bytes::from_static(b"hello"), 2).expect("room");
    }
    let kinds = peer.kinds(&mut client);
    assert_eq!(kinds.iter().position(|kind| *kind == RecordType::Rekey), Some(10));
    assert_eq!(kinds.iter().filter(|kind| **kind == RecordType::Send).count(), 20);
}

#[test]
fn in_plaintext_there_is_no_key_to_change() {
    let mut client = logged_in();
    client.handle_bytes(&[0, 2, 7, 0], 2);
    let out_of_state = Violation::OutOfState { kind: 7 };
    assert_eq!(events(&mut client), [Event::Violation(out_of_state), Event::Disconnect]);
}

#[test]
fn a_connection_that_has_carried_all_it_may_is_left_at_once() {
    let (mut client, mut peer) = welcomed();
    client.link.keys_mut().sending.skip_to(RECORDS_MAX - 5);
    peer.keys().receiving.skip_to(RECORDS_MAX - 5);
    let conversation = ConversationId::direct(UserId(1), UserId(2));
    for id in 0..20 {
        client.send(ClientMessageId([id; 16]), conversation, Bytes::new(), 2).expect("room");
    }
    let kinds = peer.kinds(&mut client);
    assert_eq!(kinds, [RecordType::Send; 5]);
    client.handle_timeout(client.poll_timeout().expect("at once").max(2));
    assert_eq!(events(&mut client), [Event::Disconnect]);
    client.handle_disconnected(3);
    assert_eq!(events(&mut client), [Event::Connect]);
    client.handle_connected(3);
    let mut peer = Peer::welcome(&mut client, &peer.resumption, 4);
    assert_eq!(peer.read(&mut client).len(), 21, "READY, and nothing is lost");
}
