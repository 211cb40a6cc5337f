//! Making folders so that a power cut does not take them away again.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

/// What a folder is made with where nothing else is asked for.
const MODE: u32 = 0o777;

/// Makes a folder and what is missing above it. Each new name is durable: its own folder is synced.
pub(super) fn make(path: &Path) -> io::Result<()> {
    make_with(path, MODE)
}

/// The same, with this mode, of which the process may take something away.
pub(crate) fn make_with(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    // A relative path begins in the working directory, whose name in it is empty.
    let parent = path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    if let Some(parent) = parent {
        make_with(parent, mode)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        // Somebody else made it meanwhile; or it is no folder, and whoever looks into it says so.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    parent.map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}
