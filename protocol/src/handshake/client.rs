//! The client's side: a first message out, the server's answer in.

use std::sync::Arc;

use super::certificate::{Certificate, CertificateError, Roots};
use super::noise::{Credentials, Noise, Pattern, Side};
use super::resume::Resuming;
use super::server::ticket_prologue;
use super::{Established, HandshakeError, Kind};
use crate::crypto::{KeyPair, PublicKey, Secret, Suite};
use crate::limits::PREAMBLE_LEN;
use crate::preamble::Preamble;

/// A server's static key, the number by which it is named, and how long it is good. The handshake itself looks at no
/// time: who shows the key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerKey {
    /// Its number.
    pub id: u16,
    /// The key.
    pub public: PublicKey,
    /// Until when its certificate is good, in milliseconds since 1970.
    pub not_after_ms: u64,
}

impl From<Certificate> for ServerKey {
    fn from(certificate: Certificate) -> Self {
        let Certificate { key_id, public, not_after_ms, .. } = certificate;
        Self { id: key_id, public, not_after_ms }
    }
}

/// How to log in.
#[derive(Clone)]
pub enum How {
    /// With a key that the server has certified before.
    Ik {
        /// The device's.
        own: Arc<KeyPair>,
        /// The server's.
        server: ServerKey,
    },
    /// By asking the server for its key.
    Xx {
        /// The device's.
        own: Arc<KeyPair>,
        /// Whose signature makes a server's key good.
        roots: Roots,
    },
    /// With a ticket.
    Ticket {
        /// As WELCOME gave it.
        ticket: Vec<u8>,
        /// Its secret.
        secret: Secret,
        /// For two Diffie-Hellman more, what is said stays secret when the server's keys are stolen later.
        forward_secret: bool,
    },
}

impl How {
    fn kind(&self) -> Kind {
        match self {
            Self::Ik { .. } => Kind::Ik,
            Self::Xx { .. } => Kind::Xx,
            Self::Ticket { forward_secret: false, .. } => Kind::Resume,
            Self::Ticket { forward_secret: true, .. } => Kind::ResumeForwardSecret,
        }
    }
}

impl std::fmt::Debug for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("How").field(&self.kind()).finish()
    }
}

/// A handshake that waits for the server's answer.
pub struct Waiting(State);

enum State {
    TwoMessages(Noise),
    Resuming(Resuming),
    Xx { noise: Noise, roots: Roots, login: Vec<u8> },
}

/// A handshake that is through.
#[derive(Debug)]
pub struct Done {
    /// What both share.
    pub established: Established,
    /// A handshake message still to be sent, before any record.
    pub last: Option<Vec<u8>>,
    /// What the server's certificate said, where it showed one.
    pub server: Option<Certificate>,
}

/// Begins a handshake: the preamble, and the first message behind it.
///
/// # Errors
/// [`HandshakeError::Failed`]: the server's key is none that secrets can be agreed with.
pub fn begin(
    how: &How,
    suite: Suite,
    login: &[u8],
    entropy: Secret,
) -> Result<(Preamble, Vec<u8>, Waiting), HandshakeError> {
    let server_key = if let How::Ik { server, .. } = how { server.id } else { 0 };
    let opening = Preamble { handshake: how.kind() as u8, suite: suite as u8, server_key, ..Preamble::PLAINTEXT };
    let preamble = opening.encode();
    let (message, state) = match how {
        How::Ik { own, server } => {
            let own = Some(Arc::clone(own));
            let credentials = Credentials { own, other: Some(&server.public), shared: None };
            in_two((Pattern::Ik, suite), &preamble, &credentials, login, entropy)?
        }
        How::Xx { own, roots } => {
            let credentials = Credentials { own: Some(Arc::clone(own)), ..Credentials::default() };
            let mut noise = Noise::begin((Pattern::Xx, suite, Side::Initiator), &preamble, &credentials, entropy);
            (noise.write(&[])?, State::Xx { noise, roots: *roots, login: login.to_vec() })
        }
        How::Ticket { ticket, secret, forward_secret } => {
            begin_with_ticket(suite, preamble, (ticket, secret), *forward_secret, login, entropy)?
        }
    };
    Ok((opening, message, Waiting(state)))
}

fn begin_with_ticket(
    suite: Suite,
    preamble: [u8; PREAMBLE_LEN],
    (ticket, secret): (&[u8], &Secret),
    forward_secret: bool,
    login: &[u8],
    entropy: Secret,
) -> Result<(Vec<u8>, State), HandshakeError> {
    let len = u8::try_from(ticket.len()).map_err(|_| HandshakeError::Unreadable)?;
    let mut message = vec![len];
    message.extend_from_slice(ticket);
    if forward_secret {
        let credentials = Credentials { shared: Some(secret), ..Credentials::default() };
        let prologue = ticket_prologue(preamble, ticket);
        let (rest, state) = in_two((Pattern::NnPsk0, suite), &prologue, &credentials, login, entropy)?;
        message.extend_from_slice(&rest);
        return Ok((message, state));
    }
    let resuming = Resuming::begin(suite, preamble, (ticket, secret), login, &entropy, &mut message);
    Ok((message, State::Resuming(resuming)))
}

fn in_two(
    (pattern, suite): (Pattern, Suite),
    prologue: &[u8],
    credentials: &Credentials<'_>,
    login: &[u8],
    entropy: Secret,
) -> Result<(Vec<u8>, State), HandshakeError> {
    let mut noise = Noise::begin((pattern, suite, Side::Initiator), prologue, credentials, entropy);
    let message = noise.write(login)?;
    Ok((message, State::TwoMessages(noise)))
}

impl Waiting {
    /// Reads the server's answer.
    ///
    /// # Errors
    /// It is not that of the server, or the server's certificate is not good.
    pub fn finish(self, answer: &[u8], now_ms: u64) -> Result<Done, HandshakeError> {
        match self.0 {
            State::TwoMessages(mut noise) => {
                if !noise.read(answer)?.is_empty() {
                    return Err(HandshakeError::Unreadable);
                }
                Ok(Done { established: noise.finish(), last: None, server: None })
            }
            State::Resuming(resuming) => Ok(Done { established: resuming.finish(answer)?, last: None, server: None }),
            State::Xx { mut noise, roots, login } => {
                let payload = noise.read(answer)?;
                let certificate = Certificate::verify(&payload, &roots, now_ms)?;
                let last = noise.write(&login)?;
                let established = noise.finish();
                if established.other != Some(certificate.public) {
                    return Err(CertificateError::OtherKey.into());
                }
                Ok(Done { established, last: Some(last), server: Some(certificate) })
            }
        }
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiting")
    }
}
