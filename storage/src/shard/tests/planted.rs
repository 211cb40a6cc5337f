//! Each mistake planted in the shards shows: in a random life, or in a few words.

use std::panic::catch_unwind;

use super::*;
use crate::planted::{Bug, plant};
use crate::record::Place;

/// Some random life fails with the mistake, and none without it.
fn shows(bug: Bug, live: fn(u64)) {
    (0..4).for_each(live);
    let fails = |seed| {
        plant(Some(bug));
        let outcome = catch_unwind(|| live(seed));
        plant(None);
        outcome.is_err()
    };
    assert!((0..40).any(fails), "{bug:?}");
}

fn live_hubs(seed: u64) {
    hubs::live(seed);
}

#[test]
fn dedup_forgotten() {
    shows(Bug::DedupForgotten, life::live_in_memory);
}

#[test]
fn sequence_reused() {
    shows(Bug::SequenceReused, life::live_in_memory);
}

#[test]
fn message_id_reused() {
    shows(Bug::MessageIdReused, life::live_in_memory);
}

#[test]
fn outbox_dropped_early() {
    shows(Bug::OutboxDroppedEarly, live_hubs);
}

#[test]
fn outbox_applied_twice() {
    shows(Bug::OutboxAppliedTwice, live_hubs);
}

#[test]
fn outbox_bypassed() {
    shows(Bug::OutboxBypassed, live_hubs);
}

/// A user with two devices, and a message from the first to somebody and one from there.
fn two_devices() -> (MemoryEngine, Shards, MessageRecord) {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 1000);
    link(&mut shards, &engine, 1, 1, 1000);
    link(&mut shards, &engine, 1, 2, 1000);
    accept(&mut shards, &engine, &send(2, 1, 1), 1000);
    let message = accept_whole(&mut shards, &engine, &send(1, 2, 1), 1000);
    commit(&mut shards, &engine);
    (engine, shards, message)
}

#[test]
fn floor_above_lagging_device() {
    for (bug, folds) in [(None, 0), (Some(Bug::FloorAboveLaggingDevice), 1)] {
        plant(bug);
        let (engine, mut shards, _) = two_devices();
        ack(&mut shards, &engine, (1, 1), 1, &[(talk(1, 2), 1)]);
        commit(&mut shards, &engine);
        shards.fold_due(1000);
        assert_eq!(shards.fold_due(1_000_000).len(), folds, "{bug:?}");
        plant(None);
    }
}

#[test]
fn copy_forgotten() {
    for (bug, is_copied) in [(None, true), (Some(Bug::CopyForgotten), false)] {
        plant(bug);
        let (.., message) = two_devices();
        assert_eq!(matches!(message.copy, Some(Place::Local(_))), is_copied, "{bug:?}");
        plant(None);
    }
}

#[test]
fn removed_ticket_accepted() {
    shows(Bug::RemovedTicketAccepted, life::live_in_memory);
}

#[test]
fn removed_token_accepted() {
    shows(Bug::RemovedTokenAccepted, life::live_in_memory);
}

#[test]
fn removal_not_durable() {
    shows(Bug::RemovalNotDurable, life::live_in_memory);
}

#[test]
fn name_forgotten() {
    shows(Bug::NameForgotten, life::live_in_memory);
}
