//! What nobody asks for: floors, expiry, devices that stay away, streams that stand still, the clock entries expire by.

use std::collections::VecDeque;

use culver_protocol::id::UserId;
use culver_storage::command::{Decision, ExpiryState, Load, View};
use culver_storage::error::EngineError;
use culver_storage::filter::Retention;
use culver_storage::key::ShardId;
use culver_storage::reader::{Folded, Read};
use culver_storage::record::Record;

use super::parking::Work;
use super::{Hub, Tried};

/// How often it is looked after.
const INTERVAL_MS: u64 = 50;

/// What the upkeep remembers.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// When it was last looked after.
    last_ms: Option<u64>,
    /// Folds that have not come back, or wait.
    folds: usize,
    /// When the next sweep begins.
    sweep_ms: Option<u64>,
    /// Shards that the sweep has not finished.
    shards: VecDeque<ShardId>,
    /// Users that it found, and that are not seen to yet.
    found: VecDeque<UserId>,
    /// It goes on after this user of the first of the shards once they are.
    sweep_on: Option<Option<UserId>>,
    /// Expiry had stopped when this was last asked for.
    was_stopped: bool,
}

impl Upkeep {
    /// Folds that have not come back, or wait.
    pub(super) fn folds(&self) -> usize {
        self.folds
    }
}

impl Hub {
    /// It is this late, for whatever comes until it is time for the upkeep.
    pub fn pass(&mut self, mono_ms: u64) {
        self.shards.pass(mono_ms);
        self.rates.pass(mono_ms);
        self.logins.pass(mono_ms);
    }

    /// Looks after what nobody asks for, if it is time.
    ///
    /// # Errors
    /// The engine could not be read.
    pub fn keep_up(&mut self, now_ms: u64, mono_ms: u64) -> Result<(), EngineError> {
        if self.upkeep.last_ms.is_some_and(|last| mono_ms.saturating_sub(last) < INTERVAL_MS) {
            return Ok(());
        }
        self.upkeep.last_ms = Some(mono_ms);
        if let Some(record) = self.shards.tick(now_ms, mono_ms) {
            self.apply_at_leisure(&record, now_ms);
        }
        self.redrive(now_ms);
        self.ask_for_dropped();
        self.fold(now_ms);
        self.sweep(mono_ms);
        self.rates.sweep();
        self.logins.sweep();
        self.fold_found(now_ms)
    }

    /// What compaction may forget, as of what is durable.
    pub fn tell_retention(&self, retention: &Retention) {
        retention.forget_dedup_before(self.shards.dedup_before_ms());
    }

    /// The clock that entries expire by has stopped, for the clock on the wall has jumped.
    #[must_use]
    pub fn is_expiry_stopped(&self) -> bool {
        self.shards.expiry().stopped
    }

    /// Whether expiry has stopped, or goes on again: once each time.
    pub fn take_expiry_change(&mut self) -> Option<bool> {
        let stopped = self.is_expiry_stopped();
        (std::mem::replace(&mut self.upkeep.was_stopped, stopped) != stopped).then_some(stopped)
    }

    /// The clock that entries expire by.
    #[must_use]
    pub fn expiry_clock_ms(&self) -> u64 {
        self.shards.expiry().clock_ms
    }

    fn fold(&mut self, now_ms: u64) {
        if self.upkeep.folds >= self.bounds.folds {
            return;
        }
        for fold in self.shards.fold_due(now_ms) {
            self.upkeep.folds += 1;
            self.want(Read::Fold(fold));
        }
    }

    /// Users that the sweep found, as far as there is room.
    fn fold_found(&mut self, now_ms: u64) -> Result<(), EngineError> {
        while self.upkeep.folds < self.bounds.folds {
            let Some(user) = self.upkeep.found.pop_front() else { break };
            self.upkeep.folds += 1;
            self.handle_work(Work::Fold(user), now_ms)?;
        }
        if self.upkeep.found.is_empty()
            && let Some(after) = self.upkeep.sweep_on.take()
        {
            self.read_sweep(after);
        }
        Ok(())
    }

