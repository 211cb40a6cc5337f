//! Streams of the outbox between shards: pushed when durable, taken in order, driven again from the log.
//!
//! The source remembers of each stream what is durable, pushed and taken. A push may be lost: what was not taken for a
//! while is read from the log and pushed again. The destination takes only the next number, so each item takes effect
//! once and in order. Where source and destination are the same hub's, no mailbox is between them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use culver_storage::command::Decision;
use culver_storage::error::EngineError;
use culver_storage::planted::{self, Bug};
use culver_storage::reader::Read;
use culver_storage::record::{Arrival, Item, Lane, Outgoing, Record, Stream};
use culver_storage::shard::Shards;
use culver_storage::topology::{HubId, Topology};

use super::mail::HubMail;
use super::parking::Work;
use super::{Hub, Tried, is_over};

/// A stream without progress for this long is driven again.
pub(super) const REDRIVE_MS: u64 = 200;

/// A stream at its source. Invariant: `taken` ≤ `pushed` ≤ `durable` ≤ `sealed`.
#[derive(Clone, Copy, Debug)]
struct Outflow {
    sealed: u64,
    durable: u64,
    pushed: u64,
    taken: u64,
    /// Items are being read from the log.
    reading: bool,
    /// When it last got on.
    progress_ms: u64,
    /// It ends in this hub.
    is_own: bool,
}

impl Outflow {
    /// Whether there is something to push, with no more on its way than `window`.
    fn has_room(&self, window: u64) -> bool {
        self.pushed < self.durable && self.pushed - self.taken < window
    }
}

/// The streams that begin in a hub, and mail to other hubs.
#[derive(Default)]
pub(super) struct Streams {
    outflows: HashMap<Stream, Outflow>,
    /// Streams that end here of which something was dropped for want of room.
    dropped: BTreeSet<Stream>,
    /// Sealed and not taken: what ends here, and what ends elsewhere.
    own_untaken: u64,
    others_untaken: u64,
    mail: Vec<(HubId, HubMail)>,
}

impl Streams {
    /// Streams of which something was under way when the hub last ended: the first look at them drives them again.
    pub(super) fn recovered(shards: &Shards, topology: &Topology, hub: HubId) -> Self {
        let mut streams = Self::default();
        for state in shards.streams_behind() {
            let (durable, taken) = (state.durable, state.taken);
            let is_own = topology.hub_of_shard(state.stream.to) == hub;
            let outflow =
                Outflow { sealed: durable, durable, pushed: taken, taken, reading: false, progress_ms: 0, is_own };
            streams.outflows.insert(state.stream, outflow);
            *streams.untaken_mut(is_own) += durable - taken;
        }
        streams
    }

    pub(super) fn own_untaken(&self) -> u64 {
        self.own_untaken
    }

    pub(super) fn mail_len(&self) -> usize {
        self.mail.len()
    }

    pub(super) fn dropped_len(&self) -> usize {
        self.dropped.len()
    }

    fn untaken_mut(&mut self, is_own: bool) -> &mut u64 {
        if is_own { &mut self.own_untaken } else { &mut self.others_untaken }
    }

    /// An item that arrived found no room among what waits.
    pub(super) fn drop_arrival(&mut self, stream: Stream) {
        self.dropped.insert(stream);
    }
}

impl Hub {
    /// Items of the batch that was just sealed.
    pub(super) fn note_sealed(&mut self, outgoing: &[Outgoing], now_ms: u64) {
        for Outgoing { stream, n, .. } in outgoing {
            let before = n - 1;
            let (topology, hub) = (&self.topology, self.hub);
            let outflow = self.streams.outflows.entry(*stream).or_insert_with(|| Outflow {
                sealed: before,
                durable: before,
                pushed: before,
                taken: before,
                reading: false,
                progress_ms: now_ms,
                is_own: topology.hub_of_shard(stream.to) == hub,
            });
            assert_eq!(outflow.sealed, before, "items of a stream are numbered densely");
            if outflow.taken == outflow.sealed {
                outflow.progress_ms = now_ms;
            }
            outflow.sealed = *n;
            let is_own = outflow.is_own;
            *self.streams.untaken_mut(is_own) += 1;
        }
    }

