//! Several hubs on one volume, and several volumes in one data directory, on the real engine.

#![cfg(not(any(feature = "answer-before-write", feature = "answer-before-sync")))]
#![cfg(feature = "rocks")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;

use culver_protocol::id::Incarnation;
use culver_storage::batch::{Batch, BatchNumber};
use culver_storage::engine::{Engine, Family, Lookup, Tier};
use culver_storage::key::{self, MetaKind, ShardId};
use culver_storage::layout::DataDir;
use culver_storage::rocks::{RocksEngine, RocksOptions};
use culver_storage::value::BatchRow;
use culver_storage::writer::Writer;

const BATCHES: u64 = 50;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory can be made")
}

/// A batch as a hub seals it.
fn batch(hub: u16, number: u64, synced_through: u64) -> Batch {
    let mut batch = Batch::with_capacity(BatchNumber(number), 0);
    let row = BatchRow { number, synced_through, applied: number };
    batch.put(Family::Meta, &key::meta(ShardId(hub), MetaKind::Batch, u64::from(hub)), (&row.encode(), &[]));
    batch.put(Family::Body, &[hub.to_be_bytes().as_slice(), &number.to_be_bytes()].concat(), (&[7; 500], &[]));
    batch
}

/// The last batch of a hub that is there; all before it are.
fn last_batch(engine: &RocksEngine, hub: u16) -> u64 {
    let is_there = |number: &u64| {
        let key = [hub.to_be_bytes().as_slice(), &number.to_be_bytes()].concat();
        matches!(engine.get(Family::Body, &key, Tier::Disk), Ok(Lookup::Present(_)))
    };
    let last = (1..=BATCHES).take_while(is_there).count() as u64;
    assert!(!(last + 1..=BATCHES).any(|number| is_there(&number)), "no batch is left out");
    last
}

/// A hub that waits for each batch before it seals the next.
fn run_hub(engine: &Arc<RocksEngine>, hub: u16) {
    let (sender, told) = mpsc::channel();
    let done = Box::new(move |number| sender.send(number).expect("the hub waits for it"));
    let writer = Writer::spawn(Arc::clone(engine) as Arc<dyn Engine>, done);
    for number in 1..=BATCHES {
        let before = engine.sequence_synced();
        writer.submit(batch(hub, number, before));
        assert_eq!(told.recv(), Ok(BatchNumber(number)));
        assert!(engine.sequence_synced() >= before + 2, "its two rows are synced");
    }
}

fn open(path: &Path) -> RocksEngine {
    RocksEngine::open(path, RocksOptions::default(), Arc::default()).expect("the volume opens")
}

#[test]
fn hubs_share_a_log() {
    let directory = directory();
    let engine = Arc::new(open(directory.path()));
    thread::scope(|scope| {
        for hub in 0..4 {
            let engine = &engine;
            scope.spawn(move || run_hub(engine, hub));
        }
    });
    drop(engine);
    // The machine failed in the last write: nobody was told of the batches in it.
    let log = log_file(directory.path());
    let len = std::fs::metadata(&log).expect("it is there").len();
    let file = std::fs::File::options().write(true).open(&log).expect("it can be written");
    file.set_len(len - 10).expect("it can be cut");
    let engine = open(directory.path());
    assert_eq!(engine.cuts().len(), 1);
    let lost: u64 = (0..4).map(|hub| BATCHES - last_batch(&engine, hub)).sum();
    assert!((1..=4).contains(&lost), "at most the batch that each hub had under way");
    drop(engine);
    assert!(open(directory.path()).cuts().is_empty());
}

fn log_file(path: &Path) -> PathBuf {
    let entries = std::fs::read_dir(path).expect("the volume can be read");
    let paths = entries.map(|entry| entry.expect("the volume can be read").path());
    let logs = paths.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.max_by_key(|path| std::fs::metadata(path).expect("it is there").len()).expect("a volume has a log")
}

#[test]
fn a_directory_with_several_volumes() {
    let directory = directory();
    let (data, volumes) = (directory.path().join("data"), ["a", "b"].map(|name| directory.path().join(name)));
    DataDir::create(&data, Incarnation(7), &volumes).expect("empty folders are volumes");
    for round in 1..=3 {
        let open = DataDir::open_with(&data, &volumes).expect("its own volumes");
        let engines = RocksEngine::open_all(open.volume_paths(), &RocksOptions::default(), &Arc::default());
        for (hub, engine) in (0..).zip(engines.expect("its volumes open")) {
            assert_eq!(last_batch(&engine, hub), round - 1, "each has what was written to it");
            assert_eq!(last_batch(&engine, 1 - hub), 0);
            engine.write(&batch(hub, round, engine.sequence_synced())).expect("it writes");
        }
    }
}
