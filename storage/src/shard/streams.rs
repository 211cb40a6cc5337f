//! Streams between shards: what was numbered here, what was taken there, what arrived here.

use culver_protocol::id::{InboxSeq, UserId};
use culver_protocol::message::MarkView;
use hashbrown::HashMap;

use super::decide::known;
use super::{Journalled, Shards};
use crate::batch::Batch;
use crate::command::{Decision, StreamState, View};
use crate::engine::{Engine, Family};
use crate::error::EngineError;
use crate::key::{self, ShardId};
use crate::planted::{self, Bug};
use crate::record::{Arrival, InboxEntry, Item, Lane, Outgoing, Place, Record, Stream};
use crate::topology::HubId;
use crate::value::{NumberRow, encode_item_entry, encode_item_receipt};

/// A stream of one of these shards.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Source {
    /// The last number given out.
    pub(super) last: u64,
    pub(super) durable: u64,
    pub(super) taken: u64,
    /// What the row says was taken, as of the batch under construction.
    pub(super) head: u64,
    /// The row is to be written.
    pub(super) is_head_due: bool,
}

/// The streams from and to the shards of a hub.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) sources: HashMap<Stream, Source>,
    /// The last item of each stream that was applied, and whether the batch under construction writes that.
    pub(super) watermarks: HashMap<Stream, (u64, bool)>,
    /// Streams of messages to shards of this very hub with anything not taken: left from when it was another's.
    pub(super) own_behind: usize,
    /// Items of the batch under construction.
    pub(super) outgoing: Vec<Outgoing>,
    /// Items of batches just sealed, until the hub takes them.
    pub(super) sealed: Vec<Outgoing>,
    /// Streams whose heads are to be written with the batch under construction.
    pub(super) heads: Vec<Stream>,
}

impl Streams {
    pub(super) fn next(&self, stream: Stream) -> u64 {
        self.sources.get(&stream).map_or(0, |source| source.last) + 1
    }

    pub(super) fn number(&mut self, stream: Stream, n: u64) {
        let source = self.sources.entry(stream).or_default();
        assert_eq!(n, source.last + 1, "numbers of a stream are dense");
        source.last = n;
    }

    /// The stream that a message must go through: to another hub, or behind what has not been taken.
    fn for_message(&self, from: ShardId, to: ShardId, is_own: bool) -> Option<Stream> {
        let stream = Stream { from, to, lane: Lane::Message };
        let is_behind = || {
            !planted::is(Bug::OutboxBypassed)
                && self.sources.get(&stream).is_some_and(|source| source.taken < source.last)
        };
        (!is_own || (self.own_behind > 0 && is_behind())).then_some(stream)
    }

    /// Whether nothing of a stream is under way.
    pub(super) fn is_idle(&self, stream: Stream) -> bool {
        self.sources.get(&stream).is_none_or(|source| source.taken == source.last)
    }

    /// Numbers a receipt and puts it into the batch.
    pub(super) fn put_receipt(&mut self, batch: &mut Batch, stream: Stream, user: UserId, mark: &MarkView) {
        let n = self.next(stream);
        self.number(stream, n);
        let (conversation, delivered, read) = (mark.conversation, mark.delivered, mark.read);
        let expired = (mark.expired_after, mark.expired_through);
        let row = encode_item_receipt(user, conversation, delivered, read, expired);
        batch.put(Family::Outbox, &key::outbox(stream, n), (&row, &[]));
        let item = Item::Receipt { user, conversation, delivered, read, expired };
        self.outgoing.push(Outgoing { stream, n, item });
    }

