//! The data directory: its marker, its lock, its volumes. Knows no rows.
//!
//! ```text
//! DIR/CULVER        the marker: JSON with format, incarnation, shard count, volumes, and the volume of each shard
//! DIR/LOCK          locked by the process that works here, and holds its id
//! VOLUME-DIR/       a volume: DIR/volume-0, or folders on other disks
//! VOLUME-DIR/VOLUME its marker: JSON with the incarnation and which volume it is; locked with the directory
//! ```
//!
//! The volumes and the volume of each shard are fixed when the directory is made. Format 1 had one volume without a
//! marker, format 2 no keys and names of devices; both become format 3 when they are opened.

pub(crate) mod folder;
mod volume;

#[cfg(test)]
mod tests;

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use culver_protocol::id::Incarnation;
use serde::{Deserialize, Serialize};

use crate::error::OpenError;
use volume::Unlocked;

/// The newest format known here: user rows of version 3, which hold keys of devices, and rows with their names.
pub const FORMAT: u32 = 3;
/// The first with several volumes, and with backups.
pub(crate) const FORMAT_VOLUMES: u32 = 2;
/// Shards of a new data directory.
pub const SHARD_COUNT: u16 = 64;
/// The most volumes: each needs a hub of its own.
pub const VOLUMES_MAX: usize = crate::topology::HUBS_MAX as usize;

const MARKER: &str = "CULVER";
const LOCK: &str = "LOCK";
/// What a backup has in the place of the marker: see [`crate::backup`], where there is an engine to take one of.
pub(crate) const BACKUP: &str = "BACKUP";
const VOLUME_0: &str = "volume-0";
const MARKER_LEN_MAX: u64 = 64 * 1024;

const _: () = assert!(VOLUMES_MAX <= SHARD_COUNT as usize);

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: u32,
    /// Hexadecimal, for JSON numbers are not whole beyond 2^53 everywhere.
    incarnation: String,
    shard_count: u16,
    /// Below the directory, or absolute.
    volumes: Vec<String>,
    /// Not in format 1, which has one volume.
    #[serde(default)]
    volume_of_shard: Vec<u16>,
}

/// Read first, of any format.
#[derive(Debug, Deserialize)]
struct MarkerFormat {
    format: u32,
}

/// An open data directory. It is locked until this is dropped, and so are its volumes.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    incarnation: Incarnation,
    shard_count: u16,
    volumes: Vec<PathBuf>,
    volume_of_shard: Vec<u16>,
    /// Hold the locks.
    _locks: Vec<File>,
}

impl DataDir {
    /// Makes a data directory of a missing or empty one, or of one that holds only other files of `culver init`
    /// (`culver.toml`, `keys`, `dev-credentials.json`). `volumes` are the folders that its rows lie in, missing or
    /// empty ones; none: `volume-0` below it. The shards are dealt to them in turn.
    ///
    /// # Errors
    /// It is a data directory already, belongs to something else, or cannot be written; or a volume is no empty folder.
    pub fn create(path: &Path, incarnation: Incarnation, volumes: &[PathBuf]) -> Result<(), OpenError> {
        folder::make(path).map_err(unwritable("create", path))?;
        match content(path, volumes)? {
            Content::Marked => return Err(OpenError::Exists { path: path.to_owned() }),
            Content::Backup => return Err(OpenError::Backup { path: path.to_owned() }),
            Content::Foreign => return Err(OpenError::Foreign { path: path.to_owned() }),
            Content::Unmarked => {}
        }
        let default = [path.join(VOLUME_0)];
        let folders = Folders::make(path, if volumes.is_empty() { &default } else { volumes })?;
        let count = u16::try_from(folders.volumes.len()).expect("there are at most `VOLUMES_MAX`");
        folders.mark(incarnation, SHARD_COUNT, (0..SHARD_COUNT).map(|shard| shard % count).collect())
    }

