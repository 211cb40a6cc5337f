//! The commands of `culver`, one per file. Each turns its flags into calls of the library and prints what people read.

mod init;
mod serve;
mod token;
mod verify;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// The Culver messaging gateway.
#[derive(Parser)]
#[command(
    name = "culver",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
                  culver serve --data-dir ./data               start on loopback; an empty directory is initialised\n  \
                  culver token --data-dir ./data --user 7 --device 1\n  \
                  culver verify --data-dir ./data              check every invariant, with the server stopped\n\n\
                  Exit codes: 0 done, 1 failed, 2 bad usage."
)]
pub(crate) struct Culver {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Init),
    Serve(serve::Serve),
    Token(token::Token),
    Verify(verify::Verify),
}

/// Where the data is: the same flag for every command.
#[derive(Args)]
pub(crate) struct DataDirArg {
    /// The data directory
    #[arg(long = "data-dir", value_name = "DIR", default_value = "culver-data")]
    path: PathBuf,
}

/// Where its rows are: the same flag for the commands that may make a data directory.
#[derive(Args)]
pub(crate) struct VolumesArg {
    /// A folder for a share of the rows, one for each disk; fixed when the data directory is made [default:
    /// DIR/volume-0]
    #[arg(long = "volume", value_name = "DIR")]
    volumes: Vec<PathBuf>,
}

impl Culver {
    /// Runs the command that was asked for.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Init(init) => init.run(),
            Command::Serve(serve) => serve.run(),
            Command::Token(token) => token.run(),
            Command::Verify(verify) => verify.run(),
        }
    }
}

/// Prints to standard output; a reader that has gone away is an error like any other, not a panic.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}
