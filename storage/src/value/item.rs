//! The values of `outbox` rows: what a stream carries.

use culver_protocol::id::{ConversationId, ConversationSeq, InboxSeq, UserId};
use culver_protocol::message::EntryView;

use super::{DecodeError, VERSION, numbers, put_entry, split_entry, versioned};
use crate::key::{Fields, split_u64};
use crate::record::{InboxEntry, Item};

/// Bytes of an entry on its way, before its payload.
pub(crate) const ITEM_ENTRY_HEADER_LEN: usize = 52;

const ENTRY: u8 = 1;
const RECEIPT: u8 = 2;

/// Encodes the part of an entry on its way that precedes its payload.
pub(crate) fn encode_item_entry(user: UserId, entry: &EntryView<'_>) -> [u8; ITEM_ENTRY_HEADER_LEN] {
    let mut value = Fields::new();
    put_entry(value.put(&[VERSION, ENTRY]).put(&user.0.to_be_bytes()), entry);
    value.done()
}

/// Encodes a receipt on its way.
pub(crate) fn encode_item_receipt(
    user: UserId,
    conversation: ConversationId,
    delivered: ConversationSeq,
    read: ConversationSeq,
    expired: (ConversationSeq, ConversationSeq),
) -> [u8; 58] {
    let mut value = Fields::new();
    value.put(&[VERSION, RECEIPT]).put(&user.0.to_be_bytes()).put(&conversation.0);
    for seq in [delivered, read, expired.0, expired.1] {
        value.put(&seq.0.to_be_bytes());
    }
    value.done()
}

/// Reads an `outbox` row.
///
/// # Errors
/// The bytes are no item of this version.
pub fn decode_item(bytes: &[u8]) -> Result<Item, DecodeError> {
    let (kind, rest) = versioned(bytes)?.split_first().ok_or(DecodeError::Length)?;
    if *kind != ENTRY && *kind != RECEIPT {
        return Err(DecodeError::Kind(*kind));
    }
    let (user, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
    let user = UserId(user);
    if *kind == ENTRY {
        return Ok(Item::Entry { user, entry: InboxEntry::from(split_entry(InboxSeq(0), rest)?) });
    }
    let (conversation, rest) = rest.split_first_chunk().ok_or(DecodeError::Length)?;
    let [delivered, read, after, through] = numbers(rest)?.map(ConversationSeq);
    let conversation = ConversationId(*conversation);
    Ok(Item::Receipt { user, conversation, delivered, read, expired: (after, through) })
}
