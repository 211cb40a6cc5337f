//! How much a hub's shards keep in memory, and when what they put off is done. Small bounds reach in a short test what
//! the usual ones reach after days.

use super::HEAD_HINT_LAG_MAX;

/// How much is kept in memory, and when what is put off is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Conversations kept in memory, beside those of batches not yet durable.
    pub conversations_cached: usize,
    /// Users kept in memory, beside those of batches not yet durable.
    pub users_cached: usize,
    /// Talks kept in memory, beside those of batches not yet durable.
    pub talks_cached: usize,
    /// Senders whose newest id is kept in memory.
    pub senders_cached: usize,
    /// Reads waited for. Beyond it all are given up: whoever waits asks again.
    pub awaited: usize,
    /// A sender's first messages since a start are looked up one by one, which filters settle in memory; who sends
    /// more is worth the search for the newest, which reads every file that holds something of the sender's.
    pub lookups_first: u8,
    /// How far a user's head may run ahead of the head in the `user` row: at least 1, and at most
    /// [`HEAD_HINT_LAG_MAX`], for readers look no further.
    pub head_hint_lag: u64,
    /// How far ahead of a message's time a shard reserves time: at least 1 ms.
    pub time_reservation_ms: u64,
    /// How far the receipts' head in the `user` row may run ahead of the versions given out: at least 1.
    pub receipts_head_lead: u64,
    /// Items taken before a stream's head is written anew, at most, where a batch goes out at all: at least 1.
    pub head_lag: u64,
    /// For so long what goes to a full inbox of another hub's is refused.
    pub full_ms: u64,
    /// Users of other hubs known to be full. Beyond it all are forgotten: their hub says so again.
    pub full: usize,
    /// How long after its cursors rose a floor is raised.
    pub fold_delay_ms: u64,
    /// Users whose floors are to be raised. Beyond it the sweep finds them.
    pub folds_queued: usize,
    /// How far the clock of expiry goes on before it is written: at most a minute, for the check of a data directory
    /// allows it no more.
    pub clock_write_ms: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            conversations_cached: 256 * 1024,
            users_cached: 64 * 1024,
            talks_cached: 128 * 1024,
            senders_cached: 256 * 1024,
            awaited: 256 * 1024,
            lookups_first: 16,
            head_hint_lag: HEAD_HINT_LAG_MAX,
            time_reservation_ms: 1000,
            receipts_head_lead: 64,
            head_lag: 64,
            full_ms: 1000,
            full: 16 * 1024,
            fold_delay_ms: 1000,
            folds_queued: 64 * 1024,
            clock_write_ms: 60 * 1000,
        }
    }
}

impl Bounds {
    /// What is asked for, within what rows and readers allow.
    pub(super) fn checked(self) -> Self {
        let Self { head_hint_lag, time_reservation_ms, receipts_head_lead, head_lag, clock_write_ms, .. } = self;
        Self {
            head_hint_lag: head_hint_lag.clamp(1, HEAD_HINT_LAG_MAX),
            time_reservation_ms: time_reservation_ms.max(1),
            receipts_head_lead: receipts_head_lead.max(1),
            head_lag: head_lag.max(1),
            clock_write_ms: clock_write_ms.min(Self::default().clock_write_ms),
            ..self
        }
    }
}