    /// Opens and locks a data directory, whichever volumes it has.
    ///
    /// # Errors
    /// See [`OpenError`]: each says how to mend it.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, &[])
    }

    /// Opens and locks a data directory that must have exactly these volumes, in any order; none: whichever it has.
    ///
    /// # Errors
    /// See [`OpenError`]: each says how to mend it.
    pub fn open_with(path: &Path, volumes: &[PathBuf]) -> Result<Self, OpenError> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(OpenError::Foreign { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::Missing { path: path.to_owned() });
            }
            Err(error) => return Err(unwritable("open", path)(error)),
        }
        match content(path, volumes)? {
            Content::Marked => {}
            Content::Backup => return Err(OpenError::Backup { path: path.to_owned() }),
            Content::Foreign => return Err(OpenError::Foreign { path: path.to_owned() }),
            Content::Unmarked => return Err(OpenError::Empty { path: path.to_owned() }),
        }
        // Before the lock, so that a directory that is not ours to open is left as it is; and again below it.
        Marker::read(path)?;
        let mut locks = vec![lock(path)?];
        let (mut marker, incarnation) = Marker::read(path)?;
        let folders: Vec<PathBuf> = marker.volumes.iter().map(|volume| path.join(volume)).collect();
        if !volumes.is_empty() && !volume::are_same(volumes, &folders) {
            return Err(OpenError::Volumes { path: path.to_owned(), given: volumes.to_vec(), found: folders });
        }
        if marker.format < FORMAT {
            marker.migrate(path, &folders, incarnation)?;
        }
        for (index, folder) in (0..).zip(&folders) {
            locks.push(volume::open(folder, incarnation, index).map_err(|unlocked| match unlocked {
                Unlocked::Held => OpenError::Held { path: folder.clone(), pid: None },
                Unlocked::Error(error) => error,
            })?);
        }
        Ok(Self {
            path: path.to_owned(),
            incarnation,
            shard_count: marker.shard_count,
            volumes: folders,
            volume_of_shard: marker.volume_of_shard,
            _locks: locks,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its identity: a restored backup gets another.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Shards, fixed at creation.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.shard_count
    }

    /// Volumes, fixed at creation.
    #[must_use]
    pub fn volume_count(&self) -> usize {
        self.volumes.len()
    }

    /// The volume of each shard, fixed at creation.
    #[must_use]
    pub fn volume_of_shard(&self) -> Vec<u16> {
        self.volume_of_shard.clone()
    }

    /// Where the volumes are, by their number.
    #[must_use]
    pub fn volume_paths(&self) -> &[PathBuf] {
        &self.volumes
    }

    /// Where a volume is.
    ///
    /// # Panics
    /// If there is no such volume.
    #[must_use]
    pub fn volume_path(&self, index: usize) -> PathBuf {
        self.volumes.get(index).expect("callers stay below `volume_count`").clone()
    }
}

/// The empty folders of a data directory that has no marker yet.
#[derive(Debug)]
pub(crate) struct Folders {
    path: PathBuf,
    pub(crate) volumes: Vec<PathBuf>,
    names: Vec<String>,
}

impl Folders {
    /// Makes the folders of a directory that is there and of its volumes.
    pub(crate) fn make(path: &Path, volumes: &[PathBuf]) -> Result<Self, OpenError> {
        let volumes = volume::make_folders(volumes)?;
        let names = volumes.iter().map(|volume| volume::named(path, volume)).collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_owned(), volumes, names })
    }

    /// Makes it a data directory: each volume gets its marker, and last of all the directory.
    pub(crate) fn mark(
        self,
        incarnation: Incarnation,
        shard_count: u16,
        volume_of_shard: Vec<u16>,
    ) -> Result<(), OpenError> {
        for (index, volume) in (0..).zip(&self.volumes) {
            volume::mark(volume, incarnation, index)?;
        }
        let incarnation = hexadecimal(incarnation);
        Marker { format: FORMAT, incarnation, shard_count, volumes: self.names, volume_of_shard }.write(&self.path)
    }
}

/// Whether every shard lies on one of so many volumes, and no volume is without.
pub(crate) fn is_spread(shard_count: u16, volume_of_shard: &[u16], volumes: usize) -> bool {
    volume_of_shard.len() == usize::from(shard_count)
        && volume_of_shard.iter().all(|volume| usize::from(*volume) < volumes)
        && (0..volumes).all(|volume| volume_of_shard.iter().any(|of| usize::from(*of) == volume))
}

