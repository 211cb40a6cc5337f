//! Random lives of one hub's shards against a simple model: cold reads, batches under way, crashes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::message::Accepted;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::{Loaded, Policy, Shards};
use super::story::Story;
use super::{SHARD_COUNT, first_seed, recover_with, small_bounds};
use crate::batch::Batch;
use crate::command::{Acked, Decision, DedupKey, Fingerprint, Load, Proof, Send, UserView, View};
use crate::engine::Engine;
use crate::memory::{Loss, MemoryEngine, WriteFault};
use crate::reader::{Engines, read_inbox};
use crate::record::{InboxEntry, Place, Record};
use crate::topology::Topology;

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
    /// Where devices were linked.
    starts: BTreeMap<(UserId, DeviceId), InboxSeq>,
    keys: BTreeMap<(UserId, DeviceId), Fingerprint>,
    names: BTreeMap<(UserId, DeviceId), String>,
    tokens_from_s: BTreeMap<UserId, u64>,
    /// What was noted as delivered, by user.
    delivered: BTreeMap<(UserId, ConversationId), ConversationSeq>,
}

impl Model {
    fn apply(&mut self, record: &Record) {
        match record {
            Record::Message(message) => {
                let sender = message.entry.sender;
                self.take(message.recipient, &message.entry, message.place);
                if let Some(place) = message.copy {
                    assert!(self.has_others(sender, message.entry.sender_device), "a copy is for somebody");
                    self.take(sender, &message.entry, place);
                }
                let conversation = message.entry.conversation;
                let last = self.last.insert(conversation, (message.entry.conversation_seq, message.entry.message_id));
                let (seq, id) = last.unwrap_or_default();
                assert_eq!(seq.0 + 1, message.entry.conversation_seq.0, "dense");
                assert!(id < message.entry.message_id, "ascending");
                let send = Send {
                    sender,
                    device: message.entry.sender_device,
                    client_message_id: message.client_message_id,
                    conversation,
                    payload: message.entry.payload.clone(),
                    copy: false,
                };
                let before = self.accepted.insert(message.dedup_key(), (send, message.accepted()));
                assert!(before.is_none(), "accepted once");
            }
            Record::CursorMoved { user, device, cursor, delivered, .. } => {
                let before = self.cursors.insert((*user, *device), *cursor);
                assert!(before.is_some_and(|before| before < *cursor), "cursors of linked devices only advance");
                for Acked { conversation, seq } in delivered {
                    let before = self.delivered.insert((*user, *conversation), *seq);
                    assert!(
                        before.is_none_or(|before| before < *seq),
                        "once, whichever device it was that had it first"
                    );
                }
            }
            Record::DeviceLinked { user, device, cursor, fingerprint, .. } => {
                let start = self.view(*user, *device).cursor;
                assert_eq!(start, *cursor, "the first device has all, others start at the head");
                assert!(self.cursors.insert((*user, *device), *cursor).is_none(), "linked once");
                self.starts.insert((*user, *device), *cursor);
                if let Some(key) = fingerprint {
                    self.keys.insert((*user, *device), *key);
                }
            }
            Record::DeviceRegistered { user, device, fingerprint, replaces, .. } => {
                assert!(self.cursors.contains_key(&(*user, *device)), "only what is linked");
                let before = self.keys.insert((*user, *device), *fingerprint);
                assert!(before.is_some() == *replaces && before != Some(*fingerprint));
            }
            Record::DeviceRemoved { user, device, tokens_from_s } => {
                assert!(self.cursors.remove(&(*user, *device)).is_some(), "only what is linked");
                self.starts.remove(&(*user, *device));
                self.keys.remove(&(*user, *device));
                self.names.remove(&(*user, *device));
                let before = self.tokens_from_s.insert(*user, *tokens_from_s);
                assert!(before.is_none_or(|before| before <= *tokens_from_s), "it never goes back");
            }
            Record::DeviceNamed { user, device, name } => {
                assert!(self.cursors.contains_key(&(*user, *device)), "only what is linked");
                self.names.insert((*user, *device), name.clone());
                self.names.retain(|_, name| !name.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }

    fn take(&mut self, user: UserId, entry: &InboxEntry, place: Place) {
        let Place::Local(inbox_seq) = place else { panic!("there is one hub") };
        let inbox = self.inboxes.entry(user).or_default();
        inbox.push(InboxEntry { inbox_seq, ..entry.clone() });
        assert_eq!(inbox.len() as u64, inbox_seq.0, "dense");
    }

    fn devices(&self, user: UserId) -> impl Iterator<Item = (DeviceId, InboxSeq)> + '_ {
        let devices = self.cursors.range((user, DeviceId(0))..=(user, DeviceId(u16::MAX)));
        devices.map(|((_, device), cursor)| (*device, *cursor))
    }

    fn names(&self, user: UserId) -> BTreeMap<DeviceId, String> {
        let names = self.names.range((user, DeviceId(0))..=(user, DeviceId(u16::MAX)));
        names.map(|((_, device), name)| (*device, name.clone())).collect()
    }

    /// What a login may register, or why it is refused.
    fn may(
        &self,
        user: UserId,
        device: DeviceId,
        fingerprint: Option<Fingerprint>,
        proof: Proof,
    ) -> Result<Option<Fingerprint>, ErrorCode> {
        let known = self.keys.get(&(user, device)).copied();
        let from_s = self.tokens_from_s.get(&user).copied().unwrap_or(0);
        match proof {
            Proof::PlaintextToken { issued_s } if issued_s < from_s => Err(ErrorCode::TokenExpired),
            Proof::PlaintextToken { .. } => Ok(None),
            Proof::PlaintextTicket { .. } if !self.cursors.contains_key(&(user, device)) => {
                Err(ErrorCode::DeviceUnknown)
            }
            Proof::PlaintextTicket { issued_s } if issued_s < from_s => Err(ErrorCode::TicketStale),
            Proof::PlaintextTicket { .. } => Ok(None),
            _ if fingerprint.is_none() => Err(ErrorCode::DeviceUnknown),
            Proof::Ticket { issued_s } if known == fingerprint && issued_s < from_s => Err(ErrorCode::TicketStale),
            Proof::Registered | Proof::Ticket { .. } => {
                if known == fingerprint {
                    Ok(None)
                } else {
                    Err(ErrorCode::DeviceUnknown)
                }
            }
            Proof::Token { issued_s } => {
                if issued_s < from_s {
                    Err(ErrorCode::TokenExpired)
                } else {
                    Ok(fingerprint)
                }
            }
        }
    }

    fn has_others(&self, user: UserId, device: DeviceId) -> bool {
        self.devices(user).any(|(other, _)| other != device)
    }

    fn view(&self, user: UserId, device: DeviceId) -> UserView {
        let head = InboxSeq(self.inboxes.get(&user).map_or(0, Vec::len) as u64);
        let linked = self.cursors.get(&(user, device)).copied();
        let start = if self.devices(user).next().is_none() { InboxSeq(0) } else { head };
        UserView {
            head,
            cursor: linked.unwrap_or(start),
            linked: linked.is_some(),
            siblings: self.has_others(user, device),
            lost_through: linked.filter(|cursor| self.starts.get(&(user, device)) == Some(cursor)).unwrap_or_default(),
            ..UserView::default()
        }
    }
}

/// A hub with its engine, cut down to what the shards see of it.
struct Life {
    random: SmallRng,
    story: Option<Story>,
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
        let mut policy = Policy::default();
        if seed.is_multiple_of(2) {
            policy.bounds = small_bounds();
        }
        let mut shards = recover_with(&*engine, policy, now_ms);
        Self {
            random: SmallRng::seed_from_u64(seed),
            story: memory.as_ref().map(|memory| Story::begin(memory, &mut shards, now_ms)),
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
            50..62 => self.ack(),
            62..66 => self.link(),
            66 => self.remove(),
            67 => self.name(),
            68..76 => self.seal(),
            76..85 => self.write(),
            85..93 => self.read(),
            93..96 => self.look(),
            96..98 => {
                let is_cold = self.random.random_bool(0.5);
                self.memory.iter().for_each(|memory| memory.set_cold(is_cold));
            }
            98 if self.random.random_bool(0.5) => self.memory.iter().for_each(|memory| memory.flush()),
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
            copy: self.random.random_bool(0.7),
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
        let acked: Vec<Acked> = self.acked(user, device, through);
        let decision = self.shards.decide_ack(&*self.engine, user, device, through, &acked, self.now_ms);
        match decision.expect("the engine reads") {
            Decision::Waits(load) => self.asked.push(load),
            Decision::Reject(ErrorCode::AckBeyondSent) => assert!(through > view.head),
            Decision::Unchanged => assert!(!view.linked || through <= view.cursor),
            Decision::Apply(record) => {
                assert!(through > view.cursor && through <= view.head);
                self.apply(record);
            }
            other => panic!("{other:?}"),
        }
    }

    fn acked(&self, user: UserId, device: DeviceId, through: InboxSeq) -> Vec<Acked> {
        let model = self.expected();
        let cursor = model.view(user, device).cursor;
        let entries = model.inboxes.get(&user).into_iter().flatten();
        let covered = entries.filter(|entry| entry.inbox_seq > cursor && entry.inbox_seq <= through);
        let others = covered.filter(|entry| entry.sender != user);
        let last: BTreeMap<_, _> = others.map(|entry| (entry.conversation, entry.conversation_seq)).collect();
        last.into_iter().map(|(conversation, seq)| Acked { conversation, seq }).collect()
    }

    fn link(&mut self) {
        let (user, device) = (self.any_user(), DeviceId(self.random.random_range(1..3)));
        let fingerprint = self.random.random_bool(0.8).then(|| [self.random.random_range(0..3); 16]);
        let issued_s = self.now_ms / 1000 + self.random.random_range(0..3) - 1;
        let proof = match self.random.random_range(0..7) {
            0 => Proof::PlaintextToken { issued_s },
            1 => Proof::PlaintextTicket { issued_s },
            6 => Proof::Ticket { issued_s },
            2..4 => Proof::Registered,
            _ => Proof::Token { issued_s },
        };
        let model = self.expected();
        let (view, known) = (model.view(user, device), model.keys.get(&(user, device)).copied());
        let may = model.may(user, device, fingerprint, proof);
        let decision = self.shards.decide_link(&*self.engine, user, device, fingerprint, proof, self.now_ms);
        match (decision.expect("the engine reads"), may) {
            (Decision::Waits(load), _) => self.asked.push(load),
            (Decision::Reject(code), Err(expected)) => assert_eq!(code, expected),
            (Decision::Unchanged, Ok(key)) => assert!(view.linked && (key.is_none() || key == known)),
            (Decision::Apply(record), Ok(key)) => {
                match &record {
                    Record::DeviceLinked { fingerprint, .. } => assert!(!view.linked && *fingerprint == key),
                    Record::DeviceRegistered { fingerprint, .. } => assert!(view.linked && Some(*fingerprint) == key),
                    other => panic!("{other:?}"),
                }
                self.apply(record);
            }
            (decision, may) => panic!("{decision:?} for {may:?}"),
        }
    }

    fn remove(&mut self) {
        let (user, device) = (self.any_user(), DeviceId(self.random.random_range(1..3)));
        let linked = self.expected().view(user, device).linked;
        match self.shards.decide_remove(&*self.engine, user, device, self.now_ms).expect("the engine reads") {
            Decision::Waits(load) => self.asked.push(load),
            Decision::Reject(ErrorCode::DeviceNotFound) => assert!(!linked),
            Decision::Apply(record) => {
                assert!(linked);
                self.apply(record);
            }
            other => panic!("{other:?}"),
        }
    }

    fn name(&mut self) {
        let (user, device) = (self.any_user(), DeviceId(self.random.random_range(1..3)));
        let name = "n".repeat(self.random.random_range(0..3) * 32 + self.random.random_range(0..2));
        let (model, key) = (self.expected(), (user, device));
        match self.shards.decide_name(&*self.engine, user, device, &name).expect("the engine reads") {
            Decision::Waits(load) => self.asked.push(load),
            Decision::Reject(ErrorCode::NameTooLong) => assert_eq!(name.len(), 65),
            Decision::Reject(ErrorCode::DeviceNotFound) => assert!(!model.cursors.contains_key(&key)),
            Decision::Unchanged => assert!(name.is_empty() && !model.names.contains_key(&key)),
            Decision::Apply(record) => {
                assert!(model.cursors.contains_key(&key) && name.len() <= 64);
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
            self.story.iter_mut().for_each(|story| story.batches.push(batch.clone()));
            let stays = |record: &Record| match record {
                Record::CursorMoved { user, .. } => self.shards.users.peek(user).is_some_and(|user| user.moved),
                _ => false,
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
        match self.shards.names(&*self.engine, user).expect("the engine reads") {
            View::Known(names) => assert_eq!(names, self.expected().names(user)),
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
                    let len = memory.unsynced_len();
                    let keep = if self.random.random_bool(0.5) { len } else { self.random.random_range(0..=len) };
                    memory.crash(&Loss { keep, hole: None });
                    memory.reopen().expect("nothing that was synced is damaged");
                    if keep == len {
                        records.iter().for_each(|record| self.durable.apply(record));
                    }
                }
                Some(memory) => {
                    memory.fail_next_write(WriteFault::Write);
                    self.engine.write(&batch).expect_err("it was told to fail");
                    memory.crash(&Loss::ALL);
                    memory.reopen().expect("nothing is damaged");
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
        let journal = self.shards.take_journal();
        self.shards = recover_with(&*self.engine, self.shards.policy(), self.now_ms);
        if let (Some(memory), Some(story)) = (&self.memory, self.story.take()) {
            story.end(&journal, &Arc::new(Topology::single(SHARD_COUNT)), self.shards.durable_number(), memory);
            self.story = Some(Story::begin(memory, &mut self.shards, self.now_ms));
        }
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
            let devices = loop {
                match self.shards.devices(&*self.engine, user).expect("the engine reads") {
                    View::Known(devices) => break devices,
                    View::Waits(load) => self.load(load),
                }
            };
            for view in devices {
                let of = (user, view.device);
                assert_eq!(view.is_registered, self.durable.keys.contains_key(&of), "{of:?}");
                assert_eq!(view.is_named, self.durable.names.contains_key(&of), "{of:?}");
            }
            let names = loop {
                match self.shards.names(&*self.engine, user).expect("the engine reads") {
                    View::Known(names) => break names,
                    View::Waits(load) => self.load(load),
                }
            };
            assert_eq!(names, self.durable.names(user));
            let engines = Engines::single(Arc::clone(&self.engine), SHARD_COUNT);
            let page = read_inbox(&engines, user, DeviceId(9), InboxSeq(0), usize::MAX, usize::MAX);
            let expected = self.durable.inboxes.get(&user).cloned().unwrap_or_default();
            assert_eq!(page.expect("the engine reads").entries, expected);
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

pub(super) fn live_in_memory(seed: u64) {
    println!("SEED={seed}");
    let memory = Arc::new(MemoryEngine::new());
    let mut life = Life::new(seed, Arc::clone(&memory) as Arc<dyn Engine>, Some(memory));
    (0..STEPS).for_each(|_| life.step());
    life.check();
}

#[test]
fn random_lives_in_memory() {
    let first = first_seed();
    (0..LIVES).for_each(|index| live_in_memory(first.wrapping_add(index)));
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
