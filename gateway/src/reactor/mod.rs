//! A reactor: one thread, one epoll instance, one listener, and every connection the kernel gave to it.
//!
//! A turn is: wait for events; read every readable socket once, handle its records, post commands; take the hubs'
//! effects; then write, once for each connection that has something to say. Nothing here waits for anything else:
//! a connection whose command finds no room in a hub's mailbox is put aside and read again when there is room.

pub mod alarm;
pub mod buffers;
pub mod connection;
mod effects;
pub mod hubs;
pub mod listener;
mod serve;
pub mod timer;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use culver_protocol::id::Incarnation;
use culver_storage::topology::{HubId, Topology};
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};

use self::alarm::Alarm;
use self::buffers::Buffers;
use self::connection::{Connection, Life};
use self::hubs::{Hubs, ToHub};
use self::timer::Wheel;
use crate::auth::Authenticator;
use crate::config::{Config, KeepAlive};
use crate::hub::command::Command;
use crate::mailbox::Doorbell;
use crate::metrics::{Counters, Metrics};
use crate::session::UNFINISHED_LEN_MAX;
use crate::slab::Slab;

/// The one buffer that a reactor reads into.
pub const READ_LEN: usize = 128 * 1024;
const _: () = assert!(UNFINISHED_LEN_MAX < READ_LEN);
/// Events taken from the kernel at once: however dear each may be (a login with a token costs as much as ten messages),
/// what is ready to be written waits no longer than for these.
const EVENTS_MAX: usize = 16;
/// Connections accepted in one turn, for the same reason.
const ACCEPTS_A_TURN: usize = 8;
/// Connections looked at in one turn because their time has come: ten thousand that never log in all run out at once.
const DUE_A_TURN: usize = 16;
/// And the time until the next ones: they have waited for seconds already.
const DUE_PACE: Duration = Duration::from_millis(1);
/// Effects of one hub taken in one turn.
const EFFECTS_A_TURN: usize = 8192;
/// Pages of the log among them: each is as much work as a hundred messages.
const PAGES_A_TURN: usize = 16;
/// Reads of one connection in one turn.
const READS_A_TURN: usize = 4;
/// Unsent bytes beyond which a connection is not read any more, and is ended where the server itself has more to say.
const UNSENT_LEN_MAX: usize = 256 * 1024;
/// Seconds in which a connection that was told an error may take it.
const ENDING_S: u32 = 2;
/// Longest wait for events: the timer wheel's tick.
const TICK: Duration = Duration::from_secs(1);
/// How long sockets gather what they have while a hub gathers too; what hubs have to say ends it at once.
const GATHER: Duration = Duration::from_micros(250);

const LISTENER: Token = Token(usize::MAX);
const ALARM: Token = Token(usize::MAX - 1);

/// What the server is doing; all reactors watch it.
#[derive(Debug, Default)]
pub struct Stage(AtomicU8);

impl Stage {
    const RUNNING: u8 = 0;
    const LEAVING: u8 = 1;

    /// From now on: tell clients to go, answer what is under way, end.
    pub fn leave(&self) {
        self.0.store(Self::LEAVING, Ordering::Release);
    }

    /// Whether the server is leaving.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.0.load(Ordering::Acquire) != Self::RUNNING
    }
}

/// Numbers for sessions, ascending over all reactors, so that a hub knows which of two began later.
#[derive(Debug, Default)]
pub struct Epochs(AtomicU32);

impl Epochs {
    /// The next number; never 0.
    pub fn take(&self) -> u32 {
        loop {
            let next = self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if next != 0 {
                return next;
            }
        }
    }
}

/// What a reactor shares with the rest of the server.
#[derive(Clone)]
pub struct Surroundings {
    /// Settings.
    pub config: Arc<Config>,
    /// Checks logins.
    pub authenticator: Arc<Authenticator>,
    /// Of the data directory.
    pub incarnation: Incarnation,
    /// Which hub owns what.
    pub topology: Arc<Topology>,
    /// What the server is doing.
    pub stage: Arc<Stage>,
    /// Counters of all threads.
    pub metrics: Arc<Metrics>,
    /// Numbers of sessions, of all reactors.
    pub epochs: Arc<Epochs>,
    /// Connections that this reactor may hold.
    pub connections_max: usize,
}

