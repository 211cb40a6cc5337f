//! Devices: how they are linked, where they start, what they get a copy of.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, InboxSeq, UserId};
use culver_protocol::limits::DEVICES_MAX;

use super::super::DAY_MS;
use super::*;
use crate::command::{UserView, View};
use crate::reader::Loaded;
use crate::record::Place;

fn view(shards: &mut Shards, engine: &MemoryEngine, user: u64, device: u16) -> UserView {
    match shards.user(engine, UserId(user), DeviceId(device)) {
        Ok(View::Known(view)) => view,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_device_has_all_and_others_start_at_the_head() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    (0..5).for_each(|id| drop(accept(&mut shards, &engine, &send(1, 2, id), 5)));
    link(&mut shards, &engine, 2, 1, 5);
    link(&mut shards, &engine, 2, 2, 5);
    assert_eq!(view(&mut shards, &engine, 2, 1).cursor, InboxSeq(0));
    let second = view(&mut shards, &engine, 2, 2);
    assert_eq!((second.cursor, second.linked, second.siblings), (InboxSeq(5), true, true));
    commit(&mut shards, &engine);
    let mut shards = recover(&engine, 5);
    assert_eq!([1, 2, 3].map(|device| view(&mut shards, &engine, 2, device).cursor.0), [0, 5, 5]);
    assert!(!view(&mut shards, &engine, 2, 3).linked);
}

#[test]
fn cursors_only_advance_and_only_of_what_is_linked() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    link(&mut shards, &engine, 2, 1, 5);
    (0..5).for_each(|id| drop(accept(&mut shards, &engine, &send(1, 2, id), 5)));
    assert!(matches!(ack(&mut shards, &engine, (2, 1), 3, &[]), Decision::Apply(Record::CursorMoved { .. })));
    assert_eq!(ack(&mut shards, &engine, (2, 1), 2, &[]), Decision::Unchanged);
    assert_eq!(ack(&mut shards, &engine, (2, 9), 3, &[]), Decision::Unchanged, "not linked");
    assert_eq!(ack(&mut shards, &engine, (2, 1), 6, &[]), Decision::Reject(ErrorCode::AckBeyondSent));
    assert_eq!(view(&mut shards, &engine, 2, 1).cursor, InboxSeq(3));
}

#[test]
fn a_ninth_device_is_refused_and_nothing_changes() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    let most = u16::try_from(DEVICES_MAX).expect("few devices");
    for device in 1..=most {
        assert!(matches!(link(&mut shards, &engine, 2, device, 5), Decision::Apply(_)));
    }
    let ninth = most + 1;
    assert_eq!(link(&mut shards, &engine, 2, ninth, 5), Decision::Reject(ErrorCode::DevicesFull));
    commit(&mut shards, &engine);
    assert_eq!(link(&mut shards, &engine, 2, ninth, 5), Decision::Reject(ErrorCode::DevicesFull));
    assert_eq!(link(&mut shards, &engine, 2, most, 5), Decision::Unchanged);
    assert!(shards.is_batch_empty());
    let Ok(View::Known(devices)) = shards.devices(&engine, UserId(2)) else { panic!("memory reads") };
    assert_eq!(devices.iter().map(|device| device.device.0).collect::<Vec<_>>(), (1..=most).collect::<Vec<_>>());
}

#[test]
fn a_login_leaves_nothing_in_memory() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    for user in 0..1000 {
        assert!(matches!(link(&mut shards, &engine, user, 1, 5), Decision::Apply(Record::DeviceLinked { .. })));
    }
    commit(&mut shards, &engine);
    assert_eq!(shards.users.len(), 0);
    for user in 0..1000 {
        assert_eq!(link(&mut shards, &engine, user, 1, 5), Decision::Unchanged);
    }
    assert_eq!(shards.users.len(), 0);
    for user in 0..1000 {
        let decision = link(&mut shards, &engine, user, 1, DAY_MS);
        assert_eq!(decision, Decision::Apply(Record::DeviceSeen { user: UserId(user), device: DeviceId(1), day: 1 }));
    }
    accept(&mut shards, &engine, &send(1, 2, 1), 5);
    commit(&mut shards, &engine);
    assert_eq!(shards.users.len(), 2, "whom a message touched or looked at stays");
}

#[test]
fn nor_does_one_that_waited_for_the_disk() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    (0..10).for_each(|user| drop(link(&mut shards, &engine, user, 1, 5)));
    commit(&mut shards, &engine);
    engine.set_cold(true);
    for user in 0..10 {
        let Decision::Waits(load) = link(&mut shards, &engine, user, 1, 5) else { panic!("memory does not know") };
        shards.loaded(Loaded::read(&engine, SHARD_COUNT, load).expect("memory reads"));
        assert_eq!(link(&mut shards, &engine, user, 1, 5), Decision::Unchanged);
        assert!(view(&mut shards, &engine, user, 1).linked, "read once for all that a login asks");
        shards.let_pass(UserId(user));
    }
    assert_eq!(shards.users.len(), 0);
    // One that changes something is pinned until that is durable, and then passes by itself.
    let Decision::Waits(load) = link(&mut shards, &engine, 1, 1, DAY_MS) else { panic!("memory does not know") };
    shards.loaded(Loaded::read(&engine, SHARD_COUNT, load).expect("memory reads"));
    assert!(matches!(link(&mut shards, &engine, 1, 1, DAY_MS), Decision::Apply(Record::DeviceSeen { .. })));
    shards.let_pass(UserId(1));
    assert_eq!(shards.users.len(), 1);
    commit(&mut shards, &engine);
    assert_eq!(shards.users.len(), 0);
}

#[test]
fn other_devices_of_the_sender_get_a_copy() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    link(&mut shards, &engine, 1, 1, 5);
    let alone = accept_whole(&mut shards, &engine, &send(1, 2, 1), 5);
    assert_eq!((alone.copy, alone.accepted().inbox_seq), (None, InboxSeq(0)));
    link(&mut shards, &engine, 1, 2, 5);
    let unknown = accept_whole(&mut shards, &engine, &Send { copy: false, ..send(1, 2, 2) }, 5);
    assert_eq!(unknown.copy, None);
    let copied = accept_whole(&mut shards, &engine, &send(1, 2, 3), 5);
    assert_eq!(copied.copy, Some(Place::Local(InboxSeq(1))));
    assert_eq!(copied.accepted().inbox_seq, InboxSeq(1));
    commit(&mut shards, &engine);
    assert_eq!(view(&mut recover(&engine, 5), &engine, 1, 2).head, InboxSeq(1));
    let again = recover(&engine, 5).decide_send(&engine, &send(1, 2, 3), 9).expect("memory reads");
    assert!(matches!(again, Decision::Duplicate(accepted) if accepted.inbox_seq == InboxSeq(1)));
}

#[test]
fn a_message_between_users_of_one_device_writes_what_it_needs() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    link(&mut shards, &engine, 1, 1, 5);
    link(&mut shards, &engine, 2, 1, 5);
    accept(&mut shards, &engine, &send(1, 2, 1), 5);
    commit(&mut shards, &engine);
    accept(&mut shards, &engine, &Send { copy: false, ..send(1, 2, 2) }, 6);
    let mut rows = Vec::new();
    shards.seal(0, true).rows(|family, _, _| rows.push(family.name()));
    assert_eq!(rows, ["inbox", "dedup", "conversation", "meta"]);
}
