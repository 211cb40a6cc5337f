//! Who is at the other end: tokens and resume tickets, turned into an [`Identity`] or an error code; and who this end
//! is: the server's own keys.
//!
//! Owns the keys. Never reads rows, never looks at a clock (time is an argument), never logs a credential.
//!
//! ```text
//! DIR/keys/jwks.json         who makes tokens: public keys            jwks.rs, token.rs
//! DIR/keys/ticket.key        what seals tickets                       ticket_keys.rs, ticket.rs
//! DIR/keys/root-public.pem   what clients are built with              root.rs
//! DIR/keys/server/           the server's keys, and certificates      server_folder.rs, server.rs
//! ```

mod error;
mod files;
pub mod jwks;
pub mod keys;
mod root;
mod server;
pub mod server_folder;
mod source;
mod ticket;
pub mod ticket_keys;
mod token;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, Incarnation, UserId};
use parking_lot::{Mutex, RwLock};

use self::source::Source;
use crate::config::Config;

pub use culver_storage::command::Fingerprint;

pub use self::error::KeyError;
pub use self::root::Root;
pub use self::server::{CertifiedKey, ServerIdentity, ServerKeys};
pub use self::ticket::{OpenedTicket, TICKET_LEN, TICKET_LEN_ENCRYPTED, TicketContents, TicketSealer};
pub use self::token::{Claims, Confirmation, TokenClaims, TokenVerifier};

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

/// Checks credentials, issues tickets and has the server's keys. Shared by all reactors; what it holds a lock for is
/// one pointer.
#[derive(Debug)]
pub struct Authenticator {
    keyring: RwLock<Arc<Keyring>>,
    /// Where the keys come from; `None`: from nowhere, and they never change.
    source: Option<Mutex<Source>>,
}

/// All keys at one time.
#[derive(Clone, Debug)]
struct Keyring {
    tokens: Arc<TokenVerifier>,
    tickets: Arc<TicketSealer>,
    server: Arc<ServerKeys>,
}

impl Authenticator {
    /// Puts together what checks tokens, what checks tickets, and the server's keys. They never change.
    #[must_use]
    pub fn new(tokens: TokenVerifier, tickets: TicketSealer, server: ServerKeys) -> Self {
        let keyring = Keyring { tokens: Arc::new(tokens), tickets: Arc::new(tickets), server: Arc::new(server) };
        Self { keyring: RwLock::new(Arc::new(keyring)), source: None }
    }

    /// Reads the keys of `config.data_dir`. Missing ticket keys are made anew: clients log in without tickets then.
    ///
    /// # Errors
    /// A key cannot be read or is not a key.
    pub fn load(config: &Config, incarnation: Incarnation, now_ms: u64) -> Result<Self, KeyError> {
        keys::read_or_create_ticket_keys(&keys::ticket_key_path(&config.data_dir), now_ms)?;
        let (source, keyring) = Source::open(config, incarnation, now_ms)?;
        Ok(Self { keyring: RwLock::new(Arc::new(keyring)), source: Some(Mutex::new(source)) })
    }

    /// Reads again what has changed on disk. What cannot be used then is said once in the log, and what was before
    /// stays.
    pub fn refresh(&self, now_ms: u64) {
        let Some(source) = &self.source else { return };
        let mut source = source.lock();
        let before = self.keyring();
        if let Some(next) = source.refresh(&before, now_ms) {
            *self.keyring.write() = Arc::new(next);
        }
    }

    /// What a token says, if it is good.
    ///
    /// # Errors
    /// One of the token codes (3xxx).
    pub fn token(&self, token: &str, now_ms: u64) -> Result<TokenClaims, ErrorCode> {
        self.keyring().tokens.verify(token, now_ms)
    }

    /// What a ticket says, if it is good. It costs no signature and no storage read. Whoever asks checks that it is of
    /// the same kind of session: a plaintext one's has no fingerprint.
    ///
    /// # Errors
    /// One of the ticket codes (3xxx).
    pub fn open_ticket(&self, ticket: &[u8], now_ms: u64) -> Result<OpenedTicket, ErrorCode> {
        self.keyring().tickets.open(ticket, now_ms)
    }

    /// Seals a ticket for the next login.
    #[must_use]
    pub fn issue_ticket(&self, contents: &TicketContents, now_ms: u64) -> Ticket {
        self.keyring().tickets.seal(contents, now_ms)
    }

    /// The server's key of this number, if it is there and its time is not over.
    #[must_use]
    pub fn server_key(&self, id: u16) -> Option<Arc<ServerIdentity>> {
        self.keyring().server.find(id).map(|key| Arc::clone(&key.identity))
    }

    /// The server's key for clients that know none.
    #[must_use]
    pub fn current_server_key(&self) -> Arc<ServerIdentity> {
        Arc::clone(&self.keyring().server.current().identity)
    }

    fn keyring(&self) -> Arc<Keyring> {
        Arc::clone(&self.keyring.read())
    }
}

/// The directory of the keys inside a data directory.
#[must_use]
pub fn keys_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("keys")
}
