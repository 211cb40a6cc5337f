//! The keys of every column family, and the shard each id belongs to. Never holds state, never fails.
//!
//! Every key begins with the shard, so that a shard is one range of keys per family. All numbers are big-endian.
//!
//! ```text
//! meta          shard:2  kind:1  id:8                                          11 bytes
//! conversation  shard:2  conversation:16                                       18
//! inbox         shard:2  user:8  inbox seq:8                                   18
//! user          shard:2  user:8                                                10
//! dedup         shard:2  conversation:16  user:8  device:2  client message:16  44
//! member        shard:2  by:1  user:8  conversation:16  kind:1                 28
//! device        shard:2  user:8  device:2                                     12
//! outbox        from shard:2  to shard:2  lane:1  n:8                          13
//! ```
//!
//! The shard of `inbox`, `user`, `member` and `device` rows is that of the user; of `conversation` and `dedup` rows, of the
//! conversation. `member` holds rows by user (1); the other order is kept for groups.

#[cfg(test)]
mod tests;

use culver_protocol::id::{ClientMessageId, ConversationId, DeviceId, InboxSeq, UserId};
use xxhash_rust::xxh3::xxh3_64;

use crate::record::{Lane, Stream};

/// Bytes of a `meta` key.
pub const META_KEY_LEN: usize = 11;
/// Bytes of a `conversation` key.
pub const CONVERSATION_KEY_LEN: usize = 18;
/// Bytes of an `inbox` key.
pub const INBOX_KEY_LEN: usize = 18;
/// Bytes of an `inbox` key that name the inbox: shard and user.
pub const INBOX_PREFIX_LEN: usize = 10;
/// Bytes of a `user` key.
pub const USER_KEY_LEN: usize = 10;
/// Bytes of a `dedup` key.
pub const DEDUP_KEY_LEN: usize = 44;
/// Bytes of such a key that name the sender's device in the conversation.
pub const DEDUP_PREFIX_LEN: usize = 28;
/// Bytes of a `member` key by user.
pub const TALK_KEY_LEN: usize = 28;
/// Bytes of a `member` key by user that name the user: shard, how it is ordered, and user.
pub const TALK_PREFIX_LEN: usize = 11;
/// Bytes of a `device` key.
pub const DEVICE_KEY_LEN: usize = 12;
/// Bytes of an `outbox` key.
pub const OUTBOX_KEY_LEN: usize = 13;

const BY_USER: u8 = 1;

/// The number of a shard: below the shard count of its data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The shard of a user: part of the stored format.
    #[must_use]
    pub fn of_user(user: UserId, shard_count: u16) -> Self {
        Self::of_bytes(&user.0.to_be_bytes(), shard_count)
    }

    /// The home shard of a conversation: part of the stored format.
    #[must_use]
    pub fn of_conversation(conversation: ConversationId, shard_count: u16) -> Self {
        Self::of_bytes(&conversation.0, shard_count)
    }

    fn of_bytes(id: &[u8], shard_count: u16) -> Self {
        assert!(shard_count > 0, "a data directory has at least one shard");
        let shard = xxh3_64(id) % u64::from(shard_count);
        Self(u16::try_from(shard).expect("a remainder is below its modulus, which is a u16"))
    }
}

/// What a row of `meta` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MetaKind {
    /// The last batch of a hub; the id is the hub's number, the shard its first.
    Batch = 1,
    /// The time up to which a shard may hand out message ids; the id is 0.
    Time = 2,
    /// The last item of a stream that arrived; the shard is where to, the id says where from ([`watermark_id`]).
    Watermark = 3,
    /// The last item of a stream that is durable where it goes; the shard is where from, the id says where to
    /// ([`head_id`]).
    Head = 4,
    /// The clock that entries expire by; the shard is a hub's first, the id is 0.
    Clock = 5,
}

