//! The steps of a density run, one after the other.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use super::options::DensityOptions;
use super::result::given_back;
use crate::clock::{Clock, seconds};
use crate::dense::senders::{SENDERS, SenderOutcome, SenderPlan, Senders, Sent};
use crate::dense::{Crowd, CrowdLoad, LoginWith, STEP_US};
use crate::report::Misses;
use crate::report::progress::Progress;
use crate::scenario::idle::{Guard, IdleSample, sample};
use crate::target::Target;
use crate::target::culver::Culver;

/// Longest wait for those who send to be logged in.
const SENDERS_MAX: Duration = Duration::from_secs(30);
/// What has not moved for so long will not arrive any more.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Keep-alives are held back for at most this part of their interval while connections are opened.
const HELD_PART: u32 = 4;
/// Keep-alives that were under way are through after this.
const QUIET_AFTER: Duration = Duration::from_secs(2);
/// After this every worker has made a step of its keep-alives.
const TWO_STEPS: Duration = Duration::from_micros(2 * STEP_US);
/// Longest wait for the answers to the keep-alives under way.
const ANSWERS_MAX: Duration = Duration::from_secs(30);
/// Between two readings of memory while it comes back: every one costs the server a scrape.
const GIVE_BACK_LOOK: Duration = Duration::from_millis(500);

/// How long each phase took.
#[derive(Debug, Default)]
pub(super) struct Phases(Vec<Phase>);

#[derive(Debug, Serialize)]
pub(super) struct Phase {
    name: &'static str,
    took_s: f64,
}

impl Phases {
    /// Does `work` and notes how long it took.
    pub(super) fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let result = work();
        self.0.push(Phase { name, took_s: began.elapsed().as_secs_f64() });
        result
    }

    pub(super) fn into_vec(self) -> Vec<Phase> {
        self.0
    }
}

/// What all steps of a run know.
pub(super) struct Run<'a> {
    pub(super) options: &'a DensityOptions,
    pub(super) seed: u64,
    pub(super) load: CrowdLoad,
    pub(super) login: LoginWith,
    pub(super) clock: Clock,
    pub(super) pid: Option<u32>,
    pub(super) progress: &'a Progress,
}

/// What became of the keep-alives.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct KeepAliveFigures {
    pub(super) sent: u64,
    pub(super) answered: u64,
    /// From the last login to the end of the time held, and what follows until memory is read.
    pub(super) sent_while_held: u64,
    pub(super) due_while_held: u64,
}

impl KeepAliveFigures {
    pub(super) fn check(&self, misses: &mut Misses) {
        let Self { sent, answered, sent_while_held, due_while_held } = *self;
        misses.expect(answered == sent, || format!("of {sent} keep-alives {answered} were answered"));
        let are_enough = sent_while_held >= due_while_held;
        misses.expect(are_enough, || format!("{sent_while_held} keep-alives were sent, not {due_while_held}"));
    }
}

/// What the messages to all came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Messaging {
    pub(crate) sent: Sent,
    pub(crate) took: Duration,
    pub(crate) refused: u64,
}

