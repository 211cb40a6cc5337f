//! The messages of the hot path, read without copying and written without building them first.
//!
//! Everything here is ordinary protobuf of `culver.proto`: the tests hold each function against what prost makes
//! of the same bytes. All other messages go through prost itself.

use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};

use crate::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};

/// A `Send`, borrowed from the record it came in. Lengths are not checked here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendView<'a> {
    /// 16 bytes, if the client keeps to the protocol.
    pub client_message_id: &'a [u8],
    /// 16 bytes, if the client keeps to the protocol.
    pub conversation: &'a [u8],
    /// The opaque payload.
    pub payload: &'a [u8],
}

impl<'a> SendView<'a> {
    /// Reads the protobuf of a SEND.
    ///
    /// # Errors
    /// It is not protobuf, or a field has another wire type.
    pub fn decode(mut body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut view = Self::default();
        while !body.is_empty() {
            let (tag, wire_type) = decode_key(&mut body)?;
            match (tag, wire_type) {
                (1, WireType::LengthDelimited) => view.client_message_id = take_bytes(&mut body)?,
                (2, WireType::LengthDelimited) => view.conversation = take_bytes(&mut body)?,
                (3, WireType::LengthDelimited) => view.payload = take_bytes(&mut body)?,
                (1..=3, _) => return Err(wrong_wire_type()),
                _ => skip_field(wire_type, tag, &mut body, DecodeContext::default())?,
            }
        }
        Ok(view)
    }

    /// Appends the protobuf of a SEND.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, 1, self.client_message_id);
        put_bytes(out, 2, self.conversation);
        put_bytes(out, 3, self.payload);
    }
}

/// An accepted message, as its sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The sender's id for it.
    pub client_message_id: ClientMessageId,
    /// Its place in the conversation.
    pub conversation_seq: ConversationSeq,
    /// Its id.
    pub message_id: MessageId,
    /// When it was accepted, in milliseconds since 1970.
    pub server_time_ms: u64,
    /// The place of the sender's own copy in the sender's inbox; 0: there is none.
    pub inbox_seq: InboxSeq,
    /// It had been accepted before.
    pub duplicate: bool,
}

impl Accepted {
    /// Appends the protobuf of a SEND_RESULT.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, 1, &self.client_message_id.0);
        put_varint(out, 2, self.conversation_seq.0);
        put_fixed(out, 3, self.message_id.0);
        put_varint(out, 4, self.server_time_ms);
        put_varint(out, 5, self.inbox_seq.0);
        put_varint(out, 6, u64::from(self.duplicate));
    }
}

/// One entry of an inbox, with its payload wherever that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryView<'a> {
    /// Its place in the inbox.
    pub inbox_seq: InboxSeq,
    /// The conversation it belongs to.
    pub conversation: ConversationId,
    /// Its place there.
    pub conversation_seq: ConversationSeq,
    /// The message's id.
    pub message_id: MessageId,
    /// When it was accepted, in milliseconds since 1970.
    pub server_time_ms: u64,
    /// Who sent it.
    pub sender: UserId,
    /// From which device.
    pub sender_device: DeviceId,
    /// The opaque payload.
    pub payload: &'a [u8],
}

/// Appends the protobuf of a DELIVER. The caller keeps to `DELIVER_ENTRIES_MAX` and `DELIVER_BYTES_MAX`.
pub fn encode_deliver<'a>(out: &mut Vec<u8>, previous: InboxSeq, entries: impl IntoIterator<Item = EntryView<'a>>) {
    put_varint(out, 1, previous.0);
    for entry in entries {
        encode_key(2, WireType::LengthDelimited, out);
        encode_varint(entry.encoded_len() as u64, out);
        entry.encode(out);
    }
}

impl EntryView<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, 1, self.inbox_seq.0);
        put_bytes(out, 2, &self.conversation.0);
        put_varint(out, 3, self.conversation_seq.0);
        put_fixed(out, 4, self.message_id.0);
        put_varint(out, 5, self.server_time_ms);
        put_fixed(out, 6, self.sender.0);
        put_varint(out, 7, u64::from(self.sender_device.0));
        put_bytes(out, 8, self.payload);
    }

    fn encoded_len(&self) -> usize {
        varint_field_len(self.inbox_seq.0)
            + bytes_field_len(self.conversation.0.len())
            + varint_field_len(self.conversation_seq.0)
            + fixed_field_len(self.message_id.0)
            + varint_field_len(self.server_time_ms)
            + fixed_field_len(self.sender.0)
            + varint_field_len(u64::from(self.sender_device.0))
            + bytes_field_len(self.payload.len())
    }
}

