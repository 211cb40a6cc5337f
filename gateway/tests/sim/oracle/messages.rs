//! Messages: what was asked to be sent, what was answered, and the one place each has in its conversation.

use std::collections::VecDeque;

use bytes::Bytes;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationId, InboxSeq};
use culver_protocol::message::Accepted;
use culver_protocol::proto;

use super::receipts::Side;
use super::{How, Oracle, Who, Witness, name, slot};
use crate::device::DeviceKey;

/// The number of a message in the oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MessageIndex(pub u32);

/// Whether a message may be accepted at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validity {
    Good,
    /// Its sender has no part in the conversation.
    Stranger,
    /// No such kind of conversation.
    NoConversation,
}

/// Bytes of a payload that say which message it is.
const INDEX_LEN: usize = 4;

/// Bytes of a SEND beside its payload, about.
const SEND_LEN: usize = 64;

/// Which message a payload, or the beginning of one, belongs to.
fn index_of(payload: &[u8]) -> Option<MessageIndex> {
    payload.first_chunk::<INDEX_LEN>().map(|bytes| MessageIndex(u32::from_le_bytes(*bytes)))
}

/// What is told of an accepted message, the same to everybody and for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) seq: u64,
    pub(super) message_id: u64,
    pub(super) time_ms: u64,
}

#[derive(Debug)]
pub(super) struct Message {
    pub(super) id: ClientMessageId,
    pub(super) from: DeviceKey,
    pub(super) conversation: ConversationId,
    pub(super) payload: Bytes,
    pub(super) validity: Validity,
    /// When the application handed it to its client, and on which clock.
    pub(super) submitted: u64,
    pub(super) submitted_us: u64,
    /// The session that it is first sent on began later than this.
    pub(super) session_began: u64,
    /// The application was killed and does not remember it.
    pub(super) forgotten: bool,
    pub(super) answer: Option<Accepted>,
    pub(super) rejected: Option<u32>,
    pub(super) fact: Option<Fact>,
    /// Its places in the inboxes of its recipient and of its sender; 0: not known.
    pub(super) places: [u64; 2],
    /// A device of the recipient's has persisted it, and said so to its client.
    pub(super) persisted: bool,
}

/// A conversation.
#[derive(Debug, Default)]
pub(super) struct Talk {
    /// The known messages, by conversation seq from 1.
    pub(super) by_seq: Vec<Option<MessageIndex>>,
    pub(super) sides: [Side; 2],
    /// Of each device that sends, what it sent and was not answered, in its order.
    queues: Vec<(DeviceKey, VecDeque<MessageIndex>)>,
}

impl Talk {
    fn queue(&mut self, key: DeviceKey) -> &mut VecDeque<MessageIndex> {
        let at = self.queues.iter().position(|(of, _)| *of == key).unwrap_or_else(|| {
            self.queues.push((key, VecDeque::new()));
            self.queues.len() - 1
        });
        &mut self.queues[at].1
    }
}

