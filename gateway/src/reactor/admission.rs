//! Who of those that come is let in now, and when the others are to come again: asked at accept, before anything is
//! spent on a connection.
//!
//! ```text
//!  a source beyond its rate ──→ "when your source has room", somewhere in the time in which it earns a burst
//!  all beyond theirs        ──→ "at your place in the calendar"
//!  else                     ──→ in
//! ```
//!
//! The calendar gives places a little farther apart than logins may come, in the order in which they were asked for: when
//! half a million come at once, each is told a time of its own, and comes once more. It reaches as far as a client
//! believes a wait in clear; who finds it full is told any time within it, and asks again then.
//!
//! A place is given to whoever asks for one, for who comes again too early cannot be told from another: but it costs what
//! a login costs of its source's rate, so that nobody takes more places than logins, and one that is not come to lets
//! nobody wait who is not waiting already: who comes while there is room is let in, whoever has places. What is refused
//! for its source's sake takes neither a place nor any of the rate. Pure; time is an argument.

use std::fmt;
use std::net::IpAddr;

use culver_protocol::limits::{LOGIN_RETRY_MS_MAX, LOGIN_RETRY_MS_MIN};
use culver_storage::planted::{self, Bug};

use crate::buckets::{Buckets, Level, Limit, NS_PER_MS, ns_of_us};

/// Of the rate, what is given away as places: who comes at its place is nearly always let in, beside those that come for
/// the first time.
pub const PLACES_PERCENT: u64 = 85;
/// How far the calendar reaches.
pub const HORIZON_NS: u64 = LOGIN_RETRY_MS_MAX as u64 * NS_PER_MS;
/// The first place is no nearer than this: so short a time cannot be spread.
pub const LEAD_NS: u64 = LOGIN_RETRY_MS_MIN as u64 * NS_PER_MS;
/// Sources that are known by themselves, in a reactor: 40 bytes each. A source that has come once is forgotten a few
/// milliseconds later, so that it takes as many that come on and on.
pub const SOURCES_MAX: usize = 16_384;
/// Once there are as many, those that are not known share so many buckets, each as wide as a source's.
const SHARED: usize = 256;
/// Sources looked at with every connection: more than it can add.
const SWEPT_EACH: usize = 2;
/// Connections are taken out of the listener's queue at so many per cent of the rate of logins: each is let in or told a
/// time, and that too costs those who are connected. The rest wait in the kernel, which costs nobody anything.
const TAKEN_PERCENT: u32 = 150;
/// And so many a second more at least, of all reactors: where the rate is low, so many refusals cost next to nothing.
const TAKEN_MORE_PER_S: u32 = 1_000;
/// So much of that is taken at once.
const TAKEN_AT_ONCE_MS: u32 = 10;
/// Nobody waits in the queue for longer than this: beyond it the kernel lets clients knock again. What is longer is
/// full of clients that have given up, and they are served before those that have not.
const QUEUE_MS: u64 = 2_000;
/// Shortest and longest queue.
const QUEUE: (u64, u64) = (128, 65_535);
/// Who finds no room for a connection is told to come again within these times: nobody knows when somebody leaves.
const WITHOUT_ROOM_MS: (u64, u64) = (5_000, 30_000);

const _: () = assert!(LEAD_NS < HORIZON_NS / 2 && WITHOUT_ROOM_MS.1 <= LOGIN_RETRY_MS_MAX as u64);

/// How fast connections may come to one reactor. `None`: as fast as they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// All of them.
    pub all: Option<Limit>,
    /// Those of a source.
    pub source: Option<Limit>,
}

impl Limits {
    /// What each of so many reactors has of them.
    #[must_use]
    pub fn part_of(self, reactors: usize) -> Self {
        let part = |limit: Limit| limit.part_of(reactors);
        Self { all: self.all.map(part), source: self.source.map(part) }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (who, limit) in [("all", self.all), ("source", self.source)] {
            match limit {
                Some(limit) => write!(f, "{separator}{who} {limit}")?,
                None => write!(f, "{separator}{who} unlimited")?,
            }
            separator = "; ";
        }
        Ok(())
    }
}

/// What is refused, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// More come than may, of all: come again after so many milliseconds.
    All(u32),
    /// More come than may, of this source.
    Source(u32),
}

