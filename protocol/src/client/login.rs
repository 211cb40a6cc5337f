//! How a client logs in: what it shows, by which handshake, and what a refusal leaves to show.
//!
//! ```text
//!  a ticket with its secret   → ticket handshake ──refused──┐
//!  else the server's key      → Noise IK ←──────────────────┤
//!  else                       → Noise XX ←──no such key─────┘   and the key learned is kept
//! ```
//!
//! By IK and XX a device that is registered shows its own key alone. A token is for one that is not: kept until the
//! server says so.
//!
//! Until there are keys anybody may write to a client. So what comes in clear takes nothing from it but what the next
//! handshake gives back: a ticket, or the server's key. It never stops the client, and never asks for a credential.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use zeroize::Zeroizing;

use super::link::Incoming;
use super::{Client, Encryption, Event, Next, Phase, SavedTicket, Violation, decode};
use crate::crypto::{KEY_LEN, Secret, hkdf};
use crate::error::ErrorCode;
use crate::handshake::client::{self as handshake, How, ServerKey};
use crate::limits::{HANDSHAKE_LEN_MAX, LOGIN_RETRY_MS_MAX, LOGIN_RETRY_MS_MIN, TAG_LEN, TICKET_LEN_MAX};
use crate::proto;
use crate::record::RecordType;

/// Longest login that every handshake message has room for: beside a ticket and its length, or two keys, with their
/// tags.
const SEALED_LOGIN_LEN_MAX: usize = HANDSHAKE_LEN_MAX - (1 + TICKET_LEN_MAX) - 2 * (KEY_LEN + TAG_LEN);

/// What a client with encryption keeps beside its connections.
pub(super) struct Security {
    encryption: Encryption,
    /// How many handshakes were begun: no two get the same randomness.
    handshakes: u64,
    /// The first time that the caller told.
    began_us: Option<u64>,
}

/// What is known of the device's own key, as a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing.
    Unknown,
    /// The device has logged in with it, or so the application says.
    Registered,
    /// The server does not know it: a token is needed.
    Refused,
}

impl Security {
    pub(super) fn new(encryption: Encryption) -> Self {
        Self { encryption, handshakes: 0, began_us: None }
    }

    pub(super) fn tick(&mut self, now_us: u64) {
        self.began_us.get_or_insert(now_us);
    }

    pub(super) fn server_key(&self) -> Option<ServerKey> {
        self.encryption.server
    }

    /// Milliseconds since 1970.
    fn unix_ms(&self, now_us: u64) -> u64 {
        let passed_us = now_us.saturating_sub(self.began_us.unwrap_or(now_us));
        self.encryption.unix_ms.saturating_add(passed_us / 1000)
    }

    /// A key whose certificate's time is over is asked for again.
    fn forget_expired(&mut self, now_us: u64) {
        if self.encryption.server.is_some_and(|server| server.not_after_ms <= self.unix_ms(now_us)) {
            self.encryption.server = None;
        }
    }

    fn next_entropy(&mut self) -> Secret {
        let number = self.handshakes.to_be_bytes();
        self.handshakes += 1;
        hkdf(&number, self.encryption.entropy.as_slice(), b"culver client")
    }

    fn how(&self, ticket: Option<&SavedTicket>) -> How {
        let own = Arc::clone(&self.encryption.own);
        match (ticket, self.encryption.server) {
            (Some(SavedTicket { bytes, secret: Some(secret) }), _) => How::Ticket {
                ticket: bytes.to_vec(),
                secret: secret.clone(),
                forward_secret: self.encryption.forward_secret,
            },
            (_, Some(server)) => How::Ik { own, server },
            (_, None) => How::Xx { own, roots: self.encryption.roots },
        }
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security")
            .field("encryption", &self.encryption)
            .field("handshakes", &self.handshakes)
            .finish_non_exhaustive()
    }
}

impl Standing {
    /// Of a device that has this ticket.
    pub(super) fn of(ticket: &SavedTicket) -> Self {
        if ticket.secret.is_some() { Self::Registered } else { Self::Unknown }
    }
}

