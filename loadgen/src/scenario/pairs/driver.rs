//! The part of a pair run that lives in a worker: it sends, receives, checks and measures. Sans-io.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use culver_protocol::client::{Client, Event};
use culver_protocol::id::InboxSeq;
use culver_protocol::proto::{Entry, Gap};
use rand::Rng;
use rand::rngs::SmallRng;

use super::pair::{Device, Given, Owner, Pair, PairStart, User, UserStart, Who};
use super::ramp::Offer;
use super::shared::{Counters, Shared};
use super::turmoil::Turmoil;
use super::{Pace, PairCounts, PairOutcome, SlotLatencies};
use crate::journal::Journal;
use crate::links::{LinkCounts, LinkIndex, Links};
use crate::plan::{self, Payloads, RunId};
use crate::verify::{Findings, Flight, FlowCheck, Note, Place, Shape};
use crate::worker::Driver;

/// Of devices that persist late, one entry in so many is persisted at once, with all before it.
const PERSIST_ONE_IN: u32 = 8;
/// What is left is persisted this often.
const PERSIST_EVERY_US: u64 = 20_000;
/// Violations kept for the report.
const VIOLATIONS_MAX: usize = 16;
/// Pairs whose first fault is told in words.
const FAULTS_MAX: usize = 16;

/// How a worker's pairs behave.
pub(crate) struct PairSettings {
    pub(crate) pace: Pace,
    /// This worker's part of a rate that is told later.
    pub(crate) share: f64,
    pub(crate) payloads: Payloads,
    pub(crate) run: RunId,
    /// Slots that are measured, from 1.
    pub(crate) slots: u8,
    pub(crate) journal: Option<Journal>,
    pub(crate) persists_late: bool,
    /// Receipts are checked and measured.
    pub(crate) receipts: bool,
    /// Users with several devices wait until the server knows each.
    pub(crate) awaits_linking: bool,
    /// In the end every device looks at its list of conversations.
    pub(crate) lists: bool,
    pub(crate) rng: SmallRng,
}

/// What a worker begins with.
#[derive(Default)]
pub(super) struct RunStart {
    pub(super) users: Vec<UserStart>,
    pub(super) pairs: Vec<PairStart>,
}

/// The driver of one worker's pairs. The links of a user's devices follow one another.
pub(crate) struct PairDriver {
    pub(super) settings: PairSettings,
    start: RunStart,
    pub(super) users: Vec<User>,
    pub(super) pairs: Vec<Pair>,
    /// Whose each link is.
    pub(super) owners: Vec<Owner>,
    pub(super) turmoil: Turmoil,
    pub(super) shared: Arc<Shared>,
    slots: Vec<SlotLatencies>,
    /// When sending began; 0: not yet.
    pub(super) began_us: u64,
    /// Messages of the open loop that have fallen due.
    pub(super) due_count: u64,
    pub(super) offer: Offer,
    next_persist_us: u64,
    pub(super) turn: Counters,
    pub(super) stopping: bool,
    done: bool,
    pub(super) counts: PairCounts,
    pub(super) errors: BTreeMap<u32, u64>,
    pub(super) foreign: u64,
    violations: Vec<String>,
}

impl PairDriver {
    pub(super) fn new(settings: PairSettings, turmoil: Turmoil, start: RunStart, shared: Arc<Shared>) -> Self {
        Self {
            slots: (0..settings.slots).map(|_| SlotLatencies::new()).collect(),
            settings,
            start,
            users: Vec::new(),
            pairs: Vec::new(),
            owners: Vec::new(),
            turmoil,
            shared,
            began_us: 0,
            due_count: 0,
            offer: Offer::default(),
            next_persist_us: 0,
            turn: Counters::default(),
            stopping: false,
            done: false,
            counts: PairCounts::default(),
            errors: BTreeMap::new(),
            foreign: 0,
            violations: Vec::new(),
        }
    }

    /// What came of it.
    pub(crate) fn into_outcome(self, links: LinkCounts, redelivered: Option<u64>) -> PairOutcome {
        let mut findings = Findings::default();
        let mut faults = Vec::new();
        for pair in &self.pairs {
            let found = pair.check.findings();
            findings.add(&found);
            let (sender, recipient) = (pair.start.plan.sender.0, pair.start.plan.recipient.0);
            if !found.is_clean() && faults.len() < FAULTS_MAX {
                let first = pair.check.first_fault().unwrap_or("nothing came wrong, but not everything came");
                faults.push(format!("from {sender} to {recipient}: {first} ({})", found.told()));
            }
        }
        PairOutcome {
            findings,
            slots: self.slots,
            links,
            counts: self.counts,
            redelivered,
            errors: self.errors,
            foreign: self.foreign,
            violations: self.violations,
            faults,
            journals: self.settings.journal.iter().map(|journal| journal.path().to_owned()).collect(),
        }
    }

