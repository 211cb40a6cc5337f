//! Tells how a machine stands, as a table or as JSON.
//!
//! Owns the words and the names of JSON's fields. Never changes a setting.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use crate::catalogue::{Goal, Scope};
use crate::examine::{Examined, State, examine};
use crate::machine::{Machine, Place};

/// Beyond this a limit is none.
const UNLIMITED_MIN: u64 = 1 << 60;

/// One setting on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) state: State,
    /// Whether it does not stand in the way.
    pub(crate) enough: bool,
    /// `None`: nothing is.
    pub(crate) required: Option<u64>,
    /// `None`: this kernel has no such setting.
    pub(crate) current: Option<u64>,
    /// The whole value of a setting below /proc/sys.
    pub(crate) value: Option<String>,
    pub(crate) scope: Scope,
    /// Where a setting below /proc/sys was found.
    pub(crate) place: Option<Place>,
    pub(crate) takes_effect: &'static str,
    pub(crate) formula: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) source: &'static str,
    pub(crate) counter: Option<Reading>,
    /// How to get there; only where it is not enough.
    pub(crate) mend: Option<String>,
}

/// A counter that tells whether a setting matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Reading {
    pub(crate) name: String,
    pub(crate) value: Option<u64>,
}

/// All settings on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    pub(crate) version: &'static str,
    pub(crate) kernel: String,
    pub(crate) memory_bytes: u64,
    #[serde(flatten)]
    pub(crate) goal: Goal,
    /// Whose network namespace was looked at.
    pub(crate) namespace: String,
    pub(crate) namespace_inode: u64,
    pub(crate) ready: bool,
    pub(crate) findings: Vec<Finding>,
}

/// Checks every setting of the catalogue.
///
/// # Errors
/// A setting cannot be read.
pub(crate) fn check(machine: &Machine, goal: &Goal) -> Result<Report> {
    let findings: Vec<_> =
        examine(machine, goal)?.iter().map(|examined| finding(examined, machine, goal)).collect::<Result<_>>()?;
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        kernel: machine.host().kernel()?,
        memory_bytes: machine.host().memory_bytes("MemTotal")?,
        goal: *goal,
        namespace: machine.target().to_string(),
        namespace_inode: machine.namespace().namespace().inode,
        ready: findings.iter().all(|finding| finding.enough),
        findings,
    })
}

fn finding(examined: &Examined, machine: &Machine, goal: &Goal) -> Result<Finding> {
    let setting = examined.setting;
    let value = setting.counter.read(machine)?;
    let counter = (setting.counter != crate::counters::Counter::None)
        .then(|| Reading { name: setting.counter.to_string(), value });
    Ok(Finding {
        name: setting.name,
        unit: setting.unit,
        state: examined.state(),
        enough: examined.state() != State::Missing,
        required: examined.required,
        current: examined.current,
        value: examined.present.clone(),
        scope: setting.scope,
        place: examined.place,
        takes_effect: setting.takes_effect,
        formula: setting.formula,
        reason: setting.reason,
        source: setting.source,
        counter,
        mend: examined.mend(machine, goal),
    })
}

impl Report {
    /// What stands in the way.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| !finding.enough)
    }
}

/// The report as a table; `explain` adds what stands behind each line.
pub(crate) struct Table<'a> {
    pub(crate) report: &'a Report,
    pub(crate) explain: bool,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        writeln!(out, "{:<9}{:<34}{:>14}{:>14}  {:<18}counter", "", "what", "required", "current", "unit")?;
        for finding in &report.findings {
            self.line(finding, out)?;
        }
        let missing = report.missing().count();
        let connections = amount(report.goal.connections);
        if missing == 0 {
            return writeln!(out, "\nready for {connections} connections (Linux {})", report.kernel);
        }
        writeln!(out, "\nnot ready for {connections} connections: {missing} of {} missing", report.findings.len())?;
        writeln!(
            out,
            "`culver-tune apply` with the same options sets what can be set until the next boot, and `culver-tune \
             rollback` undoes it; `culver-tune plan --format sysctl.d` keeps it"
        )
    }
}

impl Table<'_> {
    fn line(&self, finding: &Finding, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match finding.state {
            State::Ok => "ok",
            State::Missing => "MISSING",
            State::Info => "info",
            State::Absent => "absent",
        };
        let required = finding.required.map_or_else(|| "-".to_owned(), amount);
        let current = finding.current.map_or_else(|| "-".to_owned(), amount);
        // What is only shown is shown whole.
        let current = match &finding.value {
            Some(value) if finding.state == State::Info => value.clone(),
            _ => current,
        };
        let counter = match &finding.counter {
            Some(Reading { name, value: Some(value) }) => format!("{name} {}", amount(*value)),
            Some(_) | None => "-".to_owned(),
        };
        let (name, unit) = (finding.name, finding.unit);
        writeln!(out, "{state:<9}{name:<34}{required:>14}  {current:>12}  {unit:<18}{counter}")?;
        if self.explain {
            writeln!(out, "{:<9}  {} [{}]", "", finding.formula, finding.source)?;
            writeln!(out, "{:<9}  {}", "", finding.reason)?;
            writeln!(out, "{:<9}  takes effect {}", "", finding.takes_effect)?;
        }
        match &finding.mend {
            Some(mend) => writeln!(out, "{:<9}  mend: {mend}", ""),
            None => Ok(()),
        }
    }
}

/// A number with its thousands apart.
pub(crate) fn amount(number: u64) -> String {
    if number >= UNLIMITED_MIN {
        return "unlimited".to_owned();
    }
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
