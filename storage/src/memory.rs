//! An engine in memory, for tests: rows, and the bytes of a log as RocksDB writes it. It behaves like the engine on
//! disk, and on command it fails, is slow to know, loses what was not synced, and opens again by the same check of the
//! log. Never touches a disk.
//!
//! What is appended is not readable before it is synced. Rows are slices of the records that brought them; what a
//! record replaced is kept beside it until the log starts anew, so that rows can go back to any place in the log.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow, Range};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::batch::{self, Batch};
use crate::engine::{Engine, EngineMemory, Family, Lookup, ScanEnd, Tier, Visitor};
use crate::error::{EngineError, OpenError};
use crate::filter::{Filter, Retention};
use crate::log;
use crate::wal::{Check, Verdict};

/// Bytes of the log after which it starts anew by itself.
const LOG_LEN_MAX: usize = 16 << 20;

/// What the next write does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteFault {
    /// It succeeds.
    #[default]
    None,
    /// It fails before anything is written.
    Write,
    /// It is written, but the sync fails: a crash may lose it or not.
    Sync,
}

/// What a crash takes of the bytes that were appended and not synced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// So many of them survive, from the first on.
    pub keep: usize,
    /// Of those, these are zeroes: pages that never reached the disk.
    pub hole: Option<Range<usize>>,
}

impl Loss {
    /// The process was killed: what it had written is there.
    pub const NOTHING: Self = Self { keep: usize::MAX, hole: None };
    /// The machine failed before anything of it reached the disk.
    pub const ALL: Self = Self { keep: 0, hole: None };
}

/// What was cut off when an engine was opened again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cuts {
    /// Bytes of the log.
    pub len: usize,
    /// How the damage showed; `None`: there was none.
    pub reason: Option<String>,
}

/// An engine in memory.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    state: Mutex<State>,
    retention: Arc<Retention>,
}

/// The rows of a family. Keys and values are slices of records.
type Rows = BTreeMap<Bytes, Bytes>;

#[derive(Clone, Debug, Default)]
struct State {
    /// All that is synced, by family.
    rows: [Rows; Family::ALL.len()],
    log: Vec<u8>,
    /// Bytes of the log that are on disk for certain.
    synced_len: usize,
    /// What the log's synced records replaced, in their order.
    replaced: Vec<Replaced>,
    /// Records appended and not synced: where they begin in the log, and what they hold.
    unsynced: Vec<(u64, Bytes)>,
    /// The last sequence number given out, that on disk, and that on disk when the log began.
    sequence: u64,
    sequence_synced: u64,
    sequence_begin: u64,
    is_closed: bool,
    fault: WriteFault,
    cold: Cold,
}

#[derive(Clone, Debug)]
struct Replaced {
    /// Where the record begins that replaced it.
    offset: u64,
    family: Family,
    key: Bytes,
    value: Option<Bytes>,
}

/// Which lookups meet a cold cache.
#[derive(Clone, Copy, Debug, Default)]
struct Cold {
    per_mille: u64,
    seed: u64,
    lookups: u64,
}

impl MemoryEngine {
    /// An empty engine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What says which rows have outlived their time.
    #[must_use]
    pub fn retention(&self) -> Arc<Retention> {
        Arc::clone(&self.retention)
    }

    /// The next write meets this fault.
    pub fn fail_next_write(&self, fault: WriteFault) {
        self.state.lock().fault = fault;
    }

    /// While cold, a lookup with [`Tier::Memory`] answers `Unknown`, as if nothing were cached.
    pub fn set_cold(&self, is_cold: bool) {
        self.set_cold_share(0, if is_cold { 1000 } else { 0 });
    }

    /// From now on so many of a thousand lookups with [`Tier::Memory`] answer `Unknown`: the same ones for the same
    /// seed and the same lookups.
    pub fn set_cold_share(&self, seed: u64, per_mille: u16) {
        self.state.lock().cold = Cold { per_mille: u64::from(per_mille), seed, lookups: 0 };
    }

    /// Appends batches to the log as one record, as RocksDB does with what several threads write at once. They are
    /// not readable, and a crash may lose them.
    pub fn append_group(&self, batches: &[Batch]) {
        self.state.lock().append(batches);
    }

    /// Appends a batch, and leaves it to the mercy of [`MemoryEngine::crash`].
    pub fn write_only(&self, batch: &Batch) {
        self.append_group(std::slice::from_ref(batch));
    }

    /// Everything appended is on disk from now on, and its rows are readable.
    pub fn sync(&self) {
        self.state.lock().sync();
    }

    /// The rows are in files from now on, and the log starts anew, with what is not synced.
    pub fn flush(&self) {
        self.state.lock().flush();
    }

    /// Bytes of the log that a crash may take.
    #[must_use]
    pub fn unsynced_len(&self) -> usize {
        let state = self.state.lock();
        state.log.len() - state.synced_len
    }

    /// Bytes of the log.
    #[must_use]
    pub fn log_len(&self) -> usize {
        self.state.lock().log.len()
    }

