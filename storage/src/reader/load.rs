//! What decisions wait for: single rows, and a user's true head.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, UserId};

use crate::command::Load;
use crate::engine::{Engine, Family, Lookup, ScanEnd, Tier};
use crate::error::EngineError;
use crate::key::{self, DedupKey, SenderKey, ShardId, TalkKind};
use crate::shard::HEAD_HINT_LAG_MAX;
use crate::value::{self, ConversationRow, DecodeError, DedupRow, ExpiredRow, MarkRow, NameRow, SeqRow, UserRow};

/// The result of a [`Load`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What was on disk when the read began: it saw at least that.
    as_of: u64,
    row: LoadedRow,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LoadedRow {
    User(UserId, Option<(UserRow, InboxSeq)>),
    Conversation(ConversationId, Option<ConversationRow>),
    Dedup(DedupKey, Option<DedupRow>),
    Newest(SenderKey, Option<ClientMessageId>),
    Talk(UserId, ConversationId, TalkRows),
    Names(UserId, BTreeMap<DeviceId, String>),
}

/// The watermarks that a user has in one conversation; 0: none yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TalkRows {
    /// Persisted by a device of the user.
    pub(crate) delivered: ConversationSeq,
    /// Read by the user.
    pub(crate) read: MarkRow,
    /// Persisted by a device of the peer.
    pub(crate) peer_delivered: MarkRow,
    /// Read by the peer.
    pub(crate) peer_read: MarkRow,
    /// Expired before any device of the peer had it.
    pub(crate) peer_expired: ExpiredRow,
}

impl Loaded {
    /// Reads what a decision waits for, from the disk if need be.
    ///
    /// # Errors
    /// The engine failed, or a row cannot be read.
    pub fn read(engine: &dyn Engine, shard_count: u16, load: Load) -> Result<Self, EngineError> {
        let as_of = engine.sequence_synced();
        let row = match load {
            Load::User(user) => LoadedRow::User(user, settled(read_user(engine, shard_count, user, Tier::Disk)?)),
            Load::Conversation(id) => {
                LoadedRow::Conversation(id, settled(read_conversation(engine, shard_count, id, Tier::Disk)?))
            }
            Load::Dedup(key) => LoadedRow::Dedup(key, settled(read_dedup(engine, shard_count, &key, Tier::Disk)?)),
            Load::Newest(key) => LoadedRow::Newest(key, settled(read_newest(engine, shard_count, key, Tier::Disk)?)),
            Load::Talk(user, id) => LoadedRow::Talk(
                user,
                id,
                settled(read_talk(engine, shard_count, user, id, Tier::Disk)?).unwrap_or_default(),
            ),
            Load::Names(user) => {
                let names = settled(read_names(engine, shard_count, user, Tier::Disk)?);
                LoadedRow::Names(user, names.unwrap_or_default())
            }
        };
        Ok(Self { as_of, row })
    }

    /// What was asked.
    #[must_use]
    pub fn load(&self) -> Load {
        match &self.row {
            LoadedRow::User(user, _) => Load::User(*user),
            LoadedRow::Conversation(id, _) => Load::Conversation(*id),
            LoadedRow::Dedup(key, _) => Load::Dedup(*key),
            LoadedRow::Newest(key, _) => Load::Newest(*key),
            LoadedRow::Talk(user, id, _) => Load::Talk(*user, *id),
            LoadedRow::Names(user, _) => Load::Names(*user),
        }
    }

    pub(crate) fn as_of(&self) -> u64 {
        self.as_of
    }

    pub(crate) fn into_row(self) -> LoadedRow {
        self.row
    }
}

/// The greatest client message id that a sender's durable messages have.
pub(crate) fn read_newest(
    engine: &dyn Engine,
    shard_count: u16,
    of: SenderKey,
    tier: Tier,
) -> Result<Lookup<ClientMessageId>, EngineError> {
    let home = ShardId::of_conversation(of.conversation, shard_count);
    let (from, to) = key::dedup_range(home, of);
    Ok(match engine.last(Family::Dedup, &from, &to, tier)? {
        Lookup::Absent => Lookup::Absent,
        Lookup::Unknown => Lookup::Unknown,
        Lookup::Present(last) => {
            let Some((_, decoded)) = key::decode_dedup(&last) else {
                return Err(EngineError::Row { family: Family::Dedup, key: last, source: DecodeError::Length });
            };
            Lookup::Present(decoded.client_message_id)
        }
    })
}

pub(super) fn settled<T>(lookup: Lookup<T>) -> Option<T> {
    match lookup {
        Lookup::Absent => None,
        Lookup::Present(value) => Some(value),
        Lookup::Unknown => unreachable!("a lookup that may go to the disk always knows"),
    }
}

pub(crate) fn read_conversation(
    engine: &dyn Engine,
    shard_count: u16,
    id: ConversationId,
    tier: Tier,
) -> Result<Lookup<ConversationRow>, EngineError> {
    let key = key::conversation(ShardId::of_conversation(id, shard_count), id);
    get(engine, Family::Conversation, &key, tier, ConversationRow::decode)
}

pub(crate) fn read_dedup(
    engine: &dyn Engine,
    shard_count: u16,
    of: &DedupKey,
    tier: Tier,
) -> Result<Lookup<DedupRow>, EngineError> {
    let key = key::dedup(ShardId::of_conversation(of.conversation, shard_count), of);
    get(engine, Family::Dedup, &key, tier, DedupRow::decode)
}

