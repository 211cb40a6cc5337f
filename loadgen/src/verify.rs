//! The checker: what was acknowledged is delivered, in the conversation's order, once. Pure: it is told what
//! happened to each message and never looks at a socket or a clock.

use std::collections::VecDeque;

use serde::Serialize;

use crate::plan::MessageIndex;

/// What a checker has found; the sums of several checkers are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Findings {
    /// Handed to the client.
    pub(crate) sent: u64,
    /// The server said that they are kept.
    pub(crate) acked: u64,
    /// Reached the recipient's application, each counted once.
    pub(crate) delivered: u64,
    /// Refused for good: they count neither as acknowledged nor as lost.
    pub(crate) rejected: u64,
    /// Neither acknowledged nor refused when the run ended.
    pub(crate) unanswered: u64,
    /// Acknowledged, not delivered.
    pub(crate) lost: u64,
    /// Delivered more than once, after the client's own dedup.
    pub(crate) duplicated: u64,
    /// Delivered after one that comes later in the conversation or in the sender's order.
    pub(crate) reordered: u64,
    /// Places where conversation seqs skipped ahead: a conversation's seqs are dense.
    pub(crate) skipped: u64,
    /// The acknowledgement and the delivery name different conversation seqs, or something was acknowledged twice
    /// or delivered that nobody sent.
    pub(crate) inconsistent: u64,
}

impl Findings {
    /// Whether everything promised was kept.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.reordered == 0 && self.skipped == 0 && self.inconsistent == 0
    }

    /// Adds another checker's findings.
    pub(crate) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.acked += other.acked;
        self.delivered += other.delivered;
        self.rejected += other.rejected;
        self.unanswered += other.unanswered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.skipped += other.skipped;
        self.inconsistent += other.inconsistent;
    }
}

/// A message on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    /// When it was, or should have been, sent.
    pub(crate) sent_us: u64,
    /// Which histogram it belongs to; 0: none.
    pub(crate) slot: u8,
    acked_seq: u64,
    delivered_seq: u64,
    rejected: bool,
}

impl Flight {
    fn is_over(&self) -> bool {
        self.rejected || (self.acked_seq != 0 && self.delivered_seq != 0)
    }
}

/// Checks one conversation with one sender.
///
/// Memory is bounded by what is under way: a message that was acknowledged and delivered is forgotten, and what is
/// below the window was delivered.
#[derive(Debug, Default)]
pub(crate) struct FlowCheck {
    /// Messages of the flow that came before the window.
    base: u64,
    window: VecDeque<Flight>,
    /// Conversation seq of the last delivery; 0: none yet.
    delivered_seq_last: u64,
    acked_seq_last: u64,
    /// One past the highest index delivered.
    delivered_index_next: u64,
    findings: Findings,
}

impl FlowCheck {
    /// Takes a new message into the flow.
    pub(crate) fn sent(&mut self, sent_us: u64, slot: u8) -> MessageIndex {
        let index = MessageIndex(self.base + self.window.len() as u64);
        self.window.push_back(Flight { sent_us, slot, acked_seq: 0, delivered_seq: 0, rejected: false });
        self.findings.sent += 1;
        index
    }

