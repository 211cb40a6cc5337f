//! The network: connections of two byte streams, each through two bounded buffers, as two kernels and a wire make them.
//!
//! ```text
//!  client ──write──→ [sent] ──carry──→ [arrived] ──read──→ server       and the same the other way
//! ```
//!
//! Owns bytes on their way and how connections end. Never decides when something moves: the scheduler carries, cuts and
//! delivers edges. The server's end behaves as a socket behind an edge-triggered epoll does:
//!
//! - a read takes all that has arrived and fits; only a read that takes less has emptied the socket;
//! - an edge comes with bytes, FIN and RST that arrive, and when a full send buffer has a third of its room again;
//! - an edge tells what is so when it is taken, not when it came up.
//!
//! Buffers may be told to grow, as kernels' do: one that has carried many times what it holds doubles. So a connection
//! with buffers of a byte carries any amount in few steps, and grows only while bytes move: growth wakes nobody up.

mod listener;
mod pipe;
mod socket;
mod tamper;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;

use self::pipe::{Fin, Pipe};
use crate::device::DeviceKey;

pub(crate) use self::listener::{Listener, Waiting};
pub(crate) use self::socket::{MOVED, SimSocket};
pub(crate) use self::tamper::{Change, Tamper};

/// What one end knows of the other's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// It has closed its socket.
    Closed,
    /// It was told that the connection is no more.
    Reset,
}

/// How big the four buffers of a connection are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers {
    /// From the client: in its kernel, in the server's.
    pub to_server: (usize, usize),
    /// From the server: in its kernel, in the client's.
    pub to_client: (usize, usize),
}

/// What an edge tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    /// Bytes, or an end, can be read.
    pub readable: bool,
    /// The peer has finished.
    pub closed: bool,
    /// Bytes can be written.
    pub writable: bool,
}

/// A connection.
#[derive(Debug)]
struct Conn {
    to_server: Pipe,
    to_client: Pipe,
    /// Nothing gets through any more, and nobody is told.
    is_dark: bool,
    /// The network forgets it after so long a silence; 0: never. And when something last passed.
    silence_us: u64,
    passed_us: u64,
    /// It waits, or waited to its end, for a process to accept it.
    is_queued: bool,
    client: End,
    server: End,
    /// A reset on its way.
    reset_to_client: bool,
    reset_to_server: bool,
    /// The server's epoll watches it, and has an edge to tell.
    is_watched: bool,
    has_edge: bool,
    /// A write of the server's found no room.
    wants_room: bool,
    /// Somebody listens, and keeps what the client sends.
    recording: Option<Recording>,
    /// Whose it is, and whether it is a fetching process's. `None`: nobody's that matters.
    owner: Option<(DeviceKey, bool)>,
}

/// What a client has sent, as somebody on the way keeps it.
pub(crate) type Recording = Rc<RefCell<Vec<u8>>>;

/// Longest recording.
const RECORDED_MAX: usize = 65_536;

impl Conn {
    fn edge(&mut self) {
        self.has_edge = true;
    }

    /// The server's end is closed, by `close` or by the death of its process.
    fn close_server(&mut self, rudely: bool) {
        if self.server != End::Open {
            return;
        }
        self.server = End::Closed;
        self.is_watched = false;
        if rudely || self.to_server.arrived.len() > 0 {
            // What was not read makes a reset of the end, and what was not sent is dropped.
            self.to_client.sent.clear();
            self.reset_to_client = true;
        } else if self.to_client.fin == Fin::Open {
            self.to_client.fin = Fin::Sent;
        }
        self.to_server.arrived.clear();
    }
}

/// The client's end.
#[derive(Clone, Debug)]
pub(crate) struct Wire(Rc<RefCell<Conn>>);

/// What a client's read or write comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientEnd {
    /// It goes on.
    Open,
    /// The server has finished, and all was read.
    Finished,
    /// The connection is no more.
    Reset,
}

