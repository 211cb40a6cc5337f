//! One life of the server: everything that a process has in memory, put together as `server.rs` does, and what its
//! threads do, each as a step that the scheduler calls when it likes.
//!
//! Owns reactors, hubs, their queues and doorbells, and what writers and readers were asked. Never owns what survives a
//! life: engines, wires, the clocks. A thread sleeps only when it planned to, and is woken only by its bell, by its
//! sockets, or when its time has come: a wake-up that is lost is found.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use culver::auth::keys::{TicketKey, TokenKeys};
use culver::auth::{Authenticator, TicketSealer, TokenVerifier};
use culver::clock::{Clock, Now};
use culver::config;
use culver::hub::Hub;
use culver::hub::driver::{Disk, Driver, HubPort, Inbox, ReactorPort};
use culver::mailbox::{self, Doorbell, HubLink, Link};
use culver::metrics::Metrics;
use culver::reactor::hubs::ToHub;
use culver::reactor::{Epochs, Reactor, Surroundings, Wait};
use culver_protocol::id::Incarnation;
use culver_storage::batch::{Batch, BatchNumber};
use culver_storage::engine::Engine;
use culver_storage::memory::MemoryEngine;
use culver_storage::reader::{Engines, Read, ReadResult, read};
use culver_storage::shard::{Journalled, Shards, replay};
use culver_storage::topology::{HubId, Topology};

use crate::net::{SimSocket, Wire};
use crate::plan::Plan;
use crate::source::Source;

/// Of the data directory of every world.
pub const INCARNATION: Incarnation = Incarnation(42);
/// Seconds until unsent bytes are dropped when a server leaves.
pub const FLUSH_S: u64 = 5;
/// As `reactor/thread.rs` has it.
const EVENTS_MAX: usize = 16;
const ACCEPTS_A_TURN: usize = 8;
const GATHER_US: u64 = 250;

/// The clocks of the machine. They move only between steps.
#[derive(Debug, Default)]
pub struct Clocks {
    pub mono_us: Cell<u64>,
    /// The clock on the wall at `mono_us` 0, in milliseconds since 1970.
    pub wall_base_ms: Cell<u64>,
}

impl Clock for Clocks {
    fn now(&self) -> Now {
        let mono_us = self.mono_us.get();
        Now { wall_ms: self.wall_base_ms.get() + mono_us / 1000, mono_us }
    }
}

/// What checks logins, for tickets of a generation. Made once per process: keys are dear.
pub fn authenticator(generation: u32) -> Arc<Authenticator> {
    static MADE: OnceLock<Mutex<Vec<Arc<Authenticator>>>> = OnceLock::new();
    static KEYS: OnceLock<TokenKeys> = OnceLock::new();
    let mut made = MADE.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    while made.len() < generation as usize {
        let keys = KEYS.get_or_init(|| TokenKeys::generate().expect("a key pair"));
        let tokens = TokenVerifier::new(&keys.public_pem, &config::Token::default()).expect("its public half");
        let settings = config::Ticket { life_s: config::TICKET_LIFE_S_MAX, generation: made.len() as u32 + 1 };
        let tickets = TicketSealer::new(&TicketKey::new([5; 32]), settings, INCARNATION);
        made.push(Arc::new(Authenticator::new(tokens, tickets)));
    }
    Arc::clone(&made[generation as usize - 1])
}

/// How a thread waits.
struct Sleep {
    /// Its bell has rung since it last went to sleep.
    woken: Arc<AtomicBool>,
    /// It sleeps until then; `None`: it is awake.
    until_us: Option<u64>,
    /// So short a sleep needs no bell.
    is_short: bool,
}

impl Sleep {
    fn new(woken: Arc<AtomicBool>) -> Self {
        Self { woken, until_us: None, is_short: false }
    }

    #[inline]
    fn is_awake(&self, now_us: u64) -> bool {
        self.until_us.is_none_or(|until_us| until_us <= now_us) || self.woken.load(Ordering::Relaxed)
    }

