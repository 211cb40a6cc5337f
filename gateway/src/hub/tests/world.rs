//! A world around a few hubs, in one thread: clients that misbehave as clients do, mailboxes that refuse, mail that is
//! late or lost, a disk and readers that take their time, and ends without warning. Everything is checked as it leaves
//! a hub; chance is a seed's.

mod checks;
mod clients;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, Incarnation, UserId};
use culver_protocol::message::{Accepted, MarkView};
use culver_storage::batch::Batch;
use culver_storage::command::Send;
use culver_storage::engine::Engine;
use culver_storage::memory::MemoryEngine;
use culver_storage::reader::{Engines, Read, ReadResult, read, read_inbox};
use culver_storage::record::InboxEntry;
use culver_storage::shard::{Policy, Shards};
use culver_storage::topology::{HubId, Topology};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use self::clients::{Client, Life};
use crate::hub::Hub;
use crate::hub::command::{Address, Command, Device};
use crate::hub::effect::{Effect, EffectKind};
use crate::hub::mail::HubMail;

/// Few users, so that they meet.
pub(super) const USERS: u64 = 4;
const SHARDS: u16 = 64;
pub(super) const INCARNATION: Incarnation = Incarnation(42);

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
    /// The number of the command among all that reached a hub.
    submitted: u64,
}

/// A message that some client wants to get through.
struct Message {
    send: Send,
    accepted: Option<Accepted>,
    /// Each time it was sent, the session knew of other devices.
    wants_copy: bool,
}

/// What a device keeps when its connections come and go.
#[derive(Default)]
struct Kept {
    /// Everything up to here, and each entry of it.
    cursor: InboxSeq,
    entries: BTreeMap<InboxSeq, InboxEntry>,
    /// Where its first login began.
    linked_at: Option<InboxSeq>,
    receipts: u64,
    marks: HashMap<ConversationId, MarkView>,
}

/// One hub and the queues around it.
pub(super) struct Node {
    pub(super) hub: Hub,
    /// Commands on their way to it.
    mailbox: VecDeque<Command>,
    /// Mail on its way to it, by the hub that it comes from.
    mail: Vec<VecDeque<HubMail>>,
    /// Effects on their way to clients.
    pub(super) effects: VecDeque<Effect>,
    /// Notices that found no room.
    notices: Vec<Effect>,
    batch: Option<Batch>,
    pub(super) reads: Vec<Read>,
    results: Vec<ReadResult>,
    /// The replies of a device, in the order its commands reached the hub.
    owed: HashMap<Device, VecDeque<Debt>>,
    /// RPCs that are not answered.
    asked: HashSet<(Address, u64)>,
}

pub(super) struct World {
    pub(super) random: SmallRng,
    pub(super) engine: Arc<MemoryEngine>,
    pub(super) topology: Arc<Topology>,
    pub(super) policy: Policy,
    pub(super) nodes: Vec<Node>,
    pub(super) now_ms: u64,
    mono_ms: u64,
    /// Devices of each user.
    devices: u16,
    /// By slot; a slot is used once.
    pub(super) clients: Vec<Client>,
    messages: Vec<Message>,
    by_id: HashMap<ClientMessageId, usize>,
    /// How many commands have reached hubs.
    submitted: u64,
    /// The last place told of each conversation, and when that message reached the hub.
    told: HashMap<ConversationId, (ConversationSeq, u64)>,
    kept: HashMap<Device, Kept>,
    /// Of each inbox, everything that was ever durable.
    inboxes: HashMap<UserId, BTreeMap<InboxSeq, InboxEntry>>,
    /// The last that any device of a user has persisted of a conversation, from others.
    delivered: HashMap<(UserId, ConversationId), ConversationSeq>,
    /// What users asked to mark as read, and what was answered.
    read_asked: HashMap<(UserId, ConversationId), ConversationSeq>,
    read_told: HashMap<(UserId, ConversationId), ConversationSeq>,
    rpcs: u64,
    marking: HashMap<u64, (UserId, ConversationId)>,
    /// Faults are over.
    pub(super) calm: bool,
    /// So many deliveries find no room in the mailbox to the clients.
    pub(super) refusals: usize,
}

impl World {
    fn topology(hubs: u16) -> Arc<Topology> {
        Arc::new(Topology::new(SHARDS, vec![0; usize::from(SHARDS)], hubs).expect("one volume"))
    }

