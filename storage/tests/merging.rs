//! Two hubs on two volumes that lose what was not synced, again and again, while rows are merged at any moment: nothing
//! accepted is lost, and what nothing needs is gone in the end.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, UserId};
use culver_storage::command::{Acked, Decision, Proof, Send, View};
use culver_storage::engine::{Engine, Family, Tier};
use culver_storage::error::EngineError;
use culver_storage::key::ShardId;
use culver_storage::memory::{Loss, MemoryEngine};
use culver_storage::reader::{Engines, Loaded, read_fold, read_inbox, read_outbox, read_sweep};
use culver_storage::record::{Item, Outgoing, Record, Stream};
use culver_storage::shard::{Policy, Shards};
use culver_storage::topology::{HubId, Topology};
use culver_storage::verify::verify_engines;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const SHARD_COUNT: u16 = 8;
const BEGIN_MS: u64 = 1_700_000_000_000;
const USERS: u64 = 6;
const STEPS: usize = 400;
const PHONE: DeviceId = DeviceId(1);

struct Hub {
    engine: Arc<MemoryEngine>,
    shards: Shards,
    /// What is told to senders once the batch under construction is durable.
    pending: Vec<((UserId, ConversationId), ConversationSeq)>,
    pushed: Vec<Outgoing>,
}

struct World {
    random: SmallRng,
    topology: Arc<Topology>,
    engines: Engines,
    hubs: Vec<Hub>,
    now_ms: u64,
    sent: u128,
    /// By recipient and conversation, the last place that was told to a sender.
    accepted: BTreeMap<(UserId, ConversationId), ConversationSeq>,
    /// By user and conversation, the last place a device persisted.
    persisted: BTreeMap<(UserId, ConversationId), ConversationSeq>,
    cursors: BTreeMap<UserId, InboxSeq>,
}

fn recover(engine: &MemoryEngine, topology: &Arc<Topology>, hub: HubId, now_ms: u64) -> Shards {
    let shards = Shards::recover(engine, Arc::clone(topology), hub, Policy::default(), now_ms, now_ms - BEGIN_MS);
    shards.expect("memory reads")
}

impl World {
    fn new(seed: u64) -> Self {
        let volumes = (0..SHARD_COUNT).map(|shard| shard % 2).collect();
        let topology = Arc::new(Topology::new(SHARD_COUNT, volumes, 2).expect("two hubs for two volumes"));
        let memory = [(); 2].map(|()| Arc::new(MemoryEngine::new()));
        let engines: Vec<_> = memory.iter().map(|engine| Arc::clone(engine) as Arc<dyn Engine>).collect();
        let hubs = (0..).zip(memory).map(|(hub, engine)| {
            let shards = recover(&engine, &topology, HubId(hub), BEGIN_MS);
            Hub { engine, shards, pending: Vec::new(), pushed: Vec::new() }
        });
        Self {
            random: SmallRng::seed_from_u64(seed),
            hubs: hubs.collect(),
            engines: Engines { engines, topology: Topology::clone(&topology) },
            topology,
            now_ms: BEGIN_MS,
            sent: 0,
            accepted: BTreeMap::new(),
            persisted: BTreeMap::new(),
            cursors: BTreeMap::new(),
        }
    }

    fn hub(&mut self, hub: HubId) -> &mut Hub {
        self.hubs.get_mut(hub.index()).expect("there are two")
    }

    fn decide(
        &mut self,
        hub: HubId,
        mut decide: impl FnMut(&mut Shards, &dyn Engine) -> Result<Decision, EngineError>,
    ) -> Decision {
        let Hub { engine, shards, .. } = self.hub(hub);
        loop {
            match decide(shards, &**engine).expect("memory reads") {
                Decision::Waits(load) => {
                    shards.loaded(Loaded::read(&**engine, SHARD_COUNT, load).expect("memory reads"));
                }
                decision => return decision,
            }
        }
    }

    /// Decides, and applies what is to be.
    fn run(
        &mut self,
        hub: HubId,
        decide: impl FnMut(&mut Shards, &dyn Engine) -> Result<Decision, EngineError>,
    ) -> Option<Record> {
        match self.decide(hub, decide) {
            Decision::Apply(record) => {
                self.hub(hub).shards.apply(&record);
                Some(record)
            }
            Decision::Unchanged => None,
            other => panic!("{other:?}"),
        }
    }

