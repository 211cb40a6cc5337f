//! What a client is told at its start, and what it tells its application.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use super::keep_alive::KeepAliveMemory;
use crate::crypto::{KeyPair, Secret, Suite, are_equal};
use crate::error::ErrorCode;
use crate::handshake::HandshakeError;
use crate::handshake::certificate::Roots;
use crate::handshake::client::ServerKey;
use crate::id::{ClientMessageId, DeviceId, InboxSeq, Incarnation, UserId};
use crate::limits::{CLIENT_BODY_LEN_MAX, CLIENT_IN_FLIGHT_MAX, PAYLOAD_LEN_MAX, RPCS_IN_FLIGHT_MAX};
use crate::message::Accepted;
use crate::proto;
use crate::record::FrameError;

/// What proves who the client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A JWT.
    Token(String),
    /// The ticket of an earlier WELCOME.
    Ticket(SavedTicket),
    /// Nothing but the device's key, which an earlier login with a token has registered: with encryption only.
    DeviceKey,
}

/// A ticket, and what makes it of use.
#[derive(Clone, Default)]
pub struct SavedTicket {
    /// As WELCOME gave it.
    pub bytes: Bytes,
    /// What it was given with, on an encrypted connection: without it no encrypted login can show the ticket.
    pub secret: Option<Secret>,
}

impl From<Bytes> for SavedTicket {
    /// A ticket of a plaintext connection.
    fn from(bytes: Bytes) -> Self {
        Self { bytes, secret: None }
    }
}

impl PartialEq for SavedTicket {
    fn eq(&self, other: &Self) -> bool {
        let has_same_secret = match (&self.secret, &other.secret) {
            (Some(own), Some(others)) => are_equal(own.as_slice(), others.as_slice()),
            (None, None) => true,
            _ => false,
        };
        self.bytes == other.bytes && has_same_secret
    }
}

impl Eq for SavedTicket {}

impl fmt::Debug for SavedTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SavedTicket").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// How a client encrypts. It chooses its handshake by what it has: a ticket with its secret, a server's key, or neither
/// (Noise XX, which teaches it the key). It never connects without encryption.
#[derive(Clone)]
pub struct Encryption {
    /// The cipher of handshakes and records.
    pub suite: Suite,
    /// The device's static key: its identity.
    pub own: Arc<KeyPair>,
    /// Whose signature makes a server's key good.
    pub roots: Roots,
    /// The server's key, as an earlier [`Event::ServerKey`] told it. One whose time is over is not used.
    pub server: Option<ServerKey>,
    /// Logins with a ticket take one Diffie-Hellman more, and what is said after them stays secret even when the
    /// server's keys are stolen later.
    pub forward_secret: bool,
    /// Where the randomness of all handshakes comes from: fresh from the system's generator for **each** client, never
    /// stored, never copied into a second one. Two clients with the same would seal different things with one key.
    pub entropy: Secret,
    /// Milliseconds since 1970 at the first time that the caller tells: certificates are judged by it, and by what has
    /// passed since.
    pub unix_ms: u64,
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encryption")
            .field("suite", &self.suite)
            .field("own", &self.own)
            .field("server", &self.server.map(|server| server.id))
            .field("forward_secret", &self.forward_secret)
            .finish_non_exhaustive()
    }
}

/// How a client starts.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Whose inbox it is.
    pub user: UserId,
    /// On which device.
    pub device: DeviceId,
    /// The first login's credential.
    pub credential: Credential,
    /// The highest inbox seq that the application has persisted; 0: none.
    pub cursor: InboxSeq,
    /// The server data that the cursor belongs to; 0: none known.
    pub incarnation: Incarnation,
    /// The highest receipt version that the application has persisted; 0: none.
    pub receipts: u64,
    /// Logs in beside the device's session instead of in its place.
    pub fetch: bool,
    /// Wanted seconds between keep-alives; 0: the server's default.
    pub keep_alive_s: u32,
    /// Keep-alives adapt to the network, beginning with what was found out before. `None`: they stay as agreed at login.
    pub keep_alives: Option<KeepAliveMemory>,
    /// Wanted delivery window in entries; 0: the default.
    pub credit_entries: u32,
    /// Wanted delivery window in bytes; 0: the default.
    pub credit_bytes: u32,
    /// Where all jitter comes from.
    pub seed: u64,
    /// Name and version, for the operator's eyes.
    pub name: Cow<'static, str>,
    /// Longest wait before the first reconnect; it doubles with each failure.
    pub backoff_base_ms: u32,
    /// Longest wait before any reconnect, save what the server asks for.
    pub backoff_max_ms: u32,
    /// How long a login, a PONG or the answer to a SEND may take before the client looks whether the server lives.
    pub answer_timeout_ms: u32,
    /// `None`: everything travels in plaintext.
    pub encryption: Option<Encryption>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            user: UserId(0),
            device: DeviceId(0),
            credential: Credential::Token(String::new()),
            cursor: InboxSeq(0),
            incarnation: Incarnation(0),
            receipts: 0,
            fetch: false,
            keep_alive_s: 0,
            keep_alives: None,
            credit_entries: 0,
            credit_bytes: 0,
            seed: 0,
            name: Cow::Borrowed(concat!("culver-protocol/", env!("CARGO_PKG_VERSION"))),
            backoff_base_ms: 100,
            backoff_max_ms: 30_000,
            answer_timeout_ms: 15_000,
            encryption: None,
        }
    }
}

