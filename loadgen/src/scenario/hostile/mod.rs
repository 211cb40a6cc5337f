//! `hostile`: attackers of every kind beside honest pairs, whose latency must not notice.

mod attack;
mod crowd;
mod inbox;
mod raw;
mod sealed;
mod slow;
mod tally;
#[cfg(test)]
mod tests;
mod way;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use culver_protocol::id::{DeviceId, UserId};
use culver_protocol::limits::DEVICES_MAX;
use serde::Serialize;

use self::attack::{Attack, Material, attacks};
use self::crowd::{Crowd, CrowdFigures};
use self::sealed::{SEALED, SealedAttack};
use self::slow::{HALF, REPLAYED_IK, REPLAYED_TICKET, Recorded, SlowAttack, Who};
use self::tally::Tally;
use self::way::Way;
use super::pairs::{PairOutcome, PairRun};
use crate::clock::Clock;
use crate::links::raise_descriptor_limit;
use crate::options::{PairOptions, RunOptions, TargetOptions, rate};
use crate::plan::{self, DEVICE};
use crate::report::histogram::Percentiles;
use crate::report::progress::Progress;
use crate::report::table::{LATENCY_HEAD, Table, grouped, latency_row};
use crate::report::{Document, JsonTo, Misses, limited};
use crate::target::Target;
use crate::target::culver::Culver;
use crate::target::sealing::device_key;
use crate::units::Span;
use crate::verify::Findings;

const CALM: u8 = 1;
const ATTACKED: u8 = 2;
/// Rest after an attack, so that its last closes do not count as calm.
const REST: Duration = Duration::from_secs(2);
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// Messages a second of the honest pairs where nothing else is asked for.
const RATE_DEFAULT: f64 = 1000.0;
/// How often the server is asked for its memory during an attack: the question costs it something, too.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// The sessions whose first flights a crowd replays.
const REPLAYED_BY_CROWD: &str = "session whose first flight a crowd replays";
/// The attackers' users: one per kind of attack, apart from the honest ones by this.
const ATTACKER_OFFSET: u64 = 1 << 30;

/// Options of `hostile`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct HostileOptions {
    #[command(flatten)]
    target: TargetOptions,
    #[command(flatten)]
    pairs: PairOptions,
    /// Times calm and attack by turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each calm lasts
    #[arg(long, default_value = "10s")]
    calm: Span,
    /// How long each attack lasts: longer than the server's patience with logins, or that cannot be judged
    #[arg(long, default_value = "18s")]
    attack: Span,
    /// Attacks a second, of the kinds that are over at once: bounded, for the attackers use the same cores
    #[arg(long, default_value_t = 100.0, value_name = "PER_S", value_parser = rate)]
    attack_rate: f64,
    /// Connections that never log in, opened in each attack
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=60_000))]
    silent: u32,
    /// How fast they are opened
    #[arg(long, default_value_t = 2000.0, value_name = "PER_S", value_parser = rate)]
    silent_rate: f64,
    /// Logins that trickle one byte a second, in each attack
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    trickling: u32,
    /// Handshakes that stop half way, and copies of others' first flights, in each attack where connections are sealed
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    halves: u32,
    /// Connections of a crowd that says nothing, garbage, halves of handshakes and what others have sent before, each
    /// opened again when the server has ended it; 0: none. The kinds that are over at once stay away then, for they
    /// would be told to come later, as everybody whose login needs a Diffie-Hellman
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=200_000))]
    crowd: u32,
    /// What the crowd may use of one core, for it shares the machine with the server
    #[arg(long, default_value_t = 33.0, value_name = "PER_CENT", value_parser = rate)]
    crowd_cpu: f64,
    /// How long the server waits for a login
    #[arg(long, default_value = "10s")]
    login_timeout: Span,
    /// The honest p99 under attack at most so many times the calm one, plus --slack-ms
    #[arg(long, default_value_t = 1.25, value_name = "RATIO")]
    p99_ratio_max: f64,
    /// What --p99-ratio-max adds
    #[arg(long, default_value_t = 1.0, value_name = "MS")]
    slack_ms: f64,
    /// Memory that the server may keep when all attackers have left
    #[arg(long, default_value_t = 16 << 20, value_name = "BYTES")]
    memory_kept_max: u64,
    /// How much more memory the server may hold during an attack than before
    #[arg(long, value_name = "BYTES")]
    memory_grown_max: Option<u64>,
    #[command(flatten)]
    run: RunOptions,
}

