//! The check of every invariant of the log, offline. Changes no row; memory: about 50 bytes for each message.

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;

use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::message::EntryView;

use crate::engine::{Engine, Family, Tier};
use crate::error::{EngineError, Error};
use crate::key::{self, DedupKey, MetaKind, ShardId};
#[cfg(feature = "rocks")]
use crate::layout::DataDir;
use crate::shard::HEAD_HINT_LAG_MAX;
use crate::value::{self, BatchRow, ConversationRow, DedupRow, DeviceRow, TimeRow, UserRow};

/// Findings that are listed.
pub const FINDINGS_MAX: usize = 1000;

/// Beyond every key.
const KEY_END: [u8; 64] = [0xff; 64];

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Users with rows.
    pub users: u64,
    /// Conversations.
    pub conversations: u64,
    /// Messages: inbox entries.
    pub messages: u64,
    /// Dedup rows.
    pub dedup_rows: u64,
    /// The number of the last batch.
    pub batch: u64,
    /// What is wrong, in words; at most [`FINDINGS_MAX`].
    pub findings: Vec<String>,
    /// Findings beyond those listed.
    pub findings_unlisted: u64,
}

impl Report {
    /// Whether every invariant holds.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    fn found(&mut self, finding: impl fmt::Display) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding.to_string());
        } else {
            self.findings_unlisted += 1;
        }
    }
}

/// Checks a data directory that no other process has open.
///
/// # Errors
/// A volume cannot be opened or read.
#[cfg(feature = "rocks")]
pub fn verify(data_dir: &DataDir) -> Result<Report, Error> {
    let path = data_dir.volume_path(0);
    let engine =
        crate::rocks::RocksEngine::open(&path, crate::rocks::RocksOptions::default(), std::sync::Arc::default())?;
    verify_engine(&engine, data_dir.shard_count())
}

/// Checks all rows of an engine.
///
/// # Errors
/// The engine cannot read.
pub fn verify_engine(engine: &dyn Engine, shard_count: u16) -> Result<Report, Error> {
    let mut check = Check { shard_count, report: Report::default(), ..Check::default() };
    check.meta(engine)?;
    check.users(engine)?;
    check.inboxes(engine)?;
    check.conversations(engine)?;
    check.dedup(engine)?;
    check.messages();
    Ok(check.report)
}

#[derive(Debug, Default)]
struct Check {
    shard_count: u16,
    report: Report,
    reserved_until_ms: HashMap<ShardId, u64>,
    users: HashMap<UserId, UserRow>,
    talks: HashMap<ConversationId, Vec<Message>>,
}

/// A message, from its inbox row.
#[derive(Clone, Copy, Debug)]
struct Message {
    seq: ConversationSeq,
    id: MessageId,
    sender: UserId,
    device: DeviceId,
    /// The place of the sender's own copy, as its dedup row should give it.
    own: InboxSeq,
    has_dedup: bool,
}

impl Check {
    fn meta(&mut self, engine: &dyn Engine) -> Result<(), EngineError> {
        let Self { report, reserved_until_ms, .. } = self;
        every_row(engine, Family::Meta, |key, value| {
            let Some((shard, kind, _)) = key::decode_meta(key) else {
                return report.found("a key of `meta` has a wrong length");
            };
            if kind == MetaKind::Batch as u8 {
                match BatchRow::decode(value) {
                    Ok(row) => report.batch = report.batch.max(row.number),
                    Err(error) => report.found(format_args!("the batch row of shard {}: {error}", shard.0)),
                }
            } else if kind == MetaKind::Time as u8 {
                match TimeRow::decode(value) {
                    Ok(row) => drop(reserved_until_ms.insert(shard, row.until_ms)),
                    Err(error) => report.found(format_args!("the time reservation of shard {}: {error}", shard.0)),
                }
            } else {
                report.found(format_args!("a row of `meta` has kind {kind}, which is not known here"));
            }
        })
    }

