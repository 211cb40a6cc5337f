//! The sockets of one worker and the sans-io client behind each: connecting, reading, writing, closing, timers.
//!
//! CPU counts, for the server runs beside it: one read per readable socket (a short read has drained it), one write
//! per connection and turn, no timer work for clients whose deadline has not come. Never looks into a message.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};

use culver_protocol::client::{Client, ClientConfig, Event};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::sys;
use crate::target::tap::Tap;

/// Bytes read at once; most sockets hold far less.
const READ_LEN: usize = 128 * 1024;
/// Full reads of one socket before the others get their turn.
const READS_MAX: usize = 4;

/// The place of a connection in its worker: stable for the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LinkIndex(pub(crate) usize);

/// What the sockets of a worker went through.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LinkCounts {
    /// Connections asked for.
    pub(crate) connects: u64,
    /// Connections that ended, for whatever reason but our own.
    pub(crate) disconnects: u64,
    /// Connections that this side cut on purpose.
    pub(crate) drops: u64,
    /// Connections that could not be made.
    pub(crate) connect_failures: u64,
}

struct Link {
    client: Client,
    socket: Option<TcpStream>,
    is_connecting: bool,
    is_dirty: bool,
    /// The send buffer was full: wait for the writable event.
    is_blocked: bool,
    /// The deadline in the timer heap, or `u64::MAX`.
    timer_us: u64,
    source: Option<IpAddr>,
    tap: Option<Box<Tap>>,
}

/// All connections of one worker.
pub(crate) struct Links {
    target: SocketAddr,
    registry: Registry,
    links: Vec<Link>,
    dirty: Vec<LinkIndex>,
    /// Sockets with more to read than one turn took.
    unread: Vec<LinkIndex>,
    timers: BinaryHeap<Reverse<(u64, LinkIndex)>>,
    counts: LinkCounts,
    buffer: Vec<u8>,
}

impl Links {
    pub(crate) fn new(target: SocketAddr, registry: Registry) -> Self {
        Self {
            target,
            registry,
            links: Vec::new(),
            dirty: Vec::new(),
            unread: Vec::new(),
            timers: BinaryHeap::new(),
            counts: LinkCounts::default(),
            buffer: vec![0; READ_LEN],
        }
    }

    /// Adds a client; it connects with the next turn, from `source` if one is given.
    pub(crate) fn add(&mut self, config: ClientConfig, source: Option<IpAddr>, now_us: u64) -> LinkIndex {
        let index = LinkIndex(self.links.len());
        self.links.push(Link {
            client: Client::new(config),
            socket: None,
            is_connecting: false,
            is_dirty: false,
            is_blocked: false,
            timer_us: u64::MAX,
            source,
            tap: None,
        });
        self.schedule(index, now_us);
        self.mark_dirty(index);
        index
    }

    /// Counts what is delivered again on this connection.
    pub(crate) fn watch_redelivery(&mut self, index: LinkIndex) {
        self.link(index).tap = Some(Box::default());
    }

    /// Entries that came again with an inbox seq already seen, over all watched connections.
    pub(crate) fn redelivered(&self) -> u64 {
        self.links.iter().filter_map(|link| link.tap.as_ref()).map(|tap| tap.redelivered()).sum()
    }

    pub(crate) fn len(&self) -> usize {
        self.links.len()
    }

    pub(crate) fn counts(&self) -> LinkCounts {
        self.counts
    }

    /// The client, to be given something to do; what it wants to write goes out at the end of the turn.
    pub(crate) fn client(&mut self, index: LinkIndex) -> &mut Client {
        self.mark_dirty(index);
        &mut self.link(index).client
    }

    /// Whether the connection is one that a server has welcomed.
    pub(crate) fn is_logged_in(&self, index: LinkIndex) -> bool {
        self.links.get(index.0).is_some_and(|link| link.client.is_logged_in())
    }

    /// Cuts the connection from this side, as a network would.
    pub(crate) fn cut(&mut self, index: LinkIndex, now_us: u64) {
        if self.close_socket(index) {
            self.counts.drops += 1;
            self.client(index).handle_disconnected(now_us);
        }
    }

