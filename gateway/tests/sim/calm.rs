//! How a run goes: faults for a while, then calm, in which everything must come to rest in bounded time, and then all
//! checks that only a world at rest can pass.

use culver::hub::holdings::Holdings;
use culver::reactor::admission::{LEAD_NS, PLACES_PERCENT};

use crate::net::Wire;
use crate::server::{FLUSH_S, Life};
use crate::world::{End, Party, World};

/// Events before the calm, at least.
pub(crate) const EVENTS_MIN: u64 = 2000;
/// Messages that each application sends more where all it was to send did not make so many.
const SENDS_MORE: u32 = 3;
/// Virtual time before the calm, at most; unless too little has happened by then.
const ACTIVE_MAX_US: u64 = 600_000_000;
/// In calm everything comes to rest in so much virtual time, and so many steps.
const REST_MAX_US: u64 = 900_000_000;
const REST_STEPS_MAX: u64 = 100_000;
/// And so many more for each piece that a reactor reads of what is not answered yet, and so often at most is that sent:
/// who is told that the recipient is full, or has lost its connection, sends again.
const STEPS_A_PIECE: u64 = 6;
const RESENDS_MAX: u64 = 8;
/// A client knows that its connection is dead after its longest keep-alive and its wait for an answer.
const DEAD_MAX_US: u64 = (30 + 15) * 1_000_000;
/// So many attempts may fail for other reasons than that too many come at once: a server that starts, a ticket that is
/// refused, a takeover. Each takes at most the client's wait for an answer and its longest backoff.
const ATTEMPTS: u64 = 3;
const ATTEMPT_MAX_US: u64 = (15 + 30) * 1_000_000;
/// The clients of a server that leaves are gone, and its answers written, within so much virtual time.
const LEAVE_MAX_US: u64 = (FLUSH_S + 30) * 1_000_000;

impl World {
    /// Everything from the beginning to the end. Panics where a promise is broken.
    pub(crate) fn run(&mut self) {
        let until_us = self.now_us() + ACTIVE_MAX_US;
        while self.goes_on(until_us) {
            self.step();
            self.check_leaving();
            self.back_up();
        }
        self.calm_down();
        self.log_everybody_in();
        self.settle("after the faults");
        self.be_silent();
        self.settle("after a silence");
        self.oracle.everything_is_known();
        for at in 0..self.parties.len() {
            let (now_us, party) = (self.now_us(), &mut self.parties[at]);
            let peers = party.peers.clone();
            party.device.say_last(&mut self.oracle, now_us, &peers);
            self.after_client(at);
        }
        self.settle("after the last messages");
        // Who is cut off meanwhile, for reading answers too slowly, is seen to be away: then all ask again.
        for _ in 0..RESENDS_MAX {
            let before = self.connected;
            for at in 0..self.parties.len() {
                self.parties[at].device.ask_last(&mut self.oracle);
                self.after_client(at);
            }
            self.settle("after the last questions");
            if self.connected == before {
                break;
            }
        }
        let now_us = self.now_us();
        self.oracle.check_end(self.parties.iter().map(|party| &party.device), now_us);
        self.everybody_goes();
        self.leave_at_last();
        (0..self.engines.len()).for_each(|volume| self.open(volume));
        self.verify("at the end");
    }

    /// Whether the faults go on. Applications that have sent all have more to send as long as little has happened.
    fn goes_on(&mut self, until_us: u64) -> bool {
        let is_within_plan = self.steps < self.plan.steps && self.now_us() < until_us;
        let is_little = self.events < EVENTS_MIN;
        // Looked at now and then.
        if self.steps.is_multiple_of(64) && !self.parties.iter().any(|party| party.device.sends_left() > 0) {
            if !is_little {
                return false;
            }
            self.parties.iter_mut().for_each(|party| party.device.sends_more(SENDS_MORE));
        }
        is_within_plan || is_little
    }

    fn calm_down(&mut self) {
        self.trace.event(|| "calm".to_owned());
        self.is_calm = true;
        self.make_room();
        self.engines.iter().for_each(|engine| engine.set_cold_share(0, 0));
        self.wires.iter().for_each(Wire::grow);
        // Who has too few connections for all gets more.
        if self.plan.connections_max < 1000 {
            self.plan.connections_max = 1000;
            if self.life.is_some() {
                self.die(End::Killed);
            }
        }
        self.stop_attacks();
        if self.source.chance(500) {
            self.see_drain_through();
        }
        // Who comes from here on is served.
        self.life.iter_mut().for_each(Life::abort_drain);
        for party in &mut self.parties {
            party.stalled_until_us = 0;
            party.act_at_us = party.act_at_us.min(self.clocks.mono_us.get());
        }
    }

    /// A drain that is under way goes on until it must be over.
    fn see_drain_through(&mut self) {
        let until_steps = self.steps + REST_STEPS_MAX;
        while self.life.as_ref().is_some_and(|life| life.is_within_drain(self.now_us())) {
            self.step();
            assert!(self.steps < until_steps, "time passes while a drain goes on: {}", self.stuck());
        }
        self.check_leaving();
    }

    pub(crate) fn check_leaving(&self) {
        if let Some(life) = &self.life {
            life.check_drain(self.now_us());
            life.check_waiting(self.now_us());
        }
        let since_us = self.life.as_ref().and_then(|life| life.leaving_since_us);
        if let Some(since_us) = since_us
            && self.now_us() > since_us + LEAVE_MAX_US
        {
            panic!("a server that is asked to leaves in time: it has not since {since_us}: {}", self.stuck());
        }
    }

