//! The scheduler: who moves next, and what that is. Time passes a little with each step, and jumps to the next deadline
//! when nothing can move.

use crate::net::MOVED;
use crate::plan::Worker;
use crate::server::Life;
use crate::world::{End, World, Written};

/// Something that can move. Numbers are those of the life, the wires or the parties.
#[derive(Clone, Copy, Debug)]
enum Actor {
    Reactor(usize),
    Hub(usize),
    Reader(usize),
    Log(usize),
    Wire(usize),
    Attacker(usize),
    Party(usize),
    Start,
}

impl Actor {
    fn worker(self) -> Option<Worker> {
        Some(match self {
            Self::Reactor(_) => Worker::Reactor,
            Self::Hub(_) => Worker::Hub,
            Self::Reader(_) => Worker::Reader,
            Self::Log(_) => Worker::Writer,
            Self::Wire(_) => Worker::Wire,
            Self::Attacker(_) | Self::Party(_) => Worker::Device,
            Self::Start => return None,
        })
    }
}

impl World {
    /// One step.
    pub(crate) fn step(&mut self) {
        self.steps += 1;
        let passed_us = self.source.below(self.plan.step_us + 1);
        self.set_time(self.now_us() + u64::from(passed_us));
        if self.plan.faults > 0 && !self.is_calm && self.source.below(10_000) >= 10_000 - self.plan.faults {
            self.fault();
        }
        match self.next_actor() {
            Some(actor) => self.act(actor),
            None => self.jump(),
        }
        self.events += MOVED.take();
    }

    fn actor_count(&self) -> usize {
        let life = self.life.as_ref().map_or(1, |life| life.reactors.len() + 2 * life.hubs.len() + life.logs.len());
        life + self.wires.len() + self.attackers.len() + self.parties.len()
    }

    /// The actor with a number below `actor_count`.
    fn actor(&self, mut number: usize) -> Actor {
        let mut is_in = |count: usize| {
            let found = (number < count).then_some(number);
            number = number.wrapping_sub(count);
            found
        };
        if let Some(life) = &self.life {
            if let Some(at) = is_in(life.reactors.len()) {
                return Actor::Reactor(at);
            }
            if let Some(at) = is_in(life.hubs.len()) {
                return Actor::Hub(at);
            }
            if let Some(at) = is_in(life.hubs.len()) {
                return Actor::Reader(at);
            }
            if let Some(at) = is_in(life.logs.len()) {
                return Actor::Log(at);
            }
        } else if is_in(1).is_some() {
            return Actor::Start;
        }
        if let Some(at) = is_in(self.wires.len()) {
            return Actor::Wire(at);
        }
        match is_in(self.attackers.len()) {
            Some(at) => Actor::Attacker(at),
            None => Actor::Party(number),
        }
    }

    /// Somebody who can move: not the laziest, and everybody in turn where the choices are tame.
    fn next_actor(&mut self) -> Option<Actor> {
        let count = self.actor_count();
        let start = self.turn + 1 + self.source.index(count);
        let mut lazy = None;
        for number in (start..start + count).map(|number| number % count) {
            let actor = self.actor(number);
            if !self.can_move(actor) {
                continue;
            }
            let laziness = actor.worker().map_or(0, |worker| self.plan.laziness(worker));
            if laziness > 0 && !self.is_calm && self.source.chance(laziness) {
                lazy.get_or_insert((number, actor));
                continue;
            }
            self.turn = number;
            return Some(actor);
        }
        lazy.map(|(number, actor)| {
            self.turn = number;
            actor
        })
    }

    fn can_move(&self, actor: Actor) -> bool {
        let now_us = self.now_us();
        let of_life = |can: fn(&Life, usize, u64) -> bool, at: usize| {
            self.life.as_ref().is_some_and(|life| can(life, at, now_us))
        };
        match actor {
            Actor::Reactor(at) => of_life(|life, at, now_us| life.reactors[at].can_turn(now_us), at),
            Actor::Hub(at) => of_life(|life, at, now_us| life.hubs[at].can_turn(now_us), at),
            Actor::Reader(at) => {
                of_life(|life, at, now_us| life.hubs[at].can_read() || life.hubs[at].can_tell_read(now_us), at)
            }
            Actor::Log(at) => of_life(
                |life, at, now_us| {
                    let log = &life.logs[at];
                    log.can_append() || log.can_sync(now_us) || log.can_tell()
                },
                at,
            ),
            Actor::Wire(at) => self.wires[at].can_carry(),
            Actor::Attacker(at) => self.attackers[at].can_move(now_us),
            Actor::Party(at) => self.can_party_move(at),
            Actor::Start => self.restart_at_us <= now_us,
        }
    }

