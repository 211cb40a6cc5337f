//! One worker: a thread with a descriptor table of its own, thousands of idle clients, and one epoll over them.
//!
//! It sleeps until a socket, its bell or a step of the keep-alives wakes it. System calls are what it costs, so it
//! makes few: a client's login is written right behind `connect`, and a socket is asked about writing only where
//! that was too early. Decides nothing about the run.

mod opening;
mod returning;
mod sealing;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use culver_protocol::record::Cipher;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use self::opening::Opening;
use self::returning::Returning;
use super::client::{self, Client, Expected, Heard, Phase, Verdict};
use super::control::{Post, Shared, bump, lower};
use super::keep_alive::{KeepAlive, STEP_US};
use super::partials::{Partials, next_record};
use super::{CrowdLoad, LoginWith};
use crate::clock::Clock;
use crate::report::histogram::Latencies;
use crate::sys;

/// The bell's token; connections count from 0.
const BELL: u64 = u64::MAX;
/// Readiness events taken in one turn.
const EVENTS_MAX: usize = 256;
/// Bytes read at once: a DELIVER at its longest.
const READ_LEN: usize = 64 * 1024;
/// Reads of one socket in one turn: far more than the window of an idle client allows.
const READS_MAX: usize = 64;

/// A connection is given up when nothing came for so many halves of the keep-alive interval: its PONG is long overdue.
const SILENT_HALVES: u64 = 3;

/// Where a worker stands among all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) number: u64,
    pub(super) workers: u64,
    /// Its first client among all.
    pub(super) first: u64,
    /// Its clients.
    pub(super) slots: u64,
    /// Logins that it may have under way.
    pub(super) pending_max: usize,
}

/// What a worker is made from.
pub(super) struct Start {
    pub(super) place: Place,
    pub(super) load: Arc<CrowdLoad>,
    pub(super) login: LoginWith,
    pub(super) shared: Arc<Shared>,
    pub(super) post: Arc<Post>,
    pub(super) clock: Clock,
}

pub(super) struct Worker {
    start: Start,
    epoll: OwnedFd,
    clients: Vec<Client>,
    /// By slot, where connections are sealed; otherwise there is none.
    ciphers: Vec<Cipher>,
    partials: Partials,
    opening: Opening,
    /// Where clients come back.
    returning: Option<Returning>,
    keep_alive: Option<KeepAlive>,
    buffer: Vec<u8>,
    out: Vec<u8>,
    latencies: Option<Latencies>,
    now_us: u64,
}