    /// It runs. Whether it did so only because its time had come.
    fn wake(&mut self) -> bool {
        let slept = self.until_us.take().is_some();
        let woken = self.woken.load(Ordering::Relaxed);
        if woken {
            self.woken.store(false, Ordering::Relaxed);
        }
        slept && !woken && !self.is_short
    }

    fn plan(&mut self, now_us: u64, wait: Duration) {
        self.until_us = Some(now_us + wait.as_micros() as u64);
        self.is_short = wait < Duration::from_millis(3);
    }
}

/// The thread of a reactor, with its epoll and its listener.
pub struct ReactorThread {
    /// `None`: it has left.
    pub reactor: Option<Reactor<SimSocket>>,
    links: Vec<Arc<Link>>,
    bell: Arc<Doorbell>,
    sleep: Sleep,
    /// It waits for its bell alone until then.
    deaf_until_us: u64,
    watched: Vec<(Wire, u32)>,
    backlog: VecDeque<(Wire, SimSocket)>,
    is_listening: bool,
}

impl ReactorThread {
    fn has_edges(&self) -> bool {
        (self.is_listening && !self.backlog.is_empty()) || self.watched.iter().any(|(wire, _)| wire.has_edge())
    }

    pub fn can_turn(&self, now_us: u64) -> bool {
        self.reactor.is_some() && (self.sleep.is_awake(now_us) || (now_us >= self.deaf_until_us && self.has_edges()))
    }

    /// When it wakes by itself.
    fn due_us(&self) -> Option<u64> {
        self.reactor.as_ref()?;
        let until_us = self.sleep.until_us.unwrap_or(0);
        Some(if self.has_edges() { until_us.min(self.deaf_until_us) } else { until_us })
    }

    /// A client's connection waits to be accepted. Gives it back if nobody listens.
    pub fn connect(&mut self, wire: Wire, socket: SimSocket) -> bool {
        if self.is_listening {
            self.backlog.push_back((wire, socket));
        }
        self.is_listening
    }

    fn turn(&mut self, clocks: &Clocks, source: &mut Source, is_leaving: bool) -> u64 {
        let now_us = clocks.mono_us.get();
        let had_edges = self.has_edges();
        let overslept = self.sleep.wake() && !had_edges;
        self.bell.withdraw();
        let Some(reactor) = &mut self.reactor else { return 0 };
        let effects: usize = self.links.iter().map(|link| link.effects_len()).sum();
        assert!(
            !overslept || effects == 0,
            "nobody sleeps through a message: a reactor did, and {effects} effects wait"
        );
        reactor.begin_turn(clocks.now());
        let mut events = effects as u64;
        // Which edges the kernel tells in this turn: any of those there are, and those with the others' bytes in mind.
        self.watched.retain(|(wire, _)| !wire.is_server_closed());
        let mut edges = Vec::new();
        for (wire, slot) in &self.watched {
            if wire.has_edge() && edges.len() < EVENTS_MAX && !source.chance(100) {
                edges.extend(wire.take_edge().map(|edge| (*slot, edge)));
            }
        }
        let more = edges.len() == EVENTS_MAX;
        let accepts_at =
            if self.backlog.is_empty() { usize::MAX } else { source.below(edges.len() as u32 + 1) as usize };
        for at in 0..=edges.len() {
            if at == accepts_at && self.is_listening {
                for _ in 0..ACCEPTS_A_TURN {
                    let Some((wire, socket)) = self.backlog.pop_front() else { break };
                    events += 1;
                    if let Some(slot) = reactor.accept(socket) {
                        wire.watch();
                        self.watched.push((wire, slot));
                    }
                }
            }
            let Some((slot, edge)) = edges.get(at) else { break };
            events += 1;
            if edge.writable {
                reactor.handle_writable(*slot);
            }
            if edge.readable || edge.closed {
                reactor.handle_readable(*slot, edge.closed);
            }
        }
        if is_leaving {
            self.is_listening = false;
            self.backlog.clear();
            reactor.leave();
        }
        reactor.end_turn();
        if reactor.has_left() {
            self.reactor = None;
            self.watched.clear();
            return events;
        }
        self.bell.announce();
        match if more { Wait::Not } else { reactor.plan_wait() } {
            Wait::Not => self.bell.withdraw(),
            Wait::For(longest) => {
                let gathers = reactor.take_gathering();
                self.deaf_until_us = if gathers { now_us + GATHER_US } else { 0 };
                self.sleep.plan(now_us, longest);
            }
        }
        events
    }
}

