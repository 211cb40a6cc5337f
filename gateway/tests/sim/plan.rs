//! What a seed decides once, before its world begins: sizes, bounds, habits, and which faults come how often.
//!
//! Seeds are to differ greatly: some are small and calm, some have one kind of fault at a high rate, some all of them.
//! Owns no state of a run.

mod encrypted;
mod sizes;

use culver::buckets::Limit;
use culver::config::{Config, KeepAlive, Security, Shutdown};
use culver::hub::rates::Limits;
use culver::reactor::{self, admission};
use culver_storage::shard::Policy;

pub(crate) use self::encrypted::Encrypted;
use self::sizes::Sizes;
use crate::server::FLUSH_S;
use crate::source::Source;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The server's process is killed.
    Kill,
    /// The server's machine loses power.
    PowerLoss,
    /// The server is asked to leave, and starts anew.
    Leave,
    /// Operators want the clients to go, or want that no more.
    Drain,
    /// A write to a log fails: the process ends.
    WriteFails,
    /// A sync of a log fails: the process ends.
    SyncFails,
    /// A connection is reset in its middle.
    Cut,
    /// A connection gets nothing through any more, and nobody is told.
    Dark,
    /// All connections are reset at once.
    Storm,
    /// A device gives its connection up and opens another, and the server hears nothing of it.
    HalfOpen,
    /// A device does not read for a while.
    Stall,
    /// A device's application is killed.
    AppKilled,
    /// The server's clock on the wall jumps.
    ClockJump,
    /// All that is in memory of an engine may be gone: lookups there do not know.
    Cold,
    /// A log becomes files.
    Flush,
    /// Files are merged.
    Compact,
    /// Damage to a copy of a disk: it must be refused if, and only if, what was damaged had been synced.
    Probe,
    /// A disk has no room for what is new for a while.
    SpaceLow,
    /// Somebody changes what is on its way, on a connection that is encrypted.
    Tamper,
    /// Somebody plays again what a device once sent, on a connection of their own.
    Replay,
    /// Somebody logs in as a device, with a key of their own.
    Impostor,
    /// Somebody logs in with what a device had that was removed since.
    Former,
    /// An hour passes by a device's own clock: its keys are old.
    KeysAge,
}

impl Fault {
    /// All of them.
    pub(crate) const ALL: [Self; 23] = [
        Self::Kill,
        Self::PowerLoss,
        Self::Leave,
        Self::Drain,
        Self::WriteFails,
        Self::SyncFails,
        Self::Cut,
        Self::Dark,
        Self::Storm,
        Self::HalfOpen,
        Self::Stall,
        Self::AppKilled,
        Self::ClockJump,
        Self::Cold,
        Self::Flush,
        Self::Compact,
        Self::Probe,
        Self::SpaceLow,
        Self::Tamper,
        Self::Replay,
        Self::Impostor,
        Self::Former,
        Self::KeysAge,
    ];

    /// Whether it means anything where nothing is encrypted.
    fn is_of_plaintext(self) -> bool {
        !matches!(self, Self::Tamper | Self::Replay | Self::Impostor | Self::Former | Self::KeysAge)
    }

    /// How dear it is to a run's progress: the dearer, the rarer.
    fn weight(self) -> u32 {
        match self {
            Self::Kill | Self::PowerLoss | Self::Leave | Self::WriteFails | Self::SyncFails => 1,
            Self::ClockJump | Self::Probe | Self::Storm | Self::Drain => 2,
            Self::Dark | Self::HalfOpen | Self::Cold | Self::Flush | Self::Compact | Self::SpaceLow => 4,
            Self::Impostor | Self::Former | Self::KeysAge => 4,
            Self::Tamper | Self::Replay | Self::Cut | Self::Stall | Self::AppKilled => 8,
        }
    }
}

/// Who writes to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All to all.
    Any,
    /// Two users write to each other, the others look on.
    Hot,
    /// Neighbours only.
    Ring,
    /// Everybody to the first user.
    Star,
}

/// What does its work, each with its own laziness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worker {
    Reactor,
    Hub,
    Writer,
    Reader,
    Wire,
    Device,
}

