//! `slow`: thousands of clients that log in and never read, while messages for them arrive, beside honest pairs, whose
//! latency must not notice, and in a server whose memory must not grow; then they read again, and nothing may be missing.
//! Calm is the same messages for the same clients while these read.

mod crowd;
mod inbox;
mod one;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use self::crowd::{Crowd, CrowdFindings, CrowdPlan};
use super::density::wait_for_logins;
use super::pairs::{PairOutcome, PairRun};
use crate::clock::Clock;
use crate::dense::senders::{SENDERS, SenderOutcome, SenderPlan, Senders, Sent};
use crate::links::raise_descriptor_limit;
use crate::options::{PairOptions, RunOptions, TargetOptions, TimeOptions, rate};
use crate::plan::RunId;
use crate::report::histogram::Percentiles;
use crate::report::progress::Progress;
use crate::report::table::{LATENCY_HEAD, Table, grouped, latency_row};
use crate::report::{Document, JsonTo, Misses, limited};
use crate::target::Target;
use crate::target::culver::{Culver, Ops};
use crate::units::Span;
use crate::verify::Findings;

const CALM: u8 = 1;
const DEAF: u8 = 2;
const AGAIN: u8 = 3;
/// Rest between the phases, so that the end of one does not count as the next.
const REST: Duration = Duration::from_secs(2);
/// Nothing came or was accepted for so long, and nothing will.
const STALL_MAX: Duration = Duration::from_secs(60);
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// How often the server is asked for its memory: the question costs it something, too.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Messages a second of the honest pairs where nothing else is asked for.
const RATE_DEFAULT: f64 = 1000.0;
/// Users who do not read, and those who send to them, are apart from the honest ones by this.
const CROWD_OFFSET: u64 = 1 << 30;
const SENDER_OFFSET: u64 = 1 << 31;

/// Options of `slow`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct SlowOptions {
    #[command(flatten)]
    target: TargetOptions,
    #[command(flatten)]
    pairs: PairOptions,
    /// Clients that do not read
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200_000))]
    clients: u32,
    /// Messages of 64 bytes for each of them while they do not read; this program keeps about 100 bytes of each
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    messages: u32,
    /// Messages a second over all of them, from 64 senders, calm as deaf
    #[arg(long, default_value_t = 10_000.0, value_name = "PER_S", value_parser = rate)]
    message_rate: f64,
    /// Bytes of each one's receive buffer (SO_RCVBUF), where the kernel is not to choose: with few, more waits at the server
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1024..=16_777_216))]
    receive_buffer: Option<u32>,
    /// How long they read at first, at least
    #[arg(long, default_value = "10s")]
    calm: Span,
    /// One client only, beside pairs at full speed (--in-flight): what it costs them that it does not read
    #[arg(long, conflicts_with_all = ["clients", "messages", "message_rate", "rate", "calm"])]
    one: bool,
    /// Runs of each kind, by turns
    #[arg(long, default_value_t = 5, value_name = "N", requires = "one", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Messages a second for that one
    #[arg(long, default_value_t = 100.0, value_name = "PER_S", requires = "one", value_parser = rate)]
    one_rate: f64,
    #[command(flatten)]
    time: TimeOptions,
    /// How much more memory the server may hold while they do not read
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES")]
    memory_grown_max: u64,
    /// The honest p99 while they do not read at most so many times the calm one, plus --slack-ms
    #[arg(long, default_value_t = 1.25, value_name = "RATIO")]
    p99_ratio_max: f64,
    /// What --p99-ratio-max adds
    #[arg(long, default_value_t = 1.0, value_name = "MS")]
    slack_ms: f64,
    /// The share of their throughput that one client may cost the pairs which does not read
    #[arg(long, value_name = "SHARE", requires = "one")]
    one_cost_max: Option<f64>,
    #[command(flatten)]
    run: RunOptions,
}

#[derive(Serialize)]
struct SlowResult {
    clients: u32,
    messages_of_each: u64,
    messages_sent: u64,
    messages_refused: u64,
    message_rate_per_s: f64,
    deaf_s: f64,
    /// From their first read to the last message.
    read_again_s: f64,
    crowd: CrowdFindings,
    /// Logins of clients that the server had ended.
    comebacks: u64,
    #[serde(flatten)]
    senders: SenderOutcome,
    #[serde(flatten)]
    findings: Findings,
    honest_disconnects: u64,
    honest_errors_by_code: BTreeMap<u32, u64>,
    violations: Vec<String>,
    calm_ack_us: Percentiles,
    deaf_ack_us: Percentiles,
    again_ack_us: Percentiles,
    calm_delivery_us: Percentiles,
    deaf_delivery_us: Percentiles,
    again_delivery_us: Percentiles,
    ack_p99_ratio: f64,
    delivery_p99_ratio: f64,
    memory: Memory,
    server: Seen,
}