    /// Items are durable: they go out, unless earlier ones of their stream have not.
    pub(super) fn push_durable(&mut self, outgoing: Vec<Outgoing>, now_ms: u64) -> Result<(), EngineError> {
        let window = self.window();
        for outgoing in outgoing {
            let outflow = self.outflow(outgoing.stream);
            outflow.durable = outgoing.n;
            if outflow.pushed + 1 == outgoing.n && outflow.has_room(window) {
                self.push(outgoing, now_ms)?;
            }
        }
        Ok(())
    }

    /// Items of a stream that are on their way at most: as many as may wait where they arrive.
    fn window(&self) -> u64 {
        self.bounds.parked_of_stream as u64
    }

    fn outflow(&mut self, stream: Stream) -> &mut Outflow {
        self.streams.outflows.get_mut(&stream).expect("streams are noted when items are sealed")
    }

    fn push(&mut self, outgoing: Outgoing, now_ms: u64) -> Result<(), EngineError> {
        let outflow = self.outflow(outgoing.stream);
        outflow.pushed = outgoing.n;
        if outflow.is_own {
            return self.handle_work(Work::Arrival(outgoing), now_ms);
        }
        let to = self.topology.hub_of_shard(outgoing.stream.to);
        self.counts.pushed += 1;
        self.streams.mail.push((to, HubMail::Push { outgoing }));
        Ok(())
    }

    /// Items of a stream have been read from the log.
    pub(super) fn push_read(
        &mut self,
        stream: Stream,
        after: u64,
        items: Vec<(u64, Item)>,
        now_ms: u64,
    ) -> Result<(), EngineError> {
        let outflow = self.outflow(stream);
        outflow.reading = false;
        // If it was set back meanwhile, it is read again.
        let joins_on = after <= outflow.pushed && !items.is_empty();
        let window = self.window();
        for (n, item) in items {
            let outflow = self.outflow(stream);
            if n == outflow.pushed + 1 && outflow.has_room(window) {
                self.push(Outgoing { stream, n, item }, now_ms)?;
            }
        }
        if joins_on {
            self.drive(stream);
        }
        Ok(())
    }

    /// Reads on from the log, if there is something to push and room for it.
    fn drive(&mut self, stream: Stream) {
        let window = self.window();
        let outflow = self.outflow(stream);
        if outflow.reading || !outflow.has_room(window) {
            return;
        }
        outflow.reading = true;
        let (after, through) = (outflow.pushed, outflow.durable.min(outflow.taken + window));
        let limit = self.bounds.read_items;
        self.want(Read::Outbox { stream, after, through, limit });
    }

    /// Drives streams again that have not got on for a while.
    pub(super) fn redrive(&mut self, now_ms: u64) {
        if self.streams.own_untaken + self.streams.others_untaken == 0 {
            return;
        }
        let mut stuck = Vec::new();
        for (stream, outflow) in &mut self.streams.outflows {
            if planted::is(Bug::ReceiptLostBetweenHubs) && stream.lane == Lane::Receipt {
                continue;
            }
            if outflow.taken < outflow.durable && is_over(outflow.progress_ms, REDRIVE_MS, now_ms) {
                outflow.progress_ms = now_ms;
                outflow.pushed = outflow.taken;
                stuck.push(*stream);
            }
        }
        stuck.sort_unstable();
        for stream in stuck {
            self.drive(stream);
        }
    }

    /// Whether items were sealed that nobody has taken yet.
    #[must_use]
    pub fn has_untaken(&self) -> bool {
        self.streams.own_untaken + self.streams.others_untaken > 0
    }

    /// Items of streams that are sealed and not taken.
    #[must_use]
    pub fn untaken(&self) -> u64 {
        self.streams.own_untaken + self.streams.others_untaken
    }

    /// Takes what another hub says.
    ///
    /// # Errors
    /// The engine could not be read.
    pub fn handle_mail(&mut self, mail: HubMail, now_ms: u64) -> Result<(), EngineError> {
        match mail {
            HubMail::Push { outgoing } => return self.handle_work(Work::Arrival(outgoing), now_ms),
            HubMail::Taken { stream, through } => self.take_note(stream, through, now_ms),
            HubMail::Behind { stream, after } => self.push_again(stream, after),
            HubMail::Full { user } => self.shards.refuse_full(user, now_ms),
        }
        Ok(())
    }

    /// What is to be said to other hubs, in order. What finds no room comes back by [`Hub::refused_mail`].
    pub fn take_mail(&mut self) -> Vec<(HubId, HubMail)> {
        std::mem::take(&mut self.streams.mail)
    }

