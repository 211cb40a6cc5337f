//! An open loop whose rate changes: what has fallen due, and what is given up when the next rate begins. What is due and
//! not sent is a number, computed from the rate and the time: it costs nothing, however much it is.

use std::collections::BTreeSet;

use culver_protocol::client::Client;

use super::Pace;
use super::driver::PairDriver;
use super::sending::{SENDS_PER_TURN_MAX, WAKE_US_MIN, due_after_us};
use crate::links::Links;

/// While every client's window is full it is noticed this often what has fallen due.
const NOTICE_US: u64 = 1000;

/// What one worker offers at present. Its messages are numbered from 0, and the pairs take turns: message `n` belongs to
/// pair `n % pairs`.
#[derive(Debug, Default)]
pub(super) struct Offer {
    /// Messages a second; 0: none.
    rate: f64,
    since_us: u64,
    /// Messages of each pair that were sent.
    sent: Vec<u64>,
    sent_count: u64,
    /// The next messages of the pairs that have room in their windows. Those of the others wait for answers, and are not
    /// looked at before.
    waiting: BTreeSet<u64>,
    /// Messages of which it has been noticed that they are due.
    noticed: u64,
}

impl Offer {
    pub(super) fn new(rate: f64, pairs: usize, since_us: u64) -> Self {
        let waiting = if rate > 0.0 { (0..pairs as u64).collect() } else { BTreeSet::new() };
        Self { rate, since_us, sent: vec![0; pairs], waiting, ..Self::default() }
    }

    /// When the pair's next message is or was due, if it is by now. If not, the pair waits for it.
    fn next_due(&mut self, pair: usize, now_us: u64) -> Option<u64> {
        if self.rate <= 0.0 {
            return None;
        }
        let number = self.sent_of(pair) * self.sent.len() as u64 + pair as u64;
        let due_us = self.due_us(number);
        if due_us > now_us {
            self.waiting.insert(number);
            return None;
        }
        Some(due_us)
    }

    /// The pair's next message is under way.
    fn count_sent(&mut self, pair: usize) {
        *self.sent.get_mut(pair).expect("one of the worker's") += 1;
        self.sent_count += 1;
    }

    /// The next pair that has room and whose next message is due. It waits no more.
    fn take_waiting(&mut self, now_us: u64) -> Option<usize> {
        let first = *self.waiting.first()?;
        if self.due_us(first) > now_us {
            return None;
        }
        self.waiting.pop_first();
        Some(usize::try_from(first % self.sent.len() as u64).expect("below a length"))
    }

    /// When the next message is due for which there is room.
    fn waiting_us(&self) -> Option<u64> {
        self.waiting.first().map(|first| self.due_us(*first))
    }

    /// How many messages have fallen due since it was last asked, and when the first of them was.
    fn notice(&mut self, now_us: u64) -> Option<(u64, u64)> {
        let first_us = self.due_us(self.noticed);
        let fresh = self.due_count(now_us).saturating_sub(self.noticed);
        self.noticed += fresh;
        (fresh > 0).then_some((fresh, first_us))
    }

    /// Messages noticed and not sent.
    fn backlog(&self) -> u64 {
        self.noticed.saturating_sub(self.sent_count)
    }

    /// Messages that are due by now.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "52 bits of microseconds are 142 years"
    )]
    fn due_count(&self, now_us: u64) -> u64 {
        if self.rate <= 0.0 || now_us < self.since_us {
            return 0;
        }
        // One that is due within the microsecond is.
        let due = ((now_us - self.since_us + 1) as f64 * self.rate / 1e6).ceil() as u64;
        // Rounding may have gone one too far, or not far enough.
        match due {
            1.. if self.due_us(due - 1) > now_us => due - 1,
            _ => due + u64::from(self.due_us(due) <= now_us),
        }
    }

    fn due_us(&self, number: u64) -> u64 {
        self.since_us + due_after_us(number, self.rate)
    }

    fn sent_of(&self, pair: usize) -> u64 {
        *self.sent.get(pair).expect("one of the worker's")
    }
}

impl PairDriver {
    /// Sends of what has fallen due that for which the clients' windows have room. Returns when to look again.
    pub(super) fn offer_due(&mut self, links: &mut Links, now_us: u64) -> Option<u64> {
        let rate = self.shared.rate() * self.settings.share;
        if rate.to_bits() != self.offer.rate.to_bits() {
            self.give_up_overdue();
            self.offer = Offer::new(rate, self.pairs.len(), now_us);
        }
        if rate <= 0.0 {
            return None;
        }
        if let Some((count, first_us)) = self.offer.notice(now_us) {
            self.turn.offered += count;
            let slot = self.shared.slot();
            if let Some(latencies) = self.slot(slot) {
                latencies.lag.record_many(now_us - first_us, count);
            }
        }
        for _ in 0..SENDS_PER_TURN_MAX {
            let Some(pair) = self.offer.take_waiting(now_us) else {
                let next_us = self.offer.waiting_us().unwrap_or(u64::MAX);
                return Some(next_us.clamp(now_us + WAKE_US_MIN, now_us + NOTICE_US));
            };
            let link = self.sender_link(pair);
            self.send_offered(pair, links.client(link), now_us);
        }
        Some(now_us)
    }