/// What the server holds that is neither memtable nor cache.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Memory {
    memory_before_bytes: u64,
    /// The most that was seen while they did not read.
    memory_deaf_bytes: u64,
    memory_grown_bytes: u64,
    /// When they had read everything.
    memory_after_bytes: u64,
}

/// What the server told of itself: the most while they did not read, and its counts in the end.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Seen {
    blocked_max: f64,
    unsent_bytes_max: f64,
    slow_readers: f64,
    keep_alive_timeouts: f64,
}

impl Seen {
    /// Servers that do not tell are not asked again.
    fn look(&mut self, ops: &Ops) -> Result<()> {
        let metrics = ops.metrics()?;
        let tell = |name: &str| metrics.get(name).unwrap_or_default();
        self.blocked_max = self.blocked_max.max(tell("culver_connections_blocked"));
        self.unsent_bytes_max = self.unsent_bytes_max.max(tell("culver_unsent_bytes"));
        self.slow_readers = tell("culver_slow_readers_total");
        self.keep_alive_timeouts = tell("culver_keep_alive_timeouts_total");
        Ok(())
    }
}

impl SlowOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }

    fn crowd_plan(&self, clients: u64, first_user: u64, run: RunId, seed: u64) -> CrowdPlan {
        let receive_len = self.receive_buffer.map(|bytes| bytes as usize);
        CrowdPlan { clients, first_user, run, seed, workers: self.run.workers(), receive_len }
    }

    /// Rounds of messages that take about so long as calm lasts; everybody gets one at least, and is known then.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "messages of a run are below 2^52, and none is less than none"
    )]
    fn calm_rounds(&self) -> u64 {
        let rounds = self.message_rate * self.calm.0.as_secs_f64() / f64::from(self.clients);
        (rounds.ceil() as u64).max(1)
    }
}

/// Runs the scenario.
pub(crate) fn run(mut options: SlowOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    if options.one {
        return one::run(options, seed);
    }
    options.pairs.default_to_rate(RATE_DEFAULT);
    let progress = options.run.progress("slow");
    let beside = 2 * u64::from(options.pairs.pairs) + SENDERS;
    raise_descriptor_limit((options.clients as usize).saturating_add(usize::try_from(beside).unwrap_or(usize::MAX)))?;
    let mut culver = options.target.find()?;
    let mut scene = Scene::open(&options, &culver, seed, &progress)?;
    let calm_rounds = options.calm_rounds();
    scene.calm(&options, calm_rounds, &progress)?;
    let mut memory = Memory { memory_before_bytes: culver.sample()?.plain_bytes(), ..Memory::default() };
    let (rounds, clients) = (calm_rounds + u64::from(options.messages), u64::from(options.clients));
    let deaf = scene.deafen(&options, rounds * clients, &mut culver, &mut memory, &progress)?;
    let read_again = scene.read_again(rounds * clients, &progress)?;
    scene.seen.look(&options.target.ops())?;
    memory.memory_after_bytes = culver.sample()?.plain_bytes();
    let took = (deaf, read_again);
    let result = scene.close(&options, rounds, took, memory, &progress)?;
    let missed = check(&options, &result);
    let text = render(&result);
    Document::new("slow", seed, &options, &result, text, missed)
}

/// Everybody who takes part.
struct Scene {
    pairs: PairRun,
    crowd: Crowd,
    senders: Senders,
    seen: Seen,
}

impl Scene {
    /// Everybody logs in.
    fn open(options: &SlowOptions, culver: &Culver, seed: u64, progress: &Progress) -> Result<Self> {
        let (clock, clients) = (Clock::start(), u64::from(options.clients));
        let load = options.pairs.load(&options.run, seed, 0);
        let pairs = PairRun::start(culver, &load, AGAIN, clock)?;
        pairs.wait_for_logins(progress)?;
        let first_user = load.first_user.wrapping_add(CROWD_OFFSET);
        let crowd = Crowd::start(culver, options.crowd_plan(clients, first_user, load.run, seed), clock)?;
        crowd.wait_for_logins(progress)?;
        let plan = SenderPlan {
            run: load.run,
            first_user,
            connections: clients,
            first_sender: load.first_user.wrapping_add(SENDER_OFFSET),
            rate: Some(options.message_rate),
            seed,
        };
        let senders = Senders::start(culver, plan, clock)?;
        wait_for_logins(&senders, progress)?;
        pairs.shared().go();
        progress.wait(REST, || pairs.check_alive())?;
        Ok(Self { pairs, crowd, senders, seen: Seen::default() })
    }

