//! Random lives of two hubs on one engine: mail between them is lost, comes late and again, hubs fail, and their number
//! changes. In the end every message is where it belongs, once and in order, and every receipt has arrived.

use std::collections::{BTreeMap, BTreeSet};

use culver_protocol::message::MarkView;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::story::Story;
use super::*;
use crate::batch::Batch;
use crate::command::{Load, StreamState, View};
use crate::reader::{Engines, Loaded, TalkRows, read_fold, read_inbox, read_outbox, read_talk};
use crate::record::Stream;

const USERS: u64 = 5;
const DEVICES: u16 = 3;
const STEPS: usize = 700;
const LIVES: u64 = 25;

type Told = BTreeMap<(UserId, ConversationId), ConversationSeq>;

struct Hub {
    shards: Shards,
    under_way: Option<(Batch, Vec<Outgoing>)>,
    story: Story,
}

pub(super) struct World {
    random: SmallRng,
    memory: Arc<MemoryEngine>,
    engines: Engines,
    topology: Arc<Topology>,
    hubs: Vec<Hub>,
    /// Items on their way, and what came back.
    mail: Vec<Outgoing>,
    taken: Vec<(Stream, u64)>,
    /// What any device ever acknowledged, or marked as read, durable or not, by user.
    acked: Told,
    read: Told,
    /// Receipts that needed no stream.
    given: usize,
    /// Devices were removed, and what they alone had to fetch is fetched by nobody.
    has_removed: bool,
    ids: u32,
    now_ms: u64,
    policy: Policy,
    /// All that was ever sealed, as bytes.
    sealed: Vec<Vec<u8>>,
}

/// Asks until nothing has to be read any more.
macro_rules! settled {
    ($world:expr, $hub:expr, $ask:expr) => {
        loop {
            let (engine, shards) = (Arc::clone(&$world.memory), &mut hub_mut(&mut $world.hubs, $hub).shards);
            let answer = $ask(shards, &*engine).expect("memory reads");
            match Waiting::load(&answer) {
                Some(load) => {
                    let loaded = Loaded::read(&*engine, SHARD_COUNT, load).expect("memory reads");
                    shards.loaded(loaded);
                }
                None => break answer,
            }
        }
    };
}

fn hub_mut(hubs: &mut [Hub], hub: HubId) -> &mut Hub {
    hubs.get_mut(hub.index()).expect("the topology knows the hubs")
}

trait Waiting {
    fn load(&self) -> Option<Load>;
}

impl Waiting for Decision {
    fn load(&self) -> Option<Load> {
        if let Self::Waits(load) = self { Some(*load) } else { None }
    }
}

impl<T> Waiting for View<T> {
    fn load(&self) -> Option<Load> {
        if let Self::Waits(load) = self { Some(*load) } else { None }
    }
}

fn check_receipt(acked: &Told, read: &Told, user: UserId, mark: &MarkView) {
    let peer = mark.conversation.direct_peer(user).expect("they are two");
    let told = |told: &Told| told.get(&(peer, mark.conversation)).copied().unwrap_or_default();
    assert!(mark.delivered <= told(acked) && mark.read <= told(read), "receipts are true");
}

impl World {
    fn new(seed: u64) -> Self {
        let memory = Arc::new(MemoryEngine::new());
        let engines = Engines::single(Arc::clone(&memory) as Arc<dyn Engine>, SHARD_COUNT);
        let mut world = Self {
            random: SmallRng::seed_from_u64(seed),
            memory,
            engines,
            topology: Arc::new(Topology::single(SHARD_COUNT)),
            hubs: Vec::new(),
            mail: Vec::new(),
            taken: Vec::new(),
            acked: Told::new(),
            read: Told::new(),
            given: 0,
            has_removed: false,
            ids: 0,
            now_ms: 1_700_000_000_000,
            policy: Policy::default(),
            sealed: Vec::new(),
        };
        if seed.is_multiple_of(2) {
            world.policy.bounds = small_bounds();
        }
        world.start();
        world
    }

