//! Requests: the list of conversations by pages, unread counts, devices, and what is no request.

use culver_protocol::error::ErrorCode;
use culver_protocol::limits::PREVIEW_LEN_MAX;
use culver_protocol::proto;
use culver_protocol::proto::rpc::Request;
use culver_protocol::record::RecordType;

use crate::home::{Layout, now_ms, on_every_layout, serve_on};
use crate::peer::{Got, Peer, conversation, opening, raw, record, with};

on_every_layout! {
    conversations_come_by_pages_most_recent_first,
    who_only_wrote_from_the_only_device_has_it_in_no_list,
    unread_counts_are_the_same_on_every_device,
    the_last_message_stays_when_its_entry_is_gone,
    devices_are_listed,
    what_is_no_request_is_refused_and_the_session_lives,
}

fn conversations_come_by_pages_most_recent_first(layout: Layout) {
    const USERS: u64 = 23;
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    for user in 101..=100 + USERS {
        let sent = Peer::online(&home, &server, user).send_and_wait(1, 1, b"hello");
        server.wait_for_hubs();
        // Of messages of one millisecond none is the more recent.
        while now_ms() <= sent.server_time_ms {
            std::thread::yield_now();
        }
    }
    // The first ones again.
    Peer::online(&home, &server, 101).send_and_wait(1, 2, b"again");
    server.wait_for_hubs();
    one.settle();
    let mut found = Vec::new();
    let mut page = Vec::new();
    loop {
        let conversations = one.conversations(5, &page);
        assert!(conversations.items.len() <= 5);
        found.extend(conversations.items);
        if conversations.next.is_empty() {
            break;
        }
        page = conversations.next.to_vec();
    }
    let users: Vec<Vec<u8>> = found.iter().map(|item| item.conversation.to_vec()).collect();
    let expected = [101].into_iter().chain((102..=100 + USERS).rev());
    assert_eq!(users, expected.map(|user| conversation(1, user)).collect::<Vec<_>>());
    let first = &found[0];
    assert_eq!((first.last_seq, first.unread, first.read), (2, 2, 0));
    assert_eq!(first.last.as_ref().map(|entry| &entry.payload[..]), Some(&b"again"[..]));
    let all = one.conversations(0, b"");
    assert!(all.next.is_empty() && all.items == found, "one page holds them all");
    let invalid = Request::ListConversations(proto::ListConversations { limit: 5, page: "no token".into() });
    assert_eq!(one.call(invalid), Err(ErrorCode::RequestInvalid.number()));
}

fn who_only_wrote_from_the_only_device_has_it_in_no_list(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut one, mut two) = (Peer::online(&home, &server, 1), Peer::online(&home, &server, 2));
    one.send_and_wait(2, 1, b"hello");
    two.entries(1);
    two.ack(1);
    one.wait_for_mark(2, |mark| mark.delivered == 1);
    assert_eq!(one.conversations(0, b"").items, []);
    two.send_and_wait(1, 1, b"answer");
    one.entries(1);
    for (peer, with, unread) in [(&mut one, 2, 1), (&mut two, 1, 0)] {
        let item = peer.conversations(0, b"").items.remove(0);
        assert_eq!((item.conversation, item.last_seq, item.unread), (conversation(peer.user, with).into(), 2, unread));
    }
}

fn unread_counts_are_the_same_on_every_device(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut first, mut second) = (Peer::device(&home, &server, 1, 1), Peer::device(&home, &server, 1, 2));
    first.settle();
    let mut other = Peer::online(&home, &server, 2);
    let check = |first: &mut Peer, second: &mut Peer, unread: u64, read: u64| {
        server.wait_for_hubs();
        for peer in [first, second] {
            let items = peer.conversations(0, b"").items;
            assert_eq!(items.iter().map(|item| (item.unread, item.read)).collect::<Vec<_>>(), [(unread, read)]);
        }
    };
    for number in 1..=5 {
        other.send_and_wait(1, number, b"");
    }
    check(&mut first, &mut second, 5, 0);
    first.entries(5);
    second.entries(5);
    first.ack(5);
    check(&mut first, &mut second, 5, 0);
    assert_eq!(first.mark_read(2, 3), Ok(3));
    check(&mut first, &mut second, 2, 3);
    // Who answers has read it.
    second.send_and_wait(2, 1, b"answer");
    check(&mut first, &mut second, 0, 3);
    other.send_and_wait(1, 6, b"");
    check(&mut first, &mut second, 1, 3);
    other.entries(1);
    let items = other.conversations(0, b"").items;
    assert_eq!((items[0].unread, items[0].read, items[0].last_seq), (0, 0, 7), "it spoke last");
}