    fn act(&mut self, actor: Actor) {
        let now_us = self.now_us();
        match actor {
            Actor::Start => self.start(),
            Actor::Wire(at) => self.carry(at),
            Actor::Attacker(at) => self.move_attacker(at),
            Actor::Party(at) => self.move_party(at),
            Actor::Log(at) => self.write_log(at),
            Actor::Reactor(at) => {
                let life = self.life.as_mut().expect("it can move");
                self.events += life.turn_reactor(at, &self.clocks, &mut self.source);
                self.trace.step(|| format!("reactor {at} turns"));
            }
            Actor::Hub(at) => {
                let life = self.life.as_mut().expect("it can move");
                self.events += life.turn_hub(at, &self.clocks);
                self.trace.step(|| format!("hub {at} turns"));
                if life.has_ended() {
                    self.die(End::Left);
                }
            }
            Actor::Reader(at) => {
                let life = self.life.as_mut().expect("it can move");
                if life.hubs[at].can_tell_read(now_us) {
                    self.events += life.tell_read(at, now_us, &mut self.source);
                    self.trace.step(|| format!("a reader tells hub {at}"));
                } else {
                    let longest_us = if self.is_calm { 0 } else { self.plan.read_us };
                    let tells_at_us = now_us + u64::from(self.source.below(longest_us + 1));
                    self.trace.event(|| format!("a reader reads for hub {at}: {}", life.hubs[at].next_read()));
                    self.events += life.make_read(at, tells_at_us);
                }
            }
        }
    }

    fn write_log(&mut self, at: usize) {
        let now_us = self.now_us();
        let life = self.life.as_mut().expect("it can move");
        let log = &life.logs[at];
        if log.can_tell() {
            self.events += life.tell_synced(at, &mut self.source);
            self.trace.step(|| format!("a writer of volume {at} tells its hub"));
        } else if log.can_sync(now_us) {
            self.events += life.sync(at);
            self.trace.event(|| format!("volume {at} is synced"));
        } else {
            let longest_us = if self.is_calm { 100 } else { self.plan.sync_us };
            let until_us = now_us + u64::from(self.source.below(longest_us + 1));
            self.append(at, until_us);
        }
    }

    /// Writers of a volume append what they have, or some of it.
    pub(crate) fn append(&mut self, at: usize, until_us: u64) {
        let life = self.life.as_mut().expect("it can move");
        let (mut rows, mut synced_through) = (0, 0);
        self.events += life.append(at, until_us, &mut self.source, |batch, synced| {
            rows += u64::from(batch.row_count());
            synced_through = synced.max(synced_through);
        });
        let written = &mut self.written[at];
        let last = life.appended_sequence(at);
        written.push(Written { end: self.engines[at].log_len(), last, synced_through });
        self.trace.event(|| format!("volume {at} appends {rows} rows, up to {last}"));
    }

    fn carry(&mut self, at: usize) {
        if !self.pass(at) {
            return;
        }
        let wire = &self.wires[at];
        let (to_server, to_client) = wire.directions();
        let at_most = if self.plan.pieces > 0 && !self.is_calm && self.source.chance(self.plan.pieces) {
            1 + self.source.below(self.plan.piece_max) as usize
        } else {
            usize::MAX
        };
        if to_server && (!to_client || self.source.below(2) == 0) {
            wire.carry_to_server(at_most);
            self.trace.step(|| format!("wire {at} carries to the server"));
        } else {
            let overtakes = self.source.chance(300);
            wire.carry_to_client(at_most, overtakes);
            self.trace.step(|| format!("wire {at} carries to the client"));
        }
        if self.wires[at].is_over() && !self.wires[at].can_carry() {
            self.wires.swap_remove(at);
        }
    }

    /// Nothing can move: time passes until something can.
    fn jump(&mut self) {
        let now_us = self.now_us();
        self.wires.retain(|wire| !wire.is_over() || wire.can_carry());
        let life = match &self.life {
            Some(life) => life.due_us(),
            None => Some(self.restart_at_us),
        };
        let is_closing = self.is_closing;
        let parties = self.parties.iter().flat_map(|party| {
            let stalled = (party.wire.is_some() && party.stalled_until_us > now_us).then_some(party.stalled_until_us);
            let acts = (!is_closing).then_some(party.act_at_us);
            [Some(party.due_us), party.connect_at_us, stalled, acts]
        });
        let attackers = self.attackers.iter().map(|attacker| attacker.until_us);
        let others = life.into_iter().chain(self.space_low_until_us).chain(attackers);
        let due_us = parties.flatten().chain(others).min().expect("something is due some time");
        assert!(due_us > now_us, "the scheduler knows who can move: something was due at {due_us}, and it is {now_us}");
        assert!(due_us < u64::MAX, "something is due some time");
        self.set_time(due_us);
    }

    /// A fault of one of the plan's kinds.
    fn fault(&mut self) {
        let kind = self.source.pick(&self.plan.kinds);
        self.events += 1;
        self.trace.event(|| format!("FAULT: {kind:?}"));
        self.inflict(kind);
    }
}
