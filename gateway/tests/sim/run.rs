//! Runs worlds: one seed, many seeds on all cores, or for hours; tells of failures so that they can be replayed.
//!
//! Owns the command line (by environment, see `scripts/sim`) and what is printed. Never touches the inside of a world.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use crate::oracle::Tally;
use crate::shrink::{shrink, tame};
use crate::source::Source;
use crate::trace::Trace;
use crate::world::World;

/// Longest search for a smaller world that fails the same way, and then for a shorter run of it.
const SHRINK_TIME: Duration = Duration::from_secs(30);
/// About so many choices decide what a world is, before its first step.
const CHOICES_OF_PLAN: usize = 100;
/// Lines of a trace that are printed.
const LINES_MAX: usize = 400;
/// How often it is told how far many seeds are.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Failures after which the rest of the seeds need not be run.
pub(crate) const FAILURES_MAX: usize = 5;

thread_local! {
    /// What the last panic of this thread said, and where.
    static PANICKED: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What the check said.
    pub message: String,
    /// File and line of the check.
    pub place: String,
}

impl Failure {
    /// Whether it is the same promise: the same check, whatever the facts.
    fn is_like(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Run {
    /// Inputs to sessions, hubs, clients and engines.
    pub events: u64,
    /// What it chose.
    pub choices: Vec<u32>,
    /// How often came to pass what is rare.
    pub tally: Tally,
    /// What happened, if it was noted.
    pub trace: Trace,
    /// What went wrong.
    pub failure: Option<Failure>,
}

/// Panics of worlds are caught and told of once, in words of our own.
fn catch_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IN_WORLD.get() {
                return usual(info);
            }
            let payload = info.payload();
            let message = payload.downcast_ref::<String>().cloned();
            let message = message.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let place = info.location().map_or_else(String::new, |at| format!("{}:{}", at.file(), at.line()));
            let failure = Failure { message: message.unwrap_or_default(), place };
            PANICKED.set(Some(failure));
        }));
    });
}

thread_local! {
    static IN_WORLD: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs the world of these choices.
pub(crate) fn run(source: Source, trace: Trace) -> Run {
    catch_panics();
    let mut world = World::new(source, trace);
    IN_WORLD.set(true);
    let ended = panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    let failure = ended.err().map(|_| PANICKED.take().expect("the hook has noted it"));
    let run = Run {
        events: world.events,
        choices: world.source.taken().to_vec(),
        tally: world.oracle.tally,
        trace: std::mem::take(&mut world.trace),
        failure,
    };
    // A world that was broken off may break again where it is dropped: that says nothing new.
    drop(panic::catch_unwind(AssertUnwindSafe(|| drop(world))));
    IN_WORLD.set(false);
    run
}

/// What came of many seeds.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// Worlds that ran to their end.
    pub worlds: u64,
    /// Their events.
    pub events: u64,
    /// The least that any had.
    pub events_min: u64,
    /// Seeds that broke a promise.
    pub failures: Vec<(u64, Failure)>,
    /// How often came to pass what is rare.
    pub tally: Tally,
    /// Processor time of all threads.
    pub cpu: Duration,
}

