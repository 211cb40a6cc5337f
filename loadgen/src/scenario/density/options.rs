//! The options of `density`, and those that it shares with `idle-burst`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use crate::clock::unix_ms;
use crate::dense::senders::SENDERS;
use crate::dense::sources::{SourceOption, Sources};
use crate::dense::{CrowdLoad, CrowdSealing, HandshakeOption, LoginWith};
use crate::options::{RunOptions, TargetOptions, rate};
use crate::plan::{self, RunId};
use crate::preflight::{self, Demand};
use crate::procfs;
use crate::report::{BadUsage, JsonTo};
use crate::scenario::idle::Guard;
use crate::target::culver::Culver;
use crate::units::Span;

/// Longest wait at the start of the slope, however long connections are held in the end.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// Keep-alives are held back for this share of their interval at most: the server gives up at half of one beyond it.
const HELD_BACK_SHARE: u32 = 4;
/// Logging in, warming up and waiting for the last messages of a chat, generously.
const BESIDE_AROUND: Duration = Duration::from_secs(10);
/// What a server that is told no bound is taken to need for a connection.
const SERVER_BYTES: u64 = 256;

/// A crowd of idle connections.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct CrowdOptions {
    #[command(flatten)]
    pub(crate) target: TargetOptions,
    /// Idle connections, all logged in
    #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(2..=10_000_000))]
    connections: u32,
    /// Source addresses: a number of 127.0.0.0/8, from 127.1.0.1 on, or a list such as 10.0.0.1,10.1.0.0/24; 0: the
    /// kernel chooses [default: on loopback, as many as leave most ports free; elsewhere 0]
    #[arg(long, value_name = "COUNT|LIST")]
    source_ips: Option<SourceOption>,
    /// Logins a second [default: as fast as they are answered]
    #[arg(long, value_name = "PER_S", value_parser = rate)]
    rate: Option<f64>,
    /// Between two signs of life of a connection
    #[arg(long, default_value = "240s")]
    pub(crate) keep_alive: Span,
    /// Resume tickets and their secrets are kept in FILE, for its owner alone, so that the next run with the same users
    /// logs in without signatures
    #[arg(long, value_name = "FILE")]
    tickets: Option<PathBuf>,
    /// How those log in whose tickets are known, where connections are sealed; all others come by Noise XX, with a token
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    handshake: HandshakeOption,
    /// The run ends when the machine has less memory left
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    memory_floor_mib: u64,
    /// The server's process [default: who listens on the target's port; otherwise the ops port's word is taken]
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// The first user's id [default: high, from the seed]
    #[arg(long)]
    first_user: Option<u64>,
}

/// Options of `density`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct DensityOptions {
    #[command(flatten)]
    pub(super) crowd: CrowdOptions,
    /// The slope of memory is taken from this number of connections to the last [default: a fifth]
    #[arg(long, value_name = "N")]
    slope_from: Option<u32>,
    /// How long all are held, with keep-alives, before memory is read
    #[arg(long, default_value = "5s")]
    pub(super) hold: Span,
    /// Send one message to each connection: every one must come exactly once
    #[arg(long)]
    pub(super) message: bool,
    /// Messages a second [default: as fast as 64 senders with 16 under way each can]
    #[arg(long, requires = "message", value_name = "PER_S", value_parser = rate)]
    pub(super) message_rate: Option<f64>,
    /// Measure the server's CPU over so long without any keep-alive
    #[arg(long, value_name = "SPAN")]
    pub(super) quiet: Option<Span>,
    /// Measure the chat of so many pairs before there are idle connections, and again beside them
    #[arg(long, value_name = "PAIRS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) beside_pairs: Option<u32>,
    /// How often each is measured: the median counts
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20))]
    pub(super) beside_runs: u32,
    /// How long each is measured
    #[arg(long, default_value = "10s", value_name = "SPAN")]
    pub(super) beside_duration: Span,
    /// Measure a bare epoll program with the same connections first
    #[arg(long)]
    pub(super) with_floor: bool,
    /// Connections that come and go before anything is measured
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(super) warmup_connections: u32,
    /// How long memory may take to come back when all have left
    #[arg(long, default_value = "30s")]
    pub(super) give_back: Span,
    #[command(flatten)]
    pub(super) thresholds: Thresholds,
    #[command(flatten)]
    pub(super) run: RunOptions,
}

/// What must hold, else the exit code is 3.
#[derive(Args, Clone, Debug, Serialize)]
pub(super) struct Thresholds {
    /// User bytes per connection, at most
    #[arg(long, value_name = "BYTES")]
    pub(super) user_bytes_max: Option<f64>,
    /// Kernel bytes per connection, at most
    #[arg(long, value_name = "BYTES")]
    pub(super) kernel_bytes_max: Option<f64>,
    /// Share of the growth that comes back, at least
    #[arg(long, value_name = "RATIO")]
    pub(super) given_back_min: Option<f64>,
    /// Kernel and user bytes per connection, so many times the floor's at most
    #[arg(long, requires = "with_floor", value_name = "RATIO")]
    pub(super) memory_ratio_max: Option<f64>,
    /// Server CPU per login, so many times the floor's at most
    #[arg(long, requires = "with_floor", value_name = "RATIO")]
    pub(super) login_ratio_max: Option<f64>,
    /// Server CPU seconds in the quiet time, at most
    #[arg(long, requires = "quiet", value_name = "SECONDS")]
    pub(super) idle_cpu_s_max: Option<f64>,
    /// Server CPU per message beside the idle connections, so many times that without them at most
    #[arg(long, requires = "beside_pairs", value_name = "RATIO")]
    pub(super) beside_ratio_max: Option<f64>,
    /// Bytes per connection that this generator itself needs, at most; checked where there are enough to tell
    #[arg(long, default_value_t = 400.0, value_name = "BYTES")]
    pub(super) own_bytes_max: f64,
}