#[derive(Serialize)]
struct HostileResult {
    rounds: u32,
    expectations_met: u64,
    expectations_unmet: u64,
    attacks_failed: u64,
    attacks: Tally,
    attack_rate_per_s: f64,
    silent_connections: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    crowd: Option<CrowdFigures>,
    /// Of `attacks`, those on encryption itself: kinds and strikes.
    encryption: EncryptionFigures,
    #[serde(flatten)]
    findings: Findings,
    honest_disconnects: u64,
    errors_by_code: BTreeMap<u32, u64>,
    calm_ack_us: Percentiles,
    attacked_ack_us: Percentiles,
    calm_delivery_us: Percentiles,
    attacked_delivery_us: Percentiles,
    ack_p99_ratio: f64,
    delivery_p99_ratio: f64,
    memory_before_bytes: u64,
    /// The most that was seen during an attack.
    memory_attacked_bytes: u64,
    memory_grown_bytes: u64,
    memory_after_bytes: u64,
    memory_kept_bytes: u64,
    violations: Vec<String>,
}

/// What became of the attacks on encryption.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct EncryptionFigures {
    kinds: u64,
    met: u64,
    unmet: u64,
}

impl EncryptionFigures {
    fn of(attacks: &Tally) -> Self {
        let names = SEALED.iter().map(|attack| attack.name).chain([HALF, REPLAYED_IK, REPLAYED_TICKET]);
        let kinds = names.filter_map(|name| attacks.kinds.get(name));
        kinds.fold(Self::default(), |sum, kind| Self {
            kinds: sum.kinds + 1,
            met: sum.met + kind.met,
            unmet: sum.unmet + kind.unmet + kind.failed,
        })
    }
}

impl HostileOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }
}

/// Runs the scenario.
pub(crate) fn run(mut options: HostileOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    options.pairs.default_to_rate(RATE_DEFAULT);
    if options.crowd > 0 {
        options.halves = 0; // the crowd has its own
    }
    let progress = options.run.progress("hostile");
    let slow = options.silent + options.trickling + 3 * options.halves;
    raise_descriptor_limit((slow + 2 * options.pairs.pairs) as usize)?;
    let mut culver = options.target.find()?;
    let way = Way::find(options.target.address(), culver.sealing())?;
    let load = options.pairs.load(&options.run, seed, 0);
    let run = PairRun::start(&culver, &load, 2, Clock::start())?;
    run.wait_for_logins(&progress)?;
    run.shared().go();
    progress.wait(REST, || run.check_alive())?;
    let (mut tally, mut crowd, mut memory) = (Tally::default(), CrowdFigures::default(), Memory::default());
    for round in 1..=options.rounds {
        run.shared().set_slot(CALM);
        hold(&options.calm, &format!("round {round}, calm"), &run, &progress)?;
        run.shared().set_slot(0);
        if round == 1 {
            memory.before_bytes = culver.sample()?.plain_bytes();
        }
        let attackers = Attackers::start(&options, (&culver, way), load.first_user + ATTACKER_OFFSET, seed, round)?;
        run.shared().set_slot(ATTACKED);
        let mut next_sample = Instant::now();
        progress.wait(options.attack.0, || {
            if Instant::now() >= next_sample {
                next_sample += SAMPLE_EVERY;
                memory.attacked_bytes = memory.attacked_bytes.max(culver.sample()?.plain_bytes());
            }
            let open = attackers.crowd.as_ref().map_or(0, |(crowd, _)| crowd.open());
            progress.tell(format!("round {round}, attack, a crowd of {open}: {}", run.shared().counters()));
            run.check_alive()
        })?;
        run.shared().set_slot(0);
        let (tally_of_round, crowd_of_round) = attackers.finish()?;
        tally.add(tally_of_round);
        crowd.add(crowd_of_round);
        hold(&Span(REST), "resting", &run, &progress)?;
    }
    memory.after_bytes = culver.sample()?.plain_bytes();
    let outcome = run.finish(DRAIN_MAX, &progress)?;
    let crowd = (options.crowd > 0).then_some(crowd);
    let result = HostileResult::new(&options, (tally, crowd), outcome, memory);
    let missed = check(&options, &result);
    let text = render(&result);
    Document::new("hostile", seed, &options, &result, text, missed)
}

