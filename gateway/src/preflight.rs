//! What must hold before the server listens: free ports and enough descriptors, each with its remedy.
//!
//! Owns sockets that hold the ports, bound but not listening. Never accepts, never touches the data directory
//! (`culver_storage::layout` checks that, with remedies of its own).

use std::io;
use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use crate::config::{CONNECTIONS_MAX, Config};

/// Descriptors for everything but connections: RocksDB's files, listeners, pollers, wakers, the operators' port.
pub const DESCRIPTORS_RESERVED: u64 = 256;

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
        "{wanted} connections need {needed} file descriptors ({DESCRIPTORS_RESERVED} are for other files), but the \
         limit is {limit}. Raise it (`ulimit -n {needed}`, or LimitNOFILE={needed} in the systemd unit), or ask for \
         fewer: --connections-max {possible}."
    )]
    TooFewDescriptors {
        /// Connections asked for.
        wanted: u64,
        /// Descriptors that they need.
        needed: u64,
        /// Descriptors there can be.
        limit: u64,
        /// Connections that would fit.
        possible: u64,
    },
    /// Not even one connection fits.
    #[error(
        "the limit of {limit} file descriptors leaves none for connections ({DESCRIPTORS_RESERVED} are for other \
         files). Raise it: `ulimit -n 65536`, or LimitNOFILE=65536 in the systemd unit."
    )]
    NoDescriptors {
        /// Descriptors there can be.
        limit: u64,
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
    /// Keeps other processes off `listen` until the reactors have bound theirs, and never listens itself.
    pub listen_hold: Socket,
    /// Where operators will connect.
    pub ops_address: SocketAddr,
    /// To be listened on by [`crate::ops::Ops::spawn`].
    pub ops: Socket,
}

impl Ports {
    /// Takes both ports.
    ///
    /// # Errors
    /// One of them is in use, or is no address of this machine.
    pub fn hold(config: &Config) -> Result<Self, PreflightError> {
        let (listen, listen_hold) =
            hold_shared(config.listen).map_err(|source| explain(config.listen, "--listen", source))?;
        let (ops_address, ops) = hold_alone(config.ops).map_err(|source| explain(config.ops, "--ops", source))?;
        Ok(Self { listen, listen_hold, ops_address, ops })
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

/// How many connections there may be: the number asked for if the descriptors suffice, or as many as they allow.
/// Raises the soft limit to the hard one.
///
/// # Errors
/// Too few descriptors.
pub fn reserve_descriptors(config: &Config) -> Result<u32, PreflightError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let raised = Rlimit { current: maximum, maximum };
        let limit = maximum.unwrap_or(u64::MAX);
        setrlimit(Resource::Nofile, raised)
            .map_err(|errno| PreflightError::RaiseLimit { limit, source: errno.into() })?;
    }
    connections_within(config.connections_max, maximum.unwrap_or(u64::MAX))
}

/// `wanted` connections (0: as many as possible) within `limit` descriptors.
fn connections_within(wanted: u32, limit: u64) -> Result<u32, PreflightError> {
    let possible = limit.saturating_sub(DESCRIPTORS_RESERVED).min(CONNECTIONS_MAX.into());
    if possible == 0 {
        return Err(PreflightError::NoDescriptors { limit });
    }
    let wanted = u64::from(wanted);
    if wanted > possible {
        let needed = wanted + DESCRIPTORS_RESERVED;
        return Err(PreflightError::TooFewDescriptors { wanted, needed, limit, possible });
    }
    let granted = if wanted == 0 { possible } else { wanted };
    Ok(u32::try_from(granted).expect("CONNECTIONS_MAX fits a u32"))
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
        assert_eq!(connections_within(0, 1024).expect("some fit"), 768);
        assert_eq!(connections_within(768, 1024).expect("just fits"), 768);
        assert_eq!(connections_within(0, u64::MAX).expect("many fit"), CONNECTIONS_MAX);
        let error = connections_within(769, 1024).expect_err("one too many").to_string();
        assert!(error.contains("ulimit -n 1025") && error.contains("--connections-max 768"), "{error}");
        assert!(matches!(connections_within(0, 256), Err(PreflightError::NoDescriptors { limit: 256 })));
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
