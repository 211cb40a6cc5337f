//! `culver-tune`: is this machine ready for N connections, and how does it become so?
//!
//! Owns the command line and the exit codes: 0 ready or done, 1 failure, 2 bad usage, 3 something is missing or was left
//! alone.

mod apply;
mod catalogue;
mod check;
mod counters;
mod examine;
mod journal;
mod machine;
mod namespace;
mod options;
mod plan;
mod ports;
mod procfs;
mod rollback;
mod sys;
#[cfg(test)]
mod testing;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use crate::apply::{Origin, apply};
use crate::check::{Table, check};
use crate::examine::Change;
use crate::journal::{Intent, Journal, Open};
use crate::machine::{Machine, Place};
use crate::namespace::{Found, INITIAL, Namespace, Target};
use crate::options::{Arguments, Command, GoalOptions, JournalOptions};
use crate::procfs::Procfs;
use crate::rollback::{Outcome, Rolled, by_hand, rollback};

const EXIT_ERROR: u8 = 1;
const EXIT_MISSING: u8 = 3;

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Check { goal, explain, json } => run_check(&goal, explain, json.as_deref()),
        Command::Plan { goal, format } => run_plan(&goal, format),
        Command::Apply { goal, dry_run, journal } => run_apply(&goal, dry_run, &journal),
        Command::Rollback { journal } => run_rollback(&journal),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_MISSING),
        Err(error) => {
            eprintln!("culver-tune: {error:#}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}

/// Whether the machine is ready.
fn run_check(options: &GoalOptions, explain: bool, json: Option<&Path>) -> Result<bool> {
    let report = check(&Machine::open(options.target())?, &options.goal())?;
    let json_on_stdout = json == Some(Path::new("-"));
    if !json_on_stdout {
        write!(io::stdout(), "{}", Table { report: &report, explain })?;
    }
    match json {
        Some(_) if json_on_stdout => write_json(io::stdout(), &report)?,
        Some(path) => {
            let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
            write_json(file, &report)?;
        }
        None => {}
    }
    Ok(report.ready)
}

fn write_json(mut out: impl Write, report: &check::Report) -> Result<()> {
    serde_json::to_writer_pretty(&mut out, report)?;
    writeln!(out)?;
    Ok(())
}

fn run_plan(options: &GoalOptions, format: plan::Format) -> Result<bool> {
    let told = plan::told(&Machine::open(options.target())?, &options.goal(), format)?;
    io::stdout().write_all(told.as_bytes())?;
    Ok(true)
}

/// Whether the machine is ready afterwards.
fn run_apply(options: &GoalOptions, dry_run: bool, journal: &JournalOptions) -> Result<bool> {
    let (machine, goal) = (Machine::open(options.target())?, options.goal());
    let mut out = io::stdout();
    if dry_run {
        let changes = plan::changes(&machine, &goal)?;
        warn_of_ports(&machine, &changes);
        write!(
            out,
            "would be done ({} settings), nothing was changed:\n{}",
            changes.len(),
            plan::commands(&machine, &changes)
        )?;
        return Ok(true);
    }
    if !is_root() {
        let changes = plan::changes(&machine, &goal)?;
        if changes.is_empty() {
            return conclude(&machine, &goal);
        }
        warn_of_ports(&machine, &changes);
        let commands = plan::commands(&machine, &changes);
        bail!("changing settings takes root; nothing was changed. As root run this again, or:\n{commands}");
    }
    let origin = origin(&machine)?;
    let mut journal = Journal::take(&journal.path)?;
    // What another boot wrote is gone with it, and what is settled needs no keeping among what is not.
    let stale = journal.open().iter().all(|open| open.intent.boot_id != origin.boot_id);
    if stale && journal.next_sequence() > 1 {
        let boot_id = boot_of(journal.open(), &origin);
        journal = put_aside(journal, &boot_id, &origin)?;
    }
    // Looked at under the lock: another apply may have done it meanwhile.
    let changes = plan::changes(&machine, &goal)?;
    warn_of_ports(&machine, &changes);
    for applied in apply(&machine, &changes, &mut journal, &origin, &mut |_| Ok(()))? {
        let change = &applied.change;
        writeln!(out, "{}: {} -> {}", change.setting, change.old, applied.now)?;
        if applied.now != change.new {
            writeln!(out, "  the kernel has made {} of {}", applied.now, change.new)?;
        }
    }
    if changes.is_empty() {
        writeln!(out, "nothing to change")?;
    } else {
        writeln!(out, "`culver-tune rollback` undoes it; the journal is {}", journal.path().display())?;
    }
    conclude(&machine, &goal)
}

/// Only a warning: without it, or where it cannot be told, nothing is done otherwise.
fn warn_of_ports(machine: &Machine, changes: &[Change]) {
    match ports::warning(machine, changes) {
        Ok(None) => {}
        Ok(Some(warning)) => eprintln!("warning: {warning}"),
        Err(error) => eprintln!("warning: whether the ports of a listener are taken in is not known: {error:#}"),
    }
}

/// Tells what no sysctl mends. Whether the machine is ready.
fn conclude(machine: &Machine, goal: &catalogue::Goal) -> Result<bool> {
    let report = check(machine, goal)?;
    let mut out = io::stdout();
    for finding in report.missing() {
        let (required, current) = (finding.required.unwrap_or(0), finding.current.unwrap_or(0));
        let (required, current) = (check::amount(required), check::amount(current));
        writeln!(
            out,
            "still missing: {}: {required} {} are required, {current} are there",
            finding.name, finding.unit
        )?;
        if let Some(mend) = &finding.mend {
            writeln!(out, "  mend: {mend}")?;
        }
    }
    Ok(report.ready)
}

/// Whether everything is as it was.
fn run_rollback(options: &JournalOptions) -> Result<bool> {
    let mut out = io::stdout();
    let open = Journal::look(&options.path)?;
    if open.is_empty() {
        writeln!(out, "nothing to undo: {} tells of nothing", options.path.display())?;
        return Ok(true);
    }
    let machine = Machine::open(Target::Own)?;
    if !is_root() {
        let boot_id = machine.host().boot_id()?;
        let line = |open: &Open| {
            let prefix = prefix_of(&open.intent)?;
            Ok(format!("  {}\n", by_hand(open, &boot_id, prefix.as_deref())))
        };
        let commands = open.iter().rev().map(line).collect::<Result<String>>()?;
        bail!("changing settings takes root; nothing was changed. As root run this again, or:\n{commands}");
    }
    let origin = origin(&machine)?;
    let mut journal = Journal::take(&options.path)?;
    let boot_id = boot_of(journal.open(), &origin);
    let find = |intent: &Intent| find(&machine, intent);
    let rolled = rollback(&mut journal, &origin.boot_id, &find, &mut |_| Ok(()))?;
    for rolled in &rolled {
        writeln!(out, "{}", told(rolled, &origin.boot_id))?;
    }
    let failed = rolled.iter().filter(|rolled| matches!(rolled.outcome, Outcome::Failed { .. })).count();
    ensure!(
        failed == 0,
        "{failed} of {} settings could not be put back, and are still in the journal: mend what is said above and run \
         this again",
        rolled.len()
    );
    if !journal.open().is_empty() {
        writeln!(
            out,
            "what was left alone is still in the journal: set it back yourself and run this again, or remove {}",
            journal.path().display()
        )?;
        return Ok(false);
    }
    put_aside(journal, &boot_id, &origin)?;
    Ok(true)
}

/// The boot in which the journal was begun.
fn boot_of(open: &[Open], origin: &Origin) -> String {
    open.first().map_or_else(|| origin.boot_id.clone(), |open| open.intent.boot_id.clone())
}

fn put_aside(journal: Journal, boot_id: &str, origin: &Origin) -> Result<Journal> {
    let (aside, journal) = journal.put_aside(boot_id, origin.time_unix_ms)?;
    writeln!(io::stdout(), "the journal so far is kept as {}", aside.display())?;
    Ok(journal)
}

fn told(rolled: &Rolled, boot_id: &str) -> String {
    let Intent { setting, old, boot_id: written_in, .. } = &rolled.open.intent;
    let written = rolled.open.written();
    match &rolled.outcome {
        Outcome::Restored => format!("{setting}: {written} -> {old}"),
        Outcome::Back => format!("{setting}: is back already"),
        Outcome::Gone if written_in != boot_id => {
            format!("{setting}: was set before the last boot, and is gone with it")
        }
        Outcome::Gone => format!("{setting}: its network namespace is gone, and the setting with it"),
        Outcome::Failed { why } => format!("{setting}: not put back, it was {old}: {why}"),
        Outcome::Unseen => format!(
            "{setting}: left alone, for it, or its network namespace, is not found from here; it was set to {written} \
             and was {old} before that"
        ),
        Outcome::Left { present } => {
            format!("{setting}: left alone, for it is {present} and was set to {written}; it was {old} before that")
        }
    }
}

/// The place where a write was made.
fn find(machine: &Machine, intent: &Intent) -> Result<Found<Procfs>> {
    match intent.place {
        Place::Host => Ok(Found::Here(machine.host().clone())),
        Place::Namespace => Ok(Namespace::find(intent.namespace)?.map(Procfs::of)),
    }
}

/// What has to stand before a command so that it runs where a write was made; `None`: that is not found.
fn prefix_of(intent: &Intent) -> Result<Option<String>> {
    let prefix = namespace::prefix_of(intent.namespace)?;
    Ok(match intent.place {
        // Nobody but root may look at the first process, and root is who is to run the command.
        Place::Host => prefix.or_else(|| Some(format!("nsenter --net={INITIAL} "))),
        Place::Namespace => prefix,
    })
}

fn origin(machine: &Machine) -> Result<Origin> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    Ok(Origin {
        boot_id: machine.host().boot_id()?,
        pid: std::process::id(),
        time_unix_ms: u64::try_from(since.as_millis())?,
    })
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
