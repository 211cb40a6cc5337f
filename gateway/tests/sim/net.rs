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

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::rc::Rc;

use culver::reactor::socket::Socket;

/// A buffer that grows doubles whenever it has carried this many times what it holds.
const FULL_TIMES: usize = 32;
/// It grows no further.
const GROWN_MAX: usize = 65_536;

/// Bytes, first in first out.
#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    start: usize,
}

impl Queue {
    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn front(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn pop(&mut self, len: usize) {
        self.start += len;
        if self.start >= self.bytes.len() {
            self.clear();
        } else if self.start > 4096 && self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }
}

/// Where the end of a stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fin {
    #[default]
    Open,
    /// Behind the bytes sent.
    Sent,
    /// Behind the bytes that have arrived.
    Arrived,
}

/// One direction.
#[derive(Debug)]
struct Pipe {
    /// In the sender's kernel.
    sent: Queue,
    sent_max: usize,
    /// In the receiver's kernel.
    arrived: Queue,
    arrived_max: usize,
    fin: Fin,
    /// Its buffers grow, and have carried so much since the last time.
    grows: bool,
    carried: usize,
}

impl Pipe {
    fn new((sent_max, arrived_max): (usize, usize)) -> Self {
        let (sent, arrived) = (Queue::default(), Queue::default());
        Self { sent, sent_max, arrived, arrived_max, fin: Fin::Open, grows: false, carried: 0 }
    }

    fn room(&self) -> usize {
        self.sent_max.saturating_sub(self.sent.len())
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(self.room());
        self.sent.push(&bytes[..len]);
        len
    }

    /// Bytes that the wire could carry now.
    fn carryable(&self) -> usize {
        self.sent.len().min(self.arrived_max.saturating_sub(self.arrived.len()))
    }

    fn can_carry(&self) -> bool {
        self.carryable() > 0 || (self.fin == Fin::Sent && self.sent.len() == 0)
    }

    /// Whether anything arrived.
    fn carry(&mut self, at_most: usize) -> bool {
        let len = self.carryable().min(at_most);
        if len > 0 {
            self.arrived.push(&self.sent.front()[..len]);
            self.sent.pop(len);
            self.grow(len);
        }
        let ends = self.fin == Fin::Sent && self.sent.len() == 0;
        if ends {
            self.fin = Fin::Arrived;
        }
        len > 0 || ends
    }

    fn grow(&mut self, carried: usize) {
        self.carried += carried;
        let smaller = self.sent_max.min(self.arrived_max);
        if self.grows && smaller < GROWN_MAX && self.carried >= FULL_TIMES * smaller {
            self.carried = 0;
            for max in [&mut self.sent_max, &mut self.arrived_max] {
                *max = if *max == smaller { 2 * smaller } else { *max };
            }
        }
    }
}

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
}

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
            client: End::Open,
            server: End::Open,
            reset_to_client: false,
            reset_to_server: false,
            is_watched: false,
            has_edge: false,
            wants_room: false,
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
        if conn.client == End::Open { conn.to_server.send(bytes) } else { 0 }
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
        conn.server = End::Closed;
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

/// The server's end, as its socket.
#[derive(Debug)]
pub(crate) struct SimSocket(Rc<RefCell<Conn>>);

thread_local! {
    /// Reads and writes of the server's sockets that moved bytes: each is an event.
    pub static MOVED: Cell<u64> = const { Cell::new(0) };
}

impl Read for SimSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut conn = self.0.borrow_mut();
        if conn.server == End::Reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let len = conn.to_server.arrived.len().min(buffer.len());
        if len == 0 {
            return if conn.to_server.fin == Fin::Arrived { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        buffer[..len].copy_from_slice(&conn.to_server.arrived.front()[..len]);
        conn.to_server.arrived.pop(len);
        MOVED.set(MOVED.get() + 1);
        Ok(len)
    }
}

impl Write for SimSocket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut conn = self.0.borrow_mut();
        if conn.server == End::Reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if conn.to_client.fin != Fin::Open {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let len = conn.to_client.send(buffer);
        conn.wants_room |= len < buffer.len();
        if len == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        MOVED.set(MOVED.get() + 1);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket for SimSocket {
    fn finish(&mut self) {
        let mut conn = self.0.borrow_mut();
        if conn.to_client.fin == Fin::Open {
            conn.to_client.fin = Fin::Sent;
        }
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let mut conn = self.0.borrow_mut();
        if conn.server == End::Reset {
            conn.server = End::Closed;
            conn.is_watched = false;
            conn.to_server.arrived.clear();
        } else {
            conn.close_server(false);
        }
    }
}

#[test]
fn bytes_arrive_in_order_and_the_end_behind_them() {
    let (wire, mut socket) = Wire::new(Buffers { to_server: (8, 4), to_client: (4, 4) });
    assert_eq!(wire.client_write(b"abcdefghij"), 8);
    wire.client_close(false);
    wire.watch();
    let mut seen = Vec::new();
    while wire.can_carry() {
        wire.carry_to_server(3);
        let edge = wire.take_edge().expect("what arrives makes an edge");
        assert!(edge.readable && edge.closed == (seen.len() == 6));
        let mut buffer = [0; 16];
        let len = socket.read(&mut buffer).expect("bytes are there");
        seen.extend_from_slice(&buffer[..len]);
    }
    let end = socket.read(&mut [0; 1]).expect("the end is there");
    assert_eq!((seen.as_slice(), end), (&b"abcdefgh"[..], 0));
    assert_eq!(socket.write(b"for nobody").expect("nobody knows yet"), 4);
    wire.carry_to_client(4, false);
    wire.carry_to_server(1);
    let refused = socket.write(b"any more").expect_err("nobody is there");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionReset);
    drop(socket);
    assert!(wire.is_over());
}

#[test]
fn buffers_grow_with_what_they_carry() {
    let (wire, mut socket) = Wire::new(Buffers { to_server: (1, 1), to_client: (1, 4) });
    wire.grow();
    let (mut left, mut pieces) = (1_000_000, 0);
    while left > 0 {
        left -= socket.write(&vec![0; left]).expect("there is room");
        wire.carry_to_client(usize::MAX, false);
        wire.client_read(usize::MAX, |_| ());
        pieces += 1;
    }
    assert!(pieces < 1000, "{pieces}");
    assert_eq!(wire.client_room(), 1, "the other direction carried nothing");
}
