//! How a worker's clients come: in the order of their slots, so many at a time, by ticket or token.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use culver_protocol::crypto::Secret;
use culver_protocol::error::{ErrorClass, ErrorCode};
use culver_protocol::handshake::client::Waiting;
use culver_protocol::id::UserId;
use culver_protocol::proto::{self, login};
use culver_protocol::record::{Cipher, RecordType};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::super::LoginWith;
use super::super::client::{self, Client, Phase};
use super::super::control::bump;
use super::super::handshake::{Comer, CrowdSealing, begin_login};
use super::super::returns::Away;
use super::super::tickets::{Ticket, Tickets};
use super::{Start, Worker, seconds};
use crate::plan::DEVICE;
use crate::sys;
use crate::target::credentials::Credentials;
use crate::target::floor;

/// Connections opened before those that are there are looked at again.
pub(super) const OPENS_PER_TURN_MAX: usize = 32;
/// Logins for each in the window until there is room for one more.
const WIDEN_AFTER: usize = 4;
/// Whoever was told that the server is busy comes again after so long.
const BUSY_WAIT_US: u64 = 50_000;

/// How a login is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// At once, with a token: the ticket was refused, or the server's key is another.
    WithToken,
    /// The same after a while: too many log in at once.
    Later,
}

/// How many logins may be under way: fewer as soon as the server is busy, and again more, one at a time, while it is not.
#[derive(Clone, Copy, Debug)]
struct Window {
    len: usize,
    len_max: usize,
    /// Logins since it last changed.
    logins: usize,
}

impl Window {
    fn new(len_max: usize) -> Self {
        Self { len: len_max, len_max, logins: 0 }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn narrow(&mut self) {
        (self.len, self.logins) = ((self.len / 2).max(1), 0);
    }

    fn widen(&mut self) {
        self.logins += 1;
        if self.logins >= self.len * WIDEN_AFTER && self.len < self.len_max {
            (self.len, self.logins) = (self.len + 1, 0);
        }
    }
}

/// A login under way.
pub(super) struct Attempt {
    pub(super) is_by_token: bool,
    /// Since when, where unanswered logins are given up.
    pub(super) begun_us: u64,
    /// What is known of who comes.
    pub(super) away: Away,
    /// What follows, where the server will not have it so.
    next: Option<Next>,
    /// What could not be written yet.
    unsent: Vec<u8>,
    /// Where the connection is to be sealed, until the server has answered.
    pub(super) handshake: Option<Waiting>,
    /// The secret of the next ticket, once it has.
    resumption: Option<Secret>,
}

impl Attempt {
    fn new(is_by_token: bool, handshake: Option<Waiting>) -> Self {
        Self {
            is_by_token,
            begun_us: 0,
            away: Away::default(),
            next: None,
            unsent: Vec::new(),
            handshake,
            resumption: None,
        }
    }
}

/// The logins of one worker.
pub(super) struct Opening {
    tickets: Option<Tickets>,
    pub(super) pending: HashMap<usize, Attempt>,
    /// Whose ticket was refused.
    again: VecDeque<usize>,
    /// Who is to come again, and when, the first in front; and whether with a token.
    later: VecDeque<(u64, usize, bool)>,
    window: Window,
}

impl Opening {
    pub(super) fn new(start: &Start) -> io::Result<Self> {
        let slots = start.place.first..start.place.first + start.place.slots;
        let tickets = start.load.tickets.as_ref().map(|path| Tickets::open(path, slots)).transpose()?;
        Ok(Self {
            tickets,
            pending: HashMap::new(),
            again: VecDeque::new(),
            later: VecDeque::new(),
            window: Window::new(start.place.pending_max),
        })
    }

    /// A client is logged in: what was known of it, and what became of its ticket.
    pub(super) fn handle_welcome(
        &mut self,
        start: &Start,
        slot: usize,
        welcome: &proto::Welcome,
    ) -> (Option<Away>, Result<(), String>) {
        let tally = &start.post.tally;
        bump(&tally.logins, 1);
        self.window.widen();
        let attempt = self.pending.remove(&slot);
        if attempt.as_ref().is_some_and(|attempt| attempt.is_by_token) {
            bump(&tally.token_logins, 1);
        }
        let away = attempt.as_ref().map(|attempt| attempt.away);
        let secret = attempt.and_then(|attempt| attempt.resumption);
        start.shared.incarnation.store(welcome.incarnation, Ordering::Relaxed);
        let Some(tickets) = &mut self.tickets else { return (away, Ok(())) };
        let index = start.place.first + slot as u64;
        let kept = tickets.put(index, welcome.incarnation, &welcome.ticket, secret.as_ref());
        (away, kept.map_err(|error| format!("the ticket file: {error}")))
    }