    /// Writes the heads of streams that have been taken far enough, or of all that were taken further.
    pub(super) fn put_heads(&mut self, batch: &mut Batch, all: bool) {
        if all {
            let further = self.sources.iter().filter(|(_, source)| source.taken > source.head);
            self.heads = further.map(|(stream, _)| *stream).collect();
            self.heads.sort_unstable();
        }
        for stream in self.heads.drain(..) {
            let source = self.sources.get_mut(&stream).expect("streams are never forgotten");
            (source.head, source.is_head_due) = (source.taken, false);
            batch.put(Family::Meta, &key::head(stream), (&NumberRow { number: source.head }.encode(), &[]));
        }
    }

    /// Writes the watermarks that the batch moved.
    pub(super) fn put_watermarks(&mut self, batch: &mut Batch, moved: &[Stream]) {
        for stream in moved {
            let (number, dirty) = self.watermarks.get_mut(stream).expect("streams are never forgotten");
            *dirty = false;
            batch.put(Family::Meta, &key::watermark(*stream), (&NumberRow { number: *number }.encode(), &[]));
        }
    }
}

impl Shards {
    /// The stream that an entry of this user must go through; `None`: into the inbox, at once.
    #[inline]
    pub(super) fn way(&self, home: ShardId, user: UserId) -> Option<Stream> {
        if self.topology.hub_count() == 1 && self.streams.own_behind == 0 {
            return None;
        }
        let to = ShardId::of_user(user, self.shard_count);
        self.streams.for_message(home, to, self.topology.hub_of_shard(to) == self.hub)
    }

