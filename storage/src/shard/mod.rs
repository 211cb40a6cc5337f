//! The state of one hub's shards: what was decided last for conversations and users, and the batch under
//! construction. Does no I/O but lookups that memory settles; has no clock and no randomness.
//!
//! Memory is a cache of the rows and of what will be rows. Its rules:
//!
//! - what a batch touched stays until the batch is durable, for the engine does not have it earlier;
//! - what was read never replaces what is in memory: a read counts only while somebody waits for it, and only if it
//!   began after that somebody began to wait (`Awaited`).

mod apply;
mod bounds;
mod cache;
mod clock;
mod decide;
mod devices;
mod direct;
mod floor;
mod journal;
mod lookup;
mod names;
mod recover;
mod seal;
mod state;
mod streams;
mod talks;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use culver_protocol::id::{ConversationId, InboxSeq, UserId};
use hashbrown::HashMap;

pub use self::bounds::Bounds;
use self::cache::Cache;
use self::clock::ExpiryClock;
pub use self::clock::JUMP_MS_MAX;
pub use self::direct::Direct;
pub use self::floor::FOLDS_MAX;
use self::floor::Folds;
pub use self::journal::{Journalled, replay};
use self::names::Unwritten;
use self::state::{Awaited, Building, Conversation, NO_MESSAGE, Newest, Sealed, ShardClock, Talk, User};
use self::streams::Streams;
use crate::batch::BatchNumber;
use crate::command::Load;
use crate::key::{DedupKey, SenderKey};
use crate::planted::{self, Bug};
pub use crate::reader::Loaded;
use crate::topology::{HubId, Topology};
use crate::value::DedupRow;

/// How far a user's head may run ahead of the head in the `user` row.
pub const HEAD_HINT_LAG_MAX: u64 = 64;
/// Milliseconds of a day.
pub const DAY_MS: u64 = 86_400_000;
/// How long a message's id is kept, so that the same id is the same message.
pub const DEDUP_DAYS: u64 = 30;
/// Batches that are sealed and not yet durable.
pub const BATCHES_SEALED_MAX: usize = 16;

/// How long things are kept, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long an entry waits for a device, in milliseconds.
    pub retention_ms: u64,
    /// A device not seen for so many days is unlinked, except its user's last.
    pub unlink_days: u32,
    /// Entries that may wait in an inbox.
    pub quota_entries: u64,
    /// Bytes that may wait in an inbox.
    pub quota_bytes: u64,
    /// Senders are told what was delivered and read.
    pub receipts: bool,
    /// How much is kept in memory, and when what is put off is done.
    pub bounds: Bounds,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            retention_ms: 365 * DAY_MS,
            unlink_days: 90,
            quota_entries: 100_000,
            quota_bytes: 256 * 1024 * 1024,
            receipts: true,
            bounds: Bounds::default(),
        }
    }
}

impl Policy {
    fn is_full(&self, user: &User) -> bool {
        user.head.0 - user.least().0 >= self.quota_entries || user.row.waiting_bytes >= self.quota_bytes
    }
}

/// The state of one hub's shards.
#[derive(Debug)]
pub struct Shards {
    shard_count: u16,
    topology: Arc<Topology>,
    hub: HubId,
    policy: Policy,
    /// No message is ever given an earlier time.
    clock_ms: u64,
    expiry: ExpiryClock,
    /// By shard; those of other hubs are not used.
    clocks: Vec<ShardClock>,
    conversations: Cache<ConversationId, Conversation>,
    users: Cache<UserId, User>,
    talks: Cache<(UserId, ConversationId), Talk>,
    streams: Streams,
    /// Users of other hubs whose inboxes are full, and since when nothing is sent there.
    full: HashMap<UserId, u64>,
    folds: Folds,
    /// Of senders who sent lately: an id that none of their accepted messages exceeds, durable or not.
    newest: Cache<SenderKey, Newest>,
    /// What batches that are not yet durable accepted.
    pending: HashMap<DedupKey, DedupRow>,
    unwritten_names: Unwritten,
    awaited: HashMap<Load, Awaited>,
    /// Records applied since the data directory was created.
    applied: u64,
    building: Building,
    sealed: VecDeque<Sealed>,
    durable: BatchNumber,
    /// Scratch for user rows.
    row: Vec<u8>,
    journal: Option<Vec<Journalled>>,
}