/// What tells one source from another: an IPv4 address, or the first half of an IPv6 address (RFC 4291, 2.5.4: the rest
/// is one network's to choose).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Source(u64);

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            // No network has the prefix of an IPv6 address that would look the same (RFC 4291, 2.4).
            IpAddr::V4(address) => Self(u32::from(address).into()),
            IpAddr::V6(address) => Self(u64::try_from(u128::from(address) >> 64).expect("half of 128 bits")),
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): good enough to spread clients, and cheaper than asking the kernel.
#[derive(Clone, Copy, Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Uniform below `end`; 0 where that is.
    fn below(&mut self, end: u64) -> u64 {
        let scaled = (u128::from(self.next()) * u128::from(end)) >> 64;
        u64::try_from(scaled).expect("less than `end`")
    }
}

fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

/// Places in time, each later than the one before.
#[derive(Clone, Copy, Debug)]
struct Calendar {
    spacing_ns: u64,
    lead_ns: u64,
    /// The next place that nobody has been given, unless that is too near by now.
    next_ns: u64,
}

impl Calendar {
    fn new(limit: Limit) -> Self {
        let spacing_ns = limit.interval_ns() * 100 / PLACES_PERCENT;
        Self { spacing_ns, lead_ns: limit.interval_ns().clamp(LEAD_NS, HORIZON_NS / 2), next_ns: 0 }
    }

    /// How long until the next place, which is taken. `None`: it is farther than the calendar reaches.
    fn take(&mut self, now_ns: u64) -> Option<u64> {
        let place_ns = self.next_ns.max(now_ns + self.lead_ns);
        if place_ns > now_ns + HORIZON_NS {
            return None;
        }
        // Planted: everybody is told the same time.
        if !planted::is(Bug::CalendarStandsStill) {
            self.next_ns = place_ns + self.spacing_ns;
        }
        Some(place_ns - now_ns)
    }
}

/// What is known of all that come.
#[derive(Clone, Copy, Debug)]
struct Everybody {
    limit: Limit,
    level: Level,
    calendar: Calendar,
    /// Of those that are taken out of the queue, let in or not.
    taking: Limit,
    taken: Level,
}

/// What is known of sources.
#[derive(Debug)]
struct Sources {
    known: Buckets<Source>,
    /// Of those that are not, by a part of their hash.
    shared: Vec<Level>,
    key: u64,
}

/// Who is let in to a reactor.
#[derive(Debug)]
pub struct Admission {
    everybody: Option<Everybody>,
    sources: Option<Sources>,
    dice: Dice,
}

impl Sources {
    fn new(limit: Limit, key: u64) -> Self {
        Self { known: Buckets::new(limit), shared: vec![Level::default(); SHARED], key }
    }

    /// Takes one of this source into account; if it has no room, how long until it has.
    ///
    /// Who is not known by itself once the table is full has its place among a few hundred shared ones, by a hash that
    /// nobody knows: no source has more than one, however often it comes, and whoever fills them all has to come as
    /// often as so many sources may, which is more than all may. So a full table is no way round, and honest sources
    /// share with few others.
    fn charge(&mut self, source: Source, now_ns: u64) -> Result<(), u64> {
        self.known.sweep(now_ns, SWEPT_EACH);
        let limit = self.known.limit();
        if self.known.len() >= SOURCES_MAX && !self.known.knows(source) {
            let at = usize::try_from(mix(source.0 ^ self.key) % SHARED as u64).expect("a few hundred");
            let level = self.shared.get_mut(at).expect("less than there are");
            *level = level.at(now_ns, limit);
            if let Some(wait_ns) = level.wait_ns(now_ns, limit) {
                return Err(wait_ns);
            }
            *level = level.charged(limit);
            return Ok(());
        }
        let bucket = self.known.look(source, now_ns);
        match bucket.wait_ns() {
            Some(wait_ns) => Err(wait_ns),
            None => {
                bucket.charge();
                Ok(())
            }
        }
    }
}

