//! The state of one hub's shards: what was decided last for conversations and users, and the batch under
//! construction. Does no I/O but lookups that memory settles; has no clock and no randomness.
//!
//! Memory is a cache of the rows and of what will be rows. Its rules:
//!
//! - what a batch touched stays until the batch is durable, for the engine does not have it earlier;
//! - what was read never replaces what is in memory: a read counts only while somebody waits for it, and only if it
//!   began after that somebody began to wait (`Awaited`).

mod apply;
mod cache;
mod decide;
mod recover;
mod sketch;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use hashbrown::HashMap;

use self::cache::Cache;
use crate::batch::{Batch, BatchNumber};
use crate::command::Load;
use crate::key::{DedupKey, SenderKey, ShardId};
pub use crate::reader::Loaded;
use crate::topology::{HubId, Topology};
use crate::value::{DedupRow, DeviceRow, UserRow};

/// Senders whose newest id is kept in memory.
pub const SENDERS_CACHED_MAX: usize = 256 * 1024;
/// Conversations kept in memory, beside those of batches not yet durable.
pub const CONVERSATIONS_CACHED_MAX: usize = 256 * 1024;
/// Users kept in memory, beside those of batches not yet durable.
pub const USERS_CACHED_MAX: usize = 256 * 1024;
/// Reads waited for. Beyond it all are given up: whoever waits asks again.
pub const AWAITED_MAX: usize = 64 * 1024;
/// How far a user's head may run ahead of the head in the `user` row.
pub const HEAD_HINT_LAG_MAX: u64 = 64;
/// How far ahead of a message's time a shard reserves time.
pub const TIME_RESERVATION_MS: u64 = 1000;
/// Milliseconds of a day.
pub const DAY_MS: u64 = 86_400_000;
/// How long a message's id is kept, so that the same id is the same message.
pub const DEDUP_DAYS: u64 = 30;
/// How far the receipts' head in the `user` row may run ahead of the versions given out.
pub const RECEIPTS_HEAD_LEAD: u64 = 64;
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
}

impl Default for Policy {
    fn default() -> Self {
        Self { retention_ms: 365 * DAY_MS, unlink_days: 90, quota_entries: 100_000, quota_bytes: 256 * 1024 * 1024 }
    }
}

/// The state of one hub's shards.
#[derive(Debug)]
pub struct Shards {
    shard_count: u16,
    hub: u16,
    topology: Arc<Topology>,
    policy: Policy,
    /// No message is ever given an earlier time.
    clock_ms: u64,
    clocks: Vec<ShardClock>,
    conversations: Cache<ConversationId, Conversation>,
    users: Cache<UserId, User>,
    /// Of senders who sent lately: an id that none of their accepted messages exceeds, durable or not.
    newest: Cache<SenderKey, ClientMessageId>,
    /// What batches that are not yet durable accepted.
    pending: HashMap<DedupKey, DedupRow>,
    awaited: HashMap<Load, Awaited>,
    /// Records applied since the data directory was created.
    applied: u64,
    building: Building,
    sealed: VecDeque<Sealed>,
    durable: BatchNumber,
    /// Scratch for user rows.
    row: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct ShardClock {
    /// The last id given out; ids ascend.
    last: MessageId,
    /// Ids stay below this time until the row is written anew.
    reserved_until_ms: u64,
    /// The row is to be written with the batch under construction.
    dirty: bool,
}

#[derive(Clone, Copy, Debug)]
struct Conversation {
    last_seq: ConversationSeq,
    last_message: MessageId,
    /// The last batch that changed it.
    touched: BatchNumber,
}

#[derive(Clone, Debug)]
struct User {
    head: InboxSeq,
    /// The head in the row, as of the batch under construction if that writes the row.
    hint: InboxSeq,
    floor: InboxSeq,
    /// By ascending device.
    devices: Vec<DeviceRow>,
    /// The last batch that changed it.
    touched: BatchNumber,
    /// The head of the last durable batch that changed it.
    durable_head: InboxSeq,
    /// The row is to be written with the batch under construction.
    dirty: bool,
    /// A cursor has moved since the row was written: to be written soon, not necessarily with the next batch.
    moved: bool,
}

impl User {
    /// As it was read, the true head in place of the hint.
    fn from_row(row: UserRow, head: InboxSeq) -> Self {
        Self {
            head,
            hint: row.head,
            floor: row.floor,
            devices: row.devices,
            touched: BatchNumber(0),
            durable_head: head,
            dirty: false,
            moved: false,
        }
    }

    fn cursor(&self, device: DeviceId) -> InboxSeq {
        self.devices.iter().find(|row| row.device == device).map_or(self.floor, |row| row.cursor)
    }
}

/// A read that somebody waits for.
#[derive(Clone, Copy, Debug)]
enum Awaited {
    /// Under way. Only a read that began at this sequence number or later counts.
    Since(u64),
    /// Done: whether the message was accepted before. (What else is read goes to its own cache.)
    Dedup(Option<DedupRow>),
}

/// The batch under construction.
#[derive(Debug)]
struct Building {
    batch: Batch,
    messages: u64,
    /// Rows to write when it is sealed: however often they changed, once.
    conversations: Vec<ConversationId>,
    /// Users it changed, whether or not their row is to be written.
    users: Vec<UserId>,
    dedup: Vec<DedupKey>,
    clocks: Vec<ShardId>,
}

impl Building {
    fn new(number: BatchNumber, capacity: usize) -> Self {
        Self {
            batch: Batch::with_capacity(number, capacity),
            messages: 0,
            conversations: Vec::new(),
            users: Vec::new(),
            dedup: Vec::new(),
            clocks: Vec::new(),
        }
    }
}

/// A batch handed to the writer.
#[derive(Debug)]
struct Sealed {
    number: BatchNumber,
    /// The users it changed, and their heads.
    heads: Vec<(UserId, InboxSeq)>,
    dedup: Vec<DedupKey>,
}

impl Shards {
    /// The number of the batch under construction: effects decided now go out when it is durable.
    #[must_use]
    pub fn batch_number(&self) -> BatchNumber {
        self.building.batch.number()
    }

    /// The last durable batch.
    #[must_use]
    pub fn durable_number(&self) -> BatchNumber {
        self.durable
    }

    /// Whether the batch under construction holds nothing.
    #[must_use]
    pub fn is_batch_empty(&self) -> bool {
        self.building.batch.is_empty() && self.building.users.is_empty()
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
            self.users.get_mut(&user).expect("what a pending batch touched stays in memory").durable_head = head;
        }
        for key in sealed.dedup {
            let row = self.pending.remove(&key);
            assert!(row.is_some(), "what a pending batch accepted stays in memory");
        }
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
                self.users.insert(user, User::from_row(row, head));
            }
            crate::reader::LoadedRow::Conversation(id, row) => {
                let row = row.unwrap_or_default();
                self.awaited.remove(&load);
                self.conversations.insert(id, Conversation::from(row));
            }
            crate::reader::LoadedRow::Newest(of, newest) => {
                self.awaited.remove(&load);
                self.newest.insert(of, newest.unwrap_or(ClientMessageId([0; 16])));
            }
            crate::reader::LoadedRow::Talk(..) => todo!("talk rows"),
            crate::reader::LoadedRow::Dedup(_, row) => {
                self.awaited.insert(load, Awaited::Dedup(row));
            }
        }
        self.forget();
    }

    /// Keeps the caches within their bounds.
    fn forget(&mut self) {
        let durable = self.durable;
        self.conversations.turn(|conversation| conversation.touched > durable);
        self.users.turn(|user| user.touched > durable);
        self.newest.turn(|_| false);
    }
}
