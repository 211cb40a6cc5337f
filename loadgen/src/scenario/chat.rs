//! `chat`: pairs that talk, measured and checked, alone or by turns with the floor relay.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;

use super::cost::Added;
use super::pairs::{PairLoad, PairOutcome, PairRun, SlotLatencies};
use crate::clock::Clock;
use crate::options::{PairOptions, RunOptions, TargetOptions, TimeOptions};
use crate::plan::Devices;
use crate::report::histogram::{Percentiles, median};
use crate::report::progress::Progress;
use crate::report::table::{LATENCY_HEAD, Table, grouped, latency_row};
use crate::report::{Document, JsonTo, Misses, limited};
use crate::target::Target;
use crate::target::floor::{Floor, FloorSettings};
use crate::verify::Findings;

/// Longest wait for what is under way when sending has ended.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Options of `chat`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct ChatOptions {
    #[command(flatten)]
    target: TargetOptions,
    #[command(flatten)]
    pairs: PairOptions,
    #[command(flatten)]
    time: TimeOptions,
    #[command(flatten)]
    run: RunOptions,
    /// Devices of each user: the first of user 2i sends, all others of both users receive
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=4))]
    devices: u8,
    /// Check every receipt and measure how long they take
    #[arg(long)]
    receipts: bool,
    /// Three of four recipients mark as read
    #[arg(long, requires = "receipts")]
    reads: bool,
    /// Measure so many times, one after the other
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    interleave: u32,
    /// Before each, measure the floor relay with the same load, and compare
    #[arg(long)]
    with_floor: bool,
    /// The relay calls fdatasync once per turn before anything is answered
    #[arg(long, requires = "with_floor")]
    floor_sync: bool,
    /// Where the relay's synced file goes [default: the temporary directory]
    #[arg(long, requires = "floor_sync", value_name = "DIR")]
    floor_data_dir: Option<std::path::PathBuf>,
    /// Measure the relay a second time, with receipts: the difference is what the added frames cost
    #[arg(long, requires = "with_floor")]
    floor_receipts: bool,
    #[command(flatten)]
    thresholds: Thresholds,
}

/// What must hold, else the exit code is 3.
#[derive(Args, Clone, Debug, Serialize)]
struct Thresholds {
    /// Median of the ratios of server CPU per message, server to floor, at most
    #[arg(long, requires = "with_floor", value_name = "RATIO")]
    cpu_ratio_max: Option<f64>,
    /// Median of the messages per second of server CPU, at least
    #[arg(long, value_name = "N")]
    msgs_per_cpu_s_min: Option<f64>,
    /// Median of the acknowledgement p99 at most so many times the floor's median, plus --slack-ms
    #[arg(long, requires = "with_floor", value_name = "RATIO")]
    ack_p99_ratio_max: Option<f64>,
    /// What --ack-p99-ratio-max adds
    #[arg(long, default_value_t = 0.0, value_name = "MS")]
    slack_ms: f64,
    /// Median of the delivery p99, at most
    #[arg(long, value_name = "MS")]
    delivery_p99_ms_max: Option<f64>,
}

/// One measurement of one target.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PairMeasurement {
    pub(crate) target: &'static str,
    #[serde(flatten)]
    pub(crate) findings: Findings,
    /// Messages acknowledged in the measured time.
    pub(crate) measured_msgs: u64,
    pub(crate) measured_s: f64,
    pub(crate) msgs_per_s: f64,
    pub(crate) server_cpu_us_per_msg: f64,
    pub(crate) msgs_per_server_cpu_s: f64,
    pub(crate) server_cores_used: f64,
    pub(crate) ack_us: Percentiles,
    pub(crate) delivery_us: Percentiles,
    /// From the persisting by a device of the recipient's to the receipt at the device that sent; where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) receipt_us: Option<Percentiles>,
    /// Marks of receipts that came, checked or not.
    pub(crate) receipt_marks: u64,
    /// How late the generator itself sent.
    pub(crate) generator_lag_us: Percentiles,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fdatasync_us: Option<Percentiles>,
    pub(crate) disconnects: u64,
    pub(crate) errors_by_code: BTreeMap<u32, u64>,
    pub(crate) violations: Vec<String>,
    /// The first thing that was wrong in each pair, in words.
    pub(crate) faults: Vec<String>,
}

