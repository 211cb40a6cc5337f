//! The engine on RocksDB: one database per volume. The only file that knows RocksDB; holds no rule of the log.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompactionStyle, DBCompressionType,
    DBRecoveryMode, Env, ErrorKind, MemtableFactory, Options, ReadOptions, ReadTier, SliceTransform, WriteBatch,
    WriteBufferManager, WriteOptions, properties,
};

use crate::batch::{self, Batch};
use crate::engine::{Engine, EngineMemory, Family, Lookup, ScanEnd, Tier, Visitor};
use crate::error::{EngineError, OpenError};
use crate::filter::Retention;
use crate::key::{CONVERSATION_KEY_LEN, INBOX_PREFIX_LEN, USER_KEY_LEN};
use crate::wal;

/// What a volume may use.
#[derive(Clone, Debug)]
pub struct RocksOptions {
    /// Bytes of the block cache; index and filter blocks live in it.
    pub block_cache_bytes: usize,
    /// Bytes of all memtables together.
    pub memtables_bytes: usize,
    /// Bytes of one family's memtable, at which it is written to a file.
    pub memtable_bytes: usize,
    /// Bytes of log after which what it holds is written to files.
    pub log_bytes_max: u64,
    /// Threads for writing and merging files.
    pub background_threads: i32,
    /// Files held open.
    pub open_files_max: i32,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 64 << 20,
            memtables_bytes: 384 << 20,
            memtable_bytes: 64 << 20,
            log_bytes_max: 512 << 20,
            background_threads: 2,
            open_files_max: 512,
        }
    }
}

/// Buckets of a hashed memtable: 8 bytes each.
const HASH_BUCKETS: usize = 64 * 1024;

/// Files of a family that grows with every message, before they are merged. Readers ask for one inbox, and the filter
/// of its prefix passes few files; most messages need no look into dedup.
const LOG_RUNS_MAX: i32 = 32;
/// Files of another family before they are merged.
const RUNS_MAX: i32 = 8;

/// A volume on RocksDB.
pub struct RocksEngine {
    database: DB,
    cache: Cache,
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
        drop(retention);
        let cuts = wal::mend(path)?;
        let failed = |source: rocksdb::Error| OpenError::Engine { path: path.to_owned(), source: source.into() };
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        // Writing and merging files can wait; a message cannot.
        let mut env = Env::new().map_err(failed)?;
        env.lower_thread_pool_cpu_priority();
        env.lower_high_priority_thread_pool_cpu_priority();
        let families = Family::ALL
            .map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(family, &cache, &options)));
        let database = DB::open_cf_descriptors(&volume_options(&options, &env), path, families).map_err(failed)?;
        assert_numbers(&database);
        let mut from_memory = ReadOptions::default();
        from_memory.set_read_tier(ReadTier::BlockCache);
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        // Opening has written all that the log held to files, and synced those.
        let sequence_synced = AtomicU64::new(database.latest_sequence_number());
        Ok(Self { database, cache, from_memory, from_disk: ReadOptions::default(), synced, sequence_synced, cuts })
    }

    /// What had to be cut off its log when it was opened: it was never synced, and nobody was told of it.
    #[must_use]
    pub fn cuts(&self) -> &[wal::Cut] {
        &self.cuts
    }

    fn handle(&self, family: Family) -> &rocksdb::ColumnFamily {
        handle(&self.database, family)
    }

    fn property(&self, family: Family, name: &properties::PropName) -> u64 {
        self.database.property_int_value_cf(self.handle(family), name).ok().flatten().unwrap_or(0)
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

fn volume_options(options: &RocksOptions, env: &Env) -> Options {
    let mut volume = Options::default();
    volume.create_if_missing(true);
    volume.create_missing_column_families(true);
    volume.set_wal_recovery_mode(DBRecoveryMode::AbsoluteConsistency);
    volume.set_max_total_wal_size(options.log_bytes_max);
    volume.set_allow_concurrent_memtable_write(false);
    volume.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager(options.memtables_bytes, false));
    volume.set_env(env);
    volume.increase_parallelism(options.background_threads);
    volume.set_compaction_readahead_size(2 << 20);
    // Files go to the disk as they are written, not in one burst that the log would have to wait behind.
    volume.set_bytes_per_sync(1 << 20);
    volume.set_max_open_files(options.open_files_max);
    volume.set_stats_dump_period_sec(0);
    volume.set_stats_persist_period_sec(0);
    volume.set_keep_log_file_num(4);
    volume.set_max_log_file_size(4 << 20);
    volume.set_log_level(rocksdb::LogLevel::Warn);
    volume
}

fn family_options(family: Family, cache: &Cache, options: &RocksOptions) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // A filter that errs sends a lookup to the disk, and dedup is asked for every message.
    table.set_bloom_filter(if family == Family::Dedup { 16.0 } else { 10.0 }, false);
    // Inboxes are scanned, never asked for one row.
    table.set_whole_key_filtering(family != Family::Inbox);
    table.set_index_type(BlockBasedIndexType::BinarySearch);
    table.set_format_version(6);
    table.set_block_size(16 << 10);
    let mut of = Options::default();
    of.set_write_buffer_size(options.memtable_bytes);
    of.set_max_write_buffer_number(4);
    // Payloads are ciphertext, and what is in front of them differs from row to row: nothing to gain.
    of.set_compression_type(DBCompressionType::None);
    merge_rarely(&mut of, if matches!(family, Family::Inbox | Family::Dedup) { LOG_RUNS_MAX } else { RUNS_MAX });
    // See docs/decisions/002-memtables.md.
    match family {
        // Rows that are overwritten and looked up, never scanned.
        Family::Conversation => hashed(&mut of, CONVERSATION_KEY_LEN),
        Family::User => hashed(&mut of, USER_KEY_LEN),
        // Looked up once for every message, and hardly ever there.
        Family::Dedup => {
            of.set_memtable_prefix_bloom_ratio(0.05);
            of.set_memtable_whole_key_filtering(true);
        }
        Family::Inbox => of.set_prefix_extractor(SliceTransform::create_fixed_prefix(INBOX_PREFIX_LEN)),
        Family::Meta | Family::Outbox | Family::Body | Family::Member | Family::Device => {}
    }
    of.set_block_based_table_factory(&table);
    of
}

/// Files are merged by size, and only when there are many: a pass over all rows costs about a microsecond a message,
/// and filters keep lookups away from files that do not have their key.
fn merge_rarely(of: &mut Options, runs: i32) {
    of.set_compaction_style(DBCompactionStyle::Universal);
    of.set_level_zero_file_num_compaction_trigger(runs);
    of.set_level_zero_slowdown_writes_trigger(runs * 2);
    of.set_level_zero_stop_writes_trigger(runs * 3);
}

/// A memtable that finds whole keys by hash.
fn hashed(of: &mut Options, key_len: usize) {
    of.set_prefix_extractor(SliceTransform::create_fixed_prefix(key_len));
    of.set_memtable_factory(MemtableFactory::HashLinkList { bucket_count: HASH_BUCKETS });
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
        // Within one inbox the hash of its prefix leads there; anything wider needs the total order.
        let is_one_inbox = family == Family::Inbox && from.get(..INBOX_PREFIX_LEN) == to.get(..INBOX_PREFIX_LEN);
        if is_one_inbox {
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
            block_cache_bytes: self.cache.get_usage() as u64,
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
