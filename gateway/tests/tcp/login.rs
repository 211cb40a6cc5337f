//! Logging in, and every way to be refused.

use std::collections::{BTreeSet, VecDeque};
use std::io::Write;
use std::time::Instant;

use culver::auth::keys::TokenKeys;
use culver_protocol::error::ErrorCode;
use culver_protocol::proto::{self, login::Credential};
use culver_protocol::record::RecordType;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::home::{Home, PATIENCE, Server, now_s, serve};
use crate::peer::{Got, Peer, opening, record, with};

fn claims() -> Value {
    json!({ "sub": "7", "device": 1, "iss": "culver-dev", "aud": "culver", "iat": now_s(), "exp": now_s() + 3600 })
}

fn sign(claims: &Value, private_pem: &str) -> Credential {
    let key = EncodingKey::from_ed_pem(private_pem.as_bytes()).expect("a private key");
    Credential::Token(jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &key).expect("a signature"))
}

fn refused(server: &Server, login: &proto::Login, code: ErrorCode) {
    let mut peer = Peer::connect(server.listen);
    peer.write(&opening(login));
    peer.refused(code);
}

#[test]
fn a_token_logs_in_and_gives_a_ticket_that_does_too() {
    let (home, server) = serve();
    let wish = proto::Login { keep_alive_s: 60, credit_entries: 10, ..with(home.token(7)) };
    let (mut first, welcome) = Peer::resume(&server, 7, &wish);
    assert_eq!((welcome.keep_alive_s, welcome.credit_entries, welcome.version), (60, 10, 1));
    assert_ne!(welcome.incarnation, 0);
    first.ping();
    let (mut second, again) = Peer::resume(&server, 7, &with(Credential::Ticket(welcome.ticket.clone())));
    assert_eq!(again.incarnation, welcome.incarnation);
    assert_ne!(again.ticket, welcome.ticket, "each WELCOME gives a new one");
    second.ping();
    first.refused(ErrorCode::Replaced);
    // It is the same user.
    assert_ne!(second.send_and_wait(7, 1, b"note to self").inbox_seq, 0);
}

#[test]
fn every_mistake_of_a_token_has_its_code() {
    let (home, server) = serve();
    let changed = |claim: &str, value: Value| {
        let mut claims = claims();
        claims.as_object_mut().expect("claims are an object").insert(claim.to_owned(), value);
        sign(&claims, &home.credentials.private_key_pem)
    };
    let stranger = TokenKeys::generate().expect("keys");
    let shared = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &EncodingKey::from_secret(b"x"));
    for (credential, code) in [
        (changed("exp", json!(now_s() - 3600)), ErrorCode::TokenExpired),
        (changed("nbf", json!(now_s() + 3600)), ErrorCode::TokenNotYetValid),
        (changed("aud", json!("others")), ErrorCode::TokenAudience),
        (changed("sub", json!("bob")), ErrorCode::TokenMalformed),
        (changed("cnf", json!({ "jkt": "A".repeat(43) })), ErrorCode::TokenKey),
        (sign(&claims(), &stranger.private_pem), ErrorCode::TokenSignature),
        (Credential::Token(shared.expect("a token")), ErrorCode::TokenAlgorithm),
        (Credential::Token("no token".to_owned()), ErrorCode::TokenMalformed),
        (Credential::Ticket(vec![1; 40].into()), ErrorCode::TicketInvalid),
    ] {
        refused(&server, &with(credential), code);
    }
    // No credential at all.
    let nobody = proto::Login { client: "nobody/1".to_owned(), ..Default::default() };
    refused(&server, &nobody, ErrorCode::TokenMalformed);
    Peer::online(&home, &server, 7).ping();
}

#[test]
fn tickets_of_an_earlier_generation_or_of_other_data_are_refused() {
    let (home, server) = serve();
    let (_, welcome) = Peer::resume(&server, 7, &with(home.token(7)));
    let ticket = with(Credential::Ticket(welcome.ticket));
    server.stop();
    // A restart alone changes nothing.
    let server = home.start();
    Peer::resume(&server, 7, &ticket).0.ping();
    server.stop();
    home.configure("[ticket]\ngeneration = 2\n");
    let server = home.start();
    refused(&server, &ticket, ErrorCode::TicketStale);
    let (_other, elsewhere) = serve();
    refused(&elsewhere, &ticket, ErrorCode::TicketInvalid);
    Peer::online(&home, &server, 7).ping();
}

