//! Connections that come and go, fall silent, or see the server leave.

use std::time::Instant;

use culver_protocol::error::ErrorCode;
use culver_protocol::proto;
use rustix::process::Signal;

use crate::home::{Home, Layout, on_every_layout, serve_on};
use crate::peer::{Got, Peer, with};

on_every_layout! {
    a_thousand_come_and_go_and_leave_nothing,
    sigterm_says_goodbye_and_keeps_everything,
    sigterm_under_load_answers_what_it_has_taken,
}

fn a_thousand_come_and_go_and_leave_nothing(layout: Layout) {
    let (home, server) = serve_on(layout);
    for round in 0..4 {
        let mut peers = Vec::new();
        for user in 1..=250 {
            let mut peer = Peer::connect(server.listen);
            // Some leave before they are welcomed, some just after, some when they have settled.
            match user % 3 {
                0 => peer.write(&crate::peer::opening(&with(home.token(user)))),
                1 => drop(peer.log_in(user, &with(home.token(user)))),
                _ => {
                    peer.log_in(user, &with(home.token(user)));
                    peer.send_and_wait(user, round, b"note");
                }
            }
            peers.push(peer);
        }
        drop(peers);
    }
    server.wait_for("culver_connections", |connections| connections == 0);
    server.wait_for("culver_sessions", |sessions| sessions == 0);
    assert_eq!(server.metric("culver_parked_commands"), 0);
    server.stop();
}

#[test]
fn who_falls_silent_is_ended_and_who_pings_is_not() {
    let home = Home::new();
    home.configure("[keep_alive]\nmin_s = 5\ndefault_s = 5\nmax_s = 5\n");
    let server = home.start();
    let since = Instant::now();
    let (mut silent, welcome) = Peer::resume(&server, 1, &with(home.token(1)));
    assert_eq!(welcome.keep_alive_s, 5);
    // It never says READY.
    let mut greeted = Peer::connect(server.listen);
    let login = crate::peer::opening(&with(home.token(3)));
    greeted.write(login.get(..login.len() - 4).expect("READY has four bytes"));
    let mut lively = Peer::online(&home, &server, 2);
    // As long as the silent one is there, the other pings.
    while !silent.is_readable() {
        lively.ping();
    }
    silent.refused(ErrorCode::KeepAliveTimeout);
    greeted.refused(ErrorCode::LoginTimeout);
    assert!(since.elapsed().as_millis() >= 7500, "one and a half times what was agreed");
    lively.ping();
}

fn sigterm_says_goodbye_and_keeps_everything(layout: Layout) {
    let home = Home::on(layout);
    home.configure("[shutdown]\naway_s = 3\nspread_s = 12\n");
    let server = home.start();
    let (mut one, mut two) = (Peer::online(&home, &server, 1), Peer::online(&home, &server, 2));
    let sent: Vec<u64> = (1..=50).map(|number| one.send_and_wait(2, number, b"kept").message_id).collect();
    two.entries(50);
    two.ack(20);
    // Taken before what follows is answered.
    two.settle();
    server.signal(Signal::TERM);
    let expected = proto::Goaway {
        reason: proto::goaway::Reason::Shutdown.into(),
        reconnect_min_ms: 3_000,
        reconnect_max_ms: 15_000,
        alternates: Vec::new(),
    };
    for peer in [&mut one, &mut two] {
        assert_eq!(peer.wait_for(|got| matches!(got, Got::Goaway(_))), Got::Goaway(expected.clone()));
        // What the last ACK made is told still.
        while let Some(got) = peer.next() {
            assert!(matches!(got, Got::Receipt(_)), "{got:?}");
        }
    }
    let (code, logged) = server.wait();
    assert_eq!(code, Some(0), "{logged}");
    let server = home.start();
    let mut two = Peer::online(&home, &server, 2);
    two.position = 20;
    let entries = two.entries(30);
    assert!(entries.iter().map(|entry| entry.message_id).eq(sent.iter().copied().skip(20)));
}

fn sigterm_under_load_answers_what_it_has_taken(layout: Layout) {
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    let flight: Vec<u8> = (1..=2000).flat_map(|number| crate::peer::send_record(1, 2, number, b"load")).collect();
    one.write(&flight);
    one.result(1);
    server.signal(Signal::TERM);
    let mut answered = 1;
    while let Some(got) = one.next() {
        match got {
            Got::Result(result) => {
                assert_eq!(result.error, None);
                answered += 1;
            }
            Got::Goaway(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let (code, logged) = server.wait();
    assert_eq!(code, Some(0), "{logged}");
    let server = home.start();
    let mut two = Peer::online(&home, &server, 2);
    let mut got = 0;
    while got < answered {
        got += two.deliver().len();
        two.ack(two.position);
    }
    server.stop();
    home.verify();
}