    /// They read what comes.
    fn calm(&self, options: &SlowOptions, rounds: u64, progress: &Progress) -> Result<()> {
        let (began, messages) = (Instant::now(), rounds * u64::from(options.clients));
        self.pairs.shared().set_slot(CALM);
        self.senders.send_until(messages);
        self.watch("they read", messages, progress, |sent, came| {
            Ok(answered(sent) >= messages && came >= messages && began.elapsed() >= options.calm.0)
        })?;
        self.pairs.shared().set_slot(0);
        progress.wait(REST, || self.check_alive())
    }

    /// They do not, until all messages are on the disk. How long that took.
    fn deafen(
        &mut self,
        options: &SlowOptions,
        messages: u64,
        culver: &mut Culver,
        memory: &mut Memory,
        progress: &Progress,
    ) -> Result<Duration> {
        let (mut seen, ops) = (self.seen, options.target.ops());
        self.crowd.set_deaf(true);
        progress.wait(REST, || self.check_alive())?;
        self.pairs.shared().set_slot(DEAF);
        let began = Instant::now();
        self.senders.send_until(messages);
        let mut next_sample = began;
        self.watch("they do not read", messages, progress, |sent, _| {
            if Instant::now() >= next_sample {
                next_sample += SAMPLE_EVERY;
                memory.memory_deaf_bytes = memory.memory_deaf_bytes.max(culver.sample()?.plain_bytes());
                seen.look(&ops)?;
            }
            Ok(answered(sent) >= messages)
        })?;
        let took = began.elapsed();
        self.pairs.shared().set_slot(0);
        memory.memory_grown_bytes = memory.memory_deaf_bytes.saturating_sub(memory.memory_before_bytes);
        self.seen = seen;
        Ok(took)
    }

    /// They read again, until each has all. How long that took.
    fn read_again(&self, messages: u64, progress: &Progress) -> Result<Duration> {
        let began = Instant::now();
        self.pairs.shared().set_slot(AGAIN);
        self.crowd.set_deaf(false);
        let refused = self.senders.sent()?.refused;
        self.watch("they read again", messages, progress, |_, came| Ok(came + refused >= messages))?;
        let took = began.elapsed();
        self.pairs.shared().set_slot(0);
        progress.wait(REST, || self.check_alive())?;
        Ok(took)
    }

    /// Waits until `is_over`, or nothing moves any more: the findings say what is missing then.
    fn watch(
        &self,
        phase: &str,
        messages: u64,
        progress: &Progress,
        mut is_over: impl FnMut(Sent, u64) -> Result<bool>,
    ) -> Result<()> {
        let (mut moved, mut before) = (Instant::now(), (0, 0));
        progress.wait_until(WAIT_MAX, || {
            self.check_alive()?;
            let (sent, came) = (self.senders.sent()?, self.crowd.delivered());
            let [accepted, came_in_words, all] = [sent.acked, came, messages].map(grouped);
            progress.tell(format!(
                "{phase}: {accepted} of {all} messages accepted, {came_in_words} came, {} came back; honest: {}",
                self.crowd.comebacks(),
                self.pairs.shared().counters()
            ));
            if (sent.acked, came) != before {
                (moved, before) = (Instant::now(), (sent.acked, came));
            }
            Ok(is_over(sent, came)? || moved.elapsed() > STALL_MAX)
        })?;
        Ok(())
    }

    fn check_alive(&self) -> Result<()> {
        self.pairs.check_alive()?;
        self.crowd.check_alive()
    }

    fn close(
        self,
        options: &SlowOptions,
        rounds: u64,
        (deaf, read_again): (Duration, Duration),
        memory: Memory,
        progress: &Progress,
    ) -> Result<SlowResult> {
        let (sent, comebacks) = (self.senders.sent()?, self.crowd.comebacks());
        let senders = self.senders.close()?;
        let crowd = self.crowd.close(rounds * u64::from(options.clients) - sent.refused)?;
        let outcome = self.pairs.finish(DRAIN_MAX, progress)?;
        let [calm, deaf_slot, again] = [CALM, DEAF, AGAIN].map(|slot| percentiles(&outcome, slot));
        Ok(SlowResult {
            clients: options.clients,
            messages_of_each: rounds,
            messages_sent: sent.sent,
            messages_refused: sent.refused,
            message_rate_per_s: options.message_rate,
            deaf_s: deaf.as_secs_f64(),
            read_again_s: read_again.as_secs_f64(),
            crowd,
            comebacks,
            senders,
            findings: outcome.findings,
            honest_disconnects: outcome.links.disconnects,
            honest_errors_by_code: outcome.errors,
            violations: outcome.violations,
            ack_p99_ratio: p99_ratio(&calm.0, &deaf_slot.0),
            delivery_p99_ratio: p99_ratio(&calm.1, &deaf_slot.1),
            calm_ack_us: calm.0,
            deaf_ack_us: deaf_slot.0,
            again_ack_us: again.0,
            calm_delivery_us: calm.1,
            deaf_delivery_us: deaf_slot.1,
            again_delivery_us: again.1,
            memory,
            server: self.seen,
        })
    }
}

