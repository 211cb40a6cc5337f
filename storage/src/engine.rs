//! What the log stands on: ordered families of rows, atomic durable batches. The trait only; no engine lives here.

use std::ops::ControlFlow;

use crate::batch::Batch;
use crate::error::EngineError;

/// A family of rows. The number is a stored format: a family's place in [`Family::ALL`], from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// Batches, time reservations, watermarks and heads of streams, the expiry clock.
    Meta = 1,
    /// The last place of each conversation.
    Conversation = 2,
    /// The entries of each user's inbox.
    Inbox = 3,
    /// Message bodies stored once. Nothing writes it yet.
    Body = 4,
    /// Head and floor of each user, cursors and keys of their devices.
    User = 5,
    /// What was accepted under which client message id.
    Dedup = 6,
    /// What a user's conversations have come to: receipts and last entries.
    Member = 7,
    /// Names of users' devices.
    Device = 8,
    /// Entries and receipts on their way to other shards.
    Outbox = 9,
}

impl Family {
    /// All families, by number.
    pub const ALL: [Self; 9] = [
        Self::Meta,
        Self::Conversation,
        Self::Inbox,
        Self::Body,
        Self::User,
        Self::Dedup,
        Self::Member,
        Self::Device,
        Self::Outbox,
    ];

    /// Its number, from 1.
    #[must_use]
    pub fn number(self) -> u32 {
        u32::from(self as u8)
    }

    /// The family with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
    }

    /// Its place in [`Family::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self as u8 - 1)
    }

    /// Its name on disk.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Conversation => "conversation",
            Self::Inbox => "inbox",
            Self::Body => "body",
            Self::User => "user",
            Self::Dedup => "dedup",
            Self::Member => "member",
            Self::Device => "device",
            Self::Outbox => "outbox",
        }
    }
}

/// How far a lookup may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Only what is in memory: memtables, filters, block cache. Never waits for a disk.
    Memory,
    /// As far as needed.
    Disk,
}

/// The answer to a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<T> {
    /// There is no such row.
    Absent,
    /// There is.
    Present(T),
    /// Memory alone cannot tell. Only with [`Tier::Memory`].
    Unknown,
}

impl<T> Lookup<T> {
    /// Turns what is present into something else.
    pub fn map<U>(self, turn: impl FnOnce(T) -> U) -> Lookup<U> {
        match self {
            Self::Absent => Lookup::Absent,
            Self::Present(value) => Lookup::Present(turn(value)),
            Self::Unknown => Lookup::Unknown,
        }
    }
}

/// How a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanEnd {
    /// Every row of the range was shown.
    Complete,
    /// The visitor broke it off.
    Stopped,
    /// Memory alone cannot tell what follows. Only with [`Tier::Memory`].
    Unknown,
}

/// What an engine holds in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineMemory {
    /// Rows not yet in a file.
    pub memtable_bytes: u64,
    /// Cached blocks, index and filter blocks included.
    pub block_cache_bytes: u64,
    /// What open files hold beside the cache.
    pub table_reader_bytes: u64,
}

/// Is shown key and value of each row of a scan, and may break it off.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Ordered families of rows with atomic, durable batches.
pub trait Engine: Send + Sync {
    /// Looks up one row.
    ///
    /// # Errors
    /// The engine cannot read.
    fn get(&self, family: Family, key: &[u8], tier: Tier) -> Result<Lookup<Vec<u8>>, EngineError>;

    /// The greatest key of a family from `from` to `to`, both inclusive.
    ///
    /// # Errors
    /// The engine cannot read.
    fn last(&self, family: Family, from: &[u8], to: &[u8], tier: Tier) -> Result<Lookup<Vec<u8>>, EngineError>;

    /// Shows the rows from `from` (inclusive) to `to` (exclusive) in order, until the visitor breaks.
    ///
    /// # Errors
    /// The engine cannot read.
    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        tier: Tier,
        visit: &mut Visitor<'_>,
    ) -> Result<ScanEnd, EngineError>;

    /// Writes all rows of a batch or none. It is on disk when this returns, and readable no earlier.
    ///
    /// # Errors
    /// It may or may not be on disk: the process must not go on.
    fn write(&self, batch: &Batch) -> Result<(), EngineError>;

    /// Test-only: writes a batch without waiting for the disk.
    ///
    /// # Errors
    /// As [`Engine::write`].
    #[cfg(feature = "answer-before-sync")]
    fn write_unsynced(&self, batch: &Batch) -> Result<(), EngineError>;

    /// Test-only: waits until all that was written is on disk.
    ///
    /// # Errors
    /// As [`Engine::write`].
    #[cfg(feature = "answer-before-sync")]
    fn sync(&self) -> Result<(), EngineError>;

    /// The last sequence number known to be on disk. Never falls; every row takes one.
    fn sequence_synced(&self) -> u64;

    /// What it holds in memory.
    fn memory(&self) -> EngineMemory;

    /// Merges all rows of all families, and drops those that nothing needs any more ([`crate::filter`]). Takes as long
    /// as it takes: for tests, measurements and operators.
    ///
    /// # Errors
    /// The engine cannot merge.
    fn compact(&self) -> Result<(), EngineError>;
}
