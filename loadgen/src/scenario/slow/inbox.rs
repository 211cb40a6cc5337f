//! What one client of the crowd must get: each of its messages once, those of a sender in order. Pure.

use crate::dense::senders::SENDERS;

/// What a message is to the client that got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is due.
    Due,
    /// It had come before.
    Again,
    /// An earlier one of the same sender has not come yet.
    Early,
    /// It is somebody else's.
    Strange,
}

/// Which message is whose: message `round * clients + index` goes to client `index`, from sender number `message %
/// SENDERS`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounds {
    pub(super) clients: u64,
}

impl Rounds {
    /// Rounds from a message of a sender's to its next one for the same client.
    fn until_same_sender(self) -> u64 {
        let (mut one, mut other) = (self.clients, SENDERS);
        while other != 0 {
            (one, other) = (other, one % other);
        }
        SENDERS / one
    }
}

/// The rounds that a client has got: a bit each.
#[derive(Clone, Debug, Default)]
pub(super) struct Inbox {
    seen: Vec<u64>,
}

impl Inbox {
    /// Client number `index` has got this message.
    pub(super) fn take(&mut self, rounds: Rounds, index: u64, message: u64) -> Verdict {
        let (round, place) = (message / rounds.clients, message % rounds.clients);
        if place != index {
            return Verdict::Strange;
        }
        if self.has(round) {
            return Verdict::Again;
        }
        let before = round.checked_sub(rounds.until_same_sender());
        let is_early = before.is_some_and(|before| !self.has(before));
        let at = usize::try_from(round / 64).expect("memory has room for it");
        if self.seen.len() <= at {
            self.seen.resize(at + 1, 0);
        }
        *self.seen.get_mut(at).expect("just made") |= 1 << (round % 64);
        if is_early { Verdict::Early } else { Verdict::Due }
    }

    /// How many it has got.
    pub(super) fn count(&self) -> u64 {
        self.seen.iter().map(|bits| u64::from(bits.count_ones())).sum()
    }

    fn has(&self, round: u64) -> bool {
        let at = usize::try_from(round / 64).unwrap_or(usize::MAX);
        self.seen.get(at).is_some_and(|bits| bits & (1 << (round % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_comes_once_and_those_of_a_sender_in_order() {
        // With 96 clients a sender of 64 has every second round of a client.
        let (rounds, mut inbox) = (Rounds { clients: 96 }, Inbox::default());
        assert_eq!(rounds.until_same_sender(), 2);
        let mut take = |round: u64| inbox.take(rounds, 5, round * 96 + 5);
        // Nobody has promised that two senders keep step.
        assert_eq!([1, 0, 2, 3].map(&mut take), [Verdict::Due; 4]);
        assert_eq!([6, 2, 4, 6].map(&mut take), [Verdict::Early, Verdict::Again, Verdict::Due, Verdict::Again]);
        assert_eq!(inbox.take(rounds, 5, 7 * 96 + 6), Verdict::Strange);
        assert_eq!(inbox.count(), 6);
    }

    #[test]
    fn senders_keep_their_clients_where_the_numbers_go_together() {
        let every = |clients| Rounds { clients }.until_same_sender();
        assert_eq!([64, 128, 1, 7, 10_000].map(every), [1, 1, 64, 64, 4]);
        let mut inbox = Inbox::default();
        let verdicts = (0..200).map(|round| inbox.take(Rounds { clients: 64 }, 3, round * 64 + 3));
        assert!(verdicts.into_iter().all(|verdict| verdict == Verdict::Due));
        assert_eq!(inbox.count(), 200);
    }
}
