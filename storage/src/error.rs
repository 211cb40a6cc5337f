//! What can go wrong, cut by what the caller does about it.

use std::io;
use std::path::PathBuf;

use crate::engine::Family;
use crate::value::DecodeError;

/// An engine that cannot do its work: the process must not go on as if it had.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine itself failed.
    #[error("{action} failed: {source}")]
    Failed {
        /// What was being done.
        action: &'static str,
        /// What the engine says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A row that this version cannot read.
    #[error("a row of family `{}` cannot be read: {source} (key {})", family.name(), Hex(key))]
    Row {
        /// Its family.
        family: Family,
        /// Its key.
        key: Vec<u8>,
        /// What is wrong with it.
        source: DecodeError,
    },
}

/// Why a data directory cannot be opened. Every message says what is wrong and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such directory.
    #[error("there is no data directory at {}: create one with `culver init --data-dir {}`", path.display(), path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// The directory holds no data yet.
    #[error("{} is empty: make it a data directory with `culver init --data-dir {}`", path.display(), path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// The directory belongs to something else.
    #[error("{} is not empty and is no data directory of Culver (it has no file `CULVER`): name another directory", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// It is a data directory already.
    #[error("{} is a data directory already: start it with `culver serve --data-dir {}`, or name another", path.display(), path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// A newer version of Culver wrote it.
    #[error("{} has format {found}, and this version knows formats up to {known}: use the version that wrote it, or a newer one", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// Another process works on it.
    #[error("{} is in use by {}: stop that process first, or name another directory", path.display(), holder(*pid))]
    Held {
        /// The directory.
        path: PathBuf,
        /// The process that holds it, if it wrote its id.
        pid: Option<u32>,
    },
    /// It cannot be read or written.
    #[error("cannot {action} {}: {source}: see that the directory is there, has room, and belongs to the user that runs culver", path.display())]
    Unwritable {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Its marker cannot be understood.
    #[error("{} cannot be understood ({reason}): restore this file from a backup of the directory", path.display())]
    Marker {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The log is damaged where it had been synced: acknowledged messages would be lost.
    #[error(
        "{} is damaged at byte {offset} ({reason}), and what was acknowledged after it would be lost: restore the directory from a backup, or check the disk; nothing was changed",
        file.display()
    )]
    Damaged {
        /// The log file.
        file: PathBuf,
        /// Where the damage begins.
        offset: u64,
        /// How it shows.
        reason: String,
    },
    /// The engine refuses its files.
    #[error("the volume {} does not open: {source}: restore it from a backup, or check the disk", path.display())]
    Engine {
        /// The volume.
        path: PathBuf,
        /// What the engine says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
