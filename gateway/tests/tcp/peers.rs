//! Peers that take nothing of what there is for them: who is ended, who is told of, and what is theirs all the same.

use std::io::{ErrorKind, Write};

use culver_protocol::proto;
use culver_protocol::record::RecordType;

use crate::home::{Home, Layout, on_every_layout, serve_on};
use crate::peer::{Peer, record, with};

on_every_layout! {
    what_lies_in_a_kernel_counts_for_nothing,
}

/// Pings of one write.
const PINGS: usize = 10_000;
/// Turns of others in which a server that takes nothing could have taken something.
const TURNS: u32 = 12;

/// Pings whose answers are not read, until the server reads no more or has ended the connection.
fn pour(peer: &mut Peer, other: &mut Peer) {
    peer.stream.set_nonblocking(true).expect("a socket");
    let pings = record(RecordType::Ping, &proto::Ping { nonce: u64::MAX }).repeat(PINGS);
    let (mut from, mut refused) = (0, 0);
    while refused < TURNS {
        match peer.stream.write(pings.get(from..).expect("a write takes no more than there is")) {
            Ok(len) => (from, refused) = ((from + len) % pings.len(), 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                refused += 1;
                other.ping();
            }
            Err(_) => return,
        }
    }
}

#[test]
fn those_with_the_most_unsent_are_ended_and_lose_nothing() {
    let home = Home::new();
    home.configure("reactors = 1\n[peers]\nunsent_mib = 1\n");
    let server = home.start();
    let mut calm = Peer::online(&home, &server, 1);
    // Each leaves a quarter of a mebibyte at least.
    let users = 10..18;
    let mut slow = Vec::new();
    for user in users.clone() {
        let mut peer = Peer::connect_narrow(server.listen, 4096);
        peer.log_in(user, &with(home.token(user)));
        pour(&mut peer, &mut calm);
        calm.send_and_wait(user, user, b"it is on disk");
        slow.push(peer);
    }
    server.wait_for("culver_slow_readers_total", |ended| ended >= 3);
    assert!(server.metric("culver_unsent_bytes") <= 1 << 20);
    let blocked = server.metric("culver_connections_blocked");
    assert!((1..=5).contains(&blocked), "{blocked} are left");
    calm.ping();
    for user in users {
        let entries = Peer::online(&home, &server, user).entries(1);
        assert_eq!(entries.first().expect("one").payload, b"it is on disk"[..]);
    }
}

fn what_lies_in_a_kernel_counts_for_nothing(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    let mut two = Peer::online(&home, &server, 2);
    one.send_and_wait(2, 1, b"hello");
    server.wait_for("culver_entries_delivered_total", |entries| entries == 1);
    // It has come as far as a kernel can bring it, and its application has seen it, but says nothing.
    two.entries(1);
    drop(two);
    server.wait_for("culver_sessions", |sessions| sessions == 1);
    let mut two = Peer::online(&home, &server, 2);
    assert_eq!(two.entries(1).first().expect("it comes again").payload, b"hello"[..]);
    two.ping();
    server.wait_for_hubs();
    one.ping();
    assert_eq!(server.metric("culver_receipts_total"), 0, "nobody is told that it was delivered");
    two.ack(1);
    one.wait_for_mark(2, |mark| mark.delivered == 1);
}
