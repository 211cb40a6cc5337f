//! What storms came to: their figures, their thresholds, their table.

use std::collections::BTreeMap;

use serde::Serialize;

use super::options::StormOptions;
use super::round::{Attempts, CALM, STORM, StormRound};
use crate::dense::{Counts, CrowdOutcome};
use crate::report::histogram::Percentiles;
use crate::report::table::{LATENCY_HEAD, Table, duration, grouped, latency_row};
use crate::report::{Misses, limited};
use crate::scenario::idle::quotient;
use crate::scenario::pairs::PairOutcome;
use crate::verify::Findings;

#[derive(Serialize)]
pub(super) struct StormResult {
    connections: u64,
    /// What the generator keeps of a client for itself.
    client_bytes: usize,
    /// When they first came, at leisure.
    leisurely_logins_per_s: f64,
    /// Of the slowest storm.
    logins_per_s: f64,
    steady_logins_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    logins_in_least_second: Option<u64>,
    /// Of the longest.
    last_login_s: f64,
    /// Of the worst.
    max_wait_ratio: f64,
    /// Over all storms.
    attempts: Attempts,
    missing: u64,
    rounds: Vec<StormRound>,
    /// Of the crowd.
    errors_by_code: BTreeMap<u32, u64>,
    faults: Vec<String>,
    clients: Counts,
    pairs: PairFigures,
    rss_start_bytes: u64,
    /// With all of them, at the end.
    rss_held_bytes: u64,
    #[serde(flatten)]
    leaving: Option<Leaving>,
}

/// The server's memory when all had left.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Leaving {
    rss_after_bytes: u64,
    /// Over that before they came.
    rss_ratio: f64,
}

impl Leaving {
    pub(super) fn new(start_bytes: u64, after_bytes: u64) -> Self {
        Self { rss_after_bytes: after_bytes, rss_ratio: quotient(after_bytes, start_bytes) }
    }
}

/// What became of the pairs.
#[derive(Clone, Debug, Serialize)]
struct PairFigures {
    #[serde(flatten)]
    findings: Findings,
    disconnects: u64,
    errors_by_code: BTreeMap<u32, u64>,
    violations: Vec<String>,
    calm_ack_us: Percentiles,
    storm_ack_us: Percentiles,
    calm_delivery_us: Percentiles,
    storm_delivery_us: Percentiles,
    ack_p50_ratio: f64,
    ack_p99_ratio: f64,
    delivery_p50_ratio: f64,
    delivery_p99_ratio: f64,
    /// How late the generator itself sent.
    calm_lag_us: Percentiles,
    storm_lag_us: Percentiles,
}

impl PairFigures {
    fn of(outcome: PairOutcome) -> Self {
        let slot = |slot: u8| outcome.slots.get(usize::from(slot - 1)).expect("the run was started with these slots");
        let (calm, storm) = (slot(CALM), slot(STORM));
        let (calm_ack_us, storm_ack_us) = (calm.ack.percentiles(), storm.ack.percentiles());
        let (calm_delivery_us, storm_delivery_us) = (calm.delivery.percentiles(), storm.delivery.percentiles());
        Self {
            ack_p50_ratio: quotient(storm_ack_us.p50, calm_ack_us.p50),
            ack_p99_ratio: quotient(storm_ack_us.p99, calm_ack_us.p99),
            delivery_p50_ratio: quotient(storm_delivery_us.p50, calm_delivery_us.p50),
            delivery_p99_ratio: quotient(storm_delivery_us.p99, calm_delivery_us.p99),
            calm_ack_us,
            storm_ack_us,
            calm_delivery_us,
            storm_delivery_us,
            calm_lag_us: calm.lag.percentiles(),
            storm_lag_us: storm.lag.percentiles(),
            findings: outcome.findings,
            disconnects: outcome.links.disconnects,
            errors_by_code: outcome.errors,
            violations: outcome.violations,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "microseconds of a run are below 2^52")]
    fn check(&self, ratio_max: f64, slack_ms: f64, misses: &mut Misses) {
        let found = &self.findings;
        misses.expect(found.is_clean() && found.unanswered == 0, || format!("the pairs: {found:?}"));
        misses.expect(self.disconnects == 0, || format!("{} connections of the pairs were lost", self.disconnects));
        misses.expect(self.violations.is_empty(), || format!("protocol broken: {:?}", self.violations));
        misses.expect_unlimited(limited(&self.errors_by_code));
        let compared = [
            ("acknowledgement", &self.calm_ack_us, &self.storm_ack_us),
            ("delivery", &self.calm_delivery_us, &self.storm_delivery_us),
        ];
        for (what, calm, storm) in compared {
            let bound_us = calm.p99 as f64 * ratio_max + slack_ms * 1e3;
            misses.expect(storm.p99 as f64 <= bound_us, || {
                format!("the pairs' {what} p99 is {} us in a storm, the bound {bound_us:.0} us", storm.p99)
            });
        }
    }

    fn render(&self) -> String {
        let mut times = Table::new(LATENCY_HEAD);
        times.row(latency_row("acknowledged, calm", &self.calm_ack_us));
        times.row(latency_row("acknowledged, storm", &self.storm_ack_us));
        times.row(latency_row("delivered, calm", &self.calm_delivery_us));
        times.row(latency_row("delivered, storm", &self.storm_delivery_us));
        times.row(latency_row("sent late, calm", &self.calm_lag_us));
        times.row(latency_row("sent late, storm", &self.storm_lag_us));
        let found = &self.findings;
        format!(
            "{}pairs: {} acknowledged, {} lost, {} duplicated, {} reordered; p99 x {:.2} acknowledged, x {:.2} delivered\n",
            times.render(),
            grouped(found.acked),
            found.lost,
            found.duplicated,
            found.reordered,
            self.ack_p99_ratio,
            self.delivery_p99_ratio
        )
    }
}