/// News of one conversation in a RECEIPT; 0: nothing new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MarkView {
    /// Which.
    pub conversation: ConversationId,
    /// What the user sent up to here is persisted by a device of the other's.
    pub delivered: ConversationSeq,
    /// And read by the other.
    pub read: ConversationSeq,
    /// What the user sent beyond this …
    pub expired_after: ConversationSeq,
    /// … and up to here was dropped, undelivered.
    pub expired_through: ConversationSeq,
    /// The user has read up to here, on some device.
    pub own_read: ConversationSeq,
}

/// Appends the protobuf of a RECEIPT. The caller keeps to `RECEIPT_MARKS_MAX`.
pub fn encode_receipt(out: &mut Vec<u8>, version: u64, marks: impl IntoIterator<Item = MarkView>) {
    put_varint(out, 1, version);
    for mark in marks {
        encode_key(2, WireType::LengthDelimited, out);
        encode_varint(mark.encoded_len() as u64, out);
        mark.encode(out);
    }
}

impl MarkView {
    fn numbers(&self) -> [u64; 5] {
        [self.delivered, self.read, self.expired_after, self.expired_through, self.own_read].map(|seq| seq.0)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, 1, &self.conversation.0);
        for (tag, number) in (2..).zip(self.numbers()) {
            put_varint(out, tag, number);
        }
    }

    fn encoded_len(&self) -> usize {
        bytes_field_len(self.conversation.0.len()) + self.numbers().map(varint_field_len).iter().sum::<usize>()
    }
}

/// Reads the protobuf of an ACK: inbox seq, credit in entries, credit in bytes.
///
/// # Errors
/// It is not protobuf, or a field has another wire type or range.
pub fn decode_ack(mut body: &[u8]) -> Result<(InboxSeq, u32, u32), DecodeError> {
    let (mut inbox_seq, mut entries, mut bytes) = (0, 0, 0);
    while !body.is_empty() {
        let (tag, wire_type) = decode_key(&mut body)?;
        match (tag, wire_type) {
            (1, WireType::Varint) => inbox_seq = decode_varint(&mut body)?,
            (2, WireType::Varint) => entries = decode_varint(&mut body)?,
            (3, WireType::Varint) => bytes = decode_varint(&mut body)?,
            (1..=3, _) => return Err(wrong_wire_type()),
            _ => skip_field(wire_type, tag, &mut body, DecodeContext::default())?,
        }
    }
    let saturate = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Ok((InboxSeq(inbox_seq), saturate(entries), saturate(bytes)))
}

fn take_bytes<'a>(body: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let len = usize::try_from(decode_varint(body)?).unwrap_or(usize::MAX);
    let (bytes, rest) = body.split_at_checked(len).ok_or_else(wrong_wire_type)?;
    *body = rest;
    Ok(bytes)
}

fn wrong_wire_type() -> DecodeError {
    // prost offers no constructor of its own errors: let it refuse something that is surely wrong.
    decode_key(&mut [0u8].as_slice()).expect_err("tag 0 is no valid key")
}

fn put_varint(out: &mut Vec<u8>, tag: u32, value: u64) {
    if value != 0 {
        encode_key(tag, WireType::Varint, out);
        encode_varint(value, out);
    }
}

fn put_fixed(out: &mut Vec<u8>, tag: u32, value: u64) {
    if value != 0 {
        encode_key(tag, WireType::SixtyFourBit, out);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

fn put_bytes(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    if !value.is_empty() {
        encode_key(tag, WireType::LengthDelimited, out);
        encode_varint(value.len() as u64, out);
        out.extend_from_slice(value);
    }
}

// The fields of an entry and of a mark have tags below 16: one byte each.

fn varint_field_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + prost::encoding::encoded_len_varint(value) }
}

fn fixed_field_len(value: u64) -> usize {
    if value == 0 { 0 } else { 9 }
}

fn bytes_field_len(len: usize) -> usize {
    if len == 0 { 0 } else { 1 + prost::encoding::encoded_len_varint(len as u64) + len }
}
