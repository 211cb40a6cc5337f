//! Who sends what to whom, and when devices read it. Everything follows from the seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use bytes::Bytes;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, UserId};
use culver_storage::command::{Acked, Send};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::Options;
use crate::world::{BEGIN_MS, World, end_ms};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
/// Everybody talks to so many neighbours on either side.
const NEIGHBOURS: u64 = 5;

/// Something that will happen, at a time; what comes first in the list of two at the same time does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Somebody sends a message.
    Send,
    /// A device persists what waits for it, and acknowledges it.
    Read(usize),
    /// The user of a device looks at what it has.
    Look(usize),
    /// A device comes online.
    Arrive(usize),
    /// A device goes offline.
    Leave(usize),
}

struct Device {
    user: UserId,
    device: DeviceId,
    /// It comes for hours and goes for days.
    is_rover: bool,
    is_online: bool,
    /// It will read: no second plan is made.
    will_read: bool,
    cursor: InboxSeq,
    /// By conversation, what it has persisted and nobody has looked at.
    unseen: BTreeMap<ConversationId, ConversationSeq>,
}

pub(crate) struct Traffic {
    random: SmallRng,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    devices: Vec<Device>,
    /// By user, from 0: the places of its devices in `devices`.
    of_user: Vec<std::ops::Range<usize>>,
    payload_len: usize,
    messages_left: u64,
    pause_ms_max: u64,
    end_ms: u64,
}

impl Traffic {
    pub(crate) fn new(options: &Options, world: &mut World) -> Self {
        let mut traffic = Self {
            random: SmallRng::seed_from_u64(options.seed),
            events: BinaryHeap::new(),
            devices: Vec::new(),
            of_user: Vec::new(),
            payload_len: options.payload_len,
            messages_left: options.messages,
            pause_ms_max: (2 * (end_ms(options.days) - BEGIN_MS) / options.messages).max(1),
            end_ms: end_ms(options.days),
        };
        for user in 0..options.users {
            let first = traffic.devices.len();
            for number in 1..=traffic.random.random_range(1..=3u16) {
                // Who has a second device leaves that behind more often than the first.
                let is_rover = traffic.random.random_bool(if number == 1 { 0.08 } else { 0.15 });
                traffic.add(Device {
                    user: UserId(user + 1),
                    device: DeviceId(number),
                    is_rover,
                    is_online: true,
                    will_read: false,
                    cursor: InboxSeq(0),
                    unseen: BTreeMap::new(),
                });
            }
            traffic.of_user.push(first..traffic.devices.len());
        }
        for device in &traffic.devices {
            world.login(device.user, device.device);
        }
        traffic.events.push(Reverse((BEGIN_MS, Event::Send)));
        traffic
    }

    fn add(&mut self, device: Device) {
        let index = self.devices.len();
        if device.is_rover {
            self.plan(BEGIN_MS, HOUR_MS..48 * HOUR_MS, Event::Leave(index));
        }
        self.devices.push(device);
    }

    /// Runs until the days are over. What was sent last is not waited for.
    pub(crate) fn run(&mut self, world: &mut World) {
        while let Some(Reverse((at_ms, event))) = self.events.pop() {
            if at_ms >= self.end_ms {
                return;
            }
            world.advance(at_ms);
            match event {
                Event::Send => self.send(at_ms, world),
                Event::Read(index) => self.read(at_ms, index, world),
                Event::Look(index) => self.look(index, world),
                Event::Arrive(index) => self.arrive(at_ms, index, world),
                Event::Leave(index) => {
                    self.device(index).is_online = false;
                    self.plan(at_ms, 6 * HOUR_MS..96 * HOUR_MS, Event::Arrive(index));
                }
            }
            for user in world.take_woken() {
                self.wake(at_ms, user);
            }
        }
    }

    /// Entries that some device of their user has not persisted.
    pub(crate) fn waiting(&self, world: &World) -> u64 {
        let of = |devices: &std::ops::Range<usize>| {
            let devices = self.devices.get(devices.clone()).expect("users have devices that are there");
            let least = devices.iter().map(|device| device.cursor.0).min().unwrap_or(0);
            devices.first().map_or(0, |device| world.head(device.user).0 - least)
        };
        self.of_user.iter().map(of).sum()
    }

