//! Bytes that no client should send: one clear error where the state allows one, that connection closed, and nobody
//! else notices.

use culver_protocol::error::ErrorCode;
use culver_protocol::limits::CLIENT_BODY_LEN_MAX;
use culver_protocol::proto;
use culver_protocol::record::RecordType;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::home::serve;
use crate::peer::{Got, Peer, opening, raw, record, send_record, with};

/// Two who talk meanwhile.
struct Witnesses(Peer, Peer, u64);

impl Witnesses {
    fn talk(&mut self) {
        self.2 += 1;
        let payload = self.2.to_be_bytes();
        assert!(!self.0.send_and_wait(102, self.2, &payload).duplicate);
        let entries = self.1.entries(1);
        assert!(entries.iter().all(|entry| entry.payload == payload[..]));
        self.1.ack(self.2);
    }
}

#[test]
fn each_broken_record_has_its_error_and_ends_that_connection_alone() {
    let (home, server) = serve();
    let mut witnesses = Witnesses(Peer::online(&home, &server, 101), Peer::online(&home, &server, 102), 0);
    let ack = |inbox_seq| record(RecordType::Ack, &proto::Ack { inbox_seq, ..Default::default() });
    let oversize = u16::try_from(CLIENT_BODY_LEN_MAX + 1).expect("a u16").to_be_bytes().to_vec();
    for (name, bytes, code) in [
        ("zero length", vec![0, 0], ErrorCode::RecordEmpty),
        ("no flags", vec![0, 1, 3], ErrorCode::RecordEmpty),
        ("oversize", oversize, ErrorCode::RecordTooLong),
        ("the longest length", vec![0xff, 0xff], ErrorCode::RecordTooLong),
        ("READY again", record(RecordType::Ready, &proto::Ready {}), ErrorCode::OutOfState),
        ("WELCOME", record(RecordType::Welcome, &proto::Welcome::default()), ErrorCode::OutOfState),
        ("DELIVER", record(RecordType::Deliver, &proto::Deliver::default()), ErrorCode::OutOfState),
        ("bad SEND", raw(RecordType::Send as u8, &[0x0a, 0x7f]), ErrorCode::BadProtobuf),
        ("bad ACK", raw(RecordType::Ack as u8, &[0x08]), ErrorCode::BadProtobuf),
        ("bad PING", raw(RecordType::Ping as u8, &[0xff]), ErrorCode::BadProtobuf),
        ("ACK beyond", ack(1), ErrorCode::AckBeyondSent),
        ("ACK far beyond", ack(u64::MAX), ErrorCode::AckBeyondSent),
    ] {
        println!("{name}");
        let mut peer = Peer::online(&home, &server, 1);
        peer.ping();
        // What came before it counts, what comes behind it does not.
        peer.write(&[bytes, send_record(1, 2, 1, b"too late")].concat());
        peer.refused(code);
        witnesses.talk();
    }
    server.wait_for("culver_sessions", |sessions| sessions == 2);
    assert_eq!(server.metric("culver_messages_rejected_total"), 0);
    let mut two = Peer::online(&home, &server, 2);
    two.ping();
    two.send_and_wait(3, 1, b"");
    assert_eq!(two.kept(), [], "nothing behind an error was taken");
}

#[test]
fn what_came_before_an_error_counts() {
    let (home, server) = serve();
    let mut one = Peer::online(&home, &server, 1);
    one.write(&[send_record(1, 2, 1, b"in time"), vec![0, 0]].concat());
    // Its answer may be lost with the connection; the message is not.
    one.refused(ErrorCode::RecordEmpty);
    let entries = Peer::online(&home, &server, 2).entries(1);
    assert!(entries.iter().all(|entry| entry.payload == b"in time"[..]));
}

#[test]
fn an_unknown_type_is_answered_or_ignored_and_the_connection_lives() {
    let (home, server) = serve();
    let mut one = Peer::online(&home, &server, 1);
    for kind in [0x0f_u8, 0x1f, 0x3f, 0x7f] {
        one.write(&raw(kind, &[0xff; 9]));
        let Got::Error(error) = one.wait_for(|got| matches!(got, Got::Error(_))) else { unreachable!("as asked for") };
        assert_eq!(ErrorCode::from_number(error.code), Some(ErrorCode::TypeUnknown));
        assert_eq!((error.request_id, error.scope), (vec![kind].into(), proto::error::Scope::Request.into()));
    }
    for kind in [0x80_u8, 0xa0, 0xff] {
        one.write(&raw(kind, &[0xff; 9]));
    }
    one.ping();
    assert_eq!(one.kept(), []);
    one.send_and_wait(2, 1, b"still here");
}

#[test]
fn truncated_records_leave_nothing_behind() {
    let (home, server) = serve();
    let mut witnesses = Witnesses(Peer::online(&home, &server, 101), Peer::online(&home, &server, 102), 0);
    let whole = send_record(1, 2, 1, &[7; 1000]);
    for len in [1, 2, 3, 4, 500, whole.len() - 1] {
        let mut peer = Peer::online(&home, &server, 1);
        peer.write(whole.get(..len).expect("a part of it"));
        peer.stream.shutdown(std::net::Shutdown::Write).expect("open");
        assert!(peer.next().is_none(), "no error for what never came");
        witnesses.talk();
    }
    server.wait_for("culver_connections", |connections| connections == 2);
    server.wait_for("culver_sessions", |sessions| sessions == 2);
    assert_eq!(server.metric("culver_messages_accepted_total"), 6);
}

#[test]
fn noise_ends_connections_and_nothing_else() {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let (home, server) = serve();
    let mut witnesses = Witnesses(Peer::online(&home, &server, 101), Peer::online(&home, &server, 102), 0);
    let login = opening(&with(home.token(1)));
    for round in 0..200 {
        let mut noise = vec![0; random.random_range(1..3000)];
        random.fill(&mut noise[..]);
        let mut peer = Peer::connect(server.listen);
        // From the first byte on, in the login, behind a good login, or a good flight with a few bytes changed.
        let bytes = match round % 4 {
            0 => noise,
            1 => [&login[..10], &noise].concat(),
            2 => [&login[..], &noise].concat(),
            _ => {
                let mut flight = [login.clone(), send_record(1, 3, round, b"hello").repeat(3)].concat();
                for _ in 0..random.random_range(1..4) {
                    let index = random.random_range(0..flight.len());
                    flight[index] = random.random();
                }
                flight
            }
        };
        peer.write(&bytes);
        peer.stream.shutdown(std::net::Shutdown::Write).expect("open");
        // Whatever it says is well-formed, and then it closes.
        while peer.next().is_some() {}
        if round % 20 == 0 {
            witnesses.talk();
        }
    }
    drop(login);
    witnesses.talk();
    server.wait_for("culver_sessions", |sessions| sessions == 2);
    server.wait_for("culver_connections", |connections| connections == 2);
    server.stop();
}
