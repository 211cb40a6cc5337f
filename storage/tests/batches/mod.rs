//! Batches of numbered messages, and what of them is found again.

use std::ops::ControlFlow;

use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::message::EntryView;
use culver_storage::batch::{Batch, BatchNumber};
use culver_storage::engine::{Engine, Family, Lookup, Tier};
use culver_storage::key::{self, MetaKind, ShardId};
use culver_storage::value::{self, BatchRow};

const SHARD: ShardId = ShardId(0);
const RECIPIENT: UserId = UserId(2);

/// A batch with one message, whose payload follows from the number.
pub(crate) fn batch(number: u64, synced_through: u64, payload_len: usize) -> Batch {
    let mut batch = Batch::with_capacity(BatchNumber(number), 0);
    let entry = EntryView {
        inbox_seq: InboxSeq(number),
        conversation: ConversationId::direct(UserId(1), RECIPIENT),
        conversation_seq: ConversationSeq(number),
        message_id: MessageId(number),
        server_time_ms: 0,
        sender: UserId(1),
        sender_device: DeviceId(1),
        payload: &[],
    };
    let payload = vec![filling(number); payload_len];
    batch.put(
        Family::Inbox,
        &key::inbox(SHARD, RECIPIENT, InboxSeq(number)),
        (&value::encode_inbox_header(&entry), &payload),
    );
    let row = BatchRow { number, synced_through, applied: number };
    batch.put(Family::Meta, &key::meta(SHARD, MetaKind::Batch, 0), (&row.encode(), &[]));
    batch
}

/// The numbers of the batches that are there. Each is whole, and the last is the one that the volume says is its last.
pub(crate) fn present(engine: &impl Engine) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut visit = |key: &[u8], bytes: &[u8]| {
        let (_, _, number) = key::decode_inbox(key).expect("a key of the family");
        let entry = value::decode_inbox(number, bytes).expect("a row of the family");
        assert!(entry.payload.iter().all(|byte| *byte == filling(number.0)), "the payload of batch {number:?}");
        numbers.push(number.0);
        ControlFlow::Continue(())
    };
    let (from, to) = (key::inbox(SHARD, RECIPIENT, InboxSeq(0)), key::inbox(SHARD, RECIPIENT, InboxSeq(u64::MAX)));
    engine.scan(Family::Inbox, &from, &to, Tier::Disk, &mut visit).expect("the volume can be read");
    let row = engine.get(Family::Meta, &key::meta(SHARD, MetaKind::Batch, 0), Tier::Disk);
    let last = match row.expect("the volume can be read") {
        Lookup::Present(bytes) => Some(BatchRow::decode(&bytes).expect("a row of the family").number),
        _ => None,
    };
    assert_eq!(last, numbers.last().copied(), "a batch is there with all its rows, or with none");
    numbers
}

fn filling(number: u64) -> u8 {
    u8::try_from(number % 251).expect("below 251")
}
