//! Pairs that talk calmly while inboxes drain: what they notice of it, and what they cost by themselves.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;

use crate::clock::Clock;
use crate::options::{PairOptions, RunOptions, rate};
use crate::report::Misses;
use crate::report::histogram::Percentiles;
use crate::report::progress::Progress;
use crate::report::table::{LATENCY_HEAD, Table, latency_row};
use crate::scenario::pairs::{Pace, PairOutcome, PairRun};
use crate::target::Target;
use crate::units::Span;
use crate::verify::Findings;

/// Longest wait for what is under way when sending has ended.
const FINISH_MAX: Duration = Duration::from_secs(30);
/// How long the pairs talk before anything of it counts.
const WARMUP: Duration = Duration::from_secs(2);

/// Phases that are measured apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody but the pairs.
    Calm = 1,
    /// The inboxes drain.
    Drain = 2,
    /// All entries have been delivered; cursors and floors follow.
    After = 3,
}

/// Options of the calm pairs.
#[derive(Args, Clone, Debug, Serialize)]
pub(super) struct CalmOptions {
    /// Pairs that talk calmly, before the inboxes drain and meanwhile; 0: none
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub(super) calm_pairs: u32,
    /// Their messages a second, over all (open loop; latency counts from the intended send time)
    #[arg(long, default_value_t = 1000.0, value_name = "PER_S", value_parser = rate)]
    calm_rate: f64,
    /// Let each have so many under way instead (closed loop)
    #[arg(long, value_name = "N", conflicts_with = "calm_rate", value_parser = clap::value_parser!(u32).range(1..=1024))]
    calm_in_flight: Option<u32>,
    /// How long they are measured by themselves
    #[arg(long, default_value = "10s")]
    calm: Span,
    /// Their p99 during the drain at most so many times the calm one, plus --slack-ms
    #[arg(long, value_name = "RATIO")]
    calm_p99_ratio_max: Option<f64>,
    /// What --calm-p99-ratio-max adds
    #[arg(long, default_value_t = 1.0, value_name = "MS")]
    slack_ms: f64,
}

/// What the pairs noticed.
#[derive(Serialize)]
pub(super) struct CalmResult {
    pub(super) findings: Findings,
    pub(super) disconnects: u64,
    pub(super) errors_by_code: BTreeMap<u32, u64>,
    pub(super) violations: Vec<String>,
    pub(super) calm_ack_us: Percentiles,
    pub(super) drain_ack_us: Percentiles,
    pub(super) after_ack_us: Percentiles,
    pub(super) calm_delivery_us: Percentiles,
    pub(super) drain_delivery_us: Percentiles,
    pub(super) after_delivery_us: Percentiles,
    /// How late the generator itself sent during the drain.
    pub(super) drain_generator_lag_us: Percentiles,
    pub(super) ack_p99_ratio: f64,
    pub(super) delivery_p99_ratio: f64,
    /// What a message of theirs cost the server while nobody else was there.
    pub(super) server_cpu_us_per_msg: f64,
    /// Their messages while the drain's CPU time was taken.
    pub(super) msgs_in_drain: u64,
}

/// The pairs while they talk.
pub(super) struct CalmPairs {
    run: PairRun,
    server_cpu_us_per_msg: f64,
}