impl Wire {
    /// A connection, and the server's end of it.
    pub(crate) fn new(buffers: Buffers) -> (Self, SimSocket) {
        let conn = Conn {
            to_server: Pipe::new(buffers.to_server),
            to_client: Pipe::new(buffers.to_client),
            is_dark: false,
            silence_us: 0,
            passed_us: 0,
            is_queued: false,
            client: End::Open,
            server: End::Open,
            reset_to_client: false,
            reset_to_server: false,
            is_watched: false,
            has_edge: false,
            wants_room: false,
            recording: None,
            owner: None,
        };
        let conn = Rc::new(RefCell::new(conn));
        (Self(Rc::clone(&conn)), SimSocket(conn))
    }

    // ---- the client ----

    /// How many bytes the client's kernel takes now.
    pub(crate) fn client_room(&self) -> usize {
        let conn = self.0.borrow();
        if conn.client == End::Open && conn.to_server.fin == Fin::Open { conn.to_server.room() } else { 0 }
    }

    /// The client writes; how much was taken.
    pub(crate) fn client_write(&self, bytes: &[u8]) -> usize {
        let mut conn = self.0.borrow_mut();
        if conn.client != End::Open {
            return 0;
        }
        let taken = conn.to_server.send(bytes);
        if let Some(recording) = &conn.recording {
            let mut recording = recording.borrow_mut();
            let len = taken.min(RECORDED_MAX.saturating_sub(recording.len()));
            recording.extend_from_slice(&bytes[..len]);
        }
        taken
    }

    /// Bytes that the client can read.
    pub(crate) fn client_readable(&self) -> usize {
        let conn = self.0.borrow();
        if conn.client == End::Open { conn.to_client.arrived.len() } else { 0 }
    }

    /// The client reads at most so many bytes.
    pub(crate) fn client_read<R>(&self, at_most: usize, take: impl FnOnce(&[u8]) -> R) -> R {
        let mut conn = self.0.borrow_mut();
        let len = conn.to_client.arrived.len().min(at_most);
        // The client must not be called while the connection is borrowed: it may close it.
        let mut arrived = std::mem::take(&mut conn.to_client.arrived);
        drop(conn);
        let result = take(&arrived.front()[..len]);
        arrived.pop(len);
        self.0.borrow_mut().to_client.arrived = arrived;
        result
    }

    /// What the client knows of the connection once it has read all.
    pub(crate) fn client_end(&self) -> ClientEnd {
        let conn = self.0.borrow();
        match conn.client {
            End::Reset => ClientEnd::Reset,
            _ if conn.to_client.fin == Fin::Arrived && conn.to_client.arrived.len() == 0 => ClientEnd::Finished,
            _ => ClientEnd::Open,
        }
    }

    /// The client closes its socket: all it has written goes out before the end of it, unless it does so rudely.
    pub(crate) fn client_close(&self, rudely: bool) {
        let mut conn = self.0.borrow_mut();
        if conn.client != End::Open {
            return;
        }
        conn.client = End::Closed;
        if rudely || conn.to_client.arrived.len() > 0 {
            conn.to_server.sent.clear();
            conn.reset_to_server = true;
        } else if conn.to_server.fin == Fin::Open {
            conn.to_server.fin = Fin::Sent;
        }
        conn.to_client.arrived.clear();
    }

    // ---- the wire ----

    /// From now on nothing gets through, and nobody is told: a phone without signal, a router without memory.
    pub(crate) fn go_dark(&self) {
        self.0.borrow_mut().is_dark = true;
    }

    /// From now on the network forgets it after so long a silence.
    pub(crate) fn be_forgotten_after(&self, silence_us: u64, now_us: u64) {
        let mut conn = self.0.borrow_mut();
        (conn.silence_us, conn.passed_us) = (silence_us, now_us);
    }

