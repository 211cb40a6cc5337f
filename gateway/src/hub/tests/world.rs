//! A world around one hub, in one thread: clients that misbehave as clients do, a mailbox that refuses, a disk and
//! readers that take their time. Everything is checked as it leaves the hub; chance is a seed's.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, Incarnation, UserId};
use culver_protocol::limits::ENTRY_OVERHEAD;
use culver_protocol::message::Accepted;
use culver_storage::batch::Batch;
use culver_storage::command::{Send, View};
use culver_storage::engine::Engine;
use culver_storage::memory::MemoryEngine;
use culver_storage::reader::{Loaded, Read, ReadResult, read_inbox};
use culver_storage::record::InboxEntry;
use culver_storage::shard::Shards;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::hub::Hub;
use crate::hub::command::{Address, Command, Credit, Device};
use crate::hub::effect::{Effect, EffectKind};

/// Few users, so that they meet.
pub(super) const USERS: u64 = 4;
const SHARDS: u16 = 64;
const INCARNATION: Incarnation = Incarnation(42);
/// Wide enough for any payload of this world, narrow enough to fill up.
const CREDIT_BYTES: u32 = 600;

/// A reply that a session is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    LoggedIn,
    Result(ClientMessageId),
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Debt {
    session: Address,
    owed: Owed,
    /// The number of the command among all that reached the hub.
    submitted: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    LoggingIn,
    Steady,
    /// It has sent its Close.
    Closing,
    Over,
}

/// One client's session, as `Session` and the reactor keep it.
struct Client {
    address: Address,
    device: Device,
    life: Life,
    credit: Credit,
    /// What it claimed at its login.
    cursor: InboxSeq,
    sent: InboxSeq,
    acked: InboxSeq,
    /// Its socket takes nothing.
    blocked: bool,
    /// Deliveries were dropped.
    resume: bool,
    replaced: bool,
    /// Entries delivered and not acknowledged.
    under_way: VecDeque<(InboxSeq, u32)>,
}

/// A message that some client wants to get through.
struct Message {
    send: Send,
    accepted: Option<Accepted>,
}

