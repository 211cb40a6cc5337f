//! The users who send one message to each client of a crowd: ordinary clients, each with a window of messages.
//!
//! Messages are numbered from 0, round after round; the number says who gets it and who sends it. Sans-io but for the
//! start of the workers.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use bytes::{BufMut, Bytes, BytesMut};
use culver_protocol::client::{Client, Event};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, UserId};
use serde::Serialize;

use crate::clock::Clock;
use crate::links::{LinkIndex, Links};
use crate::plan::{self, DEVICE, MessageIndex, RunId};
use crate::report::{Misses, limited};
use crate::target::{Target, client_config};
use crate::worker::{self, Driver, Finished};

/// Users who send.
pub(crate) const SENDERS: u64 = 64;
/// Messages that each of them has under way.
const WINDOW: usize = 16;
/// Bytes of a payload: run, number, time of sending, and the number again to the end.
const PAYLOAD_LEN: usize = 64;
/// Of them, those in front of the filler.
const HEAD_LEN: usize = 24;
/// How often the pace is looked at, where one is asked for.
const PACE_US: u64 = 1000;
/// A worker ends by itself after this.
const RUN_US_MAX: u64 = 12 * 3600 * 1_000_000;

/// Who sends what to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SenderPlan {
    pub(crate) run: RunId,
    /// The first client of the crowd.
    pub(crate) first_user: u64,
    pub(crate) connections: u64,
    /// The first of those who send.
    pub(crate) first_sender: u64,
    /// Messages a second over all; `None`: as fast as the windows allow.
    pub(crate) rate: Option<f64>,
    pub(crate) seed: u64,
}

impl SenderPlan {
    fn sender(&self, number: u64) -> UserId {
        UserId(self.first_sender.wrapping_add(number % SENDERS))
    }

    fn recipient(&self, message: u64) -> UserId {
        UserId(self.first_user.wrapping_add(message % self.connections))
    }

    fn payload(&self, message: u64, now_us: u64) -> Bytes {
        payload(self.run, MessageIndex(message), now_us)
    }
}

/// The payload of one message.
pub(crate) fn payload(run: RunId, message: MessageIndex, now_us: u64) -> Bytes {
    let mut payload = BytesMut::with_capacity(PAYLOAD_LEN);
    payload.put_u64(run.0);
    payload.put_u64(message.0);
    payload.put_u64(now_us);
    while payload.len() < PAYLOAD_LEN {
        payload.put_u64(message.0);
    }
    payload.freeze()
}

/// Whether a payload that says it is this message has its length, and its number to the end.
pub(crate) fn is_whole(payload: &[u8], message: MessageIndex) -> bool {
    let filler = payload.get(HEAD_LEN..).unwrap_or_default();
    payload.len() == PAYLOAD_LEN && filler.chunks(8).all(|chunk| chunk == message.0.to_be_bytes())
}

#[derive(Debug, Default)]
struct Shared {
    /// Messages up to this number are to be sent.
    until: AtomicU64,
    logins: AtomicU64,
    sent: AtomicU64,
    acked: AtomicU64,
    refused: AtomicU64,
    is_stopped: AtomicBool,
}

/// Those who send, logged in.
pub(crate) struct Senders {
    shared: Arc<Shared>,
    worker: JoinHandle<io::Result<Finished<SenderDriver>>>,
}

/// How far those who send have come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) logins: u64,
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    /// Refused for good.
    pub(crate) refused: u64,
}

/// What those who send went through.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct SenderOutcome {
    /// Errors that the server told, by code.
    pub(crate) sender_errors_by_code: BTreeMap<u32, u64>,
    /// Connections that ended or could not be made, but by our own doing.
    pub(crate) sender_disconnects: u64,
}

impl SenderOutcome {
    pub(crate) fn check(&self, misses: &mut Misses) {
        let Self { sender_errors_by_code: errors, sender_disconnects: disconnects } = self;
        misses.expect(errors.is_empty(), || format!("those who send were told errors, by code: {errors:?}"));
        misses.expect_unlimited(limited(errors));
        misses.expect(*disconnects == 0, || format!("{disconnects} connections of those who send were lost"));
    }
}

impl Senders {
    pub(crate) fn start(target: &dyn Target, plan: SenderPlan, clock: Clock) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let configs = (0..SENDERS).map(|number| client_config(target, plan.sender(number), DEVICE, plan.seed));
        let configs = configs.collect::<Result<Vec<_>>>()?;
        let driver = SenderDriver {
            plan,
            shared: Arc::clone(&shared),
            next: (0..SENDERS).collect(),
            begun_us: 0,
            begun_sent: 0,
            until: 0,
            errors: BTreeMap::new(),
            are_there: vec![false; configs.len()],
            configs,
        };
        let deadline_us = clock.now_us() + RUN_US_MAX;
        let worker = worker::spawn("senders".to_owned(), target.address(), clock, deadline_us, driver);
        Ok(Self { shared, worker: worker.context("cannot start a worker")? })
    }

    /// Sends all messages up to this number.
    pub(crate) fn send_until(&self, message: u64) {
        self.shared.until.store(message, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self) -> Result<Sent> {
        if self.worker.is_finished() {
            bail!("the worker of those who send ended before its time");
        }
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Shared { logins, sent, acked, refused, .. } = &*self.shared;
        Ok(Sent { logins: load(logins), sent: load(sent), acked: load(acked), refused: load(refused) })
    }

    /// Ends them; returns what they went through.
    pub(crate) fn close(self) -> Result<SenderOutcome> {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        let finished = self.worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?.context("a worker")?;
        let counts = finished.counts;
        Ok(SenderOutcome {
            sender_errors_by_code: finished.driver.errors,
            sender_disconnects: counts.disconnects + counts.connect_failures,
        })
    }
}

