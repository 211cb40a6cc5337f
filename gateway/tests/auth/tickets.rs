//! Resume tickets: whom they were given to, what is in them, and every way to be refused.

use std::collections::HashSet;

use bytes::Bytes;
use culver::auth::keys::TicketKey;
use culver::auth::ticket_keys::TicketKeys;
use culver::auth::{Identity, OpenedTicket, TICKET_LEN, TICKET_LEN_ENCRYPTED, TicketContents, TicketSealer};
use culver::config;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, Incarnation, UserId};
use culver_protocol::limits::TICKET_LEN_MAX;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{DAY_MS, Home, NOW_MS, SEVEN, World, encrypted, plaintext, sealer, secret};

/// Why a ticket is refused, or that it is not.
fn code(outcome: Result<OpenedTicket, ErrorCode>) -> Option<ErrorCode> {
    outcome.err()
}

fn are_same(left: &TicketContents, right: &TicketContents) -> bool {
    (left.identity, left.fingerprint, &left.secret) == (right.identity, right.fingerprint, &right.secret)
}

#[test]
fn a_ticket_says_what_was_sealed_in_it() {
    let authenticator = World::new().authenticator;
    for (contents, len) in [(plaintext(), TICKET_LEN), (encrypted(), TICKET_LEN_ENCRYPTED)] {
        let ticket = authenticator.issue_ticket(&contents, NOW_MS);
        assert_eq!(ticket.bytes.len(), len);
        assert!(len <= TICKET_LEN_MAX);
        assert_eq!(ticket.expires_ms, NOW_MS + config::Ticket::default().life_s * 1000);
        let opened = authenticator.open_ticket(&ticket.bytes, NOW_MS + 1).expect("its own");
        assert_eq!(opened.issued_s, NOW_MS / 1000);
        assert!(are_same(&opened.contents, &contents), "{opened:?}");
    }
    let identity = Identity { user: UserId(u64::MAX), device: DeviceId(u16::MAX) };
    let contents = TicketContents::encrypted(identity, [0xFF; 16], secret(0xFF));
    let opened = authenticator.open_ticket(&authenticator.issue_ticket(&contents, 0).bytes, 0).expect("its own");
    assert!(are_same(&opened.contents, &contents), "{opened:?}");
}

#[test]
fn a_ticket_tells_whose_session_it_was() {
    let authenticator = World::new().authenticator;
    let open = |contents| authenticator.open_ticket(&authenticator.issue_ticket(&contents, NOW_MS).bytes, NOW_MS);
    let opened = open(plaintext()).expect("its own");
    assert!(opened.contents.fingerprint.is_none() && opened.contents.secret.is_none());
    let opened = open(encrypted()).expect("its own");
    assert!(opened.contents.fingerprint.is_some() && opened.contents.secret.is_some());
}

#[test]
fn no_secret_is_shown() {
    let contents = TicketContents::encrypted(SEVEN, [3; 16], secret(0xAB));
    let world = World::new();
    let ticket = world.authenticator.issue_ticket(&contents, NOW_MS);
    let opened = world.authenticator.open_ticket(&ticket.bytes, NOW_MS).expect("its own");
    for shown in [format!("{contents:?}"), format!("{opened:?}"), format!("{:?}", world.authenticator)] {
        for digits in ["171, 171", "ab, ab", "abab", "ABAB"] {
            assert!(!shown.contains(digits), "{shown}");
        }
    }
    assert_eq!(format!("{:?}", TicketKey::new([0xAB; 32])), "TicketKey(…)");
}

#[test]
fn tickets_expire() {
    let sealer = sealer(1, 1);
    for contents in [plaintext(), encrypted()] {
        let ticket = sealer.seal(&contents, NOW_MS);
        assert_eq!(code(sealer.open(&ticket.bytes, ticket.expires_ms - 1)), None);
        assert_eq!(code(sealer.open(&ticket.bytes, ticket.expires_ms)), Some(ErrorCode::TicketExpired));
    }
}

#[test]
fn tickets_of_other_data_or_a_lower_generation_are_stale() {
    for contents in [plaintext(), encrypted()] {
        let ticket = sealer(1, 1).seal(&contents, NOW_MS);
        assert_eq!(code(sealer(1, 2).open(&ticket.bytes, NOW_MS)), Some(ErrorCode::TicketStale));
        assert_eq!(code(sealer(2, 1).open(&ticket.bytes, NOW_MS)), Some(ErrorCode::TicketStale));
        assert_eq!(code(sealer(0, 1).open(&ticket.bytes, NOW_MS)), None);
    }
}

