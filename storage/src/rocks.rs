//! The engine on RocksDB: one database per volume. Nothing else knows RocksDB; holds no rule of the log.

mod merge;
mod options;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    Cache, ColumnFamilyDescriptor, DB, Env, ErrorKind, FlushOptions, ReadOptions, ReadTier, WriteBatch, WriteOptions,
    properties,
};

use crate::backup;
use crate::batch::{self, Batch};
use crate::descriptors::Table;
use crate::engine::{Engine, EngineMemory, Family, Lookup, ScanEnd, Tier, Visitor};
use crate::error::{EngineError, OpenError};
use crate::filter::Retention;
use crate::wal;
use options::Shared;

pub use options::RocksOptions;

/// A volume on RocksDB.
pub struct RocksEngine {
    /// Shared with the filters of merges, for the time of a lookup.
    database: Arc<DB>,
    cache: Cache,
    /// Volumes that have the cache together.
    cache_shares: u64,
    from_memory: ReadOptions,
    from_disk: ReadOptions,
    synced: WriteOptions,
    sequence_synced: AtomicU64,
    cuts: Vec<wal::Cut>,
}

impl RocksEngine {
    /// Opens a volume, or makes a new one of an empty or missing directory. The log is checked first ([`wal`]).
    ///
    /// # Errors
    /// The log is damaged where it had been synced, or the volume cannot be opened.
    pub fn open(path: &Path, options: RocksOptions, retention: Arc<Retention>) -> Result<Self, OpenError> {
        Self::open_shared(path, &options, &Shared::new(&options), 1, &retention)
    }

    /// Opens several volumes, which share what `options` lets them use.
    ///
    /// # Errors
    /// As [`RocksEngine::open`].
    pub fn open_all(
        paths: &[impl AsRef<Path>],
        options: &RocksOptions,
        retention: &Arc<Retention>,
    ) -> Result<Vec<Self>, OpenError> {
        let shared = Shared::new(options);
        let open = |path: &_| Self::open_shared(AsRef::as_ref(path), options, &shared, paths.len() as u64, retention);
        paths.iter().map(open).collect()
    }

    fn open_shared(
        path: &Path,
        options: &RocksOptions,
        shared: &Shared,
        cache_shares: u64,
        retention: &Arc<Retention>,
    ) -> Result<Self, OpenError> {
        Table::SHARED.assert_current();
        backup::clear_leftovers(path)?;
        let cuts = wal::mend(path)?;
        let failed = |source: rocksdb::Error| OpenError::Engine { path: path.to_owned(), source: source.into() };
        // Writing and merging files can wait; a message cannot.
        let mut env = Env::new().map_err(failed)?;
        env.lower_thread_pool_cpu_priority();
        env.lower_high_priority_thread_pool_cpu_priority();
        let access = Arc::new(OnceLock::new());
        let families = Family::ALL.map(|family| {
            let options = options::family_options(family, options, shared, retention, &access);
            ColumnFamilyDescriptor::new(family.name(), options)
        });
        let volume = options::volume_options(options, shared, &env);
        let database = Arc::new(DB::open_cf_descriptors(&volume, path, families).map_err(failed)?);
        assert_numbers(&database);
        access.get_or_init(|| Arc::downgrade(&database));
        let mut from_memory = ReadOptions::default();
        from_memory.set_read_tier(ReadTier::BlockCache);
        let mut synced = WriteOptions::default();
        // Test-only, and wrong on purpose: batches are believed to be durable, and are not.
        synced.set_sync(!cfg!(feature = "no-sync"));
        Ok(Self {
            // Opening has written all that the log held to files, and synced those.
            sequence_synced: AtomicU64::new(database.latest_sequence_number()),
            database,
            cache: shared.cache.clone(),
            cache_shares,
            from_memory,
            from_disk: ReadOptions::default(),
            synced,
            cuts,
        })
    }

    /// What had to be cut off its log when it was opened: it was never synced, and nobody was told of it.
    #[must_use]
    pub fn cuts(&self) -> &[wal::Cut] {
        &self.cuts
    }