/// What a `member` row by user says of a conversation. The numbers are a stored format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TalkKind {
    /// Its last entry at or below the floor.
    List = 1,
    /// What a device of the user has persisted.
    Delivered = 2,
    /// What the user has read.
    Read = 3,
    /// What a device of the peer has persisted.
    PeerDelivered = 4,
    /// What the peer has read.
    PeerRead = 5,
    /// What expired before any device of the peer had it.
    PeerExpired = 6,
}

impl TalkKind {
    /// All kinds, by number.
    pub const ALL: [Self; 6] =
        [Self::List, Self::Delivered, Self::Read, Self::PeerDelivered, Self::PeerRead, Self::PeerExpired];

    /// The kind with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// What names a message to its sender: the same key is the same message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DedupKey {
    /// The conversation it was sent to.
    pub conversation: ConversationId,
    /// Who sent it.
    pub sender: UserId,
    /// From which device.
    pub device: DeviceId,
    /// The client's own id for it.
    pub client_message_id: ClientMessageId,
}

/// One device's messages to one conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SenderKey {
    /// The conversation.
    pub conversation: ConversationId,
    /// Who sends.
    pub sender: UserId,
    /// From which device.
    pub device: DeviceId,
}

impl DedupKey {
    /// Whose message it is.
    #[must_use]
    pub fn sender_key(&self) -> SenderKey {
        SenderKey { conversation: self.conversation, sender: self.sender, device: self.device }
    }
}

/// The least and the greatest `dedup` key that a sender's messages can have.
#[must_use]
pub fn dedup_range(shard: ShardId, of: SenderKey) -> ([u8; DEDUP_KEY_LEN], [u8; DEDUP_KEY_LEN]) {
    let SenderKey { conversation, sender, device } = of;
    let with = |id| DedupKey { conversation, sender, device, client_message_id: ClientMessageId([id; 16]) };
    (dedup(shard, &with(0)), dedup(shard, &with(u8::MAX)))
}

/// A key of the `meta` family.
#[must_use]
pub fn meta(shard: ShardId, kind: MetaKind, id: u64) -> [u8; META_KEY_LEN] {
    let mut key = Fields::new();
    key.put(&shard.0.to_be_bytes()).put(&[kind as u8]).put(&id.to_be_bytes());
    key.done()
}

/// A key of the `conversation` family.
#[must_use]
pub fn conversation(shard: ShardId, conversation: ConversationId) -> [u8; CONVERSATION_KEY_LEN] {
    let mut key = Fields::new();
    key.put(&shard.0.to_be_bytes()).put(&conversation.0);
    key.done()
}

/// A key of the `inbox` family.
#[must_use]
pub fn inbox(shard: ShardId, user: UserId, seq: InboxSeq) -> [u8; INBOX_KEY_LEN] {
    let mut key = Fields::new();
    key.put(&shard.0.to_be_bytes()).put(&user.0.to_be_bytes()).put(&seq.0.to_be_bytes());
    key.done()
}

/// A key of the `user` family.
#[must_use]
pub fn user(shard: ShardId, user: UserId) -> [u8; USER_KEY_LEN] {
    let mut key = Fields::new();
    key.put(&shard.0.to_be_bytes()).put(&user.0.to_be_bytes());
    key.done()
}

/// A key of the `dedup` family.
#[must_use]
pub fn dedup(shard: ShardId, of: &DedupKey) -> [u8; DEDUP_KEY_LEN] {
    let mut key = Fields::new();
    key.put(&shard.0.to_be_bytes())
        .put(&of.conversation.0)
        .put(&of.sender.0.to_be_bytes())
        .put(&of.device.0.to_be_bytes())
        .put(&of.client_message_id.0);
    key.done()
}

/// A key of the `member` family, by user.
#[must_use]
pub fn talk(shard: ShardId, user: UserId, conversation: ConversationId, kind: TalkKind) -> [u8; TALK_KEY_LEN] {
    talk_key(shard, user, conversation, kind as u8)
}

