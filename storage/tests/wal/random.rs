//! Random damage, and what must come of it, worked out from what was changed alone: damage that a later batch proves to
//! have been synced is refused where it begins, damage in what was never synced is cut off. None is taken for the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use culver_storage::engine::Engine;
use culver_storage::error::OpenError;
use culver_storage::log::{Item, LogReader};
use culver_storage::rocks::{RocksEngine, RocksOptions};
use culver_storage::wal::{self, LoggedBatch};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use crate::batches::{batch, present};
use crate::volume::log_files;

const CASES: u64 = 200;
const PAGE_LEN: usize = 4096;

/// Where the damage is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In what was synced, and a later batch that survives proves it.
    Synced,
    /// In what was written after the last sync.
    Unsynced,
}

/// A volume to damage copies of.
struct Prepared {
    directory: TempDir,
    logs: Vec<(PathBuf, Vec<u8>)>,
    /// Of all logs, in order; the first is batch 1.
    records: Vec<Record>,
    /// Batches that were synced.
    synced: usize,
}

struct Record {
    log: usize,
    begin: usize,
    end: usize,
    batch: LoggedBatch,
}

/// A log with some of its bytes changed.
struct Damaged {
    log: usize,
    bytes: Vec<u8>,
    form: &'static str,
}

/// A directory in memory where there is one: a case is only about bytes.
fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory can be made")
}

/// RocksDB sets room aside for a log by the size of a memtable, and memory is slow to be set aside.
fn options() -> RocksOptions {
    RocksOptions { memtable_bytes: 4 << 20, ..RocksOptions::default() }
}

impl Prepared {
    /// With `has_second_log`, the first memtable is full before the last batches.
    fn new(random: &mut SmallRng, has_second_log: bool) -> Self {
        let (count, directory) = (random.random_range(12..30usize), directory());
        let synced = count - random.random_range(1..6);
        let memtable_bytes = if has_second_log { 192 << 10 } else { options().memtable_bytes };
        let options = RocksOptions { memtable_bytes, ..options() };
        let engine = RocksEngine::open(directory.path(), options, Arc::default()).expect("a new volume opens");
        let mut synced_through = 0;
        for number in 1..=count {
            if number <= synced + 1 {
                synced_through = engine.sequence_synced();
            }
            let payload_len = match random.random_range(0..4) {
                _ if has_second_log && number <= synced => 20_000,
                0 => random.random_range(0..40),
                1 | 2 => random.random_range(0..6_000),
                _ => random.random_range(0..80_000),
            };
            engine.write(&batch(number as u64, synced_through, payload_len)).expect("a volume can be written");
        }
        drop(engine);
        let paths = log_files(directory.path());
        let logs = paths.into_iter().map(|path| (path.clone(), fs::read(path).expect("the log can be read")));
        let logs: Vec<_> = logs.filter(|(_, bytes)| !bytes.is_empty()).collect();
        let records: Vec<_> = logs.iter().enumerate().flat_map(|(log, (_, bytes))| records(log, bytes)).collect();
        assert_eq!((records.len(), logs.len() > 1), (count, has_second_log), "the logs hold all of it");
        Self { directory, logs, records, synced }
    }

    /// Changes some bytes at a random place.
    fn damage(&self, random: &mut SmallRng, place: Place) -> Damaged {
        let among = match place {
            Place::Synced => 0..self.records.len() - 1,
            Place::Unsynced => self.synced..self.records.len(),
        };
        let Record { log, begin, end, .. } = self.records[random.random_range(among)];
        let source = &self.logs[log].1;
        let mut bytes = source.clone();
        let at = random.random_range(begin..end);
        // The header of a record is small, and worth as many cases as the rest of it.
        let at = if random.random_bool(0.3) { begin + at % 7 } else { at };
        let form = ["bit", "page", "run", "old bytes", "cut"][random.random_range(0..5)];
        let run_len = [16, 600, 9_000, 60_000][random.random_range(0..4)];
        let run = at..(at + random.random_range(1..run_len)).min(bytes.len());
        match form {
            "bit" => bytes[at] ^= 1 << random.random_range(0..8),
            "page" => {
                let page = at / PAGE_LEN * PAGE_LEN;
                bytes[page..(page + PAGE_LEN).min(source.len())].fill(0);
            }
            "run" => bytes[run].iter_mut().for_each(|byte| *byte = random.random()),
            // Those of another place, as a disk that wrote where it should not have: whole records, too.
            "old bytes" => {
                let from = match random.random_range(0..2) {
                    0 => random.random_range(0..=source.len() - run.len()),
                    _ => self.records[random.random_range(0..self.records.len())].begin.min(source.len() - run.len()),
                };
                bytes[run.clone()].copy_from_slice(&source[from..from + run.len()]);
            }
            _ => bytes.truncate(at),
        }
        Damaged { log, bytes, form }
    }