    /// Sends what is due of a pair of a ramp, as far as its window allows. With a full one its answers bring about what
    /// it sends next.
    pub(super) fn send_offered(&mut self, pair: usize, client: &mut Client, now_us: u64) {
        while let Some(due_us) = self.offer.next_due(pair, now_us) {
            if self.send(pair, client, due_us, now_us).is_err() {
                return;
            }
            self.offer.count_sent(pair);
        }
    }

    /// What a ramp has offered and not sent is not sent any more.
    pub(super) fn give_up_overdue(&mut self) {
        if matches!(self.settings.pace, Pace::Ramp { .. }) {
            self.turn.given_up += self.offer.backlog();
            self.offer = Offer::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends what is due of a pair, as long as there is room: when each was due.
    fn send(offer: &mut Offer, pair: usize, room: usize, now_us: u64) -> Vec<u64> {
        let sent = std::iter::from_fn(|| {
            let due_us = offer.next_due(pair, now_us)?;
            offer.count_sent(pair);
            Some(due_us)
        });
        sent.take(room).collect()
    }

    #[test]
    fn a_new_rate_begins_where_it_is_set_and_pairs_take_turns() {
        let mut offer = Offer::new(1000.0, 2, 5_000_000);
        let mut sent = Vec::new();
        while let Some(pair) = offer.take_waiting(5_002_500) {
            sent.extend(send(&mut offer, pair, 9, 5_002_500).into_iter().map(|due_us| (pair, due_us)));
        }
        assert_eq!(sent, [(0, 5_000_000), (0, 5_002_000), (1, 5_001_000)]);
        assert_eq!(offer.waiting_us(), Some(5_003_000));
        assert_eq!(offer.notice(5_002_500), Some((3, 5_000_000)));
        assert_eq!((offer.notice(5_002_999), offer.backlog()), (None, 0));
        assert_eq!(offer.notice(5_003_000), Some((1, 5_003_000)));
    }

    #[test]
    fn what_a_full_window_keeps_back_is_a_number_and_keeps_its_time() {
        let mut offer = Offer::new(1e6, 4, 0);
        // Each has room for one, then for none in ten seconds: ten million fall due, and nothing waits to be looked at.
        while let Some(pair) = offer.take_waiting(3) {
            assert_eq!(send(&mut offer, pair, 1, 3), [pair as u64]);
        }
        assert_eq!((offer.take_waiting(10_000_000), offer.waiting_us()), (None, None));
        assert_eq!(offer.notice(10_000_000), Some((10_000_001, 0)));
        assert_eq!(offer.backlog(), 10_000_001 - 4);
        // An answer makes room for three: they were due one after the other, long ago.
        assert_eq!(send(&mut offer, 2, 3, 10_000_000), [6, 10, 14]);
        assert_eq!(offer.backlog(), 10_000_001 - 7);
    }

    #[test]
    fn who_has_caught_up_waits_for_what_comes_next() {
        let mut offer = Offer::new(100.0, 2, 0);
        assert_eq!((offer.take_waiting(15_000), offer.take_waiting(15_000)), (Some(0), Some(1)));
        assert_eq!(offer.waiting_us(), None);
        assert_eq!(send(&mut offer, 1, 9, 15_000), [10_000]);
        assert_eq!(offer.waiting_us(), Some(30_000));
        // Asked again, it still waits once.
        assert_eq!(send(&mut offer, 1, 9, 15_000), [0; 0]);
        assert_eq!((offer.take_waiting(30_000), offer.take_waiting(30_000)), (Some(1), None));
    }

    #[test]
    fn what_is_due_is_counted_as_it_is_timed() {
        for rate in [0.3, 7.0, 999.9, 1e6 / 3.0, 800_000.0, 3_456_789.0] {
            let offer = Offer::new(rate, 1, 1000);
            for now_us in (1000..9000).chain([1_234_567, 600_000_000, 86_400_000_000]) {
                let count = offer.due_count(now_us);
                assert!(
                    count > 0 && offer.due_us(count - 1) <= now_us && offer.due_us(count) > now_us,
                    "{rate} {now_us}"
                );
            }
        }
        let mut idle = Offer::new(0.0, 3, 0);
        assert_eq!((idle.next_due(1, 5), idle.take_waiting(5), idle.notice(5)), (None, None, None));
    }
}
