//! Key files: written whole and durable with their mode, read up to a bound, and watched for changes. Never logs what is
//! in them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::KeyError;

/// The mode of a file that holds a secret.
pub(super) const SECRET_MODE: u32 = 0o600;
/// The mode of a file that everybody may read.
pub(super) const PUBLIC_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o700;
/// Longest key file.
pub(super) const FILE_LEN_MAX: usize = 64 * 1024;
/// Most entries of a folder that are looked at.
pub(super) const FOLDER_ENTRIES_MAX: usize = 256;

const REMEDY_READ: &str = "The server's user must be able to read it.";
const REMEDY_WRITE: &str = "The directory must be writable for this user.";

/// Turns what went wrong with a file into an error that names it.
pub(super) fn failed<'a>(
    action: &'static str,
    path: &'a Path,
    remedy: &'static str,
) -> impl FnOnce(io::Error) -> KeyError + 'a {
    move |source| KeyError::File { action, path: path.to_path_buf(), source, remedy }
}

/// What is in a file, up to [`FILE_LEN_MAX`] bytes and one more: whoever gets that many knows that it is too long.
pub(super) fn read_bytes(path: &Path, remedy: &'static str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mut bytes = Zeroizing::new(Vec::new());
    let read = |bytes: &mut Vec<u8>| File::open(path)?.take(FILE_LEN_MAX as u64 + 1).read_to_end(bytes);
    read(&mut bytes).map_err(failed("read", path, remedy))?;
    Ok(bytes)
}

/// The text in a file.
pub(super) fn read(path: &Path, remedy: &'static str) -> Result<Zeroizing<String>, KeyError> {
    let bytes = read_bytes(path, remedy)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| io::ErrorKind::InvalidData.into());
    Ok(Zeroizing::new(text.map_err(failed("read", path, remedy))?.to_owned()))
}

/// The text in a file of this server's own.
pub(super) fn read_own(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    read(path, REMEDY_READ)
}

/// Writes a file so that it is there whole, durable and with its mode, or not at all.
///
/// # Errors
/// It cannot be written.
pub fn write_whole(path: &Path, text: &str, mode: u32) -> Result<(), KeyError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&aside)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        sync_parent(path)
    };
    write().map_err(failed("write", path, REMEDY_WRITE))
}

/// Removes a file for good.
pub(super) fn remove(path: &Path) -> Result<(), KeyError> {
    fs::remove_file(path).and_then(|()| sync_parent(path)).map_err(failed("remove", path, REMEDY_WRITE))
}

/// Makes a folder for its owner alone, with those that it lies in.
pub(super) fn make_folder(path: &Path) -> Result<(), KeyError> {
    let made = fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path);
    made.map_err(failed("create", path, REMEDY_WRITE))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Waits until nobody else changes the keys in `folder`; whoever has what this returns may.
pub(super) fn hold(folder: &Path) -> Result<File, KeyError> {
    let remedy = "`culver init --data-dir DIR` makes a data directory; --data-dir names it.";
    let held = File::open(folder).and_then(|file| file.lock().map(|()| file));
    held.map_err(failed("open", folder, remedy))
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    inode: u64,
    len: u64,
    /// Seconds and nanoseconds of its last change, its mode's and its name's among them.
    changed: (i64, i64),
}

/// Files, and perhaps a folder with all that is in it, of which a change is noticed.
#[derive(Debug)]
pub(super) struct Watched {
    files: Vec<PathBuf>,
    folder: Option<PathBuf>,
    seen: Vec<Stamp>,
    /// What was last said about them, if they could not be used.
    fault: Option<String>,
}

impl Watched {
    /// As they are now.
    pub(super) fn new(files: Vec<PathBuf>, folder: Option<PathBuf>) -> Self {
        let mut watched = Self { files, folder, seen: Vec::new(), fault: None };
        watched.seen = watched.look();
        watched
    }

    /// What `read` makes of them, if they have changed since they were last usable. What cannot be used is tried again
    /// at the next look, and said once.
    pub(super) fn read_if_changed<T>(&mut self, read: impl FnOnce() -> Result<T, KeyError>) -> Option<T> {
        // The look comes first: what changes while they are read shows at the next one.
        let looked = self.look();
        if looked == self.seen && self.fault.is_none() {
            return None;
        }
        self.seen = looked;
        match read() {
            Ok(read) => {
                self.fault = None;
                Some(read)
            }
            Err(error) => {
                let fault = error.to_string();
                if self.fault.as_ref() != Some(&fault) {
                    tracing::error!("the keys in memory stay as they are, for those on disk have changed and {fault}");
                }
                self.fault = Some(fault);
                None
            }
        }
    }

    fn look(&self) -> Vec<Stamp> {
        let entries = self.folder.as_ref().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten();
        let entries = entries.take(FOLDER_ENTRIES_MAX).flatten().map(|entry| entry.path());
        let mut stamps: Vec<Stamp> = self.files.iter().cloned().chain(entries).filter_map(Stamp::of).collect();
        stamps.sort_by(|left, right| left.path.cmp(&right.path));
        stamps
    }
}

impl Stamp {
    fn of(path: PathBuf) -> Option<Self> {
        let of = fs::metadata(&path).ok()?;
        Some(Self { path, inode: of.ino(), len: of.len(), changed: (of.ctime(), of.ctime_nsec()) })
    }
}
