//! `drain`: inboxes filled while their users are away, then all of them come and fetch.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use culver_protocol::client::{Client, ClientConfig, Event};
use culver_protocol::id::InboxSeq;
use serde::Serialize;

use super::pairs::shared::{Counters, Shared};
use crate::clock::Clock;
use crate::links::{LinkIndex, Links};
use crate::options::{RunOptions, TargetOptions};
use crate::plan::{self, PAYLOAD_LEN_MIN, PairPlan, Payloads, RunId};
use crate::procfs;
use crate::report::progress::Progress;
use crate::report::table::{Table, grouped};
use crate::report::{Document, JsonTo, Misses};
use crate::target::culver::Culver;
use crate::target::{Target, client_config};
use crate::units::Span;
use crate::verify::{Findings, FlowCheck};
use crate::worker::{self, Driver, Finished};

/// A worker ends by itself after this.
const RUN_US_MAX: u64 = 3600 * 1_000_000;
/// The slot number that tells the workers to let the recipients in.
const DRAINING: u8 = 1;

/// Options of `drain`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct DrainOptions {
    #[command(flatten)]
    target: TargetOptions,
    /// Users whose inboxes are filled and drained
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    users: u32,
    /// Messages in each inbox
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    messages: u32,
    /// Bytes of a payload
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(PAYLOAD_LEN_MIN as i64..=32768))]
    payload: u32,
    /// Messages under way per sender while the inboxes are filled
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    in_flight: u32,
    /// The first user's id [default: high and even, from the seed]
    #[arg(long)]
    first_user: Option<u64>,
    /// Longest wait for the inboxes to fill, and again for them to drain
    #[arg(long, default_value = "120s")]
    timeout: Span,
    /// Entries delivered per second of server CPU, at least
    #[arg(long, value_name = "N")]
    entries_per_cpu_s_min: Option<f64>,
    /// Growth of the server's memory while it drains, at most
    #[arg(long, value_name = "BYTES")]
    rss_growth_bytes_max: Option<u64>,
    #[command(flatten)]
    run: RunOptions,
}

#[derive(Serialize)]
struct DrainResult {
    #[serde(flatten)]
    findings: Findings,
    fill_s: f64,
    drain_s: f64,
    entries_per_s: f64,
    entries_per_server_cpu_s: f64,
    server_cpu_us_per_entry: f64,
    /// The most that the server's memory grew while it drained, without memtables and cache.
    rss_growth_bytes: u64,
    disconnects: u64,
}

impl DrainOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }
}

/// Runs the scenario.
pub(crate) fn run(mut options: DrainOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    let progress = options.run.progress("drain");
    let mut culver = options.target.find()?;
    let result = measure(&options, seed, &mut culver, &progress)?;
    let missed = check(&options, &result);
    let text = render(&result);
    Document::new("drain", seed, &options, &result, text, missed)
}

