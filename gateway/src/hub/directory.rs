//! Who is online: the sessions of a hub's users, found by user through an index of slot numbers only.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;

use culver_protocol::id::{DeviceId, InboxSeq, UserId};
use culver_storage::planted::{self, Bug};
use hashbrown::HashTable;

use super::command::{Address, Device};
use crate::slab::Slab;

/// Index tables, so that growth comes in small steps instead of doubling one large table.
const TABLES: usize = 64;

/// Bytes of an entry, as docs/benchmarks/memory.md counts them.
const ONLINE_LEN: usize = 64;

/// Nothing is on its way to the session.
pub const NO_WINDOW: u32 = u32::MAX;

/// One session that is online.
#[derive(Debug)]
pub struct Online {
    user: UserId,
    device: DeviceId,
    reactor: u16,
    slot: u32,
    generation: u32,
    /// Never 0, so that the slab's empty slots need no room to say that they are.
    epoch: NonZeroU32,
    /// The client has persisted everything up to here.
    pub acked: InboxSeq,
    /// Everything up to here is on its way to the client. Invariant: never below `acked`.
    pub sent: InboxSeq,
    /// Window beyond `acked`, in bytes.
    pub credit_bytes: u32,
    /// Bytes of the window in use.
    pub used_bytes: u32,
    /// Index of the pooled list of sizes between `acked` and `sent`; [`NO_WINDOW`]: nothing is between.
    pub window: u32,
    /// Window beyond `acked`, in entries.
    pub credit_entries: u16,
    /// The number of the read of the log that is under way, or of the last.
    pub read: u32,
    /// How often deliveries were taken back: those from before are void.
    pub set_backs: u16,
    /// How often receipts were taken back: those from before are void.
    pub receipt_turn: u8,
    flags: u8,
}

/// Yes or no, of a session.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Flag {
    /// The log holds more than `sent`.
    Behind = 1,
    /// A read of the log is under way.
    Reading = 2,
    /// While it was, more became durable that it may not have seen.
    Missed = 4,
    /// It came for the backlog, beside the device's exclusive session.
    Fetch = 8,
    /// Nothing goes to it live: something else must go first.
    Held = 16,
    /// There is more about it in the hub's side table.
    Extra = 32,
    /// There are receipts that it was not told: none goes to it live.
    ReceiptsBehind = 64,
    /// It has stepped over what its device sent, and the device's cursor has not followed.
    Stepped = 128,
}

const _: () = assert!(size_of::<Option<Online>>() == ONLINE_LEN);

impl Online {
    /// The session's address.
    #[must_use]
    pub fn address(&self) -> Address {
        Address { reactor: self.reactor, slot: self.slot, generation: self.generation, epoch: self.epoch.get() }
    }

    /// Whose session it is.
    #[must_use]
    pub fn user(&self) -> UserId {
        self.user
    }

    /// From which of the user's devices it comes.
    #[must_use]
    pub fn device(&self) -> Device {
        Device { user: self.user, device: self.device }
    }

    /// Whether it is so.
    #[must_use]
    pub fn is(&self, flag: Flag) -> bool {
        self.flags & flag as u8 != 0
    }

    /// Sets whether it is so.
    pub fn set(&mut self, flag: Flag, on: bool) {
        if on {
            self.flags |= flag as u8;
        } else {
            self.flags &= !(flag as u8);
        }
    }

    fn is_of(&self, device: Device) -> bool {
        self.user == device.user && self.device == device.device
    }
}

/// The sessions that are online.
pub struct Directory {
    online: Slab<Online>,
    tables: Vec<HashTable<u32>>,
    hasher: RandomState,
}

impl Default for Directory {
    fn default() -> Self {
        let tables = (0..TABLES).map(|_| HashTable::new()).collect();
        Self { online: Slab::default(), tables, hasher: RandomState::new() }
    }
}

impl Directory {
    /// Sessions online.
    #[must_use]
    pub fn len(&self) -> usize {
        self.online.len()
    }