fn the_last_message_stays_when_its_entry_is_gone(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut one, mut two) = (Peer::online(&home, &server, 1), Peer::online(&home, &server, 2));
    let long = vec![7; PREVIEW_LEN_MAX + 100];
    let sent = two.send_and_wait(1, 1, &long);
    one.entries(1);
    one.ack(1);
    one.settle();
    // The floor follows what is acknowledged.
    server.wait_for("culver_floors_moved_total", |floors| floors > 0);
    server.stop();
    home.verify();
    let server = home.start();
    let mut one = Peer::online(&home, &server, 1);
    let item = one.conversations(0, b"").items.remove(0);
    let last = item.last.expect("a row of the list");
    assert_eq!((last.message_id, last.inbox_seq, last.sender), (sent.message_id, 0, 2));
    assert_eq!(last.payload, long[..PREVIEW_LEN_MAX]);
}

fn devices_are_listed(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut first = Peer::device(&home, &server, 1, 1);
    let second = Peer::device(&home, &server, 1, 7);
    let today_ms = crate::home::now_s() / 86_400 * 86_400_000;
    let devices = first.devices();
    let expected = [(1, true, 0), (7, true, 0)];
    let found: Vec<_> = devices.iter().map(|device| (device.device, device.online, device.waiting)).collect();
    assert_eq!(found, expected);
    // Midnight may have passed meanwhile.
    assert!(devices.iter().all(|device| device.last_seen_ms.abs_diff(today_ms) <= 86_400_000), "{devices:?}");
    drop(second);
    server.wait_for("culver_sessions", |sessions| sessions == 1);
    Peer::online(&home, &server, 2).send_and_wait(1, 1, b"");
    first.entries(1);
    first.ack(1);
    let found: Vec<_> = first.devices().iter().map(|device| (device.device, device.online, device.waiting)).collect();
    assert_eq!(found, [(1, true, 0), (7, false, 1)]);
}

fn what_is_no_request_is_refused_and_the_session_lives(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    let invalid = ErrorCode::RequestInvalid.number();
    // None, one of a later version, and a conversation that is none.
    for (id, body) in [(71, &[0x08, 71][..]), (72, &[0x08, 72, 0xa2, 0x06, 0]), (73, &[0x08, 73, 0x1a, 3, 0x0a, 1, 9])]
    {
        one.write(&raw(RecordType::Rpc as u8, body));
        let got = one.wait_for(|got| matches!(got, Got::Answer(answer) if answer.id == id));
        let Got::Answer(proto::RpcResult { error: Some(error), result: None, .. }) = got else { panic!("{got:?}") };
        assert_eq!(error.code, invalid);
    }
    assert_eq!(one.mark_read(2, 0), Ok(0), "nothing is read, and that may be said");
    one.send_and_wait(2, 1, b"it lives");
    one.write(&raw(RecordType::Rpc as u8, &[0xff]));
    one.refused(ErrorCode::BadProtobuf);
    // And not before READY.
    let login = opening(&with(home.token(1)));
    let mut early = Peer::connect(server.listen);
    early.write(login.get(..login.len() - 4).expect("READY has four bytes"));
    early.write(&record(RecordType::Rpc, &proto::Rpc { id: 1, request: None }));
    assert!(matches!(early.next(), Some(Got::Welcome(_))));
    early.refused(ErrorCode::OutOfState);
}
