//! The checker: what was acknowledged is delivered to every device that must get it, in the conversation's order,
//! once; and receipts tell the truth. Pure: it is told what happened and never looks at a socket or a clock.

mod findings;
mod note;
mod receipts;
mod seat;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub(crate) use self::findings::Findings;
pub(crate) use self::note::{Note, Place, Shape};

use self::seat::{Arrival, Seat};
use crate::plan::MessageIndex;

/// Most devices of a pair.
pub(crate) const SEATS_MAX: usize = 16;

/// A message on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    /// When it was, or should have been, sent.
    pub(crate) sent_us: u64,
    /// When its client was given it.
    pub(crate) given_us: u64,
    /// Which histogram it belongs to; 0: none.
    pub(crate) slot: u8,
    rejected: bool,
    /// A bit for each device that has got it.
    seats: u16,
    acked_seq: u64,
    /// As the first delivery says.
    delivered_seq: u64,
}

/// Checks one conversation in which one user sends from one device, on all devices of both users.
///
/// Memory is bounded by what is under way: a message that was acknowledged and is persisted everywhere is
/// forgotten, and what is below the window was delivered.
#[derive(Debug)]
pub(crate) struct FlowCheck {
    shape: Shape,
    /// Messages of the flow that came before the window.
    base: u64,
    window: VecDeque<Flight>,
    acked_seq_last: u64,
    seats: Vec<Seat>,
    /// The least that is persisted by all devices that must get everything.
    persisted_by_all: u64,
    /// The greatest that some device of the recipient's has persisted.
    persisted_by_one: u64,
    read_asked: u64,
    read_answered: u64,
    findings: Findings,
    /// The first thing that was wrong, in words.
    first_fault: Option<String>,
}

impl Default for FlowCheck {
    fn default() -> Self {
        Self::new(Shape::default())
    }
}

impl FlowCheck {
    /// A checker for a pair with these devices.
    ///
    /// # Panics
    /// If there are more than [`SEATS_MAX`].
    pub(crate) fn new(shape: Shape) -> Self {
        assert!(usize::from(shape.seats()) <= SEATS_MAX, "a bit for each");
        Self {
            shape,
            base: 0,
            window: VecDeque::new(),
            acked_seq_last: 0,
            seats: (0..shape.seats()).map(|_| Seat::default()).collect(),
            persisted_by_all: 0,
            persisted_by_one: 0,
            read_asked: 0,
            read_answered: 0,
            findings: Findings::default(),
            first_fault: None,
        }
    }

    /// Takes what happened. Returns the flight that an answer, or a device's first delivery, belongs to.
    pub(crate) fn apply(&mut self, note: Note) -> Option<Flight> {
        match note {
            Note::Pair(_) => {}
            Note::Sent { index } => {
                if self.sent(0, 0) != index {
                    self.fault(|found| &mut found.inconsistent, || format!("message {} is out of turn", index.0));
                }
            }
            Note::Acked { index, seq } => return self.acked(index, seq),
            Note::Rejected { index } => self.rejected(index),
            Note::Began { place } => self.begin(place),
            Note::Delivered { place, index, seq } => return self.delivered_at(place, index, seq),
            Note::Persisted { place, seq } => self.persisted(place, seq),
            Note::LoggedIn { .. }
            | Note::ReadAsked { .. }
            | Note::ReadAnswered { .. }
            | Note::ToldDelivered { .. }
            | Note::ToldRead { .. }
            | Note::ToldOwnRead { .. }
            | Note::ToldExpired { .. }
            | Note::Listed { .. }
            | Note::ReceiptsSaved { .. } => self.apply_receipt(note),
        }
        None
    }

    /// Takes a new message into the flow.
    pub(crate) fn sent(&mut self, sent_us: u64, slot: u8) -> MessageIndex {
        self.sent_late(sent_us, sent_us, slot)
    }

    /// The same of a message that should have been sent at one time, and was given to its client at another.
    pub(crate) fn sent_late(&mut self, sent_us: u64, given_us: u64, slot: u8) -> MessageIndex {
        let index = MessageIndex(self.base + self.window.len() as u64);
        let (rejected, seats, acked_seq, delivered_seq) = (false, 0, 0, 0);
        self.window.push_back(Flight { sent_us, given_us, slot, rejected, seats, acked_seq, delivered_seq });
        self.findings.sent += 1;
        index
    }

