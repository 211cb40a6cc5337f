//! Every message that is remembered is where it belongs: in inboxes, on its way, or below a floor with the list row
//! that it left there; and every one that waits is remembered. One conversation at a time.

use culver_protocol::id::{ClientMessageId, ConversationId, DeviceId, InboxSeq, MessageId, UserId};

use super::Check;
use super::inboxes::side;
use super::talks::{Held, Talk};
use crate::engine::Family;
use crate::error::EngineError;
use crate::key::{self, DedupKey, ShardId};
use crate::shard::{DAY_MS, DEDUP_DAYS};
use crate::value::DedupRow;

/// How far the durable expiry clock may be behind the one by which rows were dropped.
const CLOCK_LAG_MS: u64 = 300_000;

/// A dedup row.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    seq: u64,
    id: MessageId,
    sender: u8,
    device: DeviceId,
    own: InboxSeq,
    client_message_id: ClientMessageId,
}

/// What is known of one message.
struct Message<'a> {
    seq: u64,
    id: MessageId,
    entries: &'a [Held],
    remembered: &'a [Remembered],
}

impl Check<'_> {
    pub(super) fn messages(&mut self) -> Result<(), EngineError> {
        let mut group: Option<(ConversationId, Vec<Remembered>)> = None;
        self.every_row(Family::Dedup, |check, key, value| {
            check.report.dedup_rows += 1;
            let Some((shard, key)) = key::decode_dedup(key) else {
                return check.report.found("a key of `dedup` has a wrong length");
            };
            let DedupKey { conversation, sender, device, client_message_id } = key;
            if shard != ShardId::of_conversation(conversation, check.shard_count()) {
                check.report.found(format_args!(
                    "conversation {conversation}: the dedup row of {client_message_id} is in shard {}",
                    shard.0
                ));
            }
            if let Some((done, remembered)) = group.take_if(|(of, _)| *of != conversation) {
                check.conversation(done, remembered);
            }
            let (_, remembered) = group.get_or_insert_with(|| (conversation, Vec::new()));
            match DedupRow::decode(value) {
                Ok(row) => remembered.push(Remembered {
                    seq: row.conversation_seq.0,
                    id: row.message_id,
                    sender: side(conversation, sender),
                    device,
                    own: row.inbox_seq,
                    client_message_id,
                }),
                Err(error) => check.report.found(format_args!(
                    "conversation {conversation}: the dedup row of {client_message_id} cannot be read: {error}"
                )),
            }
        })?;
        if let Some((done, remembered)) = group {
            self.conversation(done, remembered);
        }
        // Those without dedup rows.
        let mut rest: Vec<ConversationId> = self.talks.keys().copied().collect();
        rest.sort_unstable();
        for id in rest {
            self.conversation(id, Vec::new());
        }
        Ok(())
    }

    fn conversation(&mut self, id: ConversationId, mut remembered: Vec<Remembered>) {
        let mut talk = self.talks.remove(&id).unwrap_or_default();
        self.sides(id, &talk);
        self.inbox_order(id, &mut talk.entries);
        talk.entries.sort_unstable_by_key(|held| (held.seq, held.order));
        remembered.sort_by_key(|row| row.seq);
        let (mut entries, mut rows) = (talk.entries.as_slice(), remembered.as_slice());
        let mut before: Option<(u64, MessageId)> = None;
        let mut last_by = [0; 2];
        while let Some(message) = next_message(&mut entries, &mut rows) {
            self.message(id, &talk, &message);
            self.listed(id, &talk, &message);
            self.density(id, before, &message);
            let sender = message.remembered.first().map(|row| row.sender);
            let sender = sender.or(message.entries.first().map(|held| held.sender)).unwrap_or(2);
            if let Some(last) = last_by.get_mut(usize::from(sender)) {
                *last = message.seq;
            }
            before = Some((message.seq, message.id));
        }
        self.end_conversation(id, &talk, before, last_by);
    }

    /// Whether messages of this time still have their dedup row.
    fn is_recent(&self, id: MessageId) -> bool {
        let kept_from = self.clock_ms.saturating_add(CLOCK_LAG_MS).saturating_sub(DEDUP_DAYS * DAY_MS);
        self.clock_ms == 0 || id.time_ms() >= kept_from
    }

    fn inbox_order(&mut self, id: ConversationId, entries: &mut [Held]) {
        entries.sort_unstable_by_key(|held| (held.owner, held.order));
        for pair in entries.windows(2) {
            let [first, second] = pair else { continue };
            if first.owner == second.owner && first.seq >= second.seq {
                let user = user_of(id, first.owner);
                self.report.found(format_args!(
                    "user {user}: message {} of {id} stands after message {}",
                    second.seq, first.seq
                ));
            }
        }
    }

    fn density(&mut self, id: ConversationId, before: Option<(u64, MessageId)>, message: &Message<'_>) {
        let (seq, (last, last_id)) = (message.seq, before.unwrap_or_default());
        // What lies between has a time between the two, so that its dedup row would still be there.
        let would_be_known = before.map_or(self.clock_ms == 0, |(_, id)| self.is_recent(id));
        if last.checked_add(1) != Some(seq) && would_be_known {
            self.report.found(format_args!("conversation {id}: after message {last} comes {seq}"));
        }
        if message.id <= last_id {
            self.report.found(format_args!("conversation {id}: the id of message {seq} does not ascend"));
        }
    }

    fn message(&mut self, id: ConversationId, talk: &Talk, message: &Message<'_>) {
        let seq = message.seq;
        let Some(first) = message.entries.first().map(|held| (held.id, held.sender, held.device)) else {
            return self.remembered(id, talk, message, None);
        };
        if message.entries.iter().any(|held| (held.id, held.sender, held.device) != first) {
            self.report.found(format_args!("conversation {id}: message {seq} is not the same in all inboxes"));
        }
        if message.remembered.is_empty() && self.is_recent(message.id) {
            self.report.found(format_args!("conversation {id}: message {seq} has no dedup row"));
        }
        self.remembered(id, talk, message, Some(first));
    }

    fn listed(&mut self, id: ConversationId, talk: &Talk, message: &Message<'_>) {
        for (owner, of) in (0..).zip(&talk.sides).filter(|(_, of)| of.list.0 == message.seq) {
            if of.list.1 != message.id {
                let (user, seq) = (user_of(id, owner), message.seq);
                self.report.found(format_args!("user {user}: the list row of {id} gives message {seq} another id"));
            }
        }
    }

    fn remembered(
        &mut self,
        id: ConversationId,
        talk: &Talk,
        message: &Message<'_>,
        entry: Option<(MessageId, u8, DeviceId)>,
    ) {
        let seq = message.seq;
        for (index, row) in message.remembered.iter().enumerate() {
            let says = (row.id, row.sender, row.device);
            let fits = row.sender < 2 && entry.is_none_or(|entry| entry == says);
            if index > 0 || !fits || !self.has_own_copy(id, message, row) {
                self.report.found(format_args!(
                    "conversation {id}: the dedup row of {} names message {seq}, which does not fit it",
                    row.client_message_id
                ));
            }
        }
        let Some(sender) = message.remembered.first().map(|row| row.sender).filter(|sender| *sender < 2) else {
            return;
        };
        // Of a message to oneself sender and recipient are the same.
        let recipient = id.direct_peer(user_of(id, sender)).map_or(sender, |peer| side(id, peer));
        let is_held = message.entries.iter().any(|held| held.owner == recipient);
        let (listed, _) = talk.sides.get(usize::from(recipient)).map_or_else(Default::default, |of| of.list);
        let user = user_of(id, recipient);
        if !is_held && listed < seq {
            self.report.found(format_args!(
                "conversation {id}: message {seq} is neither in the inbox of user {user} nor on its way there"
            ));
        }
        if is_held && listed >= seq {
            self.report
                .found(format_args!("user {user}: message {seq} of {id} waits, and the list has message {listed}"));
        }
    }

    /// Whether the sender's own copy is where the dedup row says, as long as it is kept.
    fn has_own_copy(&self, id: ConversationId, message: &Message<'_>, row: &Remembered) -> bool {
        let floor = self.users.get(&user_of(id, row.sender)).map_or(InboxSeq(0), |user| user.floor);
        row.own <= floor || message.entries.iter().any(|held| held.owner == row.sender && held.order == row.own.0)
    }

    fn end_conversation(&mut self, id: ConversationId, talk: &Talk, last: Option<(u64, MessageId)>, last_by: [u64; 2]) {
        let row = talk.row.unwrap_or_default();
        let said = (row.last_seq.0, row.last_message);
        match last {
            None if row.last_seq.0 > 0 && self.is_recent(row.last_message) => {
                self.report.found(format_args!("conversation {id}: its row says {}, and it has no messages", said.0));
            }
            Some(last) if last != said && (last.0 >= said.0 || self.is_recent(row.last_message)) => {
                self.report.found(format_args!(
                    "conversation {id}: its row says {}, and its last message is {}",
                    said.0, last.0
                ));
            }
            _ => {}
        }
        for (side, (known, said)) in last_by.into_iter().zip([row.last_by_lesser.0, row.last_by_greater.0]).enumerate()
        {
            if known > said {
                let user = user_of(id, u8::try_from(side).unwrap_or(u8::MAX));
                self.report.found(format_args!(
                    "conversation {id}: its row says that the last message of user {user} is {said}, and it is {known}"
                ));
            }
        }
    }
}

/// Takes what is known of the next message from the front of both.
fn next_message<'a>(entries: &mut &'a [Held], rows: &mut &'a [Remembered]) -> Option<Message<'a>> {
    let seq = match (entries.first(), rows.first()) {
        (Some(held), Some(row)) => held.seq.min(row.seq),
        (Some(held), None) => held.seq,
        (None, Some(row)) => row.seq,
        (None, None) => return None,
    };
    let (of_entries, rest) = entries.split_at(entries.partition_point(|held| held.seq == seq));
    *entries = rest;
    let (remembered, rest) = rows.split_at(rows.partition_point(|row| row.seq == seq));
    *rows = rest;
    let id = of_entries.first().map(|held| held.id).or(remembered.first().map(|row| row.id)).unwrap_or_default();
    Some(Message { seq, id, entries: of_entries, remembered })
}

fn user_of(id: ConversationId, side: u8) -> UserId {
    let (lesser, greater) = id.direct_users().unwrap_or_default();
    if side == 0 { lesser } else { greater }
}
