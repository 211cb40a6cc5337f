//! An open loop whose rate changes: what has fallen due, and what is given up when the next rate begins.

use super::driver::PairDriver;
use super::sending::{SENDS_PER_TURN_MAX, WAKE_US_MIN, due_after_us};
use crate::links::Links;

/// Messages of a pair that may be due and unsent; of further ones it is only counted that they were offered.
const OVERDUE_MAX: usize = 65_536;

/// What one worker offers at present.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Offer {
    /// Messages a second; 0: none.
    rate: f64,
    since_us: u64,
    /// Messages that have fallen due since then.
    due_count: u64,
}

impl Offer {
    /// The next message's time, if it has come: it counts as due from now on.
    fn take_due(&mut self, now_us: u64) -> Option<u64> {
        let due_us = self.due_us();
        (due_us <= now_us).then(|| {
            self.due_count += 1;
            due_us
        })
    }

    fn due_us(&self) -> u64 {
        self.since_us + due_after_us(self.due_count, self.rate)
    }
}

impl PairDriver {
    /// Offers what has fallen due, and sends of it what the clients' windows have room for. Returns when the next
    /// falls due.
    pub(super) fn offer_due(&mut self, links: &mut Links, window: usize, now_us: u64) -> Option<u64> {
        let rate = self.shared.rate() * self.settings.share;
        if rate.to_bits() != self.offer.rate.to_bits() {
            self.give_up_overdue();
            self.offer = Offer { rate, since_us: now_us, due_count: 0 };
        }
        if rate <= 0.0 {
            return None;
        }
        for _ in 0..SENDS_PER_TURN_MAX {
            let Some(due_us) = self.offer.take_due(now_us) else {
                return Some(self.offer.due_us().max(now_us + WAKE_US_MIN));
            };
            self.offer_one(links, window, due_us, now_us);
        }
        Some(now_us)
    }

    fn offer_one(&mut self, links: &mut Links, window: usize, due_us: u64, now_us: u64) {
        let pair = usize::try_from(self.due_count % self.pairs.len() as u64).expect("below a length");
        self.due_count += 1;
        self.turn.offered += 1;
        let slot = self.shared.slot();
        if let Some(latencies) = self.slot(slot) {
            latencies.lag.record(now_us - due_us);
        }
        let place = self.pair(pair);
        if place.overdue.len() >= OVERDUE_MAX {
            self.turn.given_up += 1;
            return;
        }
        place.overdue.push_back(due_us);
        // Nothing is done for a client without room: what it sends next its answers bring about.
        if place.check.unanswered() < window as u64 {
            let link = self.sender_link(pair);
            self.send_overdue(pair, links.client(link), now_us);
        }
    }

    /// What a ramp has offered and not sent is not sent any more.
    pub(super) fn give_up_overdue(&mut self) {
        if matches!(self.settings.pace, super::Pace::Ramp { .. }) {
            for pair in &mut self.pairs {
                self.turn.given_up += pair.overdue.len() as u64;
                pair.overdue.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_rate_begins_where_it_is_set() {
        let mut offer = Offer { rate: 1000.0, since_us: 5_000_000, due_count: 0 };
        let due = std::iter::from_fn(|| offer.take_due(5_002_500)).collect::<Vec<_>>();
        assert_eq!(due, [5_000_000, 5_001_000, 5_002_000]);
        assert_eq!(offer.due_us(), 5_003_000);
    }
}
