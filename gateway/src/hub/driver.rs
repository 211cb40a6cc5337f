//! The thread of a hub: moves things between its queues and the pure [`Hub`], and sleeps when there are none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::queue::ArrayQueue;
use culver_storage::batch::BatchNumber;
use culver_storage::error::EngineError;
use culver_storage::filter::Retention;
use culver_storage::reader::{ReadResult, Readers};
use culver_storage::topology::HubId;
use culver_storage::writer::Writer;

use super::effect::{Effect, EffectKind};
use super::gathering::Gathering;
use super::{Counts, Hub, READS_OUTSTANDING_MAX};
use crate::mailbox::{Doorbell, HubLink, Link};
use crate::metrics::Counters;

/// Commands taken from one reactor before the others have their turn.
const COMMANDS_A_TURN: usize = 512;
/// Results of reads taken in one turn: a page of the log is as much work as a hundred messages.
const READS_A_TURN: usize = 16;
/// Mail taken from one hub before the others have their turn.
const MAIL_A_TURN: usize = 512;
/// Longest sleep while a batch waits for company, so that cursors are written in time.
const COMPANY_WAIT: Duration = Duration::from_millis(5);
/// Longest sleep while items of streams are under way, so that those that stand still are driven again.
const STREAMS_WAIT: Duration = Duration::from_millis(100);
/// Longest sleep otherwise.
const IDLE_WAIT: Duration = Duration::from_millis(500);

/// What writers and readers tell a hub. Shared with their threads.
pub struct Inbox {
    /// Batches that have become durable: at most the one under way.
    durable: ArrayQueue<BatchNumber>,
    /// Results of reads.
    reads: ArrayQueue<ReadResult>,
    /// Wakes the hub.
    pub bell: Doorbell,
    thread: Arc<OnceLock<Thread>>,
    stop: AtomicBool,
}

impl Default for Inbox {
    fn default() -> Self {
        let thread: Arc<OnceLock<Thread>> = Arc::default();
        let to_wake = Arc::clone(&thread);
        // Before the hub's thread runs it cannot sleep, and nobody needs to wake it.
        let wake = move || to_wake.get().into_iter().for_each(Thread::unpark);
        Self {
            durable: ArrayQueue::new(2),
            reads: ArrayQueue::new(READS_OUTSTANDING_MAX),
            bell: Doorbell::new(wake),
            thread,
            stop: AtomicBool::new(false),
        }
    }
}

impl Inbox {
    /// The writer: this batch is durable.
    ///
    /// # Panics
    /// If more than one batch was under way.
    pub fn post_durable(&self, number: BatchNumber) {
        assert!(self.durable.push(number).is_ok(), "one batch at a time");
        self.bell.ring();
    }

    /// A reader: this was read.
    ///
    /// # Panics
    /// If the hub had more reads under way than this queue holds.
    pub fn post_read(&self, result: ReadResult) {
        assert!(self.reads.push(result).is_ok(), "no more reads under way than results have room");
        self.bell.ring();
    }

    /// The server, when no reactor runs any more: end when all is answered.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// One reactor, as a hub sees it.
pub struct ReactorPort {
    /// The queues between the two.
    pub link: Arc<Link>,
    /// Wakes the reactor.
    pub bell: Arc<Doorbell>,
}

/// Another hub, as a hub sees it.
pub struct HubPort {
    /// The queues between the two.
    pub link: Arc<HubLink>,
    /// Wakes the other hub.
    pub bell: Arc<dyn Fn() + Send + Sync>,
}

/// What the hub's thread works with.
pub struct Driver {
    /// The hub.
    pub hub: Hub,
    /// Its writer.
    pub writer: Writer,
    /// The readers of its volume.
    pub readers: Arc<Readers>,
    /// What they tell it.
    pub inbox: Arc<Inbox>,
    /// The reactors, by number.
    pub reactors: Vec<ReactorPort>,
    /// The hubs, by number; the own place is never used.
    pub hubs: Vec<HubPort>,
    /// What the volume's compaction goes by.
    pub retention: Arc<Retention>,
}

/// The numbers of hubs, ascending.
fn hub_ids() -> impl Iterator<Item = HubId> {
    (0..u16::MAX).map(HubId)
}

/// What the thread remembers between turns.
#[derive(Default)]
struct Memory {
    /// Effects that must not be lost and found no room.
    notices: Vec<Effect>,
    gathering: Gathering,
}

/// Milliseconds since 1970 by the machine's clock.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).expect("milliseconds fit 64 bits for a while")
}

/// Milliseconds by a clock that never jumps, from the same start in all threads: clock_gettime(2).
#[must_use]
pub fn mono_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let since = Duration::try_from(time).expect("it runs since the machine started");
    u64::try_from(since.as_millis()).expect("milliseconds fit 64 bits for a while")
}

