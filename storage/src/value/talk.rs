//! The values of `member` rows by user: what a user has, was told and read of a conversation.

use bytes::Bytes;
use culver_protocol::id::{ConversationSeq, DeviceId, MessageId, UserId};

use super::{DecodeError, VERSION, VERSION_2, numbers, versioned, versioned_2};
use crate::key::{Fields, split_u16, split_u64};

/// The value of a `List` row: the last entry of a conversation at or below the floor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRow {
    /// Its place in the conversation.
    pub seq: ConversationSeq,
    /// Its id, and so its time.
    pub message_id: MessageId,
    /// Who sent it.
    pub sender: UserId,
    /// From which device.
    pub device: DeviceId,
    /// Its payload, cut to `PREVIEW_LEN_MAX`.
    pub preview: Bytes,
}

impl ListRow {
    /// The stored bytes before the preview.
    #[must_use]
    pub fn encode_header(&self) -> [u8; 27] {
        let mut value = Fields::new();
        value
            .put(&[VERSION])
            .put(&self.seq.0.to_be_bytes())
            .put(&self.message_id.0.to_be_bytes())
            .put(&self.sender.0.to_be_bytes())
            .put(&self.device.0.to_be_bytes());
        value.done()
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no `List` row of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let rest = versioned(bytes)?;
        let (seq, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
        let (id, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
        let (sender, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
        let (device, preview) = split_u16(rest).ok_or(DecodeError::Length)?;
        Ok(Self {
            seq: ConversationSeq(seq),
            message_id: MessageId(id),
            sender: UserId(sender),
            device: DeviceId(device),
            preview: Bytes::copy_from_slice(preview),
        })
    }
}

/// The value of a `Delivered` row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeqRow {
    /// Up to here.
    pub seq: ConversationSeq,
    /// The peer was not told: receipts were off.
    pub is_untold: bool,
}

impl SeqRow {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; 9] {
        let mut value = Fields::new();
        let version = if self.is_untold { VERSION_2 } else { VERSION };
        value.put(&[version]).put(&self.seq.0.to_be_bytes());
        value.done()
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no `Delivered` row of these versions.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (version, rest) = versioned_2(bytes)?;
        let [seq] = numbers(rest)?;
        Ok(Self { seq: ConversationSeq(seq), is_untold: version == VERSION_2 })
    }
}

/// The value of a `Read`, `PeerDelivered` or `PeerRead` row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MarkRow {
    /// Up to here.
    pub seq: ConversationSeq,
    /// The version of that among the user's receipts.
    pub version: u64,
}

impl MarkRow {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; 17] {
        let mut value = Fields::new();
        value.put(&[VERSION]).put(&self.seq.0.to_be_bytes()).put(&self.version.to_be_bytes());
        value.done()
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no such row of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let [seq, version] = numbers(versioned(bytes)?)?;
        Ok(Self { seq: ConversationSeq(seq), version })
    }
}

/// The value of a `PeerExpired` row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpiredRow {
    /// Not this one, but what follows it.
    pub after: ConversationSeq,
    /// The last.
    pub through: ConversationSeq,
    /// The version of that among the user's receipts.
    pub version: u64,
}

impl ExpiredRow {
    /// The stored bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; 25] {
        let mut value = Fields::new();
        value
            .put(&[VERSION])
            .put(&self.after.0.to_be_bytes())
            .put(&self.through.0.to_be_bytes())
            .put(&self.version.to_be_bytes());
        value.done()
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no `PeerExpired` row of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let [after, through, version] = numbers(versioned(bytes)?)?;
        Ok(Self { after: ConversationSeq(after), through: ConversationSeq(through), version })
    }
}