impl Oracle {
    /// An application wants to send something new: gives it an id and a payload of about this length, by which it is
    /// known wherever it turns up.
    pub(crate) fn new_message(
        &mut self,
        witness: &Witness,
        conversation: ConversationId,
        len: usize,
        random_id: bool,
        now_us: u64,
    ) -> (MessageIndex, ClientMessageId, Bytes) {
        let order = self.next();
        let index = MessageIndex(u32::try_from(self.messages.len()).expect("a run is short"));
        let key = witness.key();
        let scattered = u64::from(index.0).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
        let high = if random_id { scattered } else { u64::from(index.0) + 1 };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&high.to_be_bytes());
        id[12..].copy_from_slice(&index.0.to_be_bytes());
        let mut payload = vec![scattered.to_le_bytes()[0]; len.max(INDEX_LEN)];
        payload[..INDEX_LEN].copy_from_slice(&index.0.to_le_bytes());
        let (id, payload) = (ClientMessageId(id), Bytes::from(payload));
        let validity = match conversation.direct_users() {
            None => Validity::NoConversation,
            Some(_) if conversation.direct_peer(key.user).is_none() => Validity::Stranger,
            Some(_) => Validity::Good,
        };
        let session_began = if witness.connected { witness.began } else { order };
        self.messages.push(Message {
            id,
            from: key,
            conversation,
            payload: payload.clone(),
            validity,
            submitted: order,
            submitted_us: now_us,
            session_began: if self.known_since > 0 { order } else { session_began },
            forgotten: false,
            answer: None,
            rejected: None,
            fact: None,
            places: [0; 2],
            persisted: false,
        });
        self.talks.entry(conversation).or_default().queue(key).push_back(index);
        (index, id, payload)
    }

    /// What an application sends again after a kill.
    pub(crate) fn old_message(&self, index: MessageIndex) -> (ClientMessageId, ConversationId, Bytes) {
        let message = &self.messages[index.0 as usize];
        (message.id, message.conversation, message.payload.clone())
    }

    /// The application was killed and does not remember that it sent this.
    pub(crate) fn forgotten(&mut self, index: MessageIndex) {
        let message = &mut self.messages[index.0 as usize];
        if message.answer.is_none() && message.rejected.is_none() {
            message.forgotten = true;
            let (key, conversation) = (message.from, message.conversation);
            self.talks.entry(conversation).or_default().queue(key).retain(|waiting| *waiting != index);
        }
    }

    /// Bytes that clients have to write before all is answered, about.
    pub(crate) fn unanswered_len(&self) -> usize {
        let is_open = |message: &&Message| message.answer.is_none() && message.rejected.is_none() && !message.forgotten;
        self.messages.iter().filter(is_open).map(|message| SEND_LEN + message.payload.len()).sum()
    }

    /// A message was answered: it is on disk.
    pub(crate) fn accepted(&mut self, witness: &Witness, accepted: &Accepted) -> MessageIndex {
        self.next();
        self.check_void(witness, witness.began);
        let index = self.by_client_id(witness, accepted.client_message_id);
        let message = &mut self.messages[index.0 as usize];
        let (id, who) = (message.id, witness.name());
        assert!(
            message.validity == Validity::Good,
            "only parties write in a conversation: message {id} of {who} to {:?} was accepted",
            message.conversation
        );
        assert!(message.rejected.is_none(), "what was refused for good stays refused: {id} of {who} was accepted");
        let conversation = message.conversation;
        let is_first = match message.answer {
            None => {
                message.answer = Some(*accepted);
                true
            }
            Some(first) => {
                let same = Accepted { duplicate: first.duplicate, inbox_seq: first.inbox_seq, ..*accepted };
                assert!(
                    same == first,
                    "the same id gives the same result: {id} of {who}: {accepted:?} after {first:?}"
                );
                assert!(
                    accepted.duplicate,
                    "a message is accepted once: {id} of {who} was accepted anew, as {accepted:?}"
                );
                false
            }
        };
        let fact = Fact {
            seq: accepted.conversation_seq.0,
            message_id: accepted.message_id.0,
            time_ms: accepted.server_time_ms,
        };
        self.learn(index, fact, How::Answer);
        if accepted.inbox_seq != InboxSeq(0) {
            let of_self = conversation.direct_peer(witness.key.user) == Some(witness.key.user);
            self.set_place(witness.at.0, index, usize::from(!of_self), accepted.inbox_seq.0);
        }
        if is_first {
            let queue = self.talks.entry(conversation).or_default().queue(witness.key);
            let front = queue.front().copied();
            if front == Some(index) {
                queue.pop_front();
            } else {
                let earlier = front.map(|front| self.messages[front.0 as usize].id);
                panic!(
                    "within a conversation answers come in the order of the sends: {id} of {who} was answered before \
                     {earlier:?}"
                );
            }
        }
        index
    }

    /// A message was refused for good.
    pub(crate) fn rejected(&mut self, witness: &Witness, id: ClientMessageId, code: u32) -> MessageIndex {
        self.next();
        let index = self.by_client_id(witness, id);
        let message = &mut self.messages[index.0 as usize];
        let who = witness.name();
        let expected = match message.validity {
            Validity::Good => None,
            Validity::Stranger => Some(ErrorCode::NotAMember),
            Validity::NoConversation => Some(ErrorCode::ConversationInvalid),
        };
        assert!(
            expected.is_some_and(|expected| expected.number() == code),
            "nothing is refused for good without a reason: {id} of {who}, with {code} instead of {expected:?}"
        );
        assert!(
            message.fact.is_none(),
            "what was refused for good never appears: {id} of {who} is there as {:?}",
            message.fact
        );
        message.rejected = Some(code);
        let conversation = message.conversation;
        self.talks.entry(conversation).or_default().queue(witness.key).retain(|waiting| *waiting != index);
        index
    }

    /// An entry that turned up somewhere, with its whole payload or the beginning of it: says which message it is.
    pub(super) fn recognise(&mut self, entry: &proto::Entry, cut: Option<usize>, who: Who) -> MessageIndex {
        let how = How::Shown(who);
        let index = index_of(&entry.payload).filter(|index| (index.0 as usize) < self.messages.len());
        let Some(index) = index else {
            panic!("nothing comes that nobody sent: {how} is {entry:?}");
        };
        let message = &self.messages[index.0 as usize];
        let whole = &message.payload;
        let expected = whole.get(..cut.unwrap_or(usize::MAX).min(whole.len())).expect("no more than there is");
        assert!(
            entry.payload.as_ref() == expected,
            "a message comes as it was sent: {how} is {} bytes of {}, which are not those of {}",
            entry.payload.len(),
            expected.len(),
            message.id
        );
        let is_its = entry.conversation.as_ref() == message.conversation.0
            && entry.sender == message.from.user.0
            && entry.sender_device == u32::from(message.from.device.0);
        assert!(
            is_its,
            "a message comes as it was sent: {how} is {} of {} in {:?} as of device {} of user {} in {:?}",
            message.id,
            name(message.from.user, message.from.device),
            message.conversation,
            entry.sender_device,
            entry.sender,
            entry.conversation
        );
        assert!(
            message.rejected.is_none() && message.validity == Validity::Good,
            "what was refused for good never appears: {how} is {}",
            message.id
        );
        let fact = Fact { seq: entry.conversation_seq, message_id: entry.message_id, time_ms: entry.server_time_ms };
        self.learn(index, fact, how);
        index
    }

    /// What is told of an accepted message. It never changes.
    fn learn(&mut self, index: MessageIndex, fact: Fact, how: How) {
        let message = &mut self.messages[index.0 as usize];
        let id = message.id;
        if let Some(known) = message.fact {
            assert!(known == fact, "a message keeps its place: {id} was {known:?}, and by {how} is {fact:?}");
            return;
        }
        message.fact = Some(fact);
        let (from, conversation, submitted) = (message.from.user, message.conversation, message.submitted);
        let is_simple = self.has_one_device(conversation, from);
        assert!(fact.seq > 0, "conversation seqs count from 1: {id} has 0 by {how}");
        let talk = self.talks.entry(conversation).or_default();
        let at = slot(fact.seq);
        if talk.by_seq.len() <= at {
            assert!(
                at < self.messages.len(),
                "conversation seqs are dense: {id} has {} by {how}, of {} messages there are at all",
                fact.seq,
                self.messages.len()
            );
            talk.by_seq.resize(at + 1, None);
        }
        if let Some(other) = talk.by_seq[at].replace(index) {
            let other = self.messages[other.0 as usize].id;
            panic!(
                "a conversation seq belongs to one message: {} of {conversation:?} is {other}'s, and by {how} {id}'s",
                fact.seq
            );
        }
        let before = talk.by_seq[..at].iter().rev().find_map(|known| *known);
        let after = talk.by_seq[at + 1..].iter().find_map(|known| *known);
        let told = talk.sides[super::side_of(conversation, from)].delivered_told;
        assert!(
            told < fact.seq || !is_simple,
            "no receipt lies: the sender of {id} was told that everything up to {told} of {conversation:?} was \
             delivered, and only now is {} known, by {how}",
            fact.seq
        );
        let id_of = |index: MessageIndex| self.messages[index.0 as usize].fact.map_or(0, |fact| fact.message_id);
        let (before, after) = (before.map_or(0, id_of), after.map_or(u64::MAX, id_of));
        assert!(
            before < fact.message_id && fact.message_id < after,
            "message ids ascend within a conversation: {} of {conversation:?} has {}, its neighbours {before} and \
             {after}",
            fact.seq,
            fact.message_id
        );
        if let Some(other) = self.ids.insert(fact.message_id, index) {
            let other = self.messages[other.0 as usize].id;
            panic!("a message id belongs to one message: {} is {other}'s, and by {how} {id}'s", fact.message_id);
        }
        let ids = self.shards.entry(fact.message_id >> 12 & 0x3ff).or_default();
        let known_then = ids.partition_point(|(order, _)| *order < submitted);
        let greatest = known_then.checked_sub(1).map_or(0, |last| ids[last].1);
        assert!(
            fact.message_id > greatest,
            "message ids ascend within a shard: {id} has {}, but before it was sent there was {greatest}",
            fact.message_id
        );
        if ids.last().is_none_or(|(_, last)| *last < fact.message_id) {
            ids.push((self.order, fact.message_id));
        }
    }

    fn by_client_id(&self, witness: &Witness, id: ClientMessageId) -> MessageIndex {
        let last = id.0.last_chunk::<4>().expect("an id has 16 bytes");
        let index = MessageIndex(u32::from_be_bytes(*last));
        let message = self.messages.get(index.0 as usize).filter(|message| message.id == id);
        let who = witness.name();
        let Some(message) = message else { panic!("only what was sent is answered: {who} was told of {id}") };
        assert!(message.from == witness.key, "only who sent is answered: {who} was told of {id}");
        index
    }
}
