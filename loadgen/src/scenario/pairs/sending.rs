//! The sending half of a pair: how messages are paced, and their answers.

use culver_protocol::client::{Client, ClientError};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::ClientMessageId;
use culver_protocol::limits::CLIENT_IN_FLIGHT_MAX;
use culver_protocol::message::Accepted;

use super::Pace;
use super::driver::PairDriver;
use super::pair::Who;
use crate::links::{LinkIndex, Links};
use crate::plan;
use crate::verify::Note;

/// The open loop wakes at most this often: what is due by then goes in one turn.
pub(super) const WAKE_US_MIN: u64 = 100;
/// Messages that fall due in one turn, at most; the rest waits for the next.
pub(super) const SENDS_PER_TURN_MAX: usize = 8192;

impl PairDriver {
    pub(super) fn begin_sending(&mut self, links: &mut Links, now_us: u64) {
        self.began_us = now_us;
        self.begin_turmoil(now_us);
        if let Pace::Closed { .. } = self.settings.pace {
            for pair in 0..self.pairs.len() {
                let link = self.sender_link(pair);
                self.refill(pair, links.client(link), now_us);
            }
        }
    }

    /// The link of the device that sends in a pair.
    pub(super) fn sender_link(&mut self, pair: usize) -> LinkIndex {
        let sender = self.pair(pair).start.sender;
        self.user(sender).link(0)
    }

    /// Closed loop: keeps the asked number under way.
    pub(super) fn refill(&mut self, pair: usize, client: &mut Client, now_us: u64) {
        let Pace::Closed { in_flight } = self.settings.pace else { return };
        while !self.stopping && self.pair(pair).check.unanswered() < in_flight as u64 {
            if self.send(pair, client, now_us, now_us).is_err() {
                return;
            }
        }
    }

    /// Open loop: sends what has fallen due; returns when the next does.
    pub(super) fn send_due(&mut self, links: &mut Links, rate: f64, now_us: u64) -> u64 {
        for _ in 0..SENDS_PER_TURN_MAX {
            let due_us = self.began_us + due_after_us(self.due_count, rate);
            if due_us > now_us {
                return due_us.max(now_us + WAKE_US_MIN);
            }
            let pair = usize::try_from(self.due_count % self.pairs.len() as u64).expect("below a length");
            self.due_count += 1;
            self.pair(pair).overdue.push_back(due_us);
            let link = self.sender_link(pair);
            self.send_overdue(pair, links.client(link), now_us);
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

    /// Messages that a client may have unanswered.
    fn window(&self) -> usize {
        match self.settings.pace {
            Pace::Ramp { window } => window.min(CLIENT_IN_FLIGHT_MAX),
            Pace::Open { .. } | Pace::Closed { .. } => CLIENT_IN_FLIGHT_MAX,
        }
    }

    pub(super) fn send(
        &mut self,
        pair: usize,
        client: &mut Client,
        due_us: u64,
        now_us: u64,
    ) -> Result<(), ClientError> {
        if client.in_flight() >= self.window() {
            return Err(ClientError::InFlightFull);
        }
        let slot = self.shared.slot();
        let place = self.pair(pair);
        let conversation = place.start.plan.conversation;
        let index = place.check.sent_late(due_us, now_us, slot);
        self.journal(pair, Note::Sent { index });
        let id = plan::message_id(self.settings.run, index);
        let sent = client.send(id, conversation, self.settings.payloads.make(index), now_us);
        if sent.is_err() {
            self.note(pair, Note::Rejected { index });
            return sent;
        }
        self.turn.sent += 1;
        let is_ramp = matches!(self.settings.pace, Pace::Ramp { .. });
        if let Some(latencies) = self.slot(slot).filter(|_| !is_ramp) {
            latencies.lag.record(now_us - due_us);
        }
        Ok(())
    }

    pub(super) fn handle_sent(&mut self, who: Who, client: &mut Client, accepted: &Accepted, now_us: u64) {
        let Some(pair) = self.user(who.user).sends else { return };
        let index = plan::message_index(self.settings.run, &accepted.client_message_id.0);
        let Some(index) = index else { return };
        self.turn.acked += 1;
        if let Some(flight) = self.note(pair, Note::Acked { index, seq: accepted.conversation_seq.0 })
            && let Some(latencies) = self.slot(flight.slot)
        {
            latencies.ack.record(now_us.saturating_sub(flight.sent_us));
            latencies.admitted.record(now_us.saturating_sub(flight.given_us));
        }
        self.send_more(pair, client, now_us);
    }

    /// There may be room in the window: sends what the pace says.
    fn send_more(&mut self, pair: usize, client: &mut Client, now_us: u64) {
        match self.settings.pace {
            Pace::Closed { .. } => self.refill(pair, client, now_us),
            Pace::Open { .. } => self.send_overdue(pair, client, now_us),
            Pace::Ramp { .. } => self.send_offered(pair, client, now_us),
        }
    }

    pub(super) fn handle_rejected(
        &mut self,
        who: Who,
        client: &mut Client,
        (id, code, retry): (ClientMessageId, u32, bool),
        now_us: u64,
    ) {
        *self.errors.entry(code).or_default() += 1;
        self.turn.busy += u64::from(code == ErrorCode::Busy.number());
        self.turn.limited += u64::from(code == ErrorCode::RateLimited.number());
        let index = plan::message_index(self.settings.run, &id.0).filter(|_| !retry);
        if let (Some(index), Some(pair)) = (index, self.user(who.user).sends) {
            self.note(pair, Note::Rejected { index });
            self.send_more(pair, client, now_us);
        }
    }
}

/// When message number `count` of an open loop is due, from its beginning.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "52 bits of microseconds are 142 years"
)]
pub(super) fn due_after_us(count: u64, rate: f64) -> u64 {
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
