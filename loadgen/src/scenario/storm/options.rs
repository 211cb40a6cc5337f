//! The options of `storm`, and those that it shares with `restart`.

use clap::Args;
use serde::Serialize;

use crate::dense::{DropWay, Returns};
use crate::options::{PairOptions, RunOptions, rate};
use crate::report::JsonTo;
use crate::report::machine::cores;
use crate::scenario::density::CrowdOptions;
use crate::scenario::pairs::{Pace, PairLoad};
use crate::units::Span;

/// Bytes of a payload of the pairs.
const PAYLOAD_LEN: usize = 256;

/// Options of `storm`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct StormOptions {
    #[command(flatten)]
    pub(crate) crowd: CrowdOptions,
    #[command(flatten)]
    pub(super) returns: ReturnOptions,
    /// Calm and storm by turns, so many times
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// How long each calm lasts
    #[arg(long, default_value = "10s")]
    pub(super) calm: Span,
    /// How long all rest before the first calm and after each storm, unmeasured
    #[arg(long, default_value = "3s")]
    pub(super) rest: Span,
    /// How long a storm may last: who is not back by then is missing
    #[arg(long, default_value = "15m", value_name = "SPAN")]
    pub(super) back_within: Span,
    /// Pairs that talk all the while: user 2i sends to user 2i + 1
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) pairs: u32,
    /// Messages a second over all pairs
    #[arg(long, default_value_t = 1000.0, value_name = "PER_S", value_parser = rate)]
    pub(super) pair_rate: f64,
    /// How long all are held in the end
    #[arg(long, default_value = "0s")]
    pub(super) hold: Span,
    /// Then all leave, and so long after that the server's memory is looked at
    #[arg(long, value_name = "SPAN")]
    pub(super) leave: Option<Span>,
    #[command(flatten)]
    pub(super) thresholds: Thresholds,
    #[command(flatten)]
    pub(super) run: RunOptions,
}

/// How a crowd's clients leave and come back.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct ReturnOptions {
    /// After a loss each client makes its first attempt within so long, at random; then as the protocol and the server
    /// say
    #[arg(long, default_value = "100ms", value_name = "SPAN")]
    reconnect_within: Span,
    /// How the connections end that all lose at once
    #[arg(long, value_enum, default_value_t, value_name = "WAY")]
    drop: DropWay,
    /// What a server names in clear as the time to come again, on a connection that was to be sealed, counts up to this
    #[arg(long, default_value = "1h", value_name = "SPAN")]
    clear_wait_max: Span,
    /// Logins of the crowd under way at once, at most
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    under_way: u64,
    /// How far the crowd's threads stand back for the pairs' and the server's: nice(2)
    #[arg(long, default_value_t = 10, value_name = "NICE", value_parser = clap::value_parser!(i32).range(0..=19))]
    crowd_nice: i32,
}

/// What must hold, else the exit code is 3.
#[derive(Args, Clone, Debug, Serialize)]
pub(super) struct Thresholds {
    /// Logins a second from the loss to the last login, in each storm at least
    #[arg(long, value_name = "N")]
    pub(super) logins_per_s_min: Option<f64>,
    /// The longest wait, so many times the ideal at most: all clients over the logins a second that were admitted
    #[arg(long, default_value_t = 2.0, value_name = "RATIO")]
    pub(super) wait_ratio_max: f64,
    /// The pairs' p99 in a storm at most so many times that of the calm, plus --slack-ms
    #[arg(long, default_value_t = 2.0, value_name = "RATIO")]
    pub(super) p99_ratio_max: f64,
    /// What --p99-ratio-max adds
    #[arg(long, default_value_t = 1.0, value_name = "MS")]
    pub(super) slack_ms: f64,
    /// The server's memory after all have left, so many times that before they came at most
    #[arg(long, requires = "leave", value_name = "RATIO")]
    pub(super) rss_ratio_max: Option<f64>,
}

impl ReturnOptions {
    pub(crate) fn rules(&self, seed: u64) -> Returns {
        Returns {
            within_us: self.reconnect_within.us(),
            drop: self.drop,
            clear_wait_us_max: self.clear_wait_max.us(),
            under_way_max: self.under_way,
            nice: self.crowd_nice,
            seed,
        }
    }

    /// In words.
    pub(crate) fn told(&self) -> String {
        format!(
            "left with {}, first attempts within {}, at most {} logins under way, crowd at nice {}",
            self.drop, self.reconnect_within, self.under_way, self.crowd_nice
        )
    }
}

impl StormOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }

    /// The pairs that talk beside a crowd, behind its users.
    pub(super) fn pair_load(&self, seed: u64, first_user: u64) -> PairLoad {
        pair_load((self.pairs, self.pair_rate), &self.run, seed, first_user)
    }
}

/// So many pairs with so many messages a second, of users from `first_user` on.
pub(crate) fn pair_load((pairs, rate): (u32, f64), run: &RunOptions, seed: u64, first_user: u64) -> PairLoad {
    // Pairs begin with an even id.
    let first_user = first_user.wrapping_add(1) & !1;
    let pairs = PairOptions::of(pairs, Pace::Open { rate }, PAYLOAD_LEN, first_user);
    // The workers asked for are those of the crowd.
    PairLoad { workers: (cores() / 2).max(1), ..pairs.load(run, seed, 0) }
}
