//! A reactor: every connection that one thread was given, from its first byte to its last. Pure: it never looks at a
//! clock, waits or watches a socket; [`thread`] does, and tells it.
//!
//! A turn is: read every socket that has become readable, handle its records, post commands; take the hubs' effects;
//! then write, once for each connection that has something to say. Nothing here waits for anything else:
//! a connection whose command finds no room in a hub's mailbox is put aside and read again when there is room.

pub mod admission;
pub mod alarm;
pub mod buffers;
pub mod ciphers;
mod closing;
pub mod connection;
mod effects;
pub mod entering;
pub mod hubs;
pub mod listener;
pub mod parting;
mod serve;
mod shedding;
pub mod socket;
pub mod thread;
pub mod threads;
pub mod timer;
pub mod unsent;
pub mod worst;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use culver_protocol::crypto::Secret;
use culver_protocol::id::Incarnation;
use culver_storage::topology::{HubId, Topology};

use self::admission::Admission;
use self::buffers::Buffers;
use self::ciphers::Ciphers;
use self::connection::{Connection, Life};
use self::entering::Entering;
use self::hubs::{Hubs, ToHub};
use self::parting::Parting;
use self::shedding::Shedding;
use self::socket::Socket;
use self::timer::Wheel;
use self::unsent::{Blocked, Unsent};
use self::worst::Offender;
use crate::auth::Authenticator;
use crate::buckets::{Level, RATE_MAX};
use crate::clock::Now;
use crate::config::{Config, KeepAlive};
use crate::crash_point::Unwritten;
use crate::hub::command::Command;
use crate::metrics::{Counters, Metrics};
use crate::session::handshakes::{BURST_US, Handshakes};
use crate::session::records::Records;
use crate::session::{Offer, Session, UNFINISHED_LEN_MAX};
use crate::slab::Slab;

/// Connections a second, for each core, whose peers have gone. Each costs some 30 microseconds, so that this is a quarter
/// of the time there is.
pub const CLOSINGS_PER_S: u32 = 8_000;
/// So many at once, of a reactor.
const CLOSINGS_AT_ONCE: u32 = 16;
/// Unsent bytes of a connection, where nothing else is said.
pub const UNSENT_LEN_MAX: usize = 256 * 1024;
/// Bytes that unfinished logins may hold in buffers, of all connections of a reactor together.
const OPENING_LEN_MAX: usize = 4 * 1024 * 1024;
/// Seconds in which a connection that was told an error may take it.
const ENDING_S: u32 = 2;
/// The time between two looks at connections whose time has come: they have waited for seconds already.
const DUE_PACE_US: u64 = 1_000;
/// The time between two looks whether a hub has let a session in whose client has said more already.
const ENTERING_PACE_US: u64 = 1_000;
/// A reactor that was full takes connections again when this part of its room is free.
const ROOM_AGAIN: usize = 64;
/// Longest wait: the timer wheel's tick.
const TICK: Duration = Duration::from_micros(TICK_US);
const TICK_US: u64 = 1_000_000;
/// Longest wait while the server leaves.
const LEAVING_TICK: Duration = Duration::from_millis(20);

/// How much a reactor does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes read at once, together with those of an unfinished frame before them.
    pub read_len: usize,
    /// Reads of one connection in one turn.
    pub reads_a_turn: usize,
    /// Effects of one hub taken in one turn.
    pub effects_a_turn: usize,
    /// Pages of the log among them: each is as much work as a hundred messages.
    pub pages_a_turn: usize,
    /// Connections looked at in one turn because their time has come: ten thousand that never log in all run out at
    /// once.
    pub due_a_turn: usize,
    /// Connections looked at in one turn to ask their clients to go, or to end them.
    pub partings_a_turn: usize,
    /// Unsent bytes beyond which a connection is not read any more, and is ended where the server itself has more to
    /// say.
    pub unsent_len: usize,
    /// Bytes that sockets have not taken, of all connections together: beyond it those with the most are ended.
    pub unsent_all_len: usize,
    /// Connections a second whose peers have gone: when half a million go at once, those who stay do not wait for it.
    pub closings_per_s: u32,
    /// Longest wait of a receipt, in microseconds, for what else goes to its session.
    pub receipt_wait_us: u64,
    /// What handshakes may take at once, in microseconds, of what they have not taken before.
    pub handshake_burst_us: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        const READ_LEN: usize = 128 * 1024;
        const _: () = assert!(UNFINISHED_LEN_MAX < READ_LEN);
        Self {
            read_len: READ_LEN,
            reads_a_turn: 4,
            effects_a_turn: 8192,
            pages_a_turn: 16,
            due_a_turn: 16,
            partings_a_turn: 64,
            unsent_len: UNSENT_LEN_MAX,
            unsent_all_len: 64 << 20,
            closings_per_s: CLOSINGS_PER_S,
            receipt_wait_us: 15_000,
            handshake_burst_us: BURST_US,
        }
    }
}

