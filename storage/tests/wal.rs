//! Damage to the log of a real volume: what was synced is never given up silently, what was not is cut off.
#![cfg(feature = "rocks")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use culver_protocol::id::{ConversationId, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::message::EntryView;
use culver_storage::batch::{Batch, BatchNumber};
use culver_storage::engine::{Engine, Family, Lookup, Tier};
use culver_storage::error::OpenError;
use culver_storage::key::{self, MetaKind, ShardId};
use culver_storage::log::{Item, LogReader};
use culver_storage::rocks::{RocksEngine, RocksOptions};
use culver_storage::value::{self, BatchRow};

/// What each batch says was synced when it was sealed.
#[derive(Clone, Copy)]
enum Synced {
    /// All before it: as it is with one batch under way at a time.
    Before,
    /// Nothing: as if all had been written and nothing ever synced.
    Nothing,
}

const BATCHES: u64 = 20;

/// A volume that was killed after [`BATCHES`] batches: all it holds is in its log.
struct Volume {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Volume {
    fn new(synced: Synced, payload_len: usize) -> Self {
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

    fn log_file(&self) -> PathBuf {
        let files = log_files(&self.path);
        files.into_iter().max_by_key(|path| fs::metadata(path).expect("it is there").len()).expect("a volume has a log")
    }

    /// Where each record of the log begins and ends.
    fn records(&self) -> Vec<(usize, usize)> {
        let bytes = fs::read(self.log_file()).expect("the log can be read");
        let mut reader = LogReader::new(bytes.as_slice());
        let mut records = Vec::new();
        while let Some(item) = reader.next_item().expect("a slice can be read") {
            let Item::Record { offset, end, .. } = item else { panic!("a whole log: {item:?}") };
            records.push((usize::try_from(offset).expect("small"), usize::try_from(end).expect("small")));
        }
        records
    }

    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.log_file();
        let mut bytes = fs::read(&path).expect("the log can be read");
        change(&mut bytes);
        fs::write(&path, bytes).expect("the log can be written");
    }

