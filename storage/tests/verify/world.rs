//! Two users on two volumes, brought to life by the shards of two hubs.

use std::sync::Arc;

use bytes::Bytes;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, UserId};
use culver_storage::command::{Acked, Decision, DedupKey, Proof, Send};
use culver_storage::engine::{Engine, Family, Lookup, Tier};
use culver_storage::error::EngineError;
use culver_storage::key::{self, MetaKind, ShardId, TalkKind};
use culver_storage::memory::MemoryEngine;
use culver_storage::reader::{Engines, Fold, read_fold};
use culver_storage::record::{Lane, Outgoing, Stream};
use culver_storage::shard::{Policy, Shards};
use culver_storage::topology::{HubId, Topology};
use culver_storage::value::UserRow;
use culver_storage::verify::{Report, verify_engines};

pub(crate) const SHARD_COUNT: u16 = 64;
pub(crate) const ALICE: UserId = UserId(1);
/// On another volume than Alice; what both talk is at home on his.
pub(crate) const BOB: UserId = UserId(7);

pub(crate) struct World {
    pub(crate) volumes: Vec<Arc<MemoryEngine>>,
    pub(crate) engines: Engines,
    hubs: Vec<Shards>,
    sent: u64,
}

impl World {
    fn new() -> Self {
        let volumes: Vec<Arc<MemoryEngine>> = (0..2).map(|_| Arc::default()).collect();
        let topology = Topology::new(SHARD_COUNT, (0..SHARD_COUNT).map(|shard| shard % 2).collect(), 2);
        let topology = topology.expect("two hubs on two volumes share the shards");
        let shared = Arc::new(topology.clone());
        let engines = volumes.iter().map(|volume| -> Arc<dyn Engine> { Arc::clone(volume) as Arc<dyn Engine> });
        let engines = Engines { engines: engines.collect(), topology };
        let recover = |(hub, engine): (u16, &Arc<MemoryEngine>)| {
            Shards::recover(&**engine, Arc::clone(&shared), HubId(hub), Policy::default(), 1000, 0)
        };
        let hubs = (0..).zip(&volumes).map(recover).collect::<Result<_, _>>().expect("a new engine recovers");
        Self { volumes, engines, hubs, sent: 0 }
    }

    /// Applies what the hub of a shard decides, and writes the batch. What goes to other shards is given back.
    fn apply(
        &mut self,
        shard: ShardId,
        decide: impl FnOnce(&mut Shards, &dyn Engine) -> Result<Decision, EngineError>,
    ) -> Vec<Outgoing> {
        let hub = self.engines.topology.hub_of_shard(shard).index();
        let (shards, engine) = (self.hubs.get_mut(hub).expect("there are two"), self.engines.of_shard(shard));
        match decide(shards, engine).expect("memory reads") {
            Decision::Apply(record) => shards.apply(&record),
            Decision::Unchanged => return Vec::new(),
            other => panic!("{other:?}"),
        }
        let batch = shards.seal(engine.sequence_synced(), true);
        let outgoing = shards.take_outgoing();
        engine.write(&batch).expect("memory writes");
        shards.durable(batch.number());
        outgoing
    }

    /// Takes items, and what follows from them, to where they go.
    fn deliver(&mut self, mut outgoing: Vec<Outgoing>) {
        while let Some(Outgoing { stream, n, item }) = outgoing.pop() {
            outgoing.extend(self.apply(stream.to, |hub, engine| hub.decide_arrival(engine, stream, n, &item, 1000)));
            let source = self.engines.topology.hub_of_shard(stream.from).index();
            self.hubs.get_mut(source).expect("there are two").taken(stream, n);
        }
    }

    fn send(&mut self) -> Vec<Outgoing> {
        let index = self.sent;
        self.sent += 1;
        let (sender, payload) = (sender(index), Bytes::from_static(b"hello"));
        let (client_message_id, conversation, device) = (client_id(index), talk(), DeviceId(1));
        let send = Send { sender, device, client_message_id, conversation, payload, copy: true };
        self.apply(home(), |hub, engine| hub.decide_send(engine, &send, 1000 + index))
    }

    fn link(&mut self, user: UserId, device: u16) {
        let (device, plain) = (DeviceId(device), Proof::PlaintextToken { issued_s: u64::MAX });
        let outgoing =
            self.apply(shard_of(user), |hub, engine| hub.decide_link(engine, user, device, None, plain, 1000));
        assert!(outgoing.is_empty());
    }

    fn register(&mut self, user: UserId, device: u16, name: &str) {
        let (device, token) = (DeviceId(device), Proof::Token { issued_s: 1 });
        let key = Some([7; 16]);
        self.apply(shard_of(user), |hub, engine| hub.decide_link(engine, user, device, key, token, 1000));
        self.apply(shard_of(user), |hub, engine| hub.decide_name(engine, user, device, name));
    }

    fn ack(&mut self, user: UserId, device: u16, through: u64, seq: u64) {
        let acked = [Acked { conversation: talk(), seq: ConversationSeq(seq) }];
        let outgoing = self.apply(shard_of(user), |hub, engine| {
            hub.decide_ack(engine, user, DeviceId(device), InboxSeq(through), &acked, 1000)
        });
        self.deliver(outgoing);
    }

