//! The thread that looks at how much room is left on the disks. What follows from it is [`Space`]'s and the hubs' to say.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{self, RecvTimeoutError, Sender};
use culver_storage::layout::DataDir;
use rustix::fs::statvfs;
use tracing::{info, warn};

use crate::space::{Reserve, Space};

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

const MIB: u64 = 1 << 20;

/// What was last seen of the disks.
pub(super) struct Disks {
    places: Vec<Place>,
    /// What hubs go by.
    pub(super) space: Arc<Space>,
}

/// A folder whose disk is looked at.
struct Place {
    path: PathBuf,
    free_bytes: AtomicU64,
}

impl Disks {
    /// The folder and the free bytes of every volume, and of the data directory.
    pub(super) fn free_bytes(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.places.iter().map(|place| (place.path.as_path(), place.free_bytes.load(Ordering::Relaxed)))
    }
}

/// The thread. Dropping it ends it.
pub(super) struct Watch {
    disks: Arc<Disks>,
    stop: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Looks once, and from then on until it is dropped.
    pub(super) fn spawn(data_dir: &DataDir, reserve_mib: u64) -> io::Result<Self> {
        let paths = data_dir.volume_paths().iter().cloned().chain([data_dir.path().to_owned()]);
        let places: Vec<Place> = paths.map(|path| Place { path, free_bytes: AtomicU64::new(0) }).collect();
        let reserve = Reserve::new(reserve_mib.saturating_mul(MIB));
        let disks = Arc::new(Disks { places, space: Arc::default() });
        let mut look = Look { reserves: vec![reserve; disks.places.len()], disks: Arc::clone(&disks), failed: false };
        look.look();
        let (stop, stopped) = channel::bounded(0);
        let thread = thread::Builder::new().name("disks".to_owned()).spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(LOOK_EVERY) {
                look.look();
            }
        })?;
        Ok(Self { disks, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn disks(&self) -> &Arc<Disks> {
        &self.disks
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a panic ends the process");
        }
    }
}

/// How much room there is on a disk, in bytes.
pub(super) struct Room {
    /// For whoever has no privileges there.
    pub(super) free: u64,
    total: u64,
}

/// The room on the disk of a folder.
pub(super) fn room_of(path: &Path) -> rustix::io::Result<Room> {
    let found = statvfs(path)?;
    // Some file systems know no bounds, and say so with the greatest number.
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Room { free: bytes(found.f_bavail), total: bytes(found.f_blocks) })
}

/// What is remembered from one look to the next.
struct Look {
    disks: Arc<Disks>,
    /// By place.
    reserves: Vec<Reserve>,
    /// The last look did not see all of them.
    failed: bool,
}

/// One place, as it was just seen.
struct Seen<'a> {
    path: &'a Path,
    room: Room,
}

impl Look {
    fn look(&mut self) {
        let disks = Arc::clone(&self.disks);
        // The place that is short of most, if any is.
        let mut lowest: Option<Seen<'_>> = None;
        let (mut is_unseen, mut was_low) = (false, false);
        for (place, reserve) in disks.places.iter().zip(&mut self.reserves) {
            let room = match room_of(&place.path) {
                Ok(room) => room,
                Err(error) => {
                    // Whether anything can be written there the next write will tell: the last look holds until then.
                    // The others are looked at all the same.
                    if !self.failed && !is_unseen {
                        warn!(path = %place.path.display(), %error, "cannot see how much room is left on the disk");
                    }
                    is_unseen = true;
                    was_low |= reserve.is_low();
                    continue;
                }
            };
            place.free_bytes.store(room.free, Ordering::Relaxed);
            if reserve.judge(room.free) && lowest.as_ref().is_none_or(|lowest| room.free < lowest.room.free) {
                lowest = Some(Seen { path: &place.path, room });
            }
        }
        self.failed = is_unseen;
        if disks.space.set_low(lowest.is_some() || was_low) {
            self.tell(lowest.as_ref());
        }
    }

    fn tell(&self, lowest: Option<&Seen<'_>>) {
        let Some(Seen { path, room: Room { free, total } }) = lowest else {
            info!("there is room on every disk again: messages are accepted");
            return;
        };
        let reserve = self.reserves.first().copied().unwrap_or(Reserve::new(0));
        let (reserve_mib, enough_mib) = (reserve.bytes() / MIB, reserve.enough() / MIB);
        warn!(
            path = %path.display(), free_mib = free / MIB, total_mib = total / MIB, reserve_mib, enough_mib,
            "the disk has less room than the reserve ([disk] reserve_mib): senders are told to try again later, and what \
             was accepted goes on. Make room; messages are accepted again by themselves once there is enough."
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_cannot_be_seen_hides_no_other() {
        let folder = tempfile::tempdir().expect("a temporary directory can be made");
        let paths = [folder.path().join("not there"), folder.path().to_owned()];
        let places = paths.map(|path| Place { path, free_bytes: AtomicU64::new(0) }).into();
        let disks = Arc::new(Disks { places, space: Arc::default() });
        let mut look = Look { reserves: vec![Reserve::new(u64::MAX); 2], disks: Arc::clone(&disks), failed: false };
        look.look();
        assert!(look.failed && disks.space.is_low());
        look.reserves = vec![Reserve::new(0); 2];
        look.look();
        assert!(!disks.space.is_low());
        *look.reserves.first_mut().expect("two") = Reserve::new(8);
        assert!(look.reserves.first_mut().expect("two").judge(0));
        look.look();
        assert!(disks.space.is_low(), "what was last seen of it holds");
    }
}