/// What a seed decides.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub users: u64,
    /// Devices of each user.
    pub devices: Vec<u16>,
    /// Devices, in a thousand, that have a second, fetching client beside the live one.
    pub fetchers: u32,
    pub shape: Shape,
    /// Messages that applications send in all.
    pub sends: u32,
    /// Steps until the calm, at most.
    pub steps: u64,
    /// Longest pause of a device between two acts.
    pub think_us: u32,
    pub payload_max: usize,
    pub credit_entries: u32,
    pub receipts: bool,
    /// `None`: everything travels in plaintext.
    pub encryption: Option<Encrypted>,

    pub volumes: u16,
    pub shards: u16,
    pub hubs_max: u16,
    pub reactors_max: u16,
    pub readers: usize,
    pub sizes: Sizes,
    /// How fast devices and users may send.
    pub rates: Limits,
    /// How fast connections may come, of all and of a source, and how often a user may log in.
    pub logins: admission::Limits,
    pub user_logins: Option<Limit>,
    /// Addresses that clients have.
    pub sources: usize,
    pub quota_entries: u64,
    pub retention_ms: u64,
    pub unlink_days: u32,
    pub keep_alive_s: u32,
    pub connections_max: usize,
    /// Somebody keeps the listeners while no process runs.
    pub inherits: bool,
    /// Applications find out how long their networks let them be silent.
    pub adapts: bool,
    /// How long that is, in seconds, of each network; empty: for ever.
    pub silences_s: Vec<u32>,

    /// Longest time of a step.
    pub step_us: u32,
    /// How often, in a thousand times, each kind of worker whose turn it is lets others go first.
    pub lazy: [u32; 6],
    /// Longest time that a sync takes: on a slow disk long enough for clients to come back meanwhile.
    pub sync_us: u32,
    /// Longest time that a read takes.
    pub read_us: u32,
    pub buffers_max: (usize, usize),
    /// Bytes carried, read or given to a client at once, at most, where they are cut up.
    pub piece_max: u32,
    /// How often, in a thousand times, they are.
    pub pieces: u32,

    /// Faults in ten thousand steps.
    pub faults: u32,
    /// Their kinds, each as often as it weighs.
    pub kinds: Vec<Fault>,
    /// Lookups, in a thousand, that memory cannot answer.
    pub cold: u16,
    /// Restarts raise the generation of tickets.
    pub generations: bool,
    /// Lives whose journal is kept and replayed, in a thousand.
    pub journals: u32,
    /// Restarts after which all rows are verified, in a thousand.
    pub verified: u32,
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn new(source: &mut Source) -> Self {
        let encryption = Encrypted::new(source);
        let users = source.range(2, 6);
        let devices_max = source.range(1, 4);
        let devices = (0..users).map(|_| source.number(1, devices_max)).collect();
        let volumes = source.pick(&[1, 1, 1, 2, 3]);
        let shards = source.pick(&[8, 4, 16, 64]).max(volumes * 4);
        let hubs_max = (volumes + source.number::<u16>(0, 3)).min(4);
        let (faults, kinds) = faults(source, encryption.is_some());
        let is_tight = source.chance(500);
        let sizes = if is_tight { Sizes::tight(source) } else { Sizes::wide(source) };
        let payload_max = source.pick(&[16, 100, 300, 3000, 32 * 1024]);
        let mut buffers_max = source.pick(&[(65_536, 65_536), (4096, 4096), (512, 512), (60_000, 100)]);
        let mut sizes = sizes;
        if payload_max > 300 {
            // A long message a byte at a time is many steps, and no news.
            sizes.read_len = sizes.read_len.max(256);
            buffers_max.1 = buffers_max.1.max(512);
        }
        let lazy = std::array::from_fn(|_| source.pick(&[0, 0, 0, 300, 700, 950]));
        let pieces = source.pick(&[0, 0, 100, 900]);
        let (logins, user_logins) = (logins(source), user_logins(source));
        let adapts = source.chance(400);
        let is_limited = logins != admission::Limits::default() || user_logins.is_some();
        let silences_s = if adapts && !is_limited { silences(source, &kinds) } else { Vec::new() };
        Self {
            users,
            devices,
            fetchers: source.pick(&[0, 0, 0, 250, 600]),
            shape: source.pick(&[Shape::Any, Shape::Any, Shape::Hot, Shape::Ring, Shape::Star]),
            sends: source.pick(&[60, 20, 120, 250]),
            steps: source.pick(&[6_000, 3_000, 15_000]),
            think_us: source.pick(&[20_000, 2_000, 1_000, 100_000, 400_000]),
            payload_max,
            credit_entries: source.pick(&[0, 0, 1, 2, 7]),
            receipts: !source.chance(70),
            encryption,
            volumes,
            shards,
            hubs_max,
            reactors_max: source.number(1, 3),
            readers: source.number(1, 4),
            sizes,
            quota_entries: if source.chance(80) { source.range(3, 40) } else { 100_000 },
            retention_ms: if source.chance(60) { source.range(500, 60_000) } else { 365 * 86_400_000 },
            unlink_days: if source.chance(60) { 1 } else { 90 },
            keep_alive_s: source.pick(&[0, 5, 5, 30]),
            connections_max: if source.chance(50) { source.number(1, 3) } else { 1000 },
            step_us: source.pick(&[5, 20, 50]),
            lazy,
            sync_us: source.pick(&[0, 100, 1000, 30_000, 500_000]),
            read_us: source.pick(&[0, 100, 5_000, 100_000]),
            buffers_max,
            piece_max: source.pick(&[1000, 60, 1]),
            pieces,
            faults,
            kinds,
            cold: source.pick(&[0, 0, 50, 400, 1000]),
            generations: source.chance(200),
            journals: source.pick(&[0, 0, 300, 1000]),
            verified: source.pick(&[300, 1000]),
            rates: rates(source),
            logins,
            user_logins,
            sources: source.pick(&[1, 2, 8]),
            inherits: source.chance(350),
            adapts,
            silences_s,
        }
    }

    /// How often, in a thousand times, such a worker lets others go first.
    pub(crate) fn laziness(&self, worker: Worker) -> u32 {
        self.lazy[worker as usize]
    }
}

