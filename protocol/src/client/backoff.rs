//! When to try again: full-jitter exponential backoff, and the client's only source of randomness.
//!
//! Full jitter: a uniform time in `0..min(max, base · 2^attempt)`, after Brooker, "Exponential Backoff And Jitter"
//! (AWS Architecture Blog, 2015). Owns no clock: it gives spans, the caller adds them to its time.

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, good enough to spread clients.
#[derive(Clone, Debug)]
pub(super) struct Jitter {
    state: u64,
}

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Uniform in `low..=high`; `low` if they are the wrong way round.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        let span = u128::from(high.saturating_sub(low)) + 1;
        let scaled = (u128::from(self.next()) * span) >> 64;
        low.saturating_add(u64::try_from(scaled).expect("a product of a u64 and a span, over 2^64, fits a u64"))
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Times of its own that a server gives a client before its own backoff counts as well: an honest one lets it in at the
/// first or the second, and nobody else may have a client come again and again.
const PLACES_MAX: u8 = 8;

/// The attempts since something last succeeded. Kept small: every idle client has one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    attempts: u16,
    /// How often the client has kept to a time of its own that the server gave it.
    places: u8,
    /// There is such a time for the next attempt.
    has_place: bool,
}

impl Backoff {
    /// The span before the next attempt, and one attempt more.
    pub(super) fn next_us(&mut self, base_ms: u32, max_ms: u32, jitter: &mut Jitter) -> u64 {
        let high = ceiling_us(base_ms, max_ms, self.attempts.into());
        self.attempts = self.attempts.saturating_add(1);
        jitter.between(0, high)
    }

    /// The server has given the client a time of its own for the next attempt.
    pub(super) fn give_place(&mut self) {
        self.has_place = true;
    }

    /// Whether it has, since this was last asked.
    pub(super) fn take_place(&mut self) -> bool {
        std::mem::take(&mut self.has_place)
    }

    /// Whether that time counts alone, and the attempt before as no failure: not for ever.
    pub(super) fn keep_to_place(&mut self) -> bool {
        let keeps = self.places < PLACES_MAX;
        self.places += u8::from(keeps);
        keeps
    }

    /// Something succeeded.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// The longest span before attempt number `attempts` (from 0).
fn ceiling_us(base_ms: u32, max_ms: u32, attempts: u32) -> u64 {
    let doubled = u64::from(base_ms) << attempts.min(31);
    doubled.min(u64::from(max_ms)) * 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_maximum() {
        let ceilings: Vec<u64> = (0..6).map(|attempts| ceiling_us(100, 1000, attempts)).collect();
        assert_eq!(ceilings, [100_000, 200_000, 400_000, 800_000, 1_000_000, 1_000_000]);
        assert_eq!(ceiling_us(u32::MAX, u32::MAX, u32::MAX), u64::from(u32::MAX) * 1000);
    }

    #[test]
    fn uses_the_whole_span_and_nothing_beyond() {
        let mut jitter = Jitter::new(7);
        let drawn: Vec<u64> = (0..1000).map(|_| jitter.between(10, 19)).collect();
        for value in 10..=19 {
            assert!(drawn.contains(&value), "never drew {value}");
        }
        assert!(drawn.iter().all(|value| (10..=19).contains(value)));
        assert_eq!(jitter.between(5, 5), 5);
        assert_eq!(jitter.between(5, 4), 5);
        jitter.between(0, u64::MAX);
    }
}
