//! Delivery: what goes to a session when, within its window.
//!
//! An entry just accepted goes out live if the session has everything before it and room for it. Otherwise it is
//! skipped, for it is in the log; once its batch is durable the session is marked `behind` and the log is read
//! from `sent` on, page by page, as far as the window allows. No queue of payloads is kept for anybody.

use std::collections::VecDeque;

use culver_protocol::id::{InboxSeq, UserId};
use culver_protocol::limits::{DELIVER_BYTES_MAX, DELIVER_ENTRIES_MAX, ENTRY_OVERHEAD};
use culver_storage::reader::Read;
use culver_storage::record::InboxEntry;

use super::Hub;
use super::command::Credit;
use super::directory::{NO_WINDOW, Online};
use super::effect::{Effect, EffectKind};

/// Free window lists kept for the next session that needs one.
const POOLED_MAX: usize = 1024;

/// The sizes of entries on their way to clients: a pooled list for each session that has any.
#[derive(Default)]
pub struct Windows {
    lists: Vec<VecDeque<(InboxSeq, u32)>>,
    free: Vec<u32>,
}

impl Windows {
    /// Notes an entry that is on its way.
    pub fn push(&mut self, online: &mut Online, seq: InboxSeq, bytes: u32) {
        if online.window == NO_WINDOW {
            online.window = self.free.pop().unwrap_or_else(|| {
                self.lists.push(VecDeque::new());
                u32::try_from(self.lists.len() - 1).expect("fewer lists than sessions")
            });
        }
        self.list(online.window).push_back((seq, bytes));
        online.used_bytes += bytes;
        online.sent = seq;
    }

    /// Forgets what the client has persisted.
    pub fn acknowledge(&mut self, online: &mut Online, through: InboxSeq) {
        online.acked = through;
        if online.window == NO_WINDOW {
            return;
        }
        let list = self.list(online.window);
        while list.front().is_some_and(|(seq, _)| *seq <= through) {
            let (_, bytes) = list.pop_front().expect("the front was just looked at");
            online.used_bytes -= bytes;
        }
        self.release_if_empty(online);
    }

    /// Takes back what did not reach the client: everything beyond `sent`.
    pub fn rewind(&mut self, online: &mut Online, sent: InboxSeq) {
        online.sent = sent;
        if online.window == NO_WINDOW {
            return;
        }
        let list = self.list(online.window);
        while list.back().is_some_and(|(seq, _)| *seq > sent) {
            let (_, bytes) = list.pop_back().expect("the back was just looked at");
            online.used_bytes -= bytes;
        }
        self.release_if_empty(online);
    }

    /// Entries on their way.
    #[must_use]
    pub fn len(&self, online: &Online) -> usize {
        if online.window == NO_WINDOW { 0 } else { self.lists.get(online.window as usize).map_or(0, VecDeque::len) }
    }

    /// Gives the session's list back.
    pub fn release(&mut self, online: &mut Online) {
        if online.window != NO_WINDOW {
            self.list(online.window).clear();
            online.used_bytes = 0;
            self.release_if_empty(online);
        }
    }

    fn release_if_empty(&mut self, online: &mut Online) {
        let pooled = self.free.len();
        let list = self.list(online.window);
        if list.is_empty() {
            if pooled >= POOLED_MAX {
                *list = VecDeque::new();
            }
            self.free.push(online.window);
            online.window = NO_WINDOW;
            assert!(online.used_bytes == 0, "an empty window uses no bytes");
        }
    }

    fn list(&mut self, index: u32) -> &mut VecDeque<(InboxSeq, u32)> {
        self.lists.get_mut(index as usize).expect("a session's window index names a list")
    }
}

/// What an entry counts in windows and pages.
fn counted_bytes(entry: &InboxEntry) -> u32 {
    u32::try_from(entry.payload.len() + ENTRY_OVERHEAD).expect("payloads are bounded")
}

impl Hub {
    /// An entry was accepted for a user: to each of the user's sessions it goes live, or is skipped.
    pub(super) fn deliver_live(&mut self, user: UserId, entry: &InboxEntry) {
        // Few sessions a user, so their indexes fit a small list on the hub.
        let mut sessions = std::mem::take(&mut self.scratch);
        sessions.extend(self.directory.of_user(user));
        for index in sessions.drain(..) {
            let online = self.directory.get_mut(index).expect("the directory names what is there");
            let previous = online.sent;
            let bytes = counted_bytes(entry);
            let fits = self.windows.len(online) < usize::from(online.credit_entries)
                && online.used_bytes + bytes <= online.credit_bytes;
            if previous.0 + 1 == entry.inbox_seq.0 && fits {
                self.windows.push(online, entry.inbox_seq, bytes);
                let set_backs = online.set_backs;
                let kind = EffectKind::Deliver { online: index, set_backs, previous, entry: entry.clone() };
                self.building.effects.push(Effect { session: online.address(), kind });
            } else {
                self.building.skipped.push(index);
            }
        }
        self.scratch = sessions;
    }

    /// What was skipped is durable now: the log holds it.
    pub(super) fn mark_behind(&mut self, skipped: Vec<u32>) {
        for index in skipped {
            if let Some(online) = self.directory.get_mut(index) {
                online.behind = true;
                online.missed |= online.reading;
                self.pump(index);
            }
        }
    }

