//! The settings of `culver serve`: their defaults, the file they come from, and what makes them invalid.
//!
//! Owns no command-line parsing (`command/` puts flags over the file) and never touches a socket.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;

use culver_protocol::crypto::Suite;
use culver_protocol::limits::{KEEP_ALIVE_S_DEFAULT, KEEP_ALIVE_S_MAX, KEEP_ALIVE_S_MIN};
use culver_storage::topology::HUBS_MAX;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::logins::Logins;
pub use self::peers::Peers;
pub use self::sends::Sends;
use crate::buckets::Limit;
use crate::hub::rates::Limits;
use crate::reactor::admission;
use crate::session::Offer;

mod logins;
mod peers;
mod sends;

/// What `culver init` writes to `DIR/culver.toml`: every setting, commented, with its default.
pub const TEMPLATE: &str = include_str!("culver.toml");
/// The settings file inside a data directory.
pub const FILE_NAME: &str = "culver.toml";
/// Most reactor threads.
pub const REACTORS_MAX: usize = 256;
/// Most connections that one process is ever asked to hold.
pub const CONNECTIONS_MAX: u32 = 1 << 24;
/// Longest time allowed for a login.
pub const LOGIN_TIMEOUT_S_MAX: u64 = 300;
/// Longest life of a resume ticket: a year.
pub const TICKET_LIFE_S_MAX: u64 = 366 * 24 * 3600;
/// Widest difference between clocks that is made up for.
pub const TOKEN_LEEWAY_S_MAX: u64 = 600;
/// Most reader threads of a volume.
pub const READERS_MAX: usize = 64;
/// Shortest time that undelivered entries are kept.
pub const RETENTION_DAYS_MIN: u32 = 30;
/// Longest time that entries and devices are kept: ten years.
pub const DAYS_MAX: u32 = 3660;
/// Narrowest quota of an inbox in bytes: a few of the longest entries fit.
pub const QUOTA_BYTES_MIN: u64 = 256 * 1024;
/// Widest quota of an inbox, in entries as in bytes.
pub const QUOTA_MAX: u64 = 1 << 40;
/// Widest reserve of a disk, in MiB: a pebibyte, more than there is on any.
pub const RESERVE_MIB_MAX: u64 = 1 << 30;
/// Longest span of a shutdown's reconnects, and longest flush.
pub const SHUTDOWN_S_MAX: u64 = 3600;

/// Why there is no usable configuration. Each says how to mend it.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the settings file {path}: {source}. Name another with --config FILE.")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is no TOML, or names something unknown.
    #[error("the settings file {path} cannot be understood: {detail}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        detail: String,
    },
    /// A value is outside its bounds.
    #[error("{setting} = {value} is not possible: {remedy}")]
    Value {
        /// The setting's full name.
        setting: &'static str,
        /// What it was.
        value: String,
        /// What is possible.
        remedy: String,
    },
    /// Plaintext where others can listen.
    #[error(
        "refusing to listen on {0} with plaintext: it is not a loopback address, and everybody on the way could read \
         and change everything. Leave \"none\" out of security.suites (--suites chacha20,aes256), or listen on 127.0.0.1 \
         or [::1] (--listen 127.0.0.1:7400)."
    )]
    PlaintextExposed(SocketAddr),
}

/// Every setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The data directory: a flag, never in the file.
    #[serde(skip)]
    pub data_dir: PathBuf,
    /// The folders of its volumes, in the order in which it was made with them: flags, never in the file. None:
    /// whichever it has.
    #[serde(skip)]
    pub volumes: Vec<PathBuf>,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where operators connect.
    pub ops: SocketAddr,
    /// Reactor threads; 0: see [`Config::reactor_count`], or, where each has descriptors of its own, as many as
    /// `connections_max` needs.
    pub reactors: usize,
    /// Each reactor has a table of descriptors to itself, and so the limit of descriptors to itself.
    pub private_fd_tables: bool,
    /// Hub threads; 0: one a volume. See [`Config::hub_count`].
    pub hubs: u16,
    /// Threads that read from the disk, for each volume.
    pub readers: usize,
    /// Most connections; 0: as many as the descriptor limit allows.
    pub connections_max: u32,
    /// Seconds until a connection must have logged in.
    pub login_timeout_s: u64,
    /// The process gives up what it does not need: see [`crate::sandbox`].
    pub sandbox: bool,
    /// Backups of the running server.
    pub backup: Backup,
    /// What inboxes keep.
    pub inbox: Inbox,
    /// The disks that hold the data.
    pub disk: Disk,
    /// How fast devices and users may send.
    pub sends: Sends,
    /// Clients that take nothing.
    pub peers: Peers,
    /// How fast clients may log in.
    pub logins: Logins,
    /// Keep-alives.
    pub keep_alive: KeepAlive,
    /// Encryption.
    pub security: Security,
    /// Resume tickets.
    pub ticket: Ticket,
    /// Tokens.
    pub token: Token,
    /// SIGTERM.
    pub shutdown: Shutdown,
    /// Logs.
    pub log: Log,
}

