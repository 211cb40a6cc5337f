//! How RocksDB is set up: what it may use, and what each family is to it. See docs/decisions/002-memtables.md.

use std::sync::Arc;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DBCompactionStyle, DBCompressionType, DBRecoveryMode, Env,
    MemtableFactory, Options, SliceTransform, WriteBufferManager,
};

use super::merge::{Access, Factory};
use crate::engine::Family;
use crate::filter::{Filter, Retention};
use crate::key::{CONVERSATION_KEY_LEN, DEDUP_PREFIX_LEN, INBOX_PREFIX_LEN, TALK_PREFIX_LEN};

/// What the volumes opened together may use.
#[derive(Clone, Debug)]
pub struct RocksOptions {
    /// Bytes of the block cache; index and filter blocks live in it.
    pub block_cache_bytes: usize,
    /// Bytes of all memtables together.
    pub memtables_bytes: usize,
    /// Bytes of one family's memtable, at which it is written to a file.
    pub memtable_bytes: usize,
    /// Bytes of a volume's log after which what it holds is written to files.
    pub log_bytes_max: u64,
    /// Threads for writing and merging files.
    pub background_threads: i32,
    /// Files that a volume holds open.
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

/// The memory that volumes share.
pub(super) struct Shared {
    pub(super) cache: Cache,
    memtables: WriteBufferManager,
}

impl Shared {
    pub(super) fn new(options: &RocksOptions) -> Self {
        Self {
            cache: Cache::new_lru_cache(options.block_cache_bytes),
            memtables: WriteBufferManager::new_write_buffer_manager(options.memtables_bytes, false),
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

pub(super) fn volume_options(options: &RocksOptions, shared: &Shared, env: &Env) -> Options {
    let mut volume = Options::default();
    volume.create_if_missing(true);
    volume.create_missing_column_families(true);
    volume.set_wal_recovery_mode(DBRecoveryMode::AbsoluteConsistency);
    volume.set_max_total_wal_size(options.log_bytes_max);
    volume.set_allow_concurrent_memtable_write(false);
    volume.set_write_buffer_manager(&shared.memtables);
    volume.set_env(env);
    volume.increase_parallelism(options.background_threads);
    volume.set_compaction_readahead_size(2 << 20);
    // Files go to the disk as they are written, not in one burst that the log would have to wait behind.
    volume.set_bytes_per_sync(1 << 20);
    volume.set_max_open_files(options.open_files_max);
    // Each family of each volume would start 16 when it is opened.
    volume.set_max_file_opening_threads(1);
    volume.set_stats_dump_period_sec(0);
    volume.set_stats_persist_period_sec(0);
    volume.set_keep_log_file_num(4);
    volume.set_max_log_file_size(4 << 20);
    volume.set_log_level(rocksdb::LogLevel::Warn);
    volume
}

/// How many first bytes of a family's keys name what a scan asks for, where most scans stay within that: files that
/// have nothing of it are passed over.
pub(super) fn scan_prefix_len(family: Family) -> Option<usize> {
    match family {
        Family::Inbox => Some(INBOX_PREFIX_LEN),
        Family::Member => Some(TALK_PREFIX_LEN),
        _ => None,
    }
}

/// How many first bytes of a family's keys name a run of keys that ascend as they are written: an inbox's places, a
/// sender's ids.
fn run_prefix_len(family: Family) -> Option<usize> {
    match family {
        Family::Inbox => Some(INBOX_PREFIX_LEN),
        Family::Dedup => Some(DEDUP_PREFIX_LEN),
        _ => None,
    }
}

/// Options of a memtable that remembers for each prefix where the last key went in. What ascends within it goes next to
/// that one, without a search from the top, which is most of what an insert into a large skip list costs.
fn with_hints(prefix_len: usize) -> Options {
    let hints = format!("memtable_insert_with_hint_prefix_extractor=fixed:{prefix_len}");
    Options::default().get_options_from_string(hints).expect("RocksDB knows its options by name")
}

pub(super) fn family_options(
    family: Family,
    options: &RocksOptions,
    shared: &Shared,
    retention: &Arc<Retention>,
    access: &Access,
) -> Options {
    let mut of = run_prefix_len(family).map_or_else(Options::default, with_hints);
    of.set_block_based_table_factory(&table_options(family, &shared.cache));
    of.set_write_buffer_size(options.memtable_bytes);
    of.set_max_write_buffer_number(4);
    // Payloads are ciphertext, and what is in front of them differs from row to row: nothing to gain.
    of.set_compression_type(DBCompressionType::None);
    merge_rarely(&mut of, if matches!(family, Family::Inbox | Family::Dedup) { LOG_RUNS_MAX } else { RUNS_MAX });
    match family {
        // Rows that are overwritten and looked up, never scanned: each scan would sort all of a hashed memtable first.
        Family::Conversation => hashed(&mut of, CONVERSATION_KEY_LEN),
        // Looked up once for every message, and hardly ever there. Of a conversation's rows in `member`, too, most are
        // not there when they are loaded. Users are looked up one by one, and scanned by the sweep.
        Family::Dedup | Family::Member | Family::User => {
            of.set_memtable_prefix_bloom_ratio(0.05);
            of.set_memtable_whole_key_filtering(true);
        }
        Family::Inbox | Family::Meta | Family::Outbox | Family::Body | Family::Device => {}
    }
    if let Some(len) = scan_prefix_len(family) {
        of.set_prefix_extractor(SliceTransform::create_fixed_prefix(len));
    }
    if Filter::drops_any(family) {
        let (retention, access) = (Arc::clone(retention), Arc::clone(access));
        of.set_compaction_filter_factory(Factory { family, retention, access });
    }
    of
}

fn table_options(family: Family, cache: &Cache) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    match family {
        // A filter that errs sends a lookup to the disk, and dedup is asked for every message.
        Family::Dedup => table.set_bloom_filter(16.0, false),
        // Only ever scanned, from where a stream was left.
        Family::Outbox => {}
        _ => table.set_bloom_filter(10.0, false),
    }
    // Inboxes are scanned, never asked for one row.
    table.set_whole_key_filtering(family != Family::Inbox);
    table.set_index_type(BlockBasedIndexType::BinarySearch);
    table.set_format_version(6);
    table.set_block_size(16 << 10);
    table
}

/// Files are merged by size, and only when there are many: a pass over all rows costs about a microsecond a message, and
/// filters keep lookups away from files that do not have their key. A file is merged at the latest when it is 30 days
/// old, which RocksDB sees to by itself.
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
