//! What a run tells: a JSON document with its circumstances, a readable table, and an exit code.

pub(crate) mod histogram;
pub(crate) mod machine;
pub(crate) mod progress;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use culver_protocol::error::ErrorCode;
use serde::Serialize;
use serde_json::Value;

use self::machine::Machine;
use crate::clock::unix_ms;

/// Where the machine-readable result goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JsonTo {
    Nowhere,
    /// Standard output, which then holds nothing else.
    Stdout,
    File(PathBuf),
}

impl JsonTo {
    pub(crate) fn of(option: Option<&Path>) -> Self {
        match option {
            None => Self::Nowhere,
            Some(path) if path == Path::new("-") => Self::Stdout,
            Some(path) => Self::File(path.to_owned()),
        }
    }
}

/// A finished run.
#[derive(Serialize)]
pub(crate) struct Document {
    /// Which scenario ran.
    pub(crate) scenario: &'static str,
    /// No threshold was missed.
    pub(crate) passed: bool,
    /// The thresholds missed, in words.
    pub(crate) missed: Vec<String>,
    machine: Machine,
    commit: String,
    seed: u64,
    finished_unix_ms: u64,
    settings: Value,
    result: Value,
    #[serde(skip)]
    text: String,
}

impl Document {
    pub(crate) fn new(
        scenario: &'static str,
        seed: u64,
        settings: &impl Serialize,
        result: &impl Serialize,
        text: String,
        missed: Vec<String>,
    ) -> Result<Self> {
        Ok(Self {
            scenario,
            passed: missed.is_empty(),
            missed,
            machine: Machine::look(),
            commit: machine::commit(),
            seed,
            finished_unix_ms: unix_ms(),
            settings: serde_json::to_value(settings).context("settings as JSON")?,
            result: serde_json::to_value(result).context("the result as JSON")?,
            text,
        })
    }

    /// Writes the document where it was asked for, and the table to standard output unless the document is there.
    pub(crate) fn publish(&self, to: &JsonTo) -> Result<()> {
        let json = || serde_json::to_string_pretty(self).context("the result as JSON");
        let mut out = std::io::stdout().lock();
        match to {
            JsonTo::Stdout => writeln!(out, "{}", json()?)?,
            JsonTo::Nowhere => write!(out, "{}", self.text)?,
            JsonTo::File(path) => {
                std::fs::write(path, json()? + "\n").with_context(|| format!("cannot write {}", path.display()))?;
                write!(out, "{}", self.text)?;
            }
        }
        for miss in &self.missed {
            eprintln!("missed: {miss}");
        }
        Ok(())
    }
}

/// What no server may do, as an error: a scenario tells it as a miss.
#[derive(Debug)]
pub(crate) struct Broken(pub(crate) String);

impl std::error::Error for Broken {}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Options that do not go together: the exit code is that of bad usage.
#[derive(Debug)]
pub(crate) struct BadUsage(pub(crate) String);

impl std::error::Error for BadUsage {}

impl fmt::Display for BadUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How many messages were refused because they came too fast.
pub(crate) fn limited(errors_by_code: &BTreeMap<u32, u64>) -> u64 {
    errors_by_code.get(&ErrorCode::RateLimited.number()).copied().unwrap_or_default()
}

/// Collects missed thresholds.
#[derive(Debug, Default)]
pub(crate) struct Misses(Vec<String>);

impl Misses {
    /// Notes a miss unless `held`.
    pub(crate) fn expect(&mut self, held: bool, what: impl FnOnce() -> String) {
        if !held {
            self.0.push(what());
        }
    }

    /// Notes a miss where the server has told somebody to send more slowly: what was measured then is its limit.
    pub(crate) fn expect_unlimited(&mut self, limited: u64) {
        self.expect(limited == 0, || {
            format!(
                "{} times the server refused a message as one too many: it limits how fast devices and users send, and \
                 the figures show that limit. Set device_per_s = 0 and user_per_s = 0 below [sends] in its culver.toml.",
                table::grouped(limited)
            )
        });
    }

    pub(crate) fn into_vec(self) -> Vec<String> {
        self.0
    }
}
