use std::collections::BTreeSet;
use std::ops::ControlFlow;

use proptest::prelude::*;

use super::*;
use crate::batch::BatchNumber;
use crate::filter::tests::{DEDUP_BEFORE_MS, inbox_key, merges_to, worlds};

/// Memtables so small that files are written all the time.
fn small() -> RocksOptions {
    RocksOptions { memtable_bytes: 64 << 10, block_cache_bytes: 1 << 20, ..RocksOptions::default() }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory can be made")
}

fn put(engine: &RocksEngine, rows: impl Iterator<Item = (Family, Vec<u8>, Vec<u8>)>) {
    let mut batch = Batch::with_capacity(BatchNumber(0), 0);
    rows.for_each(|(family, key, value)| batch.put(family, &key, (&value, &[])));
    engine.write(&batch).expect("it writes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn merging_drops_what_the_engine_in_memory_drops(world in worlds()) {
        let directory = directory();
        let open = || RocksEngine::open(directory.path(), small(), Arc::default()).expect("it opens");
        let engine = open();
        // All is kept that an earlier merge, or one at another time, could not know to be needless.
        let (last, rest) = world.batches.split_last().map_or((None, [].as_slice()), |(last, rest)| (Some(last), rest));
        rest.iter().for_each(|batch| engine.write(batch).expect("it writes"));
        drop(engine);
        let retention = Arc::new(Retention::default());
        retention.forget_dedup_before(DEDUP_BEFORE_MS);
        let engine = RocksEngine::open(directory.path(), small(), Arc::clone(&retention)).expect("it opens");
        last.into_iter().for_each(|batch| engine.write(batch).expect("it writes"));
        merges_to(&engine, &world.kept);
        drop(engine);
        merges_to(&open(), &world.kept);
    }

    #[test]
    fn a_prefix_ends_where_the_next_begins(prefix: [u8; 3], other: [u8; 3], tail: Vec<u8>) {
        let number = |bytes: [u8; 3]| u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        prop_assert_eq!(is_next(&prefix, &other), number(prefix) + 1 == number(other));
        let from = [&prefix[..], &tail].concat();
        let next = number(prefix).wrapping_add(1).to_be_bytes();
        prop_assert_eq!(is_one_prefix(3, &from, &next[1..]), prefix != [0xff; 3]);
        prop_assert!(is_one_prefix(3, &from, &[&prefix[..], &[1]].concat()));
        prop_assert_eq!(is_one_prefix(3, &from, &[&other[..], &[1]].concat()), prefix == other);
        prop_assert!(!is_one_prefix(3, &prefix[..2], &prefix));
    }
}

/// Rows of `member` as talk rows have them: one user's are scanned, and each is looked up.
#[test]
fn one_users_rows_of_member() {
    let directory = directory();
    let engine = RocksEngine::open(directory.path(), small(), Arc::default()).expect("a new volume opens");
    let key = |user: u8, talk: u8| [&[0, 3, 1, 0, 0, 0, 0, 0, 0, 0, user][..], &[talk; 16], &[1]].concat();
    let users = [1, 2, 0xff];
    for talk in 0..100 {
        put(&engine, users.iter().map(|user| (Family::Member, key(*user, talk), vec![*user; 1000])));
    }
    for (user, next) in [(1, [0, 3, 1, 0, 0, 0, 0, 0, 0, 0, 2]), (0xff, [0, 3, 1, 0, 0, 0, 0, 0, 0, 1, 0])] {
        let mut seen = 0;
        let visit = &mut |_: &[u8], value: &[u8]| {
            assert_eq!(value.first(), Some(&user));
            seen += 1;
            ControlFlow::Continue(())
        };
        engine.scan(Family::Member, &key(user, 0), &next, Tier::Disk, visit).expect("it reads");
        assert_eq!(seen, 100);
    }
    let get = |user, talk| engine.get(Family::Member, &key(user, talk), Tier::Disk).expect("it reads");
    assert_eq!((get(2, 50), get(3, 50)), (Lookup::Present(vec![2; 1000]), Lookup::Absent));
}

/// Files are merged in the background, and every merge looks up users: whenever the engine is dropped, it closes.
#[test]
fn an_engine_closes_while_it_merges() {
    let directory = directory();
    for round in 0..6u64 {
        let engine = RocksEngine::open(directory.path(), small(), Arc::default()).expect("it opens");
        for seq in 0..200 * round {
            let rows = (0..8).map(|user| (Family::Inbox, inbox_key(user, 1000 * round + seq), vec![1; 512]));
            put(&engine, rows);
        }
    }
}

#[test]
fn volumes_share_a_cache() {
    let (left, right) = (directory(), directory());
    let paths = [left.path(), right.path()];
    let engines = RocksEngine::open_all(&paths, &small(), &Arc::default()).expect("new volumes open");
    for engine in &engines {
        put(engine, std::iter::once((Family::Meta, b"key".to_vec(), b"value".to_vec())));
        merges_to(engine, &BTreeSet::from([(Family::Meta, b"key".to_vec())]));
    }
    let [one, other] = engines.as_slice() else { panic!("there are two") };
    assert_eq!(one.memory().block_cache_bytes, other.memory().block_cache_bytes);
    assert!(one.files_bytes(Family::Meta) > 0 && one.files_bytes(Family::Inbox) == 0);
}

/// Not to be taken for rows, nor for damage.
#[test]
fn a_volumes_marker_and_what_a_file_system_keeps_are_no_obstacle() {
    let directory = directory();
    std::fs::write(directory.path().join("VOLUME"), "{}").expect("it can be written");
    std::fs::create_dir(directory.path().join("lost+found")).expect("it can be made");
    for _ in 0..2 {
        RocksEngine::open(directory.path(), small(), Arc::default()).expect("it opens").compact().expect("it merges");
    }
    assert!(directory.path().join("VOLUME").exists() && directory.path().join("lost+found").exists());
}

#[test]
fn no_thread_with_descriptors_of_its_own_gets_at_a_volume() {
    let directory = directory();
    let engine = RocksEngine::open(directory.path(), small(), Arc::default()).expect("it opens");
    let uses: [fn(&RocksEngine); 4] = [
        |engine| drop(engine.get(Family::User, b"key", Tier::Disk)),
        |engine| drop(engine.scan(Family::User, b"a", b"b", Tier::Disk, &mut |_, _| ControlFlow::Continue(()))),
        |engine| drop(engine.write(&Batch::with_capacity(BatchNumber(0), 0))),
        |engine| assert!(engine.memory().memtable_bytes > 0),
    ];
    std::thread::scope(|scope| {
        for of in uses {
            let engine = &engine;
            of(engine);
            let elsewhere = scope.spawn(move || {
                Table::note_left();
                of(engine);
            });
            assert!(elsewhere.join().is_err(), "it opens, closes and writes by numbers that mean other files there");
        }
    });
}
