//! Receipts that need no stream: given at once to a user of the same hub, with the batch that writes the cursor.
//!
//! Only where the user and the talk are in memory, for a batch cannot wait for a read; and only while nothing of the
//! stream is under way, for what comes after goes the same way. All else is derived by `seal`, and goes through the
//! stream.

use culver_protocol::id::{ConversationId, UserId};
use culver_protocol::message::MarkView;

use super::state::Tick;
use super::{Policy, Shards};
use crate::key::ShardId;
use crate::reader::TalkRows;
use crate::record::{Arrival, Lane, Record, Stream};

/// How far [`Shards::decide_direct`] has come in the batch under construction.
#[derive(Debug, Default)]
pub struct Direct {
    /// The user among those that the batch changes, and the news among that user's.
    user: usize,
    tick: usize,
}

impl Policy {
    /// What a receipt comes to for the user whom it is for.
    pub(super) fn receipt(
        &self,
        user: UserId,
        (rows, shows_reads): (&TalkRows, bool),
        news: MarkView,
        version: u64,
    ) -> Arrival {
        let nothing = MarkView { conversation: news.conversation, ..MarkView::default() };
        let mut mark = nothing;
        if news.delivered > rows.peer_delivered.seq {
            mark.delivered = news.delivered;
        }
        if shows_reads && news.read > rows.peer_read.seq {
            mark.read = news.read;
        }
        if news.expired_through > rows.peer_expired.through {
            let earlier = rows.peer_expired;
            // Only one range is kept. What lies between two was sent by the peer, unless some of it was delivered.
            let joins_on = news.expired_after <= earlier.through
                || (self.receipts
                    && earlier.through.0 > 0
                    && rows.peer_delivered.seq.max(news.delivered) <= earlier.through);
            let after = if joins_on { earlier.after.min(news.expired_after) } else { news.expired_after };
            (mark.expired_after, mark.expired_through) = (after, news.expired_through);
        }
        if mark == nothing { Arrival::Nothing } else { Arrival::Receipt { user, mark, version } }
    }
}

impl Shards {
    /// Decides the next receipt that needs no stream; `None`: there is no other. What it returns is to be applied
    /// before it is asked again, and the batch to be sealed thereafter, with or without cursors as was said here.
    pub fn decide_direct(&mut self, with_cursors: bool, direct: &mut Direct) -> Option<Record> {
        if !self.policy.receipts {
            return None;
        }
        // What is applied may change further users: they are looked at too.
        while let Some(giver) = self.building.users.get(direct.user).copied() {
            let user = self.users.peek(&giver).expect("what a pending batch touched stays in memory");
            let tick = user.ticks.get(direct.tick).filter(|_| user.leaves(with_cursors)).copied();
            let Some(tick) = tick else {
                (direct.user, direct.tick) = (direct.user + 1, 0);
                continue;
            };
            direct.tick += 1;
            if let Some(item) = self.direct(giver, tick) {
                return Some(Record::ReceiptGiven { giver, conversation: tick.conversation, item });
            }
        }
        None
    }

    fn direct(&mut self, giver: UserId, tick: Tick) -> Option<Arrival> {
        let conversation = tick.conversation;
        let peer = conversation.direct_peer(giver).filter(|peer| *peer != giver)?;
        let shard = |user| ShardId::of_user(user, self.shard_count);
        let stream = Stream { from: shard(giver), to: shard(peer), lane: Lane::Receipt };
        if self.topology.hub_of_shard(stream.to) != self.hub || !self.streams.is_idle(stream) {
            return None;
        }
        let talk = self.talks.get_mut(&(peer, conversation))?;
        let user = self.users.get_mut(&peer)?;
        user.is_passing = false;
        let news = MarkView { conversation, delivered: tick.delivered, read: tick.read, ..MarkView::default() };
        let (shows_reads, version) = (!user.row.read_receipts_off, user.receipts_head + 1);
        Some(self.policy.receipt(peer, (&talk.rows, shows_reads), news, version))
    }

    pub(super) fn apply_given(&mut self, giver: UserId, conversation: ConversationId, item: &Arrival) {
        let user = self.touch(giver);
        let tick = user.ticks.iter_mut().find(|tick| tick.conversation == conversation);
        tick.expect("`decide` found it").is_given = true;
        // The cursor is written with it.
        user.tells = true;
        match item {
            Arrival::Receipt { user, mark, version } => self.apply_receipt(*user, mark, *version),
            Arrival::Entry { .. } => unreachable!("a receipt is no entry"),
            Arrival::Nothing => {}
        }
    }
}