    /// Closes every socket without another word.
    pub(crate) fn close_all(&mut self) {
        for index in 0..self.links.len() {
            self.close_socket(LinkIndex(index));
        }
    }

    /// When a client wants to be woken next.
    pub(crate) fn timer_us(&self) -> Option<u64> {
        self.timers.peek().map(|Reverse((due_us, _))| *due_us)
    }

    /// Whether some socket is known to hold more bytes.
    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// The connections that were left with bytes to read in the last turn.
    pub(crate) fn take_unread(&mut self) -> Vec<LinkIndex> {
        std::mem::take(&mut self.unread)
    }

    /// Calls the clients whose deadline has come; at most one call per connection.
    pub(crate) fn handle_timers(&mut self, now_us: u64) {
        for _ in 0..self.links.len() {
            let Some(&Reverse((due_us, index))) = self.timers.peek() else { return };
            if due_us > now_us {
                return;
            }
            self.timers.pop();
            let link = self.link(index);
            if link.timer_us != due_us {
                continue; // a later entry has taken its place
            }
            link.timer_us = u64::MAX;
            if link.client.poll_timeout().is_some_and(|at_us| at_us <= now_us) {
                self.client(index).handle_timeout(now_us);
            }
            self.schedule(index, now_us);
        }
    }

    /// The socket became readable or writable.
    pub(crate) fn handle_ready(&mut self, index: LinkIndex, event: Readiness, now_us: u64) {
        if event.writable {
            self.handle_writable(index, now_us);
        }
        if event.readable {
            self.handle_readable(index, event.read_closed, now_us);
        }
    }

    /// Takes the next event of a connection that was touched in this turn, after serving those that are about the
    /// socket itself.
    pub(crate) fn next_event(&mut self, index: LinkIndex, now_us: u64) -> Option<Event> {
        // A client has at most a few socket events in a row; the bound keeps a broken one from hanging the run.
        for _ in 0..8 {
            match self.link(index).client.poll_event()? {
                Event::Connect => self.connect(index, now_us),
                Event::Disconnect => self.disconnect(index, now_us),
                event => return Some(event),
            }
        }
        None
    }

    /// The connection to serve next among those touched: events first, then [`Links::flush`].
    pub(crate) fn dirty_at(&self, position: usize) -> Option<LinkIndex> {
        self.dirty.get(position).copied()
    }

    /// Writes what the touched connections have to say, one write each, and arms their timers.
    pub(crate) fn flush(&mut self, now_us: u64) {
        let dirty = std::mem::take(&mut self.dirty);
        for index in &dirty {
            self.link(*index).is_dirty = false;
        }
        for index in &dirty {
            self.write(*index, now_us);
            self.schedule(*index, now_us);
        }
        if self.dirty.is_empty() {
            self.dirty = dirty;
            self.dirty.clear();
        }
    }

    fn link(&mut self, index: LinkIndex) -> &mut Link {
        self.links.get_mut(index.0).expect("indices are given by `add` and never taken back")
    }

    fn mark_dirty(&mut self, index: LinkIndex) {
        let link = self.link(index);
        if !link.is_dirty {
            link.is_dirty = true;
            self.dirty.push(index);
        }
    }

    fn schedule(&mut self, index: LinkIndex, now_us: u64) {
        let link = self.link(index);
        let Some(due_us) = link.client.poll_timeout() else { return };
        // A deadline that moved back is found out when the earlier one fires; only an earlier one needs an entry.
        if due_us < link.timer_us {
            link.timer_us = due_us.max(now_us);
            let entry = (link.timer_us, index);
            self.timers.push(Reverse(entry));
        }
    }

    fn connect(&mut self, index: LinkIndex, now_us: u64) {
        self.counts.connects += 1;
        let target = self.target;
        let source = self.link(index).source;
        let opened = sys::connect_nonblocking(target, source).map(TcpStream::from_std).and_then(|mut socket| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.registry.register(&mut socket, Token(index.0), interest)?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => {
                let link = self.link(index);
                link.socket = Some(socket);
                link.is_connecting = true;
                link.is_blocked = false;
            }
            Err(_) => {
                self.counts.connect_failures += 1;
                self.client(index).handle_disconnected(now_us);
            }
        }
    }