pub(super) struct World {
    pub(super) random: SmallRng,
    pub(super) engine: Arc<MemoryEngine>,
    pub(super) hub: Hub,
    now_ms: u64,
    /// By slot; a slot is used once.
    clients: Vec<Client>,
    /// Commands on their way to the hub.
    mailbox: VecDeque<Command>,
    /// Effects on their way to the clients.
    effects: VecDeque<Effect>,
    /// Notices that found no room.
    notices: Vec<Effect>,
    batch: Option<Batch>,
    reads: Vec<Read>,
    results: Vec<ReadResult>,
    /// The replies of a device, in the order its commands reached the hub.
    owed: HashMap<Device, VecDeque<Debt>>,
    messages: Vec<Message>,
    by_id: HashMap<ClientMessageId, usize>,
    /// How many commands have reached the hub.
    submitted: u64,
    /// The last place told of each conversation, and when that message reached the hub.
    told: HashMap<ConversationId, (ConversationSeq, u64)>,
    /// What a user's device has persisted, in order.
    persisted: HashMap<Device, InboxSeq>,
    /// Faults are over.
    pub(super) calm: bool,
    /// So many deliveries find no room in the mailbox to the clients.
    pub(super) refusals: usize,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let engine = Arc::new(MemoryEngine::new());
        let now_ms = 1_800_000_000_000;
        let shards = Shards::recover(&*engine, SHARDS, 0, now_ms).expect("an empty engine");
        let hub = Hub::new(Arc::clone(&engine) as Arc<dyn Engine>, shards, INCARNATION);
        Self {
            random: SmallRng::seed_from_u64(seed),
            engine,
            hub,
            now_ms,
            clients: Vec::new(),
            mailbox: VecDeque::new(),
            effects: VecDeque::new(),
            notices: Vec::new(),
            batch: None,
            reads: Vec::new(),
            results: Vec::new(),
            owed: HashMap::new(),
            messages: Vec::new(),
            by_id: HashMap::new(),
            submitted: 0,
            told: HashMap::new(),
            persisted: HashMap::new(),
            calm: false,
            refusals: 0,
        }
    }

    pub(super) fn device(user: u64) -> Device {
        Device { user: UserId(user), device: DeviceId(1) }
    }

    // ---- what clients do ----

    /// A new connection of a device logs in.
    pub(super) fn log_in(&mut self, device: Device) -> u32 {
        let entries = self.random.random_range(1..6);
        self.log_in_with(device, entries)
    }

    /// A new connection of a device logs in with a window of so many entries.
    pub(super) fn log_in_with(&mut self, device: Device, entries: u16) -> u32 {
        let slot = u32::try_from(self.clients.len()).expect("few");
        // Two reactors, whose epochs say the same numbers.
        let address = Address { reactor: u16::from(slot % 2 == 1), slot, generation: 1, epoch: slot / 2 + 1 };
        let credit = Credit { entries, bytes: CREDIT_BYTES };
        let cursor = self.persisted.get(&device).copied().unwrap_or_default();
        self.clients.push(Client {
            address,
            device,
            life: Life::LoggingIn,
            credit,
            cursor,
            sent: cursor,
            acked: cursor,
            blocked: false,
            resume: false,
            replaced: false,
            under_way: VecDeque::new(),
        });
        self.mailbox.push_back(Command::Login { session: address, device, cursor, incarnation: INCARNATION, credit });
        slot
    }

    /// A client sends something new, or something again.
    fn send(&mut self, slot: u32) {
        let client = &self.clients[slot as usize];
        let device = client.device;
        let mine: Vec<usize> = (0..self.messages.len())
            .filter(|index| self.messages[*index].send.sender == device.user)
            .rev()
            .take(5)
            .collect();
        let again = self.random.random_bool(0.2).then(|| mine.choose(&mut self.random).copied()).flatten();
        let index = again.unwrap_or_else(|| {
            let peer = UserId(self.random.random_range(1..=USERS));
            let mut id = [0; 16];
            self.random.fill(&mut id);
            let len = self.random.random_range(0..60);
            self.new_message(device, peer, ClientMessageId(id), Bytes::from(vec![7; len]))
        });
        self.submit_message(slot, index);
    }

    fn new_message(&mut self, from: Device, to: UserId, id: ClientMessageId, payload: Bytes) -> usize {
        let conversation = ConversationId::direct(from.user, to);
        let send = Send { sender: from.user, device: from.device, client_message_id: id, conversation, payload };
        self.by_id.insert(id, self.messages.len());
        self.messages.push(Message { send, accepted: None });
        self.messages.len() - 1
    }

    fn submit_message(&mut self, slot: u32, index: usize) {
        let session = self.clients[slot as usize].address;
        self.mailbox.push_back(Command::Send { session, send: self.messages[index].send.clone() });
    }

    /// A client sends a message of this number to a user.
    pub(super) fn send_to(&mut self, slot: u32, to: u64, number: u128) {
        let device = self.clients[slot as usize].device;
        let id = ClientMessageId(number.to_be_bytes());
        let index = match self.by_id.get(&id) {
            Some(index) => *index,
            None => self.new_message(device, UserId(to), id, Bytes::from_static(b"hello")),
        };
        self.submit_message(slot, index);
    }

    /// A client persists some of what it has, and says so.
    fn acknowledge(&mut self, slot: u32, entries_max: usize) {
        let client = &mut self.clients[slot as usize];
        let count = client.under_way.len().min(entries_max);
        let Some((through, _)) = client.under_way.drain(..count).next_back() else { return };
        client.acked = through;
        let persisted = self.persisted.entry(client.device).or_default();
        *persisted = through.max(*persisted);
        let (session, device, credit) = (client.address, client.device, client.credit);
        self.mailbox.push_back(Command::Ack { session, device, through, credit });
    }

    /// Tells the hub that deliveries were dropped, once the socket takes bytes again.
    pub(super) fn resume(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        if !client.blocked && std::mem::take(&mut client.resume) {
            let (session, device, sent) = (client.address, client.device, client.sent);
            self.mailbox.push_back(Command::Resume { session, device, sent });
        }
    }

    pub(super) fn close(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        client.life = Life::Closing;
        let (session, device) = (client.address, client.device);
        self.mailbox.push_back(Command::Close { session, device });
    }

    /// Its socket takes nothing, or takes bytes again.
    pub(super) fn block(&mut self, slot: u32, blocked: bool) {
        self.clients[slot as usize].blocked = blocked;
    }

    fn pick(&mut self, is_wanted: impl Fn(&Client) -> bool) -> Option<u32> {
        let wanted: Vec<u32> = self.clients.iter().filter(|c| is_wanted(c)).map(|c| c.address.slot).collect();
        wanted.choose(&mut self.random).copied()
    }

    fn live(&self, device: Device) -> Option<u32> {
        let is_live =
            |c: &&Client| c.device == device && matches!(c.life, Life::LoggingIn | Life::Steady) && !c.replaced;
        self.clients.iter().rev().find(is_live).map(|client| client.address.slot)
    }

    // ---- the world's steps ----

    /// One step of chance.
    pub(super) fn step(&mut self) {
        self.now_ms += self.random.random_range(0..3);
        match self.random.random_range(0..100) {
            0..2 => {
                let user = self.random.random_range(1..=USERS);
                self.log_in(Self::device(user));
            }
            2..25 => {
                // Older connections send on until they are told.
                if let Some(slot) = self.pick(|client| matches!(client.life, Life::LoggingIn | Life::Steady)) {
                    self.send(slot);
                }
            }
            25..35 => {
                let entries = self.random.random_range(1..5);
                if let Some(slot) = self.pick(|client| client.life == Life::Steady) {
                    self.acknowledge(slot, entries);
                }
            }
            35..37 => {
                if let Some(slot) = self.pick(|client| client.life == Life::Steady) {
                    let blocked = &mut self.clients[slot as usize].blocked;
                    *blocked = !*blocked;
                    self.resume(slot);
                }
            }
            37 => {
                if let Some(slot) = self.pick(|client| matches!(client.life, Life::LoggingIn | Life::Steady)) {
                    self.close(slot);
                }
            }
            38 => {
                let cold = self.random.random_bool(0.5);
                self.engine.set_cold(cold);
            }
            39..60 => self.take_command(),
            60..75 => drop(self.move_hub()),
            75..80 => self.finish_write(),
            80..85 => self.make_read(),
            85..90 => self.take_result(),
            _ => self.take_effect(),
        }
    }

    /// Everything that can happen without a client's doing happens, until nothing is left.
    pub(super) fn settle(&mut self) {
        for _ in 0..100_000 {
            self.now_ms += 5;
            self.take_command();
            self.move_hub();
            self.finish_write();
            self.make_read();
            self.take_result();
            self.take_effect();
            let quiet = self.mailbox.is_empty()
                && self.effects.is_empty()
                && self.notices.is_empty()
                && self.batch.is_none()
                && self.reads.is_empty()
                && self.results.is_empty()
                && !self.hub.is_hungry()
                && self.hub.is_settled();
            if quiet && !self.move_hub() {
                return;
            }
        }
        panic!("it never comes to rest: {} parked", self.hub.parked());
    }

    pub(super) fn take_command(&mut self) {
        if !self.hub.has_room() {
            return;
        }
        let Some(command) = self.mailbox.pop_front() else { return };
        let (session, device) = (command.session(), command.device());
        self.submitted += 1;
        let owed = match &command {
            Command::Login { .. } => Some(Owed::LoggedIn),
            Command::Send { send, .. } => Some(Owed::Result(send.client_message_id)),
            Command::Close { .. } => Some(Owed::Closed),
            Command::Ack { .. } | Command::Resume { .. } => None,
        };
        if let Some(owed) = owed {
            self.owed.entry(device).or_default().push_back(Debt { session, owed, submitted: self.submitted });
        }
        self.hub.handle_command(command, self.now_ms).expect("the engine does not fail");
    }

    /// What the driver does between commands. Whether anything came of it.
    pub(super) fn move_hub(&mut self) -> bool {
        let mut moved = false;
        while let Some(read) = self.hub.next_read() {
            self.reads.push(read);
            moved = true;
        }
        if let Some(batch) = self.hub.next_batch(self.now_ms) {
            assert!(self.batch.is_none(), "one batch at a time");
            self.batch = Some(batch);
            moved = true;
        }
        let earlier = std::mem::take(&mut self.notices);
        for effect in earlier.into_iter().chain(self.hub.take_released()) {
            moved = true;
            let is_refusable = !effect.kind.is_reply();
            let refuse = is_refusable && (self.refusals > 0 || (!self.calm && self.random.random_bool(0.1)));
            self.refusals = self.refusals.saturating_sub(usize::from(refuse));
            match effect.kind {
                EffectKind::Replaced if refuse => self.notices.push(effect),
                _ if refuse => self.hub.handle_refused(&effect),
                _ => self.effects.push_back(effect),
            }
        }
        if self.hub.is_hungry() && (self.calm || self.random.random_bool(0.5)) {
            self.hub.feed_hungry();
            moved = true;
        }
        moved
    }

    pub(super) fn finish_write(&mut self) {
        if let Some(batch) = self.batch.take() {
            self.engine.write(&batch).expect("it does not fail");
            self.hub.handle_durable(batch.number());
        }
    }

    pub(super) fn make_read(&mut self) {
        if self.reads.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.reads.len());
        let engine = &*self.engine;
        let result = match self.reads.swap_remove(index) {
            Read::Load(load) => ReadResult::Loaded(Loaded::read(engine, SHARDS, load).expect("readable")),
            Read::Inbox { tag, user, after, entries_max, bytes_max } => {
                let entries = read_inbox(engine, SHARDS, user, after, entries_max, bytes_max).expect("readable");
                ReadResult::Inbox { tag, user, after, entries }
            }
        };
        self.results.push(result);
    }

    pub(super) fn take_result(&mut self) {
        if !self.results.is_empty() {
            let index = self.random.random_range(0..self.results.len());
            let result = self.results.swap_remove(index);
            self.hub.handle_read(result).expect("the engine does not fail");
            self.hub.retry_parked(self.now_ms).expect("the engine does not fail");
        }
    }

    /// Everything on its way to the hub arrives, and what needs no disk happens.
    pub(super) fn take_commands(&mut self) {
        while !self.mailbox.is_empty() {
            self.take_command();
        }
        while self.move_hub() || self.batch.is_some() {
            self.finish_write();
        }
    }

    /// All reads of now and those that follow from them, as fast as readers can.
    pub(super) fn read_all(&mut self) {
        while self.move_hub() || !self.reads.is_empty() || !self.results.is_empty() {
            self.make_read();
            self.take_result();
        }
    }

    // ---- what clients see ----

    pub(super) fn take_effects(&mut self) {
        while !self.effects.is_empty() {
            self.take_effect();
        }
    }

    pub(super) fn take_effect(&mut self) {
        let Some(effect) = self.effects.pop_front() else { return };
        let slot = effect.session.slot;
        let client = &self.clients[slot as usize];
        let device = client.device;
        assert_eq!(client.address, effect.session, "addresses name sessions");
        match effect.kind {
            EffectKind::LoggedIn { cursor, reset } => {
                self.settle_debt(device, effect.session, Owed::LoggedIn);
                assert!(!reset, "every cursor of this world is honest");
                let client = &mut self.clients[slot as usize];
                assert!(cursor >= client.cursor, "what is persisted does not come again");
                client.sent = cursor;
                client.acked = cursor;
                if client.life == Life::LoggingIn {
                    client.life = Life::Steady;
                }
            }
            EffectKind::Accepted(accepted) => {
                let debt = self.settle_debt(device, effect.session, Owed::Result(accepted.client_message_id));
                self.check_accepted(accepted, debt.submitted);
            }
            EffectKind::Rejected { client_message_id, code } => {
                self.settle_debt(device, effect.session, Owed::Result(client_message_id));
                assert_eq!(code, ErrorCode::Replaced, "nothing else is wrong with it");
            }
            EffectKind::Closed => {
                self.settle_debt(device, effect.session, Owed::Closed);
                self.clients[slot as usize].life = Life::Over;
            }
            EffectKind::Replaced => {
                let client = &mut self.clients[slot as usize];
                assert!(!std::mem::replace(&mut client.replaced, true), "told once");
                let address = client.address;
                let newer = self.clients.iter().any(|c| c.device == device && c.address.slot > address.slot);
                assert!(newer, "somebody must have replaced it");
                if self.clients[slot as usize].life != Life::Over && self.clients[slot as usize].life != Life::Closing {
                    self.close(slot);
                }
            }
            EffectKind::Deliver { previous, entry, .. } => self.deliver(slot, previous, &[entry]),
            EffectKind::DeliverPage { previous, entries, .. } => self.deliver(slot, previous, &entries),
        }
    }

    /// The oldest debt to a device is paid: nothing of one device overtakes.
    fn settle_debt(&mut self, device: Device, session: Address, paid: Owed) -> Debt {
        let debt = self.owed.get_mut(&device).and_then(VecDeque::pop_front).expect("no reply is owed");
        let order = "replies come once, in the order of a device's commands";
        assert_eq!((debt.session, debt.owed), (session, paid), "{order}");
        debt
    }

    fn check_accepted(&mut self, accepted: Accepted, submitted: u64) {
        let id = accepted.client_message_id;
        let message = &mut self.messages[self.by_id[&id]];
        let first = *message.accepted.get_or_insert(accepted);
        if first == accepted && !accepted.duplicate {
            let conversation = message.send.conversation;
            let before = self.told.insert(conversation, (accepted.conversation_seq, submitted));
            let (last, last_submitted) = before.unwrap_or_default();
            assert_eq!(accepted.conversation_seq.0, last.0 + 1, "told in order");
            assert!(submitted > last_submitted, "within a conversation nothing overtakes");
        } else {
            assert_eq!(accepted, Accepted { duplicate: true, ..first }, "the same id gives the same result");
        }
        let recipient = message.send.conversation.direct_peer(message.send.sender).expect("direct");
        let payload = message.send.payload.clone();
        let found = self.inbox(recipient).into_iter().find(|entry| entry.message_id == accepted.message_id);
        let entry = found.expect("told before it was durable");
        assert_eq!(entry.conversation_seq, accepted.conversation_seq);
        assert_eq!(entry.payload, payload);
    }

    /// As `Session::deliver` does.
    fn deliver(&mut self, slot: u32, previous: InboxSeq, entries: &[InboxEntry]) {
        let user = self.clients[slot as usize].device.user;
        let durable = self.inbox(user);
        let mut seq = previous;
        for entry in entries {
            assert_eq!(entry.inbox_seq.0, seq.0 + 1, "entries are in order, and none is left out");
            seq = entry.inbox_seq;
            let stored = durable.get(usize::try_from(seq.0 - 1).expect("small"));
            assert_eq!(stored, Some(entry), "delivered before it was durable");
        }
        let client = &mut self.clients[slot as usize];
        assert!(client.life != Life::LoggingIn && client.life != Life::Over, "deliveries belong to a session");
        if previous != client.sent || client.life != Life::Steady {
            return;
        }
        if client.blocked {
            client.resume = true;
            return;
        }
        for entry in entries {
            let bytes = u32::try_from(entry.payload.len() + ENTRY_OVERHEAD).expect("short");
            client.under_way.push_back((entry.inbox_seq, bytes));
        }
        client.sent = seq;
        let bytes: u32 = client.under_way.iter().map(|(_, bytes)| bytes).sum();
        assert!(client.under_way.len() <= usize::from(client.credit.entries), "more entries than the window");
        assert!(bytes <= client.credit.bytes, "more bytes than the window");
    }

    /// What is durable of an inbox.
    fn inbox(&self, user: UserId) -> Vec<InboxEntry> {
        read_inbox(&*self.engine, SHARDS, user, InboxSeq(0), usize::MAX, usize::MAX).expect("readable")
    }

    /// What became of the messages of which the hub has told since, unchecked: their numbers, and why not.
    pub(super) fn outcomes(&mut self) -> Vec<(u128, Option<ErrorCode>)> {
        let outcome = |effect: Effect| match effect.kind {
            EffectKind::Accepted(accepted) => Some((u128::from_be_bytes(accepted.client_message_id.0), None)),
            EffectKind::Rejected { client_message_id: id, code } => Some((u128::from_be_bytes(id.0), Some(code))),
            _ => None,
        };
        self.effects.drain(..).filter_map(outcome).collect()
    }

    // ---- the end ----

    /// All faults stop and clients behave: everything accepted must reach everybody.
    pub(super) fn calm_down(&mut self) {
        self.calm = true;
        for slot in 0..u32::try_from(self.clients.len()).expect("few") {
            self.block(slot, false);
            if matches!(self.clients[slot as usize].life, Life::LoggingIn | Life::Steady) {
                self.resume(slot);
            }
        }
        self.drain();
        for user in 1..=USERS {
            match self.live(Self::device(user)) {
                Some(_) => self.check_drained(Self::device(user)),
                None => drop(self.log_in(Self::device(user))),
            }
        }
        // What was sent and not answered is sent again, as clients do.
        for index in 0..self.messages.len() {
            if self.messages[index].accepted.is_none() {
                let device = Self::device(self.messages[index].send.sender.0);
                let slot = self.live(device).expect("everybody is online");
                self.submit_message(slot, index);
            }
        }
        self.drain();
        for user in 1..=USERS {
            self.check_drained(Self::device(user));
        }
        assert!(self.owed.values().all(VecDeque::is_empty), "every promised reply has come");
        self.check_inboxes();
        self.calm = false;
    }

    /// Everybody acknowledges until nothing comes any more.
    pub(super) fn drain(&mut self) {
        self.settle();
        while self.acknowledge_all() {
            self.settle();
        }
    }

    /// Whether there was anything to acknowledge.
    pub(super) fn acknowledge_all(&mut self) -> bool {
        let is_due = |c: &&Client| c.life == Life::Steady && !c.under_way.is_empty();
        let slots: Vec<u32> = self.clients.iter().filter(is_due).map(|c| c.address.slot).collect();
        for slot in &slots {
            self.acknowledge(*slot, usize::MAX);
        }
        !slots.is_empty()
    }

    pub(super) fn check_drained(&mut self, device: Device) {
        let slot = self.live(device).expect("it is online");
        let head = self.inbox(device.user).last().map_or(InboxSeq(0), |entry| entry.inbox_seq);
        let client = &self.clients[slot as usize];
        assert_eq!(client.sent, head, "user {} of slot {slot} has not got everything", device.user);
        assert_eq!(client.acked, head, "user {} of slot {slot}", device.user);
        let client_cursor = client.cursor;
        self.engine.set_cold(false);
        let view = self.hub.shards.user(&*self.engine, device.user, device.device).expect("readable");
        let View::Known(view) = view else { panic!("the engine is warm") };
        // What a login claims is believed, and stored with the next acknowledgement.
        let is_stored = view.cursor == head || client_cursor == head;
        assert!(view.head == head && is_stored, "{view:?} instead of {head:?}");
    }

    fn check_inboxes(&mut self) {
        let mut places: HashSet<(UserId, InboxSeq)> = HashSet::new();
        for message in &self.messages {
            let accepted = message.accepted.expect("everything is accepted in the end");
            let recipient = message.send.conversation.direct_peer(message.send.sender).expect("direct");
            let inbox = self.inbox(recipient);
            let found: Vec<_> = inbox.iter().filter(|entry| entry.message_id == accepted.message_id).collect();
            assert_eq!(found.len(), 1, "once in the recipient's inbox");
            assert!(places.insert((recipient, found[0].inbox_seq)), "a place of its own");
        }
        let total: usize = (1..=USERS).map(|user| self.inbox(UserId(user)).len()).sum();
        assert_eq!(total, self.messages.len(), "nothing else is in any inbox");
    }
}
