//! `cost`: what receipts, a second device or encryption add to the server CPU of a message: the same load by turns with
//! and without, and, where asked for, the same frames through the floor relay.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::chat::{PairMeasurement, measure, measure_floor, render_runs};
use super::pairs::PairLoad;
use crate::options::{PairOptions, RunOptions, TargetOptions, TimeOptions};
use crate::plan::Devices;
use crate::report::histogram::median;
use crate::report::progress::Progress;
use crate::report::{Document, JsonTo, Misses};
use crate::target::culver::Culver;
use crate::target::floor::FloorSettings;

/// Options of `cost`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct CostOptions {
    /// What is added
    #[arg(value_enum)]
    of: Addition,
    #[command(flatten)]
    target: TargetOptions,
    #[command(flatten)]
    plain: PlainOptions,
    #[command(flatten)]
    pairs: PairOptions,
    #[command(flatten)]
    time: TimeOptions,
    #[command(flatten)]
    run: RunOptions,
    /// Measure without and with so many times, by turns
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    interleave: u32,
    /// Measure the floor relay without and with as well
    #[arg(long)]
    with_floor: bool,
    /// Median of what is added, as a share of the message without it, at most
    #[arg(long, value_name = "SHARE")]
    added_share_max: Option<f64>,
    /// Median of what is added at most so many times what the same frames add to the floor
    #[arg(long, requires = "with_floor", value_name = "RATIO")]
    added_to_floor_max: Option<f64>,
}

/// What a message can carry on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Addition {
    /// A receipt for each acknowledgement: needs a second server, with `receipts = false` in its configuration
    Receipts,
    /// A second device of each recipient, online: each message is delivered twice
    RecipientDevice,
    /// A second device of each sender, online: it gets a copy of each message
    SenderDevice,
    /// Encryption: the same server must offer plaintext too
    Encryption,
}

/// The server without receipts.
#[derive(Args, Clone, Debug, Serialize)]
struct PlainOptions {
    /// Where clients reach the server without receipts
    #[arg(long, value_name = "ADDR", required_if_eq("of", "receipts"))]
    plain_target: Option<SocketAddr>,
    /// Its operations port
    #[arg(long, value_name = "ADDR", required_if_eq("of", "receipts"))]
    plain_ops: Option<SocketAddr>,
    /// Its development credentials
    #[arg(long, value_name = "FILE", required_if_eq("of", "receipts"))]
    plain_credentials: Option<PathBuf>,
}

/// What something adds to the server CPU of a message, pair of runs by pair of runs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Added {
    added_us_per_msg: Vec<f64>,
    added_us_per_msg_median: f64,
    /// Of what a message costs without it.
    added_shares: Vec<f64>,
    added_share_median: f64,
}

#[derive(Serialize)]
struct CostResult {
    #[serde(flatten)]
    added: Added,
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<Added>,
    /// The medians of what is added, server to floor.
    #[serde(skip_serializing_if = "Option::is_none")]
    added_to_floor_ratio: Option<f64>,
    runs_without: Vec<PairMeasurement>,
    runs_with: Vec<PairMeasurement>,
    floor_runs_without: Vec<PairMeasurement>,
    floor_runs_with: Vec<PairMeasurement>,
}

/// Runs without and with, in the same order.
#[derive(Default)]
struct Runs {
    without: Vec<PairMeasurement>,
    with: Vec<PairMeasurement>,
}

impl CostOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }

    fn check_encryption(&self) -> Result<()> {
        if self.of != Addition::Encryption {
            return Ok(());
        }
        ensure!(self.target.suite().suite().is_some(), "encryption adds nothing with --suite none: name a suite");
        ensure!(!self.with_floor, "the floor relay encrypts nothing: leave --with-floor out");
        Ok(())
    }
}

impl PlainOptions {
    fn find(&self, of: Addition, with: &TargetOptions) -> Result<Option<Culver>> {
        if of == Addition::Encryption {
            return with.find_in_plaintext().map(Some);
        }
        let (Some(target), Some(ops), Some(credentials)) = (self.plain_target, self.plain_ops, &self.plain_credentials)
        else {
            return Ok(None);
        };
        Culver::find(target, ops, credentials, with.suite()).context("the server without receipts").map(Some)
    }
}