impl Run<'_> {
    /// The first user behind those of the crowd and of the warm-up.
    pub(super) fn first_sender(&self) -> u64 {
        let behind = self.load.connections + u64::from(self.options.warmup_connections);
        self.load.first_user.wrapping_add(behind)
    }

    /// The first user behind all others.
    pub(super) fn first_talker(&self) -> u64 {
        // Pairs begin with an even id.
        (self.first_sender() + SENDERS + 1) & !1
    }

    /// Lets some others come and go first: what a server needs once, its code's pages among it, is no connection's
    /// cost.
    pub(super) fn warm_up(&self, guard: &mut Guard) -> Result<()> {
        let connections = u64::from(self.options.warmup_connections);
        if connections == 0 {
            return Ok(());
        }
        let first_user = self.load.first_user.wrapping_add(self.load.connections);
        let load = CrowdLoad { connections, first_user, workers: Some(1), tickets: None, ..self.load.clone() };
        let crowd = Crowd::start(load, &self.login, self.clock)?;
        crowd.grow_to(connections, self.progress, || guard.check())?;
        crowd.close()?;
        self.progress.wait(self.options.settle(), || {
            self.progress.tell("warmed up: waiting for the memory of those who left".to_owned());
            guard.check()
        })
    }

    /// Opens connections, while no keep-alive goes out: the floor gets none either, and they are no part of a login. If it
    /// takes longer than they can be held back, they go out.
    pub(super) fn grow_without_keep_alives(&self, crowd: &Crowd, to: u64, guard: &mut Guard) -> Result<Duration> {
        let (began, longest) = (Instant::now(), self.options.crowd.keep_alive.0 / HELD_PART);
        crowd.hold_keep_alives(true);
        let took = crowd.grow_to(to, self.progress, || {
            if began.elapsed() > longest {
                crowd.hold_keep_alives(false);
            }
            guard.check()
        });
        crowd.hold_keep_alives(false);
        took
    }

    /// Lets time pass with all connections.
    pub(super) fn hold(&self, crowd: &Crowd, span: Duration, guard: &mut Guard) -> Result<()> {
        self.progress.wait(span, || {
            let counts = crowd.counts();
            let (pings, pongs) = (counts.pings, counts.pongs);
            let live = counts.logins.saturating_sub(counts.disconnects);
            self.progress.tell(format!("holding {live} connections: {pongs} of {pings} keep-alives answered"));
            crowd.check_alive()?;
            guard.check()
        })
    }

    /// One message to each connection. What is lost shows in the crowd's counts.
    pub(super) fn send_messages(
        &self,
        crowd: &Crowd,
        culver: &dyn Target,
        guard: &mut Guard,
    ) -> Result<(Messaging, SenderOutcome)> {
        let plan = SenderPlan {
            run: self.load.run,
            first_user: self.load.first_user,
            connections: self.load.connections,
            first_sender: self.first_sender(),
            rate: self.options.message_rate,
            seed: self.seed,
        };
        let senders = Senders::start(culver, plan, self.clock)?;
        wait_for_logins(&senders, self.progress)?;
        let messaging = send_round(&senders, crowd, 1, self.load.connections, self.progress, guard)?;
        Ok((messaging, senders.close()?))
    }

    /// The server's CPU seconds while nobody sends anything.
    pub(super) fn measure_quiet(
        &self,
        crowd: &Crowd,
        span: Duration,
        culver: &mut Culver,
        guard: &mut Guard,
    ) -> Result<f64> {
        self.with_held_keep_alives(crowd, guard, |guard| {
            let before = sample(culver)?;
            self.progress.wait(span, || {
                self.progress.tell("quiet: measuring the server's CPU".to_owned());
                guard.check()
            })?;
            Ok(seconds(sample(culver)?.cpu_us.saturating_sub(before.cpu_us)))
        })
    }

    /// Does `work` while no keep-alive goes out, and waits until those held back have followed.
    pub(super) fn with_held_keep_alives<T>(
        &self,
        crowd: &Crowd,
        guard: &mut Guard,
        work: impl FnOnce(&mut Guard) -> Result<T>,
    ) -> Result<T> {
        with_held_keep_alives(crowd, self.options.crowd.keep_alive.0, self.progress, guard, work)
    }

    /// Lets no more keep-alives go out and waits until those under way are answered. Of them `before` were sent before
    /// the time held.
    pub(super) fn check_keep_alives(&self, crowd: &Crowd, before: u64, guard: &mut Guard) -> Result<KeepAliveFigures> {
        crowd.hold_keep_alives(true);
        self.progress.wait(TWO_STEPS, || guard.check())?;
        self.progress.wait_until(ANSWERS_MAX, || {
            let counts = crowd.counts();
            self.progress.tell(format!("{} of {} keep-alives answered", counts.pongs, counts.pings));
            guard.check()?;
            Ok(counts.pongs >= counts.pings)
        })?;
        let counts = crowd.counts();
        let options = self.options;
        Ok(KeepAliveFigures {
            sent: counts.pings,
            answered: counts.pongs,
            sent_while_held: counts.pings.saturating_sub(before),
            due_while_held: self.load.connections * (options.hold.us() / options.crowd.keep_alive.us()),
        })
    }

    /// The least memory seen after all have left, within the time allowed.
    pub(super) fn watch_give_back(
        &self,
        culver: &mut Culver,
        before: &IdleSample,
        high: &IdleSample,
        guard: &mut Guard,
    ) -> Result<u64> {
        let mut least = u64::MAX;
        let mut looked: Option<Instant> = None;
        self.progress.wait_until(self.options.give_back.0, || {
            self.progress.tell("all have left: watching memory come back".to_owned());
            guard.check()?;
            if looked.is_some_and(|looked| looked.elapsed() < GIVE_BACK_LOOK) {
                return Ok(false);
            }
            looked = Some(Instant::now());
            least = least.min(IdleSample::take(culver, self.pid, 0)?.user_bytes);
            Ok(given_back(before.user_bytes, high.user_bytes, least) >= 1.0)
        })?;
        Ok(least)
    }
}

