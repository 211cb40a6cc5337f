//! The values of every column family: fixed layouts, read without copying. Any bytes may come in; none panics.
//!
//! Every value begins with a version byte. It is 1 but where it says 2 or 3; there, rows of earlier versions are read as
//! well, and written anew as that. All numbers are big-endian.
//!
//! ```text
//! conversation  version 2:1  kind:1  flags:1  last seq:8  last message id:8  last seq by lesser:8  by greater:8    35 bytes
//! inbox         version:1  class:1  conversation:16  seq:8  message id:8  sender:8  device:2  payload:…            44 + payload
//! user          version 3:1  flags:1  head:8  floor:8  waiting bytes:8  receipts head:8
//!               where they say so:  tokens from, s:8  had:8
//!               count:2  count × { device:2  cursor:8  seen day:4
//!                 where that says so:  lost through:8  key's fingerprint:16 }                                      36 or 52, + 14 to 38 a device
//! dedup         version:1  seq:8  message id:8  inbox seq of the sender's own copy (0: none):8                     25
//! member by user, by kind:
//!   list            version:1  seq:8  message id:8  sender:8  device:2  preview:…                                  27 + preview
//!   delivered       version:1 (2: the peer was not told)  seq:8                                                    9
//!   read, peer delivered, peer read
//!                   version:1  seq:8  receipt version:8                                                            17
//!   peer expired    version:1  after:8  through:8  receipt version:8                                               25
//! device        version:1  name:…                                                                                1 + name
//! outbox entry  version:1  1:1  user:8  conversation:16  seq:8  message id:8  sender:8  device:2  payload:…        52 + payload
//! outbox receipt
//!               version:1  2:1  user:8  conversation:16  delivered:8  read:8  expired after:8  through:8           58
//! meta batch    version:1  number:8  synced through:8  records applied:8                                           25
//! meta time     version:1  reserved until, ms:8                                                                    9
//! meta watermark, head
//!               version:1  number:8                                                                                9
//! meta clock    version:1  ms:8                                                                                    9
//! ```
//!
//! The time of a message is that in its id. The devices of a user row ascend; of its flags, bit 0 says that read
//! receipts are off; bit 1, that a device was removed once: tokens issued earlier register no device any more, and what
//! precedes `had` such a device may have had. Bit 31 of a seen day says that the device lacks what precedes its cursor,
//! for that expired or was there before it was linked, and that it has acknowledged nothing since; bit 30, that it lacks
//! what precedes the number that follows, for it has stepped over its own since; bit 29, that it has a key; bit 28, that
//! it has a name: a `device` row. That is not in the user row, which is written anew with every cursor. One whose name is
//! empty says that the device has none any more, and the next merge of files drops it. Version 2 of a user row has
//! neither bit 1 nor bits 29 and 28, version 1 only head, floor, and the cursors of devices.
//!
//! Of an inbox row, class 1 is a direct message with its payload; the other numbers are kept for references to bodies
//! stored once.

mod device;
mod item;
mod talk;
#[cfg(test)]
mod tests;
mod user;

use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::limits::DEVICE_NAME_LEN_MAX;
use culver_protocol::message::EntryView;

pub use self::device::NameRow;
pub(crate) use self::device::encode_name;
pub use self::item::decode_item;
pub(crate) use self::item::{encode_item_entry, encode_item_receipt};
pub use self::talk::{ExpiredRow, ListRow, MarkRow, SeqRow};
pub use self::user::{DeviceRow, UserRow};
use crate::key::{Fields, INBOX_KEY_LEN, split_u16, split_u64};

/// The version byte of a value, but for those that have changed.
pub const VERSION: u8 = 1;
/// The version byte of `conversation` rows.
pub const VERSION_2: u8 = 2;
/// The version byte of `user` rows.
pub const VERSION_3: u8 = 3;
/// Bytes of an inbox row before its payload.
pub const INBOX_HEADER_LEN: usize = 44;

const CLASS_DIRECT: u8 = 1;
const KIND_DIRECT: u8 = 1;

