//! The options of `restart`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::clock::unix_ms;
use crate::dense::sources::Sources;
use crate::dense::{CrowdLoad, CrowdSealing, HandshakeOption, LoginWith};
use crate::options::{RunOptions, rate};
use crate::plan::{self, RunId};
use crate::preflight::{self, Demand};
use crate::report::{BadUsage, JsonTo};
use crate::scenario::pairs::PairLoad;
use crate::scenario::storm::{ReturnOptions, pair_load};
use crate::target::credentials::Credentials;
use crate::target::sealing::SuiteOption;
use crate::units::Span;

/// What the server is taken to need for a connection.
const SERVER_BYTES: u64 = 256;
/// Between two signs of life of a connection.
const KEEP_ALIVE_US: u64 = 240 * 1_000_000;

/// Who opens the server's listening sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Listeners {
    /// This program, which keeps them while servers come and go (LISTEN_FDS)
    #[default]
    Inherited,
    /// Each server its own
    Own,
}

/// Options of `restart`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct RestartOptions {
    /// The `culver` program to start and to end
    #[arg(long, value_name = "PATH")]
    pub(super) culver: PathBuf,
    /// Who opens the listening sockets
    #[arg(long, value_enum, default_value_t, value_name = "WHO")]
    listeners: Listeners,
    /// The server's reactors: each has a listening socket
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    reactors: u8,
    /// Users who are in storage: each has a message, and most never come
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    users: u32,
    /// Of them, those who are connected
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    /// Pairs that talk all the while: everything acknowledged must arrive once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pairs: u32,
    /// Messages a second over all pairs
    #[arg(long, default_value_t = 500.0, value_name = "PER_S", value_parser = rate)]
    pair_rate: f64,
    /// How often the server is restarted
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// How long it is left alone before each
    #[arg(long, default_value = "3s")]
    pub(super) rest: Span,
    /// How long the old server may take to end, and then all clients to be back: who is not by then is missing
    #[arg(long, default_value = "2m", value_name = "SPAN")]
    pub(super) patience: Span,
    /// Longest wait, in the end, until everything acknowledged has arrived
    #[arg(long, default_value = "60s")]
    pub(super) settle: Span,
    #[command(flatten)]
    returns: ReturnOptions,
    #[command(flatten)]
    pub(super) thresholds: Thresholds,
    /// Where the server's data goes, and stays [default: a temporary directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub(super) keep: Option<PathBuf>,
    /// How connections are sealed
    #[arg(long, value_enum, default_value_t)]
    pub(super) suite: SuiteOption,
    #[command(flatten)]
    pub(super) run: RunOptions,
    /// Further arguments for `PATH serve`
    #[arg(last = true, value_name = "SERVER-ARGS")]
    server_args: Vec<String>,
}

/// What must hold, else the exit code is 3.
#[derive(Args, Clone, Debug, Serialize)]
pub(super) struct Thresholds {
    /// From SIGTERM until /readyz says no
    #[arg(long, default_value = "100ms", value_name = "SPAN")]
    pub(super) not_ready_max: Span,
    /// From the old server's end to the first login in the new one
    #[arg(long, default_value = "2s", value_name = "SPAN")]
    pub(super) first_login_max: Span,
    /// From SIGTERM until all are back
    #[arg(long, default_value = "20s", value_name = "SPAN")]
    pub(super) back_max: Span,
    /// Attempts that found nobody listening, or were reset [default: 0, where listening sockets are inherited]
    #[arg(long, value_name = "N")]
    refused_max: Option<u64>,
}

impl RestartOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.connections > self.users {
            let told = format!("--connections {} is more than --users {}", self.connections, self.users);
            return Err(BadUsage(told).into());
        }
        Ok(())
    }

    pub(super) fn users(&self) -> u64 {
        self.users.into()
    }

    /// How many listening sockets are handed to the server; `None`: none.
    pub(super) fn inherited(&self) -> Option<u8> {
        (self.listeners == Listeners::Inherited).then_some(self.reactors)
    }

    pub(super) fn refused_max(&self) -> u64 {
        self.thresholds.refused_max.unwrap_or(if self.inherited().is_some() { 0 } else { u64::MAX })
    }

    pub(super) fn server_args(&self) -> Vec<String> {
        let own = ["--reactors".to_owned(), self.reactors.to_string()];
        own.into_iter().chain(self.server_args.iter().cloned()).collect()
    }

    pub(super) fn load(&self, seed: u64, target: SocketAddr, tickets: PathBuf) -> Result<CrowdLoad> {
        let connections = u64::from(self.connections);
        let load = CrowdLoad {
            target,
            connections,
            workers: self.run.workers_asked(),
            first_user: plan::first_user(seed),
            sources: Sources::choose(None, target, connections)?,
            rate: None,
            keep_alive_us: KEEP_ALIVE_US,
            tickets: Some(tickets),
            run: RunId(unix_ms().wrapping_mul(1 << 16) ^ u64::from(std::process::id())),
            sends_ready: true,
            measures_delivery: false,
            returns: Some(self.returns.rules(seed)),
        };
        preflight::check(&Demand {
            connections,
            workers: load.worker_count(),
            source_addresses: load.sources.count().max(1),
            server_here: true,
            server_bytes_per_connection: SERVER_BYTES,
        })?;
        Ok(load)
    }

    /// What the crowd logs in with.
    pub(super) fn login(&self, credentials: &Path) -> Result<LoginWith> {
        let credentials = Credentials::load(credentials)?;
        let sealing = credentials.sealing(self.suite)?;
        let handshake = HandshakeOption::default();
        let sealing = sealing.map(|sealing| CrowdSealing { sealing, handshake, server: None });
        Ok(LoginWith::Tokens(Arc::new(credentials), sealing))
    }

    pub(super) fn pair_load(&self, seed: u64, first_user: u64) -> PairLoad {
        pair_load((self.pairs, self.pair_rate), &self.run, seed, first_user)
    }
}
