//! What a user sees of conversations: what waits for a device, and the list of all.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::ControlFlow;

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::limits::{CONVERSATIONS_PAGE_MAX, SYNC_CONVERSATIONS_MAX};
use hashbrown::HashMap;

use super::inbox::Inbox;
use super::load::{get, read_conversation, settled};
use super::{ConversationView, Engines};
use crate::engine::{Family, Tier};
use crate::error::EngineError;
use crate::key::{self, TalkKind};
use crate::record::InboxEntry;
use crate::value::{ConversationRow, DecodeError, ListRow, MarkRow};

/// The first byte of a page token.
const TOKEN_VERSION: u8 = 1;
/// Version, message id, conversation.
const TOKEN_LEN: usize = 1 + 8 + 16;

/// Where a conversation stands in a list: the most recent is the greatest.
type Recency = (MessageId, ConversationId);

/// What waits for a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Entries that wait.
    pub entries: u64,
    /// The last row looked at; what was asked as `after`: there is nothing.
    pub through: InboxSeq,
    /// Conversations with waiting entries, most recent first, at most `SYNC_CONVERSATIONS_MAX`.
    pub conversations: Vec<ConversationView>,
}

/// Conversations, most recent first, and where the next page begins (empty: there is none).
pub type ListPage = (Vec<ConversationView>, Vec<u8>);

/// What an inbox holds of one conversation.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    waiting: u64,
    last: InboxSeq,
    message_id: MessageId,
}

/// Reads what waits for a device, as [`super::Read::Sync`] says: one pass over the inbox. What the device sent itself
/// does not wait for it, but is shown where it is the last of a conversation.
///
/// # Errors
/// The engine failed, or a row cannot be read.
pub fn read_sync(engines: &Engines, user: UserId, device: DeviceId, after: InboxSeq) -> Result<Synced, EngineError> {
    #[derive(Default)]
    struct Reading {
        entries: u64,
        through: InboxSeq,
        talks: HashMap<ConversationId, Held>,
    }
    let inbox = Inbox::of(engines, user);
    let Reading { entries, through, talks } = inbox.scan_kept(after, |reading: &mut Reading, entry| {
        let waits = u64::from(entry.sender != user || entry.sender_device != device);
        let held = reading.talks.entry(entry.conversation).or_default();
        held.waiting += waits;
        (held.last, held.message_id) = (entry.inbox_seq, entry.message_id);
        reading.entries += waits;
        reading.through = entry.inbox_seq;
        ControlFlow::Continue(())
    })?;
    let mut recent = Recent::new(SYNC_CONVERSATIONS_MAX);
    for (conversation, held) in talks.iter().filter(|(_, held)| held.waiting > 0) {
        recent.offer((held.message_id, *conversation), held.last);
    }
    let (recent, _) = recent.done();
    let view = |(at, last): &(Recency, InboxSeq)| {
        let held = talks.get(&at.1).copied().unwrap_or_default();
        view(engines, inbox, user, at.1, held.waiting, *last)
    };
    let conversations = recent.iter().map(view).collect::<Result<_, _>>()?;
    Ok(Synced { entries, through: through.max(after), conversations })
}

/// Reads a page of the conversation list, as [`super::Read::Conversations`] says. A conversation in which something
/// arrives meanwhile moves to the front of the list, before the pages still to come: it comes twice in no case.
///
/// # Errors
/// The engine failed, or a row cannot be read.
pub fn read_conversations(
    engines: &Engines,
    user: UserId,
    limit: u16,
    page: &[u8],
) -> Result<Result<ListPage, ErrorCode>, EngineError> {
    let before = match page {
        [] => None,
        token => match decode_token(user, token) {
            Some(recency) => Some(recency),
            None => return Ok(Err(ErrorCode::RequestInvalid)),
        },
    };
    let limit = match usize::from(limit) {
        0 => CONVERSATIONS_PAGE_MAX,
        limit => limit.min(CONVERSATIONS_PAGE_MAX),
    };
    let inbox = Inbox::of(engines, user);
    let held = inbox.scan_kept(InboxSeq(0), |held: &mut HashMap<ConversationId, (MessageId, InboxSeq)>, entry| {
        held.insert(entry.conversation, (entry.message_id, entry.inbox_seq));
        ControlFlow::Continue(())
    })?;
    let mut recent = Recent::new(limit);
    let mut offer = |recency: Recency, last: InboxSeq| {
        if before.is_none_or(|before| recency < before) {
            recent.offer(recency, last);
        }
    };
    for (conversation, (message_id, last)) in &held {
        offer((*message_id, *conversation), *last);
    }
    scan_lists(engines, user, |conversation, row| {
        if !held.contains_key(&conversation) {
            offer((row.message_id, conversation), InboxSeq(0));
        }
    })?;
    let (recent, more) = recent.done();
    let next = match recent.last() {
        Some((recency, _)) if more => encode_token(*recency),
        _ => Vec::new(),
    };
    let views = recent.iter().map(|(at, last)| view(engines, inbox, user, at.1, 0, *last));
    Ok(Ok((views.collect::<Result<_, _>>()?, next)))
}

