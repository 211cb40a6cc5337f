//! The server's side of handshakes, for tests: it knows the tickets that it gave, and nobody's rights.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use culver_protocol::crypto::{self, KeyPair, Secret, Suite};
use culver_protocol::error::ErrorCode;
use culver_protocol::handshake::certificate::Certificate;
use culver_protocol::handshake::client::ServerKey;
use culver_protocol::handshake::server::{Accepted, Resumed, accept_ik, accept_ticket, begin_xx, split_ticket};
use culver_protocol::handshake::{HandshakeError, Kind};
use culver_protocol::limits::LENGTH_LEN;
use culver_protocol::record::{Cipher, RecordType};

use super::credentials::Credentials;
use super::credentials::tests::KEY_PEM;

/// A server's key, its certificate, and the secrets of its tickets.
pub(crate) struct Peer {
    own: Arc<KeyPair>,
    certificate: Vec<u8>,
    pub(crate) root: [u8; 32],
    tickets: Mutex<BTreeMap<Vec<u8>, Secret>>,
}

impl Peer {
    pub(crate) fn new() -> Self {
        let own = Arc::new(KeyPair::new(&Secret::new([2; 32])));
        let root = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).expect("any seed is a key");
        let certificate = Certificate { key_id: 7, public: *own.public(), not_before_ms: 0, not_after_ms: u64::MAX };
        let signature = root.sign(&certificate.signed_bytes());
        let certificate = certificate.encode(signature.as_ref().try_into().expect("64 bytes")).to_vec();
        let root = root.public_key().as_ref().try_into().expect("32 bytes");
        Self { own, certificate, root, tickets: Mutex::default() }
    }

    pub(crate) fn key(&self) -> ServerKey {
        ServerKey { id: 7, public: *self.own.public(), not_after_ms: u64::MAX }
    }

    /// Credentials as `culver init` writes them.
    pub(crate) fn credentials(&self, dir: &Path) -> Credentials {
        let path = dir.join("credentials.json");
        let file = serde_json::json!({ "issuer": "i", "audience": "a", "algorithm": "EdDSA", "key_id": "k",
            "private_key_pem": KEY_PEM, "server_root": hex::encode(self.root) });
        std::fs::write(&path, file.to_string()).expect("a disk with room");
        Credentials::load(&path).expect("a good file")
    }

    /// A new ticket that begins with these bytes.
    pub(crate) fn give_ticket(&self, prefix: &[u8], secret: Secret) -> Vec<u8> {
        let ticket = [prefix, crypto::random().as_slice()].concat();
        self.tickets.lock().expect("nobody panics").insert(ticket.clone(), secret);
        ticket
    }

    /// Takes a first message, and does what is to be done until the login is there. What is to be answered then is in
    /// what comes back.
    pub(crate) fn accept(
        &self,
        socket: &mut (impl Read + Write),
        (kind, suite): (Kind, Suite),
        preamble: [u8; 8],
        message: &[u8],
    ) -> Result<Accepted, ErrorCode> {
        let code = |error| match error {
            HandshakeError::Unreadable => ErrorCode::BadHandshake,
            _ => ErrorCode::HandshakeFailed,
        };
        let entropy = crypto::random();
        match kind {
            Kind::Ik => accept_ik(suite, preamble, &self.own, message, entropy).map_err(code),
            Kind::Xx => {
                let keys = (&self.own, self.certificate.as_slice());
                let (awaiting, answer) = begin_xx(suite, preamble, keys, message, entropy).map_err(code)?;
                write_handshake(socket, &answer);
                awaiting.finish(&read_message(socket).map_err(|_| ErrorCode::LoginTimeout)?).map_err(code)
            }
            Kind::Resume | Kind::ResumeForwardSecret => {
                let (ticket, rest) = split_ticket(message).map_err(code)?;
                let secret = self.tickets.lock().expect("nobody panics").get(ticket).cloned();
                let secret = secret.ok_or(ErrorCode::TicketInvalid)?;
                let resumed = Resumed { ticket, secret: &secret };
                accept_ticket((kind, suite), preamble, resumed, rest, entropy).map_err(code)
            }
        }
    }
}

/// A handshake message, or the body of a record: both have a length in front.
pub(crate) fn read_message(socket: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut len = [0; LENGTH_LEN];
    socket.read_exact(&mut len)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    socket.read_exact(&mut message)?;
    Ok(message)
}

pub(crate) fn write_handshake(socket: &mut impl Write, answer: &[u8]) {
    let mut out = Vec::new();
    Cipher::Plaintext.seal(&mut out, RecordType::Handshake, |out| out.extend_from_slice(answer));
    socket.write_all(&out).expect("it reads");
}
