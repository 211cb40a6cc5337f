//! Reads that may wait for a disk: a few threads, one bounded queue. Never writes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{self, Receiver, Sender};
use culver_protocol::id::{ClientMessageId, ConversationId, InboxSeq, UserId};
use culver_protocol::limits::ENTRY_OVERHEAD;

use crate::command::Load;
use crate::engine::{Engine, Family, Lookup, Tier};
use crate::error::EngineError;
use crate::key::{self, DedupKey, SenderKey, ShardId};
use crate::record::InboxEntry;
use crate::shard::HEAD_HINT_LAG_MAX;
use crate::value::{self, ConversationRow, DecodeError, DedupRow, UserRow};

/// A read for the reader threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// What a decision waits for.
    Load(Load),
    /// Entries of an inbox.
    Inbox {
        /// Comes back with the result.
        tag: u64,
        /// Whose.
        user: UserId,
        /// Only what follows this.
        after: InboxSeq,
        /// At most so many entries.
        entries_max: usize,
        /// At most so many bytes, payloads and [`ENTRY_OVERHEAD`] together; the first entry comes whatever its size.
        bytes_max: usize,
    },
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadResult {
    /// For `Shards::loaded`.
    Loaded(Loaded),
    /// Entries of an inbox, in order, durable all of them; none: there are none after `after`.
    Inbox {
        /// As it was asked.
        tag: u64,
        /// As it was asked.
        user: UserId,
        /// As it was asked.
        after: InboxSeq,
        /// The entries.
        entries: Vec<InboxEntry>,
    },
}

/// The result of a [`Load`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What was on disk when the read began: it saw at least that.
    as_of: u64,
    row: LoadedRow,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LoadedRow {
    User(UserId, Option<(UserRow, InboxSeq)>),
    Conversation(ConversationId, Option<ConversationRow>),
    Dedup(DedupKey, Option<DedupRow>),
    Newest(SenderKey, Option<ClientMessageId>),
}

impl Loaded {
    /// Reads what a decision waits for, from the disk if need be.
    ///
    /// # Errors
    /// The engine failed, or a row cannot be read.
    pub fn read(engine: &dyn Engine, shard_count: u16, load: Load) -> Result<Self, EngineError> {
        let as_of = engine.sequence_synced();
        let row = match load {
            Load::User(user) => LoadedRow::User(user, settled(read_user(engine, shard_count, user, Tier::Disk)?)),
            Load::Conversation(id) => {
                LoadedRow::Conversation(id, settled(read_conversation(engine, shard_count, id, Tier::Disk)?))
            }
            Load::Dedup(key) => LoadedRow::Dedup(key, settled(read_dedup(engine, shard_count, &key, Tier::Disk)?)),
            Load::Newest(key) => LoadedRow::Newest(key, settled(read_newest(engine, shard_count, key, Tier::Disk)?)),
        };
        Ok(Self { as_of, row })
    }

    /// What was asked.
    #[must_use]
    pub fn load(&self) -> Load {
        match &self.row {
            LoadedRow::User(user, _) => Load::User(*user),
            LoadedRow::Conversation(id, _) => Load::Conversation(*id),
            LoadedRow::Dedup(key, _) => Load::Dedup(*key),
            LoadedRow::Newest(key, _) => Load::Newest(*key),
        }
    }

    pub(crate) fn as_of(&self) -> u64 {
        self.as_of
    }

    pub(crate) fn into_row(self) -> LoadedRow {
        self.row
    }
}

/// The greatest client message id that a sender's durable messages have.
pub(crate) fn read_newest(
    engine: &dyn Engine,
    shard_count: u16,
    of: SenderKey,
    tier: Tier,
) -> Result<Lookup<ClientMessageId>, EngineError> {
    let home = ShardId::of_conversation(of.conversation, shard_count);
    let (from, to) = key::dedup_range(home, of);
    Ok(match engine.last(Family::Dedup, &from, &to, tier)? {
        Lookup::Absent => Lookup::Absent,
        Lookup::Unknown => Lookup::Unknown,
        Lookup::Present(last) => {
            let Some((_, decoded)) = key::decode_dedup(&last) else {
                return Err(EngineError::Row { family: Family::Dedup, key: last, source: DecodeError::Length });
            };
            Lookup::Present(decoded.client_message_id)
        }
    })
}

fn settled<T>(lookup: Lookup<T>) -> Option<T> {
    match lookup {
        Lookup::Absent => None,
        Lookup::Present(value) => Some(value),
        Lookup::Unknown => unreachable!("a lookup that may go to the disk always knows"),
    }
}

/// Reads entries of an inbox, as [`Read::Inbox`] says.
///
/// # Errors
/// The engine failed, or a row cannot be read.
pub fn read_inbox(
    engine: &dyn Engine,
    shard_count: u16,
    user: UserId,
    after: InboxSeq,
    entries_max: usize,
    bytes_max: usize,
) -> Result<Vec<InboxEntry>, EngineError> {
    let shard = ShardId::of_user(user, shard_count);
    let Some(first) = after.0.checked_add(1) else { return Ok(Vec::new()) };
    let (from, to) = (key::inbox(shard, user, InboxSeq(first)), key::inbox(shard, user, InboxSeq(u64::MAX)));
    let (mut entries, mut bytes, mut failure) = (Vec::new(), 0, None);
    engine.scan(Family::Inbox, &from, &to, Tier::Disk, &mut |key, value| {
        let read =
            key::decode_inbox(key).ok_or(DecodeError::Length).and_then(|(_, _, seq)| value::decode_inbox(seq, value));
        match read {
            Ok(view) => {
                bytes += view.payload.len() + ENTRY_OVERHEAD;
                if entries.len() >= entries_max || (bytes > bytes_max && !entries.is_empty()) {
                    return ControlFlow::Break(());
                }
                entries.push(InboxEntry::from(view));
                ControlFlow::Continue(())
            }
            Err(source) => {
                failure = Some(EngineError::Row { family: Family::Inbox, key: key.to_vec(), source });
                ControlFlow::Break(())
            }
        }
    })?;
    failure.map_or(Ok(entries), Err)
}

