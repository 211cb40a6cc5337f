//! Files and folders of a backup: copied, synced, and removed again where it comes to nothing.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use super::BackupError;
use crate::layout::folder;

/// Synced at a time: what waits to be written must not keep a log waiting that lies on the same disk.
const CHUNK_LEN: u64 = 8 << 20;
/// For its owner alone.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// What a new file system has in it.
const LOST_FOUND: &str = "lost+found";

/// A directory that was missing or empty, and is again if this is dropped before it is kept.
#[derive(Debug)]
pub(super) struct Made {
    path: PathBuf,
    was_there: bool,
    is_kept: bool,
}

impl Made {
    /// Makes a missing directory, or takes an empty one.
    pub(super) fn claim(path: &Path) -> Result<Self, BackupError> {
        let was_there = match fs::read_dir(path) {
            Ok(mut entries) => {
                if entries.any(|entry| entry.map_or(true, |entry| entry.file_name() != LOST_FOUND)) {
                    return Err(BackupError::NotEmpty { path: path.to_owned() });
                }
                true
            }
            // A link that leads nowhere stays: what it leads to may be a disk that is not mounted.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => false,
            Err(error) => return Err(failed("read", path)(error)),
        };
        if !was_there {
            make_folder(path)?;
        }
        Ok(Self { path: path.to_owned(), was_there, is_kept: false })
    }

    /// It stays.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }

    fn clear(&self) -> io::Result<()> {
        if !self.was_there {
            return fs::remove_dir_all(&self.path);
        }
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() == LOST_FOUND {
                continue;
            }
            if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
        }
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.is_kept {
            // There is an error on its way already; what cannot be removed is incomplete, and is taken for nothing else.
            self.clear().unwrap_or_default();
        }
    }
}

/// Makes a folder for its owner alone, with those that it lies in; each stays.
pub(super) fn make_folder(path: &Path) -> Result<(), BackupError> {
    folder::make_with(path, FOLDER_MODE).map_err(failed("create", path))
}

/// The names of all files in a folder, those of folders not among them, in order.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, BackupError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
        let entry = entry.map_err(failed("read", folder))?;
        if fs::metadata(entry.path()).is_ok_and(|of| of.is_dir()) {
            continue;
        }
        let name = entry.file_name().into_string();
        names.push(name.map_err(|name| failed("name", &folder.join(name))(io::ErrorKind::InvalidFilename.into()))?);
    }
    names.sort();
    Ok(names)
}

/// Copies a file with its mode; it is on disk when this returns, but for its entry in its folder. Says how long it is.
pub(super) fn copy(from: &Path, to: &Path, is_cancelled: &dyn Fn() -> bool) -> Result<u64, BackupError> {
    let mut source = File::open(from).map_err(failed("read", from))?;
    let of = source.metadata().map_err(failed("read", from))?;
    let mut options = File::options();
    let mut copy = options.write(true).create_new(true).mode(FILE_MODE).open(to).map_err(failed("write", to))?;
    let write_failed = |error| failed("write", to)(error);
    loop {
        if is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        let copied = io::copy(&mut (&mut source).take(CHUNK_LEN), &mut copy).map_err(write_failed)?;
        if copied == 0 {
            break;
        }
        copy.sync_data().map_err(write_failed)?;
    }
    copy.set_permissions(of.permissions()).map_err(write_failed)?;
    copy.sync_all().map_err(write_failed)?;
    copy.stream_position().map_err(write_failed)
}

/// What was made or removed in a folder stays so.
pub(super) fn sync_folder(path: &Path) -> Result<(), BackupError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("sync", path))
}

/// A path without links and without `..`, the end of which may be missing.
pub(super) fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut real = PathBuf::new();
    for part in path.components() {
        // What is missing will be made, and is no link: `..` leads to what it lies in.
        match part {
            // Above the root is the root.
            Component::ParentDir => _ = real.pop(),
            part => real.push(part),
        }
        if let Ok(found) = real.canonicalize() {
            real = found;
        }
    }
    real
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::File { action, path, source }
}
