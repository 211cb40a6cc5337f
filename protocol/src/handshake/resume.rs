//! Logging in with a resume ticket, symmetric: one flight each way, no Diffie-Hellman.
//!
//! ```text
//! client  preamble ‖ u16 length ‖ u8 ticket length ‖ ticket ‖ client random:32 ‖ AEAD(early key, Login)
//! server  HANDSHAKE record: server random:32, then records under the new keys
//!
//! hello      = SHA-256("Culver_resume_" suite name ‖ preamble ‖ ticket length ‖ ticket ‖ client random)
//! early key  = HKDF(salt: hello, secret: the ticket's, "culver early")
//! hash       = SHA-256(hello ‖ SHA-256(the sealed Login and its tag) ‖ server random)
//! keys       = HKDF(salt: hash, secret: the ticket's, "culver keys"): client's key:32 ‖ server's:32 ‖ next secret:32
//! ```
//!
//! It proves to each side that the other knows the ticket's secret (the server, by opening the ticket). Whoever learns
//! the server's ticket key can read what sessions resumed so have said; [`super::server`] has the variant that gives
//! forward secrecy for two Diffie-Hellman. A first flight may be replayed: it gets an answer that only the client can
//! read, and a session that only its next record takes any further.

use zeroize::Zeroizing;

use super::noise::{Side, keys};
use super::server::Accepted;
use super::{Established, HandshakeError};
use crate::crypto::{self, KEY_LEN, Secret, Suite};
use crate::limits::{PREAMBLE_LEN, TAG_LEN};

/// What the client has written, by which both derive the rest.
struct Hello {
    hash: [u8; KEY_LEN],
}

impl Hello {
    fn new(suite: Suite, preamble: [u8; PREAMBLE_LEN], ticket: &[u8], client: &[u8]) -> Self {
        let len = u8::try_from(ticket.len()).expect("TICKET_LEN_MAX fits a u8");
        let name = match suite {
            Suite::ChaCha20Poly1305 => b"Culver_resume_ChaChaPoly".as_slice(),
            Suite::Aes256Gcm => b"Culver_resume_AESGCM",
        };
        Self { hash: crypto::sha256(&[name, &preamble, &[len], ticket, client]) }
    }

    fn early_key(&self, secret: &Secret) -> Secret {
        crypto::hkdf(&self.hash, secret.as_slice(), b"culver early")
    }

    /// What the server's answer makes of it.
    fn finish(&self, side: Side, secret: &Secret, sealed_login: &[u8; KEY_LEN], server: &[u8; KEY_LEN]) -> Established {
        let hash = crypto::sha256(&[&self.hash, sealed_login, server]);
        let derived: Zeroizing<[u8; 3 * KEY_LEN]> = crypto::hkdf(&hash, secret.as_slice(), b"culver keys");
        let third = |index: usize| {
            let bytes = derived.get(index * KEY_LEN..).and_then(|rest| rest.first_chunk());
            Secret::new(*bytes.expect("three keys were derived"))
        };
        Established { keys: keys(side, &third(0), &third(1)), resumption: third(2), other: None }
    }
}

/// The client's side, between the two flights.
pub(super) struct Resuming {
    hello: Hello,
    secret: Secret,
    login_hash: [u8; KEY_LEN],
}

impl Resuming {
    /// Writes what follows the ticket: the random bytes and the login.
    pub(super) fn begin(
        suite: Suite,
        preamble: [u8; PREAMBLE_LEN],
        (ticket, secret): (&[u8], &Secret),
        login: &[u8],
        entropy: &Secret,
        out: &mut Vec<u8>,
    ) -> Self {
        let hello = Hello::new(suite, preamble, ticket, entropy.as_slice());
        out.extend_from_slice(entropy.as_slice());
        let start = out.len();
        out.extend_from_slice(login);
        let body = out.get_mut(start..).expect("just written");
        let tag = suite.seal(&hello.early_key(secret), 0, &hello.hash, body);
        out.extend_from_slice(&tag);
        let login_hash = crypto::sha256(&[out.get(start..).expect("just written")]);
        Self { hello, secret: secret.clone(), login_hash }
    }

    /// Reads the server's random bytes.
    pub(super) fn finish(&self, answer: &[u8]) -> Result<Established, HandshakeError> {
        let server = answer.try_into().map_err(|_| HandshakeError::Unreadable)?;
        Ok(self.hello.finish(Side::Initiator, &self.secret, &self.login_hash, server))
    }
}

/// The server's side: the login, the answer, and what both share. `rest` is what follows the ticket.
pub(super) fn accept(
    suite: Suite,
    preamble: [u8; PREAMBLE_LEN],
    (ticket, secret): (&[u8], &Secret),
    rest: &[u8],
    entropy: &Secret,
) -> Result<Accepted, HandshakeError> {
    let (client, sealed) = rest.split_first_chunk::<KEY_LEN>().ok_or(HandshakeError::Unreadable)?;
    if sealed.len() < TAG_LEN {
        return Err(HandshakeError::Unreadable);
    }
    let hello = Hello::new(suite, preamble, ticket, client);
    let mut login = Zeroizing::new(sealed.to_vec());
    let opened = suite.open(&hello.early_key(secret), 0, &hello.hash, &mut login);
    let opened_len = opened.ok_or(HandshakeError::Failed)?.len();
    login.truncate(opened_len);
    let established = hello.finish(Side::Responder, secret, &crypto::sha256(&[sealed]), entropy);
    Ok(Accepted { login, answer: Some(entropy.to_vec()), established })
}
