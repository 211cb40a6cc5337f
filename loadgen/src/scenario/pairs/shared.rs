//! What the workers and the thread that conducts them tell each other while a run goes on. Counters and flags only.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// Flags towards the workers, counters from them.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    go: AtomicBool,
    stop: AtomicBool,
    abandon: AtomicBool,
    slot: AtomicU8,
    logins: AtomicU64,
    sent: AtomicU64,
    acked: AtomicU64,
    delivered: AtomicU64,
    marks: AtomicU64,
    busy: AtomicU64,
    limited: AtomicU64,
    offered: AtomicU64,
    given_up: AtomicU64,
    /// The bits of a number: messages a second over all pairs.
    rate: AtomicU64,
    /// The code of an error after which clients do not come back; 0: none.
    refused: AtomicU64,
}

/// A reading of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    pub(crate) delivered: u64,
    /// Marks of receipts.
    pub(crate) marks: u64,
    /// Messages answered `busy`: they come again.
    pub(crate) busy: u64,
    /// Messages that came too fast for the server: they come again.
    pub(crate) limited: u64,
    /// Messages of a ramp that fell due.
    pub(crate) offered: u64,
    /// Of them, those that were not sent before the rate changed.
    pub(crate) given_up: u64,
}

impl Counters {
    /// Messages sent and not delivered, where each goes to one device.
    pub(crate) fn undelivered(&self) -> u64 {
        self.sent.saturating_sub(self.delivered)
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sent, {} acknowledged, {} delivered", self.sent, self.acked, self.delivered)?;
        match self.limited {
            0 => Ok(()),
            limited => write!(f, ", {limited} too fast for the server's limits ([sends] in its culver.toml)"),
        }
    }
}

impl Shared {
    /// Sending begins.
    pub(crate) fn go(&self) {
        self.go.store(true, Ordering::Release);
    }

    pub(crate) fn is_going(&self) -> bool {
        self.go.load(Ordering::Acquire)
    }

    /// Sending ends; what is under way still arrives.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The workers end now, whatever is under way.
    pub(crate) fn abandon(&self) {
        self.abandon.store(true, Ordering::Release);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandon.load(Ordering::Acquire)
    }

    /// From now on messages belong to this slot's histograms; 0: to none.
    pub(crate) fn set_slot(&self, slot: u8) {
        self.slot.store(slot, Ordering::Relaxed);
    }

    /// From now on a ramp offers so many messages a second over all pairs.
    pub(crate) fn set_rate(&self, per_s: f64) {
        self.rate.store(per_s.to_bits(), Ordering::Relaxed);
    }

    pub(crate) fn rate(&self) -> f64 {
        f64::from_bits(self.rate.load(Ordering::Relaxed))
    }

    pub(crate) fn slot(&self) -> u8 {
        self.slot.load(Ordering::Relaxed)
    }

    pub(crate) fn count_login(&self) {
        self.logins.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn logins(&self) -> u64 {
        self.logins.load(Ordering::Relaxed)
    }

    /// Adds what happened in a worker's turn.
    pub(crate) fn count(&self, turn: Counters) {
        self.sent.fetch_add(turn.sent, Ordering::Relaxed);
        self.acked.fetch_add(turn.acked, Ordering::Relaxed);
        self.delivered.fetch_add(turn.delivered, Ordering::Relaxed);
        self.marks.fetch_add(turn.marks, Ordering::Relaxed);
        self.busy.fetch_add(turn.busy, Ordering::Relaxed);
        self.limited.fetch_add(turn.limited, Ordering::Relaxed);
        self.offered.fetch_add(turn.offered, Ordering::Relaxed);
        self.given_up.fetch_add(turn.given_up, Ordering::Relaxed);
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters {
            sent: self.sent.load(Ordering::Relaxed),
            acked: self.acked.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
            marks: self.marks.load(Ordering::Relaxed),
            busy: self.busy.load(Ordering::Relaxed),
            limited: self.limited.load(Ordering::Relaxed),
            offered: self.offered.load(Ordering::Relaxed),
            given_up: self.given_up.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn refuse(&self, code: u32) {
        self.refused.store(u64::from(code), Ordering::Relaxed);
    }

    /// Why clients were sent away for good, if some were.
    pub(crate) fn refused(&self) -> Option<String> {
        let code = u32::try_from(self.refused.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        if code == 0 {
            return None;
        }
        let known = culver_protocol::error::ErrorCode::from_number(code);
        Some(format!("{code} {}", known.map_or("unknown", |known| known.text())))
    }
}
