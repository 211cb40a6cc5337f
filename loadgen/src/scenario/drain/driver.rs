//! The part of `drain` that lives in a worker: it fills the inboxes, lets their users in, and checks. Sans-io.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use culver_protocol::client::{Client, ClientConfig, Event};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::InboxSeq;
use culver_protocol::message::Accepted;
use culver_protocol::proto::{Entry, SyncStart};

use crate::links::{LinkIndex, Links};
use crate::plan::{self, MessageIndex, PairPlan, Payloads, RunId};
use crate::scenario::pairs::shared::{Counters, Shared};
use crate::verify::{Findings, FlowCheck};
use crate::worker::Driver;

/// Logins that may wait for their welcome over all workers: what a listener's queue surely holds.
const PENDING_MAX: u64 = 256;
/// How often the pace of logins is looked at.
const PACE_US: u64 = 1000;
/// An id is the number within its inbox, then the inbox: ids of one sender ascend.
const INBOX_BITS: u32 = 32;

/// What the workers and the thread that conducts them tell each other.
#[derive(Debug, Default)]
pub(super) struct Conductor {
    pub(super) shared: Shared,
    /// Messages wanted in each inbox.
    goal: AtomicU64,
    draining: AtomicBool,
    /// SYNC_STARTs that came.
    sync_starts: AtomicU64,
    /// Those that told something else than what waits.
    sync_starts_wrong: AtomicU64,
}

impl Conductor {
    /// From now on each inbox is filled up to so many messages.
    pub(super) fn fill_to(&self, messages: u64) {
        self.goal.store(messages, Ordering::Release);
    }

    /// From now on the recipients come.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// SYNC_STARTs so far, and how many of them were wrong.
    pub(super) fn sync_starts(&self) -> (u64, u64) {
        (self.sync_starts.load(Ordering::Relaxed), self.sync_starts_wrong.load(Ordering::Relaxed))
    }
}

/// What a worker starts with.
pub(super) struct Seats {
    pub(super) senders: Vec<ClientConfig>,
    /// Each with the place of its sender among `senders`.
    pub(super) inboxes: Vec<(usize, PairPlan, ClientConfig)>,
}

/// How a worker goes about it.
pub(super) struct DrainSettings {
    pub(super) in_flight: u64,
    /// Logins a second of this worker.
    pub(super) logins_per_s: f64,
    pub(super) payloads: Payloads,
    pub(super) run: RunId,
}

struct Sender {
    /// The places of its inboxes.
    inboxes: Vec<usize>,
    /// Every inbox has so many messages, those before `next` one more.
    rounds: u64,
    next: usize,
    unanswered: u64,
}

struct Inbox {
    plan: PairPlan,
    check: FlowCheck,
}

/// Fills and drains. Links: the senders first, then the recipients in the order of their inboxes.
pub(super) struct DrainDriver {
    settings: DrainSettings,
    conductor: Arc<Conductor>,
    sender_configs: Vec<ClientConfig>,
    /// The next recipient to come is the last.
    recipient_configs: Vec<ClientConfig>,
    senders: Vec<Sender>,
    inboxes: Vec<Inbox>,
    goal: u64,
    draining_since_us: Option<u64>,
    recipients_in: u64,
    turn: Counters,
    done: bool,
}

impl DrainDriver {
    pub(super) fn new(settings: DrainSettings, seats: Seats, conductor: Arc<Conductor>) -> Self {
        let sender = |_| Sender { inboxes: Vec::new(), rounds: 0, next: 0, unanswered: 0 };
        let mut senders: Vec<Sender> = seats.senders.iter().map(sender).collect();
        let (mut inboxes, mut recipient_configs) = (Vec::new(), Vec::new());
        for (place, (sender, plan, config)) in seats.inboxes.into_iter().enumerate() {
            senders.get_mut(sender).expect("the place of a sender").inboxes.push(place);
            inboxes.push(Inbox { plan, check: FlowCheck::default() });
            recipient_configs.push(config);
        }
        recipient_configs.reverse();
        Self {
            settings,
            conductor,
            sender_configs: seats.senders,
            recipient_configs,
            senders,
            inboxes,
            goal: 0,
            draining_since_us: None,
            recipients_in: 0,
            turn: Counters::default(),
            done: false,
        }
    }

    /// What was found in all inboxes.
    pub(super) fn findings(&self) -> Findings {
        let mut findings = Findings::default();
        for inbox in &self.inboxes {
            findings.add(&inbox.check.findings());
        }
        findings
    }

    fn refill(&mut self, sender: usize, client: &mut Client, now_us: u64) {
        while let Some(place) = self.next_inbox(sender) {
            let inbox = self.inboxes.get_mut(place).expect("senders hold places of inboxes");
            let number = inbox.check.sent(now_us, 0);
            let index = MessageIndex(number.0 << INBOX_BITS | place as u64);
            let id = plan::message_id(self.settings.run, index);
            let sent = client.send(id, inbox.plan.conversation, self.settings.payloads.make(index), now_us);
            sent.expect("far fewer messages are under way than a client takes");
            self.turn.sent += 1;
        }
    }

