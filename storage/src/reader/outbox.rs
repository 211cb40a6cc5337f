//! Items of a stream, read again.

use super::Engines;
use crate::error::EngineError;
use crate::record::{Item, Stream};

/// Bytes of items read at once; the first comes whatever its size.
pub const OUTBOX_BYTES_MAX: usize = 1024 * 1024;

/// Reads items of a stream, as [`super::Read::Outbox`] says.
///
/// # Errors
/// The engine failed, or a row cannot be read.
pub fn read_outbox(
    engines: &Engines,
    stream: Stream,
    after: u64,
    through: u64,
    limit: usize,
) -> Result<Vec<(u64, Item)>, EngineError> {
    todo!("outbox")
}
