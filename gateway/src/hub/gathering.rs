//! When a hub's next batch goes to its writer. Pure: the time is an argument.

use std::time::{Duration, Instant};

/// Messages of a batch from which on the next one waits for company.
const GATHER_MESSAGES_MIN: u64 = 16;
/// Longest such wait for the sake of the disk: twice what the last write took.
const GATHER_FOR_WRITE_MAX: Duration = Duration::from_millis(1);
/// Such a wait for the sake of what is around a message, by the last batch's messages: the more there are, the longer
/// the whole takes anyway, and the more of each socket's messages share a read and a write.
const GATHER_PER_MESSAGE: Duration = Duration::from_micros(4);
/// Longest such wait at all.
const GATHER_MAX: Duration = Duration::from_millis(2);

/// When the next batch goes to the writer. Under load a short wait, as long as a write takes, doubles what a write
/// carries: fewer syncs, fewer wakes, and fewer writes to sockets. A lone message never waits.
#[derive(Default)]
pub(super) struct Gathering {
    /// How long the last write took.
    write_took: Duration,
    submitted_at: Option<Instant>,
    /// Until when the next batch waits.
    until: Option<Instant>,
    /// Messages accepted since the last write.
    pub(super) messages: u64,
}

impl Gathering {
    pub(super) fn submitted(&mut self, now: Instant) {
        self.submitted_at = Some(now);
        self.until = None;
    }

    /// Whether the next batch waits for company.
    pub(super) fn durable(&mut self, now: Instant) -> bool {
        let Some(submitted_at) = self.submitted_at.take() else { return false };
        self.write_took = now - submitted_at;
        let messages = std::mem::take(&mut self.messages);
        let for_write = (self.write_took * 2).min(GATHER_FOR_WRITE_MAX);
        let for_messages = GATHER_PER_MESSAGE * u32::try_from(messages).unwrap_or(u32::MAX);
        let had_company = messages >= GATHER_MESSAGES_MIN;
        self.until = had_company.then(|| now + for_write.max(for_messages).min(GATHER_MAX));
        had_company
    }

    /// How long to wait still.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        self.until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero())
    }
}
