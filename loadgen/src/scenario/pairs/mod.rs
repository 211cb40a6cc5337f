//! Traffic between pairs of users, with its checker: what `chat`, `floor`, `crash` and `hostile` are made of.
//!
//! The first user of a pair sends, from the first device; every other device of both users receives and
//! acknowledges. [`driver`] is the sans-io part inside each worker, with its parts in `sending`, `told`, `asked`
//! and `turmoil`; this file starts and ends a run of several workers.

mod asked;
pub(crate) mod driver;
mod pair;
mod ramp;
mod sending;
pub(crate) mod shared;
mod told;
mod turmoil;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use culver_protocol::id::{DeviceId, UserId};
use rand::Rng;

use self::driver::{PairDriver, PairSettings, RunStart};
use self::pair::{PairStart, UserStart};
use self::shared::Shared;
use self::turmoil::Turmoil;
use crate::clock::Clock;
use crate::journal::Journal;
use crate::links::{LinkCounts, raise_descriptor_limit};
use crate::plan::{self, DEVICE, Devices, PairPlan, Payloads, RunId};
use crate::report::Broken;
use crate::report::histogram::Latencies;
use crate::report::progress::Progress;
use crate::target::{Target, client_config};
use crate::verify::Findings;
use crate::worker::{self, Finished};

/// Longest wait until everybody is logged in.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// What has not moved for so long at the end of a run will not arrive any more.
const STALL_MAX: Duration = Duration::from_secs(15);
/// A worker ends by itself after this, whatever happens.
const RUN_US_MAX: u64 = 12 * 3600 * 1_000_000;

/// Where reads are marked, one user in so many turns read receipts off.
const HIDES_ONE_IN: u32 = 6;

/// How messages are paced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// So many messages of each pair are always under way.
    Closed {
        /// Messages under way per pair.
        in_flight: usize,
    },
    /// So many messages a second over all pairs, whatever the server does.
    Open {
        /// Messages a second.
        rate: f64,
    },
    /// As `Open`, at the rate that [`Shared::set_rate`] said last, 0 at first; what was offered before that and could
    /// not be sent is given up.
    Ramp {
        /// Messages of a client that may be unanswered.
        window: usize,
    },
}

/// What a run of pairs is made from.
#[derive(Clone, Debug)]
pub(crate) struct PairLoad {
    pub(crate) pairs: usize,
    pub(crate) pace: Pace,
    pub(crate) payload_len: usize,
    pub(crate) workers: usize,
    pub(crate) first_user: u64,
    pub(crate) seed: u64,
    pub(crate) run: RunId,
    /// Where each worker writes its journal, if it keeps one: the worker's number is added.
    pub(crate) journal: Option<PathBuf>,
    /// Connections cut by the clients themselves, per second over all; 0: none.
    pub(crate) drops_per_s: f64,
    /// Devices persist, and so acknowledge, some time after they got something: what lies in between comes again
    /// after a crash.
    pub(crate) persists_late: bool,
    pub(crate) devices: Devices,
    /// Every recipient also sends, to the next; the last of a worker's to its first.
    pub(crate) ring: bool,
    /// Receipts are checked and measured.
    pub(crate) receipts: bool,
    /// Most recipients mark as read.
    pub(crate) reads: bool,
    /// In the end every device's list of conversations is checked.
    pub(crate) lists: bool,
    /// Devices that leave for a while, per second over all; 0: none.
    pub(crate) leaves_per_s: f64,
    /// For how long: least and most, in microseconds.
    pub(crate) away_us: (u64, u64),
    /// Short fetch logins of random devices, per second over all; 0: none.
    pub(crate) fetches_per_s: f64,
    /// Longest wait before a client reconnects.
    pub(crate) backoff_max_ms: Option<u32>,
}

/// A run under way.
pub(crate) struct PairRun {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<io::Result<Finished<PairDriver>>>>,
    connections: u64,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct PairOutcome {
    pub(crate) findings: Findings,
    /// By slot, from slot 1.
    pub(crate) slots: Vec<SlotLatencies>,
    pub(crate) links: LinkCounts,
    pub(crate) counts: PairCounts,
    /// `None`: nobody could listen.
    pub(crate) redelivered: Option<u64>,
    /// Errors that the server told, by code.
    pub(crate) errors: BTreeMap<u32, u64>,
    /// Entries of other runs that the recipients found in their inboxes.
    pub(crate) foreign: u64,
    /// Protocol violations that the clients saw.
    pub(crate) violations: Vec<String>,
    /// The first thing that was wrong in each pair, in words.
    pub(crate) faults: Vec<String>,
    pub(crate) journals: Vec<PathBuf>,
}

/// What the clients of a run did, beside sending and receiving.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PairCounts {
    /// Marks of receipts that came, checked or not.
    pub(crate) marks: u64,
    /// Devices that left for a while.
    pub(crate) leaves: u64,
    /// Of them, those that came back with nothing but what they had persisted.
    pub(crate) restarts: u64,
    /// Fetch logins.
    pub(crate) fetches: u64,
}

