//! What a hub does in a turn: moves things between its queues and the pure [`Hub`], and says when it may sleep. Has no
//! thread and no clock of its own, and never waits.

mod posting;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use culver_storage::batch::{Batch, BatchNumber};
use culver_storage::error::EngineError;
use culver_storage::filter::Retention;
use culver_storage::reader::{Read, ReadResult};
use culver_storage::topology::HubId;

use super::command::Command;
use super::effect::Effect;
use super::gathering::Gathering;
use super::{Counts, Hub};
use crate::clock::Clock;
use crate::crash_point::{self, CrashPoint};
use crate::mailbox::{Doorbell, HubLink, Link};
use crate::metrics::Counters;
use crate::space::Space;

/// Longest sleep while a batch waits for company, so that cursors are written in time; or while something is to be
/// posted that found no room.
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
    stop: AtomicBool,
}

impl Inbox {
    /// An inbox for so many results of reads, whose bell wakes by `wake`, which must also work before the hub sleeps.
    pub fn new(reads: usize, wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            durable: ArrayQueue::new(2),
            reads: ArrayQueue::new(reads),
            bell: Doorbell::new(wake),
            stop: AtomicBool::new(false),
        }
    }

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
        self.bell.ring();
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

impl HubPort {
    /// The hub that has this inbox. What mail brings waits as well as a command does for who waits for the disk.
    #[must_use]
    pub fn new(link: Arc<HubLink>, inbox: &Arc<Inbox>) -> Self {
        let inbox = Arc::clone(inbox);
        let ring = move || {
            inbox.bell.ring_gently();
        };
        Self { link, bell: Arc::new(ring) }
    }
}

/// What a hub's turn hands over: batches to its writer, and reads to the readers of its volume.
pub trait Disk {
    /// This is to be durable; there is no other under way.
    fn write(&mut self, batch: Batch);
    /// This is to be read.
    fn read(&mut self, read: Read);
}

/// A hub and its queues.
pub struct Driver {
    hub: Hub,
    inbox: Arc<Inbox>,
    /// The reactors, by number.
    reactors: Vec<ReactorPort>,
    /// The hubs, by number; the own place is never used.
    hubs: Vec<HubPort>,
    /// What the volume's compaction goes by.
    retention: Arc<Retention>,
    /// Whether there is room on the disks.
    space: Arc<Space>,
    /// Effects that must not be lost and found no room.
    notices: Vec<Effect>,
    gathering: Gathering,
    /// The batch under way moves cursors.
    moves_cursors: bool,
}

/// The numbers of hubs, ascending.
fn hub_ids() -> impl Iterator<Item = HubId> {
    (0..u16::MAX).map(HubId)
}

impl Driver {
    /// A hub with its inbox, the reactors and the hubs by number (its own place is never used), and what its volume's
    /// compaction goes by, and what says whether there is room on the disks.
    ///
    /// # Panics
    /// If the inbox does not hold the results of all reads that the hub may have under way.
    #[must_use]
    pub fn new(
        hub: Hub,
        inbox: Arc<Inbox>,
        reactors: Vec<ReactorPort>,
        hubs: Vec<HubPort>,
        retention: Arc<Retention>,
        space: Arc<Space>,
    ) -> Self {
        assert!(inbox.reads.capacity() >= hub.bounds().reads_outstanding, "there is room for what readers say");
        let (notices, gathering) = (Vec::new(), Gathering::default());
        Self { hub, inbox, reactors, hubs, retention, space, notices, gathering, moves_cursors: false }
    }

    /// The hub.
    #[must_use]
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The hub, to change it.
    pub fn hub_mut(&mut self) -> &mut Hub {
        &mut self.hub
    }

    /// Effects that must not be lost and found no room.
    #[must_use]
    pub fn notices(&self) -> usize {
        self.notices.len()
    }

    /// One turn: everything that has come in, then everything that is to go out. Whether there was anything.
    ///
    /// # Errors
    /// The engine could not be read: nothing can be decided any more.
    pub fn turn(&mut self, clock: &impl Clock, disk: &mut impl Disk, counters: &Counters) -> Result<bool, EngineError> {
        let now = clock.now();
        let now_ms = now.wall_ms;
        counters.turns.add(1);
        self.hub.set_space_low(self.space.is_low());
        self.hub.pass(now.mono_ms());
        let mut busy = self.take_in(now_ms, clock, counters)?;
        let mail = self.take_mail(now_ms)?;
        busy |= mail > 0;
        busy |= self.take_commands(now_ms, mail, clock)?;
        self.hub.keep_up(now_ms, now.mono_ms())?;
        self.log_expiry();
        while let Some(read) = self.hub.next_read() {
            disk.read(read);
        }
        let now_us = clock.mono_us();
        let waited = self.hub.cursors_since_ms.is_some();
        if self.gathering.left_us(now_us).is_none()
            && let Some(batch) = self.hub.next_batch(now_ms)?
        {
            self.moves_cursors = waited && self.hub.cursors_since_ms.is_none();
            self.gathering.submitted(now_us);
            disk.write(batch);
        }
        busy |= self.post_effects(counters);
        busy |= self.post_mail();
        self.count(counters);
        Ok(busy)
    }

