//! Receipts: merged, told once, never back; reads and the setting.

use culver_protocol::error::ErrorCode;
use culver_protocol::message::MarkView;

use super::*;
use crate::command::View;
use crate::engine::{Family, Lookup, Tier};
use crate::key::{self, ShardId, TalkKind};
use crate::record::{Item, Lane, Stream};
use crate::value::MarkRow;

const EMPTY: ConversationSeq = ConversationSeq(0);

/// Two devices of user 2, three messages from user 1, all durable.
fn world() -> (MemoryEngine, Shards) {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    link(&mut shards, &engine, 2, 1, 5);
    link(&mut shards, &engine, 2, 2, 5);
    (1..=3).for_each(|id| drop(accept(&mut shards, &engine, &send(1, 2, id), 5)));
    assert_eq!(commit(&mut shards, &engine), []);
    (engine, shards)
}

fn items(outgoing: &[Outgoing]) -> Vec<(u64, u64, u64)> {
    let item = |outgoing: &Outgoing| match &outgoing.item {
        Item::Receipt { user, delivered, read, .. } => (user.0, delivered.0, read.0),
        Item::Entry { .. } => panic!("a receipt is no entry"),
    };
    outgoing.iter().map(item).collect()
}

fn mark_read(shards: &mut Shards, engine: &MemoryEngine, user: u64, seq: u64) -> Decision {
    let decision = shards.decide_mark_read(engine, UserId(user), talk(1, 2), ConversationSeq(seq));
    let decision = decision.expect("memory reads");
    apply(shards, &decision);
    decision
}

fn told(engine: &MemoryEngine, kind: TalkKind) -> MarkRow {
    let shard = ShardId::of_user(UserId(1), SHARD_COUNT);
    match engine.get(Family::Member, &key::talk(shard, UserId(1), talk(1, 2), kind), Tier::Disk) {
        Ok(Lookup::Present(value)) => MarkRow::decode(&value).expect("it was just written"),
        _ => MarkRow::default(),
    }
}

#[test]
fn many_acknowledgements_make_one_receipt() {
    let (engine, mut shards) = world();
    for seq in 1..=3 {
        ack(&mut shards, &engine, (2, 1), seq, &[(talk(1, 2), seq)]);
    }
    let outgoing = commit(&mut shards, &engine);
    assert_eq!(items(&outgoing), [(1, 3, 0)]);
    let arrived = deliver(&mut shards, &engine, &outgoing);
    let mark = MarkView { conversation: talk(1, 2), delivered: ConversationSeq(3), ..MarkView::default() };
    let [Decision::Apply(Record::Arrived { item, .. })] = arrived.as_slice() else { panic!("{arrived:?}") };
    assert_eq!(*item, Arrival::Receipt { user: UserId(1), mark, version: 1 });
    assert_eq!(told(&engine, TalkKind::PeerDelivered), MarkRow { seq: ConversationSeq(3), version: 1 });
    assert_eq!(shards.streams_behind(), []);
}

#[test]
fn the_first_device_counts() {
    let (engine, mut shards) = world();
    ack(&mut shards, &engine, (2, 1), 2, &[(talk(1, 2), 2)]);
    assert_eq!(items(&commit(&mut shards, &engine)), [(1, 2, 0)]);
    ack(&mut shards, &engine, (2, 2), 2, &[(talk(1, 2), 2)]);
    assert_eq!(commit(&mut shards, &engine), []);
    ack(&mut shards, &engine, (2, 2), 3, &[(talk(1, 2), 3)]);
    assert_eq!(items(&commit(&mut shards, &engine)), [(1, 3, 0)]);
}

#[test]
fn what_precedes_the_start_of_another_device_is_told_when_it_is_fetched() {
    let (engine, mut shards) = world();
    accept(&mut shards, &engine, &send(3, 2, 9), 5);
    link(&mut shards, &engine, 2, 3, 5);
    accept(&mut shards, &engine, &send(1, 2, 10), 5);
    commit(&mut shards, &engine);
    ack(&mut shards, &engine, (2, 3), 5, &[(talk(1, 2), 4)]);
    assert_eq!(items(&commit(&mut shards, &engine)), [(1, 4, 0)]);
    ack(&mut shards, &engine, (2, 1), 4, &[(talk(1, 2), 3), (talk(2, 3), 1)]);
    assert_eq!(items(&commit(&mut shards, &engine)), [(3, 1, 0)]);
}

