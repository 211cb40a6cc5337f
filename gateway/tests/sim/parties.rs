//! Devices among the rest: who there is, how they connect, and what they do when it is their turn.

use std::net::IpAddr;

use culver::auth::{Identity, TicketContents};
use culver::clock::Clock;
use culver_protocol::client::SavedTicket;
use culver_protocol::crypto::{Secret, fingerprint};
use culver_protocol::id::{DeviceId, UserId};

use crate::device::{Device, DeviceKey, Nature, Secrecy, Store, Want, key_pair};
use crate::net::{Buffers, ClientEnd, Listener, Wire};
use crate::plan::{Fault, Shape};
use crate::server::{authenticator, root_public, token};
use crate::source::Source;
use crate::world::{Party, World};

/// A user that never logs in.
const NOBODY: UserId = UserId(999);
/// How long it takes to make a token.
const TOKEN_MS: u64 = 1000;
/// Most fetching processes at once.
const FETCHERS_MAX: usize = 6;
/// Longer than any world.
const PLAINTEXT_TOKEN_LIFE_S: u64 = 10 * 365 * 86_400;

impl World {
    pub(crate) fn make_parties(&mut self) {
        let sends = self.plan.sends / self.plan.devices.iter().map(|devices| u32::from(*devices)).sum::<u32>();
        let habit = |source: &mut Source| source.pick(&[0, 0, 30, 150, 500]);
        let nature = Nature {
            sends: sends.max(3),
            late: habit(&mut self.source),
            late_receipts: habit(&mut self.source),
            killed: 0,
            asks: self.source.pick(&[30, 0, 150]),
            toggles: self.source.pick(&[0, 0, 30]),
            strays: self.source.pick(&[0, 0, 20]),
            removes: if self.plan.removes() { self.source.pick(&[0, 0, 6, 25]) } else { 0 },
            names: self.source.pick(&[0, 0, 20]),
            family: 0,
            random_ids: self.source.chance(200),
            forgets_sends: self.source.chance(100),
            repeats: self.source.chance(200),
            payload_max: u32::try_from(self.plan.payload_max).expect("a message is short"),
            credit_entries: self.plan.credit_entries,
            keep_alive_s: self.plan.keep_alive_s,
            adapts: self.plan.adapts,
        };
        let killed = if self.plan.kinds.contains(&Fault::AppKilled) { self.source.pick(&[20, 5, 60]) } else { 0 };
        for (user, devices) in (1..).zip(self.plan.devices.clone()) {
            for device in 1..=devices {
                let key = DeviceKey { user: UserId(user), device: DeviceId(device) };
                // Some devices of a world are well-behaved.
                let nature = Nature { family: devices, ..nature };
                let its =
                    if self.source.chance(700) { Nature { killed, ..nature } } else { Nature { late: 0, ..nature } };
                let store = self.new_store(key);
                let seed = u64::from(self.source.below(u32::MAX));
                let device = Device::new(key, its, seed, store, &mut self.oracle);
                let peers = self.peers_of(user);
                // Some come late, and are linked late.
                let late_us = if self.source.chance(200) { self.source.below(2_000_000).into() } else { 0 };
                self.add_party(device, peers, late_us);
            }
        }
    }

    fn add_party(&mut self, device: Device, peers: Vec<UserId>, late_us: u64) {
        let now_us = self.now_us();
        let source = self.any_source();
        self.parties.push(Party {
            device,
            wire: None,
            peers,
            connect_at_us: None,
            may_write: false,
            stalled_until_us: now_us + late_us,
            act_at_us: now_us + late_us + u64::from(self.source.below(self.plan.think_us + 1)),
            due_us: u64::MAX,
            source,
            network: 0,
            losses: 0,
        });
        let at = self.parties.len() - 1;
        self.after_client(at);
    }

    /// One of few addresses.
    pub(crate) fn any_source(&mut self) -> IpAddr {
        let host = self.source.index(self.plan.sources);
        IpAddr::from([192, 0, 2, u8::try_from(host).expect("few")])
    }

