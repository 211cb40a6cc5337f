//! How a crowd came back: how long each client was away, how late its attempts were, and how many logged in when.

use crate::clock::seconds;
use crate::report::histogram::{Latencies, Percentiles};

/// Logins are counted by spans of this.
const STEP_US: u64 = 100_000;
/// Of which a second has so many.
const STEPS_PER_S: usize = 10;
/// Steps that are told apart, at most: an hour. What comes later counts to the last.
const STEPS_MAX: usize = 3600 * STEPS_PER_S;
/// The steady rate is taken without the first and the last logins: one in so many each.
const EDGE_ONE_IN: u64 = 10;

/// What became of those who came back since the last time that all were dropped.
#[derive(Clone, Debug)]
pub(crate) struct Returned {
    /// When all were dropped.
    pub(crate) began_us: u64,
    /// From a client's loss to its login.
    waits: Latencies,
    /// From the time at which an attempt was due to its beginning.
    lag: Latencies,
    /// Logins in each step since `began_us`.
    steps: Vec<u32>,
    last_us: u64,
    /// The first GOAWAY and the last, since `began_us`.
    goaways_us: Option<(u64, u64)>,
}

impl Returned {
    pub(super) fn since(began_us: u64) -> Self {
        Self {
            began_us,
            waits: Latencies::of_waits(),
            lag: Latencies::of_waits(),
            steps: Vec::new(),
            last_us: began_us,
            goaways_us: None,
        }
    }

    /// A client is back.
    pub(super) fn note_login(&mut self, waited_us: u64, now_us: u64) {
        self.waits.record(waited_us);
        self.last_us = self.last_us.max(now_us);
        let step = usize::try_from(now_us.saturating_sub(self.began_us) / STEP_US).unwrap_or(STEPS_MAX);
        let step = step.min(STEPS_MAX - 1);
        if step >= self.steps.len() {
            self.steps.resize(step + 1, 0);
        }
        if let Some(count) = self.steps.get_mut(step) {
            *count = count.saturating_add(1);
        }
    }

    /// A client was asked to leave.
    pub(super) fn note_goaway(&mut self, now_us: u64) {
        let us = now_us.saturating_sub(self.began_us);
        let (first_us, last_us) = self.goaways_us.unwrap_or((us, us));
        self.goaways_us = Some((first_us.min(us), last_us.max(us)));
    }

    /// An attempt that was due has begun so much later.
    pub(super) fn note_attempt(&mut self, late_us: u64) {
        self.lag.record(late_us);
    }

    /// Adds what another worker saw of the same.
    pub(super) fn merge(&mut self, other: &Self) {
        self.waits.merge(&other.waits);
        self.lag.merge(&other.lag);
        self.last_us = self.last_us.max(other.last_us);
        self.goaways_us = match (self.goaways_us, other.goaways_us) {
            (Some(own), Some(others)) => Some((own.0.min(others.0), own.1.max(others.1))),
            (own, others) => own.or(others),
        };
        if other.steps.len() > self.steps.len() {
            self.steps.resize(other.steps.len(), 0);
        }
        for (mine, theirs) in self.steps.iter_mut().zip(&other.steps) {
            *mine = mine.saturating_add(*theirs);
        }
    }

    /// From a client's loss to its login.
    pub(crate) fn waits_us(&self) -> Percentiles {
        self.waits.percentiles()
    }

    /// How late attempts were.
    pub(crate) fn lag_us(&self) -> Percentiles {
        self.lag.percentiles()
    }

    /// The first GOAWAY and the last, from the drop on.
    pub(crate) fn goaways_us(&self) -> Option<(u64, u64)> {
        self.goaways_us
    }

    /// From the drop to the last login.
    pub(crate) fn took_us(&self) -> u64 {
        self.last_us.saturating_sub(self.began_us)
    }

    /// Logins a second until the last.
    #[expect(clippy::cast_precision_loss, reason = "logins of a run are below 2^52")]
    pub(crate) fn logins_per_s(&self) -> f64 {
        let count = self.waits.percentiles().count as f64;
        if self.took_us() > 0 { count / seconds(self.took_us()) } else { 0.0 }
    }

