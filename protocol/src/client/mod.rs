//! A whole client without its socket: it takes bytes and time in, and gives bytes, deadlines and events out.
//!
//! ```text
//!  Connecting ──connected──→ LoggingIn ──WELCOME──→ LoggedIn
//!     ↑    └──────failed───────┐  └────────┐            │ error, violation, deadline
//!   due, jittered              ↓           ↓            ↓
//!  BackingOff ←─────────────────disconnected──────── Closing ──→ Stopped, or waiting for a credential
//! ```
//!
//! Owns what must outlive a connection: the messages under way (`outbox`), the cursor and what was seen
//! (`inbox`), the credential and what encrypts (`login`), and the backoff. `link` and `calls` own what dies with one.
//! Never reads a clock, never makes a random number that its seed or its entropy does not determine, never blocks. All
//! times are microseconds on a monotonic clock of the caller's.

mod backoff;
mod calls;
mod config;
mod inbox;
mod keep_alive;
mod link;
mod login;
mod outbox;
mod phase;
mod receive;
mod seen;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::VecDeque;

use bytes::Bytes;
use prost::Message;

pub use self::config::{ClientConfig, ClientError, Credential, Encryption, Event, Goaway, SavedTicket, Violation};
pub use self::keep_alive::{KeepAliveMemory, NETWORKS_MAX, NetworkId, NetworkMemory};
pub use crate::handshake::client::ServerKey;

use self::backoff::{Backoff, Jitter};
use self::calls::Calls;
use self::inbox::Inbox;
use self::keep_alive::KeepAlives;
use self::link::Link;
use self::login::{Security, Shown, Standing};
use self::outbox::Outbox;
use self::phase::{Next, Phase};
use crate::id::{ClientMessageId, ConversationId, DeviceId, InboxSeq, UserId};
use crate::limits::{CLIENT_BODY_LEN_MAX, HEADER_LEN};
use crate::proto;

/// The sans-io client: see the module.
///
/// The caller's loop: act on every event of [`poll_event`](Self::poll_event), write what
/// [`transmit`](Self::transmit) holds, wait for the socket or for [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct Client {
    user: UserId,
    device: DeviceId,
    fetch: bool,
    name: Cow<'static, str>,
    keep_alive_s: u32,
    /// `None`: the interval stays as agreed.
    keep_alives: Option<Box<KeepAlives>>,
    credit_entries: u32,
    credit_bytes: u32,
    backoff_base_ms: u32,
    backoff_max_ms: u32,
    answer_timeout_us: u64,

    phase: Phase,
    /// The connection, in the phases that have one.
    link: Link,
    token: Option<String>,
    ticket: Option<Box<SavedTicket>>,
    /// `None`: everything travels in plaintext.
    security: Option<Box<Security>>,
    /// Of no meaning without encryption.
    standing: Standing,
    shown: Shown,
    inbox: Inbox,
    /// Every receipt up to this version is persisted by the application.
    receipts: u64,
    outbox: Outbox,
    calls: Calls,
    backoff: Backoff,
    jitter: Jitter,
    /// No reconnect before this time: what the server asked for.
    not_before_us: u64,
    /// The latest time a caller told.
    now_us: u64,
    events: VecDeque<Event>,
}

