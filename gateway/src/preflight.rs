//! What must hold before the server listens: free ports and enough descriptors, each with its remedy.
//!
//! Owns sockets that hold the ports, bound but not listening, and those handed over. Never accepts, never touches the data directory
//! (`culver_storage::layout` checks that, with remedies of its own).

use std::io;
use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use crate::config::{CONNECTIONS_MAX, Config, REACTORS_MAX};
use crate::inherited::Inherited;

/// Descriptors for everything but connections: RocksDB's files (`open_files_max`), and the operators' port, logs and the
/// like.
pub const DESCRIPTORS_RESERVED: u64 = 512 + 128;
/// Of those that each reactor takes in the table that all share: its alarm's two ends, its listener and its poll.
const DESCRIPTORS_SHARED: u64 = 4;
/// Descriptors of a reactor with a table of its own, beside connections: the standard ones, its listener, poll and
/// alarm, and a connection that is turned away.
pub const DESCRIPTORS_OF_A_REACTOR: u64 = 16;
/// The kernel deals connections to reactors by a hash, so some get more than others: room for so many percent of the
/// average.
const SPREAD_PERCENT: u64 = 105;
/// What the kernel takes for a connection, and what the server does.
const BYTES_OF_A_CONNECTION: u64 = 4040 + 200;

/// Why the server cannot start. Each says how to mend it.
#[derive(Debug, Error)]
pub enum PreflightError {
    /// Somebody listens there.
    #[error(
        "{address} is in use by another process (`ss -ltnp 'sport = :{port}'` shows which). Stop that one, or choose \
         another port with {option} IP:PORT."
    )]
    PortInUse {
        /// The address asked for.
        address: SocketAddr,
        /// Its port.
        port: u16,
        /// The option that changes it.
        option: &'static str,
    },
    /// The address cannot be bound for another reason.
    #[error("cannot use {address}: {source}. Choose an address of this machine with {option} IP:PORT.")]
    Address {
        /// The address asked for.
        address: SocketAddr,
        /// The option that changes it.
        option: &'static str,
        /// Why it cannot be bound.
        source: io::Error,
    },
    /// More connections asked for than descriptors allow.
    #[error(
        "{wanted} connections need {needed} file descriptors ({reserved} are for other files), but the \
         limit is {limit}. Raise it (`ulimit -n {needed}`, or LimitNOFILE={needed} in the systemd unit; \
         `culver-tune plan --connections {wanted}` has all of it), give every reactor a table of its own \
         (--private-fd-tables), or ask for fewer: --connections-max {possible}."
    )]
    TooFewDescriptors {
        /// Connections asked for.
        wanted: u64,
        /// Descriptors that they need.
        needed: u64,
        /// Those for everything else.
        reserved: u64,
        /// Descriptors there can be.
        limit: u64,
        /// Connections that would fit.
        possible: u64,
    },
    /// More connections asked for than reactors with tables of their own can hold.
    #[error(
        "{wanted} connections need {needed} reactors with a table of {limit} file descriptors each, and there are \
         {reactors}. Start more (--reactors {needed}; at most {REACTORS_MAX}), raise the limit \
         (`culver-tune plan --connections {wanted} --fd-tables {reactors}`), or ask for fewer: \
         --connections-max {possible}."
    )]
    TooFewTables {
        /// Connections asked for.
        wanted: u64,
        /// Reactors that they need.
        needed: u64,
        /// Reactors there are.
        reactors: u64,
        /// Descriptors that there can be in each table.
        limit: u64,
        /// Connections that would fit.
        possible: u64,
    },
    /// Not even one connection fits.
    #[error(
        "the limit of {limit} file descriptors leaves none for connections ({reserved} are for other \
         files). Raise it: `ulimit -n 65536`, or LimitNOFILE=65536 in the systemd unit."
    )]
    NoDescriptors {
        /// Descriptors there can be.
        limit: u64,
        /// Those for everything else.
        reserved: u64,
    },
    /// The soft limit cannot be raised to the hard one.
    #[error("cannot raise the soft limit of file descriptors to the hard limit of {limit}: {source}")]
    RaiseLimit {
        /// The hard limit.
        limit: u64,
        /// Why not.
        source: io::Error,
    },
}

