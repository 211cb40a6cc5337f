//! The world: devices, wires, disks and clocks, which outlive the lives of the server.
//!
//! Owns everything of one run. What devices do is told in `parties.rs`, how lives begin and end in `lives.rs`. What
//! happens next is `steps.rs`'s to decide, what goes wrong is `faults.rs`'s, and how it all ends is `calm.rs`'s.

use std::net::IpAddr;
use std::sync::Arc;

use culver::space::Space;
use culver_protocol::id::UserId;
use culver_storage::memory::MemoryEngine;

use crate::attacks::{Attacker, Recorded};
use crate::device::{Device, Former};
use crate::net::{Listener, MOVED, Tamper, Wire};
use crate::oracle::{Oracle, Terms};
use crate::plan::{Fault, Plan};
use crate::server::{Clocks, Life, begin_secrets};
use crate::source::Source;
use crate::trace::Trace;

/// When every world begins.
pub(crate) const BEGIN_MS: u64 = 1_800_000_000_000;

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
    /// Where it connects from.
    pub source: IpAddr,
    /// The number of its network, and how many of its connections that has forgotten.
    pub network: usize,
    pub losses: u32,
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
    /// The process was killed.
    Killed,
    /// It ended itself, for a log had failed: of what was not synced only a part is there.
    LogFailed,
    /// So did the machine, without power: of what was not synced only a part is there.
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
    /// What the machine says of room on its disks, and until when it says that there is too little.
    pub(crate) space: Arc<Space>,
    pub(crate) space_low_until_us: Option<u64>,
    pub(crate) generation: u32,
    /// One for each reactor that there may be.
    pub(crate) listeners: Vec<Listener>,
    pub(crate) wires: Vec<Wire>,
    /// What is there of a backup that is being taken.
    pub(crate) copies: Vec<Arc<MemoryEngine>>,
    /// Connections that were ever made.
    pub(crate) connected: u64,
    pub(crate) parties: Vec<Party>,
    /// Whoever plays again what devices have sent, and what of that was kept.
    pub(crate) attackers: Vec<Attacker>,
    pub(crate) recorded: Vec<Recorded>,
    /// What devices had that were removed since.
    pub(crate) former: Vec<Former>,
    /// What will be changed on the next connection.
    pub(crate) tamper_next: Option<Tamper>,
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
            is_encrypted: plan.encryption.is_some(),
            tickets_refused: plan.encryption.is_some_and(|how| how.is_insisted && !how.forward_secret),
            clock_jumps: plan.kinds.contains(&Fault::ClockJump),
            are_logins_limited: plan.logins != Default::default(),
            user_logins: plan.user_logins,
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
            space: Arc::default(),
            space_low_until_us: None,
            generation: 1,
            listeners: (0..plan.reactors_max).map(|_| Listener::new(plan.inherits)).collect(),
            wires: Vec::new(),
            copies: Vec::new(),
            connected: 0,
            parties: Vec::new(),
            attackers: Vec::new(),
            recorded: Vec::new(),
            former: Vec::new(),
            tamper_next: None,
            turn: 0,
            is_calm: false,
            is_closing: false,
            plan,
        };
        if world.trace.is_on() {
            world.oracle.take_notes();
        }
        MOVED.set(0);
        begin_secrets();
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
        if self.space_low_until_us.is_some_and(|until_us| until_us <= now_us) {
            self.make_room();
        }
    }

    /// There is room on all disks.
    pub(crate) fn make_room(&mut self) {
        if self.space_low_until_us.take().is_some() {
            self.space.set_low(false);
            self.trace.event(|| "there is room on the disks again".to_owned());
        }
    }
}
