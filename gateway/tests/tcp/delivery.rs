//! Messages from their recipients' side: backlogs, windows, takeovers, cursors, and recipients that do not read.

use std::io::{ErrorKind, Write};

use culver_protocol::error::ErrorCode;
use culver_protocol::limits::{CREDIT_BYTES_MIN, ENTRY_OVERHEAD};
use culver_protocol::proto;
use culver_protocol::record::RecordType;

use crate::home::{Home, Layout, Server, on_every_layout, serve_on};
use crate::peer::{Got, Peer, record, send_record, with};

on_every_layout! {
    a_backlog_drains_in_order_and_what_was_acknowledged_does_not_come_again,
    a_window_in_entries_is_kept_and_opens_with_acknowledgements,
    a_window_in_bytes_is_kept_and_may_be_changed,
    the_newer_connection_takes_over_with_what_was_not_acknowledged,
    a_hundred_takeovers_lose_nothing,
    a_cursor_that_means_nothing_here_is_reset,
    an_acknowledgement_from_before_the_reset_moves_nothing,
    who_does_not_read_costs_no_memory_and_loses_nothing,
    who_lets_what_it_is_owed_pile_up_is_ended_and_loses_nothing,
}

/// User 1 has sent so many messages to user 2, and all are accepted.
fn backlog(home: &Home, server: &Server, count: u64, payload_len: usize) -> Peer {
    let mut one = Peer::online(home, server, 1);
    for number in 1..=count {
        one.send(2, number, &payload(number, payload_len));
        // Answers are taken now and then, lest both sides wait for the other to read.
        if number.is_multiple_of(100) {
            one.result(number);
        }
    }
    if !count.is_multiple_of(100) {
        one.result(count);
    }
    one.kept();
    one
}

fn payload(number: u64, len: usize) -> Vec<u8> {
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(len.max(8), 0x5a);
    payload
}

fn check(entries: &[proto::Entry], len: usize) {
    for entry in entries {
        assert_eq!(entry.payload, payload(entry.inbox_seq, len));
    }
}

fn a_backlog_drains_in_order_and_what_was_acknowledged_does_not_come_again(layout: Layout) {
    let (home, server) = serve_on(layout);
    backlog(&home, &server, 230, 20);
    let mut two = Peer::online(&home, &server, 2);
    for _ in 0..3 {
        check(&two.entries(50), 20);
        two.ack(two.position);
    }
    // The fourth page is on its way and is never acknowledged.
    check(&two.entries(50), 20);
    drop(two);
    server.wait_for("culver_sessions", |sessions| sessions == 0);
    server.kill();
    let server = home.start();
    let mut two = Peer::online(&home, &server, 2);
    two.position = 150;
    check(&two.entries(50), 20);
    two.ack(200);
    check(&two.entries(30), 20);
    two.ack(230);
    two.ping();
    assert_eq!(two.kept(), []);
}

fn a_window_in_entries_is_kept_and_opens_with_acknowledgements(layout: Layout) {
    let (home, server) = serve_on(layout);
    let login = proto::Login { credit_entries: 7, ..with(home.token(2)) };
    let (mut two, welcome) = Peer::resume(&server, 2, &login);
    assert_eq!(welcome.credit_entries, 7);
    // Live as well as from the log.
    let _one = backlog(&home, &server, 100, 8);
    let mut acked = 0;
    while two.position < 100 {
        check(&two.deliver(), 8);
        assert!(two.position - acked <= 7, "{} entries under way", two.position - acked);
        if two.position - acked == 7 || two.position == 100 {
            settle(&server, &mut two);
            // Not all of them: the window slides.
            acked = (two.position - 2).max(acked + 1);
            two.ack(acked);
        }
    }
    two.ack(100);
    settle(&server, &mut two);
    assert_eq!(two.kept(), []);
}

