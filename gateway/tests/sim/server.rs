//! One life of the server: everything that a process has in memory, put together as `server.rs` does, and what its
//! threads do, each as a step that the scheduler calls when it likes.
//!
//! Owns reactors, hubs, their queues and doorbells, and what writers and readers were asked. Never owns what survives a
//! life: engines, wires, the clocks. A thread sleeps only when it planned to, and is woken only by its bell, by its
//! sockets, or when its time has come: a wake-up that is lost is found.

mod checks;
mod gate;
mod threads;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use culver::auth::keys::{DevCredentials, TicketKey};
use culver::auth::{Authenticator, Identity, Root, ServerKeys, TicketSealer, TokenVerifier};
use culver::clock::{Clock, Now};
use culver::config;
use culver::hub::Hub;
use culver::hub::bounds::Bounds as HubBounds;
use culver::hub::driver::{Driver, HubPort, Inbox, ReactorPort};
use culver::mailbox::{self, Doorbell, HubLink};
use culver::metrics::Metrics;
use culver::reactor::hubs::ToHub;
use culver::reactor::parting::{Order, Pace};
use culver::reactor::{Epochs, Reactor, Surroundings};
use culver::space::Space;
use culver_protocol::client::ServerKey;
use culver_protocol::crypto::{KeyPair, PublicKey, Secret, hkdf};
use culver_protocol::id::Incarnation;
use culver_storage::batch::Batch;
use culver_storage::engine::Engine;
use culver_storage::filter::Retention;
use culver_storage::memory::MemoryEngine;
use culver_storage::reader::{Engines, read};
use culver_storage::shard::Shards;
use culver_storage::topology::{HubId, Topology};

use self::gate::Gate;
use self::threads::{HubThread, Log, ReactorThread, Sleep};
use crate::net::Listener;
use crate::plan::Plan;
use crate::source::Source;

/// Of the data directory of every world.
pub(crate) const INCARNATION: Incarnation = Incarnation(42);
/// Seconds until unsent bytes are dropped when a server leaves.
pub(crate) const FLUSH_S: u64 = 5;
/// A drain may end so much later than it says, for threads are lazy.
const DRAIN_LATE_US: u64 = 1_000_000;

/// The clocks of the machine. They move only between steps.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
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

/// Of the example of RFC 8410: the same in every run.
const TOKEN_PRIVATE_PEM: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
";
const TOKEN_PUBLIC_PEM: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
";

thread_local! {
    /// How many tickets were sealed in this thread's world.
    static TICKETS: Cell<u64> = const { Cell::new(0) };
}

/// A world begins in this thread: what is secret in it is what it was in its last run.
pub(crate) fn begin_secrets() {
    TICKETS.set(0);
}

fn ticket_nonce() -> [u8; 12] {
    TICKETS.set(TICKETS.get() + 1);
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&TICKETS.get().to_be_bytes());
    nonce
}

fn root() -> Root {
    Root::new(&Secret::new([6; 32]))
}

/// What devices know of every server.
pub(crate) fn root_public() -> [u8; 32] {
    root().public()
}

/// A token with which this device may register this key, or come in plaintext, made at this time.
pub(crate) fn token(identity: Identity, device_key: Option<&PublicKey>, now_ms: u64, life_s: u64) -> String {
    let settings = config::Token::default();
    let credentials = DevCredentials {
        issuer: settings.issuer,
        audience: settings.audience,
        algorithm: "EdDSA".to_owned(),
        key_id: "dev".to_owned(),
        private_key_pem: TOKEN_PRIVATE_PEM.to_owned(),
        server_root: None,
    };
    let Identity { user, device } = identity;
    credentials.mint(user.0, device.0, now_ms / 1000, life_s, device_key).expect("the key is good")
}

/// The key that a server of this generation shows.
pub(crate) fn server_key(generation: u32) -> ServerKey {
    let identity = authenticator(generation).current_server_key();
    ServerKey { id: identity.id, public: *identity.pair.public(), not_after_ms: u64::MAX }
}

