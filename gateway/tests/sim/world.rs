//! The world: devices, wires, disks and clocks, which outlive the lives of the server; and how lives begin and end.
//!
//! Owns everything of one run. What happens next is `steps.rs`'s to decide, what goes wrong is `faults.rs`'s, and how it
//! all ends is `calm.rs`'s.

use std::sync::Arc;

use culver::auth::Identity;
use culver::clock::Clock;
use culver_protocol::id::{DeviceId, UserId};
use culver_storage::engine::Engine;
use culver_storage::memory::{Loss, MemoryEngine};
use culver_storage::reader::Engines;
use culver_storage::verify::verify_engines;

use crate::device::{Device, DeviceKey, Nature, Want};
use crate::net::{Buffers, MOVED, Wire};
use crate::oracle::{Oracle, Terms};
use crate::plan::{Fault, Plan, Shape};
use crate::server::{Clocks, Life, Start, authenticator, topology};
use crate::source::Source;
use crate::trace::Trace;

/// When every world begins.
const BEGIN_MS: u64 = 1_800_000_000_000;
/// A user that never logs in.
const NOBODY: UserId = UserId(999);
/// Most fetching processes at once.
const FETCHERS_MAX: usize = 6;

/// A process of a device, and its connection.
pub(crate) struct Party {
    pub device: Device,
    pub wire: Option<Wire>,
    /// It writes to these.
    pub peers: Vec<UserId>,
    /// When the connection that it asked for is there, or refused.
    pub connect_at_us: Option<u64>,
    /// The client may have bytes to be written.
    pub may_write: bool,
    /// It reads and writes nothing until then.
    pub stalled_until_us: u64,
    /// Its application's next act.
    pub act_at_us: u64,
    /// When its client wants to be told the time.
    pub due_us: u64,
}

/// A record of a volume's log, as it was written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub end: usize,
    pub last: u64,
    /// What its batches knew to be synced.
    pub synced_through: u64,
}

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The process was killed, or ended itself.
    Killed,
    /// So was the machine: of what was not synced only a part is there.
    PowerLoss,
    /// It had been asked to.
    Left,
}

/// See the module.
pub(crate) struct World {
    pub source: Source,
    pub plan: Plan,
    pub oracle: Oracle,
    pub trace: Trace,
    /// Inputs to a session, hub, client or engine, and faults.
    pub events: u64,
    pub steps: u64,
    pub lives: u32,
    pub(crate) clocks: Clocks,
    pub(crate) engines: Vec<Arc<MemoryEngine>>,
    /// By volume, as they lie in its log.
    pub(crate) written: Vec<Vec<Written>>,
    pub(crate) life: Option<Life>,
    pub(crate) restart_at_us: u64,
    /// There was a process before.
    pub(crate) has_crashed: bool,
    pub(crate) generation: u32,
    pub(crate) wires: Vec<Wire>,
    pub(crate) parties: Vec<Party>,
    /// Who moved last.
    pub(crate) turn: usize,
    /// Faults are over.
    pub(crate) is_calm: bool,
    /// The applications have nothing more to do.
    pub(crate) is_closing: bool,
}

impl World {
    /// A world as the choices want it, before its first step.
    pub(crate) fn new(mut source: Source, trace: Trace) -> Self {
        let plan = Plan::new(&mut source);
        let terms = Terms {
            expires_after_us: (plan.retention_ms < 86_400_000).then_some(plan.retention_ms * 1000),
            may_unlink: plan.unlink_days < 90,
            receipts: plan.receipts,
        };
        let mut world = Self {
            source,
            oracle: Oracle::new(terms),
            trace,
            events: 0,
            steps: 0,
            lives: 0,
            clocks: Clocks::default(),
            engines: (0..plan.volumes).map(|_| Arc::new(MemoryEngine::new())).collect(),
            written: vec![Vec::new(); plan.volumes.into()],
            life: None,
            restart_at_us: 0,
            has_crashed: false,
            generation: 1,
            wires: Vec::new(),
            parties: Vec::new(),
            turn: 0,
            is_calm: false,
            is_closing: false,
            plan,
        };
        if world.trace.is_on() {
            world.oracle.take_notes();
        }
        MOVED.set(0);
        world.clocks.wall_base_ms.set(BEGIN_MS);
        world.clocks.mono_us.set(1_000_000);
        world.trace.title(|| format!("{:?}", world.plan));
        world.make_parties();
        world
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.clocks.mono_us.get()
    }