/// What the login under way shows: what a refusal is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    ticket: bool,
    pub(super) token: bool,
    /// The device's key, with neither.
    key: bool,
    /// That the client knows the server's key.
    server_key: bool,
}

impl Client {
    /// Writes what opens a connection.
    pub(super) fn log_in(&mut self) {
        if self.security.is_some() {
            self.begin_handshake();
            return;
        }
        let ticket = self.ticket.is_some();
        self.shown = Shown { ticket, token: !ticket && self.token.is_some(), key: false, server_key: false };
        let login = self.login();
        self.link.write_login(&login, self.now_us);
    }

    fn begin_handshake(&mut self) {
        let ticket = self.ticket.as_deref();
        let security = self.security.as_mut().expect("the caller has looked");
        security.forget_expired(self.now_us);
        let how = security.how(ticket);
        let (suite, entropy) = (security.encryption.suite, security.next_entropy());
        let ticket = matches!(how, How::Ticket { .. });
        let token = !ticket && self.token.is_some() && self.standing != Standing::Registered;
        self.shown = Shown { ticket, token, key: !ticket && !token, server_key: matches!(how, How::Ik { .. }) };
        let login = Zeroizing::new(self.login().encode_to_vec());
        if login.len() > SEALED_LOGIN_LEN_MAX {
            // As a server would say of it, could it be sent.
            self.events.push_back(Event::Stopped { code: ErrorCode::BadHandshake.number() });
            self.disconnect(Next::Stop);
            return;
        }
        match handshake::begin(&how, suite, &login, entropy) {
            Ok((preamble, message, waiting)) => self.link.begin_handshake(preamble, &message, suite, waiting),
            Err(error) => {
                // Of what was kept, this is of no use: without it.
                assert!(self.forget_shown(), "Noise XX needs nothing that was kept: {error}");
                self.begin_handshake();
            }
        }
    }

    fn login(&self) -> proto::Login {
        use proto::login::Credential;
        let is_encrypted = self.security.is_some();
        let credential = match (&self.ticket, &self.token) {
            // The handshake shows it, outside the login.
            _ if is_encrypted && self.shown.ticket => None,
            (Some(ticket), _) if self.shown.ticket => Some(Credential::Ticket(ticket.bytes.clone())),
            (_, Some(token)) if self.shown.token => Some(Credential::Token(token.clone())),
            _ => None,
        };
        let by_key = self.shown.key;
        proto::Login {
            credential,
            cursor: self.inbox.cursor().0,
            incarnation: self.inbox.incarnation().0,
            keep_alive_s: match self.keep_alives.as_ref().map_or(0, |keep_alives| keep_alives.wish_s()) {
                0 => self.keep_alive_s,
                found_s => found_s,
            },
            credit_entries: self.credit_entries,
            credit_bytes: self.credit_bytes,
            client: self.name.to_string(),
            fetch: self.fetch,
            receipts: self.receipts,
            user: if by_key { self.user.0 } else { 0 },
            device: if by_key { self.device.0.into() } else { 0 },
        }
    }

    /// What was shown is of no use any more, save the token: the next login does without. `false`: there was nothing.
    fn forget_shown(&mut self) -> bool {
        if self.shown.ticket {
            self.ticket = None;
        } else if self.shown.server_key {
            self.keep_server_key(None);
        } else {
            return false;
        }
        true
    }

    fn keep_server_key(&mut self, server: Option<ServerKey>) {
        if let Some(security) = &mut self.security {
            security.encryption.server = server;
        }
    }

    /// A record in clear, on a connection that should have none but the server's handshake message.
    pub(super) fn handle_hint(&mut self, incoming: Incoming) -> Result<(), Violation> {
        let Incoming { kind, body, .. } = incoming;
        match RecordType::from_number(kind) {
            Some(RecordType::Handshake) => self.handle_handshake(&body),
            Some(RecordType::Error) => {
                self.handle_refusal_in_clear(decode(kind, body)?);
                Ok(())
            }
            _ => Err(Violation::OutOfState { kind }),
        }
    }

