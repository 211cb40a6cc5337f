//! Handshakes with any bytes in any place, at the server and at the client. Keys and randomness are fixed, so one good
//! flight of each type and suite is known: as it was it must be accepted, with the keys that the other side has; with
//! any byte changed it must be refused, or, where only the first record can tell, leave other keys.
//!
//! One input does one thing, for Diffie-Hellman takes time.
#![no_main]

mod world;

use culver_protocol::client::{Client, Event};
use culver_protocol::handshake::Kind;
use culver_protocol::handshake::certificate::{Certificate, CertificateError};
use culver_protocol::handshake::server::begin_xx;
use culver_protocol::limits::PREAMBLE_LEN;
use libfuzzer_sys::fuzz_target;

use self::world::{
    Flight, LOGIN, NOW_MS, Server, accept, asked_for, certificate, certified, client, flights, root_public, secret,
    server_pair,
};

/// Changes of one message.
const CHANGES_MAX: usize = 8;
/// Longest message that changes make: the length in front of one says no more.
const MESSAGE_LEN_MAX: usize = 1 << 16;

/// Makes another message of `good`: each change is four bytes, and those that insert take what they need behind them.
fn changed(good: &[u8], flight: &Flight, mut program: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..CHANGES_MAX {
        let Some(([operation, high, low, arg], rest)) = program.split_first_chunk() else {
            break;
        };
        program = rest;
        let at = usize::from(u16::from_be_bytes([*high, *low]));
        let place = at % (bytes.len() + 1);
        let some = program.len().min(usize::from(*arg));
        match operation % 8 {
            0 => {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= arg;
                }
            }
            1 => bytes.truncate(place),
            2 => bytes.resize((bytes.len() + at).min(MESSAGE_LEN_MAX), *arg),
            3 => {
                bytes.splice(place..place, program[..some].iter().copied());
                program = &program[some..];
            }
            4 => {
                let end = bytes.len().min(place + some);
                bytes[place..end].copy_from_slice(&program[..end - place]);
                program = &program[some..];
            }
            5 => {
                bytes.drain(place..bytes.len().min(place + usize::from(*arg)));
            }
            // The rest of another message: of this handshake, or of another.
            6 => {
                let flights = flights();
                let other = &flights[usize::from(*arg >> 2) % flights.len()];
                let from = other.messages[usize::from(*arg) % other.messages.len()].get(place..).unwrap_or_default();
                bytes.truncate(place);
                bytes.extend_from_slice(from);
            }
            _ => bytes
                .splice(.., flight.messages[usize::from(*arg) % flight.messages.len()].iter().copied())
                .for_each(drop),
        }
    }
    bytes
}

/// The client's first message, at the server; for Noise XX the client tells what became of it.
fn first(flight: &Flight, preamble: [u8; PREAMBLE_LEN], message: &[u8]) {
    // Changes may have made another good one of it.
    let good = flights().iter().find(|good| preamble == good.preamble && message == good.messages[0]);
    let (is_intact, flight) = (good.is_some(), good.unwrap_or(flight));
    let Some((kind, suite)) = asked_for(preamble) else {
        assert!(!is_intact);
        return;
    };
    match accept(kind, suite, preamble, message) {
        Err(error) => assert!(!is_intact, "{error}"),
        Ok(Server::Through(accepted)) => {
            assert!(is_intact, "{kind:?}: a changed message is accepted");
            assert_eq!(accepted.login.as_slice(), LOGIN);
            assert!(flight.is_servers(accepted.established));
        }
        Ok(Server::Awaiting(_, answer)) => {
            let outcome = flight.begin().finish(&answer, NOW_MS);
            assert_eq!(outcome.is_ok(), is_intact, "{outcome:?}");
        }
    }
}

/// The server's answer, at the client.
fn answer(flight: &Flight, message: &[u8]) {
    let is_intact = message == flight.messages[1];
    match flight.begin().finish(message, NOW_MS) {
        Err(error) => assert!(!is_intact, "{error}"),
        Ok(done) => {
            // The symmetric ticket's answer is all randomness: that it was changed shows in the first record.
            assert!(is_intact || (flight.kind == Kind::Resume && message.len() == flight.messages[1].len()));
            assert_eq!(flight.is_clients(done.established), is_intact);
            assert_eq!(done.last.as_ref(), flight.messages.get(2));
            assert_eq!(done.server, (flight.kind == Kind::Xx).then(certified));
        }
    }
}