    /// The first record that is not what it was, and whether a later one that is proves that it had been synced.
    fn judge(&self, damaged: &Damaged) -> Option<(usize, bool)> {
        let source = &self.logs[damaged.log].1;
        let is_whole = |record: &Record| {
            record.log != damaged.log
                || damaged.bytes.get(record.begin..record.end) == source.get(record.begin..record.end)
        };
        let first = self.records.iter().position(|record| !is_whole(record))?;
        let last_good = first.checked_sub(1).map_or(0, |before| self.records[before].batch.last);
        let mut later = self.records[first..].iter().filter(|record| is_whole(record));
        Some((first, later.any(|record| record.batch.synced_through > last_good)))
    }

    /// A copy of the volume with that damage.
    fn copy(&self, damaged: &Damaged) -> TempDir {
        let copy = directory();
        for entry in fs::read_dir(self.directory.path()).expect("the volume can be read") {
            let path = entry.expect("the volume can be read").path();
            fs::copy(&path, copy.path().join(name(&path))).expect("a file can be copied");
        }
        fs::write(copy.path().join(name(&self.logs[damaged.log].0)), &damaged.bytes).expect("a file can be written");
        copy
    }
}

fn name(path: &Path) -> &std::ffi::OsStr {
    path.file_name().expect("a file has a name")
}

fn records(log: usize, bytes: &[u8]) -> Vec<Record> {
    let mut reader = LogReader::new(bytes);
    let mut records = Vec::new();
    while let Some(item) = reader.next_item().expect("a slice can be read") {
        let Item::Record { offset, end, bytes } = item else { panic!("a whole log: {item:?}") };
        let place = |at| usize::try_from(at).expect("small");
        let batch = LoggedBatch::decode(&bytes).expect("a batch");
        records.push(Record { log, begin: place(offset), end: place(end), batch });
    }
    records
}

/// Damages copies until `CASES` are of the wanted kind, and hands each to `check`.
fn cases(place: Place, mut check: impl FnMut(&Prepared, &Damaged, usize, &str)) {
    let seed = match place {
        Place::Synced => 1,
        Place::Unsynced => 2,
    };
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let prepared: Vec<_> = (0..8).map(|index| Prepared::new(&mut random, index >= 5)).collect();
    let mut forms = std::collections::BTreeMap::new();
    let mut case = 0;
    while case < CASES {
        let volume = &prepared[random.random_range(0..prepared.len())];
        let damaged = volume.damage(&mut random, place);
        let Some((first, is_proven)) = volume.judge(&damaged) else { continue };
        let is_unsynced = first >= volume.synced;
        assert!(!(is_proven && is_unsynced), "no batch says that it was synced");
        // The last batch that was synced, with all after it, is neither: nothing proves it.
        if is_proven != (place == Place::Synced) || is_unsynced != (place == Place::Unsynced) {
            continue;
        }
        // A file that ends between two records is whole, as far as anybody can tell.
        let is_whole = damaged.form == "cut" && volume.records[first].begin >= damaged.bytes.len();
        if is_whole || damaged.form == "cut" && place == Place::Synced {
            continue;
        }
        case += 1;
        *forms.entry(damaged.form).or_insert(0) += 1;
        check(volume, &damaged, first, &format!("seed {seed}, case {case}, {} in batch {}", damaged.form, first + 1));
    }
    assert!(forms.len() >= 4 && forms.values().all(|count| *count >= 20), "{forms:?}");
}

#[test]
fn damage_to_what_was_synced_is_refused_where_it_begins() {
    cases(Place::Synced, |volume, damaged, first, case| {
        let copy = volume.copy(damaged);
        let log = copy.path().join(name(&volume.logs[damaged.log].0));
        match RocksEngine::open(copy.path(), options(), Arc::default()) {
            Err(OpenError::Damaged { file, offset, .. }) => {
                assert_eq!((file, offset), (log.clone(), volume.records[first].begin as u64), "{case}");
            }
            Err(other) => panic!("{case}: {other}"),
            Ok(engine) => panic!("{case}: it opens with {:?}", present(&engine)),
        }
        assert!(fs::read(log).is_ok_and(|bytes| bytes == damaged.bytes), "{case}: nothing is changed");
    });
}

#[test]
fn damage_to_what_was_never_synced_is_cut_off() {
    cases(Place::Unsynced, |volume, damaged, first, case| {
        assert!(first >= volume.synced, "{case}");
        let copy = volume.copy(damaged);
        let cuts = wal::mend(copy.path()).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert!(!cuts.is_empty(), "{case}");
        let left: Vec<_> = log_files(copy.path())
            .into_iter()
            .flat_map(|path| records(0, &fs::read(path).expect("the log can be read")))
            .map(|record| record.batch)
            .collect();
        assert!(left.iter().eq(volume.records[..first].iter().map(|record| &record.batch)), "{case}: {left:?}");
        opens_with(first as u64, copy.path(), case);
    });
}

/// It opens with so many batches, and takes another.
fn opens_with(count: u64, path: &Path, case: &str) {
    let engine = RocksEngine::open(path, options(), Arc::default());
    let engine = engine.unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!(present(&engine), (1..=count).collect::<Vec<_>>(), "{case}");
    engine.write(&batch(count + 1, engine.sequence_synced(), 100)).expect("it can be written");
    assert_eq!(present(&engine), (1..=count + 1).collect::<Vec<_>>(), "{case}");
}