impl Summary {
    fn add(&mut self, seed: u64, run: Run, cpu: Duration) {
        let events = run.events;
        self.worlds += 1;
        self.events += events;
        self.cpu += cpu;
        self.tally.add(&run.tally);
        match run.failure {
            Some(failure) => {
                println!("seed {seed}: {}", failure.message);
                self.failures.push((seed, failure));
            }
            None => self.events_min = self.events_min.min(events),
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let Self { worlds, events, events_min, failures, tally, cpu } = self;
        let Tally { logins_busy, removals, names, keys_learned, waited, forgotten } = tally;
        let per_cpu_s = *events as f64 / cpu.as_secs_f64().max(1e-9);
        let (mean, failed) = (events / (*worlds).max(1), failures.len());
        format!(
            "{worlds} seeds, {events} events ({mean} a seed, at least {events_min}), {per_cpu_s:.0} events per CPU-second, \
             {failed} failed; {logins_busy} logins told to wait, {removals} devices removed, {names} named, {keys_learned} \
             new server keys learned, {waited} waited for a process, {forgotten} forgotten"
        )
    }
}

/// Runs `count` seeds from `first` on, or until the time is over, on all cores. Tells how far it is once a minute.
pub(crate) fn run_seeds(first: u64, count: u64, until: Option<Instant>, failures_max: usize) -> Summary {
    let next = AtomicU64::new(first);
    let shared = Mutex::new((Summary { events_min: u64::MAX, ..Summary::default() }, Instant::now()));
    let worker = || {
        let mut cpu_before = thread_cpu();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed - first >= count || until.is_some_and(|until| Instant::now() >= until) {
                return;
            }
            let run = run(Source::seeded(seed), Trace::off());
            let cpu = thread_cpu();
            let mut shared = shared.lock().expect("worlds do not panic while they hold it");
            let (summary, told) = &mut *shared;
            summary.add(seed, run, cpu - cpu_before);
            cpu_before = cpu;
            if told.elapsed() >= TELL_EVERY {
                *told = Instant::now();
                println!("{}; at seed {seed}", summary.text());
            }
            if summary.failures.len() >= failures_max {
                return;
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(worker))));
    let (mut summary, _) = shared.into_inner().expect("worlds do not panic while they hold it");
    summary.failures.sort_by_key(|(seed, _)| *seed);
    summary
}

/// Processor time that this thread has used.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("it never goes back")
}

/// All that a person needs to look into a failure: what, how to see it again, and the shortest run that shows it.
pub(crate) fn explain(seed: u64, failure: &Failure) -> String {
    let first = run(Source::seeded(seed), Trace::off());
    let mut text = String::new();
    let mut line = |line: &str| writeln!(text, "{line}").expect("a string takes everything");
    line(&format!("seed {seed} breaks a promise after {} events:", first.events));
    line(&format!("  {}", failure.message));
    line(&format!("  at {}", failure.place));
    line(&format!("replay it:  make sim SEED={seed}"));
    if first.failure.as_ref().is_none_or(|again| !again.is_like(failure)) {
        line(&format!("it came out otherwise a second time, so the world is not deterministic: {:?}", first.failure));
        return text;
    }
    let fails = |source: Source| {
        let again = run(source, Trace::off());
        again.failure.is_some_and(|other| other.is_like(failure)).then_some(again.choices)
    };
    let on = |beginning: &[u32], number| fails(Source::begun(beginning.to_vec(), number));
    let tame = tame(first.choices.clone(), CHOICES_OF_PLAN, SHRINK_TIME, on);
    let short = shrink(tame, SHRINK_TIME, |choices| fails(Source::replay(choices.to_vec())).is_some());
    let last = run(Source::replay(short.clone()), Trace::on());
    line(&format!("shortened from {} choices to {}, and {} events:", first.choices.len(), short.len(), last.events));
    line(&format!("  {}", last.failure.map_or_else(String::new, |failure| failure.message)));
    line(&last.trace.story(LINES_MAX));
    match keep(seed, &short) {
        Ok(path) => line(&format!("replay the short one:  make sim REPLAY={}", path.display())),
        Err(error) => line(&format!("the short one could not be kept: {error}")),
    }
    text
}

/// Keeps the choices of a run where `make sim REPLAY=…` finds them.
fn keep(seed: u64, choices: &[u32]) -> std::io::Result<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("sim");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{seed}.choices"));
    let words: Vec<String> = choices.iter().map(u32::to_string).collect();
    std::fs::write(&path, words.join(" "))?;
    Ok(path)
}

/// The choices that `keep` kept.
pub(crate) fn kept(path: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path} cannot be read: {error}"));
    text.split_whitespace().map(|word| word.parse().expect("a list of numbers")).collect()
}
