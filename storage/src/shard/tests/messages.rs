//! Messages, their ids and places, and what memory keeps of them.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::message::Accepted;

use super::super::{Bounds, HEAD_HINT_LAG_MAX, Loaded};
use super::*;
use crate::command::{Load, UserView, View};

#[test]
fn strangers_and_other_kinds_are_refused() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    let stranger = Send { sender: UserId(3), ..send(1, 2, 1) };
    let group = Send { conversation: ConversationId([0xff; 16]), ..send(1, 2, 1) };
    let group_like =
        Send { conversation: ConversationId(((9u128 << 64) | 1).to_be_bytes()), sender: UserId(9), ..send(1, 2, 1) };
    let mut decide = |send: &Send| shards.decide_send(&engine, send, 0).expect("memory reads");
    assert_eq!(decide(&stranger), Decision::Reject(ErrorCode::NotAMember));
    assert_eq!(decide(&group), Decision::Reject(ErrorCode::NotAMember));
    assert_eq!(decide(&group_like), Decision::Reject(ErrorCode::ConversationInvalid));
}

#[test]
fn a_note_to_oneself_is_in_ones_own_inbox() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    let note = send(7, 7, 1);
    let Decision::Apply(Record::Message(message)) = shards.decide_send(&engine, &note, 5).expect("memory reads") else {
        panic!("a note is accepted")
    };
    assert_eq!((message.recipient, message.accepted().inbox_seq), (UserId(7), InboxSeq(1)));
    shards.apply(&Record::Message(message.clone()));
    commit(&mut shards, &engine);
    let again = recover(&engine, 5).decide_send(&engine, &note, 9).expect("memory reads");
    assert_eq!(again, Decision::Duplicate(Accepted { duplicate: true, ..message.accepted() }));
}

#[test]
fn a_duplicate_is_known_in_every_state_of_its_batch() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    let first = send(1, 2, 1);
    accept(&mut shards, &engine, &first, 5);
    let is_duplicate = |shards: &mut Shards| matches!(shards.decide_send(&engine, &first, 6), Ok(Decision::Duplicate(accepted)) if accepted.conversation_seq.0 == 1);
    assert!(is_duplicate(&mut shards), "under construction");
    let batch = shards.seal(0, true);
    assert!(is_duplicate(&mut shards), "under way");
    engine.write(&batch).expect("memory writes");
    shards.durable(batch.number());
    assert!(is_duplicate(&mut shards), "durable");
    assert!(is_duplicate(&mut recover(&engine, 0)), "after a restart");
}

#[test]
fn time_never_goes_back_even_if_the_clock_does() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    let before = accept(&mut shards, &engine, &send(1, 2, 1), 1_000_000);
    assert_eq!(accept(&mut shards, &engine, &send(1, 2, 2), 5).server_time_ms, before.server_time_ms);
    commit(&mut shards, &engine);
    let after = accept(&mut recover(&engine, 5), &engine, &send(1, 2, 3), 5);
    assert_eq!(after.server_time_ms, 1_000_000 + Bounds::default().time_reservation_ms);
}

/// Even one that was never written: it would be expired, and its id forgotten, as soon as the clock is right again.
#[test]
fn no_message_is_older_than_the_clock_that_entries_expire_by() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 1_000_000);
    let moved = shards.tick(1_000_000, 0).expect("a new clock is written at once");
    shards.apply(&moved);
    commit(&mut shards, &engine);
    let mut shards = recover(&engine, 5);
    assert_eq!(accept(&mut shards, &engine, &send(1, 2, 1), 5).server_time_ms, 1_000_000);
}

#[test]
fn a_full_counter_borrows_from_the_next_millisecond() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    let mut last = MessageId(0);
    for id in 0..10_000 {
        let entry = accept(&mut shards, &engine, &send(1, 2, id), 77);
        assert!(entry.message_id > last);
        last = entry.message_id;
    }
    assert_eq!(last.time_ms(), 79);
}

#[test]
fn the_head_hint_is_never_far_behind() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    for id in 1..=3 * HEAD_HINT_LAG_MAX {
        accept(&mut shards, &engine, &send(1, 2, u128::from(id)), 5);
        commit(&mut shards, &engine);
        let view = recover(&engine, 0).user(&engine, UserId(2), DeviceId(1)).expect("memory reads");
        assert_eq!(view, View::Known(UserView { head: InboxSeq(id), ..UserView::default() }));
    }
}

