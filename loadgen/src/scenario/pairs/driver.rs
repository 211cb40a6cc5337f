//! The part of a pair run that lives in a worker: it sends, receives, checks and measures. Sans-io.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use culver_protocol::client::{Client, ClientConfig, ClientError, Event};
use culver_protocol::id::InboxSeq;
use culver_protocol::message::Accepted;
use culver_protocol::proto::Entry;
use rand::Rng;
use rand::rngs::SmallRng;

use super::shared::{Counters, Shared};
use super::{Pace, PairOutcome, SlotLatencies};
use crate::journal::{Journal, Noted};
use crate::links::{LinkCounts, LinkIndex, Links};
use crate::plan::{self, MessageIndex, PairPlan, Payloads, RunId};
use crate::verify::{Findings, FlowCheck};
use crate::worker::Driver;

/// The open loop wakes at most this often: what is due by then goes in one turn.
const WAKE_US_MIN: u64 = 100;
/// Messages that fall due in one turn, at most; the rest waits for the next.
const SENDS_PER_TURN_MAX: usize = 8192;
/// Of recipients that persist late, one entry in so many is persisted at once, with all before it.
const PERSIST_ONE_IN: u32 = 8;
/// What is left is persisted this often.
const PERSIST_EVERY_US: u64 = 20_000;
/// Violations kept for the report.
const VIOLATIONS_MAX: usize = 16;

/// How a worker's pairs behave.
pub(crate) struct PairSettings {
    pub(crate) pace: Pace,
    pub(crate) payloads: Payloads,
    pub(crate) run: RunId,
    /// Slots that are measured, from 1.
    pub(crate) slots: u8,
    pub(crate) journal: Option<Journal>,
    pub(crate) drops_per_s: f64,
    pub(crate) persists_late: bool,
    pub(crate) rng: SmallRng,
}

/// One pair before the run.
pub(crate) struct PairSeat {
    pub(crate) plan: PairPlan,
    pub(crate) sender: ClientConfig,
    pub(crate) recipient: ClientConfig,
}

struct Pair {
    plan: PairPlan,
    check: FlowCheck,
    /// Messages that are due but found no room under way: when they should have been sent.
    overdue: VecDeque<u64>,
    /// Delivered, not yet persisted.
    unpersisted: Option<InboxSeq>,
}

/// The driver of one worker's pairs. Pair `p` has the links `2p` (sender) and `2p + 1` (recipient).
pub(crate) struct PairDriver {
    settings: PairSettings,
    seats: Vec<PairSeat>,
    pairs: Vec<Pair>,
    shared: Arc<Shared>,
    slots: Vec<SlotLatencies>,
    /// When sending began; 0: not yet.
    began_us: u64,
    /// Messages of the open loop that have fallen due.
    due_count: u64,
    next_drop_us: u64,
    next_persist_us: u64,
    turn: Counters,
    stopping: bool,
    done: bool,
    errors: BTreeMap<u32, u64>,
    foreign: u64,
    violations: Vec<String>,
}

impl PairDriver {
    pub(crate) fn new(settings: PairSettings, seats: Vec<PairSeat>, shared: Arc<Shared>) -> Self {
        Self {
            slots: (0..settings.slots).map(|_| SlotLatencies::new()).collect(),
            settings,
            seats,
            pairs: Vec::new(),
            shared,
            began_us: 0,
            due_count: 0,
            next_drop_us: 0,
            next_persist_us: 0,
            turn: Counters::default(),
            stopping: false,
            done: false,
            errors: BTreeMap::new(),
            foreign: 0,
            violations: Vec::new(),
        }
    }

    /// What came of it.
    pub(crate) fn into_outcome(self, links: LinkCounts, redelivered: u64) -> PairOutcome {
        let mut findings = Findings::default();
        for pair in &self.pairs {
            findings.add(&pair.check.findings());
        }
        PairOutcome {
            findings,
            slots: self.slots,
            links,
            redelivered,
            errors: self.errors,
            foreign: self.foreign,
            violations: self.violations,
            journals: self.settings.journal.iter().map(|journal| journal.path().to_owned()).collect(),
        }
    }

    fn begin_sending(&mut self, links: &mut Links, now_us: u64) {
        self.began_us = now_us;
        self.next_drop_us = now_us;
        self.plan_next_drop(now_us);
        if let Pace::Closed { .. } = self.settings.pace {
            for pair in 0..self.pairs.len() {
                self.refill(pair, links.client(LinkIndex(2 * pair)), now_us);
            }
        }
    }

    /// Closed loop: keeps the asked number under way.
    fn refill(&mut self, pair: usize, client: &mut Client, now_us: u64) {
        let Pace::Closed { in_flight } = self.settings.pace else { return };
        while !self.stopping && self.pair(pair).check.unanswered() < in_flight as u64 {
            if self.send(pair, client, now_us, now_us).is_err() {
                return;
            }
        }
    }

