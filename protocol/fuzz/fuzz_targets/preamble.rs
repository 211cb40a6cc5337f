//! A client's first flight, as the server takes it apart: a preamble that is accepted encodes to the bytes it came
//! from, and agrees on the highest version that both sides speak; what is behind it, in any two pieces, is the same
//! message or the same error as in one.
#![no_main]

use culver_protocol::crypto::Suite;
use culver_protocol::error::ErrorCode;
use culver_protocol::handshake::Kind;
use culver_protocol::handshake::server::split_ticket;
use culver_protocol::limits::{HANDSHAKE_LEN_MAX, LENGTH_LEN, PREAMBLE_LEN, TICKET_LEN_MAX, VERSION_MAX, VERSION_MIN};
use culver_protocol::preamble::Preamble;
use culver_protocol::record::split;
use libfuzzer_sys::fuzz_target;

fn check(bytes: [u8; PREAMBLE_LEN]) -> Option<Preamble> {
    let [c, v, least, most, handshake, suite, ..] = bytes;
    let preamble = match Preamble::decode(bytes) {
        Ok(preamble) => preamble,
        Err(error) => {
            let is_magic_bad = [c, v] != *b"CV";
            assert_eq!(error, if is_magic_bad { ErrorCode::BadMagic } else { ErrorCode::VersionUnsupported });
            assert!(is_magic_bad || least > most);
            return None;
        }
    };
    assert_eq!(preamble.encode(), bytes);
    let spoken = (VERSION_MIN..=VERSION_MAX).filter(|version| (least..=most).contains(version));
    assert_eq!(preamble.agree_version(), spoken.max().ok_or(ErrorCode::VersionUnsupported));
    assert!(Kind::from_number(preamble.handshake).is_none_or(|kind| kind as u8 == handshake));
    assert!(Suite::from_number(preamble.suite).is_none_or(|known| known as u8 == suite));
    Some(preamble)
}

/// A ticket and what follows it are the message, with the ticket's length in front.
fn check_ticket(message: &[u8]) {
    match split_ticket(message) {
        Ok((ticket, rest)) => {
            assert!(ticket.len() <= TICKET_LEN_MAX);
            let len = u8::try_from(ticket.len()).expect("short enough");
            assert_eq!([&[len], ticket, rest].concat(), message);
        }
        Err(_) => {
            let len = message.first().copied().map(usize::from);
            assert!(len.is_none_or(|len| len > TICKET_LEN_MAX || len >= message.len()));
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((head, rest)) = bytes.split_first_chunk::<PREAMBLE_LEN>() else {
        return;
    };
    let Some(preamble) = check(*head) else {
        return;
    };
    let whole = split(rest, 1, HANDSHAKE_LEN_MAX);
    for cut in [0, 1, LENGTH_LEN, rest.len() / 2, rest.len().saturating_sub(1)] {
        let Some(early) = rest.get(..cut) else { continue };
        // Nothing is there before its time, and what is there stays.
        match split(early, 1, HANDSHAKE_LEN_MAX) {
            Ok(None) => assert!(cut < LENGTH_LEN || whole.is_ok()),
            found => assert_eq!(found, whole),
        }
    }
    let Ok(Some(range)) = whole else {
        return;
    };
    assert!(range.start == LENGTH_LEN && (1..=HANDSHAKE_LEN_MAX).contains(&range.len()));
    if let Some(Kind::Resume | Kind::ResumeForwardSecret) = Kind::from_number(preamble.handshake) {
        check_ticket(&rest[range]);
    }
});