impl CrowdOptions {
    pub(crate) fn connections(&self) -> u64 {
        u64::from(self.connections)
    }

    /// Durations that the protocol has no room for.
    pub(crate) fn check(&self) -> Result<()> {
        use culver_protocol::limits::{KEEP_ALIVE_S_MAX, KEEP_ALIVE_S_MIN};
        let (least, most) = (u64::from(KEEP_ALIVE_S_MIN), u64::from(KEEP_ALIVE_S_MAX));
        if !(least * 1_000_000..=most * 1_000_000).contains(&self.keep_alive.us()) {
            return Err(BadUsage(format!("--keep-alive is from {least}s to {most}s, not {}", self.keep_alive)).into());
        }
        Ok(())
    }

    pub(crate) fn load(&self, seed: u64, run: &RunOptions) -> Result<CrowdLoad> {
        let (target, connections) = (self.target.address(), self.connections());
        Ok(CrowdLoad {
            target,
            connections,
            workers: run.workers_asked(),
            first_user: self.first_user.unwrap_or_else(|| plan::first_user(seed)),
            sources: Sources::choose(self.source_ips.as_ref(), target, connections)?,
            rate: self.rate,
            keep_alive_us: self.keep_alive.us(),
            tickets: self.tickets.clone(),
            run: RunId(unix_ms().wrapping_mul(1 << 16) ^ u64::from(std::process::id())),
            sends_ready: true,
            measures_delivery: false,
            returns: None,
        })
    }

    /// What the clients log in with.
    pub(crate) fn login(&self) -> Result<LoginWith> {
        let credentials = self.target.credentials()?;
        let sealing = credentials.sealing(self.target.suite())?;
        let sealing = sealing.map(|sealing| CrowdSealing { sealing, handshake: self.handshake, server: None });
        Ok(LoginWith::Tokens(Arc::new(credentials), sealing))
    }

    /// Whether this machine and the server have room: said before the first connection.
    /// `others` connect beside the crowd.
    pub(crate) fn preflight(&self, load: &CrowdLoad, culver: &Culver, others: u64) -> Result<()> {
        let connections = load.descriptors();
        preflight::check(&Demand {
            connections,
            workers: load.worker_count(),
            source_addresses: load.sources.count().max(1),
            server_here: load.target.ip().is_loopback() || self.server_pid().is_some(),
            server_bytes_per_connection: SERVER_BYTES,
        })?;
        match culver.connections_max()? {
            Some(max) if max < connections + others => bail!(
                "the server takes {max} connections at most, not {connections} and {others} that send: start it with \
                 --connections-max {} or more, and with descriptors for them",
                connections + others
            ),
            _ => Ok(()),
        }
    }

    /// The server's process, if it is here and can be found.
    pub(crate) fn server_pid(&self) -> Option<u32> {
        self.server_pid.or_else(|| procfs::listener_pid(self.target.address().port()))
    }

    pub(crate) fn guard(&self) -> Guard {
        Guard::new(self.memory_floor_mib)
    }

    /// How long keep-alives can be held back without harm.
    pub(crate) fn held_back_max(&self) -> Duration {
        self.keep_alive.0 / HELD_BACK_SHARE
    }
}

impl DensityOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }

    /// Who connects beside the crowd.
    pub(super) fn others(&self) -> u64 {
        let senders = if self.message { SENDERS } else { 0 };
        senders + 2 * self.beside_pairs.map_or(0, u64::from)
    }

    pub(super) fn check(&self) -> Result<()> {
        self.crowd.check()?;
        if let Some(from) = self.slope_from.filter(|from| *from >= self.crowd.connections) {
            let told = format!("--slope-from {from} is not below --connections {}", self.crowd.connections);
            return Err(BadUsage(told).into());
        }
        let max = self.crowd.held_back_max();
        let around = self.beside_duration.0 + BESIDE_AROUND;
        let held_back = [
            (self.quiet.map(|quiet| quiet.0), "--quiet"),
            (self.beside_pairs.map(|_| around), "--beside-duration, with the ten seconds around it,"),
        ];
        for (span, name) in held_back {
            if let Some(span) = span.filter(|span| *span > max) {
                let told = format!("{name} is {span:?}, more than a quarter of --keep-alive: they wait no longer");
                return Err(BadUsage(told).into());
            }
        }
        Ok(())
    }

    pub(super) fn slope_from(&self) -> u64 {
        let connections = self.crowd.connections();
        self.slope_from.map_or(connections / 5, u64::from).clamp(1, connections - 1)
    }

    /// How long memory is left to settle before it is read.
    pub(super) fn settle(&self) -> Duration {
        self.hold.0.min(SETTLE_MAX)
    }
}