    pub(crate) fn set_time(&mut self, now_us: u64) {
        self.clocks.mono_us.set(now_us);
        self.trace.now_us = now_us;
    }

    // ---- devices ----

    fn make_parties(&mut self) {
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
            random_ids: self.source.chance(200),
            forgets_sends: self.source.chance(100),
            repeats: self.source.chance(200),
            payload_max: u32::try_from(self.plan.payload_max).expect("a message is short"),
            credit_entries: self.plan.credit_entries,
            keep_alive_s: self.plan.keep_alive_s,
        };
        let killed = if self.plan.kinds.contains(&Fault::AppKilled) { self.source.pick(&[20, 5, 60]) } else { 0 };
        for (user, devices) in (1..).zip(self.plan.devices.clone()) {
            for device in 1..=devices {
                let key = DeviceKey { user: UserId(user), device: DeviceId(device) };
                // Some devices of a world are well-behaved.
                let its =
                    if self.source.chance(700) { Nature { killed, ..nature } } else { Nature { late: 0, ..nature } };
                let ticket = self.issue_ticket(key);
                let seed = u64::from(self.source.below(u32::MAX));
                let device = Device::new(key, its, seed, ticket, self.generation, &mut self.oracle);
                let peers = self.peers_of(user);
                // Some come late, and are linked late.
                let late_us = if self.source.chance(200) { self.source.below(2_000_000).into() } else { 0 };
                self.add_party(device, peers, late_us);
            }
        }
    }

    fn add_party(&mut self, device: Device, peers: Vec<UserId>, late_us: u64) {
        let now_us = self.now_us();
        self.parties.push(Party {
            device,
            wire: None,
            peers,
            connect_at_us: None,
            may_write: false,
            stalled_until_us: now_us + late_us,
            act_at_us: now_us + late_us + u64::from(self.source.below(self.plan.think_us + 1)),
            due_us: u64::MAX,
        });
        let at = self.parties.len() - 1;
        self.after_client(at);
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

    pub(crate) fn issue_ticket(&self, key: DeviceKey) -> bytes::Bytes {
        let identity = Identity { user: key.user, device: key.device };
        authenticator(self.generation).issue_ticket(identity, self.clocks.now().wall_ms).bytes
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
        party.due_us = party.device.client.poll_timeout().unwrap_or(u64::MAX);
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
            Want::Ticket => {
                let (ticket, generation) = (self.issue_ticket(key), self.generation);
                self.parties[at].device.set_ticket(ticket, generation);
            }
        }
    }

    /// The connection that a party asked for is there, or refused.
    pub(crate) fn connect(&mut self, at: usize) {
        let now_us = self.now_us();
        self.parties[at].connect_at_us = None;
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
        let is_there = self.life.as_mut().is_some_and(|life| {
            let reactor = self.source.index(life.reactors.len());
            life.connect(reactor, wire.clone(), socket)
        });
        self.trace.event(|| {
            let how = if is_there { "is connected" } else { "finds nobody who listens" };
            format!("{} {how}", self.parties[at].device.name())
        });
        if is_there {
            self.wires.push(wire.clone());
            self.parties[at].wire = Some(wire);
            self.parties[at].device.connected(&mut self.oracle, now_us, self.generation);
        } else {
            self.parties[at].device.disconnected(&mut self.oracle, now_us);
        }
        self.after_client(at);
    }

    // ---- lives ----

    /// Opens the volumes, recovers the hubs, and begins a life; unless it ends on the way.
    pub(crate) fn start(&mut self) {
        let may_die = !self.is_calm && self.plan.kinds.contains(&Fault::Kill);
        for volume in 0..self.engines.len() {
            if may_die && self.source.chance(50) {
                self.trace.event(|| "the process is killed while it opens its volumes".to_owned());
                self.die(End::Killed);
                return;
            }
            self.open(volume);
        }
        if self.generation < 8 && self.plan.generations && self.lives > 0 && self.source.chance(500) {
            self.generation += 1;
        }
        let start = Start {
            hubs: self.plan.hubs_max - self.source.number::<u16>(0, u64::from(self.plan.hubs_max - self.plan.volumes)),
            reactors: self.source.number(1, self.plan.reactors_max.into()),
            generation: self.generation,
            keeps_journal: self.source.chance(self.plan.journals),
        };
        self.trace.event(|| {
            let Start { hubs, reactors, generation, .. } = start;
            format!("a life begins: hubs {hubs}, reactors {reactors}, tickets of generation {generation}")
        });
        if self.lives > 0 && self.source.chance(self.plan.verified) {
            self.verify("after a restart");
        }
        let source = &mut self.source;
        let survives = |_: &mut culver::hub::Hub| !(may_die && source.chance(50));
        self.life = Life::new(&self.plan, start, &self.engines, &self.clocks, survives);
        self.lives += 1;
        if self.life.is_none() {
            self.trace.event(|| "the process is killed while it recovers".to_owned());
            self.die(End::Killed);
        }
    }

    pub(crate) fn open(&mut self, volume: usize) {
        let engine = &self.engines[volume];
        if self.has_crashed {
            let cuts = engine.reopen().unwrap_or_else(|error| {
                panic!("a volume is refused only where what had been synced is damaged: volume {volume}: {error}")
            });
            self.events += 1;
            match &cuts.reason {
                None => self.trace.step(|| format!("volume {volume} is open, and nothing is cut off its log")),
                Some(reason) => self
                    .trace
                    .event(|| format!("volume {volume} is open, and {} bytes are cut off its log: {reason}", cuts.len)),
            }
            let len = engine.log_len();
            self.written[volume].retain(|written| written.end <= len);
        }
        let cold = if self.is_calm { 0 } else { self.plan.cold };
        engine.set_cold_share(u64::from(self.lives), cold);
    }

    /// A life ends, with what was on its way.
    pub(crate) fn die(&mut self, end: End) {
        self.trace.event(|| format!("a life ends: {end:?}"));
        let rudely = self.source.chance(500);
        for wire in &self.wires {
            match end {
                End::Killed | End::Left => wire.server_died(rudely),
                End::PowerLoss => wire.server_vanished(),
            }
        }
        if let Some(mut life) = self.life.take() {
            life.check_journals(&self.plan);
        }
        self.has_crashed = true;
        for volume in 0..self.engines.len() {
            let engine = Arc::clone(&self.engines[volume]);
            let unsynced = engine.unsynced_len();
            let loss = match end {
                End::Killed => Loss::NOTHING,
                End::Left => {
                    assert_eq!(unsynced, 0, "who leaves in order leaves nothing unsynced");
                    Loss::NOTHING
                }
                End::PowerLoss => self.lose(unsynced),
            };
            if unsynced > 0 {
                let (keep, hole) = (loss.keep.min(unsynced), &loss.hole);
                self.trace.event(|| {
                    format!("  of {unsynced} bytes not synced volume {volume} keeps {keep}, with a hole: {hole:?}")
                });
            }
            engine.crash(&loss);
        }
        let pause_us = self.source.pick(&[1_000, 20_000, 300_000]);
        self.restart_at_us = self.now_us() + u64::from(self.source.below(pause_us));
    }

    /// What a power loss takes: all, some or nothing; the pages of what is left may be missing in its middle.
    fn lose(&mut self, unsynced: usize) -> Loss {
        let keep = match self.source.below(4) {
            0 => unsynced,
            1 => 0,
            _ => self.source.index(unsynced + 1),
        };
        let hole = (keep > 0 && self.source.chance(400)).then(|| {
            let begin = self.source.index(keep);
            begin..begin + 1 + self.source.index(keep - begin)
        });
        Loss { keep, hole }
    }

    /// Every invariant of what is on the disks holds.
    pub(crate) fn verify(&self, when: &str) {
        let engines = Engines {
            engines: self.engines.iter().map(|engine| Arc::clone(engine) as Arc<dyn Engine>).collect(),
            topology: (*topology(&self.plan, self.plan.hubs_max)).clone(),
        };
        let report = verify_engines(&engines).expect("what was written can be read");
        assert!(report.is_clean(), "the disks are in order {when}: {:#?}", report.findings);
    }
}
