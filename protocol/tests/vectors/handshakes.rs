//! `handshake.json`: each handshake with all its secrets. The client in `protocol/tests/peer` has made the file from
//! docs/protocol.md, on another implementation of Noise; here Culver's own code gives the same bytes from the same secrets.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culver_protocol::crypto::{KEY_LEN, KeyPair, Secret, Suite, fingerprint, hkdf, key_thumbprint, sha256};
use culver_protocol::handshake::certificate::Certificate;
use culver_protocol::handshake::client::{How, ServerKey, begin};
use culver_protocol::handshake::server::{Accepted, Resumed, accept_ik, accept_ticket, begin_xx, split_ticket};
use culver_protocol::handshake::{Established, Kind};
use culver_protocol::limits::{LENGTH_LEN, PREAMBLE_LEN};
use culver_protocol::record::{Cipher, RecordType};
use serde_json::Value;

use super::read;

/// One handshake of the file.
struct Vector(Value);

impl Vector {
    fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_else(|| panic!("{name} of {}", self.0))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        hex::decode(self.text(name)).expect("hex")
    }

    fn key(&self, name: &str) -> [u8; KEY_LEN] {
        self.bytes(name).try_into().expect("32 bytes")
    }

    fn secret(&self, name: &str) -> Secret {
        Secret::new(self.key(name))
    }

    fn pair(&self, whose: &str) -> Arc<KeyPair> {
        let pair = KeyPair::new(&self.secret(&format!("{whose}_secret")));
        assert_eq!(hex::encode(pair.public()), self.text(&format!("{whose}_public")), "{whose}");
        Arc::new(pair)
    }

    fn number<T: TryFrom<u64>>(&self, name: &str) -> T {
        let number = self.0.get(name).and_then(Value::as_u64).expect("a number");
        T::try_from(number).ok().expect("within the type")
    }

    fn time_ms(&self, name: &str) -> u64 {
        self.text(name).parse().expect("a decimal number")
    }

    fn list(&self, name: &str) -> impl Iterator<Item = Vector> {
        let values = self.0.get(name).and_then(Value::as_array).expect("a list");
        values.iter().cloned().map(Vector)
    }

    fn suite(&self) -> Suite {
        Suite::from_number(self.number("suite")).expect("a suite")
    }

    fn kind(&self) -> Kind {
        Kind::from_number(self.number("handshake")).expect("a type of handshake")
    }

    fn how(&self) -> How {
        match self.kind() {
            Kind::Ik => {
                let public = *self.pair("server").public();
                let server = ServerKey { id: self.number("server_key_id"), public, not_after_ms: u64::MAX };
                How::Ik { own: self.pair("device"), server }
            }
            Kind::Xx => How::Xx { own: self.pair("device"), roots: self.key("root_public").into() },
            kind => How::Ticket {
                ticket: self.bytes("ticket"),
                secret: self.secret("ticket_secret"),
                forward_secret: kind == Kind::ResumeForwardSecret,
            },
        }
    }
}

/// What both sides have made of one handshake.
struct Played {
    /// As they went over the wire.
    messages: Vec<Vec<u8>>,
    client: Established,
    server: Established,
}

fn framed(message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).expect("within the limits");
    [len.to_be_bytes().as_slice(), message].concat()
}

fn in_clear(message: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    Cipher::Plaintext.seal(&mut record, RecordType::Handshake, |out| out.extend_from_slice(message));
    record
}

fn play(vector: &Vector) -> Played {
    let (kind, suite, login) = (vector.kind(), vector.suite(), vector.bytes("login"));
    let entropy = vector.secret("server_entropy");
    let (preamble, message, waiting) =
        begin(&vector.how(), suite, &login, vector.secret("client_entropy")).expect("good keys");
    let preamble = preamble.encode();
    let mut messages = vec![[preamble.as_slice(), &framed(&message)].concat()];
    let (accepted, client) = if kind == Kind::Xx {
        let (server, certificate) = (vector.pair("server"), vector.bytes("certificate"));
        let (awaiting, answer) =
            begin_xx(suite, preamble, (&server, &certificate), &message, entropy).expect("a good message");
        messages.push(in_clear(&answer));
        let done = waiting.finish(&answer, vector.time_ms("now_ms")).expect("a good answer");
        let last = done.last.expect("three messages");
        messages.push(framed(&last));
        let expected = Certificate {
            key_id: vector.number("server_key_id"),
            public: *server.public(),
            not_before_ms: vector.time_ms("not_before_ms"),
            not_after_ms: vector.time_ms("not_after_ms"),
        };
        assert_eq!(done.server, Some(expected));
        (awaiting.finish(&last).expect("a good message"), done.established)
    } else {
        let accepted = accept(vector, &message, entropy);
        let answer = accepted.answer.as_ref().expect("two messages");
        messages.push(in_clear(answer));
        let done = waiting.finish(answer, 0).expect("a good answer");
        (accepted, done.established)
    };
    assert_eq!(accepted.login.as_slice(), login);
    Played { messages, client, server: accepted.established }
}

fn accept(vector: &Vector, message: &[u8], entropy: Secret) -> Accepted {
    let (kind, suite) = (vector.kind(), vector.suite());
    let (preamble, _, _) =
        begin(&vector.how(), suite, &vector.bytes("login"), vector.secret("client_entropy")).expect("good keys");
    let preamble = preamble.encode();
    if kind == Kind::Ik {
        return accept_ik(suite, preamble, &vector.pair("server"), message, entropy).expect("a good message");
    }
    let (ticket, rest) = split_ticket(message).expect("a ticket");
    assert_eq!(ticket, vector.bytes("ticket"));
    let resumed = Resumed { ticket, secret: &vector.secret("ticket_secret") };
    accept_ticket((kind, suite), preamble, resumed, rest, entropy).expect("a good message")
}

