//! The commands of `culver`, one per file. Each turns its flags into calls of the library and prints what people read.

mod backup;
mod init;
mod keys;
mod restore;
mod serve;
mod token;
mod verify;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

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
                  culver keys rotate --data-dir ./data         another server key, while the server runs\n  \
                  culver verify --data-dir ./data              check every invariant, with the server stopped\n  \
                  culver backup --to /backup/monday            of the running server\n  \
                  culver restore --from /backup/monday --data-dir ./restored\n\n\
                  Exit codes: 0 done, 1 failed, 2 bad usage."
)]
pub(crate) struct Culver {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Init),
    Keys(keys::Keys),
    Backup(backup::Backup),
    Restore(restore::Restore),
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

/// What was done, for scripts: the same flag for the commands that have something to say.
#[derive(Args)]
pub(crate) struct JsonArg {
    /// Say it as JSON, to this file or, without one, to standard output instead of words
    #[arg(long = "json", value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    file: Option<PathBuf>,
}

impl JsonArg {
    /// Says it as was asked for.
    fn write(&self, value: &impl Serialize, words: impl FnOnce() -> String) -> anyhow::Result<()> {
        let json = || serde_json::to_string_pretty(value).expect("numbers and strings are JSON");
        match &self.file {
            Some(file) if file.as_os_str() == "-" => return Ok(print(&json())?),
            Some(file) => {
                std::fs::write(file, json() + "\n").with_context(|| format!("cannot write {}", file.display()))?;
            }
            None => {}
        }
        Ok(print(&words())?)
    }
}

impl Culver {
    /// Runs the command that was asked for.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Init(init) => init.run(),
            Command::Keys(keys) => keys.run(),
            Command::Backup(backup) => backup.run(),
            Command::Restore(restore) => restore.run(),
            Command::Serve(serve) => serve.run(),
            Command::Token(token) => token.run(),
            Command::Verify(verify) => verify.run(),
        }
    }
}

/// This moment, in milliseconds since 1970.
fn now_ms() -> anyhow::Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(u64::try_from(since.as_millis())?)
}

/// Prints to standard output; a reader that has gone away is an error like any other, not a panic.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Bytes, for people.
fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"].into_iter().zip([10_u32, 20, 30, 40]);
    match units.take_while(|(_, bits)| bytes >> bits > 0).last() {
        Some((unit, bits)) => format!("{}.{} {unit}", bytes >> bits, ((bytes & ((1 << bits) - 1)) * 10) >> bits),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_one_digit_behind_the_point() {
        for (bytes, told) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1536 << 10, "1.5 MiB"),
            ((2 << 30) - 1, "1.9 GiB"),
            (5 << 40, "5.0 TiB"),
        ] {
            assert_eq!(size(bytes), told);
        }
    }
}
