//! The keys on disk, and how those in memory follow them: what has changed is read again, and what cannot be used then
//! changes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use culver_protocol::id::Incarnation;
use tracing::{error, info, warn};

use super::files::{Watched, read, read_bytes};
use super::jwks::KeySet;
use super::server::ServerKeys;
use super::server_folder::ServerFolder;
use super::ticket_keys::TicketKeys;
use super::{KeyError, Keyring, TicketSealer, TokenVerifier, keys};
use crate::config::{self, Config};

const DAY_MS: u64 = 24 * 3600 * 1000;
/// How long before the end of a certificate it is said in the log.
const EXPIRY_NEAR_MS: u64 = 30 * DAY_MS;

/// The keys on disk.
#[derive(Debug)]
pub(super) struct Source {
    places: Places,
    token_files: Watched,
    ticket_files: Watched,
    server_files: Watched,
    /// Tokens are verified with a set of keys, not with the single key of old. A set that goes away is missed, not
    /// replaced.
    has_set: bool,
    expiry: Expiry,
}

/// Where they are, and what else is needed to make something of them.
#[derive(Debug)]
struct Places {
    token: config::Token,
    ticket: config::Ticket,
    incarnation: Incarnation,
    jwks: PathBuf,
    public_pem: PathBuf,
    tickets: PathBuf,
    server: ServerFolder,
}

/// How far away the end of the current server key's certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expiry {
    Far,
    Near,
    Over,
}

impl Source {
    /// Reads all keys for the first time.
    pub(super) fn open(config: &Config, incarnation: Incarnation, now_ms: u64) -> Result<(Self, Keyring), KeyError> {
        let places = Places {
            token: config.token.clone(),
            ticket: config.ticket,
            incarnation,
            jwks: config.data_dir.join(&config.token.jwks_file),
            public_pem: config.data_dir.join(&config.token.public_key_file),
            tickets: keys::ticket_key_path(&config.data_dir),
            server: ServerFolder::of(&config.data_dir),
        };
        // Looked at before they are read: what changes meanwhile is read again.
        let token_files = Watched::new(vec![places.jwks.clone(), places.public_pem.clone()], None);
        let ticket_files = Watched::new(vec![places.tickets.clone()], None);
        let folder = places.server.path().to_owned();
        let server_files = Watched::new(vec![places.server.root_public_path()], Some(folder));
        let (tokens, has_set) = places.tokens(false)?;
        let (tickets, server) = (Arc::new(places.tickets()?), Arc::new(places.server.read(now_ms)?));
        let mut source = Self { places, token_files, ticket_files, server_files, has_set, expiry: Expiry::Far };
        source.tell_expiry(&server, now_ms);
        Ok((source, Keyring { tokens: Arc::new(tokens), tickets, server }))
    }

    /// The keys after `before`, where anything has changed.
    pub(super) fn refresh(&mut self, before: &Keyring, now_ms: u64) -> Option<Keyring> {
        let Self { places, token_files, ticket_files, server_files, has_set, .. } = self;
        let mut next = before.clone();
        let tokens = token_files.read_if_changed(|| places.tokens(*has_set));
        let tickets = ticket_files.read_if_changed(|| places.tickets());
        let server = server_files.read_if_changed(|| places.server.read(now_ms));
        let is_changed = tokens.is_some() || tickets.is_some() || server.is_some();
        if let Some((tokens, is_set)) = tokens {
            info!(keys = tokens.key_count(), "the keys that tokens are verified with have changed");
            (next.tokens, *has_set) = (Arc::new(tokens), is_set);
        }
        if let Some(tickets) = tickets {
            info!(sealing = tickets.sealing_id(), keys = tickets.key_count(), "the ticket keys have changed");
            next.tickets = Arc::new(tickets);
        }
        // A key's time may have begun or ended since.
        let server = server.unwrap_or_else(|| before.server.at(now_ms));
        self.tell_expiry(&server, now_ms);
        let (current, ids) = (server.current().identity.id, server.ids());
        if !is_changed && current == before.server.current().identity.id && ids == before.server.ids() {
            return None;
        }
        if current != before.server.current().identity.id || ids != before.server.ids() {
            info!(current, ?ids, "the server keys have changed");
        }
        next.server = Arc::new(server);
        Some(next)
    }

    /// Says once that the current key's certificate comes to its end.
    fn tell_expiry(&mut self, keys: &ServerKeys, now_ms: u64) {
        let current = keys.current();
        let (id, left_ms) = (current.identity.id, current.not_after_ms.saturating_sub(now_ms));
        let expiry = match left_ms {
            0 => Expiry::Over,
            1..EXPIRY_NEAR_MS => Expiry::Near,
            _ => Expiry::Far,
        };
        if std::mem::replace(&mut self.expiry, expiry) == expiry {
            return;
        }
        match expiry {
            Expiry::Far => {}
            Expiry::Near => {
                let days = left_ms / DAY_MS;
                warn!(id, days, "the server key's certificate is soon over. Make another: culver keys rotate");
            }
            Expiry::Over => {
                error!(
                    id,
                    "the server key's certificate is over, and clients refuse it. Make another: culver keys rotate"
                );
            }
        }
    }
}

impl Places {
    /// What verifies tokens, and whether it is a set of keys. Without one, and where there was none before, it is the
    /// single key that earlier versions had.
    fn tokens(&self, had_set: bool) -> Result<(TokenVerifier, bool), KeyError> {
        if !had_set && !self.jwks.exists() && self.public_pem.exists() {
            let pem = read(&self.public_pem, "token.public_key_file names the file.")?;
            return Ok((TokenVerifier::new(&pem, &self.token)?, false));
        }
        let remedy = "Put the public keys of whoever makes tokens there (a JWK Set), or name it with token.jwks_file; \
                      `culver init` writes one for development.";
        let bytes = read_bytes(&self.jwks, remedy)?;
        let keys = KeySet::parse(&bytes).map_err(|fault| KeyError::Jwks { path: self.jwks.clone(), fault })?;
        Ok((TokenVerifier::with_keys(keys, &self.token), true))
    }

    fn tickets(&self) -> Result<TicketSealer, KeyError> {
        Ok(TicketSealer::with_keys(&TicketKeys::read(&self.tickets)?, self.ticket, self.incarnation))
    }
}