    pub(super) fn new(seed: u64, hubs: u16, devices: u16) -> Self {
        Self::with_policy(seed, hubs, devices, Policy::default())
    }

    pub(super) fn with_policy(seed: u64, hubs: u16, devices: u16, policy: Policy) -> Self {
        let mut world = Self {
            random: SmallRng::seed_from_u64(seed),
            engine: Arc::new(MemoryEngine::new()),
            topology: Self::topology(hubs),
            policy,
            nodes: Vec::new(),
            now_ms: 1_800_000_000_000,
            mono_ms: 5_000,
            devices,
            clients: Vec::new(),
            messages: Vec::new(),
            by_id: HashMap::new(),
            submitted: 0,
            told: HashMap::new(),
            kept: HashMap::new(),
            inboxes: HashMap::new(),
            delivered: HashMap::new(),
            read_asked: HashMap::new(),
            read_told: HashMap::new(),
            rpcs: 0,
            marking: HashMap::new(),
            calm: false,
            refusals: 0,
        };
        world.start();
        world
    }

    /// The hubs begin, over what is on the disk.
    fn start(&mut self) {
        let hubs = self.topology.hub_count();
        self.nodes = (0..hubs)
            .map(|number| {
                let (engine, topology) = (Arc::clone(&self.engine) as Arc<dyn Engine>, Arc::clone(&self.topology));
                let id = HubId(number);
                let shards =
                    Shards::recover(&*engine, Arc::clone(&topology), id, self.policy, self.now_ms, self.mono_ms)
                        .expect("readable");
                Node {
                    hub: Hub::new(engine, shards, INCARNATION, topology, id),
                    mailbox: VecDeque::new(),
                    mail: (0..hubs).map(|_| VecDeque::new()).collect(),
                    effects: VecDeque::new(),
                    notices: Vec::new(),
                    batch: None,
                    reads: Vec::new(),
                    results: Vec::new(),
                    owed: HashMap::new(),
                    asked: HashSet::new(),
                }
            })
            .collect();
    }

    /// The server dies, and begins anew: batches under way are lost, or just not told of.
    pub(super) fn restart(&mut self) {
        self.restart_with(self.topology.hub_count());
    }

    /// The same, with so many hubs from now on.
    pub(super) fn restart_with(&mut self, hubs: u16) {
        for node in 0..self.nodes.len() {
            if self.random.random_bool(0.5)
                && let Some(batch) = self.nodes[node].batch.take()
            {
                self.engine.write(&batch).expect("it does not fail");
            }
        }
        self.note_inboxes();
        for client in &mut self.clients {
            client.life = Life::Over;
        }
        self.engine.set_cold(false);
        self.topology = Self::topology(hubs);
        self.start();
    }

    pub(super) fn device(user: u64) -> Device {
        Self::device_of(user, 1)
    }

    pub(super) fn device_of(user: u64, device: u16) -> Device {
        Device { user: UserId(user), device: DeviceId(device) }
    }

    fn random_device(&mut self) -> Device {
        Self::device_of(self.random.random_range(1..=USERS), self.random.random_range(1..=self.devices))
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.mono_ms += ms;
    }

    /// A command goes to the hub that it is for.
    fn post(&mut self, command: Command) {
        let hub = match &command {
            Command::Send { send, .. } => self.topology.hub_of_conversation(send.conversation),
            other => self.topology.hub_of_user(other.device().user),
        };
        self.post_to(hub, command);
    }

    fn post_to(&mut self, hub: HubId, command: Command) {
        self.clients[command.session().slot as usize].hubs.insert(hub);
        self.nodes[hub.index()].mailbox.push_back(command);
    }

    // ---- the world's steps ----

    /// One step of chance.
    pub(super) fn step(&mut self) {
        let passed = if self.random.random_bool(0.01) { 300 } else { self.random.random_range(0..3) };
        self.pass(passed);
        let node = self.random.random_range(0..self.nodes.len());
        match self.random.random_range(0..100) {
            0..39 => self.act(),
            39 if self.random.random_bool(0.3) => self.engine.compact().expect("it does not fail"),
            39 => {
                let cold = self.random.random_bool(0.5);
                self.engine.set_cold(cold);
            }
            40..58 => self.take_command_at(node),
            58..62 => self.take_mail_at(node),
            62..75 => drop(self.move_hub_at(node)),
            75..80 => self.finish_write_at(node),
            80..85 => self.make_read_at(node),
            85..90 => self.take_result_at(node),
            _ => self.take_effect_at(node),
        }
    }

