//! Who is at the other end: tokens and resume tickets, turned into an [`Identity`] or an error code.
//!
//! Owns the keys. Never reads storage, never looks at a clock (time is an argument), never logs a credential.

pub mod keys;
mod ticket;
mod token;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, Incarnation, UserId};
use culver_protocol::proto::{Login, login::Credential};

use crate::config::Config;

pub use self::keys::KeyError;
pub use self::ticket::{TICKET_LEN, TicketSealer};
pub use self::token::{Claims, TokenVerifier};

/// Who has logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// Which of the user's devices.
    pub device: DeviceId,
}

/// A resume ticket, ready for a WELCOME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// What the client shows at its next login; opaque to it.
    pub bytes: Bytes,
    /// When it expires, in milliseconds since 1970.
    pub expires_ms: u64,
}

/// Checks credentials and issues tickets. Shared by all reactors; holds no lock.
#[derive(Debug)]
pub struct Authenticator {
    tokens: TokenVerifier,
    tickets: TicketSealer,
}

impl Authenticator {
    /// Puts together what checks tokens and what checks tickets.
    #[must_use]
    pub fn new(tokens: TokenVerifier, tickets: TicketSealer) -> Self {
        Self { tokens, tickets }
    }

    /// Reads the keys of `config.data_dir`. A missing ticket key is made anew: clients log in with tokens then.
    ///
    /// # Errors
    /// A key cannot be read or is not a key.
    pub fn load(config: &Config, incarnation: Incarnation) -> Result<Self, KeyError> {
        let public_pem = keys::read_token_public(&config.data_dir.join(&config.token.public_key_file))?;
        let tokens = TokenVerifier::new(&public_pem, &config.token)?;
        let ticket_key = keys::read_or_create_ticket_key(&keys::ticket_key_path(&config.data_dir))?;
        Ok(Self::new(tokens, TicketSealer::new(&ticket_key, config.ticket, incarnation)))
    }

    /// Says who logs in. A ticket costs no signature and no storage read.
    ///
    /// # Errors
    /// One of the token and ticket codes (3xxx). A login without any credential is `TokenMalformed`.
    pub fn login(&self, login: &Login, now_ms: u64) -> Result<Identity, ErrorCode> {
        match &login.credential {
            Some(Credential::Token(token)) => self.tokens.verify(token, now_ms),
            Some(Credential::Ticket(ticket)) => self.tickets.open(ticket, now_ms),
            None => Err(ErrorCode::TokenMalformed),
        }
    }

    /// Seals a ticket for the next login.
    #[must_use]
    pub fn issue_ticket(&self, identity: Identity, now_ms: u64) -> Ticket {
        self.tickets.seal(identity, now_ms)
    }
}

/// The directory of the keys inside a data directory.
#[must_use]
pub fn keys_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("keys")
}
