//! `drain`: inboxes filled while their users are away, then all of them come and fetch. What waits is measured as
//! memory, the fetching as CPU time, and what others notice of it as the latency of calm pairs.

mod calm;
mod driver;
mod result;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use culver_protocol::id::UserId;
use serde::Serialize;

use self::calm::{CalmOptions, CalmPairs, Phase};
use self::driver::{Conductor, DrainDriver, DrainSettings, Seats};
use self::result::{DrainResult, Drained, MemoryReading};
use crate::clock::Clock;
use crate::links::raise_descriptor_limit;
use crate::options::{RunOptions, TargetOptions, rate};
use crate::plan::{self, DEVICE, PAYLOAD_LEN_MIN, PairPlan, Payloads, RunId};
use crate::procfs;
use crate::report::progress::Progress;
use crate::report::{Document, JsonTo};
use crate::scenario::pairs::shared::Counters;
use crate::target::culver::Culver;
use crate::target::{Target, client_config};
use crate::units::Span;
use crate::verify::Findings;
use crate::worker::{self, Finished};

/// A worker ends by itself after this.
const RUN_US_MAX: u64 = 12 * 3600 * 1_000_000;
/// The server's work on what has been delivered counts as well: acknowledgements, cursors, floors.
const AFTER: Duration = Duration::from_secs(3);

/// Options of `drain`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct DrainOptions {
    #[command(flatten)]
    target: TargetOptions,
    /// Users whose inboxes are filled and drained
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    users: u32,
    /// Messages in each inbox
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    messages: u32,
    /// Fill up to so many messages, one after the other, and compare the server's memory; the last are drained
    #[arg(long, value_name = "N,N…", value_delimiter = ',', conflicts_with = "messages",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    compare_messages: Vec<u32>,
    /// Users who send; each writes to its share of the inboxes [default: 100, or as many as there are inboxes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    senders: Option<u32>,
    /// Bytes of a payload
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(PAYLOAD_LEN_MIN as i64..=32768))]
    payload: u32,
    /// Messages under way per sender while the inboxes are filled
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    in_flight: u32,
    /// The first user's id [default: high and even, from the seed]
    #[arg(long)]
    first_user: Option<u64>,
    /// How long the server rests before its memory is read
    #[arg(long, default_value = "5s")]
    settle: Span,
    /// Users who come back, per second
    #[arg(long, default_value_t = 2000.0, value_name = "PER_S", value_parser = rate)]
    logins_per_s: f64,
    /// Longest wait for the inboxes to fill, and again for them to drain
    #[arg(long, default_value = "300s")]
    timeout: Span,
    #[command(flatten)]
    calm: CalmOptions,
    /// Entries delivered per second of server CPU, at least: without what the calm pairs cost by themselves
    #[arg(long, value_name = "N")]
    entries_per_cpu_s_min: Option<f64>,
    /// Growth of the server's memory while it drains, at most
    #[arg(long, value_name = "BYTES")]
    rss_growth_bytes_max: Option<u64>,
    /// Growth of the server's memory, less memtables and cache, from the first of --compare-messages to the last
    #[arg(long, value_name = "BYTES", requires = "compare_messages")]
    waiting_growth_max: Option<u64>,
    #[command(flatten)]
    run: RunOptions,
}

impl DrainOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }

    /// The numbers of messages to fill up to, ascending.
    fn goals(&self) -> Result<Vec<u32>> {
        if self.compare_messages.is_empty() {
            return Ok(vec![self.messages]);
        }
        if self.compare_messages.len() < 2 || !self.compare_messages.is_sorted_by(|one, two| one < two) {
            bail!("--compare-messages takes at least two numbers, and they ascend");
        }
        Ok(self.compare_messages.clone())
    }

    fn sender_count(&self) -> u32 {
        self.senders.unwrap_or(100).min(self.users)
    }

    fn first_user(&self, seed: u64) -> u64 {
        self.first_user.unwrap_or_else(|| plan::first_user(seed))
    }

    /// The calm pairs' users lie behind all others.
    fn first_calm_user(&self, seed: u64) -> u64 {
        let others = u64::from(self.sender_count()) + u64::from(self.users);
        self.first_user(seed) + others.next_multiple_of(2)
    }
}

/// Runs the scenario.
pub(crate) fn run(mut options: DrainOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    let progress = options.run.progress("drain");
    raise_descriptor_limit((options.users + options.sender_count() + 2 * options.calm.calm_pairs) as usize)?;
    let mut culver = options.target.find()?;
    let result = measure(&options, seed, &mut culver, &progress)?;
    let missed = result.check(&options);
    let text = result.render();
    Document::new("drain", seed, &options, &result, text, missed)
}

fn measure(options: &DrainOptions, seed: u64, culver: &mut Culver, progress: &Progress) -> Result<DrainResult> {
    let pid = procfs::listener_pid(options.target.address().port());
    let goals = options.goals()?;
    let crew = Crew::start(options, seed, culver)?;
    let filling = Instant::now();
    let mut waiting = Vec::new();
    for goal in goals {
        let messages = u64::from(options.users) * u64::from(goal);
        crew.conductor.fill_to(u64::from(goal));
        crew.wait("filling", options.timeout, progress, |counters| Ok(counters.acked >= messages))?;
        progress.wait(options.settle.0, || crew.check_alive("settling"))?;
        waiting.push(MemoryReading::take(messages, culver, pid)?);
    }
    let fill_s = filling.elapsed().as_secs_f64();
    let first_calm_user = options.first_calm_user(seed);
    let calm = &options.calm;
    let calm = calm.start(&options.run, culver, options.payload as usize, first_calm_user, seed, progress)?;
    let drained = drain(options, &crew, calm, culver, pid, progress)?;
    let (sync_starts, sync_starts_wrong) = crew.conductor.sync_starts();
    let (findings, disconnects) = crew.finish()?;
    progress.wait(options.settle.0, || Ok(()))?;
    let after = MemoryReading::take(0, culver, pid)?;
    Ok(DrainResult::new(findings, fill_s, drained, waiting, after, disconnects, (sync_starts, sync_starts_wrong)))
}

