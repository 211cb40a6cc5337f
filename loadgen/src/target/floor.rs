//! The floor relay as a target: this same program, started as a process of its own and stopped with its handle.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use bytes::Bytes;
use culver_protocol::client::Credential;
use culver_protocol::id::{DeviceId, UserId};
use serde::{Deserialize, Serialize};

use super::{Sample, Target};
use crate::report::histogram::Percentiles;

/// Bytes of a relay's ticket: about what a sealed one has.
pub(crate) const TICKET_LEN: usize = 64;
/// The byte that asks a relay for a report.
pub(crate) const MARK: u8 = b'm';

/// A relay's settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct FloorSettings {
    /// One fdatasync per turn before anything is answered.
    pub(crate) sync: bool,
    /// Where the synced file goes; `None`: the temporary directory.
    pub(crate) data_dir: Option<PathBuf>,
    /// Each ACK becomes a RECEIPT to the sender.
    pub(crate) receipts: bool,
}

/// What a relay tells about itself when asked.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FloorReport {
    /// User and system time so far.
    pub(crate) cpu_us: u64,
    /// Messages relayed so far.
    pub(crate) messages: u64,
    /// Logins answered so far.
    pub(crate) logins: u64,
    /// Connections held.
    pub(crate) connections: u64,
    /// Turns of the loop so far.
    pub(crate) turns: u64,
    /// The calls since the last report.
    pub(crate) fdatasync_us: Percentiles,
}

/// A running relay. Dropping it ends the process.
pub(crate) struct Floor {
    child: Child,
    commands: ChildStdin,
    reports: BufReader<ChildStdout>,
    address: SocketAddr,
    last: FloorReport,
    _scratch: Option<tempfile::TempDir>,
}

impl Floor {
    /// Starts a relay on a port of its own choice.
    pub(crate) fn start(settings: &FloorSettings) -> Result<Self> {
        let program = std::env::current_exe().context("where is this program?")?;
        let mut command = Command::new(program);
        command.arg("relay").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut scratch = None;
        if settings.sync {
            let dir = match &settings.data_dir {
                Some(dir) => dir.clone(),
                None => scratch.insert(tempfile::tempdir().context("no temporary directory")?).path().to_owned(),
            };
            command.arg("--sync").arg("--data-dir").arg(dir);
        }
        if settings.receipts {
            command.arg("--receipts");
        }
        let mut child = command.spawn().context("cannot start the relay")?;
        let commands = child.stdin.take().expect("asked for above");
        let mut reports = BufReader::new(child.stdout.take().expect("asked for above"));
        let mut line = String::new();
        reports.read_line(&mut line).context("the relay said nothing")?;
        let address = line.trim().parse().context("the relay did not start")?;
        Ok(Self { child, commands, reports, address, last: FloorReport::default(), _scratch: scratch })
    }

    /// Asks the relay for its counters.
    pub(crate) fn report(&mut self) -> Result<FloorReport> {
        self.commands.write_all(&[MARK]).context("the relay is gone")?;
        let mut line = String::new();
        self.reports.read_line(&mut line).context("the relay said nothing")?;
        self.last = serde_json::from_str(&line).context("the relay's report cannot be read")?;
        Ok(self.last)
    }

    /// The fdatasync calls between the last two reports.
    pub(crate) fn fdatasync_us(&self) -> Percentiles {
        self.last.fdatasync_us
    }

    /// The relay's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Target for Floor {
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

impl Drop for Floor {
    fn drop(&mut self) {
        // The relay also ends by itself when its standard input closes.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What stands for a ticket at a relay: user, device, and zeros.
pub(crate) fn ticket(user: UserId, device: DeviceId) -> Bytes {
    let mut ticket = [user.0.to_be_bytes().as_slice(), &device.0.to_be_bytes()].concat();
    ticket.resize(TICKET_LEN, 0);
    ticket.into()
}
