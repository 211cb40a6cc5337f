//! What is in memory of a conversation, a user and a talk, and of batches that are not yet durable. Decides nothing.

use std::collections::BTreeMap;

use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};

use super::cache::Cache;
use crate::batch::{Batch, BatchNumber};
use crate::command::{Acked, DeviceView, UserView};
use crate::key::{DedupKey, ShardId};
use crate::planted::{self, Bug};
use crate::reader::TalkRows;
use crate::record::Stream;
use crate::value::{ConversationRow, DedupRow, DeviceRow, UserRow};

#[derive(Clone, Copy, Debug)]
pub(super) struct ShardClock {
    /// The last id given out; ids ascend.
    pub(super) last: MessageId,
    /// Ids stay below this time until the row is written anew.
    pub(super) reserved_until_ms: u64,
    /// The row is to be written with the batch under construction.
    pub(super) dirty: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Conversation {
    pub(super) row: ConversationRow,
    /// The last batch that changed it.
    pub(super) touched: BatchNumber,
}

impl From<ConversationRow> for Conversation {
    fn from(row: ConversationRow) -> Self {
        Self { row, touched: BatchNumber(0) }
    }
}

#[derive(Clone, Debug)]
pub(super) struct User {
    /// The row as it is to be; but its `head` is that of the batch under construction if that writes the row, or the
    /// last written, and its `receipts_head` runs ahead of the versions given out.
    pub(super) row: UserRow,
    pub(super) head: InboxSeq,
    /// The last version given out.
    pub(super) receipts_head: u64,
    /// What is to be told to others with the row, by ascending conversation.
    pub(super) ticks: Vec<Tick>,
    /// The last batch that changed it.
    pub(super) touched: BatchNumber,
    /// The head of the last durable batch that changed it.
    pub(super) durable_head: InboxSeq,
    /// The row is to be written with the batch under construction.
    pub(super) dirty: bool,
    /// A cursor has moved since the row was written: to be written soon, not necessarily with the next batch.
    pub(super) moved: bool,
    /// The ticks are to leave with the batch under construction.
    pub(super) tells: bool,
    /// Only logins have asked for it: it leaves memory when what they changed is durable.
    pub(super) is_passing: bool,
    /// It waits for its floor to be raised.
    pub(super) is_fold_queued: bool,
}

/// News for the peer of a conversation; 0: nothing new.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tick {
    pub(super) conversation: ConversationId,
    pub(super) delivered: ConversationSeq,
    pub(super) read: ConversationSeq,
    /// The peer has it already, with the batch under construction.
    pub(super) is_given: bool,
}

impl User {
    /// As it was read, with its true head.
    pub(super) fn from_row(mut row: UserRow, head: InboxSeq, today: u32) -> Self {
        // Rows of version 1 do not know the day: it counts from now.
        row.devices.iter_mut().filter(|device| device.seen_day == 0).for_each(|device| device.seen_day = today);
        Self {
            receipts_head: row.receipts_head,
            row,
            head,
            ticks: Vec::new(),
            touched: BatchNumber(0),
            durable_head: head,
            dirty: false,
            moved: false,
            tells: false,
            is_passing: true,
            is_fold_queued: false,
        }
    }

    pub(super) fn device(&self, device: DeviceId) -> Option<&DeviceRow> {
        self.row.devices.iter().find(|row| row.device == device)
    }

    /// The least of the cursors; without devices, the floor.
    pub(super) fn least(&self) -> InboxSeq {
        self.least_without(&[])
    }

    /// What follows this, no device has had: the greatest of the cursors, of devices that were removed too. It never
    /// falls.
    pub(super) fn greatest(&self) -> InboxSeq {
        let greatest = self.row.devices.iter().map(|row| row.cursor).max();
        greatest.unwrap_or(self.row.floor).max(self.row.had)
    }

    /// Where a device starts that is not linked yet: the first has what is kept, others have their siblings' past.
    pub(super) fn start(&self) -> InboxSeq {
        if self.row.devices.is_empty() { self.row.floor } else { self.head }
    }

    pub(super) fn has_others(&self, device: DeviceId) -> bool {
        self.row.devices.iter().any(|row| row.device != device)
    }

    pub(super) fn view(&self, device: DeviceId) -> UserView {
        let linked = self.device(device);
        UserView {
            head: self.head,
            floor: self.row.floor,
            cursor: linked.map_or_else(|| self.start(), |row| row.cursor),
            linked: linked.is_some(),
            siblings: self.has_others(device),
            lost_through: linked.map_or(InboxSeq(0), |row| row.lost_through),
            receipts_head: self.receipts_head,
        }
    }

    pub(super) fn devices(&self) -> Vec<DeviceView> {
        let view = |row: &DeviceRow| DeviceView {
            device: row.device,
            cursor: row.cursor,
            seen_day: row.seen_day,
            is_registered: row.fingerprint.is_some(),
            is_named: row.is_named,
        };
        self.row.devices.iter().map(view).collect()
    }

    /// Devices that were not seen for longer than `unlink_days`, but never all. One that has more than all that stay
    /// holds nothing back: it stays until they have caught up, for the greatest cursor never falls.
    pub(super) fn away(&self, today: u32, unlink_days: u32) -> Vec<DeviceId> {
        let [_, _, ..] = self.row.devices.as_slice() else { return Vec::new() };
        let last = self.row.devices.iter().max_by_key(|row| (row.seen_day, row.cursor)).map(|row| row.device);
        let is_away = |row: &&DeviceRow| row.seen_day.saturating_add(unlink_days) < today && Some(row.device) != last;
        let staying = self.row.devices.iter().filter(|row| !is_away(row));
        let greatest = staying.map(|row| row.cursor).max().unwrap_or_default();
        let away = self.row.devices.iter().filter(|row| is_away(row) && row.cursor <= greatest);
        away.map(|row| row.device).collect()
    }

