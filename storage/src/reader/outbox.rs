//! Items of a stream, read again.

use std::ops::ControlFlow;

use super::Engines;
use crate::engine::{Family, Tier};
use crate::error::EngineError;
use crate::key;
use crate::record::{Item, Stream};
use crate::value::{self, DecodeError};

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
    let (mut items, mut bytes, mut failure) = (Vec::new(), 0, None);
    let (Some(first), false) = (after.checked_add(1), after >= through) else { return Ok(items) };
    let (from, to) = (key::outbox(stream, first), key::outbox(stream, through.saturating_add(1)));
    engines.of_shard(stream.from).scan(Family::Outbox, &from, &to, Tier::Disk, &mut |key, value| {
        let n = key::decode_outbox(key).ok_or(DecodeError::Length).map(|(_, n)| n);
        match n.and_then(|n| Ok((n, value::decode_item(value)?))) {
            Ok(item) => {
                bytes += value.len();
                if items.len() >= limit || (bytes > OUTBOX_BYTES_MAX && !items.is_empty()) {
                    return ControlFlow::Break(());
                }
                items.push(item);
                ControlFlow::Continue(())
            }
            Err(source) => {
                failure = Some(EngineError::Row { family: Family::Outbox, key: key.to_vec(), source });
                ControlFlow::Break(())
            }
        }
    })?;
    failure.map_or(Ok(items), Err)
}
