//! The server's side of one encrypted connection: every handshake, and the records after it.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::take;
use crate::client::{Client, ServerKey};
use crate::crypto::{KEY_LEN, KeyPair, PublicKey, Secret, Suite};
use crate::handshake::Kind;
use crate::handshake::certificate::{Certificate, SIGNATURE_LEN};
use crate::handshake::server::{self, Accepted, Resumed};
use crate::keys::Keys;
use crate::limits::{BODY_LEN_MAX, HANDSHAKE_LEN_MAX, HEADER_LEN, TAG_LEN};
use crate::preamble::Preamble;
use crate::proto;
use crate::record::{Cipher, Record, RecordType, split};

/// Milliseconds since 1970 at which every client here begins.
pub(super) const UNIX_MS: u64 = 1_800_000_000_000;
/// How long certificates are good from then on.
pub(super) const CERTIFIED_MS: u64 = 1_000_000;
const KEY_ID: u16 = 7;

pub(super) fn secret(byte: u8) -> Secret {
    Secret::new([byte; KEY_LEN])
}

pub(super) fn pair(byte: u8) -> Arc<KeyPair> {
    Arc::new(KeyPair::new(&secret(byte)))
}

pub(super) fn server_key() -> ServerKey {
    ServerKey { id: KEY_ID, public: *pair(2).public(), not_after_ms: UNIX_MS + CERTIFIED_MS }
}

fn root(byte: u8) -> aws_lc_rs::signature::Ed25519KeyPair {
    aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&[byte; KEY_LEN]).expect("any seed is a key")
}

pub(super) fn root_public() -> [u8; KEY_LEN] {
    use aws_lc_rs::signature::KeyPair;
    root(3).public_key().as_ref().try_into().expect("32 bytes")
}

/// A certificate for this key by the root of this number; clients trust number 3.
pub(super) fn certificate(public: &PublicKey, by: u8) -> Vec<u8> {
    let (not_before_ms, not_after_ms) = (UNIX_MS, UNIX_MS + CERTIFIED_MS);
    let certificate = Certificate { key_id: KEY_ID, public: *public, not_before_ms, not_after_ms };
    let signature = root(by).sign(&certificate.signed_bytes());
    let signature: &[u8; SIGNATURE_LEN] = signature.as_ref().try_into().expect("64 bytes");
    certificate.encode(signature).to_vec()
}

/// What a client opens a connection with.
pub(super) struct Opening {
    pub(super) bytes: [u8; 8],
    pub(super) preamble: Preamble,
    pub(super) kind: Kind,
    pub(super) suite: Suite,
    pub(super) message: Vec<u8>,
}

impl Opening {
    /// Reads it, and sees that nothing follows it: there are no keys yet.
    pub(super) fn take(client: &mut Client) -> Self {
        let flight = take(client);
        let (bytes, rest) = flight.split_first_chunk::<8>().expect("a preamble");
        let preamble = Preamble::decode(*bytes).expect("a good one");
        let (message, rest) = split_message(rest);
        assert!(rest.is_empty(), "something follows the first message");
        Self {
            bytes: *bytes,
            preamble,
            kind: Kind::from_number(preamble.handshake).expect("encrypted"),
            suite: Suite::from_number(preamble.suite).expect("encrypted"),
            message,
        }
    }
}

fn split_message(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let range = split(bytes, 1, HANDSHAKE_LEN_MAX).expect("within the limits").expect("whole");
    let rest = bytes.get(range.end..).expect("within").to_vec();
    (bytes.get(range).expect("within").to_vec(), rest)
}

/// A HANDSHAKE record.
pub(super) fn handshake(answer: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Cipher::Plaintext.seal(&mut out, RecordType::Handshake, |out| out.extend_from_slice(answer));
    out
}

/// A server that has the keys.
pub(super) struct Peer {
    pub(super) opening: Opening,
    pub(super) login: proto::Login,
    /// The secret of the ticket that its WELCOME brings.
    pub(super) resumption: Secret,
    /// The key that the device showed.
    pub(super) other: Option<PublicKey>,
    pub(super) suite: Suite,
    cipher: Cipher,
    pub(super) incoming: Vec<u8>,
}

