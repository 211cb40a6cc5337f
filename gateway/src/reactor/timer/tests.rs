use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use super::*;

/// Connections without sockets.
struct Bench {
    connections: Slab<Connection<()>>,
    wheel: Wheel,
    /// When each connection in the wheel is due.
    due: BTreeMap<u32, u32>,
}

impl Bench {
    fn new() -> Self {
        Self { connections: Slab::default(), wheel: Wheel::default(), due: BTreeMap::new() }
    }

    fn add(&mut self) -> u32 {
        self.connections.insert(Connection::new((), 1, 0))
    }

    fn insert(&mut self, slot: u32, ticks: u32) {
        self.wheel.insert(&mut self.connections, slot, ticks);
        self.due.insert(slot, self.wheel.now() + ticks.max(1));
    }

    fn remove(&mut self, slot: u32) {
        self.wheel.remove(&mut self.connections, slot);
        self.due.remove(&slot);
    }

    /// Goes on to a tick; exactly those that are due by then come out.
    fn advance(&mut self, now: u32) {
        let mut due = Vec::new();
        self.wheel.advance(&mut self.connections, now, &mut due);
        due.sort_unstable();
        let mut expected: Vec<u32> = self.due.iter().filter(|(_, due)| **due <= now).map(|(slot, _)| *slot).collect();
        expected.sort_unstable();
        assert_eq!(due, expected, "at tick {now}");
        self.due.retain(|_, due| *due > now);
        assert_eq!(self.wheel.count(&self.connections), self.due.len(), "at tick {now}");
    }
}

#[test]
fn everybody_comes_out_when_due_and_only_then() {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut bench = Bench::new();
    let slots: Vec<u32> = (0..40).map(|_| bench.add()).collect();
    let mut now = 0;
    for _ in 0..20_000 {
        match random.random_range(0..4) {
            0 | 1 => {
                let slot = *slots.iter().choose(&mut random).expect("some");
                if !bench.due.contains_key(&slot) {
                    // Around a whole turn of the wheel, and far beyond it.
                    let ticks = match random.random_range(0..4) {
                        0 => random.random_range(0..4),
                        1 => BUCKETS - 2 + random.random_range(0..4),
                        2 => 2 * BUCKETS + random.random_range(0..4),
                        _ => random.random_range(0..3000),
                    };
                    bench.insert(slot, ticks);
                }
            }
            // One that is in no list may be taken out as well.
            2 => bench.remove(*slots.iter().choose(&mut random).expect("some")),
            _ => {
                now += if random.random_bool(0.01) { random.random_range(0..2000) } else { random.random_range(0..3) };
                bench.advance(now);
            }
        }
    }
    bench.advance(now + 10_000);
    assert!(bench.due.is_empty());
    assert!(bench.wheel.heads.iter().all(|head| *head == NOBODY), "nobody is left behind");
}

#[test]
fn a_slot_used_again_is_in_no_list_of_its_earlier_connection() {
    let mut bench = Bench::new();
    let (first, second, third) = (bench.add(), bench.add(), bench.add());
    for slot in [first, second, third] {
        bench.insert(slot, 5);
    }
    bench.remove(second);
    bench.connections.remove(second);
    let again = bench.add();
    assert_eq!(again, second);
    bench.advance(4);
    bench.insert(again, 5);
    bench.advance(5);
    bench.advance(8);
    bench.advance(9);
    assert!(bench.due.is_empty());
}
