//! How clients are asked to go: one after the other as they lie in the table, as fast as the order says and never more
//! than a few in a turn, so that those who are busy wait for nobody's farewell. Who was asked and has not gone when the
//! time for it is over is ended; who is not logged in yet is ended at once, and told to come later.
//!
//! Who comes while clients are asked to go is turned back before it logs in: it would be asked to go at once, and a drain
//! that lets people in has no end.
//!
//! ```text
//! Telling ──the last was told──→ Told ──finish_us later──→ Ending ──the last was ended──→ Over
//! ```

use std::sync::Arc;
use std::time::Duration;

use culver_protocol::error::ErrorCode;
use culver_protocol::proto;
use culver_storage::planted::{self, Bug};

use super::buffers::NO_BUFFER;
use super::connection::Life;
use super::socket::Socket;
use super::{Reactor, Wait};

/// The shortest wait for the next that is to be told: a few are told together.
const PACE: Duration = Duration::from_millis(1);

/// How fast clients are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as turns go.
    AtOnce,
    /// Evenly over this time.
    Within {
        /// Microseconds.
        spread_us: u64,
    },
    /// So many a second, of all reactors.
    PerSecond {
        /// Of all reactors together.
        connections: u32,
        /// How many there are.
        reactors: u32,
    },
}

/// What clients are told, and how fast.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// What they are told: whoever has not logged in yet is given a time within its span.
    pub goaway: proto::Goaway,
    /// How fast.
    pub pace: Pace,
    /// Who has not gone so long after the last was told is ended; `None`: nobody is.
    pub finish_us: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Telling,
    Told { since_us: u64 },
    Ending,
    Over,
}

/// An order that is carried out.
#[derive(Debug)]
pub(super) struct Parting {
    order: Arc<Order>,
    began_us: u64,
    /// Connections there were when it began.
    count: u64,
    /// Those that were told, or ended for they were not logged in.
    told: u64,
    /// Where in the table it goes on.
    next: u32,
    /// Clients that were given a time to come back.
    turned_back: u32,
    step: Step,
}

impl Parting {
    fn new(order: Arc<Order>, began_us: u64, count: usize) -> Self {
        Self { order, began_us, count: count as u64, told: 0, next: 0, turned_back: 0, step: Step::Telling }
    }

    /// How many are to have been told by now.
    fn due(&self, now_us: u64) -> u64 {
        let elapsed_us = u128::from(now_us - self.began_us);
        let due = match self.order.pace {
            Pace::AtOnce | Pace::Within { spread_us: 0 } => return u64::MAX,
            Pace::Within { spread_us } if elapsed_us >= spread_us.into() => return u64::MAX,
            Pace::Within { spread_us } => u128::from(self.count) * elapsed_us / u128::from(spread_us),
            Pace::PerSecond { connections, reactors } => {
                u128::from(connections) * elapsed_us / (u128::from(reactors.max(1)) * 1_000_000)
            }
        };
        u64::try_from(due).unwrap_or(u64::MAX)
    }

    /// When the next is to be told, where none is now.
    fn next_us(&self) -> u64 {
        let next = u128::from(self.told) + 1;
        let after_us = match self.order.pace {
            Pace::AtOnce => 0,
            Pace::Within { spread_us } => (next * u128::from(spread_us)).div_ceil(self.count.max(1).into()),
            Pace::PerSecond { connections, reactors } => {
                (next * u128::from(reactors.max(1)) * 1_000_000).div_ceil(connections.max(1).into())
            }
        };
        let longest_us = if let Pace::Within { spread_us } = self.order.pace { spread_us } else { u64::MAX };
        self.began_us.saturating_add(u64::try_from(after_us).unwrap_or(u64::MAX).min(longest_us))
    }

    /// How long the reactor may sleep for it; `None`: as long as it likes.
    fn wait(&self, now_us: u64) -> Option<Wait> {
        let until = |us: u64| Wait::For(Duration::from_micros(us.saturating_sub(now_us)).max(PACE));
        match self.step {
            Step::Telling if self.told < self.due(now_us) => Some(Wait::Not),
            Step::Telling => Some(until(self.next_us())),
            Step::Told { since_us } => self.order.finish_us.map(|finish_us| until(since_us.saturating_add(finish_us))),
            Step::Ending => Some(Wait::Not),
            Step::Over => None,
        }
    }