#[derive(Serialize)]
struct ChatResult {
    #[serde(flatten)]
    last: PairMeasurement,
    runs: Vec<PairMeasurement>,
    floor_runs: Vec<PairMeasurement>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    floor_receipt_runs: Vec<PairMeasurement>,
    #[serde(skip_serializing_if = "Option::is_none")]
    floor_receipt_cpu: Option<Added>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<Comparison>,
}

/// Server against floor, pair of runs by pair of runs.
#[derive(Serialize)]
struct Comparison {
    cpu_ratios: Vec<f64>,
    cpu_ratio_median: f64,
    ack_p99_ratios: Vec<f64>,
    ack_p99_ratio_median: f64,
    ack_p99_us_median: f64,
    floor_ack_p99_us_median: f64,
}

/// Runs the scenario.
pub(crate) fn run(mut options: ChatOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    options.pairs.default_to_closed_loop();
    let progress = options.run.progress("chat");
    let mut culver = options.target.find()?;
    let (mut runs, mut floor_runs, mut floor_receipt_runs) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..u64::from(options.interleave) {
        let devices = Devices::of_each(options.devices, options.devices);
        let load = PairLoad { devices, ..options.pairs.load(&options.run, seed, number) };
        if options.with_floor {
            let (sync, data_dir) = (options.floor_sync, options.floor_data_dir.clone());
            let mut settings = FloorSettings { sync, data_dir, receipts: false };
            floor_runs.push(measure_floor(&settings, &load, &options.time, &progress)?);
            settings.receipts = options.floor_receipts;
            if settings.receipts {
                floor_receipt_runs.push(measure_floor(&settings, &load, &options.time, &progress)?);
            }
        }
        // The floor's receipts are not checked.
        let load = PairLoad { receipts: options.receipts, reads: options.reads, ..load };
        runs.push(measure("culver", &mut culver, &load, &options.time, &progress)?);
    }
    let comparison = options.with_floor.then(|| Comparison::of(&runs, &floor_runs));
    let mut missed = options.thresholds.check(&runs, &floor_runs, comparison.as_ref());
    missed.extend(PairMeasurement::check_all(&floor_receipt_runs));
    let last = runs.last().expect("at least one run").clone();
    let mut text = render(&runs, &floor_runs, comparison.as_ref());
    let floor_receipt_cpu = options.floor_receipts.then(|| Added::between(&floor_runs, &floor_receipt_runs));
    if let Some(added) = &floor_receipt_cpu {
        text += &added.line("floor, receipts");
    }
    let result = ChatResult { last, runs, floor_runs, floor_receipt_runs, floor_receipt_cpu, comparison };
    Document::new("chat", seed, &options, &result, text, missed)
}

/// Starts a relay, measures it, and ends it.
pub(crate) fn measure_floor(
    settings: &FloorSettings,
    load: &PairLoad,
    time: &TimeOptions,
    progress: &Progress,
) -> Result<PairMeasurement> {
    let mut floor = Floor::start(settings)?;
    let mut measured = measure("floor", &mut floor, load, time, progress)?;
    // The relay's histogram begins anew with every report, and the last two enclose the measured time.
    measured.fdatasync_us = settings.sync.then(|| floor.fdatasync_us());
    Ok(measured)
}

/// Measures one target under one load.
pub(crate) fn measure(
    name: &'static str,
    target: &mut dyn Target,
    load: &PairLoad,
    time: &TimeOptions,
    progress: &Progress,
) -> Result<PairMeasurement> {
    let run = PairRun::start(target, load, 1, Clock::start())?;
    run.wait_for_logins(progress)?;
    run.shared().go();
    let tell = |phase: &str| {
        progress.tell(format!("{name}, {phase}: {}", run.shared().counters()));
        run.check_alive()
    };
    progress.wait(time.warmup.0, || tell("warming up"))?;
    run.shared().set_slot(1);
    let before = target.sample()?;
    let (counted_before, began) = (run.shared().counters(), Instant::now());
    progress.wait(time.duration.0, || tell("measuring"))?;
    let after = target.sample()?;
    let (counted_after, measured_s) = (run.shared().counters(), began.elapsed().as_secs_f64());
    run.shared().set_slot(0);
    let outcome = run.finish(DRAIN_MAX, progress)?;
    let cpu_us = after.cpu_us.saturating_sub(before.cpu_us);
    Ok(PairMeasurement::new(name, outcome, counted_after.acked - counted_before.acked, measured_s, cpu_us))
}