    /// Where a client comes to: a listener of the process that runs, or of the next where somebody keeps them.
    pub(crate) fn any_listener(&mut self) -> Option<Listener> {
        let count = match &self.life {
            Some(life) => life.reactors.len(),
            None if self.plan.inherits => self.listeners.len(),
            None => return None,
        };
        Some(self.listeners[self.source.index(count)].clone())
    }

    /// A second process of a device, which fetches what waits.
    pub(crate) fn add_fetcher(&mut self, of: usize) {
        if self.parties.iter().filter(|party| party.device.is_fetch()).count() >= FETCHERS_MAX {
            return;
        }
        let seed = u64::from(self.source.below(u32::MAX));
        let device = self.parties[of].device.fetching(seed, &mut self.oracle);
        let name = device.name();
        self.trace.event(|| format!("{name} begins"));
        self.add_party(device, Vec::new(), 0);
    }

    fn peers_of(&mut self, user: u64) -> Vec<UserId> {
        let users = self.plan.users;
        let mut peers: Vec<UserId> = match self.plan.shape {
            Shape::Any => (1..=users).map(UserId).collect(),
            Shape::Hot => vec![UserId(if user == 1 { 2 } else { 1 })],
            Shape::Ring => vec![UserId(user % users + 1), UserId((user + users - 2) % users + 1)],
            Shape::Star if user == 1 => (2..=users).map(UserId).collect(),
            Shape::Star => vec![UserId(1)],
        };
        // Nobody empties that inbox.
        if self.plan.quota_entries >= 1000 && self.source.chance(50) {
            peers.push(NOBODY);
        }
        peers
    }

    /// What a device has that never ran.
    fn new_store(&self, key: DeviceKey) -> Store {
        let Some(how) = self.plan.encryption else {
            return Store::with_token(None, self.token(key, None));
        };
        let (suite, forward_secret, root) = (how.suite, how.forward_secret, root_public());
        let secrecy = Secrecy { suite, forward_secret, own: key_pair(key, 0), root, era: 0 };
        let token = self.token(key, Some(&secrecy));
        Store::with_token(Some(secrecy), token)
    }

    /// A token made now. A second passes on the wall before: tokens say when they were made to the second, and those made
    /// in the second of a removal are void.
    fn issue_token(&mut self, key: DeviceKey, secrecy: Option<&Secrecy>) -> String {
        let base = &self.clocks.wall_base_ms;
        base.set(base.get() + TOKEN_MS);
        self.oracle.token_issued(key);
        self.token(key, secrecy)
    }

    /// A token as whoever asks for one gets it.
    pub(crate) fn token(&self, key: DeviceKey, secrecy: Option<&Secrecy>) -> String {
        let identity = Identity { user: key.user, device: key.device };
        let life_s = self.plan.encryption.map_or(PLAINTEXT_TOKEN_LIFE_S, |how| how.token_life_s);
        token(identity, secrecy.map(|secrecy| secrecy.own.public()), self.clocks.now().wall_ms, life_s)
    }

    /// A ticket of a device as somebody has it who cannot know its secret.
    pub(crate) fn stolen_ticket(&self, key: DeviceKey, secrecy: &Secrecy) -> SavedTicket {
        let identity = Identity { user: key.user, device: key.device };
        let contents = TicketContents::encrypted(identity, fingerprint(secrecy.own.public()), Secret::new([1; 32]));
        let ticket = authenticator(self.generation).issue_ticket(&contents, self.clocks.now().wall_ms);
        SavedTicket { bytes: ticket.bytes, secret: Some(Secret::new([2; 32])) }
    }

    /// After anything was done with a party's client: what it wants, and when.
    pub(crate) fn after_client(&mut self, at: usize) {
        let now_us = self.now_us();
        loop {
            let want = self.parties[at].device.next_want(&mut self.oracle, now_us);
            for note in self.oracle.notes() {
                self.trace.event(|| note);
            }
            let Some(want) = want else { break };
            self.serve_want(at, want);
        }
        let party = &mut self.parties[at];
        party.may_write = party.wire.is_some();
        party.due_us = party.device.due_us();
    }

