//! The identities of DESIGN: every one a type of its own, every one with a fixed byte form.

use std::fmt;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id! {
    /// A user. Every number is valid; one never seen behaves as offline.
    UserId(u64)
}
number_id! {
    /// One of a user's devices.
    DeviceId(u16)
}
number_id! {
    /// The place of an entry in its conversation: dense, from 1.
    ConversationSeq(u64)
}
number_id! {
    /// The place of an entry in a user's inbox: dense, from 1.
    InboxSeq(u64)
}
number_id! {
    /// A data directory's identity: a restored backup has another.
    Incarnation(u64)
}

/// A message's id, ordered by time: 42 bits of milliseconds since 1970, 10 bits of shard, 12 bits of counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u64);

impl MessageId {
    /// Bits of the counter within one millisecond of one shard.
    pub const COUNTER_BITS: u32 = 12;
    /// Bits of the shard number.
    pub const SHARD_BITS: u32 = 10;

    /// Composes an id. `shard` and `counter` must fit their bits, `time_ms` must fit in 42 bits.
    ///
    /// # Panics
    /// If a part does not fit: that is a bug of the caller.
    #[must_use]
    pub fn new(time_ms: u64, shard: u16, counter: u16) -> Self {
        assert!(time_ms < 1 << (64 - Self::COUNTER_BITS - Self::SHARD_BITS));
        assert!(u32::from(shard) < 1 << Self::SHARD_BITS);
        assert!(u32::from(counter) < 1 << Self::COUNTER_BITS);
        Self(
            time_ms << (Self::COUNTER_BITS + Self::SHARD_BITS)
                | u64::from(shard) << Self::COUNTER_BITS
                | u64::from(counter),
        )
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn time_ms(self) -> u64 {
        self.0 >> (Self::COUNTER_BITS + Self::SHARD_BITS)
    }
}

/// A client's own 16-byte name for a message: the same id is the same message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientMessageId(pub [u8; 16]);

/// A conversation: a direct one is its two users, lesser first; of any other the first half is the greater.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConversationId(pub [u8; 16]);

impl ConversationId {
    /// The direct conversation of two users (who may be the same: notes to oneself).
    #[must_use]
    pub fn direct(a: UserId, b: UserId) -> Self {
        let joined = (u128::from(a.0.min(b.0)) << 64) | u128::from(a.0.max(b.0));
        Self(joined.to_be_bytes())
    }

    /// The two users of a direct conversation, lesser first; `None` for any other kind.
    #[must_use]
    pub fn direct_users(self) -> Option<(UserId, UserId)> {
        let joined = u128::from_be_bytes(self.0);
        let first = u64::try_from(joined >> 64).expect("a u128 shifted by 64 fits a u64");
        let second = u64::try_from(joined & u128::from(u64::MAX)).expect("masked to 64 bits");
        (first <= second).then_some((UserId(first), UserId(second)))
    }

    /// The other user of a direct conversation, or `None` if `user` is no party to it.
    #[must_use]
    pub fn direct_peer(self, user: UserId) -> Option<UserId> {
        match self.direct_users()? {
            (a, b) if a == user => Some(b),
            (a, b) if b == user => Some(a),
            _ => None,
        }
    }
}

macro_rules! sixteen_bytes {
    ($name:ident) => {
        impl TryFrom<&[u8]> for $name {
            type Error = std::array::TryFromSliceError;
            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                Ok(Self(bytes.try_into()?))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}
sixteen_bytes!(ClientMessageId);
sixteen_bytes!(ConversationId);
