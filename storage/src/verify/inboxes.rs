//! Users and their inboxes: dense above the floor, no device below it or beyond the head.

use culver_protocol::id::{ConversationId, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::limits::DEVICES_MAX;
use culver_protocol::message::EntryView;

use super::Check;
use super::talks::{Held, Talk};
use crate::engine::Family;
use crate::error::EngineError;
use crate::key::{self, ShardId};
use crate::shard::HEAD_HINT_LAG_MAX;
use crate::value::{self, UserRow};

/// What is kept of a user.
#[derive(Debug)]
pub(super) struct User {
    pub(super) floor: InboxSeq,
    /// The head in its row; the true one once the inboxes have been looked at.
    pub(super) head: InboxSeq,
    pub(super) receipts_head: u64,
    waiting_bytes: u64,
    /// Its inbox has been looked at.
    has_ended: bool,
    cursors: Box<[(DeviceId, InboxSeq)]>,
    pub(super) had: InboxSeq,
    /// Its row says that these devices have names, which were not found yet.
    pub(super) unnamed: Vec<DeviceId>,
}

/// The inbox that is being looked at.
struct Reading {
    user: UserId,
    /// Its user's row, or defaults if there is none.
    floor: InboxSeq,
    hint: InboxSeq,
    last: InboxSeq,
    /// What waits up to the hint.
    bytes: u64,
}

impl Check<'_> {
    pub(super) fn users(&mut self) -> Result<(), EngineError> {
        self.every_row(Family::User, |check, key, value| {
            check.report.users += 1;
            let Some((shard, user)) = key::decode_user(key) else {
                return check.report.found("a key of `user` has a wrong length");
            };
            if shard != ShardId::of_user(user, check.shard_count()) {
                check
                    .report
                    .found(format_args!("user {user}: its row is in shard {}, where it does not belong", shard.0));
            }
            match UserRow::decode(value) {
                Ok(row) => check.user(user, &row),
                Err(error) => check.report.found(format_args!("user {user}: its row cannot be read: {error}")),
            }
        })
    }

    fn user(&mut self, user: UserId, row: &UserRow) {
        if row.devices.len() > DEVICES_MAX {
            self.report.found(format_args!("user {user}: {} devices, {DEVICES_MAX} are allowed", row.devices.len()));
        }
        if row.head < row.floor {
            self.report.found(format_args!("user {user}: the floor is {}, beyond the head {}", row.floor, row.head));
        }
        for device in row.devices.iter().filter(|device| device.cursor < row.floor) {
            let (device, cursor) = (device.device, device.cursor);
            self.report.found(format_args!(
                "user {user}: the cursor of device {device} is {cursor}, below the floor {}",
                row.floor
            ));
        }
        if row.tokens_from_s == 0 && row.had > InboxSeq(0) {
            self.report.found(format_args!("user {user}: a device was removed, and its tokens still register others"));
        }
        for device in row.devices.iter().filter(|device| device.cursor < device.lost_through) {
            self.report.found(format_args!(
                "user {user}: device {} has lost what precedes {}, beyond its cursor {}",
                device.device, device.lost_through, device.cursor
            ));
        }
        let known = User {
            floor: row.floor,
            head: row.head,
            receipts_head: row.receipts_head,
            waiting_bytes: row.waiting_bytes,
            has_ended: false,
            cursors: row.devices.iter().map(|device| (device.device, device.cursor)).collect(),
            had: row.had,
            unnamed: row.devices.iter().filter(|device| device.is_named).map(|device| device.device).collect(),
        };
        self.users.insert(user, known);
    }

    pub(super) fn inboxes(&mut self) -> Result<(), EngineError> {
        let mut reading: Option<Reading> = None;
        self.every_row(Family::Inbox, |check, key, value| {
            check.report.messages += 1;
            let Some((shard, user, seq)) = key::decode_inbox(key) else {
                return check.report.found("a key of `inbox` has a wrong length");
            };
            if shard != ShardId::of_user(user, check.shard_count()) {
                check
                    .report
                    .found(format_args!("user {user}: an entry is in shard {}, where it does not belong", shard.0));
            }
            if reading.as_ref().is_none_or(|reading| reading.user != user) {
                check.end_inbox(reading.take());
            }
            let reading = reading.get_or_insert_with(|| check.begin_inbox(user));
            match value::decode_inbox(seq, value) {
                Ok(entry) => check.inbox_row(reading, &entry),
                Err(error) => check.report.found(format_args!("user {user}: entry {seq} cannot be read: {error}")),
            }
            check.place_in_inbox(reading, seq);
        })?;
        self.end_inbox(reading);
        let without = self.users.iter().filter(|(_, known)| !known.has_ended);
        let mut without: Vec<UserId> = without.map(|(user, _)| *user).collect();
        without.sort_unstable();
        for user in without {
            let reading = self.begin_inbox(user);
            self.end_inbox(Some(reading));
        }
        Ok(())
    }

    fn begin_inbox(&self, user: UserId) -> Reading {
        let (floor, hint) = self.users.get(&user).map_or_else(Default::default, |known| (known.floor, known.head));
        Reading { user, floor, hint, last: floor, bytes: 0 }
    }

    fn place_in_inbox(&mut self, reading: &mut Reading, seq: InboxSeq) {
        if seq <= reading.floor {
            // No device needs it; a merge may drop it or not.
            return;
        }
        if reading.last.0.checked_add(1) != Some(seq.0) {
            self.report.found(format_args!("user {}: after entry {} comes {seq}", reading.user, reading.last));
        }
        reading.last = seq;
    }

    fn inbox_row(&mut self, reading: &mut Reading, entry: &EntryView<'_>) {
        let (user, seq) = (reading.user, entry.inbox_seq);
        self.entry(user, entry, format_args!("entry {seq}"));
        if seq <= reading.floor {
            return;
        }
        if seq <= reading.hint {
            reading.bytes += value::waiting_bytes(entry.payload.len());
        }
        self.hold(user, entry, seq.0);
    }

    fn end_inbox(&mut self, ended: Option<Reading>) {
        let Some(Reading { user, hint, last: head, bytes, .. }) = ended else { return };
        let Some(known) = self.users.get_mut(&user) else {
            return self.report.found(format_args!("user {user}: entries up to {head}, and no row"));
        };
        known.head = head;
        known.has_ended = true;
        if hint > head || head.0 - hint.0 >= HEAD_HINT_LAG_MAX {
            self.report.found(format_args!("user {user}: the head is {head}, and its row says {hint}"));
        }
        // Less is possible where an earlier version, which did not count, wrote the row.
        if known.waiting_bytes > bytes {
            let said = known.waiting_bytes;
            self.report.found(format_args!(
                "user {user}: its row says that {said} bytes wait up to entry {hint}, and {bytes} do"
            ));
        }
        if known.had > head {
            self.report.found(format_args!(
                "user {user}: a device that was removed had entry {}, beyond the head {head}",
                known.had
            ));
        }
        for (device, cursor) in known.cursors.iter().filter(|(_, cursor)| *cursor > head) {
            self.report
                .found(format_args!("user {user}: the cursor of device {device} is {cursor}, beyond the head {head}"));
        }
    }

    /// What holds of every entry, in an inbox or on its way there.
    pub(super) fn entry(&mut self, user: UserId, entry: &EntryView<'_>, what: std::fmt::Arguments<'_>) {
        let (conversation, sender) = (entry.conversation, entry.sender);
        let is_party = |user| conversation.direct_peer(user).is_some();
        if !is_party(user) || !is_party(sender) {
            self.report
                .found(format_args!("user {user}: {what} is of conversation {conversation} and sender {sender}"));
        }
        let home = ShardId::of_conversation(conversation, self.shard_count());
        let of = entry.message_id.0 >> MessageId::COUNTER_BITS & ((1 << MessageId::SHARD_BITS) - 1);
        if of != u64::from(home.0) {
            self.report
                .found(format_args!("user {user}: the id of {what} is of shard {of}, and its home is {}", home.0));
        }
        let reserved = self.reserved_until_ms.get(&home).copied().unwrap_or(0);
        if entry.server_time_ms >= reserved {
            let time = entry.server_time_ms;
            self.report
                .found(format_args!("user {user}: {what} is of {time} ms, and shard {} reserved {reserved}", home.0));
        }
    }

    /// Keeps an entry that waits, at `order` among those of its user.
    pub(super) fn hold(&mut self, user: UserId, entry: &EntryView<'_>, order: u64) {
        let held = Held {
            order,
            seq: entry.conversation_seq.0,
            id: entry.message_id,
            device: entry.sender_device,
            owner: side(entry.conversation, user),
            sender: side(entry.conversation, entry.sender),
        };
        self.talk(entry.conversation).entries.push(held);
    }

    pub(super) fn talk(&mut self, conversation: ConversationId) -> &mut Talk {
        self.talks.entry(conversation).or_default()
    }
}

/// Which of the two users of a conversation: 0 the lesser, 1 the greater, 2 none of them.
pub(super) fn side(conversation: ConversationId, user: UserId) -> u8 {
    match conversation.direct_users() {
        Some((lesser, _)) if lesser == user => 0,
        Some((_, greater)) if greater == user => 1,
        _ => 2,
    }
}
