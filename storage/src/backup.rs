//! Backups of a data directory, and data directories made of backups. Knows no rows.
//!
//! ```text
//! DIR/BACKUP               written and synced last: without it there is no backup. JSON: see `manifest.rs`
//! DIR/volume-N/            a checkpoint of volume N, without its marker
//! DIR/keys/  DIR/culver.toml  DIR/dev-credentials.json      where the data directory has them
//! VOLUME-DIR/backup-under-way/   while a backup is taken: the checkpoint, before it is brought to DIR
//! ```
//!
//! **The cut.** All checkpoints are taken while the gate keeps every writer between two batches. What a volume holds of
//! another's was durable there before, so it is in the other's checkpoint too; and what was answered was durable, so it
//! is in its own. See docs/decisions/007-backups.md.
//!
//! A backup has no `CULVER`: nobody can start it by mistake and change it, or go on under the incarnation of the
//! directory that it was taken of. Restoring copies it and gives the copy another incarnation.

mod error;
mod files;
mod manifest;
mod restore;

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use culver_protocol::id::Incarnation;
use serde::{Deserialize, Serialize};

pub use self::error::BackupError;
use self::files::{Made, failed, real, sync_folder};
use self::manifest::{Manifest, VolumeFiles};
pub use self::restore::{RestoreOrder, Restored, restore};
use crate::error::{EngineError, OpenError};
use crate::gate::Gate;
use crate::layout::{self, DataDir};
use crate::rocks::RocksEngine;

/// Where a volume's checkpoint lies until it has been brought away: in the volume, for files can be linked only within
/// a file system.
const UNDER_WAY: &str = "backup-under-way";
/// The engine's own name for a checkpoint that is being made.
const UNDER_WAY_UNFINISHED: &str = "backup-under-way.tmp";
/// How often what is in memory is written out before writers are held: the second time it is what came during the first.
const FLUSHES: usize = 2;
/// What belongs to a data directory and is copied where it is there; and all files that are in the folders of keys.
const BESIDE_MARKER: [&str; 2] = ["culver.toml", "dev-credentials.json"];
/// Each comes after the one that it lies in.
const KEYS: [&str; 2] = ["keys", "keys/server"];

/// What a backup is taken of.
#[derive(Clone, Debug)]
pub struct Origin {
    data_dir: PathBuf,
    incarnation: Incarnation,
    shard_count: u16,
    volume_of_shard: Vec<u16>,
    volumes: Vec<PathBuf>,
}

impl Origin {
    /// A data directory.
    #[must_use]
    pub fn of(data_dir: &DataDir) -> Self {
        Self {
            data_dir: data_dir.path().to_owned(),
            incarnation: data_dir.incarnation(),
            shard_count: data_dir.shard_count(),
            volume_of_shard: data_dir.volume_of_shard(),
            volumes: data_dir.volume_paths().to_vec(),
        }
    }

    /// Where its volumes are, by their number.
    #[must_use]
    pub fn volumes(&self) -> &[PathBuf] {
        &self.volumes
    }
}

