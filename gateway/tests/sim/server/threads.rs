//! The threads of one life, as a scheduler steps them: what wakes each, what a turn of it is, and what it waits for.
//!
//! Owns how a thread sleeps. Never puts threads together, and never owns what outlives them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culver::clock::Clock;
use culver::hub::driver::{Disk, Driver, Inbox};
use culver::mailbox::{Doorbell, HubLink, Link};
use culver::metrics::{Counters, Metrics};
use culver::reactor::parting::Order;
use culver::reactor::{Reactor, Wait};
use culver_storage::batch::{Batch, BatchNumber};
use culver_storage::reader::{Read, ReadResult};
use culver_storage::shard::Journalled;
use culver_storage::topology::HubId;

use super::Clocks;
use super::gate::Gate;
use crate::net::{Edge, Listener, SimSocket, Waiting, Wire};
use crate::source::Source;

/// As `reactor/thread.rs` has it.
const EVENTS_MAX: usize = 16;
const ACCEPTS_A_TURN: usize = 8;
const GATHER_US: u64 = 250;

/// How a thread waits.
pub(super) struct Sleep {
    /// Its bell has rung since it last went to sleep.
    pub(super) woken: Arc<AtomicBool>,
    /// It sleeps until then; `None`: it is awake.
    pub(super) until_us: Option<u64>,
    /// So short a sleep needs no bell.
    pub(super) is_short: bool,
}

impl Sleep {
    pub(super) fn new(woken: Arc<AtomicBool>) -> Self {
        Self { woken, until_us: None, is_short: false }
    }

    #[inline]
    pub(super) fn is_awake(&self, now_us: u64) -> bool {
        self.until_us.is_none_or(|until_us| until_us <= now_us) || self.woken.load(Ordering::Relaxed)
    }

    /// It runs. Whether it did so only because its time had come.
    pub(super) fn wake(&mut self) -> bool {
        let slept = self.until_us.take().is_some();
        let woken = self.woken.load(Ordering::Relaxed);
        if woken {
            self.woken.store(false, Ordering::Relaxed);
        }
        slept && !woken && !self.is_short
    }

    pub(super) fn plan(&mut self, now_us: u64, wait: Duration) {
        self.until_us = Some(now_us + u64::try_from(wait.as_micros()).expect("a thread wakes some time"));
        self.is_short = wait < Duration::from_millis(3);
    }
}

/// The thread of a reactor, with its epoll and its listener.
pub(crate) struct ReactorThread {
    /// `None`: it has left.
    pub reactor: Option<Reactor<SimSocket>>,
    pub(super) links: Vec<Arc<Link>>,
    pub(super) bell: Arc<Doorbell>,
    pub(super) sleep: Sleep,
    /// It waits for its bell alone until then.
    pub(super) deaf_until_us: u64,
    pub(super) watched: Vec<(Wire, u32)>,
    pub(super) listener: Listener,
    pub(super) gate: Gate,
    /// What operators have said that it has heard.
    pub(super) orders_seen: u32,
}

impl ReactorThread {
    pub(super) fn has_edges(&self) -> bool {
        self.listener.is_due() || self.watched.iter().any(|(wire, _)| wire.has_edge())
    }

    pub(crate) fn can_turn(&self, now_us: u64) -> bool {
        self.reactor.is_some() && (self.sleep.is_awake(now_us) || (now_us >= self.deaf_until_us && self.has_edges()))
    }

    /// When it wakes by itself.
    pub(super) fn due_us(&self) -> Option<u64> {
        self.reactor.as_ref()?;
        let until_us = self.sleep.until_us.unwrap_or(0);
        Some(if self.has_edges() { until_us.min(self.deaf_until_us) } else { until_us })
    }