/// What is measured in one slot.
#[derive(Clone, Debug)]
pub(crate) struct SlotLatencies {
    /// From the (intended) sending to the acknowledgement.
    pub(crate) ack: Latencies,
    /// From the sending to the acknowledgement, however late it was sent.
    pub(crate) admitted: Latencies,
    /// From the (intended) sending to the recipient's application.
    pub(crate) delivery: Latencies,
    /// From the intended sending to the sending; of a ramp, to when it was noticed that it was due.
    pub(crate) lag: Latencies,
    /// From the persisting by a device of the recipient's to the receipt at the device that sent.
    pub(crate) receipt: Latencies,
}

impl SlotLatencies {
    pub(crate) fn new() -> Self {
        let new = Latencies::new;
        Self { ack: new(), admitted: new(), delivery: new(), lag: new(), receipt: new() }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.ack.merge(&other.ack);
        self.admitted.merge(&other.admitted);
        self.delivery.merge(&other.delivery);
        self.lag.merge(&other.lag);
        self.receipt.merge(&other.receipt);
    }
}

impl PairRun {
    /// Starts the workers; their clients log in at once and then wait for [`Shared::go`].
    pub(crate) fn start(target: &dyn Target, load: &PairLoad, slots: u8, clock: Clock) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut workers = Vec::new();
        let hands = plan::deal(plan::pairs(load.first_user, load.pairs), load.workers.max(1));
        let plans = hands.into_iter().enumerate().map(|(number, mut hand)| {
            if load.ring {
                plan::close_ring(&mut hand)?;
            }
            plan::give_devices(&mut hand, load.devices, load.seed ^ number as u64);
            anyhow::Ok(hand)
        });
        let plans = plans.collect::<Result<Vec<_>>>()?;
        let connections: u64 = plans.iter().map(|hand| plan::connections(hand)).sum();
        raise_descriptor_limit(usize::try_from(connections).unwrap_or(usize::MAX))?;
        for (number, plans) in plans.into_iter().enumerate().filter(|(_, plans)| !plans.is_empty()) {
            let share = fraction(plans.len(), load.pairs);
            let driver = make_driver(target, load, &plans, share, number, slots, &shared)?;
            let name = format!("worker-{number}");
            let deadline_us = clock.now_us() + RUN_US_MAX;
            let worker = worker::spawn(name, target.address(), clock, deadline_us, driver);
            workers.push(worker.context("cannot start a worker")?);
        }
        Ok(Self { shared, workers, connections })
    }

    /// Devices of all users: each has a connection of its own.
    pub(crate) fn connections(&self) -> u64 {
        self.connections
    }

    /// What the workers tell while they run.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Waits until every client is logged in.
    pub(crate) fn wait_for_logins(&self, progress: &Progress) -> Result<()> {
        let shared = &self.shared;
        let all_in = progress.wait_until(LOGIN_TIMEOUT, || {
            self.check_alive()?;
            progress.tell(format!("logging in: {} of {}", shared.logins(), self.connections));
            Ok(shared.logins() >= self.connections)
        })?;
        if !all_in {
            bail!("only {} of {} clients could log in within {LOGIN_TIMEOUT:?}", shared.logins(), self.connections);
        }
        Ok(())
    }

    /// An error if some worker ended although nobody asked it to, or its server refuses the clients.
    pub(crate) fn check_alive(&self) -> Result<()> {
        if self.workers.iter().any(JoinHandle::is_finished) {
            bail!("a worker ended before its time");
        }
        if let Some(why) = self.shared.refused() {
            bail!(Broken(format!("the server refuses the clients: {why}")));
        }
        Ok(())
    }

    /// Ends sending, waits until everything under way has arrived, at most `drain_max`, and adds everything up.
    pub(crate) fn finish(self, drain_max: Duration, progress: &Progress) -> Result<PairOutcome> {
        self.shared.stop();
        let mut last = (self.shared.counters(), Instant::now());
        progress.wait_until(drain_max, || {
            let counters = self.shared.counters();
            progress.tell(format!("draining: {counters}"));
            if counters != last.0 {
                last = (counters, Instant::now());
            }
            let stalled = last.1.elapsed() > STALL_MAX;
            Ok(stalled || self.workers.iter().all(JoinHandle::is_finished))
        })?;
        self.shared.abandon();
        let mut outcome: Option<PairOutcome> = None;
        for worker in self.workers {
            let finished = worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?;
            let part = finished.context("a worker failed")?;
            let part = part.driver.into_outcome(part.counts, part.redelivered);
            match &mut outcome {
                None => outcome = Some(part),
                Some(sum) => sum.add(part),
            }
        }
        outcome.context("no worker had anything to do")
    }
}

