//! Devices: their links, keys, cursors and what a login sees of them.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationSeq, DeviceId, InboxSeq, UserId};
use culver_protocol::limits::DEVICES_MAX;

use super::decide::known;
use super::state::User;
use super::{DAY_MS, Shards};
use crate::batch::BatchNumber;
use crate::command::{Acked, Decision, DeviceView, Fingerprint, Proof, UserView, View};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::planted::{self, Bug};
use crate::record::Record;
use crate::value::DeviceRow;

impl User {
    /// The key that a login registers its device with; none: it registers nothing.
    fn key_to_register(
        &self,
        device: DeviceId,
        fingerprint: Option<Fingerprint>,
        proof: Proof,
    ) -> Result<Option<Fingerprint>, ErrorCode> {
        let is_same = |key| Some(key) == fingerprint || planted::is(Bug::KeyNotCompared);
        let has_key = |row: &DeviceRow| row.fingerprint.is_some_and(is_same);
        match proof {
            Proof::PlaintextToken { issued_s } => self.check_issued(issued_s).map(|()| None),
            Proof::PlaintextTicket { issued_s } if self.device(device).is_some() => self.check_ticket(issued_s),
            Proof::Ticket { issued_s } if self.device(device).is_some_and(has_key) => self.check_ticket(issued_s),
            Proof::Registered if self.device(device).is_some_and(has_key) => Ok(None),
            Proof::Registered | Proof::Ticket { .. }
                if planted::is(Bug::RemovedTicketAccepted) && self.row.tokens_from_s > 0 =>
            {
                Ok(None)
            }
            Proof::Token { issued_s } if fingerprint.is_some() => self.check_issued(issued_s).map(|()| fingerprint),
            // The same for users and devices that are not there, so that nobody learns which are.
            Proof::PlaintextTicket { .. } | Proof::Registered | Proof::Ticket { .. } | Proof::Token { .. } => {
                Err(ErrorCode::DeviceUnknown)
            }
        }
    }

    /// Whether a token was issued after the user's last removal of a device.
    fn check_issued(&self, issued_s: u64) -> Result<(), ErrorCode> {
        let is_void = issued_s < self.row.tokens_from_s && !planted::is(Bug::RemovedTokenAccepted);
        if is_void { Err(ErrorCode::TokenExpired) } else { Ok(()) }
    }

    /// The same of a ticket: a device that was removed may be registered again with the key that it had, and must not
    /// bring back what was stolen from it. To its user's other devices it only means that they show their keys once.
    fn check_ticket(&self, issued_s: u64) -> Result<Option<Fingerprint>, ErrorCode> {
        let is_void = issued_s < self.row.tokens_from_s && !planted::is(Bug::RemovedTicketAccepted);
        if is_void { Err(ErrorCode::TicketStale) } else { Ok(None) }
    }

    fn link(&self, user: UserId, device: DeviceId, day: u32, fingerprint: Option<Fingerprint>) -> Decision {
        let Some(row) = self.device(device) else {
            if self.row.devices.len() >= DEVICES_MAX {
                return Decision::Reject(ErrorCode::DevicesFull);
            }
            return Decision::Apply(Record::DeviceLinked { user, device, cursor: self.start(), day, fingerprint });
        };
        match fingerprint {
            Some(fingerprint) if row.fingerprint != Some(fingerprint) => {
                let (replaces, day) = (row.fingerprint.is_some(), day.max(row.seen_day));
                Decision::Apply(Record::DeviceRegistered { user, device, fingerprint, replaces, day })
            }
            _ => seen(user, row, day),
        }
    }
}

fn seen(user: UserId, row: &DeviceRow, day: u32) -> Decision {
    if row.seen_day >= day {
        return Decision::Unchanged;
    }
    Decision::Apply(Record::DeviceSeen { user, device: row.device, day })
}

