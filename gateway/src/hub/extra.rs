//! What only few sessions have, and not for long: beside the directory, so that the many stay small.

use std::collections::HashMap;

use culver_protocol::id::InboxSeq;

use super::directory::{Directory, Flag};
use super::effect::EffectKind;

/// More about one session.
#[derive(Debug, Default)]
pub(super) struct Extra {
    /// For a fetch session: when it came.
    pub(super) arrival: u64,
    /// The session is to be told that it goes on at `sent`, and was told last that it is here.
    pub(super) owed: Option<Owed>,
    /// What it is told of its backlog.
    pub(super) sync: Sync,
    /// Receipts that it was not told.
    pub(super) receipts: Option<Untold>,
    /// RPCs that are not answered.
    pub(super) rpcs: usize,
}

/// A step without entries that did not reach the session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owed {
    /// The session stands here.
    pub(super) from: InboxSeq,
    /// What it steps over is no longer kept, and the client must know.
    pub(super) gap: bool,
}

/// How far the story of a backlog is told.
#[derive(Debug, Default)]
pub(super) enum Sync {
    /// There is none.
    #[default]
    Nothing,
    /// It must be read what waits beyond what the client has by its own account.
    Wanted(InboxSeq),
    /// Its beginning is on its way to the session's reactor.
    Starting(InboxSeq),
    /// Its beginning found no room.
    Refused(Box<EffectKind>),
    /// It has begun.
    Begun {
        /// The last entry of it.
        through: InboxSeq,
        /// Its end has been told.
        told: bool,
    },
}

/// Receipts that a session was not told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Untold {
    /// It was told everything up to this version.
    pub(super) told: u64,
    /// The number of the read under way; 0: none is.
    pub(super) reading: u32,
    /// Since that began, more became durable.
    pub(super) missed: bool,
    /// Live ones that were held back and are not durable yet.
    pub(super) held: u32,
}

impl Extra {
    fn is_idle(&self) -> bool {
        self.owed.is_none() && matches!(self.sync, Sync::Nothing) && self.receipts.is_none() && self.rpcs == 0
    }

    /// Whether something must go to the session before anything goes live.
    fn holds(&self) -> bool {
        self.owed.is_some() || matches!(self.sync, Sync::Wanted(_) | Sync::Starting(_) | Sync::Refused(_))
    }
}

/// The table.
#[derive(Default)]
pub(super) struct Extras {
    extras: HashMap<u32, Extra>,
}

impl Extras {
    /// Sessions that there is more about.
    pub(super) fn len(&self) -> usize {
        self.extras.len()
    }

    /// More about a session, if there is more.
    pub(super) fn get(&mut self, directory: &Directory, index: u32) -> Option<&mut Extra> {
        if directory.get(index).is_some_and(|online| online.is(Flag::Extra)) {
            self.extras.get_mut(&index)
        } else {
            None
        }
    }

    /// More about a session that is there; afterwards comes [`Extras::settle`].
    pub(super) fn get_or_default(&mut self, directory: &mut Directory, index: u32) -> &mut Extra {
        directory.get_mut(index).expect("the caller found it").set(Flag::Extra, true);
        self.extras.entry(index).or_default()
    }

    /// Brings a session's flags in line with what is in the table, and forgets what says nothing any more.
    pub(super) fn settle(&mut self, directory: &mut Directory, index: u32) {
        let Some(online) = directory.get_mut(index).filter(|online| online.is(Flag::Extra)) else { return };
        let extra = self.extras.get(&index).expect("the flag says so");
        online.set(Flag::Held, extra.holds());
        online.set(Flag::ReceiptsBehind, extra.receipts.is_some());
        if extra.is_idle() && !online.is(Flag::Fetch) {
            online.set(Flag::Extra, false);
            self.extras.remove(&index);
        }
    }

    /// The session is gone.
    pub(super) fn remove(&mut self, index: u32) {
        self.extras.remove(&index);
    }
}
