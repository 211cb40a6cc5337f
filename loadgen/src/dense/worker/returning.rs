//! How a worker's clients leave all at once, and come back whatever ended their connections.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use culver_protocol::error::ErrorCode;
use culver_protocol::proto;
use rand::Rng;
use rand::rngs::SmallRng;
use rustix::event::epoll;
use rustix::io::Errno;

use super::super::client::{self, Phase};
use super::super::control::{bump, lower};
use super::super::returns::{ANSWER_US_MAX, Away, DropWay, Ending, Next, Returns, Told, WaitQueue, ends, next};
use super::opening::OPENS_PER_TURN_MAX;
use super::{Start, Worker};
use crate::plan;

/// Between two looks at the logins that nobody answers.
const PATIENCE_LOOK_US: u64 = 1_000_000;

/// What a worker keeps whose clients come back.
pub(super) struct Returning {
    rules: Returns,
    queue: WaitQueue,
    rng: SmallRng,
    /// What the server has just told a connection that ends of it.
    told: Option<Told>,
    /// How often all were dropped.
    drops: u64,
    /// By slot: connections that were left without a word, until their clients are back.
    half_open: HashMap<usize, OwnedFd>,
    /// When to look next at the logins that nobody answers.
    look_us: u64,
    /// Logins that this worker may have under way.
    under_way_max: usize,
}

impl Returning {
    pub(super) fn new(start: &Start) -> Option<Self> {
        let rules = start.load.returns?;
        let under_way = rules.under_way_max.div_ceil(start.place.workers.max(1));
        Some(Self {
            rules,
            queue: WaitQueue::default(),
            rng: plan::rng(rules.seed, &format!("returns of worker {}", start.place.number)),
            told: None,
            drops: start.shared.drops().0,
            half_open: HashMap::new(),
            look_us: 0,
            under_way_max: usize::try_from(under_way).unwrap_or(usize::MAX).max(1),
        })
    }

    /// How far the worker stands back.
    pub(super) fn nice(&self) -> i32 {
        self.rules.nice
    }
}

impl Worker {
    /// Does what is due of leaving and of giving up; returns when to look again, where clients come back at all.
    pub(super) fn step_returning(&mut self) -> Option<u64> {
        let (drops, drop_us) = self.start.shared.drops();
        let returning = self.returning.as_mut()?;
        let mut due_us = None;
        if drops != returning.drops {
            if self.now_us < drop_us {
                due_us = Some(drop_us);
            } else {
                returning.drops = drops;
                self.drop_all();
            }
        }
        self.give_up_unanswered();
        let look_us = self.returning.as_ref().filter(|_| !self.opening.pending.is_empty()).map(|own| own.look_us);
        [due_us, look_us].into_iter().flatten().min()
    }

    /// All who are there leave, and wait for a random time.
    fn drop_all(&mut self) {
        let Some(returning) = &mut self.returning else { return };
        let (mut dropped, rules) = (0, returning.rules);
        for (slot, client) in self.clients.iter_mut().enumerate() {
            if client.phase != Phase::Live {
                continue;
            }
            let Some(socket) = client.socket.take() else { continue };
            self.partials.release(client.partial.take());
            client.phase = Phase::Absent;
            match rules.drop {
                DropWay::Rst => reset(&socket),
                DropWay::Fin => {}
                DropWay::Silent => {
                    if epoll::delete(&self.epoll, &socket).is_ok() {
                        returning.half_open.insert(slot, socket);
                    }
                }
            }
            // Each has its own moment, for there are many.
            let now_us = self.start.clock.now_us();
            let away = Away { since_us: Some(now_us), failures: 1, with_token: false };
            dropped += 1;
            match returning.queue.get_mut(number(slot)) {
                Some(waiting) => *waiting = away, // asked to leave before, at a time that counts
                None => {
                    let wait_us = returning.rng.random_range(0..=rules.within_us);
                    returning.queue.put(number(slot), now_us + wait_us, away);
                }
            }
        }
        bump(&self.start.post.tally.dropped, dropped);
        lower(&self.start.post.live, dropped);
        self.now_us = self.start.clock.now_us();
    }