impl Admission {
    /// Nobody has come yet. `seed`: whatever nobody else knows.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        let everybody = |limit| Everybody {
            limit,
            level: Level::default(),
            calendar: Calendar::new(limit),
            taking: taking(limit),
            taken: Level::default(),
        };
        let mut dice = Dice(seed);
        let key = dice.next();
        Self {
            everybody: limits.all.map(everybody),
            sources: limits.source.map(|limit| Sources::new(limit, key)),
            dice,
        }
    }

    /// For how long no connection is to be taken out of the queue, in microseconds; `None`: one may be.
    #[must_use]
    pub fn pause_us(&self, now_us: u64) -> Option<u64> {
        let now_ns = ns_of_us(now_us);
        let Everybody { taking, taken, .. } = self.everybody?;
        taken.at(now_ns, taking).wait_ns(now_ns, taking).map(|wait_ns| wait_ns.div_ceil(1000))
    }

    /// One has been taken out of the queue.
    pub fn note_taken(&mut self, now_us: u64) {
        let now_ns = ns_of_us(now_us);
        if let Some(Everybody { taking, taken, .. }) = &mut self.everybody {
            *taken = taken.at(now_ns, *taking).charged(*taking);
        }
    }

    /// A connection has come: whether it is let in, and if not, when its client is to come again.
    ///
    /// # Errors
    /// It is not let in, and nothing is to be spent on it.
    pub fn ask(&mut self, source: IpAddr, now_us: u64) -> Result<(), Refused> {
        let now_ns = ns_of_us(now_us);
        if let Some(sources) = &mut self.sources
            && let Err(wait_ns) = sources.charge(Source::of(source), now_ns)
        {
            // Spread over the time in which a burst is earned: of a crowd behind one address so many find room then.
            let spread_ns = sources.known.limit().ahead_ns().min(HORIZON_NS);
            return Err(Refused::Source(wait_ms(wait_ns + self.dice.below(spread_ns))));
        }
        let Some(everybody) = &mut self.everybody else { return Ok(()) };
        let Everybody { limit, level, calendar, .. } = everybody;
        *level = level.at(now_ns, *limit);
        if level.wait_ns(now_ns, *limit).is_none() {
            *level = level.charged(*limit);
            return Ok(());
        }
        if planted::is(Bug::RefusedLoginTakesRate) {
            *level = level.charged(*limit);
        }
        let lead_ns = calendar.lead_ns;
        let wait_ns = calendar.take(now_ns).unwrap_or_else(|| lead_ns + self.dice.below(HORIZON_NS - lead_ns));
        Err(Refused::All(wait_ms(wait_ns)))
    }

    /// There is no room for a connection: after so many milliseconds its client is to come again.
    pub fn without_room_ms(&mut self) -> u32 {
        let (least_ms, most_ms) = WITHOUT_ROOM_MS;
        wait_ms((least_ms + self.dice.below(most_ms - least_ms)) * NS_PER_MS)
    }

    /// How far places are given away, in milliseconds from now.
    #[must_use]
    pub fn calendar_ms(&self, now_us: u64) -> u64 {
        let next_ns = self.everybody.map_or(0, |everybody| everybody.calendar.next_ns);
        next_ns.saturating_sub(now_us.saturating_mul(1000)) / NS_PER_MS
    }

    /// Sources that are known by themselves.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.sources.as_ref().map_or(0, |sources| sources.known.len())
    }
}

fn taking(limit: Limit) -> Limit {
    limit.faster(TAKEN_PERCENT, TAKEN_MORE_PER_S, TAKEN_AT_ONCE_MS)
}

/// How many connections may wait in the queue of a listener for whom these are the limits.
#[must_use]
pub fn queue_len(limits: Limits) -> i32 {
    let (least, most) = QUEUE;
    let len = limits.all.map_or(most, |limit| taking(limit).in_ms(QUEUE_MS).clamp(least, most));
    i32::try_from(len).expect("the longest fits")
}

fn wait_ms(wait_ns: u64) -> u32 {
    let wait_ms = u32::try_from(wait_ns.div_ceil(NS_PER_MS)).unwrap_or(u32::MAX);
    wait_ms.clamp(LOGIN_RETRY_MS_MIN, LOGIN_RETRY_MS_MAX)
}

const _: () = assert!(SHARED <= SOURCES_MAX);

#[cfg(test)]
mod tests;
