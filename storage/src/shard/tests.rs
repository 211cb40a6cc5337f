//! Random lives of a hub's shards against a simple model, and the cases that deserve a name.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::message::Accepted;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{HEAD_HINT_LAG_MAX, Loaded, Shards, TIME_RESERVATION_MS};
use crate::batch::Batch;
use crate::command::{Decision, DedupKey, Load, Send, UserView, View};
use crate::engine::Engine;
use crate::memory::{MemoryEngine, WriteFault};
use crate::reader::read_inbox;
use crate::record::{InboxEntry, Record};

const SHARD_COUNT: u16 = 64;
const USERS: u64 = 5;
const STEPS: usize = 600;
const LIVES: u64 = 60;

/// What the records that survived add up to, without any rows.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    inboxes: BTreeMap<UserId, Vec<InboxEntry>>,
    last: BTreeMap<ConversationId, (ConversationSeq, MessageId)>,
    accepted: BTreeMap<DedupKey, (Send, Accepted)>,
    cursors: BTreeMap<(UserId, DeviceId), InboxSeq>,
}

impl Model {
    fn apply(&mut self, record: &Record) {
        match record {
            Record::Message(message) => {
                let inbox = self.inboxes.entry(message.recipient).or_default();
                inbox.push(message.entry.clone());
                assert_eq!(inbox.len() as u64, message.entry.inbox_seq.0, "dense");
                let conversation = message.entry.conversation;
                let last = self.last.insert(conversation, (message.entry.conversation_seq, message.entry.message_id));
                let (seq, id) = last.unwrap_or_default();
                assert_eq!(seq.0 + 1, message.entry.conversation_seq.0, "dense");
                assert!(id < message.entry.message_id, "ascending");
                let send = Send {
                    sender: message.entry.sender,
                    device: message.entry.sender_device,
                    client_message_id: message.client_message_id,
                    conversation,
                    payload: message.entry.payload.clone(),
                };
                let before = self.accepted.insert(message.dedup_key(), (send, message.accepted()));
                assert!(before.is_none(), "accepted once");
            }
            Record::CursorMoved { user, device, cursor, floor } => {
                let before = self.cursors.insert((*user, *device), *cursor);
                assert!(before.is_none_or(|before| before < *cursor), "cursors only advance");
                assert_eq!(*floor, self.floor(*user), "the floor is the least cursor");
            }
        }
    }

    fn floor(&self, user: UserId) -> InboxSeq {
        let devices = self.cursors.range((user, DeviceId(0))..=(user, DeviceId(u16::MAX)));
        devices.map(|(_, cursor)| *cursor).min().unwrap_or_default()
    }

    fn view(&self, user: UserId, device: DeviceId) -> UserView {
        let head = InboxSeq(self.inboxes.get(&user).map_or(0, Vec::len) as u64);
        let cursor = self.cursors.get(&(user, device)).copied().unwrap_or_else(|| self.floor(user));
        UserView { head, cursor }
    }
}

/// A hub with its engine, cut down to what the shards see of it.
struct Life {
    random: SmallRng,
    engine: Arc<dyn Engine>,
    memory: Option<Arc<MemoryEngine>>,
    shards: Shards,
    now_ms: u64,
    /// All that is durable.
    durable: Model,
    /// Records of the batch under construction, and of the one under way.
    building: Vec<Record>,
    under_way: Option<(Batch, Vec<Record>)>,
    /// Reads that were asked and are not answered; some were begun.
    asked: Vec<Load>,
    begun: Vec<Loaded>,
    last_id_of_shard: BTreeMap<u64, MessageId>,
    greatest_id: u32,
}

impl Life {
    fn new(seed: u64, engine: Arc<dyn Engine>, memory: Option<Arc<MemoryEngine>>) -> Self {
        let now_ms = 1_700_000_000_000;
        let shards = Shards::recover(&*engine, SHARD_COUNT, 0, now_ms).expect("a new engine recovers");
        Self {
            random: SmallRng::seed_from_u64(seed),
            engine,
            memory,
            shards,
            now_ms,
            durable: Model::default(),
            building: Vec::new(),
            under_way: None,
            asked: Vec::new(),
            begun: Vec::new(),
            last_id_of_shard: BTreeMap::new(),
            greatest_id: 0,
        }
    }