/// What a hub asks of its writer and its readers.
#[derive(Default)]
struct Asked {
    batch: Option<Batch>,
    reads: VecDeque<Read>,
}

impl Disk for Asked {
    fn write(&mut self, batch: Batch) {
        assert!(self.batch.replace(batch).is_none(), "a hub keeps at most one batch under way");
    }

    fn read(&mut self, read: Read) {
        self.reads.push_back(read);
    }
}

/// The thread of a hub, with its readers.
pub struct HubThread {
    /// `None`: it has ended.
    pub driver: Option<Driver>,
    pub volume: u16,
    inbox: Arc<Inbox>,
    links: Vec<Arc<Link>>,
    mail: Vec<Arc<HubLink>>,
    sleep: Sleep,
    asked: Asked,
    /// What readers have read and not told yet, and when they will.
    held: Vec<(u64, ReadResult)>,
    readers: usize,
    /// What was decided, once it has ended, and the batches that it handed over; only where that is to be replayed.
    journal: Vec<Journalled>,
    sealed: Option<Vec<Batch>>,
}

impl HubThread {
    pub fn can_turn(&self, now_us: u64) -> bool {
        self.driver.is_some() && self.sleep.is_awake(now_us)
    }

    fn due_us(&self) -> Option<u64> {
        self.driver.as_ref()?;
        Some(self.sleep.until_us.unwrap_or(0))
    }

    /// Commands and mail that wait for it.
    fn waiting(&self, own: HubId) -> usize {
        let commands: usize = self.links.iter().map(|link| link.commands_len()).sum();
        let others = (0..).map(HubId).zip(&self.mail).filter(|(other, _)| *other != own);
        commands + others.map(|(other, link)| link.mail_len(other, own)).sum::<usize>()
    }

    fn turn(&mut self, clocks: &Clocks, metrics: &Metrics, is_stopping: bool) -> u64 {
        let now_us = clocks.mono_us.get();
        let overslept = self.sleep.wake();
        let Some(own) = self.driver.as_ref().map(|driver| driver.hub().id()) else { return 0 };
        let before = self.waiting(own);
        let driver = self.driver.as_mut().expect("looked at above");
        driver.wake_up();
        let hub = driver.hub();
        assert!(
            !overslept || before == 0 || hub.is_writing() || !hub.has_room(),
            "nobody sleeps through a message: hub {own} did, and {before} wait for it"
        );
        let busy =
            driver.turn(clocks, &mut self.asked, metrics.hub(own.index())).expect("an engine in memory can be read");
        if !busy {
            if driver.is_finished() {
                assert!(is_stopping, "a hub ends when it is told to");
                self.journal = driver.hub_mut().take_journal();
                self.driver = None;
            } else if let Some(wait) = driver.plan_sleep(clocks) {
                self.sleep.plan(now_us, wait);
            }
        }
        before.saturating_sub(self.waiting(own)) as u64
    }

    pub fn can_read(&self) -> bool {
        !self.asked.reads.is_empty() && self.held.len() < self.readers
    }

    pub fn can_tell_read(&self, now_us: u64) -> bool {
        self.held.iter().any(|(due_us, _)| *due_us <= now_us)
    }

    /// A reader tells one of the results that are due.
    fn tell_read(&mut self, now_us: u64, source: &mut Source) {
        let due: Vec<usize> = (0..self.held.len()).filter(|at| self.held[*at].0 <= now_us).collect();
        let at = due[source.below(due.len() as u32) as usize];
        let (_, result) = self.held.remove(at);
        self.inbox.post_read(result);
    }
}