    /// A time within the span of the order, another for each: evenly, however many there are.
    fn retry_after_ms(&mut self, reactor: u16) -> u32 {
        /// 2³² divided by the golden ratio: its multiples, modulo 2³², lie as evenly as any.
        const STEP: u32 = 2_654_435_769;
        self.turned_back = self.turned_back.wrapping_add(1);
        let place = u64::from(self.turned_back.wrapping_mul(STEP).wrapping_add(u32::from(reactor) << 24));
        let proto::Goaway { reconnect_min_ms: least, reconnect_max_ms: most, .. } = self.order.goaway;
        let beyond = (place * u64::from(most.saturating_sub(least))) >> 32;
        least.saturating_add(u32::try_from(beyond).expect("a part of 32 bits"))
    }
}

impl<S: Socket> Reactor<S> {
    /// The server ends: asks all clients to go, whatever it asked of them before. Once, however often it is said; nobody
    /// is to be accepted any more.
    pub fn leave(&mut self) {
        if self.is_leaving {
            return;
        }
        self.is_leaving = true;
        let shutdown = self.around.config.shutdown;
        let ms = |seconds: u64| u32::try_from(seconds.saturating_mul(1000)).unwrap_or(u32::MAX);
        let before = self.parting.take();
        let goaway = proto::Goaway {
            reason: proto::goaway::Reason::Shutdown.into(),
            reconnect_min_ms: ms(shutdown.away_s),
            reconnect_max_ms: ms(shutdown.away_s.saturating_add(shutdown.spread_s)),
            // Where there are others to go to, they still are.
            alternates: before.map_or(Vec::new(), |parting| parting.order.goaway.alternates.clone()),
        };
        self.part(Arc::new(Order { goaway, pace: Pace::AtOnce, finish_us: None }));
    }

    /// Asks clients to go, and stays. Another order takes the place of the one before; none does of the end.
    pub fn drain(&mut self, order: &Arc<Order>) {
        if !self.is_leaving {
            self.part(Arc::clone(order));
        }
    }

    /// Asks nobody any more, and takes who comes. Who was asked and has not gone is welcome to stay.
    pub fn abort_drain(&mut self) {
        // Planted: nobody else is asked, but who comes is still turned back.
        if let Some(parting) = self.parting.as_mut().filter(|_| planted::is(Bug::AbortedDrainStays)) {
            parting.step = Step::Over;
        } else if !self.is_leaving {
            self.parting = None;
        }
    }

    fn part(&mut self, order: Arc<Order>) {
        self.parting = Some(Parting::new(order, self.mono_us, self.connections.len()));
    }

    /// The next of those who are to be told, or ended.
    pub(super) fn go_on_parting(&mut self) {
        let Some(mut parting) = self.parting.take() else { return };
        let due = parting.due(self.mono_us);
        for _ in 0..self.around.bounds.partings_a_turn {
            match parting.step {
                Step::Telling if parting.told >= due => break,
                Step::Told { since_us } => {
                    let is_over = |finish_us| self.mono_us >= since_us.saturating_add(finish_us);
                    if !parting.order.finish_us.is_some_and(is_over) || planted::is(Bug::DrainNeverFinished) {
                        break;
                    }
                    (parting.step, parting.next) = (Step::Ending, 0);
                }
                Step::Over => break,
                Step::Telling | Step::Ending => {}
            }
            let Some(slot) = self.connections.index_from(parting.next) else {
                let is_told = parting.step == Step::Telling;
                parting.step = if is_told { Step::Told { since_us: self.mono_us } } else { Step::Over };
                break;
            };
            parting.next = slot + 1;
            let connection = self.connections.get(slot).expect("just found");
            if connection.life != Life::Open {
                continue;
            }
            if parting.step == Step::Telling && connection.session.is_greeted() {
                self.write(slot, |session, out| session.write_goaway(&parting.order.goaway, out));
                self.flush_later(slot);
                self.counters().goaways.add(1);
            } else {
                let retry_after_ms = parting.retry_after_ms(self.number);
                self.end_with(slot, ErrorCode::ShuttingDown, retry_after_ms);
            }
            parting.told += u64::from(parting.step == Step::Telling);
        }
        self.parting = Some(parting);
    }