    /// Starts with one hub or two; all that was in memory or on its way is gone.
    fn start(&mut self) {
        let hubs = self.random.random_range(1..=2);
        let volumes = vec![0; usize::from(SHARD_COUNT)];
        self.topology = Arc::new(Topology::new(SHARD_COUNT, volumes, hubs).expect("two hubs are few"));
        let hub = |hub| {
            let topology = Arc::clone(&self.topology);
            let shards = Shards::recover(&*self.memory, topology, hub, self.policy, self.now_ms, 0);
            let mut shards = shards.expect("memory reads");
            let story = Story::begin(&self.memory, &mut shards, self.now_ms);
            Hub { shards, under_way: None, story }
        };
        self.hubs = (0..hubs).map(|index| hub(HubId(index))).collect();
        self.mail.clear();
        self.taken.clear();
    }

    fn step(&mut self) {
        self.now_ms += self.random.random_range(0..20);
        let user = UserId(self.random.random_range(1..=USERS));
        let device = DeviceId(self.random.random_range(1..=DEVICES));
        match self.random.random_range(0..100) {
            0..30 => self.send(user, device),
            30..45 => self.ack(user, device, None),
            45..50 => self.mark_read(user),
            50..53 => self.link(user, device),
            53 => self.remove(user, device),
            54..70 => {
                let hub = HubId(self.random.random_range(0..self.topology.hub_count()));
                let with_cursors = self.random.random_bool(0.6);
                self.seal(hub, with_cursors);
                if self.random.random_bool(0.8) {
                    self.write(hub);
                }
            }
            70..85 => self.carry(),
            85..92 => self.drive(),
            92..95 => self.fold(user),
            95..97 => self.memory.set_cold(self.random.random_bool(0.3)),
            97 => self.memory.compact().expect("memory merges"),
            _ => self.crash(),
        }
    }

    fn apply(&mut self, hub: HubId, decision: &Decision) {
        apply(&mut hub_mut(&mut self.hubs, hub).shards, decision);
    }

    fn send(&mut self, sender: UserId, device: DeviceId) {
        let peer = UserId(self.random.random_range(1..=USERS));
        self.send_to(sender, device, peer);
    }

    fn send_to(&mut self, sender: UserId, device: DeviceId, peer: UserId) {
        self.ids += 1;
        let message = Send {
            sender,
            device,
            client_message_id: ClientMessageId(u128::from(self.ids).to_be_bytes()),
            conversation: ConversationId::direct(sender, peer),
            payload: Bytes::from(vec![7; self.random.random_range(0..20)]),
            copy: true,
        };
        let (hub, now_ms) = (self.topology.hub_of_conversation(message.conversation), self.now_ms);
        let decision = settled!(self, hub, |shards: &mut Shards, engine| shards.decide_send(engine, &message, now_ms));
        assert!(matches!(decision, Decision::Apply(_)), "{decision:?}");
        self.apply(hub, &decision);
    }

    fn link(&mut self, user: UserId, device: DeviceId) {
        let (hub, now_ms) = (self.topology.hub_of_user(user), self.now_ms);
        let decision = settled!(self, hub, |shards: &mut Shards, engine| shards.decide_link(
            engine,
            user,
            device,
            None,
            Proof::PlaintextToken { issued_s: u64::MAX },
            now_ms
        ));
        self.apply(hub, &decision);
    }

    fn remove(&mut self, user: UserId, device: DeviceId) {
        let (hub, now_ms) = (self.topology.hub_of_user(user), self.now_ms);
        let decision =
            settled!(self, hub, |shards: &mut Shards, engine| shards.decide_remove(engine, user, device, now_ms));
        self.has_removed |= matches!(decision, Decision::Apply(_));
        self.apply(hub, &decision);
    }

