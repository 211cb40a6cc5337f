//! Records: what was decided, with all time, ids and places resolved. `apply` needs nothing else.

use bytes::Bytes;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::message::{Accepted, EntryView};

use crate::key::DedupKey;
use crate::value::DedupRow;

/// One entry of an inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxEntry {
    /// Its place in the inbox.
    pub inbox_seq: InboxSeq,
    /// The conversation it belongs to.
    pub conversation: ConversationId,
    /// Its place there.
    pub conversation_seq: ConversationSeq,
    /// The message's id.
    pub message_id: MessageId,
    /// When it was accepted, in milliseconds since 1970: always the time in its id.
    pub server_time_ms: u64,
    /// Who sent it.
    pub sender: UserId,
    /// From which device.
    pub sender_device: DeviceId,
    /// The opaque payload.
    pub payload: Bytes,
}

impl InboxEntry {
    /// The entry, its payload borrowed.
    #[must_use]
    pub fn view(&self) -> EntryView<'_> {
        EntryView {
            inbox_seq: self.inbox_seq,
            conversation: self.conversation,
            conversation_seq: self.conversation_seq,
            message_id: self.message_id,
            server_time_ms: self.server_time_ms,
            sender: self.sender,
            sender_device: self.sender_device,
            payload: &self.payload,
        }
    }
}

impl From<EntryView<'_>> for InboxEntry {
    fn from(view: EntryView<'_>) -> Self {
        Self {
            inbox_seq: view.inbox_seq,
            conversation: view.conversation,
            conversation_seq: view.conversation_seq,
            message_id: view.message_id,
            server_time_ms: view.server_time_ms,
            sender: view.sender,
            sender_device: view.sender_device,
            payload: Bytes::copy_from_slice(view.payload),
        }
    }
}

/// An accepted direct message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageRecord {
    /// Whose inbox it goes to; the sender's own for a message to oneself.
    pub recipient: UserId,
    /// The sender's id for it.
    pub client_message_id: ClientMessageId,
    /// The entry of that inbox.
    pub entry: InboxEntry,
}

impl MessageRecord {
    /// What the sender is told.
    #[must_use]
    pub fn accepted(&self) -> Accepted {
        self.dedup_row().accepted(self.client_message_id, false)
    }

    /// What names this message.
    #[must_use]
    pub fn dedup_key(&self) -> DedupKey {
        DedupKey {
            conversation: self.entry.conversation,
            sender: self.entry.sender,
            device: self.entry.sender_device,
            client_message_id: self.client_message_id,
        }
    }

    pub(crate) fn dedup_row(&self) -> DedupRow {
        let own = if self.recipient == self.entry.sender { self.entry.inbox_seq } else { InboxSeq(0) };
        DedupRow { conversation_seq: self.entry.conversation_seq, message_id: self.entry.message_id, inbox_seq: own }
    }
}

impl DedupRow {
    /// What the sender of the message with this row is told.
    #[must_use]
    pub fn accepted(&self, client_message_id: ClientMessageId, duplicate: bool) -> Accepted {
        Accepted {
            client_message_id,
            conversation_seq: self.conversation_seq,
            message_id: self.message_id,
            server_time_ms: self.message_id.time_ms(),
            inbox_seq: self.inbox_seq,
            duplicate,
        }
    }
}

/// What was decided.
///
/// Time reservations are no records of their own: `apply` derives them from the time of a message, and writes them
/// in the same batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A message was accepted.
    Message(MessageRecord),
    /// A device acknowledged everything up to `cursor`.
    CursorMoved {
        /// The user.
        user: UserId,
        /// The device.
        device: DeviceId,
        /// Its new cursor, beyond its last.
        cursor: InboxSeq,
        /// The user's floor thereafter.
        floor: InboxSeq,
    },
}
