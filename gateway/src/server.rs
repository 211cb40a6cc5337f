//! Puts the threads together, and takes them apart in the opposite order.
//!
//! ```text
//! reactors (N) ⇄ hub (1) ⇄ writer (1)      readers (2)      ops (1)
//! ```
//!
//! The end: reactors stop when every answer they are owed is written; then the hub, when nothing is under way; then
//! the writer and the readers; then the store is closed. So SIGTERM loses nothing and answers everything it took.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use culver_storage::engine::Engine;
use culver_storage::layout::DataDir;
use culver_storage::reader::Readers;
use culver_storage::rocks::{RocksEngine, RocksOptions};
use culver_storage::shard::Shards;
use culver_storage::writer::Writer;
use socket2::Socket;
use tracing::{debug, info, warn};

use crate::auth::Authenticator;
use crate::config::Config;
use crate::hub::driver::{Driver, Inbox, ReactorPort, now_ms};
use crate::hub::{Hub, READS_OUTSTANDING_MAX};
use crate::mailbox::{Doorbell, Link};
use crate::metrics::Metrics;
use crate::ops::{Ops, OpsSetup, Phase, Readiness, Snapshot, TakeSnapshot};
use crate::preflight::Ports;
use crate::reactor::listener::listen;
use crate::reactor::{Reactor, Stage, Surroundings};
use crate::sys::return_free_memory;

/// Threads that read from disk.
const READERS: usize = 2;
/// The hub of the only volume.
const HUB: u16 = 0;
/// How often memory that nobody uses any more is looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(5);

/// What a server starts from: everything that could be checked has been.
pub struct Setup {
    /// Settings.
    pub config: Config,
    /// The data directory, locked.
    pub data_dir: DataDir,
    /// Checks logins.
    pub authenticator: Arc<Authenticator>,
    /// The ports, held.
    pub ports: Ports,
    /// Connections that descriptors allow.
    pub connections_max: u32,
    /// Called once clients can log in.
    pub on_ready: Box<dyn FnOnce()>,
}

