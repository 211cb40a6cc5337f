//! `apply` and `seal`: from records to the rows of a batch. Deterministic: the same records on the same state make the
//! same rows. Never reads a clock, an engine or randomness.

use super::{BATCHES_SEALED_MAX, Building, HEAD_HINT_LAG_MAX, Sealed, Shards, TIME_RESERVATION_MS};
use crate::batch::Batch;
use crate::command::Load;
use crate::engine::Family;
use crate::key::{self, MetaKind, ShardId};
use crate::record::{MessageRecord, Record};
use crate::value::{BatchRow, ConversationRow, TimeRow, UserRow, encode_inbox_header};

use culver_protocol::id::{DeviceId, InboxSeq, UserId};

impl Shards {
    /// Applies a record to memory and to the batch under construction.
    ///
    /// # Panics
    /// If the record does not follow from this state: records are applied in the order they were decided.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Message(message) => self.apply_message(message),
            Record::CursorMoved { user, device, cursor, .. } => self.apply_cursor(*user, *device, *cursor),
            _ => todo!("other records"),
        }
        self.applied += 1;
    }

    fn apply_message(&mut self, message: &MessageRecord) {
        let entry = &message.entry;
        let number = self.building.batch.number();
        let home = ShardId::of_conversation(entry.conversation, self.shard_count);
        self.advance_clock(home, message);

        let conversation = self.conversations.get_mut(&entry.conversation).expect("`decide` loaded the conversation");
        assert_eq!(entry.conversation_seq.0, conversation.last_seq.0 + 1, "places in a conversation are dense");
        assert!(entry.message_id > conversation.last_message, "ids of a conversation ascend");
        conversation.last_seq = entry.conversation_seq;
        conversation.last_message = entry.message_id;
        if conversation.touched != number {
            conversation.touched = number;
            self.building.conversations.push(entry.conversation);
        }

        let user = self.users.get_mut(&message.recipient).expect("`decide` loaded the recipient");
        assert_eq!(entry.inbox_seq.0, user.head.0 + 1, "places in an inbox are dense");
        user.head = entry.inbox_seq;
        // The first entry writes the row, so that a user without a row has no entries.
        user.dirty |= user.hint == InboxSeq(0) || user.head.0 - user.hint.0 >= HEAD_HINT_LAG_MAX;
        if user.touched != number {
            user.touched = number;
            self.building.users.push(message.recipient);
        }

        let (dedup_key, dedup_row) = (message.dedup_key(), message.dedup_row());
        let sender = dedup_key.sender_key();
        if !self.awaited.is_empty() {
            self.awaited.remove(&Load::Dedup(dedup_key));
            // What is being read for it does not hold this message.
            self.awaited.remove(&Load::Newest(sender));
        }
        match self.newest.get_mut(&sender) {
            Some(newest) => *newest = dedup_key.client_message_id.max(*newest),
            None if entry.conversation_seq.0 == 1 => self.newest.insert(sender, dedup_key.client_message_id),
            None => {}
        }
        let before = self.pending.insert(dedup_key, dedup_row);
        assert!(before.is_none(), "`decide` found no earlier copy");
        self.building.dedup.push(dedup_key);
        self.building.messages += 1;

        let shard = ShardId::of_user(message.recipient, self.shard_count);
        let inbox_key = key::inbox(shard, message.recipient, entry.inbox_seq);
        let batch = &mut self.building.batch;
        batch.put(Family::Inbox, &inbox_key, (&encode_inbox_header(&entry.view()), &entry.payload));
        batch.put(Family::Dedup, &key::dedup(home, &dedup_key), (&dedup_row.encode(), &[]));
    }

    fn advance_clock(&mut self, home: ShardId, message: &MessageRecord) {
        let id = message.entry.message_id;
        self.clock_ms = self.clock_ms.max(id.time_ms());
        let clock = self.clocks.get_mut(usize::from(home.0)).expect("a shard is below the shard count");
        assert!(id > clock.last, "ids of a shard ascend");
        clock.last = id;
        if id.time_ms() >= clock.reserved_until_ms {
            clock.reserved_until_ms = id.time_ms() + TIME_RESERVATION_MS;
            if !clock.dirty {
                clock.dirty = true;
                self.building.clocks.push(home);
            }
        }
    }

    fn apply_cursor(&mut self, id: UserId, device: DeviceId, cursor: InboxSeq) {
        todo!("{id} {device} {cursor}")
    }

    /// Closes the batch under construction and begins the next. `synced_through` is the engine's
    /// [`crate::engine::Engine::sequence_synced`] now. Without `with_cursors`, cursors that moved stay for a later
    /// batch, so that one row holds what many acknowledgements moved: nobody was promised that they are durable.
    ///
    /// # Panics
    /// If more batches are sealed and not yet durable than [`BATCHES_SEALED_MAX`].
    pub fn seal(&mut self, synced_through: u64, with_cursors: bool) -> Batch {
        assert!(self.sealed.len() < BATCHES_SEALED_MAX, "a hub keeps few batches under way");
        let number = self.building.batch.number();
        let capacity = self.building.batch.len() + 4096;
        let mut building = std::mem::replace(&mut self.building, Building::new(number.next(), capacity));
        let batch = &mut building.batch;
        for id in &building.conversations {
            let state = self.conversations.get_mut(id).expect("what a pending batch touched stays in memory");
            let row = ConversationRow { last_seq: state.last_seq, last_message: state.last_message, ..ConversationRow::default() };
            let home = ShardId::of_conversation(*id, self.shard_count);
            batch.put(Family::Conversation, &key::conversation(home, *id), (&row.encode(), &[]));
        }
        let mut heads = Vec::with_capacity(building.users.len());
        for id in &building.users {
            let user = self.users.get_mut(id).expect("what a pending batch touched stays in memory");
            heads.push((*id, user.head));
            if user.moved && !user.dirty && !with_cursors {
                user.touched = number.next();
                self.building.users.push(*id);
            } else if std::mem::take(&mut user.dirty) | std::mem::take(&mut user.moved) {
                user.hint = user.head;
                self.row.clear();
                UserRow::default().encode(&mut self.row);
                let shard = ShardId::of_user(*id, self.shard_count);
                batch.put(Family::User, &key::user(shard, *id), (&self.row, &[]));
            }
        }
        for shard in &building.clocks {
            let clock = self.clocks.get_mut(usize::from(shard.0)).expect("a shard is below the shard count");
            clock.dirty = false;
            let row = TimeRow { until_ms: clock.reserved_until_ms };
            batch.put(Family::Meta, &key::meta(*shard, MetaKind::Time, 0), (&row.encode(), &[]));
        }
        let row = BatchRow { number: number.0, synced_through, applied: self.applied };
        batch.put(Family::Meta, &self.batch_key(), (&row.encode(), &[]));
        self.sealed.push_back(Sealed { number, heads, dedup: building.dedup });
        building.batch
    }
}