    /// Bytes of a family's files: those in use, without the log.
    #[must_use]
    pub fn files_bytes(&self, family: Family) -> u64 {
        self.property(family, properties::LIVE_SST_FILES_SIZE)
    }

    /// Writes what is in memory to files, and waits for them. The log that is left holds what came meanwhile.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn flush(&self) -> Result<(), EngineError> {
        let families = Family::ALL.map(|family| self.handle(family));
        let families: Vec<_> = families.iter().collect();
        self.database
            .flush_cfs_opt(&families, &FlushOptions::default())
            .map_err(failed("writing out what is in memory"))
    }

    /// Makes the directory `to`, which must not be there, a volume of its own with all rows written so far: files are
    /// linked, the log is copied as it is. `to` must lie in the volume's file system, or all files are copied.
    ///
    /// # Errors
    /// It cannot be made. Nothing is left of it then, where that can be removed.
    pub fn checkpoint(&self, to: &Path) -> Result<(), EngineError> {
        Table::SHARED.assert_current();
        // Never a flush: whoever calls this keeps writers waiting.
        let taken = Checkpoint::new(&self.database).and_then(|of| of.create_checkpoint_with_log_size(to, u64::MAX));
        taken.map_err(failed("a checkpoint"))
    }

    /// What every use of the database needs, and so the place to ask whether this thread may open files for it.
    fn handle(&self, family: Family) -> &rocksdb::ColumnFamily {
        Table::SHARED.assert_current();
        handle(&self.database, family)
    }

    fn property(&self, family: Family, name: &properties::PropName) -> u64 {
        self.database.property_int_value_cf(self.handle(family), name).ok().flatten().unwrap_or(0)
    }
}

impl Drop for RocksEngine {
    /// Ends merges and waits for them. One could be in a lookup, and be the last that holds the database: closing it on
    /// a thread of its own, it would wait for itself.
    fn drop(&mut self) {
        Table::SHARED.assert_current();
        self.database.cancel_all_background_work(true);
        assert_eq!(Arc::strong_count(&self.database), 1, "a merge has ended, and its filter with it");
    }
}

fn handle(database: &DB, family: Family) -> &rocksdb::ColumnFamily {
    database.cf_handle(family.name()).expect("every family was opened")
}

/// A batch names families by number, as RocksDB does: the two must agree.
fn assert_numbers(database: &DB) {
    for family in Family::ALL {
        let mut theirs = WriteBatch::default();
        theirs.put_cf(handle(database, family), b"key", b"value");
        let mut ours = Batch::with_capacity(batch::BatchNumber(0), 0);
        ours.put(family, b"key", (b"val", b"ue"));
        assert_eq!(theirs.data(), ours.as_bytes(), "RocksDB numbers families as they were created");
    }
}

/// Whether every key from `from` (inclusive) to `to` (exclusive) begins with the first `len` bytes of `from`.
fn is_one_prefix(len: usize, from: &[u8], to: &[u8]) -> bool {
    let (Some((prefix, _)), Some((end, rest))) = (from.split_at_checked(len), to.split_at_checked(len)) else {
        return false;
    };
    // Or `to` is what follows all keys with that prefix.
    prefix == end || rest.iter().all(|byte| *byte == 0) && is_next(prefix, end)
}

/// Whether `next` is the number after `this`.
fn is_next(this: &[u8], next: &[u8]) -> bool {
    let carry = this.iter().rev().take_while(|byte| **byte == u8::MAX).count();
    let Some(at) = this.len().checked_sub(carry + 1) else { return false };
    let (this_front, next_front) = (this.split_at(at), next.split_at(at));
    let raised = this_front.1.first().and_then(|byte| byte.checked_add(1));
    this_front.0 == next_front.0
        && raised == next_front.1.first().copied()
        && next_front.1.iter().skip(1).all(|byte| *byte == 0)
}

fn failed(action: &'static str) -> impl FnOnce(rocksdb::Error) -> EngineError {
    move |source| EngineError::Failed { action, source: source.into() }
}