/// All who send, on one poll loop.
struct SenderDriver {
    plan: SenderPlan,
    shared: Arc<Shared>,
    configs: Vec<culver_protocol::client::ClientConfig>,
    /// The next message of each.
    next: Vec<u64>,
    /// When the present round began, and what had been sent by then.
    begun_us: u64,
    begun_sent: u64,
    until: u64,
    errors: BTreeMap<u32, u64>,
    /// Who has been logged in: a sender counts once, however often it comes.
    are_there: Vec<bool>,
}

impl SenderDriver {
    fn handle_login(&mut self, index: LinkIndex) {
        let Some(is_there) = self.are_there.get_mut(index.0) else { return };
        if !std::mem::replace(is_there, true) {
            self.shared.logins.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends one message if it is due and there is room; `false`: not now.
    fn send(&mut self, index: LinkIndex, client: &mut Client, now_us: u64) -> bool {
        let Some(next) = self.next.get_mut(index.0) else { return false };
        let message = *next;
        if message >= self.until || client.in_flight() >= WINDOW || !client.is_logged_in() {
            return false;
        }
        let conversation = ConversationId::direct(client.user(), self.plan.recipient(message));
        let id = plan::message_id(self.plan.run, MessageIndex(message));
        if client.send(id, conversation, self.plan.payload(message, now_us), now_us).is_err() {
            return false;
        }
        *next += SENDERS;
        self.shared.sent.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// How many the pace allows by now.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "microseconds and messages of a run are below 2^52"
    )]
    fn allowed(&self, rate: f64, now_us: u64) -> u64 {
        self.begun_sent + ((now_us - self.begun_us) as f64 * rate / 1e6) as u64 + 1
    }

    fn send_paced(&mut self, links: &mut Links, rate: f64, now_us: u64) {
        let allowed = self.allowed(rate, now_us);
        for _ in 0..WINDOW {
            let mut is_moving = false;
            for index in 0..self.next.len() {
                if self.shared.sent.load(Ordering::Relaxed) >= allowed {
                    return;
                }
                let index = LinkIndex(index);
                is_moving |= self.send(index, links.client(index), now_us);
            }
            if !is_moving {
                return;
            }
        }
    }
}

impl Driver for SenderDriver {
    fn begin(&mut self, links: &mut Links, now_us: u64) {
        for config in std::mem::take(&mut self.configs) {
            links.add(config, None, now_us);
        }
    }

    fn handle_event(&mut self, index: LinkIndex, client: &mut Client, event: Event, now_us: u64) {
        match event {
            Event::LoggedIn(_) => self.handle_login(index),
            Event::Sent(_) => drop(self.shared.acked.fetch_add(1, Ordering::Relaxed)),
            Event::Rejected { code, retry: true, .. } if code == ErrorCode::RateLimited.number() => {
                *self.errors.entry(code).or_default() += 1;
            }
            Event::Rejected { retry: false, .. } => drop(self.shared.refused.fetch_add(1, Ordering::Relaxed)),
            Event::Receipt(receipt) => client.receipts_persisted(receipt.version),
            Event::ServerError(error) => *self.errors.entry(error.code).or_default() += 1,
            _ => {}
        }
        if self.plan.rate.is_none() {
            while self.send(index, client, now_us) {}
        }
    }

    fn handle_turn(&mut self, links: &mut Links, now_us: u64) -> Option<u64> {
        let until = self.shared.until.load(Ordering::Relaxed);
        let is_new = until != self.until;
        if is_new {
            (self.until, self.begun_us) = (until, now_us);
            self.begun_sent = self.shared.sent.load(Ordering::Relaxed);
        }
        match self.plan.rate {
            Some(rate) if self.shared.sent.load(Ordering::Relaxed) < until => {
                self.send_paced(links, rate, now_us);
                Some(now_us + PACE_US)
            }
            None if is_new => {
                for index in (0..self.next.len()).map(LinkIndex) {
                    while self.send(index, links.client(index), now_us) {}
                }
                None
            }
            _ => None,
        }
    }

    fn is_done(&self) -> bool {
        self.shared.is_stopped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_client_gets_each_round_once_and_knows_its_messages() {
        let plan =
            SenderPlan { run: RunId(7), first_user: 1000, connections: 1501, first_sender: 9000, rate: None, seed: 1 };
        for round in 0..3 {
            let messages = round * plan.connections..(round + 1) * plan.connections;
            let recipients: BTreeSet<_> = messages.clone().map(|message| plan.recipient(message)).collect();
            assert_eq!(recipients.len(), 1501);
            assert_eq!(recipients.first(), Some(&UserId(1000)));
            let senders: BTreeSet<_> = messages.map(|message| plan.sender(message)).collect();
            assert_eq!(senders.len(), 64);
            assert!(senders.is_disjoint(&recipients));
        }
        let payload = plan.payload(1502, 77);
        assert_eq!(payload.len(), PAYLOAD_LEN);
        assert_eq!(plan::message_index(plan.run, &payload), Some(MessageIndex(1502)));
        assert!(is_whole(&payload, MessageIndex(1502)));
        assert!(!is_whole(&payload, MessageIndex(1503)));
        let last = payload.len() - 1;
        assert!(!is_whole(&payload[..last], MessageIndex(1502)), "cut short");
        assert!(!is_whole(&[&payload[..last], &[0]].concat(), MessageIndex(1502)), "another last byte");
    }
}