impl Plan {
    /// The server's settings.
    pub(crate) fn config(&self) -> Config {
        let mut security = Security::default();
        if let Some(Encrypted { is_insisted, handshake_cpu_percent, .. }) = self.encryption {
            (security.forward_secrecy, security.handshake_cpu_percent) = (is_insisted, handshake_cpu_percent);
        }
        Config {
            security,
            keep_alive: KeepAlive { default_s: 10, min_s: 5, max_s: 30 },
            shutdown: Shutdown { away_s: 0, spread_s: 1, flush_s: FLUSH_S },
            ..Config::default()
        }
    }

    /// Whether devices are removed. In plaintext whoever was removed comes back with the ticket that it had; and where the
    /// clock goes back by a year, it has to wait for so long until its token is one from after its removal.
    pub(crate) fn removes(&self) -> bool {
        self.encryption.is_some() && !self.kinds.contains(&Fault::ClockJump)
    }

    /// The bounds of a reactor.
    pub(crate) fn of_reactors(&self) -> reactor::Bounds {
        let bounds = self.sizes.of_reactors();
        let burst_us = self.encryption.map_or(bounds.handshake_burst_us, |how| how.handshake_burst_us);
        reactor::Bounds { handshake_burst_us: burst_us, ..bounds }
    }

    /// What is kept for how long, and how much is kept in memory.
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            retention_ms: self.retention_ms,
            unlink_days: self.unlink_days,
            quota_entries: self.quota_entries,
            receipts: self.receipts,
            bounds: self.sizes.of_shards(),
            ..Policy::default()
        }
    }
}

/// How fast devices and users may send: in some worlds so slowly that many a message comes too fast.
fn rates(source: &mut Source) -> Limits {
    if !source.chance(250) {
        return Limits::default();
    }
    let mut limit = || {
        let is_limited = !source.chance(300);
        let limit = Limit::new(source.pick(&[1000, 100, 20]), source.pick(&[50, 20, 5, 1]));
        is_limited.then_some(limit)
    };
    Limits { device: limit(), user: limit() }
}

/// How fast connections may come: in some worlds so slowly that many are refused.
fn logins(source: &mut Source) -> admission::Limits {
    if !source.chance(250) {
        return admission::Limits::default();
    }
    let mut limit = || {
        let is_limited = !source.chance(300);
        let limit = Limit::new(source.pick(&[100, 10, 3]), source.pick(&[50, 10, 3, 1]));
        is_limited.then_some(limit)
    };
    admission::Limits { all: limit(), source: limit() }
}

/// How often a user may log in.
fn user_logins(source: &mut Source) -> Option<Limit> {
    source.chance(200).then(|| Limit::new(source.pick(&[10, 1]), source.pick(&[30, 5, 3, 1])))
}

/// After how long a silence networks forget a connection. Not where a device may not hear what has come to it, or has a
/// clock of its own: its silence is not its network's then.
fn silences(source: &mut Source, kinds: &[Fault]) -> Vec<u32> {
    if kinds.contains(&Fault::Stall) || kinds.contains(&Fault::KeysAge) || !source.chance(600) {
        return Vec::new();
    }
    (0..source.range(1, 3)).map(|_| source.pick(&[8, 6, 12, 20, 29])).collect()
}

/// How many faults in ten thousand steps, and of which kinds.
fn faults(source: &mut Source, is_encrypted: bool) -> (u32, Vec<Fault>) {
    let mut left: Vec<Fault> = Fault::ALL.into_iter().filter(|kind| is_encrypted || kind.is_of_plaintext()).collect();
    let kinds = match source.below(20) {
        0..3 => return (0, Vec::new()),
        3..13 => source.number(1, 3),
        13..17 => source.number(4, 8),
        _ => left.len(),
    };
    let mut chosen = Vec::new();
    for _ in 0..kinds {
        let kind = left.swap_remove(source.index(left.len()));
        chosen.extend(std::iter::repeat_n(kind, kind.weight() as usize));
    }
    // What restarts the server cannot happen as often as what meets one connection.
    let least = chosen.iter().filter(|kind| kind.weight() == 1).count() * 100 / chosen.len();
    let most = if least > 50 { 15 } else { 80 };
    (source.number(2, most), chosen)
}
