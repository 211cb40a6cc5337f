//! What scenarios are made of in which a server under load ends and starts again, round after round, and is held to
//! what it acknowledged.

mod options;
mod result;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::rngs::SmallRng;
use tempfile::TempDir;

pub(crate) use self::options::RestartOptions;
pub(crate) use self::result::RestartResult;
use super::pairs::shared::Counters;
use super::pairs::{PairOutcome, PairRun};
use crate::clock::{Clock, micros};
use crate::journal;
use crate::plan;
use crate::report::Broken;
use crate::report::histogram::Latencies;
use crate::report::progress::Progress;
use crate::target::child::{ServerChild, Started};
use crate::verify::Findings;

/// Where a run's files go: removed at the end, unless they are to stay.
pub(crate) struct Folder {
    path: PathBuf,
    scratch: Option<TempDir>,
}

impl Folder {
    pub(crate) fn make(options: &RestartOptions) -> Result<Self> {
        if let Some(path) = options.keep.clone() {
            std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
            return Ok(Self { path, scratch: None });
        }
        let scratch = tempfile::tempdir().context("no temporary directory")?;
        Ok(Self { path: scratch.path().to_owned(), scratch: Some(scratch) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same, if it stays.
    pub(crate) fn kept(&self) -> Option<&Path> {
        self.scratch.is_none().then_some(&*self.path)
    }
}

/// A server under load.
pub(crate) struct Restarts<'a> {
    options: &'a RestartOptions,
    progress: &'a Progress,
    pub(crate) server: ServerChild,
    run: PairRun,
    /// Decides how long each life lasts.
    lives: SmallRng,
    /// Decides how many hubs each start has.
    hubs: SmallRng,
    times: Latencies,
    round: u32,
    without_progress: u32,
}

impl<'a> Restarts<'a> {
    /// Starts the server with its data in `data`, and the load. The server's log and the journals go to `beside`.
    pub(crate) fn begin(
        options: &'a RestartOptions,
        seed: u64,
        (data, beside): (&Path, &Path),
        progress: &'a Progress,
    ) -> Result<Self> {
        let log = beside.join("server.log");
        let args = &options.server_args;
        let mut server = ServerChild::prepare(&options.culver, data, log, options.volumes, args, seed)?;
        let (mut times, mut hubs) = (Latencies::new(), plan::rng(seed, "hubs"));
        server.set_hubs(options.draw_hubs(&mut hubs));
        times.record(micros(server.start(options.restart_max.0)?));

        let load = options.load(seed, beside.join("crash"));
        let run = PairRun::start(&server.target(options.suite)?, &load, 0, Clock::start())?;
        run.wait_for_logins(progress)?;
        run.shared().go();
        let lives = plan::rng(seed, "kill after");
        Ok(Self { options, progress, server, run, lives, hubs, times, round: 0, without_progress: 0 })
    }

    /// Runs the rounds, up to the first that breaks a promise: what that one did is returned.
    pub(crate) fn run_rounds(&mut self, mut round: impl FnMut(&mut Self, u32) -> Result<()>) -> Result<Option<String>> {
        while self.round < self.options.rounds {
            self.round += 1;
            let before = self.counters();
            match round(self, self.round) {
                Err(error) if error.is::<Broken>() => return Ok(Some(format!("round {}: {error:#}", self.round))),
                ended => ended.with_context(|| format!("round {}", self.round))?,
            }
            if self.counters().acked == before.acked {
                self.without_progress += 1;
            }
        }
        Ok(None)
    }

    pub(crate) fn counters(&self) -> Counters {
        self.run.shared().counters()
    }

    /// Lets the server live for a random time.
    pub(crate) fn live(&mut self) -> Result<()> {
        let range = self.options.kill_after;
        let life = Duration::from_micros(self.lives.random_range(range.from.us()..=range.to.us()));
        self.live_for(life)
    }

    /// Lets the server live for so long.
    pub(crate) fn live_for(&mut self, life: Duration) -> Result<()> {
        self.wait_until(life, |restarts| {
            restarts.server.check_alive()?;
            Ok(false)
        })?;
        Ok(())
    }

    /// Waits under load until `over` says so; `false`: the time is up.
    pub(crate) fn wait_until(
        &mut self,
        max: Duration,
        mut over: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<bool> {
        let progress = self.progress;
        progress.wait_until(max, || {
            progress.tell(format!("round {} of {}: {}", self.round, self.options.rounds, self.counters()));
            self.run.check_alive()?;
            over(self)
        })
    }

    /// Runs the offline check, if that was asked for. The server must not run.
    pub(crate) fn verify(&self) -> Result<()> {
        if self.options.verify_each_round { self.server.verify() } else { Ok(()) }
    }

    /// Starts the server again and waits until it is ready.
    pub(crate) fn start(&mut self) -> Result<()> {
        match self.start_unless(|| Ok(false))? {
            Started::Ready(_) => Ok(()),
            Started::Ended(status) => bail!(self.server.ended_by_itself(status)),
            Started::Stopped => unreachable!("nobody stops it"),
        }
    }

    /// Starts the server again and waits until it is ready, has ended, or `stop` says that nobody waits any more.
    pub(crate) fn start_unless(&mut self, stop: impl FnMut() -> Result<bool>) -> Result<Started> {
        self.server.set_hubs(self.options.draw_hubs(&mut self.hubs));
        let started = self.server.start_unless(self.options.restart_max.0, stop)?;
        if let Started::Ready(time) = started {
            self.times.record(micros(time));
        }
        Ok(started)
    }

    /// Ends sending, waits until everything has arrived, and adds everything up; at once where a promise is broken.
    pub(crate) fn finish(mut self, broken: Option<String>) -> Result<RestartResult> {
        let settling = Instant::now();
        let connections = self.run.connections();
        let ended_early = broken.is_some();
        let settle = if ended_early { Duration::ZERO } else { self.options.settle.0 };
        let outcome = self.run.finish(settle, self.progress)?;
        let settled_s = settling.elapsed().as_secs_f64();
        self.server.kill()?;
        let verified = if ended_early || !self.options.verify_each_round { Ok(()) } else { self.server.verify() };
        let findings = check_journals(&outcome)?;
        Ok(RestartResult {
            rounds: self.round,
            findings: if ended_early { findings.without_what_is_due() } else { findings },
            redelivered: outcome.redelivered,
            devices: connections,
            reconnects: outcome.links.connects.saturating_sub(connections),
            cut_by_clients: outcome.links.drops,
            leaves: outcome.counts.leaves,
            device_restarts: outcome.counts.restarts,
            fetch_logins: outcome.counts.fetches,
            restart_us: self.times.percentiles(),
            rounds_without_progress: self.without_progress,
            settled_s,
            errors_by_code: outcome.errors,
            violations: outcome.violations,
            faults: outcome.faults,
            ended_early,
            broken: broken.or(verified.err().map(|error| format!("in the end: {error:#}"))),
        })
    }
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
