//! Messages from their senders' side, across restarts too; and the sans-io client in the sender's place.

use std::collections::BTreeMap;

use bytes::Bytes;
use culver_protocol::client::{Client, ClientConfig, Credential, Event};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationId, DeviceId, UserId};
use culver_protocol::limits::{CLIENT_IN_FLIGHT_MAX, PAYLOAD_LEN_MAX};
use culver_protocol::message::SendView;
use culver_protocol::proto;
use culver_protocol::record::RecordType;
use std::io::{Read, Write};

use crate::home::{Home, Layout, PATIENCE, Server, on_every_layout, serve_on};
use crate::peer::{Got, Peer, message_id, raw, send_record, with};

on_every_layout! {
    messages_reach_who_is_online_in_both_directions,
    a_note_to_oneself_is_kept_and_does_not_come_back,
    the_largest_message_passes_and_a_larger_one_does_not,
    messages_that_name_nothing_possible_are_rejected_one_by_one,
    a_full_inbox_takes_no_more_until_there_is_room,
    the_same_id_is_the_same_message_across_sigkill_and_restart,
    what_was_under_way_at_sigkill_is_sent_again_and_arrives_once_in_order,
    the_sans_io_client_sends_and_receives_a_thousand,
}

fn messages_reach_who_is_online_in_both_directions(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut one, mut two) = (Peer::online(&home, &server, 1), Peer::online(&home, &server, 2));
    for number in 1..=20 {
        let (payload, answer) = (format!("{number} from one"), format!("{number} from two"));
        let sent = one.send_and_wait(2, number, payload.as_bytes());
        assert_eq!((sent.conversation_seq, sent.inbox_seq, sent.duplicate), (2 * number - 1, 0, false));
        let entry = two.entries(1).remove(0);
        assert_eq!((entry.message_id, entry.server_time_ms), (sent.message_id, sent.server_time_ms));
        assert_eq!((entry.sender, entry.sender_device, entry.inbox_seq), (1, 1, number));
        assert_eq!((entry.conversation_seq, &entry.payload[..]), (sent.conversation_seq, payload.as_bytes()));
        let answered = two.send_and_wait(1, number, answer.as_bytes());
        assert_eq!(answered.conversation_seq, 2 * number);
        assert_eq!(&one.entries(1)[0].payload[..], answer.as_bytes());
        assert!(answered.message_id > sent.message_id, "ids ascend");
    }
}

fn a_note_to_oneself_is_kept_and_does_not_come_back(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    let sent = one.send_and_wait(1, 1, b"note");
    assert_eq!(sent.conversation_seq, 1);
    // The place is not known yet where the inbox is another hub's.
    assert!(sent.inbox_seq == 1 || (sent.inbox_seq == 0 && layout == Layout::FourHubs), "{sent:?}");
    server.wait_for_hubs();
    Peer::online(&home, &server, 2).send_and_wait(1, 1, b"hello");
    // It has a place, which is left out.
    one.has_siblings = true;
    let entry = one.entries(1).remove(0);
    assert_eq!((entry.inbox_seq, entry.sender, &entry.payload[..]), (2, 2, &b"hello"[..]));
    let page = one.conversations(1, b"").next;
    let notes = one.conversations(1, &page);
    let last = notes.items.first().and_then(|item| item.last.clone()).expect("the note");
    assert_eq!((last.sender, &last.payload[..]), (1, &b"note"[..]));
}

fn the_largest_message_passes_and_a_larger_one_does_not(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut one, mut two) = (Peer::online(&home, &server, 1), Peer::online(&home, &server, 2));
    let largest = vec![0xa5; PAYLOAD_LEN_MAX];
    one.send_and_wait(2, 1, &largest);
    assert_eq!(two.entries(1)[0].payload, largest);
    one.send(2, 2, &vec![0; PAYLOAD_LEN_MAX + 1]);
    rejected(&mut one, 2, ErrorCode::PayloadTooLong);
    one.send_and_wait(2, 3, b"");
    assert_eq!(two.entries(1)[0].payload, b""[..]);
}

fn rejected(peer: &mut Peer, number: u64, code: ErrorCode) {
    let id = message_id(peer.user, number);
    let got = peer.wait_for(|got| matches!(got, Got::Result(result) if result.client_message_id == id[..]));
    let Got::Result(proto::SendResult { error: Some(error), message_id: 0, .. }) = got else { panic!("{got:?}") };
    assert_eq!(error.code, code.number());
}