impl Bounds {
    /// Of each of so many reactors on so many cores.
    #[must_use]
    pub fn of_each(config: &Config, reactors: usize, cores: usize) -> Self {
        let [cores, parts] = [cores, reactors.max(1)].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        let closings_per_s = CLOSINGS_PER_S.saturating_mul(cores).div_ceil(parts).min(RATE_MAX);
        Self { unsent_all_len: config.peers.unsent_len_of_each(reactors), closings_per_s, ..Self::default() }
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
    /// Counters of all threads.
    pub metrics: Arc<Metrics>,
    /// Numbers of sessions, of all reactors.
    pub epochs: Arc<Epochs>,
    /// What of encryption is offered to clients.
    pub offer: Arc<Offer>,
    /// Fresh secrets.
    pub entropy: Arc<dyn Fn() -> Secret + Send + Sync>,
    /// Connections that this reactor may hold.
    pub connections_max: usize,
    /// How fast connections may come to this reactor.
    pub logins: admission::Limits,
    /// What handshakes may take of this reactor's time, in millionths.
    pub handshake_ppm: u32,
    /// How much it does at once.
    pub bounds: Bounds,
}

/// How long a reactor may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all: there is something to do.
    Not,
    /// Until a socket has something or the bell rings, but no longer than this.
    For(Duration),
}

/// One reactor.
pub struct Reactor<S> {
    number: u16,
    hubs: Hubs,
    around: Surroundings,
    connections: Slab<Connection<S>>,
    wheel: Wheel,
    buffers: Buffers,
    ciphers: Ciphers,
    handshakes: Handshakes,
    entering: Entering,
    admission: Admission,
    shedding: Shedding,
    /// Bytes of unfinished logins that buffers hold.
    opening_len: usize,
    read_buffer: Vec<u8>,
    commands: Vec<(HubId, Command)>,
    /// Connections with something to write in this turn.
    to_flush: Vec<u32>,
    /// Connections with nothing to write but receipts, with their generations, and until when those wait.
    to_flush_soon: VecDeque<(u64, u32, u32)>,
    /// Connections whose sockets took not everything in this turn: somebody must say when they take more.
    newly_blocked: Vec<u32>,
    /// Those sockets, and what they have left.
    unsent: Unsent,
    /// Nothing in ordinary builds.
    unwritten: Unwritten,
    /// Connections to be read again: their commands found no room, or they had their share of the turn.
    to_read: VecDeque<u32>,
    /// Connections whose handshakes wait for a later turn.
    to_admit: VecDeque<u32>,
    /// Connections whose peers have gone, and that are looked at when their turn comes.
    closing: VecDeque<u32>,
    closings: Level,
    /// Connections whose time has come.
    due: VecDeque<u32>,
    looked_at_due_us: u64,
    /// The reads wait for room in a hub's mailbox, not just for the next turn.
    stalled: bool,
    /// Commands were posted since the sockets last gathered.
    had_commands: bool,
    next_generation: u32,
    /// When the first turn began.
    started_us: Option<u64>,
    /// When this turn began, by the clock that never jumps.
    mono_us: u64,
    /// And in milliseconds since 1970.
    wall_ms: u64,
    /// Seconds from the first turn to this one. The wheel follows at the turn's end.
    now: u32,
    /// Clients are asked to go.
    parting: Option<Parting>,
    /// The server leaves.
    is_leaving: bool,
    /// The first connection that was found to have unsent bytes, where it is waited for that none has.
    last_unsent: Option<u32>,
    has_left: bool,
}

