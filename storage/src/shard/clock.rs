//! The clock that entries expire by. It is durable, goes on by no more than the monotonic clock does, and rests while
//! the server is down. Reads no clock itself.

/// How far the clock on the wall may be from where the monotonic clock expects it.
pub const JUMP_MS_MAX: u64 = 5 * 60 * 1000;

#[derive(Clone, Copy, Debug)]
pub(super) struct ExpiryClock {
    /// What it shows.
    ms: u64,
    /// What the durable row shows; 0: there is none.
    written_ms: u64,
    /// The clock on the wall as it should be, at `mono_ms`.
    expected_ms: u64,
    /// The clock on the wall, as last seen.
    wall_ms: u64,
    /// The monotonic clock, as last seen.
    mono_ms: u64,
    /// How much time has passed since.
    since_ms: u64,
    stopped: bool,
    /// How far it goes on before it is written.
    write_ms: u64,
}

impl ExpiryClock {
    /// Goes on from the durable row; without one, from the clock on the wall. It is to be written every `write_ms`.
    pub(super) fn start(written_ms: Option<u64>, now_ms: u64, mono_ms: u64, write_ms: u64) -> Self {
        Self {
            ms: written_ms.unwrap_or(now_ms),
            written_ms: written_ms.unwrap_or(0),
            expected_ms: now_ms,
            wall_ms: now_ms,
            mono_ms,
            since_ms: 0,
            stopped: false,
            write_ms,
        }
    }

    /// What it went on from; `None`: it was never written.
    pub(super) fn known_ms(&self) -> Option<u64> {
        (self.written_ms > 0).then_some(self.written_ms)
    }

    /// Goes on from here instead, if it was never written.
    pub(super) fn begin_at(&mut self, ms: u64) {
        if self.written_ms == 0 {
            self.ms = ms;
        }
    }

    /// Time passes, until the next tick.
    pub(super) fn pass(&mut self, mono_ms: u64) {
        self.since_ms = mono_ms.saturating_sub(self.mono_ms);
    }

    /// Goes on. What comes back is to be written.
    pub(super) fn tick(&mut self, now_ms: u64, mono_ms: u64) -> Option<u64> {
        let passed_ms = mono_ms.saturating_sub(self.mono_ms);
        self.mono_ms = self.mono_ms.max(mono_ms);
        self.since_ms = 0;
        self.wall_ms = now_ms;
        self.ms += passed_ms;
        self.expected_ms += passed_ms;
        self.stopped = self.expected_ms.abs_diff(now_ms) > JUMP_MS_MAX;
        if !self.stopped {
            // Clocks drift: what is expected follows, far slower than time itself.
            let drift_ms = passed_ms / 100;
            let (least, greatest) = (self.expected_ms.saturating_sub(drift_ms), self.expected_ms + drift_ms);
            self.expected_ms = now_ms.clamp(least, greatest);
        }
        (self.written_ms == 0 || self.ms >= self.written_ms + self.write_ms).then_some(self.ms)
    }

    /// The row is in the batch under construction.
    pub(super) fn wrote(&mut self, ms: u64) {
        assert!(ms >= self.written_ms, "the expiry clock never goes back");
        self.written_ms = ms;
    }

    pub(super) fn ms(&self) -> u64 {
        self.ms
    }

    /// What it will show of this moment when it ticks.
    pub(super) fn now_ms(&self) -> u64 {
        self.ms + self.since_ms
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// When what is seen now was seen: never earlier than by this clock, for by that one its absence will be counted
    /// when the one on the wall is right again. One that has jumped says nothing.
    pub(super) fn seen_ms(&self, now_ms: u64) -> u64 {
        if self.stopped { self.now_ms() } else { self.now_ms().max(now_ms) }
    }

    /// The earlier of this clock and the one on the wall: by what ages are counted.
    pub(super) fn earlier_ms(&self) -> u64 {
        self.ms.min(self.wall_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR_MS: u64 = 365 * 86_400_000;

    #[test]
    fn it_rests_while_the_server_is_down_and_goes_on_with_time() {
        let mut clock = ExpiryClock::start(Some(1_000_000), 5_000_000, 70, 60_000);
        assert_eq!(clock.tick(5_010_000, 10_070), None);
        assert_eq!((clock.ms(), clock.earlier_ms()), (1_010_000, 1_010_000));
        assert_eq!(clock.tick(5_060_000, 60_070), Some(1_060_000));
        clock.wrote(1_060_000);
        assert_eq!(clock.tick(5_060_100, 60_170), None);
        clock.pass(60_570);
        assert_eq!((clock.ms(), clock.now_ms(), clock.seen_ms(0)), (1_060_100, 1_060_500, 1_060_500));
        clock.tick(5_060_600, 60_670);
        assert_eq!(clock.now_ms(), 1_060_600);
    }

    #[test]
    fn a_new_one_is_written_at_once() {
        let mut clock = ExpiryClock::start(None, 5_000_000, 70, 60_000);
        assert_eq!(clock.tick(5_000_000, 70), Some(5_000_000));
    }

    #[test]
    fn a_jump_stops_it_until_the_wall_is_back() {
        let mut clock = ExpiryClock::start(None, YEAR_MS, 0, 60_000);
        for (wall_ms, mono_ms, stopped) in [
            (YEAR_MS + 1_000, 1_000, false),
            (2 * YEAR_MS, 2_000, true),
            (2 * YEAR_MS + 1_000_000, 1_002_000, true),
            (YEAR_MS + 1_003_000, 1_003_000, false),
            (YEAR_MS / 2, 1_004_000, true),
        ] {
            clock.tick(wall_ms, mono_ms);
            assert_eq!((clock.is_stopped(), clock.ms()), (stopped, YEAR_MS + mono_ms));
        }
        assert_eq!(clock.earlier_ms(), YEAR_MS / 2);
    }

    #[test]
    fn a_slow_drift_is_no_jump() {
        let mut clock = ExpiryClock::start(None, YEAR_MS, 0, 60_000);
        for hour in 1..10_000 {
            // The wall gains four seconds an hour.
            clock.tick(YEAR_MS + hour * 3_604_000, hour * 3_600_000);
            assert!(!clock.is_stopped());
        }
    }
}
