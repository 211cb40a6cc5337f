//! Hubs with their drivers: the same inputs give the same outputs whatever order a map has, nothing is left when
//! everybody has gone, and a hub sleeps only while nothing waits for it.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use culver_protocol::id::{ClientMessageId, ConversationId, DeviceId, InboxSeq, Incarnation, UserId};
use culver_storage::batch::Batch;
use culver_storage::command::Send;
use culver_storage::engine::Engine;
use culver_storage::memory::MemoryEngine;
use culver_storage::reader::{Engines, Read, read};
use culver_storage::shard::{Policy, Shards, replay};
use culver_storage::topology::{HubId, Topology};

use crate::clock::{Clock, Now};
use crate::hub::Hub;
use crate::hub::bounds::Bounds;
use crate::hub::command::{Address, Command, Credit, Device, Proof};
use crate::hub::driver::{Disk, Driver, HubPort, Inbox, ReactorPort};
use crate::hub::effect::{Effect, EffectKind};
use crate::hub::holdings::Holdings;
use crate::mailbox::{self, Doorbell, HubLink, Link};
use crate::metrics::Counters;
use crate::space::Space;

const HUBS: u16 = 2;
const USERS: usize = 12;
const DEVICES: u16 = 3;
const CREDIT: Credit = Credit { entries: 4, bytes: 4096 };

const BEGAN_US: u64 = 1_000_000;

fn plain_login(session: Address, device: Device, cursor: InboxSeq, incarnation: Incarnation) -> Command {
    let (credit, fetch, receipts, fingerprint, proof) = (CREDIT, false, 0, None, Proof::PlaintextToken { issued_s: 0 });
    Command::Login { session, device, cursor, incarnation, credit, fetch, receipts, fingerprint, proof }
}

/// A clock that goes when it is told to.
struct Hand(Cell<u64>);

impl Hand {
    fn pass(&self, us: u64) {
        self.0.set(self.0.get() + us);
    }
}

impl Clock for Hand {
    fn now(&self) -> Now {
        Now { wall_ms: 1_700_000_000_000 + self.0.get() / 1000, mono_us: self.0.get() }
    }
}

/// What a hub has handed over.
#[derive(Default)]
struct Desk {
    batch: Option<Batch>,
    reads: VecDeque<Read>,
}

impl Disk for Desk {
    fn write(&mut self, batch: Batch) {
        assert!(self.batch.replace(batch).is_none(), "one batch at a time");
    }

    fn read(&mut self, read: Read) {
        self.reads.push_back(read);
    }
}

/// One hub, and what is around it.
struct Node {
    driver: Driver,
    desk: Desk,
    inbox: Arc<Inbox>,
    link: Arc<Link>,
    /// To a reactor that takes nothing.
    slow: Arc<Link>,
    woken: Arc<AtomicUsize>,
    /// The bytes of all its batches.
    written: Vec<Vec<u8>>,
}

/// A few hubs and one reactor.
struct Machine {
    engine: Arc<MemoryEngine>,
    topology: Arc<Topology>,
    clock: Hand,
    space: Arc<Space>,
    nodes: Vec<Node>,
    counters: Counters,
    /// Who has which slot, and what it was sent.
    sessions: Vec<(Device, InboxSeq)>,
    /// Everything that came out, in order.
    outputs: String,
}

impl Machine {
    fn new(bounds: Bounds, links: mailbox::Bounds, mail: usize) -> Self {
        let engine = Arc::new(MemoryEngine::new());
        let topology = Arc::new(Topology::new(64, vec![0; 64], HUBS).expect("possible"));
        let clock = Hand(Cell::new(BEGAN_US));
        let between = Arc::new(HubLink::new(mail));
        let mut nodes: Vec<Node> = Vec::new();
        let space = Arc::<Space>::default();
        let woken: Vec<Arc<AtomicUsize>> = (0..HUBS).map(|_| Arc::default()).collect();
        let inboxes: Vec<Arc<Inbox>> = woken
            .iter()
            .map(|woken| {
                let woken = Arc::clone(woken);
                let wake = move || {
                    woken.fetch_add(1, Ordering::Relaxed);
                };
                Arc::new(Inbox::new(bounds.reads_outstanding, wake))
            })
            .collect();
        for (id, (inbox, woken)) in (0..HUBS).map(HubId).zip(inboxes.iter().zip(woken)) {
            let (disk, now) = (Arc::clone(&engine) as Arc<dyn Engine>, clock.now());
            let shards =
                Shards::recover(&*disk, Arc::clone(&topology), id, Policy::default(), now.wall_ms, now.mono_ms())
                    .expect("readable");
            let mut hub = Hub::new(disk, shards, Incarnation(1), Arc::clone(&topology), id, bounds);
            hub.keep_journal();
            let link = Arc::new(Link::new(links));
            let reactor = ReactorPort { link: Arc::clone(&link), bell: Arc::new(Doorbell::new(|| ())) };
            let slow = Arc::new(Link::new(links));
            let slow_reactor = ReactorPort { link: Arc::clone(&slow), bell: Arc::new(Doorbell::new(|| ())) };
            let hubs = inboxes.iter().map(|other| HubPort::new(Arc::clone(&between), other)).collect();
            let driver = Driver::new(
                hub,
                Arc::clone(inbox),
                vec![reactor, slow_reactor],
                hubs,
                Arc::default(),
                Arc::clone(&space),
            );
            nodes.push(Node {
                driver,
                desk: Desk::default(),
                inbox: Arc::clone(inbox),
                link,
                slow,
                woken,
                written: Vec::new(),
            });
        }
        let (counters, sessions, outputs) = (Counters::default(), Vec::new(), String::new());
        Self { engine, topology, clock, space, nodes, counters, sessions, outputs }
    }