    /// Everything that can happen without a client's doing happens, until nothing is left.
    pub(super) fn settle(&mut self) {
        for _ in 0..100_000 {
            self.pass(5);
            let mut moved = false;
            for node in 0..self.nodes.len() {
                self.take_command_at(node);
                self.take_mail_at(node);
                moved |= self.move_hub_at(node);
                self.finish_write_at(node);
                self.make_read_at(node);
                self.take_result_at(node);
                self.take_effect_at(node);
            }
            if !moved && self.nodes.iter().all(Node::is_quiet) {
                return;
            }
        }
        let parked: Vec<usize> = self.nodes.iter().map(|node| node.hub.parked()).collect();
        let untaken: Vec<u64> = self.nodes.iter().map(|node| node.hub.untaken()).collect();
        panic!("it never comes to rest: {parked:?} parked, {untaken:?} untaken");
    }

    fn each(&mut self, mut step: impl FnMut(&mut Self, usize)) {
        for node in 0..self.nodes.len() {
            step(self, node);
        }
    }

    pub(super) fn take_command(&mut self) {
        self.each(Self::take_command_at);
    }

    pub(super) fn take_mail(&mut self) {
        self.each(Self::take_mail_at);
    }

    pub(super) fn finish_write(&mut self) {
        self.each(Self::finish_write_at);
    }

    pub(super) fn make_read(&mut self) {
        self.each(Self::make_read_at);
    }

    pub(super) fn take_result(&mut self) {
        self.each(Self::take_result_at);
    }

    pub(super) fn move_hub(&mut self) -> bool {
        (0..self.nodes.len()).fold(false, |moved, node| moved | self.move_hub_at(node))
    }

    fn take_command_at(&mut self, at: usize) {
        let now_ms = self.now_ms;
        let node = &mut self.nodes[at];
        if !node.hub.has_room() {
            return;
        }
        let Some(command) = node.mailbox.pop_front() else { return };
        let (session, device) = (command.session(), command.device());
        self.submitted += 1;
        let owed = match &command {
            Command::Login { .. } => Some(Owed::LoggedIn),
            Command::Send { send, .. } => Some(Owed::Result(send.client_message_id)),
            Command::Close { .. } => Some(Owed::Closed),
            Command::Rpc { id, .. } => {
                node.asked.insert((session, *id));
                None
            }
            Command::Ack { .. } | Command::Resume { .. } => None,
        };
        if let Some(owed) = owed {
            node.owed.entry(device).or_default().push_back(Debt { session, owed, submitted: self.submitted });
        }
        node.hub.handle_command(command, now_ms).expect("the engine does not fail");
    }

    fn take_mail_at(&mut self, at: usize) {
        let from = self.random.random_range(0..self.nodes.len());
        let Some(mail) = self.nodes[at].mail[from].pop_front() else { return };
        if matches!(mail, HubMail::Push { .. } | HubMail::Full { .. }) && !self.calm && self.random.random_bool(0.05) {
            return; // lost
        }
        let now_ms = self.now_ms;
        self.nodes[at].hub.handle_mail(mail, now_ms).expect("the engine does not fail");
    }

    /// What the driver does between commands. Whether anything came of it.
    fn move_hub_at(&mut self, at: usize) -> bool {
        let (now_ms, mono_ms) = (self.now_ms, self.mono_ms);
        let mut moved = false;
        let node = &mut self.nodes[at];
        node.hub.keep_up(now_ms, mono_ms).expect("the engine does not fail");
        while let Some(read) = node.hub.next_read() {
            node.reads.push(read);
            moved = true;
        }
        if let Some(batch) = node.hub.next_batch(now_ms).expect("the engine does not fail") {
            assert!(node.batch.is_none(), "one batch at a time");
            node.batch = Some(batch);
            moved = true;
        }
        moved |= self.post_effects(at) | self.post_mail(at);
        let feeds = self.calm || self.random.random_bool(0.5);
        let node = &mut self.nodes[at];
        if node.hub.is_hungry() && feeds {
            node.hub.feed_hungry();
            moved = true;
        }
        moved
    }

