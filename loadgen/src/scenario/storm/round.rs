//! One storm: all are dropped, and how they come back is watched until the last is there.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::options::StormOptions;
use crate::clock::seconds;
use crate::dense::{Counts, Crowd, Returned};
use crate::procfs;
use crate::report::histogram::Percentiles;
use crate::report::progress::Progress;
use crate::scenario::idle::{Guard, quotient, ratio, sample};
use crate::scenario::pairs::PairRun;
use crate::sys;
use crate::target::culver::Culver;

/// The pairs' slots: what they send in a calm, and in a storm.
pub(super) const CALM: u8 = 1;
pub(super) const STORM: u8 = 2;
pub(super) const SLOTS: u8 = 2;
/// How often the server's memory is looked at: seldom enough to cost nothing.
const MEMORY_LOOK: Duration = Duration::from_millis(200);

/// Reads the server's memory and CPU: from its process where that is known, for its own word costs it something.
pub(super) struct Meter<'a> {
    culver: &'a mut Culver,
    pid: Option<u32>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(culver: &'a mut Culver, pid: Option<u32>) -> Self {
        Self { culver, pid }
    }

    pub(super) fn rss_bytes(&mut self) -> Result<u64> {
        match self.pid {
            Some(pid) => procfs::rss_bytes(pid),
            None => Ok(sample(self.culver)?.rss_bytes),
        }
    }

    pub(super) fn cpu_us(&mut self) -> Result<u64> {
        match self.pid.map(sys::cpu_us_of) {
            Some(Ok(cpu_us)) => Ok(cpu_us),
            _ => Ok(sample(self.culver)?.cpu_us),
        }
    }
}

/// What attempts to log in met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Attempts {
    pub(crate) attempts: u64,
    /// Told `LoginsBusy`.
    pub(crate) busy: u64,
    /// Told `ConnectionsFull`.
    pub(crate) full: u64,
    pub(crate) refused: u64,
    pub(crate) reset: u64,
    /// Ended without a word.
    pub(crate) cut: u64,
    pub(crate) unanswered: u64,
    /// Failed on the generator's side.
    pub(crate) unopened: u64,
    /// Attempts beyond the first of each client that came back.
    pub(crate) retried: u64,
    /// Connections lost once more after the drop.
    pub(crate) lost_again: u64,
    /// Clients that stay away for good.
    pub(crate) lost: u64,
}

impl Attempts {
    /// What was counted between two looks.
    pub(crate) fn between(before: &Counts, after: &Counts) -> Self {
        let count = |of: fn(&Counts) -> u64| of(after).saturating_sub(of(before));
        let attempts = count(|counts| counts.attempts);
        Self {
            attempts,
            busy: count(|counts| counts.logins_busy),
            full: count(|counts| counts.full),
            refused: count(|counts| counts.refused),
            reset: count(|counts| counts.reset),
            cut: count(|counts| counts.cut),
            unanswered: count(|counts| counts.unanswered),
            unopened: count(|counts| counts.unopened),
            retried: attempts.saturating_sub(count(|counts| counts.returns)),
            lost_again: count(|counts| counts.disconnects),
            lost: count(|counts| counts.login_failures),
        }
    }

    pub(super) fn plus(self, other: &Self) -> Self {
        Self {
            attempts: self.attempts + other.attempts,
            busy: self.busy + other.busy,
            full: self.full + other.full,
            refused: self.refused + other.refused,
            reset: self.reset + other.reset,
            cut: self.cut + other.cut,
            unanswered: self.unanswered + other.unanswered,
            unopened: self.unopened + other.unopened,
            retried: self.retried + other.retried,
            lost_again: self.lost_again + other.lost_again,
            lost: self.lost + other.lost,
        }
    }
}