    fn address(slot: usize) -> Address {
        let slot = u32::try_from(slot).expect("few");
        Address { reactor: 0, slot, generation: 1, epoch: slot + 1 }
    }

    fn post(&self, hub: HubId, command: Command) {
        self.nodes[hub.index()].link.post_command(command);
    }

    fn log_in(&mut self, user: u64, device: u16) {
        let (session, device) =
            (Self::address(self.sessions.len()), Device { user: UserId(user), device: DeviceId(device) });
        self.sessions.push((device, InboxSeq(0)));
        let (cursor, incarnation) = (InboxSeq(0), Incarnation(0));
        let login = plain_login(session, device, cursor, incarnation);
        self.post(self.topology.hub_of_user(device.user), login);
    }

    fn send(&self, slot: usize, to: u64, number: u64) {
        let device = self.sessions[slot].0;
        let conversation = ConversationId::direct(device.user, UserId(to));
        let send = Send {
            sender: device.user,
            device: device.device,
            client_message_id: ClientMessageId(u128::from(number).to_be_bytes()),
            conversation,
            payload: Bytes::from(number.to_string()),
            copy: true,
        };
        let hub = self.topology.hub_of_conversation(conversation);
        self.post(hub, Command::Send { session: Self::address(slot), send });
    }

    fn close_all(&self) {
        for (slot, (device, _)) in self.sessions.iter().enumerate() {
            for hub in (0..HUBS).map(HubId) {
                self.post(hub, Command::Close { session: Self::address(slot), device: *device });
            }
        }
    }

    /// Turns of one hub until it has nothing to do.
    fn turn(&mut self, at: usize) {
        let Node { driver, desk, .. } = &mut self.nodes[at];
        while driver.turn(&self.clock, desk, &self.counters).expect("the engine does not fail") {}
    }

    /// Every hub has its turns, then its disk and its clients theirs. Whether there was anything.
    fn round(&mut self) -> bool {
        let before = self.outputs.len();
        self.clock.pass(2500);
        for at in 0..self.nodes.len() {
            self.turn(at);
            self.work_at_desk(at);
            self.take_effects(at);
        }
        self.outputs.len() > before
    }

    fn work_at_desk(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if let Some(batch) = node.desk.batch.take() {
            writeln!(self.outputs, "hub {at} writes {:?}", batch.as_bytes()).expect("memory");
            node.written.push(batch.as_bytes().to_vec());
            self.engine.write(&batch).expect("it does not fail");
            node.inbox.post_durable(batch.number());
        }
        let engines = Engines { engines: vec![self.engine.clone()], topology: (*self.topology).clone() };
        for asked in node.desk.reads.drain(..) {
            writeln!(self.outputs, "hub {at} reads {asked:?}").expect("memory");
            node.inbox.post_read(read(&engines, 0, asked).expect("readable"));
        }
    }

    fn take_effects(&mut self, at: usize) {
        let mut acks: BTreeMap<u32, InboxSeq> = BTreeMap::new();
        while let Some(Effect { session, kind }) = self.nodes[at].link.take_effect() {
            writeln!(self.outputs, "hub {at} tells {session:?} {kind:?}").expect("memory");
            let through = match kind {
                EffectKind::Deliver { entry, .. } => entry.inbox_seq,
                EffectKind::DeliverPage { entries, .. } => entries.last().expect("not empty").inbox_seq,
                EffectKind::Skipped { through, .. } => through,
                _ => continue,
            };
            self.sessions[session.slot as usize].1 = through;
            acks.insert(session.slot, through);
        }
        for (slot, through) in acks {
            let (device, session) = (self.sessions[slot as usize].0, Self::address(slot as usize));
            self.post(
                HubId(u16::try_from(at).expect("few")),
                Command::Ack { session, device, through, credit: CREDIT },
            );
        }
    }

    fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..10_000 {
            quiet = if self.round() { 0 } else { quiet + 1 };
            if quiet > 200 {
                return; // half a second: what stands still has been driven again
            }
        }
        panic!("it never comes to rest");
    }
}

/// Everybody sends to many, in a world too small for them, partly cold.
fn script() -> String {
    let bounds = Bounds { parked_of_stream: 4, read_items: 3, mail_a_turn: 2, commands_a_turn: 5, ..Bounds::default() };
    let links = mailbox::Bounds { deliveries: 20, ..mailbox::Bounds::default() };
    let mut machine = Machine::new(bounds, links, 3);
    for device in 1..=DEVICES {
        (0..USERS as u64).for_each(|user| machine.log_in(user, device));
        machine.round();
    }
    machine.settle();
    let mut number = 0;
    for round in 0..6 {
        machine.engine.set_cold(round % 2 == 1);
        for slot in 0..machine.sessions.len() {
            for to in (0..USERS).filter(|to| *to != slot % USERS && (to + slot + round).is_multiple_of(4)) {
                number += 1;
                machine.send(slot, to as u64, number);
            }
        }
        for _ in 0..20 {
            machine.round();
        }
    }
    machine.engine.set_cold(false);
    machine.settle();
    let heads: Vec<InboxSeq> = machine.sessions.iter().map(|(_, sent)| *sent).collect();
    for (slot, sent) in heads.iter().enumerate() {
        assert!(sent.0 > 0 && *sent == heads[slot % USERS], "all devices of a user have all of it");
    }
    machine.close_all();
    machine.settle();
    let began = Hand(Cell::new(BEGAN_US)).now();
    for node in &mut machine.nodes {
        let (hub, nothing) = (node.driver.hub_mut(), MemoryEngine::new());
        let (id, policy, journal) = (hub.id(), hub.shards().policy(), hub.take_journal());
        let topology = Arc::clone(&machine.topology);
        let batches =
            replay(&nothing, topology, id, policy, began.wall_ms, began.mono_ms(), &journal).expect("readable");
        let batches: Vec<Vec<u8>> = batches.iter().map(|batch| batch.as_bytes().to_vec()).collect();
        assert!(batches == node.written, "what was written follows from what was decided");
    }
    for node in &mut machine.nodes {
        assert_eq!(node.driver.hub().holdings(), Holdings::default());
        assert!(!node.driver.is_finished());
        node.inbox.stop();
        assert!(node.driver.is_finished());
        assert_eq!(node.driver.plan_sleep(&machine.clock), None, "it ends instead");
    }
    machine.outputs
}

#[test]
fn the_same_inputs_give_the_same_outputs() {
    let (one, other) = (script(), script());
    for word in ["writes", "reads Outbox", "reads Load", "DeliverPage", "Receipt"] {
        assert!(one.contains(word), "{word} is not tried");
    }
    for (number, (one, other)) in one.lines().zip(other.lines()).enumerate() {
        assert_eq!(one, other, "output {number}");
    }
    assert_eq!(one.len(), other.len());
}

#[test]
fn a_hub_sleeps_only_while_nothing_waits_for_it() {
    let mut machine = Machine::new(Bounds::default(), mailbox::Bounds::default(), 1);
    let woken = |machine: &Machine| machine.nodes[0].woken.load(Ordering::Relaxed);
    let user = (0..).find(|user| machine.topology.hub_of_user(UserId(*user)) == HubId(0)).expect("there is one");
    machine.turn(0);
    // Something is posted before it sleeps: it does not.
    machine.log_in(user, 1);
    assert_eq!(machine.nodes[0].driver.plan_sleep(&machine.clock), None);
    machine.nodes[0].inbox.bell.ring();
    assert_eq!(woken(&machine), 0, "it does not sleep");
    machine.turn(0);
    machine.work_at_desk(0);
    machine.turn(0);
    machine.take_effects(0);
    machine.work_at_desk(0);
    machine.turn(0);
    // It sleeps: who posts something wakes it, once.
    assert!(machine.nodes[0].driver.plan_sleep(&machine.clock).is_some());
    machine.log_in(user, 2);
    assert!(machine.nodes[0].inbox.bell.ring_gently() && !machine.nodes[0].inbox.bell.ring());
    assert_eq!(woken(&machine), 1);
    machine.nodes[0].driver.wake_up();
    // It waits for its disk: then commands wait, and what the disk says does not.
    machine.turn(0);
    assert!(machine.nodes[0].desk.batch.is_some());
    assert!(machine.nodes[0].driver.plan_sleep(&machine.clock).is_some());
    assert!(!machine.nodes[0].inbox.bell.ring_gently());
    machine.work_at_desk(0);
    assert_eq!(woken(&machine), 2);
    assert_eq!(machine.nodes[0].driver.plan_sleep(&machine.clock), None, "its batch is durable");
    // The end wakes it, too.
    machine.settle();
    machine.turn(0);
    let wait = machine.nodes[0].driver.plan_sleep(&machine.clock).expect("nothing waits for it");
    assert!(wait > Duration::ZERO);
    machine.nodes[0].inbox.stop();
    assert_eq!(woken(&machine), 3);
}