/// What the operators' port sees: it is there before the store is open.
#[derive(Default)]
struct Visible {
    engine: OnceLock<Weak<dyn Engine>>,
    bells: OnceLock<Vec<Arc<Doorbell>>>,
    stage: Arc<Stage>,
    readiness: Readiness,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The store cannot be opened or recovered, or a thread or socket cannot be had.
pub fn run(setup: Setup) -> anyhow::Result<()> {
    let Setup { config, data_dir, authenticator, ports, connections_max, on_ready } = setup;
    let config = Arc::new(config);
    let metrics = Arc::new(Metrics::new(config.reactor_count() + 1));
    let visible = Arc::new(Visible { engine: OnceLock::new(), ..Visible::default() });
    let ops = spawn_ops(ports.ops, &visible, &metrics)?;

    let rocks = RocksEngine::open(&data_dir.volume_path(0), RocksOptions::default(), Arc::default())?;
    for cut in rocks.cuts() {
        warn!(file = %cut.file.display(), offset = cut.offset, copy = %cut.copy.display(), reason = cut.reason,
            "the log ended in what was never synced: cut off, and nobody had been told of it");
    }
    let engine: Arc<dyn Engine> = Arc::new(rocks);
    let shards = Shards::recover(&*engine, data_dir.shard_count(), HUB, now_ms())?;
    visible.engine.get_or_init(|| Arc::downgrade(&engine));
    let inbox = Arc::new(Inbox::default());
    let hub = Hub::new(Arc::clone(&engine), shards, data_dir.incarnation());

    let around = Surroundings {
        connections_max: (connections_max as usize).div_ceil(config.reactor_count()),
        config,
        authenticator,
        incarnation: data_dir.incarnation(),
        stage: Arc::clone(&visible.stage),
        metrics: Arc::clone(&metrics),
    };
    let (reactors, reactor_ports) = build_reactors(ports.listen, &around, &inbox)?;
    // The reactors' listeners hold the port from here on.
    drop(ports.listen_hold);
    visible.bells.get_or_init(|| reactor_ports.iter().map(|port| Arc::clone(&port.bell)).collect());
    let hub_thread = spawn_hub(hub, &engine, data_dir.shard_count(), &inbox, reactor_ports, &metrics)?;
    let (running, ended) = channel::bounded(0);
    let threads = reactors.into_iter().map(|reactor| spawn_reactor(reactor, running.clone()));
    let reactor_threads = threads.collect::<io::Result<Vec<_>>>()?;
    drop(running);
    if !visible.stage.is_leaving() {
        visible.readiness.set(Phase::Ready);
        on_ready();
    }

    keep_house(&ended, &metrics);
    for thread in reactor_threads {
        thread.join().expect("a panic ends the process")?;
    }
    inbox.stop();
    hub_thread.join().expect("a panic ends the process");
    debug!("every answer is written");
    drop(ops);
    drop(engine);
    drop(data_dir);
    Ok(())
}

fn spawn_ops(socket: Socket, visible: &Arc<Visible>, metrics: &Arc<Metrics>) -> io::Result<Ops> {
    let readiness = visible.readiness.clone();
    let snapshot = snapshot_of(visible, metrics);
    let visible = Arc::clone(visible);
    let shutdown = Box::new(move || {
        visible.readiness.set(Phase::Draining);
        visible.stage.leave();
        for bell in visible.bells.get().into_iter().flatten() {
            bell.ring();
        }
    });
    Ops::spawn(OpsSetup { socket, readiness, snapshot, shutdown })
}

fn build_reactors(
    listen_on: SocketAddr,
    around: &Surroundings,
    inbox: &Arc<Inbox>,
) -> anyhow::Result<(Vec<Reactor>, Vec<ReactorPort>)> {
    let mut reactors = Vec::new();
    let mut ports = Vec::new();
    for number in 0..around.config.reactor_count() {
        let listener = listen(listen_on).with_context(|| format!("cannot listen on {listen_on}"))?;
        let link = Arc::new(Link::default());
        let hub_inbox = Arc::clone(inbox);
        let to_hub = Arc::clone(&link);
        // A hub that waits for the disk has the next batch to build, not an answer to give: it need not hurry.
        let ring = move || {
            if to_hub.is_pressing() { hub_inbox.bell.ring() } else { hub_inbox.bell.ring_gently() }
        };
        let hub_bell = Arc::new(ring);
        let number = u16::try_from(number).expect("the configuration bounds reactors");
        let reactor = Reactor::new(number, listener, Arc::clone(&link), hub_bell, around.clone())?;
        ports.push(ReactorPort { link, bell: reactor.bell() });
        reactors.push(reactor);
    }
    Ok((reactors, ports))
}

fn spawn_hub(
    hub: Hub,
    engine: &Arc<dyn Engine>,
    shard_count: u16,
    inbox: &Arc<Inbox>,
    reactors: Vec<ReactorPort>,
    metrics: &Arc<Metrics>,
) -> io::Result<JoinHandle<()>> {
    let to_hub = Arc::clone(inbox);
    let writer = Writer::spawn(Arc::clone(engine), Box::new(move |number| to_hub.post_durable(number)));
    let to_hub = Arc::clone(inbox);
    let done = Arc::new(move |result| to_hub.post_read(result));
    let readers = Arc::new(Readers::spawn(Arc::clone(engine), shard_count, READERS, READS_OUTSTANDING_MAX, done));
    let driver = Driver { hub, writer, readers, inbox: Arc::clone(inbox), reactors };
    let metrics = Arc::clone(metrics);
    thread::Builder::new().name("hub-0".to_owned()).spawn(move || {
        let last = metrics.last_thread();
        driver.run(last);
    })
}

/// `running` goes when the reactor ends.
fn spawn_reactor(reactor: Reactor, running: Sender<Infallible>) -> io::Result<JoinHandle<io::Result<()>>> {
    thread::Builder::new().name(reactor.name()).spawn(move || {
        let ended = reactor.run();
        drop(running);
        ended
    })
}

/// Waits for all reactors to end; meanwhile, after a mass disconnect, gives memory back to the kernel.
fn keep_house(ended: &Receiver<Infallible>, metrics: &Metrics) {
    let mut peak = 0;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(HOUSEKEEPING) {
        let connections = metrics.totals().connections;
        peak = peak.max(connections);
        if connections < peak / 2 {
            return_free_memory();
            info!(connections, peak, "many connections have left: their memory is given back");
            peak = connections;
        }
    }
}

fn snapshot_of(visible: &Arc<Visible>, metrics: &Arc<Metrics>) -> TakeSnapshot {
    let (visible, metrics) = (Arc::clone(visible), Arc::clone(metrics));
    Arc::new(move || {
        let totals = metrics.totals();
        let engine = visible.engine.get().and_then(Weak::upgrade);
        let memory = engine.map(|engine| engine.memory()).unwrap_or_default();
        Snapshot {
            connections: totals.connections,
            sessions: totals.sessions,
            rocksdb_memtable_bytes: memory.memtable_bytes,
            rocksdb_block_cache_bytes: memory.block_cache_bytes,
            rocksdb_table_reader_bytes: memory.table_reader_bytes,
            parked_commands: totals.parked_commands,
            logins: totals.logins,
            messages_accepted: totals.messages_accepted,
            messages_duplicate: totals.messages_duplicate,
            messages_rejected: totals.messages_rejected,
            entries_delivered: totals.entries_delivered,
            acks: totals.acks,
            batches: totals.batches,
            errors_sent: totals.errors_sent,
            log_reads: totals.log_reads,
            wakeups: totals.wakeups,
            turns: totals.turns,
        }
    })
}
