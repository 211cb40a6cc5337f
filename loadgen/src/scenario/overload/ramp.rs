//! Which rates a ramp offers, one after the other, by what came of those before. Pure.

use anyhow::{Result, bail};

use super::options::RateRange;

/// Steps upwards, at most: each has histograms of its own in each worker.
const UP_MAX: usize = 32;
/// A server follows an offered rate of which at least this share is acknowledged: the rest is how far a second's work of a busy
/// machine differs from the next second's.
const FOLLOWED_SHARE_MIN: f64 = 0.95;
/// A server that does not follow twice in a row is saturated; once may have been somebody else's work.
const SATURATED_AFTER: usize = 2;

/// One rate to offer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) stage: Stage,
    pub(super) rate_per_s: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Calm,
    Up,
    Over,
    Down,
    CalmAgain,
}

impl Stage {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Up => "up",
            Self::Over => "overload",
            Self::Down => "down",
            Self::CalmAgain => "calm again",
        }
    }
}

/// A ramp under way.
pub(super) struct Ramp {
    rates: RateRange,
    growth: f64,
    overload_times: f64,
    /// What was offered last, and the stage it belonged to.
    last: Option<Step>,
    /// The first of the rates in a row that were not followed.
    unfollowed_per_s: Option<f64>,
    unfollowed: usize,
}

impl Ramp {
    /// # Errors
    /// It would take too many steps.
    pub(super) fn new(rates: RateRange, growth: f64, overload_times: f64) -> Result<Self> {
        let steps = (rates.to / rates.from).ln() / growth.ln();
        #[expect(clippy::cast_precision_loss, reason = "a small constant")]
        if steps > (UP_MAX - 2) as f64 {
            bail!("from {} to {} by {growth} takes {steps:.0} steps: {UP_MAX} at most", rates.from, rates.to);
        }
        Ok(Self { rates, growth, overload_times, last: None, unfollowed_per_s: None, unfollowed: 0 })
    }

    /// Steps of a ramp, at most.
    #[expect(clippy::unused_self, reason = "a ramp's own bound")]
    pub(super) fn steps_max(&self) -> u8 {
        const STEPS_MAX: usize = UP_MAX + 4;
        const _: () = assert!(STEPS_MAX <= u8::MAX as usize);
        u8::try_from(STEPS_MAX).expect("asserted above")
    }

    /// The rate to offer next; `None`: it is over.
    pub(super) fn next(&mut self) -> Option<Step> {
        let (stage, rate_per_s) = match self.last {
            None => (Stage::Calm, self.rates.from),
            Some(Step { stage: Stage::Calm | Stage::Up, rate_per_s }) => {
                let next_per_s = rate_per_s * self.growth;
                if self.unfollowed >= SATURATED_AFTER || rate_per_s >= self.rates.to {
                    (Stage::Over, self.saturated_per_s().unwrap_or(rate_per_s) * self.overload_times)
                } else {
                    (Stage::Up, next_per_s.min(self.rates.to))
                }
            }
            Some(Step { stage: Stage::Over, rate_per_s }) => (Stage::Down, rate_per_s / self.overload_times / 2.0),
            Some(Step { stage: Stage::Down, .. }) => (Stage::CalmAgain, self.rates.from),
            Some(Step { stage: Stage::CalmAgain, .. }) => return None,
        };
        self.last = Some(Step { stage, rate_per_s });
        self.last
    }

    /// What came of the last step, in messages a second.
    pub(super) fn took(&mut self, offered_per_s: f64, goodput_per_s: f64) {
        let Some(Step { stage: Stage::Calm | Stage::Up, rate_per_s }) = self.last else { return };
        if goodput_per_s >= FOLLOWED_SHARE_MIN * offered_per_s {
            (self.unfollowed_per_s, self.unfollowed) = (None, 0);
        } else {
            self.unfollowed_per_s.get_or_insert(rate_per_s);
            self.unfollowed += 1;
        }
    }

    /// The first offered rate that the server did not follow any more; `None`: it followed them all.
    pub(super) fn saturated_per_s(&self) -> Option<f64> {
        self.unfollowed_per_s
    }
}