fn measure(options: &DrainOptions, seed: u64, culver: &mut Culver, progress: &Progress) -> Result<DrainResult> {
    let shared = Arc::new(Shared::default());
    let workers = start_workers(options, seed, culver, &shared)?;
    let entries = u64::from(options.users) * u64::from(options.messages);
    let wait = |what: &str, over: &mut dyn FnMut(Counters) -> Result<bool>| {
        let reached = progress.wait_until(options.timeout.0, || {
            progress.tell(format!("{what}: {}", shared.counters()));
            if workers.iter().any(JoinHandle::is_finished) || shared.refused().is_some() {
                bail!("a worker ended before its time, or the server refuses the clients: {:?}", shared.refused());
            }
            over(shared.counters())
        })?;
        if !reached {
            bail!("{what}: not done within {}: {}", options.timeout, shared.counters());
        }
        Ok(())
    };
    let filling = Instant::now();
    wait("filling", &mut |counters| Ok(counters.acked >= entries))?;
    let fill_s = filling.elapsed().as_secs_f64();

    let pid = procfs::listener_pid(options.target.address().port());
    let before = culver.sample()?;
    let mut rss_peak = before.rss_bytes;
    let draining = Instant::now();
    shared.set_slot(DRAINING);
    wait("draining", &mut |counters| {
        if let Some(pid) = pid {
            rss_peak = rss_peak.max(procfs::rss_bytes(pid)?);
        }
        Ok(counters.delivered >= entries)
    })?;
    let drain_s = draining.elapsed().as_secs_f64();
    let after = culver.sample()?;
    // The last acknowledgements may be on their way still: cursors are not awaited.
    shared.stop();
    let (findings, disconnects) = finish(workers)?;
    let cpu_s = crate::clock::seconds(after.cpu_us.saturating_sub(before.cpu_us));
    let engine_growth = after.engine_bytes.saturating_sub(before.engine_bytes);
    let delivered = to_float(findings.delivered);
    Ok(DrainResult {
        findings,
        fill_s,
        drain_s,
        entries_per_s: delivered / drain_s,
        entries_per_server_cpu_s: if cpu_s > 0.0 { delivered / cpu_s } else { 0.0 },
        server_cpu_us_per_entry: if delivered > 0.0 { cpu_s * 1e6 / delivered } else { 0.0 },
        rss_growth_bytes: rss_peak.max(after.rss_bytes).saturating_sub(before.rss_bytes + engine_growth),
        disconnects,
    })
}

type Workers = Vec<JoinHandle<io::Result<Finished<DrainDriver>>>>;

fn start_workers(options: &DrainOptions, seed: u64, culver: &Culver, shared: &Arc<Shared>) -> Result<Workers> {
    let clock = Clock::start();
    let run = RunId(crate::clock::unix_ms().wrapping_mul(1 << 16) ^ u64::from(std::process::id()));
    let first_user = options.first_user.unwrap_or_else(|| plan::first_user(seed));
    let hands = plan::deal(plan::pairs(first_user, options.users as usize), options.run.workers());
    let mut workers = Vec::new();
    for (number, plans) in hands.into_iter().enumerate().filter(|(_, plans)| !plans.is_empty()) {
        let configs = |user: fn(&PairPlan) -> culver_protocol::id::UserId| {
            let config = |plan| client_config(culver, user(plan), plan::DEVICE, seed);
            plans.iter().map(config).collect::<Result<Vec<_>>>()
        };
        let driver = DrainDriver {
            senders: configs(|plan| plan.sender)?,
            recipients: configs(|plan| plan.recipient)?,
            flows: plans.iter().map(|plan| (*plan, FlowCheck::default())).collect(),
            messages: u64::from(options.messages),
            in_flight: u64::from(options.in_flight),
            payloads: Payloads::new(run, options.payload as usize, seed),
            run,
            shared: Arc::clone(shared),
            turn: Counters::default(),
            done: false,
        };
        let deadline_us = clock.now_us() + RUN_US_MAX;
        let worker = worker::spawn(format!("drain-{number}"), culver.address(), clock, deadline_us, driver);
        workers.push(worker.context("cannot start a worker")?);
    }
    Ok(workers)
}

fn finish(workers: Workers) -> Result<(Findings, u64)> {
    let (mut findings, mut disconnects) = (Findings::default(), 0);
    for worker in workers {
        let finished = worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?.context("a worker failed")?;
        for (_, check) in &finished.driver.flows {
            findings.add(&check.findings());
        }
        disconnects += finished.counts.disconnects;
    }
    Ok((findings, disconnects))
}

/// Fills and drains. Links: the senders first, in the order of the flows, then the recipients. Sans-io.
struct DrainDriver {
    senders: Vec<ClientConfig>,
    recipients: Vec<ClientConfig>,
    flows: Vec<(PairPlan, FlowCheck)>,
    messages: u64,
    in_flight: u64,
    payloads: Payloads,
    run: RunId,
    shared: Arc<Shared>,
    turn: Counters,
    done: bool,
}

impl DrainDriver {
    fn flow(&mut self, index: LinkIndex) -> &mut (PairPlan, FlowCheck) {
        let place = index.0 % self.flows.len();
        self.flows.get_mut(place).expect("a remainder of the length")
    }

