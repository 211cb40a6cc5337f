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
    /// The directory is a backup.
    #[error("{} is a backup: make a data directory of it with `culver restore --from {} --data-dir NEW`", path.display(), path.display())]
    Backup {
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
    /// A volume is not what it should be.
    #[error("the volume {} {problem}", path.display())]
    Volume {
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: VolumeProblem,
    },
    /// It has other volumes than those named.
    #[error(
        "{} has the volume{} {}, not {}: volumes are fixed when a data directory is made, so start it with{}, or without --volume",
        path.display(), if found.len() == 1 { "" } else { "s" }, listed("", found), listed("", given), listed(" --volume ", found)
    )]
    Volumes {
        /// The directory.
        path: PathBuf,
        /// The volumes that were named.
        given: Vec<PathBuf>,
        /// Its own.
        found: Vec<PathBuf>,
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
    #[error("the volume {} does not open: {source}: {}", path.display(), remedy(&source.to_string()))]
    Engine {
        /// The volume.
        path: PathBuf,
        /// What the engine says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What to do about an engine that refuses its files, by what it says: it has no other word for a full disk.
fn remedy(said: &str) -> &'static str {
    if said.contains("No space left") || said.contains("quota exceeded") {
        "make room on its disk (what is left of a backup that was cut short has no file `BACKUP`), and start again"
    } else {
        "restore it from a backup, or check the disk"
    }
}

/// What can be wrong with a volume's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeProblem {
    /// It, or the marker in it, is not there.
    #[error(
        "is not there, or has no file `VOLUME`: mount its disk, or restore it from a backup; if it was moved, write its new place into the file `CULVER` of the data directory"
    )]
    Missing,
    /// It belongs to another data directory.
    #[error("belongs to another data directory: mount the right disk in its place")]
    Foreign,
    /// It is another volume of the same data directory.
    #[error("is volume {found} of this data directory, not {expected}: mount each disk in its own place")]
    Swapped {
        /// Which it is.
        found: u16,
        /// Which should be there.
        expected: u16,
    },
    /// A new volume holds something already.
    #[error("is not empty: name an empty folder, or one that is not there yet")]
    NotEmpty,
    /// A new volume is named twice.
    #[error("is named twice, or lies within another: name a folder for each volume")]
    Repeated,
    /// The data directory lies in it.
    #[error("holds the data directory itself: name a folder for this volume alone")]
    Around,
    /// More than there can be.
    #[error("is one too many: name at most {}", crate::layout::VOLUMES_MAX)]
    TooMany,
    /// Its path cannot be written down.
    #[error("has a path that is not UTF-8: name another folder")]
    Unnamable,
}

/// Paths behind a word each (or separated by commas, if there is none).
fn listed(word: &str, paths: &[PathBuf]) -> String {
    let separator = if word.is_empty() { ", " } else { "" };
    let paths: Vec<String> = paths.iter().map(|path| format!("{word}{}", path.display())).collect();
    paths.join(separator)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_wants_room_and_no_backup() {
        let error = |says: &str| OpenError::Engine { path: PathBuf::from("/disk"), source: says.into() }.to_string();
        let full = error("IO error: No space left on device: While appending to file: /disk/000183.sst");
        assert!(full.contains("make room") && !full.contains("restore"), "{full}");
        assert!(error("Corruption: bad magic number").contains("restore it from a backup"));
    }
}
