//! What a hub asks of its shards, and what they answer. Plain data.

use bytes::Bytes;
use culver_protocol::crypto::FINGERPRINT_LEN;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, UserId};
use culver_protocol::message::Accepted;

pub use crate::key::{DedupKey, SenderKey};
pub use crate::reader::{ConversationView, Fold, Folded};
use crate::record::{Record, Stream};

/// A message to be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// Who sends it.
    pub sender: UserId,
    /// From which device.
    pub device: DeviceId,
    /// The client's own id for it.
    pub client_message_id: ClientMessageId,
    /// Where to.
    pub conversation: ConversationId,
    /// The opaque payload, at most `PAYLOAD_LEN_MAX` bytes.
    pub payload: Bytes,
    /// The sender may have other devices: they get a copy.
    pub copy: bool,
}

impl Send {
    /// What names this message.
    #[must_use]
    pub fn dedup_key(&self) -> DedupKey {
        DedupKey {
            conversation: self.conversation,
            sender: self.sender,
            device: self.device,
            client_message_id: self.client_message_id,
        }
    }
}

/// What stands for a device's key: [`culver_protocol::crypto::fingerprint`] of it.
pub type Fingerprint = [u8; FINGERPRINT_LEN];

/// How a device has proved who it is, and so what its login may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It showed no key, on a connection that is not encrypted, and a token. It is linked, and registered by nobody: the
    /// key that it may have is left alone.
    PlaintextToken {
        /// When the token was issued, in seconds since 1970; 0: it does not say.
        issued_s: u64,
    },
    /// It showed no key, on a connection that is not encrypted, and a ticket: it must be linked already.
    PlaintextTicket {
        /// When the ticket was issued, in seconds since 1970.
        issued_s: u64,
    },
    /// It showed a ticket that names a key, which must be the one it is registered with.
    Ticket {
        /// When the ticket was issued, in seconds since 1970.
        issued_s: u64,
    },
    /// It showed a key, which must be the one it is registered with.
    Registered,
    /// It showed a key and a token that names both: it is registered with that key from now on.
    Token {
        /// When the token was issued, in seconds since 1970; 0: it does not say.
        issued_s: u64,
    },
}

/// What must be read from the disk before a command can be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Load {
    /// A user's row and true head.
    User(UserId),
    /// A conversation's row.
    Conversation(ConversationId),
    /// Whether a message was accepted before.
    Dedup(DedupKey),
    /// The greatest id that was ever accepted from a sender.
    Newest(SenderKey),
    /// What a user and the peer have, told and read of a conversation.
    Talk(UserId, ConversationId),
    /// The names of a user's devices.
    Names(UserId),
}

/// What a device acknowledged of a conversation: the last entry that somebody else sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acked {
    /// The conversation.
    pub conversation: ConversationId,
    /// The entry's place there.
    pub seq: ConversationSeq,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Apply this, then tell its effects when the batch under construction is durable.
    Apply(Record),
    /// Accepted before; `duplicate` is set. Tell it when the batch under construction is durable: the first copy may
    /// be in a batch that is not yet.
    Duplicate(Accepted),
    /// Nothing changes.
    Unchanged,
    /// Read this first ([`crate::reader::Read::Load`]), hand the result to `loaded`, then decide the command anew:
    /// it may wait again, for something else or because the result came too late to be used.
    Waits(Load),
    /// Refused.
    Reject(ErrorCode),
}

/// Something to look at that may have to be loaded first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View<T> {
    /// Here it is.
    Known(T),
    /// As [`Decision::Waits`].
    Waits(Load),
}

/// What a login sees of its user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserView {
    /// The last entry of the inbox, batches not yet durable included.
    pub head: InboxSeq,
    /// Entries up to here are no longer kept.
    pub floor: InboxSeq,
    /// What the device has acknowledged; for one that is not linked, where it would start.
    pub cursor: InboxSeq,
    /// Whether the device is linked.
    pub linked: bool,
    /// Whether other devices are.
    pub siblings: bool,
    /// Up to here the device lacks entries: they expired, or were there before it was linked, and it has acknowledged
    /// nothing since. 0: it lacks none.
    pub lost_through: InboxSeq,
    /// No receipt of the user's has a greater version.
    pub receipts_head: u64,
}

/// A device of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceView {
    /// The device.
    pub device: DeviceId,
    /// What it has acknowledged.
    pub cursor: InboxSeq,
    /// The day it last logged in: days since 1970.
    pub seen_day: u32,
    /// It has a key.
    pub is_registered: bool,
    /// It has a name, which is a row of its own: [`crate::shard::Shards::names`].
    pub is_named: bool,
}

/// How a stream stands at the shard that numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// The stream.
    pub stream: Stream,
    /// The last durable item.
    pub durable: u64,
    /// The last item that is durable where it goes.
    pub taken: u64,
}

/// The clock that entries expire by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpiryState {
    /// What it shows, in milliseconds since 1970.
    pub clock_ms: u64,
    /// The day it is for devices: days since 1970. Never ahead of either clock.
    pub today: u32,
    /// Entries from before this are expired; 0: none are.
    pub expire_before_ms: u64,
    /// The clock on the wall has jumped: nothing expires and no device is unlinked until it is back.
    pub stopped: bool,
}
