//! Two volumes of rows in memory, laid out by hand.

use std::sync::Arc;

use bytes::Bytes;
use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_storage::engine::{Engine, Family};
use culver_storage::key::{self, ShardId, TalkKind};
use culver_storage::memory::MemoryEngine;
use culver_storage::reader::Engines;
use culver_storage::record::InboxEntry;
use culver_storage::topology::Topology;
use culver_storage::value::{ConversationRow, ListRow, MarkRow, UserRow, encode_inbox_header};

pub(crate) const ME: UserId = UserId(1);
const SHARDS: u16 = 4;

pub(crate) struct World {
    volumes: Vec<Arc<MemoryEngine>>,
    pub(crate) engines: Engines,
}

impl World {
    pub(crate) fn new() -> Self {
        let volumes: Vec<Arc<MemoryEngine>> = (0..2).map(|_| Arc::default()).collect();
        let topology = Topology::new(SHARDS, vec![0, 1, 0, 1], 2).expect("two volumes and two hubs fit four shards");
        let engines = volumes.iter().map(|volume| -> Arc<dyn Engine> { Arc::clone(volume) as Arc<dyn Engine> });
        let engines = Engines { engines: engines.collect(), topology };
        Self { volumes, engines }
    }

    fn plant(&self, shard: ShardId, family: Family, key: &[u8], value: Option<&[u8]>) {
        let volume = self.engines.topology.volume_of_shard(shard);
        self.volumes.get(usize::from(volume)).expect("there are two").plant(family, key, value);
    }

    pub(crate) fn user(&self, user: UserId, row: &UserRow) {
        let (shard, mut value) = (ShardId::of_user(user, SHARDS), Vec::new());
        row.encode(&mut value);
        self.plant(shard, Family::User, &key::user(shard, user), Some(&value));
    }

    pub(crate) fn entry(&self, user: UserId, entry: &InboxEntry) {
        let shard = ShardId::of_user(user, SHARDS);
        let value = [encode_inbox_header(&entry.view()).as_slice(), &entry.payload].concat();
        self.plant(shard, Family::Inbox, &key::inbox(shard, user, entry.inbox_seq), Some(&value));
    }

    pub(crate) fn conversation(&self, id: ConversationId, row: &ConversationRow) {
        let shard = ShardId::of_conversation(id, SHARDS);
        self.plant(shard, Family::Conversation, &key::conversation(shard, id), Some(&row.encode()));
    }

    pub(crate) fn talk(&self, user: UserId, id: ConversationId, kind: TalkKind, value: &[u8]) {
        let shard = ShardId::of_user(user, SHARDS);
        self.plant(shard, Family::Member, &key::talk(shard, user, id, kind), Some(value));
    }

    pub(crate) fn list(&self, user: UserId, id: ConversationId, row: &ListRow) {
        self.talk(user, id, TalkKind::List, &[row.encode_header().as_slice(), &row.preview].concat());
    }

    pub(crate) fn mark(&self, user: UserId, id: ConversationId, kind: TalkKind, seq: u64, version: u64) {
        self.talk(user, id, kind, &MarkRow { seq: ConversationSeq(seq), version }.encode());
    }

    pub(crate) fn outbox(&self, key: &[u8], from: ShardId, value: &[u8]) {
        self.plant(from, Family::Outbox, key, Some(value));
    }
}

/// The conversation of [`ME`] with another.
pub(crate) fn with(peer: u64) -> ConversationId {
    ConversationId::direct(ME, UserId(peer))
}

pub(crate) fn entry(inbox_seq: u64, peer: u64, seq: u64, sender: u64, time_ms: u64) -> InboxEntry {
    let conversation = with(peer);
    let message_id = MessageId::new(time_ms, ShardId::of_conversation(conversation, SHARDS).0, 0);
    InboxEntry {
        inbox_seq: InboxSeq(inbox_seq),
        conversation,
        conversation_seq: ConversationSeq(seq),
        message_id,
        server_time_ms: time_ms,
        sender: UserId(sender),
        sender_device: DeviceId(1),
        payload: Bytes::from(format!("{inbox_seq} from {sender}").repeat(20)),
    }
}

/// What a list shows of an entry.
pub(crate) fn cut(entry: &InboxEntry) -> InboxEntry {
    let len = entry.payload.len().min(256);
    InboxEntry { payload: entry.payload.slice(..len), ..entry.clone() }
}

pub(crate) fn list_row(entry: &InboxEntry) -> ListRow {
    ListRow {
        seq: entry.conversation_seq,
        message_id: entry.message_id,
        sender: entry.sender,
        device: entry.sender_device,
        preview: cut(entry).payload,
    }
}
