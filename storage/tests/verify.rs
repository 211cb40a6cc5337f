//! Planted damage: each invariant of the log, broken alone, is found and named.

use bytes::Bytes;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_storage::command::{Decision, DedupKey, Send};
use culver_storage::engine::{Engine, Family, Lookup, Tier};
use culver_storage::key::{self, MetaKind, ShardId};
use culver_storage::memory::MemoryEngine;
use culver_storage::shard::Shards;
use culver_storage::value::{ConversationRow, DedupRow, TimeRow, UserRow, decode_inbox, encode_inbox_header};
use culver_storage::verify::verify_engine;

const SHARD_COUNT: u16 = 64;
const ALICE: UserId = UserId(1);
const BOB: UserId = UserId(2);

/// Alice and Bob, 100 messages each way, one batch each; Bob has acknowledged 60.
fn healthy() -> MemoryEngine {
    let engine = MemoryEngine::new();
    let mut shards = Shards::recover(&engine, SHARD_COUNT, 0, 1000).expect("memory reads");
    for index in 0..200u64 {
        let send = Send {
            sender: if index.is_multiple_of(2) { ALICE } else { BOB },
            device: DeviceId(1),
            client_message_id: client_id(index),
            conversation: talk(),
            payload: Bytes::from_static(b"hello"),
        };
        apply(&mut shards, |shards| shards.decide_send(&engine, &send, 1000 + index));
        if index == 150 {
            apply(&mut shards, |shards| shards.decide_ack(&engine, BOB, DeviceId(1), InboxSeq(60), 1000));
        }
        let batch = shards.seal(engine.sequence_synced(), true);
        engine.write(&batch).expect("memory writes");
        shards.durable(batch.number());
    }
    engine
}

fn apply(
    shards: &mut Shards,
    decide: impl FnOnce(&mut Shards) -> Result<Decision, culver_storage::error::EngineError>,
) {
    match decide(shards).expect("memory reads") {
        Decision::Apply(record) => shards.apply(&record),
        other => panic!("{other:?}"),
    }
}

fn talk() -> ConversationId {
    ConversationId::direct(ALICE, BOB)
}

fn client_id(index: u64) -> ClientMessageId {
    ClientMessageId(u128::from(index).to_be_bytes())
}

fn home() -> ShardId {
    ShardId::of_conversation(talk(), SHARD_COUNT)
}

fn user_key(user: UserId) -> Vec<u8> {
    key::user(ShardId::of_user(user, SHARD_COUNT), user).to_vec()
}

fn inbox_key(user: UserId, seq: u64) -> Vec<u8> {
    key::inbox(ShardId::of_user(user, SHARD_COUNT), user, InboxSeq(seq)).to_vec()
}

fn dedup_key(index: u64) -> Vec<u8> {
    let sender = if index.is_multiple_of(2) { ALICE } else { BOB };
    let of = DedupKey { conversation: talk(), sender, device: DeviceId(1), client_message_id: client_id(index) };
    key::dedup(home(), &of).to_vec()
}

fn get(engine: &MemoryEngine, family: Family, key: &[u8]) -> Vec<u8> {
    match engine.get(family, key, Tier::Disk) {
        Ok(Lookup::Present(value)) => value,
        other => panic!("{other:?}"),
    }
}

fn plant_user(engine: &MemoryEngine, user: UserId, change: impl FnOnce(&mut UserRow)) {
    let key = user_key(user);
    let mut row = UserRow::decode(&get(engine, Family::User, &key)).expect("it was written");
    change(&mut row);
    let mut value = Vec::new();
    row.encode(&mut value);
    engine.plant(Family::User, &key, Some(&value));
}

/// Plants damage into a healthy log, and sees that a finding says so.
fn found(plant: impl FnOnce(&MemoryEngine), words: &str) {
    let engine = healthy();
    plant(&engine);
    let report = verify_engine(&engine, SHARD_COUNT).expect("memory reads");
    assert!(report.findings.iter().any(|finding| finding.contains(words)), "{words}: {:?}", report.findings);
}

#[test]
fn a_healthy_log_has_no_findings() {
    let report = verify_engine(&healthy(), SHARD_COUNT).expect("memory reads");
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!((report.users, report.conversations, report.messages, report.dedup_rows), (2, 1, 200, 200));
    assert_eq!(report.batch, 200);
}

#[test]
fn a_missing_entry() {
    found(|engine| engine.plant(Family::Inbox, &inbox_key(BOB, 50), None), "user 2: after entry 49 comes 51");
    found(|engine| engine.plant(Family::Inbox, &inbox_key(BOB, 50), None), "after message 98 comes 100");
}

#[test]
fn a_missing_first_and_last_entry() {
    found(|engine| engine.plant(Family::Inbox, &inbox_key(BOB, 1), None), "user 2: after entry 0 comes 2");
    found(
        |engine| engine.plant(Family::Inbox, &inbox_key(ALICE, 100), None),
        "its row says 200, and its last message is",
    );
}

#[test]
fn an_entry_that_cannot_be_read() {
    found(|engine| engine.plant(Family::Inbox, &inbox_key(BOB, 50), Some(&[9, 9])), "entry 50 cannot be read");
    found(|engine| engine.plant(Family::Inbox, b"short", Some(&[1])), "a key of `inbox` has a wrong length");
}

