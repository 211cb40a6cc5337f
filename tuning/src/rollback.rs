//! Undoes what the journal tells, newest first, and only what nobody else has changed since.
//!
//! Owns the comparison. Between it and the write somebody else may still come in: the kernel has no way to do both at
//! once. Never writes what is not in the catalogue.

use anyhow::{Context, Result, ensure};

use crate::apply::{Before, Step};
use crate::catalogue::written;
use crate::journal::{Intent, Journal, Open, Record, Settled};
use crate::procfs::Procfs;

/// What became of one write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Restored,
    /// The old value was there already.
    Back,
    /// Its namespace, its setting or its boot is gone.
    Gone,
    /// Somebody else has changed it to this.
    Left {
        present: String,
    },
}

/// One write, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rolled {
    pub(crate) open: Open,
    pub(crate) outcome: Outcome,
}

/// Undoes what is not settled. `find` gives the place where a write was made, or `None` if that is gone.
///
/// # Errors
/// The journal names a setting that this program never writes, or one cannot be read or written; what was undone
/// before that stays undone.
pub(crate) fn rollback(
    journal: &mut Journal,
    boot_id: &str,
    find: &dyn Fn(&Intent) -> Result<Option<Procfs>>,
    before: Before<'_>,
) -> Result<Vec<Rolled>> {
    let opens: Vec<Open> = journal.open().iter().rev().cloned().collect();
    for Open { intent, .. } in &opens {
        let known = written(&intent.setting).is_some();
        ensure!(known, "the journal names {}, which this program never writes; nothing was changed", intent.setting);
    }
    let mut rolled = Vec::with_capacity(opens.len());
    for open in opens {
        let procfs = if open.intent.boot_id == boot_id { find(&open.intent)? } else { None };
        let outcome = match procfs {
            None => Outcome::Gone,
            Some(procfs) => undo(&procfs, &open, original(journal, &open.intent), before)?,
        };
        let how = match outcome {
            Outcome::Restored => Some(Settled::Restored),
            Outcome::Back => Some(Settled::Back),
            Outcome::Gone => Some(Settled::Gone),
            Outcome::Left { .. } => None,
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

fn undo(procfs: &Procfs, open: &Open, original: Option<String>, before: Before<'_>) -> Result<Outcome> {
    let Intent { setting, old, .. } = &open.intent;
    let Some(present) = procfs.sysctl(setting)? else { return Ok(Outcome::Gone) };
    if present == *old || Some(&present) == original.as_ref() {
        return Ok(Outcome::Back);
    }
    if present != open.written() {
        return Ok(Outcome::Left { present });
    }
    before(Step::Write)?;
    procfs.write_sysctl(setting, old)?;
    let now = procfs.sysctl(setting)?.with_context(|| format!("{setting} is gone"))?;
    ensure!(
        now == *old,
        "{setting} is {now} after \"{old}\" was written to it: somebody else writes it too; run this again"
    );
    Ok(Outcome::Restored)
}

#[cfg(test)]
mod tests;
