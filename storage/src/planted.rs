//! Known mistakes, planted where a programmer would make them, so that the checks can be checked: whatever claims to
//! find a kind of bug must find these. One at a time, and for one thread; without the feature `planted-bugs` there are
//! none, and no trace of them in what is built.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// Answers leave when their batch is written, not when it is synced.
    AnswerBeforeSync,
    /// A message sent again is answered at once, though the batch that accepted it is not durable.
    ResendAnsweredEarly,
    /// A cursor moves when entries are sent, not when the device says that it has them.
    CursorMovedWhenSent,
    /// What was accepted under an id is forgotten once its batch is durable.
    DedupForgotten,
    /// Two messages of a conversation get the same place: its row is written with its first batch only.
    SequenceReused,
    /// Two messages get the same id: a restart forgets which times were reserved.
    MessageIdReused,
    /// A delivery window takes one entry more than was agreed.
    WindowOffByOne,
    /// A device's newer connection does not end the rights of the older.
    TakeoverWithoutFence,
    /// An effect for a connection's slot reaches the slot's next user.
    EffectToNextUser,
    /// An item of a stream counts as taken as soon as it is on its way.
    OutboxDroppedEarly,
    /// An item of a stream that comes again is applied again.
    OutboxAppliedTwice,
    /// An entry goes straight into an inbox though earlier ones are still on their way there.
    OutboxBypassed,
    /// A receipt says delivered before a device has persisted the message.
    ReceiptForUnpersisted,
    /// A receipt that was not taken by another hub is not told again.
    ReceiptLostBetweenHubs,
    /// A floor rises above what the slowest device has.
    FloorAboveLaggingDevice,
    /// After a message was refused, later ones of its conversation are accepted.
    SendAfterRejected,
    /// A message overtakes an earlier one that waits for a read.
    ParkedOvertaken,
    /// A resume ticket of an older generation is believed.
    StaleTicketAccepted,
    /// A torn record at the end of a log stays there, and the log goes on behind it.
    TornTailAccepted,
    /// Damage in what had been synced is cut off as if it had not been.
    DamagedMiddleAccepted,
    /// An answer finds no room and is dropped.
    ReplyDropped,
    /// A connection that was put aside is never read again.
    PausedSocketForgotten,
    /// A sender's other devices get no copy.
    CopyForgotten,
    /// A device that missed entries is not told so.
    GapUntold,
    /// Messages are accepted though a disk has no room for them.
    SpaceForgotten,
    /// A backup copies one volume after the other, with batches between.
    BackupOneByOne,
    /// A login by key is let in whatever key its device is registered with.
    KeyNotCompared,
    /// A token is good whatever key its holder has.
    TokenKeyNotCompared,
    /// A session takes over when its login is read, not when its client has shown that it has the keys.
    ReadyNotAwaited,
    /// What a session says is passed on before its user's hub has seen whether it has the right key.
    CommandsBeforeKey,
    /// What should be fresh in each of a server's handshakes is the same in all.
    FreshSecretRepeated,
    /// The server goes on with its client's old key after the client has changed it.
    RekeyIgnored,
    /// A message that came too fast is refused, and the next one of its conversation is accepted before it returns.
    RateRefusalForgotten,
    /// A record of which the tag is wrong is read all the same.
    ForgedRecordRead,
    /// A device that was removed is let in by the key and the tickets that it had.
    RemovedTicketAccepted,
    /// A token from before a removal is as good as one from after it.
    RemovedTokenAccepted,
    /// A removal is not written.
    RemovalNotDurable,
    /// A device that is removed stays connected.
    RemovedStaysConnected,
    /// A name is not written.
    NameForgotten,
    /// What there is no room for of a slow client's bytes is dropped, and the client stays.
    UnsentDropped,
    /// A connection that is told to come later has used up some of the rate all the same.
    RefusedLoginTakesRate,
    /// Whoever is told to come later is told the same time.
    CalendarStandsStill,
    /// A login counts against its user whoever has the key.
    LoginChargedBeforeKey,
    /// A drain that was aborted goes on turning back who comes.
    AbortedDrainStays,
    /// Who was asked to go and stays is never ended.
    DrainNeverFinished,
    /// A client that wants to be silent for less is held to the interval of the settings.
    KeepAliveNotShortened,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 46] = [
        Self::AnswerBeforeSync,
        Self::ResendAnsweredEarly,
        Self::CursorMovedWhenSent,
        Self::DedupForgotten,
        Self::SequenceReused,
        Self::MessageIdReused,
        Self::WindowOffByOne,
        Self::TakeoverWithoutFence,
        Self::EffectToNextUser,
        Self::OutboxDroppedEarly,
        Self::OutboxAppliedTwice,
        Self::OutboxBypassed,
        Self::ReceiptForUnpersisted,
        Self::ReceiptLostBetweenHubs,
        Self::FloorAboveLaggingDevice,
        Self::SendAfterRejected,
        Self::ParkedOvertaken,
        Self::StaleTicketAccepted,
        Self::TornTailAccepted,
        Self::DamagedMiddleAccepted,
        Self::ReplyDropped,
        Self::PausedSocketForgotten,
        Self::CopyForgotten,
        Self::GapUntold,
        Self::SpaceForgotten,
        Self::BackupOneByOne,
        Self::KeyNotCompared,
        Self::TokenKeyNotCompared,
        Self::ReadyNotAwaited,
        Self::CommandsBeforeKey,
        Self::FreshSecretRepeated,
        Self::RekeyIgnored,
        Self::RateRefusalForgotten,
        Self::ForgedRecordRead,
        Self::RemovedTicketAccepted,
        Self::RemovedTokenAccepted,
        Self::RemovalNotDurable,
        Self::RemovedStaysConnected,
        Self::NameForgotten,
        Self::UnsentDropped,
        Self::RefusedLoginTakesRate,
        Self::CalendarStandsStill,
        Self::LoginChargedBeforeKey,
        Self::AbortedDrainStays,
        Self::DrainNeverFinished,
        Self::KeepAliveNotShortened,
    ];
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// From now on this thread makes this mistake, and no other.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// Whether this thread makes the mistake.
    #[inline(always)]
    #[must_use]
    pub fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(not(feature = "planted-bugs"))]
mod switch {
    use super::Bug;

    /// Does nothing: there are no mistakes to switch on.
    pub const fn plant(_bug: Option<Bug>) {}

    /// Never.
    #[inline(always)]
    #[must_use]
    pub const fn is(_bug: Bug) -> bool {
        false
    }
}

pub use switch::{is, plant};
