//! Who is believed: answers, certificates and records that are not the server's.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::handshake::HandshakeError;
use crate::handshake::certificate::CertificateError;

#[test]
fn a_bad_answer_is_a_violation_and_the_same_is_tried_again() {
    for (kind, mut client) in each_kind(Suite::Aes256Gcm) {
        take(&mut client);
        client.handle_bytes(&handshake(&[9; 80]), 1);
        let told = events(&mut client);
        let [Event::Violation(Violation::Handshake(why)), Event::Disconnect] = told.as_slice() else {
            panic!("{kind:?}: {told:?}")
        };
        assert!(matches!(why, HandshakeError::Failed | HandshakeError::Unreadable));
        assert!(client.transmit().is_empty());
        reconnect(&mut client, 2);
        assert_eq!(Opening::take(&mut client).kind, kind);
    }
}

#[test]
fn a_ticket_for_somebody_else_leaves_no_session() {
    // The symmetric answer is all randomness: that it is not the server's shows in the first record.
    let mut client = with(ticket(), encryption());
    take(&mut client);
    client.handle_bytes(&handshake(&[9; KEY_LEN]), 1);
    take(&mut client);
    client.handle_bytes(&[&[0, 40], [3; 40].as_slice()].concat(), 2);
    assert_eq!(events(&mut client), [forged(), Event::Disconnect]);
}

