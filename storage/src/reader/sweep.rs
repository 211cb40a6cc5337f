//! Users whose floor may have to rise.

use culver_protocol::id::UserId;

use super::Engines;
use crate::error::EngineError;
use crate::key::ShardId;

/// Looks through the users of a shard, as [`super::Read::Sweep`] says: those found, and after whom to go on.
///
/// # Errors
/// The engine failed, or a row cannot be read.
pub fn read_sweep(
    engines: &Engines,
    shard: ShardId,
    after: Option<UserId>,
    limit: usize,
    today: u32,
    expire_before_ms: u64,
    unlink_days: u32,
) -> Result<(Vec<UserId>, Option<UserId>), EngineError> {
    todo!("sweep")
}