/// Runs the scenario.
pub(crate) fn run(mut options: CostOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    options.pairs.default_to_closed_loop();
    let progress = options.run.progress("cost");
    options.check_encryption()?;
    let (mut culver, mut plain) = (options.target.find()?, options.plain.find(options.of, &options.target)?);
    let (mut server, mut floor) = (Runs::default(), Runs::default());
    for number in 0..u64::from(options.interleave) {
        let load = |with: bool| {
            let load = options.pairs.load(&options.run, seed, 2 * number + u64::from(with));
            PairLoad { devices: options.of.devices(with), ..load }
        };
        // Whoever is first has the advantage, or not: by turns.
        let order = if number % 2 == 0 { [false, true] } else { [true, false] };
        for with in order.into_iter().filter(|_| options.with_floor) {
            let settings = FloorSettings { receipts: options.of.has_receipts(with), ..FloorSettings::default() };
            floor.add(with, measure_floor(&settings, &load(with), &options.time, &progress)?);
        }
        for with in order {
            let target = match &mut plain {
                Some(plain) if !with => plain,
                _ => &mut culver,
            };
            server.add(with, measure_one(target, &load(with), &options.time, &progress)?);
        }
    }
    let result = CostResult::new(&options, server, floor);
    let (missed, text) = (check(&options, &result), render(&result));
    Document::new("cost", seed, &options, &result, text, missed)
}

fn measure_one(
    target: &mut Culver,
    load: &PairLoad,
    time: &TimeOptions,
    progress: &Progress,
) -> Result<PairMeasurement> {
    measure("culver", target, load, time, progress)
}

impl Addition {
    /// Whether the relay sends receipts.
    fn has_receipts(self, with: bool) -> bool {
        match self {
            Self::Receipts => with,
            // As the server does, which the relay is compared with.
            Self::RecipientDevice | Self::SenderDevice | Self::Encryption => true,
        }
    }

    fn devices(self, with: bool) -> Devices {
        let one = Devices::of_each(1, 1);
        match self {
            Self::RecipientDevice if with => Devices { recipients: (2, 2), ..one },
            Self::SenderDevice if with => Devices { senders: (2, 2), ..one },
            _ => one,
        }
    }
}

impl Runs {
    fn add(&mut self, with: bool, measured: PairMeasurement) {
        if with { self.with.push(measured) } else { self.without.push(measured) }
    }

    fn added(&self) -> Added {
        Added::between(&self.without, &self.with)
    }
}

impl Added {
    pub(crate) fn between(without: &[PairMeasurement], with: &[PairMeasurement]) -> Self {
        let costs = |runs: &[PairMeasurement]| runs.iter().map(|run| run.server_cpu_us_per_msg).collect::<Vec<_>>();
        Self::of(&costs(without), &costs(with))
    }

    fn of(without_us: &[f64], with_us: &[f64]) -> Self {
        let pairs = || without_us.iter().zip(with_us);
        let added_us_per_msg: Vec<f64> = pairs().map(|(without, with)| with - without).collect();
        let share = |(without, with): (&f64, &f64)| if *without > 0.0 { with / without - 1.0 } else { 0.0 };
        let added_shares: Vec<f64> = pairs().map(share).collect();
        Self {
            added_us_per_msg_median: median(&added_us_per_msg),
            added_us_per_msg,
            added_share_median: median(&added_shares),
            added_shares,
        }
    }

    /// One line that tells it, with every pair of runs.
    pub(crate) fn line(&self, name: &str) -> String {
        let list = |values: &[f64], scale: f64| {
            values.iter().map(|value| format!("{:.2}", value * scale)).collect::<Vec<_>>().join(" ")
        };
        format!(
            "added CPU per message, {name}: median {:.2} us ({}), {:.0}% ({})\n",
            self.added_us_per_msg_median,
            list(&self.added_us_per_msg, 1.0),
            self.added_share_median * 100.0,
            list(&self.added_shares, 100.0)
        )
    }
}

