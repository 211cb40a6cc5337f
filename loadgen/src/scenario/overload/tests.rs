//! Ramps against a made-up server, and what is said of servers that fail in one way or another.

use clap::Parser;

use super::options::RateRange;
use super::ramp::{Ramp, Stage};
use super::result::{OverloadResult, StepFigures};
use super::{OverloadOptions, Step};
use crate::report::histogram::Latencies;
use crate::scenario::pairs::shared::Counters;
use crate::scenario::pairs::{PairOutcome, SlotLatencies};
use crate::target::Sample;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: OverloadOptions,
}

fn options(line: &[&str]) -> OverloadOptions {
    let line = ["overload"].iter().chain(line);
    Line::try_parse_from(line).expect("good options").options
}

fn ramp(from: f64, to: f64) -> Ramp {
    Ramp::new(RateRange { from, to }, 2.0, 3.0).expect("few steps")
}

/// Offers a server that takes `most` a second.
fn climb(mut ramp: Ramp, took: impl Fn(f64) -> f64) -> (Vec<(Stage, f64)>, Option<f64>) {
    let mut steps = Vec::new();
    while let Some(Step { stage, rate_per_s }) = ramp.next() {
        steps.push((stage, rate_per_s));
        assert!(steps.len() <= usize::from(ramp.steps_max()));
        ramp.took(rate_per_s, took(rate_per_s));
    }
    (steps, ramp.saturated_per_s())
}

#[test]
fn a_ramp_climbs_until_the_server_does_not_follow_twice() {
    use Stage::{Calm, CalmAgain, Down, Over, Up};
    let (steps, saturated) = climb(ramp(1000.0, 100_000.0), |offered| offered.min(3000.0));
    let expected = [
        (Calm, 1000.0),
        (Up, 2000.0),
        (Up, 4000.0),
        (Up, 8000.0),
        (Over, 12_000.0),
        (Down, 2000.0),
        (CalmAgain, 1000.0),
    ];
    assert_eq!(steps, expected);
    assert_eq!(saturated, Some(4000.0));
}

#[test]
fn one_bad_step_is_not_the_end_and_the_last_rate_is() {
    let (steps, saturated) = climb(ramp(1000.0, 10_000.0), |offered| if offered == 2000.0 { 1.0 } else { offered });
    let up = steps.iter().filter(|(stage, _)| *stage == Stage::Up).map(|(_, rate)| *rate).collect::<Vec<_>>();
    assert_eq!(up, [2000.0, 4000.0, 8000.0, 10_000.0]);
    assert_eq!(saturated, None);
    assert!(Ramp::new(RateRange { from: 1.0, to: 1e9 }, 1.1, 3.0).is_err());
}

/// What a step came to at which so many arrived in each of ten seconds, acknowledged after so long.
fn step(stage: Stage, rate_per_s: u32, arrived_per_s: u64, p99_us: u64) -> StepFigures {
    let (offered, arrived) = (u64::from(rate_per_s) * 10, arrived_per_s * 10);
    let after = Counters { offered, sent: arrived, acked: arrived, delivered: arrived, ..Counters::default() };
    let step = Step { stage, rate_per_s: f64::from(rate_per_s) };
    let samples = (Sample::default(), Sample { cpu_us: arrived * 20, ..Sample::default() });
    let mut figures = StepFigures::new(step, (Counters::default(), after), samples, 10.0);
    (figures.behind, figures.catch_up_s) = (5000, Some(1.25));
    let mut admitted = Latencies::new();
    admitted.record(p99_us);
    figures.take_latencies(&SlotLatencies { admitted, ..SlotLatencies::new() });
    figures
}

fn missed(over: StepFigures, calm_again: StepFigures, change: impl FnOnce(&mut PairOutcome)) -> Vec<String> {
    let options = options(&[]);
    let mut outcome = PairOutcome::default();
    change(&mut outcome);
    let steps = vec![step(Stage::Calm, 1000, 1000, 2000), step(Stage::Up, 4000, 3000, 40_000), over, calm_again];
    let result = OverloadResult::new(&options, steps, (Some(4000.0), 7), outcome);
    assert!(result.render().contains("7 offered and never sent"));
    assert!(result.render().contains("5,000 behind at its end, "), "{}", result.render());
    result.check(&options)
}

#[test]
fn every_bar_is_looked_at() {
    let over = || step(Stage::Over, 12_000, 2900, 100_000);
    let calm = || step(Stage::CalmAgain, 1000, 1000, 2500);
    assert_eq!(missed(over(), calm(), |_| {}), Vec::<String>::new());
    let says = |missed: Vec<String>, what: &str| {
        assert!(missed.len() == 1 && missed.first().is_some_and(|miss| miss.contains(what)), "{missed:?}");
    };
    says(missed(step(Stage::Over, 12_000, 2000, 100_000), calm(), |_| {}), "0.67 of the most");
    says(missed(step(Stage::Over, 12_000, 2900, 900_000), calm(), |_| {}), "acknowledgement p99 is 900");
    let mut lasting = over();
    lasting.catch_up_s = None;
    says(missed(lasting, calm(), |_| {}), "60 s after the overload");
    // Who delivers late has still admitted it, and is not behind for ever.
    let mut late = over();
    late.delivered_per_s = 100.0;
    assert_eq!(missed(late, calm(), |_| {}), Vec::<String>::new());
    says(missed(over(), step(Stage::CalmAgain, 1000, 1000, 80_000), |_| {}), "after the overload");
    says(missed(over(), calm(), |outcome| outcome.findings.lost = 1), "lost");
    says(missed(over(), calm(), |outcome| outcome.findings.unanswered = 1), "1 unanswered");
    says(missed(over(), calm(), |outcome| outcome.links.disconnects = 1), "1 connections were lost");
    let come_later = |outcome: &mut PairOutcome| {
        outcome.links.disconnects = 2;
        outcome.errors.extend([(2006, 2)]);
    };
    assert_eq!(missed(over(), calm(), come_later), Vec::<String>::new(), "nobody was connected yet");
    says(missed(over(), calm(), |outcome| outcome.violations.push("x".to_owned())), "broke the protocol");
    says(missed(over(), calm(), |outcome| outcome.errors.extend([(1004, 3)])), "3 times the server refused");
}

#[test]
fn a_generator_that_is_too_slow_and_a_server_that_is_never_full_are_told() {
    let options = options(&["--rates", "1000..2000"]);
    let mut lazy = step(Stage::CalmAgain, 1000, 1000, 2000);
    lazy.offered_per_s = 500.0;
    let steps = vec![step(Stage::Calm, 1000, 1000, 2000), step(Stage::Over, 6000, 6000, 2000), lazy];
    let missed = OverloadResult::new(&options, steps, (None, 0), PairOutcome::default()).check(&options);
    assert!(missed.iter().any(|miss| miss.contains("followed up to 2000")), "{missed:?}");
    assert!(missed.iter().any(|miss| miss.contains("the generator offered 500")), "{missed:?}");
}

#[test]
fn what_clients_may_have_unanswered_bounds_the_time_of_what_is_admitted() {
    let options = options(&["--pairs", "10", "--window", "100"]);
    let steps = vec![step(Stage::Over, 12_000, 1000, 2000)];
    let result = OverloadResult::new(&options, steps, (None, 0), PairOutcome::default());
    assert!(result.render().contains("all windows at that goodput are 1.00 s"), "{}", result.render());
    assert!(Line::try_parse_from(["overload", "--window", "1025"]).is_err());
}
