//! `idle-burst`: one message to each of many idle connections, as fast as it goes, round after round.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::density::{CrowdOptions, MessageFigures, check_clients, send_round, wait_for_logins, with_held_keep_alives};
use super::idle::{Guard, IdleSample, per_second, quotient};
use crate::clock::Clock;
use crate::dense::senders::{SENDERS, SenderOutcome, SenderPlan, Senders};
use crate::dense::{Counts, Crowd, CrowdLoad};
use crate::options::{RunOptions, rate};
use crate::report::histogram::Percentiles;
use crate::report::progress::Progress;
use crate::report::table::{LATENCY_HEAD, Table, grouped, latency_row};
use crate::report::{Document, JsonTo, Misses};
use crate::sys;
use crate::target::culver::Culver;
use crate::units::Span;

/// As many as a server surely takes in a second, where no pace is asked for.
const MESSAGES_PER_S_LEAST: f64 = 10_000.0;

/// Options of `idle-burst`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct IdleBurstOptions {
    #[command(flatten)]
    crowd: CrowdOptions,
    /// How often each connection gets a message
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200))]
    rounds: u32,
    /// Messages a second [default: as fast as 64 senders with 16 under way each can]
    #[arg(long, value_name = "PER_S", value_parser = rate)]
    message_rate: Option<f64>,
    /// How long all rest before the first round, and after each
    #[arg(long, default_value = "3s")]
    rest: Span,
    /// Median of the time from sending to delivery, at most
    #[arg(long, value_name = "MS")]
    delivery_p50_ms_max: Option<f64>,
    /// Its p99, at most
    #[arg(long, value_name = "MS")]
    delivery_p99_ms_max: Option<f64>,
    #[command(flatten)]
    run: RunOptions,
}

/// One message to each connection.
#[derive(Serialize)]
struct Round {
    msgs_per_s: f64,
    server_cpu_us_per_msg: f64,
    user_bytes_before: u64,
    user_bytes_after: u64,
}

#[derive(Serialize)]
struct IdleBurstResult {
    connections: u64,
    rounds: Vec<Round>,
    #[serde(flatten)]
    messages: MessageFigures,
    /// Over all rounds, by the recipients' clocks, which are the senders'.
    delivery_us: Percentiles,
    /// Median of the rounds.
    server_cpu_us_per_msg: f64,
    logins_per_s: f64,
    #[serde(flatten)]
    senders: SenderOutcome,
    disconnects: u64,
    errors_by_code: BTreeMap<u32, u64>,
    faults: Vec<String>,
    clients: Counts,
}

impl IdleBurstOptions {
    /// Whether keep-alives can wait for the end of a round: they are no message's cost.
    #[expect(clippy::cast_precision_loss, reason = "connections of a run are below 2^52")]
    fn is_round_short(&self) -> bool {
        let rate = self.message_rate.unwrap_or(MESSAGES_PER_S_LEAST);
        self.crowd.connections() as f64 / rate <= self.crowd.held_back_max().as_secs_f64()
    }

    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }
}

/// Runs the scenario.
pub(crate) fn run(mut options: IdleBurstOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    options.crowd.check()?;
    let progress = options.run.progress("idle-burst");
    sys::catch_interrupts();
    let mut culver = options.crowd.target.find()?;
    let load = CrowdLoad { measures_delivery: true, ..options.crowd.load(seed, &options.run)? };
    options.crowd.preflight(&load, &culver, SENDERS)?;
    let result = measure(&options, seed, load, &mut culver, &progress)?;
    let missed = result.check(&options);
    Document::new("idle-burst", seed, &options, &result, result.render(), missed)
}

