//! What a user sees of conversations: what waits, the list, receipts.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, InboxSeq, UserId};
use culver_protocol::message::MarkView;

use super::{ConversationView, Engines};
use crate::error::EngineError;

/// What waits for a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Entries that wait.
    pub entries: u64,
    /// The last row looked at.
    pub through: InboxSeq,
    /// Conversations with waiting entries, most recent first.
    pub conversations: Vec<ConversationView>,
}

/// Marks that a user has not been told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipts {
    /// Everything up to this version is among the marks, or was told before.
    pub version: u64,
    /// One a conversation, by ascending version.
    pub marks: Vec<MarkView>,
    /// There are later ones.
    pub more: bool,
}

/// Reads what waits for a device, as [`super::Read::Sync`] says.
///
/// # Errors
/// The engine failed, or a row cannot be read.
pub fn read_sync(engines: &Engines, user: UserId, device: DeviceId, after: InboxSeq) -> Result<Synced, EngineError> {
    todo!("sync")
}

/// Reads marks, as [`super::Read::Receipts`] says.
///
/// # Errors
/// The engine failed, or a row cannot be read.
pub fn read_receipts(engines: &Engines, user: UserId, after_version: u64) -> Result<Receipts, EngineError> {
    todo!("receipts")
}

/// Reads a page of the conversation list, as [`super::Read::Conversations`] says.
///
/// # Errors
/// The engine failed, or a row cannot be read.
pub fn read_conversations(
    engines: &Engines,
    user: UserId,
    limit: u16,
    page: &[u8],
) -> Result<Result<(Vec<ConversationView>, Vec<u8>), ErrorCode>, EngineError> {
    todo!("the list")
}
