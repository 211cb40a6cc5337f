//! `decide`: from a command to a record, with all time, ids and places resolved. Changes nothing that is stored.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationSeq, InboxSeq, MessageId};
use culver_protocol::limits::PAYLOAD_LEN_MAX;

use super::Shards;
use crate::command::{Decision, Send, View};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::key::ShardId;
use crate::planted::{self, Bug};
use crate::record::{InboxEntry, MessageRecord, Place, Record};

/// Unwraps what is known; returns from the caller with what must be read first.
macro_rules! known {
    ($view:expr) => {
        match $view {
            View::Known(value) => value,
            View::Waits(load) => return Ok(Decision::Waits(load)),
        }
    };
}
pub(super) use known;

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
        let last_seq = known!(self.conversation(engine, send.conversation)?).row.last_seq;
        let is_new_conversation = last_seq == ConversationSeq(0);
        if !is_new_conversation && let Some(row) = known!(self.accepted_before(engine, &key)?) {
            return Ok(Decision::Duplicate(row.accepted(send.client_message_id, true)));
        }
        let home = ShardId::of_conversation(send.conversation, self.shard_count);
        let (policy, mut inbox_seq) = (self.policy, InboxSeq(0));
        let place = match self.way(home, recipient) {
            None => {
                let state = known!(self.user_mut(engine, recipient)?);
                if policy.is_full(state) {
                    return Ok(Decision::Reject(ErrorCode::RecipientFull));
                }
                inbox_seq = InboxSeq(state.head.0 + 1);
                Place::Local(inbox_seq)
            }
            Some(_) if self.is_refused(recipient, now_ms) => {
                return Ok(Decision::Reject(ErrorCode::RecipientFull));
            }
            Some(stream) => Place::Stream(stream, self.streams.next(stream)),
        };
        let is_copied = send.copy && recipient != send.sender && !planted::is(Bug::CopyForgotten);
        let copy = if is_copied { known!(self.copy_place(engine, home, send, place)?) } else { None };
        let message_id = self.next_message_id(home, now_ms);
        Ok(Decision::Apply(Record::Message(MessageRecord {
            recipient,
            client_message_id: send.client_message_id,
            place,
            copy,
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

    /// Where the copy for the sender's other devices goes. Of a sender in another hub, that hub knows whether there
    /// are any.
    fn copy_place(
        &mut self,
        engine: &dyn Engine,
        home: ShardId,
        send: &Send,
        place: Place,
    ) -> Result<View<Option<Place>>, EngineError> {
        if let Some(stream) = self.way(home, send.sender) {
            let n = match place {
                Place::Stream(same, n) if same == stream => n + 1,
                _ => self.streams.next(stream),
            };
            return Ok(View::Known(Some(Place::Stream(stream, n))));
        }
        Ok(match self.user_mut(engine, send.sender)? {
            View::Known(state) if state.has_others(send.device) => {
                View::Known(Some(Place::Local(InboxSeq(state.head.0 + 1))))
            }
            View::Known(_) => View::Known(None),
            View::Waits(load) => View::Waits(load),
        })
    }

    /// The id after the shard's last, at the clock or, if that stands still or goes back, at the last time given out:
    /// or at that of the clock that entries expire by, for by that one its age will be counted when the other is right
    /// again.
    fn next_message_id(&self, shard: ShardId, now_ms: u64) -> MessageId {
        let time_ms = now_ms.max(self.clock_ms).max(self.expiry.now_ms());
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
