//! A crowd: millions of idle clients, a few bytes each, spread over threads that have a descriptor table of their own.
//!
//! A run starts a crowd, says how many of it shall be connected, and reads its counts. [`client`] is the sans-io part;
//! [`worker`] owns the sockets; what both sides tell each other is in [`control`]. Knows nothing of scenarios.

mod client;
mod control;
mod handshake;
mod keep_alive;
mod partials;
mod returned;
mod returns;
pub(crate) mod senders;
pub(crate) mod sources;
mod tickets;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use culver_protocol::handshake::client::ServerKey;

use self::client::{CLIENT_LEN, SEALED_LEN};
pub(crate) use self::control::Counts;
use self::control::{Post, Shared};
pub(crate) use self::handshake::{CrowdSealing, HandshakeOption};
pub(crate) use self::keep_alive::STEP_US;
pub(crate) use self::returned::Returned;
pub(crate) use self::returns::{DropWay, Returns};
use self::sources::Sources;
use self::worker::{Place, Start, Worker};
use crate::clock::{Clock, micros};
use crate::plan::RunId;
use crate::preflight;
use crate::report::histogram::{Latencies, Percentiles};
use crate::report::progress::Progress;
use crate::sys;
use crate::target::credentials::Credentials;

/// Workers that open connections at the same time, or close them: the others wait for their turn.
const AT_ONCE_MAX: usize = 4;
/// Logins under way over all workers: what a listener's queue surely holds.
const PENDING_MAX: usize = 512;
/// No login for so long, and none will come.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Failures up to this number, and one in so many connections, are told in the end; more end the run.
const FAILURES_MAX: u64 = 16;
const FAILURES_ONE_IN: u64 = 1000;
/// All workers hear of a drop within this.
const DROP_AHEAD: Duration = Duration::from_millis(50);
/// A worker's stack: it never goes deep.
const STACK_LEN: usize = 256 * 1024;

/// What the clients of a crowd show at their login.
#[derive(Clone)]
pub(crate) enum LoginWith {
    /// Tokens, signed when they are needed; or tickets from the file, where one is named.
    /// Sealed connections show them within a handshake.
    Tokens(Arc<Credentials>, Option<CrowdSealing>),
    /// What a floor takes: anything.
    Nothing,
}

impl LoginWith {
    /// How connections are sealed; `None`: not at all.
    fn sealing(&self) -> Option<&CrowdSealing> {
        match self {
            Self::Tokens(_, sealing) => sealing.as_ref(),
            Self::Nothing => None,
        }
    }

    /// Bytes that are kept of each connection.
    pub(crate) fn client_bytes(&self) -> usize {
        CLIENT_LEN + self.sealing().map_or(0, |_| SEALED_LEN)
    }
}

/// How a crowd is made.
#[derive(Clone, Debug)]
pub(crate) struct CrowdLoad {
    pub(crate) target: SocketAddr,
    pub(crate) connections: u64,
    /// Threads, each with its own descriptor table; `None`: as many as the connections need.
    pub(crate) workers: Option<u64>,
    pub(crate) first_user: u64,
    pub(crate) sources: Sources,
    /// Logins a second over all workers; `None`: as fast as they are answered.
    pub(crate) rate: Option<f64>,
    pub(crate) keep_alive_us: u64,
    pub(crate) tickets: Option<PathBuf>,
    /// Which messages are of this run.
    pub(crate) run: RunId,
    /// Whether the server shall deliver.
    pub(crate) sends_ready: bool,
    /// Whether the time from sending to delivery is recorded.
    pub(crate) measures_delivery: bool,
    /// How clients come back; `None`: whoever is gone stays away.
    pub(crate) returns: Option<Returns>,
}

impl CrowdLoad {
    /// Descriptors that the crowd may have open: connections that were left without a word are closed later.
    pub(crate) fn descriptors(&self) -> u64 {
        let is_silent = self.returns.is_some_and(|returns| returns.drop == DropWay::Silent);
        if is_silent { self.connections.saturating_mul(2) } else { self.connections }
    }

    /// How many threads that makes.
    pub(crate) fn worker_count(&self) -> u64 {
        let wanted = self.workers.unwrap_or_else(|| preflight::workers_needed(self.descriptors()));
        wanted.clamp(1, self.connections.max(1))
    }
}

