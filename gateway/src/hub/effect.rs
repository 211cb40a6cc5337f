//! What a hub tells a reactor, and only once it is durable.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, InboxSeq};
use culver_protocol::message::Accepted;
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
        /// The device's cursor.
        cursor: InboxSeq,
        /// What the client believed its cursor to be means nothing here.
        reset: bool,
    },
    /// Reply: the message is durable.
    Accepted(Accepted),
    /// Reply: the message was not accepted.
    Rejected {
        /// Which.
        client_message_id: ClientMessageId,
        /// Why.
        code: ErrorCode,
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
        /// The inbox seq before the first.
        previous: InboxSeq,
        /// The entries, in order.
        entries: Vec<InboxEntry>,
    },
    /// A newer session of the same device took over.
    Replaced,
}

impl EffectKind {
    /// Whether it answers a command, and so has a place reserved.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        match self {
            Self::LoggedIn { .. } | Self::Accepted(_) | Self::Rejected { .. } | Self::Closed => true,
            Self::Deliver { .. } | Self::DeliverPage { .. } | Self::Replaced => false,
        }
    }
}
