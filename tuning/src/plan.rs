//! What would have to be changed, and why; also as files that make it so at every boot.
//!
//! Owns the formats. Never changes a setting.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use crate::catalogue::{Goal, Kind, Scope};
use crate::check::amount;
use crate::examine::{Change, Examined, State, command, examine};
use crate::machine::{Machine, Place};
use crate::namespace::Target;

/// How a plan is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
    /// A file for /etc/sysctl.d, read at every boot
    #[value(name = "sysctl.d")]
    SysctlD,
    /// A drop-in for the server's systemd unit
    Systemd,
    /// A file for /etc/security/limits.d, read at every login
    #[value(name = "limits.d")]
    LimitsD,
}

/// What is to be changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Plan {
    pub(crate) version: &'static str,
    #[serde(flatten)]
    pub(crate) goal: Goal,
    /// Whose network namespace was looked at.
    pub(crate) namespace: String,
    pub(crate) steps: Vec<Step>,
}

/// One thing to be changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    /// `None`: not a setting that `apply` writes.
    pub(crate) change: Option<Change>,
    pub(crate) scope: Scope,
    pub(crate) takes_effect: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) source: &'static str,
    /// What a person does for it.
    pub(crate) how: String,
}

/// What `apply` would write, in the order in which it would.
///
/// # Errors
/// A setting cannot be read.
pub(crate) fn changes(machine: &Machine, goal: &Goal) -> Result<Vec<Change>> {
    Ok(examine(machine, goal)?.iter().filter_map(|examined| examined.change(goal)).collect())
}

/// The plan in a format.
///
/// # Errors
/// A setting cannot be read.
pub(crate) fn told(machine: &Machine, goal: &Goal, format: Format) -> Result<String> {
    let examined = examine(machine, goal)?;
    Ok(match format {
        Format::Table => table(&plan(&examined, machine, goal)),
        Format::Json => serde_json::to_string_pretty(&plan(&examined, machine, goal))? + "\n",
        Format::SysctlD => sysctl_d(&examined, machine, goal),
        Format::Systemd => limits(&examined, goal, |files| format!("[Service]\nLimitNOFILE={files}\n")),
        Format::LimitsD => limits(&examined, goal, limits_d),
    })
}

/// The commands that make these changes.
pub(crate) fn commands(machine: &Machine, changes: &[Change]) -> String {
    changes.iter().map(|change| format!("  {}\n", command(machine, change))).collect()
}

fn plan(examined: &[Examined], machine: &Machine, goal: &Goal) -> Plan {
    let step = |examined: &Examined| {
        let setting = examined.setting;
        Some(Step {
            name: setting.name,
            change: examined.change(goal),
            scope: setting.scope,
            takes_effect: setting.takes_effect,
            reason: setting.reason,
            source: setting.source,
            how: examined.mend(machine, goal)?,
        })
    };
    Plan {
        version: env!("CARGO_PKG_VERSION"),
        goal: *goal,
        namespace: machine.target().to_string(),
        steps: examined.iter().filter_map(step).collect(),
    }
}

fn table(plan: &Plan) -> String {
    let connections = amount(plan.goal.connections);
    if plan.steps.is_empty() {
        return format!("nothing is to be changed for {connections} connections\n");
    }
    let mut text = format!("for {connections} connections:\n");
    for step in &plan.steps {
        let was = step.change.as_ref().map_or_else(String::new, |change| format!(" (now {})", change.old));
        let scope = match step.scope {
            Scope::Process => "a process",
            Scope::Host => "the whole machine",
            Scope::Namespace | Scope::Socket => "a network namespace",
        };
        let lines = [
            format!("\n{}{was}, of {scope}", step.name),
            format!("  {}", step.how),
            format!("  takes effect {}", step.takes_effect),
            format!("  why: {} [{}]\n", step.reason, step.source),
        ];
        text.push_str(&lines.join("\n"));
    }
    text
}

fn header(goal: &Goal) -> String {
    format!("# For {} connections, by culver-tune plan.\n", amount(goal.connections))
}

fn sysctl_d(examined: &[Examined], machine: &Machine, goal: &Goal) -> String {
    let mut text = header(goal) + "# What suffices already stands here as it is now.\n";
    let elsewhere = *machine.target() != Target::Own;
    for examined in examined.iter().filter(|examined| matches!(examined.state(), State::Ok | State::Missing)) {
        let Some(value) = examined.sufficient(goal) else { continue };
        let setting = examined.setting;
        // What stands in sysctl.d is set for the first namespace only; others are set where they are made.
        let other = elsewhere && examined.place == Some(Place::Namespace);
        let mark = if other { "# in its namespace, when it is made: " } else { "" };
        // A String takes whatever is written to it.
        write!(text, "\n# {}: {}\n{mark}{} = {value}\n", setting.unit, setting.reason, setting.name)
            .unwrap_or_default();
    }
    text
}

/// `*` does not hold for root, who has lines of its own (limits.conf(5)).
fn limits_d(files: u64) -> String {
    let lines = |who| format!("{who} soft nofile {files}\n{who} hard nofile {files}\n");
    lines("*") + &lines("root")
}

fn limits(examined: &[Examined], goal: &Goal, lines: impl Fn(u64) -> String) -> String {
    let hard = examined.iter().find(|examined| examined.setting.kind == Kind::OpenFilesHard);
    let files = hard.and_then(|examined| examined.required).unwrap_or(goal.connections);
    header(goal) + &lines(files)
}
