//! What a reactor does for its connections within a turn.

use culver_protocol::error::ErrorCode;
use culver_storage::planted::{self, Bug};

use super::buffers::NO_BUFFER;
use super::connection::{Connection, Life, ReadOutcome};
use super::socket::Socket;
use super::{DUE_PACE_US, ENDING_S, OPENING_LEN_MAX, Reactor, TICK_US};
use crate::hub::command::Address;
use crate::session::records::Records;
use crate::session::{Context, Outcome};

impl<S: Socket> Reactor<S> {
    /// A socket has bytes. `closed`: and the peer has finished, so that the end is behind them. Said once, and so every
    /// byte is read, sooner or later.
    pub fn handle_readable(&mut self, slot: u32, closed: bool) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        self.read(slot, closed, &mut buffer);
        self.read_buffer = buffer;
    }

    fn read(&mut self, slot: u32, closed: bool, buffer: &mut [u8]) {
        let (read_len, unsent_len) = (self.around.bounds.read_len, self.around.bounds.unsent_len);
        for _ in 0..self.around.bounds.reads_a_turn {
            let Some(connection) = self.connections.get_mut(slot) else { return };
            if connection.to_read {
                return; // its turn comes
            }
            if connection.session.is_entering() {
                return self.entering.note_more(slot); // it is read when its hub has let it in
            }
            if connection.life == Life::Open && self.buffers.get(connection.outgoing).len() > unsent_len {
                if connection.blocked {
                    return; // it does not read either, and when it does, `handle_writable` reads on
                }
                // All of it may go out at the end of this turn, and then nothing would say so.
                break;
            }
            // A partial frame goes to the front of the buffer, and what comes now behind it.
            let partial = self.buffers.get(connection.partial);
            let start = partial.len();
            let (front, rest) = buffer.split_at_mut(start);
            let rest_len = rest.len().min(read_len);
            let rest = rest.get_mut(..rest_len).expect("no more than there is");
            front.copy_from_slice(partial);
            match connection.read(rest) {
                ReadOutcome::Gone => return self.gone(slot),
                ReadOutcome::Nothing => return,
                ReadOutcome::Bytes(len) => {
                    let drained = len < rest_len;
                    let bytes = buffer.get_mut(..start + len).expect("read no more than there was room for");
                    let more = self.ingest(slot, bytes);
                    // A short read has emptied the socket (epoll(7)), unless the end stands behind it.
                    if !more || (drained && !closed) {
                        return;
                    }
                }
            }
        }
        self.read_later(slot);
    }

    /// Handles a partial frame's bytes and those behind them. Whether the socket may be read on.
    fn ingest(&mut self, slot: u32, bytes: &mut [u8]) -> bool {
        let now = self.now;
        let connection = self.connections.get_mut(slot).expect("the caller found it");
        if connection.life != Life::Open {
            self.buffers.release(&mut connection.partial);
            return true; // thrown away
        }
        connection.heard = now;
        let was_logged_in = connection.session.is_logged_in();
        let was_greeted = connection.session.is_greeted();
        let was_ready = connection.session.is_ready();
        let patience_before = patience(connection.session.keep_alive_s());
        let opening_len = if was_greeted { 0 } else { self.buffers.get(connection.partial).len() };
        let (outcome, wrote) = self.handle_bytes(slot, bytes);
        let connection = self.connections.get_mut(slot).expect("it is still there");
        let logged_in = connection.session.is_logged_in() && !was_logged_in;
        let greeted = connection.session.is_greeted() && !was_greeted;
        let (is_ready, is_entering) = (connection.session.is_ready(), connection.session.is_entering());
        self.opening_len -= opening_len;
        if !connection.session.is_greeted() {
            self.opening_len += self.buffers.get(connection.partial).len();
        }
        let patience = patience(connection.session.keep_alive_s());
        if wrote {
            self.flush_later(slot);
        }
        if logged_in {
            self.counters().logins.add(1);
        }
        if is_ready && !was_ready {
            self.wheel.remove(&mut self.connections, slot);
            self.watch(slot, patience);
            if is_entering {
                self.entering.begin(slot, self.mono_us);
            }
        } else if is_ready && patience < patience_before {
            // A later deadline is found when the earlier one has come; an earlier one must be looked at in time.
            self.wheel.remove(&mut self.connections, slot);
            self.watch(slot, patience);
        }
        self.post_commands();
        self.post_later(slot);
        match outcome {
            Outcome::Hungry if self.opening_len > OPENING_LEN_MAX && !greeted && !was_greeted => {
                let retry_after_ms = self.handshakes.take_place_ms();
                self.end_with(slot, ErrorCode::LoginsBusy, retry_after_ms);
                true
            }
            Outcome::Hungry => true,
            Outcome::Stalled => {
                self.stalled = true;
                // Planted: the kernel will surely say again that there is something to be read.
                if !planted::is(Bug::PausedSocketForgotten) {
                    self.read_later(slot);
                }
                false
            }
            Outcome::Later => {
                self.admit_later(slot);
                false
            }
            Outcome::Entering => {
                self.entering.note_more(slot);
                false
            }
            Outcome::Over(_) => {
                self.counters().errors_sent.add(1);
                self.end(slot);
                true
            }
        }
    }

    /// Has a session handle bytes, and keeps those that it could not use: what is left to do, and whether it wrote.
    fn handle_bytes(&mut self, slot: u32, bytes: &mut [u8]) -> (Outcome, bool) {
        let (room, keep_alive, reactor) = (self.hubs.room(), self.keep_alive(), self.number);
        let connection = self.connections.get_mut(slot).expect("the caller found it");
        let is_logged_in = connection.session.is_logged_in();
        let epoch = if is_logged_in { connection.session.epoch() } else { self.around.epochs.take() };
        let had_outgoing = connection.outgoing != NO_BUFFER;
        let mut out = self.buffers.take(&mut connection.outgoing);
        let mut cipher = self.ciphers.take(slot);
        let before = out.len();
        let mut context = Context {
            now_ms: self.wall_ms,
            authenticator: &self.around.authenticator,
            incarnation: self.around.incarnation,
            topology: &self.around.topology,
            keep_alive,
            address: Address { reactor, slot, generation: connection.generation, epoch },
            room,
            commands: &mut self.commands,
            out: Records::new(&mut out, &mut cipher),
            offer: &self.around.offer,
            handshakes: &mut self.handshakes,
            entropy: &*self.around.entropy,
        };
        let (taken, outcome) = connection.session.handle_bytes(bytes, &mut context);
        let wrote = out.len() > before;
        self.ciphers.put(slot, cipher);
        super::note_unsent(&mut self.unsent, connection, slot, out.len(), self.mono_us);
        self.buffers.put(&mut connection.outgoing, out);
        assert!(wrote || had_outgoing || connection.outgoing == NO_BUFFER, "an idle connection holds no buffer");
        keep_rest(connection, &mut self.buffers, bytes.get(taken..).expect("takes no more than there is"));
        (outcome, wrote)
    }

    fn admit_later(&mut self, slot: u32) {
        if self.put_aside(slot) {
            self.to_admit.push_back(slot);
        }
    }

    /// Handshakes that had to wait for this turn, as many as it may have, before those that come with it: each has its
    /// turn, and however many wait, only these are looked at again.
    pub(super) fn admit_next(&mut self) {
        while self.handshakes.has_turn() {
            let Some(slot) = self.to_admit.pop_front() else { return };
            self.take_up(slot);
        }
    }

    /// Connections that had to wait are read again.
    pub(super) fn read_again(&mut self) {
        if self.stalled && self.hubs.room() == 0 {
            return;
        }
        self.stalled = false;
        for _ in 0..self.to_read.len() {
            if self.stalled {
                return;
            }
            let Some(slot) = self.to_read.pop_front() else { return };
            self.take_up(slot);
        }
    }

    /// A connection is to be read again by and by: whether it is in none of the queues of those that are.
    pub(super) fn put_aside(&mut self, slot: u32) -> bool {
        let connection = self.connections.get_mut(slot).expect("the caller found it");
        !std::mem::replace(&mut connection.to_read, true)
    }

    /// One that was put aside has its turn, unless it is gone.
    pub(super) fn take_up(&mut self, slot: u32) {
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.to_read = false;
            self.read_on(slot);
        }
    }

    /// What was put aside of a connection, and what has come behind it.
    fn read_on(&mut self, slot: u32) {
        let connection = self.connections.get_mut(slot).expect("the caller found it");
        if connection.partial != NO_BUFFER {
            if !connection.session.is_greeted() {
                self.opening_len -= self.buffers.get(connection.partial).len();
            }
            let mut index = std::mem::replace(&mut connection.partial, NO_BUFFER);
            let mut bytes = self.buffers.take(&mut index);
            // `ingest` keeps what it cannot use in a buffer of its own choosing.
            self.buffers.put(&mut index, Vec::new());
            if !self.ingest(slot, &mut bytes) {
                return;
            }
        }
        // Nobody knows any more whether the end stood behind it: look.
        self.handle_readable(slot, true);
    }

    /// A session is let in: what its client has said meanwhile is read at once, before the hub says more, for it was
    /// said before the client heard any of that.
    pub(super) fn read_entered(&mut self, slot: u32) {
        let has_more = self.entering.end(slot);
        let connection = self.connections.get(slot).expect("the caller found it");
        if has_more && !connection.to_read {
            self.read_on(slot);
        }
    }

    /// A socket takes bytes again. Said once.
    pub fn handle_writable(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if !connection.blocked {
            return;
        }
        let stopped = self.buffers.get(connection.outgoing).len() > self.around.bounds.unsent_len;
        self.flush(slot);
        if stopped {
            self.handle_readable(slot, true);
        }
    }

    /// Everything written in this turn goes out, one write(2) a connection.
    pub(super) fn flush_all(&mut self) {
        for slot in std::mem::take(&mut self.to_flush) {
            let Some(connection) = self.connections.get_mut(slot) else { continue };
            connection.to_flush = false;
            if !connection.blocked {
                self.flush(slot);
            }
        }
    }

    fn flush(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let was_blocked = connection.blocked;
        if !connection.flush(&mut self.buffers) {
            return self.gone(slot);
        }
        if connection.blocked {
            self.unsent.note(slot, self.buffers.get(connection.outgoing).len(), self.mono_us);
            if !was_blocked {
                self.newly_blocked.push(slot);
            }
        } else if was_blocked {
            self.unsent.forget(slot);
        }
        if connection.outgoing == NO_BUFFER {
            self.unwritten.written(slot);
            if connection.life == Life::Ending {
                connection.finish();
            }
            self.post_later(slot);
        }
    }

    /// Everything that sockets have not taken is within its bound again: those with the most of it are ended. They are
    /// not told why: they do not read, and what they would have to read before that word is what there is no room for.
    pub(super) fn bound_unsent(&mut self) {
        while let Some(slot) = self.unsent.worst_beyond(self.around.bounds.unsent_all_len) {
            // Planted: what there is no room for goes, and the client stays.
            if planted::is(Bug::UnsentDropped) {
                let connection = self.connections.get_mut(slot).expect("only what is there is blocked");
                self.buffers.release(&mut connection.outgoing);
                connection.blocked = false;
                self.unsent.forget(slot);
                continue;
            }
            self.counters().slow_readers.add(1);
            self.gone(slot);
        }
        let counters = self.counters();
        counters.connections_blocked.set(self.unsent.count() as u64);
        counters.unsent_bytes.set(self.unsent.total_len() as u64);
    }

    /// Time passes: connections whose deadline has come are looked at.
    pub(super) fn tick(&mut self) {
        let now = self.now;
        if now != self.wheel.now() {
            self.wheel.advance(&mut self.connections, now, &mut self.due);
        }
        while let Some(slot) = self.entering.take_due(self.mono_us) {
            self.time_out(slot, ErrorCode::DeviceUnknown);
        }
        if self.due.is_empty() || self.mono_us.saturating_sub(self.looked_at_due_us) < DUE_PACE_US {
            return;
        }
        self.looked_at_due_us = self.mono_us;
        for _ in 0..self.due_now() {
            let Some(slot) = self.due.pop_front() else { return };
            let Some(connection) = self.connections.get_mut(slot) else { continue };
            if connection.timer.due > now {
                continue; // it has another deadline by now, or is another connection
            }
            match connection.life {
                Life::Closed => {}
                Life::Ending => self.gone(slot),
                Life::Open if !connection.session.is_ready() => self.time_out(slot, ErrorCode::LoginTimeout),
                Life::Open => {
                    let patience = patience(connection.session.keep_alive_s());
                    let silent = now - connection.heard;
                    if silent > patience {
                        self.time_out(slot, ErrorCode::KeepAliveTimeout);
                    } else {
                        self.watch(slot, patience - silent);
                    }
                }
            }
        }
    }

    /// How many of those whose time has come are looked at now: they all came with the same tick, and are spread over
    /// the time until the next, so that those who are busy do not wait for a thousand who leave.
    fn due_now(&self) -> usize {
        let since_tick_us = (self.mono_us - self.started_us.unwrap_or(self.mono_us)) % TICK_US;
        let looks_left = usize::try_from((TICK_US - since_tick_us).div_ceil(DUE_PACE_US)).expect("a thousand at most");
        self.due.len().div_ceil(looks_left).min(self.around.bounds.due_a_turn)
    }

    pub(super) fn time_out(&mut self, slot: u32, code: ErrorCode) {
        let counters = self.counters();
        counters.slow_readers.add(u64::from(code == ErrorCode::SlowReader));
        counters.keep_alive_timeouts.add(u64::from(code == ErrorCode::KeepAliveTimeout));
        self.end_with(slot, code, 0);
    }

    /// Ends a connection with an error that says when to come again; 0: whenever the code says.
    pub(super) fn end_with(&mut self, slot: u32, code: ErrorCode, retry_after_ms: u32) {
        self.forget_opening(slot);
        self.write(slot, |session, out| session.end_with(code, retry_after_ms, out));
        self.counters().errors_sent.add(1);
        self.flush_later(slot);
        self.end(slot);
    }

    /// The last record is on its way: what still comes in is thrown away, for closing at once would reset the
    /// connection and could destroy that record before the peer has read it.
    pub(super) fn end(&mut self, slot: u32) {
        let connection = self.connections.get_mut(slot).expect("the caller found it");
        if connection.life != Life::Open {
            return;
        }
        connection.life = Life::Ending;
        connection.tell_hubs();
        self.buffers.release(&mut connection.partial);
        if self.entering.end(slot) {
            self.read_later(slot); // and thrown away
        }
        self.wheel.remove(&mut self.connections, slot);
        self.watch(slot, ENDING_S);
        self.post_later(slot);
    }

    /// The peer is gone, or has been waited for long enough.
    fn gone(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if connection.life == Life::Closed {
            return;
        }
        if connection.life == Life::Open {
            connection.tell_hubs();
            self.forget_opening(slot);
        }
        let connection = self.connections.get_mut(slot).expect("looked at above");
        connection.close(&mut self.buffers);
        self.unsent.forget(slot);
        self.ciphers.forget(slot);
        self.handshakes.forget(slot);
        self.entering.end(slot);
        self.unwritten.forget(slot);
        self.wheel.remove(&mut self.connections, slot);
        self.counters().connections.sub(1);
        let connection = self.connections.get_mut(slot).expect("looked at above");
        if connection.is_forgotten() {
            self.connections.remove(slot);
        } else {
            self.post_later(slot);
        }
    }

    /// What has come of a login that will not be finished.
    fn forget_opening(&mut self, slot: u32) {
        let connection = self.connections.get_mut(slot).expect("the caller found it");
        if !connection.session.is_greeted() {
            self.opening_len -= self.buffers.get(connection.partial).len();
            self.buffers.release(&mut connection.partial);
        }
    }

    pub(super) fn flush_later(&mut self, slot: u32) {
        let connection = self.connections.get_mut(slot).expect("the caller found it");
        if !std::mem::replace(&mut connection.to_flush, true) {
            self.to_flush.push(slot);
        }
    }

    /// A receipt is all that a connection has to write: it waits a little for what goes there next, for a write(2) of
    /// its own costs more than all else about it.
    pub(super) fn flush_soon(&mut self, slot: u32) {
        let connection = self.connections.get_mut(slot).expect("the caller found it");
        let until_us = self.mono_us + self.around.bounds.receipt_wait_us;
        self.to_flush_soon.push_back((until_us, slot, connection.generation));
    }

    /// Receipts that have waited for long enough. A server that leaves lets none wait.
    pub(super) fn flush_due(&mut self) {
        let now_us = if self.is_leaving { u64::MAX } else { self.mono_us };
        while let Some((_, slot, generation)) = self.to_flush_soon.pop_front_if(|(until_us, ..)| *until_us <= now_us) {
            let connection = self.connections.get_mut(slot).filter(|connection| connection.generation == generation);
            // If it is blocked, its socket says when it takes bytes again.
            if connection.is_some_and(|connection| connection.outgoing != NO_BUFFER && !connection.blocked) {
                self.flush_later(slot);
            }
        }
    }

    pub(super) fn read_later(&mut self, slot: u32) {
        if self.put_aside(slot) {
            self.to_read.push_back(slot);
        }
    }
}

/// Seconds without a byte after which a client with this keep-alive is taken for dead.
fn patience(keep_alive_s: u16) -> u32 {
    let keep_alive_s = u32::from(keep_alive_s);
    keep_alive_s + keep_alive_s.div_ceil(2)
}

/// Keeps what could not be used yet.
fn keep_rest<S>(connection: &mut Connection<S>, buffers: &mut super::buffers::Buffers, rest: &[u8]) {
    if rest.is_empty() {
        buffers.release(&mut connection.partial);
    } else {
        let mut partial = buffers.take(&mut connection.partial);
        partial.clear();
        partial.extend_from_slice(rest);
        buffers.put(&mut connection.partial, partial);
    }
}
