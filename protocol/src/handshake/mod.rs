//! From a preamble to keys: how a device and the server come to share secrets. Sans-io: bytes in, bytes out; the only
//! randomness is an argument.
//!
//! ```text
//! type  name                        messages  Diffie-Hellman at the server   the device shows
//!  1    Noise IK                    2         4 and a key pair               its static key; it knows the server's
//!  2    Noise XX                    3         3 and a key pair               its static key, after the server's
//!  3    resume ticket               2         none                           a ticket's secret
//!  4    resume ticket, with         2         1 and a key pair               the same; what is said stays secret when
//!       forward secrecy (NNpsk0)                                             the server's keys are stolen later
//! ```
//!
//! The preamble (and with a ticket, the ticket) is the prologue of every one, so nobody can change a byte of it unseen.
//! The login travels inside; no message of a user does. What is left is [`Keys`], and a secret for the next ticket.

pub mod certificate;
pub mod client;
mod noise;
mod resume;
pub mod server;
#[cfg(test)]
mod tests;

use thiserror::Error;

use crate::crypto::{PublicKey, Secret};
use crate::keys::Keys;

/// A type of handshake; the numbers are those of the preamble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Noise IK: the client knows the server's key.
    Ik = 1,
    /// Noise XX: it learns it.
    Xx = 2,
    /// A resume ticket.
    Resume = 3,
    /// A resume ticket, with forward secrecy.
    ResumeForwardSecret = 4,
}

impl Kind {
    /// All types, ascending.
    pub const ALL: [Self; 4] = [Self::Ik, Self::Xx, Self::Resume, Self::ResumeForwardSecret];

    /// The type with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Why a handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// A message has not the form that it should have.
    #[error("a handshake message cannot be read")]
    Unreadable,
    /// A message was not made by who it should come from, or for somebody else, or was changed on its way.
    #[error("a handshake message does not open")]
    Failed,
    /// The server's key is not certified by a root that the client trusts, or not now.
    #[error("the server's certificate is not good: {0}")]
    Certificate(#[from] certificate::CertificateError),
}

/// What a handshake leaves.
pub struct Established {
    /// For the records of this connection.
    pub keys: Keys,
    /// The secret of the next ticket.
    pub resumption: Secret,
    /// The other's static key, where the handshake showed one.
    pub other: Option<PublicKey>,
}

impl std::fmt::Debug for Established {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Established").field("keys", &self.keys).finish_non_exhaustive()
    }
}
