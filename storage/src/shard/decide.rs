//! `decide`: from a command to a record, with all time, ids and places resolved. Changes nothing that is stored.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::limits::PAYLOAD_LEN_MAX;

use super::{AWAITED_MAX, Awaited, Conversation, Shards, User};
use crate::command::{Acked, Decision, Load, Send, UserView, View};
use crate::engine::{Engine, Lookup, Tier};
use crate::error::EngineError;
use crate::key::{DedupKey, SenderKey, ShardId};
use crate::reader::{read_conversation, read_dedup, read_newest, read_user};
use crate::record::{InboxEntry, Place, MessageRecord, Record};
use crate::value::{ConversationRow, DedupRow};

/// Unwraps what is known; returns from the caller with what must be read first.
macro_rules! known {
    ($view:expr) => {
        match $view {
            View::Known(value) => value,
            View::Waits(load) => return Ok(Decision::Waits(load)),
        }
    };
}

impl Shards {
    /// Decides a message. The same id again is a duplicate, whether its first copy is durable, in a batch under way,
    /// or in the one under construction.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_send(&mut self, engine: &dyn Engine, send: &Send, now_ms: u64) -> Result<Decision, EngineError> {
        if send.conversation.direct_users().is_none() {
            return Ok(Decision::Reject(ErrorCode::ConversationInvalid));
        }
        let Some(recipient) = send.conversation.direct_peer(send.sender) else {
            return Ok(Decision::Reject(ErrorCode::NotAMember));
        };
        if send.payload.len() > PAYLOAD_LEN_MAX {
            return Ok(Decision::Reject(ErrorCode::PayloadTooLong));
        }
        let key = send.dedup_key();
        if let Some(row) = self.pending.get(&key) {
            return Ok(Decision::Duplicate(row.accepted(send.client_message_id, true)));
        }
        let last_seq = known!(self.conversation(engine, send.conversation)?).last_seq;
        let is_new_conversation = last_seq == ConversationSeq(0);
        if !is_new_conversation && let Some(row) = known!(self.accepted_before(engine, &key)?) {
            return Ok(Decision::Duplicate(row.accepted(send.client_message_id, true)));
        }
        let inbox_seq = InboxSeq(known!(self.user_mut(engine, recipient)?).head.0 + 1);
        let message_id = self.next_message_id(ShardId::of_conversation(send.conversation, self.shard_count), now_ms);
        Ok(Decision::Apply(Record::Message(MessageRecord {
            recipient,
            client_message_id: send.client_message_id,
            place: Place::Local(inbox_seq),
            copy: None,
            entry: InboxEntry {
                inbox_seq,
                conversation: send.conversation,
                conversation_seq: ConversationSeq(last_seq.0 + 1),
                message_id,
                server_time_ms: message_id.time_ms(),
                sender: send.sender,
                sender_device: send.device,
                payload: send.payload.clone(),
            },
        })))
    }

    /// Decides an acknowledgement of everything up to `through`. One that is not beyond the last changes nothing.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_ack(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        device: DeviceId,
        through: InboxSeq,
        acked: &[Acked],
        _now_ms: u64,
    ) -> Result<Decision, EngineError> {
        if through == InboxSeq(0) {
            return Ok(Decision::Unchanged);
        }
        let state = known!(self.user_mut(engine, user)?);
        if through > state.head {
            return Ok(Decision::Reject(ErrorCode::AckBeyondSent));
        }
        if through <= state.cursor(device) {
            return Ok(Decision::Unchanged);
        }
        Ok(Decision::Apply(Record::CursorMoved { user, device, cursor: through, delivered: acked.to_vec() }))
    }

    /// What a login sees. Nothing is kept in memory for it, except what had to be read from the disk.
    ///
    /// # Errors
    /// The engine failed.
    pub fn user(&mut self, engine: &dyn Engine, user: UserId, device: DeviceId) -> Result<View<UserView>, EngineError> {
        if let Some(state) = self.users.peek(&user) {
            return Ok(View::Known(UserView { head: state.head, cursor: state.cursor(device), ..UserView::default() }));
        }
        match read_user(engine, self.shard_count, user, Tier::Memory)? {
            Lookup::Absent => Ok(View::Known(UserView::default())),
            Lookup::Present((row, head)) => {
                let state = User::from_row(row, head);
                Ok(View::Known(UserView { head, cursor: state.cursor(device), ..UserView::default() }))
            }
            Lookup::Unknown => Ok(self.wait(engine, Load::User(user))),
        }
    }

    fn conversation(&mut self, engine: &dyn Engine, id: ConversationId) -> Result<View<Conversation>, EngineError> {
        if let Some(conversation) = self.conversations.get_mut(&id) {
            return Ok(View::Known(*conversation));
        }
        let row = match read_conversation(engine, self.shard_count, id, Tier::Memory)? {
            Lookup::Absent => ConversationRow::default(),
            Lookup::Present(row) => row,
            Lookup::Unknown => return Ok(self.wait(engine, Load::Conversation(id))),
        };
        self.awaited.remove(&Load::Conversation(id));
        let conversation = Conversation::from(row);
        self.conversations.insert(id, conversation);
        Ok(View::Known(conversation))
    }

    fn user_mut(&mut self, engine: &dyn Engine, id: UserId) -> Result<View<&mut User>, EngineError> {
        if self.users.get_mut(&id).is_none() {
            let (row, head) = match read_user(engine, self.shard_count, id, Tier::Memory)? {
                Lookup::Absent => Default::default(),
                Lookup::Present(found) => found,
                Lookup::Unknown => return Ok(self.wait(engine, Load::User(id))),
            };
            self.awaited.remove(&Load::User(id));
            self.users.insert(id, User::from_row(row, head));
        }
        Ok(View::Known(self.users.get_mut(&id).expect("it was there, or was put there")))
    }

    /// Looks for a message in what is durable; what is not is in `pending`.
    fn accepted_before(&mut self, engine: &dyn Engine, of: &DedupKey) -> Result<View<Option<DedupRow>>, EngineError> {
        if let Some(Awaited::Dedup(row)) = self.awaited.get(&Load::Dedup(*of)) {
            return Ok(View::Known(*row));
        }
        match self.newest(engine, of.sender_key())? {
            View::Waits(load) => return Ok(View::Waits(load)),
            // Ids that ascend, as clients are asked to choose them, need no lookup.
            View::Known(Some(newest)) if of.client_message_id > newest => return Ok(View::Known(None)),
            View::Known(_) => {}
        }
        match read_dedup(engine, self.shard_count, of, Tier::Memory)? {
            Lookup::Absent => Ok(View::Known(None)),
            Lookup::Present(row) => Ok(View::Known(Some(row))),
            Lookup::Unknown => Ok(self.wait(engine, Load::Dedup(*of))),
        }
    }

    /// An id that no accepted message of this sender exceeds; `None`: not known, look the message up.
    fn newest(&mut self, engine: &dyn Engine, of: SenderKey) -> Result<View<Option<ClientMessageId>>, EngineError> {
        if let Some(newest) = self.newest.get_mut(&of) {
            return Ok(View::Known(Some(*newest)));
        }
        if self.pending.keys().any(|pending| pending.sender_key() == of) {
            // What is durable is not all, and will be something else when it has been read.
            return Ok(View::Known(None));
        }
        let newest = match read_newest(engine, self.shard_count, of, Tier::Memory)? {
            Lookup::Absent => ClientMessageId([0; 16]),
            Lookup::Present(newest) => newest,
            Lookup::Unknown => return Ok(self.wait(engine, Load::Newest(of))),
        };
        self.awaited.remove(&Load::Newest(of));
        self.newest.insert(of, newest);
        Ok(View::Known(Some(newest)))
    }

    fn wait<T>(&mut self, engine: &dyn Engine, load: Load) -> View<T> {
        if self.awaited.len() >= AWAITED_MAX {
            self.awaited.clear();
        }
        self.awaited.entry(load).or_insert_with(|| Awaited::Since(engine.sequence_synced()));
        View::Waits(load)
    }

    /// The id after the shard's last, at the clock or, if that stands still or goes back, at the last time given out.
    fn next_message_id(&self, shard: ShardId, now_ms: u64) -> MessageId {
        let time_ms = now_ms.max(self.clock_ms);
        let clock = self.clocks.get(usize::from(shard.0)).expect("a shard is below the shard count");
        let first = MessageId::new(time_ms, shard.0, 0);
        if clock.last < first {
            return first;
        }
        // Shard and time are the same, or the last id is of a time that its full counter had run ahead to.
        let counter = clock.last.0 & COUNTER_MAX;
        if counter < COUNTER_MAX {
            MessageId(clock.last.0 + 1)
        } else {
            MessageId::new(clock.last.time_ms() + 1, shard.0, 0)
        }
    }
}

const COUNTER_MAX: u64 = (1 << MessageId::COUNTER_BITS) - 1;

impl From<ConversationRow> for Conversation {
    fn from(row: ConversationRow) -> Self {
        Self { last_seq: row.last_seq, last_message: row.last_message, touched: crate::batch::BatchNumber(0) }
    }
}
