//! Several hubs and volumes: messages between all of them, and starts with other numbers of hubs.

use std::collections::BTreeMap;

use culver_protocol::proto;

use crate::home::{Home, Layout, Server};
use crate::peer::{Peer, with};

/// Enough that every hub talks to every other.
const USERS: u64 = 24;

/// Everybody sends one more message to everybody else, and all are accepted.
fn round(home: &Home, server: &Server, number: u64) {
    for user in 1..=USERS {
        let mut peer = Peer::online(home, server, user);
        let others = || (1..=USERS).filter(move |other| *other != user);
        for other in others() {
            peer.send(other, number * 100 + other, &number.to_be_bytes());
        }
        for other in others() {
            peer.result(number * 100 + other);
        }
    }
}

/// Takes what waits for a user, in order from each sender, and says how many came from each.
fn drain(home: &Home, server: &Server, user: u64, rounds: u64) {
    let login = proto::Login { credit_entries: 1000, credit_bytes: 1 << 20, ..with(home.token(user)) };
    let mut peer = Peer::resume(server, user, &login).0;
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    while last.len() < usize::try_from(USERS - 1).expect("few") || last.values().any(|number| *number < rounds) {
        for entry in peer.deliver() {
            let number = u64::from_be_bytes(entry.payload[..].try_into().expect("eight bytes"));
            let before = last.insert(entry.sender, number).unwrap_or(0);
            assert_eq!(number, before + 1, "from {} to {user}: once, in order", entry.sender);
        }
    }
}

#[test]
fn the_number_of_hubs_may_change_while_messages_are_on_their_way() {
    let home = Home::on(Layout::FourHubs);
    for (number, hubs) in (1..).zip([2, 4, 3, 16, 2]) {
        let server = home.start_with_hubs(hubs);
        assert_eq!((server.metric("culver_hubs"), server.metric("culver_volumes")), (u64::from(hubs), 2));
        round(&home, &server, number);
        // What is accepted may still be on its way.
        server.kill();
        home.verify();
    }
    let server = home.start_with_hubs(3);
    server.wait_for_hubs();
    for user in 1..=USERS {
        drain(&home, &server, user, 5);
    }
    server.stop();
    home.verify();
}

#[test]
fn what_a_hub_was_sent_by_closed_sessions_frees_their_slots() {
    let home = Home::on(Layout::FourHubs);
    let server = home.start();
    for _ in 0..5 {
        round(&home, &server, 1);
        server.wait_for("culver_connections", |connections| connections == 0);
        server.wait_for("culver_sessions", |sessions| sessions == 0);
    }
    assert_eq!(server.metric("culver_messages_accepted_total"), USERS * (USERS - 1));
    assert_eq!(server.metric("culver_messages_duplicate_total"), 4 * USERS * (USERS - 1));
    server.stop();
    home.verify();
}
