//! The server's side: a first message in, a login out, and what to answer.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::noise::{Credentials, Noise, Pattern, Side};
use super::{Established, HandshakeError, Kind, resume};
use crate::crypto::{KeyPair, Secret, Suite};
use crate::limits::{PREAMBLE_LEN, TICKET_LEN_MAX};

/// A handshake that is through.
pub struct Accepted {
    /// The login that came with it, not looked at yet.
    pub login: Zeroizing<Vec<u8>>,
    /// What to answer in a HANDSHAKE record, before any sealed one. `None`: nothing.
    pub answer: Option<Vec<u8>>,
    /// What both share.
    pub established: Established,
}

impl std::fmt::Debug for Accepted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accepted").field("established", &self.established).finish_non_exhaustive()
    }
}

/// Noise XX after the server's message: the client's is still to come.
pub struct Awaiting(Noise);

/// Noise IK: everything in one message each way.
///
/// # Errors
/// The message cannot be read, or was made for another key, or with another preamble.
pub fn accept_ik(
    suite: Suite,
    preamble: [u8; PREAMBLE_LEN],
    own: &Arc<KeyPair>,
    message: &[u8],
    entropy: Secret,
) -> Result<Accepted, HandshakeError> {
    let credentials = Credentials { own: Some(Arc::clone(own)), ..Credentials::default() };
    let noise = Noise::begin((Pattern::Ik, suite, Side::Responder), &preamble, &credentials, entropy);
    accept_in_two(noise, message)
}

/// Noise XX: reads the client's first message, and answers with the certificate.
///
/// # Errors
/// The message cannot be read.
pub fn begin_xx(
    suite: Suite,
    preamble: [u8; PREAMBLE_LEN],
    (own, certificate): (&Arc<KeyPair>, &[u8]),
    message: &[u8],
    entropy: Secret,
) -> Result<(Awaiting, Vec<u8>), HandshakeError> {
    let credentials = Credentials { own: Some(Arc::clone(own)), ..Credentials::default() };
    let mut noise = Noise::begin((Pattern::Xx, suite, Side::Responder), &preamble, &credentials, entropy);
    // It has nothing to say yet that may be read by anybody.
    if !noise.read(message)?.is_empty() {
        return Err(HandshakeError::Unreadable);
    }
    let answer = noise.write(certificate)?;
    Ok((Awaiting(noise), answer))
}

impl Awaiting {
    /// Reads the client's second message.
    ///
    /// # Errors
    /// It cannot be read, or does not belong to what came before.
    pub fn finish(self, message: &[u8]) -> Result<Accepted, HandshakeError> {
        let Self(mut noise) = self;
        let login = noise.read(message)?;
        Ok(Accepted { login, answer: None, established: noise.finish() })
    }
}

impl std::fmt::Debug for Awaiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Awaiting")
    }
}

/// The ticket in a first message, and what follows it.
///
/// # Errors
/// There is none.
pub fn split_ticket(message: &[u8]) -> Result<(&[u8], &[u8]), HandshakeError> {
    let (len, rest) = message.split_first().ok_or(HandshakeError::Unreadable)?;
    let len = usize::from(*len);
    if len > TICKET_LEN_MAX {
        return Err(HandshakeError::Unreadable);
    }
    rest.split_at_checked(len).ok_or(HandshakeError::Unreadable)
}

/// A resume ticket that the server has opened, with its secret.
#[derive(Clone, Copy)]
pub struct Resumed<'a> {
    /// As it came.
    pub ticket: &'a [u8],
    /// What was in it.
    pub secret: &'a Secret,
}

/// A login by ticket. `rest` is what follows the ticket in the first message.
///
/// # Errors
/// It cannot be read, or the client does not know the ticket's secret.
///
/// # Panics
/// If `kind` is none with a ticket.
pub fn accept_ticket(
    (kind, suite): (Kind, Suite),
    preamble: [u8; PREAMBLE_LEN],
    resumed: Resumed<'_>,
    rest: &[u8],
    entropy: Secret,
) -> Result<Accepted, HandshakeError> {
    let Resumed { ticket, secret } = resumed;
    match kind {
        Kind::Resume => resume::accept(suite, preamble, (ticket, secret), rest, &entropy),
        Kind::ResumeForwardSecret => {
            let credentials = Credentials { shared: Some(secret), ..Credentials::default() };
            let what = (Pattern::NnPsk0, suite, Side::Responder);
            let noise = Noise::begin(what, &ticket_prologue(preamble, ticket), &credentials, entropy);
            accept_in_two(noise, rest)
        }
        Kind::Ik | Kind::Xx => panic!("{kind:?} shows no ticket"),
    }
}

/// The prologue of a handshake with a ticket.
pub(super) fn ticket_prologue(preamble: [u8; PREAMBLE_LEN], ticket: &[u8]) -> Vec<u8> {
    let mut prologue = preamble.to_vec();
    prologue.extend_from_slice(ticket);
    prologue
}

fn accept_in_two(mut noise: Noise, message: &[u8]) -> Result<Accepted, HandshakeError> {
    let login = noise.read(message)?;
    let answer = noise.write(&[])?;
    Ok(Accepted { login, answer: Some(answer), established: noise.finish() })
}