    pub(crate) fn serve_want(&mut self, at: usize, want: Want) {
        let now_us = self.now_us();
        let key = self.parties[at].device.key();
        self.trace.step(|| format!("{} wants {want:?}", self.parties[at].device.name()));
        match want {
            Want::Connect => {
                let late_us = if self.source.chance(500) { self.source.below(5_000).into() } else { 0 };
                self.parties[at].connect_at_us = Some(now_us + late_us);
            }
            Want::Disconnect => {
                if let Some(wire) = self.parties[at].wire.take() {
                    let rudely = self.source.chance(200);
                    wire.client_close(rudely);
                }
                self.parties[at].device.disconnected(&mut self.oracle, now_us);
            }
            Want::Abandon => {
                self.parties[at].connect_at_us = None;
                if let Some(wire) = self.parties[at].wire.take() {
                    let rudely = self.source.chance(300);
                    wire.client_close(rudely);
                    if !self.is_calm && self.source.chance(200) {
                        wire.go_dark();
                    }
                }
            }
            Want::Credential => {
                let token = self.issue_token(key, self.parties[at].device.secrecy().as_ref());
                self.parties[at].device.set_token(token);
            }
        }
    }

    /// The connection that a party asked for is there, or refused.
    pub(crate) fn connect(&mut self, at: usize) {
        let now_us = self.now_us();
        self.parties[at].connect_at_us = None;
        self.choose_network(at);
        let (sent, arrived) = self.plan.buffers_max;
        let size = |source: &mut Source, most: usize| {
            if source.chance(200) { source.number(1, most as u64) } else { most }
        };
        let buffers = Buffers {
            to_server: (size(&mut self.source, sent), size(&mut self.source, arrived)),
            to_client: (size(&mut self.source, sent), size(&mut self.source, arrived)),
        };
        let (wire, socket) = Wire::new(buffers);
        if self.is_calm {
            wire.grow();
        }
        self.come_from_network(at, &wire);
        let socket = (socket, self.parties[at].source);
        let is_there = self.any_listener().is_some_and(|listener| listener.connect(wire.clone(), socket, now_us));
        assert!(is_there || !self.plan.inherits, "nobody is refused while somebody keeps the listeners");
        self.trace.event(|| {
            let how = if is_there { "is connected" } else { "finds nobody who listens" };
            format!("{} {how}", self.parties[at].device.name())
        });
        if is_there {
            let is_alone = self.is_alone(at);
            self.listen_in(at, &wire);
            self.wires.push(wire.clone());
            self.connected += 1;
            self.parties[at].wire = Some(wire);
            self.parties[at].device.connected(&mut self.oracle, now_us, self.generation, is_alone);
        } else {
            self.parties[at].device.disconnected(&mut self.oracle, now_us);
        }
        self.after_client(at);
    }

    pub(crate) fn can_party_move(&self, at: usize) -> bool {
        let (now_us, party) = (self.now_us(), &self.parties[at]);
        if party.due_us <= now_us || party.connect_at_us.is_some_and(|at_us| at_us <= now_us) {
            return true;
        }
        if party.act_at_us <= now_us && !self.is_closing {
            return true;
        }
        let Some(wire) = &party.wire else { return false };
        party.stalled_until_us <= now_us
            && (wire.client_readable() > 0
                || wire.client_end() != ClientEnd::Open
                || (party.may_write && wire.client_room() > 0))
    }