#[test]
fn an_entry_of_strangers() {
    let plant = |engine: &MemoryEngine| {
        let value = get(engine, Family::Inbox, &inbox_key(BOB, 50));
        let mut entry = decode_inbox(InboxSeq(50), &value).expect("it was written");
        entry.sender = UserId(77);
        engine.plant(Family::Inbox, &inbox_key(BOB, 50), Some(&encode_inbox_header(&entry)));
    };
    found(plant, "user 2: entry 50 is of conversation");
    found(plant, "does not fit it");
}

#[test]
fn ids_that_do_not_ascend_or_are_of_another_shard() {
    let plant = |id: MessageId| {
        move |engine: &MemoryEngine| {
            let value = get(engine, Family::Inbox, &inbox_key(BOB, 50));
            let mut entry = decode_inbox(InboxSeq(50), &value).expect("it was written");
            entry.message_id = id;
            engine.plant(Family::Inbox, &inbox_key(BOB, 50), Some(&encode_inbox_header(&entry)));
        }
    };
    found(plant(MessageId::new(5, home().0, 0)), "the id of message 99 does not ascend");
    found(plant(MessageId::new(1098, home().0 + 1, 0)), "the id of entry 50 is of shard");
    found(plant(MessageId::new(1 << 40, home().0, 0)), "reserved");
}

#[test]
fn a_row_in_a_wrong_shard() {
    found(
        |engine| engine.plant(Family::Inbox, &key::inbox(ShardId(63), BOB, InboxSeq(101)), Some(&[1])),
        "is in shard 63",
    );
    found(
        |engine| engine.plant(Family::User, &key::user(ShardId(63), BOB), Some(&[1])),
        "user 2: its row is in shard 63",
    );
    let row = ConversationRow::default().encode();
    found(
        |engine| engine.plant(Family::Conversation, &key::conversation(ShardId(63), talk()), Some(&row)),
        "is in shard 63",
    );
}

#[test]
fn a_head_hint_beyond_or_far_behind_the_head() {
    found(|engine| plant_user(engine, BOB, |row| row.head = InboxSeq(101)), "the head is 100, and its row says 101");
    found(|engine| plant_user(engine, BOB, |row| row.head = InboxSeq(36)), "the head is 100, and its row says 36");
}

#[test]
fn cursors_and_floors() {
    let beyond = |row: &mut UserRow| {
        row.cursors = vec![(DeviceId(1), InboxSeq(101))];
        row.floor = InboxSeq(101);
    };
    found(|engine| plant_user(engine, BOB, beyond), "the cursor of device 1 is 101, beyond the head 100");
    found(|engine| plant_user(engine, BOB, |row| row.floor = InboxSeq(61)), "the floor is 61, and the least cursor 60");
}

#[test]
fn a_user_without_a_row_or_without_entries() {
    found(|engine| engine.plant(Family::User, &user_key(BOB), None), "user 2: entries up to 100, and no row");
    let mut row = Vec::new();
    UserRow { head: InboxSeq(3), ..UserRow::default() }.encode(&mut row);
    found(|engine| engine.plant(Family::User, &user_key(UserId(9)), Some(&row)), "user 9: the head is 0");
    found(|engine| engine.plant(Family::User, &user_key(BOB), Some(&[7])), "user 2: its row cannot be read");
}

#[test]
fn a_conversation_row_that_disagrees() {
    let key = key::conversation(home(), talk());
    found(|engine| engine.plant(Family::Conversation, &key, None), "its row says 0, and its last message is 200");
    let row = ConversationRow { last_seq: ConversationSeq(7), last_message: MessageId(7) }.encode();
    found(|engine| engine.plant(Family::Conversation, &key, Some(&row)), "its row says 7, and its last message is 200");
    let other =
        key::conversation(ShardId::of_conversation(ConversationId([0; 16]), SHARD_COUNT), ConversationId([0; 16]));
    found(|engine| engine.plant(Family::Conversation, &other, Some(&row)), "its row says 7, and it has no messages");
}

#[test]
fn dedup_rows_and_messages_that_disagree() {
    found(|engine| engine.plant(Family::Dedup, &dedup_key(10), None), "message 11 has no dedup row");
    let row = DedupRow { conversation_seq: ConversationSeq(12), message_id: MessageId(1), inbox_seq: InboxSeq(0) };
    found(
        |engine| engine.plant(Family::Dedup, &dedup_key(10), Some(&row.encode())),
        "names message 12, which does not fit",
    );
    let engine = healthy();
    let twice = get(&engine, Family::Dedup, &dedup_key(10));
    found(|engine| engine.plant(Family::Dedup, &dedup_key(1000), Some(&twice)), "names message 11, which does not fit");
    found(|engine| engine.plant(Family::Dedup, &dedup_key(10), Some(&[])), "cannot be read");
}

#[test]
fn a_time_reservation_that_was_passed() {
    let key = key::meta(home(), MetaKind::Time, 0);
    found(|engine| engine.plant(Family::Meta, &key, None), "reserved 0");
    let row = TimeRow { until_ms: 1150 }.encode();
    found(|engine| engine.plant(Family::Meta, &key, Some(&row)), "reserved 1150");
    found(|engine| engine.plant(Family::Meta, &key, Some(&[1])), "the time reservation of shard");
}

#[test]
fn meta_rows_that_cannot_be_read() {
    found(|engine| engine.plant(Family::Meta, &key::meta(ShardId(0), MetaKind::Batch, 0), Some(&[1])), "the batch row");
    found(|engine| engine.plant(Family::Meta, &[0, 0, 99, 0, 0, 0, 0, 0, 0, 0, 0], Some(&[1])), "kind 99");
    found(|engine| engine.plant(Family::Meta, b"x", Some(&[1])), "a key of `meta` has a wrong length");
}
