//! Receipts to sessions: live as they arrive, or read from the log by version where a session was not told.
//!
//! A client keeps one number, the last version that it has persisted, so a session must be told every version in order.
//! What finds no room puts the session `behind`: live ones are held back until the log, read from the last version
//! told, has nothing more. What was on its way meanwhile is void, which its `turn` shows.

use culver_protocol::id::UserId;
use culver_protocol::limits::RECEIPT_MARKS_MAX;
use culver_protocol::message::MarkView;
use culver_storage::reader::Read;
use culver_storage::record::{Arrival, Record};
use culver_storage::shard::Direct;

use super::Hub;
use super::command::Address;
use super::directory::Flag;
use super::effect::{Effect, EffectKind};
use super::extra::Untold;
use super::reads::{split_tag, tag_of};

/// Effects looked at for an earlier receipt of the same session to add to.
const MERGE_DEPTH: usize = 8;

impl Hub {
    /// Something is new for a user: each of the user's sessions is told, but for `except`, which knows.
    pub(super) fn tell_mark(&mut self, user: UserId, mark: MarkView, version: u64, except: Option<Address>) {
        let mut sessions = std::mem::take(&mut self.scratch);
        sessions.clear();
        sessions.extend(self.directory.of_user(user));
        sessions.sort_unstable();
        for index in &sessions {
            let online = self.directory.get(*index).expect("the directory names what is there");
            let session = online.address();
            if online.is(Flag::ReceiptsBehind) {
                let extra = self.extras.get(&self.directory, *index).expect("the flag says so");
                extra.receipts.as_mut().expect("the flag says so").held += 1;
                self.building.held.push((*index, session));
                continue;
            }
            if except != Some(session) {
                let (turn, after, marks) = (online.receipt_turn, version - 1, vec![mark]);
                self.tell_receipt(session, EffectKind::Receipt { online: *index, turn, after, version, marks });
            }
        }
        self.scratch = sessions;
    }

    /// What the batch under construction tells to users of this hub goes into it, where it can.
    pub(super) fn give_receipts(&mut self, with_cursors: bool) {
        let mut direct = Direct::default();
        while let Some(record) = self.shards.decide_direct(with_cursors, &mut direct) {
            self.shards.apply(&record);
            if let Record::ReceiptGiven { item: Arrival::Receipt { user, mark, version }, .. } = record {
                self.tell_mark(user, mark, version, None);
            }
        }
    }

    /// Several receipts of a batch for one session go as one.
    fn tell_receipt(&mut self, session: Address, kind: EffectKind) {
        let EffectKind::Receipt { turn, after, version, marks, .. } = &kind else { return };
        let latest = self.building.effects.iter_mut().rev().take(MERGE_DEPTH);
        for effect in latest.filter(|effect| effect.session == session) {
            if let EffectKind::Receipt { turn: of, version: end, marks: earlier, .. } = &mut effect.kind
                && of == turn
                && *end == *after
                && earlier.len() + marks.len() <= RECEIPT_MARKS_MAX
            {
                *end = *version;
                earlier.extend_from_slice(marks);
                return;
            }
        }
        self.tell(session, kind);
    }

    /// A session has been told everything up to this version, and no more: the rest is read once this batch is durable.
    pub(super) fn miss_receipts(&mut self, index: u32, told: u64) {
        let session = self.directory.get(index).expect("the caller found it").address();
        let extra = self.extras.get_or_default(&mut self.directory, index);
        extra.receipts = Some(Untold { told, held: 1, ..Untold::default() });
        self.extras.settle(&mut self.directory, index);
        self.building.held.push((index, session));
    }

    /// What was held back is durable now: the log holds it.
    pub(super) fn read_held_receipts(&mut self, held: Vec<(u32, Address)>) {
        for (index, session) in held {
            if self.directory.get(index).is_none_or(|online| online.address() != session) {
                continue;
            }
            if let Some(untold) = self.untold(index) {
                untold.held = untold.held.saturating_sub(1);
                untold.missed = true;
                self.pump_receipts(index);
            }
        }
    }

    pub(super) fn untold(&mut self, index: u32) -> Option<&mut Untold> {
        self.extras.get(&self.directory, index)?.receipts.as_mut()
    }

    /// Reads what a session was not told, if that is due.
    pub(super) fn pump_receipts(&mut self, index: u32) {
        let read = self.number_read();
        let Some(untold) = self.untold(index) else { return };
        if untold.reading != 0 || !untold.missed {
            return;
        }
        (untold.reading, untold.missed) = (read, false);
        let after_version = untold.told;
        let user = self.directory.get(index).expect("it has more about it").user();
        self.want(Read::Receipts { tag: tag_of(read, index), user, after_version });
    }

    /// What a session was not told has been read.
    pub(super) fn tell_receipts(&mut self, tag: u64, version: u64, marks: Vec<MarkView>, more: bool) {
        let (read, index) = split_tag(tag);
        let Some(untold) = self.untold(index).filter(|untold| untold.reading == read) else { return };
        untold.reading = 0;
        let after = untold.told;
        untold.told = after.max(version);
        untold.missed |= more;
        let is_done = !untold.missed && untold.held == 0;
        if version > after {
            let online = self.directory.get(index).expect("it has more about it");
            let (session, turn) = (online.address(), online.receipt_turn);
            self.tell(session, EffectKind::Receipt { online: index, turn, after, version, marks });
            self.building.is_urgent = true;
        }
        if is_done {
            let extra = self.extras.get(&self.directory, index).expect("seen above");
            extra.receipts = None;
            self.extras.settle(&mut self.directory, index);
        } else {
            self.pump_receipts(index);
        }
    }

    /// Whether a receipt may go out: what was told after one that found no room is void.
    #[must_use]
    pub fn is_void(&mut self, effect: &Effect) -> bool {
        let EffectKind::Receipt { online: index, turn, after, .. } = &effect.kind else { return false };
        let Some(online) = self.directory.get(*index).filter(|online| online.address() == effect.session) else {
            // Its session is gone, and with it what says whether the one before it found room.
            return true;
        };
        if online.receipt_turn == *turn {
            return false;
        }
        self.lose_receipts(*index, *after);
        self.pump_receipts(*index);
        true
    }

    pub(super) fn handle_refused_receipt(&mut self, index: u32, session: Address, turn: u8, after: u64) {
        let Some(online) = self.directory.get_mut(index).filter(|online| online.address() == session) else { return };
        assert!(online.receipt_turn == turn, "what is void is not posted");
        self.lose_receipts(index, after);
        self.hungry.insert((session.reactor, index));
    }

    /// A session was told everything up to `after`, and what follows that is lost: it is read from there again.
    fn lose_receipts(&mut self, index: u32, after: u64) {
        // What is on its way would leave a hole, and what is being read from further on says too little.
        let online = self.directory.get_mut(index).expect("the caller found it");
        online.receipt_turn = online.receipt_turn.wrapping_add(1);
        let extra = self.extras.get_or_default(&mut self.directory, index);
        let untold = extra.receipts.get_or_insert(Untold { told: after, ..Untold::default() });
        (untold.told, untold.reading, untold.missed) = (untold.told.min(after), 0, true);
        self.extras.settle(&mut self.directory, index);
    }
}
