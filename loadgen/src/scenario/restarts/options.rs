//! The options of such scenarios.

use std::path::PathBuf;

use clap::Args;
use rand::Rng;
use rand::rngs::SmallRng;
use serde::Serialize;

use crate::options::{DeviceRange, HubRange, RunOptions};
use crate::plan::{self, Devices, RunId};
use crate::scenario::pairs::{Pace, PairLoad};
use crate::target::sealing::SuiteOption;
use crate::units::{Span, SpanRange};

/// Longest wait before a client reconnects: rounds are short.
const BACKOFF_MS_MAX: u32 = 200;
/// How often a device leaves where users have several and nothing else is asked for.
const LEAVES_PER_S: f64 = 4.0;

/// A server that ends and starts again, and what its clients do meanwhile.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct RestartOptions {
    /// The `culver` program to start and kill
    #[arg(long, value_name = "PATH")]
    pub(super) culver: PathBuf,
    /// How often it is killed
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) rounds: u32,
    /// How long it lives each time, at random within
    #[arg(long, default_value = "200ms..2s", value_name = "A..B")]
    pub(super) kill_after: SpanRange,
    /// Pairs: user 2i sends to user 2i + 1
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pairs: u32,
    /// Messages that each pair has under way
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    in_flight: u32,
    /// Bytes of a payload
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=32768))]
    payload: u32,
    /// Connections that the clients themselves cut, per second over all
    #[arg(long, default_value_t = 2.0, value_name = "PER_S")]
    drops: f64,
    /// Devices of each user, at random within: the first of user 2i sends, all others of both users receive
    #[arg(long, default_value = "1", value_name = "A..B")]
    devices: DeviceRange,
    /// Every user sends and receives: each sends to the next of a ring, from the first device
    #[arg(long)]
    ring: bool,
    /// Devices that leave for a while, per second over all [default: 4 where users have several devices, else none]
    #[arg(long, value_name = "PER_S")]
    leaves: Option<f64>,
    /// How long they stay away, at random within
    #[arg(long, default_value = "50ms..3s", value_name = "A..B")]
    away: SpanRange,
    /// Short fetch logins beside the lasting ones, of random devices, per second over all
    #[arg(long, default_value_t = 0.0, value_name = "PER_S")]
    fetch_per_s: f64,
    /// Three of four recipients mark as read, from any of their devices
    #[arg(long)]
    reads: bool,
    /// Spread the server's data over so many volume folders beside its data directory
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=8))]
    pub(super) volumes: u8,
    /// Start the server each time with another number of hubs, at random within [default: as SERVER-ARGS say]
    #[arg(long, value_name = "A..B")]
    hubs: Option<HubRange>,
    /// Run `PATH verify` between rounds
    #[arg(long)]
    pub(super) verify_each_round: bool,
    /// Longest wait, after the last round, until everything acknowledged has arrived
    #[arg(long, default_value = "60s")]
    pub(super) settle: Span,
    /// Longest wait for a restarted server to be ready
    #[arg(long, default_value = "60s")]
    pub(super) restart_max: Span,
    /// Where the server's data and the journals go, and stay [default: a temporary directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub(super) keep: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) run: RunOptions,
    /// How connections are sealed
    #[arg(long, value_enum, default_value_t)]
    pub(super) suite: SuiteOption,
    /// Further arguments for `PATH serve`
    #[arg(last = true, value_name = "SERVER-ARGS")]
    pub(super) server_args: Vec<String>,
}

impl RestartOptions {
    pub(super) fn draw_hubs(&self, rng: &mut SmallRng) -> Option<u8> {
        self.hubs.map(|hubs| rng.random_range(hubs.0..=hubs.1))
    }

    pub(super) fn load(&self, seed: u64, journal: PathBuf) -> PairLoad {
        PairLoad {
            pairs: self.pairs as usize,
            pace: Pace::Closed { in_flight: self.in_flight as usize },
            payload_len: self.payload as usize,
            workers: self.run.workers(),
            first_user: plan::first_user(seed),
            seed,
            run: RunId(seed),
            journal: Some(journal),
            drops_per_s: self.drops,
            persists_late: true,
            devices: Devices::of_each(self.devices.0, self.devices.1),
            ring: self.ring,
            receipts: true,
            reads: self.reads,
            lists: true,
            leaves_per_s: self.leaves.unwrap_or(if self.devices.1 > 1 { LEAVES_PER_S } else { 0.0 }),
            away_us: (self.away.from.us(), self.away.to.us()),
            fetches_per_s: self.fetch_per_s,
            backoff_max_ms: Some(BACKOFF_MS_MAX),
        }
    }
}
