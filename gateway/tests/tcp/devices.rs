//! Several devices of a user: their copies, their cursors, their places, and the second process of one that fetches.

use culver_protocol::error::ErrorCode;
use culver_protocol::limits::DEVICES_MAX;
use culver_protocol::proto::rpc::Request;
use culver_protocol::proto::rpc_result::Result as Answer;
use culver_protocol::proto::{self, Welcome, login::Credential};
use culver_protocol::record::RecordType;

use crate::home::{Home, Layout, Server, now_s, on_every_layout, serve_on};
use crate::peer::{Got, Peer, opening, record, send_record, with};

on_every_layout! {
    what_one_device_sends_the_others_get_and_it_does_not,
    a_note_to_oneself_reaches_the_other_devices,
    each_device_has_a_cursor_of_its_own,
    a_further_device_begins_at_the_head,
    a_newer_connection_replaces_that_device_alone,
    a_ninth_device_is_refused_and_changes_nothing,
    what_other_devices_were_sent_may_not_be_acknowledged,
    own_messages_do_not_hold_a_cursor_back,
    a_fetch_reads_beside_the_live_session,
    a_third_fetch_takes_the_place_of_the_first,
    a_sibling_that_comes_later_is_known_at_once,
    what_a_removed_device_has_lets_it_in_no_more,
}

fn payloads(entries: &[proto::Entry]) -> Vec<&[u8]> {
    entries.iter().map(|entry| &entry.payload[..]).collect()
}

/// Two devices of user 1, which know of each other, and user 2.
fn three(home: &Home, server: &Server) -> (Peer, Peer, Peer) {
    let mut first = Peer::device(home, server, 1, 1);
    let second = Peer::device(home, server, 1, 2);
    first.settle();
    (first, second, Peer::online(home, server, 2))
}

fn what_one_device_sends_the_others_get_and_it_does_not(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut first, mut second, mut other) = three(&home, &server);
    for number in 1..=10 {
        let sent = first.send_and_wait(2, number, b"from the first");
        let copy = second.entries(1).remove(0);
        assert_eq!((copy.sender, copy.sender_device, copy.inbox_seq), (1, 1, 3 * number - 2));
        assert_eq!((copy.conversation_seq, copy.message_id), (sent.conversation_seq, sent.message_id));
        assert_eq!((&copy.payload[..], copy.server_time_ms), (&b"from the first"[..], sent.server_time_ms));
        second.send_and_wait(2, 100 + number, b"from the second");
        assert_eq!(payloads(&first.entries(1)), [b"from the second"]);
        assert_eq!(payloads(&other.entries(2)), [&b"from the first"[..], b"from the second"]);
        other.ack(other.position);
        other.send_and_wait(1, number, b"to both");
        // Its own message is left out, and the chain joins on all the same.
        assert_eq!(payloads(&first.entries(1)), [b"to both"]);
        assert_eq!(payloads(&second.entries(1)), [b"to both"]);
        assert_eq!((first.position, second.position), (3 * number, 3 * number));
        first.ack(3 * number);
        second.ack(3 * number);
    }
    server.wait_for_hubs();
    first.settle();
    second.settle();
    assert_eq!((first.kept(), second.kept(), other.kept()), (vec![], vec![], vec![]));
}

fn a_note_to_oneself_reaches_the_other_devices(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut first, mut second, _) = three(&home, &server);
    first.send_and_wait(1, 1, b"note");
    let entry = second.entries(1).remove(0);
    assert_eq!((entry.inbox_seq, entry.sender, entry.sender_device), (1, 1, 1));
    second.send_and_wait(1, 2, b"another");
    assert_eq!(payloads(&first.entries(1)), [b"another"]);
    assert_eq!(first.position, 2, "one entry a note, not two");
}

fn each_device_has_a_cursor_of_its_own(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut first, mut second, mut other) = three(&home, &server);
    for number in 1..=6 {
        other.send_and_wait(1, number, &[0]);
    }
    first.entries(6);
    second.entries(6);
    first.ack(5);
    second.ack(2);
    first.settle();
    second.settle();
    let waiting = |devices: &[proto::Device]| devices.iter().map(|device| device.waiting).collect::<Vec<_>>();
    assert_eq!(waiting(&first.devices()), [1, 4]);
    drop((first, second));
    server.kill();
    let server = home.start();
    let login = |device| Peer::resume(&server, 1, &with(home.token_of(1, device))).0;
    let (mut first, mut second) = (login(1), login(2));
    (first.position, second.position) = (5, 2);
    assert_eq!((first.entries(1).len(), second.entries(4).len()), (1, 4));
    assert_eq!(waiting(&first.devices()), [1, 4]);
}