fn hold(span: &Span, phase: &str, run: &PairRun, progress: &Progress) -> Result<()> {
    progress.wait(span.0, || {
        progress.tell(format!("{phase}: {}", run.shared().counters()));
        run.check_alive()
    })
}

/// What the server holds that is neither memtable nor cache.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    before_bytes: u64,
    /// The most that was seen during an attack.
    attacked_bytes: u64,
    after_bytes: u64,
}

/// A crowd, and the thread that waits for its end.
type RunningCrowd = (Arc<Crowd>, JoinHandle<Result<(CrowdFigures, Tally)>>);

/// The attacking threads of one round.
struct Attackers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Tally>>>,
    crowd: Option<RunningCrowd>,
}

impl Attackers {
    fn start(
        options: &HostileOptions,
        (culver, way): (&Culver, Way),
        user: u64,
        seed: u64,
        round: u32,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (quick_stop, slow_stop) = (Arc::clone(&stop), Arc::clone(&stop));
        let materials = materials(culver, way, user, seed, round)?;
        let rate = options.attack_rate;
        let slow = SlowAttack {
            silent: options.silent as usize,
            silent_per_s: options.silent_rate,
            trickling: options.trickling as usize,
            halves: options.halves as usize,
            login_timeout: options.login_timeout.0,
            way,
            attacker: who(culver, UserId(user), DEVICE)?,
            victims: [who(culver, UserId(user + 1), DEVICE)?, who(culver, UserId(user + 2), DEVICE)?],
        };
        let slow_thread = std::thread::Builder::new().name("slow-attacker".to_owned());
        let slow_thread = slow_thread.spawn(move || slow.run(&slow_stop));
        let mut threads = vec![slow_thread.context("cannot start a thread")?];
        if options.crowd == 0 {
            let quick = std::thread::Builder::new().name("attacker".to_owned());
            let quick = quick.spawn(move || strike_in_turn(materials, rate, &quick_stop));
            threads.push(quick.context("cannot start a thread")?);
        }
        let crowd = (options.crowd > 0).then(|| {
            let victims = [DEVICE, DeviceId(DEVICE.0 + 1)].map(|device| who(culver, UserId(user + 3), device));
            start_crowd(options, way, victims, seed.wrapping_add(round.into()), Arc::clone(&stop))
        });
        Ok(Self { stop, threads, crowd: crowd.transpose()? })
    }

    fn finish(self) -> Result<(Tally, CrowdFigures)> {
        self.stop.store(true, Ordering::Relaxed);
        let (mut tally, mut crowd) = (Tally::default(), CrowdFigures::default());
        let panicked = |_| anyhow::anyhow!("an attacker panicked");
        for thread in self.threads {
            tally.add(thread.join().map_err(panicked)??);
        }
        if let Some((_, thread)) = self.crowd {
            let (figures, seen) = thread.join().map_err(panicked)??;
            crowd = figures;
            tally.add(seen);
        }
        Ok((tally, crowd))
    }
}