impl PairOutcome {
    fn add(&mut self, other: Self) {
        self.findings.add(&other.findings);
        for (mine, theirs) in self.slots.iter_mut().zip(&other.slots) {
            mine.merge(theirs);
        }
        self.links.connects += other.links.connects;
        self.links.disconnects += other.links.disconnects;
        self.links.drops += other.links.drops;
        self.links.connect_failures += other.links.connect_failures;
        self.counts.marks += other.counts.marks;
        self.counts.leaves += other.counts.leaves;
        self.counts.restarts += other.counts.restarts;
        self.counts.fetches += other.counts.fetches;
        let redelivered = [self.redelivered, other.redelivered].into_iter().flatten();
        self.redelivered = redelivered.reduce(|sum, more| sum + more);
        for (code, count) in other.errors {
            *self.errors.entry(code).or_default() += count;
        }
        self.foreign += other.foreign;
        self.violations.extend(other.violations);
        self.faults.extend(other.faults);
        self.journals.extend(other.journals);
    }
}

fn make_driver(
    target: &dyn Target,
    load: &PairLoad,
    plans: &[PairPlan],
    share: f64,
    number: usize,
    slots: u8,
    shared: &Arc<Shared>,
) -> Result<PairDriver> {
    let pace = match load.pace {
        Pace::Closed { in_flight } => Pace::Closed { in_flight },
        Pace::Open { rate } => Pace::Open { rate: rate * share },
        Pace::Ramp { window } => Pace::Ramp { window },
    };
    let journal = load.journal.as_ref().map(|path| {
        let path = path.with_extension(format!("{number}.journal"));
        Journal::create(&path)
    });
    let settings = PairSettings {
        pace,
        share,
        payloads: Payloads::new(load.run, load.payload_len, load.seed),
        run: load.run,
        slots,
        journal: journal.transpose()?,
        persists_late: load.persists_late,
        receipts: load.receipts,
        awaits_linking: target.links_devices(),
        lists: load.lists,
        rng: plan::rng(load.seed, &format!("worker {number}")),
    };
    let rates = [load.drops_per_s, load.leaves_per_s, load.fetches_per_s].map(|rate| rate * share);
    let turmoil = Turmoil::new(rates, load.away_us);
    let start = make_start(target, load, plans)?;
    Ok(PairDriver::new(settings, turmoil, start, Arc::clone(shared)))
}

/// Users are counted as the plans first name them: one may be named as a sender and as a recipient.
fn make_start(target: &dyn Target, load: &PairLoad, plans: &[PairPlan]) -> Result<RunStart> {
    let (mut start, mut places) = (RunStart::default(), HashMap::new());
    let mut rng = plan::rng(load.seed ^ plans.first().map_or(0, |plan| plan.sender.0), "hides reads");
    for (number, plan) in plans.iter().enumerate() {
        let mut place_of = |user: UserId, devices: u8| {
            if let Some(place) = places.get(&user) {
                return anyhow::Ok(*place);
            }
            let devices = (0..devices).map(|device| {
                let device = DeviceId(DEVICE.0 + u16::from(device));
                let mut config = client_config(target, user, device, load.seed)?;
                config.backoff_max_ms = load.backoff_max_ms.unwrap_or(config.backoff_max_ms);
                anyhow::Ok(config)
            });
            let devices = devices.collect::<Result<Vec<_>>>()?;
            // Few: a pair tells what is read only if neither hides it.
            let hides_reads = load.reads && rng.random_range(0..HIDES_ONE_IN) == 0;
            start.users.push(UserStart { devices, hides_reads });
            places.insert(user, start.users.len() - 1);
            Ok(start.users.len() - 1)
        };
        let sender = place_of(plan.sender, plan.sender_devices)?;
        let recipient = place_of(plan.recipient, plan.recipient_devices)?;
        // Some never read: their senders must not be told that they did.
        let reads = load.reads && number % 4 != 3;
        let hides_reads = |user: usize| start.users.get(user).is_some_and(|user| user.hides_reads);
        let tells_reads = !hides_reads(sender) && !hides_reads(recipient);
        start.pairs.push(PairStart { plan: *plan, sender, recipient, reads, tells_reads });
    }
    Ok(start)
}

#[expect(clippy::cast_precision_loss, reason = "counts of pairs are small")]
fn fraction(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}
