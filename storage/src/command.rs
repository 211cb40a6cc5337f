//! What a hub asks of its shards, and what they answer. Plain data.

use bytes::Bytes;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationId, DeviceId, InboxSeq, UserId};
use culver_protocol::message::Accepted;

pub use crate::key::{DedupKey, SenderKey};
use crate::record::Record;

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
    /// What the device has acknowledged; for a device that never did, the user's floor.
    pub cursor: InboxSeq,
}
