//! An engine in memory, for tests: it behaves like the one on disk, and on command it fails, loses what was not
//! synced, or does not know. Never touches a disk.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::batch::Batch;
use crate::engine::{Engine, EngineMemory, Family, Lookup, ScanEnd, Tier, Visitor};
use crate::error::EngineError;
use crate::filter::{Filter, Retention};

type Rows = BTreeMap<(Family, Vec<u8>), Vec<u8>>;

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

/// An engine in memory.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    state: Mutex<State>,
    retention: Arc<Retention>,
}

#[derive(Debug, Default)]
struct State {
    /// All that was written.
    rows: Rows,
    /// Batches that were written and not synced, oldest first.
    unsynced: Vec<Batch>,
    /// What a crash cannot take.
    synced: Rows,
    sequence: u64,
    sequence_synced: u64,
    fault: WriteFault,
    is_cold: bool,
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
        self.state.lock().is_cold = is_cold;
    }

    /// Writes a batch and leaves it to the mercy of [`MemoryEngine::crash`].
    pub fn write_only(&self, batch: &Batch) {
        self.state.lock().write(batch);
    }

    /// The machine fails: of the batches not synced, only the first `survivors` are there afterwards.
    pub fn crash(&self, survivors: usize) {
        let mut state = self.state.lock();
        let unsynced = std::mem::take(&mut state.unsynced);
        for batch in unsynced.iter().take(survivors) {
            state.sequence_synced += u64::from(batch.row_count());
            put_all(&mut state.synced, batch);
        }
        state.rows = state.synced.clone();
        state.sequence = state.sequence_synced;
        state.fault = WriteFault::None;
    }

    /// Batches written and not synced.
    #[must_use]
    pub fn unsynced_count(&self) -> usize {
        self.state.lock().unsynced.len()
    }

    /// Test-only damage: sets a row behind everybody's back, or removes it.
    pub fn plant(&self, family: Family, key: &[u8], value: Option<&[u8]>) {
        let mut state = self.state.lock();
        for rows in [0, 1] {
            let rows = if rows == 0 { &mut state.rows } else { &mut state.synced };
            match value {
                Some(value) => rows.insert((family, key.to_vec()), value.to_vec()),
                None => rows.remove(&(family, key.to_vec())),
            };
        }
    }
}

impl State {
    fn write(&mut self, batch: &Batch) {
        put_all(&mut self.rows, batch);
        self.sequence += u64::from(batch.row_count());
        self.unsynced.push(batch.clone());
    }

    fn sync(&mut self) {
        for batch in std::mem::take(&mut self.unsynced) {
            put_all(&mut self.synced, &batch);
        }
        self.sequence_synced = self.sequence;
    }
}

fn put_all(rows: &mut Rows, batch: &Batch) {
    batch.rows(|family, key, value| {
        rows.insert((family, key.to_vec()), value.to_vec());
    });
}

fn failed(action: &'static str) -> EngineError {
    EngineError::Failed { action, source: "told to fail".into() }
}

impl Engine for MemoryEngine {
    fn get(&self, family: Family, key: &[u8], tier: Tier) -> Result<Lookup<Vec<u8>>, EngineError> {
        let state = self.state.lock();
        if state.is_cold && tier == Tier::Memory {
            return Ok(Lookup::Unknown);
        }
        Ok(state.rows.get(&(family, key.to_vec())).map_or(Lookup::Absent, |value| Lookup::Present(value.clone())))
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8], tier: Tier) -> Result<Lookup<Vec<u8>>, EngineError> {
        let state = self.state.lock();
        if state.is_cold && tier == Tier::Memory {
            return Ok(Lookup::Unknown);
        }
        let range = (Bound::Included((family, from.to_vec())), Bound::Included((family, to.to_vec())));
        let last = state.rows.range(range).next_back();
        Ok(last.map_or(Lookup::Absent, |((_, key), _)| Lookup::Present(key.clone())))
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        tier: Tier,
        visit: &mut Visitor<'_>,
    ) -> Result<ScanEnd, EngineError> {
        let state = self.state.lock();
        if state.is_cold && tier == Tier::Memory {
            return Ok(ScanEnd::Unknown);
        }
        if from >= to {
            return Ok(ScanEnd::Complete);
        }
        let range = (Bound::Included((family, from.to_vec())), Bound::Excluded((family, to.to_vec())));
        for ((_, key), value) in state.rows.range(range) {
            if visit(key, value).is_break() {
                return Ok(ScanEnd::Stopped);
            }
        }
        Ok(ScanEnd::Complete)
    }

    fn write(&self, batch: &Batch) -> Result<(), EngineError> {
        let mut state = self.state.lock();
        match std::mem::take(&mut state.fault) {
            WriteFault::Write => return Err(failed("a write")),
            WriteFault::Sync => {
                state.write(batch);
                return Err(failed("a sync"));
            }
            WriteFault::None => {}
        }
        state.write(batch);
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
        let State { rows, synced, .. } = &mut *state;
        let mut filters = Family::ALL.map(|family| Filter::new(family, &self.retention));
        let mut drops = |(family, key): &(Family, Vec<u8>), value: &[u8]| {
            let filter = filters.get_mut(family.index()).expect("a family's index is below their count");
            filter.drops(key, value, |family, key| synced.get(&(family, key.to_vec())).cloned())
        };
        let gone: Vec<_> = rows.iter().filter(|(key, value)| drops(key, value)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            rows.remove(&key);
            synced.remove(&key);
        }
        Ok(())
    }
}
