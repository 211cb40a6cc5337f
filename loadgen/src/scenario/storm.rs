//! `storm`: all clients of a crowd lose their connections at the same moment and come back as phones do, beside pairs
//! that talk and must not notice.

mod options;
mod result;
mod round;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

pub(crate) use self::options::{ReturnOptions, StormOptions, pair_load};
use self::result::{Leaving, StormResult};
pub(crate) use self::round::Attempts;
use self::round::{CALM, Meter, SLOTS, StormRound};
use super::idle::per_second;
use super::pairs::PairRun;
use crate::clock::Clock;
use crate::dense::{Crowd, CrowdLoad};
use crate::report::Document;
use crate::report::progress::Progress;
use crate::sys;
use crate::target::culver::Culver;

/// How long the pairs talk before anything is measured.
const WARM_UP: Duration = Duration::from_secs(2);
/// Longest wait for what is under way when sending has ended.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Runs the scenario.
pub(crate) fn run(mut options: StormOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    options.crowd.check()?;
    let progress = options.run.progress("storm");
    sys::catch_interrupts();
    let mut culver = options.crowd.target.find()?;
    let scratch = tempfile::tempdir().context("no temporary directory")?;
    let load = load(&options, seed, scratch.path())?;
    options.crowd.preflight(&load, &culver, 2 * u64::from(options.pairs))?;
    let result = measure(&options, seed, load, &mut culver, &progress)?;
    let missed = result.check(&options);
    let text = result.render(&options.returns.told());
    Document::new("storm", seed, &options, &result, text, missed)
}

/// Clients come back by ticket: without a file that was named there is one for this run.
fn load(options: &StormOptions, seed: u64, scratch: &Path) -> Result<CrowdLoad> {
    let load = options.crowd.load(seed, &options.run)?;
    let tickets = load.tickets.clone().unwrap_or_else(|| scratch.join("tickets"));
    Ok(CrowdLoad { tickets: Some(tickets), returns: Some(options.returns.rules(seed)), ..load })
}

fn measure(
    options: &StormOptions,
    seed: u64,
    load: CrowdLoad,
    culver: &mut Culver,
    progress: &Progress,
) -> Result<StormResult> {
    let (connections, clock) = (load.connections, Clock::start());
    let mut guard = options.crowd.guard();
    let pairs = options.pair_load(seed, load.first_user.wrapping_add(connections));
    let pairs = PairRun::start(culver, &pairs, SLOTS, clock)?;
    pairs.wait_for_logins(progress)?;
    pairs.shared().go();
    progress.wait(WARM_UP, || pairs.check_alive())?;
    let mut meter = Meter::new(culver, options.crowd.server_pid());
    let rss_start_bytes = meter.rss_bytes()?;

    let login = options.crowd.login()?;
    let client_bytes = login.client_bytes();
    let crowd = Crowd::start(load, &login, clock)?;
    let grown = crowd.grow_to(connections, progress, || {
        pairs.check_alive()?;
        guard.check()
    })?;
    let mut rest = |span: Duration, told: &str| {
        progress.wait(span, || {
            progress.tell(format!("{told}: {}", pairs.shared().counters()));
            pairs.check_alive()?;
            crowd.check_alive()?;
            guard.check()
        })
    };
    rest(options.rest.0, "all are there")?;
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        pairs.shared().set_slot(CALM);
        rest(options.calm.0, &format!("round {number} of {}, calm", options.rounds))?;
        pairs.shared().set_slot(0);
        let round = StormRound::run(options, (&crowd, &pairs), &mut meter, progress, &mut options.crowd.guard())?;
        let is_whole = round.missing == 0;
        rounds.push(round);
        if !is_whole {
            break; // what follows would be another measurement
        }
        rest(options.rest.0, "all are back")?;
    }
    rest(options.hold.0, "holding")?;
    let rss_held_bytes = meter.rss_bytes()?;
    let pairs = pairs.finish(DRAIN_MAX, progress)?;
    let (outcome, _) = crowd.close()?;
    let leaving = match options.leave {
        Some(span) => {
            progress.wait(span.0, || {
                progress.tell("all have left: waiting for the server's memory".to_owned());
                guard.check()
            })?;
            Some(Leaving::new(rss_start_bytes, meter.rss_bytes()?))
        }
        None => None,
    };
    Ok(StormResult::new(
        (connections, client_bytes, per_second(connections, grown)),
        rounds,
        (rss_start_bytes, rss_held_bytes, leaving),
        outcome,
        pairs,
    ))
}
