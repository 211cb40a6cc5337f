//! Token buckets, each of one number: how fast something may come of whom.
//!
//! The number is the time up to which a rate is used up: whatever comes moves it on by the time between two (virtual
//! scheduling, the GCRA of ITU-T I.371). It may lie ahead of now by as much as a burst takes; once it lies behind, the
//! bucket is full, and is forgotten. So there are only buckets of those who have come lately. Owns no clock, and refuses
//! nothing by itself.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;

/// Highest rate and largest burst.
pub const RATE_MAX: u32 = 1_000_000;
/// Most parts that a limit is dealt to.
pub const PARTS_MAX: u32 = 256;
/// Buckets that one sweep looks at, where nothing else is said.
pub const SWEEP_MAX: usize = 8192;
/// A table with so many times more room than buckets, and more than `SWEEP_MAX`, gives it back.
const SLACK: usize = 8;
/// Who is refused waits until there is room for what comes in this time, or for half a burst if that is less: whoever
/// has much to send sends all of it again for each that is accepted otherwise.
const ROOM_NS: u64 = NS_PER_S;

/// Nanoseconds of a second.
pub const NS_PER_S: u64 = 1_000_000_000;
/// Nanoseconds of a millisecond.
pub const NS_PER_MS: u64 = 1_000_000;
/// Latest time: 292 years after the machine's start, and nothing that is added to it overflows.
pub const NOW_NS_MAX: u64 = u64::MAX / 2;

const _: () = assert!(RATE_MAX as u64 <= NS_PER_S, "there is time between two");
const _: () = assert!(NS_PER_S * PARTS_MAX as u64 * RATE_MAX as u64 <= NOW_NS_MAX / 2, "a burst ends in time");

/// A moment in microseconds, as buckets count time.
#[must_use]
pub fn ns_of_us(us: u64) -> u64 {
    us.saturating_mul(1000).min(NOW_NS_MAX)
}

/// How fast something may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    per_s: u32,
    burst: u32,
    /// This is one of so many parts of it.
    parts: u32,
}

impl Limit {
    /// So many a second, and so many at once of who has been silent.
    ///
    /// # Panics
    /// Unless both are 1 to [`RATE_MAX`].
    #[must_use]
    pub fn new(per_s: u32, burst: u32) -> Self {
        let possible = 1..=RATE_MAX;
        assert!(possible.contains(&per_s) && possible.contains(&burst), "{burst} at once, {per_s}/s is no limit");
        Self { per_s, burst, parts: 1 }
    }

    /// What each has of it where it is dealt to so many: of what comes at once, one at least.
    ///
    /// # Panics
    /// Unless there are 1 to [`PARTS_MAX`].
    #[must_use]
    pub fn part_of(self, parts: usize) -> Self {
        let parts = u32::try_from(parts).ok().filter(|parts| (1..=PARTS_MAX).contains(parts));
        let parts = parts.expect("a limit is dealt to a few");
        Self { parts, burst: self.burst.div_ceil(parts), ..self }
    }

    /// So many per cent of it, or so many a second more if that is faster, and at once what comes in so many
    /// milliseconds: one at least.
    ///
    /// # Panics
    /// Unless it is as fast at least: slower it might be nothing.
    #[must_use]
    pub fn faster(self, percent: u32, more_per_s: u32, burst_ms: u32) -> Self {
        assert!(percent >= 100, "{percent} per cent of a limit");
        let per_s =
            (u64::from(self.per_s) * u64::from(percent) / 100).max(u64::from(self.per_s) + u64::from(more_per_s));
        let per_s = u32::try_from(per_s).map_or(RATE_MAX, |per_s| per_s.min(RATE_MAX));
        let burst = u64::from(per_s) * u64::from(burst_ms) / 1000 / u64::from(self.parts);
        Self { per_s, burst: u32::try_from(burst).map_or(RATE_MAX, |burst| burst.clamp(1, RATE_MAX)), ..self }
    }

    /// How many come in so many milliseconds, a part of one counted whole.
    #[must_use]
    pub fn in_ms(self, ms: u64) -> u64 {
        (ms * NS_PER_MS).div_ceil(self.interval_ns().max(1))
    }

    /// How many may come at once.
    #[must_use]
    pub fn burst(self) -> u32 {
        self.burst
    }

    /// From one to the next.
    #[must_use]
    pub fn interval_ns(self) -> u64 {
        NS_PER_S * u64::from(self.parts) / u64::from(self.per_s)
    }

    /// How far ahead of now a bucket may be.
    #[must_use]
    pub fn ahead_ns(self) -> u64 {
        self.interval_ns() * u64::from(self.burst)
    }

    /// What is left free before who was refused comes again. Between one and a second's.
    #[must_use]
    pub fn room_ns(self) -> u64 {
        ROOM_NS.min(self.ahead_ns() / 2).max(self.interval_ns())
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s, {} at once", self.per_s, self.burst)
    }
}

/// A bucket: up to when its rate is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level(u64);

impl Level {
    /// As it counts now. A clock that has gone back must not lock anybody out until it is again where it was: more than
    /// a burst ahead is a burst ahead.
    #[must_use]
    pub fn at(self, now_ns: u64, limit: Limit) -> Self {
        Self(self.0.clamp(now_ns, now_ns.saturating_add(limit.ahead_ns())))
    }