impl Engine for RocksEngine {
    fn get(&self, family: Family, key: &[u8], tier: Tier) -> Result<Lookup<Vec<u8>>, EngineError> {
        let options = match tier {
            Tier::Memory => &self.from_memory,
            Tier::Disk => &self.from_disk,
        };
        match self.database.get_pinned_cf_opt(self.handle(family), key, options) {
            Ok(None) => Ok(Lookup::Absent),
            Ok(Some(value)) => Ok(Lookup::Present(value.to_vec())),
            Err(error) if tier == Tier::Memory && error.kind() == ErrorKind::Incomplete => Ok(Lookup::Unknown),
            Err(error) => Err(failed("a read")(error)),
        }
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8], tier: Tier) -> Result<Lookup<Vec<u8>>, EngineError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_total_order_seek(true);
        if tier == Tier::Memory {
            options.set_read_tier(ReadTier::BlockCache);
        }
        let mut rows = self.database.raw_iterator_cf_opt(self.handle(family), options);
        rows.seek_for_prev(to);
        match rows.status() {
            Ok(()) => Ok(rows.key().map_or(Lookup::Absent, |key| Lookup::Present(key.to_vec()))),
            Err(error) if tier == Tier::Memory && error.kind() == ErrorKind::Incomplete => Ok(Lookup::Unknown),
            Err(error) => Err(failed("a look for the last row")(error)),
        }
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        tier: Tier,
        visit: &mut Visitor<'_>,
    ) -> Result<ScanEnd, EngineError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        // Within one prefix its filter passes over files; anything wider needs the total order.
        if options::scan_prefix_len(family).is_some_and(|len| is_one_prefix(len, from, to)) {
            options.set_prefix_same_as_start(true);
        } else {
            options.set_total_order_seek(true);
        }
        if tier == Tier::Memory {
            options.set_read_tier(ReadTier::BlockCache);
        }
        let mut rows = self.database.raw_iterator_cf_opt(self.handle(family), options);
        rows.seek(from);
        while let Some((key, value)) = rows.item() {
            if visit(key, value).is_break() {
                return Ok(ScanEnd::Stopped);
            }
            rows.next();
        }
        match rows.status() {
            Ok(()) => Ok(ScanEnd::Complete),
            Err(error) if tier == Tier::Memory && error.kind() == ErrorKind::Incomplete => Ok(ScanEnd::Unknown),
            Err(error) => Err(failed("a scan")(error)),
        }
    }

    fn write(&self, batch: &Batch) -> Result<(), EngineError> {
        Table::SHARED.assert_current();
        let batch = WriteBatch::from_data(batch.sorted().as_bytes());
        self.database.write_opt(batch, &self.synced).map_err(failed("a synced write"))?;
        // Every write is synced before its sequence numbers are published.
        self.sequence_synced.fetch_max(self.database.latest_sequence_number(), Ordering::AcqRel);
        Ok(())
    }

    #[cfg(feature = "answer-before-sync")]
    fn write_unsynced(&self, batch: &Batch) -> Result<(), EngineError> {
        let batch = WriteBatch::from_data(batch.as_bytes());
        self.database.write_opt(batch, &WriteOptions::default()).map_err(failed("a write"))
    }

    #[cfg(feature = "answer-before-sync")]
    fn sync(&self) -> Result<(), EngineError> {
        self.database.flush_wal(true).map_err(failed("a sync"))
    }

    fn sequence_synced(&self) -> u64 {
        self.sequence_synced.load(Ordering::Acquire)
    }

    fn memory(&self) -> EngineMemory {
        let sum = |name| Family::ALL.iter().map(|family| self.property(*family, name)).sum();
        EngineMemory {
            memtable_bytes: sum(properties::SIZE_ALL_MEM_TABLES),
            block_cache_bytes: self.cache.get_usage() as u64 / self.cache_shares,
            table_reader_bytes: sum(properties::ESTIMATE_TABLE_READERS_MEM),
        }
    }
    fn compact(&self) -> Result<(), EngineError> {
        for family in Family::ALL {
            self.database.compact_range_cf(self.handle(family), None::<&[u8]>, None::<&[u8]>);
        }
        Ok(())
    }
}