/// The log of a volume, as its writers see it.
#[derive(Default)]
pub struct Log {
    /// Batches handed over, at most one a hub, and what was synced then.
    queued: Vec<(HubId, Batch, u64)>,
    /// The group that is being synced, and until when that takes.
    syncing: Vec<(HubId, BatchNumber)>,
    sync_due_us: u64,
    /// Synced, and their hubs have not been told.
    synced: Vec<(HubId, BatchNumber)>,
    /// The last sequence number appended.
    sequence: u64,
}

impl Log {
    pub fn can_append(&self) -> bool {
        self.syncing.is_empty() && !self.queued.is_empty()
    }

    pub fn can_sync(&self, now_us: u64) -> bool {
        !self.syncing.is_empty() && self.sync_due_us <= now_us
    }

    pub fn can_tell(&self) -> bool {
        !self.synced.is_empty()
    }
}

/// See the module.
pub struct Life {
    pub topology: Arc<Topology>,
    pub generation: u32,
    pub reactors: Vec<ReactorThread>,
    pub hubs: Vec<HubThread>,
    pub logs: Vec<Log>,
    /// By volume.
    pub engines: Vec<Arc<MemoryEngine>>,
    /// For readers.
    readable: Engines,
    metrics: Arc<Metrics>,
    /// Since when it leaves.
    pub leaving_since_us: Option<u64>,
    is_stopping: bool,
    /// What its disks held when it began, and when that was; only where its journal is kept.
    begun_with: Option<(Vec<MemoryEngine>, Now)>,
}

/// What a life starts with, beside its disks.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub hubs: u16,
    pub reactors: u16,
    pub generation: u32,
    /// What it decides is noted, and replayed when it ends.
    pub keeps_journal: bool,
}

/// Where every shard is.
pub fn topology(plan: &Plan, hubs: u16) -> Arc<Topology> {
    let volumes = (0..plan.shards).map(|shard| shard % plan.volumes).collect();
    Arc::new(Topology::new(plan.shards, volumes, hubs).expect("a plan asks for what is possible"))
}