    /// A device does one of the things that it can do.
    pub(crate) fn move_party(&mut self, at: usize) {
        let now_us = self.now_us();
        let party = &mut self.parties[at];
        let name = party.device.name();
        if party.connect_at_us.is_some_and(|at_us| at_us <= now_us) {
            self.events += 1;
            return self.connect(at);
        }
        if party.due_us <= now_us {
            self.trace.step(|| format!("{name} is told the time"));
            self.events += 1;
            let own_us = party.device.own_us(now_us);
            party.device.client.handle_timeout(own_us);
            return self.after_client(at);
        }
        let acts = party.act_at_us <= now_us && !self.is_closing;
        let talks = party.stalled_until_us <= now_us && party.wire.is_some();
        if acts && !(talks && self.source.below(2) == 1) {
            return self.act_party(at);
        }
        let is_gone = talks && self.talk(at);
        if !is_gone && acts {
            self.act_party(at);
        }
    }

    /// Bytes between a client and its wire. Whether there were any.
    fn talk(&mut self, at: usize) -> bool {
        let now_us = self.now_us();
        let at_most = if self.plan.pieces > 0 && !self.is_calm && self.source.chance(self.plan.pieces) {
            1 + self.source.below(self.plan.piece_max) as usize
        } else {
            usize::MAX
        };
        let party = &mut self.parties[at];
        let name = party.device.name();
        let wire = party.wire.clone().expect("the caller looked");
        let readable = wire.client_readable();
        let room = if party.may_write { wire.client_room() } else { 0 };
        if readable > 0 && (room == 0 || self.source.below(2) == 0) {
            let (device, is_attacked) = (&mut party.device, wire.is_attacked());
            let len = wire.client_read(at_most, |bytes| {
                device.read(bytes, now_us, is_attacked);
                bytes.len()
            });
            self.events += 1;
            self.trace.step(|| format!("{name} reads {len} of {readable} bytes"));
            if self.is_calm {
                party.act_at_us = party.act_at_us.min(now_us + 500);
            }
            self.after_client(at);
        } else if room > 0 {
            let bytes = party.device.client.transmit();
            let (left, len) = (bytes.len(), bytes.len().min(at_most));
            let taken = wire.client_write(&bytes[..len]);
            party.device.client.transmitted(taken);
            self.trace.step(|| format!("{name} writes {taken} of {left} bytes"));
            if left == 0 {
                party.may_write = false;
            } else {
                self.after_client(at);
            }
        } else if readable == 0 && wire.client_end() != ClientEnd::Open {
            self.trace.event(|| format!("{name} finds its connection over"));
            assert!(
                !(self.plan.inherits && wire.is_refused()),
                "who waits for a listener that somebody keeps gets in: {name} was cut off instead"
            );
            wire.client_close(false);
            party.wire = None;
            party.device.disconnected(&mut self.oracle, now_us);
            self.after_client(at);
        } else {
            return false;
        }
        true
    }

    fn act_party(&mut self, at: usize) {
        let now_us = self.now_us();
        let name = self.parties[at].device.name();
        self.events += 1;
        self.trace.step(|| format!("{name} acts"));
        let want = if self.is_calm {
            self.parties[at].act_at_us = now_us + 200_000;
            self.parties[at].device.act_calmly(&mut self.oracle, now_us)
        } else {
            let think_us = u64::from(self.source.below(self.plan.think_us + 1));
            let party = &mut self.parties[at];
            party.act_at_us = now_us + 1 + think_us;
            party.device.act(&mut self.source, &mut self.oracle, now_us, &party.peers)
        };
        if let Some(want) = want {
            self.serve_want(at, want);
        }
        self.after_client(at);
        if let Some(former) = self.parties[at].device.take_former() {
            self.find_former(former);
        }
        if self.parties[at].device.is_over() {
            self.drop_party(at);
        } else if !self.is_calm && !self.parties[at].device.is_fetch() && self.source.chance(self.plan.fetchers / 10) {
            self.add_fetcher(at);
        }
    }

    /// A process is dead.
    fn drop_party(&mut self, at: usize) {
        if let Some(wire) = self.parties[at].wire.take() {
            let rudely = self.source.chance(300);
            wire.client_close(rudely);
        }
        self.parties.swap_remove(at);
    }
}
