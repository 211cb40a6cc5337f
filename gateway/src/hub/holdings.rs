//! What a hub has in hand at a moment, counted, and what was decided there: for whoever checks that nothing is left when
//! everybody has gone, and that what is on the disk follows from what was decided.

use culver_storage::shard::{Journalled, Shards};

use super::Hub;

/// What a hub has in hand. When everybody has gone and nothing comes in any more, all of it becomes 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Sessions online.
    pub sessions: usize,
    /// Sessions with something on its way to the client.
    pub windows: usize,
    /// Sessions that there is more about than the directory holds.
    pub extras: usize,
    /// Sessions of which a send was refused and has not returned.
    pub rejected: usize,
    /// Buckets of devices and users that have sent or logged in lately; only where their rates are limited.
    pub rates: usize,
    /// Sessions whose deliveries found no room.
    pub hungry: usize,
    /// Commands and items that wait for a read, or behind another.
    pub parked: usize,
    /// Of them, SENDs and RPCs.
    pub parked_sends: usize,
    /// Of them, items of streams.
    pub parked_arrivals: usize,
    /// Things that are being read because something parked waits for them.
    pub loads: usize,
    /// RPCs that wait for a page of conversations.
    pub asking: usize,
    /// Reads that are wanted, and those under way.
    pub reads: usize,
    /// Effects that wait for a batch, or to be taken.
    pub effects: usize,
    /// Mail that is to be posted.
    pub mail: usize,
    /// Streams of which something was dropped and must be asked for.
    pub dropped: usize,
    /// Items of streams that are sealed and not taken.
    pub untaken: u64,
    /// Floors that are being folded.
    pub folds: usize,
}

impl Hub {
    /// The state that it writes.
    #[must_use]
    pub fn shards(&self) -> &Shards {
        &self.shards
    }

    /// Has what is decided journalled from now on.
    ///
    /// # Panics
    /// If anything was decided already.
    pub fn keep_journal(&mut self) {
        self.shards.keep_journal();
    }

    /// What was decided since it was last taken.
    pub fn take_journal(&mut self) -> Vec<Journalled> {
        self.shards.take_journal()
    }

    /// What it has in hand.
    #[must_use]
    pub fn holdings(&self) -> Holdings {
        let under_way = self.under_way.as_ref().map_or(0, |(_, consequences)| consequences.effects.len());
        Holdings {
            sessions: self.directory.len(),
            windows: self.windows.in_use(),
            extras: self.extras.len(),
            rejected: self.rejected.len(),
            rates: self.rates.len() + self.logins.len(),
            hungry: self.hungry.len(),
            parked: self.parking.len(),
            parked_sends: self.parking.sends(),
            parked_arrivals: self.parking.arrivals(),
            loads: self.loads.len(),
            asking: self.asking.len(),
            reads: self.reads.len() + self.reads_outstanding,
            effects: self.building.effects.len() + under_way + self.released.len(),
            mail: self.streams.mail_len(),
            dropped: self.streams.dropped_len(),
            untaken: self.untaken(),
            folds: self.upkeep.folds(),
        }
    }
}