    fn users(&mut self, engine: &dyn Engine) -> Result<(), EngineError> {
        let Self { report, users, shard_count, .. } = self;
        every_row(engine, Family::User, |key, value| {
            report.users += 1;
            let Some((shard, user)) = key::decode_user(key) else {
                return report.found("a key of `user` has a wrong length");
            };
            if shard != ShardId::of_user(user, *shard_count) {
                report.found(format_args!("user {user}: its row is in shard {}, where it does not belong", shard.0));
            }
            let row = match UserRow::decode(value) {
                Ok(row) => row,
                Err(error) => return report.found(format_args!("user {user}: its row cannot be read: {error}")),
            };
            let least = row.devices.iter().map(|device| device.cursor).min().unwrap_or(row.floor);
            if row.floor > least {
                report.found(format_args!("user {user}: the floor is {}, and the least cursor {least}", row.floor));
            }
            users.insert(user, row);
        })
    }

    fn inboxes(&mut self, engine: &dyn Engine) -> Result<(), EngineError> {
        let mut last: Option<(UserId, InboxSeq)> = None;
        every_row(engine, Family::Inbox, |key, value| {
            self.report.messages += 1;
            let Some((shard, user, seq)) = key::decode_inbox(key) else {
                return self.report.found("a key of `inbox` has a wrong length");
            };
            if shard != ShardId::of_user(user, self.shard_count) {
                self.report
                    .found(format_args!("user {user}: an entry is in shard {}, where it does not belong", shard.0));
            }
            let before = match last.replace((user, seq)) {
                Some((of, before)) if of == user => before,
                ended => {
                    self.end_inbox(ended);
                    InboxSeq(0)
                }
            };
            if seq.0 != before.0 + 1 {
                self.report.found(format_args!("user {user}: after entry {before} comes {seq}"));
            }
            match value::decode_inbox(seq, value) {
                Ok(entry) => self.entry(user, &entry),
                Err(error) => self.report.found(format_args!("user {user}: entry {seq} cannot be read: {error}")),
            }
        })?;
        self.end_inbox(last);
        // Who is left has a row and no entries.
        for (user, row) in std::mem::take(&mut self.users) {
            self.head(user, &row, InboxSeq(0));
        }
        Ok(())
    }

    fn end_inbox(&mut self, ended: Option<(UserId, InboxSeq)>) {
        let Some((user, head)) = ended else { return };
        match self.users.remove(&user) {
            Some(row) => self.head(user, &row, head),
            None => self.report.found(format_args!("user {user}: entries up to {head}, and no row")),
        }
    }

    fn head(&mut self, user: UserId, row: &UserRow, head: InboxSeq) {
        if row.head > head || head.0 - row.head.0 >= HEAD_HINT_LAG_MAX {
            self.report.found(format_args!("user {user}: the head is {head}, and its row says {}", row.head));
        }
        for DeviceRow { device, cursor, .. } in row.devices.iter().filter(|device| device.cursor > head) {
            self.report
                .found(format_args!("user {user}: the cursor of device {device} is {cursor}, beyond the head {head}"));
        }
    }

    fn entry(&mut self, user: UserId, entry: &EntryView<'_>) {
        let (conversation, seq) = (entry.conversation, entry.inbox_seq);
        if conversation.direct_peer(entry.sender) != Some(user) {
            self.report.found(format_args!(
                "user {user}: entry {seq} is of conversation {conversation} and sender {}",
                entry.sender
            ));
        }
        let home = ShardId::of_conversation(conversation, self.shard_count);
        let of = entry.message_id.0 >> MessageId::COUNTER_BITS & ((1 << MessageId::SHARD_BITS) - 1);
        if of != u64::from(home.0) {
            self.report
                .found(format_args!("user {user}: the id of entry {seq} is of shard {of}, and its home is {}", home.0));
        }
        let reserved = self.reserved_until_ms.get(&home).copied().unwrap_or(0);
        if entry.server_time_ms >= reserved {
            let time = entry.server_time_ms;
            self.report.found(format_args!(
                "user {user}: entry {seq} is of {time} ms, and shard {} reserved {reserved}",
                home.0
            ));
        }
        self.talks.entry(conversation).or_default().push(Message {
            seq: entry.conversation_seq,
            id: entry.message_id,
            sender: entry.sender,
            device: entry.sender_device,
            own: if user == entry.sender { seq } else { InboxSeq(0) },
            has_dedup: false,
        });
    }

