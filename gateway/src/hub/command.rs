//! What a reactor asks of a hub.

use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId, InboxSeq, Incarnation, UserId};
use culver_storage::command::Send;
pub use culver_storage::command::{Fingerprint, Proof};

/// One session, for ever: no two sessions of a process share an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The reactor that owns the connection.
    pub reactor: u16,
    /// The connection's slot there.
    pub slot: u32,
    /// Which of the connections that had this slot.
    pub generation: u32,
    /// Which of the sessions of all reactors: a later one has a greater number, until they begin anew.
    pub epoch: u32,
}

impl Address {
    /// Whether this session began after the other. (Numbers that begin anew are taken for greater.)
    #[must_use]
    pub fn is_newer_than(&self, other: Self) -> bool {
        (1..=u32::MAX / 2).contains(&self.epoch.wrapping_sub(other.epoch))
    }
}

/// Whose device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// The user.
    pub user: UserId,
    /// The user's device.
    pub device: DeviceId,
}

/// How much may be on its way to a client beyond what it has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// In entries.
    pub entries: u16,
    /// In bytes: payloads plus `ENTRY_OVERHEAD` each.
    pub bytes: u32,
}

/// A command. Those that say so are answered by exactly one reply.
#[derive(Clone, Debug)]
pub enum Command {
    /// A session begins: it replaces the device's older one, and delivery starts, if the device may: what it has proved
    /// is believed, but whether it is registered only the hub knows. Answered by `LoggedIn` or `Refused`.
    Login {
        /// The session.
        session: Address,
        /// Whose it is.
        device: Device,
        /// What the client has persisted, by its own account.
        cursor: InboxSeq,
        /// The data it knows; 0: none.
        incarnation: Incarnation,
        /// Its window.
        credit: Credit,
        /// It comes for the backlog beside the device's live session, and replaces only older ones of its kind.
        fetch: bool,
        /// The highest version of receipts it has persisted; 0: none.
        receipts: u64,
        /// The key that it has shown.
        fingerprint: Option<Fingerprint>,
        /// How it has proved who it is.
        proof: Proof,
    },
    /// A message. Answered by `Accepted` or `Rejected`.
    Send {
        /// The session.
        session: Address,
        /// The message.
        send: Send,
    },
    /// Persisted by the client up to here. Not answered.
    Ack {
        /// The session.
        session: Address,
        /// Whose it is.
        device: Device,
        /// Up to here.
        through: InboxSeq,
        /// The window beyond it.
        credit: Credit,
    },
    /// The reactor dropped deliveries; go on behind `sent` from the log. Not answered.
    Resume {
        /// The session.
        session: Address,
        /// Whose it is.
        device: Device,
        /// The last entry that went to the client.
        sent: InboxSeq,
    },
    /// A question, or a wish that is none of the above. Answered by `Answer`.
    Rpc {
        /// The session.
        session: Address,
        /// Whose it is.
        device: Device,
        /// The client's number for it.
        id: u64,
        /// What it asks.
        request: Request,
    },
    /// The session is over. Answered by `Closed`, after which the slot may be used again.
    Close {
        /// The session.
        session: Address,
        /// Whose it was.
        device: Device,
    },
}

/// What a session asks of its user's hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The user's conversations, most recent first.
    Conversations {
        /// At most so many.
        limit: u16,
        /// Where the page before said that this one begins; empty: at the most recent.
        page: Vec<u8>,
    },
    /// The user has read a conversation up to here.
    MarkRead {
        /// Which.
        conversation: ConversationId,
        /// Up to here.
        seq: ConversationSeq,
    },
    /// The user's devices.
    Devices,
    /// A device of the user's is to be forgotten, and its sessions to end.
    RemoveDevice {
        /// Which.
        device: DeviceId,
    },
    /// A device of the user's is to have a name.
    NameDevice {
        /// Which.
        device: DeviceId,
        /// The name; empty: none.
        name: String,
    },
    /// Whether others are told what the user has read; who does not tell is not told.
    SetReadReceipts {
        /// Whether they are.
        on: bool,
    },
}

impl Command {
    /// The session it comes from.
    #[must_use]
    pub fn session(&self) -> Address {
        match self {
            Self::Login { session, .. }
            | Self::Send { session, .. }
            | Self::Ack { session, .. }
            | Self::Resume { session, .. }
            | Self::Rpc { session, .. }
            | Self::Close { session, .. } => *session,
        }
    }

    /// The device it comes from.
    #[must_use]
    pub fn device(&self) -> Device {
        match self {
            Self::Send { send, .. } => Device { user: send.sender, device: send.device },
            Self::Login { device, .. }
            | Self::Ack { device, .. }
            | Self::Resume { device, .. }
            | Self::Rpc { device, .. }
            | Self::Close { device, .. } => *device,
        }
    }
}
