//! What goes wrong, and the probes that need a disk of their own.

use std::sync::Arc;

use culver::reactor::parting::{Order, Pace};
use culver_protocol::proto;
use culver_storage::engine::Engine;
use culver_storage::log::BLOCK_LEN;

use crate::net::Wire;
use crate::plan::Fault;
use crate::world::{End, World};

/// By how much a clock jumps, in milliseconds.
const JUMPS_MS: [i64; 10] =
    [1_000, -1_000, 50, -50, 3_600_000, -3_600_000, 86_400_000, -86_400_000, 365 * 86_400_000, -365 * 86_400_000];

/// Longest damage to a log.
const DAMAGED_MAX: usize = 200;

impl World {
    /// This goes wrong now, if it can.
    pub(crate) fn inflict(&mut self, fault: Fault) {
        match fault {
            Fault::Kill if self.life.is_some() => self.die(End::Killed),
            Fault::PowerLoss if self.life.is_some() => self.die(End::PowerLoss),
            Fault::Leave => self.ask_to_leave(),
            Fault::Drain => self.drain(),
            Fault::WriteFails | Fault::SyncFails => self.fail_log(fault == Fault::WriteFails),
            Fault::Cut | Fault::Dark => {
                let open: Vec<usize> = (0..self.parties.len()).filter(|at| self.parties[*at].wire.is_some()).collect();
                if open.is_empty() {
                    return;
                }
                let at = open[self.source.index(open.len())];
                let wire = self.parties[at].wire.as_ref().expect("just looked");
                if fault == Fault::Cut {
                    wire.cut()
                } else {
                    wire.go_dark()
                }
                self.trace.event(|| format!("  of the connection of {}", self.parties[at].device.name()));
            }
            Fault::Storm => self.wires.iter().for_each(Wire::cut),
            Fault::HalfOpen => {
                let at = self.source.index(self.parties.len());
                let now_us = self.now_us();
                if let Some(wire) = self.parties[at].wire.take() {
                    wire.go_dark();
                    wire.client_close(true);
                    self.trace.event(|| format!("  of {}", self.parties[at].device.name()));
                    self.parties[at].device.disconnected(&mut self.oracle, now_us);
                    self.after_client(at);
                }
            }
            Fault::Stall => self.stall(),
            Fault::ClockJump => self.jump_clock(),
            Fault::SpaceLow => self.take_room(),
            Fault::Cold => {
                let share = self.source.pick(&[0, 100, 500, 1000]);
                let seed = self.steps;
                self.engines.iter().for_each(|engine| engine.set_cold_share(seed, share));
            }
            Fault::Flush | Fault::Compact if self.life.is_some() => {
                let volume = self.source.index(self.engines.len());
                let engine = Arc::clone(&self.engines[volume]);
                if engine.unsynced_len() > 0 {
                    return;
                }
                if fault == Fault::Compact {
                    engine.compact().expect("an engine in memory can merge");
                } else {
                    engine.flush();
                }
                if engine.log_len() == 0 {
                    self.written[volume].clear();
                }
                self.events += 1;
            }
            Fault::Tamper => self.tamper(),
            Fault::Replay if self.life.is_some() => self.replay(),
            Fault::Impostor if self.life.is_some() => self.send_impostor(),
            Fault::Former if self.life.is_some() => self.send_former(),
            Fault::KeysAge => self.age_keys(),
            Fault::Probe if self.life.is_some() => self.probe(),
            _ => {}
        }
    }

    fn jump_clock(&mut self) {
        let by_ms = self.source.pick(&JUMPS_MS);
        let base = &self.clocks.wall_base_ms;
        base.set(base.get().saturating_add_signed(by_ms));
        self.trace.event(|| format!("the clock jumps by {by_ms} ms"));
    }

    /// SIGTERM.
    fn ask_to_leave(&mut self) {
        let now_us = self.now_us();
        self.life.iter_mut().for_each(|life| life.leave(now_us));
    }

    fn stall(&mut self) {
        let at = self.source.index(self.parties.len());
        let until_us = self.until_soon();
        self.parties[at].stalled_until_us = until_us;
        self.trace.event(|| format!("  of {} until {} ms", self.parties[at].device.name(), until_us / 1000));
    }

