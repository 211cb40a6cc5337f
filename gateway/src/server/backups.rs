//! Backups of the running server: asked for by the operators' port, taken on a thread of its own.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use culver_storage::backup::{self, BackedUp, BackupError, BackupOrder, Origin};
use culver_storage::engine::Engine as _;
use culver_storage::gate::Gate;
use culver_storage::layout::DataDir;
use culver_storage::rocks::RocksEngine;
use tracing::{info, warn};

use super::disks::room_of;
use crate::clock::{Clock as _, SystemClock};
use crate::ops::Refusal;
use crate::reactor::thread::Stage;

/// What must be left on a volume beyond what is to be written to it.
const ROOM_MIN: u64 = 64 << 20;

/// What backups are taken of.
pub(super) struct Backups {
    origin: Origin,
    /// Folders below which they may be written; none: anywhere.
    dirs: Vec<PathBuf>,
    /// Not kept open by this: the server closes them last of all.
    engines: Vec<Weak<RocksEngine>>,
    gate: Gate,
    stage: Arc<Stage>,
    taken: AtomicU64,
    failed: AtomicU64,
    last_ms: AtomicU64,
    held_us: AtomicU64,
}

/// What has become of backups since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    pub(super) taken: u64,
    pub(super) failed: u64,
    pub(super) last_ms: u64,
    pub(super) held_us: u64,
}

impl Backups {
    /// Backups of these volumes, whose writers pass this gate.
    pub(super) fn new(
        data_dir: &DataDir,
        dirs: &[PathBuf],
        engines: &[Arc<RocksEngine>],
        gate: Gate,
        stage: Arc<Stage>,
    ) -> Self {
        Self {
            origin: Origin::of(data_dir),
            dirs: dirs.to_vec(),
            engines: engines.iter().map(Arc::downgrade).collect(),
            gate,
            stage,
            taken: AtomicU64::default(),
            failed: AtomicU64::default(),
            last_ms: AtomicU64::default(),
            held_us: AtomicU64::default(),
        }
    }

    pub(super) fn told(&self) -> Told {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Told {
            taken: of(&self.taken),
            failed: of(&self.failed),
            last_ms: of(&self.last_ms),
            held_us: of(&self.held_us),
        }
    }

    /// Takes one, unless nobody waits for it any more or the server ends. Says what there is, in JSON.
    pub(super) fn take(&self, to: &Path, is_unwanted: &AtomicBool) -> Result<String, Refusal> {
        let engines: Vec<Arc<RocksEngine>> = self.engines.iter().filter_map(Weak::upgrade).collect();
        if engines.len() < self.engines.len() || self.stage.is_leaving() {
            return Err(Refusal::unavailable("the server is shutting down"));
        }
        if !may_go(to, &self.dirs) {
            let (to, dirs) = (to.display(), &self.dirs);
            return Err(Refusal::bad(&format!("{to} is in none of the folders of [backup] dirs: {dirs:?}")));
        }
        if let Some(shortage) = self.shortage(&engines) {
            return Err(Refusal::failed(&format!("{shortage}: make room")));
        }
        // Its copies may lie on the disk of a volume, which must not run full of them.
        let short = OnceLock::new();
        let is_short = || self.shortage(&engines).map(|shortage| short.get_or_init(|| shortage)).is_some();
        let is_cancelled = || is_unwanted.load(Ordering::Acquire) || self.stage.is_leaving() || is_short();
        let taken_at_ms = SystemClock.now().wall_ms;
        let version = env!("CARGO_PKG_VERSION");
        let order = BackupOrder { to, taken_at_ms, version, is_cancelled: &is_cancelled };
        info!(to = %to.display(), "a backup begins");
        match backup::take(&self.origin, &engines, &self.gate, &order) {
            Ok(backed_up) => Ok(self.tell(&backed_up)),
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let refusal = refusal(&error, short.get());
                warn!(to = %to.display(), error = refusal.error(), "no backup was taken, and nothing is left of it");
                Err(refusal)
            }
        }
    }

    /// Which volume has too little room for a backup, if one has.
    fn shortage(&self, engines: &[Arc<RocksEngine>]) -> Option<String> {
        self.origin.volumes().iter().zip(engines).find_map(|(volume, engine)| {
            let left = room_of(volume).map_or(u64::MAX, |room| room.free);
            shortage_of(volume, left, engine.memory().memtable_bytes)
        })
    }

    fn tell(&self, backed_up: &BackedUp) -> String {
        let BackedUp { to, volumes, files, bytes, held_us, took_ms, taken_at_ms, .. } = backed_up;
        info!(to = %to.display(), volumes, files, bytes, held_us, took_ms, "a backup is complete");
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.last_ms.store(*taken_at_ms, Ordering::Relaxed);
        self.held_us.store(*held_us, Ordering::Relaxed);
        serde_json::to_string_pretty(backed_up).expect("numbers and strings are JSON")
    }
}

/// Whether a backup may be written there.
fn may_go(to: &Path, dirs: &[PathBuf]) -> bool {
    dirs.is_empty() || dirs.iter().any(|folder| backup::is_within(to, folder))
}

/// What writing out so much may take: a disk that runs full then would end the server, and not only the backup.
fn room_needed(in_memory: u64) -> u64 {
    in_memory.saturating_mul(2).saturating_add(ROOM_MIN)
}

fn shortage_of(volume: &Path, left: u64, in_memory: u64) -> Option<String> {
    let needed = room_needed(in_memory);
    (left < needed).then(|| {
        format!("{} has only {left} bytes left, and {needed} must be there while a backup is taken", volume.display())
    })
}

/// `short`: what it was broken off for, if that was a lack of room.
fn refusal(error: &BackupError, short: Option<&String>) -> Refusal {
    match (error, short) {
        (BackupError::Cancelled, Some(shortage)) => Refusal::failed(&format!(
            "{shortage}, or the server would end: it was broken off, and what there was of it is removed; make room, or \
             name a directory on another disk"
        )),
        (BackupError::Cancelled, None) => Refusal::unavailable(&error.to_string()),
        (error, _) if error.is_bad_request() => Refusal::bad(&error.to_string()),
        (error, _) => Refusal::failed(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_must_fit_twice_and_some_more() {
        let volume = Path::new("/disk/volume");
        assert_eq!(shortage_of(volume, ROOM_MIN + 2000, 1000), None);
        let shortage = shortage_of(volume, ROOM_MIN + 1999, 1000).expect("a byte is missing");
        assert!(shortage.contains("/disk/volume has only 67110863 bytes"), "{shortage}");
        assert!(shortage_of(volume, u64::MAX - 1, u64::MAX).is_some());
    }

    #[test]
    fn backups_go_where_the_settings_say() {
        let dirs = [PathBuf::from("/disk/backups"), PathBuf::from("/other")];
        let may = |to: &str| may_go(Path::new(to), &dirs);
        assert!(may("/disk/backups/monday") && may("/other"));
        assert!(!may("/disk/backups/../volume") && !may("/disk/backups2") && !may("/"));
        assert!(may_go(Path::new("/anywhere"), &[]));
    }

    #[test]
    fn who_is_broken_off_for_want_of_room_is_told_so() {
        let shortage = "/disk has only 7 bytes left".to_owned();
        let told = refusal(&BackupError::Cancelled, Some(&shortage));
        assert!(told.error().starts_with(&shortage) && told.error().contains("another disk"), "{told:?}");
        assert_ne!(told, refusal(&BackupError::Cancelled, None));
    }
}