#[test]
fn receipts_leave_with_the_cursor_that_caused_them() {
    let (engine, mut shards) = world();
    ack(&mut shards, &engine, (2, 1), 2, &[(talk(1, 2), 2)]);
    accept(&mut shards, &engine, &send(3, 4, 1), 5);
    let batch = shards.seal(0, false);
    assert_eq!(shards.take_outgoing(), [], "the cursor stays, and so does what is told of it");
    engine.write(&batch).expect("memory writes");
    shards.durable(batch.number());
    assert_eq!(items(&commit(&mut shards, &engine)), [(1, 2, 0)]);
    // A row that is written for another reason holds the cursor too.
    ack(&mut shards, &engine, (2, 1), 3, &[(talk(1, 2), 3)]);
    link(&mut shards, &engine, 2, 3, 5);
    shards.seal(0, false);
    assert_eq!(items(&shards.take_outgoing()), [(1, 3, 0)]);
}

#[test]
fn what_was_never_delivered_cannot_be_read() {
    let (engine, mut shards) = world();
    assert_eq!(mark_read(&mut shards, &engine, 2, 1), Decision::Reject(ErrorCode::ReadBeyondDelivered));
    assert_eq!(mark_read(&mut shards, &engine, 3, 1), Decision::Reject(ErrorCode::NotAMember));
    ack(&mut shards, &engine, (2, 1), 2, &[(talk(1, 2), 2)]);
    assert_eq!(mark_read(&mut shards, &engine, 2, 3), Decision::Reject(ErrorCode::ReadBeyondDelivered));
    assert!(matches!(mark_read(&mut shards, &engine, 2, 1), Decision::Apply(_)), "though not yet durable");
    assert_eq!(items(&commit(&mut shards, &engine)), [(1, 2, 1)], "one item for both");
    let mut shards = recover(&engine, 5);
    assert_eq!(mark_read(&mut shards, &engine, 2, 1), Decision::Unchanged);
    assert_eq!(mark_read(&mut shards, &engine, 2, 3), Decision::Reject(ErrorCode::ReadBeyondDelivered));
    assert!(matches!(mark_read(&mut shards, &engine, 2, 2), Decision::Apply(Record::MarkedRead { tell: true, .. })));
}

#[test]
fn a_read_of_a_talk_that_was_under_way_is_not_believed() {
    let (engine, shards) = world();
    drop(shards);
    let mut shards = recover(&engine, 5);
    ack(&mut shards, &engine, (2, 1), 2, &[(talk(1, 2), 2)]);
    engine.set_cold(true);
    let waits = Decision::Waits(crate::command::Load::Talk(UserId(2), talk(1, 2)));
    assert_eq!(mark_read(&mut shards, &engine, 2, 1), waits);
    let load = crate::command::Load::Talk(UserId(2), talk(1, 2));
    let stale = crate::reader::Loaded::read(&engine, SHARD_COUNT, load).expect("memory reads");
    commit(&mut shards, &engine);
    shards.loaded(stale);
    assert_eq!(mark_read(&mut shards, &engine, 2, 1), waits);
    shards.loaded(crate::reader::Loaded::read(&engine, SHARD_COUNT, load).expect("memory reads"));
    assert!(matches!(mark_read(&mut shards, &engine, 2, 2), Decision::Apply(_)));
}

/// Somebody waits for a talk when the batch that holds news of it is on its way; the read is done before the batch is
/// durable, and told after.
#[test]
fn a_read_of_a_talk_that_a_batch_overtakes_is_not_believed() {
    let (engine, shards) = world();
    drop(shards);
    let mut shards = recover(&engine, 5);
    ack(&mut shards, &engine, (2, 1), 2, &[(talk(1, 2), 2)]);
    let batch = shards.seal(0, true);
    shards.take_outgoing();
    engine.set_cold(true);
    let load = crate::command::Load::Talk(UserId(2), talk(1, 2));
    assert_eq!(mark_read(&mut shards, &engine, 2, 1), Decision::Waits(load));
    let stale = crate::reader::Loaded::read(&engine, SHARD_COUNT, load).expect("memory reads");
    engine.write(&batch).expect("memory writes");
    shards.durable(batch.number());
    shards.loaded(stale);
    assert_eq!(mark_read(&mut shards, &engine, 2, 1), Decision::Waits(load));
    shards.loaded(crate::reader::Loaded::read(&engine, SHARD_COUNT, load).expect("memory reads"));
    assert!(matches!(mark_read(&mut shards, &engine, 2, 2), Decision::Apply(_)));
}