    /// Open loop: sends what has fallen due; returns when the next does.
    fn send_due(&mut self, links: &mut Links, rate: f64, now_us: u64) -> u64 {
        for _ in 0..SENDS_PER_TURN_MAX {
            let due_us = self.began_us + due_after_us(self.due_count, rate);
            if due_us > now_us {
                return due_us.max(now_us + WAKE_US_MIN);
            }
            let pair = usize::try_from(self.due_count % self.pairs.len() as u64).expect("below a length");
            self.due_count += 1;
            self.pair(pair).overdue.push_back(due_us);
            self.send_overdue(pair, links.client(LinkIndex(2 * pair)), now_us);
        }
        now_us
    }

    fn send_overdue(&mut self, pair: usize, client: &mut Client, now_us: u64) {
        while let Some(due_us) = self.pair(pair).overdue.pop_front() {
            if self.send(pair, client, due_us, now_us).is_err() {
                self.pair(pair).overdue.push_front(due_us);
                return;
            }
        }
    }

    fn send(&mut self, pair: usize, client: &mut Client, due_us: u64, now_us: u64) -> Result<(), ClientError> {
        if client.in_flight() >= culver_protocol::limits::CLIENT_IN_FLIGHT_MAX {
            return Err(ClientError::InFlightFull);
        }
        let slot = self.shared.slot();
        let place = self.pair(pair);
        let conversation = place.plan.conversation;
        let index = place.check.sent(due_us, slot);
        self.note(pair, Noted::Sent, index, 0);
        let id = plan::message_id(self.settings.run, index);
        let sent = client.send(id, conversation, self.settings.payloads.make(index), now_us);
        if sent.is_err() {
            self.pair(pair).check.rejected(index);
            self.note(pair, Noted::Rejected, index, 0);
            return sent;
        }
        self.turn.sent += 1;
        if let Some(latencies) = self.slot(slot) {
            latencies.lag.record(now_us - due_us);
        }
        Ok(())
    }

    fn handle_sent(&mut self, pair: usize, accepted: &Accepted, now_us: u64) {
        let Some(index) = plan::message_index(self.settings.run, &accepted.client_message_id.0) else { return };
        self.turn.acked += 1;
        let seq = accepted.conversation_seq.0;
        self.note(pair, Noted::Acked, index, seq);
        if let Some(flight) = self.pair(pair).check.acked(index, seq)
            && let Some(latencies) = self.slot(flight.slot)
        {
            latencies.ack.record(now_us.saturating_sub(flight.sent_us));
        }
    }

    fn handle_delivered(&mut self, pair: usize, entry: &Entry, now_us: u64) {
        let of_pair = entry.conversation.as_ref() == self.pair(pair).plan.conversation.0;
        let index = plan::message_index(self.settings.run, &entry.payload).filter(|_| of_pair);
        let Some(index) = index else {
            self.foreign += 1;
            return;
        };
        self.turn.delivered += 1;
        self.note(pair, Noted::Delivered, index, entry.conversation_seq);
        if let Some(flight) = self.pair(pair).check.delivered(index, entry.conversation_seq)
            && let Some(latencies) = self.slot(flight.slot)
        {
            latencies.delivery.record(now_us.saturating_sub(flight.sent_us));
        }
    }

    fn note(&mut self, pair: usize, what: Noted, index: MessageIndex, seq: u64) {
        if let Some(journal) = &mut self.settings.journal {
            journal.note(what, pair, index, seq);
        }
    }

    /// Persists what some recipients have kept back. Who is cut off meanwhile comes back with the old cursor.
    fn persist_late(&mut self, links: &mut Links, now_us: u64) -> Option<u64> {
        if !self.settings.persists_late {
            return None;
        }
        if now_us >= self.next_persist_us {
            self.next_persist_us = now_us + PERSIST_EVERY_US;
            for (number, pair) in self.pairs.iter_mut().enumerate() {
                let recipient = LinkIndex(2 * number + 1);
                if links.is_logged_in(recipient)
                    && let Some(through) = pair.unpersisted.take()
                {
                    links.client(recipient).persisted(through);
                }
            }
        }
        Some(self.next_persist_us)
    }

