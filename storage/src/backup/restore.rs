//! A data directory made of a backup: copied, never moved or linked, and with an incarnation of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use culver_protocol::id::Incarnation;

use super::KEYS;
use super::files::{self, Made, make_folder, real, sync_folder};
use super::manifest::{Manifest, volume_name};
use crate::backup::BackupError;
use crate::layout::Folders;

/// What is asked for.
#[derive(Debug)]
pub struct RestoreOrder<'a> {
    /// The backup.
    pub from: &'a Path,
    /// The data directory to be: missing or empty.
    pub data_dir: &'a Path,
    /// The folders of its volumes, by their number, missing or empty; none: below the data directory.
    pub volumes: &'a [PathBuf],
    /// Its identity, which nothing else has or had.
    pub incarnation: Incarnation,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// When the backup was taken, in milliseconds since 1970.
    pub taken_at_ms: u64,
    /// Of the data directory that the backup was taken of.
    pub incarnation_before: Incarnation,
    /// Where the volumes are, by their number.
    pub volumes: Vec<PathBuf>,
    /// Files, settings and keys included.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Makes a data directory of a backup. All of it is on disk when this returns; its marker is written last.
///
/// # Errors
/// See [`BackupError`]. Nothing is left of it then; the backup is as it was, whatever happens.
pub fn restore(order: &RestoreOrder<'_>) -> Result<Restored, BackupError> {
    let (manifest, incarnation_before) = Manifest::read(order.from)?;
    let count = manifest.volumes.len();
    if !order.volumes.is_empty() && order.volumes.len() != count {
        let (has, given) = (count, order.volumes.len());
        return Err(BackupError::Volumes { path: order.from.to_owned(), has, given });
    }
    for path in order.volumes.iter().map(PathBuf::as_path).chain([order.data_dir]) {
        if real(path).starts_with(real(order.from)) {
            return Err(BackupError::Within { path: path.to_owned(), folder: order.from.to_owned() });
        }
    }
    let target = Made::claim(order.data_dir)?;
    let below: Vec<PathBuf> = (0..count).map(|index| order.data_dir.join(volume_name(index))).collect();
    let volumes = if order.volumes.is_empty() { &below } else { order.volumes };
    let claimed = volumes.iter().map(|volume| Made::claim(volume)).collect::<Result<Vec<_>, _>>()?;
    let folders = Folders::make(order.data_dir, volumes)?;
    let volumes = folders.volumes.clone();
    for (index, (volume, files)) in volumes.iter().zip(&manifest.volumes).enumerate() {
        copy_all(&order.from.join(volume_name(index)), volume, &files.files)?;
    }
    let has = |folder: &&str| manifest.settings.keys().any(|name| Path::new(name).starts_with(folder));
    let keys: Vec<PathBuf> = KEYS.into_iter().filter(has).map(|folder| order.data_dir.join(folder)).collect();
    keys.iter().try_for_each(|folder| make_folder(folder))?;
    copy_all(order.from, order.data_dir, &manifest.settings)?;
    keys.iter().rev().try_for_each(|folder| sync_folder(folder))?;
    let (files, Manifest { taken_at_ms, bytes, shard_count, volume_of_shard, .. }) = (manifest.file_count(), manifest);
    folders.mark(order.incarnation, shard_count, volume_of_shard)?;
    claimed.into_iter().for_each(Made::keep);
    target.keep();
    Ok(Restored { taken_at_ms, incarnation_before, volumes, files, bytes })
}

/// Copies files, which must be as long as they were.
fn copy_all(from: &Path, to: &Path, files: &BTreeMap<String, u64>) -> Result<(), BackupError> {
    for (name, len) in files {
        let source = from.join(name);
        let copied = files::copy(&source, &to.join(name), &|| false).map_err(|error| missing(error, &source))?;
        if copied != *len {
            let reason = format!("it has {copied} bytes, and had {len}");
            return Err(BackupError::Damaged { path: source, reason });
        }
    }
    sync_folder(to)
}

/// A file that the backup had when it was complete.
fn missing(error: BackupError, source: &Path) -> BackupError {
    match error {
        BackupError::File { path, source: why, .. } if path == source && why.kind() == std::io::ErrorKind::NotFound => {
            BackupError::Damaged { path, reason: "it is missing".to_owned() }
        }
        other => other,
    }
}