/// Why a stored value cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A newer (or no) version wrote it.
    #[error("version {0} is not known here")]
    Version(u8),
    /// A class of inbox row, or kind of conversation, that this version does not write.
    #[error("kind {0} is not known here")]
    Kind(u8),
    /// Too few or too many bytes.
    #[error("its length does not fit its layout")]
    Length,
    /// The devices of a user row do not ascend.
    #[error("its devices do not ascend")]
    Order,
    /// A name is longer than any that is accepted.
    #[error("its name is longer than {DEVICE_NAME_LEN_MAX} bytes")]
    NameLength,
    /// A name is no text.
    #[error("its name is not UTF-8")]
    NameText,
}

/// The value of a `conversation` row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConversationRow {
    /// The last place given out.
    pub last_seq: ConversationSeq,
    /// The message at that place.
    pub last_message: MessageId,
    /// The last place of a message from the lesser of the two users; 0: none, or before rows knew it.
    pub last_by_lesser: ConversationSeq,
    /// The same for the greater. In notes to oneself both are the same user.
    pub last_by_greater: ConversationSeq,
}

impl ConversationRow {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; 35] {
        let mut value = Fields::new();
        value
            .put(&[VERSION_2, KIND_DIRECT, 0])
            .put(&self.last_seq.0.to_be_bytes())
            .put(&self.last_message.0.to_be_bytes())
            .put(&self.last_by_lesser.0.to_be_bytes())
            .put(&self.last_by_greater.0.to_be_bytes());
        value.done()
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no conversation row of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (version, rest) = versioned_2(bytes)?;
        let ([kind, _flags], rest) = rest.split_first_chunk().ok_or(DecodeError::Length)?;
        if *kind != KIND_DIRECT {
            return Err(DecodeError::Kind(*kind));
        }
        let [last_seq, last_message, by_lesser, by_greater] = if version == VERSION {
            let [last_seq, last_message] = numbers(rest)?;
            // Who sent what is not known; what was there counts as read.
            [last_seq, last_message, last_seq, last_seq]
        } else {
            numbers(rest)?
        };
        Ok(Self {
            last_seq: ConversationSeq(last_seq),
            last_message: MessageId(last_message),
            last_by_lesser: ConversationSeq(by_lesser),
            last_by_greater: ConversationSeq(by_greater),
        })
    }
}

/// What an entry counts in its user's `waiting_bytes`: its row, key included.
#[must_use]
pub fn waiting_bytes(payload_len: usize) -> u64 {
    (INBOX_KEY_LEN + INBOX_HEADER_LEN + payload_len) as u64
}

/// Encodes the part of a direct message's inbox row that precedes its payload.
#[must_use]
pub fn encode_inbox_header(entry: &EntryView<'_>) -> [u8; INBOX_HEADER_LEN] {
    let mut value = Fields::new();
    put_entry(value.put(&[VERSION, CLASS_DIRECT]), entry);
    value.done()
}

/// Reads an inbox row; its place comes from its key.
///
/// # Errors
/// The bytes are no inbox row of this version.
pub fn decode_inbox(inbox_seq: InboxSeq, bytes: &[u8]) -> Result<EntryView<'_>, DecodeError> {
    let (class, rest) = versioned(bytes)?.split_first().ok_or(DecodeError::Length)?;
    if *class != CLASS_DIRECT {
        return Err(DecodeError::Kind(*class));
    }
    split_entry(inbox_seq, rest)
}

/// What inbox rows and items of streams hold of an entry, before its payload.
fn put_entry<const LEN: usize>(value: &mut Fields<LEN>, entry: &EntryView<'_>) {
    value
        .put(&entry.conversation.0)
        .put(&entry.conversation_seq.0.to_be_bytes())
        .put(&entry.message_id.0.to_be_bytes())
        .put(&entry.sender.0.to_be_bytes())
        .put(&entry.sender_device.0.to_be_bytes());
}

