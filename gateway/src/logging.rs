//! Logs to standard error, and what a panic does. Never given a token, a ticket or a key.

use std::backtrace::Backtrace;
use std::io;
use std::panic;

use anyhow::Context;
use tracing::error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::{Log, LogFormat};

/// Sets up logging for the whole process. `RUST_LOG`, where set, comes before the settings.
///
/// # Errors
/// The filter cannot be understood, or logging is set up already.
pub fn start(log: &Log) -> anyhow::Result<()> {
    let directives = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| log.filter.clone());
    let filter = EnvFilter::try_new(&directives)
        .with_context(|| format!("the log filter {directives:?} cannot be understood (log.filter, or RUST_LOG)"))?;
    let logs = fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match log.format {
        LogFormat::Text => logs.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => logs.json().try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// From now on a panic in any thread ends the process, after it has been logged: a thread that is gone would leave
/// half a server behind, and what is acknowledged is durable already.
pub fn abort_on_panic() {
    panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let backtrace = Backtrace::force_capture();
        // Before logging starts, tracing drops what it is told: standard error is always there.
        eprintln!("culver: {panic} (thread {})\n{backtrace}", thread.name().unwrap_or("unnamed"));
        error!(thread = thread.name(), %panic, "a bug: the process aborts");
        std::process::abort();
    }));
}
