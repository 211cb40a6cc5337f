//! A hub without sockets or threads: decisions, batches, streams and floors on one volume, each done where it is asked.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId, InboxSeq, UserId};
use culver_storage::command::{Acked, Decision, Proof, Send};
use culver_storage::engine::Engine;
use culver_storage::error::EngineError;
use culver_storage::filter::Retention;
use culver_storage::reader::{Engines, Loaded, Page, read_fold, read_inbox};
use culver_storage::record::{Arrival, Outgoing, Place, Record, Stream};
use culver_storage::rocks::{RocksEngine, RocksOptions};
use culver_storage::shard::{Policy, Shards};
use culver_storage::topology::{HubId, Topology};

pub(crate) const SHARD_COUNT: u16 = 64;
/// When it begins.
pub(crate) const BEGIN_MS: u64 = 1_700_000_000_000;
const DAY_MS: u64 = 86_400_000;
const PAGE_ENTRIES: usize = 50;
const PAGE_BYTES: usize = 60 * 1024;
/// How often the expiry clock is moved on.
const TICK_MS: u64 = 60_000;

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) messages: u64,
    pub(crate) copies: u64,
    pub(crate) acks: u64,
    pub(crate) receipts: u64,
    pub(crate) reads: u64,
    pub(crate) folds: u64,
    pub(crate) batches: u64,
}

pub(crate) struct World {
    pub(crate) engine: Arc<RocksEngine>,
    pub(crate) engines: Engines,
    pub(crate) counts: Counts,
    pub(crate) now_ms: u64,
    shards: Shards,
    retention: Arc<Retention>,
    /// The last entry of each inbox, durable or not.
    heads: HashMap<UserId, InboxSeq>,
    /// Items whose arrival is in the batch under construction.
    arrived: HashMap<Stream, u64>,
    /// Users who have got an entry since this was last taken.
    woken: Vec<UserId>,
    in_batch: u64,
    batch_len: u64,
    ticked_ms: u64,
}

impl World {
    pub(crate) fn open(path: &Path, batch_len: u64) -> Self {
        let retention = Arc::new(Retention::default());
        let rocks = RocksEngine::open(path, RocksOptions::default(), Arc::clone(&retention));
        let engine = Arc::new(rocks.expect("a new volume opens"));
        let topology = Arc::new(Topology::single(SHARD_COUNT));
        let shards = Shards::recover(&*engine, topology, HubId(0), Policy::default(), BEGIN_MS, 0);
        let engines = Engines::single(Arc::clone(&engine) as Arc<dyn Engine>, SHARD_COUNT);
        Self {
            engine,
            engines,
            counts: Counts::default(),
            now_ms: BEGIN_MS,
            shards: shards.expect("a new volume recovers"),
            retention,
            heads: HashMap::new(),
            arrived: HashMap::new(),
            woken: Vec::new(),
            in_batch: 0,
            batch_len,
            ticked_ms: BEGIN_MS,
        }
    }

    /// Time goes on.
    pub(crate) fn advance(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        if self.now_ms >= self.ticked_ms + TICK_MS {
            self.ticked_ms = self.now_ms;
            if let Some(record) = self.shards.tick(self.now_ms, self.now_ms - BEGIN_MS) {
                self.apply(&record);
            }
            self.retention.forget_dedup_before(self.shards.dedup_before_ms());
        }
    }

    pub(crate) fn login(&mut self, user: UserId, device: DeviceId) {
        let now_ms = self.now_ms;
        let decision = self.decide(|shards, engine| {
            shards.decide_link(engine, user, device, None, Proof::PlaintextToken { issued_s: u64::MAX }, now_ms)
        });
        match decision {
            Decision::Apply(record) => self.apply(&record),
            Decision::Unchanged => {}
            other => panic!("a device logs in, not {other:?}"),
        }
    }

    pub(crate) fn send(&mut self, send: &Send) {
        let now_ms = self.now_ms;
        match self.decide(|shards, engine| shards.decide_send(engine, send, now_ms)) {
            Decision::Apply(record) => self.apply(&record),
            other => panic!("a new message is accepted, not {other:?}"),
        }
        self.counts.messages += 1;
    }

    /// What waits for a device after its cursor, as far as it is durable.
    pub(crate) fn page(&self, user: UserId, device: DeviceId, after: InboxSeq) -> Page {
        read_inbox(&self.engines, user, device, after, PAGE_ENTRIES, PAGE_BYTES).expect("the engine reads")
    }

