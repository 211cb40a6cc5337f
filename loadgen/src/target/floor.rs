//! The floor relay as a target: this same program, started as a process of its own and stopped with its handle.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use culver_protocol::client::Credential;
use culver_protocol::id::{DeviceId, UserId};
use serde::{Deserialize, Serialize};

use super::program::Program;
use super::{Sample, Target};
use crate::report::histogram::Percentiles;

/// Bytes of a relay's ticket: about what a sealed one has.
pub(crate) const TICKET_LEN: usize = 64;

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
    program: Program,
    last: FloorReport,
    _scratch: Option<tempfile::TempDir>,
}

impl Floor {
    /// Starts a relay on a port of its own choice.
    pub(crate) fn start(settings: &FloorSettings) -> Result<Self> {
        let mut arguments = vec!["relay".to_owned()];
        let mut scratch = None;
        if settings.sync {
            let dir = match &settings.data_dir {
                Some(dir) => dir.clone(),
                None => scratch.insert(tempfile::tempdir().context("no temporary directory")?).path().to_owned(),
            };
            let dir = dir.into_os_string().into_string().map_err(|_| anyhow!("the folder's name is not UTF-8"))?;
            arguments.extend(["--sync".to_owned(), "--data-dir".to_owned(), dir]);
        }
        if settings.receipts {
            arguments.push("--receipts".to_owned());
        }
        let program = Program::start("the relay", &arguments)?;
        Ok(Self { program, last: FloorReport::default(), _scratch: scratch })
    }

    /// Asks the relay for its counters.
    pub(crate) fn report(&mut self) -> Result<FloorReport> {
        self.last = self.program.report()?;
        Ok(self.last)
    }

    /// The fdatasync calls between the last two reports.
    pub(crate) fn fdatasync_us(&self) -> Percentiles {
        self.last.fdatasync_us
    }

    /// The relay's process.
    pub(crate) fn pid(&self) -> u32 {
        self.program.pid()
    }
}

impl Target for Floor {
    fn address(&self) -> SocketAddr {
        self.program.address()
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

/// What stands for a ticket at a relay: user, device, and zeros.
pub(crate) fn ticket(user: UserId, device: DeviceId) -> Bytes {
    let mut ticket = [user.0.to_be_bytes().as_slice(), &device.0.to_be_bytes()].concat();
    ticket.resize(TICKET_LEN, 0);
    ticket.into()
}
