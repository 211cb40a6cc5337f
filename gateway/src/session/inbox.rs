//! The client's inbox as its session sees it: where it stands, and what is written to it of entries, receipts and
//! backlogs.
//!
//! Two positions: the hub's deliveries have come up to `sent`, and the client was told up to `told`. They differ where
//! the device has sent entries itself, which it is not given back, and where the client knows more than the server
//! remembered: then it is spared what comes up to there, and the hub is told that it is persisted.

use culver_protocol::id::{InboxSeq, Incarnation};
use culver_protocol::message::{MarkView, encode_deliver, encode_receipt};
use culver_protocol::proto;
use culver_protocol::record::RecordType;
use culver_storage::reader::ConversationView;
use culver_storage::record::InboxEntry;

use super::records::Records;
use super::rpc::conversation_item;
use super::{Phase, Session};

impl Session {
    /// The hub has made this session the current one; its deliveries begin behind `cursor`.
    pub fn logged_in(
        &mut self,
        cursor: InboxSeq,
        reset: bool,
        gap: bool,
        siblings: bool,
        incarnation: Incarnation,
        out: &mut Records<'_>,
    ) {
        let claimed = self.acked;
        if self.phase == Phase::Entering {
            let in_sync = false;
            self.phase = if reset { Phase::SteadyAnew { in_sync } } else { Phase::Steady { in_sync } };
        }
        self.copy = siblings;
        self.sent = cursor;
        self.ahead = 0;
        if reset || gap {
            self.acked = cursor;
            self.gap(InboxSeq(cursor.0 + 1), reset, incarnation, out);
        } else {
            self.set_told(claimed.max(cursor));
            self.acked = claimed.min(self.told());
        }
    }

    /// Delivers entries that join on to what came before, unless earlier bytes are still unsent. Those that do not
    /// join on are dropped: they come again from the log. Says how many went out.
    pub fn deliver(
        &mut self,
        previous: InboxSeq,
        entries: &[InboxEntry],
        unsent: bool,
        out: &mut Records<'_>,
    ) -> usize {
        let Some(last) = entries.last().map(|entry| entry.inbox_seq) else { return 0 };
        if !self.is_steady() || previous != self.sent {
            // The hub was set back to before what came meanwhile: it must know where to go on.
            self.resume_pending |= self.is_steady() && previous < self.sent;
            return 0;
        }
        let told = self.told();
        let known = entries.partition_point(|entry| entry.inbox_seq <= told);
        let news = entries.get(known..).expect("no more than there are");
        if !news.is_empty() {
            if unsent {
                self.resume_pending = true;
                return 0;
            }
            let views = news.iter().map(InboxEntry::view);
            out.seal(RecordType::Deliver, |out| encode_deliver(out, told, views));
        }
        self.ack_pending |= known > 0;
        self.sent = last;
        self.set_told(told.max(last));
        news.len()
    }

    /// What comes next the device sent itself: nothing is written.
    pub fn skip(&mut self, previous: InboxSeq, through: InboxSeq) {
        if self.is_steady() && previous == self.sent {
            let told = self.told();
            self.ack_pending |= self.ahead > 0;
            self.sent = self.sent.max(through);
            self.set_told(told);
        }
    }

    /// What came next is no longer kept: delivery goes on at `start`. As with entries, only if it joins on and nothing
    /// is unsent.
    pub fn write_gap(
        &mut self,
        previous: InboxSeq,
        start: InboxSeq,
        incarnation: Incarnation,
        unsent: bool,
        out: &mut Records<'_>,
    ) {
        if !self.is_steady() || previous != self.sent {
            return;
        }
        let (told, before) = (self.told(), InboxSeq(start.0.saturating_sub(1)));
        if told < before && unsent {
            self.resume_pending = true;
            return;
        }
        self.sent = self.sent.max(before);
        self.set_told(told.max(before));
        // The hub takes it for acknowledged: there is nothing left to wait for.
        self.acked = self.acked.max(before);
        if told < before {
            self.gap(start, false, incarnation, out);
        }
    }

    /// A backlog begins.
    pub fn write_sync_start(
        &mut self,
        entries: u64,
        through: InboxSeq,
        conversations: Vec<ConversationView>,
        out: &mut Records<'_>,
    ) {
        let Some(in_sync) = self.in_sync_mut() else { return };
        *in_sync = true;
        let conversations = conversations.into_iter().map(conversation_item).collect();
        let start = proto::SyncStart { entries, through: through.0, conversations };
        out.seal_message(RecordType::SyncStart, &start);
    }

    /// The backlog is through. If some of it was dropped on its way it is not: the hub says so again behind that. It may
    /// also say so again because it heard late of something that was made up for meanwhile.
    pub fn write_sync_done(&mut self, through: InboxSeq, out: &mut Records<'_>) {
        let sent = self.sent;
        if let Some(in_sync @ true) = self.in_sync_mut()
            && through <= sent
        {
            *in_sync = false;
            out.seal_message(RecordType::SyncDone, &proto::SyncDone { inbox_seq: through.0 });
        }
    }

    fn in_sync_mut(&mut self) -> Option<&mut bool> {
        match &mut self.phase {
            Phase::Steady { in_sync } | Phase::SteadyAnew { in_sync } => Some(in_sync),
            _ => None,
        }
    }

    /// What became of what the user sent.
    pub fn write_receipt(&mut self, version: u64, marks: &[MarkView], out: &mut Records<'_>) {
        let marks = marks.iter().copied();
        out.seal(RecordType::Receipt, |out| encode_receipt(out, version, marks));
    }

    fn gap(&mut self, start: InboxSeq, reset: bool, incarnation: Incarnation, out: &mut Records<'_>) {
        let gap = proto::Gap { start: start.0, reset, incarnation: incarnation.0 };
        out.seal_message(RecordType::Gap, &gap);
    }

    /// No inbox keeps 2³¹ entries between the two; if one did, some would be told twice, which clients notice.
    fn set_told(&mut self, told: InboxSeq) {
        let ahead = i128::from(told.0) - i128::from(self.sent.0);
        let bounded = ahead.clamp(i32::MIN.into(), i32::MAX.into());
        self.ahead = i32::try_from(bounded).expect("clamped");
    }
}
