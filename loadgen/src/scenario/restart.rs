//! `restart`: a server with a crowd on it is asked to end and started again at once, behind listening sockets that never
//! close. Who is away for how long, and is anything lost?

mod options;
mod result;
mod round;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub(crate) use self::options::RestartOptions;
use self::result::RestartResult;
use self::round::Round;
use super::density::wait_for_logins;
use super::idle::Guard;
use super::pairs::PairRun;
use crate::clock::Clock;
use crate::dense::senders::{SENDERS, SenderOutcome, SenderPlan, Senders};
use crate::dense::{Crowd, CrowdLoad};
use crate::report::progress::Progress;
use crate::report::{Document, Misses};
use crate::sys;
use crate::target::Target;
use crate::target::child::ServerChild;

/// Longest wait for a server to be ready.
const START_MAX: Duration = Duration::from_secs(60);
/// How long nothing more has to be acknowledged until seeding is given up.
const SEEDING_STALL_MAX: Duration = Duration::from_secs(30);
/// The run ends when the machine has less memory left.
const MEMORY_FLOOR_MIB: u64 = 512;

/// Runs the scenario.
pub(crate) fn run(mut options: RestartOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    options.check()?;
    let progress = options.run.progress("restart");
    sys::catch_interrupts();
    let scratch = tempfile::tempdir().context("no temporary directory")?;
    let folder = options.keep.clone().unwrap_or_else(|| scratch.path().to_owned());
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (result, mut misses) = measure(&options, seed, &folder, &progress)?;
    result.check(&options, &mut misses);
    Document::new("restart", seed, &options, &result, result.render(), misses.into_vec())
}

fn measure(options: &RestartOptions, seed: u64, folder: &Path, progress: &Progress) -> Result<(RestartResult, Misses)> {
    let (clock, mut guard, mut misses) = (Clock::start(), Guard::new(MEMORY_FLOOR_MIB), Misses::default());
    let (data, log, args) = (folder.join("data"), folder.join("server.log"), options.server_args());
    let mut server = ServerChild::prepare(&options.culver, &data, log, 0, &args, seed)?;
    if let Some(count) = options.inherited() {
        server.listen_for_it(count)?;
    }
    server.start(START_MAX)?;
    let culver = server.target(options.suite)?;
    let load = options.load(seed, culver.address(), folder.join("tickets"))?;
    let login = options.login(&server.credentials())?;
    let senders = seed_users(options, &load, seed, &culver, clock, progress)?;
    senders.check(&mut misses);
    let pairs = options.pair_load(seed, load.first_user.wrapping_add(options.users()).wrapping_add(SENDERS));
    let pairs = PairRun::start(&culver, &pairs, 0, clock)?;
    pairs.wait_for_logins(progress)?;
    pairs.shared().go();
    let connections = load.connections;
    let crowd = Crowd::start(load, &login, clock)?;
    crowd.grow_to(connections, progress, || {
        pairs.check_alive()?;
        guard.check()
    })?;
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        progress.wait(options.rest.0, || {
            progress.tell(format!("before restart {number}: {}", pairs.shared().counters()));
            server.check_alive()?;
            pairs.check_alive()?;
            guard.check()
        })?;
        let round = Round::run(options, (&crowd, &pairs), &mut server, clock, progress, &mut guard)?;
        let is_whole = round.missing == 0;
        rounds.push(round);
        if !is_whole {
            break; // what follows would be another measurement
        }
    }
    let pairs = pairs.finish(options.settle.0, progress)?;
    let (outcome, _) = crowd.close()?;
    server.kill()?;
    Ok((RestartResult::new((connections, options.users()), rounds, outcome, pairs), misses))
}

/// One message to each user, so that storage knows them all; most of them never come.
fn seed_users(
    options: &RestartOptions,
    load: &CrowdLoad,
    seed: u64,
    target: &dyn Target,
    clock: Clock,
    progress: &Progress,
) -> Result<SenderOutcome> {
    let users = options.users();
    let first_sender = load.first_user.wrapping_add(users);
    let plan =
        SenderPlan { run: load.run, first_user: load.first_user, connections: users, first_sender, rate: None, seed };
    let senders = Senders::start(target, plan, clock)?;
    wait_for_logins(&senders, progress)?;
    senders.send_until(users);
    let (mut acked, mut guard) = (0, Guard::new(MEMORY_FLOOR_MIB));
    loop {
        let has_moved = progress.wait_until(SEEDING_STALL_MAX, || {
            let sent = senders.sent()?;
            progress.tell(format!("a message to each user: {} of {users}", sent.acked));
            guard.check()?;
            Ok(sent.acked > acked)
        })?;
        acked = senders.sent()?.acked;
        if acked >= users {
            return senders.close();
        }
        if !has_moved {
            bail!("only {acked} of {users} messages were acknowledged, and no more for {SEEDING_STALL_MAX:?}");
        }
    }
}