/// Both ports, held for this process, not listening yet.
#[derive(Debug)]
pub struct Ports {
    /// Where clients will connect; a port 0 has become a real one. Each reactor binds a listener of its own there,
    /// with `SO_REUSEPORT`.
    pub listen: SocketAddr,
    /// What there is of `listen` so far.
    pub clients: Clients,
    /// Where operators will connect.
    pub ops_address: SocketAddr,
    /// To be listened on by [`crate::ops::Ops::spawn`].
    pub ops: Socket,
    /// Whether that was handed over.
    pub is_ops_inherited: bool,
}

/// What there is of the clients' address before the reactors begin.
#[derive(Debug)]
pub enum Clients {
    /// Keeps other processes off it until the reactors have bound theirs, and never listens itself.
    Held(Socket),
    /// Nothing is to be bound: a listener for each reactor was handed over. Who binds the address without
    /// `SO_REUSEPORT`, as a second server does at first, is refused as ever.
    Inherited(Vec<Socket>),
}

impl Ports {
    /// Takes both ports.
    ///
    /// # Errors
    /// One of them is in use, or is no address of this machine.
    pub fn hold(config: &Config) -> Result<Self, PreflightError> {
        Self::hold_beside(config, Inherited::default())
    }

    /// Takes what was not handed over.
    ///
    /// # Errors
    /// As [`Ports::hold`].
    pub fn hold_beside(config: &Config, inherited: Inherited) -> Result<Self, PreflightError> {
        let (listen, clients) = match inherited.clients {
            Some((listen, sockets)) => (listen, Clients::Inherited(sockets)),
            None => hold_shared(config.listen)
                .map(|(listen, hold)| (listen, Clients::Held(hold)))
                .map_err(|source| explain(config.listen, "--listen", source))?,
        };
        let is_ops_inherited = inherited.ops.is_some();
        let (ops_address, ops) = match inherited.ops {
            Some(found) => found,
            None => hold_alone(config.ops).map_err(|source| explain(config.ops, "--ops", source))?,
        };
        Ok(Self { listen, clients, ops_address, ops, is_ops_inherited })
    }

    /// Ports that must be bound still, or again.
    #[must_use]
    pub fn to_bind(&self) -> Vec<u16> {
        let listen = matches!(self.clients, Clients::Held(_)).then_some(self.listen);
        let ops = (!self.is_ops_inherited).then_some(self.ops_address);
        listen.into_iter().chain(ops).map(|address| address.port()).collect()
    }
}

/// Binds with `SO_REUSEPORT`, after making sure that nobody else listens: `SO_REUSEPORT` alone would let a second
/// server of the same user in, and the kernel would spread clients over both (socket(7)).
fn hold_shared(address: SocketAddr) -> io::Result<(SocketAddr, Socket)> {
    let (found, alone) = hold_alone(address)?;
    drop(alone);
    let socket = new_socket(found)?;
    // Without SO_REUSEADDR: a second server's probe (which lacks SO_REUSEPORT) then fails even before anybody listens.
    socket.set_reuse_port(true)?;
    socket.bind(&found.into())?;
    Ok((found, socket))
}

/// Binds as the only one. `SO_REUSEADDR`: connections of an earlier run that linger in TIME_WAIT do not matter.
fn hold_alone(address: SocketAddr) -> io::Result<(SocketAddr, Socket)> {
    let socket = new_socket(address)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    let found = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("a TCP socket has an IP address"))?;
    Ok((found, socket))
}

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))
}

fn explain(address: SocketAddr, option: &'static str, source: io::Error) -> PreflightError {
    if source.kind() == io::ErrorKind::AddrInUse {
        PreflightError::PortInUse { address, port: address.port(), option }
    } else {
        PreflightError::Address { address, option, source }
    }
}

/// How many connections there may be, and who holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Threads that own sockets.
    pub reactors: usize,
    /// Connections of all of them.
    pub connections_max: u32,
    /// Connections of each.
    pub of_a_reactor: usize,
    /// Descriptors that each table may have.
    pub descriptors: u64,
}

