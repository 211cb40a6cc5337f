//! Who logs in faster than `[logins]` lets them: told when to come again, and nothing is kept of them.

use culver_protocol::error::ErrorCode;
use culver_protocol::limits::{LOGIN_RETRY_MS_MAX, LOGIN_RETRY_MS_MIN};
use culver_protocol::proto;
use culver_protocol::record::RecordType;

use crate::home::{Home, Layout, Server, on_every_layout};
use crate::peer::{Got, Peer, opening, record, with};

on_every_layout! {
    who_comes_too_fast_is_told_when_to_come_again,
    a_user_who_logs_in_too_often_is_told_so_behind_its_welcome,
}

/// What a login is told that is refused, and the end behind it.
fn refusal(home: &Home, server: &Server) -> Option<proto::Error> {
    let mut peer = Peer::connect(server.listen);
    peer.write(&opening(&with(home.token(7))));
    match peer.next() {
        Some(Got::Error(error)) => {
            peer.ended();
            Some(error)
        }
        _ => None,
    }
}

fn who_comes_too_fast_is_told_when_to_come_again(layout: Layout) {
    const ATTEMPTS: u64 = 40;
    let home = Home::on(layout);
    home.configure("[logins]\nper_s = 1\nsource_per_s = 1\nsource_burst = 1000\n");
    let server = home.start();
    // On a machine so slow that seconds pass from one to the next, a few more are let in.
    let told: Vec<_> = (0..ATTEMPTS).filter_map(|_| refusal(&home, &server)).collect();
    assert!(!told.is_empty(), "somebody comes too fast");
    for error in &told {
        assert_eq!(error.code, ErrorCode::LoginsBusy.number());
        assert!((LOGIN_RETRY_MS_MIN..=LOGIN_RETRY_MS_MAX).contains(&error.retry_after_ms), "{error:?}");
    }
    let count = told.len() as u64;
    assert_eq!(server.metric("culver_logins_shed_total"), count);
    assert!(server.metric("culver_logins_calendar_s") > 0);
    server.wait_for("culver_connections", |connections| connections == 0);
    // Each let in was one connection, and the others were none.
    assert_eq!(server.metric("culver_logins_total"), ATTEMPTS - count);
    server.stop();
}

fn a_user_who_logs_in_too_often_is_told_so_behind_its_welcome(layout: Layout) {
    let home = Home::on(layout);
    home.configure("[logins]\nuser_per_s = 1\nuser_burst = 2\n");
    let server = home.start();
    let mut attempts = 0;
    let error = loop {
        attempts += 1;
        let mut peer = Peer::connect(server.listen);
        peer.write(&opening(&with(home.token(7))));
        assert!(matches!(peer.next(), Some(Got::Welcome(_))), "the reactor knows nothing of users");
        peer.write(&record(RecordType::Ping, &proto::Ping { nonce: 1, ..Default::default() }));
        match peer.next() {
            Some(Got::Error(error)) => break error,
            other => assert!(matches!(other, Some(Got::Pong(1))) && attempts < 100, "{other:?}"),
        }
    };
    assert!(attempts > 2 && error.code == ErrorCode::LoginsBusy.number(), "{attempts}: {error:?}");
    assert!((LOGIN_RETRY_MS_MIN..=2000).contains(&error.retry_after_ms), "{error:?}");
    Peer::online(&home, &server, 8).ping();
    assert_eq!(server.metric("culver_logins_limited_total"), 1);
    server.stop();
}