impl Life {
    /// A server over open engines. `recovered` is asked after each hub whether the process still lives.
    pub fn new(
        plan: &Plan,
        start: Start,
        engines: &[Arc<MemoryEngine>],
        clocks: &Clocks,
        mut recovered: impl FnMut(&mut Hub) -> bool,
    ) -> Option<Self> {
        let topology = topology(plan, start.hubs);
        let metrics = Arc::new(Metrics::new(start.reactors.into(), start.hubs.into()));
        let (hub_bounds, mail_bounds) = (plan.sizes.of_hubs(), plan.sizes.of_links());
        let now = clocks.now();
        let mut hubs = Vec::new();
        for id in (0..start.hubs).map(HubId) {
            let engine: Arc<dyn Engine> = Arc::<MemoryEngine>::clone(&engines[usize::from(topology.volume_of_hub(id))]);
            let policy = plan.policy();
            let shards = Shards::recover(&*engine, Arc::clone(&topology), id, policy, now.wall_ms, now.mono_ms())
                .expect("what was written can be read");
            let mut hub = Hub::new(engine, shards, INCARNATION, Arc::clone(&topology), id, hub_bounds);
            if start.keeps_journal {
                hub.keep_journal();
            }
            if !recovered(&mut hub) {
                return None;
            }
            hubs.push(hub);
        }
        let begun_with = start.keeps_journal.then(|| (engines.iter().map(|engine| engine.fork()).collect(), now));
        let woken: Vec<Arc<AtomicBool>> = hubs.iter().map(|_| Arc::default()).collect();
        let inboxes: Vec<Arc<Inbox>> = woken
            .iter()
            .map(|woken| {
                let woken = Arc::clone(woken);
                Arc::new(Inbox::new(hub_bounds.reads_outstanding, move || woken.store(true, Ordering::Relaxed)))
            })
            .collect();
        let around = Surroundings {
            config: Arc::new(plan.config()),
            authenticator: authenticator(start.generation),
            incarnation: INCARNATION,
            topology: Arc::clone(&topology),
            metrics: Arc::clone(&metrics),
            epochs: Arc::<Epochs>::default(),
            connections_max: plan.connections_max,
            bounds: plan.sizes.of_reactors(),
        };
        let reactors: Vec<ReactorThread> =
            (0..start.reactors).map(|number| new_reactor(number, &inboxes, mail_bounds, &around)).collect();
        let mail = links_between(hubs.len(), plan.sizes.mail);
        let retention: Vec<_> = engines.iter().map(|engine| engine.retention()).collect();
        let hubs = hubs.into_iter().zip(0_u16..).map(|(hub, number)| {
            let at = usize::from(number);
            let port = |thread: &ReactorThread| ReactorPort {
                link: Arc::clone(&thread.links[at]),
                bell: Arc::clone(&thread.bell),
            };
            let ports: Vec<ReactorPort> = reactors.iter().map(port).collect();
            let links = ports.iter().map(|port| Arc::clone(&port.link)).collect();
            let others = mail[at]
                .iter()
                .zip(&inboxes)
                .map(|(link, inbox)| HubPort { link: Arc::clone(link), bell: bell_of(inbox) });
            let volume = topology.volume_of_hub(HubId(number));
            let (inbox, retention) = (Arc::clone(&inboxes[at]), Arc::clone(&retention[usize::from(volume)]));
            HubThread {
                driver: Some(Driver::new(hub, Arc::clone(&inbox), ports, others.collect(), retention)),
                volume,
                inbox,
                links,
                mail: mail[at].clone(),
                sleep: Sleep::new(Arc::clone(&woken[at])),
                asked: Asked::default(),
                held: Vec::new(),
                readers: plan.readers,
                journal: Vec::new(),
                sealed: begun_with.is_some().then(Vec::new),
            }
        });
        let hubs = hubs.collect();
        let readable = Engines {
            engines: engines.iter().map(|engine| Arc::clone(engine) as Arc<dyn Engine>).collect(),
            topology: Topology::clone(&topology),
        };
        Some(Self {
            topology,
            generation: start.generation,
            reactors,
            hubs,
            logs: engines.iter().map(|engine| Log { sequence: engine.sequence_synced(), ..Log::default() }).collect(),
            engines: engines.to_vec(),
            readable,
            metrics,
            leaving_since_us: None,
            is_stopping: false,
            begun_with,
        })
    }

    // ---- steps: each says how many events it was ----

    pub fn turn_reactor(&mut self, at: usize, clocks: &Clocks, source: &mut Source) -> u64 {
        let events = self.reactors[at].turn(clocks, source, self.leaving_since_us.is_some());
        if self.leaving_since_us.is_some()
            && !self.is_stopping
            && self.reactors.iter().all(|thread| thread.reactor.is_none())
        {
            self.is_stopping = true;
            self.hubs.iter().for_each(|hub| hub.inbox.stop());
        }
        events
    }

    pub fn turn_hub(&mut self, at: usize, clocks: &Clocks) -> u64 {
        let hub = &mut self.hubs[at];
        let volume = usize::from(hub.volume);
        let synced = self.engines[volume].sequence_synced();
        let events = hub.turn(clocks, &self.metrics, self.is_stopping);
        if let Some(batch) = hub.asked.batch.take() {
            if let Some(sealed) = &mut hub.sealed {
                sealed.push(batch.clone());
            }
            self.logs[volume].queued.push((HubId(at as u16), batch, synced));
        }
        events
    }

    /// A reader reads what was asked first; it will tell after a while.
    pub fn make_read(&mut self, at: usize, tells_at_us: u64) -> u64 {
        let hub = &mut self.hubs[at];
        if let Some(asked) = hub.asked.reads.pop_front() {
            let result = read(&self.readable, hub.volume, asked).expect("what was written can be read");
            hub.held.push((tells_at_us, result));
        }
        1
    }