impl<S: Socket> Reactor<S> {
    /// A reactor without connections, and the hubs by number.
    #[must_use]
    pub fn new(number: u16, hubs: Vec<ToHub>, around: Surroundings) -> Self {
        // Behind the longest unfinished frame at least one byte is read.
        let buffer_len = around.bounds.read_len.max(UNFINISHED_LEN_MAX + 1);
        let handshakes = Handshakes::new(around.handshake_ppm).with_burst(around.bounds.handshake_burst_us);
        let seed = (around.entropy)();
        let seed = u64::from_be_bytes(*seed.as_slice().first_chunk().expect("a secret is longer"));
        let admission = Admission::new(around.logins, seed);
        Self {
            number,
            hubs: Hubs::new(hubs),
            around,
            connections: Slab::default(),
            wheel: Wheel::default(),
            buffers: Buffers::default(),
            ciphers: Ciphers::default(),
            handshakes,
            entering: Entering::default(),
            admission,
            shedding: Shedding::default(),
            opening_len: 0,
            read_buffer: vec![0; buffer_len],
            commands: Vec::new(),
            to_flush: Vec::new(),
            to_flush_soon: VecDeque::new(),
            newly_blocked: Vec::new(),
            unsent: Unsent::default(),
            unwritten: Unwritten::default(),
            to_read: VecDeque::new(),
            to_admit: VecDeque::new(),
            closing: VecDeque::new(),
            closings: Level::default(),
            due: VecDeque::new(),
            looked_at_due_us: 0,
            stalled: false,
            had_commands: false,
            next_generation: 1,
            started_us: None,
            mono_us: 0,
            wall_ms: 0,
            now: 0,
            parting: None,
            is_leaving: false,
            last_unsent: None,
            has_left: false,
        }
    }

    /// A turn begins: until the next it is `now`.
    pub fn begin_turn(&mut self, now: Now) {
        self.mono_us = now.mono_us;
        self.wall_ms = now.wall_ms;
        let started_us = *self.started_us.get_or_insert(now.mono_us);
        let second = u32::try_from((now.mono_us - started_us) / TICK_US).expect("136 years of seconds fit");
        if std::mem::replace(&mut self.now, second) != second {
            self.count_calendar();
        }
        self.handshakes.begin_turn(now.mono_us);
        self.counters().turns.add(1);
        self.admit_next();
    }

