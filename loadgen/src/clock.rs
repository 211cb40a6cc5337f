//! The generator's clock: microseconds since the process began to look. Nothing else here reads time for latencies.

use std::time::{Duration, Instant, SystemTime};

/// A monotonic clock that all threads of a run share by copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    /// Starts at zero. Zero itself is never returned by [`Clock::now_us`], so it can stand for "not yet".
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Microseconds since the start, at least 1.
    pub(crate) fn now_us(self) -> u64 {
        micros(self.origin.elapsed()).max(1)
    }
}

/// Whole microseconds of a duration.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds, as a fraction, of a count of microseconds.
#[expect(clippy::cast_precision_loss, reason = "52 bits of microseconds are 142 years")]
pub(crate) fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
