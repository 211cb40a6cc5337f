//! Many lives of one volume, each ended by a power cut at some moment.

use std::sync::Arc;

use culver_storage::engine::Engine;
use culver_storage::rocks::{RocksEngine, RocksOptions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::batches::{batch, present};
use crate::program::CutDisk;

/// Lives of a volume, most of them ended by RocksDB's wait of a second after a failure. The environment may ask for more.
const LIVES: u64 = 12;
const LIVES_NAME: &str = "CULVER_LIVES";
const SEED_NAME: &str = "CULVER_SEED";
/// Batches that a life writes at most before its power is cut.
const BATCHES_MAX: u64 = 60;

/// So small that each life writes tables, and now and then merges some.
pub(crate) fn options() -> RocksOptions {
    RocksOptions {
        block_cache_bytes: 1 << 20,
        memtables_bytes: 1 << 20,
        memtable_bytes: 128 << 10,
        log_bytes_max: 512 << 10,
        background_threads: 2,
        open_files_max: 64,
    }
}

pub(crate) fn open(disk: &CutDisk) -> Result<RocksEngine, culver_storage::error::OpenError> {
    RocksEngine::open(&disk.volume(), options(), Arc::default())
}

/// A choice.
fn one_of<'a>(random: &mut SmallRng, of: &[&'a str]) -> &'a str {
    of.get(random.random_range(0..of.len())).expect("it is within")
}

/// What goes wrong in a life, as commands.
fn trouble(random: &mut SmallRng, kind: &str) -> Vec<String> {
    let mut commands = Vec::new();
    if random.random_bool(0.8) {
        let moment = one_of(random, &["write", "sync", "synced"]);
        let files = one_of(random, &["log", "log", "table", "any", "any"]);
        let most = if files == "table" { 6 } else { 120 };
        commands.push(format!("arm {kind} {moment} {files} {}", random.random_range(1..=most)));
    }
    if random.random_bool(0.3) {
        commands.push("short on".to_owned());
    }
    if random.random_bool(0.3) {
        let failures = ["sync log once", "sync any once", "sync table once", "write table eio", "write log enospc"];
        commands.push(format!("fail {}", one_of(random, &failures)));
    }
    commands
}

/// Writes batches until a write fails, and returns how many were said to be durable.
fn write(engine: &RocksEngine, from: u64, random: &mut SmallRng) -> u64 {
    let last = from + random.random_range(1..=BATCHES_MAX);
    for number in from + 1..=last {
        let payload_len = if random.random_bool(0.1) { 100_000 } else { random.random_range(0..10_000) };
        if engine.write(&batch(number, engine.sequence_synced(), payload_len)).is_err() {
            return number - 1;
        }
    }
    last
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a whole number")))
}

fn lives(kind: &str, seed: u64) {
    let seed = from_environment(SEED_NAME, seed);
    println!("seed {seed}: {SEED_NAME}={seed} does the same again");
    let mut random = SmallRng::seed_from_u64(seed);
    let Some(mut disk) = CutDisk::mount(seed) else { return };
    // What is there for certain, and the most there can be.
    let (mut durable, mut begun) = (0, 0);
    for life in 0..from_environment(LIVES_NAME, LIVES) {
        let engine = open(&disk).unwrap_or_else(|error| panic!("seed {seed}, life {life}: {error}"));
        let there = present(&engine);
        let count = there.len() as u64;
        assert_eq!(there, (1..=count).collect::<Vec<_>>(), "seed {seed}, life {life}: no hole");
        assert!((durable..=begun).contains(&count), "seed {seed}, life {life}: {durable} <= {count} <= {begun}");
        durable = count + 1;
        engine.write(&batch(durable, engine.sequence_synced(), 10)).expect("nothing is wrong yet");
        for command in trouble(&mut random, kind) {
            disk.obey(&command);
        }
        durable = write(&engine, durable, &mut random);
        begun = durable + 1;
        if random.random() {
            // While it closes, too.
            drop(engine);
            disk.power_cycle(kind);
        } else {
            disk.power_cycle(kind);
            drop(engine);
        }
    }
    println!("{} batches, {}", durable, disk.obey("stat"));
}

#[test]
fn what_was_written_survives_when_nothing_else_does() {
    lives("drop", 1);
}

#[test]
fn what_was_written_survives_beside_any_pages() {
    lives("subset", 2);
}

#[test]
fn what_was_written_survives_before_a_torn_page() {
    lives("torn", 3);
}

/// The power goes while the volume is made or opened: it opens when it is back.
#[test]
fn a_cut_while_it_opens_is_nothing() {
    for (seed, kind) in (10..19).zip(["drop", "subset", "torn"].into_iter().cycle()) {
        let mut random = SmallRng::seed_from_u64(seed);
        let Some(mut disk) = CutDisk::mount(seed) else { return };
        let mut durable = 0;
        for _ in 0..3 {
            let moment = one_of(&mut random, &["write", "sync", "synced"]);
            disk.obey(&format!("arm {kind} {moment} any {}", random.random_range(1..=25)));
            if let Ok(engine) = open(&disk) {
                durable = write(&engine, present(&engine).len() as u64, &mut random);
            }
            disk.power_cycle(kind);
            let engine = open(&disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let there = present(&engine).len() as u64;
            assert!((durable..=durable + 1).contains(&there), "seed {seed}: {durable}, {there}");
            durable = there;
        }
    }
}
