//! `density`: what idle, logged-in connections cost in memory and CPU, and whether their memory comes back.

mod beside;
mod options;
mod result;
mod steps;

use anyhow::Result;

use self::beside::Beside;
pub(crate) use self::options::{CrowdOptions, DensityOptions};
use self::result::{DensityResult, FloorRatios};
pub(crate) use self::result::{MessageFigures, check_clients};
use self::steps::{Phases, Run};
pub(crate) use self::steps::{send_round, wait_for_logins, with_held_keep_alives};
use super::idle::{BareFigures, Guard, IdleSample, per_second, quotient};
use crate::clock::Clock;
use crate::dense::Crowd;
use crate::procfs;
use crate::report::Document;
use crate::sys;
use crate::target::culver::Culver;

/// Runs the scenario.
pub(crate) fn run(mut options: DensityOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    options.check()?;
    let progress = options.run.progress("density");
    sys::catch_interrupts();
    let mut culver = options.crowd.target.find()?;
    let load = options.crowd.load(seed, &options.run)?;
    options.crowd.preflight(&load, &culver, options.others())?;
    let pid = options.crowd.server_pid();
    let mut guard = options.crowd.guard();
    let mut phases = Phases::default();

    let slope_from = options.slope_from();
    let floor = if options.with_floor {
        let settle = options.settle();
        Some(phases.time("floor", || BareFigures::measure(&load, slope_from, settle, &mut guard, &progress))?)
    } else {
        None
    };
    let login = options.crowd.login()?;
    let clock = Clock::start();
    let run = Run { options: &options, seed, load, login, clock, pid, progress: &progress };
    let result = measure(&run, slope_from, floor, &mut culver, &mut guard, phases)?;
    let missed = result.check(&options);
    let text = result.render();
    Document::new("density", seed, &options, &result, text, missed)
}

fn measure(
    run: &Run<'_>,
    slope_from: u64,
    floor: Option<BareFigures>,
    culver: &mut Culver,
    guard: &mut Guard,
    mut phases: Phases,
) -> Result<DensityResult> {
    let options = run.options;
    let connections = run.load.connections;
    let mut beside = options.beside_pairs.map(Beside::new);
    chat_alone(beside.as_mut(), "chat alone", run, culver, guard, &mut phases)?;
    phases.time("warm-up", || run.warm_up(guard))?;
    let before = IdleSample::take(culver, run.pid, 0)?;
    let crowd = Crowd::start(run.load.clone(), &run.login, run.clock)?;
    let mut grow = |to: u64, told: &'static str, phases: &mut Phases, guard: &mut Guard| {
        let took = phases.time(told, || run.grow_without_keep_alives(&crowd, to, guard))?;
        let pings = crowd.counts().pings;
        let grown = IdleSample::take(culver, run.pid, to)?;
        phases.time("settling", || run.hold(&crowd, options.settle(), guard))?;
        anyhow::Ok((took, grown, IdleSample::take(culver, run.pid, to)?, pings))
    };
    let (took_first, _, low, _) = grow(slope_from, "ramp to the slope's start", &mut phases, guard)?;
    let (took_rest, grown, high, pings_before) = grow(connections, "ramp", &mut phases, guard)?;
    let slabs = procfs::connection_slabs();
    let presence_high = culver.presence()?;
    let (messaging, senders) = match options.message {
        true => Some(phases.time("message", || run.send_messages(&crowd, culver, guard))?).unzip(),
        false => (None, None),
    };
    phases.time("hold", || run.hold(&crowd, options.hold.0, guard))?;
    let server_cpu_s_idle = match options.quiet {
        Some(quiet) => Some(phases.time("quiet", || run.measure_quiet(&crowd, quiet.0, culver, guard))?),
        None => None,
    };
    if let Some(beside) = &mut beside {
        phases.time("chat beside the idle", || beside.measure_beside(run, &crowd, culver, guard))?;
    }
    let keep_alives = phases.time("last keep-alives", || run.check_keep_alives(&crowd, pings_before, guard))?;
    let presence_held = culver.presence()?;
    let held = IdleSample::take(culver, run.pid, connections)?;
    let (outcome, _) = phases.time("leaving", || crowd.close())?;
    let after_bytes = phases.time("giving back", || run.watch_give_back(culver, &before, &high, guard))?;
    chat_alone(beside.as_mut(), "chat alone again", run, culver, guard, &mut phases)?;
    let messages = messaging.map(|sent| MessageFigures::of(&sent, &outcome.counts, connections, connections));
    let slope = high.slope_from(&low);
    let server_cpu_us_per_login = quotient(grown.cpu_us.saturating_sub(low.cpu_us), connections - slope_from);
    Ok(DensityResult {
        connections,
        client_bytes: run.login.client_bytes(),
        slope_from,
        ratios: floor.as_ref().map(|floor| FloorRatios::of(&slope, server_cpu_us_per_login, floor)),
        slope,
        held_slope: held.slope_from(&low),
        logins_per_s: per_second(connections, took_first + took_rest),
        server_cpu_us_per_login,
        server_cpu_s_idle,
        messages,
        given_back_ratio: result::given_back(before.user_bytes, high.user_bytes, after_bytes),
        user_bytes_before: before.user_bytes,
        user_bytes_at_slope_from: low.user_bytes,
        user_bytes_at_connections: high.user_bytes,
        user_bytes_after: after_bytes,
        samples: [before, low, high, held],
        slabs,
        memory_read_from: if run.pid.is_some() { "/proc/PID/status" } else { "ops port" },
        keep_alives,
        presence: [presence_high, presence_held],
        senders,
        disconnects: outcome.counts.disconnects,
        errors_by_code: outcome.errors,
        faults: outcome.faults,
        clients: outcome.counts,
        beside: beside.map(Beside::finish),
        floor,
        phases: phases.into_vec(),
    })
}

/// The pairs, if there are to be any, without idle connections.
fn chat_alone(
    beside: Option<&mut Beside>,
    told: &'static str,
    run: &Run<'_>,
    culver: &mut Culver,
    guard: &mut Guard,
    phases: &mut Phases,
) -> Result<()> {
    beside.map_or(Ok(()), |beside| phases.time(told, || beside.measure_alone(run, culver, guard)))
}
