//! When which connection is due a PING: a walk that passes every slot once an interval, a step at a time.
//!
//! No connection has a timer. A slot's time within the interval follows from its number, so pings are spread evenly
//! whenever their connections came. Sans-io.

use std::ops::Range;

/// Between two steps: few enough that hundreds of workers on few cores hardly wake, and one step's pings are few.
pub(crate) const STEP_US: u64 = 1_000_000;
/// How much faster than usual the walk catches up after it was held back.
const CATCH_UP: u64 = 2;

/// The walk of one worker over its slots.
#[derive(Debug)]
pub(super) struct KeepAlive {
    interval_us: u64,
    slots: u64,
    begun_us: u64,
    /// Slots passed since the beginning, round after round.
    passed: u64,
    /// When the next step is due.
    step_us: u64,
    is_held: bool,
}

impl KeepAlive {
    /// Begins at the first slot; `offset_us` sets the steps of several workers apart.
    ///
    /// # Panics
    /// If there is no slot or no interval.
    pub(super) fn new(interval_us: u64, slots: u64, now_us: u64, offset_us: u64) -> Self {
        assert!(interval_us > 0 && slots > 0, "a walk needs slots and a time");
        let step_us = now_us + STEP_US + offset_us % STEP_US;
        Self { interval_us, slots, begun_us: now_us, passed: 0, step_us, is_held: false }
    }

    /// Stands still, or goes on, a little faster until it has caught up.
    pub(super) fn hold(&mut self, is_held: bool, now_us: u64) {
        if self.is_held && !is_held {
            // The steps that were missed are not made up for at once.
            self.step_us += now_us.saturating_sub(self.step_us).next_multiple_of(STEP_US);
        }
        self.is_held = is_held;
    }

    /// When [`KeepAlive::step`] has something to do.
    pub(super) fn due_us(&self) -> Option<u64> {
        (!self.is_held).then_some(self.step_us)
    }

    /// The slots that are due by now, as numbers that run on from round to round.
    pub(super) fn step(&mut self, now_us: u64) -> Range<u64> {
        if self.is_held || now_us < self.step_us {
            return 0..0;
        }
        let steps = (now_us - self.step_us) / STEP_US + 1;
        self.step_us += steps * STEP_US;
        let usual = self.reached(self.begun_us + STEP_US) + 1;
        let end = self.reached(now_us).min(self.passed + usual * steps * CATCH_UP);
        std::mem::replace(&mut self.passed, end)..end
    }

    /// Slots that are due and not passed, beside those of the step to come.
    pub(super) fn behind(&self, now_us: u64) -> u64 {
        self.reached(now_us.saturating_sub(STEP_US)).saturating_sub(self.passed)
    }

    /// Where the walk should be.
    fn reached(&self, now_us: u64) -> u64 {
        let reached = u128::from(now_us.saturating_sub(self.begun_us)) * u128::from(self.slots);
        u64::try_from(reached / u128::from(self.interval_us)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    /// Walks from `from_us` for `seconds`, a look each 100 ms; returns the slots passed and the most in one step.
    fn walk(walk: &mut KeepAlive, from_us: u64, seconds: u64) -> (Vec<u64>, usize) {
        let (mut passed, mut most) = (Vec::new(), 0);
        for tick in 1..=seconds * 10 {
            let due: Vec<u64> = walk.step(from_us + tick * SECOND_US / 10).map(|number| number % walk.slots).collect();
            most = most.max(due.len());
            passed.extend(due);
        }
        (passed, most)
    }

    #[test]
    fn every_slot_is_passed_once_an_interval_and_evenly() {
        for (slots, interval_s) in [(19_000, 240), (1, 240), (7, 5), (100_000, 60)] {
            let mut keep_alive = KeepAlive::new(interval_s * SECOND_US, slots, 5, 300_000);
            let (passed, most) = walk(&mut keep_alive, 5, 3 * interval_s + 2);
            for slot in 0..slots {
                let times = passed.iter().filter(|passed| **passed == slot).count();
                assert!((3..=4).contains(&times), "slot {slot} of {slots}: {times} times in three intervals");
                if slots > 10_000 && slot > 3 {
                    break; // the walk is in order: the first tell for all
                }
            }
            let usual = slots.div_ceil(interval_s) + 2;
            assert!(most as u64 <= usual * 2, "{most} in one step of {slots} slots in {interval_s} s");
            assert!(passed.windows(2).all(|pair| pair.first().map(|slot| (slot + 1) % slots) == pair.last().copied()));
        }
    }

    #[test]
    fn what_was_held_back_is_caught_up_with_at_twice_the_pace() {
        let mut keep_alive = KeepAlive::new(240 * SECOND_US, 24_000, 0, 0);
        walk(&mut keep_alive, 0, 100);
        keep_alive.hold(true, 100 * SECOND_US);
        assert_eq!(keep_alive.due_us(), None);
        let (passed, _) = walk(&mut keep_alive, 100 * SECOND_US, 60);
        assert_eq!(passed.len(), 0);
        assert!(keep_alive.behind(160 * SECOND_US) >= 5_900);
        keep_alive.hold(false, 160 * SECOND_US);
        let (_, most) = walk(&mut keep_alive, 160 * SECOND_US, 30);
        assert!(keep_alive.behind(190 * SECOND_US) > 0);
        walk(&mut keep_alive, 190 * SECOND_US, 35);
        assert_eq!(keep_alive.behind(225 * SECOND_US), 0);
        assert!(most <= 2 * 101, "{most}");
    }
}
