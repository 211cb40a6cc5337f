//! The clients that stop reading, and read again: ordinary clients behind sockets that are left alone for as long as
//! they are told to. Sans-io but for the start of the workers.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culver_protocol::client::{Client, ClientConfig, Event};
use culver_protocol::id::{InboxSeq, UserId};
use serde::Serialize;

use super::inbox::{Inbox, Rounds, Verdict};
use crate::clock::Clock;
use crate::dense::senders::is_whole;
use crate::links::{LinkIndex, Links};
use crate::plan::{self, DEVICE, RunId};
use crate::report::progress::Progress;
use crate::target::{Target, client_config};
use crate::worker::{self, Driver, Finished};

/// Logins under way over all workers: what a listener's queue surely holds.
const PENDING_MAX: u64 = 256;
/// How often those who wait to log in are looked at.
const PACE_US: u64 = 1000;
/// No login for so long, and none will come.
const LOGINS_MAX: Duration = Duration::from_secs(300);
/// A worker ends by itself after this.
const RUN_US_MAX: u64 = 12 * 3600 * 1_000_000;
/// A source address has some 28,000 ports, and those of connections just ended are not free at once.
const PER_SOURCE: u64 = 10_000;
/// The longest keep-alive there is: who does not read does not say anything either.
const KEEP_ALIVE_S: u32 = culver_protocol::limits::KEEP_ALIVE_S_MAX;
/// Longest wait before a client reconnects.
const BACKOFF_MAX_MS: u32 = 2000;

/// Who they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct CrowdPlan {
    pub(super) clients: u64,
    pub(super) first_user: u64,
    pub(super) run: RunId,
    pub(super) seed: u64,
    pub(super) workers: usize,
    /// Bytes that the kernel keeps for each of what it does not read.
    pub(super) receive_len: Option<usize>,
}

#[derive(Debug, Default)]
struct Shared {
    is_deaf: AtomicBool,
    is_stopped: AtomicBool,
    /// Clients that have been logged in.
    logins: AtomicU64,
    /// Logins of those that had been before.
    comebacks: AtomicU64,
    /// Messages that came and had not before.
    delivered: AtomicU64,
    /// A client was told that it need not come again; 0: none was.
    refused: AtomicU64,
}

/// What was wrong with what they got, and what they were told.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct CrowdFindings {
    /// Came, each counted once.
    pub(super) delivered: u64,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    pub(super) reordered: u64,
    /// Somebody else's, or not what was sent.
    pub(super) strange: u64,
    /// Ended by the server, or by a network that was none.
    pub(super) disconnects: u64,
    /// Errors that the server told, by code: those that were read in the end.
    pub(super) errors_by_code: BTreeMap<u32, u64>,
    pub(super) violations: Vec<String>,
}

impl CrowdFindings {
    fn add(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.strange += other.strange;
        self.disconnects += other.disconnects;
        for (code, count) in other.errors_by_code {
            *self.errors_by_code.entry(code).or_default() += count;
        }
        self.violations.extend(other.violations);
    }

    /// Whether each got all that was its, once and in order.
    pub(super) fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.strange == 0 && self.violations.is_empty()
    }
}

/// All of them, connected or not.
pub(super) struct Crowd {
    shared: Arc<Shared>,
    plan: CrowdPlan,
    workers: Vec<JoinHandle<io::Result<Finished<CrowdDriver>>>>,
}

impl Crowd {
    /// Starts the workers; their clients log in at once.
    pub(super) fn start(target: &dyn Target, plan: CrowdPlan, clock: Clock) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let hands = plan::deal((0..plan.clients).collect(), plan.workers.max(1));
        let mut workers = Vec::new();
        for (number, indexes) in hands.into_iter().enumerate().filter(|(_, hand)| !hand.is_empty()) {
            let configs = indexes.iter().rev().map(|index| {
                let user = UserId(plan.first_user.wrapping_add(*index));
                let config = client_config(target, user, DEVICE, plan.seed)?;
                anyhow::Ok(ClientConfig { keep_alive_s: KEEP_ALIVE_S, backoff_max_ms: BACKOFF_MAX_MS, ..config })
            });
            let driver = CrowdDriver {
                plan,
                configs: configs.collect::<Result<_>>()?,
                clients: indexes.into_iter().map(|index| (index, false, Inbox::default())).collect(),
                pending_max: (PENDING_MAX / plan.workers.max(1) as u64).max(1),
                logins: 0,
                is_deaf: false,
                findings: CrowdFindings::default(),
                shared: Arc::clone(&shared),
            };
            let deadline_us = clock.now_us() + RUN_US_MAX;
            let worker = worker::spawn(format!("slow-{number}"), target.address(), clock, deadline_us, driver);
            workers.push(worker.context("cannot start a worker")?);
        }
        Ok(Self { shared, plan, workers })
    }

    /// Waits until all have logged in.
    pub(super) fn wait_for_logins(&self, progress: &Progress) -> Result<()> {
        let (shared, clients) = (&self.shared, self.plan.clients);
        let all_in = progress.wait_until(LOGINS_MAX, || {
            self.check_alive()?;
            let logins = shared.logins.load(Ordering::Relaxed);
            progress.tell(format!("logging in: {logins} of {clients} that will not read"));
            Ok(logins >= clients)
        })?;
        if !all_in {
            let logins = shared.logins.load(Ordering::Relaxed);
            bail!("only {logins} of {clients} clients could log in within {LOGINS_MAX:?}");
        }
        Ok(())
    }

    /// From now on nobody of them reads, or all do again.
    pub(super) fn set_deaf(&self, is_deaf: bool) {
        self.shared.is_deaf.store(is_deaf, Ordering::Release);
    }

    /// Messages that have come, of all, each counted once.
    pub(super) fn delivered(&self) -> u64 {
        self.shared.delivered.load(Ordering::Relaxed)
    }

    /// How often one came back.
    pub(super) fn comebacks(&self) -> u64 {
        self.shared.comebacks.load(Ordering::Relaxed)
    }

    pub(super) fn check_alive(&self) -> Result<()> {
        if self.workers.iter().any(JoinHandle::is_finished) {
            bail!("a worker of the clients that do not read ended before its time");
        }
        match self.shared.refused.load(Ordering::Relaxed) {
            0 => Ok(()),
            code => bail!("the server refuses clients for good, with {code}"),
        }
    }

    /// Ends them; what each should have got are `messages` over all.
    pub(super) fn close(self, messages: u64) -> Result<CrowdFindings> {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        let mut findings = CrowdFindings::default();
        for worker in self.workers {
            let finished = worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?.context("a worker")?;
            let (driver, counts) = (finished.driver, finished.counts);
            let mut of_worker = driver.findings;
            of_worker.disconnects = counts.disconnects;
            of_worker.delivered = driver.clients.iter().map(|(_, _, inbox)| inbox.count()).sum();
            findings.add(of_worker);
        }
        findings.lost = messages.saturating_sub(findings.delivered);
        Ok(findings)
    }
}