/// Backups of the running server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backup {
    /// Folders below which they may be written; none: anywhere.
    pub dirs: Vec<PathBuf>,
}

/// What inboxes keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Inbox {
    /// Days after which an undelivered entry expires.
    pub retention_days: u32,
    /// Days after which a device that has not been seen no longer holds the inbox.
    pub device_days: u32,
    /// Entries that may wait.
    pub quota_entries: u64,
    /// Bytes that may wait.
    pub quota_bytes: u64,
    /// Senders are told what was delivered and read.
    pub receipts: bool,
}

/// The disks that hold the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Disk {
    /// Room that stays free on each: with less, no new message is accepted. 0: no reserve.
    pub reserve_mib: u64,
}

/// Bounds of the agreed keep-alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeepAlive {
    /// Where the login names none.
    pub default_s: u32,
    /// Shortest.
    pub min_s: u32,
    /// Longest.
    pub max_s: u32,
}

impl KeepAlive {
    /// The nearest interval to this one that a client may have.
    #[must_use]
    pub fn bring_within(self, wanted_s: u32) -> u16 {
        u16::try_from(wanted_s.clamp(self.min_s, self.max_s)).unwrap_or(u16::MAX)
    }
}

/// Encryption.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Security {
    /// Ciphers that clients may choose from. Empty: all, and on a loopback address plaintext too.
    pub suites: Vec<SuiteName>,
    /// A resume ticket is good only with forward secrecy.
    pub forward_secrecy: bool,
    /// Per cent of the reactors' time, on all cores, that handshakes with Diffie-Hellman may take.
    pub handshake_cpu_percent: u8,
}

/// A cipher suite by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SuiteName {
    /// Plaintext.
    None,
    /// ChaCha20-Poly1305.
    #[value(name = "chacha20")]
    Chacha20,
    /// AES-256-GCM.
    #[value(name = "aes256")]
    Aes256,
}

/// Resume tickets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ticket {
    /// Seconds until a ticket expires.
    pub life_s: u64,
    /// Tickets of a lower generation are stale.
    pub generation: u32,
}

/// Tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Token {
    /// The `iss` that is accepted.
    pub issuer: String,
    /// The `aud` that is accepted.
    pub audience: String,
    /// Seconds by which clocks may differ.
    pub leeway_s: u64,
    /// The public keys, a JWK Set; relative to the data directory.
    pub jwks_file: PathBuf,
    /// Where that is missing, one public key in PEM; relative to the data directory.
    pub public_key_file: PathBuf,
}

/// What SIGTERM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// Seconds until the next process takes connections: clients come back no sooner.
    pub away_s: u64,
    /// Seconds over which clients spread their reconnects.
    pub spread_s: u64,
    /// Seconds until unsent bytes are dropped.
    pub flush_s: u64,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// One line of text, or one JSON object, per event.
    pub format: LogFormat,
    /// What is logged, in the syntax of `tracing`'s `EnvFilter`.
    pub filter: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

