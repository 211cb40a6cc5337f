//! `density`: what an idle, logged-in connection costs, and whether its memory comes back.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;

use super::idle::{IdleLoad, IdleRun, IdleSample};
use crate::links::raise_descriptor_limit;
use crate::options::{RunOptions, TargetOptions, rate};
use crate::plan;
use crate::procfs;
use crate::report::progress::Progress;
use crate::report::table::{Table, grouped};
use crate::report::{Document, JsonTo, Misses};
use crate::target::culver::Culver;
use crate::units::Span;

/// Time that connections may take beyond their rate.
const GROW_SLACK: Duration = Duration::from_secs(60);

/// Options of `density`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct DensityOptions {
    #[command(flatten)]
    target: TargetOptions,
    /// Idle connections, all logged in
    #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(2..=10_000_000))]
    connections: u32,
    /// The slope of memory is taken from this number of connections to the last [default: a fifth]
    #[arg(long, value_name = "N")]
    slope_from: Option<u32>,
    /// Source addresses, from 127.0.0.2 on; 0: the kernel chooses
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=250))]
    source_ips: u8,
    /// Logins a second
    #[arg(long, default_value_t = 2000.0, value_name = "PER_S", value_parser = rate)]
    rate: f64,
    /// How long connections are held before memory is read
    #[arg(long, default_value = "5s")]
    hold: Span,
    /// Connections that come and go before anything is measured
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    warmup_connections: u32,
    /// How long memory may take to come back when all have left
    #[arg(long, default_value = "30s")]
    give_back: Span,
    /// The server's process [default: who listens on the target's port; otherwise the ops port's word is taken]
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// The first user's id [default: high, from the seed]
    #[arg(long)]
    first_user: Option<u64>,
    /// User bytes per connection, at most
    #[arg(long, value_name = "BYTES")]
    user_bytes_max: Option<f64>,
    /// Kernel bytes per connection, at most
    #[arg(long, value_name = "BYTES")]
    kernel_bytes_max: Option<f64>,
    /// Share of the growth that comes back, at least
    #[arg(long, value_name = "RATIO")]
    given_back_min: Option<f64>,
    #[command(flatten)]
    run: RunOptions,
}

#[derive(Serialize)]
struct DensityResult {
    connections: u64,
    slope_from: u64,
    user_bytes_per_connection: f64,
    kernel_bytes_per_connection: f64,
    logins_per_s: f64,
    server_cpu_us_per_login: f64,
    given_back_ratio: f64,
    user_bytes_before: u64,
    user_bytes_at_slope_from: u64,
    user_bytes_at_connections: u64,
    user_bytes_after: u64,
    memory_read_from: &'static str,
    disconnects: u64,
    errors_by_code: BTreeMap<u32, u64>,
}

impl DensityOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }
}

/// Runs the scenario.
pub(crate) fn run(mut options: DensityOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    let progress = options.run.progress("density");
    raise_descriptor_limit(options.connections as usize)?;
    let mut culver = options.target.find()?;
    let pid = options.server_pid.or_else(|| procfs::listener_pid(options.target.address().port()));
    let result = measure(&options, seed, &mut culver, pid, &progress)?;
    let missed = check(&options, &result);
    let text = render(&result);
    Document::new("density", seed, &options, &result, text, missed)
}

fn measure(
    options: &DensityOptions,
    seed: u64,
    culver: &mut Culver,
    pid: Option<u32>,
    progress: &Progress,
) -> Result<DensityResult> {
    let connections = u64::from(options.connections);
    let slope_from = options.slope_from.map_or(connections / 5, u64::from).clamp(1, connections - 1);
    let load = IdleLoad {
        connections: options.connections as usize,
        rate: options.rate,
        source_ips: options.source_ips,
        workers: options.run.workers(),
        first_user: options.first_user.unwrap_or_else(|| plan::first_user(seed)),
        seed,
    };
    warm_up(options, culver, &load, progress)?;
    let before = IdleSample::take(culver, pid, 0)?;
    let idle = IdleRun::start(culver, &load)?;
    let grow = |to: u64, culver: &mut Culver| {
        let max = Duration::from_secs_f64(f64::from(options.connections) / options.rate) + GROW_SLACK;
        let took = idle.grow_to(to, max, progress)?;
        let at_once = IdleSample::take(culver, pid, to)?;
        progress.wait(options.hold.0, || {
            progress.tell(format!("holding {to} connections"));
            Ok(())
        })?;
        anyhow::Ok((took, at_once, IdleSample::take(culver, pid, to)?))
    };
    let (took_first, _, low) = grow(slope_from, culver)?;
    let (took_rest, grown, high) = grow(connections, culver)?;
    let (disconnects, errors_by_code) = idle.close()?;
    let after_bytes = watch_give_back(options, culver, pid, &before, &high, progress)?;

    let (user_bytes_per_connection, kernel_bytes_per_connection) = high.slope_from(&low);
    let took_s = (took_first + took_rest).as_secs_f64();
    let rest = connections - slope_from;
    Ok(DensityResult {
        connections,
        slope_from,
        user_bytes_per_connection,
        kernel_bytes_per_connection,
        logins_per_s: quotient(connections, took_s),
        server_cpu_us_per_login: quotient(grown.cpu_us.saturating_sub(low.cpu_us), quotient(rest, 1.0)),
        given_back_ratio: given_back(before.user_bytes, high.user_bytes, after_bytes),
        user_bytes_before: before.user_bytes,
        user_bytes_at_slope_from: low.user_bytes,
        user_bytes_at_connections: high.user_bytes,
        user_bytes_after: after_bytes,
        memory_read_from: if pid.is_some() { "/proc/PID/status" } else { "ops port" },
        disconnects,
        errors_by_code,
    })
}

