//! What a reactor may refuse, reckoned beside it: as many must have come before as may come at once, and each is given a
//! place behind the last. Nothing is kept of who is refused.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use culver::buckets::Limit;
use culver::metrics::Counters;
use culver::reactor::Reactor;
use culver::reactor::admission::{HORIZON_NS, LEAD_NS, Limits, PLACES_PERCENT};

use crate::net::SimSocket;

/// When those came that count.
#[derive(Debug, Default)]
struct Past(VecDeque<u64>);

impl Past {
    fn note(&mut self, now_us: u64) {
        self.0.push_back(now_us);
    }

    /// Whether so many came that there is no room for one more.
    fn is_full(&mut self, limit: Limit, now_us: u64) -> bool {
        let since_us = now_us.saturating_sub(limit.ahead_ns().div_ceil(1000));
        while self.0.pop_front_if(|came_us| *came_us < since_us).is_some() {}
        self.0.len() >= limit.burst() as usize
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gate {
    limits: Limits,
    let_in: Past,
    of_sources: HashMap<IpAddr, Past>,
    /// The next place, in nanoseconds.
    next_ns: u64,
}

/// What is kept, and what was counted.
struct Kept {
    connections: usize,
    buffers: usize,
    shed: u64,
    shed_by_source: u64,
}

impl Kept {
    fn look(reactor: &Reactor<SimSocket>, counters: &Counters) -> Self {
        Self {
            connections: reactor.connections(),
            buffers: reactor.buffers_taken(),
            shed: counters.logins_shed.get(),
            shed_by_source: counters.logins_shed_by_source.get(),
        }
    }
}

impl Gate {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// A connection comes to the reactor: its slot, if it is taken.
    pub(super) fn accept(
        &mut self,
        reactor: &mut Reactor<SimSocket>,
        counters: &Counters,
        (socket, source): (SimSocket, IpAddr),
        now_us: u64,
    ) -> Option<u32> {
        let (was_full, before) = (reactor.is_full(), Kept::look(reactor, counters));
        let slot = reactor.accept(socket, source);
        let after = Kept::look(reactor, counters);
        let of_source = self.of_sources.entry(source).or_default();
        if slot.is_some() {
            self.let_in.note(now_us);
            of_source.note(now_us);
            return slot;
        }
        let is_nothing_kept = after.connections == before.connections && after.buffers == before.buffers;
        assert!(is_nothing_kept, "nothing is kept of who is refused: {} connections", after.connections);
        if after.shed_by_source > before.shed_by_source {
            let limit = self.limits.source.expect("only what is limited is refused");
            assert!(of_source.is_full(limit, now_us), "{source} is refused, and may still come: {limit}");
        } else if after.shed > before.shed {
            of_source.note(now_us);
            let limit = self.limits.all.expect("only what is limited is refused");
            assert!(
                self.let_in.is_full(limit, now_us),
                "who is refused takes nothing of the rate: somebody was, and only {} of {limit} were let in",
                self.let_in.0.len()
            );
            self.give_place(limit, counters, now_us);
        } else {
            assert!(was_full, "only who finds no room is turned away");
        }
        None
    }

    fn give_place(&mut self, limit: Limit, counters: &Counters, now_us: u64) {
        let now_ns = now_us * 1000;
        let place_ns = self.next_ns.max(now_ns + limit.interval_ns().max(LEAD_NS));
        if place_ns <= now_ns + HORIZON_NS {
            self.next_ns = place_ns + limit.interval_ns() * 100 / PLACES_PERCENT;
        }
        let (given_ms, expected_ms) = (counters.calendar_ms.get(), (self.next_ns - now_ns) / 1_000_000);
        assert_eq!(
            given_ms, expected_ms,
            "each who is refused has a place of its own, and time frees those that are past"
        );
    }
}