    /// As a session does: only what is durable, and only what others sent.
    fn ack(&mut self, user: UserId, device: DeviceId, through: Option<InboxSeq>) {
        let hub = self.topology.hub_of_user(user);
        let view = settled!(self, hub, |shards: &mut Shards, engine| shards.user(engine, user, device));
        let View::Known(view) = view else { unreachable!("it was settled") };
        let nobody = DeviceId(99);
        let page = read_inbox(&self.engines, user, nobody, view.cursor, usize::MAX, usize::MAX).expect("memory reads");
        let Some(last) = page.entries.last().map(|entry| entry.inbox_seq) else { return };
        let through = through.unwrap_or_else(|| InboxSeq(self.random.random_range(view.cursor.0..=last.0))).min(last);
        let covered = page.entries.iter().filter(|entry| entry.inbox_seq <= through && entry.sender != user);
        let latest: BTreeMap<_, _> = covered.map(|entry| (entry.conversation, entry.conversation_seq)).collect();
        let acked: Vec<_> =
            latest.iter().map(|(conversation, seq)| Acked { conversation: *conversation, seq: *seq }).collect();
        let decision = settled!(self, hub, |shards: &mut Shards, engine| shards
            .decide_ack(engine, user, device, through, &acked, 5));
        if matches!(decision, Decision::Apply(_)) {
            for Acked { conversation, seq } in acked {
                let known = self.acked.entry((user, conversation)).or_default();
                *known = seq.max(*known);
            }
        }
        self.apply(hub, &decision);
    }

    fn mark_read(&mut self, user: UserId) {
        let mine: Vec<_> =
            self.acked.iter().filter(|((of, _), _)| *of == user).map(|(key, seq)| (key.1, *seq)).collect();
        let Some((conversation, seq)) = mine.choose(&mut self.random).copied() else { return };
        let hub = self.topology.hub_of_user(user);
        let decision =
            settled!(self, hub, |shards: &mut Shards, engine| shards.decide_mark_read(engine, user, conversation, seq));
        if matches!(decision, Decision::Apply(_)) {
            self.read.insert((user, conversation), seq);
        }
        self.apply(hub, &decision);
    }

    fn seal(&mut self, hub: HubId, with_cursors: bool) {
        let synced = self.memory.sequence_synced();
        let gives = self.random.random_bool(0.8);
        let Hub { shards, under_way, story } = hub_mut(&mut self.hubs, hub);
        if under_way.is_none() && !shards.is_batch_empty() {
            let given = if gives { give(shards, with_cursors) } else { Vec::new() };
            for item in given {
                let Arrival::Receipt { user, mark, .. } = item else { continue };
                check_receipt(&self.acked, &self.read, user, &mark);
                self.given += 1;
            }
            let batch = shards.seal(synced, with_cursors);
            self.sealed.push(batch.as_bytes().to_vec());
            story.batches.push(batch.clone());
            *under_way = Some((batch, shards.take_outgoing()));
        }
    }

    fn write(&mut self, hub: HubId) {
        let Hub { shards, under_way, .. } = hub_mut(&mut self.hubs, hub);
        if let Some((batch, outgoing)) = under_way.take() {
            self.memory.write(&batch).expect("memory writes");
            shards.durable(batch.number());
            self.mail.extend(outgoing);
            // What has arrived is durable: its sources may know. (Between seal and write nothing else arrives here.)
            let arrived = shards.streams.watermarks.iter().filter(|(_, (_, dirty))| !dirty);
            let mut arrived: Vec<_> = arrived.map(|(stream, (watermark, _))| (*stream, *watermark)).collect();
            arrived.sort_unstable();
            self.taken.extend(arrived);
        }
    }

    /// One piece of mail arrives, in any order; it may be lost, or come again.
    fn carry(&mut self) {
        if !self.taken.is_empty() {
            let (stream, through) = self.taken.swap_remove(self.random.random_range(0..self.taken.len()));
            let hub = self.topology.hub_of_shard(stream.from);
            if self.random.random_bool(0.8) && self.is_quiet(stream, through) {
                hub_mut(&mut self.hubs, hub).shards.taken(stream, through);
            }
        }
        for _ in 0..3 {
            if self.mail.is_empty() {
                return;
            }
            let index = self.random.random_range(0..self.mail.len().min(4));
            let outgoing = if self.random.random_bool(0.1) {
                self.mail.get(index).cloned().expect("it is below the length")
            } else {
                self.mail.remove(index)
            };
            if self.random.random_bool(0.9) {
                self.arrive(&outgoing);
            }
        }
    }