    /// A user whom the sweep found.
    pub(super) fn fold_user(&mut self, user: UserId, now_ms: u64) -> Result<Tried, EngineError> {
        if let Some(load) = self.see_devices(user, now_ms)? {
            return Ok(Tried::Waits(load));
        }
        match self.shards.fold_user(&*self.engine, user, now_ms)? {
            View::Waits(load) => return Ok(Tried::Waits(load)),
            View::Known(Some(fold)) => self.want(Read::Fold(fold)),
            View::Known(None) => self.upkeep.folds -= 1,
        }
        Ok(Tried::Done)
    }

    /// A fold has come back.
    pub(super) fn raise_floor(&mut self, folded: &Folded, now_ms: u64) -> Result<Tried, EngineError> {
        let user = folded.fold.user;
        if let Some(load) = self.see_devices(user, now_ms)? {
            return Ok(Tried::Waits(load));
        }
        match self.shards.decide_floor(&*self.engine, folded, now_ms)? {
            Decision::Waits(load) => return Ok(Tried::Waits(load)),
            Decision::Apply(record) => {
                self.apply_at_leisure(&record, now_ms);
                if let Record::FloorMoved { floor, unlinked, .. } = &record {
                    self.counts.floors_moved += 1;
                    self.lift_sessions(user, *floor);
                    if !unlinked.is_empty() {
                        self.tell_alone(user)?;
                    }
                }
            }
            Decision::Duplicate(_) | Decision::Unchanged | Decision::Reject(_) => {}
        }
        self.upkeep.folds -= 1;
        Ok(Tried::Done)
    }

    /// Goes on with the sweep, one read at a time.
    fn sweep(&mut self, mono_ms: u64) {
        let due_ms = *self.upkeep.sweep_ms.get_or_insert(mono_ms + self.bounds.first_sweep_ms);
        if mono_ms < due_ms {
            return;
        }
        // The next one is due some time after this one: it is a few reads for each shard.
        self.upkeep.sweep_ms = Some(mono_ms + self.bounds.sweep_interval_ms);
        if self.upkeep.shards.is_empty() {
            self.upkeep.shards = self.topology.shards_of(self.hub).collect();
            self.read_sweep(None);
        }
    }

    fn read_sweep(&mut self, after: Option<UserId>) {
        let Some(shard) = self.upkeep.shards.front().copied() else { return };
        let ExpiryState { today, expire_before_ms, .. } = self.shards.expiry();
        let unlink_days = self.shards.policy().unlink_days;
        let limit = self.bounds.sweep_users;
        self.want(Read::Sweep { shard, after, limit, today, expire_before_ms, unlink_days });
    }

    /// A sweep has found users whose floor may have to rise. It goes on when they are seen to.
    pub(super) fn handle_swept(&mut self, shard: ShardId, users: Vec<UserId>, next: Option<UserId>) {
        assert_eq!(self.upkeep.shards.front(), Some(&shard), "one shard at a time");
        self.upkeep.found.extend(users);
        if next.is_none() {
            self.upkeep.shards.pop_front();
        }
        self.upkeep.sweep_on = (!self.upkeep.shards.is_empty()).then_some(next);
    }

    /// Devices that are online are not away, however long ago they logged in.
    fn see_devices(&mut self, user: UserId, now_ms: u64) -> Result<Option<Load>, EngineError> {
        for index in self.directory.sorted_of_user(user) {
            let device = self.directory.get(index).expect("just found").device();
            match self.shards.decide_seen(&*self.engine, user, device.device, now_ms)? {
                Decision::Apply(record) => self.apply_at_leisure(&record, now_ms),
                Decision::Waits(load) => return Ok(Some(load)),
                Decision::Duplicate(_) | Decision::Unchanged | Decision::Reject(_) => {}
            }
        }
        Ok(None)
    }
}