    fn refill(&mut self, index: LinkIndex, client: &mut Client, now_us: u64) {
        loop {
            let (messages, in_flight) = (self.messages, self.in_flight);
            let (plan, check) = self.flow(index);
            if check.sent_count() >= messages || check.unanswered() >= in_flight {
                return;
            }
            let (conversation, number) = (plan.conversation, check.sent(now_us, 0));
            let id = plan::message_id(self.run, number);
            let sent = client.send(id, conversation, self.payloads.make(number), now_us);
            sent.expect("far fewer messages are under way than a client takes");
            self.turn.sent += 1;
        }
    }
}

impl Driver for DrainDriver {
    fn begin(&mut self, links: &mut Links, now_us: u64) {
        for config in std::mem::take(&mut self.senders) {
            let index = links.add(config, None, now_us);
            self.refill(index, links.client(index), now_us);
        }
    }

    fn handle_event(&mut self, index: LinkIndex, client: &mut Client, event: Event, now_us: u64) {
        match event {
            Event::Sent(accepted) => {
                if let Some(number) = plan::message_index(self.run, &accepted.client_message_id.0) {
                    self.flow(index).1.acked(number, accepted.conversation_seq.0);
                    self.turn.acked += 1;
                }
                self.refill(index, client, now_us);
            }
            Event::Rejected { id, retry: false, .. } => {
                if let Some(number) = plan::message_index(self.run, &id.0) {
                    self.flow(index).1.rejected(number);
                }
            }
            Event::Delivered(entry) => {
                if let Some(number) = plan::message_index(self.run, &entry.payload) {
                    self.flow(index).1.delivered(number, entry.conversation_seq);
                    self.turn.delivered += 1;
                }
                client.persisted(InboxSeq(entry.inbox_seq));
            }
            Event::Stopped { code } | Event::CredentialNeeded { code } => self.shared.refuse(code),
            _ => {}
        }
    }

    fn handle_turn(&mut self, links: &mut Links, now_us: u64) -> Option<u64> {
        if self.shared.slot() == DRAINING {
            for config in std::mem::take(&mut self.recipients) {
                links.add(config, None, now_us);
            }
        }
        self.done = self.shared.is_stopped();
        None
    }

    fn before_write(&mut self) -> io::Result<()> {
        self.shared.count(std::mem::take(&mut self.turn));
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.done
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of entries are below 2^52")]
fn to_float(count: u64) -> f64 {
    count as f64
}

fn check(options: &DrainOptions, result: &DrainResult) -> Vec<String> {
    let mut misses = Misses::default();
    let found = &result.findings;
    misses.expect(found.is_clean(), || {
        format!("{} lost, {} duplicated, {} reordered", found.lost, found.duplicated, found.reordered)
    });
    if let Some(min) = options.entries_per_cpu_s_min {
        let found = result.entries_per_server_cpu_s;
        misses.expect(found >= min, || format!("{found:.0} entries per second of server CPU, not {min}"));
    }
    if let Some(max) = options.rss_growth_bytes_max {
        let found = result.rss_growth_bytes;
        misses.expect(found <= max, || format!("memory grew by {found} bytes, not {max}"));
    }
    misses.into_vec()
}

fn render(result: &DrainResult) -> String {
    let found = &result.findings;
    let mut table = Table::new(["drain", ""]);
    let rows = [
        ("entries delivered", grouped(found.delivered)),
        ("lost · duplicated · reordered", format!("{} · {} · {}", found.lost, found.duplicated, found.reordered)),
        ("filled in", format!("{:.2} s", result.fill_s)),
        ("drained in", format!("{:.2} s", result.drain_s)),
        ("entries per second", format!("{:.0}", result.entries_per_s)),
        ("entries per server CPU second", format!("{:.0}", result.entries_per_server_cpu_s)),
        ("memory growth", format!("{} bytes", grouped(result.rss_growth_bytes))),
    ];
    for (name, value) in rows {
        table.row(vec![name.to_owned(), value]);
    }
    table.render()
}