/// How a conversation looks to a user. `last` is the place of its last entry in the inbox; 0: only its row in the list
/// is left.
fn view(
    engines: &Engines,
    inbox: Inbox<'_>,
    user: UserId,
    conversation: ConversationId,
    waiting: u64,
    last: InboxSeq,
) -> Result<ConversationView, EngineError> {
    let (_, home) = engines.of_conversation(conversation);
    let row = settled(read_conversation(home, engines.shard_count(), conversation, Tier::Disk)?).unwrap_or_default();
    let (shard, engine) = engines.of_user(user);
    let key_of = |kind| key::talk(shard, user, conversation, kind);
    let read = get(engine, Family::Member, &key_of(TalkKind::Read), Tier::Disk, MarkRow::decode).map(settled)?;
    let read = read.unwrap_or_default().seq;
    let mut entry = if last == InboxSeq(0) { None } else { inbox.preview(last)? };
    if entry.is_none() {
        // What was in the inbox a moment ago may be folded by now.
        let list = get(engine, Family::Member, &key_of(TalkKind::List), Tier::Disk, ListRow::decode).map(settled)?;
        entry = list.map(|row| listed(conversation, row));
    }
    let seen = read.max(last_by(&row, conversation, user));
    Ok(ConversationView {
        conversation,
        last_seq: row.last_seq,
        unread: row.last_seq.0.saturating_sub(seen.0),
        waiting,
        read,
        last: entry,
    })
}

/// The last place in a conversation that a user took himself.
fn last_by(row: &ConversationRow, conversation: ConversationId, user: UserId) -> ConversationSeq {
    match conversation.direct_users() {
        Some((lesser, _)) if lesser == user => row.last_by_lesser,
        _ => row.last_by_greater,
    }
}

fn listed(conversation: ConversationId, row: ListRow) -> InboxEntry {
    InboxEntry {
        inbox_seq: InboxSeq(0),
        conversation,
        conversation_seq: row.seq,
        message_id: row.message_id,
        server_time_ms: row.message_id.time_ms(),
        sender: row.sender,
        sender_device: row.device,
        payload: row.preview,
    }
}

/// Shows the rows of the list that a user's floor left behind.
fn scan_lists(
    engines: &Engines,
    user: UserId,
    mut visit: impl FnMut(ConversationId, &ListRow),
) -> Result<(), EngineError> {
    scan_talks(engines, user, |conversation, kind, value| {
        if kind == TalkKind::List {
            visit(conversation, &ListRow::decode(value)?);
        }
        Ok(())
    })
}

/// Shows all talk rows of a user.
pub(super) fn scan_talks(
    engines: &Engines,
    user: UserId,
    mut visit: impl FnMut(ConversationId, TalkKind, &[u8]) -> Result<(), DecodeError>,
) -> Result<(), EngineError> {
    let (shard, engine) = engines.of_user(user);
    let (from, to) = key::talks_range(shard, user);
    let mut failure = None;
    engine.scan(Family::Member, &from, &to, Tier::Disk, &mut |key, value| {
        let read = key::decode_talk(key).ok_or(DecodeError::Length);
        match read.and_then(|(_, _, conversation, kind)| visit(conversation, kind, value)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(source) => {
                failure = Some(EngineError::Row { family: Family::Member, key: key.to_vec(), source });
                ControlFlow::Break(())
            }
        }
    })?;
    failure.map_or(Ok(()), Err)
}

/// The most recent conversations of however many are offered.
struct Recent {
    limit: usize,
    /// The least first; one more than asked for, which tells whether there are more.
    best: BinaryHeap<Reverse<(Recency, InboxSeq)>>,
}

impl Recent {
    fn new(limit: usize) -> Self {
        Self { limit, best: BinaryHeap::with_capacity(limit + 2) }
    }

    fn offer(&mut self, recency: Recency, last: InboxSeq) {
        self.best.push(Reverse((recency, last)));
        if self.best.len() > self.limit + 1 {
            self.best.pop();
        }
    }

    /// The most recent first, and whether there are more.
    fn done(mut self) -> (Vec<(Recency, InboxSeq)>, bool) {
        let more = self.best.len() > self.limit;
        if more {
            self.best.pop();
        }
        (self.best.into_sorted_vec().into_iter().map(|Reverse(found)| found).collect(), more)
    }
}

fn encode_token((message_id, conversation): Recency) -> Vec<u8> {
    let mut token = Vec::with_capacity(TOKEN_LEN);
    token.push(TOKEN_VERSION);
    token.extend_from_slice(&message_id.0.to_be_bytes());
    token.extend_from_slice(&conversation.0);
    token
}

fn decode_token(user: UserId, token: &[u8]) -> Option<Recency> {
    let (&version, rest) = token.split_first()?;
    let (message_id, rest) = key::split_u64(rest)?;
    let conversation = ConversationId::try_from(rest).ok()?;
    let is_ours = version == TOKEN_VERSION && conversation.direct_peer(user).is_some();
    is_ours.then_some((MessageId(message_id), conversation))
}
