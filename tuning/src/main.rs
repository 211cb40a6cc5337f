//! `culver-tune`: is this machine ready for N connections?
//!
//! Owns the command line and the exit codes: 0 ready, 1 it could not be told, 2 bad usage, 3 something is missing.

mod catalogue;
mod check;
mod procfs;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::catalogue::{Plan, Role};
use crate::check::{Report, Table, check};
use crate::procfs::Procfs;

const EXIT_ERROR: u8 = 1;
const EXIT_MISSING: u8 = 3;

/// Kernel settings for the Culver messaging gateway
#[derive(Debug, Parser)]
#[command(name = "culver-tune", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What this machine needs for a number of connections, what it has, and how to mend what is missing
    #[command(after_help = "Examples:\n  \
        culver-tune check --connections 100000\n  \
        culver-tune check --connections 15000 --role both --source-ips 2 --explain\n  \
        culver-tune check --connections 1000000 --json - | jq '.findings[] | select(.enough | not)'\n\n\
        It reads /proc and changes nothing. The limits of open files are those of the shell that starts it.\n\
        Exits 0 if the machine is ready, 3 if something is missing.")]
    Check {
        /// How many connections are wanted
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        connections: u64,
        /// What is to run here
        #[arg(long, value_enum, default_value_t = Role::Server)]
        role: Role,
        /// From how many addresses the clients here connect
        #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        source_ips: u64,
        /// Say of each line by which formula it is required, and where the setting is documented
        #[arg(long)]
        explain: bool,
        /// Write the result as JSON; `-`: to standard output, which then holds nothing else
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_MISSING),
        Err(error) => {
            eprintln!("culver-tune: {error:#}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}

/// Whether the machine is ready.
fn run(arguments: Arguments) -> Result<bool> {
    let Command::Check { connections, role, source_ips, explain, json } = arguments.command;
    let plan = Plan { connections, role, source_addresses: source_ips };
    let report = check(&Procfs::new("/proc"), &plan)?;
    let json_on_stdout = json.as_deref() == Some(Path::new("-"));
    if !json_on_stdout {
        write!(io::stdout(), "{}", Table { report: &report, explain })?;
    }
    match json {
        Some(_) if json_on_stdout => write_json(io::stdout(), &report)?,
        Some(path) => {
            let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
            write_json(file, &report)?;
        }
        None => {}
    }
    Ok(report.ready)
}

fn write_json(mut out: impl Write, report: &Report) -> Result<()> {
    serde_json::to_writer_pretty(&mut out, report)?;
    writeln!(out)?;
    Ok(())
}