impl Worker {
    /// Leaves the shared descriptor table, then opens whatever it needs in its own.
    pub(super) fn run(start: Start) -> io::Result<Option<Latencies>> {
        sys::take_private_descriptors(&[start.post.bell.as_fd()])?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, start.post.bell.as_fd(), EventData::new_u64(BELL), EventFlags::IN | EventFlags::ET)?;
        let slots = usize::try_from(start.place.slots).expect("a table has fewer descriptors");
        let mut worker = Self {
            epoll,
            clients: Vec::with_capacity(slots),
            ciphers: Vec::with_capacity(if start.login.sealing().is_some() { slots } else { 0 }),
            partials: Partials::default(),
            opening: Opening::new(&start)?,
            returning: Returning::new(&start),
            keep_alive: None,
            buffer: vec![0; READ_LEN],
            out: Vec::new(),
            latencies: None,
            now_us: start.clock.now_us(),
            start,
        };
        if let Some(returning) = &worker.returning {
            sys::stand_back(returning.nice())?;
        }
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while !worker.start.post.is_stopped.load(Ordering::Relaxed) {
            worker.turn(&mut events)?;
        }
        worker.drain(&mut events)?;
        worker.opening.flush_tickets()?;
        Ok(worker.latencies)
    }

    fn turn(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        self.now_us = self.start.clock.now_us();
        let returning_us = self.step_returning();
        let open_us = self.open()?;
        let keep_alive_us = self.step_keep_alive();
        let due_us = [returning_us, open_us, keep_alive_us].into_iter().flatten().min();
        let wait = due_us.map(|due_us| {
            let wait_us = due_us.saturating_sub(self.now_us);
            Timespec {
                tv_sec: i64::try_from(wait_us / 1_000_000).unwrap_or(i64::MAX),
                tv_nsec: i64::try_from(wait_us % 1_000_000 * 1000).expect("below one second"),
            }
        });
        self.handle_events(events, wait.as_ref()).map(drop)
    }

    /// What has come by now is heard before all is closed: a connection that the server has ended counts as lost.
    fn drain(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        for _ in 0..=self.clients.len() / EVENTS_MAX {
            if self.handle_events(events, Some(&at_once))? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Waits for events and handles them; returns how many there were.
    fn handle_events(&mut self, events: &mut Vec<epoll::Event>, wait: Option<&Timespec>) -> io::Result<usize> {
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), wait) {
            Err(Errno::INTR) => return Ok(0),
            result => result?,
        };
        let count = events.len();
        self.now_us = self.start.clock.now_us();
        for event in events.drain(..) {
            match event.data.u64() {
                BELL => self.answer_bell(),
                slot => self.handle_ready(usize::try_from(slot).expect("a slot"), event.flags),
            }
        }
        Ok(count)
    }

    /// The wishes themselves are looked at in every turn.
    fn answer_bell(&mut self) {
        // Edge-triggered: the bell's count need not be read to be heard again.
        let is_held = self.start.shared.holds_keep_alives.load(Ordering::Relaxed);
        if let Some(keep_alive) = &mut self.keep_alive {
            keep_alive.hold(is_held, self.now_us);
        }
    }

    fn handle_ready(&mut self, slot: usize, flags: EventFlags) {
        let Some(client) = self.clients.get(slot) else { return };
        if client.phase == Phase::Connecting {
            if !flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP) {
                return;
            }
            self.write_waiting_login(slot);
        }
        if !flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            return;
        }
        for _ in 0..READS_MAX {
            let Some(socket) = self.clients.get(slot).and_then(|client| client.socket.as_ref()) else { return };
            match rustix::io::read(socket, self.buffer.as_mut_slice()) {
                Ok(0) => return self.end(slot, "the server closed the connection"),
                Ok(len) => {
                    self.handle_bytes(slot, len);
                    if len < READ_LEN && !flags.intersects(EventFlags::RDHUP | EventFlags::HUP) {
                        return; // drained: what comes later raises a new event
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(error) => return self.end_by(slot, &io::Error::from(error).to_string(), Some(error)),
            }
        }
        self.end(slot, "the server sends without end");
    }

    /// The first `len` bytes of the buffer have come.
    fn handle_bytes(&mut self, slot: usize, len: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let bytes = buffer.get_mut(..len).expect("a read stays within its buffer");
        let place = self.clients.get(slot).and_then(|client| client.partial);
        let mut joined = self.partials.join(place, bytes);
        let outcome = self.handle_records(slot, joined.bytes());
        let client = self.clients.get_mut(slot).expect("it is being served");
        client.heard_s = seconds(self.now_us);
        let rest = outcome.as_ref().map_or(0, |rest| *rest);
        let joined = joined.bytes();
        client.partial = self.partials.keep(place, joined.get(joined.len() - rest..).expect("the rest is its end"));
        self.buffer = buffer;
        match outcome {
            Ok(_) => self.write_out(slot),
            Err(fault) => {
                self.out.clear();
                self.end(slot, &fault);
            }
        }
    }

    /// Serves all whole records; returns how many bytes are left of the next.
    fn handle_records(&mut self, slot: usize, mut bytes: &mut [u8]) -> Result<usize, String> {
        loop {
            let mut plaintext = Cipher::Plaintext;
            let cipher = self.ciphers.get_mut(slot).unwrap_or(&mut plaintext);
            let record = next_record(&mut bytes, cipher).map_err(|error| error.to_string())?;
            let Some(record) = record else { return Ok(bytes.len()) };
            if let Some(waiting) = self.opening.take_handshake(slot, record.kind)? {
                self.finish_handshake(slot, waiting, record.body)?;
                continue;
            }
            let client = self.clients.get_mut(slot).expect("it is being served");
            let heard = client.handle_record((record.kind, record.body), cipher, &mut self.out)?;
            self.handle_heard(slot, heard)?;
        }
    }

    fn handle_heard(&mut self, slot: usize, heard: Heard) -> Result<(), String> {
        match heard {
            Heard::Welcome(welcome) => {
                let (away, kept) = self.opening.handle_welcome(&self.start, slot, &welcome);
                self.note_return(slot, away);
                kept
            }
            Heard::Entries(deliver) => {
                self.handle_entries(slot, &deliver.entries);
                Ok(())
            }
            Heard::Pong => {
                bump(&self.start.post.tally.pongs, 1);
                Ok(())
            }
            Heard::Error(error) => self.handle_error(slot, &error),
            Heard::Goaway(goaway) => self.handle_goaway(slot, &goaway),
            Heard::Other => Ok(()),
        }
    }

    fn handle_entries(&mut self, slot: usize, entries: &[culver_protocol::proto::Entry]) {
        let Start { place, load, post, shared, .. } = &self.start;
        let index = place.first + slot as u64;
        let expected = Expected { run: load.run, index, connections: load.connections };
        let Some(client) = self.clients.get_mut(slot) else { return };
        for entry in entries {
            let verdict = client.handle_entry(entry, &expected);
            match verdict {
                Verdict::Due { sent_us, missing } => {
                    bump(&post.tally.delivered, 1);
                    bump(&post.tally.overtaken, missing);
                    if load.measures_delivery {
                        let latencies = self.latencies.get_or_insert_with(Latencies::new);
                        latencies.record(self.now_us.saturating_sub(sent_us));
                    }
                }
                Verdict::Again => bump(&post.tally.duplicated, 1),
                Verdict::Strange => bump(&post.tally.strange, 1),
                Verdict::Damaged => bump(&post.tally.damaged, 1),
                Verdict::Older => bump(&post.tally.older, 1),
            }
            if matches!(verdict, Verdict::Again | Verdict::Strange | Verdict::Damaged) {
                let user = client::user(load.first_user, index).0;
                shared.note_fault(|| format!("user {user} got a message: {verdict:?}"));
            }
        }
    }

    fn write_out(&mut self, slot: usize) {
        let Some(socket) = self.clients.get(slot).and_then(|client| client.socket.as_ref()) else { return };
        if self.out.is_empty() {
            return;
        }
        let written = rustix::io::write(socket, &self.out);
        let is_whole = written == Ok(self.out.len());
        self.out.clear();
        // A few bytes always fit, unless the server has stopped reading.
        if !is_whole {
            self.end(slot, &format!("writing a few bytes: {written:?}"));
        }
    }

    fn step_keep_alive(&mut self) -> Option<u64> {
        if self.clients.is_empty() {
            return None;
        }
        let (place, now_us) = (self.start.place, self.now_us);
        let interval_us = self.start.load.keep_alive_us;
        let keep_alive = self.keep_alive.get_or_insert_with(|| {
            let mut new = KeepAlive::new(interval_us, place.slots, now_us, place.number * STEP_US / place.workers);
            new.hold(self.start.shared.holds_keep_alives.load(Ordering::Relaxed), now_us);
            new
        });
        let due = keep_alive.step(now_us);
        let slots = place.slots;
        self.start.post.tally.pings_behind.store(keep_alive.behind(now_us), Ordering::Relaxed);
        for number in due {
            let slot = usize::try_from(number % slots).expect("a slot");
            self.ping(slot);
        }
        self.keep_alive.as_ref().and_then(KeepAlive::due_us)
    }

    fn ping(&mut self, slot: usize) {
        let Some(client) = self.clients.get(slot).filter(|client| client.phase == Phase::Live) else { return };
        let silent_s = client.silent_s(seconds(self.now_us));
        if silent_s > seconds(self.start.load.keep_alive_us * SILENT_HALVES / 2) {
            bump(&self.start.post.tally.silent, 1);
            let partial_len = self.partials.len(client.partial);
            return self.end(slot, &format!("nothing came for {silent_s} s, behind {partial_len} bytes of a record"));
        }
        let mut plaintext = Cipher::Plaintext;
        let cipher = self.ciphers.get_mut(slot).unwrap_or(&mut plaintext);
        client::write_ping(&mut self.out, cipher, self.start.load.keep_alive_us);
        bump(&self.start.post.tally.pings, 1);
        self.write_out(slot);
    }

    /// The connection is over.
    fn end(&mut self, slot: usize, why: &str) {
        self.end_by(slot, why, None);
    }

    /// The same, where the kernel said so.
    fn end_by(&mut self, slot: usize, why: &str, error: Option<Errno>) {
        let Start { place, load, post, shared, .. } = &self.start;
        let Some(client) = self.clients.get_mut(slot) else { return };
        if client.socket.take().is_none() {
            return;
        }
        let partial = client.partial.take();
        self.partials.release(partial);
        let was_live = client.phase == Phase::Live;
        if was_live {
            lower(&post.live, 1);
        }
        if self.returning.is_some() {
            return self.come_back_later(slot, was_live, why, error);
        }
        if !was_live && self.opening.handle_ended(slot, self.now_us) {
            client.phase = Phase::Absent; // it comes again
            return;
        }
        client.phase = Phase::Ended;
        bump(if was_live { &post.tally.disconnects } else { &post.tally.login_failures }, 1);
        let user = client::user(load.first_user, place.first + slot as u64).0;
        shared.note_fault(|| format!("user {user}: {why}"));
    }
}

/// Whole seconds: what a client keeps of a time.
fn seconds(us: u64) -> u32 {
    u32::try_from(us / 1_000_000).unwrap_or(u32::MAX)
}