/// Lets some others come and go first: what a server needs once, its code's pages among it, is no connection's cost.
fn warm_up(options: &DensityOptions, culver: &Culver, load: &IdleLoad, progress: &Progress) -> Result<()> {
    if options.warmup_connections == 0 {
        return Ok(());
    }
    let connections = u64::from(options.warmup_connections);
    let first_user = load.first_user + u64::from(options.connections);
    let load = IdleLoad { connections: options.warmup_connections as usize, first_user, ..load.clone() };
    let idle = IdleRun::start(culver, &load)?;
    idle.grow_to(
        connections,
        GROW_SLACK + Duration::from_secs_f64(f64::from(options.warmup_connections) / options.rate),
        progress,
    )?;
    idle.close()?;
    progress.wait(options.hold.0, || {
        progress.tell("warmed up: waiting for the memory of those who left".to_owned());
        Ok(())
    })
}

/// The least memory seen after all have left, within the time allowed.
fn watch_give_back(
    options: &DensityOptions,
    culver: &mut Culver,
    pid: Option<u32>,
    before: &IdleSample,
    high: &IdleSample,
    progress: &Progress,
) -> Result<u64> {
    let mut least = u64::MAX;
    let mut countdown: u32 = 0;
    progress.wait_until(options.give_back.0, || {
        progress.tell("all have left: watching memory come back".to_owned());
        if countdown > 0 {
            countdown -= 1;
            return Ok(false);
        }
        countdown = 25; // of the wait's short steps: every reading costs the server a scrape
        least = least.min(IdleSample::take(culver, pid, 0)?.user_bytes);
        Ok(given_back(before.user_bytes, high.user_bytes, least) >= 1.0)
    })?;
    Ok(least)
}

/// The share of a growth that has gone again.
fn given_back(before: u64, high: u64, after: u64) -> f64 {
    if high <= before {
        return 1.0;
    }
    // A server that had garbage from before may give back more than it took.
    quotient(high.saturating_sub(after), quotient(high - before, 1.0)).min(1.0)
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory are below 2^52")]
fn quotient(of: u64, by: f64) -> f64 {
    if by > 0.0 { of as f64 / by } else { 0.0 }
}

fn check(options: &DensityOptions, result: &DensityResult) -> Vec<String> {
    let mut misses = Misses::default();
    misses.expect(result.disconnects == 0, || format!("{} connections were lost", result.disconnects));
    let bounded = [
        (options.user_bytes_max, result.user_bytes_per_connection, "user"),
        (options.kernel_bytes_max, result.kernel_bytes_per_connection, "kernel"),
    ];
    for (max, found, whose) in bounded {
        let held = max.is_none_or(|max| found <= max);
        misses.expect(held, || format!("{found:.0} {whose} bytes per connection, not {}", max.unwrap_or_default()));
    }
    if let Some(min) = options.given_back_min {
        let found = result.given_back_ratio;
        misses.expect(found >= min, || format!("{found:.2} of the growth came back, not {min}"));
    }
    misses.into_vec()
}

fn render(result: &DensityResult) -> String {
    let mut table = Table::new(["idle connections", ""]);
    let rows = [
        ("connections", grouped(result.connections)),
        ("user bytes per connection", format!("{:.1}", result.user_bytes_per_connection)),
        ("kernel bytes per connection", format!("{:.1}", result.kernel_bytes_per_connection)),
        ("logins per second", format!("{:.0}", result.logins_per_s)),
        ("server CPU us per login", format!("{:.1}", result.server_cpu_us_per_login)),
        ("share of the growth given back", format!("{:.2}", result.given_back_ratio)),
        ("memory before", grouped(result.user_bytes_before)),
        ("memory at the most", grouped(result.user_bytes_at_connections)),
        ("memory after", grouped(result.user_bytes_after)),
    ];
    for (name, value) in rows {
        table.row(vec![name.to_owned(), value]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_given_back() {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(given_back(100, 200, 110), 0.9));
        assert!(close(given_back(100, 200, 100), 1.0));
        assert!(close(given_back(100, 200, 250), 0.0));
        assert!(close(given_back(100, 200, 50), 1.0));
        assert!(close(given_back(100, 90, 90), 1.0), "what never grew has nothing to give back");
    }
}
