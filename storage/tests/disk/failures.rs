//! A disk that fails, is full, or is slow, while its power stays on.

use culver_storage::engine::Engine;

use crate::batches::{batch, present};
use crate::lives::open;
use crate::program::CutDisk;

/// Writes `count` batches, then sees that under `fault` the next is refused, and the one after; and that those before
/// are there in the next life, with the power cut in between or not.
fn refused_under(fault: &str, payload_len: usize, kind: Option<&str>) {
    const COUNT: u64 = 5;
    let Some(mut disk) = CutDisk::mount(1) else { return };
    let engine = open(&disk).expect("a new volume opens");
    for number in 1..=COUNT {
        engine.write(&batch(number, engine.sequence_synced(), 1000)).expect("nothing is wrong yet");
    }
    disk.obey(fault);
    for number in [COUNT + 1, COUNT + 2] {
        let written = engine.write(&batch(number, engine.sequence_synced(), payload_len));
        assert!(written.is_err(), "`{fault}`: batch {number} is not durable");
    }
    drop(engine);
    match kind {
        Some(kind) => disk.power_cycle(kind),
        None => {
            disk.obey("fail none");
        }
    }
    disk.obey("free any");
    let engine = open(&disk).unwrap_or_else(|error| panic!("`{fault}`, {kind:?}: {error}"));
    let there = present(&engine);
    let count = there.len() as u64;
    assert_eq!(there, (1..=count).collect::<Vec<_>>());
    // What failed may be there after all: nobody was told of it.
    assert!((COUNT..=COUNT + 1).contains(&count), "`{fault}`, {kind:?}: {there:?}");
    engine.write(&batch(count + 1, engine.sequence_synced(), 1000)).expect("nothing is wrong any more");
}

fn refused(fault: &str, payload_len: usize) {
    for kind in [None, Some("drop"), Some("subset"), Some("torn")] {
        refused_under(fault, payload_len, kind);
    }
}

/// The kernel's trap: the first sync fails, and the next would say that all is well.
#[test]
fn a_failed_sync_of_the_log_is_an_error() {
    refused("fail sync log once", 1000);
}

#[test]
fn a_log_that_cannot_be_synced_is_an_error() {
    refused("fail sync log always", 1000);
}

#[test]
fn a_log_that_cannot_be_written_is_an_error() {
    refused("fail write log eio", 1000);
}

#[test]
fn a_log_without_room_is_an_error() {
    refused("fail write log enospc", 1000);
}

#[test]
fn a_full_disk_is_an_error() {
    // The first pages of the batch still fit.
    refused("free 8192", 100_000);
    refused("free 0", 100_000);
}

#[test]
fn short_writes_and_slow_syncs_change_nothing() {
    const COUNT: u64 = 50;
    for kind in ["drop", "subset", "torn"] {
        let Some(mut disk) = CutDisk::mount(1) else { return };
        disk.obey("short on");
        disk.obey("slow 2");
        let engine = open(&disk).expect("a new volume opens");
        for number in 1..=COUNT {
            let written = engine.write(&batch(number, engine.sequence_synced(), 20_000));
            written.unwrap_or_else(|error| panic!("batch {number}: {error}"));
        }
        disk.obey(&format!("cut {kind}"));
        drop(engine);
        disk.obey("on");
        let engine = open(&disk).expect("it opens again");
        assert_eq!(present(&engine), (1..=COUNT).collect::<Vec<_>>());
    }
}

/// The disk itself, through the kernel: content from before a cut is never shown after it.
#[test]
fn nothing_from_before_a_cut_is_shown() {
    let Some(mut disk) = CutDisk::mount(1) else { return };
    let (durable, lost) = (disk.path().join("durable"), disk.path().join("lost"));
    std::fs::write(&durable, [b'a'; 10_000]).expect("it can be written");
    let file = std::fs::File::options().read(true).write(true).open(&durable).expect("it is there");
    file.sync_all().expect("nothing fails");
    std::fs::File::open(disk.path()).and_then(|folder| folder.sync_all()).expect("nothing fails");
    std::fs::write(&durable, [b'b'; 20_000]).expect("it can be written");
    std::fs::write(&lost, "x").expect("it can be written");
    assert_eq!(std::fs::read(&durable).expect("it can be read"), [b'b'; 20_000]);
    disk.obey("cut drop");
    assert!(std::fs::read(&durable).is_err() && file.metadata().is_err() && file.sync_all().is_err());
    disk.obey("on");
    assert_eq!(std::fs::metadata(&durable).expect("it is there").len(), 10_000);
    assert_eq!(std::fs::read(&durable).expect("it can be read"), [b'a'; 10_000]);
    assert!(!lost.exists());
    assert!(std::io::Read::read(&mut &file, &mut [0]).is_err(), "a handle from before");
}