    /// Where the sender's next message goes; `None`: not now.
    fn next_inbox(&mut self, sender: usize) -> Option<usize> {
        let (in_flight, goal) = (self.settings.in_flight, self.goal);
        let sender = self.senders.get_mut(sender)?;
        if sender.unanswered >= in_flight || sender.rounds >= goal {
            return None;
        }
        let place = *sender.inboxes.get(sender.next)?;
        sender.unanswered += 1;
        sender.next += 1;
        if sender.next == sender.inboxes.len() {
            sender.next = 0;
            sender.rounds += 1;
        }
        Some(place)
    }

    fn handle_sent(&mut self, sender: usize, accepted: &Accepted) {
        let seq = accepted.conversation_seq.0;
        if let Some((place, number)) = self.place(&accepted.client_message_id.0)
            && let Some(inbox) = self.inboxes.get_mut(place)
        {
            inbox.check.acked(number, seq);
            self.turn.acked += 1;
        }
        self.answered(sender);
    }

    fn answered(&mut self, sender: usize) {
        if let Some(sender) = self.senders.get_mut(sender) {
            sender.unanswered = sender.unanswered.saturating_sub(1);
        }
    }

    fn handle_delivered(&mut self, recipient: usize, entry: &Entry) {
        let found = self.place(&entry.payload).filter(|(place, _)| *place == recipient);
        if let Some((place, number)) = found
            && let Some(inbox) = self.inboxes.get_mut(place)
        {
            inbox.check.delivered(number, entry.conversation_seq);
            self.turn.delivered += 1;
        }
    }

    /// All that waits came from one sender, and nothing of it has been acknowledged.
    fn handle_sync_start(&mut self, recipient: usize, sync: &SyncStart) {
        let Some(inbox) = self.inboxes.get(recipient) else { return };
        let is_right = match sync.conversations.as_slice() {
            [only] => {
                only.conversation.as_ref() == inbox.plan.conversation.0
                    && only.waiting == self.goal
                    && only.last_seq == self.goal
                    && sync.entries == self.goal
            }
            _ => false,
        };
        self.conductor.sync_starts.fetch_add(1, Ordering::Relaxed);
        self.conductor.sync_starts_wrong.fetch_add(u64::from(!is_right), Ordering::Relaxed);
    }

    /// Which inbox of this worker an id or a payload names, and which message there.
    fn place(&self, bytes: &[u8]) -> Option<(usize, MessageIndex)> {
        let index = plan::message_index(self.settings.run, bytes)?;
        let place = usize::try_from(index.0 & ((1 << INBOX_BITS) - 1)).ok()?;
        Some((place, MessageIndex(index.0 >> INBOX_BITS)))
    }

    /// Lets recipients in at the pace asked for. Returns when to look again.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of connections and microseconds of a run are below 2^52"
    )]
    fn let_in(&mut self, links: &mut Links, now_us: u64) -> Option<u64> {
        let since_us = *self.draining_since_us.get_or_insert(now_us);
        let allowed = ((now_us - since_us) as f64 * self.settings.logins_per_s / 1e6) as u64 + 1;
        while self.recipients_in < allowed {
            let pending = self.recipients_in.saturating_sub(self.conductor.shared.logins());
            if pending >= PENDING_MAX {
                break;
            }
            let config = self.recipient_configs.pop()?;
            links.add(config, None, now_us);
            self.recipients_in += 1;
        }
        (!self.recipient_configs.is_empty()).then_some(now_us + PACE_US)
    }
}

impl Driver for DrainDriver {
    fn begin(&mut self, links: &mut Links, now_us: u64) {
        for config in std::mem::take(&mut self.sender_configs) {
            links.add(config, None, now_us);
        }
    }

    fn handle_event(&mut self, index: LinkIndex, client: &mut Client, event: Event, now_us: u64) {
        let recipient = index.0.checked_sub(self.senders.len());
        match (recipient, event) {
            (None, Event::Sent(accepted)) => {
                self.handle_sent(index.0, &accepted);
                self.refill(index.0, client, now_us);
            }
            (None, Event::Rejected { code, retry: false, .. }) => self.conductor.shared.refuse(code),
            (None, Event::Rejected { code, .. }) => {
                self.turn.limited += u64::from(code == ErrorCode::RateLimited.number());
            }
            (Some(_), Event::LoggedIn(_)) => self.conductor.shared.count_login(),
            (Some(recipient), Event::SyncStart(sync)) => self.handle_sync_start(recipient, &sync),
            (Some(recipient), Event::Delivered(entry)) => {
                self.handle_delivered(recipient, &entry);
                client.persisted(InboxSeq(entry.inbox_seq));
            }
            (_, Event::Stopped { code } | Event::CredentialNeeded { code }) => self.conductor.shared.refuse(code),
            _ => {}
        }
    }