    /// Reads on from the log, if the session is behind and has room.
    pub(super) fn pump(&mut self, index: u32) {
        let Some(online) = self.directory.get_mut(index) else { return };
        if !online.behind || online.reading {
            return;
        }
        let entries_max =
            usize::from(online.credit_entries).saturating_sub(self.windows.len(online)).min(DELIVER_ENTRIES_MAX);
        let bytes_max = (online.credit_bytes.saturating_sub(online.used_bytes) as usize).min(DELIVER_BYTES_MAX);
        let nothing_under_way = online.sent == online.acked;
        // A page costs a read whatever it holds: wait until half of it is free.
        let worth_it = entries_max * 2 >= usize::from(online.credit_entries).min(DELIVER_ENTRIES_MAX)
            && bytes_max * 2 >= (online.credit_bytes as usize).min(DELIVER_BYTES_MAX);
        if !nothing_under_way && !worth_it {
            return;
        }
        // Numbered, for a session that comes to be at the same index is not to take it for its own.
        self.read_number = self.read_number.wrapping_add(1);
        online.read = self.read_number;
        online.reading = true;
        online.missed = false;
        let (user, after) = (online.user(), online.sent);
        let tag = u64::from(online.read) << 32 | u64::from(index);
        self.reads.push_back(Read::Inbox { tag, user, after, entries_max, bytes_max });
    }

    /// A page from the log.
    pub(super) fn deliver_page(&mut self, tag: u64, user: UserId, after: InboxSeq, mut entries: Vec<InboxEntry>) {
        let index = u32::try_from(tag & u64::from(u32::MAX)).expect("masked to 32 bits");
        let Some(online) = self.directory.get_mut(index) else { return };
        if !online.reading || u64::from(online.read) != tag >> 32 || online.user() != user {
            return; // of an earlier session
        }
        online.reading = false;
        let exhausted = entries.is_empty();
        let sent = online.sent;
        if after > sent {
            // The session was set back meanwhile: the page no longer joins on.
            return self.pump(index);
        }
        entries.retain(|entry| entry.inbox_seq > sent);
        let mut taken = 0;
        for entry in &entries {
            let bytes = counted_bytes(entry);
            let under_way = self.windows.len(online);
            let fits =
                under_way < usize::from(online.credit_entries) && online.used_bytes + bytes <= online.credit_bytes;
            if under_way > 0 && !fits {
                break;
            }
            self.windows.push(online, entry.inbox_seq, bytes);
            taken += 1;
        }
        entries.truncate(taken);
        if exhausted && !online.missed {
            online.behind = false;
        }
        if !entries.is_empty() {
            let set_backs = online.set_backs;
            let kind = EffectKind::DeliverPage { online: index, set_backs, previous: sent, entries };
            self.building.effects.push(Effect { session: online.address(), kind });
        }
        self.pump(index);
    }

    /// The client has persisted everything up to `through`, and has room for `credit` beyond it.
    pub(super) fn acknowledge(&mut self, index: u32, through: InboxSeq, credit: Credit) {
        let online = self.directory.get_mut(index).expect("the caller found it");
        online.credit_entries = credit.entries;
        online.credit_bytes = credit.bytes;
        if through > online.acked && through <= online.sent {
            self.windows.acknowledge(online, through);
        }
        self.pump(index);
    }

    /// Deliveries beyond `sent` did not reach the client: they come again from the log.
    pub(super) fn resume(&mut self, index: u32, sent: InboxSeq) {
        let online = self.directory.get_mut(index).expect("the caller found it");
        if sent < online.sent {
            self.set_back(index, sent);
        }
        self.pump(index);
    }

    /// Nothing beyond `sent` has reached the session.
    fn set_back(&mut self, index: u32, sent: InboxSeq) {
        let online = self.directory.get_mut(index).expect("the caller found it");
        let sent = sent.max(online.acked);
        self.windows.rewind(online, sent);
        online.set_backs = online.set_backs.wrapping_add(1);
        online.behind = true;
        online.missed |= online.reading;
        // Some of it may not be durable yet: the log is looked at again when it is.
        self.building.skipped.push(index);
    }

    /// A delivery found no room in the reactor's mailbox: it will be read from the log, which is the queue.
    pub fn handle_refused(&mut self, effect: &Effect) {
        let (index, of, previous) = match &effect.kind {
            EffectKind::Deliver { online, set_backs, previous, .. }
            | EffectKind::DeliverPage { online, set_backs, previous, .. } => (*online, *set_backs, *previous),
            _ => return,
        };
        let Some(online) = self.directory.get_mut(index).filter(|online| online.address() == effect.session) else {
            return;
        };
        // One from before the session was set back would not have joined on, and is made up for already.
        if of == online.set_backs && previous < online.sent {
            self.set_back(index, previous);
            self.hungry.push(index);
        }
    }

    /// There is room again: sessions whose deliveries found none read from the log.
    pub fn feed_hungry(&mut self) {
        for index in std::mem::take(&mut self.hungry) {
            self.pump(index);
        }
    }

    /// Whether deliveries were refused and not made up for.
    #[must_use]
    pub fn is_hungry(&self) -> bool {
        !self.hungry.is_empty()
    }
}