impl Client {
    /// A client that asks for a connection at once.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        let (token, ticket, standing) = match config.credential {
            Credential::Token(token) => (Some(token), None, Standing::Unknown),
            Credential::Ticket(ticket) => {
                let standing = Standing::of(&ticket);
                (None, Some(Box::new(ticket)), standing)
            }
            Credential::DeviceKey => (None, None, Standing::Registered),
        };
        let mut client = Self {
            user: config.user,
            device: config.device,
            fetch: config.fetch,
            name: config.name,
            keep_alive_s: config.keep_alive_s,
            keep_alives: config.keep_alives.map(|memory| Box::new(KeepAlives::new(&memory))),
            credit_entries: config.credit_entries,
            credit_bytes: config.credit_bytes,
            backoff_base_ms: config.backoff_base_ms,
            backoff_max_ms: config.backoff_max_ms,
            answer_timeout_us: u64::from(config.answer_timeout_ms) * 1000,
            phase: Phase::Connecting,
            link: Link::default(),
            token,
            ticket,
            security: config.encryption.map(|encryption| Box::new(Security::new(encryption))),
            standing,
            shown: Shown::default(),
            inbox: Inbox::new(config.cursor, config.incarnation),
            receipts: config.receipts,
            outbox: Outbox::default(),
            calls: Calls::default(),
            backoff: Backoff::default(),
            jitter: Jitter::new(config.seed),
            not_before_us: 0,
            now_us: 0,
            events: VecDeque::new(),
        };
        client.connect();
        client
    }

    /// The connection that `Connect` asked for is there: login and what is under way are ready to be written.
    pub fn handle_connected(&mut self, now_us: u64) {
        self.tick(now_us);
        if self.phase != Phase::Connecting {
            return;
        }
        self.phase = Phase::LoggingIn;
        self.link = Link::connected(self.now_us);
        self.inbox.handle_connected();
        self.outbox.forget_connection();
        self.log_in();
        if self.has_connection() {
            self.write_sends();
        }
    }

    /// Bytes came; any split of the stream will do. Nothing is read before `handle_connected` or after `Disconnect`.
    pub fn handle_bytes(&mut self, bytes: &[u8], now_us: u64) {
        self.tick(now_us);
        if !self.has_connection() {
            return;
        }
        self.link.handle_bytes(bytes, self.now_us);
        if let Some(keep_alives) = self.keep_alives.as_mut().filter(|_| !bytes.is_empty()) {
            keep_alives.heard(self.now_us);
        }
        self.read_records();
        if self.has_connection() {
            self.write_sends();
        }
    }

    /// The next thing the application should know or do.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if self.events.is_empty() {
            self.events = VecDeque::new();
        }
        event
    }

    /// The bytes to write to the connection, a due ACK among them.
    pub fn transmit(&mut self) -> &[u8] {
        self.flush_ack();
        self.link.outgoing()
    }

    /// The first `len` bytes of [`transmit`](Self::transmit) were written.
    ///
    /// # Panics
    /// If there were fewer: that is a bug of the caller.
    pub fn transmitted(&mut self, len: usize) {
        if let Some(keep_alives) = self.keep_alives.as_mut().filter(|_| len > 0) {
            keep_alives.sent(self.link.silent_since_us(), self.now_us);
        }
        self.link.transmitted(len, self.now_us);
        if self.has_connection() {
            self.write_sends();
        }
    }

    /// Sends a message, which is kept until it is answered, across any number of connections.
    /// `Sent` or `Rejected { retry: false }` will name it exactly once.
    ///
    /// # Errors
    /// The message was not taken, and nothing will come of it.
    pub fn send(
        &mut self,
        id: ClientMessageId,
        conversation: ConversationId,
        payload: Bytes,
        now_us: u64,
    ) -> Result<(), ClientError> {
        self.tick(now_us);
        if matches!(self.phase, Phase::Stopped | Phase::Closing(Next::Stop)) {
            return Err(ClientError::Stopped);
        }
        self.outbox.push(id, conversation, payload)?;
        if self.has_connection() {
            self.write_sends();
        }
        Ok(())
    }

    /// Asks the server for something. `Answer` or `Cancelled` will name the number given here, exactly once: a
    /// request is not sent again on another connection. An ACK that is due goes out before it.
    ///
    /// # Errors
    /// The request was not sent, and nothing will come of it.
    pub fn call(&mut self, request: proto::rpc::Request) -> Result<u64, ClientError> {
        match self.phase {
            Phase::LoggedIn => {}
            Phase::Stopped | Phase::Closing(Next::Stop) => return Err(ClientError::Stopped),
            _ => return Err(ClientError::NotLoggedIn),
        }
        let mut rpc = proto::Rpc { id: u64::MAX, request: Some(request) };
        if rpc.encoded_len() > CLIENT_BODY_LEN_MAX - HEADER_LEN {
            return Err(ClientError::RequestTooLong);
        }
        if !self.is_awaiting() {
            self.link.await_from(self.now_us);
        }
        rpc.id = self.calls.begin()?;
        // What is marked as read must have been acknowledged.
        self.flush_ack();
        self.link.write_rpc(&rpc, self.now_us);
        Ok(rpc.id)
    }

    /// The application has stored every receipt up to this version: the next login says so. Nothing is sent.
    /// After a `Gap` with `reset`, only receipts that came after it count.
    pub fn receipts_persisted(&mut self, version: u64) {
        self.receipts = self.receipts.max(version);
    }

    /// The application has stored every entry up to here. One cumulative ACK goes out with the next `transmit`.
    /// After a `Gap` with `reset`, only entries that came after it count.
    pub fn persisted(&mut self, through: InboxSeq) {
        self.inbox.persisted(through);
    }

    /// Writes the ACK that is due, if one is. `transmit` does it by itself.
    pub fn flush_ack(&mut self) {
        if self.phase != Phase::LoggedIn {
            return;
        }
        if let Some(through) = self.inbox.take_ack() {
            self.link.write_ack(through, self.now_us);
        }
    }

    /// Another credential, for the next login. A client that waits for one connects.
    pub fn set_credential(&mut self, credential: Credential) {
        match credential {
            Credential::Token(token) => {
                self.token = Some(token);
                // A refusal under way is about the one before.
                self.shown.token = false;
            }
            Credential::Ticket(ticket) => self.ticket = Some(Box::new(ticket)),
            Credential::DeviceKey => self.standing = Standing::Registered,
        }
        match self.phase {
            Phase::CredentialNeeded => self.connect(),
            Phase::Closing(Next::CredentialNeeded) => self.phase = Phase::Closing(Next::ReconnectNow),
            _ => {}
        }
    }

    /// Ends it: no reconnect. What `transmit` holds, a last ACK among it, may still be written before closing.
    pub fn close(&mut self) {
        self.flush_ack();
        match self.phase {
            Phase::LoggingIn | Phase::LoggedIn => {
                self.phase = Phase::Closing(Next::Stop);
                self.events.push_back(Event::Disconnect);
            }
            Phase::Closing(_) => self.phase = Phase::Closing(Next::Stop),
            Phase::Connecting | Phase::BackingOff { .. } | Phase::CredentialNeeded => self.phase = Phase::Stopped,
            Phase::Stopped => {}
        }
    }

    /// The device is on this network from now on: keep-alives are as this network wants them. A connection that has come
    /// over from another is looked at, and told what holds now. Nothing where keep-alives do not adapt.
    pub fn set_network(&mut self, network: NetworkId, now_us: u64) {
        self.tick(now_us);
        let is_other = self.keep_alives.as_mut().is_some_and(|keep_alives| keep_alives.set_network(network));
        if is_other && self.phase == Phase::LoggedIn {
            self.promise(true);
        }
    }

    /// What was found out of networks, to be given to the next client's [`ClientConfig::keep_alives`]. `None`: keep-alives
    /// do not adapt.
    #[must_use]
    pub fn keep_alive_memory(&self) -> Option<KeepAliveMemory> {
        self.keep_alives.as_ref().map(|keep_alives| keep_alives.memory(self.now_us))
    }

    /// Whether WELCOME has come on this connection.
    #[must_use]
    pub fn is_logged_in(&self) -> bool {
        self.phase == Phase::LoggedIn
    }

    /// How many messages are sent and not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.outbox.len()
    }

    /// Everything up to here is persisted.
    #[must_use]
    pub fn cursor(&self) -> InboxSeq {
        self.inbox.cursor()
    }

    /// Every receipt up to this version is persisted.
    #[must_use]
    pub fn receipts(&self) -> u64 {
        self.receipts
    }

    /// The data directory's identity that the cursor belongs to; keep it beside the cursor.
    #[must_use]
    pub fn incarnation(&self) -> crate::id::Incarnation {
        self.inbox.incarnation()
    }

    /// The ticket that the next login will show.
    #[must_use]
    pub fn ticket(&self) -> Option<&SavedTicket> {
        self.ticket.as_deref()
    }

    /// The server's key, where one was given or learned: what the next login without a ticket begins with.
    #[must_use]
    pub fn server_key(&self) -> Option<ServerKey> {
        self.security.as_ref().and_then(|security| security.server_key())
    }

    /// Whose client it is.
    #[must_use]
    pub fn user(&self) -> UserId {
        self.user
    }

    /// On which device.
    #[must_use]
    pub fn device(&self) -> DeviceId {
        self.device
    }

    fn tick(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        if let Some(security) = &mut self.security {
            security.tick(self.now_us);
        }
    }

    fn has_connection(&self) -> bool {
        matches!(self.phase, Phase::LoggingIn | Phase::LoggedIn)
    }

    /// Whether the server owes an answer on this connection.
    fn is_awaiting(&self) -> bool {
        self.outbox.awaiting() > 0 || self.calls.is_awaiting()
    }

    /// The interval that the next PING is to promise; 0: none other than what holds.
    pub(super) fn wanted_s(&self) -> u32 {
        let wanted_s = self.keep_alives.as_ref().map_or(0, |keep_alives| keep_alives.wanted_s());
        if self.link.keeps_alive_every(wanted_s) { 0 } else { wanted_s }
    }

    /// Promises what this network wants at once, if it is shorter than what holds; `always`: whatever it is.
    fn promise(&mut self, always: bool) {
        let wanted_s = self.wanted_s();
        if always || self.link.keeps_alive_less_than_every(wanted_s) {
            self.link.ping(wanted_s, self.now_us);
        }
    }

    fn write_sends(&mut self) {
        if !self.is_awaiting() {
            self.link.await_from(self.now_us);
        }
        self.link.write_sends(&mut self.outbox, self.now_us);
    }
}

fn decode<M: Message + Default>(kind: u8, body: Bytes) -> Result<M, Violation> {
    M::decode(body).map_err(|_| Violation::Protobuf { kind })
}

fn sixteen<'a, T: TryFrom<&'a [u8]>>(bytes: &'a [u8]) -> Result<T, Violation> {
    T::try_from(bytes).map_err(|_| Violation::Id { len: bytes.len() })
}
