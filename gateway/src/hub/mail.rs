//! What hubs say to each other: the outbox streams between their shards.

use culver_protocol::id::UserId;
use culver_storage::record::{Outgoing, Stream};

/// Mail from one hub to another.
#[derive(Clone, Debug)]
pub enum HubMail {
    /// To the hub of the stream's destination: the next item. May be lost, for the log drives it again.
    Push {
        /// The item, with its stream and number.
        outgoing: Outgoing,
    },
    /// To the hub of the stream's source: everything up to `through` is durable here. Must not be lost.
    Taken {
        /// The stream.
        stream: Stream,
        /// Up to here.
        through: u64,
    },
    /// To the hub of the stream's source: what follows `after` was not taken; send it again. Must not be lost.
    Behind {
        /// The stream.
        stream: Stream,
        /// The last that was taken in.
        after: u64,
    },
    /// To the hubs of sources: this inbox is full. May be lost.
    Full {
        /// Whose.
        user: UserId,
    },
}

impl HubMail {
    /// Whether it must be kept until there is room for it.
    #[must_use]
    pub fn must_arrive(&self) -> bool {
        matches!(self, Self::Taken { .. } | Self::Behind { .. })
    }
}