fn drain(
    options: &DrainOptions,
    crew: &Crew,
    calm: Option<CalmPairs>,
    culver: &mut Culver,
    pid: Option<u32>,
    progress: &Progress,
) -> Result<Drained> {
    let entries = crew.conductor.shared.counters().acked;
    let enter = |phase| calm.iter().for_each(|calm| calm.enter(phase));
    let calm_acked = || calm.as_ref().map_or(0, CalmPairs::acked);
    let (before, calm_acked_before, draining) = (culver.sample()?, calm_acked(), Instant::now());
    let mut rss_bytes_max = before.rss_bytes;
    enter(Phase::Drain);
    crew.conductor.drain();
    crew.wait("draining", options.timeout, progress, |counters| {
        calm.as_ref().map_or(Ok(()), CalmPairs::check_alive)?;
        if let Some(pid) = pid {
            rss_bytes_max = rss_bytes_max.max(procfs::rss_bytes(pid)?);
        }
        Ok(counters.delivered >= entries)
    })?;
    let drain_s = draining.elapsed().as_secs_f64();
    enter(Phase::After);
    progress.wait(AFTER, || crew.check_alive("what follows"))?;
    let (after, calm_msgs) = (culver.sample()?, calm_acked() - calm_acked_before);
    let calm = calm.map(|calm| calm.finish(calm_msgs, progress)).transpose()?;
    let limited = crew.conductor.shared.counters().limited;
    Ok(Drained { drain_s, before, after, rss_bytes_max, limited, calm })
}

/// The workers that fill and drain.
struct Crew {
    conductor: Arc<Conductor>,
    workers: Vec<JoinHandle<io::Result<Finished<DrainDriver>>>>,
}

impl Crew {
    fn start(options: &DrainOptions, seed: u64, culver: &Culver) -> Result<Self> {
        let (conductor, clock) = (Arc::new(Conductor::default()), Clock::start());
        let run = RunId(crate::clock::unix_ms().wrapping_mul(1 << 16) ^ u64::from(std::process::id()));
        let senders = plan::deal((0..options.sender_count()).collect(), options.run.workers());
        let hands = u32::try_from(senders.len()).unwrap_or(u32::MAX);
        let mut workers = Vec::new();
        for (number, senders) in senders.into_iter().enumerate().filter(|(_, senders)| !senders.is_empty()) {
            let settings = DrainSettings {
                in_flight: u64::from(options.in_flight),
                logins_per_s: options.logins_per_s / f64::from(hands),
                payloads: Payloads::new(run, options.payload as usize, seed),
                run,
            };
            let seats = seats(options, &senders, seed, culver)?;
            let driver = DrainDriver::new(settings, seats, Arc::clone(&conductor));
            let deadline_us = clock.now_us() + RUN_US_MAX;
            let worker = worker::spawn(format!("drain-{number}"), culver.address(), clock, deadline_us, driver);
            workers.push(worker.context("cannot start a worker")?);
        }
        Ok(Self { conductor, workers })
    }

    fn check_alive(&self, what: &str) -> Result<()> {
        if let Some(why) = self.conductor.shared.refused() {
            bail!("{what}: the server refuses: {why}");
        }
        if self.workers.iter().any(JoinHandle::is_finished) {
            bail!("{what}: a worker ended before its time");
        }
        Ok(())
    }

    fn wait(
        &self,
        what: &str,
        max: Span,
        progress: &Progress,
        mut over: impl FnMut(Counters) -> Result<bool>,
    ) -> Result<()> {
        let counters = || self.conductor.shared.counters();
        let reached = progress.wait_until(max.0, || {
            progress.tell(format!("{what}: {}", counters()));
            self.check_alive(what)?;
            over(counters())
        })?;
        if !reached {
            bail!("{what}: not done within {max}: {}", counters());
        }
        Ok(())
    }

    /// Ends the workers; returns what they found, and how many connections were lost.
    fn finish(self) -> Result<(Findings, u64)> {
        self.conductor.shared.stop();
        let (mut findings, mut disconnects) = (Findings::default(), 0);
        for worker in self.workers {
            let finished = worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?;
            let finished = finished.context("a worker failed")?;
            findings.add(&finished.driver.findings());
            disconnects += finished.counts.disconnects;
        }
        Ok((findings, disconnects))
    }
}

/// One worker's share: these senders, and each inbox that is theirs.
fn seats(options: &DrainOptions, senders: &[u32], seed: u64, culver: &Culver) -> Result<Seats> {
    let (first_user, sender_count) = (options.first_user(seed), options.sender_count());
    let user = |number: u32| UserId(first_user + u64::from(number));
    let mut inboxes = Vec::new();
    for (place, sender) in senders.iter().enumerate() {
        for number in (*sender..options.users).step_by(sender_count as usize) {
            let (sender, recipient) = (user(*sender), user(sender_count + number));
            let plan = PairPlan::new(sender, recipient);
            inboxes.push((place, plan, client_config(culver, recipient, DEVICE, seed)?));
        }
    }
    let senders = senders.iter().map(|sender| client_config(culver, user(*sender), DEVICE, seed));
    Ok(Seats { senders: senders.collect::<Result<_>>()?, inboxes })
}