    /// Decides an item that arrived. Unchanged: it is not the next of its stream.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_arrival(
        &mut self,
        engine: &dyn Engine,
        stream: Stream,
        n: u64,
        item: &Item,
        _now_ms: u64,
    ) -> Result<Decision, EngineError> {
        if n != self.watermark(stream) + 1 {
            return Ok(Decision::Unchanged);
        }
        let item = match item {
            Item::Entry { user, entry } => known!(self.arrived_entry(engine, *user, entry)?),
            Item::Receipt { user, conversation, delivered, read, expired } => {
                let news = MarkView {
                    conversation: *conversation,
                    delivered: *delivered,
                    read: *read,
                    expired_after: expired.0,
                    expired_through: expired.1,
                    ..MarkView::default()
                };
                known!(self.arrived_receipt(engine, *user, news)?)
            }
        };
        Ok(Decision::Apply(Record::Arrived { stream, n, item }))
    }

    fn arrived_entry(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        entry: &InboxEntry,
    ) -> Result<View<Arrival>, EngineError> {
        let state = match self.user_mut(engine, user)? {
            View::Known(state) => state,
            View::Waits(load) => return Ok(View::Waits(load)),
        };
        let is_copy = user == entry.sender && entry.conversation.direct_peer(user) != Some(user);
        if is_copy && !state.has_others(entry.sender_device) {
            return Ok(View::Known(Arrival::Nothing));
        }
        let entry = InboxEntry { inbox_seq: InboxSeq(state.head.0 + 1), ..entry.clone() };
        Ok(View::Known(Arrival::Entry { user, entry }))
    }

    fn arrived_receipt(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        news: MarkView,
    ) -> Result<View<Arrival>, EngineError> {
        let (version, shows_reads) = match self.user_mut(engine, user)? {
            View::Known(state) => (state.receipts_head + 1, !state.row.read_receipts_off),
            View::Waits(load) => return Ok(View::Waits(load)),
        };
        let rows = match self.talk(engine, user, news.conversation)? {
            View::Known(talk) => talk.rows,
            View::Waits(load) => return Ok(View::Waits(load)),
        };
        Ok(View::Known(self.policy.receipt(user, (&rows, shows_reads), news, version)))
    }

    pub(super) fn apply_arrived(&mut self, stream: Stream, n: u64, item: &Arrival) {
        assert_eq!(self.topology.hub_of_shard(stream.to), self.hub, "what arrives is for these shards");
        let (watermark, dirty) = self.streams.watermarks.entry(stream).or_default();
        assert_eq!(n, *watermark + 1, "items of a stream are applied in order, and once");
        *watermark = n;
        if !std::mem::replace(dirty, true) {
            self.building.watermarks.push(stream);
        }
        match item {
            Arrival::Entry { user, entry } => {
                self.put_inbox(*user, entry, entry.inbox_seq);
                self.building.messages += 1;
            }
            Arrival::Receipt { user, mark, version } => self.apply_receipt(*user, mark, *version),
            Arrival::Nothing => {}
        }
    }

    /// Puts an entry where it belongs.
    pub(super) fn put_entry(&mut self, user: UserId, entry: &InboxEntry, place: Place) {
        match place {
            Place::Local(inbox_seq) => self.put_inbox(user, entry, inbox_seq),
            Place::Stream(stream, n) => {
                self.streams.number(stream, n);
                let header = encode_item_entry(user, &entry.view());
                self.building.batch.put(Family::Outbox, &key::outbox(stream, n), (&header, &entry.payload));
                let entry = InboxEntry { inbox_seq: InboxSeq(0), ..entry.clone() };
                self.streams.outgoing.push(Outgoing { stream, n, item: Item::Entry { user, entry } });
            }
        }
    }

    /// The items of the batch just sealed, to be pushed once it is durable.
    pub fn take_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.streams.sealed)
    }

    /// Everything in a stream up to `through` is durable where it goes.
    pub fn taken(&mut self, stream: Stream, through: u64) {
        let Some(source) = self.streams.sources.get_mut(&stream) else { return };
        let was_behind = source.taken < source.last;
        source.taken = source.taken.max(through.min(source.durable));
        let is_own = stream.lane == Lane::Message && self.topology.hub_of_shard(stream.to) == self.hub;
        if is_own && was_behind && source.taken == source.last {
            self.streams.own_behind -= 1;
        }
        let lag = source.taken - source.head;
        if lag >= self.policy.bounds.head_lag && !std::mem::replace(&mut source.is_head_due, true) {
            self.streams.heads.push(stream);
        }
        let through = source.taken;
        self.note(|| Journalled::Taken { stream, through });
    }

    /// Streams of these shards with durable items that are not taken.
    #[must_use]
    pub fn streams_behind(&self) -> Vec<StreamState> {
        let behind = self.streams.sources.iter().filter(|(_, source)| source.taken < source.durable);
        let state = |(stream, source): (&Stream, &Source)| StreamState {
            stream: *stream,
            durable: source.durable,
            taken: source.taken,
        };
        let mut states: Vec<_> = behind.map(state).collect();
        // In the same order in every life.
        states.sort_unstable_by_key(|state| state.stream);
        states
    }

    /// The last item applied of a stream to one of these shards, durable or not.
    #[must_use]
    pub fn watermark(&self, stream: Stream) -> u64 {
        self.streams.watermarks.get(&stream).map_or(0, |(watermark, _)| *watermark)
    }

    /// The inbox of a user in another hub is full: messages to it are refused for a while.
    pub fn refuse_full(&mut self, user: UserId, now_ms: u64) {
        if self.full.len() >= self.policy.bounds.full {
            self.full.clear();
        }
        self.full.insert(user, now_ms);
    }

    /// Whether messages to a user in another hub are refused. A clock that went back refuses nothing.
    pub(super) fn is_refused(&self, user: UserId, now_ms: u64) -> bool {
        let waited_ms = self.full.get(&user).and_then(|since_ms| now_ms.checked_sub(*since_ms));
        waited_ms.is_some_and(|waited_ms| waited_ms < self.policy.bounds.full_ms)
    }

    /// Whether the inbox of a user of these shards has reached its quota, as far as memory knows.
    #[must_use]
    pub fn is_full(&self, user: UserId) -> bool {
        self.users.peek(&user).is_some_and(|state| self.policy.is_full(state))
    }

    /// The hub that these shards belong to.
    #[must_use]
    pub fn hub(&self) -> HubId {
        self.hub
    }
}