    fn fold(&mut self, user: UserId, through: u64, greatest: u64) {
        let (through, greatest) = (InboxSeq(through), InboxSeq(greatest));
        let fold = Fold { user, after: InboxSeq(0), through, greatest, expire_before_ms: 0 };
        let folded = read_fold(&self.engines, fold).expect("memory reads");
        assert_eq!(folded.floor, through);
        let outgoing = self.apply(shard_of(user), |hub, engine| hub.decide_floor(engine, &folded, 1000));
        self.deliver(outgoing);
    }

    pub(crate) fn verify(&self) -> Report {
        verify_engines(&self.engines).expect("memory reads")
    }

    /// Sets a row where its shard lies, or removes it.
    pub(crate) fn plant(&self, family: Family, key: &[u8], value: Option<&[u8]>) {
        let shard = key.first_chunk().map_or(0, |shard| u16::from_be_bytes(*shard));
        self.volumes.get(usize::from(shard % 2)).expect("there are two").plant(family, key, value);
    }

    pub(crate) fn get(&self, family: Family, key: &[u8]) -> Vec<u8> {
        let shard = key.first_chunk().map_or(0, |shard| u16::from_be_bytes(*shard));
        match self.engines.of_shard(ShardId(shard)).get(family, key, Tier::Disk) {
            Ok(Lookup::Present(value)) => value,
            other => panic!("{family:?} {key:?}: {other:?}"),
        }
    }

    pub(crate) fn plant_user(&self, user: UserId, change: impl FnOnce(&mut UserRow)) {
        let key = user_key(user);
        let mut row = UserRow::decode(&self.get(Family::User, &key)).expect("it was written");
        change(&mut row);
        let mut value = Vec::new();
        row.encode(&mut value);
        self.plant(Family::User, &key, Some(&value));
    }
}

/// Alice has one device and Bob two. 201 messages, by turns, each in a batch of its own: entry n of Bob, who gets
/// copies of what he sends, is message n, and entry n of Alice is message 2n. Alice has acknowledged 20 entries and
/// read 10 messages; Bob's devices have acknowledged 60 and 50, and his floor is 50. Message 202 is on
/// its way to Alice, the 202nd item of its stream, for the copies that she has no use for are items too.
pub(crate) fn healthy() -> World {
    let mut world = World::new();
    for (user, device) in [(ALICE, 1), (BOB, 1), (BOB, 2)] {
        world.link(user, device);
    }
    world.register(BOB, 1, "phone");
    for index in 0..201 {
        let outgoing = world.send();
        world.deliver(outgoing);
        if index == 150 {
            world.ack(BOB, 1, 60, 59);
            world.ack(BOB, 2, 50, 49);
            world.ack(ALICE, 1, 20, 40);
        }
    }
    world.fold(BOB, 50, 60);
    let seq = ConversationSeq(10);
    let outgoing = world.apply(shard_of(ALICE), |hub, engine| hub.decide_mark_read(engine, ALICE, talk(), seq));
    world.deliver(outgoing);
    assert_eq!(world.send().len(), 1, "nobody takes it");
    world
}

pub(crate) fn sender(index: u64) -> UserId {
    if index.is_multiple_of(2) { ALICE } else { BOB }
}

pub(crate) fn talk() -> ConversationId {
    ConversationId::direct(ALICE, BOB)
}

pub(crate) fn client_id(index: u64) -> ClientMessageId {
    ClientMessageId(u128::from(index).to_be_bytes())
}

pub(crate) fn home() -> ShardId {
    ShardId::of_conversation(talk(), SHARD_COUNT)
}

pub(crate) fn shard_of(user: UserId) -> ShardId {
    ShardId::of_user(user, SHARD_COUNT)
}

pub(crate) fn user_key(user: UserId) -> Vec<u8> {
    key::user(shard_of(user), user).to_vec()
}

pub(crate) fn device_key(user: UserId, device: u16) -> Vec<u8> {
    key::device(shard_of(user), user, DeviceId(device)).to_vec()
}

pub(crate) fn inbox_key(user: UserId, seq: u64) -> Vec<u8> {
    key::inbox(shard_of(user), user, InboxSeq(seq)).to_vec()
}

pub(crate) fn talk_key(user: UserId, kind: TalkKind) -> Vec<u8> {
    key::talk(shard_of(user), user, talk(), kind).to_vec()
}

pub(crate) fn dedup_key(index: u64) -> Vec<u8> {
    let (conversation, client_message_id) = (talk(), client_id(index));
    let of = DedupKey { conversation, sender: sender(index), device: DeviceId(1), client_message_id };
    key::dedup(home(), &of).to_vec()
}

/// Messages to Alice.
pub(crate) fn to_alice() -> Stream {
    Stream { from: home(), to: shard_of(ALICE), lane: Lane::Message }
}

pub(crate) fn time_key(shard: ShardId) -> Vec<u8> {
    key::meta(shard, MetaKind::Time, 0).to_vec()
}