/// How many connections there may be: the number asked for if the descriptors suffice, or as many as they allow.
/// Raises the soft limit to the hard one.
///
/// # Errors
/// Too few descriptors.
pub fn reserve_descriptors(config: &Config) -> Result<Capacity, PreflightError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let raised = Rlimit { current: maximum, maximum };
        let limit = maximum.unwrap_or(u64::MAX);
        setrlimit(Resource::Nofile, raised)
            .map_err(|errno| PreflightError::RaiseLimit { limit, source: errno.into() })?;
    }
    let limit = maximum.unwrap_or(u64::MAX);
    if config.private_fd_tables { within_tables(config, limit) } else { within_one_table(config, limit) }
}

/// Every connection takes its descriptor from the same `limit`.
fn within_one_table(config: &Config, limit: u64) -> Result<Capacity, PreflightError> {
    let reactors = config.reactor_count();
    let reserved = DESCRIPTORS_RESERVED + DESCRIPTORS_SHARED * reactors as u64;
    let connections_max = connections_within(config.connections_max, limit, reserved)?;
    Ok(Capacity {
        reactors,
        connections_max,
        of_a_reactor: (connections_max as usize).div_ceil(reactors),
        descriptors: limit,
    })
}

/// Every reactor has `limit` descriptors to itself.
fn within_tables(config: &Config, limit: u64) -> Result<Capacity, PreflightError> {
    let room = limit.saturating_sub(DESCRIPTORS_OF_A_REACTOR).min(CONNECTIONS_MAX.into());
    // The shared table has an alarm of each reactor beside what everything else takes.
    let shared = DESCRIPTORS_RESERVED + REACTORS_MAX as u64;
    if room == 0 || limit < shared {
        return Err(PreflightError::NoDescriptors { limit, reserved: shared });
    }
    let wanted = u64::from(config.connections_max);
    let needed = (wanted * SPREAD_PERCENT).div_ceil(room * 100);
    let reactors = match config.reactors {
        0 => (config.reactor_count() as u64).max(needed).min(REACTORS_MAX as u64),
        asked => asked as u64,
    };
    let possible = (reactors * room * 100 / SPREAD_PERCENT).clamp(1, CONNECTIONS_MAX.into());
    if wanted > possible {
        return Err(PreflightError::TooFewTables { wanted, needed, reactors, limit, possible });
    }
    let granted = if wanted == 0 { possible } else { wanted };
    let share = (granted * SPREAD_PERCENT).div_ceil(reactors * 100).min(room);
    Ok(Capacity {
        reactors: usize::try_from(reactors).expect("REACTORS_MAX fits"),
        connections_max: u32::try_from(granted).expect("CONNECTIONS_MAX fits a u32"),
        of_a_reactor: usize::try_from(share).expect("CONNECTIONS_MAX fits"),
        descriptors: limit,
    })
}

/// `wanted` connections (0: as many as possible) within `limit` descriptors, of which so many are `reserved`.
fn connections_within(wanted: u32, limit: u64, reserved: u64) -> Result<u32, PreflightError> {
    let possible = limit.saturating_sub(reserved).min(CONNECTIONS_MAX.into());
    if possible == 0 {
        return Err(PreflightError::NoDescriptors { limit, reserved });
    }
    let wanted = u64::from(wanted);
    if wanted > possible {
        let needed = wanted + reserved;
        return Err(PreflightError::TooFewDescriptors { wanted, needed, reserved, limit, possible });
    }
    let granted = if wanted == 0 { possible } else { wanted };
    Ok(u32::try_from(granted).expect("CONNECTIONS_MAX fits a u32"))
}