    /// Writes what was kept of tickets.
    pub(super) fn flush_tickets(&mut self) -> io::Result<()> {
        self.tickets.as_mut().map_or(Ok(()), Tickets::flush)
    }

    /// A login came to nothing; `true`: it is tried again.
    pub(super) fn handle_ended(&mut self, slot: usize, now_us: u64) -> bool {
        let Some(Attempt { is_by_token, next: Some(next), .. }) = self.pending.remove(&slot) else { return false };
        match next {
            Next::WithToken => self.again.push_back(slot),
            Next::Later => self.later.push_back((now_us + BUSY_WAIT_US, slot, is_by_token)),
        }
        true
    }

    /// Who comes again now, and whether with a token.
    fn next_again(&mut self, now_us: u64) -> Option<(usize, bool)> {
        if let Some(slot) = self.again.pop_front() {
            return Some((slot, true));
        }
        let (_, slot, is_by_token) = self.later.pop_front_if(|(due_us, ..)| *due_us <= now_us)?;
        Some((slot, is_by_token))
    }

    /// The server has sent a record of this type: the handshake that it answers, if it does.
    ///
    /// # Errors
    /// It may not come in clear.
    pub(super) fn take_handshake(&mut self, slot: usize, kind: u8) -> Result<Option<Waiting>, String> {
        let Some(attempt) = self.pending.get_mut(&slot).filter(|attempt| attempt.handshake.is_some()) else {
            return Ok(None);
        };
        match RecordType::from_number(kind) {
            Some(RecordType::Handshake) => Ok(attempt.handshake.take()),
            Some(RecordType::Error) => Ok(None),
            _ => Err(format!("a record of type {kind:#04x} in clear")),
        }
    }

    /// The secret of the ticket that the next WELCOME will give.
    pub(super) fn keep_resumption(&mut self, slot: usize, secret: Secret) {
        if let Some(attempt) = self.pending.get_mut(&slot) {
            attempt.resumption = Some(secret);
        }
    }

    /// The first flight of a slot. Tokens are signed now and kept nowhere.
    fn begin_login(&mut self, start: &Start, slot: usize, with_token: bool) -> io::Result<(Vec<u8>, Attempt)> {
        let index = start.place.first + slot as u64;
        let user = client::user(start.load.first_user, index);
        let (credential, is_by_token) = match &start.login {
            LoginWith::Nothing => (login::Credential::Ticket(floor::ticket(user, DEVICE)), false),
            LoginWith::Tokens(credentials, sealing) => {
                let is_sealed = sealing.is_some();
                let ticket =
                    self.ticket(start, index).filter(|ticket| !with_token && ticket.secret.is_some() == is_sealed);
                if let Some(sealing) = sealing {
                    return begin_sealed(start, sealing, (credentials, user), ticket.as_ref());
                }
                match ticket {
                    Some(ticket) => (login::Credential::Ticket(ticket.bytes), false),
                    None => {
                        let token = credentials.token(user, DEVICE, None).map_err(io::Error::other)?;
                        (login::Credential::Token(token), true)
                    }
                }
            }
        };
        let mut flight = Vec::new();
        client::write_login(&mut flight, credential, seconds(start.load.keep_alive_us), start.load.sends_ready);
        Ok((flight, Attempt::new(is_by_token, None)))
    }

    /// A file that cannot be read is one without tickets: what comes of it is only slower.
    fn ticket(&mut self, start: &Start, index: u64) -> Option<Ticket> {
        let incarnation = start.shared.incarnation.load(Ordering::Relaxed);
        self.tickets.as_mut()?.take(index, incarnation).ok()?
    }
}

/// The first flight of a login to be sealed.
fn begin_sealed(
    start: &Start,
    sealing: &CrowdSealing,
    (credentials, user): (&Credentials, UserId),
    ticket: Option<&Ticket>,
) -> io::Result<(Vec<u8>, Attempt)> {
    let server = start.shared.server_key();
    let keep_alive_s = seconds(start.load.keep_alive_us);
    let comer = Comer { user, device: DEVICE, ticket, server, keep_alive_s };
    let begun = begin_login(sealing, &comer, |key| credentials.token(user, DEVICE, Some(key)));
    let begun = begun.map_err(io::Error::other)?;
    Ok((begun.flight, Attempt::new(begun.is_by_token, Some(begun.waiting))))
}

impl Worker {
    /// Opens what is wanted, as fast as is allowed; returns when to look again, if not at the next event.
    pub(super) fn open(&mut self) -> io::Result<Option<u64>> {
        let wanted = self.wanted();
        if self.returning.is_some() {
            return self.open_returning(wanted);
        }
        for _ in 0..OPENS_PER_TURN_MAX {
            let later_us = self.opening.later.front().map(|(due_us, ..)| *due_us);
            let is_due = !self.opening.again.is_empty() || later_us.is_some_and(|due_us| due_us <= self.now_us);
            if self.opening.pending.len() >= self.opening.window.len() {
                return Ok(None);
            }
            if !is_due && self.clients.len() as u64 >= wanted {
                if self.opening.pending.is_empty() && later_us.is_none() {
                    self.opening.flush_tickets()?;
                }
                return Ok(later_us);
            }
            if let Err(due_us) = self.start.shared.pace.take(self.now_us) {
                return Ok(Some(due_us));
            }
            let (slot, with_token) = self.opening.next_again(self.now_us).unwrap_or((self.clients.len(), false));
            self.connect(slot, Away { with_token, ..Away::default() })?;
        }
        Ok(Some(self.now_us))
    }

