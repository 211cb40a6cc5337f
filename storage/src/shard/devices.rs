//! Devices: their links, cursors and what a login sees of them.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationSeq, DeviceId, InboxSeq, UserId};
use culver_protocol::limits::DEVICES_MAX;

use super::decide::known;
use super::{DAY_MS, Shards};
use crate::batch::BatchNumber;
use crate::command::{Acked, Decision, DeviceView, UserView, View};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::record::Record;
use crate::value::DeviceRow;

impl Shards {
    /// Decides the login of a device: links it, or notes the day. A ninth device is `DevicesFull`.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_link(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        device: DeviceId,
        now_ms: u64,
    ) -> Result<Decision, EngineError> {
        let day = u32::try_from(self.expiry.seen_ms(now_ms) / DAY_MS).unwrap_or(u32::MAX);
        // Most logins change nothing, and leave nothing in memory.
        let decision = known!(self.look(engine, user, |state| match state.device(device) {
            Some(row) if row.seen_day >= day => Decision::Unchanged,
            Some(_) => Decision::Apply(Record::DeviceSeen { user, device, day }),
            None if state.row.devices.len() >= DEVICES_MAX => Decision::Reject(ErrorCode::DevicesFull),
            None => Decision::Apply(Record::DeviceLinked { user, device, cursor: state.start(), day }),
        })?);
        if matches!(decision, Decision::Apply(_)) {
            known!(self.user_passing(engine, user)?);
        }
        Ok(decision)
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
        let passes = |state: &super::state::User| state.is_passing && state.touched == BatchNumber(0);
        if self.users.peek(&user).is_some_and(passes) {
            self.users.remove(&user);
        }
    }

    /// A user's devices, by ascending number.
    ///
    /// # Errors
    /// The engine failed.
    pub fn devices(&mut self, engine: &dyn Engine, user: UserId) -> Result<View<Vec<DeviceView>>, EngineError> {
        self.look(engine, user, super::state::User::devices)
    }

    pub(super) fn apply_linked(&mut self, id: UserId, device: DeviceId, cursor: InboxSeq, seen_day: u32) {
        let user = self.touch(id);
        assert!(cursor >= user.row.floor && cursor <= user.head, "a device starts where entries are");
        let index = user.row.devices.partition_point(|row| row.device < device);
        assert!(user.row.devices.get(index).is_none_or(|row| row.device != device), "`decide` found it not linked");
        // It may have been linked before, and have had less: it is not certain to hear of that at once.
        user.row.devices.insert(index, DeviceRow { device, cursor, seen_day, lost_through: cursor });
        user.dirty = true;
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
