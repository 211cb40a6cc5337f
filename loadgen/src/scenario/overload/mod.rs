//! `overload`: more and more messages a second, until the server takes no more; then several times as many; then few
//! again. It must go on admitting, about as fast as ever, in bounded time; and all that it admits must be delivered,
//! soon if not at once.
//!
//! ```text
//!  offered       ┌── 3 x, held ──┐
//!                │               │
//!            ┌───┘ saturated     │            ┌── half
//!        ┌───┘                   └─ nothing ──┘    │
//!  calm ─┘                     (catching up)       └─── calm again
//! ```

mod options;
mod ramp;
mod result;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

pub(crate) use self::options::OverloadOptions;

use self::ramp::{Ramp, Stage, Step};
use self::result::{OverloadResult, StepFigures};
use super::pairs::PairRun;
use crate::clock::Clock;
use crate::report::Document;
use crate::report::progress::Progress;
use crate::target::Target;
use crate::target::culver::Culver;

/// Longest wait for what is under way when sending has ended.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// Longest wait after the overload until everything admitted is delivered.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);

/// Runs the scenario.
pub(crate) fn run(mut options: OverloadOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    let progress = options.run.progress("overload");
    let mut culver = options.target.find()?;
    let mut ramp = Ramp::new(options.rates, options.growth, options.overload_times)?;
    let load = options.load(seed);
    let run = PairRun::start(&culver, &load, ramp.steps_max(), Clock::start())?;
    run.wait_for_logins(&progress)?;
    run.shared().go();
    let mut steps: Vec<StepFigures> = Vec::new();
    while let Some(step) = ramp.next() {
        ensure!(steps.len() < usize::from(ramp.steps_max()), "a ramp has a bounded number of steps");
        let slot = u8::try_from(steps.len() + 1).expect("a ramp's steps are few");
        let mut figures = measure(&options, step, slot, &run, &mut culver, &progress)?;
        ramp.took(figures.offered_per_s, figures.goodput_per_s());
        if step.stage == Stage::Over {
            figures.behind = run.shared().counters().undelivered();
            figures.catch_up_s = catch_up(&run, &progress)?;
        }
        steps.push(figures);
    }
    run.shared().set_rate(0.0);
    progress.wait(options.settle.0, || run.check_alive())?;
    let given_up = run.shared().counters().given_up;
    let outcome = run.finish(DRAIN_MAX, &progress)?;
    for (step, latencies) in steps.iter_mut().zip(&outcome.slots) {
        step.take_latencies(latencies);
    }
    let result = OverloadResult::new(&options, steps, (ramp.saturated_per_s(), given_up), outcome);
    let missed = result.check(&options);
    let text = result.render();
    Document::new("overload", seed, &options, &result, text, missed)
}

/// Offers one rate: first unmeasured, until what was before is over, then measured.
fn measure(
    options: &OverloadOptions,
    step: Step,
    slot: u8,
    run: &PairRun,
    culver: &mut Culver,
    progress: &Progress,
) -> Result<StepFigures> {
    let tell = |phase: &str| {
        progress.tell(format!("{}, {:.0}/s, {phase}: {}", step.stage.name(), step.rate_per_s, run.shared().counters()));
        run.check_alive()
    };
    run.shared().set_rate(step.rate_per_s);
    progress.wait(options.settle.0, || tell("settling"))?;
    run.shared().set_slot(slot);
    let sample_before = culver.sample()?;
    let (before, began) = (run.shared().counters(), Instant::now());
    let span = if step.stage == Stage::Over { options.overload } else { options.step };
    progress.wait(span.0, || tell("measuring"))?;
    let (after, measured_s) = (run.shared().counters(), began.elapsed().as_secs_f64());
    let sample_after = culver.sample()?;
    run.shared().set_slot(0);
    Ok(StepFigures::new(step, (before, after), (sample_before, sample_after), measured_s))
}

/// Offers nothing until everything that was admitted is delivered: how long that took. `None`: longer than anybody waits.
fn catch_up(run: &PairRun, progress: &Progress) -> Result<Option<f64>> {
    run.shared().set_rate(0.0);
    let began = Instant::now();
    let has_caught_up = progress.wait_until(CATCH_UP_MAX, || {
        let counters = run.shared().counters();
        progress.tell(format!("catching up: {counters}"));
        run.check_alive()?;
        Ok(counters.undelivered() == 0)
    })?;
    Ok(has_caught_up.then(|| began.elapsed().as_secs_f64()))
}

#[cfg(test)]
mod tests;
