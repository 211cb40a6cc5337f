//! Why there is no backup, or no data directory made of one.

use std::io;
use std::path::PathBuf;

use crate::error::{EngineError, OpenError};

/// Every message says what is wrong and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// What is to be made is there already.
    #[error("{} is not empty: name an empty directory, or one that is not there yet", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The backup would lie in what it is a backup of.
    #[error("{} lies within {}: name a directory outside it, best on another disk", path.display(), folder.display())]
    Within {
        /// The directory.
        path: PathBuf,
        /// The data directory, or a volume.
        folder: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}: {}", path.display(), remedy(source))]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It was broken off.
    #[error("it was broken off, and what there was of it is removed")]
    Cancelled,
    /// There is no complete backup.
    #[error(
        "{} is no complete backup (it has no file `BACKUP`, which is written last): name another, or take one with `culver backup --to DIR`",
        path.display()
    )]
    Incomplete {
        /// The directory.
        path: PathBuf,
    },
    /// A newer version of Culver wrote it.
    #[error("{} has format {found}, and this version knows formats up to {known}: restore it with the version that wrote it, or a newer one", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// It is not as it was made.
    #[error("{} is damaged ({reason}): restore another backup, or copy this one again from where it came from", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It has more or fewer volumes than were named.
    #[error("{} has {} and {given} were named: name a folder for each with --volume, or none", path.display(), count(*has))]
    Volumes {
        /// The backup.
        path: PathBuf,
        /// Its volumes.
        has: usize,
        /// Those named.
        given: usize,
    },
    /// A volume failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A directory cannot be made or opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl BackupError {
    /// Whether something else was asked for than can be done; else it was tried and failed.
    #[must_use]
    pub fn is_bad_request(&self) -> bool {
        matches!(self, Self::NotEmpty { .. } | Self::Within { .. } | Self::Incomplete { .. } | Self::Volumes { .. })
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room there, or name a directory on another disk"
        }
        _ => "see that the directory is there, has room, and belongs to the user that runs culver",
    }
}

fn count(volumes: usize) -> String {
    if volumes == 1 { "1 volume".to_owned() } else { format!("{volumes} volumes") }
}
