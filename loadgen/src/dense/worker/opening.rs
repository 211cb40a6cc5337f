//! How a worker's clients come: in the order of their slots, so many at a time, by ticket or token.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use culver_protocol::error::ErrorClass;
use culver_protocol::proto::{self, login};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::super::LoginWith;
use super::super::client::{self, Client, Phase};
use super::super::control::bump;
use super::super::tickets::Tickets;
use super::{Start, Worker, seconds};
use crate::plan::DEVICE;
use crate::sys;
use crate::target::floor;

/// Connections opened before those that are there are looked at again.
const OPENS_PER_TURN_MAX: usize = 32;

/// A login under way.
struct Attempt {
    is_by_token: bool,
    /// The server refused the ticket: a token comes next.
    is_refused: bool,
    /// What could not be written yet.
    unsent: Vec<u8>,
}

/// The logins of one worker.
pub(super) struct Opening {
    tickets: Option<Tickets>,
    pending: HashMap<usize, Attempt>,
    /// Whose ticket was refused.
    again: VecDeque<usize>,
}

impl Opening {
    pub(super) fn new(start: &Start) -> io::Result<Self> {
        let slots = start.place.first..start.place.first + start.place.slots;
        let tickets = start.load.tickets.as_ref().map(|path| Tickets::open(path, slots)).transpose()?;
        Ok(Self { tickets, pending: HashMap::new(), again: VecDeque::new() })
    }

    /// A client is logged in.
    pub(super) fn handle_welcome(
        &mut self,
        start: &Start,
        slot: usize,
        welcome: &proto::Welcome,
    ) -> Result<(), String> {
        let tally = &start.post.tally;
        bump(&tally.logins, 1);
        if self.pending.remove(&slot).is_some_and(|attempt| attempt.is_by_token) {
            bump(&tally.token_logins, 1);
        }
        start.shared.incarnation.store(welcome.incarnation, Ordering::Relaxed);
        let Some(tickets) = &mut self.tickets else { return Ok(()) };
        let kept = tickets.put(start.place.first + slot as u64, welcome.incarnation, &welcome.ticket);
        kept.map_err(|error| format!("the ticket file: {error}"))
    }

    /// Writes what was kept of tickets.
    pub(super) fn flush_tickets(&mut self) -> io::Result<()> {
        self.tickets.as_mut().map_or(Ok(()), Tickets::flush)
    }

    /// A login came to nothing; `true`: it is tried again with a token.
    pub(super) fn handle_ended(&mut self, slot: usize) -> bool {
        let is_again = self.pending.remove(&slot).is_some_and(|attempt| attempt.is_refused);
        if is_again {
            self.again.push_back(slot);
        }
        is_again
    }

    /// The credential of a slot, and whether it is a token. Tokens are signed now and kept nowhere.
    fn credential(&mut self, start: &Start, slot: usize, is_again: bool) -> io::Result<(login::Credential, bool)> {
        let index = start.place.first + slot as u64;
        let user = client::user(start.load.first_user, index);
        let credentials = match &start.login {
            LoginWith::Nothing => return Ok((login::Credential::Ticket(floor::ticket(user, DEVICE)), false)),
            LoginWith::Tokens(credentials) => credentials,
        };
        if let Some(ticket) = self.ticket(start, index).filter(|_| !is_again) {
            return Ok((login::Credential::Ticket(ticket), false));
        }
        let token = credentials.token(user, DEVICE).map_err(io::Error::other)?;
        Ok((login::Credential::Token(token), true))
    }

    /// A file that cannot be read is one without tickets: what comes of it is only slower.
    fn ticket(&mut self, start: &Start, index: u64) -> Option<Bytes> {
        let incarnation = start.shared.incarnation.load(Ordering::Relaxed);
        self.tickets.as_mut()?.take(index, incarnation).ok()?
    }
}

impl Worker {
    /// Opens what is wanted, as fast as is allowed; returns when to look again, if not at the next event.
    pub(super) fn open(&mut self) -> io::Result<Option<u64>> {
        let wanted = self.start.post.wanted.load(Ordering::Relaxed).min(self.start.place.slots);
        for _ in 0..OPENS_PER_TURN_MAX {
            if self.opening.pending.len() >= self.start.place.pending_max {
                return Ok(None);
            }
            let is_fresh = self.opening.again.is_empty();
            if is_fresh && self.clients.len() as u64 >= wanted {
                if self.opening.pending.is_empty() {
                    self.opening.flush_tickets()?;
                }
                return Ok(None);
            }
            if let Err(due_us) = self.start.shared.pace.take(self.now_us) {
                return Ok(Some(due_us));
            }
            let slot = self.opening.again.pop_front().unwrap_or(self.clients.len());
            self.connect(slot, !is_fresh)?;
        }
        Ok(Some(self.now_us))
    }

