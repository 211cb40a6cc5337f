//! Does a data directory grow with what was sent and received, or with what still waits? Days of traffic go through
//! decide and apply into a real volume, with time as an argument; then its rows are merged and its files measured.
//!
//! ```text
//! cargo run --release -p culver-storage --example ten_days -- [--messages 1000000] [--users 1000] [--days 10]
//!     [--payload 300] [--batch 256] [--seed 1] [--dir .] [--json FILE]
//! ```
//!
//! Users have one to three devices; most read within minutes, some are away for days. Everything is delivered, read and
//! told: receipts are on. One hub and one volume. With `--json -` standard output holds JSON only.
//!
//! Exits 0; or 3 where a threshold is missed: the directory, less dedup rows and list rows, holds more than twice what
//! is undelivered, or a dedup row takes more than 80 bytes.

mod measure;
mod traffic;
mod world;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use culver_storage::engine::Engine;
use culver_storage::verify::verify_engines;
use measure::Measured;
use traffic::Traffic;
use world::World;

const EXIT_USAGE: u8 = 2;
const EXIT_MISSED: u8 = 3;

/// What is run.
#[derive(Clone, Debug)]
struct Options {
    messages: u64,
    users: u64,
    days: u64,
    payload_len: usize,
    batch_len: u64,
    seed: u64,
    dir: PathBuf,
    json: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            messages: 1_000_000,
            users: 1000,
            days: 10,
            payload_len: 300,
            batch_len: 256,
            seed: 1,
            dir: ".".into(),
            json: None,
        }
    }
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{name}: {value} is no number"));
            match name.as_str() {
                "--messages" => options.messages = number()?.max(1),
                "--users" => options.users = number()?.max(12),
                "--days" => options.days = number()?.max(1),
                "--payload" => options.payload_len = usize::try_from(number()?).unwrap_or(usize::MAX).min(32 * 1024),
                "--batch" => options.batch_len = number()?.max(1),
                "--seed" => options.seed = number()?,
                "--dir" => options.dir = value.into(),
                "--json" => options.json = Some(value),
                _ => return Err(format!("{name} is not known")),
            }
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("ten_days: {problem}: see the top of storage/examples/ten_days/main.rs");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let directory = tempfile::tempdir_in(&options.dir).expect("a directory can be made here");
    let begin = Instant::now();
    let mut world = World::open(&directory.path().join("volume"), options.batch_len);
    let mut traffic = Traffic::new(&options, &mut world);
    traffic.run(&mut world);
    world.settle();
    let traffic_s = begin.elapsed().as_secs_f64();
    let before = measure::folder_bytes(directory.path());
    let begin = Instant::now();
    world.engine.compact().expect("the volume merges");
    let compact_s = begin.elapsed().as_secs_f64();
    let verified = verify_engines(&world.engines).expect("the engine reads");
    assert!(verified.is_clean(), "what is left is whole: {verified:?}");
    let measured = Measured::of(&world, directory.path());
    assert_eq!(
        measured.undelivered_count(),
        traffic.waiting(&world),
        "what waits is there, and every floor is where it belongs"
    );
    let report = measure::Report { options: &options, counts: world.counts, measured, before, traffic_s, compact_s };
    if options.json.as_deref() != Some("-") {
        print!("{}", report.table());
    }
    match options.json.as_deref() {
        Some("-") => print!("{}", report.json()),
        Some(path) => std::fs::write(path, report.json()).expect("the report can be written"),
        None => {}
    }
    std::io::stdout().flush().expect("somebody reads standard output");
    if report.missed().is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_MISSED) }
}
