//! Between connections and hubs: what sessions say to which hub, and what hubs have to say to sessions.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::Incarnation;
use culver_storage::planted::{self, Bug};
use culver_storage::topology::HubId;

use super::Reactor;
use super::buffers::NO_BUFFER;
use super::connection::Life;
use super::socket::Socket;
use crate::crash_point::{self, CrashPoint};
use crate::hub::command::Command;
use crate::hub::effect::{Effect, EffectKind};
use crate::session::Session;
use crate::session::records::Records;

/// What a session did with an effect.
#[derive(Default)]
struct Told {
    /// Entries written.
    entries: usize,
    /// A RECEIPT was written.
    receipt: bool,
    /// An RPC was answered.
    answer: bool,
    /// The session has ended.
    over: bool,
}

impl<S: Socket> Reactor<S> {
    /// Commands that the sessions made are posted; there is room for them.
    pub(super) fn post_commands(&mut self) {
        for (hub, command) in self.commands.drain(..) {
            let is_ack = matches!(command, Command::Ack { .. });
            let is_send = matches!(command, Command::Send { .. });
            self.around.metrics.reactor(usize::from(self.number)).acks.add(u64::from(is_ack));
            self.hubs.post(hub, command);
            if is_send {
                crash_point::reached(CrashPoint::Received);
            }
        }
    }

    /// Has a connection's next acknowledgement, resumption or close posted at the end of the turn, or when there is
    /// room.
    pub(super) fn post_later(&mut self, slot: u32) {
        let connection = self.connections.get_mut(slot).expect("the caller found it");
        if connection.to_post {
            return;
        }
        if let Some(hub) = connection.next_hub(&self.around.topology) {
            connection.to_post = true;
            self.hubs.wait_at(hub, slot);
        }
    }

    /// Acknowledgements and closes, as far as there is room; the rest waits its turn.
    pub(super) fn post_pending(&mut self) {
        for hub in self.hubs.ids() {
            while let Some(slot) = self.hubs.next_waiting(hub) {
                if !self.post_one(hub, slot) {
                    break;
                }
            }
        }
    }

    /// What a connection has for this hub; then it waits for the next one, if any. Whether the hub has room for more.
    fn post_one(&mut self, hub: HubId, slot: u32) -> bool {
        let Some(connection) = self.connections.get_mut(slot) else { return true };
        let session = connection.address(self.number, slot);
        let unsent = connection.outgoing != NO_BUFFER;
        let device = connection.session.device();
        loop {
            let next = connection.next_hub(&self.around.topology);
            if next != Some(hub) {
                connection.to_post = next.is_some();
                next.into_iter().for_each(|next| self.hubs.wait_at(next, slot));
                if planted::is(Bug::EffectToNextUser) && next.is_none() && connection.life == Life::Closed {
                    self.connections.remove(slot); // told, but they have not said that they know
                }
                return true;
            }
            if !self.hubs.has_room_for_close(hub) {
                self.hubs.wait_first(hub, slot);
                return false;
            }
            let command = connection.session.take_pending(session, unsent).unwrap_or_else(|| {
                connection.to_close &= !(1 << hub.0);
                connection.closes_owed += 1;
                Command::Close { session, device }
            });
            if matches!(command, Command::Ack { .. }) {
                self.around.metrics.reactor(usize::from(self.number)).acks.add(1);
            }
            self.hubs.post(hub, command);
        }
    }

    /// What the hubs have to say.
    pub(super) fn take_effects(&mut self) {
        let (effects_a_turn, pages_a_turn) = (self.around.bounds.effects_a_turn, self.around.bounds.pages_a_turn);
        for hub in self.hubs.ids() {
            let mut pages = 0;
            for _ in 0..effects_a_turn {
                if pages >= pages_a_turn {
                    break; // who gets one message does not wait for those who get a thousand
                }
                let Some(effect) = self.hubs.take_effect(hub) else { break };
                pages += usize::from(matches!(effect.kind, EffectKind::DeliverPage { .. }));
                self.handle_effect(effect);
            }
        }
    }

