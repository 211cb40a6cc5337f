//! Peers that take nothing of what there is for them: who is ended, who is told of, and what is theirs all the same.

use std::io::{ErrorKind, Write};

use culver_protocol::proto;
use culver_protocol::record::RecordType;
use serde_json::Value;

use crate::delivery::stuff;
use crate::home::{Home, Layout, Server, on_every_layout, serve_on};
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
    let pings = record(RecordType::Ping, &proto::Ping { nonce: u64::MAX, ..Default::default() }).repeat(PINGS);
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

/// What the operators' port says of the worst connections.
fn worst(server: &Server, count: usize) -> Value {
    let url = format!("http://{}/connections/worst?count={count}", server.ops);
    let text = ureq::get(&url).call().expect("it answers").body_mut().read_to_string().expect("text");
    serde_json::from_str(&text).expect("JSON")
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
    assert_eq!(worst(&server, 20)["connections"].as_array().expect("a list").len() as u64, blocked);
    calm.ping();
    for user in users {
        let entries = Peer::online(&home, &server, user).entries(1);
        assert_eq!(entries.first().expect("one").payload, b"it is on disk"[..]);
    }
}

#[test]
fn the_worst_connections_are_told() {
    let home = Home::on(Layout::FourHubs);
    let server = home.start();
    assert_eq!(worst(&server, 20), serde_json::json!({ "connections": [], "unanswered": [] }));
    let mut two = Peer::connect_narrow(server.listen, 4096);
    two.log_in(2, &with(home.token(2)));
    stuff(&home, &server, &mut two);
    let told = worst(&server, 20);
    let connections = told["connections"].as_array().expect("a list");
    let one = connections.first().expect("it reads nothing");
    let address = two.stream.local_addr().expect("connected").to_string();
    assert_eq!((&one["user"], &one["device"], &one["peer"]), (&2.into(), &1.into(), &address.into()), "{told}");
    assert!(one["unsent_bytes"].as_u64() > Some(256 * 1024), "{told}");
    assert!(one["kernel_unsent_bytes"].as_u64() > Some(0), "{told}");
    assert!(one["reactor"].is_u64() && one["blocked_s"].is_u64() && one["silent_s"].is_u64(), "{told}");
    assert_eq!((connections.len(), &told["unanswered"]), (1, &serde_json::json!([])));
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
