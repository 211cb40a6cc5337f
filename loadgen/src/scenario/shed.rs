//! `shed`: what it costs a server to refuse a connection, beside a bare loop of accept, write and close. The two come by
//! turns, round after round; the median of the ratios counts.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use culver_protocol::preamble::Preamble;
use serde::Serialize;

use super::idle::quotient;
use crate::options::RunOptions;
use crate::procfs;
use crate::report::histogram::median;
use crate::report::progress::Progress;
use crate::report::table::Table;
use crate::report::{Document, JsonTo, Misses};
use crate::sys;
use crate::target::culver::Ops;
use crate::target::refuser::Refuser;

/// Bytes of what every client says: a login with a ticket is about as long.
const LOGIN_LEN: usize = 120;
/// Longest wait of a client for its refusal.
const PATIENCE: Duration = Duration::from_secs(30);
/// One attempt in so many may be let in.
const LET_IN_ONE_IN: u64 = 20;
const SHED: &str = "culver_logins_shed_by_source_total";

/// Options of `shed`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct ShedOptions {
    /// Where clients connect
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDR")]
    target: SocketAddr,
    /// The server's operations port
    #[arg(long, default_value = "127.0.0.1:7401", value_name = "ADDR")]
    ops: SocketAddr,
    /// The server's process [default: who listens on the target's port]
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Attempts in each round, at either
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    attempts: u64,
    /// Clients that come at the same time, each again as soon as it is refused
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    clients: u64,
    /// Rounds
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Median of what a refusal costs the server, so many times the bare loop's at most
    #[arg(long, value_name = "RATIO")]
    ratio_max: Option<f64>,
    #[command(flatten)]
    run: RunOptions,
}

impl ShedOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }
}

#[derive(Default, Serialize)]
struct ShedResult {
    /// CPU of the server, and of the bare loop, in microseconds for each attempt, round by round.
    server_us: Vec<f64>,
    bare_us: Vec<f64>,
    ratios: Vec<f64>,
    server_us_median: f64,
    bare_us_median: f64,
    ratio_median: f64,
}

/// Runs the scenario.
pub(crate) fn run(mut options: ShedOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    let progress = options.run.progress("shed");
    sys::catch_interrupts();
    let result = measure(&options, &progress)?;
    let mut misses = Misses::default();
    if let Some(max) = options.ratio_max {
        let found = result.ratio_median;
        misses.expect(found <= max, || format!("a refusal costs x {found:.2} of accept, write and close, not {max}"));
    }
    let text = result.render();
    Document::new("shed", seed, &options, &result, text, misses.into_vec())
}

fn measure(options: &ShedOptions, progress: &Progress) -> Result<ShedResult> {
    let pid = options.server_pid.or_else(|| procfs::listener_pid(options.target.port()));
    let pid = pid.context("whose port is it? Name the server's process with --server-pid PID")?;
    let (refuser, ops) = (Refuser::start()?, Ops::new(options.ops));
    let mut result = ShedResult::default();
    // Before it counts, the server has let in whom it would.
    storm(options, options.target, true)?;
    for round in 1..=options.rounds {
        progress.tell(format!("round {round} of {}", options.rounds));
        let shed = ops.metrics()?.value(SHED)?;
        let server_us = cpu_us_of_storm(options, (options.target, pid), true)?;
        let shed = ops.metrics()?.value(SHED)? - shed;
        ensure!(
            shed >= (options.attempts - options.attempts / LET_IN_ONE_IN) as f64,
            "of {} attempts the server has refused {shed}: it needs `per_s = 0`, `source_per_s = 1` and `source_burst = 1` below `[logins]`",
            options.attempts
        );
        // Who has said nothing is closed in order by the bare loop, which does not read, and by the server as well.
        let bare_us = cpu_us_of_storm(options, (refuser.address(), refuser.pid()), false)?;
        result.server_us.push(server_us);
        result.bare_us.push(bare_us);
        result.ratios.push(server_us / bare_us);
    }
    result.server_us_median = median(&result.server_us);
    result.bare_us_median = median(&result.bare_us);
    result.ratio_median = median(&result.ratios);
    Ok(result)
}

/// CPU of the process for each attempt, in microseconds.
fn cpu_us_of_storm(options: &ShedOptions, (target, pid): (SocketAddr, u32), speaks: bool) -> Result<f64> {
    let cpu_us = || sys::cpu_us_of(pid).with_context(|| format!("the CPU time of process {pid}"));
    let before_us = cpu_us()?;
    let attempts = storm(options, target, speaks)?;
    Ok(quotient(cpu_us()?.saturating_sub(before_us), attempts))
}

/// All clients come, again and again; returns how often.
fn storm(options: &ShedOptions, target: SocketAddr, speaks: bool) -> Result<u64> {
    let each = options.attempts.div_ceil(options.clients);
    let clients: Vec<_> = (0..options.clients)
        .map(|_| thread::spawn(move || (0..each).try_for_each(|_| attempt(target, speaks))))
        .collect();
    for client in clients {
        client.join().expect("clients do not panic")?;
    }
    Ok(each * options.clients)
}

/// Connects, logs in if it speaks, and reads until it is closed.
fn attempt(target: SocketAddr, speaks: bool) -> Result<()> {
    let mut stream = TcpStream::connect(target).with_context(|| format!("cannot connect to {target}"))?;
    stream.set_read_timeout(Some(PATIENCE)).context("a bound of the wait")?;
    if speaks {
        let len = u16::try_from(LOGIN_LEN).expect("short").to_be_bytes();
        let login = [Preamble::PLAINTEXT.encode().as_slice(), &len, &[0xFF; LOGIN_LEN]].concat();
        stream.write_all(&login).context("saying a login")?;
    }
    let mut told = Vec::new();
    stream.read_to_end(&mut told).context("a refusal is read to its end, and not cut off")?;
    ensure!(!told.is_empty(), "closed without a word");
    Ok(())
}

impl ShedResult {
    fn render(&self) -> String {
        let mut table = Table::new(["refusing", "CPU us", "round by round"]);
        let rows = [
            ("server", self.server_us_median, &self.server_us),
            ("accept, write, close", self.bare_us_median, &self.bare_us),
            ("ratio", self.ratio_median, &self.ratios),
        ];
        for (name, middle, all) in rows {
            let rounds: Vec<String> = all.iter().map(|found| format!("{found:.2}")).collect();
            table.row(vec![name.to_owned(), format!("{middle:.2}"), rounds.join(" ")]);
        }
        table.render()
    }
}