/// Does `work` while no keep-alive goes out, and waits until those held back have followed.
pub(crate) fn with_held_keep_alives<T>(
    crowd: &Crowd,
    keep_alive: Duration,
    progress: &Progress,
    guard: &mut Guard,
    work: impl FnOnce(&mut Guard) -> Result<T>,
) -> Result<T> {
    let began = Instant::now();
    crowd.hold_keep_alives(true);
    progress.wait(QUIET_AFTER, || guard.check())?;
    let result = work(guard)?;
    crowd.hold_keep_alives(false);
    // How many are behind is known once every worker has made a step.
    progress.wait(TWO_STEPS, || guard.check())?;
    // They follow at twice the pace, so it takes as long as they were held back.
    let longest = keep_alive + began.elapsed();
    let have_followed = progress.wait_until(longest, || {
        let behind = crowd.counts().pings_behind;
        progress.tell(format!("{behind} keep-alives follow"));
        guard.check()?;
        Ok(behind == 0)
    })?;
    if !have_followed {
        bail!("after {longest:?} {} keep-alives that were held back are still to follow", crowd.counts().pings_behind);
    }
    Ok(result)
}

/// Waits until all who send are logged in.
pub(crate) fn wait_for_logins(senders: &Senders, progress: &Progress) -> Result<()> {
    let are_there = progress.wait_until(SENDERS_MAX, || Ok(senders.sent()?.logins >= SENDERS))?;
    if !are_there {
        bail!("only {} of {SENDERS} who send could log in within {SENDERS_MAX:?}", senders.sent()?.logins);
    }
    Ok(())
}

/// Sends round number `rounds` and waits until all of it has come, or nothing comes any more.
pub(crate) fn send_round(
    senders: &Senders,
    crowd: &Crowd,
    rounds: u64,
    connections: u64,
    progress: &Progress,
    guard: &mut Guard,
) -> Result<Messaging> {
    let messages = rounds * connections;
    let began = Instant::now();
    senders.send_until(messages);
    let (mut moved, mut before) = (began, (0, 0));
    loop {
        let (sent, counts) = (senders.sent()?, crowd.counts());
        progress
            .tell(format!("messages: {} sent, {} acknowledged, {} delivered", sent.sent, sent.acked, counts.delivered));
        let is_through = sent.acked + sent.refused >= messages && counts.delivered >= messages;
        let now = (sent.acked, counts.delivered);
        if now != before {
            (moved, before) = (Instant::now(), now);
        }
        if is_through || moved.elapsed() > STALL_MAX {
            return Ok(Messaging { sent, took: moved.duration_since(began), refused: sent.refused });
        }
        crowd.check_alive()?;
        guard.check()?;
        progress.wait(ROUND_LOOK, || Ok(()))?;
    }
}

/// How often a round is looked at.
const ROUND_LOOK: Duration = Duration::from_millis(20);
