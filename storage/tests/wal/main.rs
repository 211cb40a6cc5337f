//! Damage to the log of a real volume: what was synced is never given up silently, what was not is cut off.
#![cfg(feature = "rocks")]

#[path = "../batches/mod.rs"]
mod batches;
// Its helpers index, which the lints allow in tests alone.
#[cfg(test)]
mod random;
mod volume;

use std::fs;
use std::sync::Arc;

use culver_storage::error::OpenError;
use culver_storage::rocks::{RocksEngine, RocksOptions};

use batches::present;
use volume::{BATCHES, Synced, Volume, log_files, with_second_log};

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
