//! The part of a pair run that lives in a worker: it sends, receives, checks and measures. Sans-io.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use culver_protocol::client::{Client, Event};
use culver_protocol::id::InboxSeq;
use culver_protocol::proto::{Entry, Gap};
use rand::Rng;
use rand::rngs::SmallRng;

use super::pair::{Device, Owner, Pair, PairStart};
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
    pub(crate) rng: SmallRng,
}

/// The driver of one worker's pairs. The links of a pair's devices follow one another, in the order of their seats.
pub(crate) struct PairDriver {
    pub(super) settings: PairSettings,
    starts: Vec<PairStart>,
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
    pub(super) fn new(settings: PairSettings, turmoil: Turmoil, starts: Vec<PairStart>, shared: Arc<Shared>) -> Self {
        Self {
            slots: (0..settings.slots).map(|_| SlotLatencies::new()).collect(),
            settings,
            starts,
            pairs: Vec::new(),
            owners: Vec::new(),
            turmoil,
            shared,
            began_us: 0,
            due_count: 0,
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
    pub(crate) fn into_outcome(self, links: LinkCounts, redelivered: u64) -> PairOutcome {
        let mut findings = Findings::default();
        let mut faults = Vec::new();
        for pair in &self.pairs {
            findings.add(&pair.check.findings());
            let (sender, recipient) = (pair.plan.sender.0, pair.plan.recipient.0);
            let fault = pair.check.first_fault().filter(|_| faults.len() < FAULTS_MAX);
            faults.extend(fault.map(|fault| format!("from {sender} to {recipient}: {fault}")));
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

    fn begin_pair(&mut self, links: &mut Links, start: PairStart, now_us: u64) {
        let PairStart { plan, devices, reads } = start;
        let shape = Shape {
            senders: plan.sender_devices,
            recipients: plan.recipient_devices,
            receipts: self.settings.receipts,
            reads,
        };
        let (pair, first_link) = (self.pairs.len(), links.len());
        for (seat, config) in (0..).zip(&devices) {
            let link = links.add(config.clone(), None, now_us);
            self.owners.push(Owner::Device { pair, seat });
            if self.settings.journal.is_some() && seat > 0 {
                links.watch_redelivery(link);
            }
        }
        self.pairs.push(Pair {
            plan,
            check: FlowCheck::new(shape),
            overdue: VecDeque::new(),
            first_link,
            devices: devices.into_iter().map(Device::new).collect(),
            reads,
            next_read_us: 0,
            untold: VecDeque::new(),
        });
        self.note(pair, Note::Pair(shape));
    }

    /// A client gave an entry to its application. Returns its seq in the pair's conversation; 0: of another.
    pub(super) fn take_entry(&mut self, pair: usize, place: Place, entry: &Entry, now_us: u64) -> u64 {
        if entry.conversation.as_ref() != self.pair(pair).plan.conversation.0 {
            self.foreign += 1;
            return 0;
        }
        let seq = entry.conversation_seq;
        let Some(index) = plan::message_index(self.settings.run, &entry.payload) else {
            self.foreign += 1;
            return seq;
        };
        self.turn.delivered += 1;
        let is_copy = !self.pair(pair).is_recipient(place.seat);
        if let Some(flight) = self.note(pair, Note::Delivered { place, index, seq })
            && let Some(latencies) = self.slot(flight.slot).filter(|_| !is_copy)
        {
            latencies.delivery.record(now_us.saturating_sub(flight.sent_us));
        }
        seq
    }

    /// The device's application stores what it has, up to here; then the client may acknowledge it.
    pub(super) fn persist(
        &mut self,
        pair: usize,
        place: Place,
        client: &mut Client,
        (inbox_seq, seq): (InboxSeq, u64),
        now_us: u64,
    ) {
        client.persisted(inbox_seq);
        let store = &mut self.pair(pair).device(place.seat).store;
        store.inbox_seq = store.inbox_seq.max(inbox_seq);
        store.incarnation = client.incarnation();
        if seq <= store.seq {
            return;
        }
        store.seq = seq;
        self.note(pair, Note::Persisted { place, seq });
        if self.settings.receipts {
            self.await_receipt(pair, place.seat, seq, now_us);
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
        for pair in 0..self.pairs.len() {
            for seat in 0..self.pair(pair).plan.seats() {
                let (link, place) = (self.pair(pair).link(seat), Place { seat, life: 0 });
                let device = self.pair(pair).device(seat);
                if !links.is_logged_in(link) || (device.unpersisted.is_none() && device.unsaved.is_none()) {
                    continue;
                }
                let (kept, unsaved) = (device.unpersisted.take(), device.unsaved.take());
                let client = links.client(link);
                if let Some(kept) = kept {
                    self.persist(pair, place, client, kept, now_us);
                }
                if let Some(version) = unsaved {
                    self.save_receipts(pair, place, client, version);
                }
            }
        }
        Some(self.next_persist_us)
    }

    /// Whether this is stored later.
    fn is_kept_back(&mut self) -> bool {
        self.settings.persists_late && self.settings.rng.random_range(0..PERSIST_ONE_IN) > 0
    }

    fn handle_device_event(&mut self, pair: usize, seat: u8, client: &mut Client, event: Event, now_us: u64) {
        let place = Place { seat, life: 0 };
        match event {
            Event::Sent(accepted) => {
                self.handle_sent(pair, &accepted, now_us);
                self.refill(pair, client, now_us);
                self.send_overdue(pair, client, now_us);
            }
            Event::Delivered(entry) => {
                let kept = (InboxSeq(entry.inbox_seq), self.take_entry(pair, place, &entry, now_us));
                if self.is_kept_back() {
                    self.pair(pair).device(seat).unpersisted = Some(kept);
                } else {
                    self.pair(pair).device(seat).unpersisted = None;
                    self.persist(pair, place, client, kept, now_us);
                    self.read_sometimes(pair, seat, client);
                }
            }
            Event::Receipt(receipt) => {
                self.take_receipt(pair, place, &receipt, now_us);
                if self.is_kept_back() {
                    self.pair(pair).device(seat).unsaved = Some(receipt.version);
                } else {
                    self.pair(pair).device(seat).unsaved = None;
                    self.save_receipts(pair, place, client, receipt.version);
                }
            }
            Event::LoggedIn(_) => {
                self.pair(pair).device(seat).store.incarnation = client.incarnation();
                self.note(pair, Note::LoggedIn { place, version: client.receipts() });
                self.make_ready(pair, seat, client);
            }
            Event::Rejected { id, code, retry } => self.handle_rejected(pair, client, (id, code, retry), now_us),
            // What is about a request comes as a rejection too.
            Event::ServerError(error) if error.request_id.is_empty() => {
                *self.errors.entry(error.code).or_default() += 1;
            }
            Event::Answer { id, result } => self.handle_answer(pair, seat, client, (id, result), now_us),
            Event::Cancelled { id } => drop(self.end_call(pair, seat, id)),
            Event::Stopped { code } | Event::CredentialNeeded { code } => self.shared.refuse(code),
            Event::Violation(violation) => self.violated(format!("device {seat}: {violation}")),
            Event::Gap(gap) => self.handle_gap(pair, place, gap),
            _ => {}
        }
    }

    /// Only what the device has persisted may be gone; and to the device that sends nothing comes at all.
    pub(super) fn handle_gap(&mut self, pair: usize, place: Place, gap: Gap) {
        let stored = self.pair(pair).device(place.seat).store.inbox_seq;
        let is_harmless = place.seat == 0 || gap.start <= stored.0 + 1;
        if gap.reset || !is_harmless {
            let Gap { start, reset, .. } = gap;
            let seat = place.seat;
            self.violated(format!(
                "device {seat}, stored up to {}: the inbox begins at {start} (reset: {reset})",
                stored.0
            ));
        }
    }

    pub(super) fn violated(&mut self, what: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(what);
        }
    }

    fn is_settled(&self) -> bool {
        self.pairs.iter().all(|pair| pair.check.is_settled() && pair.overdue.is_empty())
    }

    pub(super) fn pair(&mut self, pair: usize) -> &mut Pair {
        self.pairs.get_mut(pair).expect("links and pairs are made together")
    }

    pub(super) fn slot(&mut self, slot: u8) -> Option<&mut SlotLatencies> {
        self.slots.get_mut(usize::from(slot).checked_sub(1)?)
    }
}

impl Driver for PairDriver {
    fn begin(&mut self, links: &mut Links, now_us: u64) {
        for start in std::mem::take(&mut self.starts) {
            self.begin_pair(links, start, now_us);
        }
    }

    fn handle_event(&mut self, index: LinkIndex, client: &mut Client, event: Event, now_us: u64) {
        match self.owners.get(index.0).copied().expect("every link has an owner") {
            Owner::Device { pair, seat } => self.handle_device_event(pair, seat, client, event, now_us),
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
            self.calm_down(links, now_us);
            self.read_the_rest(links, now_us);
            self.done = self.is_settled();
            return persisting_us;
        }
        let disturbing_us = self.disturb(links, now_us);
        let sending_us = match self.settings.pace {
            Pace::Open { rate } => Some(self.send_due(links, rate, now_us)),
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