    /// A login that nobody answers is given up, and tried again later.
    fn give_up_unanswered(&mut self) {
        let now_us = self.now_us;
        let Some(returning) = self.returning.as_mut().filter(|own| own.look_us <= now_us) else { return };
        returning.look_us = now_us + PATIENCE_LOOK_US;
        let late = self.opening.pending.iter();
        let late = late.filter(|(_, attempt)| attempt.begun_us.saturating_add(ANSWER_US_MAX) <= now_us);
        let late: Vec<usize> = late.map(|(slot, _)| *slot).collect();
        for slot in late {
            bump(&self.start.post.tally.unanswered, 1);
            self.end(slot, &format!("no answer within {:?}", Duration::from_micros(ANSWER_US_MAX)));
        }
    }

    /// Lets those come whose time it is, then those who have never been there; returns when to look again, if not at the
    /// next event.
    pub(super) fn open_returning(&mut self, wanted: u64) -> io::Result<Option<u64>> {
        for _ in 0..OPENS_PER_TURN_MAX {
            let Some(returning) = &mut self.returning else { return Ok(None) };
            if self.opening.pending.len() >= returning.under_way_max {
                return Ok(None);
            }
            if let Some((due_us, slot, away)) = returning.queue.pop(self.now_us) {
                if let Some(returned) = &mut *self.start.post.returned() {
                    returned.note_attempt(self.now_us.saturating_sub(due_us));
                }
                let slot = usize::try_from(slot).expect("a slot");
                let away = self.leave_first(slot, away);
                self.connect(slot, away)?;
                continue;
            }
            if self.clients.len() as u64 >= wanted {
                if self.opening.pending.is_empty() && returning.queue.len() == 0 {
                    self.opening.flush_tickets()?;
                }
                return Ok(returning.queue.due_us());
            }
            if let Err(due_us) = self.start.shared.pace.take(self.now_us) {
                return Ok([Some(due_us), returning.queue.due_us()].into_iter().flatten().min());
            }
            self.connect(self.clients.len(), Away::default())?;
        }
        Ok(Some(self.now_us))
    }

    /// Whoever was asked to leave is still there, unless the server has closed since.
    fn leave_first(&mut self, slot: usize, away: Away) -> Away {
        let Some(client) = self.clients.get_mut(slot) else { return away };
        if client.socket.take().is_none() {
            return away;
        }
        let partial = client.partial.take();
        client.phase = Phase::Absent;
        self.partials.release(partial);
        lower(&self.start.post.live, 1);
        Away { since_us: Some(self.now_us), ..away }
    }

    /// The server asks a client to leave: it does so at a random time between the two that were named.
    pub(super) fn handle_goaway(&mut self, slot: usize, goaway: &proto::Goaway) -> Result<(), String> {
        let Some(returning) = &mut self.returning else { return Err("the server asked to leave".to_owned()) };
        let is_live = self.clients.get(slot).is_some_and(|client| client.phase == Phase::Live);
        if !is_live || returning.queue.get_mut(number(slot)).is_some() {
            return Ok(());
        }
        let (from_ms, to_ms) = (goaway.reconnect_min_ms, goaway.reconnect_max_ms.max(goaway.reconnect_min_ms));
        let wait_us = returning.rng.random_range(u64::from(from_ms) * 1000..=u64::from(to_ms) * 1000);
        returning.queue.put(number(slot), self.now_us + wait_us, Away::default());
        bump(&self.start.post.tally.goaways, 1);
        if let Some(returned) = &mut *self.start.post.returned() {
            returned.note_goaway(self.now_us);
        }
        Ok(())
    }

    /// The server told an error. Where it ends the connection, what follows is decided when that has ended.
    pub(super) fn note_told(&mut self, slot: usize, error: &proto::Error) -> Result<(), String> {
        let Start { shared, post, login, .. } = &self.start;
        let Some(returning) = &mut self.returning else { return Ok(()) };
        shared.note_error(error.code);
        if !ends(error.code) {
            return Ok(());
        }
        match ErrorCode::from_number(error.code) {
            Some(ErrorCode::LoginsBusy) => bump(&post.tally.logins_busy, 1),
            Some(ErrorCode::ConnectionsFull) => bump(&post.tally.full, 1),
            Some(ErrorCode::ServerKeyUnknown) => shared.set_server_key(None),
            _ => {}
        }
        let attempt = self.opening.pending.get(&slot);
        returning.told = Some(Told {
            code: error.code,
            retry_us: u64::from(error.retry_after_ms) * 1000,
            is_in_clear: attempt.is_some_and(|attempt| attempt.handshake.is_some()),
            is_sealed: login.sealing().is_some(),
            is_by_token: attempt.is_some_and(|attempt| attempt.is_by_token),
        });
        Err(format!("the server told error {} {}", error.code, error.detail))
    }