    /// What memory should say: durable, under way and under construction.
    fn expected(&self) -> Model {
        let mut model = self.durable.clone();
        let under_way = self.under_way.iter().flat_map(|(_, records)| records);
        under_way.chain(&self.building).for_each(|record| model.apply(record));
        model
    }

    fn step(&mut self) {
        self.now_ms = self.now_ms.saturating_add_signed(self.random.random_range(-3..6));
        match self.random.random_range(0..100) {
            0..50 => self.send(),
            50..65 => self.ack(),
            65..75 => self.seal(),
            75..85 => self.write(),
            85..93 => self.read(),
            93..96 => self.look(),
            96..98 => {
                let is_cold = self.random.random_bool(0.5);
                self.memory.iter().for_each(|memory| memory.set_cold(is_cold));
            }
            98 => self.forget_reads(),
            _ => self.crash(),
        }
    }

    fn any_user(&mut self) -> UserId {
        UserId(self.random.random_range(1..=USERS))
    }

    /// Half of the ids ascend, as clients are asked to choose them; half were there before, or might have been.
    fn any_id(&mut self) -> ClientMessageId {
        if self.random.random_bool(0.5) {
            self.greatest_id += 1;
            return ClientMessageId(u128::from(self.greatest_id).to_be_bytes());
        }
        let (recent, any) = (self.greatest_id.saturating_sub(20), self.random.random_bool(0.5));
        let id = self.random.random_range(if any { 0 } else { recent }..=self.greatest_id);
        ClientMessageId(u128::from(id).to_be_bytes())
    }

    fn send(&mut self) {
        let (sender, other) = (self.any_user(), self.any_user());
        let send = Send {
            sender,
            device: DeviceId(self.random.random_range(1..3)),
            client_message_id: self.any_id(),
            conversation: ConversationId::direct(sender, other),
            payload: Bytes::from(vec![self.random.random(); self.random.random_range(0..40)]),
        };
        let decision = self.shards.decide_send(&*self.engine, &send, self.now_ms).expect("the engine reads");
        let known = self.expected().accepted.get(&send.dedup_key()).map(|(_, accepted)| *accepted);
        match (decision, known) {
            (Decision::Waits(load), _) => self.asked.push(load),
            (Decision::Duplicate(accepted), Some(known)) => {
                assert_eq!(accepted, Accepted { duplicate: true, ..known });
            }
            (Decision::Apply(record), None) => self.apply(record),
            (decision, known) => panic!("{decision:?} for {known:?}"),
        }
    }

    fn ack(&mut self) {
        let (user, device) = (self.any_user(), DeviceId(self.random.random_range(1..3)));
        let view = self.expected().view(user, device);
        let through = InboxSeq(self.random.random_range(0..=view.head.0 + 1));
        let decision = self.shards.decide_ack(&*self.engine, user, device, through, self.now_ms);
        match decision.expect("the engine reads") {
            Decision::Waits(load) => self.asked.push(load),
            Decision::Reject(ErrorCode::AckBeyondSent) => assert!(through > view.head),
            Decision::Unchanged => assert!(through <= view.cursor),
            Decision::Apply(record) => {
                assert!(through > view.cursor && through <= view.head);
                self.apply(record);
            }
            other => panic!("{other:?}"),
        }
    }

    fn apply(&mut self, record: Record) {
        if let Record::Message(message) = &record {
            let id = message.entry.message_id;
            assert_eq!(id.time_ms(), message.entry.server_time_ms);
            let shard = id.0 >> MessageId::COUNTER_BITS & ((1 << MessageId::SHARD_BITS) - 1);
            let last = self.last_id_of_shard.insert(shard, id);
            assert!(last.is_none_or(|last| last < id), "ids of a shard ascend through crashes too");
        }
        self.shards.apply(&record);
        self.building.push(record);
    }

