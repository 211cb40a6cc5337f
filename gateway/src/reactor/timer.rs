//! A timer wheel of one-second ticks whose lists run through the connections themselves.
//!
//! Deadlines are looked at lazily: hearing from a client only notes the tick, and a connection whose time has come
//! is put where its deadline has moved to.

use super::connection::Connection;
use crate::slab::Slab;

/// Buckets of the wheel: deadlines further away go round again.
const BUCKETS: u32 = 512;
/// The end of a list.
pub const NOBODY: u32 = u32::MAX;

/// A connection's place in the wheel.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    previous: u32,
    next: u32,
    /// The tick at which the connection is looked at.
    pub due: u32,
}

impl Default for Place {
    fn default() -> Self {
        Self { previous: NOBODY, next: NOBODY, due: 0 }
    }
}

/// The wheel.
pub struct Wheel {
    heads: Vec<u32>,
    now: u32,
}

impl Default for Wheel {
    fn default() -> Self {
        Self { heads: vec![NOBODY; BUCKETS as usize], now: 0 }
    }
}

impl Wheel {
    /// The present tick.
    #[must_use]
    pub fn now(&self) -> u32 {
        self.now
    }

    /// Puts a connection where it is looked at after `ticks`. It is in no list.
    pub fn insert<S>(&mut self, connections: &mut Slab<Connection<S>>, slot: u32, ticks: u32) {
        let due = self.now + ticks.max(1);
        let head = self.head(due);
        let first = std::mem::replace(head, slot);
        if let Some(first) = connections.get_mut(first) {
            first.timer.previous = slot;
        }
        let connection = connections.get_mut(slot).expect("the caller's connection exists");
        connection.timer = Place { previous: NOBODY, next: first, due };
    }

    /// Takes a connection out of the wheel.
    pub fn remove<S>(&mut self, connections: &mut Slab<Connection<S>>, slot: u32) {
        let Some(place) = connections.get(slot).map(|connection| connection.timer) else { return };
        match connections.get_mut(place.previous) {
            Some(previous) => previous.timer.next = place.next,
            None => {
                let head = self.head(place.due);
                if *head == slot {
                    *head = place.next;
                }
            }
        }
        if let Some(next) = connections.get_mut(place.next) {
            next.timer.previous = place.previous;
        }
        connections.get_mut(slot).expect("looked at above").timer = Place::default();
    }

    /// Goes on to `now` and takes out all connections that are due.
    pub fn advance<S>(&mut self, connections: &mut Slab<Connection<S>>, now: u32, due: &mut impl Extend<u32>) {
        while self.now < now {
            self.now += 1;
            let mut slot = *self.head(self.now);
            while let Some(connection) = connections.get(slot) {
                let next = connection.timer.next;
                if connection.timer.due <= self.now {
                    self.remove(connections, slot);
                    due.extend([slot]);
                }
                slot = next;
            }
        }
    }

    /// Connections in the wheel, counted one by one: for checks.
    #[must_use]
    pub fn count<S>(&self, connections: &Slab<Connection<S>>) -> usize {
        let next = |slot: &u32| connections.get(*slot).map(|connection| connection.timer.next);
        let list = |head: &u32| std::iter::successors(Some(*head), next).filter(|slot| *slot != NOBODY).count();
        self.heads.iter().map(list).sum()
    }

    fn head(&mut self, tick: u32) -> &mut u32 {
        self.heads.get_mut((tick % BUCKETS) as usize).expect("as many heads as buckets")
    }
}

#[cfg(test)]
mod tests;