impl Driver {
    /// Runs until told to stop and everything taken in is answered.
    ///
    /// # Panics
    /// If the hub runs twice.
    pub fn run(mut self, counters: &Counters) {
        self.inbox.thread.set(thread::current()).expect("a hub has one thread");
        let mut memory = Memory::default();
        loop {
            let busy = match self.turn(counters, &mut memory) {
                Ok(busy) => busy,
                Err(error) => fail(&error),
            };
            if busy {
                continue;
            }
            if self.inbox.stop.load(Ordering::Acquire) && self.hub.is_settled() && !self.has_work() {
                return;
            }
            match memory.gathering.left(Instant::now()) {
                // Nobody need ring: whatever comes is taken together.
                Some(left) if !self.hub.is_writing() => thread::park_timeout(left),
                _ => self.sleep(),
            }
        }
    }

    /// One turn: everything that has come in, then everything that is to go out. Whether there was anything.
    fn turn(&mut self, counters: &Counters, memory: &mut Memory) -> Result<bool, EngineError> {
        let now_ms = now_ms();
        counters.turns.add(1);
        let mut busy = self.take_in(now_ms, counters, &mut memory.gathering)?;
        busy |= self.take_mail(now_ms)?;
        busy |= self.take_commands(now_ms)?;
        self.hub.keep_up(now_ms, mono_ms())?;
        self.log_expiry();
        while let Some(read) = self.hub.next_read() {
            assert!(self.readers.submit(read).is_ok(), "the readers' queue holds all reads under way");
        }
        let now = Instant::now();
        if memory.gathering.left(now).is_none()
            && let Some(batch) = self.hub.next_batch(now_ms)?
        {
            memory.gathering.submitted(now);
            self.writer.submit(batch);
        }
        busy |= self.post_effects(&mut memory.notices, counters);
        busy |= self.post_mail();
        self.count(counters, &mut memory.gathering);
        Ok(busy)
    }

    /// Somebody has to set the machine's clock right.
    fn log_expiry(&mut self) {
        let hub = self.hub.id().0;
        match self.hub.take_expiry_change() {
            Some(true) => tracing::error!(
                hub,
                "the machine's clock has jumped: nothing expires and no device is unlinked until it is right again; \
                 if it is right now, restart the server"
            ),
            Some(false) => tracing::info!(hub, "the machine's clock is right again: expiry goes on"),
            None => {}
        }
    }

    fn count(&mut self, counters: &Counters, gathering: &mut Gathering) {
        let Counts { accepted, duplicate, rejected, log_reads, pushed, mail_refused, floors_moved } =
            self.hub.take_counts();
        gathering.messages += accepted;
        counters.messages_accepted.add(accepted);
        counters.messages_duplicate.add(duplicate);
        counters.messages_rejected.add(rejected);
        counters.log_reads.add(log_reads);
        counters.outbox_pushed.add(pushed);
        counters.mail_refused.add(mail_refused);
        counters.floors_moved.add(floors_moved);
        counters.outbox_behind.set(self.hub.untaken());
        counters.expiry_clock_ms.set(self.hub.expiry_clock_ms());
        counters.expiry_stopped.set(u64::from(self.hub.is_expiry_stopped()));
        counters.sessions.set(self.hub.sessions() as u64);
        counters.parked_commands.set(self.hub.parked() as u64);
    }

    fn take_in(&mut self, now_ms: u64, counters: &Counters, gathering: &mut Gathering) -> Result<bool, EngineError> {
        let mut busy = false;
        while let Some(number) = self.inbox.durable.pop() {
            self.hub.handle_durable(number, now_ms)?;
            self.hub.tell_retention(&self.retention);
            let gathers = gathering.durable(Instant::now());
            self.reactors.iter().for_each(|port| port.link.set_gathering(gathers));
            counters.batches.add(1);
            busy = true;
        }
        let mut read = false;
        for _ in 0..READS_A_TURN {
            let Some(result) = self.inbox.reads.pop() else { break };
            self.hub.handle_read(result, now_ms)?;
            read = true;
        }
        if read {
            self.hub.retry_parked(now_ms)?;
        }
        Ok(busy | read)
    }

    /// What other hubs say.
    fn take_mail(&mut self, now_ms: u64) -> Result<bool, EngineError> {
        let own = self.hub.id();
        let mut busy = false;
        for (other, port) in hub_ids().zip(&self.hubs).filter(|(other, _)| *other != own) {
            let mut taken = 0;
            while taken < MAIL_A_TURN && self.hub.has_room() {
                let Some(mail) = port.link.take(other, own) else { break };
                self.hub.handle_mail(mail, now_ms)?;
                taken += 1;
            }
            busy |= taken > 0;
        }
        Ok(busy)
    }

