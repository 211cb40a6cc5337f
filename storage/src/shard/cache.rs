//! A bounded map in two generations: what is used stays, what is not is forgotten. Knows nothing of what it holds.

use std::hash::Hash;

use hashbrown::HashMap;

/// A bounded map. What was used since the last turn of generations survives the next; what is pinned survives all.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    /// The young generation grows to this, and so the map to twice this and what is pinned.
    generation_max: usize,
}

impl<K: Eq + Hash + Copy, V> Cache<K, V> {
    pub(super) fn new(entries_max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), generation_max: entries_max / 2 }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.old.is_empty()
            && let Some(value) = self.old.remove(key)
        {
            self.young.insert(*key, value);
        }
        self.young.get_mut(key)
    }

    pub(super) fn peek(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// Looks at what is there; that is no use of it.
    pub(super) fn peek_mut(&mut self, key: &K) -> Option<&mut V> {
        if self.young.is_empty() && self.old.is_empty() {
            return None;
        }
        self.young.get_mut(key).or_else(|| self.old.get_mut(key))
    }

    /// Forgets what nobody will ask for soon.
    pub(super) fn remove(&mut self, key: &K) {
        if self.young.remove(key).is_none() {
            self.old.remove(key);
        }
        // Many that came and went leave no room behind them.
        if self.young.capacity() > 4096 && self.young.len() < self.young.capacity() / 8 {
            self.young.shrink_to(self.young.len() * 2);
        }
    }

    /// Adds what is not there.
    pub(super) fn insert(&mut self, key: K, value: V) {
        let before = self.young.insert(key, value).or_else(|| self.old.remove(&key));
        assert!(before.is_none(), "memory is never replaced by what was read");
    }

    /// Forgets the old generation, but for the pinned, once the young one is full.
    pub(super) fn turn(&mut self, is_pinned: impl Fn(&V) -> bool) {
        if self.young.len() < self.generation_max {
            return;
        }
        let forgotten = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
        self.young.extend(forgotten.into_iter().filter(|(_, value)| is_pinned(value)));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_bounded_and_keeps_the_pinned_and_the_used() {
        let mut cache = Cache::new(100);
        cache.insert(0u32, true);
        for key in 1..10_000u32 {
            cache.insert(key, false);
            assert!(cache.get_mut(&1).is_some(), "used all the time");
            cache.turn(|pinned| *pinned);
            assert!(cache.len() <= 102, "{}", cache.len());
        }
        assert_eq!(cache.peek(&0), Some(&true));
        assert_eq!(cache.peek(&2), None);
    }
}
