//! `culver serve`: settings, checks, the data directory, and then the server until a signal ends it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use clap::builder::BoolishValueParser;
use culver::auth::Authenticator;
use culver::auth::keys::{CREDENTIALS_FILE, create_missing_identity};
use culver::config::{Config, LogFormat, SuiteName, cores};
use culver::inherited::{self, Inherited};
use culver::logging;
use culver::preflight::{self, Ports};
use culver::sandbox;
use culver::server::{self, Setup};
use culver_storage::error::OpenError;
use culver_storage::layout::DataDir;
use culver_storage::topology::Topology;
use tracing::{info, warn};

use super::{DataDirArg, VolumesArg, init};

/// Run the server
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                        culver serve --data-dir ./data\n  \
                        culver serve --data-dir ./data --listen 127.0.0.1:7500 --ops 127.0.0.1:7501\n  \
                        culver serve --data-dir ./data --reactors 2 --connections-max 100000 --log-format json\n  \
                        culver serve --data-dir ./data --private-fd-tables --connections-max 1000000\n  \
                        culver serve --data-dir ./data --hubs 4 --volume /disk1/culver --volume /disk2/culver\n\n\
                        Settings come from DIR/culver.toml, or the file named with --config; flags go before them.\n\
                        SIGTERM and SIGINT end it: clients are told to come back later, then it exits with 0.\n\
                        Listening sockets of a socket unit (LISTEN_FDS) are taken, one for each reactor: docs/systemd.\n\
                        RUST_LOG=debug shows more.")]
pub(crate) struct Serve {
    #[command(flatten)]
    data_dir: DataDirArg,
    #[command(flatten)]
    volumes: VolumesArg,
    /// Settings [default: DIR/culver.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where clients connect; with plaintext, loopback only [default: 127.0.0.1:7400]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Where /metrics, /healthz and /readyz are [default: 127.0.0.1:7401]
    #[arg(long, value_name = "IP:PORT")]
    ops: Option<SocketAddr>,
    /// Ciphers that clients may choose from [default: chacha20,aes256, and none (plaintext) on a loopback address]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    suites: Option<Vec<SuiteName>>,
    /// Threads that own sockets [default: half the cores; with --private-fd-tables, what --connections-max needs]
    #[arg(long, value_name = "N")]
    reactors: Option<usize>,
    /// Each reactor gets a table of file descriptors, and so the limit of them (ulimit -Hn), to itself
    #[arg(long)]
    private_fd_tables: bool,
    /// Threads that own users and conversations; may change at every start [default: one for each volume]
    #[arg(long, value_name = "N")]
    hubs: Option<u16>,
    /// Threads that read from the disk, for each volume [default: 2]
    #[arg(long, value_name = "N")]
    readers: Option<usize>,
    /// Whether senders are told what was delivered and read [default: on]
    #[arg(long, value_name = "on|off", value_parser = BoolishValueParser::new())]
    receipts: Option<bool>,
    /// Most connections at once [default: what the descriptor limit allows]
    #[arg(long, value_name = "N")]
    connections_max: Option<u32>,
    /// The form of the logs on standard error [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

impl Serve {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        // Before anything else is open, and before there is any thread.
        let inherited = inherited::take()?;
        let (config, overridden) = self.settings(&inherited)?;
        logging::start(&config.log)?;
        overridden.iter().for_each(|what| warn!("{what}"));
        let capacity = preflight::reserve_descriptors(&config)?;
        preflight::warnings(&config, &capacity).iter().for_each(|warning| warn!("{warning}"));
        let ports = Ports::hold_beside(&config, inherited)?;
        // Before anything is made: what a new directory would have.
        config.hub_count(u16::try_from(config.volumes.len().max(1)).unwrap_or(u16::MAX))?;
        let data_dir = open_or_initialise(&config)?;
        let topology = topology(&config, &data_dir)?;
        // A data directory of an earlier version has no server key.
        let now_ms = super::now_ms()?;
        if is_for_development(&config) && create_missing_identity(&config.data_dir, now_ms)? {
            super::print(&init::about_the_root(&config.data_dir))?;
        }
        let authenticator = Arc::new(Authenticator::load(&config, data_dir.incarnation(), now_ms)?);
        let greeting = greeting(&config, &ports);
        let (hubs, volumes) = (topology.hub_count(), topology.volume_count());
        let preflight::Capacity { reactors, connections_max, of_a_reactor, descriptors } = capacity;
        info!(
            listen = %ports.listen, ops = %ports.ops_address, connections_max, reactors, of_a_reactor,
            descriptors, private_fd_tables = config.private_fd_tables, hubs, volumes, "starting"
        );
        info!(sends = %config.send_limits(), "how fast each hub takes messages");
        let user = config.user_login_limit().map_or("unlimited".to_owned(), |limit| limit.to_string());
        info!(logins = %config.all_login_limits(cores()), user, "how fast clients may log in");
        let on_ready = Box::new(move || {
            if let Err(error) = super::print(&greeting) {
                warn!(%error, "nobody reads standard output");
            }
        });
        if config.sandbox {
            // The last that this thread does alone: whatever begins from here on is confined as well.
            sandbox::enter(&sandbox::Needs::of(&config, &data_dir, &ports))?;
        }
        server::run(Setup { config, data_dir, topology, authenticator, ports, capacity, on_ready })?;
        info!("stopped");
        Ok(ExitCode::SUCCESS)
    }