impl StormResult {
    pub(super) fn new(
        (connections, client_bytes, leisurely_logins_per_s): (u64, usize, f64),
        rounds: Vec<StormRound>,
        (rss_start_bytes, rss_held_bytes, leaving): (u64, u64, Option<Leaving>),
        outcome: CrowdOutcome,
        pairs: PairOutcome,
    ) -> Self {
        let least = |of: fn(&StormRound) -> f64| rounds.iter().map(of).fold(f64::INFINITY, f64::min);
        let most = |of: fn(&StormRound) -> f64| rounds.iter().map(of).fold(0.0, f64::max);
        Self {
            connections,
            client_bytes,
            leisurely_logins_per_s,
            logins_per_s: least(|round| round.logins_per_s),
            steady_logins_per_s: least(|round| round.steady_logins_per_s),
            logins_in_least_second: rounds.iter().filter_map(|round| round.logins_in_least_second).min(),
            last_login_s: most(|round| round.last_login_s),
            max_wait_ratio: most(|round| round.max_wait_ratio),
            attempts: rounds.iter().fold(Attempts::default(), |sum, round| sum.plus(&round.attempts)),
            missing: rounds.iter().map(|round| round.missing).sum(),
            rounds,
            errors_by_code: outcome.errors,
            faults: outcome.faults,
            clients: outcome.counts,
            pairs: PairFigures::of(pairs),
            rss_start_bytes,
            rss_held_bytes,
            leaving,
        }
    }

    pub(super) fn check(&self, options: &StormOptions) -> Vec<String> {
        let (mut misses, bounds) = (Misses::default(), &options.thresholds);
        let first = || self.faults.first().map_or_else(String::new, |fault| format!(": {fault}"));
        let Attempts { lost, unopened, .. } = self.attempts;
        misses.expect(self.missing == 0, || {
            format!("{} clients were not back within {}{}", self.missing, options.back_within, first())
        });
        misses.expect(lost == 0, || format!("{lost} clients stay away for good{}", first()));
        misses.expect(unopened == 0, || format!("{unopened} attempts failed on this side{}", first()));
        let least = bounds.logins_per_s_min.unwrap_or_default();
        misses.expect(self.logins_per_s >= least, || {
            format!("{:.0} logins a second until the last was in, not {least}", self.logins_per_s)
        });
        for (round, number) in self.rounds.iter().zip(1..) {
            let (found, max) = (round.max_wait_ratio, bounds.wait_ratio_max);
            misses.expect(found <= max, || {
                format!(
                    "storm {number}: the longest wait is {}, {found:.2} times the ideal {:.2} s, not {max}",
                    duration(round.wait_us.max),
                    round.ideal_wait_s
                )
            });
        }
        self.pairs.check(bounds.p99_ratio_max, bounds.slack_ms, &mut misses);
        if let (Some(max), Some(leaving)) = (bounds.rss_ratio_max, &self.leaving) {
            misses.expect(leaving.rss_ratio <= max, || {
                format!("the server keeps {:.2} times the memory that it began with, not {max}", leaving.rss_ratio)
            });
        }
        misses.into_vec()
    }

    /// `how` says in what way they left and came back.
    pub(super) fn render(&self, how: &str) -> String {
        let mut storms =
            Table::new(["storm", "back", "last login", "logins/s", "steady", "least second", "ideal wait", "max x"]);
        let mut waits = Table::new(LATENCY_HEAD);
        let mut met = Table::new(["", "attempts", "busy", "full", "refused", "reset", "cut", "unanswered", "retried"]);
        let mut costs = Table::new(["", "dropped in", "CPU us/login", "cores", "memory before", "most", "after"]);
        for (round, number) in self.rounds.iter().zip(1..) {
            storms.row(vec![
                format!("{number}"),
                grouped(round.wait_us.count),
                format!("{:.2} s", round.last_login_s),
                format!("{:.0}", round.logins_per_s),
                format!("{:.0}", round.steady_logins_per_s),
                round.logins_in_least_second.map_or_else(|| "-".to_owned(), grouped),
                format!("{:.2} s", round.ideal_wait_s),
                format!("{:.2}", round.max_wait_ratio),
            ]);
            waits.row(latency_row(&format!("waited, storm {number}"), &round.wait_us));
            waits.row(latency_row("attempted late", &round.attempt_lag_us));
            let Attempts { attempts, busy, full, refused, reset, cut, unanswered, retried, .. } = round.attempts;
            let cells = [attempts, busy, full, refused, reset, cut, unanswered, retried].map(grouped);
            met.row([format!("storm {number}")].into_iter().chain(cells).collect());
            costs.row(vec![
                format!("storm {number}"),
                format!("{:.0} ms", round.drop_took_ms),
                format!("{:.1}", round.server_cpu_us_per_login),
                format!("{:.2}", round.server_cores_used),
                grouped(round.rss_before_bytes),
                grouped(round.rss_most_bytes),
                grouped(round.rss_after_bytes),
            ]);
        }
        let leaving = self.leaving.map_or_else(String::new, |leaving| {
            format!(", {} when all had left: x {:.2}", grouped(leaving.rss_after_bytes), leaving.rss_ratio)
        });
        let tables = [storms.render(), waits.render(), met.render(), costs.render(), self.pairs.render()].join("\n");
        format!(
            "{tables}crowd: {how}\nserver's memory: {} before, {} in the end{leaving}\n",
            grouped(self.rss_start_bytes),
            grouped(self.rss_held_bytes)
        )
    }
}