    pub(super) fn connect(&mut self, slot: usize, away: Away) -> io::Result<()> {
        let (flight, attempt) = self.opening.begin_login(&self.start, slot, away.with_token)?;
        let attempt = Attempt { away, begun_us: self.now_us, ..attempt };
        let Start { place, load, .. } = &self.start;
        if slot == self.clients.len() {
            self.clients.push(Client::default());
        }
        if self.start.login.sealing().is_some() {
            self.ciphers.resize_with(self.clients.len(), Cipher::default);
            *self.ciphers.get_mut(slot).expect("there is one for each client") = Cipher::Plaintext;
        }
        if self.returning.is_some() {
            bump(&self.start.post.tally.attempts, 1);
        }
        let source = load.sources.pick(place.number, place.workers, slot as u64);
        let opened = sys::connect_nonblocking(load.target, source).map(OwnedFd::from);
        let opened = opened.and_then(|socket| self.begin(slot, socket, flight, attempt));
        if let Err(error) = opened {
            self.opening.pending.remove(&slot);
            if self.returning.is_some() {
                let errno = Errno::from_io_error(&error);
                self.decide(slot, away, true, &error.to_string(), errno);
            } else {
                self.note_failure(slot, &error);
            }
        }
        Ok(())
    }

    /// On loopback a connection is mostly there when `connect` returns: the login goes out at once where it can.
    fn begin(&mut self, slot: usize, socket: OwnedFd, flight: Vec<u8>, attempt: Attempt) -> io::Result<()> {
        let (phase, unsent, more) = match rustix::io::write(&socket, &flight) {
            Ok(len) if len == flight.len() => (Phase::LoggingIn, Vec::new(), EventFlags::empty()),
            Ok(len) => return Err(io::Error::other(format!("a fresh socket took only {len} bytes"))),
            Err(Errno::AGAIN) => (Phase::Connecting, flight, EventFlags::OUT),
            Err(error) => return Err(error.into()),
        };
        let interest = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET | more;
        epoll::add(&self.epoll, &socket, EventData::new_u64(slot as u64), interest)?;
        self.opening.pending.insert(slot, Attempt { unsent, ..attempt });
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
            other => self.end_by(slot, &format!("writing the login: {other:?}"), other.err()),
        }
    }

    /// The server told an error. A refused ticket is none as long as there is a token.
    pub(super) fn handle_error(&mut self, slot: usize, error: &proto::Error) -> Result<(), String> {
        if self.returning.is_some() {
            return self.note_told(slot, error);
        }
        let Start { place, load, shared, post, login, .. } = &self.start;
        if let Some(attempt) = self.opening.pending.get_mut(&slot)
            && let Some((next, why)) = next(attempt, matches!(login, LoginWith::Tokens(..)), error.code)
        {
            if error.code == ErrorCode::ServerKeyUnknown.number() {
                shared.set_server_key(None);
            }
            attempt.next = Some(next);
            if next == Next::Later {
                self.opening.window.narrow();
            }
            bump(if next == Next::Later { &post.tally.logins_busy } else { &post.tally.tickets_refused }, 1);
            return Err(why.to_owned());
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

/// What follows an error that ends a login.
fn next(attempt: &Attempt, has_tokens: bool, code: u32) -> Option<(Next, &'static str)> {
    if code == ErrorCode::LoginsBusy.number() {
        return Some((Next::Later, "too many logins at once"));
    }
    let is_refused = ErrorClass::of(code) == ErrorClass::RefreshToken || code == ErrorCode::ServerKeyUnknown.number();
    (is_refused && has_tokens && !attempt.is_by_token).then_some((Next::WithToken, "the ticket was refused"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_server_gets_less_and_an_idle_one_more() {
        let mut window = Window::new(128);
        (0..1000).for_each(|_| window.widen());
        assert_eq!(window.len(), 128, "no more than there may be");
        (0..20).for_each(|_| window.narrow());
        assert_eq!(window.len(), 1, "and never nothing");
        (0..WIDEN_AFTER * (1 + 2 + 3)).for_each(|_| window.widen());
        assert_eq!(window.len(), 4);
    }
}
