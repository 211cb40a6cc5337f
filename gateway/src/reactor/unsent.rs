//! What the sockets of a reactor have not taken: how much of it there is, and whose it is, the most first.
//!
//! Only connections that are blocked are here, and they are few: one whose socket takes all that it is given is never
//! looked at, and costs nothing. Pure; buffers are not here, only their lengths.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

/// Room for so many is kept when there is none.
const ROOM_KEPT: usize = 256;

/// A blocked connection. The last of these is the worst: the most bytes, and among equals who is blocked the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocked {
    /// Bytes that its socket has not taken.
    pub len: usize,
    /// Since when it has not taken all, in microseconds.
    pub since_us: Reverse<u64>,
    /// Its place in the reactor.
    pub slot: u32,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Unsent {
    by_slot: HashMap<u32, Blocked>,
    /// The same, the worst at the end.
    ranked: BTreeSet<Blocked>,
    /// Bytes of all: always the sum of those above.
    len: usize,
}

impl Unsent {
    /// A blocked connection has so many bytes to write now.
    pub fn note(&mut self, slot: u32, len: usize, now_us: u64) {
        let before = self.by_slot.get(&slot).copied();
        if before.is_some_and(|before| before.len == len) {
            return;
        }
        let since_us = before.map_or(Reverse(now_us), |before| before.since_us);
        if let Some(before) = before {
            self.ranked.remove(&before);
            self.len -= before.len;
        }
        let blocked = Blocked { len, since_us, slot };
        self.by_slot.insert(slot, blocked);
        self.ranked.insert(blocked);
        self.len += len;
    }

    /// A connection's socket has taken all, or it is gone.
    pub fn forget(&mut self, slot: u32) {
        let Some(blocked) = self.by_slot.remove(&slot) else { return };
        self.ranked.remove(&blocked);
        self.len -= blocked.len;
        if self.by_slot.is_empty() && self.by_slot.capacity() > ROOM_KEPT {
            self.by_slot = HashMap::new(); // many were slow at once, and that is over
        }
    }

    /// The worst, where all together have more than this. One alone is never the worst: its own bound holds it, and so
    /// somebody always gets on.
    #[must_use]
    pub fn worst_beyond(&self, len_max: usize) -> Option<u32> {
        if self.len <= len_max || self.ranked.len() < 2 {
            return None;
        }
        self.ranked.last().map(|blocked| blocked.slot)
    }

    /// The worst first.
    pub fn worst(&self) -> impl Iterator<Item = &Blocked> {
        self.ranked.iter().rev()
    }

    /// Bytes of all of them.
    #[must_use]
    pub fn total_len(&self) -> usize {
        self.len
    }

    /// How many they are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ranked.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(unsent: &Unsent) -> Vec<u32> {
        unsent.worst().map(|blocked| blocked.slot).collect()
    }

    #[test]
    fn the_worst_has_the_most_and_has_been_blocked_the_longest() {
        let mut unsent = Unsent::default();
        for (slot, len, now_us) in [(1, 10, 100), (2, 30, 200), (3, 30, 150), (4, 20, 300)] {
            unsent.note(slot, len, now_us);
        }
        assert_eq!(slots(&unsent), [3, 2, 4, 1]);
        // What it has changes, and since when it is blocked does not.
        unsent.note(1, 40, 900);
        unsent.note(1, 30, 901);
        assert_eq!((slots(&unsent), unsent.total_len()), (vec![1, 3, 2, 4], 110));
        unsent.forget(1);
        unsent.note(1, 30, 902);
        assert_eq!(slots(&unsent), [3, 2, 1, 4], "it had been rid of all");
    }

    #[test]
    fn beyond_the_bound_the_worst_go_until_one_is_left() {
        let mut unsent = Unsent::default();
        for slot in 0..5 {
            unsent.note(slot, 100 + slot as usize, 0);
        }
        assert_eq!(unsent.worst_beyond(510), None, "no more than that");
        let mut gone = Vec::new();
        while let Some(slot) = unsent.worst_beyond(250) {
            gone.push(slot);
            unsent.forget(slot);
        }
        assert_eq!((gone, unsent.total_len()), (vec![4, 3, 2], 201));
        unsent.forget(1);
        assert_eq!((unsent.worst_beyond(1), unsent.count()), (None, 1), "the last stays, whatever it has");
    }

    #[test]
    fn nothing_is_left_of_those_that_are_rid_of_all_or_gone() {
        let mut unsent = Unsent::default();
        for slot in 0..5000 {
            unsent.note(slot, 1 + slot as usize % 7, u64::from(slot));
            unsent.note(slot, 1 + slot as usize % 5, u64::from(slot));
        }
        (0..6000).for_each(|slot| unsent.forget(slot));
        assert_eq!((unsent.count(), unsent.total_len(), unsent.by_slot.len()), (0, 0, 0));
        assert!(unsent.by_slot.capacity() <= ROOM_KEPT);
    }
}
