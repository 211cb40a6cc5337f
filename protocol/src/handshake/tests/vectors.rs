//! The published vectors of cacophony and snow, through our resolver: every pattern of theirs with SHA-256. (Those with
//! BLAKE2s are about a hash that Culver does not speak.)

use std::sync::Arc;

use serde::Deserialize;

use crate::crypto::{KEY_LEN, KeyPair, Secret, Suite};
use crate::handshake::noise::{Credentials, Noise, Side};

#[derive(Deserialize)]
struct File {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    protocol_name: String,
    init_prologue: String,
    init_ephemeral: String,
    init_static: Option<String>,
    init_remote_static: Option<String>,
    #[serde(default)]
    init_psks: Vec<String>,
    resp_prologue: String,
    resp_ephemeral: String,
    resp_static: Option<String>,
    #[serde(default)]
    resp_psks: Vec<String>,
    handshake_hash: Option<String>,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    payload: String,
    ciphertext: String,
}

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text).expect("hex")
}

fn key(text: &str) -> [u8; KEY_LEN] {
    bytes(text).try_into().expect("32 bytes")
}

fn side(vector: &Vector, side: Side) -> Noise {
    let (prologue, entropy, own, psks) = match side {
        Side::Initiator => (&vector.init_prologue, &vector.init_ephemeral, &vector.init_static, &vector.init_psks),
        Side::Responder => (&vector.resp_prologue, &vector.resp_ephemeral, &vector.resp_static, &vector.resp_psks),
    };
    let other = vector.init_remote_static.as_deref().filter(|_| side == Side::Initiator).map(key);
    let shared = psks.first().map(|psk| key(psk));
    let credentials = Credentials {
        own: own.as_deref().map(|own| Arc::new(KeyPair::new(&key(own)))),
        other: other.as_ref(),
        shared: shared.as_ref(),
    };
    let params = vector.protocol_name.parse().expect("a name that snow knows");
    Noise::begin_named(params, side, &bytes(prologue), &credentials, Secret::new(key(entropy)))
}

fn check(vector: &Vector) {
    let name = &vector.protocol_name;
    let suite = if name.contains("ChaChaPoly") { Suite::ChaCha20Poly1305 } else { Suite::Aes256Gcm };
    let (mut first, mut second) = (side(vector, Side::Initiator), side(vector, Side::Responder));
    let mut messages = vector.messages.iter();
    let mut from_first = true;
    while !first.is_finished() {
        let Message { payload, ciphertext } = messages.next().expect("a message for each step");
        let (from, to) = if from_first { (&mut first, &mut second) } else { (&mut second, &mut first) };
        let message = from.write(&bytes(payload)).expect("good keys");
        assert_eq!(hex::encode(&message), *ciphertext, "{name}");
        assert_eq!(to.read(&message).expect("it is good").as_slice(), bytes(payload), "{name}");
        from_first = !from_first;
    }
    if let Some(hash) = &vector.handshake_hash {
        assert_eq!(hex::encode(first.hash()), *hash, "{name}");
    }
    let (mut first, mut second) = (first.finish(), second.finish());
    assert_eq!(first.resumption, second.resumption, "{name}");
    for Message { payload, ciphertext } in messages {
        let (from, to) = if from_first { (&mut first, &mut second) } else { (&mut second, &mut first) };
        let mut record = bytes(payload);
        let tag = from.keys.sending.seal(suite, &mut record);
        record.extend_from_slice(&tag);
        assert_eq!(hex::encode(&record), *ciphertext, "{name}");
        let opened = to.keys.receiving.open(suite, &mut record).expect("it is good");
        assert_eq!(opened, bytes(payload), "{name}");
        from_first = !from_first;
    }
}

fn check_file(text: &str) -> usize {
    let file: File = serde_json::from_str(text).expect("the published form");
    let ours: Vec<Vector> =
        file.vectors.into_iter().filter(|vector| vector.protocol_name.ends_with("SHA256")).collect();
    ours.iter().for_each(check);
    ours.len()
}

#[test]
fn handshakes_and_records_are_those_of_cacophony() {
    let checked = check_file(include_str!("../../../tests/vectors/published/noise-cacophony.json"));
    assert_eq!(checked, 16, "XX, IK, NK, NN, and with psk: each with both ciphers");
}

#[test]
fn handshakes_and_records_are_those_of_snow() {
    let checked = check_file(include_str!("../../../tests/vectors/published/noise-snow.json"));
    assert_eq!(checked, 8, "XX, IK, NK, NN: each with both ciphers");
}
