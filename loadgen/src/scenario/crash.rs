//! `crash`: kills the server under load again and again, at a random time or at a chosen place of a message's way, and
//! holds it to what it acknowledged.

mod points;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use anyhow::{Result, bail};
use clap::Args;
use rand::rngs::SmallRng;
use serde::Serialize;

use self::points::CrashPoints;
use super::restarts::{Folder, RestartOptions, RestartResult, Restarts};
use crate::plan;
use crate::report::progress::Progress;
use crate::report::table::{Table, grouped};
use crate::report::{Broken, Document, JsonTo, Misses};
use crate::target::child::Started;
use crate::units::Span;

/// Options of `crash`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct CrashOptions {
    /// Crash points, which come in turn: the server kills itself there (needs one built with the feature
    /// `crash-points`). `all`, or names with commas between them [default: it is killed at a random time]
    #[arg(long, value_name = "NAMES")]
    at: Option<CrashPoints>,
    /// With --at: how often the point is passed before, at random up to this
    #[arg(long, default_value_t = 1000, value_name = "N", requires = "at", value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    hits_max: u32,
    /// With --at: longest wait until the server has killed itself
    #[arg(long, default_value = "10s", requires = "at")]
    reach_max: Span,
    #[command(flatten)]
    #[serde(flatten)]
    restarts: RestartOptions,
}

#[derive(Serialize)]
struct CrashResult {
    #[serde(flatten)]
    restarts: RestartResult,
    /// With crash points: what came of each, in the order in which a message comes by.
    points: Vec<PointTally>,
}

/// The rounds of one crash point.
#[derive(Serialize)]
struct PointTally {
    point: &'static str,
    rounds: u32,
    /// Times that the server killed itself there.
    kills: u32,
    /// Of them, before it was ready.
    kills_before_ready: u32,
    /// Rounds in which it did not come by often enough.
    not_reached: u32,
}

impl CrashOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.restarts.run.json_to()
    }
}

/// Runs the scenario.
pub(crate) fn run(mut options: CrashOptions) -> Result<Document> {
    let seed = options.restarts.run.fix_seed();
    let progress = options.restarts.run.progress("crash");
    let folder = Folder::make(&options.restarts)?;
    let result = run_in(folder.path(), &options, seed, &progress)?;
    let missed = check(&result);
    let text = render(&result);
    Document::new("crash", seed, &options, &result, text, missed)
}

fn run_in(folder: &Path, options: &CrashOptions, seed: u64, progress: &Progress) -> Result<CrashResult> {
    let mut restarts = Restarts::begin(&options.restarts, seed, (&folder.join("data"), folder), progress)?;
    let mut points = AtPoints::new(options, seed);
    let broken = match &options.at {
        None => restarts.run_rounds(|restarts, _| {
            restarts.live()?;
            restarts.server.kill()?;
            restarts.verify()?;
            restarts.start()
        })?,
        Some(at) => {
            restarts.live()?;
            restarts.server.kill()?;
            let broken = restarts.run_rounds(|restarts, number| points.round(restarts, at.of_round(number)))?;
            if broken.is_none() {
                restarts.start()?;
            }
            broken
        }
    };
    Ok(CrashResult { restarts: restarts.finish(broken)?, points: points.tallies })
}

/// Rounds in which the server kills itself.
struct AtPoints<'a> {
    options: &'a CrashOptions,
    hits: SmallRng,
    tallies: Vec<PointTally>,
}

impl<'a> AtPoints<'a> {
    fn new(options: &'a CrashOptions, seed: u64) -> Self {
        let names = options.at.iter().flat_map(CrashPoints::names);
        let tallies =
            names.map(|point| PointTally { point, rounds: 0, kills: 0, kills_before_ready: 0, not_reached: 0 });
        Self { options, hits: plan::rng(seed, "hits"), tallies: tallies.collect() }
    }

    /// One life, up to `point`.
    fn round(&mut self, restarts: &mut Restarts, point: &'static str) -> Result<()> {
        let hits = points::draw_hits(self.options.hits_max, &mut self.hits);
        restarts.server.set_fail_points(Some(points::fail_points(point, hits)));
        let started = restarts.start_unless(|| Ok(false))?;
        let (is_ready, status) = match started {
            Started::Ended(status) => (false, Some(status)),
            Started::Ready(_) | Started::Stopped => (true, self.wait_for_end(restarts)?),
        };
        restarts.server.set_fail_points(None);
        if let Some(status) = status {
            check_end(restarts, point, status)?;
        }
        restarts.server.kill()?;
        let tally = self.tallies.iter_mut().find(|tally| tally.point == point).expect("a tally for each");
        tally.rounds += 1;
        tally.kills += u32::from(status.is_some());
        tally.kills_before_ready += u32::from(!is_ready);
        tally.not_reached += u32::from(status.is_none());
        restarts.verify()
    }

    fn wait_for_end(&self, restarts: &mut Restarts) -> Result<Option<ExitStatus>> {
        let mut status = None;
        restarts.wait_until(self.options.reach_max.0, |restarts| {
            status = restarts.server.ended()?;
            Ok(status.is_some())
        })?;
        Ok(status)
    }
}

/// A server that ends otherwise has found something.
fn check_end(restarts: &Restarts, point: &str, status: ExitStatus) -> Result<()> {
    let server = &restarts.server;
    if status.signal() != Some(libc::SIGKILL) || !server.said().contains(&format!("crash point {point} reached")) {
        let words = server.last_words();
        bail!(Broken(format!("it ended with {status}, not by its own kill at {point}; {words}")));
    }
    Ok(())
}

fn check(result: &CrashResult) -> Vec<String> {
    let mut misses = Misses::default();
    result.restarts.check(&mut misses);
    for PointTally { point, rounds, kills, .. } in &result.points {
        misses.expect(*rounds == 0 || *kills > 0, || {
            format!("{point} was never reached in {rounds} rounds: was the server built with the feature crash-points, and does this load come by there (outbox-handed needs several hubs)?")
        });
    }
    misses.into_vec()
}

fn render(result: &CrashResult) -> String {
    if result.points.is_empty() {
        return result.restarts.render();
    }
    let mut points = Table::new(["crash point", "rounds", "kills", "of them before ready", "not reached"]);
    for PointTally { point, rounds, kills, kills_before_ready, not_reached } in &result.points {
        let cells = [*rounds, *kills, *kills_before_ready, *not_reached].map(|cell| grouped(u64::from(cell)));
        points.row([(*point).to_owned()].into_iter().chain(cells).collect());
    }
    format!("{}\n{}", points.render(), result.restarts.render())
}
