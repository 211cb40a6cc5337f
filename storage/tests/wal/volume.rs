//! A volume whose log is to be damaged, and what becomes of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use culver_storage::engine::Engine;
use culver_storage::error::OpenError;
use culver_storage::log::{Item, LogReader};
use culver_storage::rocks::{RocksEngine, RocksOptions};

use crate::batches::{batch, present};

/// What each batch says was synced when it was sealed.
#[derive(Clone, Copy)]
pub(crate) enum Synced {
    /// All before it: as it is with one batch under way at a time.
    Before,
    /// Nothing: as if all had been written and nothing ever synced.
    Nothing,
}

pub(crate) const BATCHES: u64 = 20;

/// A volume that was killed after [`BATCHES`] batches: all it holds is in its log.
pub(crate) struct Volume {
    _directory: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl Volume {
    pub(crate) fn new(synced: Synced, payload_len: usize) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path().join("volume");
        let engine = RocksEngine::open(&path, RocksOptions::default(), Arc::default()).expect("a new volume opens");
        for number in 1..=BATCHES {
            let synced_through = match synced {
                Synced::Before => engine.sequence_synced(),
                Synced::Nothing => 0,
            };
            engine.write(&batch(number, synced_through, payload_len)).expect("a volume can be written");
        }
        drop(engine);
        let volume = Self { _directory: directory, path };
        assert_eq!(volume.records().len() as u64, BATCHES, "the log holds all of it");
        volume
    }

    pub(crate) fn log_file(&self) -> PathBuf {
        let files = log_files(&self.path);
        files.into_iter().max_by_key(|path| fs::metadata(path).expect("it is there").len()).expect("a volume has a log")
    }

    /// Where each record of the log begins and ends.
    pub(crate) fn records(&self) -> Vec<(usize, usize)> {
        let bytes = fs::read(self.log_file()).expect("the log can be read");
        let mut reader = LogReader::new(bytes.as_slice());
        let mut records = Vec::new();
        while let Some(item) = reader.next_item().expect("a slice can be read") {
            let Item::Record { offset, end, .. } = item else { panic!("a whole log: {item:?}") };
            records.push((usize::try_from(offset).expect("small"), usize::try_from(end).expect("small")));
        }
        records
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.log_file();
        let mut bytes = fs::read(&path).expect("the log can be read");
        change(&mut bytes);
        fs::write(&path, bytes).expect("the log can be written");
    }

    /// Opens it and sees that exactly the first `survivors` batches are there, then that it takes another and opens again.
    pub(crate) fn opens_with(&self, survivors: u64, cut: bool) {
        let engine = RocksEngine::open(&self.path, RocksOptions::default(), Arc::default()).expect("the volume opens");
        assert_eq!(!engine.cuts().is_empty(), cut, "{:?}", engine.cuts());
        assert!(engine.cuts().iter().all(|cut| fs::metadata(&cut.copy).is_ok_and(|copy| copy.len() > 0)));
        assert_eq!(present(&engine), (1..=survivors).collect::<Vec<_>>());
        engine.write(&batch(survivors + 1, engine.sequence_synced(), 100)).expect("it can be written");
        drop(engine);
        let engine = RocksEngine::open(&self.path, RocksOptions::default(), Arc::default()).expect("it opens again");
        assert_eq!(present(&engine), (1..=survivors + 1).collect::<Vec<_>>());
        assert!(engine.cuts().is_empty());
    }

    pub(crate) fn refuses_at(&self, offset: usize) {
        let before = fs::read(self.log_file()).expect("the log can be read");
        match RocksEngine::open(&self.path, RocksOptions::default(), Arc::default()).map(|_| ()) {
            Err(OpenError::Damaged { file, offset: found, .. }) => {
                assert_eq!((file, found), (self.log_file(), offset as u64));
            }
            other => panic!("synced messages are gone, and that must be told: {other:?}"),
        }
        assert_eq!(before, fs::read(self.log_file()).expect("the log can be read"), "nothing is changed");
    }
}

pub(crate) fn log_files(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).expect("the volume can be read");
    let paths = entries.map(|entry| entry.expect("the volume can be read").path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    paths.sort();
    paths
}

/// Copies a volume into which two log files belong.
pub(crate) fn with_second_log(synced: Synced) -> Volume {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("volume");
    // The first memtable is full before the last batches: those go to another file, and the first stays, for not all
    // families were written out.
    let options = RocksOptions { memtable_bytes: 256 << 10, ..RocksOptions::default() };
    let engine = RocksEngine::open(&path, options, Arc::default()).expect("a new volume opens");
    for number in 1..=BATCHES {
        let synced_through = match synced {
            Synced::Before => engine.sequence_synced(),
            Synced::Nothing => 0,
        };
        engine.write(&batch(number, synced_through, 20_000)).expect("a volume can be written");
    }
    drop(engine);
    Volume { _directory: directory, path }
}