    /// The process or the machine fails. What is left is what was on disk; until it is opened again, everything else
    /// is an error.
    pub fn crash(&self, loss: &Loss) {
        let mut state = self.state.lock();
        let State { log, synced_len, .. } = &mut *state;
        log.truncate(synced_len.saturating_add(loss.keep).min(log.len()));
        if let Some(hole) = &loss.hole {
            let place = |at: usize| synced_len.saturating_add(at).min(log.len());
            let (begin, end) = (place(hole.start), place(hole.end));
            log.get_mut(begin..end.max(begin)).expect("it is within the log").fill(0);
        }
        (state.is_closed, state.fault) = (true, WriteFault::None);
    }

    /// Opens it after a crash: checks its log, cuts off what was never synced, and has exactly the rows of what is
    /// left.
    ///
    /// # Errors
    /// The log is damaged where it had been synced.
    pub fn reopen(&self) -> Result<Cuts, OpenError> {
        self.state.lock().reopen()
    }

    /// A copy of all that is on its disk, and appended to that. It fails nothing and is not cold.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut state = self.state.lock().clone();
        (state.fault, state.cold) = (WriteFault::None, Cold::default());
        let retention = Retention::default();
        retention.forget_dedup_before(self.retention.dedup_before_ms());
        Self { state: Mutex::new(state), retention: Arc::new(retention) }
    }

    /// Test-only damage: bytes of the log are no longer what they were.
    pub fn damage(&self, at: usize, len: usize) {
        self.state.lock().log.iter_mut().skip(at).take(len).for_each(|byte| *byte = !*byte);
    }

    /// Test-only damage: sets a row behind everybody's back, or removes it.
    pub fn plant(&self, family: Family, key: &[u8], value: Option<&[u8]>) {
        let mut state = self.state.lock();
        let rows = state.rows_mut(family);
        match value {
            Some(value) => rows.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)),
            None => rows.remove(key),
        };
    }

    /// The state for a read, unless the cache is cold: then nothing.
    fn read(&self, family: Family, key: &[u8], tier: Tier) -> Result<Option<MutexGuard<'_, State>>, EngineError> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(failed("a read"));
        }
        let is_cold = tier == Tier::Memory && state.cold.is_cold(family, key);
        Ok((!is_cold).then_some(state))
    }
}

impl Cold {
    fn is_cold(&mut self, family: Family, key: &[u8]) -> bool {
        if self.per_mille == 0 || self.per_mille >= 1000 {
            return self.per_mille > 0;
        }
        self.lookups += 1;
        let seed = self.seed.rotate_left(32) ^ (self.lookups << 4) ^ u64::from(family.number());
        xxh3_64_with_seed(key, seed) % 1000 < self.per_mille
    }
}

impl State {
    fn rows(&self, family: Family) -> &Rows {
        self.rows.get(family.index()).expect("a family's index is below their count")
    }

    fn rows_mut(&mut self, family: Family) -> &mut Rows {
        self.rows.get_mut(family.index()).expect("a family's index is below their count")
    }

    fn append(&mut self, batches: &[Batch]) {
        assert!(!self.is_closed, "nothing is written to a closed engine");
        let count: u32 = batches.iter().map(Batch::row_count).sum();
        if count == 0 {
            return;
        }
        let mut record = Vec::with_capacity(batches.iter().map(Batch::len).sum());
        record.extend_from_slice(&(self.sequence + 1).to_le_bytes());
        record.extend_from_slice(&count.to_le_bytes());
        for batch in batches {
            record
                .extend_from_slice(batch.as_bytes().get(batch::HEADER_LEN..).expect("a batch begins with its header"));
        }
        self.sequence += u64::from(count);
        self.append_record(record.into());
    }

    fn append_record(&mut self, record: Bytes) {
        let offset = self.log.len() as u64;
        log::append_record(&mut self.log, &record);
        self.unsynced.push((offset, record));
    }

    fn sync(&mut self) {
        for (offset, record) in std::mem::take(&mut self.unsynced) {
            self.put(offset, &record);
        }
        (self.synced_len, self.sequence_synced) = (self.log.len(), self.sequence);
        if self.log.len() > LOG_LEN_MAX {
            self.flush();
        }
    }

    /// The rows of a record.
    fn put(&mut self, offset: u64, record: &Bytes) {
        let Self { rows, replaced, .. } = self;
        let whole = batch::decode(record, |row| {
            let family = Family::from_number(row.family).expect("a batch is filled through `put`");
            let (key, value) = (record.slice_ref(row.key), record.slice_ref(row.value));
            let rows = rows.get_mut(family.index()).expect("a family's index is below their count");
            let value = rows.insert(key.clone(), value);
            replaced.push(Replaced { offset, family, key, value });
            ControlFlow::Continue(())
        });
        whole.expect("a batch is filled through `put`");
    }

    /// The rows as they were before the record that begins at `offset`, or after it.
    fn roll_back(&mut self, offset: u64) {
        while let Some(Replaced { family, key, value, .. }) = self.replaced.pop_if(|last| last.offset >= offset) {
            match value {
                Some(value) => self.rows_mut(family).insert(key, value),
                None => self.rows_mut(family).remove(&key),
            };
        }
    }

