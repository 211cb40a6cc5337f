//! Puts the threads together, and takes them apart in the opposite order.
//!
//! ```text
//! reactors (R) ⇄ hubs (H) ⇄ writers (one a hub)      readers (a few a volume)      ops (1)      disks (1)
//! ```
//!
//! Every reactor has a link to every hub, and every hub one to every other. The end: reactors stop when every answer
//! they are owed is written; then the hubs, when nothing is under way; then writers and readers; then the volumes are
//! closed. So SIGTERM loses nothing and answers everything it took; what is still on its way between hubs is in the
//! outbox, and goes on at the next start.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use anyhow::Context as _;
use crossbeam::channel::{self, Receiver, RecvTimeoutError};
use culver_protocol::crypto;
use culver_storage::engine::{Engine, EngineMemory};
use culver_storage::layout::DataDir;
use culver_storage::topology::Topology;
use socket2::Socket;
use tracing::{debug, info};

use self::backups::{Backups, Told};
use self::disks::{Disks, Watch};
use self::drains::Drains;
use self::hubs::{Inboxes, Volumes};
use crate::auth::Authenticator;
use crate::clock::{Clock as _, SystemClock};
use crate::config::{self, Config};
use crate::hub::driver::ReactorPort;
use crate::hub::thread::Sleeper;
use crate::mailbox::{self, Doorbell};
use crate::metrics::Metrics;
use crate::ops::{FindWorst, Ops, OpsSetup, Phase, Readiness, Refusal, Snapshot, TakeBackup, TakeSnapshot};
use crate::preflight::{Capacity, Clients, Ports};
use crate::reactor::hubs::ToHub;
use crate::reactor::listener::Group;
use crate::reactor::thread::Stage;
use crate::reactor::threads::{ReactorThreads, Work};
use crate::reactor::worst::Asker;
use crate::reactor::{Bounds, Surroundings};
use crate::sys::{allocated_bytes, return_free_memory};

mod backups;
mod disks;
mod drains;
mod hubs;

/// How often memory that nobody uses any more is looked for, and keys that have changed.
const HOUSEKEEPING: Duration = Duration::from_secs(2);
/// Messages, or logins, in that time after which it is worth it.
const RUSH: u64 = 10_000;

/// What a server starts from: everything that could be checked has been.
pub struct Setup {
    /// Settings.
    pub config: Config,
    /// The data directory, locked.
    pub data_dir: DataDir,
    /// Which hub and volume every shard belongs to.
    pub topology: Topology,
    /// Checks logins.
    pub authenticator: Arc<Authenticator>,
    /// The ports, held.
    pub ports: Ports,
    /// Connections that descriptors allow, and reactors for them.
    pub capacity: Capacity,
    /// Called once clients can log in.
    pub on_ready: Box<dyn FnOnce()>,
}

/// What the operators' port sees: it is there before the store is open.
#[derive(Default)]
struct Visible {
    engines: OnceLock<Vec<Weak<dyn Engine>>>,
    bells: OnceLock<Vec<Arc<Doorbell>>>,
    disks: OnceLock<Arc<Disks>>,
    backups: OnceLock<Backups>,
    asker: OnceLock<Asker>,
    stage: Arc<Stage>,
    readiness: Readiness,
}

