//! `recover`: the state of a hub's shards after a restart. Reads only `meta`; all else is loaded when it is needed.

use std::ops::ControlFlow;
use std::sync::Arc;

use culver_protocol::id::MessageId;
use hashbrown::HashMap;

use super::cache::Cache;
use super::clock::ExpiryClock;
use super::floor::Folds;
use super::names::Unwritten;
use super::state::{Building, ShardClock};
use super::streams::{Source, Streams};
use super::{Policy, Shards};
use crate::batch::BatchNumber;
use crate::engine::{Engine, Family, Lookup, Tier};
use crate::error::{EngineError, Error};
use crate::key::{self, META_KEY_LEN, MetaKind, ShardId};
use crate::planted::{self, Bug};
use crate::record::{Lane, Stream};
use crate::topology::{HubId, Topology};
use crate::value::{BatchRow, ClockRow, DecodeError, NumberRow, TimeRow};

impl Shards {
    /// The shards of a hub as they stand in the engine of its volume. Time goes on from the clock or from what had
    /// been reserved, whichever is later; the expiry clock from where it was.
    ///
    /// # Errors
    /// The engine failed, or a row of `meta` or a key of `outbox` cannot be read.
    pub fn recover(
        engine: &dyn Engine,
        topology: Arc<Topology>,
        hub: HubId,
        policy: Policy,
        now_ms: u64,
        mono_ms: u64,
    ) -> Result<Self, Error> {
        let key = batch_key(&topology, hub);
        let batch_row = match engine.get(Family::Meta, &key, Tier::Disk)? {
            Lookup::Present(value) => BatchRow::decode(&value).map_err(|source| EngineError::Row {
                family: Family::Meta,
                key: key.to_vec(),
                source,
            })?,
            Lookup::Absent => BatchRow::default(),
            Lookup::Unknown => unreachable!("a lookup that may go to the disk always knows"),
        };
        let mut found = Found::new(&topology, hub);
        found.read_meta(engine)?;
        found.read_outbox(engine)?;
        let Found { clocks, expiry_ms, streams, .. } = found;
        let reserved_until_ms = clocks.iter().map(|clock| clock.reserved_until_ms).max().unwrap_or(0);
        let durable = BatchNumber(batch_row.number);
        let policy = Policy { bounds: policy.bounds.checked(), ..policy };
        let bounds = policy.bounds;
        Ok(Self {
            shard_count: topology.shard_count(),
            topology,
            hub,
            policy,
            clock_ms: if planted::is(Bug::MessageIdReused) { now_ms } else { now_ms.max(reserved_until_ms) },
            expiry: ExpiryClock::start(expiry_ms, now_ms, mono_ms, bounds.clock_write_ms),
            clocks,
            conversations: Cache::new(bounds.conversations_cached),
            users: Cache::new(bounds.users_cached),
            talks: Cache::new(bounds.talks_cached),
            streams,
            full: HashMap::new(),
            folds: Folds::new(bounds.folds_queued),
            newest: Cache::new(bounds.senders_cached),
            pending: HashMap::new(),
            unwritten_names: Unwritten::default(),
            awaited: HashMap::new(),
            applied: batch_row.applied,
            building: Building::new(durable.next(), 0),
            sealed: std::collections::VecDeque::new(),
            durable,
            row: Vec::new(),
            journal: None,
        })
    }

    /// Lets the expiry clocks of all hubs, just recovered, begin together. Where none was ever written on a volume, it
    /// goes on from the latest of the others, not from the clock on the wall: that may have gone on by years since
    /// they sent what is still to arrive there.
    pub fn begin_together(all: &mut [Self]) {
        let latest_ms = all.iter().filter_map(|shards| shards.expiry.known_ms()).max();
        for shards in all {
            latest_ms.into_iter().for_each(|ms| shards.expiry.begin_at(ms));
        }
    }

    pub(super) fn batch_key(&self) -> [u8; META_KEY_LEN] {
        batch_key(&self.topology, self.hub)
    }

    pub(super) fn first_shard(&self) -> ShardId {
        first_shard(&self.topology, self.hub)
    }
}

fn first_shard(topology: &Topology, hub: HubId) -> ShardId {
    topology.shards_of(hub).next().expect("a hub has at least one shard")
}