impl CalmOptions {
    /// Lets the pairs talk, first by themselves; `None`: none were asked for.
    pub(super) fn start(
        &self,
        run: &RunOptions,
        target: &mut dyn Target,
        payload: usize,
        first_user: u64,
        seed: u64,
        progress: &Progress,
    ) -> Result<Option<CalmPairs>> {
        if self.calm_pairs == 0 {
            return Ok(None);
        }
        let pace = match self.calm_in_flight {
            Some(in_flight) => Pace::Closed { in_flight: in_flight as usize },
            None => Pace::Open { rate: self.calm_rate },
        };
        let load = PairOptions::of(self.calm_pairs, pace, payload, first_user).load(run, seed, 0);
        let run = PairRun::start(target, &load, Phase::After as u8, Clock::start())?;
        run.wait_for_logins(progress)?;
        run.shared().go();
        let tell = || {
            progress.tell(format!("calm: {}", run.shared().counters()));
            run.check_alive()
        };
        progress.wait(WARMUP, tell)?;
        let (cpu_us, acked) = (target.sample()?.cpu_us, run.shared().counters().acked);
        run.shared().set_slot(Phase::Calm as u8);
        progress.wait(self.calm.0, tell)?;
        run.shared().set_slot(0);
        let cpu_us = target.sample()?.cpu_us.saturating_sub(cpu_us);
        let server_cpu_us_per_msg = share(cpu_us, run.shared().counters().acked - acked);
        Ok(Some(CalmPairs { run, server_cpu_us_per_msg }))
    }

    /// Adds what the pairs should not have noticed.
    pub(super) fn check(&self, result: &CalmResult, misses: &mut Misses) {
        let found = &result.findings;
        misses.expect(found.is_clean() && found.unanswered == 0, || format!("the calm pairs: {found:?}"));
        misses.expect(result.disconnects == 0, || format!("{} calm connections lost", result.disconnects));
        misses.expect(result.violations.is_empty(), || format!("protocol broken: {:?}", result.violations));
        let Some(max) = self.calm_p99_ratio_max else { return };
        let compared = [
            ("acknowledgement", &result.calm_ack_us, &result.drain_ack_us),
            ("delivery", &result.calm_delivery_us, &result.drain_delivery_us),
        ];
        for (what, calm, drain) in compared {
            misses.expect(calm.count > 0 && drain.count > 0, || format!("no calm {what} was measured"));
            let bound_us = float(calm.p99) * max + self.slack_ms * 1e3;
            misses.expect(float(drain.p99) <= bound_us, || {
                format!("calm {what} p99 is {} us during the drain, the bound {bound_us:.0} us", drain.p99)
            });
        }
    }
}

impl CalmPairs {
    /// From now on latencies belong to this phase.
    pub(super) fn enter(&self, phase: Phase) {
        self.run.shared().set_slot(phase as u8);
    }

    /// Their messages that have been acknowledged so far.
    pub(super) fn acked(&self) -> u64 {
        self.run.shared().counters().acked
    }

    /// An error if they cannot go on.
    pub(super) fn check_alive(&self) -> Result<()> {
        self.run.check_alive()
    }

    /// Ends the talk; `msgs_in_drain` of their messages share the CPU time that was taken of the drain.
    pub(super) fn finish(self, msgs_in_drain: u64, progress: &Progress) -> Result<CalmResult> {
        let outcome = self.run.finish(FINISH_MAX, progress)?;
        Ok(CalmResult::new(outcome, self.server_cpu_us_per_msg, msgs_in_drain))
    }
}

impl CalmResult {
    fn new(outcome: PairOutcome, server_cpu_us_per_msg: f64, msgs_in_drain: u64) -> Self {
        let slot = |phase: Phase| {
            let slot = outcome.slots.get(phase as usize - 1).expect("the run was started with a slot for each phase");
            (slot.ack.percentiles(), slot.delivery.percentiles(), slot.lag.percentiles())
        };
        let (calm_ack_us, calm_delivery_us, _) = slot(Phase::Calm);
        let (drain_ack_us, drain_delivery_us, drain_generator_lag_us) = slot(Phase::Drain);
        let (after_ack_us, after_delivery_us, _) = slot(Phase::After);
        Self {
            findings: outcome.findings,
            disconnects: outcome.links.disconnects,
            errors_by_code: outcome.errors,
            violations: outcome.violations,
            ack_p99_ratio: share(drain_ack_us.p99, calm_ack_us.p99),
            delivery_p99_ratio: share(drain_delivery_us.p99, calm_delivery_us.p99),
            calm_ack_us,
            drain_ack_us,
            after_ack_us,
            calm_delivery_us,
            drain_delivery_us,
            after_delivery_us,
            drain_generator_lag_us,
            server_cpu_us_per_msg,
            msgs_in_drain,
        }
    }

