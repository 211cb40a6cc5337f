//! Receipts that need no stream: given with the batch that writes the cursor, or not at all.

use culver_protocol::message::MarkView;

use super::*;
use crate::engine::{Family, Lookup, Tier};
use crate::key::{self, ShardId, TalkKind};
use crate::value::MarkRow;

/// User 1 has sent so many messages to user 2, whose device has acknowledged the first. That receipt went through the
/// stream, for the talk was not in memory; now it is.
fn warm(messages: u64) -> (MemoryEngine, Shards) {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    link(&mut shards, &engine, 2, 1, 5);
    link(&mut shards, &engine, 1, 1, 5);
    (1..=messages).for_each(|id| drop(accept(&mut shards, &engine, &send(1, 2, id.into()), 5)));
    commit(&mut shards, &engine);
    ack(&mut shards, &engine, (2, 1), 1, &[(talk(1, 2), 1)]);
    assert_eq!(give(&mut shards, true), [], "the talk is cold");
    let outgoing = commit(&mut shards, &engine);
    assert_eq!(outgoing.len(), 1);
    deliver(&mut shards, &engine, &outgoing);
    (engine, shards)
}

fn receipt(delivered: u64, read: u64, version: u64) -> Arrival {
    let (delivered, read) = (ConversationSeq(delivered), ConversationSeq(read));
    let mark = MarkView { conversation: talk(1, 2), delivered, read, ..MarkView::default() };
    Arrival::Receipt { user: UserId(1), mark, version }
}

fn told(engine: &MemoryEngine) -> MarkRow {
    let shard = ShardId::of_user(UserId(1), SHARD_COUNT);
    let key = key::talk(shard, UserId(1), talk(1, 2), TalkKind::PeerDelivered);
    match engine.get(Family::Member, &key, Tier::Disk) {
        Ok(Lookup::Present(value)) => MarkRow::decode(&value).expect("it was just written"),
        _ => MarkRow::default(),
    }
}

fn mark_read(shards: &mut Shards, engine: &MemoryEngine, seq: u64) {
    let decision = shards.decide_mark_read(engine, UserId(2), talk(1, 2), ConversationSeq(seq)).expect("memory reads");
    assert!(matches!(decision, Decision::Apply(_)), "{decision:?}");
    apply(shards, &decision);
}

fn set_read_receipts(shards: &mut Shards, engine: &MemoryEngine, user: u64, on: bool) {
    let decision = shards.decide_read_receipts(engine, UserId(user), on).expect("memory reads");
    assert!(matches!(decision, Decision::Apply(_)), "{decision:?}");
    apply(shards, &decision);
}

#[test]
fn one_batch_writes_the_cursor_and_the_receipt() {
    let (engine, mut shards) = warm(4);
    ack(&mut shards, &engine, (2, 1), 2, &[(talk(1, 2), 2)]);
    ack(&mut shards, &engine, (2, 1), 3, &[(talk(1, 2), 3)]);
    assert_eq!(give(&mut shards, true), [receipt(3, 0, 2)]);
    assert_eq!(commit(&mut shards, &engine), [], "nothing goes through the stream");
    assert_eq!(told(&engine), MarkRow { seq: ConversationSeq(3), version: 2 });
    assert_eq!(shards.streams_behind(), []);
    // Read and delivered are one receipt.
    ack(&mut shards, &engine, (2, 1), 4, &[(talk(1, 2), 4)]);
    mark_read(&mut shards, &engine, 4);
    assert_eq!(give(&mut shards, false), [receipt(4, 4, 3)]);
    assert_eq!(commit(&mut shards, &engine), []);
    // What was told is told once, after a restart too.
    let mut shards = recover(&engine, 5);
    assert_eq!(ack(&mut shards, &engine, (2, 1), 4, &[(talk(1, 2), 4)]), Decision::Unchanged);
    assert!(shards.is_batch_empty());
}

#[test]
fn nothing_overtakes_what_the_stream_still_holds() {
    let (engine, mut shards) = warm(4);
    // A receipt that was not given goes through the stream, and what follows goes the same way.
    ack(&mut shards, &engine, (2, 1), 2, &[(talk(1, 2), 2)]);
    let mut outgoing = commit(&mut shards, &engine);
    ack(&mut shards, &engine, (2, 1), 3, &[(talk(1, 2), 3)]);
    assert_eq!(give(&mut shards, true), []);
    outgoing.extend(commit(&mut shards, &engine));
    assert_eq!(outgoing.len(), 2);
    // It has arrived, but is not durable there.
    for Outgoing { stream, n, item } in &outgoing {
        let decision = shards.decide_arrival(&engine, *stream, *n, item, 5).expect("memory reads");
        apply(&mut shards, &decision);
    }
    ack(&mut shards, &engine, (2, 1), 4, &[(talk(1, 2), 4)]);
    assert_eq!(give(&mut shards, true), []);
    let last = commit(&mut shards, &engine);
    deliver(&mut shards, &engine, &last);
    assert_eq!(told(&engine).seq, ConversationSeq(4));
    accept(&mut shards, &engine, &send(1, 2, 9), 5);
    commit(&mut shards, &engine);
    ack(&mut shards, &engine, (2, 1), 5, &[(talk(1, 2), 5)]);
    assert_eq!(give(&mut shards, true), [receipt(5, 0, 5)], "the stream is at rest again");
}