    fn connect(&mut self, slot: usize, is_again: bool) -> io::Result<()> {
        let (credential, is_by_token) = self.opening.credential(&self.start, slot, is_again)?;
        let Start { place, load, .. } = &self.start;
        let mut flight = Vec::new();
        client::write_login(&mut flight, credential, seconds(load.keep_alive_us), load.sends_ready);
        if slot == self.clients.len() {
            self.clients.push(Client::default());
        }
        let source = load.sources.pick(place.number, place.workers, slot as u64);
        let opened = sys::connect_nonblocking(load.target, source).map(OwnedFd::from);
        let opened = opened.and_then(|socket| self.begin(slot, socket, flight, is_by_token));
        if let Err(error) = opened {
            self.opening.pending.remove(&slot);
            self.note_failure(slot, &error);
        }
        Ok(())
    }

    /// On loopback a connection is mostly there when `connect` returns: the login goes out at once where it can.
    fn begin(&mut self, slot: usize, socket: OwnedFd, flight: Vec<u8>, is_by_token: bool) -> io::Result<()> {
        let (phase, unsent, more) = match rustix::io::write(&socket, &flight) {
            Ok(len) if len == flight.len() => (Phase::LoggingIn, Vec::new(), EventFlags::empty()),
            Ok(len) => return Err(io::Error::other(format!("a fresh socket took only {len} bytes"))),
            Err(Errno::AGAIN) => (Phase::Connecting, flight, EventFlags::OUT),
            Err(error) => return Err(error.into()),
        };
        let interest = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET | more;
        epoll::add(&self.epoll, &socket, EventData::new_u64(slot as u64), interest)?;
        self.opening.pending.insert(slot, Attempt { is_by_token, is_refused: false, unsent });
        let client = self.clients.get_mut(slot).expect("it was made for this");
        (client.socket, client.phase, client.heard_s) = (Some(socket), phase, seconds(self.now_us));
        Ok(())
    }

    /// The connection is made, or could not be.
    pub(super) fn write_waiting_login(&mut self, slot: usize) {
        let Some(attempt) = self.opening.pending.get_mut(&slot) else { return };
        let Some(client) = self.clients.get_mut(slot) else { return };
        let Some(socket) = &client.socket else { return };
        match rustix::io::write(socket, &attempt.unsent) {
            Ok(len) if len == attempt.unsent.len() => {
                (attempt.unsent, client.phase) = (Vec::new(), Phase::LoggingIn);
            }
            Err(Errno::AGAIN) => {}
            other => self.end(slot, &format!("writing the login: {other:?}")),
        }
    }

    /// The server told an error. A refused ticket is none as long as there is a token.
    pub(super) fn handle_error(&mut self, slot: usize, error: &proto::Error) -> Result<(), String> {
        let Start { place, load, shared, post, login, .. } = &self.start;
        if let Some(attempt) = self.opening.pending.get_mut(&slot)
            && !attempt.is_by_token
            && matches!(login, LoginWith::Tokens(_))
            && ErrorClass::of(error.code) == ErrorClass::RefreshToken
        {
            attempt.is_refused = true;
            bump(&post.tally.tickets_refused, 1);
            return Err("the ticket was refused".to_owned());
        }
        shared.note_error(error.code);
        let user = client::user(load.first_user, place.first + slot as u64).0;
        shared.note_fault(|| format!("user {user} was told error {} {}", error.code, error.detail));
        Ok(())
    }

    fn note_failure(&mut self, slot: usize, error: &io::Error) {
        let Start { place, load, shared, post, .. } = &self.start;
        if let Some(client) = self.clients.get_mut(slot) {
            (client.socket, client.phase) = (None, Phase::Ended);
        }
        bump(&post.tally.login_failures, 1);
        let user = client::user(load.first_user, place.first + slot as u64).0;
        shared.note_fault(|| format!("user {user} could not connect: {error}"));
    }
}
