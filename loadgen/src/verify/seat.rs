//! One device in a pair: what it has persisted, and what each of its clients was given and told.

use super::note::Place;

/// The highest marks known of a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) delivered: u64,
    pub(super) read: u64,
    pub(super) own_read: u64,
}

impl Marks {
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            delivered: self.delivered.max(other.delivered),
            read: self.read.max(other.read),
            own_read: self.own_read.max(other.own_read),
        }
    }
}

/// One client of a device. It dedups by itself, so nothing may come to it twice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Life {
    /// Conversation seq of the last entry given to it, or of the last that was persisted when it began.
    pub(super) seq_last: u64,
    /// One past the highest index given to it.
    pub(super) index_next: u64,
    /// The last receipt version told on this connection.
    pub(super) version: u64,
    pub(super) marks: Marks,
}

/// One device.
#[derive(Debug, Default)]
pub(super) struct Seat {
    /// Everything up to this conversation seq is persisted, whichever client brought it.
    pub(super) persisted: u64,
    /// What the persisted receipts say.
    pub(super) saved: Marks,
    lives: Vec<Life>,
}

/// What an entry is to the client that got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    InOrder,
    /// Later than the one that should have come.
    Beyond,
    /// Not later than one that has come.
    Behind,
}

impl Seat {
    /// A new client of this device: all it knows is what is persisted.
    pub(super) fn begin(&mut self, life: u8) {
        let fresh = Life { seq_last: self.persisted, marks: self.saved, ..Life::default() };
        *self.life(life) = fresh;
    }

    /// Takes an entry.
    pub(super) fn arrive(&mut self, life: u8, index: u64, seq: u64) -> Arrival {
        let persisted = self.persisted;
        let life = self.life(life);
        // What another client of the device has brought and persisted need not come to this one.
        let before = life.seq_last.max(persisted);
        let arrival = if seq <= life.seq_last || index < life.index_next {
            Arrival::Behind
        } else if before > 0 && seq > before + 1 {
            Arrival::Beyond
        } else {
            Arrival::InOrder
        };
        life.seq_last = life.seq_last.max(seq);
        life.index_next = life.index_next.max(index + 1);
        arrival
    }

    /// What this device knows, in its store and in its lasting client.
    pub(super) fn known(&self) -> Marks {
        self.lives.first().map_or(self.saved, |life| life.marks.max(self.saved))
    }

    /// What one client was told is persisted now.
    pub(super) fn save(&mut self, place: Place) {
        let marks = self.life(place.life).marks;
        self.saved = self.saved.max(marks);
    }

    pub(super) fn life(&mut self, life: u8) -> &mut Life {
        let at = usize::from(life);
        if self.lives.len() <= at {
            self.lives.resize(at + 1, Life::default());
        }
        self.lives.get_mut(at).expect("as long as that now")
    }
}
