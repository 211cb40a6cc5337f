//! One life of a hub, told twice: its journal, replayed on what it began with, gives the batches that it wrote, and
//! those that survived give the rows that the next life finds.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::super::{Journalled, Policy, Shards, replay};
use crate::batch::{Batch, BatchNumber};
use crate::engine::{Engine, Family, Tier};
use crate::memory::MemoryEngine;
use crate::topology::{HubId, Topology};

pub(super) struct Story {
    /// The disk as it was.
    start: MemoryEngine,
    policy: Policy,
    now_ms: u64,
    pub(super) batches: Vec<Batch>,
}

impl Story {
    pub(super) fn begin(engine: &MemoryEngine, shards: &mut Shards, now_ms: u64) -> Self {
        shards.keep_journal();
        Self { start: engine.fork(), policy: shards.policy(), now_ms, batches: Vec::new() }
    }

    /// Replays the journal; the batches are the same.
    pub(super) fn replay(&self, journal: &[Journalled], topology: &Arc<Topology>, hub: HubId) {
        let topology = Arc::clone(topology);
        let again = replay(&self.start, topology, hub, self.policy, self.now_ms, 0, journal).expect("memory reads");
        assert_eq!(again.len(), self.batches.len());
        for (batch, again) in self.batches.iter().zip(again) {
            assert_eq!(batch.number(), again.number());
            assert_eq!(batch.as_bytes(), again.as_bytes(), "a journal gives the batches of its life");
        }
    }

    /// A life of the only hub ended, and `engine` was opened again.
    pub(super) fn end(
        self,
        journal: &[Journalled],
        topology: &Arc<Topology>,
        durable: BatchNumber,
        engine: &MemoryEngine,
    ) {
        self.replay(journal, topology, HubId(0));
        for batch in self.batches.iter().filter(|batch| batch.number() <= durable) {
            self.start.write(batch).expect("memory writes");
        }
        assert_eq!(rows(&self.start), rows(engine), "what is recovered is what was applied");
    }
}

fn rows(engine: &MemoryEngine) -> BTreeMap<(Family, Vec<u8>), Vec<u8>> {
    let mut rows = BTreeMap::new();
    for family in Family::ALL {
        let visit = &mut |key: &[u8], value: &[u8]| {
            rows.insert((family, key.to_vec()), value.to_vec());
            ControlFlow::Continue(())
        };
        engine.scan(family, &[], &[0xff; 64], Tier::Disk, visit).expect("memory reads");
    }
    rows
}
