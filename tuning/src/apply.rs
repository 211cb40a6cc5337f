//! Writes what a plan asks for, so that it can be undone at every moment.
//!
//! Owns the order: the journal's line is on the disk before a setting is written, and tells afterwards what was read
//! back. Never writes what is not in the catalogue, and never decides what is written.

use std::io::{self, ErrorKind};

use anyhow::{Context, Error, Result, bail, ensure};

use crate::catalogue::written;
use crate::examine::Change;
use crate::journal::{Intent, Journal, Record, Settled};
use crate::machine::Machine;

/// Who writes, and when.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) boot_id: String,
    pub(crate) pid: u32,
    pub(crate) time_unix_ms: u64,
}

/// What is done next; a test kills the program there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A line is added to the journal.
    Record,
    /// A setting is written.
    Write,
}

/// Called before each step. An error is the end: nothing more is done, as after a kill.
pub(crate) type Before<'a> = &'a mut dyn FnMut(Step) -> Result<()>;

/// A setting that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) change: Change,
    /// What was read back; the kernel may have made something else of it.
    pub(crate) now: String,
}

/// Makes the changes in their order, and stops at the first that fails.
///
/// # Errors
/// A setting cannot be written, or somebody else has changed it meanwhile; it says what was changed before.
pub(crate) fn apply(
    machine: &Machine,
    changes: &[Change],
    journal: &mut Journal,
    origin: &Origin,
    before: Before<'_>,
) -> Result<Vec<Applied>> {
    let first_sequence = journal.next_sequence();
    let mut applied = Vec::with_capacity(changes.len());
    for change in changes {
        match apply_one(machine, change, journal, origin, before) {
            Ok(now) => applied.push(Applied { change: change.clone(), now }),
            Err(error) => return Err(error.context(so_far(journal, first_sequence))),
        }
    }
    Ok(applied)
}

/// What may have been changed since `first_sequence`, in words.
fn so_far(journal: &Journal, first_sequence: u64) -> String {
    let changed = journal.open().iter().filter(|open| open.intent.sequence >= first_sequence);
    let names: Vec<_> = changed.map(|open| open.intent.setting.as_str()).collect();
    if names.is_empty() {
        return "nothing was changed".to_owned();
    }
    format!("stopped; `culver-tune rollback` undoes what was changed: {}", names.join(", "))
}

fn apply_one(
    machine: &Machine,
    change: &Change,
    journal: &mut Journal,
    origin: &Origin,
    before: Before<'_>,
) -> Result<String> {
    let Change { setting, place, old, new } = change;
    ensure!(written(setting).is_some(), "{setting} is not a setting that this program writes");
    let procfs = machine.at(*place);
    let read = || procfs.sysctl(setting)?.with_context(|| format!("{setting} is gone"));
    ensure!(read()? == *old, "somebody else has changed {setting} just now: run this again");
    let sequence = journal.next_sequence();
    let intent = Intent {
        sequence,
        boot_id: origin.boot_id.clone(),
        pid: origin.pid,
        time_unix_ms: origin.time_unix_ms,
        setting: (*setting).to_owned(),
        place: *place,
        namespace: procfs.namespace(),
        old: old.clone(),
        new: new.clone(),
    };
    before(Step::Record)?;
    journal.add(Record::Write(intent))?;
    before(Step::Write)?;
    // Once more, for syncing the line may have taken long: what somebody else has set meanwhile stays.
    let present = read();
    if present.as_ref().ok() != Some(old) {
        before(Step::Record)?;
        journal.add(Record::Settled { sequence, how: Settled::Failed })?;
        let present = present?;
        bail!("somebody else has changed {setting} just now, to {present}: it stays so; run this again");
    }
    if let Err(refused) = procfs.write_sysctl(setting, new) {
        if procfs.sysctl(setting).is_ok_and(|now| now.as_ref() == Some(old)) {
            before(Step::Record)?;
            journal.add(Record::Settled { sequence, how: Settled::Failed })?;
        }
        return Err(explained(refused));
    }
    let value = read()?;
    before(Step::Record)?;
    journal.add(Record::Done { sequence, value: value.clone() })?;
    Ok(value)
}

fn explained(refused: Error) -> Error {
    match refused.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(ErrorKind::ReadOnlyFilesystem) => {
            refused.context("/proc/sys is read-only here, as in most containers: run this on the machine itself")
        }
        Some(ErrorKind::PermissionDenied) => {
            refused.context("being root does not suffice here: run this on the machine itself")
        }
        Some(ErrorKind::InvalidInput) => refused.context("this kernel does not take so large a value"),
        _ => refused,
    }
}

#[cfg(test)]
mod tests;