/// A user whose notes go to the same hub, the first, as all else of the user.
fn user_of_one_hub(machine: &Machine) -> u64 {
    let notes = |user: u64| ConversationId::direct(UserId(user), UserId(user));
    let is_alone = |user: &u64| {
        machine.topology.hub_of_user(UserId(*user)) == HubId(0)
            && machine.topology.hub_of_conversation(notes(*user)) == HubId(0)
    };
    (0..).find(is_alone).expect("there is one")
}

/// A page found no room in the queue of a slow reactor while the next was being read, which did not join on then.
#[test]
fn who_finds_no_room_is_read_for_again_only_when_there_is_some() {
    let mut machine = Machine::new(Bounds::default(), mailbox::Bounds { deliveries: 2, ..Default::default() }, 1);
    let user = user_of_one_hub(&machine);
    machine.log_in(user, 1);
    machine.log_in(user, 2);
    machine.settle();
    machine.send(0, user, 1);
    machine.settle();
    // The reactor takes nothing: answers to what was sent before fill the queue.
    let work = |machine: &mut Machine| {
        for _ in 0..50 {
            machine.clock.pass(2500);
            machine.turn(0);
            machine.work_at_desk(0);
        }
    };
    let fill = |machine: &mut Machine| (0..2).for_each(|_| machine.send(0, user, 1));
    fill(&mut machine);
    work(&mut machine);
    machine.send(0, user, 2);
    work(&mut machine);
    assert!(machine.nodes[0].driver.hub().is_hungry());
    // It takes all, and the hub begins to read; then it takes nothing again.
    machine.take_effects(0);
    machine.turn(0);
    assert!(matches!(machine.nodes[0].desk.reads.front(), Some(Read::Inbox { .. })));
    fill(&mut machine);
    machine.turn(0);
    machine.outputs.clear();
    work(&mut machine);
    assert!(machine.nodes[0].driver.hub().is_hungry());
    let pages = machine.outputs.matches("reads Inbox").count();
    assert!(pages <= 3, "{pages} pages were read for nobody");
    machine.settle();
    assert_eq!(machine.sessions[1].1, InboxSeq(2), "it has all when there is room again");
}

/// The reactor of one of the user's devices takes nothing; that of the others only takes its time.
#[test]
fn a_slow_reactor_holds_nobody_elses_deliveries_up() {
    let mut machine = Machine::new(Bounds::default(), mailbox::Bounds { deliveries: 2, ..Default::default() }, 1);
    let user = user_of_one_hub(&machine);
    machine.log_in(user, 1);
    machine.log_in(user, 2);
    machine.settle();
    let session = Address { reactor: 1, ..Machine::address(2) };
    let device = Device { user: UserId(user), device: DeviceId(3) };
    let (cursor, incarnation) = (InboxSeq(0), Incarnation(0));
    let login = plain_login(session, device, cursor, incarnation);
    machine.post(HubId(0), login);
    machine.settle();
    for number in 1..=3 {
        machine.send(0, user, number);
        machine.settle();
    }
    let node = &machine.nodes[0];
    assert!(!node.slow.has_room_for_deliveries() && node.driver.hub().is_hungry(), "who is slow has missed some");
    // The others had no room either for a while: answers to what was sent before fill their queue.
    (1..=2).for_each(|number| machine.send(0, user, number));
    machine.send(0, user, 4);
    machine.turn(0);
    machine.work_at_desk(0);
    machine.turn(0);
    machine.settle();
    assert_eq!(machine.sessions[1].1, InboxSeq(4), "it has all when there is room again");
}

/// The hub's driver looks at the disks' room once a turn.
#[test]
fn room_on_the_disks_counts_from_the_next_turn_on() {
    let mut machine = Machine::new(Bounds::default(), mailbox::Bounds::default(), 1);
    let user = user_of_one_hub(&machine);
    machine.log_in(user, 1);
    machine.settle();
    for (is_low, told) in [(true, "Rejected"), (false, "Accepted"), (true, "Rejected")] {
        machine.outputs.clear();
        machine.space.set_low(is_low);
        machine.send(0, user, 1 + machine.counters.messages_accepted.get());
        machine.settle();
        assert!(machine.outputs.contains(told), "{}", machine.outputs);
    }
}