    fn step(&mut self) {
        self.now_ms += self.random.random_range(1..2000);
        let (user, hub) = (UserId(self.random.random_range(1..=USERS)), HubId(self.random.random_range(0..2)));
        match self.random.random_range(0..100) {
            0..50 => self.send(user),
            50..70 => self.read(user),
            70..90 => self.commit(hub),
            90..94 => self.drive(),
            94..98 => self.hub(hub).engine.compact().expect("memory merges"),
            _ => self.crash(),
        }
    }

    fn send(&mut self, sender: UserId) {
        let recipient = UserId(self.random.random_range(1..=USERS));
        self.sent += 1;
        let conversation = ConversationId::direct(sender, recipient);
        let send = Send {
            sender,
            device: PHONE,
            client_message_id: ClientMessageId(self.sent.to_be_bytes()),
            conversation,
            payload: Bytes::from(vec![7; self.random.random_range(0..50)]),
            copy: false,
        };
        let (hub, now_ms) = (self.topology.hub_of_conversation(conversation), self.now_ms);
        match self.run(hub, |shards, engine| shards.decide_send(engine, &send, now_ms)) {
            Some(Record::Message(message)) => {
                let seq = message.entry.conversation_seq;
                // Notes to oneself do not come back to the device that wrote them.
                if recipient != sender {
                    self.hub(hub).pending.push(((recipient, conversation), seq));
                }
            }
            other => panic!("a new message is accepted, not {other:?}"),
        }
    }

    /// A device persists what waits for it, and acknowledges it.
    fn read(&mut self, user: UserId) {
        let (hub, now_ms) = (self.topology.hub_of_user(user), self.now_ms);
        self.run(hub, |shards, engine| {
            shards.decide_link(engine, user, PHONE, None, Proof::PlaintextToken { issued_s: u64::MAX }, now_ms)
        });
        let after = self.cursors.get(&user).copied().unwrap_or_default();
        let page = read_inbox(&self.engines, user, PHONE, after, 20, 1 << 20).expect("memory reads");
        let mut acked = BTreeMap::new();
        for entry in &page.entries {
            let last = self.persisted.entry((user, entry.conversation)).or_default();
            assert!(entry.conversation_seq > *last, "in order, and once");
            *last = entry.conversation_seq;
            if entry.sender != user {
                acked.insert(entry.conversation, entry.conversation_seq);
            }
        }
        self.cursors.insert(user, page.through);
        let acked: Vec<_> = acked.into_iter().map(|(conversation, seq)| Acked { conversation, seq }).collect();
        self.run(hub, |shards, engine| shards.decide_ack(engine, user, PHONE, page.through, &acked, now_ms));
    }

    fn commit(&mut self, hub: HubId) {
        let now_ms = self.now_ms;
        let Hub { engine, shards, pending, pushed } = self.hub(hub);
        let batch = shards.seal(engine.sequence_synced(), true);
        pushed.extend(shards.take_outgoing());
        engine.write(&batch).expect("memory writes");
        shards.durable(batch.number());
        let (told, pushed, folds) = (std::mem::take(pending), std::mem::take(pushed), shards.fold_due(now_ms));
        self.accepted.extend(told);
        for fold in folds {
            let folded = read_fold(&self.engines, fold).expect("memory reads");
            self.run(hub, |shards, engine| shards.decide_floor(engine, &folded, now_ms));
        }
        for Outgoing { stream, n, item } in pushed {
            // Some pushes are dropped.
            if self.random.random_bool(0.7) {
                self.arrive(stream, n, &item);
            }
        }
    }

    fn arrive(&mut self, stream: Stream, n: u64, item: &Item) {
        let (hub, now_ms) = (self.topology.hub_of_shard(stream.to), self.now_ms);
        self.run(hub, |shards, engine| shards.decide_arrival(engine, stream, n, item, now_ms));
    }

