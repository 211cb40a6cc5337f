//! `seal`: closes the batch under construction. Writes once what many records changed.

use culver_protocol::message::MarkView;

use super::state::{Building, Sealed};
use super::talks::put_talk;
use super::{BATCHES_SEALED_MAX, Journalled, Shards};
use crate::batch::Batch;
use crate::command::Acked;
use crate::engine::Family;
use crate::key::{self, MetaKind, ShardId, TalkKind};
use crate::record::{Lane, Stream};
use crate::value::{BatchRow, SeqRow, TimeRow};

impl Shards {
    /// Closes the batch under construction and begins the next. `synced_through` is the engine's
    /// [`crate::engine::Engine::sequence_synced`] now. Without `with_cursors`, cursors that moved stay for a later
    /// batch, so that one row holds what many acknowledgements moved: nobody was promised that they are durable. What
    /// is told of them to others leaves with the batch that writes them.
    ///
    /// # Panics
    /// If more batches are sealed and not yet durable than [`BATCHES_SEALED_MAX`].
    pub fn seal(&mut self, synced_through: u64, with_cursors: bool) -> Batch {
        assert!(self.sealed.len() < BATCHES_SEALED_MAX, "a hub keeps few batches under way");
        let number = self.building.batch.number();
        self.note(|| Journalled::Sealed { number, synced_through, with_cursors });
        let capacity = self.building.batch.len() + 4096;
        let mut building = std::mem::replace(&mut self.building, Building::new(number.next(), capacity));
        for id in &building.conversations {
            let state = self.conversations.get_mut(id).expect("what a pending batch touched stays in memory");
            let home = ShardId::of_conversation(*id, self.shard_count);
            building.batch.put(Family::Conversation, &key::conversation(home, *id), (&state.row.encode(), &[]));
        }
        let heads = Vec::with_capacity(building.users.len());
        let dedup = std::mem::take(&mut building.dedup);
        let mut sealed = Sealed { number, heads, dedup, delivered: Vec::new(), sent: Vec::new() };
        self.seal_users(&mut building, &mut sealed, with_cursors);
        for (user, conversation) in &building.talks {
            let talk = self.talks.get_mut(&(*user, *conversation));
            let talk = talk.expect("what a pending batch touched stays in memory");
            let shard = ShardId::of_user(*user, self.shard_count);
            put_talk(&mut building.batch, shard, (*user, *conversation), talk);
        }
        let batch = &mut building.batch;
        for shard in &building.clocks {
            let clock = self.clocks.get_mut(usize::from(shard.0)).expect("a shard is below the shard count");
            clock.dirty = false;
            let row = TimeRow { until_ms: clock.reserved_until_ms };
            batch.put(Family::Meta, &key::meta(*shard, MetaKind::Time, 0), (&row.encode(), &[]));
        }
        self.streams.put_watermarks(batch, &building.watermarks);
        self.streams.put_heads(batch, building.with_heads);
        sealed.sent = self.streams.outgoing.iter().map(|outgoing| (outgoing.stream, outgoing.n)).collect();
        let mut outgoing = std::mem::take(&mut self.streams.outgoing);
        self.streams.sealed.append(&mut outgoing);
        let row = BatchRow { number: number.0, synced_through, applied: self.applied };
        batch.put(Family::Meta, &self.batch_key(), (&row.encode(), &[]));
        self.sealed.push_back(sealed);
        building.batch
    }

    /// Writes the rows of users, and tells what goes with them.
    fn seal_users(&mut self, building: &mut Building, sealed: &mut Sealed, with_cursors: bool) {
        for id in &building.users {
            let user = self.users.get_mut(id).expect("what a pending batch touched stays in memory");
            sealed.heads.push((*id, user.head));
            if !user.leaves(with_cursors) {
                user.touched = sealed.number.next();
                self.building.users.push(*id);
                continue;
            }
            user.tells = false;
            let shard = ShardId::of_user(*id, self.shard_count);
            if std::mem::take(&mut user.dirty) | std::mem::take(&mut user.moved) {
                user.row.head = user.head;
                self.row.clear();
                user.row.encode(&mut self.row);
                building.batch.put(Family::User, &key::user(shard, *id), (&self.row, &[]));
            }
            for tick in user.ticks.drain(..) {
                let Some(peer) = tick.conversation.direct_peer(*id).filter(|peer| peer != id) else { continue };
                let mark = MarkView {
                    conversation: tick.conversation,
                    delivered: tick.delivered,
                    read: tick.read,
                    ..MarkView::default()
                };
                let to = ShardId::of_user(peer, self.shard_count);
                let stream = Stream { from: shard, to, lane: Lane::Receipt };
                // What the user has is noted in any case: nothing else can have been read.
                if self.policy.receipts && !tick.is_given {
                    self.streams.put_receipt(&mut building.batch, stream, peer, &mark);
                }
                if tick.delivered.0 > 0 {
                    let row = SeqRow { seq: tick.delivered, is_untold: !self.policy.receipts };
                    let key = key::talk(shard, *id, tick.conversation, TalkKind::Delivered);
                    building.batch.put(Family::Member, &key, (&row.encode(), &[]));
                    sealed.delivered.push((*id, Acked { conversation: tick.conversation, seq: tick.delivered }));
                }
            }
        }
        for (user, acked) in &sealed.delivered {
            if let Some(talk) = self.talks.peek_mut(&(*user, acked.conversation)) {
                talk.rows.delivered = talk.rows.delivered.max(acked.seq);
            }
        }
    }
}