impl Shards {
    /// The number of the batch under construction: effects decided now go out when it is durable.
    #[must_use]
    pub fn batch_number(&self) -> BatchNumber {
        self.building.batch.number()
    }

    /// How long things are kept, and how many.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The last durable batch.
    #[must_use]
    pub fn durable_number(&self) -> BatchNumber {
        self.durable
    }

    /// Whether the batch under construction holds nothing.
    #[must_use]
    pub fn is_batch_empty(&self) -> bool {
        self.building.batch.is_empty() && self.building.users.is_empty() && self.building.watermarks.is_empty()
    }

    /// Whether the batch under construction holds messages; if not, it may wait a little for more.
    #[must_use]
    pub fn batch_has_messages(&self) -> bool {
        self.building.messages > 0
    }

    /// Bytes of the batch under construction, without the rows that are written when it is sealed.
    #[must_use]
    pub fn batch_bytes(&self) -> usize {
        self.building.batch.len()
    }

    /// The last entry of a user's inbox that is durable, if the user is in memory; if not, all of it is.
    #[must_use]
    pub fn durable_head(&self, user: UserId) -> Option<InboxSeq> {
        self.users.peek(&user).map(|user| user.durable_head)
    }

    /// A batch is durable: what it touched may be forgotten. Batches become durable in the order they were sealed.
    ///
    /// # Panics
    /// If another batch was due.
    pub fn durable(&mut self, number: BatchNumber) {
        let sealed = self.sealed.pop_front().expect("a batch is sealed before it is durable");
        assert_eq!(sealed.number, number, "batches become durable in order");
        self.durable = number;
        for (user, head) in sealed.heads {
            let state = self.users.peek_mut(&user).expect("what a pending batch touched stays in memory");
            state.durable_head = head;
            if state.is_passing && state.touched <= number {
                self.users.remove(&user);
            }
        }
        if !self.awaited.is_empty() {
            // What is being read may not hold these, and from now on nothing is put on top of it.
            for (user, acked) in sealed.delivered {
                self.awaited.remove(&Load::Talk(user, acked.conversation));
            }
        }
        for (stream, n) in sealed.sent {
            let source = self.streams.sources.get_mut(&stream).expect("streams are never forgotten");
            source.durable = source.durable.max(n);
            if planted::is(Bug::OutboxDroppedEarly) {
                self.taken(stream, n);
            }
        }
        for key in sealed.dedup {
            let row = self.pending.remove(&key);
            assert!(row.is_some(), "what a pending batch accepted stays in memory");
        }
        self.forget_names(number);
        self.forget();
    }

    /// Takes a result from the readers. It counts only if somebody still waits for it and it is no older than that.
    pub fn loaded(&mut self, loaded: Loaded) {
        let load = loaded.load();
        match self.awaited.get(&load) {
            Some(Awaited::Since(since)) if loaded.as_of() >= *since => {}
            _ => return,
        }
        match loaded.into_row() {
            crate::reader::LoadedRow::User(user, found) => {
                let (row, head) = found.unwrap_or_default();
                self.awaited.remove(&load);
                self.users.insert(user, User::from_row(row, head, self.today()));
            }
            crate::reader::LoadedRow::Conversation(id, row) => {
                let row = row.unwrap_or_default();
                self.awaited.remove(&load);
                self.conversations.insert(id, Conversation::from(row));
            }
            crate::reader::LoadedRow::Newest(of, newest) => {
                self.awaited.remove(&load);
                self.set_newest(of, newest.unwrap_or(NO_MESSAGE));
            }
            crate::reader::LoadedRow::Talk(user, conversation, rows) => {
                self.awaited.remove(&load);
                self.insert_talk((user, conversation), rows);
            }
            crate::reader::LoadedRow::Dedup(_, row) => {
                self.awaited.insert(load, Awaited::Dedup(row));
            }
            crate::reader::LoadedRow::Names(_, names) => {
                self.awaited.insert(load, Awaited::Names(names));
            }
        }
        self.forget();
    }

    /// Keeps the caches within their bounds.
    fn forget(&mut self) {
        let durable = self.durable;
        self.conversations.turn(|conversation| conversation.touched > durable);
        self.users.turn(|user| user.touched > durable);
        self.talks.turn(|talk| talk.touched > durable);
        self.newest.turn(|_| false);
    }
}
