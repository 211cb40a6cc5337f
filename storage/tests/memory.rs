//! The engine in memory: what a crash leaves of its log, and what the check of the log makes of that.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use culver_storage::batch::{Batch, BatchNumber};
use culver_storage::engine::{Engine, Family, Lookup, Tier};
use culver_storage::error::OpenError;
use culver_storage::filter::Retention;
use culver_storage::key::{self, MetaKind, ShardId};
use culver_storage::memory::{Cuts, Loss, MemoryEngine, WriteFault};
use culver_storage::value::BatchRow;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

type Rows = BTreeMap<(Family, Vec<u8>), Vec<u8>>;

/// A batch that names what was synced before it, and sets a row of its own and one that all set.
fn batch(number: u64, synced_through: u64, len: usize) -> Batch {
    let mut batch = Batch::with_capacity(BatchNumber(number), 0);
    let value = vec![u8::try_from(number % 251).expect("below 251"); len];
    batch.put(Family::Inbox, &number.to_be_bytes(), (&value, b"own"));
    batch.put(Family::User, b"all", (&number.to_be_bytes(), &[]));
    let row = BatchRow { number, synced_through, applied: number };
    batch.put(Family::Meta, &key::meta(ShardId(0), MetaKind::Batch, 0), (&row.encode(), &[]));
    batch
}

fn rows(engine: &MemoryEngine) -> Rows {
    let mut rows = Rows::new();
    for family in Family::ALL {
        let visit = &mut |key: &[u8], value: &[u8]| {
            rows.insert((family, key.to_vec()), value.to_vec());
            ControlFlow::Continue(())
        };
        engine.scan(family, &[], &[0xff; 64], Tier::Disk, visit).expect("it reads");
    }
    rows
}

/// The rows that these batches come to.
fn rows_of<'a>(batches: impl IntoIterator<Item = &'a Batch>) -> Rows {
    let mut rows = Rows::new();
    for batch in batches {
        batch.rows(|family, key, value| {
            rows.insert((family, key.to_vec()), value.to_vec());
        });
    }
    rows
}

/// An engine with `count` synced batches, each of which knows that all before it is synced.
fn written(count: u64, len: usize) -> (MemoryEngine, Vec<Batch>) {
    let engine = MemoryEngine::new();
    let batches: Vec<_> = (1..=count)
        .map(|number| {
            let batch = batch(number, engine.sequence_synced(), len);
            engine.write(&batch).expect("it writes");
            batch
        })
        .collect();
    (engine, batches)
}