/// Idle clients, connected or not.
pub(crate) struct Crowd {
    shared: Arc<Shared>,
    posts: Vec<(Arc<Post>, Place)>,
    workers: Vec<JoinHandle<io::Result<Option<Latencies>>>>,
    clock: Clock,
}

/// What a crowd went through.
#[derive(Clone, Debug, Default)]
pub(crate) struct CrowdOutcome {
    pub(crate) counts: Counts,
    /// Errors that the server told, by code.
    pub(crate) errors: BTreeMap<u32, u64>,
    /// The first things that were wrong, in words.
    pub(crate) faults: Vec<String>,
}

impl Crowd {
    /// Starts the workers; nobody connects yet.
    pub(crate) fn start(load: CrowdLoad, login: &LoginWith, clock: Clock) -> Result<Self> {
        if let Some(path) = &load.tickets {
            tickets::prepare(path, load.first_user)?;
        }
        let shared = Arc::new(Shared::default());
        shared.pace.set_rate(load.rate);
        shared.set_server_key(login.sealing().and_then(|sealing| sealing.server));
        let count = load.worker_count();
        let share = load.connections.div_ceil(count);
        let descriptors = load.descriptors().div_ceil(count);
        sys::raise_descriptor_limit(descriptors + sys::DESCRIPTORS_BESIDE).context("the limit of descriptors")?;
        let pending_max = PENDING_MAX / usize::try_from(count).map_or(AT_ONCE_MAX, |count| count.min(AT_ONCE_MAX));
        let load = Arc::new(load);
        let mut crowd = Self { shared, posts: Vec::new(), workers: Vec::new(), clock };
        for number in 0..count {
            let first = number * share;
            let slots = share.min(load.connections.saturating_sub(first));
            if slots == 0 {
                break;
            }
            let place = Place { number, workers: count, first, slots, pending_max };
            crowd.start_worker(place, &load, login)?;
        }
        Ok(crowd)
    }

    fn start_worker(&mut self, place: Place, load: &Arc<CrowdLoad>, login: &LoginWith) -> Result<()> {
        let post = Arc::new(Post::new().context("a worker's bell")?);
        let start = Start {
            place,
            load: Arc::clone(load),
            login: login.clone(),
            shared: Arc::clone(&self.shared),
            post: Arc::clone(&post),
            clock: self.clock,
        };
        let thread = std::thread::Builder::new().name(format!("crowd-{}", place.number)).stack_size(STACK_LEN);
        let shared = Arc::clone(&self.shared);
        let name = place.number;
        let run = move || Worker::run(start).inspect_err(|error| shared.note_end(format!("worker {name}: {error}")));
        let worker = thread.spawn(run).context("cannot start a worker")?;
        self.posts.push((post, place));
        self.workers.push(worker);
        Ok(())
    }

    /// Opens connections until there are `connections`, all logged in; returns how long that took. `guard` is asked
    /// now and then whether to go on.
    ///
    /// # Errors
    /// Logins come no more, far too many fail, a worker ended, or the guard says so.
    pub(crate) fn grow_to(
        &self,
        connections: u64,
        progress: &Progress,
        mut guard: impl FnMut() -> Result<()>,
    ) -> Result<Duration> {
        let began = Instant::now();
        let (mut moved, mut before) = (began, 0);
        loop {
            let (counts, is_asked) = (self.counts(), self.ask_for(connections));
            let tried = counts.logins + counts.login_failures;
            progress.tell(format!("logged in: {} of {connections}", counts.logins));
            if tried > before {
                (moved, before) = (Instant::now(), tried);
            }
            let failures = counts.login_failures + counts.disconnects;
            if failures > FAILURES_MAX + connections / FAILURES_ONE_IN {
                bail!("{failures} connections failed or ended: {}", self.first_faults());
            }
            if is_asked && tried >= connections {
                return Ok(began.elapsed());
            }
            if moved.elapsed() > STALL_MAX {
                bail!(
                    "only {} of {connections} could log in, and no more for {STALL_MAX:?}: {}",
                    counts.logins,
                    self.first_faults()
                );
            }
            self.check_alive()?;
            guard()?;
            progress.wait(LOOK, || Ok(()))?;
        }
    }

