//! One restart: SIGTERM, the old server's end, the new one's start, and all of the crowd back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::START_MAX;
use super::options::RestartOptions;
use crate::clock::{Clock, micros};
use crate::dense::Crowd;
use crate::report::Broken;
use crate::report::histogram::Percentiles;
use crate::report::progress::Progress;
use crate::scenario::idle::Guard;
use crate::scenario::pairs::PairRun;
use crate::scenario::storm::Attempts;
use crate::target::child::{ServerChild, Started};
use crate::target::culver::Ops;

/// How often the old server is asked whether it is ready.
const READY_LOOK: Duration = Duration::from_millis(10);
/// How often its end is looked for, and the first login after it.
const LOOK: Duration = Duration::from_millis(2);

/// What one restart came to: times from SIGTERM on, where nothing else is said.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Round {
    /// Until /readyz said no.
    pub(super) not_ready_us: u64,
    pub(super) goaways: u64,
    /// The first GOAWAY that came to the crowd, and the last.
    pub(super) first_goaway_us: Option<u64>,
    pub(super) last_goaway_us: Option<u64>,
    /// Until the old process had ended.
    pub(super) exit_us: u64,
    pub(super) exit_status: String,
    pub(super) exit_is_clean: bool,
    /// From the start of the new process until it was ready.
    pub(super) start_us: u64,
    /// From the end of the old process to the first login in the new one.
    pub(super) first_login_us: Option<u64>,
    /// Until all were back.
    pub(super) back_us: u64,
    pub(super) missing: u64,
    /// From each client's loss to its login.
    pub(super) wait_us: Percentiles,
    #[serde(flatten)]
    pub(super) attempts: Attempts,
    /// How late the crowd was for attempts that were due.
    pub(super) attempt_lag_us: Percentiles,
}

impl Round {
    pub(super) fn run(
        options: &RestartOptions,
        (crowd, pairs): (&Crowd, &PairRun),
        server: &mut ServerChild,
        clock: Clock,
        progress: &Progress,
        guard: &mut Guard,
    ) -> Result<Self> {
        let (before, expected) = (crowd.counts(), crowd.live());
        let ready = Readiness::watch(server.ops(), clock)?;
        let began_us = clock.now_us();
        crowd.watch_returns(began_us);
        server.terminate()?;
        let began = Instant::now();
        let status = loop {
            if let Some(status) = server.take_ended()? {
                break status;
            }
            if began.elapsed() > options.patience.0 {
                bail!(Broken(format!("the server did not end within {}; {}", options.patience, server.last_words())));
            }
            progress.tell(format!("it ends: {} of {expected} are there", crowd.live()));
            guard.check()?;
            std::thread::sleep(LOOK);
        };
        let (exit_us, logins) = (clock.now_us(), crowd.counts().logins);
        let mut first_login_us = None;
        let mut look = || {
            if first_login_us.is_none() && crowd.counts().logins > logins {
                first_login_us = Some(clock.now_us() - exit_us);
            }
            first_login_us.is_some()
        };
        let start_us = match server.start_unless(START_MAX, || {
            look();
            Ok(false)
        })? {
            Started::Ready(took) => micros(took),
            Started::Ended(status) => bail!(server.ended_by_itself(status)),
            Started::Stopped => unreachable!("nobody stops it"),
        };
        while !look() && began.elapsed() < options.patience.0 {
            std::thread::sleep(LOOK);
        }
        let all_back = progress.wait_until(options.patience.0, || {
            let (counts, live) = (crowd.counts(), crowd.live());
            progress.tell(format!("started again: {live} of {expected} are back"));
            server.check_alive()?;
            pairs.check_alive()?;
            guard.check()?;
            let lost = counts.login_failures - before.login_failures;
            Ok(live + lost >= expected && counts.returns - before.returns + lost >= expected)
        })?;
        let returned = crowd.returned().expect("it is watched since the beginning");
        let (first_goaway_us, last_goaway_us) = returned.goaways_us().unzip();
        let after = crowd.counts();
        let attempts = Attempts::between(&before, &after);
        Ok(Self {
            not_ready_us: ready.finish()?.saturating_sub(began_us),
            goaways: after.goaways - before.goaways,
            first_goaway_us,
            last_goaway_us,
            exit_us: exit_us - began_us,
            exit_status: status.to_string(),
            exit_is_clean: status.success(),
            start_us,
            first_login_us,
            back_us: returned.took_us(),
            missing: if all_back { 0 } else { expected.saturating_sub(crowd.live() + attempts.lost).max(1) },
            wait_us: returned.waits_us(),
            attempts,
            attempt_lag_us: returned.lag_us(),
        })
    }
}

/// A thread that asks the old server whether it is ready until it says no.
struct Readiness {
    is_stopped: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Readiness {
    /// The server is ready now; returns once it has been asked.
    fn watch(ops: Ops, clock: Clock) -> Result<Self> {
        if !ops.is_ready() {
            bail!(Broken("the server is not ready before it is asked to end".to_owned()));
        }
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_stopped);
        let run = move || {
            loop {
                // The answer is as old as the question.
                let asked_us = clock.now_us();
                if !ops.is_ready() || stop.load(Ordering::Relaxed) {
                    return asked_us;
                }
                std::thread::sleep(READY_LOOK);
            }
        };
        let thread = std::thread::Builder::new().name("readiness".to_owned()).spawn(run);
        Ok(Self { is_stopped, thread: thread.context("cannot start a thread")? })
    }

    /// When it was first found not to be ready.
    fn finish(self) -> Result<u64> {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the thread that asks for readiness panicked"))
    }
}
