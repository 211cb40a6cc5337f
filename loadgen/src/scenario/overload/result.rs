//! What an overload came to: its figures, its bars, its table.

use std::collections::BTreeMap;
use std::fmt::Write;

use culver_protocol::error::ErrorCode;
use serde::Serialize;

use super::CATCH_UP_MAX;
use super::options::OverloadOptions;
use super::ramp::{Stage, Step};
use crate::report::histogram::Percentiles;
use crate::report::table::{Table, duration, grouped};
use crate::report::{Misses, limited};
use crate::scenario::pairs::shared::Counters;
use crate::scenario::pairs::{PairOutcome, SlotLatencies};
use crate::target::Sample;
use crate::verify::Findings;

/// Of what a step is to offer, the generator must offer this share, or the step says nothing.
const OFFERED_SHARE_MIN: f64 = 0.9;

/// What one step came to.
#[derive(Clone, Debug, Serialize)]
pub(super) struct StepFigures {
    stage: &'static str,
    rate_per_s: f64,
    measured_s: f64,
    pub(super) offered_per_s: f64,
    sent_per_s: f64,
    acked_per_s: f64,
    pub(super) delivered_per_s: f64,
    /// Sent, and not delivered when the overload ended.
    pub(super) behind: u64,
    /// How long after the overload the last of them was delivered, nothing being sent meanwhile.
    pub(super) catch_up_s: Option<f64>,
    /// Answered `busy`: they come again.
    busy: u64,
    /// From when the client was given the message: what the server answers for.
    admitted_us: Percentiles,
    /// From when it was due, waiting for room in the client's window included.
    intended_us: Percentiles,
    /// How late the generator noticed that a message was due.
    generator_lag_us: Percentiles,
    server_cpu_us_per_msg: f64,
    server_cores_used: f64,
    server_resident_bytes: u64,
    /// Of it, what is neither memtable nor cache.
    server_plain_bytes: u64,
}

impl StepFigures {
    pub(super) fn new(
        step: Step,
        (before, after): (Counters, Counters),
        (sample_before, sample_after): (Sample, Sample),
        measured_s: f64,
    ) -> Self {
        let per_s = |count: fn(&Counters) -> u64| ratio(count(&after) - count(&before), measured_s);
        let (acked, cpu_us) = (after.acked - before.acked, sample_after.cpu_us.saturating_sub(sample_before.cpu_us));
        Self {
            stage: step.stage.name(),
            rate_per_s: step.rate_per_s,
            measured_s,
            offered_per_s: per_s(|counters| counters.offered),
            sent_per_s: per_s(|counters| counters.sent),
            acked_per_s: per_s(|counters| counters.acked),
            delivered_per_s: per_s(|counters| counters.delivered),
            behind: 0,
            catch_up_s: None,
            busy: after.busy - before.busy,
            admitted_us: Percentiles::default(),
            intended_us: Percentiles::default(),
            generator_lag_us: Percentiles::default(),
            server_cpu_us_per_msg: ratio(cpu_us, ratio(acked, 1.0)),
            server_cores_used: ratio(cpu_us, measured_s * 1e6),
            server_resident_bytes: sample_after.rss_bytes,
            server_plain_bytes: sample_after.plain_bytes(),
        }
    }

    /// Told when the run is over: what a step admitted may be answered in a later one.
    pub(super) fn take_latencies(&mut self, latencies: &SlotLatencies) {
        self.admitted_us = latencies.admitted.percentiles();
        self.intended_us = latencies.ack.percentiles();
        self.generator_lag_us = latencies.lag.percentiles();
    }

    /// What is durable, and will be delivered: its senders have been told so.
    pub(super) fn goodput_per_s(&self) -> f64 {
        self.acked_per_s
    }

    fn is(&self, stage: Stage) -> bool {
        self.stage == stage.name()
    }
}