    /// Takes a connection from this address: its slot, under which its socket is to be watched; what is there already
    /// counts as news. `None`: there is no room, or too many come at once; it was told so and is closed. While clients are
    /// asked to go it is told to come later.
    pub fn accept(&mut self, socket: S, source: IpAddr) -> Option<u32> {
        self.admission.note_taken(self.mono_us);
        if self.is_full() {
            self.turn_away(socket);
            return None;
        }
        if let Err(refused) = self.admission.ask(source, self.mono_us) {
            self.refuse(socket, refused);
            return None;
        }
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1).max(1);
        let slot = self.connections.insert(Connection::new(socket, generation, self.now));
        let login_s = u32::try_from(self.around.config.login_timeout_s).unwrap_or(u32::MAX);
        self.watch(slot, login_s);
        self.counters().connections.add(1);
        self.turn_back(slot);
        Some(slot)
    }

    /// For how long connections are to be left in the listener's queue, in microseconds; `None`: they are not.
    #[must_use]
    pub fn leaves_in_queue_us(&self) -> Option<u64> {
        self.admission.pause_us(self.mono_us)
    }

    /// By what the socket in a slot is to be watched: the slot and which of its connections it is. `None`: the slot is empty.
    #[must_use]
    pub fn tag(&self, slot: u32) -> Option<u64> {
        let connection = self.connections.get(slot)?;
        Some(u64::from(connection.generation) << 32 | u64::from(slot))
    }

    /// The slot of a tag; `None`: what was watched by it is gone, and another connection may be there.
    #[must_use]
    pub fn slot_of(&self, tag: u64) -> Option<u32> {
        let slot = u32::try_from(tag & u64::from(u32::MAX)).expect("32 bits");
        let connection = self.connections.get(slot)?;
        (u64::from(connection.generation) == tag >> 32).then_some(slot)
    }

    /// Whether no other connection finds room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.connections.len() >= self.around.connections_max
    }

    /// Whether so many have left that it is worth taking new ones again.
    #[must_use]
    pub fn has_room_again(&self) -> bool {
        let most = self.around.connections_max;
        self.connections.len() <= most - (most / ROOM_AGAIN).max(1)
    }

    /// When this turn began, by the clock that never jumps.
    #[must_use]
    pub fn mono_us(&self) -> u64 {
        self.mono_us
    }

    /// The socket in a slot, for registering; `None` once it is closed.
    pub fn socket_mut(&mut self, slot: u32) -> Option<&mut S> {
        self.connections.get_mut(slot)?.socket_mut()
    }

    /// Closes a connection just accepted: its socket cannot be watched.
    pub fn discard(&mut self, slot: u32) {
        self.wheel.remove(&mut self.connections, slot);
        if self.connections.remove(slot).is_some() {
            self.counters().connections.sub(1);
        }
    }

    /// The rest of a turn, behind what the sockets had: connections put aside, what hubs say, time; then everything
    /// goes out.
    pub fn end_turn(&mut self) {
        self.read_again();
        self.close_some();
        self.take_effects();
        self.tick();
        self.go_on_parting();
        self.look_whether_left();
        self.post_pending();
        self.flush_due();
        self.flush_all();
        self.bound_unsent();
        let (posted, woken) = self.hubs.ring();
        self.had_commands |= posted;
        self.counters().wakeups.add(woken);
    }

    /// Slots whose sockets took not everything in this turn, to be watched for when they take more: until then nobody
    /// need tell that they do.
    pub fn take_newly_blocked(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.newly_blocked)
    }

    /// How long to sleep. To be asked when the bell was announced: it looks a last time.
    pub fn plan_wait(&mut self) -> Wait {
        let busy = !self.to_admit.is_empty()
            || (!self.to_read.is_empty() && !self.stalled)
            || self.hubs.have_effects()
            || (self.stalled && self.hubs.wait_for_room())
            || self.hubs.wait_for_posting();
        let parting = self.parting_wait();
        if busy || parting == Some(Wait::Not) {
            return Wait::Not;
        }
        let longest = if !self.due.is_empty() {
            Duration::from_micros(DUE_PACE_US)
        } else if self.is_leaving {
            LEAVING_TICK
        } else {
            TICK
        };
        let receipts_us = self.to_flush_soon.front().map(|(until_us, ..)| until_us - self.mono_us);
        let refusal_us = self.entering.due_us().map(|due_us| due_us.saturating_sub(self.mono_us));
        let entering_us = self.entering.sockets_wait().then_some(ENTERING_PACE_US);
        let closing_us = self.closing_wait_us();
        let times = [receipts_us, refusal_us, entering_us, closing_us].into_iter().flatten().map(Duration::from_micros);
        let longest = if let Some(Wait::For(time)) = parting { longest.min(time) } else { longest };
        Wait::For(times.fold(longest, Duration::min))
    }

    /// Whether nothing is lost by reading sockets a little less often: a hub gathers, and had commands lately. Asked
    /// once, where there is nothing to do.
    pub fn take_gathering(&mut self) -> bool {
        !self.is_leaving && self.hubs.gather() && std::mem::take(&mut self.had_commands)
    }

    /// Whether the server leaves and everything has been answered and written, or the time for it is over.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.has_left
    }

    /// Slots in use: connections, and those closed of which not every hub has said that it knows.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Connections that are served, or may be. Counted one by one: for checks.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        let is_open = |slot: &u32| self.connections.get(*slot).is_some_and(|connection| connection.life == Life::Open);
        self.connections.indexes().filter(is_open).count()
    }

    /// Buffers that connections hold.
    #[must_use]
    pub fn buffers_taken(&self) -> usize {
        self.buffers.taken()
    }

    /// Connections whose sockets have not taken all that there is for them, and what they have left.
    #[must_use]
    pub fn unsent(&self) -> &Unsent {
        &self.unsent
    }

    /// Which of the reactors it is.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// So many of the connections with the most unsent bytes, the worst first, with their slots: what only the kernel
    /// knows of their sockets is left out.
    #[must_use]
    pub fn worst(&self, count: usize) -> Vec<(u32, Offender)> {
        let offender = |blocked: &Blocked| {
            let connection = self.connections.get(blocked.slot)?;
            let device = connection.session.is_logged_in().then(|| connection.session.device());
            let offender = Offender {
                user: device.map(|device| device.user.0),
                device: device.map(|device| device.device.0),
                reactor: self.number,
                peer: None,
                unsent_bytes: blocked.len,
                kernel_unsent_bytes: None,
                silent_s: self.now - connection.heard,
                blocked_s: (self.mono_us - blocked.since_us.0) / 1_000_000,
            };
            Some((blocked.slot, offender))
        };
        self.unsent.worst().filter_map(offender).take(count).collect()
    }

    /// What is counted of unsent bytes is what there is, and no more than there may be. For checks, between turns.
    ///
    /// # Panics
    /// If it is not.
    pub fn check_unsent(&self) {
        let all = self.connections.indexes().filter_map(|slot| self.connections.get(slot));
        let blocked = all.filter(|connection| connection.blocked);
        let lens: Vec<usize> = blocked.map(|connection| self.buffers.get(connection.outgoing).len()).collect();
        let counted = (self.unsent.count(), self.unsent.total_len());
        assert_eq!(counted, (lens.len(), lens.iter().sum()), "blocked connections and their unsent bytes are counted");
        let len_max = self.around.bounds.unsent_all_len;
        assert!(counted.1 <= len_max || counted.0 < 2, "{counted:?} unsent, and {len_max} bytes may be");
    }

    /// Connections whose time will come, or has come and they have not been looked at. Counted one by one: for checks.
    #[must_use]
    pub fn timers(&self) -> usize {
        self.wheel.count(&self.connections) + self.due.len()
    }

    /// Whether nothing is under way: no connection is to be read or written, no command waits for room, no reply is
    /// owed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.to_flush.is_empty()
            && self.to_flush_soon.is_empty()
            && self.to_read.is_empty()
            && self.to_admit.is_empty()
            && self.closing.is_empty()
            && self.commands.is_empty()
            && self.entering.due_us().is_none()
            && !self.hubs.have_waiting()
            && !self.hubs.have_effects()
            && self.hubs.owed() == 0
    }

    /// Has a session write records.
    fn write<T>(&mut self, slot: u32, write: impl FnOnce(&mut Session, &mut Records<'_>) -> T) -> T {
        let connection = self.connections.get_mut(slot).expect("the caller found it");
        let mut out = self.buffers.take(&mut connection.outgoing);
        let mut cipher = self.ciphers.take(slot);
        let written = write(&mut connection.session, &mut Records::new(&mut out, &mut cipher));
        self.ciphers.put(slot, cipher);
        note_unsent(&mut self.unsent, connection, slot, out.len(), self.mono_us);
        self.buffers.put(&mut connection.outgoing, out);
        written
    }

    fn counters(&self) -> &Counters {
        self.around.metrics.reactor(usize::from(self.number))
    }

    fn keep_alive(&self) -> KeepAlive {
        self.around.config.keep_alive
    }

    /// Has a connection, which is not in the wheel, looked at after so many seconds and never earlier: of the
    /// present one a part is over.
    fn watch(&mut self, slot: u32, seconds: u32) {
        let due = self.now.saturating_add(seconds).saturating_add(1);
        self.wheel.insert(&mut self.connections, slot, due - self.wheel.now());
    }
}

/// A session has written: what its socket has left of it all, if it leaves any.
fn note_unsent<S>(unsent: &mut Unsent, connection: &Connection<S>, slot: u32, len: usize, now_us: u64) {
    if connection.blocked {
        unsent.note(slot, len, now_us);
    }
}

#[cfg(test)]
mod tests;