    /// Cuts connections by itself, at random times.
    fn drop_some(&mut self, links: &mut Links, now_us: u64) -> Option<u64> {
        if self.settings.drops_per_s <= 0.0 {
            return None;
        }
        if now_us >= self.next_drop_us {
            let unlucky = self.settings.rng.random_range(0..links.len());
            links.cut(LinkIndex(unlucky), now_us);
            self.plan_next_drop(now_us);
        }
        Some(self.next_drop_us)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a wait, positive and short")]
    fn plan_next_drop(&mut self, now_us: u64) {
        if self.settings.drops_per_s > 0.0 {
            let mean_us = 1e6 / self.settings.drops_per_s;
            let wait_us = self.settings.rng.random_range(0.0..2.0 * mean_us);
            self.next_drop_us = now_us + wait_us as u64;
        }
    }

    fn is_settled(&self) -> bool {
        self.pairs.iter().all(|pair| pair.check.is_settled() && pair.overdue.is_empty())
    }

    fn pair(&mut self, pair: usize) -> &mut Pair {
        self.pairs.get_mut(pair).expect("links and pairs are made together")
    }

    fn slot(&mut self, slot: u8) -> Option<&mut SlotLatencies> {
        self.slots.get_mut(usize::from(slot).checked_sub(1)?)
    }
}

impl Driver for PairDriver {
    fn begin(&mut self, links: &mut Links, now_us: u64) {
        for seat in std::mem::take(&mut self.seats) {
            links.add(seat.sender, None, now_us);
            let recipient = links.add(seat.recipient, None, now_us);
            if self.settings.journal.is_some() {
                links.watch_redelivery(recipient);
            }
            let (check, overdue) = (FlowCheck::default(), VecDeque::new());
            self.pairs.push(Pair { plan: seat.plan, check, overdue, unpersisted: None });
        }
    }

    fn handle_event(&mut self, index: LinkIndex, client: &mut Client, event: Event, now_us: u64) {
        let pair = index.0 / 2;
        match event {
            Event::Sent(accepted) => {
                self.handle_sent(pair, &accepted, now_us);
                self.refill(pair, client, now_us);
                self.send_overdue(pair, client, now_us);
            }
            Event::Delivered(entry) => {
                self.handle_delivered(pair, &entry, now_us);
                if self.settings.persists_late && self.settings.rng.random_range(0..PERSIST_ONE_IN) > 0 {
                    self.pair(pair).unpersisted = Some(InboxSeq(entry.inbox_seq));
                } else {
                    self.pair(pair).unpersisted = None;
                    client.persisted(InboxSeq(entry.inbox_seq));
                }
            }
            Event::LoggedIn(_) => self.shared.count_login(),
            Event::Rejected { id, code, retry } => {
                *self.errors.entry(code).or_default() += 1;
                let index = plan::message_index(self.settings.run, &id.0);
                if let Some(index) = index.filter(|_| !retry) {
                    self.pair(pair).check.rejected(index);
                    self.note(pair, Noted::Rejected, index, 0);
                    self.refill(pair, client, now_us);
                }
            }
            // What is about a request comes as a rejection too.
            Event::ServerError(error) if error.request_id.is_empty() => {
                *self.errors.entry(error.code).or_default() += 1;
            }
            Event::Stopped { code } | Event::CredentialNeeded { code } => self.shared.refuse(code),
            Event::Violation(violation) => {
                if self.violations.len() < VIOLATIONS_MAX {
                    self.violations.push(violation.to_string());
                }
            }
            Event::Gap(gap) => {
                if self.violations.len() < VIOLATIONS_MAX {
                    self.violations.push(format!("a gap: the inbox begins at {} (reset: {})", gap.start, gap.reset));
                }
            }
            Event::ServerError(_) | Event::Goaway(_) | Event::Connect | Event::Disconnect => {}
            Event::Receipt(_) | Event::SyncStart(_) | Event::SyncDone(_) => {}
            Event::Answer { .. } | Event::Cancelled { .. } => {}
        }
    }

    fn handle_turn(&mut self, links: &mut Links, now_us: u64) -> Option<u64> {
        if self.shared.is_abandoned() {
            self.done = true;
            return None;
        }
        if self.began_us == 0 {
            if self.shared.is_going() {
                self.begin_sending(links, now_us);
            } else {
                self.done = self.shared.is_stopped();
            }
            return None;
        }
        self.stopping = self.shared.is_stopped();
        let persisting_us = self.persist_late(links, now_us);
        if self.stopping {
            self.done = self.is_settled();
            return persisting_us;
        }
        let dropping_us = self.drop_some(links, now_us);
        let sending_us = match self.settings.pace {
            Pace::Open { rate } => Some(self.send_due(links, rate, now_us)),
            Pace::Closed { .. } => None,
        };
        [persisting_us, dropping_us, sending_us].into_iter().flatten().min()
    }

    fn before_write(&mut self) -> io::Result<()> {
        if self.turn != Counters::default() {
            self.shared.count(std::mem::take(&mut self.turn));
        }
        match &mut self.settings.journal {
            Some(journal) => journal.flush(),
            None => Ok(()),
        }
    }

    fn is_done(&self) -> bool {
        self.done
    }
}

/// When message number `count` of an open loop is due, from its beginning.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "52 bits of microseconds are 142 years"
)]
fn due_after_us(count: u64, rate: f64) -> u64 {
    (count as f64 * 1e6 / rate) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_loop_does_not_drift() {
        assert_eq!(due_after_us(0, 3.0), 0);
        assert_eq!(due_after_us(3, 3.0), 1_000_000);
        assert_eq!(due_after_us(3_000_000, 3.0), 1_000_000_000_000);
    }
}
