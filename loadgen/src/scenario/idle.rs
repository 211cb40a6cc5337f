//! Many logged-in connections that do nothing: what `density` and `floor` count bytes and logins with.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use culver_protocol::client::{Client, ClientConfig, Event};
use culver_protocol::id::UserId;

use crate::clock::Clock;
use crate::links::{LinkIndex, Links};
use crate::plan;
use crate::procfs;
use crate::report::progress::Progress;
use crate::target::{Target, client_config};
use crate::worker::{self, Driver, Finished};

/// Connections begun in one turn, at most.
const CONNECTS_PER_TURN_MAX: usize = 64;
/// How often the pace is looked at.
const PACE_US: u64 = 1000;
/// A worker ends by itself after this.
const RUN_US_MAX: u64 = 12 * 3600 * 1_000_000;
/// Connections that may be waiting for their welcome: what a listener's queue surely holds.
const PENDING_MAX: u64 = 512;

/// How connections are opened.
#[derive(Clone, Debug)]
pub(crate) struct IdleLoad {
    pub(crate) connections: usize,
    /// Logins a second over all workers.
    pub(crate) rate: f64,
    /// Source addresses from 127.0.0.2 on; 0: the kernel chooses.
    pub(crate) source_ips: u8,
    pub(crate) workers: usize,
    pub(crate) first_user: u64,
    pub(crate) seed: u64,
}

#[derive(Debug, Default)]
struct IdleShared {
    wanted: AtomicU64,
    logins: AtomicU64,
    failures: AtomicU64,
    stop: AtomicBool,
}

/// Connections being opened and held.
pub(crate) struct IdleRun {
    shared: Arc<IdleShared>,
    workers: Vec<JoinHandle<io::Result<Finished<IdleDriver>>>>,
}

/// A reading at some number of connections.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IdleSample {
    pub(crate) connections: u64,
    /// Resident memory of the server less what its storage reports as its own.
    pub(crate) user_bytes: u64,
    /// All slabs of the kernel.
    pub(crate) slab_bytes: u64,
    pub(crate) cpu_us: u64,
}

impl IdleSample {
    /// Reads the target; `pid` is the server's, where it runs on this machine and is known.
    pub(crate) fn take(target: &mut dyn Target, pid: Option<u32>, connections: u64) -> Result<Self> {
        let mut sample = target.sample()?;
        if let Some(pid) = pid {
            sample.rss_bytes = procfs::rss_bytes(pid)?;
        }
        Ok(Self {
            connections,
            user_bytes: sample.plain_bytes(),
            slab_bytes: procfs::slab_bytes()?,
            cpu_us: sample.cpu_us,
        })
    }

    /// User and kernel bytes per connection from an earlier reading to this one. Both ends of each connection are
    /// on this machine, so the server's share of the kernel's growth is half.
    #[expect(clippy::cast_precision_loss, reason = "bytes of memory are below 2^52")]
    pub(crate) fn slope_from(&self, earlier: &Self) -> (f64, f64) {
        let connections = self.connections.saturating_sub(earlier.connections).max(1) as f64;
        let growth = |to: u64, from: u64| to as f64 - from as f64;
        let user = growth(self.user_bytes, earlier.user_bytes) / connections;
        let kernel = growth(self.slab_bytes, earlier.slab_bytes) / 2.0 / connections;
        (user, kernel)
    }
}

impl IdleRun {
    /// Prepares all users' credentials and starts the workers; nobody connects yet.
    pub(crate) fn start(target: &dyn Target, load: &IdleLoad) -> Result<Self> {
        if load.source_ips > 0 && !target.address().ip().is_loopback() {
            bail!("source addresses are given out on loopback only: use --source-ips 0");
        }
        let clock = Clock::start();
        let shared = Arc::new(IdleShared::default());
        let users: Vec<u64> = (0..load.connections as u64).map(|index| load.first_user + index).collect();
        let mut workers = Vec::new();
        let hands = plan::deal(users, load.workers.max(1));
        let share = 1.0 / f64::from(u32::try_from(hands.len()).unwrap_or(u32::MAX));
        for (number, users) in hands.into_iter().enumerate() {
            let mut waiting = VecDeque::with_capacity(users.len());
            for user in users {
                let user = UserId(user);
                waiting.push_back(client_config(target, user, plan::DEVICE, load.seed)?);
            }
            let driver = IdleDriver {
                waiting,
                rate: load.rate * share,
                source_ips: load.source_ips,
                shared: Arc::clone(&shared),
                workers: load.workers.max(1) as u64,
                begun_us: 0,
                begun_count: 0,
                wanted_before: 0,
                done: false,
                errors: BTreeMap::new(),
            };
            let deadline_us = clock.now_us() + RUN_US_MAX;
            let worker = worker::spawn(format!("idle-{number}"), target.address(), clock, deadline_us, driver);
            workers.push(worker.context("cannot start a worker")?);
        }
        Ok(Self { shared, workers })
    }