/// The first records of the connection, which both sides seal and open in turn; each changes its key.
fn check_records(vector: &Vector, client: &mut Cipher, server: &mut Cipher) {
    let first_keys = [("client", vector.key("client_key")), ("server", vector.key("server_key"))];
    let mut unused: Vec<(&str, [u8; KEY_LEN])> = first_keys.into();
    for record in vector.list("records") {
        let (from, plain, expected) = (record.text("from"), record.bytes("plain"), record.bytes("hex"));
        let (ours, theirs) = if from == "client" { (&mut *client, &mut *server) } else { (&mut *server, &mut *client) };
        let [kind, _flags, protobuf @ ..] = plain.as_slice() else { panic!("type and flags") };
        let kind = RecordType::from_number(*kind).expect("a known type");
        let mut sealed = Vec::new();
        if kind == RecordType::Rekey {
            ours.change_key(&mut sealed);
        } else {
            ours.seal(&mut sealed, kind, |out| out.extend_from_slice(protobuf));
        }
        assert_eq!(hex::encode(&sealed), hex::encode(&expected), "{}", record.text("what"));
        if let Some(place) = unused.iter().position(|(side, _)| *side == from) {
            let (_, key) = unused.remove(place);
            let mut body = plain.clone();
            let tag = vector.suite().seal(&key, 0, &[], &mut body);
            assert_eq!(framed(&[body.as_slice(), &tag].concat()), expected, "the {from}'s key");
        }
        let opened = theirs.open(sealed.get_mut(LENGTH_LEN..).expect("a body")).expect("the other's next record");
        assert_eq!(opened, plain);
        if kind == RecordType::Rekey {
            theirs.follow_key();
        }
    }
    assert!(unused.is_empty(), "both sides have sent something");
}

/// What lies between the messages and the keys, and before them.
fn check_derivations(vector: &Vector, next_secret: &Secret) {
    let hash = vector.bytes("hash");
    let flight = vector.list("messages").next().expect("the client's first").bytes("hex");
    let (preamble, message) = flight.split_first_chunk::<PREAMBLE_LEN>().expect("a preamble");
    let (client, server) = (vector.bytes("client_key"), vector.bytes("server_key"));
    if vector.kind() != Kind::Resume {
        let ticket = if vector.kind() == Kind::ResumeForwardSecret { vector.bytes("ticket") } else { Vec::new() };
        assert_eq!([preamble.as_slice(), &ticket].concat(), vector.bytes("prologue"));
        let derived: Secret = hkdf(&hash, &[client, server].concat(), b"culver resumption");
        assert_eq!(derived, *next_secret);
        return;
    }
    let secret = vector.secret("ticket_secret");
    let derived = hkdf::<{ 3 * KEY_LEN }>(&hash, secret.as_slice(), b"culver keys");
    assert_eq!(derived.as_slice(), [client, server, next_secret.to_vec()].concat());
    let (ticket, rest) = split_ticket(message.get(LENGTH_LEN..).expect("a length")).expect("a ticket");
    let random = rest.first_chunk::<KEY_LEN>().expect("random bytes");
    let ticket_len = [u8::try_from(ticket.len()).expect("a short one")];
    let hello = sha256(&[vector.text("protocol").as_bytes(), preamble, &ticket_len, ticket, random]);
    assert_eq!(hex::encode(hello), vector.text("hello"));
    let early_key: Secret = hkdf(&hello, secret.as_slice(), b"culver early");
    assert_eq!(hex::encode(early_key.as_slice()), vector.text("early_key"));
}

#[test]
fn handshakes() {
    let mut seen = Vec::new();
    for vector in read(include_str!("handshake.json")).into_iter().map(Vector) {
        let (kind, suite, name) = (vector.kind(), vector.suite(), vector.text("name"));
        seen.push((kind, suite));
        let played = play(&vector);
        let expected: Vec<String> = vector.list("messages").map(|message| message.text("hex").to_owned()).collect();
        let messages: Vec<String> = played.messages.iter().map(hex::encode).collect();
        assert_eq!(messages, expected, "{name}");
        let next_secret = vector.secret("next_ticket_secret");
        assert_eq!(played.client.resumption, next_secret, "{name}");
        assert_eq!(played.server.resumption, next_secret, "{name}");
        check_derivations(&vector, &next_secret);
        let mut client = Cipher::Sealed(suite, played.client.keys);
        let mut server = Cipher::Sealed(suite, played.server.keys);
        check_records(&vector, &mut client, &mut server);
        if let Some(public) = played.server.other {
            assert_eq!(public, vector.key("device_public"), "{name}");
            assert_eq!(hex::encode(fingerprint(&public)), vector.text("fingerprint"));
            assert_eq!(URL_SAFE_NO_PAD.encode(key_thumbprint(&public)), vector.text("jkt"));
        }
    }
    let all: Vec<(Kind, Suite)> =
        Kind::ALL.into_iter().flat_map(|kind| Suite::ALL.map(|suite| (kind, suite))).collect();
    assert_eq!(seen, all, "each type with each suite");
}