/// No phase lasts longer than a worker lives.
const WAIT_MAX: Duration = Duration::from_secs(12 * 3600);

fn answered(sent: Sent) -> u64 {
    sent.acked + sent.refused
}

/// From sending to the acknowledgement and to the recipient, in one slot.
fn percentiles(outcome: &PairOutcome, slot: u8) -> (Percentiles, Percentiles) {
    let slot = outcome.slots.get(usize::from(slot - 1)).expect("the run was started with all slots");
    (slot.ack.percentiles(), slot.delivery.percentiles())
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a run are below 2^52")]
fn p99_ratio(calm: &Percentiles, deaf: &Percentiles) -> f64 {
    if calm.p99 == 0 { 0.0 } else { deaf.p99 as f64 / calm.p99 as f64 }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a run are below 2^52")]
fn check(options: &SlowOptions, result: &SlowResult) -> Vec<String> {
    let mut misses = Misses::default();
    let crowd = &result.crowd;
    misses.expect(crowd.is_clean(), || format!("those who did not read: {crowd:?}"));
    misses.expect(result.messages_refused == 0, || format!("{} messages were refused", result.messages_refused));
    result.senders.check(&mut misses);
    let found = &result.findings;
    misses.expect(found.is_clean() && found.unanswered == 0, || format!("the honest pairs: {found:?}"));
    misses.expect(result.honest_disconnects == 0, || format!("{} honest connections lost", result.honest_disconnects));
    misses.expect(result.violations.is_empty(), || format!("protocol broken: {:?}", result.violations));
    misses.expect_unlimited(limited(&result.honest_errors_by_code));
    let compared = [
        ("acknowledgement", &result.calm_ack_us, &result.deaf_ack_us),
        ("delivery", &result.calm_delivery_us, &result.deaf_delivery_us),
    ];
    for (what, calm, deaf) in compared {
        let bound_us = calm.p99 as f64 * options.p99_ratio_max + options.slack_ms * 1e3;
        misses.expect(deaf.p99 as f64 <= bound_us, || {
            format!("honest {what} p99 is {} us beside clients that do not read, the bound {bound_us:.0} us", deaf.p99)
        });
    }
    let grown = result.memory.memory_grown_bytes;
    misses.expect(grown <= options.memory_grown_max, || {
        format!("{} bytes of memory more while they did not read", grouped(grown))
    });
    misses.into_vec()
}

fn render(result: &SlowResult) -> String {
    let mut times = Table::new(LATENCY_HEAD);
    times.row(latency_row("acknowledged, all read", &result.calm_ack_us));
    times.row(latency_row("acknowledged, they do not", &result.deaf_ack_us));
    times.row(latency_row("acknowledged, they do again", &result.again_ack_us));
    times.row(latency_row("delivered, all read", &result.calm_delivery_us));
    times.row(latency_row("delivered, they do not", &result.deaf_delivery_us));
    times.row(latency_row("delivered, they do again", &result.again_delivery_us));
    let SlowResult { crowd, memory, server, findings, .. } = result;
    format!(
        "{}\n{} clients that did not read for {:.0} s: {} messages each; {} delivered within {:.0} s of reading again, {} \
         lost, {} duplicated, {} reordered; {} ended, {} came back\nhonest: {} acknowledged, {} lost, {} duplicated, {} \
         reordered; p99 x {:.2} acknowledged, x {:.2} delivered\nserver: {} bytes of memory before, {} more while they did \
         not read, {} in the end; at most {:.0} connections blocked with {:.0} bytes unsent; {:.0} ended as slow readers, \
         {:.0} by keep-alive\n",
        times.render(),
        grouped(result.clients.into()),
        result.deaf_s,
        grouped(result.messages_of_each),
        grouped(crowd.delivered),
        result.read_again_s,
        crowd.lost,
        crowd.duplicated,
        crowd.reordered,
        grouped(crowd.disconnects),
        grouped(result.comebacks),
        grouped(findings.acked),
        findings.lost,
        findings.duplicated,
        findings.reordered,
        result.ack_p99_ratio,
        result.delivery_p99_ratio,
        grouped(memory.memory_before_bytes),
        grouped(memory.memory_grown_bytes),
        grouped(memory.memory_after_bytes),
        server.blocked_max,
        server.unsent_bytes_max,
        server.slow_readers,
        server.keep_alive_timeouts
    )
}