#[derive(Serialize)]
pub(super) struct OverloadResult {
    /// The first offered rate that the server did not follow.
    saturated_offered_per_s: Option<f64>,
    /// The most that was acknowledged in a second, in any step but the overload.
    goodput_peak_per_s: f64,
    goodput_overload_per_s: f64,
    goodput_ratio: f64,
    delivered_overload_per_s: f64,
    /// What was admitted and not delivered when the overload ended, and how long it took until it was.
    behind_overload: u64,
    catch_up_s: Option<f64>,
    admitted_p99_us_overload: u64,
    /// What clients may have unanswered, at the goodput under overload: longer nothing admitted should take, save for
    /// what is unfair among clients.
    admitted_bound_us: f64,
    calm_p99_us: u64,
    calm_again_p99_us: u64,
    given_up: u64,
    #[serde(flatten)]
    findings: Findings,
    /// Without those that were told at their login to come later: they had no load yet.
    disconnects: u64,
    errors_by_code: BTreeMap<u32, u64>,
    violations: Vec<String>,
    faults: Vec<String>,
    steps: Vec<StepFigures>,
}

impl OverloadResult {
    pub(super) fn new(
        options: &OverloadOptions,
        steps: Vec<StepFigures>,
        (saturated_offered_per_s, given_up): (Option<f64>, u64),
        outcome: PairOutcome,
    ) -> Self {
        let others = steps.iter().filter(|step| !step.is(Stage::Over));
        let goodput_peak_per_s = others.map(StepFigures::goodput_per_s).fold(0.0, f64::max);
        let of = |stage| steps.iter().find(|step| step.is(stage));
        let p99_us = |stage| of(stage).map_or(0, |step| step.admitted_us.p99);
        let goodput_overload_per_s = of(Stage::Over).map_or(0.0, StepFigures::goodput_per_s);
        Self {
            saturated_offered_per_s,
            goodput_peak_per_s,
            goodput_overload_per_s,
            goodput_ratio: quotient(goodput_overload_per_s, goodput_peak_per_s),
            delivered_overload_per_s: of(Stage::Over).map_or(0.0, |step| step.delivered_per_s),
            behind_overload: of(Stage::Over).map_or(0, |step| step.behind),
            catch_up_s: of(Stage::Over).and_then(|step| step.catch_up_s),
            admitted_p99_us_overload: p99_us(Stage::Over),
            admitted_bound_us: quotient(ratio(options.admitted_max(), 1e-6), goodput_overload_per_s),
            calm_p99_us: p99_us(Stage::Calm),
            calm_again_p99_us: p99_us(Stage::CalmAgain),
            given_up,
            findings: outcome.findings,
            disconnects: outcome.links.disconnects.saturating_sub(told_to_come_later(&outcome.errors)),
            errors_by_code: outcome.errors,
            violations: outcome.violations,
            faults: outcome.faults,
            steps,
        }
    }

    pub(super) fn check(&self, options: &OverloadOptions) -> Vec<String> {
        let mut misses = Misses::default();
        let found = &self.findings;
        misses.expect(found.is_clean() && found.unanswered == 0, || {
            let first = self.faults.first().map_or("", String::as_str);
            format!("{}, {} unanswered; {first}", found.told(), found.unanswered)
        });
        misses.expect(self.violations.is_empty(), || format!("the server broke the protocol: {:?}", self.violations));
        misses.expect(self.disconnects == 0, || format!("{} connections were lost under load", self.disconnects));
        misses.expect_unlimited(limited(&self.errors_by_code));
        misses.expect(self.saturated_offered_per_s.is_some(), || {
            format!("the server followed up to {:.0} messages a second: raise --rates", options.rates.to)
        });
        for step in self.steps.iter().filter(|step| step.offered_per_s < OFFERED_SHARE_MIN * step.rate_per_s) {
            let StepFigures { stage, rate_per_s, offered_per_s, .. } = step;
            misses.expect(false, || {
                format!("{stage}: the generator offered {offered_per_s:.0} messages a second, not {rate_per_s:.0}")
            });
        }
        let min = options.goodput_min;
        misses.expect(self.goodput_ratio >= min, || {
            format!("under overload {:.2} of the most is acknowledged that ever was, not {min}", self.goodput_ratio)
        });
        misses.expect(self.catch_up_s.is_some(), || {
            let waited_s = CATCH_UP_MAX.as_secs();
            format!("{waited_s} s after the overload something that was admitted in it was not delivered")
        });
        for step in self.steps.iter().filter(|step| step.admitted_us.p99 > options.ack_p99_max.us()) {
            let (stage, p99) = (step.stage, duration(step.admitted_us.p99));
            misses.expect(false, || {
                let rate_per_s = step.rate_per_s;
                format!("{stage}, {rate_per_s:.0}/s: acknowledgement p99 is {p99}, not {}", options.ack_p99_max)
            });
        }
        let calm_bound_us = ratio(self.calm_p99_us, 1.0) * options.calm_ratio_max + options.slack_ms * 1e3;
        let again_us = ratio(self.calm_again_p99_us, 1.0);
        misses.expect(again_us > 0.0 && again_us <= calm_bound_us, || {
            format!("after the overload acknowledgement p99 is {again_us:.0} us, the bound {calm_bound_us:.0} us")
        });
        misses.into_vec()
    }

