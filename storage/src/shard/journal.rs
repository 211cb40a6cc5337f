//! The journal: what decided a life of a hub's shards, in order, and nothing else. Replayed on the rows that the life
//! began with, it must give the same batches, byte for byte: `apply` and `seal` hang on no clock, no cache and no order
//! of a map. Kept for checks only; decides nothing.

use std::sync::Arc;

use culver_protocol::id::{ConversationId, UserId};

use super::state::{Conversation, User};
use super::{Policy, Shards};
use crate::batch::{Batch, BatchNumber};
use crate::engine::{Engine, Lookup, Tier};
use crate::error::{EngineError, Error};
use crate::reader::{read_conversation, read_talk, read_user};
use crate::record::{Arrival, MessageRecord, Place, Record, Stream};
use crate::topology::{HubId, Topology};

/// One thing that rows follow from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Journalled {
    /// A record was applied.
    Record(Record),
    /// Everything in a stream up to `through` is durable where it goes: heads of streams are written from that.
    Taken {
        /// The stream.
        stream: Stream,
        /// The last item.
        through: u64,
    },
    /// The batch under construction was closed.
    Sealed {
        /// Its number.
        number: BatchNumber,
        /// What was synced by then.
        synced_through: u64,
        /// Whether cursors that moved were written.
        with_cursors: bool,
    },
}

impl Shards {
    /// Keeps a journal from now on.
    ///
    /// # Panics
    /// If anything was applied already.
    pub fn keep_journal(&mut self) {
        assert!(self.is_batch_empty() && self.sealed.is_empty(), "a journal begins with a life");
        self.journal = Some(Vec::new());
    }

    /// What was journalled since it was last taken.
    pub fn take_journal(&mut self) -> Vec<Journalled> {
        self.journal.as_mut().map(std::mem::take).unwrap_or_default()
    }

    #[inline]
    pub(super) fn note(&mut self, what: impl FnOnce() -> Journalled) {
        if let Some(journal) = &mut self.journal {
            journal.push(what());
        }
    }

    fn replay_one(&mut self, engine: &dyn Engine, journalled: &Journalled) -> Result<Option<Batch>, EngineError> {
        match journalled {
            Journalled::Record(record) => {
                self.load_for(engine, record)?;
                self.apply(record);
                Ok(None)
            }
            Journalled::Taken { stream, through } => {
                let source = self.streams.sources.get_mut(stream).expect("what is taken was sent");
                // What is taken is durable: nothing else says so here.
                source.durable = source.durable.max(*through);
                self.taken(*stream, *through);
                Ok(None)
            }
            Journalled::Sealed { number, synced_through, with_cursors } => {
                let batch = self.seal(*synced_through, *with_cursors);
                assert_eq!(batch.number(), *number, "batches are numbered densely");
                // All stays in memory, and nothing is read again: what it holds need not be remembered as on its way.
                let sealed = self.sealed.pop_front().expect("it was just sealed");
                for key in sealed.dedup {
                    self.pending.remove(&key);
                }
                self.forget_names(*number);
                self.take_outgoing();
                Ok(Some(batch))
            }
        }
    }

    /// Loads what `decide` had loaded when it made the record.
    fn load_for(&mut self, engine: &dyn Engine, record: &Record) -> Result<(), EngineError> {
        match record {
            Record::Message(MessageRecord { recipient, entry, place, copy, .. }) => {
                self.load_conversation(engine, entry.conversation)?;
                if matches!(place, Place::Local(_)) {
                    self.load_user(engine, *recipient)?;
                }
                if matches!(copy, Some(Place::Local(_))) {
                    self.load_user(engine, entry.sender)?;
                }
                Ok(())
            }
            Record::Arrived { item, .. } => self.load_for_arrival(engine, item),
            Record::MarkedRead { user, conversation, version, .. } => {
                self.load_talk(engine, *user, *conversation)?;
                self.load_versioned(engine, *user, *version)
            }
            Record::CursorMoved { user, .. }
            | Record::DeviceLinked { user, .. }
            | Record::DeviceRegistered { user, .. }
            | Record::DeviceSeen { user, .. }
            | Record::DeviceRemoved { user, .. }
            | Record::DeviceNamed { user, .. }
            | Record::ReadReceiptsSet { user, .. }
            | Record::FloorMoved { user, .. } => self.load_user(engine, *user).map(|_| ()),
            Record::ReceiptGiven { giver, item, .. } => {
                self.load_user(engine, *giver)?;
                self.load_for_arrival(engine, item)
            }
            Record::ClockMoved { .. } => Ok(()),
        }
    }

    fn load_for_arrival(&mut self, engine: &dyn Engine, item: &Arrival) -> Result<(), EngineError> {
        match item {
            Arrival::Entry { user, .. } => self.load_user(engine, *user).map(|_| ()),
            Arrival::Receipt { user, mark, version } => {
                self.load_talk(engine, *user, mark.conversation)?;
                self.load_versioned(engine, *user, *version)
            }
            Arrival::Nothing => Ok(()),
        }
    }

    fn load_conversation(&mut self, engine: &dyn Engine, id: ConversationId) -> Result<(), EngineError> {
        if self.conversations.peek(&id).is_none() {
            let row = settled(read_conversation(engine, self.shard_count, id, Tier::Disk)?);
            self.conversations.insert(id, Conversation::from(row.unwrap_or_default()));
        }
        Ok(())
    }

    fn load_user(&mut self, engine: &dyn Engine, id: UserId) -> Result<&mut User, EngineError> {
        if self.users.peek(&id).is_none() {
            let (row, head) = settled(read_user(engine, self.shard_count, id, Tier::Disk)?).unwrap_or_default();
            self.users.insert(id, User::from_row(row, head, self.today()));
        }
        Ok(self.users.get_mut(&id).expect("it was there, or was put there"))
    }

    /// A user who is given this version. The life may have forgotten the user and read the row again, whose head is
    /// ahead of the versions given out: then versions go on from there. That is all that forgetting may change.
    fn load_versioned(&mut self, engine: &dyn Engine, id: UserId, version: u64) -> Result<(), EngineError> {
        let user = self.load_user(engine, id)?;
        if version == user.row.receipts_head + 1 {
            user.receipts_head = user.row.receipts_head;
        }
        Ok(())
    }

    fn load_talk(&mut self, engine: &dyn Engine, user: UserId, id: ConversationId) -> Result<(), EngineError> {
        if self.talks.peek(&(user, id)).is_none() {
            let rows = settled(read_talk(engine, self.shard_count, user, id, Tier::Disk)?).unwrap_or_default();
            self.insert_talk((user, id), rows);
        }
        Ok(())
    }
}

/// The batches that a journal gives, on the rows that its life began with. Reads the engine, and never writes it.
///
/// # Errors
/// The engine failed, or a row cannot be read.
///
/// # Panics
/// If the journal does not follow from those rows.
pub fn replay(
    engine: &dyn Engine,
    topology: Arc<Topology>,
    hub: HubId,
    policy: Policy,
    now_ms: u64,
    mono_ms: u64,
    journal: &[Journalled],
) -> Result<Vec<Batch>, Error> {
    let mut shards = Shards::recover(engine, topology, hub, policy, now_ms, mono_ms)?;
    let mut batches = Vec::new();
    for journalled in journal {
        batches.extend(shards.replay_one(engine, journalled)?);
    }
    Ok(batches)
}

fn settled<T>(lookup: Lookup<T>) -> Option<T> {
    match lookup {
        Lookup::Absent => None,
        Lookup::Present(value) => Some(value),
        Lookup::Unknown => unreachable!("a lookup that may go to the disk always knows"),
    }
}