#[test]
fn whoever_turns_read_receipts_off_gives_none_and_sees_none() {
    let (engine, mut shards) = world();
    let set = |shards: &mut Shards, user: u64, on: bool| {
        let decision = shards.decide_read_receipts(&engine, UserId(user), on).expect("memory reads");
        apply(shards, &decision);
        decision
    };
    assert_eq!(set(&mut shards, 1, true), Decision::Unchanged);
    assert!(matches!(set(&mut shards, 1, false), Decision::Apply(_)));
    assert!(matches!(set(&mut shards, 2, false), Decision::Apply(_)));
    commit(&mut shards, &engine);
    let mut shards = recover(&engine, 5);
    assert!(matches!(shards.read_receipts_on(&engine, UserId(1)), Ok(View::Known(false))));
    ack(&mut shards, &engine, (2, 1), 3, &[(talk(1, 2), 3)]);
    assert!(matches!(mark_read(&mut shards, &engine, 2, 2), Decision::Apply(Record::MarkedRead { tell: false, .. })));
    let outgoing = commit(&mut shards, &engine);
    assert_eq!(items(&outgoing), [(1, 3, 0)]);
    set(&mut shards, 2, true);
    mark_read(&mut shards, &engine, 2, 3);
    let reads = commit(&mut shards, &engine);
    assert_eq!(items(&reads), [(1, 0, 3)]);
    deliver(&mut shards, &engine, &outgoing);
    let arrived = deliver(&mut shards, &engine, &reads);
    assert!(matches!(arrived.as_slice(), [Decision::Apply(Record::Arrived { item: Arrival::Nothing, .. })]));
    assert_eq!((told(&engine, TalkKind::PeerDelivered).seq.0, told(&engine, TalkKind::PeerRead).seq), (3, EMPTY));
}

#[test]
fn versions_ascend_through_restarts() {
    let (engine, mut shards) = world();
    let mut last = 0;
    for seq in 1..=3 {
        ack(&mut shards, &engine, (2, 1), seq, &[(talk(1, 2), seq)]);
        let outgoing = commit(&mut shards, &engine);
        deliver(&mut shards, &engine, &outgoing);
        let row = told(&engine, TalkKind::PeerDelivered);
        assert!(row.seq.0 == seq && row.version > last);
        last = row.version;
        shards = recover(&engine, 5);
        let Ok(View::Known(view)) = shards.user(&engine, UserId(1), DeviceId(1)) else { panic!("memory reads") };
        assert!(view.receipts_head >= last);
    }
}

/// Only one range is kept of a conversation: whoever is away meanwhile must find all of them in it.
#[test]
fn what_expires_bit_by_bit_is_told_as_a_whole() {
    let (engine, mut shards) = world();
    let shard = |user| ShardId::of_user(UserId(user), SHARD_COUNT);
    let stream = Stream { from: shard(2), to: shard(1), lane: Lane::Receipt };
    let mut arrive = |n, delivered, expired: (u64, u64)| {
        let item = Item::Receipt {
            user: UserId(1),
            conversation: talk(1, 2),
            delivered: ConversationSeq(delivered),
            read: EMPTY,
            expired: (ConversationSeq(expired.0), ConversationSeq(expired.1)),
        };
        match deliver(&mut shards, &engine, &[Outgoing { stream, n, item }]).as_slice() {
            [Decision::Apply(Record::Arrived { item: Arrival::Receipt { mark, .. }, .. })] => {
                (mark.expired_after.0, mark.expired_through.0)
            }
            other => panic!("{other:?}"),
        }
    };
    arrive(1, 1, (0, 0));
    assert_eq!(arrive(2, 0, (1, 3)), (1, 3));
    assert_eq!(arrive(3, 0, (3, 4)), (1, 4), "it joins on");
    assert_eq!(arrive(4, 0, (5, 6)), (1, 6), "what lies between, the peer sent itself");
    arrive(5, 8, (0, 0));
    assert_eq!(arrive(6, 0, (8, 9)), (8, 9), "what was delivered has not expired");
}