/// What the client makes of a server that shows this certificate, so long after it began.
fn shown(certificate: &[u8], after_us: u64) -> Result<(), HandshakeError> {
    let mut client = with(token(), encryption());
    let opening = Opening::take(&mut client);
    let own = pair(2);
    let begun = server::begin_xx(opening.suite, opening.bytes, (&own, certificate), &opening.message, secret(6));
    client.handle_bytes(&handshake(&begun.expect("readable").1), after_us);
    match events(&mut client).as_slice() {
        [Event::ServerKey(learned)] if *learned == server_key() => Ok(()),
        [Event::Violation(Violation::Handshake(why)), Event::Disconnect] => {
            assert!(client.transmit().is_empty() && client.server_key().is_none(), "nothing was said to it");
            comes_back_after_a_while(&mut client, after_us);
            Err(*why)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_login_is_told_to_a_server_without_a_good_certificate() {
    let own = *pair(2).public();
    let good = certificate(&own, 3);
    assert_eq!(shown(&good, 0), Ok(()));
    let refused = |certificate: &[u8], after_us| match shown(certificate, after_us) {
        Err(HandshakeError::Certificate(why)) => Some(why),
        _ => None,
    };
    assert_eq!(refused(&certificate(&own, 4), 0), Some(CertificateError::Signature));
    assert_eq!(refused(&certificate(pair(9).public(), 3), 0), Some(CertificateError::OtherKey));
    assert_eq!(refused(&[1; 20], 0), Some(CertificateError::Unreadable));
    // Time passes on the caller's clock.
    assert_eq!(shown(&good, CERTIFIED_MS * 1000 - 1), Ok(()));
    assert_eq!(refused(&good, CERTIFIED_MS * 1000), Some(CertificateError::Late));
}

#[test]
fn a_learned_key_is_good_for_as_long_as_its_certificate() {
    let mut client = with(Credential::DeviceKey, encryption());
    Peer::accept(&mut client, &Secret::default(), 1);
    for (now_us, kind) in [(CERTIFIED_MS * 900, Kind::Ik), (CERTIFIED_MS * 1000, Kind::Xx)] {
        reconnect(&mut client, now_us);
        assert_eq!(Opening::take(&mut client).kind, kind);
    }
    assert_eq!(client.server_key(), None);
}

#[test]
fn time_begins_when_the_caller_first_tells() {
    let credential = token();
    let encryption = Some(encryption());
    let mut client = Client::new(ClientConfig { credential, encryption, ..ClientConfig::default() });
    let late_us = CERTIFIED_MS * 5000;
    client.handle_connected(late_us);
    let peer = Peer::accept(&mut client, &Secret::default(), late_us + 1);
    assert_eq!(peer.opening.kind, Kind::Xx);
}

/// Each stands for two records that the network gives the client for the two that were sent.
#[test]
fn a_record_that_is_not_the_next_ends_the_connection() {
    type Change = fn(Vec<u8>, Vec<u8>) -> Vec<Vec<u8>>;
    let changes: [(&str, Change, usize); 6] = [
        (
            "changed",
            |mut first, second| {
                *first.last_mut().expect("a tag") ^= 1;
                vec![first, second]
            },
            0,
        ),
        (
            "another type",
            |mut first, second| {
                first[2] ^= 2;
                vec![first, second]
            },
            0,
        ),
        ("replayed", |first, second| vec![first.clone(), first, second], 1),
        ("out of order", |first, second| vec![second, first], 0),
        ("left out", |_, second| vec![second], 0),
        ("made up", |first, second| vec![first, [vec![0, 30], vec![7; 30]].concat(), second], 1),
    ];
    for (what, change, taken) in changes {
        let (mut client, mut peer) = welcomed();
        let [first, second] = [4, 5].map(|seq| {
            peer.seal(RecordType::Deliver, &proto::Deliver { previous: seq - 1, entries: vec![entry(seq)] })
        });
        client.handle_bytes(&change(first, second).concat(), 2);
        let told = events(&mut client);
        assert_eq!(told.iter().filter(|event| matches!(event, Event::Delivered(_))).count(), taken, "{what}");
        assert_eq!(told.get(taken..), Some([forged(), Event::Disconnect].as_slice()), "{what}");
        assert!(client.transmit().is_empty());
        comes_back_after_a_while(&mut client, 3);
    }
}

#[test]
fn the_clients_own_records_are_not_taken_for_the_servers() {
    let (mut client, _peer) = welcomed();
    client.call(proto::rpc::Request::ListDevices(proto::ListDevices {})).expect("logged in");
    let own = take(&mut client);
    client.handle_bytes(&own, 2);
    assert_eq!(events(&mut client).first(), Some(&forged()));
}

#[test]
fn records_of_another_connection_are_not_taken() {
    let (mut client, mut before) = welcomed();
    client.handle_disconnected(2);
    let shared = before.resumption.clone();
    client.handle_timeout(60_000_000);
    client.handle_connected(60_000_000);
    let mut peer = Peer::welcome(&mut client, &shared, 60_000_001);
    events(&mut client);
    let [old, new] = [&mut before, &mut peer]
        .map(|peer| peer.seal(RecordType::Ping, &proto::Ping { nonce: 1, ..Default::default() }));
    client.handle_bytes(&new, 60_000_002);
    assert_eq!(events(&mut client), []);
    client.handle_bytes(&old, 60_000_003);
    assert_eq!(events(&mut client), [forged(), Event::Disconnect]);
}

#[test]
fn the_longest_record_fits_and_its_length_is_checked() {
    let (mut client, mut peer) = welcomed();
    let payload = Bytes::from(vec![1; crate::limits::BODY_LEN_MAX - 80]);
    let long = proto::Deliver { previous: 3, entries: vec![proto::Entry { payload, ..entry(4) }] };
    let record = peer.seal(RecordType::Deliver, &long);
    assert!(record.len() > 65_480);
    client.handle_bytes(&record, 2);
    assert_eq!(events(&mut client).len(), 1);
    client.handle_bytes(&[0, 17], 3);
    let short = Violation::Frame(FrameError::TooShort(17));
    assert_eq!(events(&mut client), [Event::Violation(short), Event::Disconnect], "no room for a tag");
}

#[test]
fn nobody_waits_for_ever_for_the_rest_of_a_record() {
    let (mut client, mut peer) = welcomed();
    let mut record = peer.seal(RecordType::Ping, &proto::Ping { nonce: 1, ..Default::default() });
    // Somebody on the way makes it longer.
    record[0] = 0xFF;
    client.handle_bytes(&record, 1_000_000);
    let mut pinged = 0;
    for now_us in (2_000_000..61_000_000).step_by(1_000_000) {
        client.handle_timeout(now_us);
        pinged += peer.kinds(&mut client).len();
        let pong = peer.seal(RecordType::Pong, &proto::Pong { nonce: 1, ..Default::default() });
        client.handle_bytes(&pong, now_us);
    }
    assert_eq!((events(&mut client), pinged), (Vec::new(), 0), "it may still come, at four times an answer's time");
    client.handle_timeout(60_999_999);
    assert_eq!(peer.kinds(&mut client), [RecordType::Ping], "a keep-alive");
    assert_eq!(client.poll_timeout(), Some(61_000_000));
    client.handle_timeout(61_000_000);
    assert_eq!(events(&mut client), [Event::Disconnect]);
    comes_back_after_a_while(&mut client, 61_000_000);

    // One that was only slow is none the worse for it.
    let (mut client, mut peer) = welcomed();
    let record = peer.seal(RecordType::Ping, &proto::Ping { nonce: 1, ..Default::default() });
    let (last, first) = record.split_last().expect("bytes");
    client.handle_bytes(first, 2);
    client.handle_bytes(&[*last], 50_000_000);
    assert_eq!(peer.kinds(&mut client), [RecordType::Pong]);
    client.handle_timeout(60_000_000);
    client.handle_timeout(70_000_000);
    assert_eq!(events(&mut client), []);
}

fn config() -> ProptestConfig {
    let rng_seed = RngSeed::Fixed(20_261_122);
    ProptestConfig { rng_seed, failure_persistence: None, cases: 300, ..Default::default() }
}

proptest! {
    #![proptest_config(config())]

    /// Before there are keys and after, in one piece and in two.
    #[test]
    fn no_bytes_stop_or_convince_a_client(
        kind in 0..4_usize,
        has_keys: bool,
        begins_well in 0..3_u8,
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        place in 0..400_usize,
    ) {
        let (_, mut client) = each_kind(Suite::ChaCha20Poly1305).nth(kind).expect("four kinds");
        if has_keys {
            Peer::accept(&mut client, &secret(4), 1);
        } else {
            take(&mut client);
        }
        events(&mut client);
        let stream = match begins_well {
            0 => bytes,
            1 => handshake(&bytes),
            _ => [&[0, 250], bytes.as_slice()].concat(),
        };
        let (first, second) = stream.split_at(place.min(stream.len()));
        client.handle_bytes(first, 2);
        client.handle_bytes(second, 3);
        for event in events(&mut client) {
            prop_assert!(matches!(event, Event::Violation(_) | Event::ServerError(_) | Event::Disconnect), "{event:?}");
        }
        prop_assert!(!client.is_logged_in());
        prop_assert_eq!(client.cursor(), InboxSeq(3));
        reconnect(&mut client, 4);
        Opening::take(&mut client);
    }
}