/// One reactor.
pub struct Reactor {
    number: u16,
    poll: Poll,
    alarm: Arc<Alarm>,
    listener: Option<TcpListener>,
    hubs: Hubs,
    bell: Arc<Doorbell>,
    around: Surroundings,
    connections: Slab<Connection>,
    wheel: Wheel,
    buffers: Buffers,
    read_buffer: Vec<u8>,
    commands: Vec<(HubId, Command)>,
    /// Connections with something to write in this turn.
    to_flush: Vec<u32>,
    /// Connections to be read again: their commands found no room, or they had their share of the turn.
    to_read: VecDeque<u32>,
    /// Connections whose time has come.
    due: VecDeque<u32>,
    looked_at_due: Instant,
    /// The reads wait for room in a hub's mailbox, not just for the next turn.
    stalled: bool,
    /// The kernel has more events than were taken.
    more_events: bool,
    /// Commands were posted since the sockets last gathered.
    had_commands: bool,
    next_generation: u32,
    started: Instant,
    /// Seconds from then to the start of this turn. The wheel follows at the turn's end.
    now: u32,
    leaving: bool,
}

impl Reactor {
    /// A reactor with its listener and the hubs by number.
    ///
    /// # Errors
    /// Those of epoll_create(2) and eventfd(2).
    pub fn new(number: u16, mut listener: TcpListener, hubs: Vec<ToHub>, around: Surroundings) -> io::Result<Self> {
        let poll = Poll::new()?;
        let alarm = Arc::new(Alarm::new(poll.registry(), ALARM)?);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let to_set_off = Arc::clone(&alarm);
        let bell = Arc::new(Doorbell::new(move || to_set_off.set_off()));
        Ok(Self {
            number,
            poll,
            alarm,
            listener: Some(listener),
            hubs: Hubs::new(hubs),
            bell,
            around,
            connections: Slab::default(),
            wheel: Wheel::default(),
            buffers: Buffers::default(),
            read_buffer: vec![0; READ_LEN],
            commands: Vec::new(),
            to_flush: Vec::new(),
            to_read: VecDeque::new(),
            due: VecDeque::new(),
            looked_at_due: Instant::now(),
            stalled: false,
            more_events: false,
            had_commands: false,
            next_generation: 1,
            started: Instant::now(),
            now: 0,
            leaving: false,
        })
    }

    /// The name of its thread.
    #[must_use]
    pub fn name(&self) -> String {
        format!("reactor-{}", self.number)
    }

    /// Wakes this reactor.
    #[must_use]
    pub fn bell(&self) -> Arc<Doorbell> {
        Arc::clone(&self.bell)
    }