impl CostResult {
    fn new(options: &CostOptions, server: Runs, floor: Runs) -> Self {
        let added = server.added();
        let floor_added = options.with_floor.then(|| floor.added());
        let ratio = |floor: &Added| {
            let floor_us = floor.added_us_per_msg_median;
            (floor_us > 0.0).then(|| added.added_us_per_msg_median / floor_us)
        };
        Self {
            added_to_floor_ratio: floor_added.as_ref().and_then(ratio),
            added,
            floor: floor_added,
            runs_without: server.without,
            runs_with: server.with,
            floor_runs_without: floor.without,
            floor_runs_with: floor.with,
        }
    }

    /// In the order of the tables: floor and server, without and with.
    fn rows(&self) -> [(&'static str, &[PairMeasurement]); 4] {
        [
            ("floor without", &self.floor_runs_without),
            ("floor with", &self.floor_runs_with),
            ("culver without", &self.runs_without),
            ("culver with", &self.runs_with),
        ]
    }
}

fn check(options: &CostOptions, result: &CostResult) -> Vec<String> {
    let mut misses = Misses::default();
    for run in result.rows().iter().flat_map(|(_, runs)| *runs) {
        run.check(&mut misses);
    }
    let told_without = result.runs_without.iter().any(|run| run.receipt_marks > 0);
    misses.expect(options.of != Addition::Receipts || !told_without, || {
        "the server without receipts sent some: it needs `receipts = false` under [inbox]".to_owned()
    });
    let told = result.runs_with.iter().chain(&result.floor_runs_with).all(|run| run.receipt_marks > 0);
    misses.expect(told, || "there were no receipts where they were to be measured".to_owned());
    if let Some(max) = options.added_share_max {
        let found = result.added.added_share_median;
        misses.expect(found <= max, || format!("{:.0}% are added, not {:.0}%", found * 100.0, max * 100.0));
    }
    if let Some(max) = options.added_to_floor_max {
        match result.added_to_floor_ratio {
            Some(found) => misses.expect(found <= max, || format!("{found:.2} x what the floor adds, not {max}")),
            None => misses.expect(false, || "the floor's added frames cost nothing: measure longer".to_owned()),
        }
    }
    misses.into_vec()
}

fn render(result: &CostResult) -> String {
    let mut text = String::new();
    for (name, runs) in result.rows().iter().filter(|(_, runs)| !runs.is_empty()) {
        writeln!(text, "{name}\n{}", render_runs(runs.iter().enumerate())).expect("a String takes everything");
    }
    text += &result.added.line("culver");
    if let Some(floor) = &result.floor {
        text += &floor.line("floor");
    }
    if let Some(ratio) = result.added_to_floor_ratio {
        writeln!(text, "added, culver / floor: {ratio:.2}").expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn what_is_added_is_taken_pair_by_pair() {
        // The machine slowed down between the rounds; what is added did not.
        let added = Added::of(&[10.0, 20.0, 40.0], &[11.0, 21.0, 42.0]);
        assert!(close(added.added_us_per_msg_median, 1.0), "{added:?}");
        assert!(close(added.added_share_median, 0.05), "{added:?}");
        let line = added.line("floor");
        assert!(line.contains("floor: median 1.00 us (1.00 1.00 2.00), 5% (10.00 5.00 5.00)"), "{line}");
    }

    #[test]
    fn one_thing_is_added_and_nothing_else() {
        let of_each = Devices::of_each;
        for what in [Addition::Receipts, Addition::RecipientDevice, Addition::SenderDevice, Addition::Encryption] {
            assert_eq!(what.devices(false), of_each(1, 1));
            assert!(what.has_receipts(true));
        }
        assert_eq!(Addition::Receipts.devices(true), of_each(1, 1));
        assert_eq!(Addition::Encryption.devices(true), of_each(1, 1));
        assert!(!Addition::Receipts.has_receipts(false) && Addition::SenderDevice.has_receipts(false));
        assert_eq!(Addition::RecipientDevice.devices(true), Devices { recipients: (2, 2), ..of_each(1, 1) });
        assert_eq!(Addition::SenderDevice.devices(true), Devices { senders: (2, 2), ..of_each(1, 1) });
    }

    #[test]
    fn nothing_measured_adds_nothing() {
        let added = Added::of(&[], &[]);
        assert!(close(added.added_us_per_msg_median, 0.0) && close(added.added_share_median, 0.0));
        assert!(close(Added::of(&[0.0], &[1.0]).added_share_median, 0.0));
    }
}