    /// The file's settings with the flags over them, and what sockets handed over say, checked; and what of the file
    /// gives way to those.
    fn settings(&self, inherited: &Inherited) -> anyhow::Result<(Config, Vec<String>)> {
        let mut config = Config::load(&self.data_dir.path, self.config.as_deref())?;
        config.listen = self.listen.unwrap_or(config.listen);
        if let Some(suites) = &self.suites {
            config.security.suites.clone_from(suites);
        }
        config.ops = self.ops.unwrap_or(config.ops);
        config.volumes.clone_from(&self.volumes.volumes);
        config.reactors = self.reactors.unwrap_or(config.reactors);
        config.private_fd_tables |= self.private_fd_tables;
        config.hubs = self.hubs.unwrap_or(config.hubs);
        config.readers = self.readers.unwrap_or(config.readers);
        config.inbox.receipts = self.receipts.unwrap_or(config.inbox.receipts);
        config.connections_max = self.connections_max.unwrap_or(config.connections_max);
        config.log.format = self.log_format.unwrap_or(config.log.format);
        let overridden = inherited.apply(&mut config, self.listen, self.ops)?;
        config.validate()?;
        Ok((config, overridden))
    }
}

/// Whether nobody but this machine can connect: keys for development are made without being asked for.
fn is_for_development(config: &Config) -> bool {
    config.listen.ip().to_canonical().is_loopback()
}

/// Opens the data directory; for development an empty or missing one is made first.
fn open_or_initialise(config: &Config) -> anyhow::Result<DataDir> {
    match DataDir::open_with(&config.data_dir, &config.volumes) {
        Err(OpenError::Missing { path } | OpenError::Empty { path }) if is_for_development(config) => {
            init::initialise(&path, &config.volumes)?;
            super::print(&format!(
                "{} was empty: it is a data directory now, with keys for development\n{}",
                path.display(),
                init::about_the_root(&path)
            ))?;
            Ok(DataDir::open_with(&path, &config.volumes)?)
        }
        opened => Ok(opened?),
    }
}

/// Which hub and volume every shard belongs to.
fn topology(config: &Config, data_dir: &DataDir) -> anyhow::Result<Topology> {
    let volumes = u16::try_from(data_dir.volume_count()).context("more volumes than there can be hubs")?;
    let hubs = config.hub_count(volumes)?;
    Ok(Topology::new(data_dir.shard_count(), data_dir.volume_of_shard(), hubs)?)
}

/// What is printed once clients can log in.
fn greeting(config: &Config, ports: &Ports) -> String {
    let (listen, ops, dir) = (ports.listen, ports.ops_address, config.data_dir.display());
    let suites = config.offer();
    let credentials = config.data_dir.join(CREDENTIALS_FILE);
    let mut text = format!("culver listens on {listen} ({suites}); operators: http://{ops}/metrics, /healthz, /readyz");
    if credentials.exists() {
        text.push_str(&format!(
            "\nTry next:\n  culver-loadgen chat --target {listen} --ops {ops} --credentials {} --pairs 64 --duration 10s\n  \
             culver token --data-dir {dir} --user 7 --device 1",
            credentials.display()
        ));
    }
    text
}
