//! `slow --one`: what one client that does not read costs pairs at full speed, beside one that does: the two by turns.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;

use super::crowd::{Crowd, CrowdFindings};
use super::{CROWD_OFFSET, SENDER_OFFSET, SlowOptions, answered};
use crate::clock::Clock;
use crate::dense::senders::{SENDERS, SenderPlan, Senders};
use crate::links::raise_descriptor_limit;
use crate::report::histogram::median;
use crate::report::progress::Progress;
use crate::report::table::{Table, grouped};
use crate::report::{Document, Misses};
use crate::scenario::chat::{self, PairMeasurement};
use crate::scenario::density::wait_for_logins;
use crate::target::culver::Culver;

/// Longest wait for what the one client is owed when it reads again.
const READ_MAX: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct OneResult {
    /// Messages a second of the pairs, run by run.
    reading_msgs_per_s: Vec<f64>,
    deaf_msgs_per_s: Vec<f64>,
    reading_msgs_per_s_median: f64,
    deaf_msgs_per_s_median: f64,
    /// Median where it does not read, over median where it does.
    throughput_ratio: f64,
    /// The share of the throughput that is missing then.
    one_cost: f64,
    messages_for_one: u64,
    /// What it got, run by run: those in which it does not read follow those in which it does.
    one: Vec<CrowdFindings>,
    runs: Vec<PairMeasurement>,
}

pub(super) fn run(mut options: SlowOptions, seed: u64) -> Result<Document> {
    options.pairs.default_to_closed_loop();
    let progress = options.run.progress("slow");
    let others = usize::try_from(SENDERS)?.saturating_add(1);
    raise_descriptor_limit(2 * options.pairs.pairs as usize + others)?;
    let mut culver = options.target.find()?;
    let (mut reading, mut deaf, mut runs, mut one) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // The very first run is that of a server that has never seen these users: it counts for nothing.
    measure(&options, &mut culver, seed, (0, false), &progress)?;
    for round in 0..u64::from(options.rounds) {
        // Who goes first changes, for what messages cost rises with what is stored.
        let order = if round % 2 == 0 { [false, true] } else { [true, false] };
        for (turn, is_deaf) in (0..).zip(order) {
            let (measured, found) = measure(&options, &mut culver, seed, (1 + 2 * round + turn, is_deaf), &progress)?;
            if is_deaf { &mut deaf } else { &mut reading }.push(measured.msgs_per_s);
            runs.push(measured);
            one.push(found);
        }
    }
    let (reading_median, deaf_median) = (median(&reading), median(&deaf));
    let throughput_ratio = if reading_median > 0.0 { deaf_median / reading_median } else { 0.0 };
    let result = OneResult {
        reading_msgs_per_s: reading,
        deaf_msgs_per_s: deaf,
        reading_msgs_per_s_median: reading_median,
        deaf_msgs_per_s_median: deaf_median,
        throughput_ratio,
        one_cost: 1.0 - throughput_ratio,
        messages_for_one: messages(&options),
        one,
        runs,
    };
    let missed = check(&options, &result);
    Document::new("slow", seed, &options, &result, render(&result), missed)
}

/// Messages for the one client in a run.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "messages of a run are below 2^52, and none is less than none"
)]
fn messages(options: &SlowOptions) -> u64 {
    let span = options.time.warmup.0 + options.time.duration.0;
    (options.one_rate * span.as_secs_f64()).ceil() as u64
}

/// The pairs beside one client, and what that one got in the end.
fn measure(
    options: &SlowOptions,
    culver: &mut Culver,
    seed: u64,
    (number, is_deaf): (u64, bool),
    progress: &Progress,
) -> Result<(PairMeasurement, CrowdFindings)> {
    let (clock, messages) = (Clock::start(), messages(options));
    // The same users in every run.
    let load = options.pairs.load(&options.run, seed, 0);
    let load = crate::scenario::pairs::PairLoad { run: options.pairs.load(&options.run, seed, number).run, ..load };
    let first_user = load.first_user.wrapping_add(CROWD_OFFSET);
    let crowd = Crowd::start(culver, options.crowd_plan(1, first_user, load.run, seed), clock)?;
    crowd.wait_for_logins(progress)?;
    let plan = SenderPlan {
        run: load.run,
        first_user,
        connections: 1,
        first_sender: load.first_user.wrapping_add(SENDER_OFFSET),
        rate: Some(options.one_rate),
        seed,
    };
    let senders = Senders::start(culver, plan, clock)?;
    wait_for_logins(&senders, progress)?;
    crowd.set_deaf(is_deaf);
    senders.send_until(messages);
    let name = if is_deaf { "beside one that does not read" } else { "beside one that reads" };
    let measured = chat::measure(name, culver, &load, &options.time, progress)?;
    crowd.set_deaf(false);
    let came = progress.wait_until(READ_MAX, || {
        crowd.check_alive()?;
        let (sent, came) = (senders.sent()?, crowd.delivered());
        progress.tell(format!("the one reads: {came} of {messages}"));
        Ok(answered(sent) >= messages && came + sent.refused >= messages)
    })?;
    let sent = senders.sent()?;
    if answered(sent) < messages && !came {
        bail!("only {} of {messages} messages for the one were accepted within {READ_MAX:?}", sent.acked);
    }
    senders.close()?;
    Ok((measured, crowd.close(messages - sent.refused)?))
}

fn check(options: &SlowOptions, result: &OneResult) -> Vec<String> {
    let mut misses = Misses::default();
    for found in &result.one {
        misses.expect(found.is_clean(), || format!("the one: {found:?}"));
    }
    for run in &result.runs {
        run.check(&mut misses);
    }
    let (cost, cost_max) = (result.one_cost, options.one_cost_max.unwrap_or(f64::INFINITY));
    misses.expect(cost <= cost_max, || {
        format!("one client that does not read costs {:.2} % of the throughput", cost * 100.0)
    });
    misses.into_vec()
}

fn render(result: &OneResult) -> String {
    let mut table = Table::new(["messages a second, beside one", "runs", "median", "least", "most"]);
    for (name, runs) in [("that reads", &result.reading_msgs_per_s), ("that does not", &result.deaf_msgs_per_s)] {
        let least = runs.iter().copied().fold(f64::INFINITY, f64::min);
        let most = runs.iter().copied().fold(0.0, f64::max);
        let figures = [median(runs), least, most].map(|figure| format!("{figure:.0}"));
        table.row([name.to_owned(), runs.len().to_string()].into_iter().chain(figures).collect());
    }
    let delivered: u64 = result.one.iter().map(|found| found.delivered).sum();
    format!(
        "{}\nratio {:.4}: one client that does not read costs {:.2} % of the throughput; it got all of its {} messages in \
         the end\n",
        table.render(),
        result.throughput_ratio,
        result.one_cost * 100.0,
        grouped(delivered)
    )
}
