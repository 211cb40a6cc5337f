//! `apply`: from records to memory and rows. Deterministic: the same records on the same state make the same rows.
//! Never reads a clock, an engine or randomness.

use culver_protocol::id::{InboxSeq, UserId};

use super::state::{Newest, User};
use super::{Journalled, Shards};
use crate::batch::BatchNumber;
use crate::command::Load;
use crate::engine::Family;
use crate::key::{self, ShardId};
use crate::planted::{self, Bug};
use crate::record::{InboxEntry, MessageRecord, Record};
use crate::value::{encode_inbox_header, waiting_bytes};

impl Shards {
    /// Applies a record to memory and to the batch under construction.
    ///
    /// # Panics
    /// If the record does not follow from this state: records are applied in the order they were decided.
    pub fn apply(&mut self, record: &Record) {
        self.note(|| Journalled::Record(record.clone()));
        match record {
            Record::Message(message) => self.apply_message(message),
            Record::Arrived { stream, n, item } => self.apply_arrived(*stream, *n, item),
            Record::CursorMoved { user, device, cursor, step, delivered } => {
                self.apply_cursor(*user, *device, (*cursor, *step), delivered);
            }
            Record::DeviceLinked { user, device, cursor, day, fingerprint } => {
                self.apply_linked(*user, *device, *cursor, (*day, *fingerprint));
            }
            Record::DeviceRegistered { user, device, fingerprint, day, .. } => {
                self.apply_registered(*user, *device, *fingerprint, *day);
            }
            Record::DeviceSeen { user, device, day } => self.apply_seen(*user, *device, *day),
            Record::DeviceRemoved { user, device, tokens_from_s } => self.apply_removed(*user, *device, *tokens_from_s),
            Record::DeviceNamed { user, device, name } => self.apply_named(*user, *device, name),
            Record::MarkedRead { user, conversation, seq, version, tell } => {
                self.apply_read(*user, (*conversation, *seq), *version, *tell);
            }
            Record::ReadReceiptsSet { user, on } => self.apply_read_receipts(*user, *on),
            Record::FloorMoved { user, floor, freed_bytes, lists, expired, unlinked } => {
                self.apply_floor(*user, *floor, *freed_bytes, unlinked);
                self.apply_lists(*user, lists, expired);
            }
            Record::ReceiptGiven { giver, conversation, item } => self.apply_given(*giver, *conversation, item),
            Record::ClockMoved { ms } => self.apply_clock(*ms),
        }
        self.applied += 1;
    }

    fn apply_message(&mut self, message: &MessageRecord) {
        let entry = &message.entry;
        let number = self.building.batch.number();
        let home = ShardId::of_conversation(entry.conversation, self.shard_count);
        self.advance_clock(home, message);

        let conversation = self.conversations.get_mut(&entry.conversation).expect("`decide` loaded the conversation");
        let row = &mut conversation.row;
        assert_eq!(entry.conversation_seq.0, row.last_seq.0 + 1, "places in a conversation are dense");
        assert!(entry.message_id > row.last_message, "ids of a conversation ascend");
        row.last_seq = entry.conversation_seq;
        row.last_message = entry.message_id;
        let (lesser, greater) = entry.conversation.direct_users().expect("`decide` takes only direct conversations");
        if entry.sender == lesser {
            row.last_by_lesser = entry.conversation_seq;
        }
        if entry.sender == greater {
            row.last_by_greater = entry.conversation_seq;
        }
        let is_known_dirty = planted::is(Bug::SequenceReused) && conversation.touched > BatchNumber(0);
        if conversation.touched != number && !is_known_dirty {
            conversation.touched = number;
            self.building.conversations.push(entry.conversation);
        }

        let (dedup_key, dedup_row) = (message.dedup_key(), message.dedup_row());
        let sender = dedup_key.sender_key();
        if !self.awaited.is_empty() {
            self.awaited.remove(&Load::Dedup(dedup_key));
            // What is being read for it does not hold this message.
            self.awaited.remove(&Load::Newest(sender));
        }
        match self.newest.get_mut(&sender) {
            Some(Newest::Known(newest)) => *newest = dedup_key.client_message_id.max(*newest),
            // The conversation's first message is the sender's first.
            _ if entry.conversation_seq.0 == 1 => self.set_newest(sender, dedup_key.client_message_id),
            _ => {}
        }
        let before = self.pending.insert(dedup_key, dedup_row);
        assert!(before.is_none(), "`decide` found no earlier copy");
        self.building.dedup.push(dedup_key);
        self.building.messages += 1;

        self.put_entry(message.recipient, entry, message.place);
        if let Some(place) = message.copy {
            self.put_entry(entry.sender, entry, place);
        }
        let key = key::dedup(home, &dedup_key);
        self.building.batch.put(Family::Dedup, &key, (&dedup_row.encode(), &[]));
    }

    /// Puts an entry into an inbox of these shards.
    pub(super) fn put_inbox(&mut self, id: UserId, entry: &InboxEntry, inbox_seq: InboxSeq) {
        let lag = self.policy.bounds.head_hint_lag;
        let user = self.touch(id);
        assert_eq!(inbox_seq.0, user.head.0 + 1, "places in an inbox are dense");
        user.head = inbox_seq;
        user.row.waiting_bytes += waiting_bytes(entry.payload.len());
        // The first entry writes the row, so that a user without a row has no entries.
        user.dirty |= user.row.head == InboxSeq(0) || user.head.0 - user.row.head.0 >= lag;
        let shard = ShardId::of_user(id, self.shard_count);
        let key = key::inbox(shard, id, inbox_seq);
        self.building.batch.put(Family::Inbox, &key, (&encode_inbox_header(&entry.view()), &entry.payload));
    }

    /// A user that is changed with the batch under construction.
    pub(super) fn touch(&mut self, id: UserId) -> &mut User {
        self.building.touch(&mut self.users, id)
    }

    fn advance_clock(&mut self, home: ShardId, message: &MessageRecord) {
        let id = message.entry.message_id;
        self.clock_ms = self.clock_ms.max(id.time_ms());
        let clock = self.clocks.get_mut(usize::from(home.0)).expect("a shard is below the shard count");
        assert!(id > clock.last, "ids of a shard ascend");
        clock.last = id;
        if id.time_ms() >= clock.reserved_until_ms {
            clock.reserved_until_ms = id.time_ms() + self.policy.bounds.time_reservation_ms;
            if !clock.dirty {
                clock.dirty = true;
                self.building.clocks.push(home);
            }
        }
    }
}
