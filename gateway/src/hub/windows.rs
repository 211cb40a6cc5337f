//! What is on its way to clients: a pooled list for each session that has any.

use std::collections::VecDeque;

use culver_protocol::id::{ConversationId, ConversationSeq, InboxSeq};
use culver_protocol::limits::ENTRY_OVERHEAD;
use culver_storage::command::Acked;
use culver_storage::record::InboxEntry;

use super::directory::{NO_WINDOW, Online};

/// Free lists kept for the next session that needs one.
const POOLED_MAX: usize = 1024;

/// An entry on its way.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    seq: InboxSeq,
    conversation: ConversationId,
    conversation_seq: ConversationSeq,
    bytes: u32,
    /// The user did not send it: to acknowledge it says something to who did.
    from_others: bool,
}

/// The entries on their way to clients.
#[derive(Default)]
pub struct Windows {
    lists: Vec<VecDeque<UnderWay>>,
    free: Vec<u32>,
}

/// What an entry counts in windows and pages.
pub fn counted_bytes(entry: &InboxEntry) -> u32 {
    u32::try_from(entry.payload.len() + ENTRY_OVERHEAD).expect("payloads are bounded")
}

impl Windows {
    /// Notes an entry that is on its way.
    pub fn push(&mut self, online: &mut Online, entry: &InboxEntry) {
        if online.window == NO_WINDOW {
            online.window = self.free.pop().unwrap_or_else(|| {
                self.lists.push(VecDeque::new());
                u32::try_from(self.lists.len() - 1).expect("fewer lists than sessions")
            });
        }
        let bytes = counted_bytes(entry);
        self.list_mut(online.window).push_back(UnderWay {
            seq: entry.inbox_seq,
            conversation: entry.conversation,
            conversation_seq: entry.conversation_seq,
            bytes,
            from_others: entry.sender != online.user(),
        });
        online.used_bytes += bytes;
        online.sent = entry.inbox_seq;
    }

    /// Adds to `acked` the last entry of each conversation that somebody else sent, of those that follow `known`, which
    /// the device has acknowledged before, up to `through`. Returns whether nothing beyond `through` is on its way.
    pub fn collect(&self, online: &Online, (known, through): (InboxSeq, InboxSeq), acked: &mut Vec<Acked>) -> bool {
        let Some(list) = self.list(online.window) else { return true };
        for entry in list {
            if entry.seq > through {
                return false;
            }
            if !entry.from_others || entry.seq <= known {
                continue;
            }
            let this = Acked { conversation: entry.conversation, seq: entry.conversation_seq };
            match acked.iter_mut().rev().find(|acked| acked.conversation == this.conversation) {
                Some(earlier) => earlier.seq = earlier.seq.max(this.seq),
                None => acked.push(this),
            }
        }
        true
    }

    /// Forgets what the client has persisted.
    pub fn acknowledge(&mut self, online: &mut Online, through: InboxSeq) {
        online.acked = through;
        if online.window == NO_WINDOW {
            return;
        }
        let list = self.list_mut(online.window);
        while list.front().is_some_and(|entry| entry.seq <= through) {
            let entry = list.pop_front().expect("the front was just looked at");
            online.used_bytes -= entry.bytes;
        }
        self.release_if_empty(online);
    }

    /// Takes back what did not reach the client: everything beyond `sent`.
    pub fn rewind(&mut self, online: &mut Online, sent: InboxSeq) {
        online.sent = sent;
        if online.window == NO_WINDOW {
            return;
        }
        let list = self.list_mut(online.window);
        while list.back().is_some_and(|entry| entry.seq > sent) {
            let entry = list.pop_back().expect("the back was just looked at");
            online.used_bytes -= entry.bytes;
        }
        self.release_if_empty(online);
    }

    /// Entries on their way.
    #[must_use]
    pub fn len(&self, online: &Online) -> usize {
        self.list(online.window).map_or(0, VecDeque::len)
    }

    /// Sessions with something on its way.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.lists.len() - self.free.len()
    }

    /// Gives the session's list back.
    pub fn release(&mut self, online: &mut Online) {
        if online.window != NO_WINDOW {
            self.list_mut(online.window).clear();
            online.used_bytes = 0;
            self.release_if_empty(online);
        }
    }

    fn release_if_empty(&mut self, online: &mut Online) {
        let pooled = self.free.len();
        let list = self.list_mut(online.window);
        if list.is_empty() {
            if pooled >= POOLED_MAX {
                *list = VecDeque::new();
            }
            self.free.push(online.window);
            online.window = NO_WINDOW;
            assert!(online.used_bytes == 0, "an empty window uses no bytes");
        }
    }

    fn list(&self, index: u32) -> Option<&VecDeque<UnderWay>> {
        if index == NO_WINDOW { None } else { self.lists.get(index as usize) }
    }

    fn list_mut(&mut self, index: u32) -> &mut VecDeque<UnderWay> {
        self.lists.get_mut(index as usize).expect("a session's window index names a list")
    }
}
