//! The thread of a reactor: one epoll instance, one listener, one clock. It waits for events and tells the pure
//! [`Reactor`] of them; never looks into a connection. It may have a table of descriptors to itself ([`super::threads`]).

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam::channel::Receiver;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::alarm::Alarm;
use super::hubs::ToHub;
use super::listener::Listener;
use super::parting::Order;
use super::worst::Question;
use super::{Reactor, Surroundings, Wait};
use crate::clock::{Clock, SystemClock};
use crate::mailbox::Doorbell;
use crate::sys::unacknowledged_len;

/// Events taken from the kernel at once: however dear each may be (a login with a token costs as much as ten messages),
/// what is ready to be written waits no longer than for these.
const EVENTS_MAX: usize = 16;
/// Connections accepted in one turn, for the same reason, those among them that are told at once to come later: ten
/// microseconds each, so that in a storm who is connected waits for less than a tenth of a millisecond on their account.
/// Where so many sockets have something to say that a turn has no room for all, the listener has its turn among them, and
/// the storm waits in its queue.
const ACCEPTS_A_TURN: usize = 8;
/// How long sockets gather what they have while a hub gathers too; what hubs have to say ends it at once.
const GATHER: Duration = Duration::from_micros(250);

/// How long a reactor takes no connections when the machine had no descriptor or memory for one.
const PAUSE_US: u64 = 1_000_000;

/// No slot has such a number.
const LISTENER: Token = Token(usize::MAX);
const ALARM: Token = Token(usize::MAX - 1);
const _: () = assert!(usize::BITS == 64, "a tag has 64 bits");

/// What the server is doing; all reactors' threads watch it.
#[derive(Debug, Default)]
pub struct Stage {
    is_leaving: AtomicBool,
    /// How often the order has changed: who has seen as many has nothing to look for.
    changes: AtomicU32,
    /// What clients are asked, where the server stays. Locked only when it changes.
    order: Mutex<Option<Arc<Order>>>,
}

impl Stage {
    /// From now on: tell clients to go, answer what is under way, end.
    pub fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
    }

    /// Whether the server is leaving.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    /// Ask clients to go, and stay.
    pub fn drain(&self, order: Order) {
        self.change(Some(Arc::new(order)));
    }

    /// Ask nobody any more.
    pub fn abort_drain(&self) {
        self.change(None);
    }

    fn change(&self, order: Option<Arc<Order>>) {
        let mut place = self.order.lock().expect("a panic ends the process");
        *place = order;
        self.changes.fetch_add(1, Ordering::Release);
    }

    fn has_changed(&self, seen: u32) -> bool {
        self.changes.load(Ordering::Acquire) != seen
    }

    /// The order, and how often it has changed until it was this.
    fn look(&self) -> (u32, Option<Arc<Order>>) {
        let place = self.order.lock().expect("a panic ends the process");
        (self.changes.load(Ordering::Acquire), place.clone())
    }
}

/// A reactor with what its thread watches.
pub struct ReactorThread {
    poll: Poll,
    alarm: Alarm,
    bell: Arc<Doorbell>,
    stage: Arc<Stage>,
    /// Changes of the stage that it has seen.
    changes_seen: u32,
    /// `None`: the server leaves.
    listener: Option<Listener>,
    /// Until when it takes no connections, for one could not be had, or as many were taken as may be.
    paused_until_us: Option<u64>,
    /// Connections accepted in one turn: more and more while there are some in every turn. So none is asked for in
    /// vain where they come one by one.
    accepts: usize,
    /// Turns, and the last that accepted as many as it might.
    turns: u64,
    accepted_all_in: u64,
    /// The kernel has more events than were taken.
    more_events: bool,
    /// What operators want to know: which connections are the worst.
    questions: Receiver<Question>,
    reactor: Reactor<TcpStream>,
}

