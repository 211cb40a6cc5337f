//! How lives of the server begin and end, and what is left of their disks.

use std::sync::Arc;

use culver_storage::engine::Engine;
use culver_storage::memory::{Loss, MemoryEngine};
use culver_storage::planted::{self, Bug};
use culver_storage::reader::Engines;
use culver_storage::verify::verify_engines;

use crate::net::Wire;
use crate::plan::Fault;
use crate::server::{Life, Start, topology};
use crate::world::{End, Party, World};

/// Steps after which a backup is taken, if it can be.
const BACKUP_STEPS: u64 = 500;

impl World {
    /// Opens the volumes, recovers the hubs, and begins a life; unless it ends on the way.
    pub(crate) fn start(&mut self) {
        let may_die = !self.is_calm && self.plan.kinds.contains(&Fault::Kill);
        for volume in 0..self.engines.len() {
            if may_die && self.source.chance(50) {
                self.trace.event(|| "the process is killed while it opens its volumes".to_owned());
                self.die(End::Killed);
                return;
            }
            self.open(volume);
        }
        if self.generation < 8 && self.plan.generations && self.lives > 0 && self.source.chance(500) {
            self.generation += 1;
        }
        let start = Start {
            number: self.lives,
            hubs: self.plan.hubs_max - self.source.number::<u16>(0, u64::from(self.plan.hubs_max - self.plan.volumes)),
            reactors: match self.plan.inherits {
                true => self.plan.reactors_max,
                false => self.source.number(1, self.plan.reactors_max.into()),
            },
            generation: self.generation,
            keeps_journal: self.source.chance(self.plan.journals),
        };
        self.trace.event(|| {
            let Start { hubs, reactors, generation, .. } = start;
            format!("a life begins: hubs {hubs}, reactors {reactors}, tickets of generation {generation}")
        });
        if self.lives > 0 && self.source.chance(self.plan.verified) {
            self.verify("after a restart");
        }
        let source = &mut self.source;
        let survives = |_: &mut culver::hub::Hub| !(may_die && source.chance(50));
        let listeners = &self.listeners[..usize::from(start.reactors)];
        self.life = Life::new(&self.plan, start, &self.engines, &self.space, &self.clocks, listeners, survives);
        self.lives += 1;
        if self.life.is_none() {
            self.trace.event(|| "the process is killed while it recovers".to_owned());
            return self.die(End::Killed);
        }
        let is_waiting = |party: &&mut Party| party.wire.as_ref().is_some_and(Wire::is_waiting);
        for party in self.parties.iter_mut().filter(is_waiting) {
            let name = party.device.name();
            self.trace.event(|| format!("{name} has waited for it"));
            self.oracle.tally.waited += 1;
            party.device.reach(self.generation);
        }
    }

    pub(crate) fn open(&mut self, volume: usize) {
        let engine = &self.engines[volume];
        if self.has_crashed {
            let cuts = engine.reopen().unwrap_or_else(|error| {
                panic!("a volume is refused only where what had been synced is damaged: volume {volume}: {error}")
            });
            self.events += 1;
            match &cuts.reason {
                None => self.trace.step(|| format!("volume {volume} is open, and nothing is cut off its log")),
                Some(reason) => self
                    .trace
                    .event(|| format!("volume {volume} is open, and {} bytes are cut off its log: {reason}", cuts.len)),
            }
            let len = engine.log_len();
            self.written[volume].retain(|written| written.end <= len);
        }
        let cold = if self.is_calm { 0 } else { self.plan.cold };
        engine.set_cold_share(u64::from(self.lives), cold);
    }

    /// A life ends, with what was on its way.
    pub(crate) fn die(&mut self, end: End) {
        self.trace.event(|| format!("a life ends: {end:?}"));
        self.copies.clear();
        let rudely = self.source.chance(500);
        for wire in &self.wires {
            match end {
                End::PowerLoss => wire.server_vanished(),
                _ if wire.is_waiting() && self.plan.inherits => {}
                End::Killed | End::Left => wire.server_died(rudely),
                End::LogFailed => wire.server_died(true),
            }
        }
        for listener in &self.listeners {
            match end {
                End::PowerLoss => listener.lose(),
                End::Killed | End::Left | End::LogFailed => listener.close(),
            }
        }
        if let Some(mut life) = self.life.take() {
            life.check_journals(&self.plan);
        }
        self.has_crashed = true;
        for volume in 0..self.engines.len() {
            let engine = Arc::clone(&self.engines[volume]);
            let unsynced = engine.unsynced_len();
            let loss = match end {
                End::Killed => Loss::NOTHING,
                End::Left => {
                    assert_eq!(unsynced, 0, "who leaves in order leaves nothing unsynced");
                    Loss::NOTHING
                }
                End::PowerLoss | End::LogFailed => self.lose(unsynced),
            };
            if unsynced > 0 {
                let (keep, hole) = (loss.keep.min(unsynced), &loss.hole);
                self.trace.event(|| {
                    format!("  of {unsynced} bytes not synced volume {volume} keeps {keep}, with a hole: {hole:?}")
                });
            }
            engine.crash(&loss);
        }
        let pause_us = self.source.pick(&[1_000, 20_000, 300_000]);
        self.restart_at_us = self.now_us() + u64::from(self.source.below(pause_us));
    }

    /// What a power loss takes: all, some or nothing; the pages of what is left may be missing in its middle.
    fn lose(&mut self, unsynced: usize) -> Loss {
        let keep = match self.source.below(4) {
            0 => unsynced,
            1 => 0,
            _ => self.source.index(unsynced + 1),
        };
        let hole = (keep > 0 && self.source.chance(400)).then(|| {
            let begin = self.source.index(keep);
            begin..begin + 1 + self.source.index(keep - begin)
        });
        Loss { keep, hole }
    }

    /// Takes a backup now and then, if no writer is within a batch: of all volumes at that moment. It opens, and every
    /// invariant holds in it. That writers are kept there meanwhile is the gate's to promise; nothing here waits, so that
    /// worlds are the same with and without.
    pub(crate) fn back_up(&mut self) {
        let Some(life) = &self.life else { return };
        let is_time = self.steps.is_multiple_of(BACKUP_STEPS);
        if !is_time || life.logs.iter().any(|log| !log.is_between_batches()) {
            return;
        }
        while let Some(engine) = self.engines.get(self.copies.len()) {
            self.copies.push(Arc::new(engine.fork()));
            if planted::is(Bug::BackupOneByOne) {
                break;
            }
        }
        if self.copies.len() == self.engines.len() {
            let copies = std::mem::take(&mut self.copies);
            for copy in &copies {
                copy.crash(&Loss::NOTHING);
                let cuts = copy.reopen().expect("a backup opens");
                assert!(cuts.reason.is_none(), "nothing in a backup is torn: {cuts:?}");
            }
            self.trace.event(|| "a backup is taken".to_owned());
            self.verify_these(&copies, "in a backup");
        }
    }

    /// Every invariant of what is on the disks holds.
    pub(crate) fn verify(&self, when: &str) {
        self.verify_these(&self.engines, when);
    }

    fn verify_these(&self, engines: &[Arc<MemoryEngine>], when: &str) {
        let engines = Engines {
            engines: engines.iter().map(|engine| Arc::clone(engine) as Arc<dyn Engine>).collect(),
            topology: (*topology(&self.plan, self.plan.hubs_max)).clone(),
        };
        let report = verify_engines(&engines).expect("what was written can be read");
        assert!(report.is_clean(), "the disks are in order {when}: {:#?}", report.findings);
    }
}
