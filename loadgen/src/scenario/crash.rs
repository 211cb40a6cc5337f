//! `crash`: kills the server under load again and again, and holds it to what it acknowledged.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rand::Rng;
use rand::rngs::SmallRng;
use serde::Serialize;
use std::collections::BTreeMap;

use super::pairs::{Pace, PairLoad, PairOutcome, PairRun};
use crate::clock::{Clock, micros};
use crate::journal;
use crate::options::{DeviceRange, HubRange, RunOptions};
use crate::plan::{self, Devices, RunId};
use crate::report::histogram::{Latencies, Percentiles};
use crate::report::progress::Progress;
use crate::report::table::{LATENCY_HEAD, Table, grouped, latency_row};
use crate::report::{Document, JsonTo, Misses};
use crate::target::child::ServerChild;
use crate::units::{Span, SpanRange};
use crate::verify::Findings;

/// Longest wait before a client reconnects: rounds are short.
const BACKOFF_MS_MAX: u32 = 200;
/// How often a device leaves where users have several and nothing else is asked for.
const LEAVES_PER_S: f64 = 4.0;

/// Options of `crash`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct CrashOptions {
    /// The `culver` program to start and kill
    #[arg(long, value_name = "PATH")]
    culver: PathBuf,
    /// How often it is killed
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// How long it lives each time, at random within
    #[arg(long, default_value = "200ms..2s", value_name = "A..B")]
    kill_after: SpanRange,
    /// Pairs: user 2i sends to user 2i + 1
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pairs: u32,
    /// Messages that each pair has under way
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    in_flight: u32,
    /// Bytes of a payload
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=32768))]
    payload: u32,
    /// Connections that the clients themselves cut, per second over all
    #[arg(long, default_value_t = 2.0, value_name = "PER_S")]
    drops: f64,
    /// Devices of each user, at random within: the first of user 2i sends, all others of both users receive
    #[arg(long, default_value = "1", value_name = "A..B")]
    devices: DeviceRange,
    /// Every user sends and receives: each sends to the next of a ring, from the first device
    #[arg(long)]
    ring: bool,
    /// Devices that leave for a while, per second over all [default: 4 where users have several devices, else none]
    #[arg(long, value_name = "PER_S")]
    leaves: Option<f64>,
    /// How long they stay away, at random within
    #[arg(long, default_value = "50ms..3s", value_name = "A..B")]
    away: SpanRange,
    /// Short fetch logins beside the lasting ones, of random devices, per second over all
    #[arg(long, default_value_t = 0.0, value_name = "PER_S")]
    fetch_per_s: f64,
    /// Three of four recipients mark as read, from any of their devices
    #[arg(long)]
    reads: bool,
    /// Spread the server's data over so many volume folders beside its data directory
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=8))]
    volumes: u8,
    /// Start the server each time with another number of hubs, at random within [default: as SERVER-ARGS say]
    #[arg(long, value_name = "A..B")]
    hubs: Option<HubRange>,
    /// Run `PATH verify` between rounds
    #[arg(long)]
    verify_each_round: bool,
    /// Longest wait, after the last round, until everything acknowledged has arrived
    #[arg(long, default_value = "60s")]
    settle: Span,
    /// Longest wait for a restarted server to be ready
    #[arg(long, default_value = "60s")]
    restart_max: Span,
    /// Where the server's data and the journals go, and stay [default: a temporary directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    run: RunOptions,
    /// Further arguments for `PATH serve`
    #[arg(last = true, value_name = "SERVER-ARGS")]
    server_args: Vec<String>,
}

#[derive(Serialize)]
struct CrashResult {
    rounds: u32,
    #[serde(flatten)]
    findings: Findings,
    /// Entries delivered again after a crash or a cut, before the client's dedup.
    redelivered: u64,
    /// Devices of all users.
    devices: u64,
    reconnects: u64,
    cut_by_clients: u64,
    /// Devices that left for a while, and of them those that came back with only what they had persisted.
    leaves: u64,
    device_restarts: u64,
    fetch_logins: u64,
    /// From the start of the process until it says that it is ready.
    restart_us: Percentiles,
    /// Rounds in which nothing at all was acknowledged.
    rounds_without_progress: u32,
    settled_s: f64,
    errors_by_code: BTreeMap<u32, u64>,
    violations: Vec<String>,
    /// The first thing that was wrong in each pair, in words.
    faults: Vec<String>,
}

/// What the rounds came to, beside what the pairs tell.
struct Rounds {
    /// Decides how many hubs each start has.
    hubs: SmallRng,
    restarts: Latencies,
    without_progress: u32,
}

impl CrashOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }

    fn draw_hubs(&self, rng: &mut SmallRng) -> Option<u8> {
        self.hubs.map(|hubs| rng.random_range(hubs.0..=hubs.1))
    }

    fn load(&self, seed: u64, journal: PathBuf) -> PairLoad {
        PairLoad {
            pairs: self.pairs as usize,
            pace: Pace::Closed { in_flight: self.in_flight as usize },
            payload_len: self.payload as usize,
            workers: self.run.workers(),
            first_user: plan::first_user(seed),
            seed,
            run: RunId(seed),
            journal: Some(journal),
            drops_per_s: self.drops,
            persists_late: true,
            devices: Devices::of_each(self.devices.0, self.devices.1),
            ring: self.ring,
            receipts: true,
            reads: self.reads,
            lists: true,
            leaves_per_s: self.leaves.unwrap_or(if self.devices.1 > 1 { LEAVES_PER_S } else { 0.0 }),
            away_us: (self.away.from.us(), self.away.to.us()),
            fetches_per_s: self.fetch_per_s,
            backoff_max_ms: Some(BACKOFF_MS_MAX),
        }
    }
}