    fn handle_effect(&mut self, effect: Effect) {
        let slot = effect.session.slot;
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let is_meant = connection.address(self.number, slot) == effect.session
            || (planted::is(Bug::EffectToNextUser) && !matches!(effect.kind, EffectKind::Closed));
        if !is_meant {
            return; // of an earlier session
        }
        if let EffectKind::Closed = effect.kind {
            assert!(connection.life != Life::Open, "nobody asked for it");
            return self.forget(slot);
        }
        if connection.life != Life::Open {
            return;
        }
        let (blocked, incarnation) = (connection.blocked, self.around.incarnation);
        let was_entering = connection.session.is_entering();
        let is_unknown = matches!(effect.kind, EffectKind::Refused { code: ErrorCode::DeviceUnknown, .. });
        if was_entering && is_unknown && self.entering.refuse(slot, self.mono_us) {
            return; // it is told so when it no longer says how long the hub has looked
        }
        let is_accepted = matches!(effect.kind, EffectKind::Accepted { .. });
        let (told, before, after) = self.write(slot, |session, out| {
            let before = out.len();
            (tell(session, effect.kind, blocked, incarnation, out), before, out.len())
        });
        // What a client that does not read did not ask for goes into its log; what it is owed adds up here.
        let is_slow = blocked && after > before && after > self.around.bounds.unsent_len;
        if is_accepted {
            self.unwritten.add(slot, CrashPoint::Answered);
        }
        if told.entries > 0 {
            self.unwritten.add(slot, CrashPoint::Delivered);
        }
        let counters = self.counters();
        counters.entries_delivered.add(told.entries as u64);
        counters.receipts_written.add(u64::from(told.receipt));
        counters.rpcs.add(u64::from(told.answer));
        if !told.receipt {
            self.flush_later(slot);
        } else if before == 0 {
            self.flush_soon(slot);
        } // else it goes with what is there
        self.post_later(slot);
        let is_entering = self.connections.get(slot).is_some_and(|connection| connection.session.is_entering());
        if told.over {
            self.counters().errors_sent.add(1);
            self.end(slot);
        } else if is_slow {
            self.time_out(slot, ErrorCode::SlowReader);
        } else if was_entering && !is_entering {
            self.read_entered(slot);
        }
    }

    /// One of the hubs has forgotten the session: the slot is free as soon as all have, and the socket is closed.
    fn forget(&mut self, slot: u32) {
        let connection = self.connections.get_mut(slot).expect("the caller found it");
        connection.closes_owed -= 1;
        if connection.life == Life::Closed && connection.is_forgotten() {
            self.connections.remove(slot);
        }
    }
}

/// Has a session write what a hub has to say.
fn tell(
    session: &mut Session,
    kind: EffectKind,
    unsent: bool,
    incarnation: Incarnation,
    out: &mut Records<'_>,
) -> Told {
    let mut told = Told::default();
    match kind {
        EffectKind::LoggedIn { cursor, reset, gap, siblings } => {
            session.logged_in(cursor, reset, gap, siblings, incarnation, out);
        }
        EffectKind::Refused { code, retry_after_ms } => {
            session.end_with(code, retry_after_ms, out);
            told.over = true;
        }
        EffectKind::Accepted { accepted, skips } => session.write_accepted(&accepted, skips, out),
        EffectKind::Rejected { client_message_id, code, retry_after_ms } => {
            session.write_rejected(client_message_id, code, retry_after_ms, out);
        }
        EffectKind::Answer { id, result } => {
            session.write_answer(id, result, out);
            told.answer = true;
        }
        EffectKind::Deliver { previous, entry, .. } => {
            told.entries = session.deliver(previous, std::slice::from_ref(&entry), unsent, out);
        }
        EffectKind::DeliverPage { previous, entries, .. } => {
            told.entries = session.deliver(previous, &entries, unsent, out);
        }
        EffectKind::Skipped { previous, through, .. } => session.skip(previous, through),
        EffectKind::Gap { previous, start, .. } => session.write_gap(previous, start, incarnation, unsent, out),
        EffectKind::SyncStart { entries, through, conversations, .. } => {
            session.write_sync_start(entries, through, conversations, out);
        }
        EffectKind::SyncDone { through, .. } => session.write_sync_done(through, out),
        EffectKind::Receipt { version, marks, .. } => {
            session.write_receipt(version, &marks, out);
            told.receipt = true;
        }
        EffectKind::Siblings(siblings) => session.set_siblings(siblings),
        EffectKind::Replaced => {
            session.end(ErrorCode::Replaced, out);
            told.over = true;
        }
        EffectKind::Removed => {
            session.end(ErrorCode::DeviceRemoved, out);
            told.over = true;
        }
        EffectKind::Closed => {}
    }
    told
}