    /// Whether everything is at rest.
    fn is_at_rest(&self) -> bool {
        let is_settled = |party: &Party| party.device.is_settled() && !party.device.is_fetch() && !party.may_write;
        self.parties.iter().all(is_settled)
            && self.life.as_ref().is_some_and(|life| life.leaving_since_us.is_none() && life.is_quiet())
            && self.wires.iter().all(Wire::is_quiet)
    }

    fn settle(&mut self, when: &str) {
        self.until(when, Self::is_at_rest);
    }

    /// Nobody is kept out for longer than there is a reason for.
    fn log_everybody_in(&mut self) {
        let most_us = self.login_us_max();
        let is_in = |party: &Party| party.device.is_in();
        self.until_within("everybody is logged in", most_us, |world| world.parties.iter().all(is_in));
    }

    /// The time in which everybody is logged in: until who has lost a connection without being told knows it, and has come
    /// when it was told to come before; then twice what the rates make of so many, for who comes at random finds room at
    /// the second time, and what may go wrong with some attempts.
    fn login_us_max(&self) -> u64 {
        let (now_us, plan) = (self.now_us(), &self.plan);
        let told = self.parties.iter().filter(|party| party.wire.is_none() && party.due_us < u64::MAX);
        let told_us = told.map(|party| party.due_us.saturating_sub(now_us)).max().unwrap_or(0);
        let clients = self.parties.len() as u64 + 1;
        let parts = plan.logins.part_of(plan.reactors_max.into());
        let of_all = parts.all.map_or(0, |limit| LEAD_NS + clients * limit.interval_ns() * 100 / PLACES_PERCENT);
        // Who is refused for its source's sake comes at any time in which a burst is earned, and perhaps in vain.
        let of_source =
            parts.source.map_or(0, |limit| (clients * limit.interval_ns()).max(LEAD_NS) + 3 * limit.ahead_ns());
        let of_user = plan.user_logins.map_or(0, |limit| (clients * limit.interval_ns()).max(LEAD_NS));
        let rates_us = 2 * (of_all + of_source + of_user) / 1000;
        DEAD_MAX_US + told_us + rates_us + ATTEMPTS * ATTEMPT_MAX_US
    }

    /// Steps until it is so, within bounds.
    fn until(&mut self, when: &str, is_so: impl Fn(&Self) -> bool) {
        self.until_within(when, REST_MAX_US, is_so);
    }

    fn until_within(&mut self, when: &str, most_us: u64, is_so: impl Fn(&Self) -> bool) {
        let pieces = (self.oracle.unanswered_len() / self.plan.sizes.read_len) as u64;
        let most = REST_STEPS_MAX + STEPS_A_PIECE * RESENDS_MAX * pieces;
        let (until_us, steps) = (self.now_us() + most_us, self.steps + most);
        loop {
            for _ in 0..16 {
                self.step();
            }
            self.check_leaving();
            if is_so(self) {
                return;
            }
            assert!(
                self.now_us() < until_us && self.steps < steps,
                "nothing waits for ever: no rest {when} in {} steps: {}",
                most + self.steps - steps,
                self.stuck()
            );
        }
    }

    /// Who is not at rest, for people.
    pub(crate) fn stuck(&self) -> String {
        let mut all = Vec::new();
        match &self.life {
            None => all.push("there is no server".to_owned()),
            Some(life) => {
                all.extend(life.busy());
                all.push(life.sleepers());
            }
        }
        for party in &self.parties {
            if party.may_write {
                all.push(format!("{} may write to {:?}", party.device.name(), party.wire));
            }
        }
        for party in self.parties.iter().filter(|party| !party.device.is_settled() || party.device.is_fetch()) {
            all.push(format!("{}: {:?}", party.device.name(), party.device.client));
        }
        for (at, wire) in self.wires.iter().enumerate().filter(|(_, wire)| !wire.is_quiet()) {
            all.push(format!("wire {at} is not quiet: {wire:?}"));
        }
        all.join("; ")
    }

    /// All devices go, and nothing is left of them.
    fn everybody_goes(&mut self) {
        self.is_closing = true;
        for party in std::mem::take(&mut self.parties) {
            party.wire.iter().for_each(|wire| wire.client_close(false));
        }
        self.until("when everybody is gone", |world| {
            world.life.as_ref().is_some_and(|life| {
                let reactors = life.reactors.iter().flat_map(|thread| &thread.reactor);
                let are_empty = reactors.map(|reactor| reactor.connections() + reactor.timers()).sum::<usize>() == 0;
                let hubs = life.hubs.iter().flat_map(|thread| &thread.driver);
                are_empty && hubs.into_iter().all(|driver| driver.hub().holdings() == Holdings::default())
            })
        });
        let life = self.life.as_ref().expect("looked at");
        for (number, reactor) in life.reactors.iter().flat_map(|thread| &thread.reactor).enumerate() {
            let taken = reactor.buffers_taken();
            assert_eq!(taken, 0, "nothing leaks: reactor {number} holds {taken} buffers of nobody");
            assert!(reactor.is_idle(), "nothing leaks: reactor {number} has something to do for nobody");
        }
    }

    fn leave_at_last(&mut self) {
        let now_us = self.now_us();
        self.life.as_mut().expect("there is a server").leave(now_us);
        let steps = self.steps + 10_000;
        while self.life.is_some() {
            self.step();
            self.check_leaving();
            assert!(self.steps < steps, "a server that is asked to leaves in time: {}", self.stuck());
        }
    }
}
