//! Entries of an inbox, for one device.

use culver_protocol::id::{DeviceId, InboxSeq, UserId};

use super::Engines;
use crate::error::EngineError;
use crate::record::InboxEntry;

/// Rows looked at for a page, at most.
pub const INBOX_ROWS_MAX: usize = 4096;

/// A page of an inbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<InboxEntry>,
    /// The last row looked at.
    pub through: InboxSeq,
}

/// Reads entries of an inbox, as [`super::Read::Inbox`] says.
///
/// # Errors
/// The engine failed, or a row cannot be read.
pub fn read_inbox(
    engines: &Engines,
    user: UserId,
    skip_device: DeviceId,
    after: InboxSeq,
    entries_max: usize,
    bytes_max: usize,
) -> Result<Page, EngineError> {
    todo!("a page")
}