    /// What the pairs cost the server while the inboxes drained, as far as a calm message tells.
    pub(super) fn cpu_us_in_drain(&self) -> f64 {
        self.server_cpu_us_per_msg * float(self.msgs_in_drain)
    }

    pub(super) fn render(&self) -> String {
        let mut times = Table::new(LATENCY_HEAD);
        let rows = [
            ("calm, acknowledged", &self.calm_ack_us),
            ("draining, acknowledged", &self.drain_ack_us),
            ("right after, acknowledged", &self.after_ack_us),
            ("calm, delivered", &self.calm_delivery_us),
            ("draining, delivered", &self.drain_delivery_us),
            ("right after, delivered", &self.after_delivery_us),
            ("draining, generator late", &self.drain_generator_lag_us),
        ];
        for (name, latencies) in rows {
            times.row(latency_row(name, latencies));
        }
        let found = &self.findings;
        format!(
            "{}\ncalm pairs: {} acknowledged, {} lost, {} duplicated, {} reordered; p99 x {:.2} acknowledged, x {:.2} \
             delivered; {:.2} us of CPU per message by themselves, {} messages during the drain\n",
            times.render(),
            found.acked,
            found.lost,
            found.duplicated,
            found.reordered,
            self.ack_p99_ratio,
            self.delivery_p99_ratio,
            self.server_cpu_us_per_msg,
            self.msgs_in_drain
        )
    }
}

/// A quotient of counts; 0 of nothing.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { float(part) / float(whole) }
}

#[expect(clippy::cast_precision_loss, reason = "counts and microseconds of a run are below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(calm_p99_ratio_max: Option<f64>) -> CalmOptions {
        CalmOptions {
            calm_pairs: 64,
            calm_rate: 1000.0,
            calm_in_flight: None,
            calm: Span(Duration::from_secs(10)),
            calm_p99_ratio_max,
            slack_ms: 1.0,
        }
    }

    fn result(calm_p99_us: u64, drain_p99_us: u64) -> CalmResult {
        let slots = [calm_p99_us, drain_p99_us, 1].map(|us| {
            let mut slot = crate::scenario::pairs::SlotLatencies::new();
            slot.ack.record(us);
            slot.delivery.record(us);
            slot
        });
        let outcome = PairOutcome { slots: slots.to_vec(), ..PairOutcome::default() };
        CalmResult::new(outcome, 20.0, 3)
    }

    fn misses(options: &CalmOptions, result: &CalmResult) -> usize {
        let mut misses = Misses::default();
        options.check(result, &mut misses);
        misses.into_vec().len()
    }

    #[test]
    fn each_phase_has_its_latencies() {
        let result = result(1000, 2000);
        assert_eq!((result.calm_ack_us.count, result.drain_delivery_us.count, result.after_ack_us.p50), (1, 1, 1));
        assert!((result.ack_p99_ratio - 2.0).abs() < 0.01, "{}", result.ack_p99_ratio);
        assert!((result.cpu_us_in_drain() - 60.0).abs() < 1e-9);
    }

    #[test]
    fn the_bound_is_a_ratio_and_some_slack() {
        let bounded = options(Some(1.25));
        assert_eq!(misses(&bounded, &result(1000, 2200)), 0);
        assert_eq!(misses(&bounded, &result(1000, 2400)), 2);
        assert_eq!(misses(&options(None), &result(1000, 2400)), 0);
    }

    #[test]
    fn a_loss_of_the_calm_pairs_is_a_miss() {
        let mut result = result(1000, 1000);
        result.findings.lost = 1;
        assert_eq!(misses(&options(None), &result), 1);
    }
}