    fn flush(&mut self) {
        self.log.clear();
        self.replaced.clear();
        (self.synced_len, self.sequence_begin) = (0, self.sequence_synced);
        for (_, record) in std::mem::take(&mut self.unsynced) {
            self.append_record(record);
        }
    }

    fn reopen(&mut self) -> Result<Cuts, OpenError> {
        let mut check = Check::default();
        let (log, synced_len) = (std::mem::take(&mut self.log), self.synced_len as u64);
        let (mut found, mut end) = (Vec::new(), None);
        let scanned = check.scan(log.as_slice(), |offset, bytes| {
            if offset >= synced_len {
                found.push((offset, bytes));
            }
        });
        scanned.expect("memory can be read");
        let sequence = check.last_good().unwrap_or(self.sequence_begin);
        if let Some(damage) = check.damage() {
            end = Some(usize::try_from(damage.good_end).expect("it is within the log"));
        }
        self.log = log;
        let mut cuts = Cuts::default();
        match check.verdict() {
            Verdict::Whole => {}
            Verdict::Refused(damage) => {
                let file = PathBuf::from("the log in memory");
                return Err(OpenError::Damaged { file, offset: damage.offset, reason: damage.reason });
            }
            Verdict::Torn(damage) => {
                let len = end.expect("there is damage");
                cuts = Cuts { len: self.log.len() - len, reason: Some(damage.reason) };
                self.log.truncate(len);
            }
        }
        // Rows come from what is good, and from nothing else.
        self.unsynced.clear();
        if let Some(end) = end {
            self.roll_back(end as u64);
        }
        for (offset, record) in found {
            self.put(offset, &record.into());
        }
        (self.sequence, self.sequence_synced, self.synced_len) = (sequence, sequence, self.log.len());
        self.is_closed = false;
        Ok(cuts)
    }
}

fn failed(action: &'static str) -> EngineError {
    EngineError::Failed { action, source: "told to fail".into() }
}

impl Engine for MemoryEngine {
    fn get(&self, family: Family, key: &[u8], tier: Tier) -> Result<Lookup<Vec<u8>>, EngineError> {
        let Some(state) = self.read(family, key, tier)? else { return Ok(Lookup::Unknown) };
        Ok(state.rows(family).get(key).map_or(Lookup::Absent, |value| Lookup::Present(value.to_vec())))
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8], tier: Tier) -> Result<Lookup<Vec<u8>>, EngineError> {
        let Some(state) = self.read(family, to, tier)? else { return Ok(Lookup::Unknown) };
        if from > to {
            return Ok(Lookup::Absent);
        }
        let last = state.rows(family).range::<[u8], _>((Bound::Included(from), Bound::Included(to))).next_back();
        Ok(last.map_or(Lookup::Absent, |(key, _)| Lookup::Present(key.to_vec())))
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        tier: Tier,
        visit: &mut Visitor<'_>,
    ) -> Result<ScanEnd, EngineError> {
        let Some(state) = self.read(family, from, tier)? else { return Ok(ScanEnd::Unknown) };
        if from >= to {
            return Ok(ScanEnd::Complete);
        }
        for (key, value) in state.rows(family).range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))) {
            if visit(key, value).is_break() {
                return Ok(ScanEnd::Stopped);
            }
        }
        Ok(ScanEnd::Complete)
    }

    fn write(&self, batch: &Batch) -> Result<(), EngineError> {
        let mut state = self.state.lock();
        let fault = std::mem::take(&mut state.fault);
        if state.is_closed || fault == WriteFault::Write {
            return Err(failed("a write"));
        }
        state.append(std::slice::from_ref(batch));
        if fault == WriteFault::Sync {
            return Err(failed("a sync"));
        }
        state.sync();
        Ok(())
    }

    #[cfg(feature = "answer-before-sync")]
    fn write_unsynced(&self, batch: &Batch) -> Result<(), EngineError> {
        self.write_only(batch);
        Ok(())
    }

    #[cfg(feature = "answer-before-sync")]
    fn sync(&self) -> Result<(), EngineError> {
        self.state.lock().sync();
        Ok(())
    }

    fn sequence_synced(&self) -> u64 {
        self.state.lock().sequence_synced
    }

    fn memory(&self) -> EngineMemory {
        EngineMemory::default()
    }

    /// What is not synced keeps nothing alive and lets nothing go: only what a crash cannot take decides.
    fn compact(&self) -> Result<(), EngineError> {
        let mut state = self.state.lock();
        state.flush();
        for family in Family::ALL {
            let mut filter = Filter::new(family, &self.retention);
            let look_up = |family: Family, key: &[u8]| state.rows(family).get(key).map(|value| value.to_vec());
            let drops = |(key, value): &(&Bytes, &Bytes)| filter.drops(key, value, look_up);
            let gone: Vec<Bytes> = state.rows(family).iter().filter(drops).map(|(key, _)| key.clone()).collect();
            for key in gone {
                state.rows_mut(family).remove(&key);
            }
        }
        Ok(())
    }
}