fn a_window_in_bytes_is_kept_and_may_be_changed(layout: Layout) {
    const LEN: usize = 10_000;
    let (home, server) = serve_on(layout);
    let _one = backlog(&home, &server, 20, LEN);
    let login = proto::Login { credit_bytes: 1, ..with(home.token(2)) };
    let (mut two, welcome) = Peer::resume(&server, 2, &login);
    assert_eq!(welcome.credit_bytes, CREDIT_BYTES_MIN, "the longest entry always fits");
    let fit = welcome.credit_bytes as usize / (LEN + ENTRY_OVERHEAD);
    check(&two.entries(fit), LEN);
    settle(&server, &mut two);
    assert_eq!(two.kept(), [], "no more than fits");
    let wider = proto::Ack { inbox_seq: two.position, credit_bytes: 0, credit_entries: 1 };
    two.write(&record(RecordType::Ack, &wider));
    check(&two.entries(1), LEN);
    settle(&server, &mut two);
    assert_eq!(two.kept(), [], "one entry was asked for");
    let wider = proto::Ack { inbox_seq: two.position, credit_bytes: 1 << 20, credit_entries: 1000 };
    two.write(&record(RecordType::Ack, &wider));
    check(&two.entries(20 - fit - 1), LEN);
}

/// What is going to come has come: nothing is on its way between hubs, and the user's own has had its turns.
fn settle(server: &Server, two: &mut Peer) {
    server.wait_for_hubs();
    for _ in 0..3 {
        two.settle();
    }
}

fn the_newer_connection_takes_over_with_what_was_not_acknowledged(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    let mut older = Peer::online(&home, &server, 2);
    for number in 1..=10 {
        one.send_and_wait(2, number, &payload(number, 8));
    }
    check(&older.entries(10), 8);
    older.ack(4);
    // The ACK is taken when this is answered.
    older.settle();
    let mut newer = Peer::online(&home, &server, 2);
    older.refused(ErrorCode::Replaced);
    newer.position = 4;
    check(&newer.entries(6), 8);
    one.send_and_wait(2, 11, &payload(11, 8));
    check(&newer.entries(1), 8);
    newer.ack(11);
    newer.ping();
    server.wait_for("culver_sessions", |sessions| sessions == 2);
}

fn a_hundred_takeovers_lose_nothing(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    let mut peers = Vec::new();
    let mut position = 0;
    for number in 1..=100 {
        one.send(2, number, &payload(number, 8));
        let login = proto::Login { cursor: position, ..with(home.token(2)) };
        let (mut two, _) = Peer::resume(&server, 2, &login);
        if number % 3 == 0 {
            check(&two.deliver(), 8);
            position = two.position;
        }
        peers.push(two);
    }
    let mut last = peers.pop().expect("a hundred");
    one.result(100);
    let entries = usize::try_from(100 - last.position).expect("small");
    check(&last.entries(entries), 8);
    for mut peer in peers {
        peer.kept();
        peer.refused(ErrorCode::Replaced);
    }
}

fn a_cursor_that_means_nothing_here_is_reset(layout: Layout) {
    let (home, server) = serve_on(layout);
    backlog(&home, &server, 5, 8);
    let (mut two, welcome) = Peer::resume(&server, 2, &with(home.token(2)));
    two.entries(5);
    two.ack(2);
    two.settle();
    for login in [
        // Beyond the head.
        proto::Login { cursor: 6, incarnation: welcome.incarnation, ..with(home.token(2)) },
        proto::Login { cursor: u64::MAX, ..with(home.token(2)) },
        // Of other data, where the same number meant something else.
        proto::Login { cursor: 4, incarnation: welcome.incarnation ^ 1, ..with(home.token(2)) },
    ] {
        let (mut two, _) = Peer::resume(&server, 2, &login);
        let expected = proto::Gap { start: 3, reset: true, incarnation: welcome.incarnation };
        assert_eq!(two.next(), Some(Got::Gap(expected)));
        two.position = 2;
        check(&two.entries(3), 8);
    }
    // A stranger without a cursor has nothing to forget, and a cursor within the inbox is believed.
    let login = proto::Login { incarnation: welcome.incarnation ^ 1, ..with(home.token(2)) };
    let (mut two, _) = Peer::resume(&server, 2, &login);
    two.position = 2;
    check(&two.entries(3), 8);
    let login = proto::Login { cursor: 4, incarnation: welcome.incarnation, ..with(home.token(2)) };
    let (mut two, _) = Peer::resume(&server, 2, &login);
    check(&two.entries(1), 8);
}