    fn disconnect(&mut self, index: LinkIndex, now_us: u64) {
        if self.close_socket(index) {
            self.counts.disconnects += 1;
            self.client(index).handle_disconnected(now_us);
        }
    }

    /// Returns whether there was a socket.
    fn close_socket(&mut self, index: LinkIndex) -> bool {
        let link = self.link(index);
        let Some(socket) = link.socket.take() else { return false };
        link.is_connecting = false;
        link.is_blocked = false;
        if let Some(tap) = &mut link.tap {
            tap.handle_disconnected();
        }
        drop(socket); // closing takes it out of the poll
        true
    }

    fn handle_writable(&mut self, index: LinkIndex, now_us: u64) {
        let link = self.link(index);
        if !link.is_connecting {
            if link.is_blocked {
                link.is_blocked = false;
                self.mark_dirty(index);
            }
            return;
        }
        let Some(socket) = &link.socket else { return };
        if !matches!(socket.take_error(), Ok(None)) {
            self.counts.connect_failures += 1;
            self.close_socket(index);
            self.client(index).handle_disconnected(now_us);
        } else if socket.peer_addr().is_ok() {
            link.is_connecting = false;
            self.client(index).handle_connected(now_us);
        }
    }

    fn handle_readable(&mut self, index: LinkIndex, read_closed: bool, now_us: u64) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..READS_MAX {
            let link = self.link(index);
            let Some(socket) = link.socket.as_mut().filter(|_| !link.is_connecting) else { break };
            match socket.read(&mut buffer) {
                Ok(0) => {
                    self.disconnect(index, now_us);
                    break;
                }
                Ok(len) => {
                    let bytes = buffer.get(..len).expect("a read stays within its buffer");
                    if let Some(tap) = &mut link.tap {
                        tap.handle_bytes(bytes);
                    }
                    self.client(index).handle_bytes(bytes, now_us);
                    if len < buffer.len() && !read_closed {
                        break; // drained: what comes later raises a new event
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.disconnect(index, now_us);
                    break;
                }
            }
            self.note_unread(index);
        }
        self.buffer = buffer;
    }

    /// Remembers a socket whose reads came back full; reading it once more than needed does no harm.
    fn note_unread(&mut self, index: LinkIndex) {
        if self.unread.last() != Some(&index) {
            self.unread.push(index);
        }
    }

    fn write(&mut self, index: LinkIndex, now_us: u64) {
        let link = self.link(index);
        if link.is_connecting || link.is_blocked {
            return;
        }
        let Some(socket) = &mut link.socket else { return };
        // The second round is for what an interrupted write left.
        for _ in 0..2 {
            let bytes = link.client.transmit();
            if bytes.is_empty() {
                return;
            }
            let asked = bytes.len();
            match socket.write(bytes) {
                Ok(written) => {
                    link.client.transmitted(written);
                    link.is_blocked = written < asked;
                    return;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    link.is_blocked = true;
                    return;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.disconnect(index, now_us);
                    return;
                }
            }
        }
    }
}

/// What a poll said about one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) read_closed: bool,
}

impl Readiness {
    /// For sockets that were left with bytes to read.
    pub(crate) const UNREAD: Self = Self { readable: true, writable: false, read_closed: false };

    pub(crate) fn of(event: &mio::event::Event) -> Self {
        let broken = event.is_error();
        Self {
            readable: event.is_readable() || event.is_read_closed() || broken,
            writable: event.is_writable() || broken,
            read_closed: event.is_read_closed() || broken,
        }
    }
}

/// Raises the soft limit of descriptors to what `connections` need, as far as the hard limit lets it.
pub(crate) fn raise_descriptor_limit(connections: usize) -> io::Result<()> {
    let wanted = connections as u64 + sys::DESCRIPTORS_BESIDE;
    let found = sys::raise_descriptor_limit(wanted)?;
    if found < wanted {
        return Err(io::Error::other(format!(
            "{connections} connections need {wanted} descriptors, and the hard limit is {found}: raise it with \
             `ulimit -Hn {wanted}` as root, or ask for fewer connections"
        )));
    }
    Ok(())
}
