//! Asks [`Filter`] about every row that RocksDB merges. Owns the way from a merge back into the database it is part of.
//!
//! RocksDB's authors neither test nor forbid lookups within a compaction filter; `MyRocks` makes them
//! (<https://github.com/facebook/rocksdb/issues/5057>). Their two warnings: a filter that *writes* can wait for the very
//! merge it is part of (this one only reads), and what a merge drops is gone only when the whole merge is done (floors
//! and heads only rise, so what is below one now is below it then, and after a crash in between). Snapshots do not keep
//! rows from a filter; nothing here holds one, and readers start above the floor.

use std::ffi::CStr;
use std::sync::{Arc, OnceLock, Weak};

use rocksdb::compaction_filter::{CompactionFilter, Decision};
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use rocksdb::{DB, ReadOptions};

use super::handle;
use crate::engine::Family;
use crate::filter::{Filter, Retention};

/// The database that rows are merged in, once it is open; until then everything is kept. Weak, for the database owns
/// the filters: a merge holds it during a lookup only, and [`super::RocksEngine`] waits for merges before it lets go.
pub(super) type Access = Arc<OnceLock<Weak<DB>>>;

/// Makes a filter for each merge of a family.
pub(super) struct Factory {
    pub(super) family: Family,
    pub(super) retention: Arc<Retention>,
    pub(super) access: Access,
}

/// Decides about the rows of one merge.
pub(super) struct MergeFilter {
    filter: Filter,
    access: Access,
    options: ReadOptions,
}

impl CompactionFilterFactory for Factory {
    type Filter = MergeFilter;

    /// Called from several threads at once: reads only.
    fn create(&mut self, _: CompactionFilterContext) -> MergeFilter {
        let mut options = ReadOptions::default();
        // A pass over all users would push out what is in use.
        options.fill_cache(false);
        let filter = Filter::new(self.family, &self.retention);
        MergeFilter { filter, access: Arc::clone(&self.access), options }
    }

    fn name(&self) -> &CStr {
        c"culver"
    }
}

impl CompactionFilter for MergeFilter {
    fn filter(&mut self, _level: u32, key: &[u8], value: &[u8]) -> Decision {
        let Self { filter, access, options } = self;
        let drops = filter.drops(key, value, |family, key| {
            let database = access.get()?.upgrade()?;
            database.get_cf_opt(handle(&database, family), key, options).ok().flatten()
        });
        if drops { Decision::Remove } else { Decision::Keep }
    }

    fn name(&self) -> &CStr {
        c"culver"
    }
}