/// Noise XX's third message, at the server.
fn third(flight: &Flight, message: &[u8]) {
    let keys = (server_pair(), certificate());
    let begun = begin_xx(flight.suite, flight.preamble, keys, &flight.messages[0], secret(6));
    let is_intact = message == flight.messages[2];
    match begun.expect("a good message").0.finish(message) {
        Err(error) => assert!(!is_intact, "{error}"),
        Ok(accepted) => {
            assert!(is_intact, "a changed message is accepted");
            assert_eq!(accepted.login.as_slice(), LOGIN);
            assert!(flight.is_servers(accepted.established));
        }
    }
}

/// A certificate, at any time.
fn shown(bytes: &[u8], now_ms: u64) {
    let good = certified();
    let expected = match bytes == certificate() {
        false => None,
        true if now_ms < good.not_before_ms => Some(Err(CertificateError::Early)),
        true if now_ms >= good.not_after_ms => Some(Err(CertificateError::Late)),
        true => Some(Ok(good)),
    };
    let outcome = Certificate::verify(bytes, &root_public().into(), now_ms);
    match expected {
        Some(expected) => assert_eq!(outcome, expected),
        None => assert!(matches!(outcome, Err(CertificateError::Unreadable | CertificateError::Signature))),
    }
}

/// What a client is told by a stream, up to the end of its connection; and that it comes back encrypted.
fn told(client: &mut Client, stream: &[u8], piece: usize) -> Vec<Event> {
    let mut told = Vec::new();
    for piece in stream.chunks(piece) {
        client.handle_bytes(piece, 1);
    }
    while let Some(event) = client.poll_event() {
        told.push(event);
    }
    if told.last() == Some(&Event::Disconnect) {
        let ended = told.len();
        client.handle_bytes(stream, 1);
        client.handle_disconnected(1);
        if let Some(due_us) = client.poll_timeout() {
            client.handle_timeout(due_us);
        }
        assert_eq!(client.poll_event(), Some(Event::Connect), "{told:?}");
        client.handle_connected(1);
        let sent = client.transmit();
        assert!(sent[..2] == *b"CV" && sent[4] != 0 && sent[5] != 0, "never in plaintext");
        assert_eq!(told.len(), ended, "nothing is read after the end");
    }
    told
}

/// A whole client, whose server's stream was changed on its way.
fn stream(flight: &Flight, stream: &[u8], piece: usize) {
    let mut client = client(flight.kind, flight.suite);
    let told = told(&mut client, stream, piece);
    let expected = &flight.events;
    if stream == flight.stream {
        assert_eq!(told, *expected);
        return;
    }
    let believed = told.iter().zip(expected).take_while(|(told, expected)| told == expected).count();
    match &told[believed..] {
        // It waits for more.
        [] => {}
        [Event::Violation(_) | Event::ServerError(_), Event::Disconnect] => {}
        other => panic!("{:?}: {other:?} after {believed} of {expected:?}", flight.kind),
    }
}

fuzz_target!(|input: &[u8]| {
    let Some(([operation, which, piece], program)) = input.split_first_chunk() else {
        return;
    };
    let flights = flights();
    let mut flight = &flights[usize::from(*which) % flights.len()];
    let operation_kind = operation & 0x07;
    if operation_kind == 2 {
        let mut xx = flights.iter().filter(|flight| flight.kind == Kind::Xx);
        flight = xx.nth(usize::from(*which & 1)).expect("one for each suite");
    }
    // Changes of what is good, or bytes as they are.
    let made = |good: &[u8]| if *operation & 0x80 == 0 { changed(good, flight, program) } else { program.to_vec() };
    match operation_kind {
        0 | 1 => first(flight, flight.preamble, &made(&flight.messages[0])),
        2 => third(flight, &made(&flight.messages[2])),
        3 => answer(flight, &made(&flight.messages[1])),
        4 => shown(&made(certificate()), NOW_MS - 3 + u64::from(*piece % 8)),
        5 | 6 => stream(flight, &made(&flight.stream), usize::from(*piece) + 1),
        _ => {
            // Nobody on the way can have another type, suite, version or key agreed on.
            let mut preamble = flight.preamble;
            preamble[usize::from(*piece) % PREAMBLE_LEN] ^= which >> 3;
            first(flight, preamble, &made(&flight.messages[0]));
        }
    }
});