    /// Runs until the server leaves and everything under way is answered and written.
    ///
    /// # Errors
    /// Those of epoll_wait(2).
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut left_at = None;
        loop {
            self.wait(&mut events)?;
            self.now = self.seconds();
            self.counters().turns.add(1);
            let mut seen = 0;
            for event in &events {
                seen += 1;
                match event.token() {
                    LISTENER => self.accept(),
                    ALARM => self.alarm.silence(),
                    Token(slot) => {
                        let slot = u32::try_from(slot).expect("tokens are slots");
                        if event.is_writable() {
                            self.writable(slot);
                        }
                        if event.is_readable() || event.is_read_closed() || event.is_error() {
                            self.readable(slot, event.is_read_closed());
                        }
                    }
                }
            }
            self.more_events = seen == EVENTS_MAX;
            self.read_again();
            self.take_effects();
            self.tick();
            if self.around.stage.is_leaving() {
                let left_at = *left_at.get_or_insert_with(|| {
                    self.say_goodbye();
                    Instant::now()
                });
                if self.has_left(left_at) {
                    return Ok(());
                }
            }
            self.post_pending();
            self.flush_all();
            let (posted, woken) = self.hubs.ring();
            self.had_commands |= posted;
            self.counters().wakeups.add(woken);
        }
    }

    /// Waits for events; not at all where there is something to do already.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let ready = self.more_events || (!self.to_read.is_empty() && !self.stalled);
        self.bell.announce();
        let busy = ready
            || self.hubs.have_effects()
            || (self.stalled && self.hubs.wait_for_room())
            || self.hubs.wait_for_posting();
        let timeout = if busy {
            Duration::ZERO
        } else if !self.due.is_empty() {
            DUE_PACE
        } else if self.leaving {
            Duration::from_millis(20)
        } else {
            TICK
        };
        if !busy && !self.leaving && self.hubs.gather() && std::mem::take(&mut self.had_commands) {
            self.alarm.wait(GATHER);
        }
        let polled = self.poll.poll(events, Some(timeout));
        self.bell.withdraw();
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other,
        }
    }

    fn counters(&self) -> &Counters {
        self.around.metrics.reactor(usize::from(self.number))
    }

    fn keep_alive(&self) -> KeepAlive {
        self.around.config.keep_alive
    }

    fn seconds(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).expect("136 years of seconds fit")
    }

    /// Has a connection, which is not in the wheel, looked at after so many seconds and never earlier: of the
    /// present one a part is over.
    fn watch(&mut self, slot: u32, seconds: u32) {
        let due = self.now.saturating_add(seconds).saturating_add(1);
        self.wheel.insert(&mut self.connections, slot, due - self.wheel.now());
    }

    fn accept(&mut self) {
        let now = self.now;
        let mut accepted = 0;
        while let Some(listener) = &self.listener {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors or memory, or the peer is gone already: the others are still there.
                    tracing::warn!(%error, "a connection could not be accepted");
                    return;
                }
            };
            if self.connections.len() >= self.around.connections_max {
                self.turn_away(&mut stream);
                continue;
            }
            let generation = self.next_generation;
            self.next_generation = self.next_generation.wrapping_add(1).max(1);
            let slot = self.connections.insert(Connection::new(stream, generation, now));
            let connection = self.connections.get_mut(slot).expect("just inserted");
            let stream = connection.stream().expect("just opened");
            let interest = Interest::READABLE | Interest::WRITABLE;
            if let Err(error) = self.poll.registry().register(stream, Token(slot as usize), interest) {
                tracing::warn!(%error, "a connection could not be watched");
                self.connections.remove(slot);
                continue;
            }
            let login_s = u32::try_from(self.around.config.login_timeout_s).unwrap_or(u32::MAX);
            self.watch(slot, login_s);
            self.counters().connections.add(1);
            accepted += 1;
            if accepted == ACCEPTS_A_TURN {
                // Edge-triggered: the rest would not be announced again.
                self.accept_again();
                return;
            }
        }
    }

    fn accept_again(&mut self) {
        if let Some(listener) = &mut self.listener
            && let Err(error) = self.poll.registry().reregister(listener, LISTENER, Interest::READABLE)
        {
            tracing::error!(%error, "the listener cannot be watched any more");
        }
    }

    /// Whether everything has been answered and written, or the time for it is over.
    fn has_left(&mut self, left_at: Instant) -> bool {
        let flush = Duration::from_secs(self.around.config.shutdown.flush_s);
        let overdue = left_at.elapsed() > flush;
        let owed = self.hubs.owed() > 0 || self.hubs.have_effects();
        let unsent = self.connections.indexes().any(|slot| {
            self.connections
                .get(slot)
                .is_some_and(|connection| connection.life != Life::Closed && connection.outgoing != buffers::NO_BUFFER)
        });
        if overdue && (owed || unsent) {
            tracing::warn!(replies_owed = self.hubs.owed(), "not everything could be written before the time was over");
        }
        overdue || (!owed && !unsent)
    }
}
