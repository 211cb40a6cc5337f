//! Reads that may wait for a disk: a few threads, one bounded queue. Never writes.
//!
//! Each read is also a plain function, so that tests and tools run it where they are ([`read`] runs any of them).
//! Every scan has an upper bound, begins at the user's floor, and looks at a bounded number of rows.

mod fold;
mod inbox;
mod load;
mod outbox;
mod receipts;
mod sweep;
mod talks;

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{self, Receiver, Sender};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId, InboxSeq, UserId};
use culver_protocol::message::MarkView;

pub use self::fold::{FOLD_CONVERSATIONS_MAX, FOLD_ROWS_MAX, read_fold};
pub use self::inbox::{INBOX_ROWS_MAX, Page, read_inbox};
pub use self::load::Loaded;
pub(crate) use self::load::{
    LoadedRow, TalkRows, read_conversation, read_dedup, read_names, read_newest, read_talk, read_user,
};
pub use self::outbox::{OUTBOX_BYTES_MAX, read_outbox};
pub use self::receipts::{Receipts, read_receipts};
pub use self::sweep::read_sweep;
pub use self::talks::{ListPage, Synced, read_conversations, read_sync};
use crate::command::Load;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::key::ShardId;
use crate::record::{Expired, InboxEntry, Item, Stream};
use crate::topology::Topology;
use crate::value::ListRow;

/// The engines of all volumes, and what lies where.
#[derive(Clone)]
pub struct Engines {
    /// By volume.
    pub engines: Vec<Arc<dyn Engine>>,
    /// Which shard is on which volume.
    pub topology: Topology,
}

impl Engines {
    /// One volume and one hub.
    #[must_use]
    pub fn single(engine: Arc<dyn Engine>, shard_count: u16) -> Self {
        Self { engines: vec![engine], topology: Topology::single(shard_count) }
    }

    /// The engine of a volume.
    ///
    /// # Panics
    /// If there is no such volume.
    #[must_use]
    pub fn volume(&self, volume: u16) -> &dyn Engine {
        &**self.engines.get(usize::from(volume)).expect("there is an engine for each volume of the topology")
    }

    /// The engine that has a shard.
    #[must_use]
    pub fn of_shard(&self, shard: ShardId) -> &dyn Engine {
        self.volume(self.topology.volume_of_shard(shard))
    }

    /// A user's shard and the engine that has it.
    #[must_use]
    pub fn of_user(&self, user: UserId) -> (ShardId, &dyn Engine) {
        let shard = ShardId::of_user(user, self.shard_count());
        (shard, self.of_shard(shard))
    }

    /// A conversation's home shard and the engine that has it.
    #[must_use]
    pub fn of_conversation(&self, conversation: ConversationId) -> (ShardId, &dyn Engine) {
        let shard = ShardId::of_conversation(conversation, self.shard_count());
        (shard, self.of_shard(shard))
    }

    /// Shards of the data directory.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.topology.shard_count()
    }
}