#[test]
fn cursors_that_wait_for_a_later_batch_are_in_memory_until_then() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    link(&mut shards, &engine, 2, 1, 5);
    accept(&mut shards, &engine, &send(1, 2, 1), 5);
    commit(&mut shards, &engine);
    assert!(matches!(ack(&mut shards, &engine, (2, 1), 1, &[]), Decision::Apply(_)));
    let cursor = |shards: &mut Shards| match shards.user(&engine, UserId(2), DeviceId(1)) {
        Ok(View::Known(view)) => view.cursor.0,
        other => panic!("{other:?}"),
    };
    for round in 2..5 {
        accept(&mut shards, &engine, &send(3, 4, round), 5);
        let batch = shards.seal(engine.sequence_synced(), false);
        engine.write(&batch).expect("memory writes");
        shards.durable(batch.number());
        assert_eq!((cursor(&mut shards), cursor(&mut recover(&engine, 0))), (1, 0));
        assert!(!shards.is_batch_empty(), "something waits to be written");
    }
    commit(&mut shards, &engine);
    assert_eq!((cursor(&mut shards), cursor(&mut recover(&engine, 0))), (1, 1));
    assert!(shards.is_batch_empty());
}

#[test]
fn a_login_of_a_stranger_leaves_nothing_behind() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    for user in 0..1000 {
        let view = shards.user(&engine, UserId(user), DeviceId(1)).expect("memory reads");
        assert_eq!(view, View::Known(UserView::default()));
    }
    assert_eq!(shards.users.len(), 0);
}

#[test]
fn a_read_begun_before_a_change_is_not_believed() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    accept(&mut shards, &engine, &send(1, 2, 1), 5);
    commit(&mut shards, &engine);
    let stale = Loaded::read(&engine, SHARD_COUNT, Load::User(UserId(2))).expect("memory reads");
    accept(&mut shards, &engine, &send(1, 2, 2), 5);
    commit(&mut shards, &engine);

    let mut shards = recover(&engine, 0);
    engine.set_cold(true);
    let waits = View::Waits(Load::User(UserId(2)));
    assert_eq!(shards.user(&engine, UserId(2), DeviceId(1)).expect("memory reads"), waits);
    shards.loaded(stale.clone());
    assert_eq!(shards.user(&engine, UserId(2), DeviceId(1)).expect("memory reads"), waits, "too old");
    let fresh = Loaded::read(&engine, SHARD_COUNT, Load::User(UserId(2))).expect("memory reads");
    shards.loaded(fresh.clone());
    let expected = View::Known(UserView { head: InboxSeq(2), ..UserView::default() });
    assert_eq!(shards.user(&engine, UserId(2), DeviceId(1)).expect("memory reads"), expected);
    shards.loaded(stale);
    shards.loaded(fresh);
    assert_eq!(shards.user(&engine, UserId(2), DeviceId(1)).expect("memory reads"), expected, "nobody waits");
}

#[test]
fn a_sender_s_first_messages_after_a_start_are_looked_up_one_by_one() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    accept(&mut shards, &engine, &send(1, 2, 1), 5);
    commit(&mut shards, &engine);

    let mut shards = recover(&engine, 0);
    // Warm, for the rows of conversation and user are not what is looked at here.
    accept(&mut shards, &engine, &send(1, 2, 2), 5);
    commit(&mut shards, &engine);
    engine.set_cold(true);
    let lookups_first = Bounds::default().lookups_first;
    for id in 3..=lookups_first + 2 {
        let send = send(1, 2, id.into());
        let Ok(Decision::Waits(load)) = shards.decide_send(&engine, &send, 5) else {
            panic!("message {id} has to be looked up on the disk");
        };
        let is_last = id == lookups_first + 2;
        assert_eq!(matches!(load, Load::Newest(_)), is_last, "message {id} waits for {load:?}");
        shards.loaded(Loaded::read(&engine, SHARD_COUNT, load).expect("memory reads"));
    }
}