    /// Without cursors, those that have no other reason to be written stay for a later batch.
    fn seal(&mut self) {
        if self.under_way.is_none() && !self.building.is_empty() {
            let with_cursors = self.random.random_bool(0.5);
            let batch = self.shards.seal(self.engine.sequence_synced(), with_cursors);
            let stays = |record: &Record| match record {
                Record::CursorMoved { user, .. } => self.shards.users.peek(user).is_some_and(|user| user.moved),
                Record::Message(_) => false,
            };
            let (stay, go): (Vec<_>, Vec<_>) = std::mem::take(&mut self.building).into_iter().partition(stays);
            assert!(stay.is_empty() || !with_cursors);
            self.building = stay;
            self.under_way = Some((batch, go));
        }
    }

    fn write(&mut self) {
        if let Some((batch, records)) = self.under_way.take() {
            self.engine.write(&batch).expect("the engine writes");
            self.shards.durable(batch.number());
            records.iter().for_each(|record| self.durable.apply(record));
        }
    }

    /// Begins a read, or hands over the result of one that was begun, perhaps long ago.
    fn read(&mut self) {
        if !self.asked.is_empty() {
            let load = self.asked.swap_remove(self.random.random_range(0..self.asked.len()));
            self.begun.push(Loaded::read(&*self.engine, SHARD_COUNT, load).expect("the engine reads"));
        }
        if !self.begun.is_empty() && self.random.random_bool(0.7) {
            let loaded = self.begun.swap_remove(self.random.random_range(0..self.begun.len()));
            self.shards.loaded(loaded);
        }
    }

    /// The one who waited went away; the results of the reads still come, or nothing does.
    fn forget_reads(&mut self) {
        self.asked.clear();
    }

    fn look(&mut self) {
        let (user, device) = (self.any_user(), DeviceId(self.random.random_range(1..3)));
        match self.shards.user(&*self.engine, user, device).expect("the engine reads") {
            View::Known(view) => assert_eq!(view, self.expected().view(user, device)),
            View::Waits(load) => self.asked.push(load),
        }
        if let Some(head) = self.shards.durable_head(user) {
            assert_eq!(head, self.durable.view(user, device).head);
        }
    }

    /// The machine fails: what is not durable is lost, unless it was written.
    fn crash(&mut self) {
        if let Some((batch, records)) = self.under_way.take() {
            match &self.memory {
                Some(memory) if self.random.random_bool(0.7) => {
                    if self.random.random_bool(0.5) {
                        memory.write_only(&batch);
                    } else {
                        memory.fail_next_write(WriteFault::Sync);
                        self.engine.write(&batch).expect_err("it was told to fail");
                    }
                    let survivors = self.random.random_range(0..2);
                    memory.crash(survivors);
                    if survivors > 0 {
                        records.iter().for_each(|record| self.durable.apply(record));
                    }
                }
                Some(memory) => {
                    memory.fail_next_write(WriteFault::Write);
                    self.engine.write(&batch).expect_err("it was told to fail");
                    memory.crash(0);
                }
                None => {}
            }
        }
        self.building.clear();
        self.asked.clear();
        self.begun.clear();
        // Ids that nobody was told may come again.
        self.last_id_of_shard.clear();
        for (_, id) in self.durable.last.values() {
            let shard = id.0 >> MessageId::COUNTER_BITS & ((1 << MessageId::SHARD_BITS) - 1);
            let last = self.last_id_of_shard.entry(shard).or_default();
            *last = (*last).max(*id);
        }
        self.shards = Shards::recover(&*self.engine, SHARD_COUNT, 0, self.now_ms).expect("it recovers");
    }

    fn load(&mut self, load: Load) {
        let loaded = Loaded::read(&*self.engine, SHARD_COUNT, load).expect("the engine reads");
        self.shards.loaded(loaded);
    }