    /// Opens connections until there are `connections`, all logged in; returns how long that took.
    pub(crate) fn grow_to(&self, connections: u64, max: Duration, progress: &Progress) -> Result<Duration> {
        let began = Instant::now();
        self.shared.wanted.store(connections, Ordering::Relaxed);
        let reached = progress.wait_until(max, || {
            let logins = self.shared.logins.load(Ordering::Relaxed);
            progress.tell(format!("logged in: {logins} of {connections}"));
            if self.workers.iter().any(JoinHandle::is_finished) {
                bail!("a worker ended before its time");
            }
            Ok(logins >= connections)
        })?;
        if !reached {
            let logins = self.shared.logins.load(Ordering::Relaxed);
            bail!("only {logins} of {connections} connections could log in within {max:?}");
        }
        Ok(began.elapsed())
    }

    /// Closes all; returns how many were lost before, and the errors the server told, by code.
    pub(crate) fn close(self) -> Result<(u64, BTreeMap<u32, u64>)> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let (mut lost, mut errors) = (0, BTreeMap::new());
        for worker in self.workers {
            let finished = worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?.context("a worker")?;
            lost += finished.counts.disconnects + finished.counts.connect_failures;
            for (code, count) in finished.driver.errors {
                *errors.entry(code).or_default() += count;
            }
        }
        Ok((lost, errors))
    }
}

/// Opens connections at a pace and holds them. Sans-io.
struct IdleDriver {
    waiting: VecDeque<ClientConfig>,
    rate: f64,
    source_ips: u8,
    shared: Arc<IdleShared>,
    workers: u64,
    /// When the present growth began.
    begun_us: u64,
    /// Connections there were then.
    begun_count: u64,
    wanted_before: u64,
    done: bool,
    errors: BTreeMap<u32, u64>,
}

impl IdleDriver {
    /// How many connections the pace allows by now.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of connections and microseconds of a run are below 2^52"
    )]
    fn allowed(&self, now_us: u64) -> u64 {
        self.begun_count + ((now_us - self.begun_us) as f64 * self.rate / 1e6) as u64 + 1
    }

    fn source(&self, number: usize) -> Option<IpAddr> {
        let ips = usize::from(self.source_ips);
        let last = u8::try_from(number.checked_rem(ips)?).expect("below a u8").checked_add(2)?;
        Some(Ipv4Addr::new(127, 0, 0, last).into())
    }
}

impl Driver for IdleDriver {
    fn begin(&mut self, _links: &mut Links, _now_us: u64) {}

    fn handle_event(&mut self, _index: LinkIndex, _client: &mut Client, event: Event, _now_us: u64) {
        match event {
            Event::LoggedIn(_) => drop(self.shared.logins.fetch_add(1, Ordering::Relaxed)),
            Event::ServerError(error) => *self.errors.entry(error.code).or_default() += 1,
            Event::Stopped { .. } | Event::CredentialNeeded { .. } => {
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn handle_turn(&mut self, links: &mut Links, now_us: u64) -> Option<u64> {
        self.done = self.shared.stop.load(Ordering::Relaxed);
        let wanted = self.shared.wanted.load(Ordering::Relaxed);
        if wanted != self.wanted_before {
            self.wanted_before = wanted;
            self.begun_us = now_us;
            self.begun_count = links.len() as u64;
        }
        let mine = wanted.div_ceil(self.workers);
        for _ in 0..CONNECTS_PER_TURN_MAX {
            let count = links.len() as u64;
            if count >= mine {
                return None;
            }
            let pending = (count * self.workers).saturating_sub(self.shared.logins.load(Ordering::Relaxed));
            if count >= self.allowed(now_us) || pending > PENDING_MAX {
                break;
            }
            let config = self.waiting.pop_front()?;
            links.add(config, self.source(links.len()), now_us);
        }
        Some(now_us + PACE_US)
    }

    fn is_done(&self) -> bool {
        self.done
    }
}