    pub fn tell_read(&mut self, at: usize, now_us: u64, source: &mut Source) -> u64 {
        self.hubs[at].tell_read(now_us, source);
        1
    }

    /// Writers append some of what they have, as one group. `written` sees each batch.
    pub fn append(
        &mut self,
        volume: usize,
        until_us: u64,
        source: &mut Source,
        mut written: impl FnMut(&Batch, u64),
    ) -> u64 {
        let log = &mut self.logs[volume];
        let mut group = Vec::new();
        let first = source.below(log.queued.len() as u32) as usize;
        group.push(log.queued.remove(first));
        while !log.queued.is_empty() && !source.chance(300) {
            group.push(log.queued.remove(0));
        }
        let mut batches = Vec::with_capacity(group.len());
        for (hub, batch, synced) in group {
            written(&batch, synced);
            log.sequence += u64::from(batch.row_count());
            log.syncing.push((hub, batch.number()));
            batches.push(batch);
        }
        self.engines[volume].append_group(&batches);
        log.sync_due_us = until_us;
        1
    }

    /// The last sequence number appended to a volume's log.
    pub fn appended_sequence(&self, volume: usize) -> u64 {
        self.logs[volume].sequence
    }

    pub fn sync(&mut self, volume: usize) -> u64 {
        self.engines[volume].sync();
        let log = &mut self.logs[volume];
        log.synced.append(&mut log.syncing);
        1
    }

    pub fn tell_synced(&mut self, volume: usize, source: &mut Source) -> u64 {
        let log = &mut self.logs[volume];
        let (hub, number) = log.synced.remove(source.below(log.synced.len() as u32) as usize);
        self.hubs[hub.index()].inbox.post_durable(number);
        1
    }

    /// A client connects: whether anybody listens.
    pub fn connect(&mut self, at: usize, wire: Wire, socket: SimSocket) -> bool {
        self.reactors[at].connect(wire, socket)
    }

    /// SIGTERM.
    pub fn leave(&mut self, now_us: u64) {
        if self.leaving_since_us.is_none() {
            self.leaving_since_us = Some(now_us);
            self.reactors.iter().for_each(|thread| {
                thread.bell.ring();
            });
        }
    }

    /// All threads have ended.
    pub fn has_ended(&self) -> bool {
        self.is_stopping && self.hubs.iter().all(|hub| hub.driver.is_none())
    }

    /// The next time at which something happens by itself, though nothing moves now.
    pub fn due_us(&self) -> Option<u64> {
        let reactors = self.reactors.iter().filter_map(ReactorThread::due_us);
        let hubs = self.hubs.iter().filter_map(HubThread::due_us);
        let held = self.hubs.iter().flat_map(|hub| hub.held.iter().map(|(due_us, _)| *due_us));
        let logs = self.logs.iter().filter(|log| !log.syncing.is_empty()).map(|log| log.sync_due_us);
        reactors.chain(hubs).chain(held).chain(logs).min()
    }

    // ---- checks ----

    /// What each hub decided gives, applied again to what its disk held at the beginning, the very batches that it wrote:
    /// so a recovered state is the one that was.
    pub fn check_journals(&mut self, plan: &Plan) {
        let Some((disks, now)) = self.begun_with.take() else { return };
        for (hub, thread) in (0..).map(HubId).zip(&mut self.hubs) {
            let journal = match &mut thread.driver {
                Some(driver) => driver.hub_mut().take_journal(),
                None => std::mem::take(&mut thread.journal),
            };
            let (disk, topology) = (&disks[usize::from(thread.volume)], Arc::clone(&self.topology));
            let replayed = replay(disk, topology, hub, plan.policy(), now.wall_ms, now.mono_ms(), &journal)
                .expect("what was written can be read");
            let sealed = thread.sealed.take().unwrap_or_default();
            let bytes = |batches: &[Batch]| batches.iter().map(|batch| batch.as_bytes().to_vec()).collect::<Vec<_>>();
            assert!(
                bytes(&sealed) == bytes(&replayed),
                "the same records give the same batches: those of hub {hub} differ from the {}th of {} on",
                sealed.iter().zip(&replayed).take_while(|(a, b)| a.as_bytes() == b.as_bytes()).count(),
                sealed.len()
            );
        }
    }