    /// The server says that it keeps this message. Returns the flight the first time.
    pub(crate) fn acked(&mut self, index: MessageIndex, seq: u64) -> Option<Flight> {
        let last = self.acked_seq_last;
        let Some(flight) = self.flight(index).filter(|flight| flight.acked_seq == 0 && !flight.rejected && seq != 0)
        else {
            self.inconsistent(|| format!("message {} was acknowledged again, as {seq}", index.0));
            return None;
        };
        flight.acked_seq = seq;
        let answered = *flight;
        if answered.delivered_seq != 0 && answered.delivered_seq != seq {
            let delivered = answered.delivered_seq;
            self.inconsistent(|| format!("message {} was delivered as {delivered}, acknowledged as {seq}", index.0));
        }
        if seq <= last {
            self.inconsistent(|| format!("message {} was acknowledged as {seq}, after {last}", index.0));
        }
        self.acked_seq_last = seq;
        self.findings.acked += 1;
        self.forget_what_is_over();
        Some(answered)
    }

    /// The server refused this message for good.
    pub(crate) fn rejected(&mut self, index: MessageIndex) {
        match self.flight(index) {
            Some(flight) if flight.acked_seq == 0 && !flight.rejected => flight.rejected = true,
            _ => {
                self.inconsistent(|| format!("message {} was refused after it was answered", index.0));
                return;
            }
        }
        self.findings.rejected += 1;
        self.forget_what_is_over();
    }

    /// The recipient's first device got this message and persists it: for flows whose users have one device.
    pub(crate) fn delivered(&mut self, index: MessageIndex, seq: u64) -> Option<Flight> {
        let place = Place { seat: self.shape.senders, life: 0 };
        let flight = self.delivered_at(place, index, seq);
        self.persisted(place, seq);
        flight
    }

    /// The application on one device got this message. Returns the flight the device's first time.
    fn delivered_at(&mut self, place: Place, index: MessageIndex, seq: u64) -> Option<Flight> {
        let Place { seat, life } = place;
        if seat == 0 || seat >= self.shape.seats() {
            self.inconsistent(|| format!("message {} came back to the device that sent it", index.0));
            return None;
        }
        if index.0 >= self.base + self.window.len() as u64 {
            self.inconsistent(|| format!("device {seat} got message {}, which was never sent", index.0));
            return None;
        }
        let (is_known, expected) = match self.flight(index) {
            None => (true, None),
            Some(flight) => (flight.seats & bit(seat) != 0, flight.seq()),
        };
        let arrival = self.seat(seat).arrive(life, index.0, seq);
        match arrival {
            Arrival::InOrder => {}
            Arrival::Behind if is_known => {
                self.fault(|found| &mut found.duplicated, || format!("device {seat} got {seq} again (client {life})"));
                return None;
            }
            Arrival::Behind => {
                self.fault(|found| &mut found.reordered, || format!("device {seat} got {seq} late (client {life})"));
            }
            Arrival::Beyond => {
                self.fault(|found| &mut found.skipped, || format!("device {seat} got {seq} early (client {life})"));
            }
        }
        if index.0 < self.base && seq > self.seat(seat).persisted {
            self.inconsistent(|| format!("device {seat} got message {} as {seq}, which was over", index.0));
        }
        let flight = self.flight(index)?;
        let is_wrong = flight.rejected || seq == 0 || expected.is_some_and(|expected| expected != seq);
        flight.delivered_seq = seq;
        flight.seats |= bit(seat);
        let arrived = *flight;
        if is_wrong {
            self.inconsistent(|| format!("device {seat} got message {} as {seq}, not {expected:?}", index.0));
        }
        if is_known {
            return None; // an earlier client of this device had it
        }
        let is_copy = seat < self.shape.senders;
        *(if is_copy { &mut self.findings.copied } else { &mut self.findings.delivered }) += 1;
        self.forget_what_is_over();
        Some(arrived)
    }

