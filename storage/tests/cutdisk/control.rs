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

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::time::SystemTime;

    use super::super::model::{Attributes, NodeId};
    use super::*;

    fn disk() -> Disk {
        let now = SystemTime::UNIX_EPOCH;
        let of = Attributes { permissions: 0o755, user: 0, group: 0, accessed: now, modified: now, changed: now };
        Disk::new(Model::new(1, of))
    }

    #[test]
    fn commands_are_obeyed() {
        let disk = disk();
        for line in [
            "arm torn synced log 3",
            "disarm",
            "fail sync table once",
            "fail sync any always",
            "fail write log enospc",
            "fail none",
            "free 4096",
            "free any",
            "short on",
            "short off",
            "slow 5",
        ] {
            assert_eq!(disk.obey(line), "ok", "{line}");
        }
        assert_eq!(disk.obey("state"), "ok on");
        assert_eq!(disk.obey("cut subset"), "ok");
        assert_eq!(disk.obey("state"), "ok off");
        assert!(disk.obey("cut drop").starts_with("error the power is off"));
        assert_eq!(disk.obey("on"), "ok");
        assert_eq!(*disk.lock().faults(), super::super::model::Faults::default());
        assert!(disk.obey("on").starts_with("error the power is on"));
        assert!(disk.obey("stat").starts_with("ok {\"writes\":0,\"syncs\":0,\"cuts\":1,"), "{}", disk.obey("stat"));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_known() {
        let disk = disk();
        for (line, named) in [
            ("", "no command"),
            ("cut", "no command"),
            ("cut down", "drop, subset, torn"),
            ("arm drop later log 1", "write, sync, synced"),
            ("arm drop write logs 1", "log, table, any"),
            ("arm drop write log 0", "counts from 1"),
            ("arm drop write log x", "a whole number"),
            ("fail sync log twice", "once, always"),
            ("fail write log erofs", "eio, enospc"),
            ("free -1", "a whole number"),
        ] {
            let said = disk.obey(line);
            assert!(said.starts_with("error ") && said.contains(named), "{line}: {said}");
        }
        assert!(disk.lock().faults().armed.is_none());
    }

    #[test]
    fn a_cut_ends_a_slow_sync() {
        let disk = disk();
        let root = disk.lock().open(NodeId::ROOT).expect("it is there");
        assert_eq!(disk.obey("slow 3600000"), "ok");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| disk.sync(root));
            while disk.lock().counts().syncs == 0 {
                std::thread::yield_now();
            }
            assert_eq!(disk.lock().lookup(NodeId::ROOT, OsStr::new("x")).err(), Some(Errno::NOENT), "others go on");
            assert_eq!(disk.obey("cut drop"), "ok");
            assert_eq!(waiting.join().ok(), Some(Err(Errno::IO)));
        });
    }
}