/// A server asks its client to leave.
#[derive(Clone, Debug, PartialEq)]
pub struct Goaway {
    /// What it said. Where it names alternates, the application may open the next connection to one of them.
    pub asked: proto::Goaway,
    /// When the client leaves, chosen from the span named: a `Disconnect` comes then, and at once a `Connect`. If the
    /// connection ends earlier, the `Connect` comes no sooner.
    pub leave_us: u64,
}

/// What the application learns, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Open a connection now and call `handle_connected`, or `handle_disconnected` if that fails.
    Connect,
    /// Close the connection and call `handle_disconnected`.
    Disconnect,
    /// The server has shown a key, certified by a root: keep it, with its end, for the next client's [`Encryption::server`].
    ServerKey(ServerKey),
    /// The server knows who this is; entries follow.
    LoggedIn(proto::Welcome),
    /// A message was accepted. The one final answer to a `send`, beside `Rejected { retry: false }`.
    Sent(Accepted),
    /// A message was rejected.
    Rejected {
        /// Which.
        id: ClientMessageId,
        /// Why: one of [`ErrorCode`], or a number this code does not know.
        code: u32,
        /// For now: the client sends it again by itself, and another answer follows. Otherwise for good.
        retry: bool,
    },
    /// An entry not seen before, a copy of what another device of the user sent among them. Store it, then call
    /// `persisted`.
    Delivered(proto::Entry),
    /// Entries are gone, or the cursor meant nothing to the server: see the schema.
    Gap(proto::Gap),
    /// What became of messages, and what was read. Store each mark by maximum, then call `receipts_persisted`.
    Receipt(proto::Receipt),
    /// Entries wait: how many, and the conversations they belong to. They follow as `Delivered`.
    SyncStart(proto::SyncStart),
    /// What had waited has all come.
    SyncDone(proto::SyncDone),
    /// The answer to a `call`: what was asked for, or an error's code.
    Answer {
        /// As `call` gave it.
        id: u64,
        /// The error is one of [`ErrorCode`], or a number this code does not know.
        result: Result<proto::rpc_result::Result, u32>,
    },
    /// The connection ended before the answer to a `call`: whether it was done is not known.
    Cancelled {
        /// As `call` gave it.
        id: u64,
    },
    /// The server asks to reconnect; the client does so by itself, within the span named.
    Goaway(Goaway),
    /// An error the server told; what follows from it, the client does by itself. One that came before there were keys
    /// may be anybody's: it ends no more than the connection.
    ServerError(proto::Error),
    /// The server broke the protocol. A `Disconnect` follows, and a reconnect after a while.
    Violation(Violation),
    /// The client will not reconnect by itself any more.
    Stopped {
        /// The error that stopped it.
        code: u32,
    },
    /// The credential is refused, or there is none: call `set_credential`.
    CredentialNeeded {
        /// The error that refused it.
        code: u32,
    },
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    /// Nothing like it may be sent.
    #[error("the payload is longer than {PAYLOAD_LEN_MAX} bytes")]
    PayloadTooLong,
    /// Send again when answers have come.
    #[error("{CLIENT_IN_FLIGHT_MAX} messages are under way already")]
    InFlightFull,
    /// The same id is still unanswered.
    #[error("a message of this id is under way already")]
    IdUnderWay,
    /// A request goes out on a connection that is logged in, or not at all.
    #[error("not logged in")]
    NotLoggedIn,
    /// Call again when answers have come.
    #[error("{RPCS_IN_FLIGHT_MAX} requests are under way already")]
    CallsFull,
    /// Nothing like it may be sent.
    #[error("the request is longer than {CLIENT_BODY_LEN_MAX} bytes")]
    RequestTooLong,
    /// The client was closed or stopped.
    #[error("the client is stopped")]
    Stopped,
}

/// How a server broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// The framing is broken.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The server's handshake message is not good, or not from a server that a root has certified.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// A record's protobuf cannot be read.
    #[error("the protobuf of a record of type {kind:#04x} cannot be read")]
    Protobuf {
        /// The record's type.
        kind: u8,
    },
    /// A record that may not come now, or never to a client.
    #[error("a record of type {kind:#04x} is not allowed here")]
    OutOfState {
        /// The record's type.
        kind: u8,
    },
    /// A WELCOME names a version that was not offered.
    #[error("the server speaks version {version}, which was not offered")]
    Version {
        /// The version named.
        version: u32,
    },
    /// A client message id or a conversation id that is not 16 bytes.
    #[error("an id of {len} bytes instead of 16")]
    Id {
        /// Its length.
        len: usize,
    },
    /// A DELIVER leaves out what was never sent.
    #[error("delivery goes on after {previous}, but only {position} has come")]
    Hole {
        /// The `previous` of the DELIVER.
        previous: u64,
        /// What had come.
        position: u64,
    },
    /// Entries not in inbox order.
    #[error("entry {inbox_seq} after {previous}")]
    Order {
        /// The entry.
        inbox_seq: u64,
        /// What it came after.
        previous: u64,
    },
}

/// The number of an error that no server told: the client has no credential at all.
pub(super) const NO_CREDENTIAL: u32 = ErrorCode::TokenMalformed as u32;
