//! A world around a few hubs, in one thread: clients that misbehave as clients do, mailboxes that refuse, mail that is
//! late or lost, a disk and readers that take their time, and ends without warning. Everything is checked as it leaves
//! a hub; chance is a seed's.

mod checks;
mod clients;
mod owners;
mod registry;
mod steps;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, Incarnation, UserId};
use culver_protocol::message::{Accepted, MarkView};
use culver_storage::batch::Batch;
use culver_storage::command::Send;
use culver_storage::engine::Engine;
use culver_storage::memory::MemoryEngine;
use culver_storage::reader::{Engines, Read, ReadResult, read_inbox};
use culver_storage::record::InboxEntry;
use culver_storage::shard::{Policy, Shards};
use culver_storage::topology::{HubId, Topology};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use self::clients::{Client, Life};
use self::registry::Registry;
use crate::hub::Hub;
use crate::hub::bounds::Bounds;
use crate::hub::command::{Address, Command, Device};
use crate::hub::effect::Effect;
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
    /// Which of the installations it is: each has a key of its own. 0: without keys.
    install: u64,
    /// Its key is registered, as far as it knows.
    is_registered: bool,
    /// It may have been unlinked, and linked anew behind what it has.
    may_gap: bool,
    /// It was linked anew since a login of it was answered.
    is_relinked: bool,
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
    registry: Registry,
    /// Devices have keys, and are removed.
    pub(super) has_keys: bool,
    /// Keys that were made so far.
    installs: u64,
    /// Where an acknowledgement may have been lost, for its device was removed or installed anew.
    unsure: HashSet<(UserId, ConversationId)>,
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
            registry: Registry::default(),
            has_keys: false,
            installs: 0,
            unsure: HashSet::new(),
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
                    hub: Hub::new(engine, shards, INCARNATION, topology, id, Bounds::default()),
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
        self.begin_anew();
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
        self.registry.asked(&command, self.now_ms);
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