    fn handle_handshake(&mut self, answer: &Bytes) -> Result<(), Violation> {
        let now_us = self.now_us;
        let unix_ms = self.security.as_ref().map_or(0, |security| security.unix_ms(now_us));
        let certificate = self.link.finish_handshake(answer, unix_ms, now_us)?;
        if let Some(certificate) = certificate {
            let server = ServerKey::from(certificate);
            self.keep_server_key(Some(server));
            self.events.push_back(Event::ServerKey(server));
        }
        Ok(())
    }

    /// An error from whomever. It ends this connection; what it may change about the next is which handshake that
    /// begins with, and when, within what the client waits by itself.
    fn handle_refusal_in_clear(&mut self, error: proto::Error) {
        let code = ErrorCode::from_number(error.code);
        if !self.take_place(&error) {
            let retry_ms = error.retry_after_ms.min(self.backoff_max_ms);
            self.not_before_us = self.now_us.saturating_add(u64::from(retry_ms) * 1000);
        }
        self.events.push_back(Event::ServerError(error));
        let is_at_once = match code {
            Some(ErrorCode::ServerKeyUnknown) => self.shown.server_key,
            Some(code) if is_about_ticket(code) => self.shown.ticket,
            _ => false,
        };
        // A kept secret or key that is wrong, or a handshake that is not offered, would be refused for ever.
        let is_about_handshake = matches!(
            code,
            Some(ErrorCode::HandshakeFailed | ErrorCode::HandshakeUnsupported | ErrorCode::BadHandshake)
        );
        if is_at_once || is_about_handshake {
            self.forget_shown();
        }
        self.disconnect(if is_at_once { Next::ReconnectNow } else { Next::Reconnect });
    }

    /// The server has no room for this login, and may have said when it will: that time is this client's own, for the
    /// server has spread its clients already. Not before it, and a tenth later at most. From whomever: it takes no longer
    /// than the longest that a server says. Whether there is such a time.
    pub(super) fn take_place(&mut self, error: &proto::Error) -> bool {
        let code = ErrorCode::from_number(error.code);
        let is_about_room = matches!(code, Some(ErrorCode::LoginsBusy | ErrorCode::ConnectionsFull));
        if !is_about_room || error.retry_after_ms < LOGIN_RETRY_MS_MIN {
            return false;
        }
        let told_us = u64::from(error.retry_after_ms.min(LOGIN_RETRY_MS_MAX)) * 1000;
        let wait_us = self.jitter.between(told_us, told_us + told_us / 10);
        self.not_before_us = self.now_us.saturating_add(wait_us);
        self.backoff.give_place();
        true
    }

    /// The server itself refuses what the login showed, or asks for a token: what else is there to show?
    pub(super) fn handle_refusal(&mut self, code: u32) -> Next {
        // The one shown, or the one of a WELCOME that came before this.
        self.ticket = None;
        if self.shown.token {
            self.token = None;
        }
        let known = ErrorCode::from_number(code);
        if self.shown.key || known == Some(ErrorCode::DeviceUnknown) {
            self.standing = Standing::Refused;
        }
        let is_of_ticket = self.shown.ticket && known.is_some_and(is_about_ticket);
        // Whoever kept a token until its end may have registered with it. After WELCOME the server has looked.
        let is_of_old_token =
            self.shown.token && known == Some(ErrorCode::TokenExpired) && self.phase == Phase::LoggingIn;
        let is_key_untried = self.security.is_some() && self.standing != Standing::Refused;
        if self.token.is_some() || (is_key_untried && (is_of_ticket || is_of_old_token)) {
            return Next::ReconnectNow;
        }
        self.events.push_back(Event::CredentialNeeded { code });
        Next::CredentialNeeded
    }
}

fn is_about_ticket(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::TicketExpired | ErrorCode::TicketStale | ErrorCode::TicketInvalid)
}