    /// The least cursor of the devices that stay when these are unlinked.
    pub(super) fn least_without(&self, unlinked: &[DeviceId]) -> InboxSeq {
        let stay = self.row.devices.iter().filter(|row| !unlinked.contains(&row.device));
        let cursors = stay.map(|row| row.cursor);
        let is_wrong = planted::is(Bug::FloorAboveLaggingDevice);
        let least = if is_wrong { cursors.max() } else { cursors.min() };
        least.unwrap_or(self.row.floor)
    }

    /// Merges news for the peer of a conversation.
    pub(super) fn tick(&mut self, conversation: ConversationId, delivered: ConversationSeq, read: ConversationSeq) {
        match self.ticks.binary_search_by_key(&conversation, |tick| tick.conversation) {
            Ok(index) => {
                let tick = self.ticks.get_mut(index).expect("the search found this index");
                tick.delivered = tick.delivered.max(delivered);
                tick.read = tick.read.max(read);
                tick.is_given = false;
            }
            Err(index) => self.ticks.insert(index, Tick { conversation, delivered, read, is_given: false }),
        }
    }

    /// Whether the batch under construction writes the row with the cursors, and so takes along what is to be told. A
    /// cursor alone may wait for a later batch.
    pub(super) fn leaves(&self, with_cursors: bool) -> bool {
        !self.moved || self.dirty || self.tells || with_cursors
    }

    /// What is to be told of a conversation.
    pub(super) fn ticked(&self, conversation: ConversationId) -> ConversationSeq {
        let found = self.ticks.binary_search_by_key(&conversation, |tick| tick.conversation).ok();
        found.and_then(|index| self.ticks.get(index)).map_or(ConversationSeq(0), |tick| tick.delivered)
    }

    /// Gives out a version; the row's head goes `lead` ahead of it.
    pub(super) fn advance_receipts(&mut self, version: u64, lead: u64) {
        assert_eq!(version, self.receipts_head + 1, "versions are given out in order");
        self.receipts_head = version;
        if version > self.row.receipts_head {
            self.row.receipts_head = version + lead - 1;
            self.dirty = true;
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Talk {
    pub(super) rows: TalkRows,
    /// The last batch that changed it.
    pub(super) touched: BatchNumber,
    /// Rows to be written with the batch under construction.
    pub(super) dirty: Dirty,
}

/// Which rows of a talk are to be written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Dirty {
    pub(super) read: bool,
    pub(super) peer_delivered: bool,
    pub(super) peer_read: bool,
    pub(super) peer_expired: bool,
}

/// What is known of the newest id of a sender.
#[derive(Clone, Copy, Debug)]
pub(super) enum Newest {
    /// Nothing yet; so many messages were looked up instead.
    Unknown { lookups: u8 },
    /// None of the sender's accepted messages exceeds it, durable or not.
    Known(ClientMessageId),
}

/// A read that somebody waits for.
#[derive(Clone, Debug)]
pub(super) enum Awaited {
    /// Under way. Only a read that began at this sequence number or later counts.
    Since(u64),
    /// Done: whether the message was accepted before. (What else is read goes to its own cache.)
    Dedup(Option<DedupRow>),
    /// Done: the names of a user's devices, until they are looked at.
    Names(Names),
}

/// Names of devices.
pub(super) type Names = BTreeMap<DeviceId, String>;

/// The batch under construction.
#[derive(Debug)]
pub(super) struct Building {
    pub(super) batch: Batch,
    pub(super) messages: u64,
    /// Rows to write when it is sealed: however often they changed, once.
    pub(super) conversations: Vec<ConversationId>,
    /// Users it changed, whether or not their row is to be written.
    pub(super) users: Vec<UserId>,
    pub(super) talks: Vec<(UserId, ConversationId)>,
    pub(super) dedup: Vec<DedupKey>,
    pub(super) clocks: Vec<ShardId>,
    /// Streams whose watermark it moved.
    pub(super) watermarks: Vec<Stream>,
    /// The heads of all streams are to be written.
    pub(super) with_heads: bool,
}

impl Building {
    pub(super) fn new(number: BatchNumber, capacity: usize) -> Self {
        Self {
            batch: Batch::with_capacity(number, capacity),
            messages: 0,
            conversations: Vec::new(),
            users: Vec::new(),
            talks: Vec::new(),
            dedup: Vec::new(),
            clocks: Vec::new(),
            watermarks: Vec::new(),
            with_heads: false,
        }
    }

    /// A user that is changed with this batch.
    #[inline]
    pub(super) fn touch<'a>(&mut self, users: &'a mut Cache<UserId, User>, id: UserId) -> &'a mut User {
        let user = users.get_mut(&id).expect("`decide` loaded the user");
        if user.touched != self.batch.number() {
            user.touched = self.batch.number();
            self.users.push(id);
        }
        user
    }
}

/// A batch handed to the writer.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) number: BatchNumber,
    /// The users it changed, and their heads.
    pub(super) heads: Vec<(UserId, InboxSeq)>,
    pub(super) dedup: Vec<DedupKey>,
    /// The `Delivered` rows in it.
    pub(super) delivered: Vec<(UserId, Acked)>,
    /// The items in it: streams and numbers.
    pub(super) sent: Vec<(Stream, u64)>,
}

/// An id that no accepted message of a sender exceeds, where none is known.
pub(super) const NO_MESSAGE: ClientMessageId = ClientMessageId([0; 16]);