/// The server's keys in a generation: its own, and the one before.
fn server_keys(generation: u32) -> ServerKeys {
    let newest = u16::try_from(generation).expect("few");
    let ids = newest.saturating_sub(1).max(1)..=newest;
    let key = |id: u16| {
        let mut secret = [7; 32];
        secret[..2].copy_from_slice(&id.to_be_bytes());
        root().certify_pair(id, KeyPair::new(&secret), (id.into(), u64::MAX))
    };
    ServerKeys::new(ids.map(key).collect(), u64::from(newest) + 1)
}

/// What checks logins, for tickets of a generation. Made once per process: keys are dear.
pub(crate) fn authenticator(generation: u32) -> Arc<Authenticator> {
    static MADE: OnceLock<Mutex<Vec<Arc<Authenticator>>>> = OnceLock::new();
    let mut made = MADE.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    while made.len() < generation as usize {
        let tokens = TokenVerifier::new(TOKEN_PUBLIC_PEM, &config::Token::default()).expect("a public key");
        let generation = 1 + u32::try_from(made.len()).expect("few");
        let settings = config::Ticket { life_s: config::TICKET_LIFE_S_MAX, generation };
        let tickets = TicketSealer::new(&TicketKey::new([5; 32]), settings, INCARNATION).with_nonces(ticket_nonce);
        made.push(Arc::new(Authenticator::new(tokens, tickets, server_keys(generation))));
    }
    Arc::clone(&made[generation as usize - 1])
}

/// The server's fresh secrets in its life of this number: others in each, and the same when a world is run again.
fn secrets_of_life(life: u32) -> impl Fn() -> Secret + Send + Sync {
    let taken = AtomicU64::new(0);
    move || {
        let number = taken.fetch_add(1, Ordering::Relaxed);
        hkdf(&number.to_be_bytes(), &life.to_be_bytes(), b"culver sim server")
    }
}

/// See the module.
pub(crate) struct Life {
    pub topology: Arc<Topology>,
    pub reactors: Vec<ReactorThread>,
    pub hubs: Vec<HubThread>,
    pub logs: Vec<Log>,
    /// By volume.
    pub engines: Vec<Arc<MemoryEngine>>,
    /// For readers.
    readable: Engines,
    space: Arc<Space>,
    metrics: Arc<Metrics>,
    /// Since when it leaves.
    pub leaving_since_us: Option<u64>,
    /// What operators have said last of clients that are to go, and how often they have said anything.
    ordered: (u32, Option<Arc<Order>>),
    /// By when nobody is served any more.
    drained_by_us: Option<u64>,
    is_stopping: bool,
    /// What its disks held when it began, and when that was; only where its journal is kept.
    begun_with: Option<(Vec<MemoryEngine>, Now)>,
    /// The most connections that it had at once.
    connections_peak: usize,
}

/// What a life starts with, beside its disks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// Lives before.
    pub number: u32,
    pub hubs: u16,
    pub reactors: u16,
    pub generation: u32,
    /// What it decides is noted, and replayed when it ends.
    pub keeps_journal: bool,
}

/// Where every shard is.
pub(crate) fn topology(plan: &Plan, hubs: u16) -> Arc<Topology> {
    let volumes = (0..plan.shards).map(|shard| shard % plan.volumes).collect();
    Arc::new(Topology::new(plan.shards, volumes, hubs).expect("a plan asks for what is possible"))
}

