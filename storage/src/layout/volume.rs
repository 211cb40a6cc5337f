//! A volume's folder and the marker in it, by which a folder that is not mounted, swapped or foreign is known.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use culver_protocol::id::Incarnation;
use serde::{Deserialize, Serialize};

use super::{VOLUMES_MAX, folder, from_hexadecimal, hexadecimal, read_short, unwritable, write_whole};
use crate::error::{OpenError, VolumeProblem};

const MARKER: &str = "VOLUME";

/// What may be in the folder of a new volume.
const BESIDE_MARKER: [&str; 3] = [MARKER, "VOLUME.new", "lost+found"];

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    /// Of the data directory it belongs to, hexadecimal.
    incarnation: String,
    /// Which of its volumes it is, from 0.
    volume: u16,
}

/// Why a volume cannot be locked.
pub(super) enum Unlocked {
    /// Another process has it.
    Held,
    /// It is not what it should be.
    Error(OpenError),
}

/// Makes the folders of new volumes and sees that they are empty. Returns them as they will be found from anywhere.
pub(super) fn make_folders(volumes: &[PathBuf]) -> Result<Vec<PathBuf>, OpenError> {
    if let Some(volume) = volumes.get(VOLUMES_MAX) {
        return Err(problem(volume, VolumeProblem::TooMany));
    }
    let mut folders: Vec<PathBuf> = Vec::with_capacity(volumes.len());
    for volume in volumes {
        folder::make(volume).map_err(unwritable("create", volume))?;
        for entry in fs::read_dir(volume).map_err(unwritable("read", volume))? {
            let name = entry.map_err(unwritable("read", volume))?.file_name();
            // A marker alone is what a creation that was cut short leaves behind.
            if !BESIDE_MARKER.iter().any(|known| name == *known) {
                return Err(problem(volume, VolumeProblem::NotEmpty));
            }
        }
        let folder = volume.canonicalize().map_err(unwritable("read", volume))?;
        if folders.iter().any(|other| other.starts_with(&folder) || folder.starts_with(other)) {
            return Err(problem(volume, VolumeProblem::Repeated));
        }
        folders.push(folder);
    }
    Ok(folders)
}

/// How the data directory's marker names a volume: below the directory without it, so that both can move together.
pub(super) fn named(directory: &Path, volume: &Path) -> Result<String, OpenError> {
    let directory = directory.canonicalize().map_err(unwritable("read", directory))?;
    if directory.starts_with(volume) {
        return Err(problem(volume, VolumeProblem::Around));
    }
    let name = volume.strip_prefix(directory).unwrap_or(volume);
    name.to_str().map(str::to_owned).ok_or_else(|| problem(volume, VolumeProblem::Unnamable))
}

/// Says in its folder which volume it is.
pub(super) fn mark(folder: &Path, incarnation: Incarnation, volume: u16) -> Result<(), OpenError> {
    let marker = Marker { incarnation: hexadecimal(incarnation), volume };
    write_whole(folder, MARKER, &serde_json::to_string(&marker).expect("strings and numbers are JSON"))
}

/// Marks a volume of a time when volumes had no marker.
pub(super) fn mark_unmarked(folder: &Path, incarnation: Incarnation, volume: u16) -> Result<(), OpenError> {
    if !folder.is_dir() {
        return Err(problem(folder, VolumeProblem::Missing));
    }
    if folder.join(MARKER).exists() { Ok(()) } else { mark(folder, incarnation, volume) }
}

/// Sees that a folder holds the volume it should, and locks it.
pub(super) fn open(folder: &Path, incarnation: Incarnation, volume: u16) -> Result<File, Unlocked> {
    let path = folder.join(MARKER);
    let file = File::open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unlocked::Error(problem(folder, VolumeProblem::Missing)),
        _ => Unlocked::Error(unwritable("read", &path)(error)),
    })?;
    check(&path, folder, incarnation, volume).map_err(Unlocked::Error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Unlocked::Held),
        Err(TryLockError::Error(error)) => Err(Unlocked::Error(unwritable("lock", &path)(error))),
    }
}

fn check(path: &Path, folder: &Path, incarnation: Incarnation, volume: u16) -> Result<(), OpenError> {
    let damaged = |reason: String| OpenError::Marker { path: path.to_owned(), reason };
    let marker: Marker = serde_json::from_str(&read_short(path)?).map_err(|error| damaged(error.to_string()))?;
    let found = from_hexadecimal(&marker.incarnation)
        .ok_or_else(|| damaged("the incarnation is no hexadecimal number".to_owned()))?;
    if found != incarnation {
        return Err(problem(folder, VolumeProblem::Foreign));
    }
    if marker.volume != volume {
        return Err(problem(folder, VolumeProblem::Swapped { found: marker.volume, expected: volume }));
    }
    Ok(())
}

/// Whether two lists name the same folders, in any order.
pub(super) fn are_same(left: &[PathBuf], right: &[PathBuf]) -> bool {
    let real = |paths: &[PathBuf]| {
        let mut paths: Vec<PathBuf> = paths.iter().map(|path| absolute(path)).collect();
        paths.sort_unstable();
        paths
    };
    real(left) == real(right)
}

/// Whether a volume's folder is `path` or lies below it.
pub(super) fn is_within(volume: &Path, path: &Path) -> bool {
    absolute(volume).starts_with(absolute(path))
}

/// As it is found from anywhere; a folder that is not there, as it is named.
fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

fn problem(path: &Path, problem: VolumeProblem) -> OpenError {
    OpenError::Volume { path: path.to_owned(), problem }
}
