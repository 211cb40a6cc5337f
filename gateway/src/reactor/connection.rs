//! One connection: its socket, its session, and what is unfinished in either direction.

use std::io;

use culver_storage::topology::{HubId, Topology};

use super::buffers::{Buffers, NO_BUFFER};
use super::socket::Socket;
use super::timer::Place;
use crate::hub::command::Address;
use crate::session::Session;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Bytes are read and handled.
    Open,
    /// The last record is being written; what still comes in is thrown away.
    Ending,
    /// The socket is closed; not every hub has yet said that it knows.
    Closed,
}

/// A fixed record in a slab: an idle connection owns nothing else. (An encrypted one will use a larger class with
/// the 80 bytes of two keys and two counters.)
#[derive(Debug)]
pub struct Connection<S> {
    /// `None`: closed.
    socket: Option<S>,
    /// Which of the connections that had this slot.
    pub generation: u32,
    /// Its place in the timer wheel.
    pub timer: Place,
    /// The tick at which bytes last came.
    pub heard: u32,
    /// Number of the buffer with a partial frame.
    pub partial: u32,
    /// Number of the buffer with unsent bytes.
    pub outgoing: u32,
    /// Where it is in its life.
    pub life: Life,
    /// A write did not take everything: wait for the socket to become writable.
    pub blocked: bool,
    /// It is on the reactor's list of those to flush.
    pub to_flush: bool,
    /// It is on the reactor's list of those with commands that wait for room.
    pub to_post: bool,
    /// It is on the reactor's list of those to be read again.
    pub to_read: bool,
    /// The hubs that must still be told that the session is over: a bit each.
    pub to_close: u16,
    /// Hubs that were told so and have not said yet that they know.
    pub closes_owed: u8,
    /// The client's side of the protocol.
    pub session: Session,
}

/// Bytes of a record, as docs/benchmarks/memory.md counts them.
const CONNECTION_LEN: usize = 96;

const _: () = assert!(size_of::<Option<Connection<mio::net::TcpStream>>>() == CONNECTION_LEN);

/// What came of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// So many bytes.
    Bytes(usize),
    /// None now.
    Nothing,
    /// The peer is gone.
    Gone,
}

impl<S> Connection<S> {
    /// A connection just accepted.
    #[must_use]
    pub fn new(socket: S, generation: u32, now: u32) -> Self {
        Self {
            socket: Some(socket),
            generation,
            timer: Place::default(),
            heard: now,
            partial: NO_BUFFER,
            outgoing: NO_BUFFER,
            life: Life::Open,
            blocked: false,
            to_flush: false,
            to_post: false,
            to_read: false,
            to_close: 0,
            closes_owed: 0,
            session: Session::default(),
        }
    }

    /// The address of its session, when it is in `slot` of this reactor.
    #[must_use]
    pub fn address(&self, reactor: u16, slot: u32) -> Address {
        Address { reactor, slot, generation: self.generation, epoch: self.session.epoch() }
    }

    /// The hub that is to be told something next, if any: first what the session has to say to its user's hub, then
    /// that it is over.
    #[must_use]
    pub fn next_hub(&self, topology: &Topology) -> Option<HubId> {
        if self.session.has_pending(self.outgoing != NO_BUFFER) {
            return Some(topology.hub_of_user(self.session.device().user));
        }
        let bit = u16::try_from(self.to_close.trailing_zeros()).expect("at most 16");
        (self.to_close != 0).then_some(HubId(bit))
    }

    /// The session is over: every hub that knows it is to be told so.
    pub fn tell_hubs(&mut self) {
        self.to_close = self.session.hubs();
    }

    /// Whether no hub knows of its session, or will hear of it: once it is over, the slot is free.
    #[must_use]
    pub fn is_forgotten(&self) -> bool {
        self.to_close == 0 && self.closes_owed == 0
    }

    /// Its socket, for registering.
    pub fn socket_mut(&mut self) -> Option<&mut S> {
        self.socket.as_mut()
    }

    /// Closes the socket and gives its buffers back.
    pub fn close(&mut self, buffers: &mut Buffers) {
        self.socket = None;
        self.life = Life::Closed;
        self.blocked = false;
        buffers.release(&mut self.partial);
        buffers.release(&mut self.outgoing);
    }
}

impl<S: Socket> Connection<S> {
    /// One read(2).
    pub fn read(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        let Some(socket) = self.socket.as_mut() else { return ReadOutcome::Gone };
        loop {
            return match socket.read(buffer) {
                Ok(0) => ReadOutcome::Gone,
                Ok(len) => ReadOutcome::Bytes(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ReadOutcome::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => ReadOutcome::Gone,
            };
        }
    }

    /// Writes unsent bytes until the socket takes no more. Whether the peer is still there.
    pub fn flush(&mut self, buffers: &mut Buffers) -> bool {
        if self.outgoing == NO_BUFFER {
            self.blocked = false;
            return true;
        }
        let Some(socket) = self.socket.as_mut() else {
            buffers.release(&mut self.outgoing);
            return false;
        };
        let mut bytes = buffers.take(&mut self.outgoing);
        let mut written = 0;
        let mut alive = true;
        self.blocked = false;
        while written < bytes.len() {
            match socket.write(bytes.get(written..).expect("never writes more than there is")) {
                Ok(0) => alive = false,
                Ok(len) => {
                    written += len;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.blocked = true,
                Err(_) => alive = false,
            }
            break;
        }
        if alive {
            bytes.drain(..written);
        } else {
            bytes.clear();
        }
        buffers.put(&mut self.outgoing, bytes);
        alive
    }

    /// No more will be written: the peer sees the end of the stream behind the last record.
    pub fn finish(&mut self) {
        if let Some(socket) = &mut self.socket {
            socket.finish();
        }
    }
}
