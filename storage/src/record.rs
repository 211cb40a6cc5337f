//! Records: what was decided, with all time, ids and places resolved. `apply` needs nothing else.

use bytes::Bytes;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::message::{Accepted, EntryView, MarkView};

use crate::command::{Acked, Fingerprint};
use crate::key::{DedupKey, ShardId};
use crate::value::{DedupRow, ListRow};

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

/// A sequence of items from one shard to another: numbered densely from 1, applied in order and once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stream {
    /// The shard that numbers it.
    pub from: ShardId,
    /// The shard that takes it.
    pub to: ShardId,
    /// What it carries.
    pub lane: Lane,
}

/// What a stream carries. The numbers are a stored format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Lane {
    /// Entries, from a conversation's home shard.
    Message = 1,
    /// Receipts, from the shard of the user who gives them.
    Receipt = 2,
}

impl Lane {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Message, Self::Receipt];

    /// The lane with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| *lane as u8 == number)
    }
}

/// Where an entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Into an inbox of this hub, here.
    Local(InboxSeq),
    /// Into a stream, under this number.
    Stream(Stream, u64),
}

/// What a stream carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An entry for an inbox. Its place is given out where it arrives.
    Entry {
        /// Whose inbox.
        user: UserId,
        /// The entry; its inbox place is 0.
        entry: InboxEntry,
    },
    /// News for the one whose messages they are; 0: nothing new.
    Receipt {
        /// Who is told.
        user: UserId,
        /// In which conversation.
        conversation: ConversationId,
        /// Persisted by a device of the other's up to here.
        delivered: ConversationSeq,
        /// Read by the other up to here.
        read: ConversationSeq,
        /// Dropped undelivered: what follows the first, up to the second.
        expired: (ConversationSeq, ConversationSeq),
    },
}

/// An item on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// In which stream.
    pub stream: Stream,
    /// Its number there.
    pub n: u64,
    /// What it is.
    pub item: Item,
}

/// What became of an item that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It has a place in an inbox.
    Entry {
        /// Whose inbox.
        user: UserId,
        /// The entry with its place.
        entry: InboxEntry,
    },
    /// It is news.
    Receipt {
        /// For whom.
        user: UserId,
        /// What is new.
        mark: MarkView,
        /// The version of that.
        version: u64,
    },
    /// No device waits for the copy, or the receipt says nothing new.
    Nothing,
}

/// Messages that were dropped before any device of their recipient had them: what follows `after`, up to `through`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// In which conversation.
    pub conversation: ConversationId,
    /// Not this one, but what follows it.
    pub after: ConversationSeq,
    /// The last.
    pub through: ConversationSeq,
}

/// An accepted direct message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageRecord {
    /// The sender's id for it.
    pub client_message_id: ClientMessageId,
    /// Whose inbox it goes to; the sender's own for a message to oneself.
    pub recipient: UserId,
    /// The entry: with its place in the recipient's inbox if that is given out here, else with 0.
    pub entry: InboxEntry,
    /// Where it goes.
    pub place: Place,
    /// Where the copy for the sender's other devices goes, if there is one.
    pub copy: Option<Place>,
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
        let own = if self.recipient == self.entry.sender { Some(self.place) } else { self.copy };
        let inbox_seq = match own {
            Some(Place::Local(seq)) => seq,
            Some(Place::Stream(..)) | None => InboxSeq(0),
        };
        DedupRow { conversation_seq: self.entry.conversation_seq, message_id: self.entry.message_id, inbox_seq }
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
/// Time reservations, rows of streams and receipts on their way are no records of their own: `apply` and `seal` derive
/// them, and write them in the same batch. A receipt that is given at once is a record, for that hangs on what is in
/// memory, and nothing that is derived may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A message was accepted.
    Message(MessageRecord),
    /// The next item of a stream arrived.
    Arrived {
        /// The stream.
        stream: Stream,
        /// The item's number there: the one after the watermark.
        n: u64,
        /// What became of it.
        item: Arrival,
    },
    /// A device acknowledged everything up to `cursor`, or stepped over its own, or over what it will not get again.
    CursorMoved {
        /// The user.
        user: UserId,
        /// The device.
        device: DeviceId,
        /// Its new cursor, beyond its last.
        cursor: InboxSeq,
        /// It was a step: the device has acknowledged nothing.
        step: bool,
        /// What no device of the user had before, from others: the last of each conversation.
        delivered: Vec<Acked>,
    },
    /// A device has a cursor from now on.
    DeviceLinked {
        /// The user.
        user: UserId,
        /// The device.
        device: DeviceId,
        /// Where it starts.
        cursor: InboxSeq,
        /// The day it was seen: days since 1970.
        day: u32,
        /// The key that it is registered with.
        fingerprint: Option<Fingerprint>,
    },
    /// A device that is linked has this key from now on.
    DeviceRegistered {
        /// The user.
        user: UserId,
        /// The device.
        device: DeviceId,
        /// The key.
        fingerprint: Fingerprint,
        /// It had another, which is forgotten.
        replaces: bool,
        /// The day it was seen: days since 1970.
        day: u32,
    },
    /// A device was removed: cursor, key and name are forgotten.
    DeviceRemoved {
        /// The user.
        user: UserId,
        /// The device.
        device: DeviceId,
        /// Tokens issued before this register none of the user's devices, in seconds since 1970.
        tokens_from_s: u64,
    },
    /// A device has this name from now on.
    DeviceNamed {
        /// The user.
        user: UserId,
        /// The device.
        device: DeviceId,
        /// The name; empty: none.
        name: String,
    },
    /// A device was seen on a later day than before.
    DeviceSeen {
        /// The user.
        user: UserId,
        /// The device.
        device: DeviceId,
        /// The day: days since 1970.
        day: u32,
    },
    /// A user read a conversation.
    MarkedRead {
        /// The user.
        user: UserId,
        /// The conversation.
        conversation: ConversationId,
        /// Up to here.
        seq: ConversationSeq,
        /// The version of that among the user's receipts.
        version: u64,
        /// The peer is told.
        tell: bool,
    },
    /// A user turned read receipts on or off.
    ReadReceiptsSet {
        /// The user.
        user: UserId,
        /// Whether they are on.
        on: bool,
    },
    /// A floor rose, or devices were unlinked, or both.
    FloorMoved {
        /// The user.
        user: UserId,
        /// The floor thereafter; cursors below it are raised to it.
        floor: InboxSeq,
        /// What the entries below it had counted.
        freed_bytes: u64,
        /// The last entry of each conversation among them.
        lists: Vec<(ConversationId, ListRow)>,
        /// What their senders are told.
        expired: Vec<Expired>,
        /// Devices that have no cursor any more.
        unlinked: Vec<DeviceId>,
    },
    /// A user of the same hub was told at once what another's devices have and what the other has read: with the
    /// batch that writes the other's cursor.
    ReceiptGiven {
        /// Who gives it.
        giver: UserId,
        /// In which conversation.
        conversation: ConversationId,
        /// What became of it: a receipt or nothing.
        item: Arrival,
    },
    /// The clock that entries expire by went on.
    ClockMoved {
        /// Milliseconds since 1970.
        ms: u64,
    },
}
