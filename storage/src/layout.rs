//! The data directory: its marker, its lock, its volumes. Knows no rows.
//!
//! ```text
//! DIR/CULVER     the marker: JSON with format, incarnation, shard count and volumes
//! DIR/LOCK       locked by the process that works here, and holds its id
//! DIR/volume-0/  the first volume
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use culver_protocol::id::Incarnation;
use serde::{Deserialize, Serialize};

use crate::error::OpenError;

/// The newest format known here.
pub const FORMAT: u32 = 1;
/// Shards of a new data directory.
pub const SHARD_COUNT: u16 = 64;

const MARKER: &str = "CULVER";
const LOCK: &str = "LOCK";
const MARKER_LEN_MAX: u64 = 64 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: u32,
    /// Hexadecimal, for JSON numbers are not whole beyond 2^53 everywhere.
    incarnation: String,
    shard_count: u16,
    volumes: Vec<String>,
}

/// Read first, of any format.
#[derive(Debug, Deserialize)]
struct MarkerFormat {
    format: u32,
}

/// An open data directory. It is locked until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    incarnation: Incarnation,
    shard_count: u16,
    volumes: Vec<String>,
    /// Holds the lock.
    _lock: File,
}

impl DataDir {
    /// Makes a data directory of a missing or empty one, or of one that holds only other files of `culver init`
    /// (`culver.toml`, `keys`, `dev-credentials.json`).
    ///
    /// `volumes` are the folders that its rows lie in, one a disk; none: `volume-0` below it.
    ///
    /// # Errors
    /// It is a data directory already, belongs to something else, or cannot be written.
    pub fn create(path: &Path, incarnation: Incarnation, volumes: &[PathBuf]) -> Result<(), OpenError> {
        assert!(volumes.is_empty(), "several volumes are not there yet");
        fs::create_dir_all(path).map_err(unwritable("create", path))?;
        match content(path)? {
            Content::Marked => return Err(OpenError::Exists { path: path.to_owned() }),
            Content::Foreign => return Err(OpenError::Foreign { path: path.to_owned() }),
            Content::Unmarked => {}
        }
        let volume = "volume-0".to_owned();
        let volume_path = path.join(&volume);
        fs::create_dir_all(&volume_path).map_err(unwritable("create", &volume_path))?;
        let marker = Marker {
            format: FORMAT,
            incarnation: format!("{:016x}", incarnation.0),
            shard_count: SHARD_COUNT,
            volumes: vec![volume],
        };
        let text = serde_json::to_string_pretty(&marker).expect("strings and numbers are JSON");
        // Whole or not at all: written aside, synced, renamed, and the rename synced.
        let (aside, marker_path) = (path.join("CULVER.new"), path.join(MARKER));
        let write = || {
            let mut file = File::create(&aside)?;
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&aside, &marker_path)?;
            File::open(path)?.sync_all()?;
            File::open(path.canonicalize()?.parent().unwrap_or(path))?.sync_all()
        };
        write().map_err(unwritable("write", &marker_path))
    }

    /// Opens and locks a data directory.
    ///
    /// # Errors
    /// See [`OpenError`]: each says how to mend it.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(OpenError::Foreign { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::Missing { path: path.to_owned() });
            }
            Err(error) => return Err(unwritable("open", path)(error)),
        }
        match content(path)? {
            Content::Marked => {}
            Content::Foreign => return Err(OpenError::Foreign { path: path.to_owned() }),
            Content::Unmarked => return Err(OpenError::Empty { path: path.to_owned() }),
        }
        let (marker, incarnation) = read_marker(path)?;
        let lock = lock(path)?;
        Ok(Self {
            path: path.to_owned(),
            incarnation,
            shard_count: marker.shard_count,
            volumes: marker.volumes,
            _lock: lock,
        })
    }

    /// Opens and locks a data directory that must have exactly these volumes, in this order; none: whichever it has.
    ///
    /// # Errors
    /// See [`OpenError`]: each says how to mend it.
    pub fn open_with(path: &Path, volumes: &[PathBuf]) -> Result<Self, OpenError> {
        assert!(volumes.is_empty(), "several volumes are not there yet");
        Self::open(path)
    }

    /// The volume of each shard, fixed at creation.
    #[must_use]
    pub fn volume_of_shard(&self) -> Vec<u16> {
        vec![0; usize::from(self.shard_count)]
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

    /// Where a volume is.
    ///
    /// # Panics
    /// If there is no such volume.
    #[must_use]
    pub fn volume_path(&self, index: usize) -> PathBuf {
        self.path.join(self.volumes.get(index).expect("callers stay below `volume_count`"))
    }
}