    pub(super) fn render(&self) -> String {
        let mut table = Table::new([
            "",
            "offered/s",
            "sent/s",
            "acked/s",
            "delivered/s",
            "p50",
            "p99",
            "max",
            "due p99",
            "late p99",
            "busy",
            "CPU us/msg",
            "cores",
            "memory MiB",
        ]);
        for step in &self.steps {
            let rates = [step.offered_per_s, step.sent_per_s, step.acked_per_s, step.delivered_per_s];
            let rates = rates.map(|rate| format!("{rate:.0}"));
            let Percentiles { p50, p99, max, .. } = step.admitted_us;
            let times = [p50, p99, max, step.intended_us.p99, step.generator_lag_us.p99].map(duration);
            let rest = [
                grouped(step.busy),
                format!("{:.2}", step.server_cpu_us_per_msg),
                format!("{:.2}", step.server_cores_used),
                grouped(step.server_plain_bytes >> 20),
            ];
            table.row([step.stage.to_owned()].into_iter().chain(rates).chain(times).chain(rest).collect());
        }
        let mut text = table.render();
        let caught_up =
            self.catch_up_s.map_or("not caught up with".to_owned(), |s| format!("caught up with in {s:.2} s"));
        let Findings { sent, acked, delivered, lost, duplicated, reordered, .. } = self.findings;
        let counts = [sent, acked, delivered, lost, duplicated, reordered, self.given_up].map(grouped);
        let [sent, acked, delivered, lost, duplicated, reordered, given_up] = counts;
        write!(
            text,
            "\n{sent} sent, {acked} acknowledged, {delivered} delivered, {lost} lost, {duplicated} duplicated, \
             {reordered} reordered; {given_up} offered and never sent\n\
             saturated at {} offered; acknowledged {:.0}/s at the most, {:.0}/s under overload: {:.2}\n\
             deliveries: {:.0}/s under overload, {} behind at its end, {caught_up}\n\
             acknowledgement p99 under overload {}; all windows at that goodput are {}\n",
            self.saturated_offered_per_s.map_or("no rate".to_owned(), |rate| format!("{rate:.0}/s")),
            self.goodput_peak_per_s,
            self.goodput_overload_per_s,
            self.goodput_ratio,
            self.delivered_overload_per_s,
            grouped(self.behind_overload),
            duration(self.admitted_p99_us_overload),
            duration(whole(self.admitted_bound_us)),
        )
        .expect("a String takes everything");
        text
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count over a span, shown with three digits")]
fn ratio(count: u64, span: f64) -> f64 {
    quotient(count as f64, span)
}

fn quotient(value: f64, by: f64) -> f64 {
    if by > 0.0 { value / by } else { 0.0 }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "microseconds, positive and below 2^52")]
fn whole(value: f64) -> u64 {
    value as u64
}

/// Connections that ended so: all who log in at once want a handshake.
fn told_to_come_later(errors: &BTreeMap<u32, u64>) -> u64 {
    errors.get(&ErrorCode::LoginsBusy.number()).copied().unwrap_or(0)
}
