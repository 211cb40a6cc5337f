//! The values of every column family: fixed layouts, read without copying. Any bytes may come in; none panics.
//!
//! Every value begins with a version byte, [`VERSION`]. All numbers are big-endian.
//!
//! ```text
//! conversation  version:1  kind:1  flags:1  last seq:8  last message id:8                                 19 bytes
//! inbox         version:1  class:1  conversation:16  seq:8  message id:8  sender:8  device:2  payload:…   44 + payload
//! user          version:1  flags:1  head:8  floor:8  count:2  count × { device:2  cursor:8 }              20 + 10 × count
//! dedup         version:1  seq:8  message id:8  inbox seq of the sender's own copy (0: none):8            25
//! meta batch    version:1  number:8  synced through:8  records applied:8                                  25
//! meta time     version:1  reserved until, ms:8                                                           9
//! ```
//!
//! The time of a message is that in its id. The devices of a user row ascend. Of an inbox row, class 1 is a direct
//! message with its payload; the other numbers are kept for references to bodies stored once.

use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::message::EntryView;

use crate::key::{Fields, split_u16, split_u64};

/// The version byte of every value.
pub const VERSION: u8 = 1;
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
}

/// The value of a `conversation` row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConversationRow {
    /// The last place given out.
    pub last_seq: ConversationSeq,
    /// The message at that place.
    pub last_message: MessageId,
}

impl ConversationRow {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; 19] {
        let mut value = Fields::new();
        value
            .put(&[VERSION, KIND_DIRECT, 0])
            .put(&self.last_seq.0.to_be_bytes())
            .put(&self.last_message.0.to_be_bytes());
        value.done()
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no conversation row of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let rest = versioned(bytes)?;
        let ([kind, _flags], rest) = rest.split_first_chunk().ok_or(DecodeError::Length)?;
        if *kind != KIND_DIRECT {
            return Err(DecodeError::Kind(*kind));
        }
        let [last_seq, last_message] = numbers(rest)?;
        Ok(Self { last_seq: ConversationSeq(last_seq), last_message: MessageId(last_message) })
    }
}

/// Encodes the part of a direct message's inbox row that precedes its payload.
#[must_use]
pub fn encode_inbox_header(entry: &EntryView<'_>) -> [u8; INBOX_HEADER_LEN] {
    let mut value = Fields::new();
    value
        .put(&[VERSION, CLASS_DIRECT])
        .put(&entry.conversation.0)
        .put(&entry.conversation_seq.0.to_be_bytes())
        .put(&entry.message_id.0.to_be_bytes())
        .put(&entry.sender.0.to_be_bytes())
        .put(&entry.sender_device.0.to_be_bytes());
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
    let (conversation, rest) = rest.split_first_chunk().ok_or(DecodeError::Length)?;
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

/// The value of a `user` row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserRow {
    /// A place that the inbox has reached: its head when the row was written.
    pub head: InboxSeq,
    /// The least of the devices' cursors.
    pub floor: InboxSeq,
    /// Each device's cursor, by ascending device.
    pub cursors: Vec<(DeviceId, InboxSeq)>,
}