/// The clients of a worker, on one poll loop. Links: in the order of `clients`.
struct CrowdDriver {
    plan: CrowdPlan,
    /// Of those that have not been added: the next is the last.
    configs: Vec<ClientConfig>,
    /// Each with its place among all, whether it has been logged in, and what it got.
    clients: Vec<(u64, bool, Inbox)>,
    pending_max: u64,
    logins: u64,
    is_deaf: bool,
    findings: CrowdFindings,
    shared: Arc<Shared>,
}

impl CrowdDriver {
    fn handle_login(&mut self, index: LinkIndex) {
        let Some((_, was_there, _)) = self.clients.get_mut(index.0) else { return };
        if std::mem::replace(was_there, true) {
            self.shared.comebacks.fetch_add(1, Ordering::Relaxed);
        } else {
            self.logins += 1;
            self.shared.logins.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn handle_delivered(&mut self, index: LinkIndex, payload: &[u8]) {
        let Some(message) = plan::message_index(self.plan.run, payload) else { return };
        let Some((place, _, inbox)) = self.clients.get_mut(index.0) else { return };
        let rounds = Rounds { clients: self.plan.clients };
        let verdict = if is_whole(payload, message) { inbox.take(rounds, *place, message.0) } else { Verdict::Strange };
        if matches!(verdict, Verdict::Due | Verdict::Early) {
            self.shared.delivered.fetch_add(1, Ordering::Relaxed);
        }
        match verdict {
            Verdict::Due => {}
            Verdict::Again => self.findings.duplicated += 1,
            Verdict::Early => self.findings.reordered += 1,
            Verdict::Strange => self.findings.strange += 1,
        }
    }

    /// Lets the next in, a few at a time. When to look again, if not all are in.
    fn let_in(&mut self, links: &mut Links, now_us: u64) -> Option<u64> {
        while (links.len() as u64).saturating_sub(self.logins) < self.pending_max {
            let config = self.configs.pop()?;
            let place = self.clients.get(links.len()).map_or(0, |(place, ..)| *place);
            links.add(config, self.plan.source(place), now_us);
        }
        Some(now_us + PACE_US)
    }
}

impl CrowdPlan {
    /// Where the client at this place connects from: one address has not ports enough for all.
    fn source(&self, place: u64) -> Option<IpAddr> {
        if self.clients <= PER_SOURCE {
            return None;
        }
        let last = u8::try_from(10 + place / PER_SOURCE).unwrap_or(u8::MAX);
        Some(Ipv4Addr::new(127, 0, 3, last).into())
    }
}

impl Driver for CrowdDriver {
    fn begin(&mut self, links: &mut Links, _now_us: u64) {
        links.set_receive_len(self.plan.receive_len);
    }

    fn handle_event(&mut self, index: LinkIndex, client: &mut Client, event: Event, _now_us: u64) {
        match event {
            Event::LoggedIn(_) => self.handle_login(index),
            Event::Delivered(entry) => {
                self.handle_delivered(index, &entry.payload);
                client.persisted(InboxSeq(entry.inbox_seq));
            }
            Event::ServerError(error) => *self.findings.errors_by_code.entry(error.code).or_default() += 1,
            Event::Violation(violation) => self.findings.violations.push(violation.to_string()),
            Event::Stopped { code } | Event::CredentialNeeded { code } => {
                self.shared.refused.store(code.into(), Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn handle_turn(&mut self, links: &mut Links, now_us: u64) -> Option<u64> {
        let is_deaf = self.shared.is_deaf.load(Ordering::Acquire);
        if is_deaf != self.is_deaf {
            self.is_deaf = is_deaf;
            (0..links.len()).for_each(|index| links.set_deaf(LinkIndex(index), is_deaf, now_us));
        }
        self.let_in(links, now_us)
    }

    fn is_done(&self) -> bool {
        self.shared.is_stopped.load(Ordering::Relaxed)
    }
}