    /// What is to be said to other hubs. A full queue blocks nobody: the hub keeps what must arrive for its next turn,
    /// and the other hub has been rung for what is in the queue.
    fn post_mail(&mut self) -> bool {
        let own = self.hub.id();
        let mut touched: u64 = 0;
        let mut full: u64 = 0;
        for (to, mail) in self.hub.take_mail() {
            let port = self.hubs.get(to.index()).expect("the topology names hubs");
            let bit = 1 << to.0;
            // What comes behind something that found no room must not overtake it.
            let posted = if full & bit == 0 { port.link.post(own, to, mail) } else { Err(mail) };
            match posted {
                Ok(()) => touched |= bit,
                Err(mail) => {
                    full |= bit;
                    self.hub.refused_mail(to, mail);
                }
            }
        }
        for (_, port) in hub_ids().zip(&self.hubs).filter(|(to, _)| touched & (1 << to.0) != 0) {
            (port.bell)();
        }
        touched != 0
    }

    fn take_commands(&mut self, now_ms: u64) -> Result<bool, EngineError> {
        let mut busy = false;
        for port in &self.reactors {
            let mut taken = 0;
            while taken < COMMANDS_A_TURN && self.hub.has_room() {
                let Some(command) = port.link.take_command() else { break };
                self.hub.handle_command(command, now_ms)?;
                taken += 1;
            }
            if taken > 0 {
                busy = true;
                if port.link.reactor_waited() {
                    port.bell.ring();
                }
            }
        }
        Ok(busy)
    }

    fn post_effects(&mut self, notices: &mut Vec<Effect>, counters: &Counters) -> bool {
        let released = self.hub.take_released();
        if released.is_empty() && notices.is_empty() && !self.hub.is_hungry() {
            return false;
        }
        let mut touched = vec![false; self.reactors.len()];
        let earlier = std::mem::take(notices);
        for effect in earlier.into_iter().chain(released) {
            let reactor = usize::from(effect.session.reactor);
            let port = self.reactors.get(reactor).expect("addresses name reactors");
            let mut touch = || touched.get_mut(reactor).into_iter().for_each(|touched| *touched = true);
            if effect.kind.is_reply() {
                port.link.post_reply(effect);
                touch();
                continue;
            }
            if self.hub.is_void(&effect) {
                continue;
            }
            let begins = match effect.kind {
                EffectKind::SyncStart { online, .. } => Some((online, effect.session)),
                _ => None,
            };
            // Notices keep their order: none overtakes one that waits.
            let waits = effect.kind.is_notice() && !notices.is_empty();
            match if waits { Err(effect) } else { port.link.post_delivery(effect) } {
                Ok(()) => {
                    touch();
                    begins.into_iter().for_each(|(online, session)| self.hub.handle_posted_sync(online, session));
                }
                Err(notice) if notice.kind.is_notice() => notices.push(notice),
                Err(refused) => self.hub.handle_refused(refused),
            }
        }
        let mut busy = false;
        for (port, touched) in self.reactors.iter().zip(touched) {
            if touched {
                busy = true;
                counters.wakeups.add(u64::from(port.bell.ring()));
            }
        }
        if self.hub.is_hungry() && self.reactors.iter().all(|port| port.link.has_room_for_deliveries()) {
            self.hub.feed_hungry();
            // There may be reads to be made.
            busy = true;
        }
        busy
    }

    fn has_work(&self) -> bool {
        !self.inbox.durable.is_empty()
            || !self.inbox.reads.is_empty()
            || (self.hub.has_room() && (self.reactors.iter().any(|port| port.link.has_commands()) || self.has_mail()))
    }

    fn has_mail(&self) -> bool {
        let own = self.hub.id();
        hub_ids().zip(&self.hubs).any(|(other, port)| other != own && port.link.has_mail(other, own))
    }

    fn sleep(&self) {
        if self.hub.is_writing() {
            self.inbox.bell.announce_patient();
        } else {
            self.inbox.bell.announce();
        }
        if !self.has_work() {
            let company = self.hub.waits_for_company() || self.hub.is_hungry() || self.hub.has_unsent_mail();
            let wait = match (company, self.hub.has_untaken()) {
                (true, _) => COMPANY_WAIT,
                (false, true) => STREAMS_WAIT,
                (false, false) => IDLE_WAIT,
            };
            thread::park_timeout(wait);
        }
        self.inbox.bell.withdraw();
    }
}

/// The store cannot be read: nothing can be decided any more, and going on could only do harm.
fn fail(error: &EngineError) -> ! {
    tracing::error!(%error, "the store cannot be read; ending at once, nothing unacknowledged was promised");
    std::process::abort();
}