/// Starts a crowd. What it replays are the first flights of sessions that must live on beside it.
fn start_crowd(
    options: &HostileOptions,
    way: Way,
    victims: [Result<Who>; 2],
    seed: u64,
    stop: Arc<AtomicBool>,
) -> Result<RunningCrowd> {
    let [one, two] = victims;
    let (one, two) = (one?, two?);
    let recorded = match way.sealed {
        Some((sealing, _)) => vec![Recorded::login(&way, &one)?, Recorded::ticket(&way, &two, sealing)?],
        None => vec![Recorded::login(&way, &one)?],
    };
    let flights = recorded.iter().map(|recorded| recorded.flight.clone()).collect();
    let size = (options.crowd as usize, options.crowd_cpu);
    let life_max = options.login_timeout.0 + slow::END_PATIENCE;
    let crowd = Arc::new(Crowd::new(way, size, life_max, seed, &one, flights)?);
    let running = Arc::clone(&crowd);
    let thread = std::thread::Builder::new().name("crowds".to_owned()).spawn(move || {
        let (figures, mut tally) = (running.run(&stop)?, Tally::default());
        for mut recorded in recorded {
            match recorded.honest.is_alive()? {
                true => tally.met(REPLAYED_BY_CROWD),
                false => tally.unmet(REPLAYED_BY_CROWD, "the honest session ended"),
            }
        }
        Ok((figures, tally))
    });
    Ok((crowd, thread.context("cannot start a thread")?))
}

/// What each kind of attack is made from: a user of its own, so that no attacker replaces another.
fn materials(culver: &Culver, way: Way, first_user: u64, seed: u64, round: u32) -> Result<Vec<Material>> {
    let make = |index: u64| {
        let user = UserId(first_user + 4 * (index + 1));
        let credentials = culver.credentials();
        let Who { own, token } = who(culver, user, DEVICE)?;
        let key = way.sealed.map(|_| own.public());
        let others = other_devices().map(|device| who(culver, user, device));
        let others = others.map(|who| who.map(|Who { own, token }| (own, token))).collect::<Result<_>>()?;
        Ok(Material {
            way,
            rng: plan::rng(seed, &format!("attack {index} in round {round}")),
            user,
            token_without_key: credentials.token(user, DEVICE, None)?,
            token_expired: credentials.token_expired(user, DEVICE, key)?,
            token_otherwise_signed: credentials.token_otherwise_signed(user, DEVICE, key)?,
            token_elsewhere: credentials.token_for_audience(user, DEVICE, key, "another-service")?,
            token,
            others,
            own,
        })
    };
    let sealed = if way.sealed.is_some() { SEALED.len() } else { 0 };
    (0..(attacks().count() + sealed) as u64).map(make).collect()
}

/// The key of a device, and a token that names it where connections are sealed.
fn who(culver: &Culver, user: UserId, device: DeviceId) -> Result<Who> {
    let own = device_key(user, device);
    let key = culver.sealing().map(|_| own.public());
    let token = culver.credentials().token(user, device, key)?;
    Ok(Who { own: Arc::new(own), token })
}

/// As many as a user may have, without the attacker's own.
fn other_devices() -> impl Iterator<Item = DeviceId> {
    (1..).map(|number| DeviceId(DEVICE.0 + number)).take(DEVICES_MAX)
}

/// All kinds in turn, at most `rate` a second.
fn strike_in_turn(mut materials: Vec<Material>, rate: f64, stop: &AtomicBool) -> Result<Tally> {
    let mut tally = Tally::default();
    let pause = Duration::from_secs_f64(1.0 / rate.max(0.1));
    let mut next = Instant::now();
    loop {
        let kinds = attacks().map(Quick::Any).chain(SEALED.iter().map(Quick::Sealed));
        for (attack, material) in kinds.zip(&mut materials) {
            if stop.load(Ordering::Relaxed) {
                return Ok(tally);
            }
            let (name, outcome) = attack.strike(material);
            match outcome {
                Ok(None) => tally.met(name),
                Ok(Some(why)) => tally.unmet(name, &why),
                Err(error) => tally.failed(name, &format!("{error:#}")),
            }
            next = (next + pause).max(Instant::now());
            std::thread::sleep(next.saturating_duration_since(Instant::now()).min(Duration::from_millis(200)));
        }
    }
}

