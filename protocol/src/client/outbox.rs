//! The messages under way: sent by the application, not yet answered by the server.
//!
//! They are written in the order they came, once a connection. What the server rejects for now is written again
//! after a hold on its conversation (or on all), before anything later of it. Owns no socket and no clock.

use std::collections::VecDeque;

use bytes::Bytes;

use super::ClientError;
use super::link::Guard;
use crate::id::{ClientMessageId, ConversationId};
use crate::limits::{CLIENT_IN_FLIGHT_MAX, PAYLOAD_LEN_MAX};
use crate::message::SendView;
use crate::record::RecordType;

/// Written bytes beyond which no further message is put into the connection's buffer.
const OUTGOING_LEN_TARGET: usize = 64 * 1024;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Oldest first.
    messages: VecDeque<Message>,
    /// How many of them are not written.
    queued: usize,
    /// No message before this place is queued.
    queued_from: usize,
    /// At most one per conversation, and one over all.
    holds: Vec<Hold>,
}

#[derive(Debug)]
struct Message {
    id: ClientMessageId,
    conversation: ConversationId,
    payload: Bytes,
    /// Written on this connection, and not rejected since.
    written: bool,
    /// How often the server has rejected it for now.
    rejections: u32,
}

/// Nothing of this conversation is written before that time, nor while an answer about it is outstanding:
/// answers to what was written before the rejection would otherwise be taken for answers to what follows it.
#[derive(Debug)]
struct Hold {
    /// `None`: over all.
    conversation: Option<ConversationId>,
    until_us: u64,
}

impl Hold {
    fn covers(&self, conversation: ConversationId) -> bool {
        self.conversation.is_none_or(|held| held == conversation)
    }
}

impl Outbox {
    /// Takes a message in.
    pub(super) fn push(
        &mut self,
        id: ClientMessageId,
        conversation: ConversationId,
        payload: Bytes,
    ) -> Result<(), ClientError> {
        if payload.len() > PAYLOAD_LEN_MAX {
            return Err(ClientError::PayloadTooLong);
        }
        if self.messages.len() >= CLIENT_IN_FLIGHT_MAX {
            return Err(ClientError::InFlightFull);
        }
        if self.position(id).is_some() {
            return Err(ClientError::IdUnderWay);
        }
        if self.queued == 0 {
            self.queued_from = self.messages.len();
        }
        self.queued += 1;
        self.messages.push_back(Message { id, conversation, payload, written: false, rejections: 0 });
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// How many messages are written on this connection and not answered.
    pub(super) fn awaiting(&self) -> usize {
        self.messages.len() - self.queued
    }

    pub(super) fn contains(&self, id: ClientMessageId) -> bool {
        self.position(id).is_some()
    }

    /// The connection is gone: everything is to be written again.
    pub(super) fn forget_connection(&mut self) {
        for message in &mut self.messages {
            message.written = false;
        }
        self.queued = self.messages.len();
        self.queued_from = 0;
    }

    /// Appends the SENDs that may go now, as far as the buffer has room.
    pub(super) fn write(&mut self, outgoing: &mut Vec<u8>, guard: &mut Guard, now_us: u64) {
        self.release_holds(now_us);
        if self.queued == 0 || outgoing.len() >= OUTGOING_LEN_TARGET {
            return;
        }
        let mut still_queued = None;
        for (index, message) in self.messages.iter_mut().enumerate().skip(self.queued_from) {
            if message.written {
                continue;
            }
            let full = outgoing.len() >= OUTGOING_LEN_TARGET;
            if full || self.holds.iter().any(|hold| hold.covers(message.conversation)) {
                still_queued = still_queued.or(Some(index));
                if full {
                    break;
                }
                continue;
            }
            let view = SendView {
                client_message_id: &message.id.0,
                conversation: &message.conversation.0,
                payload: &message.payload,
            };
            guard.seal(outgoing, now_us, RecordType::Send, |out| view.encode(out));
            message.written = true;
            self.queued -= 1;
        }
        self.queued_from = still_queued.unwrap_or(self.messages.len());
    }

    /// The message was answered for good. `false`: no such message (any more).
    pub(super) fn remove(&mut self, id: ClientMessageId) -> bool {
        let Some(index) = self.position(id) else {
            return false;
        };
        let message = self.messages.remove(index).expect("a place just found");
        if !message.written {
            self.queued -= 1;
        }
        if index < self.queued_from {
            self.queued_from -= 1;
        }
        true
    }

    /// The message was rejected for now. Returns how often that has happened to it, this time included; `None`: no
    /// such message, or none that awaits an answer. A [`Outbox::hold`] should follow.
    pub(super) fn requeue(&mut self, id: ClientMessageId) -> Option<u32> {
        let index = self.position(id)?;
        let message = self.messages.get_mut(index).expect("a place just found");
        if !message.written {
            return None;
        }
        message.written = false;
        message.rejections = message.rejections.saturating_add(1);
        self.queued += 1;
        self.queued_from = self.queued_from.min(index);
        Some(message.rejections)
    }

    /// Whether an earlier message of its conversation is still to be written.
    pub(super) fn waits_behind(&self, id: ClientMessageId) -> bool {
        let Some(conversation) = self.conversation_of(id) else { return false };
        let mut earlier = self.messages.iter().take_while(|message| message.id != id);
        earlier.any(|message| !message.written && message.conversation == conversation)
    }

    /// Holds back the conversation of the message, or everything, until then. A hold that is there already is
    /// never shortened.
    pub(super) fn hold(&mut self, id: Option<ClientMessageId>, until_us: u64) {
        let conversation = id.and_then(|id| self.conversation_of(id));
        match self.holds.iter_mut().find(|hold| hold.conversation == conversation) {
            Some(hold) => hold.until_us = hold.until_us.max(until_us),
            None => self.holds.push(Hold { conversation, until_us }),
        }
    }

    /// When the next hold runs out. A hold that waits for answers has no time.
    pub(super) fn hold_due_us(&self) -> Option<u64> {
        self.holds.iter().filter(|hold| !self.is_answer_due(hold)).map(|hold| hold.until_us).min()
    }

    fn release_holds(&mut self, now_us: u64) {
        if self.holds.is_empty() {
            return;
        }
        let mut holds = std::mem::take(&mut self.holds);
        holds.retain(|hold| now_us < hold.until_us || self.is_answer_due(hold));
        self.holds = holds;
    }

    fn is_answer_due(&self, hold: &Hold) -> bool {
        self.messages.iter().any(|message| message.written && hold.covers(message.conversation))
    }

    fn conversation_of(&self, id: ClientMessageId) -> Option<ConversationId> {
        let index = self.position(id)?;
        self.messages.get(index).map(|message| message.conversation)
    }

    /// Answers come nearly in order, so the search ends early.
    fn position(&self, id: ClientMessageId) -> Option<usize> {
        self.messages.iter().position(|message| message.id == id)
    }
}
