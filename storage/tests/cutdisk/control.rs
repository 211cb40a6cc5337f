//! The disk under a lock, and the commands that govern it: a line in, a line out.

use std::fmt::Display;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;

use super::model::{Armed, CutKind, Files, HandleId, Model, Moment, Times, WriteError};

/// A disk that several threads use.
pub(crate) struct Disk {
    model: Mutex<Model>,
    /// The power went off: nobody waits for a sync any longer.
    went_off: Condvar,
}

/// What a command may be.
const COMMANDS: &str = "cut KIND, arm KIND write|sync|synced FILES N, disarm, state, on, \
    fail sync FILES once|always, fail write FILES eio|enospc, fail none, free BYTES|any, short on|off, slow MS, stat \
    (KIND: drop, subset, torn; FILES: log, table, any)";

impl Disk {
    pub(crate) fn new(model: Model) -> Self {
        Self { model: Mutex::new(model), went_off: Condvar::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock()
    }

    /// Syncs a file or folder, for as long as that is to take. Others go on meanwhile.
    pub(crate) fn sync(&self, handle: HandleId) -> Result<(), Errno> {
        let mut model = self.model.lock();
        let wait_ms = model.begin_sync(handle)?;
        let until = Instant::now() + Duration::from_millis(wait_ms);
        while model.is_on() && Instant::now() < until {
            self.went_off.wait_until(&mut model, until);
        }
        model.end_sync(handle)
    }

    /// Obeys a command, and says what came of it.
    pub(crate) fn obey(&self, line: &str) -> String {
        match self.perform(line) {
            Ok(None) => "ok".to_owned(),
            Ok(Some(answer)) => format!("ok {answer}"),
            Err(error) => format!("error {error}"),
        }
    }

    fn perform(&self, line: &str) -> Result<Option<String>, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut model = self.lock();
        match *words.as_slice() {
            ["cut", kind] => {
                let kind = cut_kind(kind)?;
                if !model.is_on() {
                    return Err("the power is off already: bring it back with `on`".to_owned());
                }
                model.cut(kind);
                self.went_off.notify_all();
            }
            ["arm", kind, moment, files, count] => {
                let left = number("N", count)?;
                if left == 0 {
                    return Err("N counts from 1".to_owned());
                }
                let armed = Armed { kind: cut_kind(kind)?, moment: at(moment)?, files: files_of(files)?, left };
                model.faults().armed = Some(armed);
            }
            ["disarm"] => model.faults().armed = None,
            ["state"] => return Ok(Some(if model.is_on() { "on" } else { "off" }.to_owned())),
            ["on"] => {
                if model.is_on() {
                    return Err("the power is on already: cut it with `cut drop`".to_owned());
                }
                model.power_on();
            }
            ["fail", "none"] => (model.faults().sync, model.faults().write) = (None, None),
            ["fail", "sync", files, times] => model.faults().sync = Some((files_of(files)?, times_of(times)?)),
            ["fail", "write", files, error] => model.faults().write = Some((files_of(files)?, error_of(error)?)),
            ["free", "any"] => model.set_free(None),
            ["free", bytes] => model.set_free(Some(number("BYTES", bytes)?)),
            ["short", "on"] => model.faults().is_short = true,
            ["short", "off"] => model.faults().is_short = false,
            ["slow", ms] => model.faults().sync_ms = number("MS", ms)?,
            ["stat"] => return Ok(Some(serde_json::to_string(&model.counts()).expect("numbers are JSON"))),
            _ => return Err(format!("`{}` is no command; known are: {COMMANDS}", line.trim())),
        }
        Ok(None)
    }
}

fn cut_kind(word: &str) -> Result<CutKind, String> {
    one_of("KIND", word, &[("drop", CutKind::Drop), ("subset", CutKind::Subset), ("torn", CutKind::Torn)])
}

fn at(word: &str) -> Result<Moment, String> {
    one_of("the moment", word, &[("write", Moment::Write), ("sync", Moment::Sync), ("synced", Moment::Synced)])
}

fn files_of(word: &str) -> Result<Files, String> {
    one_of("FILES", word, &[("log", Files::Log), ("table", Files::Table), ("any", Files::Any)])
}

fn times_of(word: &str) -> Result<Times, String> {
    one_of("how often", word, &[("once", Times::Once), ("always", Times::Always)])
}

fn error_of(word: &str) -> Result<WriteError, String> {
    one_of("the error", word, &[("eio", WriteError::Io), ("enospc", WriteError::NoSpace)])
}

fn one_of<T: Copy>(what: impl Display, word: &str, known: &[(&str, T)]) -> Result<T, String> {
    if let Some((_, value)) = known.iter().find(|(name, _)| *name == word) {
        return Ok(*value);
    }
    let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
    Err(format!("{what} is not `{word}`; known are: {}", names.join(", ")))
}

fn number(what: &str, word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("{what} is a whole number, not `{word}`"))
}