fn split_entry(inbox_seq: InboxSeq, bytes: &[u8]) -> Result<EntryView<'_>, DecodeError> {
    let (conversation, rest) = bytes.split_first_chunk().ok_or(DecodeError::Length)?;
    let (seq, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
    let (id, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
    let (sender, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
    let (device, payload) = split_u16(rest).ok_or(DecodeError::Length)?;
    Ok(EntryView {
        inbox_seq,
        conversation: ConversationId(*conversation),
        conversation_seq: ConversationSeq(seq),
        message_id: MessageId(id),
        server_time_ms: MessageId(id).time_ms(),
        sender: UserId(sender),
        sender_device: DeviceId(device),
        payload,
    })
}

/// The value of a `dedup` row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DedupRow {
    /// The message's place in its conversation.
    pub conversation_seq: ConversationSeq,
    /// Its id, and so its time.
    pub message_id: MessageId,
    /// The place of the sender's own copy; 0: there is none.
    pub inbox_seq: InboxSeq,
}

impl DedupRow {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; 25] {
        let mut value = Fields::new();
        value
            .put(&[VERSION])
            .put(&self.conversation_seq.0.to_be_bytes())
            .put(&self.message_id.0.to_be_bytes())
            .put(&self.inbox_seq.0.to_be_bytes());
        value.done()
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no dedup row of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let [seq, id, own] = numbers(versioned(bytes)?)?;
        Ok(Self { conversation_seq: ConversationSeq(seq), message_id: MessageId(id), inbox_seq: InboxSeq(own) })
    }
}

/// The value of a batch's `meta` row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchRow {
    /// The batch's number.
    pub number: u64,
    /// The engine's sequence number that was known to be on disk when the batch was sealed.
    pub synced_through: u64,
    /// Records applied by the hub so far.
    pub applied: u64,
}

impl BatchRow {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; 25] {
        let mut value = Fields::new();
        value
            .put(&[VERSION])
            .put(&self.number.to_be_bytes())
            .put(&self.synced_through.to_be_bytes())
            .put(&self.applied.to_be_bytes());
        value.done()
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no batch row of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let [number, synced_through, applied] = numbers(versioned(bytes)?)?;
        Ok(Self { number, synced_through, applied })
    }
}

/// The value of a shard's time reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRow {
    /// No message id of the shard reaches this time before the row is written anew.
    pub until_ms: u64,
}

impl TimeRow {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; 9] {
        let mut value = Fields::new();
        value.put(&[VERSION]).put(&self.until_ms.to_be_bytes());
        value.done()
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no time reservation of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let [until_ms] = numbers(versioned(bytes)?)?;
        Ok(Self { until_ms })
    }
}

/// The value of a stream's watermark or head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NumberRow {
    /// The last number that was applied, or taken.
    pub number: u64,
}

impl NumberRow {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; 9] {
        let mut value = Fields::new();
        value.put(&[VERSION]).put(&self.number.to_be_bytes());
        value.done()
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no watermark or head of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let [number] = numbers(versioned(bytes)?)?;
        Ok(Self { number })
    }
}

/// The value of a hub's expiry clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockRow {
    /// What it showed, in milliseconds since 1970.
    pub ms: u64,
}

impl ClockRow {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; 9] {
        NumberRow { number: self.ms }.encode()
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no clock of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { ms: NumberRow::decode(bytes)?.number })
    }
}

fn versioned(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        Some((&version, _)) => Err(DecodeError::Version(version)),
        None => Err(DecodeError::Length),
    }
}

/// The version of a row that has two, and what follows it.
fn versioned_2(bytes: &[u8]) -> Result<(u8, &[u8]), DecodeError> {
    versioned_to(VERSION_2, bytes)
}

/// The version of a row that has had so many, and what follows it.
fn versioned_to(newest: u8, bytes: &[u8]) -> Result<(u8, &[u8]), DecodeError> {
    match bytes.split_first() {
        Some((&version, rest)) if (VERSION..=newest).contains(&version) => Ok((version, rest)),
        Some((&version, _)) => Err(DecodeError::Version(version)),
        None => Err(DecodeError::Length),
    }
}

/// Exactly `COUNT` numbers and nothing after.
fn numbers<const COUNT: usize>(mut bytes: &[u8]) -> Result<[u64; COUNT], DecodeError> {
    let mut numbers = [0; COUNT];
    for number in &mut numbers {
        (*number, bytes) = split_u64(bytes).ok_or(DecodeError::Length)?;
    }
    if bytes.is_empty() { Ok(numbers) } else { Err(DecodeError::Length) }
}