    fn plan(&mut self, now_ms: u64, within_ms: std::ops::Range<u64>, event: Event) {
        let at_ms = now_ms + self.random.random_range(within_ms);
        self.events.push(Reverse((at_ms, event)));
    }

    fn device(&mut self, index: usize) -> &mut Device {
        self.devices.get_mut(index).expect("events name devices that are there")
    }

    fn of(&self, user: UserId) -> std::ops::Range<usize> {
        let index = usize::try_from(user.0 - 1).expect("there are few users");
        self.of_user.get(index).expect("messages go to users that are there").clone()
    }

    /// Every device that is online reads, a little later.
    fn wake(&mut self, now_ms: u64, user: UserId) {
        for index in self.of(user) {
            self.plan_read(now_ms, index);
        }
    }

    fn plan_read(&mut self, now_ms: u64, index: usize) {
        let device = self.device(index);
        if device.is_online && !std::mem::replace(&mut device.will_read, true) {
            self.plan(now_ms, 1000..5 * MINUTE_MS, Event::Read(index));
        }
    }

    fn send(&mut self, at_ms: u64, world: &mut World) {
        let pause_ms = self.pause_ms_max;
        self.plan(at_ms, 0..pause_ms, Event::Send);
        let sender = self.random.random_range(0..self.devices.len());
        let (user, device, is_online) = {
            let device = self.device(sender);
            (device.user, device.device, device.is_online)
        };
        if !is_online || self.messages_left == 0 {
            return;
        }
        self.messages_left -= 1;
        let users = self.of_user.len() as u64;
        let step = self.random.random_range(1..=NEIGHBOURS);
        let step = if self.random.random_bool(0.5) { step } else { users - step };
        let recipient = UserId((user.0 - 1 + step) % users + 1);
        let mut payload = vec![0; self.payload_len];
        self.random.fill_bytes(&mut payload);
        let mut id = [0; 16];
        self.random.fill_bytes(&mut id);
        // As clients make them: by time first, so that they ascend.
        id.iter_mut().zip(at_ms.to_be_bytes()).for_each(|(byte, of_time)| *byte = of_time);
        world.send(&Send {
            sender: user,
            device,
            client_message_id: ClientMessageId(id),
            conversation: ConversationId::direct(user, recipient),
            payload: Bytes::from(payload),
            copy: self.of(user).len() > 1,
        });
    }

    fn read(&mut self, at_ms: u64, index: usize, world: &mut World) {
        let (user, device, is_online) = {
            let device = self.device(index);
            device.will_read = false;
            (device.user, device.device, device.is_online)
        };
        if !is_online {
            return;
        }
        loop {
            let greatest = self.of(user).map(|index| self.device(index).cursor).max().unwrap_or_default();
            let own = self.device(index);
            let page = world.page(user, device, own.cursor);
            if page.through <= own.cursor {
                break;
            }
            own.cursor = page.through;
            // The first device of a user delivers.
            let mut acked = BTreeMap::new();
            for entry in page.entries.iter().filter(|entry| entry.sender != user) {
                own.unseen.insert(entry.conversation, entry.conversation_seq);
                if entry.inbox_seq > greatest {
                    acked.insert(entry.conversation, entry.conversation_seq);
                }
            }
            let acked: Vec<_> = acked.into_iter().map(|(conversation, seq)| Acked { conversation, seq }).collect();
            world.ack(user, device, page.through, &acked);
        }
        if !self.device(index).unseen.is_empty() && self.random.random_bool(0.5) {
            self.plan(at_ms, 1000..10 * MINUTE_MS, Event::Look(index));
        }
        // What was not durable yet, a little later.
        if self.device(index).cursor < world.head(user) {
            self.plan_read(at_ms, index);
        }
    }

    fn look(&mut self, index: usize, world: &mut World) {
        let user = self.device(index).user;
        for (conversation, seq) in std::mem::take(&mut self.device(index).unseen) {
            world.mark_read(user, conversation, seq);
        }
    }

    fn arrive(&mut self, at_ms: u64, index: usize, world: &mut World) {
        let device = self.device(index);
        device.is_online = true;
        let (user, device) = (device.user, device.device);
        world.login(user, device);
        self.plan(at_ms, HOUR_MS..8 * HOUR_MS, Event::Leave(index));
        self.plan_read(at_ms, index);
    }
}