    /// Who has just come while clients are asked to go is told so, and when to come again.
    pub(super) fn turn_back(&mut self, slot: u32) {
        let Some(parting) = &mut self.parting else { return };
        let retry_after_ms = parting.retry_after_ms(self.number);
        self.end_with(slot, ErrorCode::ShuttingDown, retry_after_ms);
    }

    /// How long to sleep at most for the sake of those who are asked to go.
    pub(super) fn parting_wait(&self) -> Option<Wait> {
        self.parting.as_ref().and_then(|parting| parting.wait(self.mono_us))
    }

    /// Before this turn's records are written: who was asked to go has time to read that until the next. The time for
    /// what is unsent begins when the last was told.
    pub(super) fn look_whether_left(&mut self) {
        let told = self.parting.as_ref().filter(|_| self.is_leaving).map(|parting| parting.step);
        let Some(Step::Told { since_us }) = told else { return };
        let flush_us = self.around.config.shutdown.flush_s.saturating_mul(1_000_000);
        let overdue = self.mono_us - since_us > flush_us;
        let owed = self.hubs.owed() > 0 || self.hubs.have_effects();
        if owed && !overdue {
            return;
        }
        // The first that was found is looked at first: as long as it reads nothing, the others need not be.
        let is_unsent = |slot: &u32| {
            let connection = self.connections.get(*slot);
            connection.is_some_and(|connection| connection.life != Life::Closed && connection.outgoing != NO_BUFFER)
        };
        self.last_unsent = self.last_unsent.filter(is_unsent).or_else(|| self.connections.indexes().find(is_unsent));
        let unsent = self.last_unsent.is_some();
        if overdue && (owed || unsent) {
            tracing::warn!(replies_owed = self.hubs.owed(), "not everything could be written before the time was over");
        }
        // Those too are told, and no sooner than always.
        let unrefused = self.entering.due_us().is_some();
        self.has_left = overdue || (!unsent && !unrefused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parting(pace: Pace, count: usize) -> Parting {
        let goaway = proto::Goaway { reconnect_min_ms: 100, reconnect_max_ms: 1100, ..Default::default() };
        Parting::new(Arc::new(Order { goaway, pace, finish_us: Some(5_000_000) }), 1000, count)
    }

    #[test]
    fn an_order_is_carried_out_as_fast_as_it_says() {
        let even = parting(Pace::Within { spread_us: 10_000_000 }, 50);
        assert_eq!([1000, 1_001_000, 9_999_000, 10_001_000].map(|us| even.due(us)), [0, 5, 49, u64::MAX]);
        assert_eq!(even.next_us(), 201_000);
        let paced = parting(Pace::PerSecond { connections: 30, reactors: 3 }, 50);
        assert_eq!([1000, 101_000, 1_001_000, 60_001_000].map(|us| paced.due(us)), [0, 1, 10, 600]);
        assert_eq!(paced.next_us(), 101_000);
        // One of a thousand reactors, of which one a second tells one.
        let slow = parting(Pace::PerSecond { connections: 1, reactors: 256 }, 1);
        assert_eq!((slow.due(256_000_999), slow.due(256_001_000), slow.next_us()), (0, 1, 256_001_000));
        for at_once in [Pace::AtOnce, Pace::Within { spread_us: 0 }] {
            assert_eq!(parting(at_once, 50).due(1000), u64::MAX);
        }
    }

    #[test]
    fn the_next_is_due_when_it_is_said_to_be() {
        for count in [1, 7, 1000] {
            for pace in [
                Pace::Within { spread_us: 3_000_001 },
                Pace::PerSecond { connections: 7, reactors: 3 },
                Pace::PerSecond { connections: 1_000_000, reactors: 256 },
            ] {
                let mut parting = parting(pace, count);
                for told in 0..count as u64 {
                    parting.told = told;
                    assert!(parting.due(parting.next_us()) > told, "{pace:?} {told}");
                }
            }
        }
    }

    #[test]
    fn who_is_turned_back_comes_at_a_time_of_its_own_within_the_span() {
        let mut parting = parting(Pace::AtOnce, 0);
        let mut times: Vec<u32> = (0..1000).map(|_| parting.retry_after_ms(3)).collect();
        times.sort_unstable();
        assert!(times.iter().all(|ms| (100..1100).contains(ms)));
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] <= 4), "evenly");
    }
}