/// What is asked for.
pub struct BackupOrder<'a> {
    /// Where to: a missing or empty directory.
    pub to: &'a Path,
    /// Now, in milliseconds since 1970.
    pub taken_at_ms: u64,
    /// The version of the program.
    pub version: &'a str,
    /// Looked at now and then: whether to break it off.
    pub is_cancelled: &'a (dyn Fn() -> bool + Sync),
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackedUp {
    /// Where it is.
    pub to: PathBuf,
    /// When it was asked for, in milliseconds since 1970: what was acknowledged by then is in it.
    pub taken_at_ms: u64,
    /// The incarnation it was taken of, hexadecimal.
    pub incarnation: String,
    /// Volumes.
    pub volumes: usize,
    /// Files, settings and keys included.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of those that are links to files of the data directory, and take no room of their own yet.
    pub bytes_linked: u64,
    /// How long writers were held, in microseconds.
    pub held_us: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// Takes a backup of open volumes, whose writers all pass `gate`. All of it is on disk when this returns.
///
/// # Errors
/// See [`BackupError`]. Nothing is left of it then, and the volumes are as they were.
pub fn take(
    origin: &Origin,
    volumes: &[Arc<RocksEngine>],
    gate: &Gate,
    order: &BackupOrder<'_>,
) -> Result<BackedUp, BackupError> {
    assert_eq!(origin.volumes.len(), volumes.len(), "the volumes of this data directory");
    let began = Instant::now();
    refuse_within(origin, order.to)?;
    let target = Made::claim(order.to)?;
    for _ in 0..FLUSHES {
        for volume in volumes {
            order.go_on()?;
            volume.flush()?;
        }
    }
    let checkpoints = origin.volumes.iter().map(|volume| Checkpoint::begin(volume)).collect::<Result<Vec<_>, _>>()?;
    order.go_on()?;
    let held_for = take_checkpoints(volumes, &checkpoints, gate)?;
    let mut manifest = Manifest::new(origin, order);
    let mut bytes_linked = 0;
    for (index, checkpoint) in checkpoints.into_iter().enumerate() {
        let (files, linked) = bring(&checkpoint, &order.to.join(manifest::volume_name(index)), order)?;
        manifest.volumes.push(files);
        bytes_linked += linked;
        checkpoint.remove()?;
    }
    copy_settings(&origin.data_dir, order, &mut manifest)?;
    sync_folder(order.to)?;
    manifest.write(order.to)?;
    target.keep();
    Ok(BackedUp {
        to: order.to.to_owned(),
        taken_at_ms: order.taken_at_ms,
        incarnation: manifest.incarnation.clone(),
        volumes: manifest.volumes.len(),
        files: manifest.file_count(),
        bytes: manifest.bytes,
        bytes_linked,
        held_us: u64::try_from(held_for.as_micros()).unwrap_or(u64::MAX),
        took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// Removes what a backup that was cut short has left in a volume that is not open: it keeps files that have been merged.
///
/// # Errors
/// It cannot be removed.
pub(crate) fn clear_leftovers(volume: &Path) -> Result<(), OpenError> {
    for name in [UNDER_WAY, UNDER_WAY_UNFINISHED] {
        let path = volume.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(layout::unwritable("remove", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

impl BackupOrder<'_> {
    fn go_on(&self) -> Result<(), BackupError> {
        if (self.is_cancelled)() { Err(BackupError::Cancelled) } else { Ok(()) }
    }
}

/// Whether a path, the end of which may be missing, lies below a folder, or is it; whatever links and `..` are in them.
#[must_use]
pub fn is_within(path: &Path, folder: &Path) -> bool {
    real(path).starts_with(real(folder))
}

/// A backup on what it is a backup of would go with it, and be backed up by the next.
fn refuse_within(origin: &Origin, to: &Path) -> Result<(), BackupError> {
    for folder in origin.volumes.iter().chain([&origin.data_dir]) {
        if is_within(to, folder) {
            return Err(BackupError::Within { path: to.to_owned(), folder: folder.clone() });
        }
    }
    Ok(())
}

/// Takes the checkpoints of all volumes, side by side, and says how long writers had to wait for that.
fn take_checkpoints(
    volumes: &[Arc<RocksEngine>],
    checkpoints: &[Checkpoint],
    gate: &Gate,
) -> Result<Duration, EngineError> {
    let closing = Instant::now();
    let taken: Result<(), EngineError> = gate.hold(|| {
        thread::scope(|scope| {
            let take = |(volume, checkpoint): (&Arc<RocksEngine>, &Checkpoint)| {
                let (volume, path) = (Arc::clone(volume), checkpoint.path.clone());
                scope.spawn(move || volume.checkpoint(&path))
            };
            let threads: Vec<_> = volumes.iter().zip(checkpoints).map(take).collect();
            // All of them, whatever the first says.
            let taken: Vec<_> =
                threads.into_iter().map(|thread| thread.join().expect("a panic ends the process")).collect();
            taken.into_iter().collect()
        })
    });
    taken.map(|()| closing.elapsed())
}

/// A volume's checkpoint, removed when this is dropped.
struct Checkpoint {
    volume: PathBuf,
    path: PathBuf,
}

impl Checkpoint {
    fn begin(volume: &Path) -> Result<Self, OpenError> {
        clear_leftovers(volume)?;
        Ok(Self { volume: volume.to_owned(), path: volume.join(UNDER_WAY) })
    }

    fn remove(self) -> Result<(), OpenError> {
        clear_leftovers(&self.volume)
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        // What cannot be removed now is removed before the volume is opened again.
        clear_leftovers(&self.volume).unwrap_or_default();
    }
}

/// Brings a checkpoint to its place. Says which files there are, and the bytes of those that are links.
fn bring(checkpoint: &Checkpoint, to: &Path, order: &BackupOrder<'_>) -> Result<(VolumeFiles, u64), BackupError> {
    files::make_folder(to)?;
    let (mut brought, mut linked) = (VolumeFiles::default(), 0);
    for name in files::names(&checkpoint.path)? {
        order.go_on()?;
        let (from, to) = (checkpoint.path.join(&name), to.join(&name));
        // Tables never change. What else there is could be a link already, to a file that the volume goes on with.
        let is_table = from.extension().is_some_and(|extension| extension == "sst");
        let len = if is_table && fs::hard_link(&from, &to).is_ok() {
            let len = fs::metadata(&to).map_err(failed("read", &to))?.len();
            linked += len;
            len
        } else {
            files::copy(&from, &to, order.is_cancelled)?
        };
        brought.add(name, len);
    }
    sync_folder(to)?;
    Ok((brought, linked))
}

/// Copies settings and keys.
fn copy_settings(data_dir: &Path, order: &BackupOrder<'_>, manifest: &mut Manifest) -> Result<(), BackupError> {
    let mut names: Vec<String> = Vec::new();
    names.extend(BESIDE_MARKER.iter().filter(|name| data_dir.join(name).exists()).map(|name| (*name).to_owned()));
    let folders: Vec<&str> = KEYS.into_iter().filter(|folder| data_dir.join(folder).exists()).collect();
    for folder in &folders {
        files::make_folder(&order.to.join(folder))?;
        // What is being written has this ending.
        let keys = files::names(&data_dir.join(folder))?.into_iter().filter(|name| !name.ends_with(".new"));
        names.extend(keys.map(|name| format!("{folder}/{name}")));
    }
    for name in names {
        let len = files::copy(&data_dir.join(&name), &order.to.join(&name), order.is_cancelled)?;
        manifest.settings.insert(name, len);
    }
    folders.into_iter().rev().try_for_each(|folder| sync_folder(&order.to.join(folder)))
}
