//! The options that scenarios share.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::Args;
use culver_protocol::limits::{CLIENT_IN_FLIGHT_MAX, PAYLOAD_LEN_MAX};
use serde::{Serialize, Serializer};

use crate::clock::unix_ms;
use crate::plan::{self, Devices, PAYLOAD_LEN_MIN, RunId};
use crate::report::JsonTo;
use crate::report::machine::cores;
use crate::report::progress::Progress;
use crate::scenario::pairs::{Pace, PairLoad};
use crate::target::credentials::Credentials;
use crate::target::culver::{Culver, Ops};
use crate::target::sealing::SuiteOption;
use crate::units::{Span, SpanRange};
use crate::verify::SEATS_MAX;

/// Devices of a generated user, at most.
const DEVICES_MAX: u8 = 4;
const _: () =
    assert!(2 * DEVICES_MAX as usize <= SEATS_MAX && (DEVICES_MAX as usize) < culver_protocol::limits::DEVICES_MAX);

/// Messages under way per pair where nothing else is asked for.
const IN_FLIGHT_DEFAULT: u32 = 8;

/// How a scenario is run and told.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct RunOptions {
    /// Worker threads, each with its own poll loop [default: half the cores, at least 1; for idle connections as many
    /// as their descriptors need]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=4096))]
    workers: Option<u16>,
    /// Where all randomness comes from [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// Write the result as JSON to FILE; `-`: to standard output, which then holds nothing else
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    json: Option<PathBuf>,
}

impl RunOptions {
    /// The run's seed: asked for, or of the moment and then told in the result.
    pub(crate) fn fix_seed(&mut self) -> u64 {
        *self.seed.get_or_insert_with(unix_ms)
    }

    pub(crate) fn workers(&self) -> usize {
        self.workers.map_or_else(|| (cores() / 2).max(1), usize::from)
    }

    /// The number of workers, where one is asked for.
    pub(crate) fn workers_asked(&self) -> Option<u64> {
        self.workers.map(u64::from)
    }

    pub(crate) fn json_to(&self) -> JsonTo {
        JsonTo::of(self.json.as_deref())
    }

    pub(crate) fn progress(&self, scenario: &'static str) -> Progress {
        if self.json_to() == JsonTo::Stdout { Progress::hidden() } else { Progress::new(scenario) }
    }
}

/// Where the server is: the defaults are those of `culver serve`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct TargetOptions {
    /// Where clients connect
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDR")]
    target: SocketAddr,
    /// The server's operations port
    #[arg(long, default_value = "127.0.0.1:7401", value_name = "ADDR")]
    ops: SocketAddr,
    /// The development credentials that `culver init` wrote
    #[arg(long, default_value = "./data/dev-credentials.json", value_name = "FILE")]
    credentials: PathBuf,
    /// How connections are sealed
    #[arg(long, value_enum, default_value_t)]
    suite: SuiteOption,
}

impl TargetOptions {
    pub(crate) fn find(&self) -> Result<Culver> {
        Culver::find(self.target, self.ops, &self.credentials, self.suite)
    }

    /// The same server, spoken to in plaintext.
    pub(crate) fn find_in_plaintext(&self) -> Result<Culver> {
        Culver::find(self.target, self.ops, &self.credentials, SuiteOption::None)
    }

    /// The server's operations port.
    pub(crate) fn ops(&self) -> Ops {
        Ops::new(self.ops)
    }

    /// How connections are to be sealed.
    pub(crate) fn suite(&self) -> SuiteOption {
        self.suite
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.target
    }

    /// What tokens are made with.
    pub(crate) fn credentials(&self) -> Result<Credentials> {
        Credentials::load(&self.credentials)
    }
}

/// Pairs and their messages.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct PairOptions {
    /// Pairs: user 2i sends to user 2i + 1
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) pairs: u32,
    /// Messages that each pair has under way (closed loop) [default: 8]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=CLIENT_IN_FLIGHT_MAX as i64))]
    in_flight: Option<u32>,
    /// Messages a second over all pairs (open loop; latency counts from the intended send time)
    #[arg(long, value_name = "PER_S", conflicts_with = "in_flight", value_parser = rate)]
    rate: Option<f64>,
    /// Bytes of a payload
    #[arg(long, default_value_t = 256, value_parser = payload_len)]
    pub(crate) payload: usize,
    /// The first user's id [default: high and even, from the seed]
    #[arg(long)]
    pub(crate) first_user: Option<u64>,
}