    /// What a device's earlier client had and did not persist is not there any more.
    fn begin(&mut self, place: Place) {
        let Some(seat) = self.seats.get_mut(usize::from(place.seat)) else { return };
        seat.begin(place.life);
        if place.life != 0 {
            return; // the lasting client goes on beside this one
        }
        let persisted = seat.persisted;
        let mut gone = 0;
        for flight in &mut self.window {
            if flight.seq().is_some_and(|seq| seq > persisted) && flight.seats & bit(place.seat) != 0 {
                flight.seats &= !bit(place.seat);
                gone += 1;
            }
        }
        let is_copy = place.seat < self.shape.senders;
        *(if is_copy { &mut self.findings.copied } else { &mut self.findings.delivered }) -= gone;
    }

    fn persisted(&mut self, place: Place, seq: u64) {
        let Some(seat) = self.seats.get_mut(usize::from(place.seat)) else { return };
        seat.persisted = seat.persisted.max(seq);
        if place.seat >= self.shape.senders {
            self.persisted_by_one = self.persisted_by_one.max(seq);
        }
        self.persisted_by_all = self.seats.iter().skip(1).map(|seat| seat.persisted).min().unwrap_or(0);
        self.forget_what_is_over();
    }

    /// Messages sent and neither acknowledged nor refused.
    pub(crate) fn unanswered(&self) -> u64 {
        self.findings.sent - self.findings.acked - self.findings.rejected
    }

    /// Whether every message has been answered, all that were acknowledged are persisted everywhere, and everybody
    /// knows of it who must.
    pub(crate) fn is_settled(&self) -> bool {
        self.window.is_empty() && self.receipts_missing() == 0 && self.reads_missing() == 0
    }

    /// What has been found, as if the run ended now.
    pub(crate) fn findings(&self) -> Findings {
        let acked = self.window.iter().filter(|flight| flight.acked_seq != 0);
        let lacking = acked.map(|flight| u64::from((self.must_have() & !flight.seats).count_ones()));
        Findings {
            lost: lacking.sum(),
            unanswered: self.unanswered(),
            receipts_missing: self.receipts_missing(),
            reads_missing: self.reads_missing(),
            ..self.findings
        }
    }

    /// The first thing that was wrong, in words.
    pub(crate) fn first_fault(&self) -> Option<&str> {
        self.first_fault.as_deref()
    }

    /// The devices that must get every message: all but the one that sends.
    fn must_have(&self) -> u16 {
        let all = u16::MAX.checked_shr(16 - u32::from(self.shape.seats())).unwrap_or(0);
        all & !bit(0)
    }

    fn inconsistent(&mut self, what: impl FnOnce() -> String) {
        self.fault(|found| &mut found.inconsistent, what);
    }

    /// Counts a fault, and keeps the first in words.
    fn fault(&mut self, count: impl FnOnce(&mut Findings) -> &mut u64, what: impl FnOnce() -> String) {
        *count(&mut self.findings) += 1;
        self.first_fault.get_or_insert_with(what);
    }

    fn flight(&mut self, index: MessageIndex) -> Option<&mut Flight> {
        let place = usize::try_from(index.0.checked_sub(self.base)?).ok()?;
        self.window.get_mut(place)
    }

    fn seat(&mut self, seat: u8) -> &mut Seat {
        self.seats.get_mut(usize::from(seat)).expect("checked by the caller")
    }

    fn forget_what_is_over(&mut self) {
        let (must_have, persisted) = (self.must_have(), self.persisted_by_all);
        while self.window.front().is_some_and(|flight| flight.is_over(must_have, persisted)) {
            self.window.pop_front();
            self.base += 1;
        }
    }
}

impl Flight {
    fn is_over(&self, must_have: u16, persisted: u64) -> bool {
        let is_everywhere = self.seats & must_have == must_have && self.acked_seq <= persisted;
        self.rejected || (self.acked_seq != 0 && is_everywhere)
    }

    /// Its conversation seq, as far as it is known.
    fn seq(&self) -> Option<u64> {
        [self.acked_seq, self.delivered_seq].into_iter().find(|seq| *seq != 0)
    }
}

fn bit(seat: u8) -> u16 {
    1_u16.checked_shl(u32::from(seat)).unwrap_or(0)
}