#[test]
fn every_flipped_bit_of_a_ticket_is_noticed() {
    let sealer = sealer(1, 1);
    for contents in [plaintext(), encrypted()] {
        let good = sealer.seal(&contents, NOW_MS).bytes;
        for bit in 0..good.len() * 8 {
            let mut damaged = good.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(code(sealer.open(&damaged, NOW_MS)), Some(ErrorCode::TicketInvalid), "bit {bit}");
        }
    }
}

#[test]
fn what_has_not_the_length_of_a_ticket_is_none() {
    let sealer = sealer(1, 1);
    for contents in [plaintext(), encrypted()] {
        let good = sealer.seal(&contents, NOW_MS).bytes;
        for len in 0..good.len() {
            assert_eq!(code(sealer.open(&good[..len], NOW_MS)), Some(ErrorCode::TicketInvalid), "cut to {len}");
        }
        for len in good.len() + 1..=TICKET_LEN_MAX + 1 {
            let mut longer = good.to_vec();
            longer.resize(len, 0);
            assert_eq!(code(sealer.open(&longer, NOW_MS)), Some(ErrorCode::TicketInvalid), "grown to {len}");
        }
    }
    // Of the version before.
    let mut old = vec![1; 60];
    old[1] = 1;
    assert_eq!(code(sealer.open(&old, NOW_MS)), Some(ErrorCode::TicketInvalid));
}

#[test]
fn a_ticket_of_another_key_is_invalid() {
    let other = TicketSealer::new(&TicketKey::new([6; 32]), config::Ticket::default(), Incarnation(1));
    let ticket = other.seal(&plaintext(), NOW_MS);
    assert_eq!(code(sealer(1, 1).open(&ticket.bytes, NOW_MS)), Some(ErrorCode::TicketInvalid));
}

#[test]
fn two_tickets_for_the_same_login_differ() {
    let sealer = sealer(1, 1);
    let distinct: HashSet<Bytes> = (0..100).map(|_| sealer.seal(&plaintext(), NOW_MS).bytes).collect();
    assert_eq!(distinct.len(), 100);
}

fn sealer_of(keys: &TicketKeys) -> TicketSealer {
    TicketSealer::with_keys(keys, config::Ticket::default(), Incarnation(1))
}

#[test]
fn of_two_keys_the_newer_seals_and_both_open() {
    let mut keys = TicketKeys::of(TicketKey::new([5; 32]), NOW_MS);
    let before = sealer_of(&keys).seal(&encrypted(), NOW_MS);
    assert_eq!(keys.rotate(NOW_MS, DAY_MS).expect("there was one"), 2);
    let both = sealer_of(&keys);
    let after = both.seal(&encrypted(), NOW_MS);
    assert_eq!((before.bytes[1], after.bytes[1]), (1, 2));
    for ticket in [&before, &after] {
        assert_eq!(code(both.open(&ticket.bytes, NOW_MS)), None);
    }
    // A number alone does not make it another key's.
    let mut renumbered = before.bytes.to_vec();
    renumbered[1] = 2;
    assert_eq!(code(both.open(&renumbered, NOW_MS)), Some(ErrorCode::TicketInvalid));
    // A third would leave tickets of the first behind, until none of those can be good any more.
    let full = keys.rotate(NOW_MS + DAY_MS - 1, DAY_MS).expect_err("two are the most").to_string();
    assert!(full.contains("culver keys retire --tickets --id 1"), "{full}");
    assert_eq!(keys.rotate(NOW_MS + DAY_MS, DAY_MS).expect("the first is of no use"), 3);
    assert_eq!(code(sealer_of(&keys).open(&before.bytes, NOW_MS)), Some(ErrorCode::TicketInvalid));
    assert_eq!(code(sealer_of(&keys).open(&after.bytes, NOW_MS)), None);
}