/// Runs the scenario.
pub(crate) fn run(mut options: CrashOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    let progress = options.run.progress("crash");
    let scratch = tempfile::tempdir().context("no temporary directory")?;
    let dir = options.keep.clone().unwrap_or_else(|| scratch.path().to_owned());
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut server =
        ServerChild::prepare(&options.culver, &dir.join("data"), options.volumes, &options.server_args, seed)?;
    let (mut restarts, mut hubs) = (Latencies::new(), plan::rng(seed, "hubs"));
    server.set_hubs(options.draw_hubs(&mut hubs));
    restarts.record(micros(server.start(options.restart_max.0)?));

    let load = options.load(seed, dir.join("crash"));
    let run = PairRun::start(&server.target()?, &load, 0, Clock::start())?;
    run.wait_for_logins(&progress)?;
    run.shared().go();
    let rounds = Rounds { restarts, without_progress: 0, hubs };
    let rounds = crash_again_and_again(&options, seed, &mut server, &run, rounds, &progress)?;

    let settling = Instant::now();
    let connections = run.connections();
    let outcome = run.finish(options.settle.0, &progress)?;
    let settled_s = settling.elapsed().as_secs_f64();
    server.kill()?;
    if options.verify_each_round {
        server.verify().context("in the end")?;
    }
    let findings = check_journals(&outcome)?;
    let result = CrashResult {
        rounds: options.rounds,
        findings,
        redelivered: outcome.redelivered,
        devices: connections,
        reconnects: outcome.links.connects.saturating_sub(connections),
        cut_by_clients: outcome.links.drops,
        leaves: outcome.counts.leaves,
        device_restarts: outcome.counts.restarts,
        fetch_logins: outcome.counts.fetches,
        restart_us: rounds.restarts.percentiles(),
        rounds_without_progress: rounds.without_progress,
        settled_s,
        errors_by_code: outcome.errors,
        violations: outcome.violations,
        faults: outcome.faults,
    };
    let missed = check(&result);
    let text = render(&result);
    Document::new("crash", seed, &options, &result, text, missed)
}

fn crash_again_and_again(
    options: &CrashOptions,
    seed: u64,
    server: &mut ServerChild,
    run: &PairRun,
    mut rounds: Rounds,
    progress: &Progress,
) -> Result<Rounds> {
    let mut rng = plan::rng(seed, "kill after");
    for round in 1..=options.rounds {
        let before = run.shared().counters();
        let life = Duration::from_micros(rng.random_range(options.kill_after.from.us()..=options.kill_after.to.us()));
        progress.wait(life, || {
            progress.tell(format!("round {round} of {}: {}", options.rounds, run.shared().counters()));
            server.check_alive()?;
            run.check_alive()
        })?;
        server.kill()?;
        if run.shared().counters().acked == before.acked {
            rounds.without_progress += 1;
        }
        if options.verify_each_round {
            server.verify().with_context(|| format!("after round {round}"))?;
        }
        server.set_hubs(options.draw_hubs(&mut rounds.hubs));
        rounds.restarts.record(micros(server.start(options.restart_max.0)?));
    }
    Ok(rounds)
}

/// The journals decide, not the memory of the workers; where the two differ this program is wrong.
fn check_journals(outcome: &PairOutcome) -> Result<Findings> {
    let mut findings = Findings::default();
    for path in &outcome.journals {
        findings.add(&journal::check(path)?);
    }
    if findings != outcome.findings {
        bail!("the journals say {findings:?}, the workers {:?}", outcome.findings);
    }
    Ok(findings)
}

fn check(result: &CrashResult) -> Vec<String> {
    let mut misses = Misses::default();
    let found = &result.findings;
    let others = [(found.rejected, "refused for good"), (found.unanswered, "never answered")];
    for (count, what) in found.broken().chain(others) {
        misses.expect(count == 0, || format!("{count} {what}"));
    }
    misses.expect(result.faults.is_empty(), || result.faults.join("\n  "));
    misses.expect(result.violations.is_empty(), || format!("protocol broken: {:?}", result.violations));
    misses.expect(found.acked > 0, || "nothing was acknowledged at all".to_owned());
    misses.into_vec()
}

fn render(result: &CrashResult) -> String {
    let head = ["rounds", "sent", "acked", "delivered", "copied", "lost", "reordered", "duplicated", "redelivered"];
    let found = &result.findings;
    let mut checks = Table::new(head);
    let counts = [found.sent, found.acked, found.delivered, found.copied];
    let faults = [found.lost, found.reordered, found.duplicated, result.redelivered];
    let cells = [u64::from(result.rounds)].into_iter().chain(counts).chain(faults);
    checks.row(cells.map(grouped).collect());
    let mut receipts = Table::new(["receipts", "untrue", "going back", "missing", "reads missing", "lists wrong"]);
    let told = [
        found.receipts,
        found.untrue,
        found.receipts_back,
        found.receipts_missing,
        found.reads_missing,
        found.lists_wrong,
    ];
    receipts.row(told.into_iter().map(grouped).collect());
    let mut times = Table::new(LATENCY_HEAD);
    times.row(latency_row("restart", &result.restart_us));
    format!(
        "{}\n{}\n{}\n{} devices, {} reconnects, {} connections cut by clients, {} leaves, {} fetch logins, settled in {:.1} s\n",
        checks.render(),
        receipts.render(),
        times.render(),
        grouped(result.devices),
        grouped(result.reconnects),
        grouped(result.cut_by_clients),
        grouped(result.leaves),
        grouped(result.fetch_logins),
        result.settled_s
    )
}
