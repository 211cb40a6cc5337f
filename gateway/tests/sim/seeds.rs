//! What `make test`, `make sim` and `make soak` run.

use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::calm::EVENTS_MIN;
use crate::oracle::Tally;
use crate::run::{FAILURES_MAX, Run, Summary, explain, kept, run, run_seeds};
use crate::source::Source;
use crate::trace::Trace;

/// Seeds of a run of all tests.
const SEEDS: u64 = 2000;
/// Lines of a trace that are printed.
const LINES_MAX: usize = 2000;

/// The world, as `scripts/sim` asks for it in `CULVER_SIM`. Where nothing is asked for, as many seeds as every run of
/// all tests has.
///
/// - `seeds COUNT FIRST`: ends after a few failures, and explains the first: what broke, and a shorter run of it;
/// - `all COUNT FIRST`: goes on however many fail, and says of each what broke; explains none;
/// - `soak HOURS FIRST`: seeds for so long, else as `seeds`;
/// - `seed N` or `replay FILE`: one run and the end of its trace, of `CULVER_SIM_LINES` lines at most; where
///   `CULVER_SIM_STEPS` is `no`, without the lines that only say that something moved.
#[test]
fn simulate() {
    let asked = std::env::var("CULVER_SIM").unwrap_or_else(|_| format!("seeds {SEEDS} 0"));
    let words: Vec<&str> = asked.splitn(3, ' ').collect();
    match words[..] {
        ["seeds", count, first] => {
            let summary = run_seeds(number(first), number(count), None, FAILURES_MAX);
            tell(&summary);
            assert!(summary.events_min >= EVENTS_MIN, "the least world had {} events", summary.events_min);
            if summary.worlds >= SEEDS {
                let Tally { logins_busy, removals, names, keys_learned, waited, forgotten } = summary.tally;
                let rarest = [logins_busy, removals, names, keys_learned, waited, forgotten].into_iter().min();
                assert!(rarest > Some(SEEDS / 100), "what is rare comes to pass: {:?}", summary.tally);
            }
        }
        ["soak", hours, first] => {
            let time = Duration::from_secs_f64(number::<f64>(hours) * 3600.0);
            tell(&run_seeds(number(first), u64::MAX, Some(Instant::now() + time), FAILURES_MAX));
        }
        ["all", count, first] => {
            let summary = run_seeds(number(first), number(count), None, usize::MAX);
            println!("{}", summary.text());
            for (seed, failure) in &summary.failures {
                println!("seed {seed}: {}", failure.message);
            }
            assert!(summary.failures.is_empty(), "promises were broken");
        }
        ["seed", seed] => show(Source::seeded(number(seed))),
        ["replay", path] => show(Source::replay(kept(path))),
        _ => panic!("CULVER_SIM is seeds or all COUNT FIRST, seed N, replay FILE or soak HOURS FIRST, not {asked:?}"),
    }
}

fn number<T: FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

fn tell(summary: &Summary) {
    println!("{}", summary.text());
    for (seed, failure) in &summary.failures {
        println!("seed {seed}: {}", failure.message);
    }
    if let Some((seed, failure)) = summary.failures.first() {
        println!("\n{}", explain(*seed, failure));
    }
    assert!(summary.failures.is_empty(), "promises were broken: how to see the first one is above");
}

fn show(source: Source) {
    let Run { events, trace, failure, .. } = run(source, Trace::on());
    let lines = std::env::var("CULVER_SIM_LINES").map_or(LINES_MAX, |lines| number(&lines));
    let is_story = std::env::var("CULVER_SIM_STEPS").is_ok_and(|steps| steps == "no");
    println!("{}", if is_story { trace.story(lines) } else { trace.text(lines) });
    println!("{events} events");
    if let Some(failure) = failure {
        panic!("{}\n  at {}", failure.message, failure.place);
    }
}

/// The same choices are the same world, in every run: no clock of the machine, no order of a hash table, no address.
#[test]
fn a_seed_is_always_the_same_world() {
    for seed in 0..60 {
        let first = run(Source::seeded(seed), Trace::on());
        let again = run(Source::seeded(seed), Trace::on());
        let replayed = run(Source::replay(first.choices.clone()), Trace::on());
        for other in [again, replayed] {
            assert_eq!(first.events, other.events, "seed {seed}");
            assert_eq!(first.trace.hash(), other.trace.hash(), "seed {seed}");
            assert!(first.choices == other.choices, "seed {seed}");
        }
    }
}

/// Seeds and kept runs that once broke a promise, each with what was wrong. (A seed means another world whenever the
/// world's choices change; what it found has a test of its own beside the code.)
#[test]
fn what_was_found_once_stays_mended() {
    for line in include_str!("found.txt").lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let seed = line.split_whitespace().next().expect("not empty").parse().expect("a line begins with a seed");
        if let Some(failure) = run(Source::seeded(seed), Trace::off()).failure {
            panic!("{line}\n{}\n{}", failure.message, explain(seed, &failure));
        }
    }
}