    /// Whatever is not taken goes on its way again; what has arrived is made durable and told.
    fn drive(&mut self) {
        for hub in [HubId(0), HubId(1)] {
            for state in self.hub(hub).shards.streams_behind() {
                let items = read_outbox(&self.engines, state.stream, state.taken, state.durable, 1000);
                for (n, item) in items.expect("memory reads") {
                    self.arrive(state.stream, n, &item);
                }
                let to = self.topology.hub_of_shard(state.stream.to);
                self.commit(to);
                let through = self.hub(to).shards.watermark(state.stream);
                self.hub(hub).shards.taken(state.stream, through.min(state.durable));
            }
        }
    }

    /// The machine fails while a batch is being written; it is there afterwards or not. Rows may be merged meanwhile.
    fn crash(&mut self) {
        for hub in [HubId(0), HubId(1)] {
            let (is_written, is_merged, survives) =
                (self.random.random_bool(0.5), self.random.random_bool(0.5), self.random.random_bool(0.5));
            let (topology, now_ms) = (Arc::clone(&self.topology), self.now_ms);
            let Hub { engine, shards, pending, pushed } = self.hub(hub);
            if is_written {
                let batch = shards.seal(engine.sequence_synced(), true);
                engine.write_only(&batch);
            }
            if is_merged {
                engine.compact().expect("memory merges");
            }
            engine.crash(&if survives { Loss::NOTHING } else { Loss::ALL });
            engine.reopen().expect("nothing that was synced is damaged");
            *shards = recover(engine, &topology, hub, now_ms);
            pending.clear();
            pushed.clear();
        }
        let report = verify_engines(&self.engines).expect("memory reads");
        assert!(report.is_clean(), "{report:?}");
    }

    /// Floors that a crash kept from rising.
    fn sweep(&mut self) {
        for shard in (0..SHARD_COUNT).map(ShardId) {
            let (hub, now_ms) = (self.topology.hub_of_shard(shard), self.now_ms);
            let state = self.hub(hub).shards.expiry();
            let days = Policy::default().unlink_days;
            let swept = read_sweep(&self.engines, shard, None, 1000, state.today, state.expire_before_ms, days);
            for user in swept.expect("memory reads").0 {
                let Hub { engine, shards, .. } = self.hub(hub);
                let view = shards.fold_user(&**engine, user, now_ms).expect("memory reads");
                let View::Known(Some(fold)) = view else { continue };
                let folded = read_fold(&self.engines, fold).expect("memory reads");
                self.run(hub, |shards, engine| shards.decide_floor(engine, &folded, now_ms));
            }
        }
    }

    /// Everything is delivered, taken and folded; then nothing is left of it.
    fn finish(&mut self) {
        for _ in 0..6 {
            self.now_ms += 10_000;
            for user in 1..=USERS {
                for _ in 0..40 {
                    self.read(UserId(user));
                }
            }
            [HubId(0), HubId(1)].into_iter().for_each(|hub| self.commit(hub));
            self.drive();
            self.sweep();
        }
        assert!(self.hubs.iter().all(|hub| hub.shards.streams_behind().is_empty()));
        // The heads of streams are written, too.
        self.now_ms += 120_000;
        let (now_ms, mono_ms) = (self.now_ms, self.now_ms - BEGIN_MS);
        for hub in [HubId(0), HubId(1)] {
            let shards = &mut self.hub(hub).shards;
            if let Some(record) = shards.tick(now_ms, mono_ms) {
                shards.apply(&record);
            }
            self.commit(hub);
            self.hub(hub).engine.compact().expect("memory merges");
        }
        let report = verify_engines(&self.engines).expect("memory reads");
        assert!(report.is_clean(), "{report:?}");
        for family in [Family::Inbox, Family::Outbox] {
            for Hub { engine, .. } in &self.hubs {
                let visit = &mut |key: &[u8], _: &[u8]| panic!("{family:?} {key:?} is needless");
                engine.scan(family, &[], &[0xff; 32], Tier::Disk, visit).expect("memory reads");
            }
        }
        for (of, seq) in &self.accepted {
            assert!(self.persisted.get(of).is_some_and(|last| last >= seq), "{of:?} {seq}");
        }
    }
}

#[test]
fn nothing_that_is_needed_is_ever_merged_away() {
    for seed in 0..30 {
        println!("SEED={seed}");
        let mut world = World::new(seed);
        (0..STEPS).for_each(|_| world.step());
        world.finish();
    }
}