enum Content {
    /// There is a marker.
    Marked,
    /// Nothing, or nothing but what `culver init` puts beside the marker.
    Unmarked,
    /// Something else.
    Foreign,
}

/// What may be in a directory before it has its marker.
const BESIDE_MARKER: [&str; 7] =
    ["culver.toml", "keys", "dev-credentials.json", "volume-0", "CULVER.new", LOCK, "lost+found"];

fn content(path: &Path) -> Result<Content, OpenError> {
    let mut content = Content::Unmarked;
    for entry in fs::read_dir(path).map_err(unwritable("read", path))? {
        let name = entry.map_err(unwritable("read", path))?.file_name();
        if name == MARKER {
            return Ok(Content::Marked);
        }
        if !BESIDE_MARKER.iter().any(|known| name == *known) {
            content = Content::Foreign;
        }
    }
    Ok(content)
}

fn read_marker(path: &Path) -> Result<(Marker, Incarnation), OpenError> {
    let marker_path = path.join(MARKER);
    let mut text = String::new();
    let file = File::open(&marker_path).map_err(unwritable("read", &marker_path))?;
    let damaged = |reason: String| OpenError::Marker { path: marker_path.clone(), reason };
    file.take(MARKER_LEN_MAX).read_to_string(&mut text).map_err(|error| damaged(error.to_string()))?;
    let format: MarkerFormat = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if format.format > FORMAT {
        return Err(OpenError::Newer { path: path.to_owned(), found: format.format, known: FORMAT });
    }
    let marker: Marker = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    let incarnation = u64::from_str_radix(&marker.incarnation, 16)
        .map_err(|_| damaged("the incarnation is no hexadecimal number".to_owned()))?;
    if marker.shard_count == 0 || marker.volumes.is_empty() {
        return Err(damaged("no shards or no volumes".to_owned()));
    }
    Ok((marker, Incarnation(incarnation)))
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
    let write = || {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    let mut write = write;
    write().map_err(unwritable("write", &lock_path))?;
    Ok(file)
}

fn unwritable(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Unwritable { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory can be made")
    }

    /// The error, and that it says what to do.
    fn refused(path: &Path, advice: &str) -> OpenError {
        let error = DataDir::open(path).expect_err("this directory cannot be opened");
        let text = error.to_string();
        assert!(text.contains(advice), "{text}");
        error
    }

    #[test]
    fn what_was_created_opens() {
        let directory = directory();
        let path = directory.path().join("data");
        DataDir::create(&path, Incarnation(u64::MAX - 6), &[]).expect("a missing directory is made");
        let data_dir = DataDir::open(&path).expect("it was just created");
        assert_eq!(data_dir.incarnation(), Incarnation(u64::MAX - 6));
        assert_eq!((data_dir.shard_count(), data_dir.volume_count()), (64, 1));
        assert_eq!(data_dir.volume_path(0), path.join("volume-0"));
        assert!(matches!(DataDir::create(&path, Incarnation(1), &[]), Err(OpenError::Exists { .. })));
    }

    #[test]
    fn what_init_writes_first_may_be_there() {
        let directory = directory();
        assert!(fs::write(directory.path().join("culver.toml"), "").is_ok());
        assert!(matches!(refused(directory.path(), "culver init"), OpenError::Empty { .. }));
        DataDir::create(directory.path(), Incarnation(1), &[]).expect("a settings file is no obstacle");
    }

    #[test]
    fn a_creation_that_was_cut_short_is_made_good() {
        let directory = directory();
        fs::create_dir(directory.path().join("volume-0")).expect("it can be made");
        fs::write(directory.path().join("CULVER.new"), "{\"for").expect("it can be written");
        assert!(matches!(refused(directory.path(), "culver init"), OpenError::Empty { .. }));
        DataDir::create(directory.path(), Incarnation(1), &[]).expect("what is left of a creation is no obstacle");
        DataDir::open(directory.path()).expect("it was just created");
    }

    #[test]
    fn a_directory_that_cannot_be_made() {
        let directory = directory();
        let file = directory.path().join("file");
        fs::write(&file, "x").expect("it can be written");
        let made = DataDir::create(&file.join("below"), Incarnation(1), &[]);
        assert!(matches!(made, Err(OpenError::Unwritable { .. })), "{made:?}");
    }

    #[test]
    fn a_missing_directory() {
        let path = directory().path().join("none");
        assert!(matches!(refused(&path, "culver init --data-dir"), OpenError::Missing { .. }));
    }

    #[test]
    fn an_empty_directory() {
        assert!(matches!(refused(directory().path(), "culver init --data-dir"), OpenError::Empty { .. }));
    }

    #[test]
    fn a_foreign_directory() {
        let directory = directory();
        fs::write(directory.path().join("thesis.tex"), "x").expect("it can be written");
        assert!(matches!(refused(directory.path(), "name another directory"), OpenError::Foreign { .. }));
        assert!(matches!(DataDir::create(directory.path(), Incarnation(1), &[]), Err(OpenError::Foreign { .. })));
        let file = directory.path().join("thesis.tex");
        assert!(matches!(refused(&file, "name another directory"), OpenError::Foreign { .. }));
    }

    #[test]
    fn a_newer_format() {
        let directory = directory();
        fs::write(directory.path().join(MARKER), r#"{"format": 7, "unheard": ["of"]}"#).expect("it can be written");
        let error = refused(directory.path(), "use the version that wrote it");
        assert!(matches!(error, OpenError::Newer { found: 7, known: FORMAT, .. }));
    }

    #[test]
    fn a_damaged_marker() {
        for text in [
            "",
            "{",
            "{\"format\": 1}",
            "\u{0}\u{0}",
            r#"{"format":1,"incarnation":"zz","shard_count":64,"volumes":["volume-0"]}"#,
        ] {
            let directory = directory();
            fs::write(directory.path().join(MARKER), text).expect("it can be written");
            assert!(matches!(refused(directory.path(), "backup"), OpenError::Marker { .. }));
        }
    }

    #[test]
    fn a_directory_that_is_held() {
        let directory = directory();
        DataDir::create(directory.path(), Incarnation(1), &[]).expect("an empty directory is made");
        let held = DataDir::open(directory.path()).expect("it was just created");
        let pid = std::process::id();
        let error = refused(directory.path(), &format!("process {pid}: stop that process first"));
        assert!(matches!(error, OpenError::Held { pid: Some(found), .. } if found == pid));
        drop(held);
        DataDir::open(directory.path()).expect("nobody holds it any more");
    }

    #[test]
    fn a_directory_that_cannot_be_written() {
        let directory = directory();
        DataDir::create(directory.path(), Incarnation(1), &[]).expect("an empty directory is made");
        // Not by permissions, for root may write anywhere.
        fs::create_dir(directory.path().join(LOCK)).expect("it can be made");
        assert!(matches!(refused(directory.path(), "belongs to the user"), OpenError::Unwritable { .. }));
    }
}
