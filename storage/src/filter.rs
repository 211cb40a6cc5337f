//! Which rows nothing needs any more: the decision that every engine takes when it merges rows. Reads no engine itself.

use std::sync::atomic::{AtomicU64, Ordering};

/// How long rows are kept that have an age. Shared by who knows the time and who drops rows; all start at 0: keep all.
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