/// The least and the greatest key that a user's `member` rows can have.
#[must_use]
pub fn talks_range(shard: ShardId, user: UserId) -> ([u8; TALK_KEY_LEN], [u8; TALK_KEY_LEN]) {
    let (least, greatest) = (ConversationId([0; 16]), ConversationId([u8::MAX; 16]));
    (talk_key(shard, user, least, 0), talk_key(shard, user, greatest, u8::MAX))
}

fn talk_key(shard: ShardId, user: UserId, conversation: ConversationId, kind: u8) -> [u8; TALK_KEY_LEN] {
    let mut key = Fields::new();
    key.put(&shard.0.to_be_bytes()).put(&[BY_USER]).put(&user.0.to_be_bytes()).put(&conversation.0).put(&[kind]);
    key.done()
}

/// A key of the `device` family.
#[must_use]
pub fn device(shard: ShardId, user: UserId, device: DeviceId) -> [u8; DEVICE_KEY_LEN] {
    let mut key = Fields::new();
    key.put(&shard.0.to_be_bytes()).put(&user.0.to_be_bytes()).put(&device.0.to_be_bytes());
    key.done()
}

/// The least key that a user's `device` rows can have, and a key beyond all that they can have.
#[must_use]
pub fn devices_range(shard: ShardId, user: UserId) -> ([u8; DEVICE_KEY_LEN], [u8; DEVICE_KEY_LEN + 1]) {
    let mut beyond = Fields::new();
    beyond.put(&device(shard, user, DeviceId(u16::MAX))).put(&[0]);
    (device(shard, user, DeviceId(0)), beyond.done())
}

/// A key of the `outbox` family.
#[must_use]
pub fn outbox(stream: Stream, n: u64) -> [u8; OUTBOX_KEY_LEN] {
    let mut key = Fields::new();
    key.put(&stream.from.0.to_be_bytes())
        .put(&stream.to.0.to_be_bytes())
        .put(&[stream.lane as u8])
        .put(&n.to_be_bytes());
    key.done()
}

/// The id of a stream's watermark row.
#[must_use]
pub fn watermark_id(stream: Stream) -> u64 {
    u64::from(stream.from.0) << 8 | u64::from(stream.lane as u8)
}

/// The id of a stream's head row.
#[must_use]
pub fn head_id(stream: Stream) -> u64 {
    u64::from(stream.to.0) << 8 | u64::from(stream.lane as u8)
}

/// The key of a stream's watermark row.
#[must_use]
pub fn watermark(stream: Stream) -> [u8; META_KEY_LEN] {
    meta(stream.to, MetaKind::Watermark, watermark_id(stream))
}

/// The key of a stream's head row.
#[must_use]
pub fn head(stream: Stream) -> [u8; META_KEY_LEN] {
    meta(stream.from, MetaKind::Head, head_id(stream))
}

/// The stream that a watermark or head row of `shard` with this `kind` and `id` is about.
#[must_use]
pub fn stream_of(shard: ShardId, kind: u8, id: u64) -> Option<Stream> {
    let [0, 0, 0, 0, 0, high, low, lane] = id.to_be_bytes() else { return None };
    let (other, lane) = (ShardId(u16::from_be_bytes([high, low])), Lane::from_number(lane)?);
    match kind {
        kind if kind == MetaKind::Watermark as u8 => Some(Stream { from: other, to: shard, lane }),
        kind if kind == MetaKind::Head as u8 => Some(Stream { from: shard, to: other, lane }),
        _ => None,
    }
}

/// Reads a `member` key by user.
#[must_use]
pub fn decode_talk(key: &[u8]) -> Option<(ShardId, UserId, ConversationId, TalkKind)> {
    let (shard, rest) = split_u16(key)?;
    let (by, rest) = rest.split_first()?;
    let (user, rest) = split_u64(rest)?;
    let (conversation, rest) = rest.split_at_checked(16)?;
    let [kind] = rest else { return None };
    let conversation = ConversationId::try_from(conversation).ok()?;
    (*by == BY_USER).then_some((ShardId(shard), UserId(user), conversation, TalkKind::from_number(*kind)?))
}