    /// All that is durable is there, and nothing else.
    fn check(&mut self) {
        self.memory.iter().for_each(|memory| memory.set_cold(false));
        self.crash();
        for user in (0..=USERS).map(UserId) {
            for device in (1..3).map(DeviceId) {
                let view = loop {
                    match self.shards.user(&*self.engine, user, device).expect("the engine reads") {
                        View::Known(view) => break view,
                        View::Waits(load) => self.load(load),
                    }
                };
                assert_eq!(view, self.durable.view(user, device));
            }
            let entries = read_inbox(&*self.engine, SHARD_COUNT, user, InboxSeq(0), usize::MAX, usize::MAX);
            let expected = self.durable.inboxes.get(&user).cloned().unwrap_or_default();
            assert_eq!(entries.expect("the engine reads"), expected);
        }
        for (send, accepted) in self.durable.accepted.clone().into_values() {
            let decision = loop {
                match self.shards.decide_send(&*self.engine, &send, self.now_ms).expect("the engine reads") {
                    Decision::Waits(load) => self.load(load),
                    decision => break decision,
                }
            };
            assert_eq!(decision, Decision::Duplicate(Accepted { duplicate: true, ..accepted }));
        }
        let report = crate::verify::verify_engine(&*self.engine, SHARD_COUNT).expect("the engine reads");
        assert_eq!(report.findings, Vec::<String>::new());
    }
}

/// The first seed, from the environment variable `SEED` if one failed before.
fn first_seed() -> u64 {
    std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random)
}

#[test]
fn random_lives_in_memory() {
    let first = first_seed();
    for seed in (0..LIVES).map(|index| first.wrapping_add(index)) {
        println!("SEED={seed}");
        let memory = Arc::new(MemoryEngine::new());
        let mut life = Life::new(seed, Arc::clone(&memory) as Arc<dyn Engine>, Some(memory));
        (0..STEPS).for_each(|_| life.step());
        life.check();
    }
}

#[cfg(feature = "rocks")]
#[test]
fn random_lives_on_rocks() {
    let first = first_seed();
    for seed in (0..4).map(|index| first.wrapping_add(index)) {
        println!("SEED={seed}");
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let open = || {
            let options = crate::rocks::RocksOptions { memtable_bytes: 128 << 10, ..Default::default() };
            Arc::new(crate::rocks::RocksEngine::open(directory.path(), options, Arc::default()).expect("it opens"))
        };
        let mut life = Life::new(seed, open(), None);
        (0..STEPS / 2).for_each(|_| life.step());
        // Read again from the files alone.
        life.crash();
        life.engine = Arc::new(MemoryEngine::new());
        life.engine = open();
        life.crash();
        (0..STEPS / 2).for_each(|_| life.step());
        life.check();
    }
}

fn send(sender: u64, recipient: u64, id: u128) -> Send {
    Send {
        sender: UserId(sender),
        device: DeviceId(1),
        client_message_id: ClientMessageId(id.to_be_bytes()),
        conversation: ConversationId::direct(UserId(sender), UserId(recipient)),
        payload: Bytes::from_static(b"hello"),
    }
}

fn accept(shards: &mut Shards, engine: &MemoryEngine, send: &Send, now_ms: u64) -> InboxEntry {
    let Decision::Apply(record) = shards.decide_send(engine, send, now_ms).expect("memory reads") else {
        panic!("a new message is accepted")
    };
    shards.apply(&record);
    let Record::Message(message) = record else { panic!("a message makes a message") };
    message.entry
}

fn recover(engine: &MemoryEngine, now_ms: u64) -> Shards {
    Shards::recover(engine, SHARD_COUNT, 0, now_ms).expect("memory reads")
}

fn commit(shards: &mut Shards, engine: &MemoryEngine) {
    let batch = shards.seal(engine.sequence_synced(), true);
    engine.write(&batch).expect("memory writes");
    shards.durable(batch.number());
}