impl Config {
    /// Reads `file`, or `data_dir/culver.toml` where none is named; defaults where that does not exist.
    ///
    /// # Errors
    /// A named file cannot be read, or either cannot be understood. Values are not checked yet: flags may follow.
    pub fn load(data_dir: &Path, file: Option<&Path>) -> Result<Self, ConfigError> {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        let path = file.map_or_else(|| data_dir.join(FILE_NAME), Path::to_path_buf);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            // No data directory yet, or none at all: what opens it says so better.
            Err(error) if file.is_none() && matches!(error.kind(), NotFound | NotADirectory) => String::new(),
            Err(source) => return Err(ConfigError::Unreadable { path, source }),
        };
        let config = Self::parse(&text).map_err(|detail| ConfigError::Syntax { path, detail })?;
        Ok(Self { data_dir: data_dir.to_path_buf(), ..config })
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())
    }

    /// Holds every value against its bounds.
    ///
    /// # Errors
    /// The first value that is not possible.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.offer().plaintext && !self.is_on_loopback() {
            return Err(ConfigError::PlaintextExposed(self.listen));
        }
        if self.listen == self.ops && self.listen.port() != 0 {
            let remedy = "clients and operators need an address each (--listen, --ops)".to_owned();
            return Err(ConfigError::Value { setting: "ops", value: self.ops.to_string(), remedy });
        }
        let KeepAlive { default_s, min_s, max_s } = self.keep_alive;
        let Inbox { retention_days, device_days, quota_entries, quota_bytes, receipts: _ } = self.inbox;
        within("reactors", self.reactors as u64, 0, REACTORS_MAX as u64)?;
        within("hubs", self.hubs.into(), 0, HUBS_MAX.into())?;
        within("readers", self.readers as u64, 1, READERS_MAX as u64)?;
        within("inbox.retention_days", retention_days.into(), RETENTION_DAYS_MIN.into(), DAYS_MAX.into())?;
        within("inbox.device_days", device_days.into(), 1, DAYS_MAX.into())?;
        within("inbox.quota_entries", quota_entries, 1, QUOTA_MAX)?;
        within("inbox.quota_bytes", quota_bytes, QUOTA_BYTES_MIN, QUOTA_MAX)?;
        within("disk.reserve_mib", self.disk.reserve_mib, 0, RESERVE_MIB_MAX)?;
        self.sends.validate()?;
        self.peers.validate()?;
        self.logins.validate()?;
        within("connections_max", self.connections_max.into(), 0, CONNECTIONS_MAX.into())?;
        within("login_timeout_s", self.login_timeout_s, 1, LOGIN_TIMEOUT_S_MAX)?;
        within("keep_alive.min_s", min_s.into(), KEEP_ALIVE_S_MIN.into(), KEEP_ALIVE_S_MAX.into())?;
        within("keep_alive.max_s", max_s.into(), min_s.into(), KEEP_ALIVE_S_MAX.into())?;
        within("keep_alive.default_s", default_s.into(), min_s.into(), max_s.into())?;
        within("security.handshake_cpu_percent", self.security.handshake_cpu_percent.into(), 1, 100)?;
        within("ticket.life_s", self.ticket.life_s, 1, TICKET_LIFE_S_MAX)?;
        within("token.leeway_s", self.token.leeway_s, 0, TOKEN_LEEWAY_S_MAX)?;
        within("shutdown.away_s", self.shutdown.away_s, 0, SHUTDOWN_S_MAX)?;
        within("shutdown.spread_s", self.shutdown.spread_s, 0, SHUTDOWN_S_MAX)?;
        within("shutdown.flush_s", self.shutdown.flush_s, 0, SHUTDOWN_S_MAX)?;
        if let Some(relative) = self.backup.dirs.iter().find(|folder| !folder.is_absolute()) {
            let remedy = "name folders by their whole path".to_owned();
            return Err(ConfigError::Value { setting: "backup.dirs", value: relative.display().to_string(), remedy });
        }
        not_empty("token.issuer", &self.token.issuer)?;
        not_empty("token.audience", &self.token.audience)
    }

    /// What of encryption clients are offered.
    #[must_use]
    pub fn offer(&self) -> Offer {
        let Security { suites, forward_secrecy, .. } = &self.security;
        let names = |name| suites.contains(&name);
        let offers = |suite: &Suite| match suite {
            _ if suites.is_empty() => true,
            Suite::ChaCha20Poly1305 => names(SuiteName::Chacha20),
            Suite::Aes256Gcm => names(SuiteName::Aes256),
        };
        Offer {
            plaintext: if suites.is_empty() { self.is_on_loopback() } else { names(SuiteName::None) },
            suites: Suite::ALL.into_iter().filter(offers).collect(),
            forward_secrecy: *forward_secrecy,
        }
    }

    /// How fast devices and users may send, to each hub. What is not set has no limit where only this machine can
    /// connect, so that development and measurements there are not slowed down.
    #[must_use]
    pub fn send_limits(&self) -> Limits {
        self.sends.limits(!self.is_on_loopback())
    }

    /// How fast connections may come to each of so many reactors. From one address they come as fast as they do where
    /// nothing is set and only this machine can connect, a proxy on it or a measurement.
    #[must_use]
    pub fn login_limits(&self, reactors: usize, cores: usize) -> admission::Limits {
        self.all_login_limits(cores).part_of(reactors.max(1))
    }

    /// The same of all reactors together.
    #[must_use]
    pub fn all_login_limits(&self, cores: usize) -> admission::Limits {
        self.logins.of_all(!self.is_on_loopback(), cores)
    }

    /// How often each hub lets a user log in.
    #[must_use]
    pub fn user_login_limit(&self) -> Option<Limit> {
        self.logins.of_user(!self.is_on_loopback())
    }

    fn is_on_loopback(&self) -> bool {
        self.listen.ip().to_canonical().is_loopback()
    }

    /// How many reactors to run: the number asked for, or half the cores and at least one.
    #[must_use]
    pub fn reactor_count(&self) -> usize {
        if self.reactors > 0 {
            return self.reactors;
        }
        (cores() / 2).clamp(1, REACTORS_MAX)
    }

    /// What handshakes may take of the time of each of so many reactors, in millionths: with more reactors than cores, its
    /// part of what may be taken of the cores.
    #[must_use]
    pub fn handshake_ppm(&self, reactors: usize, cores: usize) -> u32 {
        let reactors = reactors.max(1);
        let of_each = usize::from(self.security.handshake_cpu_percent) * 10_000 * reactors.min(cores) / reactors;
        u32::try_from(of_each).expect("a million at most")
    }

    /// How many hubs to run on so many volumes: the number asked for, or one each.
    ///
    /// # Errors
    /// There are more volumes than hubs, or than there can be hubs.
    pub fn hub_count(&self, volumes: u16) -> Result<u16, ConfigError> {
        let hubs = if self.hubs == 0 { volumes } else { self.hubs };
        if (volumes..=HUBS_MAX).contains(&hubs) {
            return Ok(hubs);
        }
        let remedy = format!("each of the {volumes} volumes needs a hub of its own: choose {volumes} to {HUBS_MAX}");
        Err(ConfigError::Value { setting: "hubs", value: hubs.to_string(), remedy })
    }
}

