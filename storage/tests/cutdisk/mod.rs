//! A disk that loses its power: a small file system in memory that keeps apart what was synced and what was not, and
//! fails on command. The program obeys a line on its standard input with a line on its standard output.
//!
//! ```text
//! cut KIND                          power off: drop (nothing unsynced survives), subset (any pages of it), torn (the
//!                                   first pages of it, and a part of one). All is answered EIO until `on`
//! arm KIND WHERE FILES N            power goes off by itself at the Nth write (before it), sync (before it) or
//!                                   synced (after it, and the caller gets EIO) of log (*.log), table (*.sst), any
//! disarm                            it does not
//! state                             `ok on` or `ok off`
//! on                                power is back: what survived is there, handles from before get EIO, no fault is on
//! fail sync FILES once|always       syncs answer EIO, and what was to be synced counts as clean without being durable
//! fail write FILES eio|enospc       writes answer that
//! fail none                         they do not
//! free BYTES|any                    so much may be written beyond what is there, and statfs says so
//! short on|off                      writes take a random part of what is asked
//! slow MS                           each sync takes so long
//! stat                              `ok {…}`: what happened so far
//! ```

mod control;
mod model;
mod mount;

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use control::Disk;
use model::{Attributes, Model};

/// A directory to mount on is missing, or the kernel's side broke.
const FAILED: u8 = 1;
/// Nothing can be mounted on this machine.
pub(crate) const NO_FUSE: u8 = 4;

/// Mounts a disk, obeys `input` to its end, and unmounts. Returns the exit code.
pub(crate) fn run(at: &Path, seed: u64, input: impl BufRead, mut output: impl Write) -> u8 {
    if !at.is_dir() {
        eprintln!("cutdisk: {} is no directory: make it first", at.display());
        return FAILED;
    }
    let disk = Arc::new(Disk::new(Model::new(seed, root())));
    let mounted = missing().map_or_else(|| mount::mount(Arc::clone(&disk), at).map_err(|error| error.to_string()), Err);
    let session = match mounted {
        Ok(session) => session,
        Err(reason) => {
            eprintln!(
                "cutdisk: cannot mount on {}: {reason}: it needs /dev/fuse, fusermount3 and the right to mount",
                at.display()
            );
            return NO_FUSE;
        }
    };
    let served = serve(&disk, input, &mut output);
    unmount(at);
    // Whoever still holds a file of it is not waited for.
    std::mem::forget(session);
    match served {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("cutdisk: the one who commands is gone: {error}");
            FAILED
        }
    }
}

/// What this machine lacks, if anything.
pub(crate) fn missing() -> Option<String> {
    if !Path::new("/dev/fuse").exists() {
        return Some("/dev/fuse is not there".to_owned());
    }
    let is_there = Command::new("fusermount3").arg("--version").output().is_ok_and(|output| output.status.success());
    (!is_there).then(|| "fusermount3 is not there".to_owned())
}

fn serve(disk: &Disk, input: impl BufRead, output: &mut impl Write) -> io::Result<()> {
    writeln!(output, "ready")?;
    output.flush()?;
    for line in input.lines() {
        writeln!(output, "{}", disk.obey(&line?))?;
        output.flush()?;
    }
    Ok(())
}

fn root() -> Attributes {
    let now = SystemTime::now();
    Attributes {
        permissions: 0o755,
        user: rustix::process::geteuid().as_raw(),
        group: rustix::process::getegid().as_raw(),
        accessed: now,
        modified: now,
        changed: now,
    }
}

/// Takes the disk out of the tree, now or as soon as nobody uses it.
fn unmount(at: &Path) {
    let done = Command::new("fusermount3").args(["-u", "-z", "-q", "--"]).arg(at).status();
    if !done.is_ok_and(|status| status.success()) {
        eprintln!("cutdisk: {} is still mounted: unmount it with `fusermount3 -u -z`", at.display());
    }
}