/// What one storm came to.
#[derive(Clone, Debug, Serialize)]
pub(super) struct StormRound {
    pub(super) dropped: u64,
    /// From the moment of the drop until all were dropped.
    pub(super) drop_took_ms: f64,
    /// Who was not back in time.
    pub(super) missing: u64,
    /// From the drop to the last login.
    pub(super) last_login_s: f64,
    /// Until then.
    pub(super) logins_per_s: f64,
    /// Without the first tenth of them and the last: what the ideal is reckoned by.
    pub(super) steady_logins_per_s: f64,
    /// In the least of all seconds in between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) logins_in_least_second: Option<u64>,
    /// From each client's loss to its login.
    pub(super) wait_us: Percentiles,
    /// All clients over the steady logins a second.
    pub(super) ideal_wait_s: f64,
    pub(super) max_wait_ratio: f64,
    #[serde(flatten)]
    pub(super) attempts: Attempts,
    /// How late the crowd was for attempts that were due.
    pub(super) attempt_lag_us: Percentiles,
    pub(super) server_cpu_s: f64,
    pub(super) server_cpu_us_per_login: f64,
    pub(super) server_cores_used: f64,
    pub(super) rss_before_bytes: u64,
    pub(super) rss_most_bytes: u64,
    pub(super) rss_after_bytes: u64,
}

impl StormRound {
    /// Drops all, and waits until all are back, at most as long as they may take.
    pub(super) fn run(
        options: &StormOptions,
        (crowd, pairs): (&Crowd, &PairRun),
        meter: &mut Meter<'_>,
        progress: &Progress,
        guard: &mut Guard,
    ) -> Result<Self> {
        let (before, expected) = (crowd.counts(), crowd.live());
        let rss_before_bytes = meter.rss_bytes()?;
        let cpu_before_us = meter.cpu_us()?;
        let mut rss_most_bytes = rss_before_bytes;
        pairs.shared().set_slot(STORM);
        let began = Instant::now();
        crowd.drop_all();
        let (mut drop_took, mut looked) = (None, began);
        progress.wait_until(options.back_within.0, || {
            let (counts, live) = (crowd.counts(), crowd.live());
            let dropped = counts.dropped - before.dropped;
            progress.tell(format!("storm: {live} of {expected} are back, {} told to come later", counts.logins_busy));
            if dropped >= expected && drop_took.is_none() {
                drop_took = Some(began.elapsed());
            }
            if looked.elapsed() >= MEMORY_LOOK {
                looked = Instant::now();
                rss_most_bytes = rss_most_bytes.max(meter.rss_bytes()?);
            }
            pairs.check_alive()?;
            crowd.check_alive()?;
            guard.check()?;
            let lost = counts.login_failures - before.login_failures;
            Ok(drop_took.is_some() && live + lost >= expected)
        })?;
        pairs.shared().set_slot(0);
        let spent_us = meter.cpu_us()?.saturating_sub(cpu_before_us);
        let attempts = Attempts::between(&before, &crowd.counts());
        let rss_after_bytes = meter.rss_bytes()?;
        let returned = crowd.returned().expect("it is watched since the drop");
        Ok(Self {
            dropped: expected,
            drop_took_ms: drop_took.unwrap_or(options.back_within.0).as_secs_f64() * 1e3,
            missing: expected.saturating_sub(crowd.live() + attempts.lost),
            server_cpu_s: seconds(spent_us),
            server_cpu_us_per_login: quotient(spent_us, returned.waits_us().count),
            server_cores_used: ratio(seconds(spent_us), began.elapsed().as_secs_f64()),
            rss_before_bytes,
            rss_most_bytes: rss_most_bytes.max(rss_after_bytes),
            rss_after_bytes,
            attempts,
            ..Self::of(&returned, expected)
        })
    }

    /// What the logins themselves tell.
    #[expect(clippy::cast_precision_loss, reason = "clients of a run are below 2^52")]
    fn of(returned: &Returned, expected: u64) -> Self {
        let (wait_us, steady) = (returned.waits_us(), returned.steady_logins_per_s());
        let ideal_wait_s = if steady > 0.0 { expected as f64 / steady } else { 0.0 };
        Self {
            dropped: expected,
            drop_took_ms: 0.0,
            missing: 0,
            last_login_s: seconds(returned.took_us()),
            logins_per_s: returned.logins_per_s(),
            steady_logins_per_s: steady,
            logins_in_least_second: returned.least_in_a_second(),
            ideal_wait_s,
            max_wait_ratio: ratio(seconds(wait_us.max), ideal_wait_s),
            wait_us,
            attempts: Attempts::default(),
            attempt_lag_us: returned.lag_us(),
            server_cpu_s: 0.0,
            server_cpu_us_per_login: 0.0,
            server_cores_used: 0.0,
            rss_before_bytes: 0,
            rss_most_bytes: 0,
            rss_after_bytes: 0,
        }
    }
}