    /// The server says that it keeps this message. Returns the flight the first time.
    pub(crate) fn acked(&mut self, index: MessageIndex, seq: u64) -> Option<Flight> {
        let Some(flight) = self.flight(index) else {
            self.findings.inconsistent += 1;
            return None;
        };
        if flight.acked_seq != 0 || flight.rejected || seq == 0 {
            self.findings.inconsistent += 1;
            return None;
        }
        flight.acked_seq = seq;
        let answered = *flight;
        if answered.delivered_seq != 0 && answered.delivered_seq != seq {
            self.findings.inconsistent += 1;
        }
        if seq <= self.acked_seq_last {
            self.findings.inconsistent += 1;
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
                self.findings.inconsistent += 1;
                return;
            }
        }
        self.findings.rejected += 1;
        self.forget_what_is_over();
    }

    /// The recipient's application got this message. Returns the flight the first time.
    pub(crate) fn delivered(&mut self, index: MessageIndex, seq: u64) -> Option<Flight> {
        if index.0 < self.base {
            self.findings.duplicated += 1;
            return None;
        }
        let Some(flight) = self.flight(index) else {
            self.findings.inconsistent += 1;
            return None;
        };
        if flight.delivered_seq != 0 {
            self.findings.duplicated += 1;
            return None;
        }
        flight.delivered_seq = seq;
        let arrived = *flight;
        if arrived.rejected || seq == 0 || (arrived.acked_seq != 0 && arrived.acked_seq != seq) {
            self.findings.inconsistent += 1;
        }
        self.findings.delivered += 1;
        self.check_order(index, seq);
        self.forget_what_is_over();
        Some(arrived)
    }

    /// Messages sent and neither acknowledged nor refused.
    pub(crate) fn unanswered(&self) -> u64 {
        self.findings.sent - self.findings.acked - self.findings.rejected
    }

    /// Whether every message has been answered, and all that were acknowledged are delivered.
    pub(crate) fn is_settled(&self) -> bool {
        self.window.is_empty()
    }

    /// What has been found, as if the run ended now.
    pub(crate) fn findings(&self) -> Findings {
        let lost = self.window.iter().filter(|flight| flight.acked_seq != 0 && flight.delivered_seq == 0).count();
        Findings { lost: lost as u64, unanswered: self.unanswered(), ..self.findings }
    }

    fn check_order(&mut self, index: MessageIndex, seq: u64) {
        let first = self.delivered_seq_last == 0;
        if seq <= self.delivered_seq_last || index.0 < self.delivered_index_next {
            self.findings.reordered += 1;
        } else if !first && seq != self.delivered_seq_last + 1 {
            self.findings.skipped += 1;
        }
        self.delivered_seq_last = self.delivered_seq_last.max(seq);
        self.delivered_index_next = self.delivered_index_next.max(index.0 + 1);
    }

    fn flight(&mut self, index: MessageIndex) -> Option<&mut Flight> {
        let place = usize::try_from(index.0.checked_sub(self.base)?).ok()?;
        self.window.get_mut(place)
    }

    fn forget_what_is_over(&mut self) {
        while self.window.front().is_some_and(Flight::is_over) {
            self.window.pop_front();
            self.base += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(count: u64) -> FlowCheck {
        let mut check = FlowCheck::default();
        for index in 0..count {
            assert_eq!(check.sent(index, 1), MessageIndex(index));
        }
        check
    }

    fn ack(check: &mut FlowCheck, indices: impl IntoIterator<Item = u64>) {
        for index in indices {
            check.acked(MessageIndex(index), index + 1);
        }
    }

    fn deliver(check: &mut FlowCheck, indices: impl IntoIterator<Item = u64>) {
        for index in indices {
            check.delivered(MessageIndex(index), index + 1);
        }
    }

    #[test]
    fn a_good_run_is_clean_and_keeps_no_memory() {
        let mut check = flow(100);
        ack(&mut check, 0..100);
        deliver(&mut check, 0..100);
        assert!(check.is_settled());
        let found = check.findings();
        assert!(found.is_clean());
        assert_eq!((found.sent, found.acked, found.delivered, found.unanswered), (100, 100, 100, 0));
    }

    #[test]
    fn delivery_may_come_before_the_acknowledgement() {
        let mut check = flow(3);
        deliver(&mut check, 0..3);
        ack(&mut check, 0..3);
        assert!(check.is_settled() && check.findings().is_clean());
    }

    #[test]
    fn a_planted_loss_is_found() {
        let mut check = flow(10);
        ack(&mut check, 0..10);
        deliver(&mut check, (0..10).filter(|index| *index != 4));
        let found = check.findings();
        assert_eq!((found.lost, found.skipped, found.duplicated, found.reordered), (1, 1, 0, 0));
        assert!(!found.is_clean() && !check.is_settled());
    }

    #[test]
    fn a_loss_at_the_end_is_found() {
        let mut check = flow(10);
        ack(&mut check, 0..10);
        deliver(&mut check, 0..8);
        assert_eq!(check.findings().lost, 2);
    }

    #[test]
    fn what_was_never_acknowledged_is_not_lost() {
        let mut check = flow(10);
        ack(&mut check, 0..5);
        deliver(&mut check, 0..5);
        let found = check.findings();
        assert_eq!((found.lost, found.unanswered), (0, 5));
        assert!(found.is_clean() && !check.is_settled());
    }

    #[test]
    fn a_planted_duplicate_is_found_inside_and_below_the_window() {
        let mut check = flow(4);
        deliver(&mut check, 0..2);
        deliver(&mut check, [1]);
        ack(&mut check, 0..2);
        deliver(&mut check, [0]);
        assert_eq!(check.findings().duplicated, 2);
        assert!(!check.findings().is_clean());
    }

    #[test]
    fn a_planted_reorder_is_found() {
        let mut check = flow(4);
        ack(&mut check, 0..4);
        deliver(&mut check, [0, 2, 1, 3]);
        let found = check.findings();
        assert_eq!((found.reordered, found.lost), (1, 0));
        assert!(!found.is_clean());
    }

    #[test]
    fn the_order_of_the_sender_counts_too() {
        let mut check = flow(2);
        check.delivered(MessageIndex(1), 1);
        check.delivered(MessageIndex(0), 2);
        assert_eq!(check.findings().reordered, 1);
    }

    #[test]
    fn answers_that_contradict_each_other_are_found() {
        let mut check = flow(3);
        check.acked(MessageIndex(0), 1);
        check.acked(MessageIndex(0), 1);
        check.acked(MessageIndex(1), 2);
        check.delivered(MessageIndex(0), 1);
        check.delivered(MessageIndex(1), 3);
        check.delivered(MessageIndex(9), 4);
        assert_eq!(check.findings().inconsistent, 3);
    }

    #[test]
    fn a_refused_message_is_neither_lost_nor_unanswered() {
        let mut check = flow(3);
        check.rejected(MessageIndex(1));
        check.acked(MessageIndex(0), 1);
        check.acked(MessageIndex(2), 2);
        check.delivered(MessageIndex(0), 1);
        check.delivered(MessageIndex(2), 2);
        assert!(check.is_settled() && check.findings().is_clean());
        assert_eq!(check.findings().rejected, 1);
    }
}