    /// Whether nothing is under way anywhere in the server.
    pub fn is_quiet(&self) -> bool {
        self.busy().is_none()
    }

    /// What is under way, for people.
    pub fn busy(&self) -> Option<String> {
        for (number, thread) in self.reactors.iter().enumerate() {
            if thread.reactor.as_ref().is_some_and(|reactor| !reactor.is_idle()) || !thread.backlog.is_empty() {
                return Some(format!("reactor {number} has something under way"));
            }
        }
        for (number, thread) in self.hubs.iter().enumerate() {
            let Some(driver) = &thread.driver else { continue };
            let (hub, waiting) = (driver.hub(), thread.waiting(HubId(number as u16)));
            let (reads, held) = (thread.asked.reads.len(), thread.held.len());
            let is_quiet = hub.is_settled()
                && !hub.has_untaken()
                && !hub.is_hungry()
                && !hub.has_unsent_mail()
                && driver.notices() == 0
                && hub.holdings().reads + hub.holdings().effects == 0
                && waiting + reads + held == 0;
            if !is_quiet {
                return Some(format!(
                    "hub {number}: settled {}, untaken {}, hungry {}, unsent mail {}, notices {}, waiting {waiting}, \
                     reads {reads}, held {held}, parked {}, writing {}",
                    hub.is_settled(),
                    hub.untaken(),
                    hub.is_hungry(),
                    hub.has_unsent_mail(),
                    driver.notices(),
                    hub.parked(),
                    hub.is_writing()
                ));
            }
        }
        let log = self.logs.iter().position(|log| log.can_append() || !log.syncing.is_empty() || log.can_tell());
        log.map(|volume| format!("the log of volume {volume} has something to write"))
    }

    /// Who sleeps until when, for people.
    pub fn sleepers(&self) -> String {
        let reactors: Vec<_> = self.reactors.iter().map(|thread| thread.sleep.until_us).collect();
        let hubs: Vec<_> = self.hubs.iter().map(|thread| thread.sleep.until_us).collect();
        format!("reactors sleep until {reactors:?}, hubs until {hubs:?}")
    }
}

fn new_reactor(number: u16, inboxes: &[Arc<Inbox>], bounds: mailbox::Bounds, around: &Surroundings) -> ReactorThread {
    let hubs: Vec<ToHub> = inboxes.iter().map(|inbox| ToHub::new(inbox, bounds)).collect();
    let links = hubs.iter().map(|hub| Arc::clone(&hub.link)).collect();
    let woken = Arc::<AtomicBool>::default();
    let to_wake = Arc::clone(&woken);
    ReactorThread {
        reactor: Some(Reactor::new(number, hubs, around.clone())),
        links,
        bell: Arc::new(Doorbell::new(move || to_wake.store(true, Ordering::Relaxed))),
        sleep: Sleep::new(woken),
        deaf_until_us: 0,
        watched: Vec::new(),
        backlog: VecDeque::new(),
        is_listening: true,
    }
}

/// As `server/hubs.rs` links them.
fn links_between(hubs: usize, mail: usize) -> Vec<Vec<Arc<HubLink>>> {
    let mut links: Vec<Vec<Arc<HubLink>>> = Vec::new();
    for hub in 0..hubs {
        let row = (0..hubs).map(|other| match other.cmp(&hub) {
            std::cmp::Ordering::Less => Arc::clone(&links[other][hub]),
            std::cmp::Ordering::Equal => Arc::new(HubLink::unused()),
            std::cmp::Ordering::Greater => Arc::new(HubLink::new(mail)),
        });
        let row = row.collect();
        links.push(row);
    }
    links
}

fn bell_of(inbox: &Arc<Inbox>) -> Arc<dyn Fn() + Send + Sync> {
    let inbox = Arc::clone(inbox);
    Arc::new(move || {
        inbox.bell.ring_gently();
    })
}
