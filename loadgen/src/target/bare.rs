//! The bare floor as a target: what a login and an idle connection cost at least on this machine. This same program,
//! started as a process of its own and stopped with its handle.

mod acceptor;
mod child;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use culver_protocol::client::Credential;
use culver_protocol::id::{DeviceId, UserId};
use serde::{Deserialize, Serialize};

pub(crate) use self::child::{BareOptions, run};
use super::floor::{MARK, ticket};
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
pub(crate) struct Bare {
    child: Child,
    commands: ChildStdin,
    reports: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Bare {
    /// Starts a bare floor on a port of its own choice, with room for so many connections.
    pub(crate) fn start(connections: u64) -> Result<Self> {
        let program = std::env::current_exe().context("where is this program?")?;
        let mut command = Command::new(program);
        command.args(["bare", "--connections", &connections.to_string()]);
        // Whom a terminal interrupts is this program alone, which then ends the other.
        command.process_group(0);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the bare floor")?;
        let commands = child.stdin.take().expect("asked for above");
        let reports = BufReader::new(child.stdout.take().expect("asked for above"));
        // The handle comes first: whatever fails from here on ends the process too.
        let mut bare = Self { child, commands, reports, address: SocketAddr::from(([0; 4], 0)) };
        bare.address = bare.read_line()?.trim().parse().context("the bare floor did not start")?;
        Ok(bare)
    }

    /// The process of the bare floor.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks for its counters.
    pub(crate) fn report(&mut self) -> Result<BareReport> {
        self.commands.write_all(&[MARK]).context("the bare floor is gone")?;
        serde_json::from_str(&self.read_line()?).context("the bare floor's report cannot be read")
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.reports.read_line(&mut line).context("the bare floor said nothing")?;
        Ok(line)
    }
}

impl Target for Bare {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn credential(&self, user: UserId, device: DeviceId) -> Result<Credential> {
        Ok(Credential::Ticket(ticket(user, device)))
    }

    fn links_devices(&self) -> bool {
        false
    }

    fn sample(&mut self) -> Result<Sample> {
        let report = self.report()?;
        let rss_bytes = crate::procfs::rss_bytes(self.pid())?;
        Ok(Sample { cpu_us: report.cpu_us, rss_bytes, engine_bytes: 0 })
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It also ends by itself when its standard input closes.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