impl Peer {
    /// Takes what the client opens with to where both have keys. `shared`: the secret of the ticket that it shows.
    pub(super) fn accept(client: &mut Client, shared: &Secret, now_us: u64) -> Self {
        let opening = Opening::take(client);
        Self::answer(opening, client, shared, now_us)
    }

    pub(super) fn answer(opening: Opening, client: &mut Client, shared: &Secret, now_us: u64) -> Self {
        let Opening { bytes, kind, suite, message, .. } = &opening;
        let (own, entropy) = (pair(2), secret(6));
        let mut incoming = Vec::new();
        let accepted = match kind {
            Kind::Ik => server::accept_ik(*suite, *bytes, &own, message, entropy),
            Kind::Xx => {
                let certificate = certificate(own.public(), 3);
                let shown = (&own, certificate.as_slice());
                let (awaiting, answer) = server::begin_xx(*suite, *bytes, shown, message, entropy).expect("readable");
                client.handle_bytes(&handshake(&answer), now_us);
                let (last, rest) = split_message(&take(client));
                incoming = rest;
                awaiting.finish(&last)
            }
            Kind::Resume | Kind::ResumeForwardSecret => {
                let (ticket, rest) = server::split_ticket(message).expect("a ticket");
                let resumed = Resumed { ticket, secret: shared };
                server::accept_ticket((*kind, *suite), *bytes, resumed, rest, entropy)
            }
        };
        let Accepted { login, answer, established } = accepted.expect("a good handshake");
        if let Some(answer) = answer {
            client.handle_bytes(&handshake(&answer), now_us);
            incoming = take(client);
        }
        Self {
            login: proto::Login::decode(login.as_slice()).expect("a login"),
            resumption: established.resumption,
            other: established.other,
            suite: *suite,
            cipher: Cipher::Sealed(*suite, established.keys),
            incoming,
            opening,
        }
    }

    /// The same, and WELCOME.
    pub(super) fn welcome(client: &mut Client, shared: &Secret, now_us: u64) -> Self {
        let mut peer = Self::accept(client, shared, now_us);
        let record = peer.seal(RecordType::Welcome, &welcome());
        client.handle_bytes(&record, now_us);
        assert!(client.is_logged_in());
        peer
    }

    pub(super) fn keys(&mut self) -> &mut Keys {
        let Cipher::Sealed(_, keys) = &mut self.cipher else { unreachable!("it has keys") };
        keys
    }

    pub(super) fn seal(&mut self, kind: RecordType, message: &impl Message) -> Vec<u8> {
        let mut out = Vec::new();
        self.cipher.seal_message(&mut out, kind, message);
        out
    }

    /// A REKEY; what follows is sealed with the next key.
    pub(super) fn rekey(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.cipher.change_key(&mut out);
        out
    }

    /// Opens everything that the client has written, and follows its REKEYs.
    pub(super) fn read(&mut self, client: &mut Client) -> Vec<(RecordType, Bytes)> {
        self.incoming.extend_from_slice(&take(client));
        let mut records = Vec::new();
        while let Some(range) =
            split(&self.incoming, HEADER_LEN + TAG_LEN, BODY_LEN_MAX + TAG_LEN).expect("well framed")
        {
            let mut frame: Vec<u8> = self.incoming.drain(..range.end).collect();
            let body = self.cipher.open(frame.get_mut(range).expect("whole")).expect("the client's next");
            let record = Record::parse(body).expect("a header");
            let kind = RecordType::from_number(record.kind).expect("known");
            records.push((kind, Bytes::copy_from_slice(record.body)));
            if kind == RecordType::Rekey {
                self.cipher.follow_key();
            }
        }
        records
    }

    pub(super) fn kinds(&mut self, client: &mut Client) -> Vec<RecordType> {
        self.read(client).into_iter().map(|(kind, _)| kind).collect()
    }
}

pub(super) fn welcome() -> proto::Welcome {
    let ticket = Bytes::from_static(b"sealed ticket");
    proto::Welcome { ticket, keep_alive_s: 60, version: 1, ..Default::default() }
}