#[test]
fn what_is_not_synced_cannot_be_read() {
    let (engine, batches) = written(1, 10);
    let (before, sequence) = (rows(&engine), engine.sequence_synced());
    engine.append_group(&[batch(2, sequence, 10), batch(3, sequence, 10)]);
    assert_eq!((rows(&engine), engine.sequence_synced()), (before, sequence));
    assert!(engine.unsynced_len() > 0 && engine.unsynced_len() < engine.log_len());
    engine.sync();
    let all: Vec<_> = batches.into_iter().chain([batch(2, sequence, 10), batch(3, sequence, 10)]).collect();
    assert_eq!((rows(&engine), engine.sequence_synced(), engine.unsynced_len()), (rows_of(&all), sequence + 6, 0));
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_to_whole_records() {
    // The second lies over the border of two blocks, which the third begins behind.
    for (len, before) in [(50, 2), (9_000, 3)] {
        let (engine, batches) = written(before, len);
        let sequence = engine.sequence_synced();
        let groups: [Vec<Batch>; 2] = [
            vec![batch(before + 1, sequence, len), batch(before + 2, sequence, len)],
            vec![batch(before + 3, sequence, len)],
        ];
        let mut ends = vec![0];
        for group in &groups {
            engine.append_group(group);
            ends.push(engine.unsynced_len());
        }
        let step = if len > 1000 { 97 } else { 1 };
        let every = (0..engine.unsynced_len()).step_by(step).chain(ends.clone());
        for keep in every.flat_map(|at| [at, at + 1]) {
            let fork = engine.fork();
            fork.crash(&Loss { keep, hole: None });
            let cuts = fork.reopen().expect("nothing that was synced is damaged");
            let whole = ends.iter().skip(1).filter(|end| **end <= keep).count();
            let survivors = batches.iter().chain(groups.iter().take(whole).flatten());
            assert_eq!(rows(&fork), rows_of(survivors), "{keep} bytes of {ends:?}");
            let end = *ends.get(whole).expect("an end a record");
            assert_eq!(cuts.len, keep.min(engine.unsynced_len()) - end);
            assert_eq!(cuts.reason.is_some(), cuts.len > 0);
            // It goes on behind that, and what it has is synced.
            let (next, sequence) = (batch(77, fork.sequence_synced(), 5), fork.sequence_synced());
            assert_eq!(sequence, 3 * (before + u64::try_from([0, 2, 3][whole]).expect("few")));
            fork.write(&next).expect("it writes");
            fork.crash(&Loss::ALL);
            assert_eq!(fork.reopen().expect("the log is whole"), Cuts::default());
            let survivors = batches.iter().chain(groups.iter().take(whole).flatten()).chain([&next]);
            assert_eq!(rows(&fork), rows_of(survivors));
        }
    }
}

#[test]
fn a_hole_in_what_was_not_synced_is_cut_with_all_behind_it() {
    let (engine, batches) = written(2, 50);
    let sequence = engine.sequence_synced();
    let mut ends = vec![0];
    let tail: Vec<_> = (3..6).map(|number| batch(number, sequence, 50)).collect();
    for batch in &tail {
        engine.append_group(std::slice::from_ref(batch));
        ends.push(engine.unsynced_len());
    }
    for begin in 0..engine.unsynced_len() {
        let fork = engine.fork();
        fork.crash(&Loss { keep: usize::MAX, hole: Some(begin..begin + 20) });
        fork.reopen().expect("nothing says that it had been synced");
        let whole = ends.iter().skip(1).filter(|end| **end <= begin).count();
        assert_eq!(rows(&fork), rows_of(batches.iter().chain(tail.iter().take(whole))), "{begin}");
    }
}

#[test]
fn damage_in_what_was_synced_is_refused_where_a_later_batch_proves_it() {
    let (engine, batches) = written(5, 50);
    let len = engine.log_len() / 5;
    for at in 0..engine.log_len() {
        let fork = engine.fork();
        fork.damage(at, 1);
        fork.crash(&Loss::NOTHING);
        let index = at / len;
        match fork.reopen() {
            // Nobody has written since the last batch was synced: nothing proves that it was.
            Ok(cuts) => {
                assert_eq!((index, cuts.len), (4, len));
                assert_eq!(rows(&fork), rows_of(batches.iter().take(4)));
            }
            Err(OpenError::Damaged { offset, .. }) => {
                assert_eq!(offset, (index * len) as u64);
                assert!(fork.reopen().is_err(), "nothing was changed");
                assert!(fork.get(Family::User, b"all", Tier::Disk).is_err(), "it is closed");
            }
            Err(other) => panic!("{other}"),
        }
    }
    // With one more batch the last is proven, too.
    let (fork, begin) = (engine.fork(), engine.log_len() - len);
    fork.write(&batch(6, fork.sequence_synced(), 50)).expect("it writes");
    fork.damage(begin + len / 2, 1);
    fork.crash(&Loss::NOTHING);
    assert!(fork.reopen().is_err());
}

#[test]
fn what_is_in_files_outlives_the_log() {
    let (engine, mut batches) = written(3, 50);
    engine.append_group(&[batch(4, engine.sequence_synced(), 50)]);
    let unsynced = engine.unsynced_len();
    engine.flush();
    assert_eq!((engine.log_len(), engine.unsynced_len()), (unsynced, unsynced));
    let fork = engine.fork();
    fork.crash(&Loss { keep: 3, hole: None });
    assert_eq!(fork.reopen().expect("nothing is damaged").len, 3);
    assert_eq!((rows(&fork), fork.sequence_synced()), (rows_of(&batches), 9));
    engine.sync();
    batches.push(batch(4, 9, 50));
    engine.crash(&Loss::ALL);
    engine.reopen().expect("nothing is damaged");
    assert_eq!((rows(&engine), engine.sequence_synced()), (rows_of(&batches), 12));
}

#[test]
fn a_fork_is_another_disk() {
    let (engine, batches) = written(2, 50);
    let fork = engine.fork();
    fork.write(&batch(3, 6, 50)).expect("it writes");
    fork.damage(0, 1);
    engine.crash(&Loss::ALL);
    assert_eq!(engine.reopen().expect("nothing is damaged"), Cuts::default());
    assert_eq!(rows(&engine), rows_of(&batches));
}

#[test]
fn faults_are_told_and_a_crash_decides() {
    for (fault, loss, survives) in [
        (WriteFault::Write, Loss::NOTHING, false),
        (WriteFault::Sync, Loss::NOTHING, true),
        (WriteFault::Sync, Loss::ALL, false),
    ] {
        let (engine, mut batches) = written(2, 50);
        engine.fail_next_write(fault);
        let last = batch(3, 6, 50);
        engine.write(&last).expect_err("it was told to fail");
        engine.crash(&loss);
        engine.write(&last).expect_err("it is closed");
        engine.reopen().expect("nothing is damaged");
        batches.extend(survives.then_some(last));
        assert_eq!(rows(&engine), rows_of(&batches));
    }
}

#[test]
fn a_share_of_lookups_meets_a_cold_cache_and_the_same_seed_the_same_ones() {
    let (engine, _) = written(2, 50);
    let unknown = |seed, per_mille| -> Vec<bool> {
        engine.set_cold_share(seed, per_mille);
        let look = |_| engine.get(Family::User, b"all", Tier::Memory).expect("it reads") == Lookup::Unknown;
        (0..2000).map(look).collect()
    };
    let (first, again, other) = (unknown(1, 250), unknown(1, 250), unknown(2, 250));
    assert_eq!(first, again);
    assert_ne!(first, other);
    let count = first.iter().filter(|is_unknown| **is_unknown).count();
    assert!((400..600).contains(&count), "{count}");
    assert!(unknown(1, 0).iter().all(|is_unknown| !is_unknown));
    assert!(unknown(1, 1000).iter().all(|is_unknown| *is_unknown));
    assert_ne!(engine.get(Family::User, b"all", Tier::Disk).expect("it reads"), Lookup::Unknown);
}

/// Random lives against a model: the rows are exactly those of the batches that survive.
#[test]
fn random_lives() {
    for seed in 0..200 {
        let mut random = SmallRng::seed_from_u64(seed);
        let engine = MemoryEngine::new();
        let (mut durable, mut appended): (Vec<Batch>, Vec<(Vec<Batch>, usize)>) = (Vec::new(), Vec::new());
        for number in 1..150 {
            match random.random_range(0..10) {
                0..5 => {
                    let count = random.random_range(1..4);
                    let len = random.random_range(0..2_000);
                    let synced = engine.sequence_synced();
                    let group: Vec<_> = (0..count).map(|index| batch(number * 10 + index, synced, len)).collect();
                    engine.append_group(&group);
                    appended.push((group, engine.unsynced_len()));
                }
                5..7 => {
                    engine.sync();
                    durable.extend(std::mem::take(&mut appended).into_iter().flat_map(|(group, _)| group));
                }
                7 if appended.is_empty() => engine.flush(),
                8 => engine.compact().expect("it merges"),
                _ => {
                    // What a merge or a flush moved to a new log has other places there: then all or nothing.
                    let keep = random.random_range(0..=engine.unsynced_len());
                    let last = appended.last().map_or(0, |(_, end)| *end);
                    let keep = if last == engine.unsynced_len() { keep } else { 0 };
                    engine.crash(&Loss { keep, hole: None });
                    engine.reopen().expect("nothing that was synced is damaged");
                    let survivors = std::mem::take(&mut appended).into_iter().take_while(|(_, end)| *end <= keep);
                    durable.extend(survivors.flat_map(|(group, _)| group));
                }
            }
            assert_eq!(rows(&engine), rows_of(&durable), "seed {seed}");
        }
    }
}

#[test]
fn a_fork_knows_what_may_be_forgotten() {
    let engine = MemoryEngine::new();
    engine.retention().forget_dedup_before(7);
    let known: std::sync::Arc<Retention> = engine.fork().retention();
    assert_eq!(known.dedup_before_ms(), 7);
}

#[cfg(feature = "planted-bugs")]
mod planted {
    use culver_storage::planted::{Bug, plant};

    use super::*;

    #[test]
    fn a_torn_tail_accepted_costs_what_is_written_behind_it() {
        for (bug, is_wrong) in [(None, false), (Some(Bug::TornTailAccepted), true)] {
            plant(bug);
            let (engine, mut batches) = written(2, 50);
            engine.append_group(&[batch(3, 6, 50)]);
            engine.crash(&Loss { keep: 30, hole: None });
            engine.reopen().expect("what is torn was never synced");
            let next = batch(4, engine.sequence_synced(), 50);
            engine.write(&next).expect("it writes");
            batches.push(next);
            assert_eq!(rows(&engine), rows_of(&batches));
            engine.crash(&Loss::NOTHING);
            engine.reopen().expect("nothing proves that anything had been synced");
            assert_eq!(rows(&engine) != rows_of(&batches), is_wrong);
            plant(None);
        }
    }

    #[test]
    fn a_damaged_middle_accepted_costs_all_behind_it() {
        let (engine, batches) = written(4, 50);
        engine.damage(engine.log_len() / 2 + 10, 1);
        engine.crash(&Loss::NOTHING);
        assert!(engine.reopen().is_err());
        plant(Some(Bug::DamagedMiddleAccepted));
        engine.reopen().expect("the mistake");
        plant(None);
        assert_eq!(rows(&engine), rows_of(batches.iter().take(2)));
    }
}