    /// Opens it and sees that exactly the first `survivors` batches are there, then that it takes another and opens again.
    fn opens_with(&self, survivors: u64, cut: bool) {
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

    fn refuses_at(&self, offset: usize) {
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

fn log_files(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).expect("the volume can be read");
    let paths = entries.map(|entry| entry.expect("the volume can be read").path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    paths.sort();
    paths
}

fn batch(number: u64, synced_through: u64, payload_len: usize) -> Batch {
    let mut batch = Batch::with_capacity(BatchNumber(number), 0);
    let entry = EntryView {
        inbox_seq: InboxSeq(number),
        conversation: ConversationId::direct(UserId(1), UserId(2)),
        conversation_seq: culver_protocol::id::ConversationSeq(number),
        message_id: MessageId(number),
        server_time_ms: 0,
        sender: UserId(1),
        sender_device: DeviceId(1),
        payload: &[],
    };
    let payload = vec![u8::try_from(number).expect("few batches"); payload_len];
    let key = key::inbox(ShardId(0), UserId(2), InboxSeq(number));
    batch.put(Family::Inbox, &key, (&value::encode_inbox_header(&entry), &payload));
    let row = BatchRow { number, synced_through, applied: number };
    batch.put(Family::Meta, &key::meta(ShardId(0), MetaKind::Batch, 0), (&row.encode(), &[]));
    batch
}

fn present(engine: &RocksEngine) -> Vec<u64> {
    let is_present = |number: &u64| {
        let key = key::inbox(ShardId(0), UserId(2), InboxSeq(*number));
        matches!(engine.get(Family::Inbox, &key, Tier::Disk), Ok(Lookup::Present(_)))
    };
    (1..=BATCHES + 1).filter(is_present).collect()
}

#[test]
fn a_whole_log_opens() {
    Volume::new(Synced::Before, 300).opens_with(BATCHES, false);
}

#[test]
fn a_torn_last_record_is_cut() {
    for payload_len in [300, 5_000, 100_000] {
        let volume = Volume::new(Synced::Before, payload_len);
        let (first, end) = *volume.records().last().expect("there are records");
        for len in [first + 1, first + 6, first + 7, first + 40, end - 1] {
            let volume = Volume::new(Synced::Before, payload_len);
            volume.change(|bytes| bytes.truncate(len));
            volume.opens_with(BATCHES - 1, true);
        }
    }
}

#[test]
fn a_missing_tail_at_a_record_is_nothing() {
    let volume = Volume::new(Synced::Before, 300);
    let (first, _) = *volume.records().last().expect("there are records");
    volume.change(|bytes| bytes.truncate(first));
    volume.opens_with(BATCHES - 1, false);
}

#[test]
fn an_empty_log_is_nothing() {
    let volume = Volume::new(Synced::Before, 300);
    volume.change(Vec::clear);
    volume.opens_with(0, false);
}

#[test]
fn a_zeroed_page_in_the_last_batch_is_cut() {
    let volume = Volume::new(Synced::Before, 20_000);
    let (first, end) = *volume.records().last().expect("there are records");
    let page = (first + 8192) & !4095;
    assert!(page + 4096 <= end);
    volume.change(|bytes| bytes.get_mut(page..page + 4096).expect("it is within").fill(0));
    volume.opens_with(BATCHES - 1, true);
}

#[test]
fn zeroes_after_the_end_are_cut() {
    let volume = Volume::new(Synced::Before, 300);
    volume.change(|bytes| bytes.extend_from_slice(&[0; 4096]));
    volume.opens_with(BATCHES, true);
}

#[test]
fn a_flipped_bit_in_the_last_batch_is_cut() {
    for at in [0, 4, 6, 7, 60] {
        let volume = Volume::new(Synced::Before, 300);
        let (first, _) = *volume.records().last().expect("there are records");
        volume.change(|bytes| *bytes.get_mut(first + at).expect("it is within") ^= 0x10);
        volume.opens_with(BATCHES - 1, true);
    }
}

#[test]
fn a_flipped_bit_in_the_middle_is_refused() {
    for (index, payload_len) in [(10, 300), (18, 300), (0, 300), (10, 40_000), (18, 40_000)] {
        for at in [0, 4, 5, 6, 7, 60] {
            let volume = Volume::new(Synced::Before, payload_len);
            let (first, _) = *volume.records().get(index).expect("there are that many");
            volume.change(|bytes| *bytes.get_mut(first + at).expect("it is within") ^= 0x10);
            volume.refuses_at(first);
        }
    }
}

#[test]
fn a_zeroed_page_in_the_middle_is_refused() {
    let volume = Volume::new(Synced::Before, 20_000);
    let (first, _) = *volume.records().get(7).expect("there are that many");
    volume.change(|bytes| bytes.get_mut(first + 4096..first + 8192).expect("it is within").fill(0));
    volume.refuses_at(first);
}

#[test]
fn a_record_taken_out_is_refused() {
    let volume = Volume::new(Synced::Before, 32 * 1024 - 400);
    // Whole blocks are taken out, so that only the sequence numbers tell.
    let before = volume.records();
    volume.change(|bytes| drop(bytes.drain(5 * 32 * 1024..7 * 32 * 1024)));
    let opened = RocksEngine::open(&volume.path, RocksOptions::default(), Arc::default()).map(|_| ());
    assert!(matches!(opened, Err(OpenError::Damaged { .. })), "{opened:?} {before:?}");
}

#[test]
fn damage_that_was_never_synced_is_cut_with_all_that_follows() {
    let volume = Volume::new(Synced::Nothing, 300);
    let (first, _) = *volume.records().get(10).expect("there are that many");
    volume.change(|bytes| *bytes.get_mut(first + 60).expect("it is within") ^= 1);
    volume.opens_with(10, true);
}

/// Copies a volume into which two log files belong.
fn with_second_log(synced: Synced) -> Volume {
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

#[test]
fn damage_in_an_earlier_file_is_seen_from_a_later() {
    let volume = with_second_log(Synced::Before);
    let files = log_files(&volume.path);
    assert!(files.len() >= 2, "{files:?}");
    let first = files.first().expect("there are two");
    let bytes = fs::read(first).expect("the log can be read");
    fs::write(first, bytes.get(..bytes.len() - 100).expect("it is longer")).expect("the log can be written");
    let opened = RocksEngine::open(&volume.path, RocksOptions::default(), Arc::default()).map(|_| ());
    let Err(OpenError::Damaged { file, .. }) = opened else { panic!("{opened:?}") };
    assert_eq!(file, *first);
}

#[test]
fn several_log_files_open() {
    let volume = with_second_log(Synced::Before);
    assert!(log_files(&volume.path).len() >= 2);
    volume.opens_with(BATCHES, false);
}

#[test]
fn a_torn_later_file_is_cut() {
    let volume = with_second_log(Synced::Before);
    let files = log_files(&volume.path);
    let last = files.last().expect("there are two");
    let bytes = fs::read(last).expect("the log can be read");
    assert!(!bytes.is_empty());
    for len in [bytes.len() - 100, 3] {
        fs::write(last, bytes.get(..len).expect("it is longer")).expect("the log can be written");
        let cuts = culver_storage::wal::mend(&volume.path).expect("a torn end is cut");
        assert_eq!(cuts.len(), 1, "{cuts:?}");
    }
    let engine = RocksEngine::open(&volume.path, RocksOptions::default(), Arc::default()).expect("the volume opens");
    let present = present(&engine);
    assert_eq!(present, (1..=present.len() as u64).collect::<Vec<_>>());
}

#[test]
fn a_cut_that_was_cut_short_is_made_good() {
    let volume = Volume::new(Synced::Before, 5_000);
    let (first, end) = *volume.records().last().expect("there are records");
    volume.change(|bytes| bytes.truncate(end - 1));
    // The copy was begun, and the machine failed.
    let stem = volume.log_file().file_stem().expect("a log has a name").to_string_lossy().into_owned();
    fs::write(volume.path.join(format!("cut-1-{stem}-{first}")), "beg").expect("the volume can be written");
    let cuts = culver_storage::wal::mend(&volume.path).expect("a torn end is cut");
    assert_eq!(cuts.len(), 1);
    let copy = cuts.first().map(|cut| fs::read(&cut.copy).expect("the copy is there").len());
    assert_eq!(copy, Some(end - 1 - first), "the copy is whole");
    volume.opens_with(BATCHES - 1, false);
}

#[test]
fn unsynced_damage_in_an_earlier_file_cuts_the_later_too() {
    let volume = with_second_log(Synced::Nothing);
    let files = log_files(&volume.path);
    let first = files.first().expect("there are two");
    let bytes = fs::read(first).expect("the log can be read");
    fs::write(first, bytes.get(..bytes.len() - 100).expect("it is longer")).expect("the log can be written");
    let cuts = culver_storage::wal::mend(&volume.path).expect("what was never synced is cut");
    assert_eq!(cuts.len(), files.len(), "{cuts:?}");
    assert!(culver_storage::wal::mend(&volume.path).expect("it is whole now").is_empty());
}