    /// Logins a second while all but the first tenth and the last came: stragglers do not make it less.
    #[expect(clippy::cast_precision_loss, reason = "logins and steps of a run are below 2^52")]
    pub(crate) fn steady_logins_per_s(&self) -> f64 {
        let count: u64 = self.steps.iter().copied().map(u64::from).sum();
        let edge = count / EDGE_ONE_IN;
        let (mut sum, mut from, mut to) = (0, None, None);
        for (step, logins) in self.steps.iter().enumerate() {
            sum += u64::from(*logins);
            if from.is_none() && sum >= edge {
                from = Some((step, sum));
            }
            if to.is_none() && sum >= count - edge {
                to = Some((step, sum));
            }
        }
        match (from, to) {
            (Some((from, before)), Some((to, after))) if to > from => {
                (after - before) as f64 * STEPS_PER_S as f64 / (to - from) as f64
            }
            _ => self.logins_per_s(),
        }
    }

    /// Logins in the least of all seconds between the first and the last; `None`: there was no whole second.
    pub(crate) fn least_in_a_second(&self) -> Option<u64> {
        let first = self.steps.iter().position(|logins| *logins > 0)?;
        let whole = self.steps.get(first + 1..self.steps.len() - 1)?;
        whole.windows(STEPS_PER_S).map(|second| second.iter().copied().map(u64::from).sum()).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    /// Even logins from `from_us` to `to_us`.
    fn evenly(returned: &mut Returned, (from_us, to_us): (u64, u64), count: u64) {
        for number in 0..count {
            let now_us = from_us + (to_us - from_us) * number / count;
            returned.note_login(now_us - returned.began_us, now_us);
        }
    }

    #[test]
    fn rates_are_told_of_the_whole_of_its_middle_and_of_its_least_second() {
        let began_us = 7 * SECOND_US;
        let mut returned = Returned::since(began_us);
        assert_eq!((returned.took_us(), returned.least_in_a_second()), (0, None));
        assert!(returned.logins_per_s().abs() < 1e-9 && returned.steady_logins_per_s().abs() < 1e-9);
        evenly(&mut returned, (began_us + SECOND_US, began_us + 11 * SECOND_US), 10_000);
        // One straggler.
        returned.note_login(21 * SECOND_US, began_us + 21 * SECOND_US);
        assert_eq!(returned.took_us(), 21 * SECOND_US);
        assert!((returned.logins_per_s() - 10_001.0 / 21.0).abs() < 0.1);
        let steady = returned.steady_logins_per_s();
        assert!((985.0..=1015.0).contains(&steady), "{steady}");
        assert_eq!(returned.least_in_a_second(), Some(0));
        assert_eq!(returned.waits_us().count, 10_001);
    }

    #[test]
    fn a_gap_shows_in_any_second_however_it_lies() {
        let mut returned = Returned::since(0);
        evenly(&mut returned, (0, 3 * SECOND_US + SECOND_US / 2), 3500);
        evenly(&mut returned, (4 * SECOND_US + SECOND_US / 2, 8 * SECOND_US), 3500);
        assert_eq!(returned.least_in_a_second(), Some(0), "from the middle of one second to that of the next");
        let mut even = Returned::since(0);
        evenly(&mut even, (0, 8 * SECOND_US), 8000);
        assert_eq!(even.least_in_a_second(), Some(1000));
    }

    #[test]
    fn what_workers_saw_adds_up() {
        let (mut one, mut two, mut all) = (Returned::since(5), Returned::since(5), Returned::since(5));
        for number in 0..1000 {
            let part = if number % 3 == 0 { &mut one } else { &mut two };
            for returned in [part, &mut all] {
                returned.note_login(number * 1000, 5 + number * 1000);
                returned.note_attempt(number);
                returned.note_goaway(5 + number);
            }
        }
        one.merge(&two);
        assert_eq!((one.waits_us(), one.lag_us()), (all.waits_us(), all.lag_us()));
        assert_eq!((one.took_us(), &one.steps), (all.took_us(), &all.steps));
        assert_eq!((one.goaways_us(), all.goaways_us()), (Some((0, 999)), Some((0, 999))));
        let mut late = Returned::since(0);
        late.note_login(u64::MAX, u64::MAX);
        assert_eq!(late.steps.len(), STEPS_MAX);
    }
}