/// Reads a `device` key.
#[must_use]
pub fn decode_device(key: &[u8]) -> Option<(ShardId, UserId, DeviceId)> {
    let (shard, rest) = split_u16(key)?;
    let (user, rest) = split_u64(rest)?;
    let (device, rest) = split_u16(rest)?;
    rest.is_empty().then_some((ShardId(shard), UserId(user), DeviceId(device)))
}

/// Reads an `outbox` key.
#[must_use]
pub fn decode_outbox(key: &[u8]) -> Option<(Stream, u64)> {
    let (from, rest) = split_u16(key)?;
    let (to, rest) = split_u16(rest)?;
    let (lane, rest) = rest.split_first()?;
    let (n, rest) = split_u64(rest)?;
    let stream = Stream { from: ShardId(from), to: ShardId(to), lane: Lane::from_number(*lane)? };
    rest.is_empty().then_some((stream, n))
}

/// Reads a `meta` key: shard, kind (a number, for a later version may know more) and id.
#[must_use]
pub fn decode_meta(key: &[u8]) -> Option<(ShardId, u8, u64)> {
    let (shard, rest) = split_u16(key)?;
    let (kind, rest) = rest.split_first()?;
    let (id, rest) = split_u64(rest)?;
    rest.is_empty().then_some((ShardId(shard), *kind, id))
}

/// Reads a `conversation` key.
#[must_use]
pub fn decode_conversation(key: &[u8]) -> Option<(ShardId, ConversationId)> {
    let (shard, rest) = split_u16(key)?;
    Some((ShardId(shard), ConversationId::try_from(rest).ok()?))
}

/// Reads an `inbox` key.
#[must_use]
pub fn decode_inbox(key: &[u8]) -> Option<(ShardId, UserId, InboxSeq)> {
    let (shard, rest) = split_u16(key)?;
    let (user, rest) = split_u64(rest)?;
    let (seq, rest) = split_u64(rest)?;
    rest.is_empty().then_some((ShardId(shard), UserId(user), InboxSeq(seq)))
}

/// Reads a `user` key.
#[must_use]
pub fn decode_user(key: &[u8]) -> Option<(ShardId, UserId)> {
    let (shard, rest) = split_u16(key)?;
    let (user, rest) = split_u64(rest)?;
    rest.is_empty().then_some((ShardId(shard), UserId(user)))
}

/// Reads a `dedup` key.
#[must_use]
pub fn decode_dedup(key: &[u8]) -> Option<(ShardId, DedupKey)> {
    let (shard, rest) = split_u16(key)?;
    let (conversation, rest) = rest.split_at_checked(16)?;
    let (sender, rest) = split_u64(rest)?;
    let (device, rest) = split_u16(rest)?;
    let key = DedupKey {
        conversation: ConversationId::try_from(conversation).ok()?,
        sender: UserId(sender),
        device: DeviceId(device),
        client_message_id: ClientMessageId::try_from(rest).ok()?,
    };
    Some((ShardId(shard), key))
}

pub(crate) fn split_u16(bytes: &[u8]) -> Option<(u16, &[u8])> {
    bytes.split_first_chunk().map(|(number, rest)| (u16::from_be_bytes(*number), rest))
}

pub(crate) fn split_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    bytes.split_first_chunk().map(|(number, rest)| (u64::from_be_bytes(*number), rest))
}

/// A fixed layout under construction: its fields must fill it exactly.
pub(crate) struct Fields<const LEN: usize> {
    bytes: [u8; LEN],
    filled: usize,
}

impl<const LEN: usize> Fields<LEN> {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; LEN], filled: 0 }
    }

    #[inline]
    pub(crate) fn put(&mut self, field: &[u8]) -> &mut Self {
        let end = self.filled + field.len();
        self.bytes.get_mut(self.filled..end).expect("the fields of a layout fit it").copy_from_slice(field);
        self.filled = end;
        self
    }

    #[inline]
    pub(crate) fn done(&self) -> [u8; LEN] {
        assert_eq!(self.filled, LEN, "the fields of a layout fill it");
        self.bytes
    }
}