impl Visible {
    /// Wakes all reactors: the stage has changed.
    fn ring(&self) {
        for bell in self.bells.get().into_iter().flatten() {
            bell.ring();
        }
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A volume cannot be opened or recovered, or a thread or socket cannot be had.
pub fn run(setup: Setup) -> anyhow::Result<()> {
    let Setup { config, data_dir, topology, authenticator, ports, capacity, on_ready } = setup;
    let (config, topology) = (Arc::new(config), Arc::new(topology));
    let (listen_hold, inherited) = match ports.clients {
        Clients::Held(hold) => (Some(hold), Vec::new()),
        Clients::Inherited(sockets) => (None, sockets.into_iter().map(OwnedFd::from).collect()),
    };
    // Before anything else is open.
    let reactors = ReactorThreads::begin(capacity.reactors, config.private_fd_tables, inherited)
        .context("cannot start the reactors' threads")?;
    let metrics = Arc::new(Metrics::new(capacity.reactors, topology.hub_count().into()));
    let visible = Arc::new(Visible::default());
    let ops = spawn_ops(ports.ops, &visible, &metrics, &topology, capacity, config.shutdown.spread_s)?;

    let watch = Watch::spawn(&data_dir, config.disk.reserve_mib)?;
    visible.disks.get_or_init(|| Arc::clone(watch.disks()));
    let volumes = Volumes::open(&data_dir, Arc::clone(&watch.disks().space))?;
    visible.engines.get_or_init(|| volumes.engines().iter().map(Arc::downgrade).collect());
    visible.backups.get_or_init(|| volumes.backups(&data_dir, &config.backup.dirs, &visible.stage));
    let hubs = volumes.recover_hubs(&topology, data_dir.incarnation(), &config)?;
    let sleepers: Vec<Sleeper> = hubs.iter().map(|_| Sleeper::default()).collect();
    let inboxes: Inboxes =
        sleepers.iter().zip(&hubs).map(|(sleeper, hub)| Arc::new(sleeper.inbox(hub.bounds()))).collect();

    let around = Surroundings {
        connections_max: capacity.of_a_reactor,
        logins: config.login_limits(capacity.reactors, config::cores()),
        handshake_ppm: config.handshake_ppm(capacity.reactors, config::cores()),
        config: Arc::clone(&config),
        authenticator: Arc::clone(&authenticator),
        incarnation: data_dir.incarnation(),
        topology: Arc::clone(&topology),
        metrics: Arc::clone(&metrics),
        epochs: Arc::default(),
        offer: Arc::new(config.offer()),
        entropy: Arc::new(crypto::random),
        bounds: Bounds::of_each(&config, capacity.reactors, config::cores()),
    };
    visible.asker.get_or_init(|| reactors.asker());
    visible.bells.get_or_init(|| reactors.bells());
    let links = Links::between(&inboxes, reactors.bells());
    let hubs = hubs.into_iter().zip(sleepers).collect();
    let hub_threads = volumes.spawn_hubs(hubs, &topology, &config, &inboxes, links.of_hubs, &metrics)?;
    let (running, ended) = channel::bounded(0);
    let group = Arc::new(Group::default());
    let mut to_hubs = links.of_reactors;
    let reactor_threads = reactors
        .start(|number| Work {
            listen: ports.listen,
            group: Arc::clone(&group),
            hubs: to_hubs.get_mut(number).map(std::mem::take).expect("each reactor has its links"),
            around: around.clone(),
            stage: Arc::clone(&visible.stage),
            running: running.clone(),
        })
        .with_context(|| format!("cannot listen on {}", ports.listen))?;
    // The reactors' listeners hold the port from here on.
    drop(listen_hold);
    drop(running);
    if visible.readiness.pass(Phase::Starting, Phase::Ready).is_ok() {
        on_ready();
    }

    keep_house(&ended, &metrics, &authenticator);
    for thread in reactor_threads {
        thread.join().expect("a panic ends the process")?;
    }
    inboxes.iter().for_each(|inbox| inbox.stop());
    for thread in hub_threads {
        thread.join().expect("a panic ends the process");
    }
    debug!("every answer is written");
    volumes.write_out();
    drop((ops, watch, volumes)); // in this order
    drop(data_dir);
    Ok(())
}

fn spawn_ops(
    socket: Socket,
    visible: &Arc<Visible>,
    metrics: &Arc<Metrics>,
    topology: &Topology,
    capacity: Capacity,
    spread_s: u64,
) -> io::Result<Ops> {
    let readiness = visible.readiness.clone();
    let threads = Snapshot {
        reactors: capacity.reactors as u64,
        connections_max: capacity.connections_max.into(),
        hubs: topology.hub_count().into(),
        volumes: topology.volume_count().into(),
        ..Snapshot::default()
    };
    let snapshot = snapshot_of(visible, metrics, threads);
    let backup = backup_of(visible);
    let worst = worst_of(visible);
    let drains = Arc::new(Drains::new(visible, metrics, capacity.reactors, spread_s));
    let visible = Arc::clone(visible);
    let shutdown = Box::new(move || {
        visible.readiness.set(Phase::Leaving);
        visible.stage.leave();
        visible.ring();
    });
    Ops::spawn(OpsSetup { socket, readiness, snapshot, backup, worst, drains, shutdown })
}

/// The queues between reactors and hubs, from either side.
struct Links {
    /// By reactor and hub.
    of_reactors: Vec<Vec<ToHub>>,
    /// By hub and reactor.
    of_hubs: Vec<Vec<ReactorPort>>,
}

impl Links {
    fn between(inboxes: &Inboxes, bells: Vec<Arc<Doorbell>>) -> Self {
        let bounds = mailbox::Bounds::of_one_among(bells.len());
        let mut links = Self {
            of_reactors: Vec::new(),
            of_hubs: inboxes.iter().map(|_| Vec::with_capacity(bells.len())).collect(),
        };
        for bell in bells {
            let hubs: Vec<ToHub> = inboxes.iter().map(|inbox| ToHub::new(inbox, bounds)).collect();
            for (ports, hub) in links.of_hubs.iter_mut().zip(&hubs) {
                ports.push(ReactorPort { link: Arc::clone(&hub.link), bell: Arc::clone(&bell) });
            }
            links.of_reactors.push(hubs);
        }
        links
    }
}

/// Waits for all reactors to end; meanwhile sees whether keys have changed on disk, and gives memory back to the kernel, after a mass disconnect and when a rush of
/// messages or of logins is over: the allocator keeps that of memtables which have become files, and of tables that
/// have grown.
fn keep_house(ended: &Receiver<Infallible>, metrics: &Metrics, authenticator: &Authenticator) {
    let (mut connections_peak, mut messages, mut logins) = (0, Rush::default(), Rush::default());
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(HOUSEKEEPING) {
        authenticator.refresh(SystemClock.now().wall_ms);
        let totals = metrics.totals();
        connections_peak = connections_peak.max(totals.connections);
        let are_over = [messages.is_over(totals.messages_accepted), logins.is_over(totals.logins)];
        if totals.connections < connections_peak / 2 || are_over.contains(&true) {
            return_free_memory();
            info!(
                connections = totals.connections,
                connections_peak,
                messages_peak = messages.peak,
                logins_peak = logins.peak,
                "it has become quiet: free memory is given back"
            );
            connections_peak = totals.connections;
            messages.begin_anew();
            logins.begin_anew();
        }
    }
}

/// How many of something there are between two looks at the house.
#[derive(Default)]
struct Rush {
    before: u64,
    now: u64,
    peak: u64,
}

impl Rush {
    /// Whether there were so many, and are only few now. `total` counts all there have ever been.
    fn is_over(&mut self, total: u64) -> bool {
        self.now = total - self.before;
        self.before = total;
        self.peak = self.peak.max(self.now);
        self.peak >= RUSH && self.now < self.peak / 10
    }

    fn begin_anew(&mut self) {
        self.peak = self.now;
    }
}

/// There is one to be had as soon as the volumes are open.
fn backup_of(visible: &Arc<Visible>) -> TakeBackup {
    let visible = Arc::clone(visible);
    Arc::new(move |to, is_unwanted| match visible.backups.get() {
        Some(backups) => backups.take(&to, is_unwanted),
        None => Err(Refusal::unavailable("the server is starting")),
    })
}

/// There is nobody to ask before the reactors have their work.
fn worst_of(visible: &Arc<Visible>) -> FindWorst {
    let visible = Arc::clone(visible);
    Arc::new(move |count, patience| visible.asker.get().map(|asker| asker.ask(count, patience)))
}

/// `threads` says how many there are of what never changes.
fn snapshot_of(visible: &Arc<Visible>, metrics: &Arc<Metrics>, threads: Snapshot) -> TakeSnapshot {
    let (visible, metrics) = (Arc::clone(visible), Arc::clone(metrics));
    Arc::new(move || {
        let totals = metrics.totals();
        let (reactor_connections_min, reactor_connections_max) = metrics.connections_of_reactors();
        let disks = visible.disks.get();
        let free = |(path, bytes): (&Path, u64)| (path.display().to_string(), bytes);
        let backups = visible.backups.get().map_or(Told::default(), Backups::told);
        let engines = visible.engines.get().into_iter().flatten().filter_map(Weak::upgrade);
        let memory = engines.map(|engine| engine.memory()).fold(EngineMemory::default(), |sum, of| EngineMemory {
            memtable_bytes: sum.memtable_bytes + of.memtable_bytes,
            block_cache_bytes: sum.block_cache_bytes + of.block_cache_bytes,
            table_reader_bytes: sum.table_reader_bytes + of.table_reader_bytes,
        });
        Snapshot {
            connections: totals.connections,
            sessions: totals.sessions,
            rocksdb_memtable_bytes: memory.memtable_bytes,
            rocksdb_block_cache_bytes: memory.block_cache_bytes,
            rocksdb_table_reader_bytes: memory.table_reader_bytes,
            allocated_bytes: allocated_bytes(),
            parked_commands: totals.parked_commands,
            logins: totals.logins,
            logins_shed: totals.logins_shed,
            logins_shed_by_source: totals.logins_shed_by_source,
            logins_limited: totals.logins_limited,
            turned_away: totals.turned_away,
            logins_calendar_s: metrics.calendar_ms().div_ceil(1000),
            reactor_connections_min,
            reactor_connections_max,
            messages_accepted: totals.messages_accepted,
            messages_duplicate: totals.messages_duplicate,
            messages_rejected: totals.messages_rejected,
            sends_limited: totals.sends_limited,
            entries_delivered: totals.entries_delivered,
            acks: totals.acks,
            batches: totals.batches,
            errors_sent: totals.errors_sent,
            connections_blocked: totals.connections_blocked,
            unsent_bytes: totals.unsent_bytes,
            slow_readers: totals.slow_readers,
            keep_alive_timeouts: totals.keep_alive_timeouts,
            goaways: totals.goaways,
            draining: u64::from(visible.readiness.get() == Phase::Draining),
            log_reads: totals.log_reads,
            wakeups: totals.wakeups,
            turns: totals.turns,
            receipts: totals.receipts_written,
            rpcs: totals.rpcs,
            outbox_behind: totals.outbox_behind,
            outbox_pushed: totals.outbox_pushed,
            mail_refused: totals.mail_refused,
            floors_moved: totals.floors_moved,
            expiry_clock_ms: metrics.expiry_clock_ms(),
            expiry_stopped: totals.expiry_stopped,
            sends_refused: disks.map_or(0, |disks| u64::from(disks.space.is_low())),
            free_bytes: disks.into_iter().flat_map(|disks| disks.free_bytes()).map(free).collect(),
            backups: backups.taken,
            backups_failed: backups.failed,
            backup_last_ms: backups.last_ms,
            backup_held_us: backups.held_us,
            ..threads.clone()
        }
    })
}
