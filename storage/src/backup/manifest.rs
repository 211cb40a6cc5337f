//! The file `BACKUP`: what a backup is, and which files it has. Written last, so that what has one is complete.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path};

use culver_protocol::id::Incarnation;
use serde::{Deserialize, Serialize};

use super::files::failed;
use super::{BackupError, BackupOrder, Origin};
use crate::layout::{self, BACKUP, VOLUMES_MAX};

/// The newest format of backups known here.
pub(super) const FORMAT: u32 = 1;
const LEN_MAX: u64 = 64 << 20;

/// What is in it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Of the backup.
    format: u32,
    /// Of the data directory.
    data_format: u32,
    /// Of the program.
    version: String,
    pub(super) taken_at_ms: u64,
    /// Of the data directory, hexadecimal.
    pub(super) incarnation: String,
    pub(super) shard_count: u16,
    pub(super) volume_of_shard: Vec<u16>,
    /// Of all files.
    pub(super) bytes: u64,
    pub(super) volumes: Vec<VolumeFiles>,
    /// Lengths of settings and keys, by their name below the directory.
    pub(super) settings: BTreeMap<String, u64>,
}

/// The files of a volume.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct VolumeFiles {
    bytes: u64,
    /// Their lengths, by name.
    pub(super) files: BTreeMap<String, u64>,
}

/// Read first, of any format.
#[derive(Debug, Deserialize)]
struct Format {
    format: u32,
    data_format: u32,
}

/// The folder of a volume within a backup.
pub(super) fn volume_name(index: usize) -> String {
    format!("volume-{index}")
}

impl VolumeFiles {
    pub(super) fn add(&mut self, name: String, len: u64) {
        self.bytes += len;
        self.files.insert(name, len);
    }
}

impl Manifest {
    pub(super) fn new(origin: &Origin, order: &BackupOrder<'_>) -> Self {
        Self {
            format: FORMAT,
            data_format: layout::FORMAT,
            version: order.version.to_owned(),
            taken_at_ms: order.taken_at_ms,
            incarnation: layout::hexadecimal(origin.incarnation),
            shard_count: origin.shard_count,
            volume_of_shard: origin.volume_of_shard.clone(),
            bytes: 0,
            volumes: Vec::new(),
            settings: BTreeMap::new(),
        }
    }

    pub(super) fn file_count(&self) -> u64 {
        self.volumes.iter().map(|volume| volume.files.len() as u64).sum::<u64>() + self.settings.len() as u64
    }

    /// Makes what is in the directory a backup: all of it must be on disk.
    pub(super) fn write(&mut self, path: &Path) -> Result<(), BackupError> {
        self.bytes = self.volumes.iter().map(|volume| volume.bytes).sum::<u64>() + self.settings.values().sum::<u64>();
        let text = serde_json::to_string_pretty(self).expect("strings and numbers are JSON");
        Ok(layout::write_whole(path, BACKUP, &text)?)
    }

    /// Reads and checks that of a backup.
    pub(super) fn read(path: &Path) -> Result<(Self, Incarnation), BackupError> {
        let file_path = path.join(BACKUP);
        let file = File::open(&file_path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BackupError::Incomplete { path: path.to_owned() },
            _ => failed("read", &file_path)(error),
        })?;
        let damaged = |reason: String| BackupError::Damaged { path: file_path.clone(), reason };
        let mut text = String::new();
        file.take(LEN_MAX).read_to_string(&mut text).map_err(|error| damaged(error.to_string()))?;
        let formats: Format = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        for (found, known) in [(formats.format, FORMAT), (formats.data_format, layout::FORMAT)] {
            if found > known {
                return Err(BackupError::Newer { path: path.to_owned(), found, known });
            }
        }
        let manifest: Self = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let incarnation = layout::from_hexadecimal(&manifest.incarnation)
            .ok_or_else(|| damaged("the incarnation is no hexadecimal number".to_owned()))?;
        manifest.check().map_err(|reason| damaged(reason.to_owned()))?;
        Ok((manifest, incarnation))
    }

    fn check(&self) -> Result<(), &'static str> {
        let count = self.volumes.len();
        if self.data_format < layout::FORMAT_VOLUMES {
            return Err("no backup was ever taken of this format");
        }
        if count == 0 || count > VOLUMES_MAX || self.shard_count == 0 {
            return Err("no shards, or none or too many volumes");
        }
        if !layout::is_spread(self.shard_count, &self.volume_of_shard, count) {
            return Err("`volume_of_shard` does not spread the shards over the volumes");
        }
        let mut names = self.volumes.iter().flat_map(|volume| volume.files.keys()).chain(self.settings.keys());
        let is_below = |name: &String| Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if !names.all(is_below) {
            return Err("a file is not below it");
        }
        Ok(())
    }
}