impl Marker {
    fn read(path: &Path) -> Result<(Self, Incarnation), OpenError> {
        let marker_path = path.join(MARKER);
        let text = read_short(&marker_path)?;
        let damaged = |reason: String| OpenError::Marker { path: marker_path.clone(), reason };
        let format: MarkerFormat = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if format.format > FORMAT {
            return Err(OpenError::Newer { path: path.to_owned(), found: format.format, known: FORMAT });
        }
        let marker: Self = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let incarnation = from_hexadecimal(&marker.incarnation)
            .ok_or_else(|| damaged("the incarnation is no hexadecimal number".to_owned()))?;
        let count = marker.volumes.len();
        if marker.shard_count == 0 || count == 0 || count > VOLUMES_MAX {
            return Err(damaged("no shards, or none or too many volumes".to_owned()));
        }
        let is_spread = is_spread(marker.shard_count, &marker.volume_of_shard, count);
        if marker.format >= FORMAT_VOLUMES && !is_spread {
            return Err(damaged("`volume_of_shard` does not spread the shards over the volumes".to_owned()));
        }
        if marker.format < FORMAT_VOLUMES && count > 1 {
            return Err(damaged("format 1 has one volume".to_owned()));
        }
        Ok((marker, incarnation))
    }

    fn write(&self, path: &Path) -> Result<(), OpenError> {
        let text = serde_json::to_string_pretty(self).expect("strings and numbers are JSON");
        write_whole(path, MARKER, &text)
    }

    /// Makes an earlier format this one. Rows need no pass: those that change are written anew when they do.
    fn migrate(&mut self, path: &Path, folders: &[PathBuf], incarnation: Incarnation) -> Result<(), OpenError> {
        if self.format < FORMAT_VOLUMES {
            for (index, folder) in (0..).zip(folders) {
                volume::mark_unmarked(folder, incarnation, index)?;
            }
            self.volume_of_shard = vec![0; usize::from(self.shard_count)];
        }
        self.format = FORMAT;
        self.write(path)
    }
}

enum Content {
    /// There is a marker.
    Marked,
    /// Nothing, or nothing but what `culver init` puts beside the marker.
    Unmarked,
    /// A backup, or something of one.
    Backup,
    /// Something else.
    Foreign,
}

/// What may be in a directory before it has its marker.
const BESIDE_MARKER: [&str; 7] =
    ["culver.toml", "keys", "dev-credentials.json", VOLUME_0, "CULVER.new", LOCK, "lost+found"];

/// What a directory is. Its volumes, if they are to lie in it, are no strangers to it.
fn content(path: &Path, volumes: &[PathBuf]) -> Result<Content, OpenError> {
    let mut content = Content::Unmarked;
    for entry in fs::read_dir(path).map_err(unwritable("read", path))? {
        let entry = entry.map_err(unwritable("read", path))?;
        let name = entry.file_name();
        if name == MARKER {
            return Ok(Content::Marked);
        }
        if name == BACKUP {
            return Ok(Content::Backup);
        }
        let is_known = BESIDE_MARKER.iter().any(|known| name == *known);
        if !is_known && !volumes.iter().any(|volume| volume::is_within(volume, &entry.path())) {
            content = Content::Foreign;
        }
    }
    Ok(content)
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = path.join(LOCK);
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&lock_path).map_err(unwritable("write", &lock_path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.take(32).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(OpenError::Held { path: path.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(unwritable("lock", &lock_path)(error)),
    }
    let mut write = || {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write().map_err(unwritable("write", &lock_path))?;
    Ok(file)
}

/// Reads a marker's text, which is never long.
fn read_short(path: &Path) -> Result<String, OpenError> {
    let mut text = String::new();
    let file = File::open(path).map_err(unwritable("read", path))?;
    let damaged = |error: io::Error| OpenError::Marker { path: path.to_owned(), reason: error.to_string() };
    file.take(MARKER_LEN_MAX).read_to_string(&mut text).map_err(damaged)?;
    Ok(text)
}

/// Writes a file whole or not at all: aside, synced, renamed, and the rename synced.
pub(crate) fn write_whole(folder: &Path, name: &str, text: &str) -> Result<(), OpenError> {
    let (aside, path) = (folder.join(format!("{name}.new")), folder.join(name));
    let write = || {
        let mut file = File::create(&aside)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&aside, &path)?;
        File::open(folder)?.sync_all()?;
        // The folder itself may be new.
        File::open(folder.canonicalize()?.parent().unwrap_or(folder))?.sync_all()
    };
    write().map_err(unwritable("write", &path))
}

pub(crate) fn hexadecimal(incarnation: Incarnation) -> String {
    format!("{:016x}", incarnation.0)
}

pub(crate) fn from_hexadecimal(text: &str) -> Option<Incarnation> {
    u64::from_str_radix(text, 16).ok().map(Incarnation)
}

pub(crate) fn unwritable(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Unwritable { action, path, source }
}
