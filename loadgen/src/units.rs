//! Durations with units (`20s`, `200ms`) and ranges of them (`a..b`), as the command line writes them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::clock::micros;

/// A duration on the command line: a number and one of `us`, `ms`, `s`, `m`, `h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    /// Whole microseconds.
    pub(crate) fn us(self) -> u64 {
        micros(self.0)
    }
}

impl FromStr for Span {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').context("a unit is missing: 20s, 200ms")?;
        let (number, unit) = text.split_at(unit_at);
        let number: f64 = number.parse().with_context(|| format!("`{number}` is no number"))?;
        let scale = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => bail!("`{unit}` is no unit: us, ms, s, m or h"),
        };
        Ok(Self(Duration::try_from_secs_f64(number * scale).context("too long")?))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A range of durations, `200ms..2s`: the first is included, and so is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanRange {
    pub(crate) from: Span,
    pub(crate) to: Span,
}

impl FromStr for SpanRange {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (from, to) = text.split_once("..").context("a range is written a..b, for example 200ms..2s")?;
        let (from, to) = (from.parse()?, to.parse()?);
        if from > to {
            bail!("the range {text} runs backwards");
        }
        Ok(Self { from, to })
    }
}

impl fmt::Display for SpanRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.from, self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_carry_their_unit() {
        for (text, us) in
            [("20s", 20_000_000), ("200ms", 200_000), ("1.5s", 1_500_000), ("7us", 7), ("2m", 120_000_000)]
        {
            assert_eq!(text.parse::<Span>().expect("a good duration").us(), us, "{text}");
        }
        for text in ["20", "", "s", "3d", "-1s", "1.2.3s", "1e9h"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_run_forwards() {
        let range: SpanRange = "200ms..2s".parse().expect("a good range");
        assert_eq!((range.from.us(), range.to.us()), (200_000, 2_000_000));
        for text in ["2s..200ms", "2s", "..", "1s..", "..1s"] {
            assert!(text.parse::<SpanRange>().is_err(), "{text}");
        }
    }
}
