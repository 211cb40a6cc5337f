//! Floors: when they are raised, how far, and which devices no longer hold them.

use std::collections::VecDeque;

use culver_protocol::id::{ConversationId, DeviceId, InboxSeq, UserId};
use culver_protocol::message::MarkView;

use super::decide::known;
use super::state::User;
use super::{DAY_MS, DEDUP_DAYS, Shards};
use crate::command::{Decision, ExpiryState, Fold, Folded, View};
use crate::engine::{Engine, Family};
use crate::error::EngineError;
use crate::key::{self, MetaKind, ShardId, TalkKind};
use crate::record::{Expired, Lane, Record, Stream};
use crate::value::{ClockRow, DeviceRow, ListRow};

/// Floors to be raised, named at once.
pub const FOLDS_MAX: usize = 64;

/// Users whose least cursor has risen above the floor.
#[derive(Debug)]
pub(super) struct Folds {
    /// Since they were last looked at.
    new: Vec<UserId>,
    /// With the time from which they are due.
    due: VecDeque<(u64, UserId)>,
    queued_max: usize,
}

impl Folds {
    pub(super) fn new(queued_max: usize) -> Self {
        Self { new: Vec::new(), due: VecDeque::new(), queued_max }
    }

    /// Puts a user into the queue if the floor can be raised.
    pub(super) fn queue(&mut self, id: UserId, user: &mut User) {
        let is_room = self.new.len() + self.due.len() < self.queued_max;
        if !user.is_fold_queued && is_room && user.least() > user.row.floor {
            user.is_fold_queued = true;
            self.new.push(id);
        }
    }
}

impl Shards {
    /// Floors to be raised because cursors rose a while ago: at most 64, for [`crate::reader::Read::Fold`].
    pub fn fold_due(&mut self, now_ms: u64) -> Vec<Fold> {
        let delay_ms = self.policy.bounds.fold_delay_ms;
        let due_ms = now_ms + delay_ms;
        self.folds.due.extend(self.folds.new.drain(..).map(|user| (due_ms, user)));
        let mut folds = Vec::new();
        for _ in 0..4 * FOLDS_MAX {
            // A clock that was ahead must not hold the queue up.
            let is_due = |(due_ms, _): &(u64, UserId)| *due_ms <= now_ms || *due_ms > now_ms + delay_ms;
            if folds.len() >= FOLDS_MAX || !self.folds.due.front().is_some_and(is_due) {
                break;
            }
            let Some((_, id)) = self.folds.due.pop_front() else { break };
            // Who has left memory is found by the sweep.
            let Some(user) = self.users.peek_mut(&id) else { continue };
            user.is_fold_queued = false;
            let (after, through, greatest) = (user.row.floor, user.least(), user.greatest());
            if through > after {
                folds.push(Fold { user: id, after, through, greatest, expire_before_ms: 0 });
            }
        }
        folds
    }

    /// What a user whom the sweep named is to be folded with, if anything. A device that is online is to be linked
    /// anew first, so that it counts as seen.
    ///
    /// # Errors
    /// The engine failed.
    pub fn fold_user(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        _now_ms: u64,
    ) -> Result<View<Option<Fold>>, EngineError> {
        let ExpiryState { today, expire_before_ms, stopped, .. } = self.expiry();
        let unlink_days = self.policy.unlink_days;
        self.look(engine, user, |state| {
            let away = if stopped { Vec::new() } else { state.away(today, unlink_days) };
            let (after, through) = (state.row.floor, state.least_without(&away));
            let may_rise = through > after || (expire_before_ms > 0 && state.head > after) || !away.is_empty();
            may_rise.then(|| Fold { user, after, through, greatest: state.greatest(), expire_before_ms })
        })
    }