/// What a server that was asked for so many connections should be told before the first comes: none of it keeps it from
/// starting.
#[must_use]
pub fn warnings(config: &Config, capacity: &Capacity) -> Vec<String> {
    let mut warnings = Vec::new();
    let wanted = u64::from(config.connections_max);
    let needed = wanted * BYTES_OF_A_CONNECTION;
    if let Some(available) = available_bytes().filter(|available| wanted > 0 && *available < needed) {
        warnings.push(format!(
            "{wanted} connections take about {} MiB of memory, and {} are available: see `culver-tune check \
             --connections {wanted}`",
            needed >> 20,
            available >> 20,
        ));
    }
    let migrates = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req");
    if capacity.reactors > 1 && migrates.is_ok_and(|value| value.trim() == "0") {
        warnings.push(
            "net.ipv4.tcp_migrate_req is 0: connections that wait at a reactor which is full are reset instead of \
             going to another (`sysctl -w net.ipv4.tcp_migrate_req=1`, or `culver-tune apply`)"
                .to_owned(),
        );
    }
    warnings
}

/// Memory that could be had without swapping (proc(5), MemAvailable).
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> Config {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Config { listen: any, ops: any, ..Config::default() }
    }

    #[test]
    fn descriptors_bound_connections() {
        assert_eq!(connections_within(0, 1024, 256).expect("some fit"), 768);
        assert_eq!(connections_within(768, 1024, 256).expect("just fits"), 768);
        assert_eq!(connections_within(0, u64::MAX, 256).expect("many fit"), CONNECTIONS_MAX);
        let error = connections_within(769, 1024, 256).expect_err("one too many").to_string();
        assert!(error.contains("ulimit -n 1025") && error.contains("--connections-max 768"), "{error}");
        assert!(matches!(connections_within(0, 256, 256), Err(PreflightError::NoDescriptors { limit: 256, .. })));
    }

    #[test]
    fn reactors_with_tables_of_their_own_hold_a_limit_each() {
        let of = |connections_max, reactors, limit| {
            let config = Config { private_fd_tables: true, connections_max, reactors, ..Config::default() };
            within_tables(&config, limit)
        };
        // One more than a fifth of ten million: 105 % of the average fits every table.
        let capacity = of(2_277_846, 0, 20_000).expect("as many reactors as it takes");
        assert_eq!((capacity.reactors, capacity.connections_max), (120, 2_277_846));
        assert_eq!(capacity.of_a_reactor, 19_932);
        let error = of(2_277_846, 100, 20_000).expect_err("too few reactors").to_string();
        assert!(error.contains("--reactors 120") && error.contains("--connections-max 1903238"), "{error}");
        let error = of(CONNECTIONS_MAX, 0, 20_000).expect_err("more than there can be").to_string();
        assert!(error.contains("at most 256"), "{error}");
        assert_eq!(of(0, 4, 20_000).expect("many fit").connections_max, 76_129);
        assert_eq!(of(8, 8, 20_000).expect("they fit").of_a_reactor, 2);
        assert!(matches!(of(0, 1, 800), Err(PreflightError::NoDescriptors { limit: 800, .. })));
    }

    #[test]
    fn held_ports_are_held_against_a_second_server() {
        let first = Ports::hold(&loopback()).expect("free ports");
        assert_ne!(first.listen.port(), 0);
        let second = Ports::hold(&Config { listen: first.listen, ..loopback() });
        assert!(matches!(second, Err(PreflightError::PortInUse { option: "--listen", .. })), "{second:?}");
    }

    #[test]
    fn reactors_share_the_held_port() {
        let ports = Ports::hold(&loopback()).expect("free ports");
        for _ in 0..3 {
            let socket = new_socket(ports.listen).expect("a socket");
            socket.set_reuse_address(true).expect("set");
            socket.set_reuse_port(true).expect("set");
            socket.bind(&ports.listen.into()).expect("the hold lets reactors in");
            socket.listen(16).expect("listens");
        }
    }

    #[test]
    fn a_listener_is_in_the_way() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("bound");
        let error = Ports::hold(&Config { ops: address, ..loopback() }).expect_err("in use").to_string();
        assert!(error.contains("in use") && error.contains("--ops"), "{error}");
        let error = Ports::hold(&Config { listen: address, ..loopback() }).expect_err("in use").to_string();
        assert!(error.contains("in use") && error.contains("--listen"), "{error}");
    }
}