impl Life {
    /// A server over open engines, that listens with these, a reactor with each. `recovered` is asked after each hub whether the process still lives.
    pub(crate) fn new(
        plan: &Plan,
        start: Start,
        engines: &[Arc<MemoryEngine>],
        space: &Arc<Space>,
        clocks: &Clocks,
        listeners: &[Listener],
        mut recovered: impl FnMut(&mut Hub) -> bool,
    ) -> Option<Self> {
        let topology = topology(plan, start.hubs);
        let metrics = Arc::new(Metrics::new(start.reactors.into(), start.hubs.into()));
        let now = clocks.now();
        let mut hubs = Vec::new();
        for mut hub in recover(plan, &topology, engines, now) {
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
        let inboxes: Vec<Arc<Inbox>> = woken.iter().map(|woken| new_inbox(plan, woken)).collect();
        let around = Surroundings {
            config: Arc::new(plan.config()),
            authenticator: authenticator(start.generation),
            incarnation: INCARNATION,
            topology: Arc::clone(&topology),
            metrics: Arc::clone(&metrics),
            epochs: Arc::<Epochs>::default(),
            offer: Arc::new(plan.config().offer()),
            entropy: Arc::new(secrets_of_life(start.number)),
            connections_max: plan.connections_max,
            logins: plan.logins.part_of(start.reactors.into()),
            handshake_ppm: plan.config().handshake_ppm(start.reactors.into(), usize::MAX),
            bounds: plan.of_reactors(),
        };
        let bounds = plan.sizes.of_links();
        let reactors: Vec<ReactorThread> = (0..)
            .zip(listeners)
            .map(|(number, listener)| new_reactor(number, listener, &inboxes, bounds, &around))
            .collect();
        listeners.iter().for_each(|listener| listener.open(now.mono_us));
        let mail = links_between(hubs.len(), plan.sizes.mail);
        let retention: Vec<_> = engines.iter().map(|engine| engine.retention()).collect();
        let new_hub = |(at, hub): (usize, Hub)| {
            let volume = topology.volume_of_hub(hub.id());
            let driver = new_driver(hub, &inboxes, &reactors, &mail[at], &retention[usize::from(volume)], space);
            let links = reactors.iter().map(|thread| Arc::clone(&thread.links[at])).collect();
            let sleep = Sleep::new(Arc::clone(&woken[at]));
            let mut thread = HubThread::new(driver, volume, Arc::clone(&inboxes[at]), links, sleep);
            thread.mail.clone_from(&mail[at]);
            thread.readers = plan.readers;
            thread.sealed = start.keeps_journal.then(Vec::new);
            thread
        };
        let hubs = hubs.into_iter().enumerate().map(new_hub).collect();
        let readable = Engines {
            engines: engines.iter().map(|engine| Arc::clone(engine) as Arc<dyn Engine>).collect(),
            topology: Topology::clone(&topology),
        };
        Some(Self {
            topology,
            reactors,
            hubs,
            logs: engines.iter().map(|engine| Log { sequence: engine.sequence_synced(), ..Log::default() }).collect(),
            engines: engines.to_vec(),
            readable,
            space: Arc::clone(space),
            metrics,
            leaving_since_us: None,
            ordered: (0, None),
            drained_by_us: None,
            is_stopping: false,
            begun_with,
            connections_peak: 0,
        })
    }

    // ---- steps: each says how many events it was ----

    pub(crate) fn turn_reactor(&mut self, at: usize, clocks: &Clocks, source: &mut Source) -> u64 {
        let events = self.reactors[at].turn(
            clocks,
            source,
            self.metrics.reactor(at),
            self.leaving_since_us.is_some(),
            &self.ordered,
        );
        if self.leaving_since_us.is_some()
            && !self.is_stopping
            && self.reactors.iter().all(|thread| thread.reactor.is_none())
        {
            self.is_stopping = true;
            self.hubs.iter().for_each(|hub| hub.inbox.stop());
        }
        events
    }

    pub(crate) fn turn_hub(&mut self, at: usize, clocks: &Clocks) -> u64 {
        let hub = &mut self.hubs[at];
        let volume = usize::from(hub.volume);
        let synced = self.engines[volume].sequence_synced();
        let accepted = || self.metrics.hub(at).messages_accepted.get();
        let before = accepted();
        let events = hub.turn(clocks, &self.metrics, self.is_stopping);
        let new = accepted() - before;
        assert!(
            new == 0 || !self.space.is_low(),
            "nothing new is accepted while a disk has no room for it: hub {at} has accepted {new} messages"
        );
        let reactors = self.reactors.iter().filter_map(|thread| thread.reactor.as_ref());
        // What hubs know of goes later than its connection.
        self.connections_peak = self.connections_peak.max(reactors.map(Reactor::connections).sum());
        hub.check_bounds(self.connections_peak, self.topology.shard_count());
        if let Some(batch) = hub.asked.batch.take() {
            if let Some(sealed) = &mut hub.sealed {
                sealed.push(batch.clone());
            }
            self.logs[volume].queued.push((hub.id, batch, synced));
        }
        events
    }

    /// A reader reads what was asked first; it will tell after a while.
    pub(crate) fn make_read(&mut self, at: usize, tells_at_us: u64) -> u64 {
        let hub = &mut self.hubs[at];
        if let Some(asked) = hub.asked.reads.pop_front() {
            let result = read(&self.readable, hub.volume, asked).expect("what was written can be read");
            hub.held.push((tells_at_us, result));
        }
        1
    }

    pub(crate) fn tell_read(&mut self, at: usize, now_us: u64, source: &mut Source) -> u64 {
        self.hubs[at].tell_read(now_us, source);
        1
    }

    /// Writers append some of what they have, as one group. `written` sees each batch.
    pub(crate) fn append(
        &mut self,
        volume: usize,
        until_us: u64,
        source: &mut Source,
        mut written: impl FnMut(&Batch, u64),
    ) -> u64 {
        let log = &mut self.logs[volume];
        let mut group = Vec::new();
        let first = source.index(log.queued.len());
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
    pub(crate) fn appended_sequence(&self, volume: usize) -> u64 {
        self.logs[volume].sequence
    }

    pub(crate) fn sync(&mut self, volume: usize) -> u64 {
        self.engines[volume].sync();
        let log = &mut self.logs[volume];
        log.synced.append(&mut log.syncing);
        1
    }

    pub(crate) fn tell_synced(&mut self, volume: usize, source: &mut Source) -> u64 {
        let log = &mut self.logs[volume];
        let (hub, number) = log.synced.remove(source.index(log.synced.len()));
        self.hubs[hub.index()].inbox.post_durable(number);
        1
    }

    /// SIGTERM.
    pub(crate) fn leave(&mut self, now_us: u64) {
        if self.leaving_since_us.is_none() {
            self.leaving_since_us = Some(now_us);
            self.reactors.iter().for_each(|thread| {
                thread.bell.ring();
            });
        }
    }

    /// POST /drain.
    pub(crate) fn drain(&mut self, order: Order, now_us: u64) {
        let connections =
            self.reactors.iter().flat_map(|thread| &thread.reactor).map(Reactor::connections).sum::<usize>();
        let told_us = match order.pace {
            Pace::AtOnce => 0,
            Pace::Within { spread_us } => spread_us,
            // All may lie with one reactor.
            Pace::PerSecond { connections: a_second, reactors } => {
                (connections as u64 + 1) * u64::from(reactors) * 1_000_000 / u64::from(a_second)
            }
        };
        self.drained_by_us = Some(now_us + told_us + order.finish_us.unwrap_or(0) + DRAIN_LATE_US);
        self.change_order(Some(Arc::new(order)));
    }

    /// DELETE /drain.
    pub(crate) fn abort_drain(&mut self) {
        if self.drained_by_us.take().is_some() {
            self.change_order(None);
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drained_by_us.is_some()
    }

    /// Whether one goes on that need not be over.
    pub(crate) fn is_within_drain(&self, now_us: u64) -> bool {
        self.leaving_since_us.is_none() && self.drained_by_us.is_some_and(|by_us| by_us >= now_us)
    }

    fn change_order(&mut self, order: Option<Arc<Order>>) {
        self.ordered = (self.ordered.0 + 1, order);
        self.reactors.iter().for_each(|thread| {
            thread.bell.ring();
        });
    }

    /// A drain ends within its bound: who was asked to go has gone, or was ended.
    pub(crate) fn check_drain(&self, now_us: u64) {
        let Some(by_us) = self.drained_by_us.filter(|by_us| *by_us < now_us && self.leaving_since_us.is_none()) else {
            return;
        };
        let open: usize = self.reactors.iter().flat_map(|thread| &thread.reactor).map(Reactor::open_connections).sum();
        assert_eq!(
            open,
            0,
            "a drain ends within its bound: some are still served {} ms later",
            (now_us - by_us) / 1000
        );
    }

    /// All threads have ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_stopping && self.hubs.iter().all(|hub| hub.driver.is_none())
    }

    /// The next time at which something happens by itself, though nothing moves now.
    pub(crate) fn due_us(&self) -> Option<u64> {
        let reactors = self.reactors.iter().filter_map(ReactorThread::due_us);
        let hubs = self.hubs.iter().filter_map(HubThread::due_us);
        let held = self.hubs.iter().flat_map(|hub| hub.held.iter().map(|(due_us, _)| *due_us));
        let logs = self.logs.iter().filter(|log| !log.syncing.is_empty()).map(|log| log.sync_due_us);
        reactors.chain(hubs).chain(held).chain(logs).min()
    }
}

/// What the hubs know when their process begins: what its disks hold.
fn recover(plan: &Plan, topology: &Arc<Topology>, engines: &[Arc<MemoryEngine>], now: Now) -> Vec<Hub> {
    let engine_of = |id| &engines[usize::from(topology.volume_of_hub(id))];
    let ids = (0..topology.hub_count()).map(HubId);
    let shards_of = |id| {
        let topology = Arc::clone(topology);
        Shards::recover(&**engine_of(id), topology, id, plan.policy(), now.wall_ms, now.mono_ms())
            .expect("what was written can be read")
    };
    let mut shards: Vec<Shards> = ids.clone().map(shards_of).collect();
    Shards::begin_together(&mut shards);
    let hub = |(shards, id)| {
        let engine = Arc::<MemoryEngine>::clone(engine_of(id));
        let bounds = HubBounds { sends: plan.rates, logins: plan.user_logins, ..plan.sizes.of_hubs() };
        Hub::new(engine, shards, INCARNATION, Arc::clone(topology), id, bounds)
    };
    shards.into_iter().zip(ids).map(hub).collect()
}

fn new_inbox(plan: &Plan, woken: &Arc<AtomicBool>) -> Arc<Inbox> {
    let woken = Arc::clone(woken);
    Arc::new(Inbox::new(plan.sizes.reads_outstanding, move || woken.store(true, Ordering::Relaxed)))
}

/// A hub among its reactors and the other hubs.
fn new_driver(
    hub: Hub,
    inboxes: &[Arc<Inbox>],
    reactors: &[ReactorThread],
    mail: &[Arc<HubLink>],
    retention: &Arc<Retention>,
    space: &Arc<Space>,
) -> Driver {
    let at = hub.id().index();
    let port =
        |thread: &ReactorThread| ReactorPort { link: Arc::clone(&thread.links[at]), bell: Arc::clone(&thread.bell) };
    let ports = reactors.iter().map(port).collect();
    let others = mail.iter().zip(inboxes);
    let others = others.map(|(link, inbox)| HubPort { link: Arc::clone(link), bell: bell_of(inbox) }).collect();
    Driver::new(hub, Arc::clone(&inboxes[at]), ports, others, Arc::clone(retention), Arc::clone(space))
}

fn new_reactor(
    number: u16,
    listener: &Listener,
    inboxes: &[Arc<Inbox>],
    bounds: mailbox::Bounds,
    around: &Surroundings,
) -> ReactorThread {
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
        listener: listener.clone(),
        gate: Gate::new(around.logins),
        orders_seen: 0,
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