/// Its acknowledgement of what the older data held is not one of what this data holds.
fn an_acknowledgement_from_before_the_reset_moves_nothing(layout: Layout) {
    let (home, server) = serve_on(layout);
    backlog(&home, &server, 5, 8);
    let (_, welcome) = Peer::resume(&server, 2, &with(home.token(2)));
    let login = proto::Login { cursor: 5, incarnation: welcome.incarnation ^ 1, ..with(home.token(2)) };
    let mut two = Peer::connect(server.listen);
    let mut flight = crate::peer::opening(&login);
    flight.extend(record(RecordType::Ack, &proto::Ack { inbox_seq: 5, ..Default::default() }));
    flight.extend(send_record(2, 3, 1, b""));
    two.write(&flight);
    two.user = 2;
    two.result(1);
    drop(two);
    let (mut two, _) = Peer::resume(&server, 2, &with(home.token(2)));
    check(&two.entries(5), 8);
}

/// Other clients that come and go before a server that does not read is taken at its word.
const TURNS: u32 = 12;

/// Pings, whose answers are not read, until the server reads no more either. How many there were, and what is left to
/// be written of the last.
pub(crate) fn stuff(home: &Home, server: &Server, peer: &mut Peer) -> (u64, Vec<u8>) {
    peer.stream.set_nonblocking(true).expect("a socket");
    let ping = record(RecordType::Ping, &proto::Ping { nonce: u64::MAX, ..Default::default() });
    let (mut pings, mut rest) = (0, Vec::new());
    let mut refused = 0;
    loop {
        let bytes = if rest.is_empty() { &ping } else { &rest };
        match peer.stream.write(bytes) {
            Ok(len) => {
                refused = 0;
                rest = bytes.get(len..).expect("no more than there was").to_vec();
                pings += u64::from(rest.is_empty());
                assert!(pings < 10_000_000, "it reads for ever");
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && refused < TURNS => {
                // The server may just not have come to it yet: it has when another client's turn has come and gone at
                // the same reactor, which the kernel has chosen for one of so many.
                refused += 1;
                Peer::online(home, server, 9).ping();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    peer.stream.set_nonblocking(false).expect("a socket");
    (pings, rest)
}

fn who_does_not_read_costs_no_memory_and_loses_nothing(layout: Layout) {
    const LEN: usize = 1000;
    let (home, server) = serve_on(layout);
    let login = proto::Login { credit_entries: 1000, credit_bytes: 1 << 20, ..with(home.token(2)) };
    let mut two = Peer::connect_narrow(server.listen, 4096);
    two.log_in(2, &login);
    let before = server.metric("culver_process_resident_bytes");
    let (pings, rest) = stuff(&home, &server, &mut two);
    let mut one = backlog(&home, &server, 300, LEN);
    one.ping();
    let after = server.metric("culver_process_resident_bytes");
    let grown = after.saturating_sub(before) / 1024;
    assert!(grown < 48 * 1024, "memory has grown by {grown} KiB");
    for _ in 0..pings {
        two.wait_for(|got| *got == Got::Pong(u64::MAX));
    }
    two.write(&rest);
    check(&two.entries(300), LEN);
}

fn who_lets_what_it_is_owed_pile_up_is_ended_and_loses_nothing(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut one = Peer::connect_narrow(server.listen, 4096);
    one.log_in(1, &with(home.token(1)));
    one.send_and_wait(2, 1, b"hello");
    stuff(&home, &server, &mut one);
    let mut two = Peer::online(&home, &server, 2);
    two.entries(1);
    // A receipt is written all the same; one too many.
    two.ack(1);
    server.wait_for("culver_receipts_total", |receipts| receipts == 1);
    server.wait_for("culver_errors_sent_total", |errors| errors == 1);
    // It goes without having read why.
    server.wait_for("culver_sessions", |sessions| sessions == 1);
    drop(one);
    Peer::online(&home, &server, 1).wait_for_mark(2, |mark| mark.delivered == 1);
}

/// The answers leave at once, so that no socket ever says that it takes bytes again.
#[test]
fn a_flood_of_pings_is_answered_to_the_last() {
    const PINGS: usize = 200_000;
    let (home, server) = serve_on(Layout::OneHub);
    let mut one = Peer::online(&home, &server, 1);
    let mut writing = one.stream.try_clone().expect("a socket");
    let flood = record(RecordType::Ping, &proto::Ping { nonce: u64::MAX, ..Default::default() }).repeat(PINGS);
    let writer = std::thread::spawn(move || writing.write_all(&flood));
    for _ in 0..PINGS {
        assert_eq!(one.next(), Some(Got::Pong(u64::MAX)));
    }
    writer.join().expect("it does not panic").expect("the server takes it all");
    one.ping();
}
