//! Reads: what is wanted of the readers, in order, and how much of it is under way.

use culver_storage::reader::Read;

use super::Hub;
use super::directory::Flag;

impl Hub {
    /// Something is to be read. At most two reads a session and its RPCs, one a stream, one a thing that parked commands
    /// wait for, and those of the upkeep; of sessions that are gone there are at most as many again.
    pub(super) fn want(&mut self, read: Read) {
        if self.reads.len() >= self.reads_looked_at {
            let reads = std::mem::take(&mut self.reads);
            self.reads = reads.into_iter().filter(|read| self.is_wanted(read)).collect();
            self.reads_looked_at = self.bounds.reads_outstanding.max(2 * self.reads.len());
        }
        self.reads.push_back(read);
    }

    /// Whether whom it was for is still there, and still waits for it.
    fn is_wanted(&mut self, read: &Read) -> bool {
        match read {
            Read::Inbox { tag, .. } | Read::Sync { tag, .. } => {
                let (number, index) = split_tag(*tag);
                self.directory.get(index).is_some_and(|online| online.is(Flag::Reading) && online.read == number)
            }
            Read::Receipts { tag, .. } => {
                let (number, index) = split_tag(*tag);
                self.untold(index).is_some_and(|untold| untold.reading == number)
            }
            _ => true,
        }
    }

    /// The next read to be made, as long as not too many are under way.
    pub fn next_read(&mut self) -> Option<Read> {
        if self.reads_outstanding >= self.bounds.reads_outstanding {
            return None;
        }
        loop {
            let read = self.reads.pop_front()?;
            if self.is_wanted(&read) {
                self.reads_outstanding += 1;
                return Some(read);
            }
        }
    }

    /// Reads are numbered, for a session that comes to be at the same index is not to take another's for its own.
    pub(super) fn number_read(&mut self) -> u32 {
        self.read_number = self.read_number.wrapping_add(1).max(1);
        self.read_number
    }
}

/// What comes back with a read for a session.
pub(super) fn tag_of(read: u32, index: u32) -> u64 {
    u64::from(read) << 32 | u64::from(index)
}

/// The number of the read and the index of the session.
pub(super) fn split_tag(tag: u64) -> (u32, u32) {
    let half = |half: u64| u32::try_from(half & u64::from(u32::MAX)).expect("masked to 32 bits");
    (half(tag >> 32), half(tag))
}
