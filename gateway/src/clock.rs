//! What time it is, as an argument. Sessions, hubs, reactors and shards are told; only threads look at a clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since 1970 by the machine's clock, which may jump.
    pub wall_ms: u64,
    /// Microseconds by a clock that never jumps: from an arbitrary start, the same in all threads.
    pub mono_us: u64,
}

impl Now {
    /// Milliseconds by the clock that never jumps.
    #[must_use]
    pub fn mono_ms(self) -> u64 {
        self.mono_us / 1000
    }
}

/// What tells the time.
pub trait Clock {
    /// This moment.
    fn now(&self) -> Now;

    /// Microseconds by the clock that never jumps, for who needs no more.
    fn mono_us(&self) -> u64 {
        self.now().mono_us
    }
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall_ms = u64::try_from(since.as_millis()).expect("milliseconds fit 64 bits for a while");
        Now { wall_ms, mono_us: self.mono_us() }
    }

    fn mono_us(&self) -> u64 {
        let since = Duration::try_from(clock_gettime(ClockId::Monotonic)).expect("it runs since the machine started");
        u64::try_from(since.as_micros()).expect("microseconds fit 64 bits for a while")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_both_clocks() {
        let (earlier, later) = (SystemClock.now(), SystemClock.now());
        assert!(later.mono_us >= earlier.mono_us && earlier.mono_us > 0);
        assert!(later.wall_ms > 1_600_000_000_000);
        assert_eq!(Now { wall_ms: 0, mono_us: 1_999 }.mono_ms(), 1);
    }
}