#[test]
fn strangers_and_other_kinds_are_refused() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    let stranger = Send { sender: UserId(3), ..send(1, 2, 1) };
    let group = Send { conversation: ConversationId([0xff; 16]), ..send(1, 2, 1) };
    let group_like =
        Send { conversation: ConversationId(((9u128 << 64) | 1).to_be_bytes()), sender: UserId(9), ..send(1, 2, 1) };
    let mut decide = |send: &Send| shards.decide_send(&engine, send, 0).expect("memory reads");
    assert_eq!(decide(&stranger), Decision::Reject(ErrorCode::NotAMember));
    assert_eq!(decide(&group), Decision::Reject(ErrorCode::NotAMember));
    assert_eq!(decide(&group_like), Decision::Reject(ErrorCode::ConversationInvalid));
}

#[test]
fn a_note_to_oneself_is_in_ones_own_inbox() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    let note = send(7, 7, 1);
    let Decision::Apply(Record::Message(message)) = shards.decide_send(&engine, &note, 5).expect("memory reads") else {
        panic!("a note is accepted")
    };
    assert_eq!((message.recipient, message.accepted().inbox_seq), (UserId(7), InboxSeq(1)));
    shards.apply(&Record::Message(message.clone()));
    commit(&mut shards, &engine);
    let again = recover(&engine, 5).decide_send(&engine, &note, 9).expect("memory reads");
    assert_eq!(again, Decision::Duplicate(Accepted { duplicate: true, ..message.accepted() }));
}

#[test]
fn a_duplicate_is_known_in_every_state_of_its_batch() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    let first = send(1, 2, 1);
    accept(&mut shards, &engine, &first, 5);
    let is_duplicate = |shards: &mut Shards| matches!(shards.decide_send(&engine, &first, 6), Ok(Decision::Duplicate(accepted)) if accepted.conversation_seq.0 == 1);
    assert!(is_duplicate(&mut shards), "under construction");
    let batch = shards.seal(0, true);
    assert!(is_duplicate(&mut shards), "under way");
    engine.write(&batch).expect("memory writes");
    shards.durable(batch.number());
    assert!(is_duplicate(&mut shards), "durable");
    assert!(is_duplicate(&mut recover(&engine, 0)), "after a restart");
}

#[test]
fn time_never_goes_back_even_if_the_clock_does() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    let before = accept(&mut shards, &engine, &send(1, 2, 1), 1_000_000);
    assert_eq!(accept(&mut shards, &engine, &send(1, 2, 2), 5).server_time_ms, before.server_time_ms);
    commit(&mut shards, &engine);
    let after = accept(&mut recover(&engine, 5), &engine, &send(1, 2, 3), 5);
    assert_eq!(after.server_time_ms, 1_000_000 + TIME_RESERVATION_MS);
}

#[test]
fn a_full_counter_borrows_from_the_next_millisecond() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    let mut last = MessageId(0);
    for id in 0..10_000 {
        let entry = accept(&mut shards, &engine, &send(1, 2, id), 77);
        assert!(entry.message_id > last);
        last = entry.message_id;
    }
    assert_eq!(last.time_ms(), 79);
}

#[test]
fn the_head_hint_is_never_far_behind() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    for id in 1..=3 * HEAD_HINT_LAG_MAX {
        accept(&mut shards, &engine, &send(1, 2, u128::from(id)), 5);
        commit(&mut shards, &engine);
        let view = recover(&engine, 0).user(&engine, UserId(2), DeviceId(1)).expect("memory reads");
        assert_eq!(view, View::Known(UserView { head: InboxSeq(id), cursor: InboxSeq(0) }));
    }
}