fn measure(
    options: &IdleBurstOptions,
    seed: u64,
    load: CrowdLoad,
    culver: &mut Culver,
    progress: &Progress,
) -> Result<IdleBurstResult> {
    let (connections, pid, clock) = (load.connections, options.crowd.server_pid(), Clock::start());
    let mut guard = options.crowd.guard();
    let plan = SenderPlan {
        run: load.run,
        first_user: load.first_user,
        connections,
        first_sender: load.first_user.wrapping_add(connections),
        rate: options.message_rate,
        seed,
    };
    let crowd = Crowd::start(load, &options.crowd.login()?, clock)?;
    let took = crowd.grow_to(connections, progress, || guard.check())?;
    let senders = Senders::start(culver, plan, clock)?;
    wait_for_logins(&senders, progress)?;
    let (mut rounds, mut last) = (Vec::new(), None);
    for number in 1..=u64::from(options.rounds) {
        rest(options, &mut guard, progress)?;
        let mut round = |guard: &mut Guard| {
            let before = IdleSample::take(culver, pid, connections)?;
            let messaging = send_round(&senders, &crowd, number, connections, progress, guard)?;
            anyhow::Ok((before, messaging, IdleSample::take(culver, pid, connections)?))
        };
        let (before, messaging, after) = if options.is_round_short() {
            with_held_keep_alives(&crowd, options.crowd.keep_alive.0, progress, &mut guard, round)?
        } else {
            round(&mut guard)?
        };
        rounds.push(Round {
            msgs_per_s: per_second(connections, messaging.took),
            server_cpu_us_per_msg: quotient(after.cpu_us.saturating_sub(before.cpu_us), connections),
            user_bytes_before: before.user_bytes,
            user_bytes_after: after.user_bytes,
        });
        last = Some(messaging);
    }
    // What came twice comes late.
    rest(options, &mut guard, progress)?;
    let sender_outcome = senders.close()?;
    let (outcome, delivery_us) = crowd.close()?;
    let costs: Vec<f64> = rounds.iter().map(|round| round.server_cpu_us_per_msg).collect();
    let all = connections * u64::from(options.rounds);
    Ok(IdleBurstResult {
        connections,
        rounds,
        messages: MessageFigures::of(&last.expect("at least one round"), &outcome.counts, all, connections),
        delivery_us,
        server_cpu_us_per_msg: crate::report::histogram::median(&costs),
        logins_per_s: per_second(connections, took),
        senders: sender_outcome,
        disconnects: outcome.counts.disconnects,
        errors_by_code: outcome.errors,
        faults: outcome.faults,
        clients: outcome.counts,
    })
}

fn rest(options: &IdleBurstOptions, guard: &mut Guard, progress: &Progress) -> Result<()> {
    progress.wait(options.rest.0, || {
        progress.tell("all rest".to_owned());
        guard.check()
    })
}

impl IdleBurstResult {
    fn check(&self, options: &IdleBurstOptions) -> Vec<String> {
        let mut misses = Misses::default();
        check_clients(&self.clients, &self.errors_by_code, &self.faults, &mut misses);
        self.senders.check(&mut misses);
        self.messages.check(self.connections * self.rounds.len() as u64, &mut misses);
        let bounded = [
            (options.delivery_p50_ms_max, self.delivery_us.p50, "p50"),
            (options.delivery_p99_ms_max, self.delivery_us.p99, "p99"),
        ];
        for (max_ms, found_us, name) in bounded {
            let found_ms = quotient(found_us, 1000);
            let held = max_ms.is_none_or(|max_ms| found_ms <= max_ms);
            misses.expect(held, || format!("delivery {name} is {found_ms:.2} ms, not {}", max_ms.unwrap_or_default()));
        }
        misses.into_vec()
    }

    fn render(&self) -> String {
        let mut table =
            Table::new(["one message to each", "msg/s", "CPU us/msg", "server's memory before", "and after"]);
        for (number, round) in self.rounds.iter().enumerate() {
            table.row(vec![
                format!("round {}", number + 1),
                format!("{:.0}", round.msgs_per_s),
                format!("{:.2}", round.server_cpu_us_per_msg),
                grouped(round.user_bytes_before),
                grouped(round.user_bytes_after),
            ]);
        }
        let mut checks = Table::new(["connections", "sent", "acked", "delivered", "lost", "duplicated", "strange"]);
        let MessageFigures { sent, acked, delivered, lost, duplicated, strange, .. } = self.messages;
        checks.row([self.connections, sent, acked, delivered, lost, duplicated, strange].map(grouped).into());
        let mut times = Table::new(LATENCY_HEAD);
        times.row(latency_row("delivered", &self.delivery_us));
        format!("{}\n{}\n{}", table.render(), checks.render(), times.render())
    }
}