    pub(crate) fn ack(&mut self, user: UserId, device: DeviceId, through: InboxSeq, acked: &[Acked]) {
        let now_ms = self.now_ms;
        match self.decide(|shards, engine| shards.decide_ack(engine, user, device, through, acked, now_ms)) {
            Decision::Apply(record) => self.apply(&record),
            other => panic!("an acknowledgement moves the cursor, not {other:?}"),
        }
        self.counts.acks += 1;
    }

    pub(crate) fn mark_read(&mut self, user: UserId, conversation: ConversationId, seq: ConversationSeq) {
        match self.decide(|shards, engine| shards.decide_mark_read(engine, user, conversation, seq)) {
            Decision::Apply(record) => {
                self.counts.reads += 1;
                self.apply(&record);
            }
            // Another device was first, or something was sent meanwhile.
            Decision::Unchanged => {}
            other => panic!("what was delivered can be read, not {other:?}"),
        }
    }

    /// The last entry of an inbox.
    pub(crate) fn head(&self, user: UserId) -> InboxSeq {
        self.heads.get(&user).copied().unwrap_or_default()
    }

    /// Users who have got an entry since this was last asked.
    pub(crate) fn take_woken(&mut self) -> Vec<UserId> {
        std::mem::take(&mut self.woken)
    }

    /// Until nothing is under way any more: all is durable, every stream is taken, every floor is where it belongs.
    pub(crate) fn settle(&mut self) {
        loop {
            let before = self.counts;
            self.advance(self.now_ms + TICK_MS);
            self.commit();
            let is_quiet = self.counts.receipts == before.receipts && self.counts.folds == before.folds;
            if is_quiet && self.arrived.is_empty() && self.shards.streams_behind().is_empty() {
                return self.commit();
            }
        }
    }

    fn decide(
        &mut self,
        mut decide: impl FnMut(&mut Shards, &dyn Engine) -> Result<Decision, EngineError>,
    ) -> Decision {
        loop {
            match decide(&mut self.shards, &*self.engine).expect("the engine reads") {
                Decision::Waits(load) => {
                    let loaded = Loaded::read(&*self.engine, SHARD_COUNT, load).expect("the engine reads");
                    self.shards.loaded(loaded);
                }
                decision => return decision,
            }
        }
    }

    fn apply(&mut self, record: &Record) {
        self.note(record);
        self.shards.apply(record);
        self.in_batch += 1;
        if self.in_batch >= self.batch_len {
            self.commit();
        }
    }

    /// Who gets what from a record.
    fn note(&mut self, record: &Record) {
        let mut wake = |user, seq| {
            self.heads.insert(user, seq);
            self.woken.push(user);
        };
        match record {
            Record::Message(message) => {
                if let Place::Local(seq) = message.place {
                    wake(message.recipient, seq);
                }
                if let Some(copy) = message.copy {
                    self.counts.copies += 1;
                    if let Place::Local(seq) = copy {
                        wake(message.entry.sender, seq);
                    }
                }
            }
            Record::Arrived { item: Arrival::Entry { user, entry }, .. } => wake(*user, entry.inbox_seq),
            _ => {}
        }
    }

    /// One batch, durable; then what it sends on arrives, and what it lets go is folded.
    fn commit(&mut self) {
        self.in_batch = 0;
        let batch = self.shards.seal(self.engine.sequence_synced(), true);
        let outgoing = self.shards.take_outgoing();
        self.engine.write(&batch).expect("the engine writes");
        self.shards.durable(batch.number());
        self.counts.batches += 1;
        for (stream, through) in std::mem::take(&mut self.arrived) {
            self.shards.taken(stream, through);
        }
        outgoing.iter().for_each(|outgoing| self.arrive(outgoing));
        for fold in self.shards.fold_due(self.now_ms) {
            let folded = read_fold(&self.engines, fold).expect("the engine reads");
            let now_ms = self.now_ms;
            if let Decision::Apply(record) = self.decide(|shards, engine| shards.decide_floor(engine, &folded, now_ms))
            {
                self.counts.folds += 1;
                self.note(&record);
                self.shards.apply(&record);
            }
        }
    }

    fn arrive(&mut self, Outgoing { stream, n, item }: &Outgoing) {
        let now_ms = self.now_ms;
        match self.decide(|shards, engine| shards.decide_arrival(engine, *stream, *n, item, now_ms)) {
            Decision::Apply(record) => {
                self.counts.receipts += 1;
                self.note(&record);
                self.shards.apply(&record);
                self.arrived.insert(*stream, *n);
            }
            other => panic!("items arrive in order, not {other:?}"),
        }
    }
}

/// The end of a run of so many days.
pub(crate) fn end_ms(days: u64) -> u64 {
    BEGIN_MS + days * DAY_MS
}
