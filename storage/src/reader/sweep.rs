//! Users whose floor may have to rise, where nobody woke them.

use std::ops::ControlFlow;

use culver_protocol::id::{InboxSeq, UserId};

use super::Engines;
use super::inbox::Inbox;
use crate::engine::{Family, Tier};
use crate::error::EngineError;
use crate::key::{self, ShardId};
use crate::value::{DecodeError, UserRow};

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
    let first = match after {
        None => UserId(0),
        Some(UserId(u64::MAX)) => return Ok((Vec::new(), None)),
        Some(UserId(after)) => UserId(after + 1),
    };
    // The range ends where the next shard begins; no shard has the last number.
    let (from, to) = (key::user(shard, first), key::user(ShardId(shard.0.saturating_add(1)), UserId(0)));
    let (mut users, mut failure) = (Vec::new(), None);
    engines.of_shard(shard).scan(Family::User, &from, &to, Tier::Disk, &mut |key, value| {
        let user = key::decode_user(key).ok_or(DecodeError::Length);
        match user.and_then(|(_, user)| Ok((user, UserRow::decode(value)?))) {
            Ok((user, row)) => users.push((user, row.floor, is_due(&row, today, unlink_days))),
            Err(source) => failure = Some(EngineError::Row { family: Family::User, key: key.to_vec(), source }),
        }
        if failure.is_none() && users.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let next = users.last().filter(|_| users.len() >= limit).map(|(user, ..)| *user);
    let mut found = Vec::new();
    for (user, floor, is_due) in users {
        if is_due || (expire_before_ms > 0 && is_first_expired(engines, user, floor, expire_before_ms)?) {
            found.push(user);
        }
    }
    Ok((found, next))
}

/// Whether the row alone says that the floor may rise.
fn is_due(row: &UserRow, today: u32, unlink_days: u32) -> bool {
    let least = row.devices.iter().map(|device| device.cursor).min();
    let is_away = |seen_day: u32| seen_day.saturating_add(unlink_days) < today;
    let is_any_away = row.devices.len() > 1 && row.devices.iter().any(|device| is_away(device.seen_day));
    is_any_away || least.is_some_and(|least| least > row.floor)
}

fn is_first_expired(
    engines: &Engines,
    user: UserId,
    floor: InboxSeq,
    expire_before_ms: u64,
) -> Result<bool, EngineError> {
    let first = Inbox::of(engines, user).preview(InboxSeq(floor.0.saturating_add(1)))?;
    Ok(first.is_some_and(|entry| entry.server_time_ms < expire_before_ms))
}
