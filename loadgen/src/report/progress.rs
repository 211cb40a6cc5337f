//! Live progress on a terminal, and the waiting that goes with it. Silent where nobody watches.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a wait looks whether it is over.
const STEP: Duration = Duration::from_millis(20);
/// How often the line is drawn anew, per second: every draw costs CPU beside the server.
const DRAWS_PER_S: u8 = 4;

/// One line that says what goes on.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A line on standard error, if that is a terminal.
    pub(crate) fn new(scenario: &'static str) -> Self {
        let bar = ProgressBar::no_length();
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(DRAWS_PER_S));
        let style = ProgressStyle::with_template("{prefix} [{elapsed}] {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_prefix(scenario);
        Self { bar }
    }

    /// A line that nobody sees.
    pub(crate) fn hidden() -> Self {
        Self { bar: ProgressBar::hidden() }
    }

    pub(crate) fn tell(&self, what: String) {
        if !self.bar.is_hidden() {
            self.bar.set_message(what);
            self.bar.tick();
        }
    }

    /// Waits for `span`, calling `step` now and then.
    pub(crate) fn wait(&self, span: Duration, mut step: impl FnMut() -> Result<()>) -> Result<()> {
        let end = Instant::now() + span;
        loop {
            step()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(STEP));
        }
    }

    /// Waits until `over` says so; `false`: the time is up.
    pub(crate) fn wait_until(&self, max: Duration, mut over: impl FnMut() -> Result<bool>) -> Result<bool> {
        let end = Instant::now() + max;
        loop {
            if over()? {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(STEP);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
