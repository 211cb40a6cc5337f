//! Which rows nothing needs any more: the decision that every engine takes when it merges rows. Reads no engine itself.
//!
//! | family | a row is dropped | decided by |
//! |---|---|---|
//! | `inbox` | at or below the floor | the `user` row of its inbox |
//! | `outbox` | at or below the head of its stream | the `meta` row of that head |
//! | `dedup` | if its message is older than [`Retention::dedup_before_ms`] | that alone |
//! | `device` | if its name is empty | that alone |
//!
//! Everything else is kept, and so is whatever cannot be read or is not known here. What decides is looked up in the
//! same engine, where a row is readable only once it is durable: nothing is dropped by what a crash could take back.
//! Floors, heads and that time never go back, so a row that may be dropped once may always be.

#[cfg(test)]
pub(crate) mod tests;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::Family;
use crate::key;
use crate::value::{self, DedupRow, NameRow, NumberRow, UserRow};

/// How long rows are kept that have an age. Shared by who knows the time and who drops rows; it starts by keeping all.
#[derive(Debug, Default)]
pub struct Retention {
    dedup_before_ms: AtomicU64,
}

impl Retention {
    /// The message time below which dedup rows are no longer needed; 0: all are.
    #[must_use]
    pub fn dedup_before_ms(&self) -> u64 {
        self.dedup_before_ms.load(Ordering::Relaxed)
    }

    /// Says that dedup rows of messages older than this are no longer needed. It never goes back.
    pub fn forget_dedup_before(&self, time_ms: u64) {
        self.dedup_before_ms.fetch_max(time_ms, Ordering::Relaxed);
    }
}

/// A device that was removed, or has no name any more, has left it in the place of one. What it hid stays hidden: where
/// an engine keeps earlier rows of a key, it marks what is dropped as deleted.
fn is_no_name(value: &[u8]) -> bool {
    NameRow::decode(value).is_ok_and(|row| row.name.is_empty())
}

/// Decides about the rows of one family, in one pass over them. It remembers what it looked up last, and rows come in
/// order: one lookup an inbox, and one a stream.
#[derive(Debug)]
pub struct Filter {
    family: Family,
    dedup_before_ms: u64,
    /// The key of the row that was looked up last, and the place that it says is no longer needed.
    last: Option<(Vec<u8>, u64)>,
}

impl Filter {
    /// Whether rows of this family are ever dropped.
    #[must_use]
    pub fn drops_any(family: Family) -> bool {
        matches!(family, Family::Inbox | Family::Outbox | Family::Dedup | Family::Device)
    }

    /// Begins a pass.
    #[must_use]
    pub fn new(family: Family, retention: &Retention) -> Self {
        Self { family, dedup_before_ms: retention.dedup_before_ms(), last: None }
    }

    /// Whether nothing needs a row. `look_up` reads another row as it is durable; `None`: it is not there, or cannot be
    /// read.
    pub fn drops(&mut self, key: &[u8], value: &[u8], look_up: impl FnOnce(Family, &[u8]) -> Option<Vec<u8>>) -> bool {
        match self.family {
            Family::Inbox => self.drops_entry(key, value, look_up).unwrap_or(false),
            Family::Outbox => self.drops_outgoing(key, value, look_up).unwrap_or(false),
            Family::Dedup => self.drops_dedup(key, value).unwrap_or(false),
            Family::Device => key::decode_device(key).is_some() && is_no_name(value),
            _ => false,
        }
    }

    fn drops_entry(
        &mut self,
        key: &[u8],
        value: &[u8],
        look_up: impl FnOnce(Family, &[u8]) -> Option<Vec<u8>>,
    ) -> Option<bool> {
        let (shard, user, seq) = key::decode_inbox(key)?;
        value::decode_inbox(seq, value).ok()?;
        let floor = |row: Vec<u8>| UserRow::decode(&row).map_or(0, |row| row.floor.0);
        let user = key::user(shard, user);
        Some(seq.0 <= self.through(&user, || look_up(Family::User, &user).map_or(0, floor)))
    }

    fn drops_outgoing(
        &mut self,
        key: &[u8],
        value: &[u8],
        look_up: impl FnOnce(Family, &[u8]) -> Option<Vec<u8>>,
    ) -> Option<bool> {
        let (stream, n) = key::decode_outbox(key)?;
        value::decode_item(value).ok()?;
        let through = |row: Vec<u8>| NumberRow::decode(&row).map_or(0, |row| row.number);
        let head = key::head(stream);
        Some(n <= self.through(&head, || look_up(Family::Meta, &head).map_or(0, through)))
    }

    fn drops_dedup(&self, key: &[u8], value: &[u8]) -> Option<bool> {
        key::decode_dedup(key)?;
        Some(DedupRow::decode(value).ok()?.message_id.time_ms() < self.dedup_before_ms)
    }

    /// The place that the row under `key` says is no longer needed; what `read` gives is remembered.
    fn through(&mut self, key: &[u8], read: impl FnOnce() -> u64) -> u64 {
        match &self.last {
            Some((last, through)) if last == key => *through,
            _ => self.last.insert((key.to_vec(), read())).1,
        }
    }
}