fn messages_that_name_nothing_possible_are_rejected_one_by_one(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    let mut send = |number: u64, conversation: &[u8]| {
        let id = message_id(1, number);
        let mut body = Vec::new();
        SendView { client_message_id: &id, conversation, payload: b"" }.encode(&mut body);
        one.write(&raw(RecordType::Send as u8, &body));
    };
    send(1, b"short");
    send(2, &ConversationId::direct(UserId(2), UserId(3)).0);
    // Of a group, which nobody has made.
    send(3, &[[0xff; 8], [0; 8]].concat());
    rejected(&mut one, 1, ErrorCode::ConversationInvalid);
    rejected(&mut one, 2, ErrorCode::NotAMember);
    rejected(&mut one, 3, ErrorCode::ConversationInvalid);
    let mut body = Vec::new();
    SendView { client_message_id: b"short", conversation: &[0; 16], payload: b"" }.encode(&mut body);
    one.write(&raw(RecordType::Send as u8, &body));
    one.refused(ErrorCode::ClientMessageIdInvalid);
    one.send_and_wait(2, 4, b"and it lives on");
}

fn a_full_inbox_takes_no_more_until_there_is_room(layout: Layout) {
    const QUOTA: u64 = 5;
    let home = Home::on(layout);
    home.configure(&format!("[inbox]\nquota_entries = {QUOTA}\n"));
    let server = home.start();
    let mut two = Peer::online(&home, &server, 2);
    two.settle();
    let mut one = Peer::online(&home, &server, 1);
    // Where the inbox is another hub's a few more are taken until that has said so.
    let accepted_max = if layout == Layout::OneHub { QUOTA } else { 10_000 };
    let (number, error) = one.send_until_refused(2, accepted_max);
    assert_eq!(error.code, ErrorCode::RecipientFull.number());
    assert!(number > QUOTA);
    // Others are not concerned, and what follows waits for what was refused.
    one.send_and_wait(3, number, b"elsewhere");
    one.send(2, number + 1, b"later");
    let code = one.outcome(number + 1).error.map(|error| error.code);
    assert_eq!(code, Some(ErrorCode::AfterRejected.number()));
    while two.position < number - 1 {
        two.deliver();
        two.ack(two.position);
    }
    two.settle();
    let since = std::time::Instant::now();
    loop {
        one.send(2, number, b"again");
        match one.outcome(number).error {
            None => break,
            Some(error) => assert_eq!(error.code, ErrorCode::RecipientFull.number()),
        }
        assert!(since.elapsed() < PATIENCE, "there is never room again");
    }
    assert_eq!(two.entries(1)[0].payload, b"again"[..]);
}

fn the_same_id_is_the_same_message_across_sigkill_and_restart(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    // In one flight, so that the second copy meets the first before it is durable.
    let twice = [send_record(1, 2, 1, b"first"), send_record(1, 2, 1, b"other words")].concat();
    one.write(&twice);
    let (first, second) = (one.result(1), one.result(1));
    assert_eq!((first.duplicate, second.duplicate), (false, true));
    let as_first = |result: &proto::SendResult| proto::SendResult { duplicate: false, ..result.clone() } == first;
    assert!(as_first(&second));
    let third = one.send_and_wait(2, 1, b"");
    assert!(third.duplicate && as_first(&third));
    server.kill();
    let server = home.start();
    let mut one = Peer::online(&home, &server, 1);
    let fourth = one.send_and_wait(2, 1, b"");
    assert!(fourth.duplicate && as_first(&fourth));
    let next = one.send_and_wait(2, 2, b"next");
    assert_eq!((next.conversation_seq, next.duplicate), (2, false));
    assert!(next.message_id > first.message_id, "ids ascend across a restart");
    let entries = Peer::online(&home, &server, 2).entries(2);
    let payloads: Vec<&[u8]> = entries.iter().map(|entry| &entry.payload[..]).collect();
    assert_eq!(payloads, [&b"first"[..], b"next"]);
}

