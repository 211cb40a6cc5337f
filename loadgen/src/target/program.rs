//! This same program in a process of its own, as what is put under load: it says where it listens, and reports when it
//! is asked. Ends with its handle, and by itself when its standard input closes.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

/// The byte that asks for a report.
pub(crate) const MARK: u8 = b'm';

/// A running process.
pub(crate) struct Program {
    child: Child,
    commands: ChildStdin,
    reports: BufReader<ChildStdout>,
    address: SocketAddr,
    /// What it is to people.
    what: &'static str,
}

impl Program {
    /// Starts this program with these arguments.
    pub(crate) fn start(what: &'static str, arguments: &[String]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("where is this program?")?);
        // Whom a terminal interrupts is this program alone, which then ends the other.
        command.args(arguments).process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {what}"))?;
        let commands = child.stdin.take().expect("asked for above");
        let reports = BufReader::new(child.stdout.take().expect("asked for above"));
        // The handle comes first: whatever fails from here on ends the process too.
        let mut program = Self { child, commands, reports, address: SocketAddr::from(([0; 4], 0)), what };
        program.address = program.read_line()?.trim().parse().with_context(|| format!("{what} did not start"))?;
        Ok(program)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks for its counters.
    pub(crate) fn report<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.commands.write_all(&[MARK]).with_context(|| format!("{} is gone", self.what))?;
        let line = self.read_line()?;
        serde_json::from_str(&line).with_context(|| format!("the report of {} cannot be read", self.what))
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.reports.read_line(&mut line).with_context(|| format!("{} said nothing", self.what))?;
        Ok(line)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
