//! `recover`: the state of a hub's shards after a restart. Reads only `meta`; all else is loaded when it is needed.

use std::ops::ControlFlow;
use std::sync::Arc;

use culver_protocol::id::MessageId;
use hashbrown::HashMap;

use super::cache::Cache;
use super::{Policy, HubId, Topology, Building, CONVERSATIONS_CACHED_MAX, SENDERS_CACHED_MAX, ShardClock, Shards, USERS_CACHED_MAX};
use crate::batch::BatchNumber;
use crate::engine::{Engine, Family, Lookup, Tier};
use crate::error::{EngineError, Error};
use crate::key::{self, META_KEY_LEN, MetaKind, ShardId};
use crate::value::{BatchRow, TimeRow};

impl Shards {
    /// The shards of hub `hub` as they stand in the engine. Time goes on from the clock or from what had been
    /// reserved, whichever is later. For now the one hub, number 0, has all the shards.
    ///
    /// # Errors
    /// The engine failed, or a row of `meta` cannot be read.
    pub fn recover(
        engine: &dyn Engine,
        topology: Arc<Topology>,
        hub: HubId,
        policy: Policy,
        now_ms: u64,
        _mono_ms: u64,
    ) -> Result<Self, Error> {
        let (shard_count, hub) = (topology.shard_count(), hub.0);
        let batch_row = match engine.get(Family::Meta, &batch_key(hub), Tier::Disk)? {
            Lookup::Present(value) => BatchRow::decode(&value).map_err(|source| EngineError::Row {
                family: Family::Meta,
                key: batch_key(hub).to_vec(),
                source,
            })?,
            Lookup::Absent => BatchRow::default(),
            Lookup::Unknown => unreachable!("a lookup that may go to the disk always knows"),
        };
        let clocks = recover_clocks(engine, shard_count)?;
        let reserved_until_ms = clocks.iter().map(|clock| clock.reserved_until_ms).max().unwrap_or(0);
        let durable = BatchNumber(batch_row.number);
        Ok(Self {
            shard_count,
            hub,
            topology,
            policy,
            clock_ms: now_ms.max(reserved_until_ms),
            clocks,
            conversations: Cache::new(CONVERSATIONS_CACHED_MAX),
            users: Cache::new(USERS_CACHED_MAX),
            newest: Cache::new(SENDERS_CACHED_MAX),
            pending: HashMap::new(),
            awaited: HashMap::new(),
            applied: batch_row.applied,
            building: Building::new(durable.next(), 0),
            sealed: std::collections::VecDeque::new(),
            durable,
            row: Vec::new(),
        })
    }

    pub(super) fn batch_key(&self) -> [u8; META_KEY_LEN] {
        batch_key(self.hub)
    }
}

/// Hubs deal the shards among them, so a hub's first shard has its number.
fn batch_key(hub: u16) -> [u8; META_KEY_LEN] {
    key::meta(ShardId(hub), MetaKind::Batch, u64::from(hub))
}

fn recover_clocks(engine: &dyn Engine, shard_count: u16) -> Result<Vec<ShardClock>, EngineError> {
    let unused = ShardClock { last: MessageId(0), reserved_until_ms: 0, dirty: false };
    let mut clocks = vec![unused; usize::from(shard_count)];
    let mut failure = None;
    engine.scan(Family::Meta, &[], &[0xff; META_KEY_LEN], Tier::Disk, &mut |key, value| {
        let Some((shard, kind, _)) = key::decode_meta(key) else { return ControlFlow::Continue(()) };
        let Some(clock) = clocks.get_mut(usize::from(shard.0)) else { return ControlFlow::Continue(()) };
        if kind != MetaKind::Time as u8 {
            return ControlFlow::Continue(());
        }
        match TimeRow::decode(value) {
            Ok(row) => {
                clock.reserved_until_ms = row.until_ms;
                ControlFlow::Continue(())
            }
            Err(source) => {
                failure = Some(EngineError::Row { family: Family::Meta, key: key.to_vec(), source });
                ControlFlow::Break(())
            }
        }
    })?;
    failure.map_or(Ok(clocks), Err)
}
