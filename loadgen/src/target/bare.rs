//! The bare floor as a target: what a login and an idle connection cost at least on this machine. This same program,
//! started as a process of its own and stopped with its handle.

mod acceptor;
mod child;

use std::net::SocketAddr;

use anyhow::Result;
use culver_protocol::client::Credential;
use culver_protocol::id::{DeviceId, UserId};
use serde::{Deserialize, Serialize};

pub(crate) use self::child::{BareOptions, run};
use super::floor::ticket;
use super::program::Program;
use super::{Sample, Target};

/// What a bare floor tells about itself when asked.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct BareReport {
    /// User and system time of all its threads so far.
    pub(crate) cpu_us: u64,
    /// Logins answered so far.
    pub(crate) logins: u64,
    /// Connections held.
    pub(crate) connections: u64,
}

/// A running bare floor. Dropping it ends the process.
pub(crate) struct Bare(Program);

impl Bare {
    /// Starts a bare floor on a port of its own choice, with room for so many connections.
    pub(crate) fn start(connections: u64) -> Result<Self> {
        let arguments = ["bare".to_owned(), "--connections".to_owned(), connections.to_string()];
        Program::start("the bare floor", &arguments).map(Self)
    }

    /// The process of the bare floor.
    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Asks for its counters.
    pub(crate) fn report(&mut self) -> Result<BareReport> {
        self.0.report()
    }
}

impl Target for Bare {
    fn address(&self) -> SocketAddr {
        self.0.address()
    }

    fn credential(&self, user: UserId, device: DeviceId) -> Result<Credential> {
        Ok(Credential::Ticket(ticket(user, device).into()))
    }

    fn links_devices(&self) -> bool {
        false
    }

    fn sample(&mut self) -> Result<Sample> {
        let report = self.report()?;
        let rss_bytes = crate::procfs::rss_bytes(self.pid())?;
        Ok(Sample { cpu_us: report.cpu_us, rss_bytes, engine_bytes: 0, allocated_bytes: None })
    }
}