    /// Whether it was told to stop and everything taken in is answered.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.inbox.stop.load(Ordering::Acquire) && self.hub.is_settled() && !self.has_work()
    }

    /// After a turn in which there was nothing: how long to sleep unless woken, and then [`Driver::wake_up`] comes
    /// next. `None`: there is something to do after all.
    pub fn plan_sleep(&mut self, clock: &impl Clock) -> Option<Duration> {
        if !self.hub.is_writing()
            && let Some(left_us) = self.gathering.left_us(clock.mono_us())
        {
            // Nobody need ring: whatever comes is taken together.
            return Some(Duration::from_micros(left_us));
        }
        if let Some(left_us) = self.gathering.logins_left_us(clock.mono_us()) {
            // Who brings more logins need not ring; the writer and readers do.
            self.inbox.bell.announce_patient();
            if self.has_results() || self.is_finished() {
                self.wake_up();
                return None;
            }
            return Some(Duration::from_micros(left_us));
        }
        if self.hub.is_writing() {
            self.inbox.bell.announce_patient();
        } else {
            self.inbox.bell.announce();
        }
        if self.has_work() || self.is_finished() {
            self.wake_up();
            return None;
        }
        let unposted = !self.notices.is_empty() || self.hub.is_hungry() || self.hub.has_unsent_mail();
        let company = unposted || self.hub.waits_for_company();
        Some(match (company, self.hub.has_untaken()) {
            (true, _) => COMPANY_WAIT,
            (false, true) => STREAMS_WAIT,
            (false, false) => IDLE_WAIT,
        })
    }

    /// It is awake: nobody need ring.
    pub fn wake_up(&mut self) {
        self.inbox.bell.withdraw();
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

    fn count(&mut self, counters: &Counters) {
        let Counts {
            accepted,
            duplicate,
            rejected,
            limited,
            logins_limited,
            log_reads,
            pushed,
            mail_refused,
            floors_moved,
        } = self.hub.take_counts();
        self.gathering.messages += accepted;
        counters.messages_accepted.add(accepted);
        counters.messages_duplicate.add(duplicate);
        counters.messages_rejected.add(rejected);
        counters.sends_limited.add(limited);
        counters.logins_limited.add(logins_limited);
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

    fn take_in(&mut self, now_ms: u64, clock: &impl Clock, counters: &Counters) -> Result<bool, EngineError> {
        let mut busy = false;
        while let Some(number) = self.inbox.durable.pop() {
            self.hub.handle_durable(number, now_ms)?;
            self.hub.tell_retention(&self.retention);
            let gathers = self.gathering.durable(clock.mono_us());
            self.reactors.iter().for_each(|port| port.link.set_gathering(gathers));
            counters.batches.add(1);
            if std::mem::take(&mut self.moves_cursors) {
                crash_point::reached(CrashPoint::CursorSaved);
            }
            busy = true;
        }
        let mut read = false;
        for _ in 0..self.hub.bounds().reads_a_turn {
            let Some(result) = self.inbox.reads.pop() else { break };
            self.hub.handle_read(result, now_ms)?;
            read = true;
        }
        if read {
            self.hub.retry_parked(now_ms)?;
        }
        Ok(busy | read)
    }

    /// What other hubs say: how much it was.
    fn take_mail(&mut self, now_ms: u64) -> Result<u64, EngineError> {
        let (own, most) = (self.hub.id(), self.hub.bounds().mail_a_turn);
        let mut all = 0;
        for (other, port) in hub_ids().zip(&self.hubs).filter(|(other, _)| *other != own) {
            let mut taken = 0;
            while taken < most && self.hub.has_room() {
                let Some(mail) = port.link.take(other, own) else { break };
                self.hub.handle_mail(mail, now_ms)?;
                taken += 1;
            }
            all += taken as u64;
        }
        Ok(all)
    }

    /// `others`: what was handled before them in this turn.
    fn take_commands(&mut self, now_ms: u64, mut others: u64, clock: &impl Clock) -> Result<bool, EngineError> {
        let most = self.hub.bounds().commands_a_turn;
        let mut busy = false;
        let mut logins = 0;
        for port in &self.reactors {
            let mut taken = 0;
            while taken < most && self.hub.has_room() {
                let Some(command) = port.link.take_command() else { break };
                *(if matches!(command, Command::Login { .. }) { &mut logins } else { &mut others }) += 1;
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
        if logins + others > 0 {
            self.gathering.handled(logins, others, clock.mono_us());
        }
        Ok(busy)
    }

    /// Whether the writer or a reader has said something.
    fn has_results(&self) -> bool {
        !self.inbox.durable.is_empty() || !self.inbox.reads.is_empty()
    }

    fn has_work(&self) -> bool {
        self.has_results()
            || (self.hub.has_room() && (self.reactors.iter().any(|port| port.link.has_commands()) || self.has_mail()))
    }

    fn has_mail(&self) -> bool {
        let own = self.hub.id();
        hub_ids().zip(&self.hubs).any(|(other, port)| other != own && port.link.has_mail(other, own))
    }
}