/// Cores that this process may use.
#[must_use]
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl KeepAlive {
    /// What is agreed with a client that wishes for `wanted_s` (0: no wish).
    #[must_use]
    pub fn agree(self, wanted_s: u32) -> u32 {
        if wanted_s == 0 { self.default_s } else { wanted_s.clamp(self.min_s, self.max_s) }
    }
}

fn within(setting: &'static str, value: u64, min: u64, max: u64) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let remedy = format!("choose {min} to {max}");
    Err(ConfigError::Value { setting, value: value.to_string(), remedy })
}

fn not_empty(setting: &'static str, value: &str) -> Result<(), ConfigError> {
    if !value.is_empty() {
        return Ok(());
    }
    let remedy = "it must name something".to_owned();
    Err(ConfigError::Value { setting, value: "\"\"".to_owned(), remedy })
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            ops: SocketAddr::from(([127, 0, 0, 1], 7401)),
            volumes: Vec::new(),
            reactors: 0,
            private_fd_tables: false,
            hubs: 0,
            readers: 2,
            connections_max: 0,
            login_timeout_s: 10,
            sandbox: true,
            backup: Backup::default(),
            inbox: Inbox::default(),
            disk: Disk::default(),
            sends: Sends::default(),
            peers: Peers::default(),
            logins: Logins::default(),
            keep_alive: KeepAlive::default(),
            security: Security::default(),
            ticket: Ticket::default(),
            token: Token::default(),
            shutdown: Shutdown::default(),
            log: Log::default(),
        }
    }
}

impl Default for Inbox {
    fn default() -> Self {
        let (retention_days, device_days) = (365, 90);
        Self { retention_days, device_days, quota_entries: 100_000, quota_bytes: 256 << 20, receipts: true }
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self { reserve_mib: 1024 }
    }
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self { default_s: KEEP_ALIVE_S_DEFAULT, min_s: KEEP_ALIVE_S_MIN, max_s: KEEP_ALIVE_S_MAX }
    }
}

impl Default for Security {
    fn default() -> Self {
        Self { suites: Vec::new(), forward_secrecy: false, handshake_cpu_percent: 25 }
    }
}

impl Default for Ticket {
    fn default() -> Self {
        Self { life_s: 30 * 24 * 3600, generation: 1 }
    }
}

impl Default for Token {
    fn default() -> Self {
        Self {
            issuer: "culver-dev".to_owned(),
            audience: "culver".to_owned(),
            leeway_s: 30,
            jwks_file: PathBuf::from("keys/jwks.json"),
            public_key_file: PathBuf::from("keys/token-public.pem"),
        }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { away_s: 2, spread_s: 30, flush_s: 5 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

#[cfg(test)]
mod tests;
