//! What is left of a handshake: a key and a counter for each direction, 72 bytes. They seal and open records in place.

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::crypto::{KEY_LEN, Secret, Suite};
use crate::limits::{RECORDS_MAX, REKEY_RECORDS, TAG_LEN};

/// One direction's key, and how many records it has seen.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key {
    key: [u8; KEY_LEN],
    records: u32,
}

impl Key {
    /// A key that has seen nothing.
    #[must_use]
    pub fn new(key: &Secret) -> Self {
        Self { key: **key, records: 0 }
    }

    /// Records sealed or opened so far, over all keys of this direction.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Whether it has seen as many records as a connection may carry: what ends it can still be said.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.records >= RECORDS_MAX
    }

    /// Whether the next record should be the one that changes it.
    #[must_use]
    pub fn is_old(&self) -> bool {
        self.records != 0 && self.records.is_multiple_of(REKEY_RECORDS)
    }

    /// Seals `body` in place and returns the tag.
    ///
    /// # Panics
    /// If the counter is at its end: a connection ends long before.
    #[must_use]
    pub fn seal(&mut self, suite: Suite, body: &mut [u8]) -> [u8; TAG_LEN] {
        assert!(self.records < u32::MAX, "a connection ends before its counter does");
        let tag = suite.seal(&self.key, self.records.into(), &[], body);
        self.records += 1;
        tag
    }

    /// Opens `sealed`, which ends with its tag, in place. `None`: it is not the peer's next record, or the counter is at
    /// its end.
    #[must_use]
    pub fn open<'a>(&mut self, suite: Suite, sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        if self.records == u32::MAX {
            return None;
        }
        let opened = suite.open(&self.key, self.records.into(), &[], sealed)?;
        self.records += 1;
        Some(opened)
    }

    /// As if so many records had been: the other side's must be moved alike.
    #[cfg(test)]
    pub(crate) fn skip_to(&mut self, records: u32) {
        self.records = records;
    }

    /// From the next record on another key holds. The counter goes on.
    pub fn change(&mut self, suite: Suite) {
        self.key = *suite.next_key(&self.key);
    }
}

/// Both directions of one connection.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Keys {
    /// Seals what goes to the peer.
    pub sending: Key,
    /// Opens what comes.
    pub receiving: Key,
}

const _: () = assert!(size_of::<Keys>() == 72);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("records", &self.records).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("sending", &self.sending).field("receiving", &self.receiving).finish()
    }
}