impl PairMeasurement {
    fn new(target: &'static str, outcome: PairOutcome, msgs: u64, measured_s: f64, cpu_us: u64) -> Self {
        let latencies = outcome.slots.first().cloned().unwrap_or_else(SlotLatencies::new);
        let cpu_s = crate::clock::seconds(cpu_us);
        Self {
            target,
            findings: outcome.findings,
            measured_msgs: msgs,
            measured_s,
            msgs_per_s: ratio(msgs, measured_s),
            server_cpu_us_per_msg: if msgs == 0 { 0.0 } else { cpu_s * 1e6 / ratio(msgs, 1.0) },
            msgs_per_server_cpu_s: ratio(msgs, cpu_s),
            server_cores_used: cpu_s / measured_s,
            ack_us: latencies.ack.percentiles(),
            delivery_us: latencies.delivery.percentiles(),
            receipt_us: Some(latencies.receipt.percentiles()).filter(|times| times.count > 0),
            receipt_marks: outcome.counts.marks,
            generator_lag_us: latencies.lag.percentiles(),
            fdatasync_us: None,
            disconnects: outcome.links.disconnects,
            errors_by_code: outcome.errors,
            violations: outcome.violations,
            faults: outcome.faults,
        }
    }

    /// Misses of several runs.
    pub(crate) fn check_all(runs: &[Self]) -> Vec<String> {
        let mut misses = Misses::default();
        for run in runs {
            run.check(&mut misses);
        }
        misses.into_vec()
    }

    /// Misses that need no threshold: the promises themselves.
    pub(crate) fn check(&self, misses: &mut Misses) {
        let (name, found) = (self.target, &self.findings);
        let kept = found.is_clean() && found.unanswered == 0;
        misses.expect(kept, || {
            let first = self.faults.first().map_or("", String::as_str);
            format!("{name}: {}, {} unanswered; {first}", found.told(), found.unanswered)
        });
        misses.expect(self.violations.is_empty(), || format!("{name} broke the protocol: {:?}", self.violations));
        misses.expect_unlimited(limited(&self.errors_by_code));
        misses.expect(self.measured_msgs > 0, || format!("{name}: nothing was acknowledged in the measured time"));
    }
}

impl ChatOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }
}

impl Comparison {
    fn of(runs: &[PairMeasurement], floor_runs: &[PairMeasurement]) -> Self {
        let ratios = |value: fn(&PairMeasurement) -> f64| -> Vec<f64> {
            runs.iter().zip(floor_runs).map(|(run, floor)| value(run) / value(floor)).collect()
        };
        let cpu_ratios = ratios(|run| run.server_cpu_us_per_msg);
        let ack_p99_ratios = ratios(|run| ratio(run.ack_us.p99, 1.0));
        Self {
            cpu_ratio_median: median(&cpu_ratios),
            cpu_ratios,
            ack_p99_ratio_median: median(&ack_p99_ratios),
            ack_p99_ratios,
            ack_p99_us_median: median_of(runs, |run| ratio(run.ack_us.p99, 1.0)),
            floor_ack_p99_us_median: median_of(floor_runs, |run| ratio(run.ack_us.p99, 1.0)),
        }
    }
}