/// A user's row and true head. The head in the row is a hint: the true one is less than [`HEAD_HINT_LAG_MAX`] beyond
/// it, and places are dense. `waiting_bytes` comes back with what lies between, the head in the row as it is.
pub(crate) fn read_user(
    engine: &dyn Engine,
    shard_count: u16,
    user: UserId,
    tier: Tier,
) -> Result<Lookup<(UserRow, InboxSeq)>, EngineError> {
    let shard = ShardId::of_user(user, shard_count);
    let mut row = match get(engine, Family::User, &key::user(shard, user), tier, UserRow::decode)? {
        Lookup::Present(row) => row,
        Lookup::Absent => return Ok(Lookup::Absent),
        Lookup::Unknown => return Ok(Lookup::Unknown),
    };
    let mut head = row.head;
    // Most heads are what their row says: that is settled without an iterator, and often by a filter alone.
    let next = key::inbox(shard, user, InboxSeq(head.0.saturating_add(1)));
    match engine.get(Family::Inbox, &next, tier)? {
        Lookup::Absent => return Ok(Lookup::Present((row, head))),
        Lookup::Unknown => return Ok(Lookup::Unknown),
        Lookup::Present(_) => {}
    }
    let end = key::inbox(shard, user, InboxSeq(head.0.saturating_add(HEAD_HINT_LAG_MAX)));
    let mut failure = None;
    let ended = engine.scan(Family::Inbox, &next, &end, tier, &mut |key, value| {
        let seq = key::decode_inbox(key).ok_or(DecodeError::Length).map(|(_, _, seq)| seq);
        match seq.and_then(|seq| value::decode_inbox(seq, value)) {
            Ok(entry) if entry.inbox_seq.0 == head.0 + 1 => {
                head = entry.inbox_seq;
                row.waiting_bytes += value::waiting_bytes(entry.payload.len());
                ControlFlow::Continue(())
            }
            Ok(_) => ControlFlow::Break(()),
            Err(source) => {
                failure = Some(EngineError::Row { family: Family::Inbox, key: key.to_vec(), source });
                ControlFlow::Break(())
            }
        }
    })?;
    match failure {
        Some(failure) => Err(failure),
        None if ended == ScanEnd::Unknown => Ok(Lookup::Unknown),
        None => Ok(Lookup::Present((row, head))),
    }
}

pub(super) fn get<T>(
    engine: &dyn Engine,
    family: Family,
    key: &[u8],
    tier: Tier,
    decode: impl FnOnce(&[u8]) -> Result<T, DecodeError>,
) -> Result<Lookup<T>, EngineError> {
    match engine.get(family, key, tier)? {
        Lookup::Present(value) => match decode(&value) {
            Ok(row) => Ok(Lookup::Present(row)),
            Err(source) => Err(EngineError::Row { family, key: key.to_vec(), source }),
        },
        Lookup::Absent => Ok(Lookup::Absent),
        Lookup::Unknown => Ok(Lookup::Unknown),
    }
}

/// The names of a user's devices, empty ones among them. Never absent: they may be none.
pub(crate) fn read_names(
    engine: &dyn Engine,
    shard_count: u16,
    user: UserId,
    tier: Tier,
) -> Result<Lookup<BTreeMap<DeviceId, String>>, EngineError> {
    let (from, to) = key::devices_range(ShardId::of_user(user, shard_count), user);
    let (mut names, mut failure) = (BTreeMap::new(), None);
    let ended = engine.scan(Family::Device, &from, &to, tier, &mut |key, value| {
        let device = key::decode_device(key).ok_or(DecodeError::Length).map(|(_, _, device)| device);
        match device.and_then(|device| Ok((device, NameRow::decode(value)?.name))) {
            Ok((device, name)) => {
                names.insert(device, name);
                ControlFlow::Continue(())
            }
            Err(source) => {
                failure = Some(EngineError::Row { family: Family::Device, key: key.to_vec(), source });
                ControlFlow::Break(())
            }
        }
    })?;
    match failure {
        Some(failure) => Err(failure),
        None if ended == ScanEnd::Unknown => Ok(Lookup::Unknown),
        None => Ok(Lookup::Present(names)),
    }
}

/// The watermarks that a user has in one conversation. Never absent: what has no row is 0.
pub(crate) fn read_talk(
    engine: &dyn Engine,
    shard_count: u16,
    user: UserId,
    conversation: ConversationId,
    tier: Tier,
) -> Result<Lookup<TalkRows>, EngineError> {
    let shard = ShardId::of_user(user, shard_count);
    macro_rules! row {
        ($kind:ident, $row:ty) => {{
            let key = key::talk(shard, user, conversation, TalkKind::$kind);
            match get(engine, Family::Member, &key, tier, <$row>::decode)? {
                Lookup::Present(row) => row,
                Lookup::Absent => <$row>::default(),
                Lookup::Unknown => return Ok(Lookup::Unknown),
            }
        }};
    }
    let delivered = row!(Delivered, SeqRow).seq;
    Ok(Lookup::Present(TalkRows {
        delivered,
        read: row!(Read, MarkRow),
        peer_delivered: row!(PeerDelivered, MarkRow),
        peer_read: row!(PeerRead, MarkRow),
        peer_expired: row!(PeerExpired, ExpiredRow),
    }))
}