/// A read for the reader threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// What a decision waits for.
    Load(Load),
    /// Entries of an inbox, for one device.
    Inbox {
        /// Comes back with the result.
        tag: u64,
        /// Whose.
        user: UserId,
        /// What this device of the user sent itself is left out.
        skip_device: DeviceId,
        /// Only what follows this.
        after: InboxSeq,
        /// At most so many entries.
        entries_max: usize,
        /// At most so many bytes, payloads and `ENTRY_OVERHEAD` together; the first entry comes whatever its size.
        bytes_max: usize,
    },
    /// What waits for a device, by conversation.
    Sync {
        /// Comes back with the result.
        tag: u64,
        /// Whose.
        user: UserId,
        /// For which of the user's devices: what it sent itself does not wait for it.
        device: DeviceId,
        /// What the device has.
        after: InboxSeq,
    },
    /// Marks that a user has not been told.
    Receipts {
        /// Comes back with the result.
        tag: u64,
        /// Whose.
        user: UserId,
        /// The last version that the user was told.
        after_version: u64,
    },
    /// A page of a user's conversations, most recent first.
    Conversations {
        /// Comes back with the result.
        tag: u64,
        /// Whose.
        user: UserId,
        /// At most so many, and at most `CONVERSATIONS_PAGE_MAX`; 0: so many.
        limit: u16,
        /// Where the last page ended; empty: the first page.
        page: Vec<u8>,
    },
    /// What raising a floor leaves behind.
    Fold(Fold),
    /// Items of a stream.
    Outbox {
        /// The stream.
        stream: Stream,
        /// Only what follows this.
        after: u64,
        /// Only up to this.
        through: u64,
        /// At most so many.
        limit: usize,
    },
    /// Users of a shard whose floor may have to rise.
    Sweep {
        /// The shard.
        shard: ShardId,
        /// Only users after this one.
        after: Option<UserId>,
        /// Users looked at, at most.
        limit: usize,
        /// The day, as `seen_day` counts them.
        today: u32,
        /// Entries from before this are expired; 0: none are.
        expire_before_ms: u64,
        /// A device not seen for so many days is to be unlinked.
        unlink_days: u32,
    },
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadResult {
    /// For `Shards::loaded`.
    Loaded(Loaded),
    /// Entries of an inbox, in order, durable all of them.
    Inbox {
        /// As it was asked.
        tag: u64,
        /// As it was asked.
        user: UserId,
        /// As it was asked.
        after: InboxSeq,
        /// The entries.
        entries: Vec<InboxEntry>,
        /// The last row looked at, rows left out included: go on from here. `after`: there is nothing.
        through: InboxSeq,
    },
    /// What waits for a device.
    Sync {
        /// As it was asked.
        tag: u64,
        /// Entries that wait.
        entries: u64,
        /// The last row looked at: the head of what is durable, or what was asked as `after`.
        through: InboxSeq,
        /// Conversations with waiting entries, most recent first, at most `SYNC_CONVERSATIONS_MAX`.
        conversations: Vec<ConversationView>,
    },
    /// Marks.
    Receipts {
        /// As it was asked.
        tag: u64,
        /// Everything up to this version is among the marks, or was told before.
        version: u64,
        /// One a conversation, by ascending version; at most `RECEIPT_MARKS_MAX`.
        marks: Vec<MarkView>,
        /// There are later ones.
        more: bool,
    },
    /// A page of conversations.
    Conversations {
        /// As it was asked.
        tag: u64,
        /// The page, and where the next begins (empty: there is none); or why there is none: a page that this server
        /// never named is `RequestInvalid`.
        result: Result<ListPage, ErrorCode>,
    },
    /// For `Shards::decide_floor`.
    Folded(Folded),
    /// Items of a stream, in order, dense from `after`.
    Outbox {
        /// As it was asked.
        stream: Stream,
        /// As it was asked.
        after: u64,
        /// The items, with their numbers.
        items: Vec<(u64, Item)>,
    },
    /// Users whose floor may have to rise.
    Swept {
        /// As it was asked.
        shard: ShardId,
        /// The users.
        users: Vec<UserId>,
        /// Go on after this user; `None`: these were the last.
        next: Option<UserId>,
    },
}

/// A floor to be raised, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fold {
    /// Whose.
    pub user: UserId,
    /// The floor.
    pub after: InboxSeq,
    /// The least of the devices' cursors.
    pub through: InboxSeq,
    /// The greatest of them.
    pub greatest: InboxSeq,
    /// Beyond `through`, entries go on being folded as long as they are older than this; 0: none are.
    pub expire_before_ms: u64,
}

