//! The sockets of one worker and the sans-io client behind each: connecting, reading, writing, closing, timers.
//!
//! CPU counts, for the server runs beside it: one read per readable socket (a short read has drained it), one write
//! per connection and turn, no timer work for clients whose deadline has not come. Never looks into a message.

mod readiness;
mod traffic;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use culver_protocol::client::{Client, ClientConfig, Event};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

pub(crate) use self::readiness::Readiness;

use crate::sys;
use crate::target::sealing::refresh;
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
    /// Offline until it is told to come back.
    is_away: bool,
    /// Nothing is read, and the client keeps no time.
    is_deaf: bool,
    /// The deadline in the timer heap, or `u64::MAX`.
    timer_us: u64,
    source: Option<IpAddr>,
    is_sealed: bool,
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
    /// Bytes that the kernel keeps of each connection for who does not read; `None`: as many as it likes.
    receive_len: Option<usize>,
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
            receive_len: None,
        }
    }

    /// Connections made from now on have receive buffers of so many bytes.
    pub(crate) fn set_receive_len(&mut self, bytes: Option<usize>) {
        self.receive_len = bytes;
    }

    /// Adds a client; it connects with the next turn, from `source` if one is given.
    pub(crate) fn add(&mut self, mut config: ClientConfig, source: Option<IpAddr>, now_us: u64) -> LinkIndex {
        refresh(&mut config);
        let index = LinkIndex(self.links.len());
        self.links.push(Link {
            is_sealed: config.encryption.is_some(),
            client: Client::new(config),
            socket: None,
            is_connecting: false,
            is_dirty: false,
            is_blocked: false,
            is_away: false,
            is_deaf: false,
            timer_us: u64::MAX,
            source,
            tap: None,
        });
        self.schedule(index, now_us);
        self.mark_dirty(index);
        index
    }

    /// Counts what is delivered again on this connection, if it can be listened to.
    pub(crate) fn watch_redelivery(&mut self, index: LinkIndex) {
        let link = self.link(index);
        link.tap = (!link.is_sealed).then(Box::default);
    }

    /// Entries that came again with an inbox seq already seen, over all watched connections; `None`: there is none,
    /// for only their clients can read what is sealed.
    pub(crate) fn redelivered(&self) -> Option<u64> {
        self.links
            .iter()
            .filter_map(|link| link.tap.as_ref())
            .map(|tap| tap.redelivered())
            .reduce(|sum, more| sum + more)
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

    /// Cuts the connection and opens no other until [`Links::come_back`].
    pub(crate) fn leave(&mut self, index: LinkIndex, now_us: u64) {
        self.link(index).is_away = true;
        if self.close_socket(index) {
            self.client(index).handle_disconnected(now_us);
        }
    }

    /// The connection may be made again: at once, if the client has asked for it meanwhile.
    pub(crate) fn come_back(&mut self, index: LinkIndex, now_us: u64) {
        let link = self.link(index);
        if std::mem::replace(&mut link.is_away, false) && link.is_connecting {
            link.is_connecting = false;
            self.connect(index, now_us);
            self.mark_dirty(index);
        }
    }

    /// While a connection is deaf its socket is not read, whatever comes or goes, and its client does nothing: as an
    /// application that hangs. What has come meanwhile is read when it hears again.
    pub(crate) fn set_deaf(&mut self, index: LinkIndex, is_deaf: bool, now_us: u64) {
        let was_deaf = std::mem::replace(&mut self.link(index).is_deaf, is_deaf);
        if was_deaf && !is_deaf {
            self.unread.push(index);
            self.mark_dirty(index);
            self.schedule(index, now_us);
        }
    }

    /// Puts another client in the place of one, which ends without another word.
    pub(crate) fn replace(&mut self, index: LinkIndex, mut config: ClientConfig, now_us: u64) {
        refresh(&mut config);
        self.close_socket(index);
        let link = self.link(index);
        link.client = Client::new(config);
        link.is_connecting = false;
        self.schedule(index, now_us);
        self.mark_dirty(index);
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
            if link.is_deaf {
                continue; // it is set again when it hears
            }
            if link.client.poll_timeout().is_some_and(|at_us| at_us <= now_us) {
                self.client(index).handle_timeout(now_us);
            }
            self.schedule(index, now_us);
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
        let link = self.link(index);
        if link.is_away {
            link.is_connecting = true; // asked for, and done when it comes back
            return;
        }
        self.counts.connects += 1;
        let target = self.target;
        let source = self.link(index).source;
        let opened = sys::connect_narrow_nonblocking(target, source, self.receive_len)
            .map(TcpStream::from_std)
            .and_then(|mut socket| {
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Duration;

    use mio::{Events, Poll};

    use super::*;

    /// Longest wait for what happens at once or never.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Waits for the one socket, and has it read and written. Whether there was anything.
    fn look(links: &mut Links, poll: &mut Poll, patience: Duration) -> bool {
        let mut events = Events::with_capacity(4);
        poll.poll(&mut events, Some(patience)).expect("a poll works");
        events.iter().for_each(|event| links.handle_ready(LinkIndex(0), Readiness::of(event), 1));
        !events.is_empty()
    }

    #[test]
    fn who_is_deaf_reads_nothing_and_hears_it_all_later() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut poll = Poll::new().expect("a poll");
        let registry = poll.registry().try_clone().expect("a poll");
        let mut links = Links::new(listener.local_addr().expect("bound"), registry);
        links.set_receive_len(Some(4096));
        let index = links.add(ClientConfig::default(), None, 0);
        assert!(links.next_event(index, 0).is_none(), "it connects, and there is nothing to tell");
        let (mut server, _) = listener.accept().expect("it comes");
        assert!(look(&mut links, &mut poll, PATIENCE), "it is connected");
        links.set_deaf(index, true, 1);
        server.write_all(&[0; 8]).expect("there is room");
        drop(server);
        assert!(look(&mut links, &mut poll, PATIENCE), "it has come");
        links.handle_timers(u64::MAX);
        assert!(links.next_event(index, 1).is_none() && !links.has_unread(), "neither words, nor the end, nor time");
        links.set_deaf(index, false, 2);
        for index in links.take_unread() {
            links.handle_ready(index, Readiness::UNREAD, 2);
        }
        assert!(links.next_event(index, 2).is_some(), "now it hears that it makes no sense");
    }
}