    /// Gives the next workers their turn; `true`: all have had it.
    fn ask_for(&self, connections: u64) -> bool {
        let mut opening = 0;
        for (post, place) in &self.posts {
            let share = connections.saturating_sub(place.first).min(place.slots);
            if post.wanted.load(Ordering::Relaxed) < share {
                if opening >= AT_ONCE_MAX {
                    return false;
                }
                post.wanted.store(share, Ordering::Relaxed);
                post.ring();
            }
            let mut counts = Counts::default();
            post.tally.add_to(&mut counts);
            opening += usize::from(counts.logins + counts.login_failures < share);
        }
        true
    }

    /// Drops all who are logged in, all at the same moment, and counts anew how they come back. Returns when that is.
    pub(crate) fn drop_all(&self) -> u64 {
        let drop_us = self.clock.now_us() + micros(DROP_AHEAD);
        self.watch_returns(drop_us);
        self.shared.drop_at(drop_us);
        self.ring_all();
        drop_us
    }

    /// Counts anew, from this time on, how those come back who are gone.
    pub(crate) fn watch_returns(&self, began_us: u64) {
        for (post, _) in &self.posts {
            *post.returned() = Some(Returned::since(began_us));
        }
    }

    /// How those came back who were gone, since it is watched.
    pub(crate) fn returned(&self) -> Option<Returned> {
        self.posts.iter().fold(None, |sum, (post, _)| match (sum, &*post.returned()) {
            (None, own) => own.clone(),
            (Some(mut sum), Some(own)) => {
                sum.merge(own);
                Some(sum)
            }
            (sum, None) => sum,
        })
    }

    /// Clients that are logged in now.
    pub(crate) fn live(&self) -> u64 {
        self.posts.iter().map(|(post, _)| post.live.load(Ordering::Relaxed)).sum()
    }

    /// No keep-alive goes out until it is released: then they follow, a little faster until they have caught up.
    pub(crate) fn hold_keep_alives(&self, are_held: bool) {
        self.shared.holds_keep_alives.store(are_held, Ordering::Relaxed);
        self.ring_all();
    }

    /// What all workers have counted so far.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (post, _) in &self.posts {
            post.tally.add_to(&mut counts);
        }
        counts
    }

    /// The server's key, where a handshake has taught it.
    pub(crate) fn server_key(&self) -> Option<ServerKey> {
        self.shared.server_key()
    }

    /// The first things that were wrong, in words.
    pub(crate) fn first_faults(&self) -> String {
        let faults = self.shared.faults();
        if faults.is_empty() { "nobody said why".to_owned() } else { faults.join("; ") }
    }

    pub(crate) fn check_alive(&self) -> Result<()> {
        if self.workers.iter().any(JoinHandle::is_finished) {
            bail!("a worker ended before its time: {}", self.first_faults());
        }
        Ok(())
    }

    /// Closes all connections and ends the workers; returns what they went through and how long deliveries took.
    pub(crate) fn close(mut self) -> Result<(CrowdOutcome, Percentiles)> {
        let mut latencies = Latencies::new();
        for found in self.end_workers() {
            if let Some(found) = found.context("a worker")? {
                latencies.merge(&found);
            }
        }
        let outcome =
            CrowdOutcome { counts: self.counts(), errors: self.shared.errors(), faults: self.shared.faults() };
        Ok((outcome, latencies.percentiles()))
    }

    /// A few at a time: were millions closed faster than the server notices, each would hold a page of TCP's memory,
    /// and the kernel would begin to drop what others send.
    fn end_workers(&mut self) -> Vec<Result<Option<Latencies>>> {
        let mut ended = Vec::new();
        let mut posts = self.posts.iter();
        let mut workers = self.workers.drain(..).peekable();
        while workers.peek().is_some() {
            for (post, _) in posts.by_ref().take(AT_ONCE_MAX) {
                post.is_stopped.store(true, Ordering::Relaxed);
                post.ring();
            }
            ended.extend(workers.by_ref().take(AT_ONCE_MAX).map(|worker| match worker.join() {
                Ok(result) => result.map_err(anyhow::Error::from),
                Err(_) => Err(anyhow::anyhow!("a worker panicked")),
            }));
        }
        ended
    }

    fn ring_all(&self) {
        for (post, _) in &self.posts {
            post.ring();
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.end_workers();
    }
}

/// How often a growing crowd is looked at.
const LOOK: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