/// What raising a floor leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded {
    /// As it was asked.
    pub fold: Fold,
    /// The new floor: as far as was looked at, or `fold.after`.
    pub floor: InboxSeq,
    /// What the entries below it count in `waiting_bytes`.
    pub freed_bytes: u64,
    /// The last entry of each conversation among them.
    pub lists: Vec<(ConversationId, ListRow)>,
    /// What no device of the user had, from others.
    pub expired: Vec<Expired>,
}

/// A conversation as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationView {
    /// The conversation.
    pub conversation: ConversationId,
    /// Its last place.
    pub last_seq: ConversationSeq,
    /// Messages neither read nor followed by one of the user's own.
    pub unread: u64,
    /// Entries that wait for the device; 0 in a page of the conversation list, which is asked by no device.
    pub waiting: u64,
    /// Read up to here.
    pub read: ConversationSeq,
    /// The last entry that is kept, its payload cut to `PREVIEW_LEN_MAX`; its inbox place is 0 if only this is left.
    pub last: Option<InboxEntry>,
}

/// Runs a read where it is called. `volume` is the volume of the hub that asks.
///
/// # Errors
/// An engine failed, or a row cannot be read.
pub fn read(engines: &Engines, volume: u16, read: Read) -> Result<ReadResult, EngineError> {
    Ok(match read {
        Read::Load(load) => ReadResult::Loaded(Loaded::read(engines.volume(volume), engines.shard_count(), load)?),
        Read::Inbox { tag, user, skip_device, after, entries_max, bytes_max } => {
            let Page { entries, through } = read_inbox(engines, user, skip_device, after, entries_max, bytes_max)?;
            ReadResult::Inbox { tag, user, after, entries, through }
        }
        Read::Sync { tag, user, device, after } => {
            let Synced { entries, through, conversations } = read_sync(engines, user, device, after)?;
            ReadResult::Sync { tag, entries, through, conversations }
        }
        Read::Receipts { tag, user, after_version } => {
            let Receipts { version, marks, more } = read_receipts(engines, user, after_version)?;
            ReadResult::Receipts { tag, version, marks, more }
        }
        Read::Conversations { tag, user, limit, page } => {
            ReadResult::Conversations { tag, result: read_conversations(engines, user, limit, &page)? }
        }
        Read::Fold(fold) => ReadResult::Folded(read_fold(engines, fold)?),
        Read::Outbox { stream, after, through, limit } => {
            ReadResult::Outbox { stream, after, items: read_outbox(engines, stream, after, through, limit)? }
        }
        Read::Sweep { shard, after, limit, today, expire_before_ms, unlink_days } => {
            let (users, next) = read_sweep(engines, shard, after, limit, today, expire_before_ms, unlink_days)?;
            ReadResult::Swept { shard, users, next }
        }
    })
}

/// The reader threads. Dropping them ends them, after what they were asked.
pub struct Readers {
    queue: Option<Sender<Read>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    /// Starts `threads` threads behind a queue of at most `queue_len` reads, for the hubs of `volume`. `done` is
    /// called on those threads.
    ///
    /// # Panics
    /// If the system starts no thread.
    pub fn spawn(
        engines: Engines,
        volume: u16,
        threads: usize,
        queue_len: usize,
        done: Arc<dyn Fn(ReadResult) + Send + Sync>,
    ) -> Self {
        let (sender, receiver) = channel::bounded(queue_len);
        let threads = (0..threads)
            .map(|index| {
                let (engines, done, receiver) = (engines.clone(), Arc::clone(&done), receiver.clone());
                thread::Builder::new()
                    .name(format!("reader-{index}"))
                    .spawn(move || run(&engines, volume, &receiver, &*done))
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

fn run(engines: &Engines, volume: u16, queue: &Receiver<Read>, done: &dyn Fn(ReadResult)) {
    for asked in queue {
        match read(engines, volume, asked) {
            Ok(result) => done(result),
            // What cannot be read cannot be served, and guessing would break promises.
            Err(error) => crate::writer::abort("reading the log", &error),
        }
    }
}