impl PairOptions {
    /// The pairs of a scenario that has options of its own for them.
    pub(crate) fn of(pairs: u32, pace: Pace, payload: usize, first_user: u64) -> Self {
        let (in_flight, rate) = match pace {
            Pace::Closed { in_flight } => (Some(u32::try_from(in_flight).unwrap_or(u32::MAX)), None),
            Pace::Open { rate } => (None, Some(rate)),
            Pace::Ramp { .. } => (None, None),
        };
        Self { pairs, in_flight, rate, payload, first_user: Some(first_user) }
    }

    /// An open loop of this rate, where neither rate nor number under way was asked for.
    pub(crate) fn default_to_rate(&mut self, rate: f64) {
        if self.in_flight.is_none() {
            self.rate.get_or_insert(rate);
        }
    }

    /// A closed loop, where neither rate nor number under way was asked for.
    pub(crate) fn default_to_closed_loop(&mut self) {
        if self.rate.is_none() {
            self.in_flight.get_or_insert(IN_FLIGHT_DEFAULT);
        }
    }

    /// The load that these options ask for; `run_number` tells the runs of one process apart.
    pub(crate) fn load(&self, run: &RunOptions, seed: u64, run_number: u64) -> PairLoad {
        let pace = match self.rate {
            Some(rate) => Pace::Open { rate },
            None => Pace::Closed { in_flight: self.in_flight.unwrap_or(IN_FLIGHT_DEFAULT) as usize },
        };
        let users_per_run = 2 * u64::from(self.pairs);
        let first_user = self.first_user.unwrap_or_else(|| plan::first_user(seed)) + run_number * users_per_run;
        PairLoad {
            pairs: self.pairs as usize,
            pace,
            payload_len: self.payload,
            workers: run.workers(),
            first_user,
            seed,
            run: RunId(unix_ms().wrapping_mul(1 << 16) ^ u64::from(std::process::id()) ^ (run_number << 8)),
            journal: None,
            drops_per_s: 0.0,
            persists_late: false,
            devices: Devices::of_each(1, 1),
            ring: false,
            receipts: false,
            reads: false,
            lists: false,
            leaves_per_s: 0.0,
            away_us: (0, 0),
            fetches_per_s: 0.0,
            backoff_max_ms: None,
        }
    }
}

/// How long is measured.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct TimeOptions {
    /// How long is measured
    #[arg(long, default_value = "10s")]
    pub(crate) duration: Span,
    /// How long the same load runs before that, unmeasured
    #[arg(long, default_value = "2s")]
    pub(crate) warmup: Span,
}

/// Least and most of something, `2..4` or `3`: both ends are included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CountRange<const MAX: u8>(pub(crate) u8, pub(crate) u8);

/// Devices of a user.
pub(crate) type DeviceRange = CountRange<DEVICES_MAX>;
/// Hubs of a server.
pub(crate) type HubRange = CountRange<16>;

impl<const MAX: u8> FromStr for CountRange<MAX> {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (from, to) = text.split_once("..").unwrap_or((text, text));
        let (from, to): (u8, u8) = (from.parse()?, to.parse()?);
        if from < 1 || to > MAX || from > to {
            bail!("a number from 1 to {MAX}, or a range: 3, or 2..4");
        }
        Ok(Self(from, to))
    }
}

impl<const MAX: u8> fmt::Display for CountRange<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.0, self.1)
    }
}

impl<const MAX: u8> Serialize for CountRange<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A number per second on the command line.
pub(crate) fn rate(text: &str) -> Result<f64> {
    let rate: f64 = text.parse()?;
    if !rate.is_finite() || rate <= 0.0 {
        bail!("a rate is a positive number per second");
    }
    Ok(rate)
}

fn payload_len(text: &str) -> Result<usize> {
    let len: usize = text.parse()?;
    if !(PAYLOAD_LEN_MIN..=PAYLOAD_LEN_MAX).contains(&len) {
        bail!("a payload has {PAYLOAD_LEN_MIN} to {PAYLOAD_LEN_MAX} bytes");
    }
    Ok(len)
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for SpanRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_a_number_or_a_range() {
        assert_eq!("3".parse::<DeviceRange>().expect("a number"), CountRange(3, 3));
        assert_eq!("2..4".parse::<DeviceRange>().expect("a range"), CountRange(2, 4));
        assert_eq!("2..16".parse::<HubRange>().expect("a range"), CountRange(2, 16));
        for text in ["0", "5", "4..2", "..", "1..9", "x", ""] {
            assert!(text.parse::<DeviceRange>().is_err(), "{text}");
        }
    }
}