fn batch_key(topology: &Topology, hub: HubId) -> [u8; META_KEY_LEN] {
    key::meta(first_shard(topology, hub), MetaKind::Batch, u64::from(hub.0))
}

/// What was found in the engine for the shards of one hub.
struct Found<'a> {
    topology: &'a Topology,
    hub: HubId,
    clocks: Vec<ShardClock>,
    /// The latest expiry clock of the volume, whichever hub's: hubs may have been fewer or more.
    expiry_ms: Option<u64>,
    streams: Streams,
}

impl<'a> Found<'a> {
    fn new(topology: &'a Topology, hub: HubId) -> Self {
        let unused = ShardClock { last: MessageId(0), reserved_until_ms: 0, dirty: false };
        let clocks = vec![unused; usize::from(topology.shard_count())];
        Self { topology, hub, clocks, expiry_ms: None, streams: Streams::default() }
    }

    fn is_own(&self, shard: ShardId) -> bool {
        shard.0 < self.topology.shard_count() && self.topology.hub_of_shard(shard) == self.hub
    }

    fn read_meta(&mut self, engine: &dyn Engine) -> Result<(), EngineError> {
        let mut failure = None;
        engine.scan(Family::Meta, &[], &[0xff; META_KEY_LEN], Tier::Disk, &mut |key, value| match self
            .meta_row(key, value)
        {
            Ok(()) => ControlFlow::Continue(()),
            Err(source) => {
                failure = Some(EngineError::Row { family: Family::Meta, key: key.to_vec(), source });
                ControlFlow::Break(())
            }
        })?;
        failure.map_or(Ok(()), Err)
    }

    fn meta_row(&mut self, key: &[u8], value: &[u8]) -> Result<(), DecodeError> {
        let Some((shard, kind, id)) = key::decode_meta(key) else { return Ok(()) };
        if kind == MetaKind::Clock as u8 {
            self.expiry_ms = self.expiry_ms.max(Some(ClockRow::decode(value)?.ms));
        }
        if !self.is_own(shard) {
            return Ok(());
        }
        if kind == MetaKind::Time as u8 {
            let clock = self.clocks.get_mut(usize::from(shard.0)).expect("a shard is below the shard count");
            clock.reserved_until_ms = TimeRow::decode(value)?.until_ms;
        }
        let Some(stream) = key::stream_of(shard, kind, id) else { return Ok(()) };
        let number = NumberRow::decode(value)?.number;
        if stream.to == shard && kind == MetaKind::Watermark as u8 {
            let number = if planted::is(Bug::OutboxAppliedTwice) { number.saturating_sub(1) } else { number };
            self.streams.watermarks.insert(stream, (number, false));
        } else {
            // What is below the head may be gone from the outbox: numbers go on from here at least.
            let source = Source { last: number, durable: number, taken: number, head: number, is_head_due: false };
            self.streams.sources.insert(stream, source);
        }
        Ok(())
    }

    /// The last number of each stream from these shards: one lookup a stream that has rows, and one a shard.
    fn read_outbox(&mut self, engine: &dyn Engine) -> Result<(), EngineError> {
        for from in self.topology.shards_of(self.hub) {
            let least = key::outbox(Stream { from, to: ShardId(0), lane: Lane::Message }, 0);
            let mut greatest = key::outbox(Stream { from, to: ShardId(u16::MAX), lane: Lane::Receipt }, u64::MAX);
            while let Lookup::Present(last) = engine.last(Family::Outbox, &least, &greatest, Tier::Disk)? {
                let Some((stream, n)) = key::decode_outbox(&last) else {
                    return Err(EngineError::Row { family: Family::Outbox, key: last, source: DecodeError::Length });
                };
                let source = self.streams.sources.entry(stream).or_default();
                source.last = source.last.max(n);
                source.durable = source.last;
                let is_message = stream.lane == Lane::Message;
                if source.taken < source.last && is_message && self.topology.hub_of_shard(stream.to) == self.hub {
                    self.streams.own_behind += 1;
                }
                // Rows are numbered from 1: nothing has this key, and what is before it is another stream's.
                greatest = key::outbox(stream, 0);
            }
        }
        Ok(())
    }
}