#[test]
fn a_retired_keys_tickets_are_refused() {
    let mut keys = TicketKeys::of(TicketKey::new([5; 32]), NOW_MS);
    let first = sealer_of(&keys).seal(&plaintext(), NOW_MS);
    assert!(keys.retire(None).expect_err("it is the last").to_string().contains("culver keys rotate --tickets"));
    keys.rotate(NOW_MS, DAY_MS).expect("there was one");
    let second = sealer_of(&keys).seal(&plaintext(), NOW_MS);
    keys.retire(Some(3)).expect_err("there is none");
    keys.retire(Some(257)).expect_err("there is none");
    assert_eq!(keys.retire(None).expect("the older"), 1);
    assert_eq!(code(sealer_of(&keys).open(&first.bytes, NOW_MS)), Some(ErrorCode::TicketInvalid));
    assert_eq!(code(sealer_of(&keys).open(&second.bytes, NOW_MS)), None);
    keys.retire(Some(2)).expect_err("it is the last");
}

#[test]
fn numbers_of_ticket_keys_go_round() {
    let mut keys = TicketKeys::of(TicketKey::new([5; 32]), 0);
    let mut numbers = Vec::new();
    for _ in 0..256 {
        numbers.push(keys.rotate(0, 0).expect("the older is of no use"));
    }
    let expected: Vec<u8> = (2..=255).chain([1, 2]).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn ticket_keys_persist_and_a_running_server_follows_them() {
    let home = Home::new();
    let authenticator = home.load();
    let first = authenticator.issue_ticket(&encrypted(), NOW_MS).bytes;
    assert_eq!(code(home.load().open_ticket(&first, NOW_MS)), None);
    TicketKeys::change(home.path(), |keys| keys.rotate(NOW_MS, DAY_MS)).expect("another");
    assert_eq!(authenticator.issue_ticket(&encrypted(), NOW_MS).bytes[1], 1, "not before it looks");
    authenticator.refresh(NOW_MS);
    let second = authenticator.issue_ticket(&encrypted(), NOW_MS).bytes;
    assert_eq!(second[1], 2);
    for authenticator in [&authenticator, &home.load()] {
        assert_eq!(code(authenticator.open_ticket(&first, NOW_MS)), None);
        assert_eq!(code(authenticator.open_ticket(&second, NOW_MS)), None);
    }
    // What cannot be used changes nothing.
    let good = home.read("keys/ticket.key");
    home.write("keys/ticket.key", "1 0 short");
    authenticator.refresh(NOW_MS);
    assert_eq!(code(authenticator.open_ticket(&first, NOW_MS)), None);
    home.write("keys/ticket.key", &good);
    TicketKeys::change(home.path(), |keys| keys.retire(None)).expect("the older");
    authenticator.refresh(NOW_MS);
    assert_eq!(code(authenticator.open_ticket(&first, NOW_MS)), Some(ErrorCode::TicketInvalid));
    assert_eq!(code(authenticator.open_ticket(&second, NOW_MS)), None);
}

#[test]
fn a_file_of_64_digits_is_one_key() {
    let home = Home::new();
    home.write("keys/ticket.key", &format!("{}\n", "05".repeat(32)));
    let ticket = home.load().issue_ticket(&plaintext(), NOW_MS);
    let settings = config::Ticket::default();
    let same = TicketSealer::new(&TicketKey::new([5; 32]), settings, Incarnation(9));
    assert_eq!(code(same.open(&ticket.bytes, NOW_MS)), None);
    let digits = "05".repeat(32);
    for text in [
        String::new(),
        "05".repeat(31),
        format!("0 0 {digits}"),
        format!("256 0 {digits}"),
        format!("1 {digits}"),
        format!("1 0 {digits} 0"),
        format!("1 0 {digits}\n1 0 {digits}"),
        format!("1 0 {digits}\n2 0 {digits}\n3 0 {digits}"),
        format!("1 0 {digits}\n{digits}"),
    ] {
        home.write("keys/ticket.key", &text);
        assert!(home.fault().contains("64 hex digits"), "{}", home.fault());
        assert!(!home.fault().contains("0505"), "{}", home.fault());
    }
}

proptest! {
    #[test]
    fn no_ticket_panics(mut bytes in vec(any::<u8>(), 0..TICKET_LEN_MAX), key in 0_u8..3) {
        for len in [bytes.len(), TICKET_LEN, TICKET_LEN_ENCRYPTED] {
            bytes.resize(len, 0);
            if let Some(prefix) = bytes.first_chunk_mut() {
                *prefix = [2, key];
            }
            assert_eq!(code(sealer(1, 1).open(&bytes, NOW_MS)), Some(ErrorCode::TicketInvalid));
        }
    }
}