    fn handle_turn(&mut self, links: &mut Links, now_us: u64) -> Option<u64> {
        self.done = self.conductor.shared.is_stopped();
        let goal = self.conductor.goal.load(Ordering::Acquire);
        if goal != self.goal {
            self.goal = goal;
            for sender in 0..self.senders.len() {
                self.refill(sender, links.client(LinkIndex(sender)), now_us);
            }
        }
        if self.conductor.draining.load(Ordering::Acquire) { self.let_in(links, now_us) } else { None }
    }

    fn before_write(&mut self) -> io::Result<()> {
        if self.turn != Counters::default() {
            self.conductor.shared.count(std::mem::take(&mut self.turn));
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use culver_protocol::id::UserId;
    use culver_protocol::proto::ConversationItem;

    use super::*;

    const RUN: RunId = RunId(7);

    /// Two senders: the first with inboxes 0 and 1, the second with inbox 2.
    fn driver(in_flight: u64) -> DrainDriver {
        let inbox = |sender: usize, recipient: u64| {
            let (from, to) = (UserId(sender as u64), UserId(recipient));
            let plan = PairPlan::new(from, to);
            (sender, plan, ClientConfig::default())
        };
        let seats = Seats {
            senders: vec![ClientConfig::default(), ClientConfig::default()],
            inboxes: vec![inbox(0, 10), inbox(0, 11), inbox(1, 12)],
        };
        let payloads = Payloads::new(RUN, plan::PAYLOAD_LEN_MIN, 1);
        let settings = DrainSettings { in_flight, logins_per_s: 1.0, payloads, run: RUN };
        DrainDriver::new(settings, seats, Arc::default())
    }

    #[test]
    fn a_sender_goes_round_its_inboxes_up_to_the_goal() {
        let mut driver = driver(100);
        assert_eq!(driver.next_inbox(0), None);
        driver.goal = 2;
        let order: Vec<_> = std::iter::from_fn(|| driver.next_inbox(0)).collect();
        assert_eq!(order, [0, 1, 0, 1]);
        assert_eq!(std::iter::from_fn(|| driver.next_inbox(1)).count(), 2);
        driver.goal = 3;
        assert_eq!(std::iter::from_fn(|| driver.next_inbox(0)).count(), 2);
    }

    #[test]
    fn no_more_is_under_way_than_was_asked_for() {
        let mut driver = driver(3);
        driver.goal = 100;
        assert_eq!(std::iter::from_fn(|| driver.next_inbox(0)).count(), 3);
        driver.answered(0);
        assert_eq!(driver.next_inbox(0), Some(1));
        assert_eq!(driver.next_inbox(0), None);
    }

    #[test]
    fn a_message_is_taken_for_its_own_inbox_only() {
        let mut driver = driver(1);
        let index = driver.inboxes.get_mut(1).expect("there are three").check.sent(1, 0);
        let payload = driver.settings.payloads.make(MessageIndex(index.0 << INBOX_BITS | 1));
        let entry = Entry { inbox_seq: 1, conversation_seq: 1, payload, ..Entry::default() };
        driver.handle_delivered(0, &entry);
        assert_eq!(driver.findings().delivered, 0);
        driver.handle_delivered(1, &entry);
        assert_eq!(driver.findings().delivered, 1);
    }

    #[test]
    fn ids_of_one_sender_ascend() {
        let index = |round: u64, place: u64| MessageIndex(round << INBOX_BITS | place);
        let ids = [index(0, 0), index(0, 1), index(1, 0), index(1, 1)].map(|index| plan::message_id(RUN, index).0);
        assert!(ids.is_sorted());
    }

    #[test]
    fn a_sync_start_tells_what_waits() {
        let mut driver = driver(1);
        driver.goal = 5;
        let conversation = driver.inboxes.get(2).expect("there are three").plan.conversation;
        let item = ConversationItem {
            conversation: conversation.0.to_vec().into(),
            waiting: 5,
            last_seq: 5,
            ..ConversationItem::default()
        };
        let right = SyncStart { entries: 5, through: 5, conversations: vec![item] };
        driver.handle_sync_start(2, &right);
        assert_eq!(driver.conductor.sync_starts(), (1, 0));
        driver.handle_sync_start(1, &right);
        driver.handle_sync_start(2, &SyncStart { entries: 4, ..right.clone() });
        driver.handle_sync_start(2, &SyncStart { conversations: Vec::new(), ..right });
        assert_eq!(driver.conductor.sync_starts(), (4, 3));
    }
}