#[test]
fn cursors_that_wait_for_a_later_batch_are_in_memory_until_then() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    accept(&mut shards, &engine, &send(1, 2, 1), 5);
    commit(&mut shards, &engine);
    let decision = shards.decide_ack(&engine, UserId(2), DeviceId(1), InboxSeq(1), 5).expect("memory reads");
    let Decision::Apply(record) = decision else { panic!("{decision:?}") };
    shards.apply(&record);
    let cursor = |shards: &mut Shards| match shards.user(&engine, UserId(2), DeviceId(1)) {
        Ok(View::Known(view)) => view.cursor.0,
        other => panic!("{other:?}"),
    };
    for round in 2..5 {
        accept(&mut shards, &engine, &send(3, 4, round), 5);
        let batch = shards.seal(engine.sequence_synced(), false);
        engine.write(&batch).expect("memory writes");
        shards.durable(batch.number());
        assert_eq!((cursor(&mut shards), cursor(&mut recover(&engine, 0))), (1, 0));
        assert!(!shards.is_batch_empty(), "something waits to be written");
    }
    commit(&mut shards, &engine);
    assert_eq!((cursor(&mut shards), cursor(&mut recover(&engine, 0))), (1, 1));
    assert!(shards.is_batch_empty());
}

#[test]
fn a_login_of_a_stranger_leaves_nothing_behind() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    for user in 0..1000 {
        let view = shards.user(&engine, UserId(user), DeviceId(1)).expect("memory reads");
        assert_eq!(view, View::Known(UserView::default()));
    }
    assert_eq!(shards.users.len(), 0);
}

#[test]
fn a_read_begun_before_a_change_is_not_believed() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    accept(&mut shards, &engine, &send(1, 2, 1), 5);
    commit(&mut shards, &engine);
    let stale = Loaded::read(&engine, SHARD_COUNT, Load::User(UserId(2))).expect("memory reads");
    accept(&mut shards, &engine, &send(1, 2, 2), 5);
    commit(&mut shards, &engine);

    let mut shards = recover(&engine, 0);
    engine.set_cold(true);
    let waits = View::Waits(Load::User(UserId(2)));
    assert_eq!(shards.user(&engine, UserId(2), DeviceId(1)).expect("memory reads"), waits);
    shards.loaded(stale.clone());
    assert_eq!(shards.user(&engine, UserId(2), DeviceId(1)).expect("memory reads"), waits, "too old");
    let fresh = Loaded::read(&engine, SHARD_COUNT, Load::User(UserId(2))).expect("memory reads");
    shards.loaded(fresh.clone());
    let expected = View::Known(UserView { head: InboxSeq(2), cursor: InboxSeq(0) });
    assert_eq!(shards.user(&engine, UserId(2), DeviceId(1)).expect("memory reads"), expected);
    shards.loaded(stale);
    shards.loaded(fresh);
    assert_eq!(shards.user(&engine, UserId(2), DeviceId(1)).expect("memory reads"), expected, "nobody waits");
}

#[test]
fn a_floor_is_the_least_cursor_and_a_new_device_starts_there() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    for id in 0..5 {
        accept(&mut shards, &engine, &send(1, 2, id), 5);
    }
    let mut ack = |device, through| {
        let decision = shards.decide_ack(&engine, UserId(2), DeviceId(device), InboxSeq(through), 5);
        let decision = decision.expect("memory reads");
        if let Decision::Apply(record) = &decision {
            shards.apply(record);
        }
        decision
    };
    assert!(matches!(ack(1, 3), Decision::Apply(Record::CursorMoved { floor: InboxSeq(3), .. })));
    assert_eq!(ack(1, 2), Decision::Unchanged);
    assert_eq!(ack(2, 3), Decision::Unchanged);
    assert_eq!(ack(1, 6), Decision::Reject(ErrorCode::AckBeyondSent));
    assert!(matches!(ack(2, 4), Decision::Apply(Record::CursorMoved { floor: InboxSeq(3), .. })));
    assert!(matches!(ack(1, 5), Decision::Apply(Record::CursorMoved { floor: InboxSeq(4), .. })));
    commit(&mut shards, &engine);
    let cursor = |device| match recover(&engine, 0).user(&engine, UserId(2), DeviceId(device)) {
        Ok(View::Known(view)) => view.cursor.0,
        other => panic!("{other:?}"),
    };
    assert_eq!([cursor(1), cursor(2), cursor(3)], [5, 4, 4]);
}