    /// Whether nobody is online.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.online.is_empty()
    }

    /// The exclusive session of a device.
    #[must_use]
    pub fn find(&self, device: Device) -> Option<u32> {
        self.find_where(device, |online| !online.is(Flag::Fetch))
    }

    /// The session of a device that has this address.
    #[must_use]
    pub fn current(&self, device: Device, session: Address) -> Option<u32> {
        self.find_where(device, |online| online.address() == session || planted::is(Bug::TakeoverWithoutFence))
    }

    fn find_where(&self, device: Device, is_wanted: impl Fn(&Online) -> bool) -> Option<u32> {
        let hash = self.hasher.hash_one(device.user);
        let same = |index: &u32| self.online.get(*index).is_some_and(|it| it.is_of(device) && is_wanted(it));
        self.table(hash).find(hash, same).copied()
    }

    /// All sessions of a user, in no order: who lets it reach anything outside sorts them first.
    pub fn of_user(&self, user: UserId) -> impl Iterator<Item = u32> + '_ {
        let hash = self.hasher.hash_one(user);
        let same = move |index: &&u32| self.online.get(**index).is_some_and(|online| online.user == user);
        self.table(hash).iter_hash(hash).filter(same).copied()
    }

    /// All sessions of a user, by ascending index.
    #[must_use]
    pub fn sorted_of_user(&self, user: UserId) -> Vec<u32> {
        let mut sessions: Vec<u32> = self.of_user(user).collect();
        sessions.sort_unstable();
        sessions
    }

    /// Adds a session. If it is exclusive the device has none: the caller has removed it.
    ///
    /// # Panics
    /// If it has one, or the session has no number.
    pub fn insert(&mut self, device: Device, session: Address, acked: InboxSeq, fetch: bool) -> u32 {
        assert!(fetch || self.find(device).is_none(), "one exclusive session a device");
        let hash = self.hasher.hash_one(device.user);
        let index = self.online.insert(Online {
            user: device.user,
            device: device.device,
            reactor: session.reactor,
            slot: session.slot,
            generation: session.generation,
            epoch: NonZeroU32::new(session.epoch).expect("sessions are numbered from 1"),
            acked,
            sent: acked,
            credit_bytes: 0,
            used_bytes: 0,
            window: NO_WINDOW,
            credit_entries: 0,
            read: 0,
            set_backs: 0,
            receipt_turn: 0,
            flags: if fetch { Flag::Fetch as u8 } else { 0 },
        });
        let (online, hasher) = (&self.online, &self.hasher);
        let hash_of = |index: &u32| hasher.hash_one(online.get(*index).expect("the index names what is there").user);
        let table = Self::table_index(hash);
        self.tables.get_mut(table).expect("masked to TABLES").insert_unique(hash, index, hash_of);
        index
    }

    /// Removes a session.
    pub fn remove(&mut self, index: u32) -> Option<Online> {
        let online = self.online.remove(index)?;
        let hash = self.hasher.hash_one(online.user);
        let table = self.tables.get_mut(Self::table_index(hash)).expect("masked to TABLES");
        let entry = table.find_entry(hash, |other| *other == index);
        entry.expect("what is in the slab is in the index").remove();
        if table.len() * 4 < table.capacity() {
            let (online, hasher) = (&self.online, &self.hasher);
            let len = table.len();
            table.shrink_to(len * 2, |index| {
                hasher.hash_one(online.get(*index).expect("the index names what is there").user)
            });
        }
        Some(online)
    }

    /// A session.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&Online> {
        self.online.get(index)
    }

    /// A session, to change it.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut Online> {
        self.online.get_mut(index)
    }

    fn table(&self, hash: u64) -> &HashTable<u32> {
        self.tables.get(Self::table_index(hash)).expect("masked to TABLES")
    }

    /// Takes bits that hashbrown itself uses neither for the bucket nor for its tags.
    fn table_index(hash: u64) -> usize {
        usize::try_from((hash >> 32) % TABLES as u64).expect("below TABLES")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(slot: u32) -> Address {
        Address { reactor: 0, slot, generation: slot, epoch: slot + 1 }
    }

    fn device(user: u64, device: u16) -> Device {
        Device { user: UserId(user), device: DeviceId(device) }
    }

    #[test]
    fn finds_devices_and_whole_users_through_growth_and_shrinkage() {
        let mut directory = Directory::default();
        let mut indexes = Vec::new();
        for user in 0..5000_u64 {
            for number in 1..=2_u16 {
                let slot = u32::try_from(user).expect("small") * 2 + u32::from(number);
                indexes.push((user, number, directory.insert(device(user, number), session(slot), InboxSeq(0), false)));
            }
        }
        for (user, number, index) in &indexes {
            assert_eq!(directory.find(device(*user, *number)), Some(*index));
            assert_eq!(directory.of_user(UserId(*user)).count(), 2);
        }
        for (user, number, index) in &indexes {
            assert!(directory.remove(*index).is_some());
            assert_eq!(directory.find(device(*user, *number)), None);
        }
        assert!(directory.is_empty());
        assert!(directory.tables.iter().all(|table| table.capacity() < 16), "memory is given back");
    }

    #[test]
    fn the_sessions_of_a_user_have_an_order() {
        let mut directory = Directory::default();
        for round in 0..8_u32 {
            for user in 0..500 {
                // Every other goes and comes, so that places in the tables are used again.
                if round % 2 == 1
                    && let Some(index) = directory.find(device(user, u16::try_from(round / 2).expect("small")))
                {
                    directory.remove(index);
                }
                let number = u16::try_from(round).expect("small");
                directory.insert(device(user, number), session(round), InboxSeq(0), false);
            }
        }
        let found: Vec<Vec<u32>> = (0..500).map(|user| directory.sorted_of_user(UserId(user))).collect();
        assert!(found.iter().all(|sessions| sessions.len() >= 4 && sessions.is_sorted()));
        let plain = |user| directory.of_user(UserId(user)).is_sorted();
        assert!(!(0..500).all(plain), "otherwise this says nothing");
    }

    #[test]
    fn a_superseded_address_is_not_current() {
        let mut directory = Directory::default();
        let index = directory.insert(device(1, 1), session(7), InboxSeq(3), false);
        assert_eq!(directory.current(device(1, 1), session(7)), Some(index));
        assert_eq!(directory.current(device(1, 1), Address { epoch: 9, ..session(7) }), None);
    }

    #[test]
    fn fetch_sessions_stand_beside_the_exclusive_one() {
        let mut directory = Directory::default();
        let fetch = directory.insert(device(1, 1), session(1), InboxSeq(3), true);
        assert_eq!(directory.find(device(1, 1)), None);
        let live = directory.insert(device(1, 1), session(2), InboxSeq(3), false);
        assert_eq!(directory.find(device(1, 1)), Some(live));
        assert_eq!(directory.current(device(1, 1), session(1)), Some(fetch));
        assert_eq!(directory.of_user(UserId(1)).count(), 2);
    }
}