    /// Decides what a reader found below a new floor. Unchanged: the user has changed meanwhile, or nothing rises.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_floor(
        &mut self,
        engine: &dyn Engine,
        folded: &Folded,
        _now_ms: u64,
    ) -> Result<Decision, EngineError> {
        let ExpiryState { today, stopped, .. } = self.expiry();
        let (fold, unlink_days) = (folded.fold, self.policy.unlink_days);
        let state = known!(self.user_mut(engine, fold.user)?);
        let unlinked = if stopped { Vec::new() } else { state.away(today, unlink_days) };
        let is_as_it_was = state.row.floor == fold.after
            && fold.through <= state.least_without(&unlinked).max(fold.after)
            // What was delivered is told before what expired.
            && (folded.expired.is_empty() || (state.greatest() == fold.greatest && state.ticks.is_empty()));
        let expires = folded.floor > fold.through;
        if !is_as_it_was
            || (expires && stopped)
            || folded.floor > state.head
            || (folded.floor <= fold.after && unlinked.is_empty())
        {
            return Ok(Decision::Unchanged);
        }
        Ok(Decision::Apply(Record::FloorMoved {
            user: fold.user,
            floor: folded.floor.max(fold.after),
            freed_bytes: folded.freed_bytes,
            lists: folded.lists.clone(),
            expired: folded.expired.clone(),
            unlinked,
        }))
    }

    pub(super) fn apply_floor(&mut self, id: UserId, floor: InboxSeq, freed_bytes: u64, unlinked: &[DeviceId]) {
        let Self { users, building, folds, .. } = self;
        let user = building.touch(users, id);
        assert!(floor >= user.row.floor && floor <= user.head, "a floor never falls, and no floor is above the head");
        let is_unlinked = |row: &&DeviceRow| unlinked.contains(&row.device);
        let named: Vec<_> = user.row.devices.iter().filter(is_unlinked).filter(|row| row.is_named).copied().collect();
        user.row.devices.retain(|row| !unlinked.contains(&row.device));
        for row in user.row.devices.iter_mut().filter(|row| row.cursor < floor) {
            (row.cursor, row.lost_through) = (floor, floor);
        }
        user.row.floor = floor;
        // Entries from before bytes were counted are freed without having been.
        user.row.waiting_bytes = user.row.waiting_bytes.saturating_sub(freed_bytes);
        user.dirty = true;
        folds.queue(id, user);
        named.iter().for_each(|row| self.put_name(id, row.device, ""));
    }

    pub(super) fn apply_lists(&mut self, user: UserId, lists: &[(ConversationId, ListRow)], expired: &[Expired]) {
        let shard = ShardId::of_user(user, self.shard_count);
        let Self { building, streams, .. } = self;
        for (conversation, row) in lists {
            let key = key::talk(shard, user, *conversation, TalkKind::List);
            building.batch.put(Family::Member, &key, (&row.encode_header(), &row.preview));
        }
        for Expired { conversation, after, through } in expired {
            let Some(peer) = conversation.direct_peer(user).filter(|peer| *peer != user) else { continue };
            let to = ShardId::of_user(peer, self.shard_count);
            let stream = Stream { from: shard, to, lane: Lane::Receipt };
            let mark = MarkView {
                conversation: *conversation,
                expired_after: *after,
                expired_through: *through,
                ..MarkView::default()
            };
            streams.put_receipt(&mut building.batch, stream, peer, &mark);
        }
    }

    /// Time passes before the expiry clock next goes on: what is stamped or seen now is so by that, too.
    pub fn pass(&mut self, mono_ms: u64) {
        self.expiry.pass(mono_ms);
    }

    /// Lets the expiry clock go on. What it returns is to be applied.
    pub fn tick(&mut self, now_ms: u64, mono_ms: u64) -> Option<Record> {
        self.expiry.tick(now_ms, mono_ms).map(|ms| Record::ClockMoved { ms })
    }

    /// How the expiry clock stands.
    #[must_use]
    pub fn expiry(&self) -> ExpiryState {
        let stopped = self.expiry.is_stopped();
        let expire_before_ms =
            if stopped { 0 } else { self.expiry.earlier_ms().saturating_sub(self.policy.retention_ms) };
        ExpiryState { clock_ms: self.expiry.ms(), today: self.today(), expire_before_ms, stopped }
    }

    /// Ids of messages from before this are no longer known; 0: all are.
    #[must_use]
    pub fn dedup_before_ms(&self) -> u64 {
        if self.expiry.is_stopped() { 0 } else { self.expiry.earlier_ms().saturating_sub(DEDUP_DAYS * DAY_MS) }
    }

    /// Days since 1970, by the earlier of two clocks.
    pub(super) fn today(&self) -> u32 {
        u32::try_from(self.expiry.earlier_ms() / DAY_MS).unwrap_or(u32::MAX)
    }

    /// The clock's row goes into the batch, and with it the heads of all streams: what is at rest is written too.
    pub(super) fn apply_clock(&mut self, ms: u64) {
        self.expiry.wrote(ms);
        let key = key::meta(self.first_shard(), MetaKind::Clock, 0);
        self.building.batch.put(Family::Meta, &key, (&ClockRow { ms }.encode(), &[]));
        self.building.with_heads = true;
    }
}
