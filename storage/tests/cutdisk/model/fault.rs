//! What can go wrong on command, and which files it is about.

use std::ffi::OsStr;
use std::path::Path;

use serde::Serialize;

/// How a power cut treats what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CutKind {
    /// All of it is gone.
    Drop,
    /// Any part of its pages is there.
    Subset,
    /// Its first pages are there, and a part of the next.
    Torn,
}

/// Which files a fault is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// `*.log`
    Log,
    /// `*.sst`
    Table,
    /// All, and folders.
    Any,
}

impl Files {
    /// Which a name belongs to.
    pub(super) fn of(name: &OsStr) -> Self {
        match Path::new(name).extension().and_then(OsStr::to_str) {
            Some("log") => Self::Log,
            Some("sst") => Self::Table,
            _ => Self::Any,
        }
    }

    fn covers(self, of: Self) -> bool {
        self == Self::Any || self == of
    }
}

/// At which moment the power goes off by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// At a write, before it takes effect.
    Write,
    /// At a sync, before it takes effect.
    Sync,
    /// At a sync, after it took effect. The caller is told an error.
    Synced,
}

/// A power cut that waits for its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Armed {
    pub(crate) kind: CutKind,
    pub(crate) moment: Moment,
    pub(crate) files: Files,
    /// How many of them are still to come, this one with them.
    pub(crate) left: u64,
}

/// How syncs fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Times {
    Once,
    Always,
}

/// How writes fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteError {
    Io,
    NoSpace,
}

/// All that is wrong now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub(crate) armed: Option<Armed>,
    pub(crate) sync: Option<(Files, Times)>,
    pub(crate) write: Option<(Files, WriteError)>,
    /// Writes take a part of what is asked.
    pub(crate) is_short: bool,
    /// How long each sync takes.
    pub(crate) sync_ms: u64,
}

impl Faults {
    /// Whether the power goes off at this moment.
    pub(super) fn cut_at(&mut self, moment: Moment, of: Files) -> Option<CutKind> {
        let armed = self.armed.as_mut()?;
        if armed.moment != moment || !armed.files.covers(of) {
            return None;
        }
        armed.left = armed.left.saturating_sub(1);
        let kind = armed.kind;
        if armed.left > 0 {
            return None;
        }
        self.armed = None;
        Some(kind)
    }

    /// Whether this sync fails.
    pub(super) fn sync_fails(&mut self, of: Files) -> bool {
        match self.sync {
            Some((files, times)) if files.covers(of) => {
                if times == Times::Once {
                    self.sync = None;
                }
                true
            }
            _ => false,
        }
    }

    /// How this write fails.
    pub(super) fn write_fails(&self, of: Files) -> Option<WriteError> {
        self.write.filter(|(files, _)| files.covers(of)).map(|(_, error)| error)
    }
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    pub(crate) writes: u64,
    pub(crate) syncs: u64,
    pub(crate) cuts: u64,
    pub(crate) pages_dropped: u64,
    pub(crate) pages_kept: u64,
    pub(crate) pages_torn: u64,
    pub(crate) entries_dropped: u64,
    /// What files take now.
    pub(crate) bytes: u64,
}
