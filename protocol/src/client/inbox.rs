//! Where the client stands in its inbox: what came, what is persisted, what is acknowledged.

use super::seen::Seen;
use super::{Violation, sixteen};
use crate::id::{ConversationId, ConversationSeq, InboxSeq, Incarnation};
use crate::proto;

#[derive(Debug)]
pub(super) struct Inbox {
    /// Everything up to here is persisted by the application. Only a GAP moves it back.
    cursor: InboxSeq,
    /// Everything up to here has come on some connection, so the application may have persisted it.
    received: InboxSeq,
    /// Everything up to here has come on this connection. The server accepts no ACK beyond it.
    position: InboxSeq,
    /// What the server was last told on this connection, by login or ACK.
    acknowledged: InboxSeq,
    /// A DELIVER or GAP has come on this connection: the next DELIVER joins on to it.
    is_joined: bool,
    /// Something came again that is persisted: the server seems not to know.
    repeat_ack: bool,
    incarnation: Incarnation,
    seen: Seen,
}

impl Inbox {
    pub(super) fn new(cursor: InboxSeq, incarnation: Incarnation) -> Self {
        Self {
            cursor,
            received: cursor,
            position: cursor,
            acknowledged: cursor,
            is_joined: false,
            repeat_ack: false,
            incarnation,
            seen: Seen::default(),
        }
    }

    pub(super) fn cursor(&self) -> InboxSeq {
        self.cursor
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// A login tells the server the cursor; delivery goes on from there.
    pub(super) fn handle_connected(&mut self) {
        self.position = self.cursor;
        self.acknowledged = self.cursor;
        self.is_joined = false;
        self.repeat_ack = false;
    }

    /// Another incarnation than the one known is taken over only with the GAP that follows: were the connection cut
    /// in between, the next login would claim the old cursor in the new data.
    pub(super) fn handle_welcome(&mut self, incarnation: Incarnation) {
        if self.incarnation == Incarnation(0) || self.cursor == InboxSeq(0) {
            self.incarnation = incarnation;
        }
    }

    /// Checks a DELIVER and leaves in it what the application has not seen.
    pub(super) fn handle_deliver(&mut self, deliver: &mut proto::Deliver) -> Result<(), Violation> {
        if !self.is_joined {
            // The first may start beyond the login's cursor: what lies between the device itself has sent, or
            // acknowledged in another session.
            self.skip_through(InboxSeq(deliver.previous));
        }
        self.is_joined = true;
        if deliver.previous > self.position.0 {
            return Err(Violation::Hole { previous: deliver.previous, position: self.position.0 });
        }
        let mut last = deliver.previous;
        for entry in &deliver.entries {
            if entry.inbox_seq <= last {
                return Err(Violation::Order { inbox_seq: entry.inbox_seq, previous: last });
            }
            last = entry.inbox_seq;
            sixteen::<ConversationId>(&entry.conversation)?;
        }
        deliver.entries.retain(|entry| self.is_new(entry));
        self.position = self.position.max(InboxSeq(last));
        self.received = self.received.max(self.position);
        Ok(())
    }

    fn is_new(&mut self, entry: &proto::Entry) -> bool {
        if entry.inbox_seq <= self.cursor.0 {
            self.repeat_ack = true;
            return false;
        }
        let conversation = sixteen(&entry.conversation).expect("checked by the caller");
        self.seen.insert(conversation, ConversationSeq(entry.conversation_seq))
    }

    pub(super) fn handle_gap(&mut self, gap: &proto::Gap) {
        let before_start = InboxSeq(gap.start.saturating_sub(1));
        if gap.reset {
            // Other data may have given the same numbers to other messages.
            self.seen.clear();
            self.cursor = before_start;
            self.received = before_start;
            self.position = before_start;
            self.acknowledged = before_start;
            self.repeat_ack = false;
        }
        if gap.incarnation != 0 {
            self.incarnation = Incarnation(gap.incarnation);
        }
        self.is_joined = true;
        self.skip_through(before_start);
    }

    /// Nothing up to here will come, and the server knows that nothing of it is missed here. What came beyond stays.
    fn skip_through(&mut self, through: InboxSeq) {
        self.cursor = self.cursor.max(through);
        self.received = self.received.max(through);
        self.position = self.position.max(through);
        self.acknowledged = self.acknowledged.max(through);
    }

    /// The application has stored everything up to here. What never came cannot have been stored.
    pub(super) fn persisted(&mut self, through: InboxSeq) {
        self.cursor = self.cursor.max(through.min(self.received));
    }

    /// The ACK to send now, if there is one; it counts as sent.
    pub(super) fn take_ack(&mut self) -> Option<InboxSeq> {
        let through = self.cursor.min(self.position);
        if through <= self.acknowledged && !self.repeat_ack {
            return None;
        }
        self.repeat_ack = false;
        self.acknowledged = self.acknowledged.max(through);
        Some(self.acknowledged)
    }
}