fn a_further_device_begins_at_the_head(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut other = Peer::online(&home, &server, 2);
    for number in 1..=3 {
        other.send_and_wait(1, number, b"before anybody came");
    }
    server.wait_for_hubs();
    let mut first = Peer::online(&home, &server, 1);
    assert_eq!(first.entries(3).len(), 3, "the first gets what the inbox holds");
    let mut second = Peer::device(&home, &server, 1, 2);
    other.send_and_wait(1, 4, b"since");
    second.position = 3;
    assert_eq!(payloads(&second.entries(1)), [b"since"]);
    first.entries(1);
    let devices = first.devices();
    assert_eq!(devices.iter().map(|device| device.waiting).collect::<Vec<_>>(), [4, 1]);
}

fn a_newer_connection_replaces_that_device_alone(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut first, mut second, mut other) = three(&home, &server);
    let mut newer = Peer::device(&home, &server, 1, 2);
    second.refused(ErrorCode::Replaced);
    other.send_and_wait(1, 1, b"hello");
    assert_eq!((first.entries(1).len(), newer.entries(1).len()), (1, 1));
    server.wait_for("culver_sessions", |sessions| sessions == 3);
}

fn a_ninth_device_is_refused_and_changes_nothing(layout: Layout) {
    let (home, server) = serve_on(layout);
    let most = u16::try_from(DEVICES_MAX).expect("a few");
    let mut peers: Vec<Peer> = (1..=most).map(|device| Peer::device(&home, &server, 1, device)).collect();
    for _ in 0..2 {
        let mut ninth = Peer::connect(server.listen);
        ninth.write(&opening(&with(home.token_of(1, most + 1))));
        ninth.refused(ErrorCode::DevicesFull);
    }
    server.wait_for("culver_connections", |connections| connections == DEVICES_MAX as u64);
    let devices: Vec<u32> = peers[0].devices().iter().map(|device| device.device).collect();
    assert_eq!(devices, (1..=u32::from(most)).collect::<Vec<_>>());
    // The eight have their places, and another user's devices are nobody's business.
    peers[0].send_and_wait(2, 1, b"to all of mine");
    for peer in peers.iter_mut().skip(1) {
        assert_eq!(payloads(&peer.entries(1)), [b"to all of mine"]);
    }
    Peer::device(&home, &server, 2, most + 1);
}

fn what_other_devices_were_sent_may_not_be_acknowledged(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut first, mut second, mut other) = three(&home, &server);
    // A copy for the second; the first was never told of it.
    first.send_and_wait(2, 1, b"mine");
    second.entries(1);
    first.settle();
    first.write(&record(RecordType::Ack, &proto::Ack { inbox_seq: 1, ..Default::default() }));
    first.refused(ErrorCode::AckBeyondSent);
    second.ack(1);
    other.send_and_wait(1, 1, b"theirs");
    assert_eq!(second.entries(1).len(), 1);
    let mut first = Peer::resume(&server, 1, &with(home.token(1))).0;
    first.has_siblings = true;
    let entry = loop {
        let Got::Deliver(deliver) = first.wait_for(|got| matches!(got, Got::Deliver(_))) else { unreachable!("asked") };
        if let [entry] = &deliver.entries[..] {
            break entry.clone();
        }
    };
    assert_eq!((entry.inbox_seq, &entry.payload[..]), (2, &b"theirs"[..]));
}

fn own_messages_do_not_hold_a_cursor_back(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut first, mut second, mut other) = three(&home, &server);
    other.send_and_wait(1, 1, b"hello");
    first.entries(1);
    for number in 1..=5 {
        first.send_and_wait(2, number, b"answers");
    }
    second.entries(6);
    second.ack(6);
    // With this its window is empty, and what follows are its own: nothing waits for it.
    first.ack(1);
    server.wait_for_hubs();
    let since = std::time::Instant::now();
    while first.devices().iter().any(|device| device.waiting > 0) {
        assert!(since.elapsed() < crate::home::PATIENCE, "{:?}", first.devices());
    }
}