impl Thresholds {
    fn check(
        &self,
        runs: &[PairMeasurement],
        floor_runs: &[PairMeasurement],
        comparison: Option<&Comparison>,
    ) -> Vec<String> {
        let mut misses = Misses::default();
        for run in runs.iter().chain(floor_runs) {
            run.check(&mut misses);
        }
        if let (Some(max), Some(comparison)) = (self.cpu_ratio_max, comparison) {
            let found = comparison.cpu_ratio_median;
            misses.expect(found <= max, || format!("CPU per message is {found:.2} x the floor's, not {max}"));
        }
        if let (Some(max), Some(comparison)) = (self.ack_p99_ratio_max, comparison) {
            let bound_us = comparison.floor_ack_p99_us_median * max + self.slack_ms * 1e3;
            let found_us = comparison.ack_p99_us_median;
            misses.expect(found_us <= bound_us, || {
                format!("acknowledgement p99 is {found_us:.0} us, the bound {bound_us:.0} us")
            });
        }
        if let Some(min) = self.msgs_per_cpu_s_min {
            let found = median_of(runs, |run| run.msgs_per_server_cpu_s);
            misses.expect(found >= min, || format!("{found:.0} messages per second of server CPU, not {min}"));
        }
        if let Some(max_ms) = self.delivery_p99_ms_max {
            let found_ms = median_of(runs, |run| ratio(run.delivery_us.p99, 1e3));
            misses.expect(found_ms <= max_ms, || format!("delivery p99 is {found_ms:.2} ms, not {max_ms} ms"));
        }
        misses.into_vec()
    }
}

/// The median of one value over runs.
pub(crate) fn median_of(runs: &[PairMeasurement], value: impl Fn(&PairMeasurement) -> f64) -> f64 {
    median(&runs.iter().map(value).collect::<Vec<_>>())
}

#[expect(clippy::cast_precision_loss, reason = "a count over a span, shown with three digits")]
fn ratio(count: u64, span: f64) -> f64 {
    if span > 0.0 { count as f64 / span } else { 0.0 }
}

fn render(runs: &[PairMeasurement], floor_runs: &[PairMeasurement], comparison: Option<&Comparison>) -> String {
    let mut text = render_runs(runs.iter().enumerate().flat_map(|(number, run)| {
        let floor = floor_runs.get(number).map(|floor| (number, floor));
        floor.into_iter().chain([(number, run)])
    }));
    if let Some(comparison) = comparison {
        let list = |ratios: &[f64]| ratios.iter().map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(" ");
        let Comparison { cpu_ratio_median, ack_p99_ratio_median, .. } = comparison;
        writeln!(text).expect("a String takes everything");
        writeln!(
            text,
            "CPU per message, culver / floor: median {cpu_ratio_median:.2}  ({})",
            list(&comparison.cpu_ratios)
        )
        .expect("a String takes everything");
        writeln!(
            text,
            "acknowledgement p99, culver / floor: median {ack_p99_ratio_median:.2}  ({})",
            list(&comparison.ack_p99_ratios)
        )
        .expect("a String takes everything");
    }
    text
}

/// Tables of measurements, one line each.
pub(crate) fn render_runs<'a>(runs: impl Iterator<Item = (usize, &'a PairMeasurement)> + Clone) -> String {
    let mut checks = Table::new([
        "",
        "sent",
        "acked",
        "delivered",
        "lost",
        "duplicated",
        "reordered",
        "msg/s",
        "CPU us/msg",
        "msg/CPU s",
    ]);
    let mut times = Table::new(LATENCY_HEAD);
    for (number, run) in runs {
        let Findings { sent, acked, delivered, lost, duplicated, reordered, .. } = run.findings;
        let name = format!("{} {}", run.target, number + 1);
        let counts = [sent, acked, delivered, lost, duplicated, reordered].map(grouped);
        let rates = [
            format!("{:.0}", run.msgs_per_s),
            format!("{:.2}", run.server_cpu_us_per_msg),
            format!("{:.0}", run.msgs_per_server_cpu_s),
        ];
        checks.row([name.clone()].into_iter().chain(counts).chain(rates).collect());
        times.row(latency_row(&format!("{name} acknowledged"), &run.ack_us));
        times.row(latency_row(&format!("{name} delivered"), &run.delivery_us));
        if let Some(receipts) = &run.receipt_us {
            times.row(latency_row(&format!("{name} receipt"), receipts));
        }
        if let Some(syncs) = &run.fdatasync_us {
            times.row(latency_row(&format!("{name} fdatasync"), syncs));
        }
        if run.generator_lag_us.max > 0 {
            times.row(latency_row(&format!("{name} generator late"), &run.generator_lag_us));
        }
    }
    format!("{}\n{}", checks.render(), times.render())
}