#[test]
fn what_was_under_way_at_a_restart_goes_first() {
    let (engine, mut shards) = warm(3);
    ack(&mut shards, &engine, (2, 1), 2, &[(talk(1, 2), 2)]);
    let outgoing = commit(&mut shards, &engine);
    assert_eq!(outgoing.len(), 1);
    let mut shards = recover(&engine, 5);
    // Both users and the talk are in memory.
    let Outgoing { stream, n, item } = outgoing.first().expect("one item");
    let early = shards.decide_arrival(&engine, *stream, *n, item, 5).expect("memory reads");
    assert!(matches!(early, Decision::Apply(_)));
    ack(&mut shards, &engine, (2, 1), 3, &[(talk(1, 2), 3)]);
    assert_eq!(give(&mut shards, true), []);
}

#[test]
fn read_receipts_are_off_on_this_way_too() {
    let (engine, mut shards) = warm(3);
    set_read_receipts(&mut shards, &engine, 1, false);
    ack(&mut shards, &engine, (2, 1), 2, &[(talk(1, 2), 2)]);
    mark_read(&mut shards, &engine, 2);
    assert_eq!(give(&mut shards, true), [receipt(2, 0, 2)]);
    assert_eq!(commit(&mut shards, &engine), []);
    ack(&mut shards, &engine, (2, 1), 3, &[(talk(1, 2), 3)]);
    give(&mut shards, true);
    commit(&mut shards, &engine);
    mark_read(&mut shards, &engine, 3);
    assert_eq!(give(&mut shards, true), [Arrival::Nothing], "nothing is left to be told");
    assert_eq!(commit(&mut shards, &engine), []);
}

#[test]
fn a_crash_takes_both_or_neither() {
    let (engine, mut shards) = warm(3);
    ack(&mut shards, &engine, (2, 1), 2, &[(talk(1, 2), 2)]);
    assert_eq!(give(&mut shards, true), [receipt(2, 0, 2)]);
    let batch = shards.seal(0, true);
    assert_eq!(shards.take_outgoing(), []);
    let cursor = |shards: &mut Shards| match shards.user(&engine, UserId(2), DeviceId(1)) {
        Ok(crate::command::View::Known(view)) => view.cursor.0,
        other => panic!("{other:?}"),
    };
    let mut lost = recover(&engine, 5);
    assert_eq!((cursor(&mut lost), told(&engine).seq), (1, ConversationSeq(1)));
    engine.write(&batch).expect("memory writes");
    let mut kept = recover(&engine, 5);
    assert_eq!((cursor(&mut kept), told(&engine).seq), (2, ConversationSeq(2)));
}

#[test]
fn receipts_are_given_with_the_cursor_and_not_before() {
    let (engine, mut shards) = warm(3);
    ack(&mut shards, &engine, (2, 1), 2, &[(talk(1, 2), 2)]);
    accept(&mut shards, &engine, &send(3, 4, 1), 5);
    assert_eq!(give(&mut shards, false), [], "the cursor waits for a later batch");
    let batch = shards.seal(0, false);
    engine.write(&batch).expect("memory writes");
    shards.durable(batch.number());
    assert_eq!(told(&engine).seq, ConversationSeq(1));
    // A row that is written for another reason holds the cursor too.
    link(&mut shards, &engine, 2, 2, 5);
    assert_eq!(give(&mut shards, false), [receipt(2, 0, 2)]);
    shards.seal(0, false);
    assert_eq!(shards.take_outgoing(), []);
}

/// The row of a user who is given a receipt may be written for that alone, and then holds the user's own cursor: what
/// that tells must be in the same batch, though the user was looked at before.
#[test]
fn whoever_is_given_a_receipt_and_is_written_for_it_tells_what_is_due() {
    let (engine, mut shards) = warm(200);
    // User 2 writes back, and the versions that user 1's row has reserved are used up.
    accept(&mut shards, &engine, &send(2, 1, 900), 5);
    commit(&mut shards, &engine);
    let mut version = 1;
    while shards.users.peek(&UserId(1)).is_some_and(|user| user.receipts_head < user.row.receipts_head) {
        version += 1;
        ack(&mut shards, &engine, (2, 1), version, &[(talk(1, 2), version)]);
        assert_eq!(give(&mut shards, true), [receipt(version, 0, version)]);
        commit(&mut shards, &engine);
    }
    let own_head = shards.users.peek(&UserId(1)).expect("it is in memory").head.0;
    ack(&mut shards, &engine, (1, 1), own_head, &[(talk(1, 2), 201)]);
    ack(&mut shards, &engine, (2, 1), version + 1, &[(talk(1, 2), version + 1)]);
    link(&mut shards, &engine, 2, 2, 5);
    assert_eq!(give(&mut shards, false), [receipt(version + 1, 0, version + 1)]);
    let batch = shards.seal(0, false);
    let outgoing = shards.take_outgoing();
    engine.write(&batch).expect("memory writes");
    let mut shards = recover(&engine, 5);
    let Ok(crate::command::View::Known(view)) = shards.user(&engine, UserId(1), DeviceId(1)) else { panic!("known") };
    assert_eq!((view.cursor.0, outgoing.len()), (own_head, 1), "the cursor and what it tells are in one batch");
}
