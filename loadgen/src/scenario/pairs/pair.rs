//! Pairs and users under way: their conversations, their devices, and what each device has stored.

use std::collections::VecDeque;

use culver_protocol::client::ClientConfig;
use culver_protocol::id::{InboxSeq, Incarnation};

use crate::links::LinkIndex;
use crate::plan::PairPlan;
use crate::verify::{FlowCheck, Place};

/// One pair before the run; users are named by their place among those of the worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct PairStart {
    pub(super) plan: PairPlan,
    pub(super) sender: usize,
    pub(super) recipient: usize,
    /// The recipient marks as read.
    pub(super) reads: bool,
    /// And neither of the two has turned read receipts off.
    pub(super) tells_reads: bool,
}

/// One user before the run.
pub(super) struct UserStart {
    /// The clients of its devices.
    pub(super) devices: Vec<ClientConfig>,
    /// Turns read receipts off before anything is sent.
    pub(super) hides_reads: bool,
}

pub(super) struct Pair {
    pub(super) start: PairStart,
    pub(super) check: FlowCheck,
    /// Messages that are due but found no room under way: when they should have been sent.
    pub(super) overdue: VecDeque<u64>,
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

/// A client: the lasting one of a device, or a fetch login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) user: usize,
    pub(super) device: u8,
    /// 0: the lasting client.
    pub(super) life: u8,
}

impl Pair {
    /// Where a client sits in this pair.
    pub(super) fn place(&self, who: Who) -> Place {
        let is_sender = who.user == self.start.sender;
        let before = if is_sender { 0 } else { self.start.plan.sender_devices };
        Place { seat: before + who.device, life: who.life }
    }
}

/// One user: sends in at most one pair, and receives in at most one.
pub(super) struct User {
    pub(super) sends: Option<usize>,
    pub(super) receives: Option<usize>,
    /// The link of the first device; those of the others follow.
    pub(super) first_link: usize,
    pub(super) devices: Vec<Device>,
    /// Read receipts are still to be turned off.
    pub(super) must_hide_reads: bool,
}

impl User {
    pub(super) fn link(&self, device: u8) -> LinkIndex {
        LinkIndex(self.first_link + usize::from(device))
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = usize> + use<> {
        [self.sends, self.receives].into_iter().flatten()
    }
}

/// One device of a user.
pub(super) struct Device {
    /// Its first login.
    pub(super) config: ClientConfig,
    pub(super) store: Store,
    /// What its lasting client was given.
    pub(super) given: Given,
    /// Something was given and is not persisted.
    pub(super) is_behind: bool,
    /// The receipt version told and not yet persisted.
    pub(super) unsaved: Option<u64>,
    /// The server knows this device.
    pub(super) is_ready: bool,
    /// The request under way.
    pub(super) call: Option<Call>,
    pub(super) is_away: bool,
    /// Its list of conversations has been looked at, at the end.
    pub(super) is_listed: bool,
}

impl Device {
    pub(super) fn new(config: ClientConfig) -> Self {
        Self {
            config,
            store: Store::default(),
            given: Given::default(),
            is_behind: false,
            unsaved: None,
            is_ready: false,
            call: None,
            is_away: false,
            is_listed: false,
        }
    }

    /// How a client begins that knows only what is stored; `number` makes its jitter its own.
    pub(super) fn config_from_store(&self, number: u64) -> ClientConfig {
        ClientConfig {
            cursor: InboxSeq(self.store.given.inbox_seq),
            incarnation: self.store.incarnation,
            receipts: self.store.receipts,
            seed: self.config.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15),
            ..self.config.clone()
        }
    }
}

/// How far entries have come, to a client or into a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) inbox_seq: u64,
    /// Conversation seq of the last copy of what another device of the user sent.
    pub(super) copied: u64,
    /// Conversation seq of the last message from the user's sender.
    pub(super) received: u64,
}

impl Given {
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            inbox_seq: self.inbox_seq.max(other.inbox_seq),
            copied: self.copied.max(other.copied),
            received: self.received.max(other.received),
        }
    }
}

/// What a device's application has on its disk; fetch logins share it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Store {
    pub(super) given: Given,
    pub(super) incarnation: Incarnation,
    /// Receipt version.
    pub(super) receipts: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self { given: Given::default(), incarnation: Incarnation(0), receipts: 0 }
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
    /// To turn read receipts off.
    HideReads,
    /// To mark as read.
    Read,
    /// The list of conversations.
    List,
}

/// Whose a link is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    Device(Who),
    /// A place for fetch logins.
    Fetch {
        slot: usize,
    },
}