/// What a reactor's thread needs to begin.
pub struct Parts {
    /// Which of the reactors it is.
    pub number: u16,
    /// Its sockets are watched by this.
    pub poll: Poll,
    /// Its end of what wakes it.
    pub alarm: Alarm,
    /// How others wake it.
    pub bell: Arc<Doorbell>,
    /// Where connections come from.
    pub listener: Listener,
    /// The hubs by number.
    pub hubs: Vec<ToHub>,
    /// The rest of the server.
    pub around: Surroundings,
    /// What the server is doing.
    pub stage: Arc<Stage>,
    /// What operators want to know.
    pub questions: Receiver<Question>,
}

impl ReactorThread {
    /// A reactor without connections.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn new(parts: Parts) -> io::Result<Self> {
        let Parts { number, poll, alarm, bell, mut listener, hubs, around, stage, questions } = parts;
        alarm.watch(poll.registry(), ALARM)?;
        listener.step_forward(&poll, LISTENER)?;
        let reactor = Reactor::new(number, hubs, around);
        let listener = Some(listener);
        Ok(Self {
            poll,
            alarm,
            bell,
            stage,
            changes_seen: 0,
            listener,
            paused_until_us: None,
            accepts: 1,
            turns: 0,
            accepted_all_in: 0,
            more_events: false,
            questions,
            reactor,
        })
    }

    /// Runs until the server leaves and everything under way is answered and written.
    ///
    /// # Errors
    /// Those of epoll_wait(2).
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            self.wait(&mut events)?;
            self.turns += 1;
            self.reactor.begin_turn(SystemClock.now());
            let mut seen = 0;
            for event in &events {
                seen += 1;
                match event.token() {
                    LISTENER => self.accept(),
                    ALARM => self.alarm.silence(),
                    Token(tag) => {
                        // What was said of a connection that has gone since is not meant for who has its slot now.
                        let Some(slot) = self.reactor.slot_of(tag as u64) else { continue };
                        if event.is_writable() {
                            self.reactor.handle_writable(slot);
                        }
                        if event.is_read_closed() {
                            self.reactor.handle_closed(slot);
                        } else if event.is_readable() || event.is_error() {
                            self.reactor.handle_readable(slot, false);
                        }
                    }
                }
            }
            self.more_events = seen == EVENTS_MAX;
            if self.stage.is_leaving() {
                // Closing it takes it out of the poll.
                self.listener = None;
                self.reactor.leave();
            } else {
                self.look_at_stage();
            }
            self.reactor.end_turn();
            self.watch_blocked();
            self.answer_question();
            self.look_at_listener();
            if self.reactor.has_left() {
                return Ok(());
            }
        }
    }

    /// Does as the operators want it.
    fn look_at_stage(&mut self) {
        if self.stage.has_changed(self.changes_seen) {
            let (changes, order) = self.stage.look();
            self.changes_seen = changes;
            match order {
                Some(order) => self.reactor.drain(&order),
                None => self.reactor.abort_drain(),
            }
        }
    }

    /// Waits for events; not at all where there is something to do already.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        self.bell.announce();
        let wait = if self.more_events || !self.questions.is_empty() { Wait::Not } else { self.reactor.plan_wait() };
        let has_news = match self.stage.is_leaving() {
            true => self.listener.is_some(),
            false => self.stage.has_changed(self.changes_seen),
        };
        let wait = if has_news { Wait::Not } else { wait };
        let timeout = match wait {
            Wait::Not => Duration::ZERO,
            Wait::For(longest) => {
                if self.reactor.take_gathering() {
                    self.alarm.wait(GATHER);
                }
                longest
            }
        };
        let paused_us = self.paused_until_us.map(|until_us| until_us.saturating_sub(self.reactor.mono_us()));
        let timeout = paused_us.map_or(timeout, |paused_us| timeout.min(Duration::from_micros(paused_us)));
        let polled = self.poll.poll(events, Some(timeout));
        self.bell.withdraw();
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other,
        }
    }

    /// Sockets are watched for when they take bytes only once one has not taken all: at first each does, and to be told
    /// so would wake this thread once more for every login.
    fn watch_blocked(&mut self) {
        for slot in self.reactor.take_newly_blocked() {
            let tag = self.reactor.tag(slot);
            let Some((tag, stream)) = tag.zip(self.reactor.socket_mut(slot)) else { continue };
            let tag = Token(usize::try_from(tag).expect("64 bits"));
            let interest = Interest::READABLE | Interest::WRITABLE;
            if let Err(error) = self.poll.registry().reregister(stream, tag, interest) {
                tracing::error!(%error, "a connection that is blocked cannot be watched: it ends by its keep-alive");
            }
        }
    }

    /// One a turn: they have time.
    fn answer_question(&mut self) {
        let Ok(question) = self.questions.try_recv() else { return };
        let worst = self.reactor.worst(question.count);
        let worst = worst.into_iter().map(|(slot, mut offender)| {
            if let Some(stream) = self.reactor.socket_mut(slot) {
                offender.peer = stream.peer_addr().ok();
                offender.kernel_unsent_bytes = unacknowledged_len(stream.as_fd()).ok();
            }
            offender
        });
        let worst = worst.collect();
        question.answer(self.reactor.number(), worst);
    }

    fn accept(&mut self) {
        let goes_on = self.accepted_all_in + 1 == self.turns;
        self.accepts = if goes_on { (self.accepts * 2).min(ACCEPTS_A_TURN) } else { 1 };
        for _ in 0..self.accepts {
            if self.reactor.is_full() {
                self.change_listener(Listener::step_back); // the others may have room by now
            }
            if let Some(pause_us) = self.reactor.leaves_in_queue_us() {
                self.change_listener(Listener::pause);
                self.paused_until_us = Some(self.reactor.mono_us().saturating_add(pause_us));
                return;
            }
            let Some(listener) = &self.listener else { return };
            let (stream, source) = match listener.accept() {
                Ok(Some(accepted)) => accepted,
                Ok(None) => return,
                Err(error) => return self.pause(&error),
            };
            let Some(slot) = self.reactor.accept(stream, source) else { continue };
            let tag = self.reactor.tag(slot).expect("just accepted");
            let tag = Token(usize::try_from(tag).expect("64 bits"));
            let stream = self.reactor.socket_mut(slot).expect("just accepted");
            if let Err(error) = self.poll.registry().register(stream, tag, Interest::READABLE) {
                self.reactor.discard(slot);
                return self.pause(&error);
            }
            if self.reactor.is_full() {
                self.change_listener(Listener::step_back);
            }
        }
        self.accepted_all_in = self.turns;
    }

    /// Out of descriptors or memory: those who wait can wait a little longer.
    fn pause(&mut self, error: &io::Error) {
        tracing::warn!(%error, "a connection could not be had; no other for a second");
        self.change_listener(Listener::pause);
        self.pause_until_later();
    }

    fn pause_until_later(&mut self) {
        self.paused_until_us = Some(self.reactor.mono_us().saturating_add(PAUSE_US));
    }

    /// Takes connections again, if it had stepped back and has room, or had paused and that is over.
    fn look_at_listener(&mut self) {
        let Some(listener) = &self.listener else { return };
        if listener.is_watched() || self.paused_until_us.is_some_and(|until_us| self.reactor.mono_us() < until_us) {
            return;
        }
        if listener.is_listening() || self.reactor.has_room_again() {
            self.paused_until_us = None;
            if !self.change_listener(|listener, poll| listener.step_forward(poll, LISTENER)) {
                self.pause_until_later();
            }
        }
    }

    /// Whether it does as it should.
    fn change_listener(&mut self, change: impl FnOnce(&mut Listener, &Poll) -> io::Result<()>) -> bool {
        let changed = self.listener.as_mut().map_or(Ok(()), |listener| change(listener, &self.poll));
        changed.inspect_err(|error| tracing::error!(%error, "the listener does not do as it should")).is_ok()
    }
}
