//! What one process of a device has seen, and so what it may see next.

use std::collections::{BTreeMap, VecDeque};

use culver_protocol::id::{ConversationId, DeviceId};
use culver_protocol::message::MarkView;

use super::{Bits, Oracle, Who};
use crate::device::DeviceKey;

/// A request under way.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    /// The conversations, from a page on.
    List,
    Devices {
        order: u64,
    },
    /// `acknowledged`: what it marks came on this connection, and so was acknowledged before.
    Mark {
        conversation: ConversationId,
        seq: u64,
        order: u64,
        acknowledged: bool,
    },
    Receipts {
        on: bool,
        order: u64,
    },
    /// `surely`: it was linked, and so often had been asked for that before.
    Removal {
        device: DeviceId,
        order: u64,
        surely: Option<u32>,
    },
    Name {
        device: DeviceId,
        len: usize,
        order: u64,
    },
}

impl Asked {
    /// Whether it may be granted though nobody hears of it, and is to be reckoned with.
    pub(super) fn outlives_its_connection(&self) -> bool {
        matches!(self, Self::Receipts { .. } | Self::Removal { .. })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Witness {
    pub(super) key: DeviceKey,
    pub(super) fetch: bool,
    /// Where its user and device are in the oracle.
    pub(super) at: (usize, usize),
    /// Its application told its client that everything up to here is persisted.
    pub(super) told: u64,
    /// Places handed to this life of the application.
    pub(super) seen: Bits,
    /// The last of them.
    pub(super) last: u64,
    /// The last of each conversation.
    pub(super) last_of: BTreeMap<ConversationId, u64>,
    /// The greatest marks told.
    pub(super) marks: BTreeMap<ConversationId, MarkView>,

    // Of the connection.
    pub(super) connected: bool,
    pub(super) began: u64,
    /// What its login claimed.
    pub(super) cursor: u64,
    /// Nothing of the inbox up to here is missing on this connection.
    pub(super) position: u64,
    /// The last entry that was handed on from it.
    pub(super) last_here: u64,
    pub(super) version: u64,
    pub(super) deliveries: u64,
    pub(super) credit: (u64, u64),
    /// Entries that came and are not acknowledged: place and weight.
    pub(super) window: VecDeque<(u64, u64)>,
    pub(super) window_bytes: u64,
    pub(super) sync: Option<u64>,
    pub(super) synced: bool,
    pub(super) calls: BTreeMap<u64, Asked>,
    pub(super) ticket_generation: u32,
    pub(super) server_generation: u32,
    /// When this connection was made the server had no other of this kind of the device's.
    pub(super) is_alone: bool,
    /// Somebody has changed what it carries.
    pub(super) is_attacked: bool,
    /// WELCOME has come.
    pub(super) is_greeted: bool,

    /// Wishes about receipts and devices whose answers were lost with their connection: it may be that they are still
    /// granted.
    pub(super) lost: Vec<Asked>,
    /// Which life of its device with a key it belongs to.
    pub(super) era: u32,
}

impl Witness {
    /// Whose it is.
    pub(crate) fn key(&self) -> DeviceKey {
        self.key
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected
    }

    /// A connection is there.
    pub(crate) fn connected_to(&mut self, is_alone: bool) {
        (self.is_alone, self.is_attacked, self.is_greeted) = (is_alone, false, false);
    }

    /// The server that the connection has come to is of another generation than when it was made.
    pub(crate) fn reach(&mut self, generations: (u32, u32)) {
        (self.ticket_generation, self.server_generation) = generations;
    }

    /// Somebody has changed what the connection carries.
    pub(crate) fn attacked(&mut self) {
        self.is_attacked = true;
    }

    /// The connection is gone. The client cancels its requests one by one.
    pub(crate) fn disconnected(&mut self) {
        self.connected = false;
        self.window.clear();
        self.window_bytes = 0;
    }

    /// Everything up to here counts in no window any more.
    pub(super) fn acknowledged(&mut self, through: u64) {
        while let Some((place, weight)) = self.window.front().copied()
            && place <= through
        {
            self.window.pop_front();
            self.window_bytes -= weight;
        }
    }

    /// In words.
    pub(super) fn name(&self) -> Who {
        Who { key: self.key, fetch: self.fetch }
    }
}

impl Oracle {
    /// A process begins. What it knows is what its device has persisted.
    pub(crate) fn launched(&mut self, key: DeviceKey, fetch: bool, before: Option<&Witness>) -> Witness {
        let at = self.device_index(key);
        let mut lost = Vec::new();
        let era = self.users[at.0].devices[at.1].standing.era();
        if let Some(before) = before {
            lost.clone_from(&before.lost);
            lost.extend(before.calls.values().filter(|asked| asked.outlives_its_connection()).cloned());
        }
        Witness {
            key,
            fetch,
            at,
            told: 0,
            seen: Bits::default(),
            last: 0,
            last_of: BTreeMap::new(),
            marks: before.map(|before| before.marks.clone()).unwrap_or_default(),
            connected: false,
            began: 0,
            cursor: 0,
            position: 0,
            last_here: 0,
            version: 0,
            deliveries: 0,
            credit: (u64::MAX, u64::MAX),
            window: VecDeque::new(),
            window_bytes: 0,
            sync: None,
            synced: false,
            calls: BTreeMap::new(),
            ticket_generation: 0,
            server_generation: 0,
            is_alone: false,
            is_attacked: false,
            is_greeted: false,
            lost,
            era,
        }
    }
}