    /// Something is to pass: whether the network knows the connection. If it has forgotten it, nothing passes any more.
    pub(crate) fn pass(&self, now_us: u64) -> bool {
        let mut conn = self.0.borrow_mut();
        if conn.silence_us > 0 && now_us - conn.passed_us > conn.silence_us {
            conn.is_dark = true;
        }
        conn.passed_us = now_us;
        !conn.is_dark
    }

    /// Whether it is this connection.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Whose it is, and whether it is a fetching process's.
    pub(crate) fn belong_to(&self, key: DeviceKey, is_fetch: bool) {
        self.0.borrow_mut().owner = Some((key, is_fetch));
    }

    pub(crate) fn owner(&self) -> Option<(DeviceKey, bool)> {
        self.0.borrow().owner
    }

    /// Somebody listens: what the client sends from now on is kept.
    pub(crate) fn record(&self) -> Recording {
        Rc::clone(self.0.borrow_mut().recording.get_or_insert_default())
    }

    /// What is sent from now on will be changed so.
    pub(crate) fn tamper(&self, tamper: Tamper) {
        let conn = &mut *self.0.borrow_mut();
        let pipe = if tamper.is_to_server { &mut conn.to_server } else { &mut conn.to_client };
        pipe.tamper = Some(tamper);
    }

    /// Nobody changes anything any more.
    pub(crate) fn leave_alone(&self) {
        let conn = &mut *self.0.borrow_mut();
        (conn.to_server.tamper, conn.to_client.tamper) = (None, None);
    }

    /// Whether anything was changed on its way.
    pub(crate) fn is_attacked(&self) -> bool {
        let conn = self.0.borrow();
        conn.to_server.is_changed || conn.to_client.is_changed
    }

    /// From now on its buffers grow with what they carry.
    pub(crate) fn grow(&self) {
        let conn = &mut *self.0.borrow_mut();
        for pipe in [&mut conn.to_server, &mut conn.to_client] {
            (pipe.grows, pipe.carried) = (true, 0);
        }
    }

    /// A middlebox ends the connection: both are told so, and what is on its way is lost.
    pub(crate) fn cut(&self) {
        let mut conn = self.0.borrow_mut();
        conn.to_server.sent.clear();
        conn.to_client.sent.clear();
        (conn.reset_to_client, conn.reset_to_server) = (true, true);
    }

    /// Whether the wire has something to carry.
    #[inline]
    pub(crate) fn can_carry(&self) -> bool {
        let conn = self.0.borrow();
        !conn.is_dark
            && (conn.reset_to_client
                || conn.reset_to_server
                || conn.to_server.can_carry()
                || conn.to_client.can_carry())
    }

    /// Whether nothing is on its way, or waits to be read.
    pub(crate) fn is_quiet(&self) -> bool {
        let conn = self.0.borrow();
        if conn.is_dark || conn.server != End::Open {
            return true;
        }
        let is_unread =
            conn.to_server.arrived.len() > 0 || (conn.client == End::Open && conn.to_client.arrived.len() > 0);
        drop(conn);
        !self.can_carry() && !is_unread && !self.has_edge()
    }

    /// Whether bytes to the server, or to the client, could be carried.
    pub(crate) fn directions(&self) -> (bool, bool) {
        let conn = self.0.borrow();
        (conn.reset_to_server || conn.to_server.can_carry(), conn.reset_to_client || conn.to_client.can_carry())
    }

    /// Carries at most so many bytes to the server.
    pub(crate) fn carry_to_server(&self, at_most: usize) {
        let conn = &mut *self.0.borrow_mut();
        if conn.reset_to_server {
            conn.reset_to_server = false;
            if conn.server == End::Open {
                conn.server = End::Reset;
                conn.edge();
            }
            conn.to_server.sent.clear();
            conn.to_client.sent.clear();
            conn.to_client.fin = Fin::Arrived;
            return;
        }
        if !conn.to_server.carry(at_most) {
            return;
        }
        match conn.server {
            End::Open => conn.edge(),
            End::Closed => {
                // Nobody is there: what came is answered by a reset. A mere end is not.
                if conn.to_server.arrived.len() > 0 {
                    conn.reset_to_client = true;
                }
                conn.to_server.arrived.clear();
            }
            End::Reset => conn.to_server.arrived.clear(),
        }
    }