pub(crate) fn read_conversation(
    engine: &dyn Engine,
    shard_count: u16,
    id: ConversationId,
    tier: Tier,
) -> Result<Lookup<ConversationRow>, EngineError> {
    let key = key::conversation(ShardId::of_conversation(id, shard_count), id);
    get(engine, Family::Conversation, &key, tier, ConversationRow::decode)
}

pub(crate) fn read_dedup(
    engine: &dyn Engine,
    shard_count: u16,
    of: &DedupKey,
    tier: Tier,
) -> Result<Lookup<DedupRow>, EngineError> {
    let key = key::dedup(ShardId::of_conversation(of.conversation, shard_count), of);
    get(engine, Family::Dedup, &key, tier, DedupRow::decode)
}

/// A user's row and true head. The head in the row is a hint: the true one is less than [`HEAD_HINT_LAG_MAX`] beyond
/// it, and as places are dense, a search finds it.
pub(crate) fn read_user(
    engine: &dyn Engine,
    shard_count: u16,
    user: UserId,
    tier: Tier,
) -> Result<Lookup<(UserRow, InboxSeq)>, EngineError> {
    let shard = ShardId::of_user(user, shard_count);
    let row = match get(engine, Family::User, &key::user(shard, user), tier, UserRow::decode)? {
        Lookup::Present(row) => row,
        Lookup::Absent => return Ok(Lookup::Absent),
        Lookup::Unknown => return Ok(Lookup::Unknown),
    };
    let (mut there, mut beyond) = (row.head.0, row.head.0.saturating_add(HEAD_HINT_LAG_MAX));
    while beyond - there > 1 {
        let middle = there + (beyond - there) / 2;
        match engine.get(Family::Inbox, &key::inbox(shard, user, InboxSeq(middle)), tier)? {
            Lookup::Present(_) => there = middle,
            Lookup::Absent => beyond = middle,
            Lookup::Unknown => return Ok(Lookup::Unknown),
        }
    }
    Ok(Lookup::Present((row, InboxSeq(there))))
}

fn get<T>(
    engine: &dyn Engine,
    family: Family,
    key: &[u8],
    tier: Tier,
    decode: impl FnOnce(&[u8]) -> Result<T, DecodeError>,
) -> Result<Lookup<T>, EngineError> {
    match engine.get(family, key, tier)? {
        Lookup::Present(value) => match decode(&value) {
            Ok(row) => Ok(Lookup::Present(row)),
            Err(source) => Err(EngineError::Row { family, key: key.to_vec(), source }),
        },
        Lookup::Absent => Ok(Lookup::Absent),
        Lookup::Unknown => Ok(Lookup::Unknown),
    }
}

/// The reader threads. Dropping them ends them, after what they were asked.
pub struct Readers {
    queue: Option<Sender<Read>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    /// Starts `threads` threads behind a queue of at most `queue_len` reads. `done` is called on those threads.
    ///
    /// # Panics
    /// If the system starts no thread.
    pub fn spawn(
        engine: Arc<dyn Engine>,
        shard_count: u16,
        threads: usize,
        queue_len: usize,
        done: Arc<dyn Fn(ReadResult) + Send + Sync>,
    ) -> Self {
        let (sender, receiver) = channel::bounded(queue_len);
        let threads = (0..threads)
            .map(|index| {
                let (engine, done, receiver) = (Arc::clone(&engine), Arc::clone(&done), receiver.clone());
                thread::Builder::new()
                    .name(format!("reader-{index}"))
                    .spawn(move || run(&*engine, shard_count, &receiver, &*done))
                    .expect("the system starts a few threads at startup")
            })
            .collect();
        Self { queue: Some(sender), threads }
    }

    /// Asks for a read.
    ///
    /// # Errors
    /// The queue is full: here is the read back.
    pub fn submit(&self, read: Read) -> Result<(), Read> {
        let queue = self.queue.as_ref().expect("the queue is there until drop");
        queue.try_send(read).map_err(channel::TrySendError::into_inner)
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        drop(self.queue.take());
        for thread in self.threads.drain(..) {
            // A reader that failed has said why, and the process is ending.
            drop(thread.join());
        }
    }
}

fn run(engine: &dyn Engine, shard_count: u16, queue: &Receiver<Read>, done: &dyn Fn(ReadResult)) {
    for read in queue {
        let result =
            match read {
                Read::Load(load) => Loaded::read(engine, shard_count, load).map(ReadResult::Loaded),
                Read::Inbox { tag, user, after, entries_max, bytes_max } => {
                    read_inbox(engine, shard_count, user, after, entries_max, bytes_max)
                        .map(|entries| ReadResult::Inbox { tag, user, after, entries })
                }
            };
        match result {
            Ok(result) => done(result),
            // What cannot be read cannot be served, and guessing would break promises.
            Err(error) => crate::writer::abort("reading the log", &error),
        }
    }
}
