//! Talks: what a user has, was told and has read of a conversation.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, ConversationSeq, UserId};
use culver_protocol::message::MarkView;

use super::Shards;
use super::decide::known;
use super::state::{Dirty, Talk};
use crate::batch::Batch;
use crate::command::{Decision, View};
use crate::engine::{Engine, Family};
use crate::error::EngineError;
use crate::key::{self, ShardId, TalkKind};
use crate::record::Record;
use crate::value::{ExpiredRow, MarkRow};

impl Shards {
    /// Decides that a user has read a conversation. What no device has acknowledged cannot have been read.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_mark_read(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        conversation: ConversationId,
        seq: ConversationSeq,
    ) -> Result<Decision, EngineError> {
        if conversation.direct_users().is_none() {
            return Ok(Decision::Reject(ErrorCode::ConversationInvalid));
        }
        match conversation.direct_peer(user) {
            None => return Ok(Decision::Reject(ErrorCode::NotAMember)),
            // Whoever writes a note has read it.
            Some(peer) if peer == user => return Ok(Decision::Unchanged),
            Some(_) => {}
        }
        let state = known!(self.user_mut(engine, user)?);
        let (ticked, version, tell) =
            (state.ticked(conversation), state.receipts_head + 1, !state.row.read_receipts_off);
        let rows = known!(self.talk(engine, user, conversation)?).rows;
        if seq > rows.delivered.max(ticked) {
            return Ok(Decision::Reject(ErrorCode::ReadBeyondDelivered));
        }
        if seq <= rows.read.seq {
            return Ok(Decision::Unchanged);
        }
        Ok(Decision::Apply(Record::MarkedRead { user, conversation, seq, version, tell }))
    }

    /// Decides whether a user gives and sees read receipts.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_read_receipts(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        on: bool,
    ) -> Result<Decision, EngineError> {
        let state = known!(self.user_mut(engine, user)?);
        if state.row.read_receipts_off != on {
            return Ok(Decision::Unchanged);
        }
        Ok(Decision::Apply(Record::ReadReceiptsSet { user, on }))
    }

    /// Whether a user gives and sees read receipts.
    ///
    /// # Errors
    /// The engine failed.
    pub fn read_receipts_on(&mut self, engine: &dyn Engine, user: UserId) -> Result<View<bool>, EngineError> {
        self.look(engine, user, |state| !state.row.read_receipts_off)
    }

    pub(super) fn apply_read_receipts(&mut self, user: UserId, on: bool) {
        let state = self.touch(user);
        state.row.read_receipts_off = !on;
        state.dirty = true;
    }

    pub(super) fn apply_read(
        &mut self,
        user: UserId,
        mark: (ConversationId, ConversationSeq),
        version: u64,
        tell: bool,
    ) {
        let (conversation, seq) = mark;
        let lead = self.policy.bounds.receipts_head_lead;
        let state = self.touch(user);
        state.advance_receipts(version, lead);
        if tell {
            state.tick(conversation, ConversationSeq(0), seq);
            state.tells = true;
        }
        let talk = self.touch_talk(user, conversation);
        assert!(seq > talk.rows.read.seq, "what was read stays read");
        talk.rows.read = MarkRow { seq, version };
        talk.dirty.read = true;
    }

    pub(super) fn apply_receipt(&mut self, user: UserId, mark: &MarkView, version: u64) {
        let lead = self.policy.bounds.receipts_head_lead;
        self.touch(user).advance_receipts(version, lead);
        let talk = self.touch_talk(user, mark.conversation);
        let Talk { rows, dirty, .. } = talk;
        if mark.delivered.0 > 0 {
            assert!(mark.delivered > rows.peer_delivered.seq, "receipts never go back");
            rows.peer_delivered = MarkRow { seq: mark.delivered, version };
            dirty.peer_delivered = true;
        }
        if mark.read.0 > 0 {
            assert!(mark.read > rows.peer_read.seq, "receipts never go back");
            rows.peer_read = MarkRow { seq: mark.read, version };
            dirty.peer_read = true;
        }
        if mark.expired_through.0 > 0 {
            rows.peer_expired = ExpiredRow { after: mark.expired_after, through: mark.expired_through, version };
            dirty.peer_expired = true;
        }
    }

    fn touch_talk(&mut self, user: UserId, conversation: ConversationId) -> &mut Talk {
        let number = self.building.batch.number();
        let talk = self.talks.get_mut(&(user, conversation)).expect("`decide` loaded the talk");
        if talk.touched != number {
            talk.touched = number;
            self.building.talks.push((user, conversation));
        }
        talk
    }
}

/// Writes the rows of a talk that have changed.
pub(super) fn put_talk(batch: &mut Batch, shard: ShardId, of: (UserId, ConversationId), talk: &mut Talk) {
    let Dirty { read, peer_delivered, peer_read, peer_expired } = std::mem::take(&mut talk.dirty);
    let key = |kind| key::talk(shard, of.0, of.1, kind);
    let rows = &talk.rows;
    let marks = [
        (read, TalkKind::Read, rows.read),
        (peer_delivered, TalkKind::PeerDelivered, rows.peer_delivered),
        (peer_read, TalkKind::PeerRead, rows.peer_read),
    ];
    for (_, kind, row) in marks.into_iter().filter(|(dirty, ..)| *dirty) {
        batch.put(Family::Member, &key(kind), (&row.encode(), &[]));
    }
    if peer_expired {
        batch.put(Family::Member, &key(TalkKind::PeerExpired), (&rows.peer_expired.encode(), &[]));
    }
}