    /// Whether the row of a stream's watermark says so already.
    fn is_quiet(&self, stream: Stream, through: u64) -> bool {
        use crate::engine::{Family, Lookup, Tier};
        match self.memory.get(Family::Meta, &crate::key::watermark(stream), Tier::Disk) {
            Ok(Lookup::Present(value)) => {
                crate::value::NumberRow::decode(&value).is_ok_and(|row| row.number >= through)
            }
            _ => false,
        }
    }

    fn arrive(&mut self, outgoing: &Outgoing) {
        let Outgoing { stream, n, item } = outgoing;
        let (hub, now_ms) = (self.topology.hub_of_shard(stream.to), self.now_ms);
        let decision =
            settled!(self, hub, |shards: &mut Shards, engine| shards.decide_arrival(engine, *stream, *n, item, now_ms));
        if let Decision::Apply(Record::Arrived { item: Arrival::Receipt { user, mark, .. }, .. }) = &decision {
            check_receipt(&self.acked, &self.read, *user, mark);
        }
        self.apply(hub, &decision);
    }

    /// What is behind is read from the log again.
    fn drive(&mut self) {
        let behind: Vec<StreamState> = self.hubs.iter().flat_map(|hub| hub.shards.streams_behind()).collect();
        for StreamState { stream, durable, taken } in behind {
            let items = read_outbox(&self.engines, stream, taken, durable, 100).expect("memory reads");
            self.mail.extend(items.into_iter().map(|(n, item)| Outgoing { stream, n, item }));
            // The destination answers even to what it has.
            let watermark = hub_mut(&mut self.hubs, self.topology.hub_of_shard(stream.to)).shards.watermark(stream);
            self.taken.push((stream, watermark));
        }
    }

    fn fold(&mut self, user: UserId) {
        let (hub, now_ms) = (self.topology.hub_of_user(user), self.now_ms);
        let fold = settled!(self, hub, |shards: &mut Shards, engine| shards.fold_user(engine, user, now_ms));
        let View::Known(Some(fold)) = fold else { return };
        let folded = read_fold(&self.engines, fold).expect("memory reads");
        let decision = settled!(self, hub, |shards: &mut Shards, engine| shards.decide_floor(engine, &folded, now_ms));
        self.apply(hub, &decision);
    }

    /// The machine fails. Batches under way were written or not.
    fn crash(&mut self) {
        for mut hub in std::mem::take(&mut self.hubs) {
            hub.story.replay(&hub.shards.take_journal(), &self.topology, hub.shards.hub());
            if let Some((batch, _)) = hub.under_way.filter(|_| self.random.random_bool(0.5)) {
                self.memory.write(&batch).expect("memory writes");
            }
        }
        self.start();
    }

    /// Until nothing is on its way any more.
    fn settle(&mut self) {
        for _ in 0..1000 {
            for index in 0..self.topology.hub_count() {
                self.seal(HubId(index), true);
                self.write(HubId(index));
            }
            let behind: usize = self.hubs.iter().map(|hub| hub.shards.streams_behind().len()).sum();
            if behind == 0 && self.hubs.iter().all(|hub| hub.shards.is_batch_empty()) {
                return;
            }
            self.drive();
            self.mail.sort_by_key(|outgoing| (outgoing.stream, outgoing.n));
            std::mem::take(&mut self.mail).iter().for_each(|outgoing| self.arrive(outgoing));
            for (stream, through) in std::mem::take(&mut self.taken) {
                if self.is_quiet(stream, through) {
                    let hub = self.topology.hub_of_shard(stream.from);
                    hub_mut(&mut self.hubs, hub).shards.taken(stream, through);
                }
            }
        }
        panic!("streams come to rest");
    }

    fn talk(&self, user: UserId, conversation: ConversationId) -> TalkRows {
        use crate::engine::{Lookup, Tier};
        match read_talk(&*self.memory, SHARD_COUNT, user, conversation, Tier::Disk).expect("memory reads") {
            Lookup::Present(rows) => rows,
            _ => TalkRows::default(),
        }
    }