fn a_fetch_reads_beside_the_live_session(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut other = Peer::online(&home, &server, 2);
    for number in 1..=4 {
        other.send_and_wait(1, number, &[0]);
    }
    server.wait_for_hubs();
    let mut live = Peer::online(&home, &server, 1);
    live.entries(4);
    let fetch = proto::Login { fetch: true, ..with(home.token(1)) };
    let (mut fetching, _) = Peer::resume(&server, 1, &fetch);
    fetching.entries(4);
    // It moves the device's cursor, and the live session goes on.
    fetching.ack(3);
    fetching.settle();
    other.send_and_wait(1, 5, &[0]);
    assert_eq!((live.entries(1).len(), fetching.entries(1).len()), (1, 1));
    other.wait_for_mark(1, |mark| mark.delivered == 3);
    drop(fetching);
    server.wait_for("culver_sessions", |sessions| sessions == 2);
    // What the fetch acknowledged the live session may acknowledge too.
    live.ack(2);
    live.ack(5);
    live.settle();
    other.wait_for_mark(1, |mark| mark.delivered == 5);
    drop(live);
    // A fetch alone, and a live session beside it, which does not replace it.
    let (mut fetching, _) = Peer::resume(&server, 1, &fetch);
    other.send_and_wait(1, 6, &[0]);
    fetching.position = 5;
    fetching.entries(1);
    let mut live = Peer::online(&home, &server, 1);
    live.position = 5;
    live.entries(1);
    fetching.settle();
    assert_eq!(fetching.devices().len(), 1, "it is no device of its own");
}

fn a_third_fetch_takes_the_place_of_the_first(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut live = Peer::online(&home, &server, 1);
    let fetch = proto::Login { fetch: true, ..with(home.token(1)) };
    let login = || {
        let mut peer = Peer::resume(&server, 1, &fetch).0;
        peer.settle();
        peer
    };
    let (mut first, mut second) = (login(), login());
    let mut third = login();
    first.refused(ErrorCode::Replaced);
    for peer in [&mut live, &mut second, &mut third] {
        peer.settle();
    }
    server.wait_for("culver_sessions", |sessions| sessions == 3);
}

fn a_sibling_that_comes_later_is_known_at_once(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut first = Peer::online(&home, &server, 1);
    first.send_and_wait(2, 1, b"alone");
    // Where the session did not know yet that it is alone, a copy is on its way: it must not find the second device.
    server.wait_for_hubs();
    let mut second = Peer::device(&home, &server, 1, 2);
    // Told before this is answered.
    first.settle();
    first.send_and_wait(2, 2, b"together");
    assert_eq!(payloads(&second.entries(1)), [b"together"]);
    drop(second);
    server.wait_for("culver_sessions", |sessions| sessions == 1);
    first.send_and_wait(2, 3, b"it is away");
    server.wait_for_hubs();
    // It is linked, wherever it is.
    let mut second = Peer::resume(&server, 1, &with(home.token_of(1, 2))).0;
    assert_eq!(payloads(&second.entries(2)), [&b"together"[..], b"it is away"]);
}

/// In plaintext nobody has a key: a token and a ticket are all there is.
fn what_a_removed_device_has_lets_it_in_no_more(layout: Layout) {
    let (home, server) = serve_on(layout);
    let (mut first, Welcome { ticket: kept, .. }) = Peer::resume(&server, 1, &with(home.token(1)));
    let token = home.token_of(1, 2);
    let (mut second, welcome) = Peer::resume(&server, 1, &with(token.clone()));
    let ticket = Credential::Ticket(welcome.ticket);
    first.settle();
    let remove = Request::RemoveDevice(proto::RemoveDevice { device: 2 });
    assert!(matches!(first.call(remove), Ok(Answer::DeviceRemoved(_))));
    second.refused(ErrorCode::DeviceRemoved);
    let refused = |server: &Server, credential: &Credential, code| {
        let mut peer = Peer::connect(server.listen);
        peer.write(&[opening(&with(credential.clone())), send_record(1, 3, 7, b"as one that was removed")].concat());
        peer.refused(code);
    };
    refused(&server, &token, ErrorCode::TokenExpired);
    refused(&server, &ticket, ErrorCode::DeviceUnknown);
    server.kill();
    let server = home.start();
    refused(&server, &token, ErrorCode::TokenExpired);
    refused(&server, &ticket, ErrorCode::DeviceUnknown);
    // The user's other device shows its token again, as every ticket from before is void.
    refused(&server, &Credential::Ticket(kept), ErrorCode::TicketStale);
    let newer = |device| Credential::Token(home.credentials.mint(1, device, now_s() + 1, 3600, None).expect("a token"));
    let mut first = Peer::resume(&server, 1, &with(newer(1))).0;
    assert_eq!(first.devices().iter().map(|device| device.device).collect::<Vec<_>>(), [1]);
    // A token that was issued after the removal links it anew.
    Peer::resume(&server, 1, &with(newer(2))).0.ping();
    first.settle();
    assert_eq!(first.devices().len(), 2);
    let mut third = Peer::online(&home, &server, 3);
    third.settle();
    assert_eq!(third.kept(), [], "nothing that it said after its removal was passed on");
}