    fn conversations(&mut self, engine: &dyn Engine) -> Result<(), EngineError> {
        let mut rows = HashMap::new();
        let Self { report, shard_count, talks, .. } = self;
        every_row(engine, Family::Conversation, |key, value| {
            report.conversations += 1;
            let Some((shard, id)) = key::decode_conversation(key) else {
                return report.found("a key of `conversation` has a wrong length");
            };
            if shard != ShardId::of_conversation(id, *shard_count) {
                report.found(format_args!(
                    "conversation {id}: its row is in shard {}, where it does not belong",
                    shard.0
                ));
            }
            match ConversationRow::decode(value) {
                Ok(row) => drop(rows.insert(id, row)),
                Err(error) => report.found(format_args!("conversation {id}: its row cannot be read: {error}")),
            }
        })?;
        for (id, messages) in talks {
            messages.sort_by_key(|message| message.seq);
            let mut last = (ConversationSeq(0), MessageId(0));
            for message in messages {
                if message.seq.0 != last.0.0 + 1 {
                    report.found(format_args!("conversation {id}: after message {} comes {}", last.0, message.seq));
                }
                if message.id <= last.1 {
                    report.found(format_args!("conversation {id}: the id of message {} does not ascend", message.seq));
                }
                last = (message.seq, message.id);
            }
            let row = rows.remove(id).unwrap_or_default();
            if (row.last_seq, row.last_message) != last {
                report.found(format_args!(
                    "conversation {id}: its row says {}, and its last message is {}",
                    row.last_seq, last.0
                ));
            }
        }
        for (id, row) in rows {
            report.found(format_args!("conversation {id}: its row says {}, and it has no messages", row.last_seq));
        }
        Ok(())
    }

    fn dedup(&mut self, engine: &dyn Engine) -> Result<(), EngineError> {
        every_row(engine, Family::Dedup, |key, value| {
            self.report.dedup_rows += 1;
            let Some((shard, key)) = key::decode_dedup(key) else {
                return self.report.found("a key of `dedup` has a wrong length");
            };
            let (id, conversation) = (key.client_message_id, key.conversation);
            if shard != ShardId::of_conversation(conversation, self.shard_count) {
                self.report
                    .found(format_args!("conversation {conversation}: the dedup row of {id} is in shard {}", shard.0));
            }
            match DedupRow::decode(value) {
                Ok(row) => self.dedup_row(&key, &row),
                Err(error) => {
                    self.report.found(format_args!(
                        "conversation {conversation}: the dedup row of {id} cannot be read: {error}"
                    ));
                }
            }
        })
    }

    fn dedup_row(&mut self, key: &DedupKey, row: &DedupRow) {
        let messages = self.talks.get_mut(&key.conversation);
        let message = messages.and_then(|messages| {
            let index = messages.binary_search_by_key(&row.conversation_seq, |message| message.seq).ok()?;
            messages.get_mut(index)
        });
        let fits = message.is_some_and(|message| {
            let fits = (message.id, message.sender, message.device, message.own)
                == (row.message_id, key.sender, key.device, row.inbox_seq);
            fits && !std::mem::replace(&mut message.has_dedup, true)
        });
        if !fits {
            let (seq, id) = (row.conversation_seq, key.client_message_id);
            self.report.found(format_args!(
                "conversation {}: the dedup row of {id} names message {seq}, which does not fit it",
                key.conversation
            ));
        }
    }

    fn messages(&mut self) {
        for (id, messages) in &self.talks {
            for message in messages.iter().filter(|message| !message.has_dedup) {
                self.report.found(format_args!("conversation {id}: message {} has no dedup row", message.seq));
            }
        }
    }
}

fn every_row(engine: &dyn Engine, family: Family, mut visit: impl FnMut(&[u8], &[u8])) -> Result<(), EngineError> {
    engine.scan(family, &[], &KEY_END, Tier::Disk, &mut |key, value| {
        visit(key, value);
        ControlFlow::Continue(())
    })?;
    Ok(())
}