    /// Whether mail found no room and must be posted still.
    #[must_use]
    pub fn has_unsent_mail(&self) -> bool {
        !self.streams.mail.is_empty()
    }

    /// Mail found no room. What must arrive is said again; what was to be pushed is read from the log later.
    pub fn refused_mail(&mut self, to: HubId, mail: HubMail) {
        self.counts.mail_refused += 1;
        match mail {
            HubMail::Push { outgoing } => {
                let outflow = self.outflow(outgoing.stream);
                outflow.pushed = outflow.pushed.min(outgoing.n - 1).max(outflow.taken);
            }
            HubMail::Full { .. } => {}
            HubMail::Taken { .. } | HubMail::Behind { .. } => self.streams.mail.push((to, mail)),
        }
    }

    /// Everything up to here is durable where the stream ends.
    fn take_note(&mut self, stream: Stream, through: u64, now_ms: u64) {
        // A stream that nothing was sealed for since the start was at rest then.
        let Some(outflow) = self.streams.outflows.get_mut(&stream) else { return };
        if through <= outflow.taken {
            return;
        }
        assert!(through <= outflow.durable, "only what is durable here can arrive there");
        let count = through - outflow.taken;
        outflow.taken = through;
        // What was set back may have arrived before that.
        outflow.pushed = outflow.pushed.max(through);
        outflow.progress_ms = now_ms;
        let is_own = outflow.is_own;
        *self.streams.untaken_mut(is_own) -= count;
        self.shards.taken(stream, through);
        self.drive(stream);
    }

    /// What follows `after` was dropped where the stream ends.
    fn push_again(&mut self, stream: Stream, after: u64) {
        let Some(outflow) = self.streams.outflows.get_mut(&stream) else { return };
        outflow.pushed = outflow.pushed.min(after).max(outflow.taken);
        self.drive(stream);
    }

    /// The next item of a stream that ends here.
    pub(super) fn arrive(&mut self, outgoing: &Outgoing, now_ms: u64) -> Result<Tried, EngineError> {
        let Outgoing { stream, n, item } = outgoing;
        match self.shards.decide_arrival(&*self.engine, *stream, *n, item, now_ms)? {
            Decision::Waits(load) => return Ok(Tried::Waits(load)),
            Decision::Apply(record) => {
                self.apply_at_leisure(&record, now_ms);
                if let Record::Arrived { item, .. } = record {
                    self.tell_arrived(*stream, item, now_ms);
                }
            }
            // It has come before, or too early.
            Decision::Duplicate(_) | Decision::Unchanged | Decision::Reject(_) => {}
        }
        // Told once it is durable, and told again where it came again.
        self.building.taken.insert(*stream, self.shards.watermark(*stream));
        Ok(Tried::Done)
    }

    fn tell_arrived(&mut self, stream: Stream, item: Arrival, now_ms: u64) {
        match item {
            Arrival::Entry { user, entry } => {
                let source = self.topology.hub_of_shard(stream.from);
                if source != self.hub && self.shards.is_full(user) {
                    self.streams.mail.push((source, HubMail::Full { user }));
                }
                self.deliver_live(user, &entry, now_ms);
            }
            Arrival::Receipt { user, mark, version } => self.tell_mark(user, mark, version, None),
            Arrival::Nothing => {}
        }
    }

    /// Items that arrived are durable: their sources may forget them.
    pub(super) fn tell_taken(&mut self, taken: BTreeMap<Stream, u64>, now_ms: u64) {
        for (stream, through) in taken {
            let source = self.topology.hub_of_shard(stream.from);
            if source == self.hub {
                self.take_note(stream, through, now_ms);
            } else {
                self.streams.mail.push((source, HubMail::Taken { stream, through }));
            }
        }
    }

    /// What was dropped for want of room is asked for again, now that nothing of its stream waits any more.
    pub(super) fn ask_for_dropped(&mut self) {
        if self.streams.dropped.is_empty() {
            return;
        }
        let parking = &self.parking;
        let ready: Vec<Stream> = self.streams.dropped.extract_if(.., |stream| !parking.holds_stream(*stream)).collect();
        for stream in ready {
            let after = self.shards.watermark(stream);
            let source = self.topology.hub_of_shard(stream.from);
            if source == self.hub {
                self.push_again(stream, after);
            } else {
                self.streams.mail.push((source, HubMail::Behind { stream, after }));
            }
        }
    }
}