    /// A connection has ended, or could not be made: its client comes back when the rules say so.
    pub(super) fn come_back_later(&mut self, slot: usize, was_live: bool, why: &str, error: Option<Errno>) {
        let attempt = self.opening.pending.remove(&slot);
        let away = attempt.map(|attempt| attempt.away).unwrap_or_default();
        let was_asked = self.returning.as_mut().is_some_and(|own| own.queue.get_mut(number(slot)).is_some());
        if was_live && !was_asked {
            bump(&self.start.post.tally.disconnects, 1);
        }
        self.decide(slot, away, !was_live, why, error);
    }

    /// What follows an ending. `is_attempt`: the client had not been welcomed.
    pub(super) fn decide(&mut self, slot: usize, away: Away, is_attempt: bool, why: &str, error: Option<Errno>) {
        let Start { place, load, shared, post, .. } = &self.start;
        let (Some(returning), Some(client)) = (&mut self.returning, self.clients.get_mut(slot)) else { return };
        client.phase = Phase::Absent;
        let since_us = if is_attempt { away.since_us } else { Some(self.now_us) };
        let told = returning.told.take();
        if let Some(waiting) = returning.queue.get_mut(number(slot)) {
            waiting.since_us = since_us; // it was asked to leave: that time counts
            return;
        }
        if is_attempt && told.is_none() {
            match error {
                Some(Errno::CONNREFUSED) => bump(&post.tally.refused, 1),
                Some(Errno::CONNRESET | Errno::PIPE) => bump(&post.tally.reset, 1),
                Some(_) => bump(&post.tally.unopened, 1),
                None => bump(&post.tally.cut, 1),
            }
        }
        let ending = told.map_or(Ending::Silent, Ending::Told);
        let (wait_us, with_token) = match next(&returning.rules, ending, away.failures, &mut returning.rng) {
            Next::After(wait_us) => (wait_us, away.with_token),
            Next::WithTokenAfter(wait_us) => (wait_us, true),
            Next::Never => {
                client.phase = Phase::Ended;
                bump(&post.tally.login_failures, 1);
                let user = client::user(load.first_user, place.first + slot as u64).0;
                shared.note_fault(|| format!("user {user} stays away: {why}"));
                return;
            }
        };
        if with_token && !away.with_token {
            bump(&post.tally.tickets_refused, 1);
        }
        let away = Away { since_us, failures: away.failures.saturating_add(1), with_token };
        returning.queue.put(number(slot), self.now_us + wait_us, away);
    }

    /// A client is logged in, perhaps again.
    pub(super) fn note_return(&mut self, slot: usize, away: Option<Away>) {
        let Start { post, .. } = &self.start;
        bump(&post.live, 1);
        let Some(returning) = &mut self.returning else { return };
        if let Some(old) = returning.half_open.remove(&slot) {
            reset(&old); // nobody misses it: the server has ended it, or will
        }
        let Some(since_us) = away.and_then(|away| away.since_us) else { return };
        bump(&post.tally.returns, 1);
        if let Some(returned) = &mut *post.returned() {
            returned.note_login(self.now_us.saturating_sub(since_us), self.now_us);
        }
    }

    /// How many shall have been opened by now.
    pub(super) fn wanted(&self) -> u64 {
        self.start.post.wanted.load(Ordering::Relaxed).min(self.start.place.slots)
    }
}

/// When it is closed the other side gets a reset.
fn reset(socket: &OwnedFd) {
    // A socket that cannot linger any more has been reset already.
    rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO)).ok();
}

/// A slot as the queue keeps it.
fn number(slot: usize) -> u32 {
    u32::try_from(slot).expect("a table has fewer descriptors")
}