    fn check(&mut self) {
        self.memory.set_cold(false);
        self.crash();
        self.settle();
        // Everybody fetches everything.
        (1..=USERS).for_each(|user| self.link(UserId(user), DeviceId(1)));
        if self.has_removed {
            for (from, to) in (1..=USERS).flat_map(|from| (1..=USERS).map(move |to| (from, to))) {
                self.send_to(UserId(from), DeviceId(1), UserId(to));
            }
            self.settle();
        }
        for user in (1..=USERS).map(UserId) {
            (1..=DEVICES).for_each(|device| self.ack(user, DeviceId(device), Some(InboxSeq(u64::MAX))));
        }
        self.settle();
        let mut seen: BTreeMap<(UserId, ConversationId), BTreeSet<u64>> = BTreeMap::new();
        let mut sent: Told = Told::new();
        for user in (1..=USERS).map(UserId) {
            for (conversation, seq, sender) in self.entries(user) {
                assert!(seen.entry((user, conversation)).or_default().insert(seq.0), "twice: {user} {seq}");
                if sender != user {
                    sent.insert((sender, conversation), seq);
                }
            }
        }
        for ((sender, conversation), seq) in sent {
            let rows = self.talk(sender, conversation);
            let peer = conversation.direct_peer(sender).expect("they are two");
            assert_eq!(rows.peer_delivered.seq, seq, "in the end every receipt has come");
            let read = self.talk(peer, conversation).read.seq;
            assert_eq!(rows.peer_read.seq, read, "{sender} {conversation}");
        }
        let report = crate::verify::verify_engines(&Engines {
            engines: self.engines.engines.clone(),
            topology: (*self.topology).clone(),
        });
        assert_eq!(report.expect("memory reads").findings, Vec::<String>::new());
    }

    /// Conversation, place and sender of every entry that is still kept.
    fn entries(&self, user: UserId) -> Vec<(ConversationId, ConversationSeq, UserId)> {
        use std::ops::ControlFlow;

        use crate::engine::{Family, Tier};
        let shard = crate::key::ShardId::of_user(user, SHARD_COUNT);
        let (from, to) =
            (crate::key::inbox(shard, user, InboxSeq(0)), crate::key::inbox(shard, user, InboxSeq(u64::MAX)));
        let (mut entries, mut last) = (Vec::new(), None);
        let mut visit = |key: &[u8], value: &[u8]| {
            let (_, _, seq) = crate::key::decode_inbox(key).expect("keys are ours");
            assert!(last.is_none_or(|last: InboxSeq| last.0 + 1 == seq.0), "dense");
            last = Some(seq);
            let entry = crate::value::decode_inbox(seq, value).expect("values are ours");
            entries.push((entry.conversation, entry.conversation_seq, entry.sender));
            ControlFlow::Continue(())
        };
        self.memory.scan(Family::Inbox, &from, &to, Tier::Disk, &mut visit).expect("memory reads");
        for (conversation, seq, _) in &entries {
            let after = entries.iter().skip_while(|(of, at, _)| (of, at) != (conversation, seq));
            assert!(after.clone().all(|(of, at, _)| of != conversation || at >= seq), "in order");
        }
        entries
    }
}

/// Lives it and checks it.
pub(super) fn live(seed: u64) -> World {
    println!("SEED={seed}");
    let mut world = World::new(seed);
    (0..STEPS).for_each(|_| world.step());
    world.check();
    world
}

#[test]
fn random_lives_of_two_hubs() {
    let (first, mut given) = (first_seed(), 0);
    for seed in (0..LIVES).map(|index| first.wrapping_add(index)) {
        given += live(seed).given;
    }
    assert!(given > 0, "some receipts need no stream");
}

/// No two maps have the same order: what hangs on one shows.
#[test]
fn the_same_life_twice_is_the_same() {
    let first = first_seed();
    for seed in (0..4).map(|index| first.wrapping_add(index)) {
        let (once, again) = (live(seed).sealed, live(seed).sealed);
        let differs = once.iter().zip(&again).position(|(once, again)| once != again);
        assert_eq!((differs, once.len()), (None, again.len()), "the first batch that differs");
    }
}
