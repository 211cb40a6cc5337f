//! Undoes what the journal tells, newest first, and only what nobody else has changed since.
//!
//! Owns the comparison. Between it and the write somebody else may still come in: the kernel has no way to do both at
//! once. Never writes what is not in the catalogue.

use anyhow::{Context, Error, Result, ensure};

use crate::apply::{Before, Step};
use crate::catalogue::written;
use crate::examine::sysctl_command;
use crate::journal::{Intent, Journal, Open, Record, Settled};
use crate::namespace::Found;
use crate::procfs::Procfs;

/// What became of one write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Restored,
    /// The old value was there already.
    Back,
    /// Its boot is gone, or the kernel says that its namespace is.
    Gone,
    /// Neither found from here nor known to be gone.
    Unseen,
    /// It could not be put back, or not even looked at.
    Failed {
        why: String,
    },
    /// Somebody else has changed it to this.
    Left {
        present: String,
    },
}

impl Outcome {
    fn failed(error: &Error) -> Self {
        Self::Failed { why: format!("{error:#}") }
    }
}

/// One write, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rolled {
    pub(crate) open: Open,
    pub(crate) outcome: Outcome,
}

/// Undoes what is not settled. `find` gives the place where a write was made.
///
/// # Errors
/// The journal names a setting that this program never writes, or cannot be written itself; what was undone before that
/// stays undone. A setting that cannot be is an outcome, for it must not keep the others from being restored.
pub(crate) fn rollback(
    journal: &mut Journal,
    boot_id: &str,
    find: &dyn Fn(&Intent) -> Result<Found<Procfs>>,
    before: Before<'_>,
) -> Result<Vec<Rolled>> {
    let opens: Vec<Open> = journal.open().iter().rev().cloned().collect();
    for Open { intent, .. } in &opens {
        let known = written(&intent.setting).is_some();
        ensure!(known, "the journal names {}, which this program never writes; nothing was changed", intent.setting);
    }
    let mut rolled = Vec::with_capacity(opens.len());
    for open in opens {
        let outcome = match look(journal, &open, boot_id, find) {
            Ok(Next::Write(procfs)) => {
                before(Step::Write)?;
                put_back(&procfs, &open.intent).map_or_else(|error| Outcome::failed(&error), |()| Outcome::Restored)
            }
            Ok(Next::Nothing(outcome)) => outcome,
            Err(error) => Outcome::failed(&error),
        };
        let how = match outcome {
            Outcome::Restored => Some(Settled::Restored),
            Outcome::Back => Some(Settled::Back),
            Outcome::Gone => Some(Settled::Gone),
            Outcome::Left { .. } | Outcome::Unseen | Outcome::Failed { .. } => None,
        };
        if let Some(how) = how {
            before(Step::Record)?;
            journal.add(Record::Settled { sequence: open.intent.sequence, how })?;
        }
        rolled.push(Rolled { open, outcome });
    }
    Ok(rolled)
}

/// What the setting held before the first write that is not settled.
fn original(journal: &Journal, intent: &Intent) -> Option<String> {
    let same = |open: &&Open| {
        open.intent.setting == intent.setting
            && open.intent.place == intent.place
            && open.intent.namespace == intent.namespace
    };
    journal.open().iter().find(same).map(|open| open.intent.old.clone())
}

/// What is to be done about one write.
enum Next {
    /// The old value is to be written there.
    Write(Procfs),
    Nothing(Outcome),
}

fn look(
    journal: &Journal,
    open: &Open,
    boot_id: &str,
    find: &dyn Fn(&Intent) -> Result<Found<Procfs>>,
) -> Result<Next> {
    let Intent { setting, old, .. } = &open.intent;
    let found = if open.intent.boot_id == boot_id { find(&open.intent)? } else { Found::Gone };
    let procfs = match found {
        Found::Here(procfs) => procfs,
        Found::Gone => return Ok(Next::Nothing(Outcome::Gone)),
        Found::Unseen => return Ok(Next::Nothing(Outcome::Unseen)),
    };
    // Not gone: a container may hide it, and a kernel module may bring it back.
    let Some(present) = procfs.sysctl(setting)? else { return Ok(Next::Nothing(Outcome::Unseen)) };
    if present == *old || Some(&present) == original(journal, &open.intent).as_ref() {
        return Ok(Next::Nothing(Outcome::Back));
    }
    if present != open.written() {
        return Ok(Next::Nothing(Outcome::Left { present }));
    }
    Ok(Next::Write(procfs))
}

fn put_back(procfs: &Procfs, Intent { setting, old, .. }: &Intent) -> Result<()> {
    procfs.write_sysctl(setting, old)?;
    let now = procfs.sysctl(setting)?.with_context(|| format!("{setting} is gone"))?;
    ensure!(
        now == *old,
        "{setting} is {now} after \"{old}\" was written to it: somebody else writes it too; run this again"
    );
    Ok(())
}

/// What a person does to undo one write, as a line for a shell; `prefix` lets a command run where it was made, and is
/// `None` where that place is not found.
pub(crate) fn by_hand(open: &Open, boot_id: &str, prefix: Option<&str>) -> String {
    let Intent { setting, old, .. } = &open.intent;
    match prefix {
        _ if open.intent.boot_id != boot_id => {
            format!("# {setting}: was set before the last boot, and is gone with it")
        }
        None => {
            format!("# {setting}: was set to {} in a network namespace that is not found from here", open.written())
        }
        Some(prefix) => {
            format!("{}   # only if it is {} now", sysctl_command(prefix, setting, old), open.written())
        }
    }
}

#[cfg(test)]
mod tests;