impl UserRow {
    /// Appends the stored bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        Self::encode_parts(self.head, self.floor, &self.cursors, out);
    }

    pub(crate) fn encode_parts(head: InboxSeq, floor: InboxSeq, cursors: &[(DeviceId, InboxSeq)], out: &mut Vec<u8>) {
        let count = u16::try_from(cursors.len()).expect("devices are u16 and unique, 65,536 never acknowledge");
        out.extend_from_slice(&[VERSION, 0]);
        out.extend_from_slice(&head.0.to_be_bytes());
        out.extend_from_slice(&floor.0.to_be_bytes());
        out.extend_from_slice(&count.to_be_bytes());
        for (device, cursor) in cursors {
            out.extend_from_slice(&device.0.to_be_bytes());
            out.extend_from_slice(&cursor.0.to_be_bytes());
        }
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no user row of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (_flags, rest) = versioned(bytes)?.split_first().ok_or(DecodeError::Length)?;
        let (head, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
        let (floor, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
        let (count, mut rest) = split_u16(rest).ok_or(DecodeError::Length)?;
        if rest.len() != usize::from(count) * 10 {
            return Err(DecodeError::Length);
        }
        let mut cursors = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let (device, after) = split_u16(rest).ok_or(DecodeError::Length)?;
            let (cursor, after) = split_u64(after).ok_or(DecodeError::Length)?;
            if cursors.last().is_some_and(|(last, _)| *last >= DeviceId(device)) {
                return Err(DecodeError::Order);
            }
            cursors.push((DeviceId(device), InboxSeq(cursor)));
            rest = after;
        }
        Ok(Self { head: InboxSeq(head), floor: InboxSeq(floor), cursors })
    }
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

fn versioned(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn values_come_back(a: u64, b: u64, c: u64, device: u16, conversation: [u8; 16], payload: Vec<u8>) {
            let row = ConversationRow { last_seq: ConversationSeq(a), last_message: MessageId(b) };
            prop_assert_eq!(ConversationRow::decode(&row.encode()), Ok(row));
            let row = DedupRow { conversation_seq: ConversationSeq(a), message_id: MessageId(b), inbox_seq: InboxSeq(c) };
            prop_assert_eq!(DedupRow::decode(&row.encode()), Ok(row));
            let row = BatchRow { number: a, synced_through: b, applied: c };
            prop_assert_eq!(BatchRow::decode(&row.encode()), Ok(row));
            let row = TimeRow { until_ms: a };
            prop_assert_eq!(TimeRow::decode(&row.encode()), Ok(row));
            let entry = EntryView {
                inbox_seq: InboxSeq(a), conversation: ConversationId(conversation), conversation_seq: ConversationSeq(b),
                message_id: MessageId(c), server_time_ms: MessageId(c).time_ms(), sender: UserId(a),
                sender_device: DeviceId(device), payload: &payload,
            };
            let mut bytes = encode_inbox_header(&entry).to_vec();
            bytes.extend_from_slice(&payload);
            prop_assert_eq!(decode_inbox(InboxSeq(a), &bytes), Ok(entry));
        }

        #[test]
        fn user_rows_come_back(head: u64, floor: u64, cursors: std::collections::BTreeMap<u16, u64>) {
            let cursors = cursors.into_iter().map(|(device, cursor)| (DeviceId(device), InboxSeq(cursor))).collect();
            let row = UserRow { head: InboxSeq(head), floor: InboxSeq(floor), cursors };
            let mut bytes = Vec::new();
            row.encode(&mut bytes);
            prop_assert_eq!(UserRow::decode(&bytes), Ok(row));
            bytes.push(0);
            prop_assert_eq!(UserRow::decode(&bytes), Err(DecodeError::Length));
        }

        #[test]
        fn no_bytes_panic(mut bytes: Vec<u8>, versioned: bool) {
            if let (true, Some(first)) = (versioned, bytes.first_mut()) {
                *first = VERSION;
            }
            let read = [
                ConversationRow::decode(&bytes).is_ok(), UserRow::decode(&bytes).is_ok(), DedupRow::decode(&bytes).is_ok(),
                BatchRow::decode(&bytes).is_ok(), TimeRow::decode(&bytes).is_ok(), decode_inbox(InboxSeq(1), &bytes).is_ok(),
            ];
            prop_assert!(!read.contains(&true) || bytes.first() == Some(&VERSION));
        }
    }

    #[test]
    fn devices_out_of_order_are_refused() {
        let row =
            UserRow { cursors: vec![(DeviceId(2), InboxSeq(1)), (DeviceId(1), InboxSeq(1))], ..UserRow::default() };
        let mut bytes = Vec::new();
        row.encode(&mut bytes);
        assert_eq!(UserRow::decode(&bytes), Err(DecodeError::Order));
    }
}