    /// How long whoever comes now is to wait, for it and more to find room. `None`: there is room. To be asked of what
    /// counts now.
    #[must_use]
    pub fn wait_ns(self, now_ns: u64, limit: Limit) -> Option<u64> {
        let end_ns = now_ns + limit.ahead_ns();
        let has_room = self.0 + limit.interval_ns() <= end_ns;
        (!has_room).then(|| self.0 + limit.room_ns() - end_ns)
    }

    /// One has come.
    #[must_use]
    pub fn charged(self, limit: Limit) -> Self {
        Self(self.0 + limit.interval_ns())
    }

    /// Whether it says no more than none would.
    #[must_use]
    pub fn is_full(self, now_ns: u64) -> bool {
        self.0 <= now_ns
    }
}

/// Buckets of one kind.
#[derive(Debug)]
pub struct Buckets<K> {
    limit: Limit,
    levels: HashMap<K, Level>,
    /// Whom a sweep looks at next. Invariant: each of them once.
    order: VecDeque<K>,
}

/// One that is asked for room.
pub struct Bucket<'a, K> {
    limit: Limit,
    entry: Entry<'a, K, Level>,
    order: &'a mut VecDeque<K>,
    now_ns: u64,
    /// As it counts now.
    level: Level,
}

impl<K: Copy + Eq + Hash> Buckets<K> {
    /// None yet.
    #[must_use]
    pub fn new(limit: Limit) -> Self {
        Self { limit, levels: HashMap::new(), order: VecDeque::new() }
    }

    /// How fast each may come.
    #[must_use]
    pub fn limit(&self) -> Limit {
        self.limit
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.levels.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// Whether there is one of this.
    #[must_use]
    pub fn knows(&self, key: K) -> bool {
        self.levels.contains_key(&key)
    }

    /// The bucket of this, which need not be there yet.
    pub fn look(&mut self, key: K, now_ns: u64) -> Bucket<'_, K> {
        let mut entry = self.levels.entry(key);
        let mut level = Level::default().at(now_ns, self.limit);
        if let Entry::Occupied(found) = &mut entry {
            level = found.get().at(now_ns, self.limit);
            *found.get_mut() = level;
        }
        Bucket { limit: self.limit, entry, order: &mut self.order, now_ns, level }
    }

    /// Looks at so many, in turn, and forgets those that are full again.
    pub fn sweep(&mut self, now_ns: u64, at_most: usize) {
        for _ in 0..self.order.len().min(at_most) {
            let Some(key) = self.order.pop_front() else { return };
            let level = self.levels.get_mut(&key).expect("each is in the order once");
            *level = level.at(now_ns, self.limit);
            if level.is_full(now_ns) {
                self.levels.remove(&key);
            } else {
                self.order.push_back(key);
            }
        }
        if self.order.capacity() > SWEEP_MAX.max(SLACK * self.order.len()) {
            self.order.shrink_to(2 * self.order.len());
            self.levels.shrink_to(2 * self.levels.len());
        }
    }

    /// Room for so many is kept, for checks.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.order.capacity().max(self.levels.capacity())
    }
}

impl<K: Copy> Bucket<'_, K> {
    /// How long to wait. `None`: it has room.
    #[must_use]
    pub fn wait_ns(&self) -> Option<u64> {
        self.level.wait_ns(self.now_ns, self.limit)
    }

    /// One has come.
    pub fn charge(self) {
        let level = self.level.charged(self.limit);
        match self.entry {
            Entry::Occupied(mut found) => *found.get_mut() = level,
            Entry::Vacant(place) => {
                self.order.push_back(*place.key());
                place.insert(level);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many go through at once.
    fn drain(level: &mut Level, now_ns: u64, limit: Limit) -> u32 {
        let mut count = 0;
        *level = level.at(now_ns, limit);
        while level.wait_ns(now_ns, limit).is_none() {
            *level = level.charged(limit);
            count += 1;
        }
        count
    }

    #[test]
    fn parts_of_a_limit_come_to_the_whole() {
        for (parts, burst_of_each) in [(1, 500), (2, 250), (3, 167), (256, 2)] {
            let part = Limit::new(1000, 500).part_of(parts);
            let mut levels = vec![Level::default(); parts];
            let at_once: Vec<u32> = levels.iter_mut().map(|level| drain(level, NS_PER_S, part)).collect();
            assert!(at_once.iter().all(|count| *count == burst_of_each), "{parts} parts: {at_once:?}");
            let later: u32 = levels.iter_mut().map(|level| drain(level, NS_PER_S * 100, part)).sum();
            assert_eq!(later, burst_of_each * u32::try_from(parts).expect("few"));
            // Ten seconds in steps in which no bucket is full.
            let steps = (1..=1000).map(|step| NS_PER_S * 100 + step * 10 * NS_PER_MS);
            let sum: u32 =
                steps.map(|now_ns| levels.iter_mut().map(|level| drain(level, now_ns, part)).sum::<u32>()).sum();
            assert!((9_700..=10_000).contains(&sum), "{parts} parts let {sum} through");
        }
    }
}