    fn post_effects(&mut self, at: usize) -> bool {
        let earlier = std::mem::take(&mut self.nodes[at].notices);
        let released = self.nodes[at].hub.take_released();
        let mut moved = false;
        for effect in earlier.into_iter().chain(released) {
            moved = true;
            let is_refusable = !effect.kind.is_reply();
            let node = &mut self.nodes[at];
            if is_refusable && node.hub.is_void(&effect) {
                continue;
            }
            let refuse = is_refusable && (self.refusals > 0 || (!self.calm && self.random.random_bool(0.1)));
            self.refusals = self.refusals.saturating_sub(usize::from(refuse));
            let is_notice = effect.kind.is_notice();
            match effect.kind {
                _ if is_notice && (refuse || !node.notices.is_empty()) => node.notices.push(effect),
                _ if refuse => node.hub.handle_refused(effect),
                EffectKind::SyncStart { online, .. } => {
                    let session = effect.session;
                    node.effects.push_back(effect);
                    node.hub.handle_posted_sync(online, session);
                }
                _ => node.effects.push_back(effect),
            }
        }
        moved
    }

    fn post_mail(&mut self, at: usize) -> bool {
        let mut moved = false;
        for (to, mail) in self.nodes[at].hub.take_mail() {
            moved = true;
            assert_ne!(to.index(), at, "no mail to itself");
            if !self.calm && self.random.random_bool(0.1) {
                self.nodes[at].hub.refused_mail(to, mail);
            } else {
                self.nodes[to.index()].mail[at].push_back(mail);
            }
        }
        moved
    }

    fn finish_write_at(&mut self, at: usize) {
        if let Some(batch) = self.nodes[at].batch.take() {
            self.engine.write(&batch).expect("it does not fail");
            self.note_inboxes();
            let now_ms = self.now_ms;
            self.nodes[at].hub.handle_durable(batch.number(), now_ms).expect("the engine does not fail");
        }
    }

    fn make_read_at(&mut self, at: usize) {
        if self.nodes[at].reads.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.nodes[at].reads.len());
        let asked = self.nodes[at].reads.swap_remove(index);
        let result = read(&self.engines(), 0, asked).expect("readable");
        self.nodes[at].results.push(result);
    }

    fn take_result_at(&mut self, at: usize) {
        if self.nodes[at].results.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.nodes[at].results.len());
        let now_ms = self.now_ms;
        let node = &mut self.nodes[at];
        let result = node.results.swap_remove(index);
        node.hub.handle_read(result, now_ms).expect("the engine does not fail");
        node.hub.retry_parked(now_ms).expect("the engine does not fail");
    }

    /// Everything in the mailboxes is decided, and what can be told without a read is told.
    pub(super) fn take_commands(&mut self) {
        while self.nodes.iter().any(|node| !node.mailbox.is_empty()) {
            self.take_command();
        }
        while self.move_hub() || self.nodes.iter().any(|node| node.batch.is_some()) {
            self.finish_write();
        }
    }

    /// Reads are made, and their results taken, until none is wanted.
    pub(super) fn read_all(&mut self) {
        while self.move_hub() || self.nodes.iter().any(|node| !node.reads.is_empty() || !node.results.is_empty()) {
            self.make_read();
            self.take_result();
        }
    }

    /// All mail that is under way is lost.
    pub(super) fn lose_mail(&mut self) {
        for node in &mut self.nodes {
            node.mail.iter_mut().for_each(VecDeque::clear);
        }
    }

    pub(super) fn engines(&self) -> Engines {
        Engines {
            engines: vec![Arc::clone(&self.engine) as Arc<dyn Engine>],
            topology: Topology::clone(&self.topology),
        }
    }

    /// What has become durable of the inboxes since they were last looked at.
    fn note_inboxes(&mut self) {
        let engines = self.engines();
        for user in (1..=USERS).map(UserId) {
            let inbox = self.inboxes.entry(user).or_default();
            let after = inbox.last_key_value().map_or(InboxSeq(0), |(seq, _)| *seq);
            let page = read_inbox(&engines, user, DeviceId(0), after, usize::MAX, usize::MAX).expect("readable");
            for entry in page.entries {
                let seq = entry.inbox_seq;
                assert_eq!(seq.0, inbox.len() as u64 + 1, "places are dense");
                inbox.insert(seq, entry);
            }
        }
    }
}

impl Node {
    fn is_quiet(&self) -> bool {
        self.mailbox.is_empty()
            && self.mail.iter().all(VecDeque::is_empty)
            && self.effects.is_empty()
            && self.notices.is_empty()
            && self.batch.is_none()
            && self.reads.is_empty()
            && self.results.is_empty()
            && !self.hub.is_hungry()
            && !self.hub.has_untaken()
            && self.hub.is_settled()
    }
}
