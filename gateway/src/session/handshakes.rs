//! What logins under way need beside their sessions, for all connections of a reactor: handshakes of three messages,
//! what is known of a device until its READY, and how much of the reactor's time handshakes may take.
//!
//! Nothing here outlives a login: an idle connection has none of it.

use std::collections::{BTreeMap, HashMap};

use culver_protocol::crypto::Suite;
use culver_protocol::handshake::Kind;
use culver_protocol::handshake::server::Awaiting;

use crate::auth::Fingerprint;
use crate::hub::command::Proof;

/// Handshakes of three messages under way at once, in one reactor: each holds a few hundred bytes.
/// One more, and the oldest gives way.
const AWAITING_MAX: usize = 1024;
/// Room for so many is kept when none is under way.
const ROOM_KEPT: usize = 256;
/// What handshakes may take at once of what they have not taken before.
pub const BURST_US: u64 = 50_000;
/// What a handshake costs that needs a key of the server's.
const IK_US: u64 = 300;
const XX_US: u64 = 250;
/// Whoever is told to come later is told one of the times from the first of these on to the second, each another, as far
/// apart as their handshakes may come; beyond the last it begins again at the first. Somebody who asks for handshakes
/// without end takes no times from others: they only come less often than he.
const PLACES_US: (u64, u64) = (1_000_000, 30_000_000);
/// Handshakes with Diffie-Hellman in one turn: whoever is connected waits no longer than for these.
const A_TURN: u32 = 1;

/// Whether a handshake may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Now.
    Now,
    /// In a later turn.
    Later,
    /// Not for a while: its client should come again.
    Busy,
}

/// What a device has shown until its READY passes it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its key; none in plaintext.
    pub fingerprint: Option<Fingerprint>,
    /// And what proves that it is the device it says.
    pub proof: Proof,
}

/// A handshake that waits for its third message.
#[derive(Debug)]
struct Waiting {
    /// Later ones have greater numbers.
    number: u64,
    suite: Suite,
    awaiting: Awaiting,
}

/// All logins under way in a reactor.
#[derive(Debug)]
pub struct Handshakes {
    /// By slot.
    awaiting: HashMap<u32, Waiting>,
    /// The slots of the same, by number: the oldest first.
    order: BTreeMap<u64, u32>,
    next_number: u64,
    shown: HashMap<u32, Shown>,
    /// Millionths of the thread's time.
    share_ppm: u64,
    burst_us: u64,
    level_us: u64,
    filled_us: u64,
    this_turn: u32,
    now_us: u64,
    /// The next time that somebody is told to come again.
    place_us: u64,
}

impl Handshakes {
    /// None under way; they may take so many millionths of the thread's time.
    #[must_use]
    pub fn new(share_ppm: u32) -> Self {
        Self {
            awaiting: HashMap::new(),
            order: BTreeMap::new(),
            next_number: 0,
            shown: HashMap::new(),
            share_ppm: share_ppm.into(),
            burst_us: BURST_US,
            level_us: BURST_US,
            filled_us: 0,
            this_turn: 0,
            now_us: 0,
            place_us: 0,
        }
    }

    /// Who has taken nothing for long may take only so much at once, in microseconds.
    ///
    /// # Panics
    /// If a handshake takes more: none would ever be answered.
    #[must_use]
    pub fn with_burst(self, burst_us: u64) -> Self {
        assert!(burst_us >= IK_US.max(XX_US), "each handshake has its turn some time");
        Self { burst_us, level_us: burst_us, ..self }
    }

    /// A turn begins.
    pub fn begin_turn(&mut self, now_us: u64) {
        let passed_us = now_us.saturating_sub(self.filled_us);
        // What is less than a microsecond's share is counted next time.
        let gained_us = passed_us.saturating_mul(self.share_ppm) / 1_000_000;
        if gained_us > 0 {
            self.level_us = self.level_us.saturating_add(gained_us).min(self.burst_us);
            self.filled_us = now_us;
        }
        self.this_turn = 0;
        self.now_us = now_us;
    }

