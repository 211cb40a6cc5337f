//! Sessions that have said READY and that their hubs have not let in yet, for all connections of a reactor: when they
//! said it, whether their clients have said more, and which of them are refused and have not been told so.
//!
//! Who is refused as unknown is told at a fixed time after READY: whether the hub found no such user in memory or had to
//! read the disk for a device's key cannot be told by the clock. Pure; an idle connection has nothing here.

use std::collections::{BTreeSet, HashMap};

/// From READY to the word that nobody is known by it; a hub that reads the disk takes less.
pub const REFUSAL_US: u64 = 250_000;
/// Room for so many is kept when there is none.
const ROOM_KEPT: usize = 256;

/// One session.
#[derive(Clone, Copy, Debug)]
struct One {
    ready_us: u64,
    has_more: bool,
    is_refused: bool,
}

impl One {
    /// Whether its socket is read as soon as its hub has answered.
    fn waits(self) -> bool {
        self.has_more && !self.is_refused
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Entering {
    /// By slot.
    all: HashMap<u32, One>,
    /// How many of them have said more, and are not refused.
    waiting: usize,
    /// Those that are refused: when they are to be told so, and their slots.
    refused: BTreeSet<(u64, u32)>,
}

impl Entering {
    /// A session has said READY.
    pub fn begin(&mut self, slot: u32, now_us: u64) {
        let before = self.all.insert(slot, One { ready_us: now_us, has_more: false, is_refused: false });
        assert!(before.is_none(), "a session says it once, and what was there before it was forgotten");
    }

    /// Its client has said more, or gone: its socket is to be read when its hub has answered.
    pub fn note_more(&mut self, slot: u32) {
        self.change(slot, |one| one.has_more = true);
    }

    /// Its hub does not know it. Whether it is to be told so later, by [`Entering::take_due`].
    pub fn refuse(&mut self, slot: u32, now_us: u64) -> bool {
        let Some(due_us) = self.all.get(&slot).map(|one| one.ready_us.saturating_add(REFUSAL_US)) else { return false };
        if due_us <= now_us {
            return false;
        }
        self.change(slot, |one| one.is_refused = true);
        self.refused.insert((due_us, slot))
    }

    /// The next that is to be told now that it is refused.
    pub fn take_due(&mut self, now_us: u64) -> Option<u32> {
        let (due_us, slot) = *self.refused.first()?;
        if due_us > now_us {
            return None;
        }
        self.refused.pop_first();
        Some(slot)
    }

    /// It is let in, or over. Whether its client has said more meanwhile.
    pub fn end(&mut self, slot: u32) -> bool {
        let Some(one) = self.all.remove(&slot) else { return false };
        self.waiting -= usize::from(one.waits());
        self.refused.remove(&(one.ready_us.saturating_add(REFUSAL_US), slot));
        if self.all.is_empty() && self.all.capacity() > ROOM_KEPT {
            // A rush is over.
            self.all = HashMap::new();
        }
        one.has_more
    }

    fn change(&mut self, slot: u32, change: impl FnOnce(&mut One)) {
        let Some(one) = self.all.get_mut(&slot) else { return };
        self.waiting -= usize::from(one.waits());
        change(one);
        self.waiting += usize::from(one.waits());
    }

    /// When the next of those that are refused is to be told so.
    #[must_use]
    pub fn due_us(&self) -> Option<u64> {
        self.refused.first().map(|(due_us, _)| *due_us)
    }

    /// Whether sockets wait for a hub's answer to be read: it does not hurry to tell that it has let somebody in.
    #[must_use]
    pub fn sockets_wait(&self) -> bool {
        self.waiting > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_is_told_at_a_fixed_time_after_ready() {
        let mut entering = Entering::default();
        entering.begin(1, 1000);
        entering.begin(2, 2000);
        // The later is refused first, by a hub that found nobody in memory.
        assert!(entering.refuse(2, 2001) && entering.refuse(1, 200_000));
        assert_eq!(entering.due_us(), Some(1000 + REFUSAL_US));
        assert_eq!(entering.take_due(999 + REFUSAL_US), None);
        assert_eq!(entering.take_due(1000 + REFUSAL_US), Some(1));
        assert_eq!(entering.take_due(1000 + REFUSAL_US), None, "each at its own time");
        assert_eq!((entering.take_due(u64::MAX), entering.take_due(u64::MAX)), (Some(2), None));
    }

    #[test]
    fn sockets_wait_for_an_answer_and_not_for_the_time_to_tell_it() {
        let mut entering = Entering::default();
        entering.begin(1, 0);
        entering.begin(2, 0);
        assert!(!entering.sockets_wait());
        entering.note_more(1);
        entering.refuse(2, 1);
        assert!(entering.sockets_wait());
        entering.refuse(1, 1);
        entering.note_more(2);
        assert!(!entering.sockets_wait());
        assert!(entering.end(1) && entering.end(2));
    }

    #[test]
    fn a_hub_that_took_longer_is_waited_for_no_more() {
        let mut entering = Entering::default();
        entering.begin(1, 1000);
        assert!(!entering.refuse(1, 1000 + REFUSAL_US));
        assert!(!entering.refuse(7, 0), "one that was let in before");
        assert_eq!(entering.due_us(), None);
    }

    #[test]
    fn nothing_is_left_of_those_that_are_let_in_or_gone() {
        let mut entering = Entering::default();
        for slot in 0..5000 {
            entering.begin(slot, 0);
            if slot % 2 == 0 {
                entering.note_more(slot);
                entering.note_more(slot);
            }
            if slot % 3 == 0 {
                assert!(entering.refuse(slot, 1));
            }
        }
        assert!(entering.sockets_wait());
        for slot in 0..5000 {
            assert_eq!(entering.end(slot), slot % 2 == 0);
            assert!(!entering.end(slot));
        }
        entering.note_more(1);
        assert!(!entering.sockets_wait() && entering.due_us().is_none() && entering.take_due(u64::MAX).is_none());
        assert!(entering.all.capacity() <= ROOM_KEPT);
    }
}
