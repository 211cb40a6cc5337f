//! What a hub tells a reactor, and only once it is durable.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationSeq, DeviceId, InboxSeq};
use culver_protocol::message::{Accepted, MarkView};
use culver_storage::reader::ConversationView;
use culver_storage::record::InboxEntry;

use super::command::Address;

/// An effect, for one session.
#[derive(Clone, Debug)]
pub struct Effect {
    /// The session.
    pub session: Address,
    /// What happens there.
    pub kind: EffectKind,
}

/// What happens at a session.
#[derive(Clone, Debug)]
pub enum EffectKind {
    /// Reply: the session is current; delivery goes on behind `cursor`.
    LoggedIn {
        /// Where the session starts: what the client has beyond this comes all the same, for its receipts' sake.
        cursor: InboxSeq,
        /// What the client believed its cursor to be means nothing here.
        reset: bool,
        /// What follows the client's cursor is no longer kept: it goes on at `cursor` + 1.
        gap: bool,
        /// Whether the user has other devices.
        siblings: bool,
    },
    /// Reply to a login: the session ends with this error.
    Refused {
        /// Why.
        code: ErrorCode,
        /// How long to wait before the next login; 0: as the client likes.
        retry_after_ms: u32,
    },
    /// Reply: the message is durable.
    Accepted {
        /// What the sender is told.
        accepted: Accepted,
        /// The sender's own copy is the next of the session's deliveries, and nothing is written of it: as `Skipped`
        /// says, but joined on to the answer, for which there is room.
        skips: bool,
    },
    /// Reply: the message was not accepted.
    Rejected {
        /// Which.
        client_message_id: ClientMessageId,
        /// Why.
        code: ErrorCode,
        /// How long to wait before it is sent again; 0: as the client likes.
        retry_after_ms: u32,
    },
    /// Reply: what became of an RPC.
    Answer {
        /// The client's number for it.
        id: u64,
        /// What was found, or why nothing was.
        result: Result<Answer, ErrorCode>,
    },
    /// Reply: the hub has forgotten the session.
    Closed,
    /// Delivery of one entry just accepted.
    Deliver {
        /// The session's index in the hub's directory.
        online: u32,
        /// How often its deliveries had been taken back by then.
        set_backs: u16,
        /// The inbox seq before it.
        previous: InboxSeq,
        /// The entry.
        entry: InboxEntry,
    },
    /// Delivery of entries read from the log.
    DeliverPage {
        /// The session's index in the hub's directory.
        online: u32,
        /// How often its deliveries had been taken back by then.
        set_backs: u16,
        /// The inbox seq before the first, and before what was left out in front of it.
        previous: InboxSeq,
        /// The entries, in order; what the device sent itself is left out, and where that is at the end, `Skipped`
        /// follows.
        entries: Vec<InboxEntry>,
    },
    /// Delivery of nothing: what comes next the device sent itself. Joins on as `Deliver` does; no byte of it is written,
    /// so that unsent bytes do not matter.
    Skipped {
        /// The session's index in the hub's directory.
        online: u32,
        /// How often its deliveries had been taken back by then.
        set_backs: u16,
        /// The inbox seq before what is skipped.
        previous: InboxSeq,
        /// Up to here.
        through: InboxSeq,
    },
    /// What came next is no longer kept: the session goes on at `start`. Joins on as `Deliver` does, and like it is
    /// dropped where it does not or bytes are unsent; the session has acknowledged what precedes `start`.
    Gap {
        /// The session's index in the hub's directory.
        online: u32,
        /// How often its deliveries had been taken back by then.
        set_backs: u16,
        /// The inbox seq before, which the session was given last.
        previous: InboxSeq,
        /// The first seq that is kept.
        start: InboxSeq,
    },
    /// A backlog begins. Written whether or not bytes are unsent.
    SyncStart {
        /// The session's index in the hub's directory.
        online: u32,
        /// Entries of it.
        entries: u64,
        /// The last of it.
        through: InboxSeq,
        /// The most recent conversations, most recent first.
        conversations: Vec<ConversationView>,
    },
    /// The backlog is through. Written if the session was sent everything up to `through`, even while bytes are unsent;
    /// else dropped, for deliveries before it were, and it will come again with them.
    SyncDone {
        /// The session's index in the hub's directory.
        online: u32,
        /// The last of it.
        through: InboxSeq,
    },
    /// What became of what the user sent. Written even while bytes are unsent.
    Receipt {
        /// The session's index in the hub's directory.
        online: u32,
        /// How often its receipts had been taken back by then.
        turn: u8,
        /// The session was told everything up to this version.
        after: u64,
        /// Who has persisted these marks and all before needs nothing up to here.
        version: u64,
        /// The marks.
        marks: Vec<MarkView>,
    },
    /// Whether the user has other devices, from now on.
    Siblings(bool),
    /// A newer session of the same device took over.
    Replaced,
    /// The device was removed: the session is over, and the hub has forgotten it.
    Removed,
}

/// What an RPC found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Conversations, most recent first.
    Conversations {
        /// The conversations.
        items: Vec<ConversationView>,
        /// Where the next page begins; empty: there is none.
        next: Vec<u8>,
    },
    /// The user has read up to here.
    MarkedRead {
        /// As it was asked.
        seq: ConversationSeq,
    },
    /// The user's devices, by ascending number.
    Devices(Vec<DeviceInfo>),
    /// Whether others are told what the user has read.
    ReadReceiptsSet {
        /// Whether they are.
        on: bool,
    },
    /// The device is forgotten.
    DeviceRemoved,
    /// The device has the name.
    DeviceNamed,
}

/// One of a user's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The device.
    pub device: DeviceId,
    /// The day it was last seen, in milliseconds since 1970.
    pub last_seen_ms: u64,
    /// Whether it has a session.
    pub online: bool,
    /// Entries it has not acknowledged.
    pub waiting: u64,
    /// As the user named it; empty: not at all.
    pub name: String,
    /// Whether it has a key.
    pub registered: bool,
}

impl EffectKind {
    /// Whether it answers a command, and so has a place reserved.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        match self {
            Self::LoggedIn { .. }
            | Self::Refused { .. }
            | Self::Accepted { .. }
            | Self::Rejected { .. }
            | Self::Answer { .. }
            | Self::Closed => true,
            Self::Deliver { .. }
            | Self::DeliverPage { .. }
            | Self::Skipped { .. }
            | Self::Gap { .. }
            | Self::SyncStart { .. }
            | Self::SyncDone { .. }
            | Self::Receipt { .. }
            | Self::Siblings(_)
            | Self::Replaced
            | Self::Removed => false,
        }
    }

    /// Whether nobody waits for it: the reactor hears of it when something else wakes it, within a second. A login's
    /// answer, where there is nothing to say to the client: what comes to the session next comes behind it.
    #[must_use]
    pub fn can_wait(&self) -> bool {
        matches!(self, Self::LoggedIn { reset: false, gap: false, .. })
    }

    /// Whether it must not be lost: what finds no room is posted again later.
    #[must_use]
    pub fn is_notice(&self) -> bool {
        matches!(self, Self::Siblings(_) | Self::Replaced | Self::Removed)
    }
}
