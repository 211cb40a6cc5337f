//! A disk that loses its power, mounted: see `tests/cutdisk`.
//!
//! ```text
//! cutdisk MOUNTPOINT [--seed N]
//! ```

#[path = "../tests/cutdisk/mod.rs"]
mod cutdisk;

use std::path::PathBuf;
use std::process::ExitCode;

/// The command line is wrong.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match arguments(std::env::args().skip(1)) {
        Ok((at, seed)) => ExitCode::from(cutdisk::run(&at, seed, std::io::stdin().lock(), std::io::stdout().lock())),
        Err(reason) => {
            eprintln!("cutdisk: {reason}; usage: cutdisk MOUNTPOINT [--seed N]");
            ExitCode::from(USAGE)
        }
    }
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<(PathBuf, u64), String> {
    let (mut at, mut seed) = (None, 1);
    while let Some(word) = words.next() {
        if word == "--seed" {
            let number = words.next().ok_or("--seed wants a number")?;
            seed = number.parse().map_err(|_| format!("--seed wants a number, not `{number}`"))?;
        } else if word.starts_with('-') || at.is_some() {
            return Err(format!("`{word}` is not known"));
        } else {
            at = Some(PathBuf::from(word));
        }
    }
    Ok((at.ok_or("where to mount is missing")?, seed))
}
