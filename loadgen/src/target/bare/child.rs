//! The process behind [`super::Bare`]: how many threads it has, and what it tells the generator. The threads share
//! nothing but a port.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{panic, process, thread};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use super::BareReport;
use super::acceptor::{Acceptor, welcome};
use crate::preflight::{descriptors_per_table, tables_needed};
use crate::sys;
use crate::target::program::MARK;

/// Connections spread by hash over the tables, so that some get more than others: room for so many in a hundred.
const ROOM_PERCENT: u64 = 105;
/// Threads that a process is started with at most.
const THREADS_MAX: u64 = 1024;

/// How the process is started.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct BareOptions {
    /// Connections that there must be room for
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    connections: u64,
    /// Descriptors of each table at most [default: the hard limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(128..))]
    descriptors_max: Option<u64>,
}

/// What a thread counts; nobody else writes it.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) logins: AtomicU64,
    pub(super) connections: AtomicU64,
}

/// Runs a bare floor until its standard input closes: says where it listens, and reports whenever it is asked.
pub(crate) fn run(options: &BareOptions) -> Result<()> {
    let limit = options.descriptors_max.unwrap_or(u64::MAX).min(descriptors_per_table());
    set_descriptor_limit(limit).context("the limit of descriptors")?;
    let threads = threads_needed(options.connections, limit);
    if threads > THREADS_MAX {
        bail!(
            "{} connections in tables of {limit} descriptors need {threads} threads, and {THREADS_MAX} are the most: \
             ask for fewer connections, or raise the hard limit",
            options.connections
        );
    }
    // It only holds the port until all others have it: it does not listen, so nothing ever comes to it.
    let holder = reuseport_socket()?;
    holder.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).context("no port to listen on")?;
    let address = holder.local_addr()?.as_socket().context("an address of IPv4")?;
    let counts = start_threads(threads, address)?;
    drop(holder);
    println!("{address}");
    io::stdout().flush()?;
    answer_marks(&counts)
}

/// Starts the threads; all of them listen when it returns.
fn start_threads(threads: u64, address: SocketAddr) -> Result<Vec<Arc<Counts>>> {
    let welcome: Arc<[u8]> = welcome(crate::clock::unix_ms()).into();
    let (listening, listen) = std::sync::mpsc::channel();
    let mut all = Vec::new();
    for number in 0..threads {
        let counts = Arc::new(Counts::default());
        all.push(Arc::clone(&counts));
        let (welcome, listening) = (Arc::clone(&welcome), listening.clone());
        let serve = move || {
            sys::take_private_descriptors(&[]).context("a descriptor table of its own")?;
            let socket = reuseport_socket()?;
            let acceptor = Acceptor::listen(socket, address, &welcome, &counts)?;
            listening.send(()).context("the process ends")?;
            acceptor.run()
        };
        let body = move || end_process(number, panic::catch_unwind(panic::AssertUnwindSafe(serve)));
        thread::Builder::new().name(format!("bare-{number}")).spawn(body).context("cannot start a thread")?;
    }
    for _ in 0..threads {
        listen.recv().context("a thread ended")?;
    }
    Ok(all)
}

/// A thread never ends while all is well: without it, connections that hash to it would wait for ever.
fn end_process(number: u64, ended: thread::Result<Result<()>>) {
    match ended {
        Ok(Ok(())) => eprintln!("error: thread {number} of the bare floor ended"),
        Ok(Err(error)) => eprintln!("error: thread {number} of the bare floor: {error:#}"),
        Err(_panic) => eprintln!("error: thread {number} of the bare floor panicked"),
    }
    process::exit(1);
}

/// Answers each mark with a report until standard input closes.
fn answer_marks(counts: &[Arc<Counts>]) -> Result<()> {
    let mut commands = [0; 16];
    loop {
        let len = match io::stdin().read(&mut commands) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("standard input"),
        };
        for _ in commands.iter().take(len).filter(|byte| **byte == MARK) {
            let sum =
                |of: fn(&Counts) -> &AtomicU64| counts.iter().map(|counts| of(counts).load(Ordering::Relaxed)).sum();
            let report = BareReport {
                cpu_us: sys::process_cpu_us(),
                logins: sum(|counts| &counts.logins),
                connections: sum(|counts| &counts.connections),
            };
            println!("{}", serde_json::to_string(&report)?);
            io::stdout().flush()?;
        }
    }
}

fn threads_needed(connections: u64, limit: u64) -> u64 {
    tables_needed(connections.saturating_mul(ROOM_PERCENT).div_ceil(100), limit)
}

fn set_descriptor_limit(limit: u64) -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum })?)
}

fn reuseport_socket() -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uneven_spreading_has_room() {
        assert_eq!(threads_needed(1, 20_000), 1);
        assert_eq!(threads_needed(2000, 900), 3);
        let threads = threads_needed(2_277_846, 20_000);
        assert!(threads * (20_000 - 32) * 100 >= 2_277_846 * ROOM_PERCENT && threads == 120, "{threads}");
    }
}