/// An attack that is over at once.
enum Quick {
    Any(&'static Attack),
    Sealed(&'static SealedAttack),
}

impl Quick {
    fn strike(&self, material: &mut Material) -> (&'static str, Result<Option<String>>) {
        match self {
            Self::Any(attack) => (attack.name, attack.strike(material)),
            Self::Sealed(attack) => (attack.name, attack.strike(material)),
        }
    }
}

impl HostileResult {
    fn new(
        options: &HostileOptions,
        (attacks, crowd): (Tally, Option<CrowdFigures>),
        outcome: PairOutcome,
        memory: Memory,
    ) -> Self {
        let sum = |count: fn(&tally::Kind) -> u64| attacks.kinds.values().map(count).sum();
        let percentiles = |slot: u8, delivery: bool| {
            let slot = outcome.slots.get(usize::from(slot - 1)).expect("the run was started with two slots");
            if delivery { slot.delivery.percentiles() } else { slot.ack.percentiles() }
        };
        let (calm_ack_us, attacked_ack_us) = (percentiles(CALM, false), percentiles(ATTACKED, false));
        let (calm_delivery_us, attacked_delivery_us) = (percentiles(CALM, true), percentiles(ATTACKED, true));
        Self {
            rounds: options.rounds,
            expectations_met: sum(|kind| kind.met),
            expectations_unmet: sum(|kind| kind.unmet),
            attacks_failed: sum(|kind| kind.failed),
            encryption: EncryptionFigures::of(&attacks),
            attacks,
            attack_rate_per_s: options.attack_rate,
            silent_connections: options.silent,
            crowd,
            findings: outcome.findings,
            honest_disconnects: outcome.links.disconnects,
            errors_by_code: outcome.errors,
            ack_p99_ratio: p99_ratio(&calm_ack_us, &attacked_ack_us),
            delivery_p99_ratio: p99_ratio(&calm_delivery_us, &attacked_delivery_us),
            calm_ack_us,
            attacked_ack_us,
            calm_delivery_us,
            attacked_delivery_us,
            memory_before_bytes: memory.before_bytes,
            memory_attacked_bytes: memory.attacked_bytes,
            memory_grown_bytes: memory.attacked_bytes.saturating_sub(memory.before_bytes),
            memory_after_bytes: memory.after_bytes,
            memory_kept_bytes: memory.after_bytes.saturating_sub(memory.before_bytes),
            violations: outcome.violations,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a run are below 2^52")]
fn p99_ratio(calm: &Percentiles, attacked: &Percentiles) -> f64 {
    if calm.p99 == 0 { 0.0 } else { attacked.p99 as f64 / calm.p99 as f64 }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a run are below 2^52")]
fn check(options: &HostileOptions, result: &HostileResult) -> Vec<String> {
    let mut misses = Misses::default();
    for (name, kind) in &result.attacks.kinds {
        let first = kind.first.as_deref().unwrap_or_default();
        misses.expect(kind.unmet == 0 && kind.failed == 0, || {
            format!("{name}: {} of {} unmet, {} failed: {first}", kind.unmet, kind.unmet + kind.met, kind.failed)
        });
        misses.expect(kind.met > 0, || format!("{name}: never carried out"));
    }
    let slow = [("connection that never logs in", options.silent), ("login that trickles", options.trickling)];
    let is_sealed = options.target.suite().suite().is_some();
    let half = if is_sealed { options.halves } else { 0 };
    let slow = slow.into_iter().chain([HALF, REPLAYED_IK, REPLAYED_TICKET].map(|name| (name, half)));
    for (name, count) in slow {
        misses.expect(count == 0 || result.attacks.kinds.contains_key(name), || format!("{name}: never judged"));
    }
    let found = &result.findings;
    misses.expect(found.is_clean() && found.unanswered == 0, || format!("the honest pairs: {found:?}"));
    misses.expect(result.honest_disconnects == 0, || format!("{} honest connections lost", result.honest_disconnects));
    misses.expect(result.violations.is_empty(), || format!("protocol broken: {:?}", result.violations));
    misses.expect_unlimited(limited(&result.errors_by_code));
    let compared = [
        ("acknowledgement", &result.calm_ack_us, &result.attacked_ack_us),
        ("delivery", &result.calm_delivery_us, &result.attacked_delivery_us),
    ];
    for (what, calm, attacked) in compared {
        let bound_us = calm.p99 as f64 * options.p99_ratio_max + options.slack_ms * 1e3;
        misses.expect(attacked.p99 as f64 <= bound_us, || {
            format!("honest {what} p99 is {} us under attack, the bound {bound_us:.0} us", attacked.p99)
        });
    }
    if let Some(crowd) = &result.crowd {
        misses.expect(crowd.outlived == 0, || {
            format!("{} of the crowd lived longer than a login may take", crowd.outlived)
        });
        misses.expect(crowd.at_once_max >= options.crowd.into(), || {
            let most = crowd.at_once_max;
            format!("the crowd was never more than {most}: let it use more with --crowd-cpu, or attack longer")
        });
    }
    let grown = result.memory_grown_bytes;
    let grown_max = options.memory_grown_max.unwrap_or(u64::MAX);
    misses.expect(grown <= grown_max, || format!("{grown} bytes of memory more during an attack"));
    let kept = result.memory_kept_bytes;
    misses.expect(kept <= options.memory_kept_max, || format!("{kept} bytes of memory kept"));
    misses.into_vec()
}

fn render(result: &HostileResult) -> String {
    let mut attacks = Table::new(["attack", "as expected", "otherwise", "failed"]);
    for (name, kind) in &result.attacks.kinds {
        let counts = [kind.met, kind.unmet, kind.failed].map(grouped);
        attacks.row([name.clone()].into_iter().chain(counts).collect());
    }
    let mut times = Table::new(LATENCY_HEAD);
    times.row(latency_row("acknowledged, calm", &result.calm_ack_us));
    times.row(latency_row("acknowledged, attacked", &result.attacked_ack_us));
    times.row(latency_row("delivered, calm", &result.calm_delivery_us));
    times.row(latency_row("delivered, attacked", &result.attacked_delivery_us));
    let found = &result.findings;
    let crowd = result.crowd.map_or_else(String::new, |crowd| {
        format!(
            "crowd: {} at once, {} opened, {} ended by the server, {} not opened, {} lived too long; {:.0} % of a core\n",
            grouped(crowd.at_once_max),
            grouped(crowd.opened),
            grouped(crowd.ended),
            grouped(crowd.not_opened),
            grouped(crowd.outlived),
            crowd.cpu_percent
        )
    });
    format!(
        "{}\n{}\non encryption: {} kinds, {} times as expected, {} otherwise\nhonest: {} acknowledged, {} lost, {} duplicated, {} reordered; p99 x {:.2} acknowledged, x {:.2} \
         delivered; {} bytes of memory more while attacked, {} kept\n{}",
        attacks.render(),
        times.render(),
        result.encryption.kinds,
        grouped(result.encryption.met),
        grouped(result.encryption.unmet),
        grouped(found.acked),
        found.lost,
        found.duplicated,
        found.reordered,
        result.ack_p99_ratio,
        result.delivery_p99_ratio,
        grouped(result.memory_grown_bytes),
        grouped(result.memory_kept_bytes),
        crowd
    )
}