#[test]
fn a_ticket_expires() {
    let home = Home::new();
    home.configure("[ticket]\nlife_s = 1\n");
    let server = home.start();
    let (_, welcome) = Peer::resume(&server, 7, &with(home.token(7)));
    let ticket = opening(&with(Credential::Ticket(welcome.ticket)));
    let since = Instant::now();
    loop {
        let mut peer = Peer::connect(server.listen);
        peer.write(&ticket);
        match peer.next() {
            Some(Got::Welcome(_)) => assert!(since.elapsed() < PATIENCE, "it never expires"),
            Some(Got::Error(error)) => {
                assert_eq!(error.code, ErrorCode::TicketExpired.number());
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_opens_a_connection_wrongly_is_refused_by_name() {
    let (home, server) = serve();
    let good = [b'C', b'V', 1, 1, 0, 0, 0, 0];
    let and = |rest: &[u8]| [&good[..], rest].concat();
    for (bytes, code) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), ErrorCode::BadMagic),
        (b"X".to_vec(), ErrorCode::BadMagic),
        (vec![b'C', b'V', 2, 9, 0, 0, 0, 0], ErrorCode::VersionUnsupported),
        (vec![b'C', b'V', 1, 0, 0, 0, 0, 0], ErrorCode::VersionUnsupported),
        (vec![b'C', b'V', 1, 1, 5, 1, 0, 0], ErrorCode::HandshakeUnsupported),
        (vec![b'C', b'V', 1, 1, 1, 0, 0, 0], ErrorCode::SuiteRefused),
        (vec![b'C', b'V', 1, 1, 0, 1, 0, 0], ErrorCode::SuiteRefused),
        (and(&[0, 0]), ErrorCode::BadHandshake),
        (and(&[0x10, 1]), ErrorCode::BadHandshake),
        (and(&[0, 2, 0xff, 0xff]), ErrorCode::BadHandshake),
        // READY and the like have no place before the login.
        (and(&[0, 2, 1, 0]), ErrorCode::BadHandshake),
    ] {
        let mut peer = Peer::connect(server.listen);
        peer.write(&bytes);
        peer.refused(code);
    }
    Peer::online(&home, &server, 7).ping();
}

#[test]
fn nothing_but_ready_comes_first() {
    let (home, server) = serve();
    let login = opening(&with(home.token(7)));
    let without_ready = login.get(..login.len() - 4).expect("READY has four bytes");
    let ack = proto::Ack { inbox_seq: 0, ..Default::default() };
    for first in [record(RecordType::Send, &proto::Send::default()), record(RecordType::Ack, &ack)] {
        let mut peer = Peer::connect(server.listen);
        peer.write(without_ready);
        assert!(matches!(peer.next(), Some(Got::Welcome(_))));
        // Pings are answered in any state.
        peer.ping();
        peer.write(&first);
        peer.refused(ErrorCode::OutOfState);
    }
}

#[test]
fn a_login_may_come_byte_by_byte() {
    let (home, server) = serve();
    let mut peer = Peer::connect(server.listen);
    for byte in opening(&with(home.token(7))) {
        peer.stream.write_all(&[byte]).expect("the server takes it");
    }
    assert!(matches!(peer.next(), Some(Got::Welcome(_))));
    peer.user = 7;
    assert_ne!(peer.send_and_wait(7, 1, b"note to self").inbox_seq, 0);
}

#[test]
fn a_login_that_never_completes_is_ended() {
    let home = Home::new();
    home.configure("login_timeout_s = 1\n");
    let server = home.start();
    let login = opening(&with(home.token(7)));
    let starts: BTreeSet<usize> = [0, 1, 7, 8, 9, 10, login.len() - 5].into();
    let mut peers: Vec<Peer> = starts.iter().map(|_| Peer::connect(server.listen)).collect();
    for (peer, len) in peers.iter_mut().zip(starts) {
        peer.write(login.get(..len).expect("a part of it"));
    }
    for peer in &mut peers {
        peer.refused(ErrorCode::LoginTimeout);
    }
    drop(peers);
    server.wait_for("culver_connections", |connections| connections == 0);
}

#[test]
fn nobody_is_ended_before_the_time_is_over() {
    const PEERS: usize = 20;
    const PINGS_BETWEEN: usize = 2000;
    let home = Home::new();
    home.configure("login_timeout_s = 1\n");
    let server = home.start();
    let mut lively = Peer::online(&home, &server, 7);
    let mut waiting = VecDeque::new();
    // They come at all times of the server's second, which never sleeps meanwhile.
    for pings in 0.. {
        lively.ping();
        if pings % PINGS_BETWEEN == 0 && pings < PEERS * PINGS_BETWEEN {
            waiting.push_back((Instant::now(), Peer::connect(server.listen)));
        }
        let Some((since, peer)) = waiting.front_mut() else { break };
        if peer.is_readable() {
            let elapsed = since.elapsed();
            peer.refused(ErrorCode::LoginTimeout);
            assert!(elapsed.as_secs() >= 1, "ended after {elapsed:?}");
            waiting.pop_front();
        }
    }
}

#[test]
fn who_finds_no_room_is_told_so() {
    let home = Home::new();
    home.configure("connections_max = 1\nreactors = 1\n");
    let server = home.start();
    let mut first = Peer::online(&home, &server, 7);
    first.ping();
    let mut second = Peer::connect(server.listen);
    second.refused(ErrorCode::ConnectionsFull);
    first.ping();
    drop(first);
    // As soon as the session is forgotten there is room again.
    let since = Instant::now();
    loop {
        let mut third = Peer::connect(server.listen);
        third.write(&opening(&with(home.token(8))));
        match third.next() {
            Some(Got::Welcome(_)) => return,
            _ => assert!(since.elapsed() < PATIENCE, "there is never room again"),
        }
    }
}
