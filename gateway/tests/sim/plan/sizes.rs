//! How big the queues and tables of the server are: as in production, or so small that each is full now and then.

use culver::hub::bounds::Bounds as HubBounds;
use culver::{mailbox, reactor};
use culver_storage::shard::Bounds as ShardBounds;

use crate::source::Source;

/// Sizes of queues and tables of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Of a link between a reactor and a hub.
    pub commands: usize,
    pub kept: usize,
    pub replies: usize,
    pub deliveries: usize,
    /// Of a link between hubs.
    pub mail: usize,
    /// Of a reactor.
    pub read_len: usize,
    pub unsent_len_max: usize,
    pub unsent_all_len: usize,
    pub closings_per_s: u32,
    pub effects_a_turn: usize,
    pub pages_a_turn: usize,
    pub reads_a_turn: usize,
    /// Of a hub.
    pub reads_outstanding: usize,
    pub batch_bytes: usize,
    pub parked_sends: usize,
    pub parked_arrivals: usize,
    pub parked_of_stream: usize,
    pub folds: usize,
    pub sweep_ms: u64,
    /// Of shards.
    pub cached: usize,
    pub awaited: usize,
    pub lag: u64,
    pub lookups_first: u8,
    pub fold_delay_ms: u64,
}

impl Sizes {
    /// Of the queues between a reactor and a hub.
    pub(crate) fn of_links(&self) -> mailbox::Bounds {
        mailbox::Bounds { commands: self.commands, kept: self.kept, replies: self.replies, deliveries: self.deliveries }
    }

    /// Of a reactor.
    pub(crate) fn of_reactors(&self) -> reactor::Bounds {
        reactor::Bounds {
            read_len: self.read_len,
            reads_a_turn: self.reads_a_turn,
            effects_a_turn: self.effects_a_turn,
            pages_a_turn: self.pages_a_turn,
            unsent_len: self.unsent_len_max,
            unsent_all_len: self.unsent_all_len,
            closings_per_s: self.closings_per_s,
            partings_a_turn: self.reads_a_turn,
            ..reactor::Bounds::default()
        }
    }

    /// Of shards.
    pub(crate) fn of_shards(&self) -> ShardBounds {
        ShardBounds {
            conversations_cached: self.cached,
            users_cached: self.cached,
            talks_cached: self.cached,
            senders_cached: self.cached,
            awaited: self.awaited,
            lookups_first: self.lookups_first,
            head_hint_lag: self.lag,
            receipts_head_lead: self.lag,
            head_lag: self.lag,
            full_ms: self.fold_delay_ms,
            fold_delay_ms: self.fold_delay_ms,
            folds_queued: self.folds * 2,
            ..ShardBounds::default()
        }
    }

    /// Of a hub.
    pub(crate) fn of_hubs(&self) -> HubBounds {
        HubBounds {
            reads_outstanding: self.reads_outstanding,
            batch_bytes: self.batch_bytes,
            parked_sends: self.parked_sends,
            parked_arrivals: self.parked_arrivals,
            parked_of_stream: self.parked_of_stream,
            folds: self.folds,
            first_sweep_ms: self.sweep_ms,
            sweep_interval_ms: self.sweep_ms,
            ..HubBounds::default()
        }
    }

    /// As in production as far as a run of a few milliseconds could tell, but cheap to make.
    pub(super) fn wide(source: &mut Source) -> Self {
        let cached = source.pick(&[1000, 1000, 10]);
        Self {
            commands: 128,
            kept: 32,
            replies: 256,
            deliveries: 256,
            mail: 256,
            read_len: 8192,
            unsent_len_max: 256 * 1024,
            unsent_all_len: 64 << 20,
            closings_per_s: 10_000,
            effects_a_turn: 8192,
            pages_a_turn: 16,
            reads_a_turn: 4,
            reads_outstanding: 64,
            batch_bytes: 4 << 20,
            parked_sends: 4096,
            parked_arrivals: 4096,
            parked_of_stream: 256,
            folds: 128,
            sweep_ms: source.pick(&[600_000, 2_000]),
            cached,
            awaited: 1000,
            lag: 64,
            lookups_first: 16,
            fold_delay_ms: 1000,
        }
    }

    /// So that everything is full now and then.
    pub(super) fn tight(source: &mut Source) -> Self {
        let commands = source.number(3, 24);
        let unsent_len_max = source.pick(&[256 * 1024, 4096, 200]);
        Self {
            commands,
            kept: 1 + source.index(commands - 2),
            replies: commands + source.index(24),
            deliveries: source.number(2, 24),
            mail: source.number(1, 12),
            read_len: source.pick(&[8192, 256, 20, 1]),
            unsent_len_max,
            effects_a_turn: source.number(1, 64),
            pages_a_turn: source.number(1, 4),
            reads_a_turn: source.number(1, 4),
            reads_outstanding: source.number(1, 24),
            batch_bytes: source.pick(&[4 << 20, 4096, 600]),
            parked_sends: source.number(1, 16),
            parked_arrivals: source.number(8, 16),
            parked_of_stream: source.number(1, 8),
            folds: source.number(1, 4),
            sweep_ms: source.pick(&[600_000, 2_000, 200]),
            cached: source.pick(&[1000, 8, 2]),
            awaited: source.pick(&[1000, 5]),
            lag: source.pick(&[64, 3, 1]),
            lookups_first: source.pick(&[16, 1, 0]),
            fold_delay_ms: source.pick(&[1000, 50]),
            // As in a server: what one may have unsent, all may.
            unsent_all_len: source.pick(&[64 << 20, 5000, 600]).max(unsent_len_max),
            closings_per_s: source.pick(&[10_000, 50, 2]),
        }
    }
}