impl Shards {
    /// Decides the login of a device that showed the key with this fingerprint: links it and registers the key, if its
    /// proof may do that, or notes the day. A ninth device is `DevicesFull`, a token from before a removal
    /// `TokenExpired`, a ticket from before one `TicketStale`; without a token, whoever is not linked, or has not the key that the device is registered with, is
    /// `DeviceUnknown`, whether or not there is such a device or user.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_link(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        device: DeviceId,
        fingerprint: Option<Fingerprint>,
        proof: Proof,
        now_ms: u64,
    ) -> Result<Decision, EngineError> {
        let day = self.day_seen(now_ms);
        let decide = |state: &User| match state.key_to_register(device, fingerprint, proof) {
            Ok(fingerprint) => state.link(user, device, day, fingerprint),
            Err(code) => Decision::Reject(code),
        };
        self.decide_passing(engine, user, decide)
    }

    /// Decides that a device which is online is not away, if it is linked.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_seen(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        device: DeviceId,
        now_ms: u64,
    ) -> Result<Decision, EngineError> {
        let day = self.day_seen(now_ms);
        let decide = |state: &User| state.device(device).map_or(Decision::Unchanged, |row| seen(user, row, day));
        self.decide_passing(engine, user, decide)
    }

    /// Most logins change nothing, and leave nothing in memory.
    fn decide_passing(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        decide: impl FnOnce(&User) -> Decision,
    ) -> Result<Decision, EngineError> {
        let decision = known!(self.look(engine, user, decide)?);
        if matches!(decision, Decision::Apply(_)) {
            known!(self.user_passing(engine, user)?);
        }
        Ok(decision)
    }

    fn day_seen(&self, now_ms: u64) -> u32 {
        u32::try_from(self.expiry.seen_ms(now_ms) / DAY_MS).unwrap_or(u32::MAX)
    }

    /// Decides that a device is removed: its cursor, key and name are forgotten, and no token issued up to now lets it
    /// or another device of the user's in. One that is not linked is `DeviceNotFound`.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_remove(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        device: DeviceId,
        now_ms: u64,
    ) -> Result<Decision, EngineError> {
        let state = known!(self.user_mut(engine, user)?);
        if state.device(device).is_none() {
            return Ok(Decision::Reject(ErrorCode::DeviceNotFound));
        }
        // A clock that went back lets no earlier token in again.
        let tokens_from_s = (now_ms / 1000 + 1).max(state.row.tokens_from_s);
        Ok(Decision::Apply(Record::DeviceRemoved { user, device, tokens_from_s }))
    }

    /// Decides an acknowledgement of everything up to `through`, which covers `acked`. One that is not beyond the last
    /// changes nothing, nor does one of a device that is not linked.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_ack(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        device: DeviceId,
        through: InboxSeq,
        acked: &[Acked],
        _now_ms: u64,
    ) -> Result<Decision, EngineError> {
        if through == InboxSeq(0) {
            return Ok(Decision::Unchanged);
        }
        let state = known!(self.user_mut(engine, user)?);
        if through > state.head {
            return Ok(Decision::Reject(ErrorCode::AckBeyondSent));
        }
        let is_first = match state.device(device) {
            Some(row) if row.cursor < through => row.cursor == state.greatest(),
            _ => return Ok(Decision::Unchanged),
        };
        // The first device counts. What follows the greatest cursor, none has had. What precedes it another has had,
        // unless it was linked after that: only what was told says which.
        let delivered = if is_first { acked.to_vec() } else { known!(self.delivered_first(engine, user, acked)?) };
        Ok(Decision::Apply(Record::CursorMoved { user, device, cursor: through, step: false, delivered }))
    }

    /// Decides that a device steps over its own up to `through`. It says nothing of what precedes that: a device that is
    /// to be told of a gap is still to be told.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_step(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        device: DeviceId,
        through: InboxSeq,
    ) -> Result<Decision, EngineError> {
        let state = known!(self.user_mut(engine, user)?);
        match state.device(device) {
            Some(row) if row.cursor < through && through <= state.head => Ok(Decision::Apply(Record::CursorMoved {
                user,
                device,
                cursor: through,
                step: true,
                delivered: Vec::new(),
            })),
            _ => Ok(Decision::Unchanged),
        }
    }

    /// Decides that a device that was just linked starts behind `claim`, its login's cursor: it was removed, and comes
    /// back to a user who has no device left. What precedes its cursor it would drop and acknowledge all the same, and
    /// may never have had: what was there before it was first linked, only others were to fetch. What follows all
    /// cursors that there were, it has if it says so, and nobody was told: that is sent again.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_return(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        device: DeviceId,
        claim: InboxSeq,
    ) -> Result<Decision, EngineError> {
        let through = |state: &User| if claim > state.head { InboxSeq(0) } else { claim.min(state.row.had) };
        match known!(self.look(engine, user, through)?) {
            // It claims nothing, or what cannot be, or nobody was ever removed: this login leaves nothing in memory.
            InboxSeq(0) => Ok(Decision::Unchanged),
            through => self.decide_step(engine, user, device, through),
        }
    }

    /// Of what a device acknowledged, what no device had before.
    fn delivered_first(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        acked: &[Acked],
    ) -> Result<View<Vec<Acked>>, EngineError> {
        let mut delivered = Vec::new();
        for acked in acked {
            let told = match self.talk(engine, user, acked.conversation)? {
                View::Known(talk) => talk.rows.delivered,
                View::Waits(load) => return Ok(View::Waits(load)),
            };
            let ticked = self.users.peek(&user).map_or(ConversationSeq(0), |state| state.ticked(acked.conversation));
            if acked.seq > told.max(ticked) {
                delivered.push(*acked);
            }
        }
        Ok(View::Known(delivered))
    }

    /// What a login sees. Nothing is kept in memory for it, except what had to be read from the disk.
    ///
    /// # Errors
    /// The engine failed.
    pub fn user(&mut self, engine: &dyn Engine, user: UserId, device: DeviceId) -> Result<View<UserView>, EngineError> {
        self.look(engine, user, |state| state.view(device))
    }

    /// A login is through: whoever was read from the disk for it, and was not changed, leaves memory. A million who log
    /// in and say nothing would fill it with what nobody asks for.
    pub fn let_pass(&mut self, user: UserId) {
        let passes = |state: &User| state.is_passing && state.touched == BatchNumber(0);
        if self.users.peek(&user).is_some_and(passes) {
            self.users.remove(&user);
        }
    }

    /// A user's devices, by ascending number.
    ///
    /// # Errors
    /// The engine failed.
    pub fn devices(&mut self, engine: &dyn Engine, user: UserId) -> Result<View<Vec<DeviceView>>, EngineError> {
        self.look(engine, user, User::devices)
    }

    pub(super) fn apply_linked(
        &mut self,
        id: UserId,
        device: DeviceId,
        cursor: InboxSeq,
        (seen_day, fingerprint): (u32, Option<Fingerprint>),
    ) {
        let user = self.touch(id);
        assert!(cursor >= user.row.floor && cursor <= user.head, "a device starts where entries are");
        let index = user.row.devices.partition_point(|row| row.device < device);
        assert!(user.row.devices.get(index).is_none_or(|row| row.device != device), "`decide` found it not linked");
        // It may have been linked before, and have had less: it is not certain to hear of that at once.
        let row = DeviceRow { device, cursor, seen_day, lost_through: cursor, fingerprint, is_named: false };
        user.row.devices.insert(index, row);
        user.dirty = true;
    }

    pub(super) fn apply_registered(&mut self, id: UserId, device: DeviceId, fingerprint: Fingerprint, day: u32) {
        let user = self.touch(id);
        let row = user.row.devices.iter_mut().find(|row| row.device == device).expect("`decide` found it linked");
        (row.fingerprint, row.seen_day) = (Some(fingerprint), day);
        user.dirty = true;
    }

    pub(super) fn apply_removed(&mut self, id: UserId, device: DeviceId, tokens_from_s: u64) {
        let Self { users, building, folds, .. } = self;
        let user = building.touch(users, id);
        assert!(tokens_from_s >= user.row.tokens_from_s, "what no token may do, none may do later");
        // What it had, the others may not have: it is not told of again as if nobody had had it.
        user.row.had = user.greatest();
        user.row.tokens_from_s = tokens_from_s;
        let index = user.row.devices.iter().position(|row| row.device == device).expect("`decide` found it linked");
        let removed = user.row.devices.remove(index);
        user.dirty |= !planted::is(Bug::RemovalNotDurable);
        folds.queue(id, user);
        if removed.is_named {
            self.put_name(id, device, "");
        }
    }

    pub(super) fn apply_seen(&mut self, id: UserId, device: DeviceId, day: u32) {
        let user = self.touch(id);
        let row = user.row.devices.iter_mut().find(|row| row.device == device).expect("`decide` found it linked");
        row.seen_day = day;
        user.dirty = true;
    }

    pub(super) fn apply_cursor(
        &mut self,
        id: UserId,
        device: DeviceId,
        (cursor, step): (InboxSeq, bool),
        delivered: &[Acked],
    ) {
        let Self { users, building, folds, .. } = self;
        let user = building.touch(users, id);
        let head = user.head;
        let row = user.row.devices.iter_mut().find(|row| row.device == device).expect("`decide` found it linked");
        assert!(cursor > row.cursor && cursor <= head, "cursors only advance, and not beyond the head");
        row.cursor = cursor;
        if !step {
            row.lost_through = InboxSeq(0);
        }
        user.moved = true;
        for acked in delivered {
            user.tick(acked.conversation, acked.seq, ConversationSeq(0));
        }
        folds.queue(id, user);
    }
}
