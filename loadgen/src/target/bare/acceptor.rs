//! One thread of the bare floor. For each connection exactly: accept4, epoll_ctl, one read, one write, and its part of
//! the waits. It keeps no memory for any of them, looks at nothing but the first two bytes, and trusts its peers.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use culver_protocol::limits::{
    CREDIT_BYTES_DEFAULT, CREDIT_ENTRIES_DEFAULT, KEEP_ALIVE_S_DEFAULT, KEEP_ALIVE_S_MAX, KEEP_ALIVE_S_MIN, VERSION_MAX,
};
use culver_protocol::proto::Welcome;
use culver_protocol::record::{Cipher, RecordType};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use socket2::Socket;

use super::child::Counts;
use crate::sys::{Fate, SocketSet};

/// Readiness events taken in one turn.
const EVENTS_MAX: usize = 64;
/// Connections accepted in one turn.
const ACCEPTS_MAX: usize = 16;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Bytes read at once: a login with a ticket, and what idle clients send, are far shorter.
const READ_LEN: usize = 4096;
/// Reads of one socket in a turn: more than its receive buffer holds. Who sends on and on is given up.
const READS_MAX: usize = 4096;
/// What a preamble begins with; as the length of a record it would be one of 17,238 bytes.
const PREAMBLE_START: [u8; 2] = *b"CV";
/// Bytes of a server's ticket.
const TICKET_LEN: usize = 60;
const TICKET_LIFE_MS: u64 = 30 * 24 * 3600 * 1000;

/// A WELCOME of exactly the length that a server writes.
pub(super) fn welcome(now_ms: u64) -> Vec<u8> {
    let welcome = Welcome {
        ticket: vec![0; TICKET_LEN].into(),
        ticket_expires_ms: now_ms + TICKET_LIFE_MS,
        incarnation: 1,
        server_time_ms: now_ms,
        keep_alive_s: KEEP_ALIVE_S_DEFAULT,
        credit_entries: CREDIT_ENTRIES_DEFAULT,
        credit_bytes: CREDIT_BYTES_DEFAULT,
        version: u32::from(VERSION_MAX),
        keep_alive_min_s: KEEP_ALIVE_S_MIN,
        keep_alive_max_s: KEEP_ALIVE_S_MAX,
    };
    let mut out = Vec::new();
    Cipher::Plaintext.seal_message(&mut out, RecordType::Welcome, &welcome);
    out
}

/// A listener, its epoll, and the connections that came to it.
pub(super) struct Acceptor<'a> {
    listener: Socket,
    sockets: SocketSet,
    welcome: &'a [u8],
    counts: &'a Counts,
}

impl<'a> Acceptor<'a> {
    /// Listens on a port that other sockets may listen on too.
    pub(super) fn listen(socket: Socket, address: SocketAddr, welcome: &'a [u8], counts: &'a Counts) -> Result<Self> {
        socket.bind(&address.into()).with_context(|| format!("cannot bind {address}"))?;
        socket.listen(BACKLOG)?;
        let sockets = SocketSet::new(&socket, EVENTS_MAX)?;
        Ok(Self { listener: socket, sockets, welcome, counts })
    }

    /// Serves until something fails.
    pub(super) fn run(mut self) -> Result<()> {
        let mut buffer = [0; READ_LEN];
        let mut accepts = 1;
        loop {
            let (welcome, counts) = (self.welcome, self.counts);
            let look = |socket: BorrowedFd<'_>, flags: EventFlags| {
                let fate = serve(socket, flags, welcome, &mut buffer, counts);
                if fate == Fate::Close {
                    counts.connections.fetch_sub(1, Ordering::Relaxed);
                }
                fate
            };
            let waiting = self.sockets.wait(look).context("waiting")?;
            accepts = if waiting { self.accept(accepts)? } else { 1 };
        }
    }

    /// Accepts up to `accepts`; returns how many to try for if more wait in the next turn. The queue is asked in vain
    /// only where a turn before had left something in it.
    fn accept(&self, accepts: usize) -> Result<usize> {
        for accepted in 0..accepts {
            let socket = match accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(accepted.max(1)),
                Err(Errno::CONNABORTED | Errno::INTR) => continue,
                Err(error) => return Err(io::Error::from(error)).context("accepting"),
            };
            self.counts.connections.fetch_add(1, Ordering::Relaxed);
            self.sockets.adopt(socket).context("watching a connection")?;
        }
        Ok((accepts * 2).min(ACCEPTS_MAX))
    }
}

/// Reads what came, once if it fits, and answers a login; everything else is dropped.
fn serve(socket: BorrowedFd<'_>, flags: EventFlags, welcome: &[u8], buffer: &mut [u8], counts: &Counts) -> Fate {
    if flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
        return Fate::Close;
    }
    for _ in 0..READS_MAX {
        let len = match rustix::io::read(socket, &mut *buffer) {
            Ok(0) => return Fate::Close,
            Ok(len) => len,
            Err(Errno::AGAIN) => return Fate::Keep,
            Err(Errno::INTR) => continue,
            Err(_) => return Fate::Close,
        };
        if buffer.get(..len).is_some_and(|bytes| bytes.starts_with(&PREAMBLE_START)) {
            counts.logins.fetch_add(1, Ordering::Relaxed);
            // The first bytes on a fresh connection always fit into its send buffer.
            if rustix::io::write(socket, welcome) != Ok(welcome.len()) {
                return Fate::Close;
            }
        }
        // A short read has drained it, and whatever comes next is told of again.
        if len < buffer.len() {
            return Fate::Keep;
        }
    }
    Fate::Close
}

#[cfg(test)]
mod tests {
    use culver_protocol::limits::{BODY_LEN_MAX, HEADER_LEN};
    use culver_protocol::record::{Record, split};
    use prost::Message;

    use super::*;

    #[test]
    fn the_welcome_is_one_whole_frame() {
        let now_ms = 1_790_000_000_000;
        let bytes = welcome(now_ms);
        let body = split(&bytes, HEADER_LEN, BODY_LEN_MAX).expect("framed").expect("complete");
        assert_eq!(body.end, bytes.len());
        let record = Record::parse(&bytes[body]).expect("a record");
        assert_eq!(record.kind, RecordType::Welcome as u8);
        let welcome = Welcome::decode(record.body).expect("protobuf");
        assert_eq!((welcome.ticket.len(), welcome.keep_alive_s, welcome.version), (60, 240, 1));
        assert_eq!((welcome.server_time_ms, welcome.incarnation), (now_ms, 1));
    }
}
