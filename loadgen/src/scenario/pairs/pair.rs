//! A pair under way: its conversation, its devices, and what each of them has stored.

use std::collections::VecDeque;

use culver_protocol::client::ClientConfig;
use culver_protocol::id::{InboxSeq, Incarnation};

use crate::links::LinkIndex;
use crate::plan::PairPlan;
use crate::verify::FlowCheck;

/// One pair before the run.
pub(crate) struct PairStart {
    pub(crate) plan: PairPlan,
    /// The client of each device, as [`PairPlan::device_at`] counts them.
    pub(crate) devices: Vec<ClientConfig>,
    /// The recipient marks as read.
    pub(crate) reads: bool,
}

pub(super) struct Pair {
    pub(super) plan: PairPlan,
    pub(super) check: FlowCheck,
    /// Messages that are due but found no room under way: when they should have been sent.
    pub(super) overdue: VecDeque<u64>,
    /// The link of its first device; those of the others follow.
    pub(super) first_link: usize,
    pub(super) devices: Vec<Device>,
    pub(super) reads: bool,
    /// The last attempt to mark as read was refused: none before this time.
    pub(super) next_read_us: u64,
    /// Persisted by a device of the recipient's, not yet told to the device that sends; by conversation seq.
    pub(super) untold: VecDeque<Untold>,
}

/// A measured message whose receipt is awaited.
#[derive(Clone, Copy)]
pub(super) struct Untold {
    pub(super) seq: u64,
    pub(super) persisted_us: u64,
    pub(super) slot: u8,
}

impl Pair {
    pub(super) fn link(&self, seat: u8) -> LinkIndex {
        LinkIndex(self.first_link + usize::from(seat))
    }

    pub(super) fn device(&mut self, seat: u8) -> &mut Device {
        self.devices.get_mut(usize::from(seat)).expect("links and devices are made together")
    }

    pub(super) fn is_recipient(&self, seat: u8) -> bool {
        seat >= self.plan.sender_devices
    }
}

/// One device of a pair.
pub(super) struct Device {
    /// Its first login.
    pub(super) config: ClientConfig,
    pub(super) store: Store,
    /// Delivered, not yet persisted: inbox seq and conversation seq.
    pub(super) unpersisted: Option<(InboxSeq, u64)>,
    /// The receipt version told and not yet persisted.
    pub(super) unsaved: Option<u64>,
    /// The server knows this device.
    pub(super) is_ready: bool,
    /// The request under way.
    pub(super) call: Option<Call>,
    pub(super) is_away: bool,
}

impl Device {
    pub(super) fn new(config: ClientConfig) -> Self {
        Self {
            config,
            store: Store::default(),
            unpersisted: None,
            unsaved: None,
            is_ready: false,
            call: None,
            is_away: false,
        }
    }

    /// How a client begins that knows only what is stored; `number` makes its jitter its own.
    pub(super) fn config_from_store(&self, number: u64) -> ClientConfig {
        ClientConfig {
            cursor: self.store.inbox_seq,
            incarnation: self.store.incarnation,
            receipts: self.store.receipts,
            seed: self.config.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15),
            ..self.config.clone()
        }
    }
}

/// What a device's application has on its disk; fetch logins share it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Store {
    pub(super) inbox_seq: InboxSeq,
    /// Conversation seq of the last entry of the pair's conversation.
    pub(super) seq: u64,
    pub(super) incarnation: Incarnation,
    /// Receipt version.
    pub(super) receipts: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self { inbox_seq: InboxSeq(0), seq: 0, incarnation: Incarnation(0), receipts: 0 }
    }
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) id: u64,
    pub(super) asked: Asked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The user's devices: is this one known?
    Devices,
    /// To mark as read up to here.
    Read(u64),
}

/// Whose a link is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    Device {
        pair: usize,
        seat: u8,
    },
    /// A place for fetch logins.
    Fetch {
        slot: usize,
    },
}
