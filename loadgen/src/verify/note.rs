//! What happens in a run, as the checker is told it and the journal keeps it.

use crate::plan::MessageIndex;

/// A client of one device in a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// The device among those of the pair: the sender's first, and of these the one that sends is 0.
    pub(crate) seat: u8,
    /// Which of the device's clients: 0 is the one that stays, others are fetch logins.
    pub(crate) life: u8,
}

/// How many devices a pair has, and what must be true of it in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Devices of the sending user; the first of them sends.
    pub(crate) senders: u8,
    /// Devices of the receiving user.
    pub(crate) recipients: u8,
    /// Receipts are checked.
    pub(crate) receipts: bool,
    /// The recipient reads everything in the end.
    pub(crate) reads: bool,
    /// Neither of the two has turned read receipts off: the sender is told.
    pub(crate) tells_reads: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { senders: 1, recipients: 1, receipts: false, reads: false, tells_reads: true }
    }
}

impl Shape {
    /// Devices of both users.
    pub(crate) fn seats(self) -> u8 {
        self.senders + self.recipients
    }
}

/// Something that happened, in the order this side learned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// What the pair is like: comes first.
    Pair(Shape),
    /// Handed to the sending client.
    Sent { index: MessageIndex },
    /// The server said that it keeps the message.
    Acked { index: MessageIndex, seq: u64 },
    /// The server refused the message for good.
    Rejected { index: MessageIndex },
    /// A client begins that knows only what its device has persisted.
    Began { place: Place },
    /// A server has welcomed a client, which had claimed this receipt version.
    LoggedIn { place: Place, version: u64 },
    /// A client gave an entry to its application.
    Delivered { place: Place, index: MessageIndex, seq: u64 },
    /// The device has persisted everything up to this conversation seq: noted before the client may acknowledge.
    Persisted { place: Place, seq: u64 },
    /// The recipient is about to say that it has read up to here.
    ReadAsked { place: Place, seq: u64 },
    /// The server has marked as read up to here.
    ReadAnswered { place: Place, seq: u64 },
    /// A receipt: a device of the recipient's is said to have persisted up to here.
    ToldDelivered { place: Place, version: u64, seq: u64 },
    /// A receipt: the recipient is said to have read up to here.
    ToldRead { place: Place, version: u64, seq: u64 },
    /// A receipt: the user himself is said to have read up to here.
    ToldOwnRead { place: Place, version: u64, seq: u64 },
    /// A receipt: what lies up to here is said to have expired.
    ToldExpired { place: Place, version: u64, seq: u64 },
    /// In the end: what the list of conversations tells the device.
    Listed { place: Place, last_seq: u64, unread: u64 },
    /// The device has persisted every receipt that this client was told, up to this version.
    ReceiptsSaved { place: Place, version: u64 },
}