    /// Operators begin a drain, or end the one that is under way.
    fn drain(&mut self) {
        let now_us = self.now_us();
        let Some(life) = self.life.as_mut().filter(|life| life.leaving_since_us.is_none()) else { return };
        if life.is_draining() {
            self.trace.event(|| "  it is ended".to_owned());
            return life.abort_drain();
        }
        let source = &mut self.source;
        let (spread_us, finish_us) = (source.pick(&[0, 100_000, 3_000_000]), source.pick(&[0, 500_000, 5_000_000]));
        let connections = source.pick(&[0, 0, 1, 20]);
        let reactors = u32::try_from(life.reactors.len()).expect("few");
        let pace = match connections {
            0 => Pace::Within { spread_us },
            connections => Pace::PerSecond { connections, reactors },
        };
        let goaway = proto::Goaway {
            reason: proto::goaway::Reason::Drain.into(),
            reconnect_min_ms: 0,
            reconnect_max_ms: source.pick(&[0, 1000, 60_000]),
            alternates: Vec::new(),
        };
        self.trace.event(|| format!("  {pace:?}, and who stays is ended after {} ms", finish_us / 1000));
        life.drain(Order { goaway, pace, finish_us: Some(finish_us) }, now_us);
    }

    fn take_room(&mut self) {
        // Not over at once: somebody may look.
        let until_us = self.until_soon() + 1;
        self.space.set_low(true);
        self.space_low_until_us = Some(until_us);
        self.trace.event(|| format!("  until {} ms", until_us / 1000));
    }

    fn until_soon(&mut self) -> u64 {
        let longest_us = self.source.pick(&[1_000, 100_000, 3_000_000]);
        self.now_us() + u64::from(self.source.below(longest_us))
    }

    /// A write or a sync of a log fails: nobody is told of what was on its way, and the process ends. How much of it
    /// reached the disk nobody knows.
    fn fail_log(&mut self, at_write: bool) {
        let Some(life) = &mut self.life else { return };
        let volume = self.source.index(self.engines.len());
        if at_write && life.logs[volume].can_append() {
            self.append(volume, u64::MAX);
        } else if self.engines[volume].unsynced_len() == 0 {
            return;
        }
        self.die(End::LogFailed);
    }

    /// A copy of a volume is damaged somewhere in its log. It must be refused if a later record proves that what is
    /// damaged had been synced, and opened if none does.
    fn probe(&mut self) {
        let volume = self.source.index(self.engines.len());
        let copy = self.engines[volume].fork();
        let written = self.written[volume].clone();
        let Some(len) = written.last().map(|last| last.end) else { return };
        assert_eq!(len, copy.log_len(), "every record of the log is noted, of volume {volume}: {written:?}");
        let at = self.source.index(len);
        let damaged = 1 + self.source.index((len - at).min(DAMAGED_MAX));
        // What pads a block means nothing.
        let is_padding = (at..at + damaged).any(|at| at % BLOCK_LEN > BLOCK_LEN - 16);
        if is_padding {
            return;
        }
        let begins = |index: usize| if index == 0 { 0 } else { written[index - 1].end };
        let is_hit = |index: usize| begins(index) < at + damaged && at < written[index].end;
        let first = (0..written.len()).find(|index| is_hit(*index)).expect("it is within the log");
        let good = if first == 0 { 0 } else { written[first - 1].last };
        let is_proven = (first..written.len()).any(|index| !is_hit(index) && written[index].synced_through > good);
        copy.damage(at, damaged);
        copy.crash(&culver_storage::memory::Loss::NOTHING);
        self.events += 1;
        self.trace.event(|| format!("a copy of volume {volume} is damaged at {at}, {damaged} bytes of {len}"));
        match copy.reopen() {
            Ok(cuts) => {
                assert!(
                    !is_proven,
                    "damage to what had been synced is refused: {damaged} bytes at {at} of volume {volume} were cut \
                     off: {cuts:?}"
                );
                let has_begin = first == 0;
                assert!(
                    has_begin || copy.sequence_synced() == good,
                    "what is cut off is all from the damage on: {cuts:?}"
                );
            }
            Err(error) => assert!(is_proven, "a torn tail is cut off: volume {volume} was refused: {error}"),
        }
    }
}