    /// In how many milliseconds the client of a handshake that there was no time for is to come again.
    pub fn take_place_ms(&mut self) -> u32 {
        let (first_us, last_us) = (self.now_us + PLACES_US.0, self.now_us + PLACES_US.1);
        let place_us = if self.place_us > last_us { first_us } else { self.place_us.max(first_us) };
        self.place_us = place_us + IK_US * 1_000_000 / self.share_ppm.max(1);
        u32::try_from((place_us - self.now_us) / 1000).expect("half a minute at most")
    }

    /// Whether one more with Diffie-Hellman may be answered in this turn, if there is time for it.
    #[must_use]
    pub fn has_turn(&self) -> bool {
        self.this_turn < A_TURN
    }

    /// Whether a handshake of this kind may be answered now; then its time is taken.
    pub fn admit(&mut self, kind: Kind) -> Admission {
        let cost_us = match kind {
            // It costs no more than a message.
            Kind::Resume => return Admission::Now,
            Kind::Ik => IK_US,
            Kind::Xx => XX_US,
            Kind::ResumeForwardSecret => 110,
        };
        if self.level_us < cost_us {
            return Admission::Busy;
        }
        if !self.has_turn() {
            return Admission::Later;
        }
        self.this_turn += 1;
        self.level_us -= cost_us;
        Admission::Now
    }

    /// A handshake waits for its third message. Where as many wait as may, the oldest gives way: those that are never
    /// gone on with keep nobody out, and who goes on has at least the time in which so many others are admitted.
    pub(super) fn wait(&mut self, slot: u32, suite: Suite, awaiting: Awaiting) {
        if self.awaiting.len() >= AWAITING_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.awaiting.remove(&oldest);
        }
        let number = self.next_number;
        self.next_number += 1;
        self.order.insert(number, slot);
        let before = self.awaiting.insert(slot, Waiting { number, suite, awaiting });
        assert!(before.is_none(), "a connection has one handshake");
    }

    /// It has come. `None`: the handshake has given way.
    pub(super) fn go_on(&mut self, slot: u32) -> Option<(Suite, Awaiting)> {
        let Waiting { number, suite, awaiting } = self.awaiting.remove(&slot)?;
        self.order.remove(&number);
        Some((suite, awaiting))
    }

    /// A device has logged in, and is to say READY.
    pub(super) fn show(&mut self, slot: u32, shown: Shown) {
        self.shown.insert(slot, shown);
    }

    /// It has.
    pub(super) fn take_shown(&mut self, slot: u32) -> Option<Shown> {
        let shown = self.shown.remove(&slot);
        self.settle();
        shown
    }

    /// The connection in this slot is gone.
    pub fn forget(&mut self, slot: u32) {
        self.go_on(slot);
        self.shown.remove(&slot);
        self.settle();
    }

    /// An idle connection has nothing here, and leaves nothing behind.
    fn settle(&mut self) {
        if self.is_empty() && self.shown.capacity() + self.awaiting.capacity() > ROOM_KEPT {
            // A rush is over.
            self.awaiting = HashMap::new();
            self.shown = HashMap::new();
        }
    }

    /// Whether none is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.awaiting.is_empty() && self.shown.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_without_a_turn_are_told_times_apart_and_none_beyond_half_a_minute() {
        // A tenth of the time: 333 a second.
        let mut handshakes = Handshakes::new(100_000);
        handshakes.begin_turn(5_000_000);
        let told: Vec<u32> = (0..30_000).map(|_| handshakes.take_place_ms()).collect();
        assert!(told.iter().all(|place_ms| (1000..=30_000).contains(place_ms)));
        let (first, again) = told.split_at(9667);
        assert!(first.is_sorted() && again.first() == Some(&1000), "{:?} then {:?}", first.last(), again.first());
        assert_eq!(first.iter().filter(|place_ms| (7000..7999).contains(*place_ms)).count(), 333);
        // Times that are past are nobody's.
        handshakes.begin_turn(500_000_000);
        assert_eq!(handshakes.take_place_ms(), 1000);
    }
}