fn what_was_under_way_at_sigkill_is_sent_again_and_arrives_once_in_order(layout: Layout) {
    const FLIGHT: u64 = 500;
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    let flight: Vec<u8> = (1..=FLIGHT).flat_map(|number| send_record(1, 2, number, &number.to_be_bytes())).collect();
    one.write(&flight);
    let first = one.result(1);
    server.kill();
    let server = home.start();
    let mut one = Peer::online(&home, &server, 1);
    one.write(&flight);
    let results: Vec<proto::SendResult> = (1..=FLIGHT).map(|number| one.result(number)).collect();
    assert_eq!(results[0], proto::SendResult { duplicate: true, ..first }, "acknowledged, so it was there");
    let seqs: Vec<u64> = results.iter().map(|result| result.conversation_seq).collect();
    assert_eq!(seqs, (1..=FLIGHT).collect::<Vec<_>>());
    let new = results.iter().position(|result| !result.duplicate).unwrap_or(results.len());
    assert!(results[new..].iter().all(|result| !result.duplicate), "what was lost was the end");
    let mut two = Peer::online(&home, &server, 2);
    for number in (1..=FLIGHT).step_by(50) {
        for (entry, number) in two.entries(50).iter().zip(number..) {
            assert_eq!(entry.payload, number.to_be_bytes()[..]);
        }
        two.ack(number + 49);
    }
}

/// The client a phone has, on a real socket.
struct Phone {
    client: Client,
    stream: std::net::TcpStream,
    got: Vec<Bytes>,
    sent: BTreeMap<ClientMessageId, u64>,
}

impl Phone {
    fn new(home: &Home, server: &Server, user: u64) -> Self {
        let culver_protocol::proto::login::Credential::Token(token) = home.token(user) else { unreachable!("a token") };
        let credential = Credential::Token(token);
        let (user, device) = (UserId(user), DeviceId(1));
        let mut client = Client::new(ClientConfig { user, device, credential, seed: user.0, ..Default::default() });
        assert_eq!(client.poll_event(), Some(Event::Connect));
        let stream = std::net::TcpStream::connect(server.listen).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        client.handle_connected(0);
        Self { client, stream, got: Vec::new(), sent: BTreeMap::new() }
    }

    /// Writes what is to be written, then takes what comes next.
    fn turn(&mut self) {
        self.flush();
        let mut buffer = [0; 64 * 1024];
        let len = self.stream.read(&mut buffer).expect("something comes");
        assert!(len > 0, "the server has closed");
        self.client.handle_bytes(buffer.get(..len).expect("as read"), 0);
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::LoggedIn(_) => {}
                Event::Sent(accepted) => {
                    self.sent.insert(accepted.client_message_id, accepted.conversation_seq.0);
                }
                Event::Delivered(entry) => {
                    self.client.persisted(culver_protocol::id::InboxSeq(entry.inbox_seq));
                    self.got.push(entry.payload);
                }
                Event::SyncStart(_) | Event::SyncDone(_) => {}
                Event::Receipt(receipt) => self.client.receipts_persisted(receipt.version),
                other => panic!("{other:?}"),
            }
        }
    }

    fn flush(&mut self) {
        let bytes = self.client.transmit().to_vec();
        self.stream.write_all(&bytes).expect("the server takes it");
        self.client.transmitted(bytes.len());
    }
}

fn the_sans_io_client_sends_and_receives_a_thousand(layout: Layout) {
    const COUNT: u64 = 1000;
    const _: () = assert!(COUNT <= CLIENT_IN_FLIGHT_MAX as u64);
    let (home, server) = serve_on(layout);
    let (mut one, mut two) = (Phone::new(&home, &server, 1), Phone::new(&home, &server, 2));
    let conversation = ConversationId::direct(UserId(1), UserId(2));
    for number in 1..=COUNT {
        let payload = Bytes::copy_from_slice(&number.to_be_bytes());
        one.client.send(ClientMessageId(message_id(1, number)), conversation, payload, 0).expect("there is room");
    }
    while one.sent.len() < usize::try_from(COUNT).expect("small") {
        one.turn();
    }
    assert!(one.sent.values().copied().eq(1..=COUNT), "accepted in order");
    while two.got.len() < usize::try_from(COUNT).expect("small") {
        two.turn();
    }
    two.flush();
    assert!(two.got.iter().zip(1..=COUNT).all(|(payload, number)| *payload == number.to_be_bytes()[..]));
    // The last ACK is stored: nothing comes again to a client without memory. Something new is the first thing.
    two.stream.shutdown(std::net::Shutdown::Write).expect("open");
    server.wait_for("culver_sessions", |sessions| sessions == 1);
    let (mut again, _) = Peer::resume(&server, 2, &with(home.token(2)));
    Peer::online(&home, &server, 3).send_and_wait(2, 1, b"new");
    again.position = COUNT;
    assert_eq!(again.entries(1)[0].payload, b"new"[..]);
}