    fn begin_user(&mut self, links: &mut Links, start: UserStart, now_us: u64) {
        let UserStart { devices, hides_reads } = start;
        let (user, first_link) = (self.users.len(), links.len());
        for (device, config) in (0..).zip(&devices) {
            let link = links.add(config.clone(), None, now_us);
            self.owners.push(Owner::Device(Who { user, device, life: 0 }));
            if self.settings.journal.is_some() {
                links.watch_redelivery(link);
            }
        }
        let devices = devices.into_iter().map(Device::new).collect();
        let (sends, receives) = (None, None);
        self.users.push(User { sends, receives, first_link, devices, must_hide_reads: hides_reads });
    }

    fn begin_pair(&mut self, start: PairStart) {
        let PairStart { plan, sender, recipient, reads, tells_reads } = start;
        let (senders, recipients) = (plan.sender_devices, plan.recipient_devices);
        let shape = Shape { senders, recipients, receipts: self.settings.receipts, reads, tells_reads };
        let pair = self.pairs.len();
        self.user(sender).sends = Some(pair);
        self.user(recipient).receives = Some(pair);
        self.pairs.push(Pair {
            start,
            check: FlowCheck::new(shape),
            overdue: VecDeque::new(),
            next_read_us: 0,
            untold: VecDeque::new(),
        });
        self.note(pair, Note::Pair(shape));
    }

    /// A client gave an entry to its application, which now has so much.
    pub(super) fn take_entry(&mut self, who: Who, entry: &Entry, given: &mut Given, now_us: u64) {
        given.inbox_seq = entry.inbox_seq;
        let Some(pair) = self.pair_of(who, &entry.conversation) else {
            self.foreign += 1;
            return;
        };
        let seq = entry.conversation_seq;
        let is_copy = self.pair(pair).start.sender == who.user;
        let last = if is_copy { &mut given.copied } else { &mut given.received };
        *last = seq.max(*last);
        let Some(index) = plan::message_index(self.settings.run, &entry.payload) else {
            self.foreign += 1;
            return;
        };
        self.turn.delivered += 1;
        let place = self.pair(pair).place(who);
        if let Some(flight) = self.note(pair, Note::Delivered { place, index, seq })
            && let Some(latencies) = self.slot(flight.slot).filter(|_| !is_copy)
        {
            latencies.delivery.record(now_us.saturating_sub(flight.sent_us));
        }
    }

    /// The device's application stores what it has; then the client may acknowledge it.
    pub(super) fn persist(&mut self, who: Who, client: &mut Client, given: Given, now_us: u64) {
        client.persisted(InboxSeq(given.inbox_seq));
        let user = self.user(who.user);
        let (sends, receives) = (user.sends, user.receives);
        let store = &mut self.device(who).store;
        store.incarnation = client.incarnation();
        let before = store.given;
        store.given = before.max(given);
        if let Some(pair) = sends.filter(|_| given.copied > before.copied) {
            let place = self.pair(pair).place(who);
            self.note(pair, Note::Persisted { place, seq: given.copied });
        }
        if let Some(pair) = receives.filter(|_| given.received > before.received) {
            let place = self.pair(pair).place(who);
            self.note(pair, Note::Persisted { place, seq: given.received });
            if self.settings.receipts {
                self.await_receipt(pair, given.received, now_us);
            }
        }
    }

    /// The pair of this user's that a conversation belongs to.
    pub(super) fn pair_of(&mut self, who: Who, conversation: &[u8]) -> Option<usize> {
        let mut pairs = self.user(who.user).pairs();
        pairs.find(|pair| self.pair(*pair).start.plan.conversation.0 == conversation)
    }

    /// Notes something about a client in each of its user's pairs.
    pub(super) fn note_everywhere(&mut self, who: Who, note: impl Fn(Place) -> Note) {
        for pair in self.user(who.user).pairs() {
            let place = self.pair(pair).place(who);
            self.note(pair, note(place));
        }
    }

    /// Tells checker and journal what happened. Returns the flight that it belongs to, the first time.
    pub(super) fn note(&mut self, pair: usize, note: Note) -> Option<Flight> {
        self.journal(pair, note);
        self.pair(pair).check.apply(note)
    }

    pub(super) fn journal(&mut self, pair: usize, note: Note) {
        if let Some(journal) = &mut self.settings.journal {
            journal.note(pair, note);
        }
    }

    /// Stores what some devices have kept back. Who is cut off meanwhile comes back with the old cursor.
    fn persist_late(&mut self, links: &mut Links, now_us: u64) -> Option<u64> {
        if !self.settings.persists_late {
            return None;
        }
        if now_us < self.next_persist_us {
            return Some(self.next_persist_us);
        }
        self.next_persist_us = now_us + PERSIST_EVERY_US;
        for user in 0..self.users.len() {
            for device in (0..).take(self.user(user).devices.len()) {
                let (link, who) = (self.user(user).link(device), Who { user, device, life: 0 });
                let device = self.device(who);
                if !links.is_logged_in(link) || !(device.is_behind || device.unsaved.is_some()) {
                    continue;
                }
                let (given, unsaved) = (device.given, device.unsaved.take());
                device.is_behind = false;
                let client = links.client(link);
                self.persist(who, client, given, now_us);
                if let Some(version) = unsaved {
                    self.save_receipts(who, client, version);
                }
            }
        }
        Some(self.next_persist_us)
    }