    pub(super) fn turn(
        &mut self,
        clocks: &Clocks,
        source: &mut Source,
        counters: &Counters,
        is_leaving: bool,
        ordered: &(u32, Option<Arc<Order>>),
    ) -> u64 {
        let now_us = clocks.mono_us.get();
        let had_edges = self.has_edges();
        let overslept = self.sleep.wake() && !had_edges;
        self.bell.withdraw();
        let Some(reactor) = &mut self.reactor else { return 0 };
        let effects: usize = self.links.iter().map(|link| link.pressing_effects_len()).sum();
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
        let accepts_at = if self.listener.is_due() { source.index(edges.len() + 1) } else { usize::MAX };
        for at in 0..=edges.len() {
            if at == accepts_at {
                for _ in 0..ACCEPTS_A_TURN {
                    let Some(Waiting { wire, socket, source, .. }) = self.listener.accept() else { break };
                    events += 1;
                    if let Some(slot) = self.gate.accept(reactor, counters, (socket, source), now_us) {
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
            read(reactor, *slot, edge);
        }
        if is_leaving {
            self.listener.close();
            reactor.leave();
        } else if self.orders_seen != ordered.0 {
            self.orders_seen = ordered.0;
            match &ordered.1 {
                Some(order) => reactor.drain(order),
                None => reactor.abort_drain(),
            }
        }
        reactor.end_turn();
        reactor.check_unsent();
        drop(reactor.take_newly_blocked()); // a wire always says when it takes bytes again
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
pub(super) struct Asked {
    pub(super) batch: Option<Batch>,
    pub(super) reads: VecDeque<Read>,
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
pub(crate) struct HubThread {
    pub(super) id: HubId,
    /// `None`: it has ended.
    pub driver: Option<Driver>,
    pub volume: u16,
    pub(super) inbox: Arc<Inbox>,
    pub(super) links: Vec<Arc<Link>>,
    pub(super) mail: Vec<Arc<HubLink>>,
    pub(super) sleep: Sleep,
    pub(super) asked: Asked,
    /// What readers have read and not told yet, and when they will.
    pub(super) held: Vec<(u64, ReadResult)>,
    pub(super) readers: usize,
    /// What was decided, once it has ended, and the batches that it handed over; only where that is to be replayed.
    pub(super) journal: Vec<Journalled>,
    pub(super) sealed: Option<Vec<Batch>>,
}

impl HubThread {
    pub(super) fn new(driver: Driver, volume: u16, inbox: Arc<Inbox>, links: Vec<Arc<Link>>, sleep: Sleep) -> Self {
        Self {
            id: driver.hub().id(),
            driver: Some(driver),
            volume,
            inbox,
            links,
            mail: Vec::new(),
            sleep,
            asked: Asked::default(),
            held: Vec::new(),
            readers: 1,
            journal: Vec::new(),
            sealed: None,
        }
    }

    pub(crate) fn can_turn(&self, now_us: u64) -> bool {
        self.driver.is_some() && self.sleep.is_awake(now_us)
    }

    pub(super) fn due_us(&self) -> Option<u64> {
        self.driver.as_ref()?;
        Some(self.sleep.until_us.unwrap_or(0))
    }

    /// Commands and mail that wait for it.
    pub(super) fn waiting(&self) -> usize {
        let own = self.id;
        let commands: usize = self.links.iter().map(|link| link.commands_len()).sum();
        let others = (0..).map(HubId).zip(&self.mail).filter(|(other, _)| *other != own);
        commands + others.map(|(other, link)| link.mail_len(other, own)).sum::<usize>()
    }

    pub(super) fn turn(&mut self, clocks: &Clocks, metrics: &Metrics, is_stopping: bool) -> u64 {
        let now_us = clocks.mono_us.get();
        let overslept = self.sleep.wake();
        let (own, before) = (self.id, self.waiting());
        let Some(driver) = &mut self.driver else { return 0 };
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
        before.saturating_sub(self.waiting()) as u64
    }

    /// What a reader reads next, for people.
    pub(crate) fn next_read(&self) -> String {
        self.asked.reads.front().map_or_else(String::new, |read| format!("{read:?}"))
    }

    pub(crate) fn can_read(&self) -> bool {
        !self.asked.reads.is_empty() && self.held.len() < self.readers
    }

    pub(crate) fn can_tell_read(&self, now_us: u64) -> bool {
        self.held.iter().any(|(due_us, _)| *due_us <= now_us)
    }

    /// A reader tells one of the results that are due.
    pub(super) fn tell_read(&mut self, now_us: u64, source: &mut Source) {
        let due: Vec<usize> = (0..self.held.len()).filter(|at| self.held[*at].0 <= now_us).collect();
        let at = due[source.index(due.len())];
        let (_, result) = self.held.remove(at);
        self.inbox.post_read(result);
    }
}

/// The log of a volume, as its writers see it.
#[derive(Default)]
pub(crate) struct Log {
    /// Batches handed over, at most one a hub, and what was synced then.
    pub(super) queued: Vec<(HubId, Batch, u64)>,
    /// The group that is being synced, and until when that takes.
    pub(super) syncing: Vec<(HubId, BatchNumber)>,
    pub(super) sync_due_us: u64,
    /// Synced, and their hubs have not been told.
    pub(super) synced: Vec<(HubId, BatchNumber)>,
    /// The last sequence number appended.
    pub(super) sequence: u64,
}

impl Log {
    /// No writer of the volume has begun with a batch of which its hub has not been told.
    pub(crate) fn is_between_batches(&self) -> bool {
        self.syncing.is_empty() && self.synced.is_empty()
    }

    pub(crate) fn can_append(&self) -> bool {
        self.syncing.is_empty() && !self.queued.is_empty()
    }

    pub(crate) fn can_sync(&self, now_us: u64) -> bool {
        !self.syncing.is_empty() && self.sync_due_us <= now_us
    }

    pub(crate) fn can_tell(&self) -> bool {
        !self.synced.is_empty()
    }
}

/// As the thread does it.
fn read(reactor: &mut Reactor<SimSocket>, slot: u32, edge: &Edge) {
    if edge.closed {
        reactor.handle_closed(slot);
    } else if edge.readable {
        reactor.handle_readable(slot, false);
    }
}