    /// Carries at most so many bytes to the client. A reset may overtake what the client has not read.
    pub(crate) fn carry_to_client(&self, at_most: usize, reset_overtakes: bool) {
        let conn = &mut *self.0.borrow_mut();
        if conn.reset_to_client {
            conn.reset_to_client = false;
            if conn.client == End::Open {
                conn.client = End::Reset;
                if reset_overtakes {
                    conn.to_client.arrived.clear();
                }
            }
            conn.to_client.sent.clear();
            conn.to_server.sent.clear();
            return;
        }
        let carried = conn.to_client.carry(at_most);
        if conn.wants_room && conn.to_client.room() * 3 >= conn.to_client.sent_max {
            conn.wants_room = false;
            conn.edge();
        }
        if carried && conn.client != End::Open {
            if conn.client == End::Closed && conn.to_client.arrived.len() > 0 {
                conn.reset_to_server = true;
            }
            conn.to_client.arrived.clear();
        }
    }

    // ---- the server's kernel ----

    /// It waits to be accepted, or was accepted.
    fn set_queued(&self, is_queued: bool) {
        self.0.borrow_mut().is_queued = is_queued;
    }

    /// Whether it waits to be accepted.
    pub(crate) fn is_waiting(&self) -> bool {
        let conn = self.0.borrow();
        conn.is_queued && conn.server != End::Closed
    }

    /// Whether it ended before anybody accepted it, and not with the machine.
    pub(crate) fn is_refused(&self) -> bool {
        let conn = self.0.borrow();
        conn.is_queued && conn.server == End::Closed
    }

    /// The server's epoll watches the socket from now on, and has an edge to tell at once.
    pub(crate) fn watch(&self) {
        let mut conn = self.0.borrow_mut();
        conn.is_watched = true;
        conn.edge();
    }

    /// Whether the server's epoll has an edge to tell.
    #[inline]
    pub(crate) fn has_edge(&self) -> bool {
        let conn = self.0.borrow();
        conn.has_edge && conn.is_watched
    }

    /// The server's epoll tells an edge: what is so now. `None`: there is nothing any more.
    pub(crate) fn take_edge(&self) -> Option<Edge> {
        let mut conn = self.0.borrow_mut();
        if !conn.is_watched || !std::mem::take(&mut conn.has_edge) {
            return None;
        }
        let is_reset = conn.server == End::Reset;
        let closed = is_reset || conn.to_server.fin == Fin::Arrived;
        let readable = closed || conn.to_server.arrived.len() > 0;
        let writable = is_reset || conn.to_client.room() * 3 >= conn.to_client.sent_max;
        (readable || writable).then_some(Edge { readable, closed, writable })
    }

    /// The server's process has died: its kernel closes the socket.
    pub(crate) fn server_died(&self, rudely: bool) {
        self.0.borrow_mut().close_server(rudely);
    }

    /// The server's machine is gone: nobody is told. When it is there again it answers by a reset.
    pub(crate) fn server_vanished(&self) {
        let mut conn = self.0.borrow_mut();
        (conn.server, conn.is_queued) = (End::Closed, false);
        conn.is_watched = false;
        conn.to_client.sent.clear();
        conn.to_server.arrived.clear();
    }

    /// Whether the server's end is closed.
    pub(crate) fn is_server_closed(&self) -> bool {
        self.0.borrow().server == End::Closed
    }

    /// Whether both ends are closed and nothing is on its way that anybody would notice.
    pub(crate) fn is_over(&self) -> bool {
        let conn = self.0.borrow();
        conn.client != End::Open && conn.server == End::Closed
    }
}