    /// Whether this is stored later.
    fn is_kept_back(&mut self) -> bool {
        self.settings.persists_late && self.settings.rng.random_range(0..PERSIST_ONE_IN) > 0
    }

    fn handle_device_event(&mut self, who: Who, client: &mut Client, event: Event, now_us: u64) {
        match event {
            Event::Sent(accepted) => self.handle_sent(who, client, &accepted, now_us),
            Event::Delivered(entry) => self.handle_delivered(who, client, &entry, now_us),
            Event::Receipt(receipt) => {
                self.take_receipt(who, &receipt, now_us);
                let is_kept_back = self.is_kept_back();
                self.device(who).unsaved = is_kept_back.then_some(receipt.version);
                if !is_kept_back {
                    self.save_receipts(who, client, receipt.version);
                }
            }
            Event::LoggedIn(_) => {
                self.device(who).store.incarnation = client.incarnation();
                let version = client.receipts();
                self.note_everywhere(who, |place| Note::LoggedIn { place, version });
                self.make_ready(who, client);
            }
            Event::Rejected { id, code, retry } => self.handle_rejected(who, client, (id, code, retry), now_us),
            // What is about a request comes as a rejection too.
            Event::ServerError(error) if error.request_id.is_empty() => {
                *self.errors.entry(error.code).or_default() += 1;
            }
            Event::Answer { id, result } => self.handle_answer(who, client, (id, result), now_us),
            Event::Cancelled { id } => drop(self.end_call(who, id)),
            Event::Stopped { code } | Event::CredentialNeeded { code } => self.shared.refuse(code),
            Event::Violation(violation) => self.violated(who, &violation.to_string()),
            Event::Gap(gap) => self.handle_gap(who, gap),
            _ => {}
        }
    }

    fn handle_delivered(&mut self, who: Who, client: &mut Client, entry: &Entry, now_us: u64) {
        let mut given = self.device(who).given;
        self.take_entry(who, entry, &mut given, now_us);
        let is_kept_back = self.is_kept_back();
        let device = self.device(who);
        device.given = given;
        device.is_behind = is_kept_back;
        if !is_kept_back {
            self.persist(who, client, given, now_us);
            self.read_sometimes(who, client);
        }
    }

    /// Only what the device has persisted may be gone, and what it sent itself.
    pub(super) fn handle_gap(&mut self, who: Who, gap: Gap) {
        let stored = self.device(who).store.given.inbox_seq;
        let Gap { start, reset, .. } = gap;
        if reset || (who.device != 0 && start > stored + 1) {
            self.violated(who, &format!("stored up to {stored}, the inbox begins at {start} (reset: {reset})"));
        }
    }

    pub(super) fn violated(&mut self, who: Who, what: &str) {
        if self.violations.len() < VIOLATIONS_MAX {
            let (user, device) = (self.device(who).config.user.0, self.device(who).config.device.0);
            self.violations.push(format!("user {user}, device {device}, client {}: {what}", who.life));
        }
    }

    fn is_settled(&self) -> bool {
        self.pairs.iter().all(|pair| pair.check.is_settled() && pair.overdue.is_empty())
    }

    pub(super) fn pair(&mut self, pair: usize) -> &mut Pair {
        self.pairs.get_mut(pair).expect("pairs are made at the beginning")
    }

    pub(super) fn user(&mut self, user: usize) -> &mut User {
        self.users.get_mut(user).expect("users are made at the beginning")
    }

    pub(super) fn device(&mut self, who: Who) -> &mut Device {
        let devices = &mut self.user(who.user).devices;
        devices.get_mut(usize::from(who.device)).expect("links and devices are made together")
    }

    pub(super) fn slot(&mut self, slot: u8) -> Option<&mut SlotLatencies> {
        self.slots.get_mut(usize::from(slot).checked_sub(1)?)
    }
}

impl Driver for PairDriver {
    fn begin(&mut self, links: &mut Links, now_us: u64) {
        let RunStart { users, pairs } = std::mem::take(&mut self.start);
        for user in users {
            self.begin_user(links, user, now_us);
        }
        for start in pairs {
            self.begin_pair(start);
        }
    }

    fn handle_event(&mut self, index: LinkIndex, client: &mut Client, event: Event, now_us: u64) {
        match self.owners.get(index.0).copied().expect("every link has an owner") {
            Owner::Device(who) => self.handle_device_event(who, client, event, now_us),
            Owner::Fetch { slot } => self.handle_fetch_event(slot, client, event, now_us),
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
            self.give_up_overdue();
            self.calm_down(links, now_us);
            self.read_the_rest(links, now_us);
            self.done = self.is_settled() && self.look_at_lists(links);
            return persisting_us;
        }
        let disturbing_us = self.disturb(links, now_us);
        let sending_us = match self.settings.pace {
            Pace::Open { rate } => Some(self.send_due(links, rate, now_us)),
            Pace::Ramp { .. } => self.offer_due(links, now_us),
            Pace::Closed { .. } => None,
        };
        [persisting_us, disturbing_us, sending_us].into_iter().flatten().min()
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
