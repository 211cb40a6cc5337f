//! What `overload` is told.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;
use culver_protocol::limits::CLIENT_IN_FLIGHT_MAX;
use serde::{Serialize, Serializer};

use crate::options::{PairOptions, RunOptions, TargetOptions, rate};
use crate::plan;
use crate::report::JsonTo;
use crate::scenario::pairs::{Pace, PairLoad};
use crate::units::Span;

/// Options of `overload`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct OverloadOptions {
    #[command(flatten)]
    pub(super) target: TargetOptions,
    /// Pairs: user 2i sends to user 2i + 1. With few, the recipients' delivery windows bound
    /// what is delivered at once; the rest is caught up with
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) pairs: u32,
    /// Bytes of a payload
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=32768))]
    payload: u32,
    /// The first user's id [default: high and even, from the seed]
    #[arg(long)]
    first_user: Option<u64>,
    /// Messages of each client that may be unanswered: what is due beyond that waits in the client, as a number
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=CLIENT_IN_FLIGHT_MAX as i64))]
    pub(super) window: u32,
    /// Messages a second of the first step, and those after which a server that still follows is let go
    #[arg(long, default_value = "2000..400000", value_name = "PER_S..PER_S")]
    pub(super) rates: RateRange,
    /// Each step offers so many times what the one before did
    #[arg(long, default_value_t = 1.5, value_name = "TIMES", value_parser = growth)]
    pub(super) growth: f64,
    /// How long each step is measured
    #[arg(long, default_value = "4s")]
    pub(super) step: Span,
    /// How long each step runs before that, unmeasured
    #[arg(long, default_value = "1s")]
    pub(super) settle: Span,
    /// How long the overload is measured
    #[arg(long, default_value = "10s")]
    pub(super) overload: Span,
    /// The overload: so many times the rate that the server could not follow any more
    #[arg(long, default_value_t = 3.0, value_name = "TIMES", value_parser = growth)]
    pub(super) overload_times: f64,
    /// Under overload at least this share of the most that ever was acknowledged in a second is acknowledged
    #[arg(long, default_value_t = 0.85, value_name = "SHARE", value_parser = rate)]
    pub(super) goodput_min: f64,
    /// Acknowledgement p99 of what is admitted, at most, in every step. The default: 512 windows of 16 messages at the
    /// 16,000 a second that one slow core takes
    #[arg(long, default_value = "500ms", value_name = "SPAN")]
    pub(super) ack_p99_max: Span,
    /// Acknowledgement p99 after the overload at most so many times the one before, plus --slack-ms
    #[arg(long, default_value_t = 1.5, value_name = "TIMES", value_parser = rate)]
    pub(super) calm_ratio_max: f64,
    /// What --calm-ratio-max adds
    #[arg(long, default_value_t = 2.0, value_name = "MS")]
    pub(super) slack_ms: f64,
    #[command(flatten)]
    pub(super) run: RunOptions,
}

impl OverloadOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }

    /// Messages that all clients together may have unanswered.
    pub(super) fn admitted_max(&self) -> u64 {
        u64::from(self.pairs) * u64::from(self.window)
    }

    pub(super) fn load(&self, seed: u64) -> PairLoad {
        let pace = Pace::Ramp { window: self.window as usize };
        let first_user = self.first_user.unwrap_or_else(|| plan::first_user(seed));
        let pairs = PairOptions::of(self.pairs, pace, self.payload as usize, first_user);
        PairLoad { pace, ..pairs.load(&self.run, seed, 0) }
    }
}

/// Two rates, `2000..400000`, the greater behind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RateRange {
    pub(super) from: f64,
    pub(super) to: f64,
}

impl FromStr for RateRange {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (from, to) = text.split_once("..").context("two rates are written a..b, for example 2000..400000")?;
        let (from, to) = (rate(from)?, rate(to)?);
        if from >= to {
            bail!("the rates {text} do not ascend");
        }
        Ok(Self { from, to })
    }
}

impl fmt::Display for RateRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.from, self.to)
    }
}

impl Serialize for RateRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn growth(text: &str) -> Result<f64> {
    let times = rate(text)?;
    if times <= 1.0 {
        bail!("only more than 1 is growth");
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_ascend() {
        assert_eq!("5..10".parse::<RateRange>().expect("a range"), RateRange { from: 5.0, to: 10.0 });
        for (text, says) in [("5", "a..b"), ("10..5", "do not ascend"), ("5..5", "do not ascend"), ("0..5", "positive")]
        {
            let error = text.parse::<RateRange>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!("x..5".parse::<RateRange>().is_err());
        assert!(growth("1").is_err() && growth("0.5").is_err() && growth("2").is_ok());
    }
}
