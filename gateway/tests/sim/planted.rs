//! Proof that the world can fail: mistakes that a programmer might make, planted one at a time behind a feature of
//! tests, and each must be found by the seeds that find nothing otherwise.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use culver_storage::planted::{Bug, plant};

use crate::run::{Failure, run};
use crate::source::Source;
use crate::trace::Trace;

/// Seeds within which each must be found.
const SEEDS_MAX: u64 = 10_000;

/// Runs seeds until one finds the mistake: how many that took, and what was found.
fn find(bug: Bug) -> Option<(u64, Failure)> {
    plant(Some(bug));
    let found = (0..SEEDS_MAX).find_map(|seed| {
        let failure = run(Source::seeded(seed), Trace::off()).failure?;
        Some((seed + 1, failure))
    });
    plant(None);
    found
}

#[test]
fn every_planted_mistake_is_found() {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let worker = || {
        while let Some(bug) = Bug::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = find(*bug);
            found.lock().expect("worlds do not panic while they hold it").push((*bug, result));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(worker))));
    let mut found = found.into_inner().expect("worlds do not panic while they hold it");
    found.sort_by_key(|(bug, _)| *bug as u8);
    for (bug, result) in &found {
        match result {
            Some((seeds, failure)) => println!("{bug:?}: seed {seeds} of {SEEDS_MAX}: {}", first_line(failure)),
            None => println!("{bug:?}: not found by {SEEDS_MAX} seeds"),
        }
    }
    assert_eq!(found.len(), Bug::ALL.len());
    let missed: Vec<Bug> = found.iter().filter(|(_, result)| result.is_none()).map(|(bug, _)| *bug).collect();
    assert!(missed.is_empty(), "the world or its checks are too weak for {missed:?}");
}

fn first_line(failure: &Failure) -> &str {
    failure.message.lines().next().unwrap_or_default()
}
