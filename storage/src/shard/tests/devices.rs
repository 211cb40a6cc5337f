//! Devices: how they are linked and registered, where they start, what they get a copy of, and how they end.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, InboxSeq, UserId};
use culver_protocol::limits::DEVICES_MAX;

use super::super::{DAY_MS, Loaded};
use super::*;
use crate::command::{Fingerprint, Load, UserView, View};
use crate::record::Place;

const KEY: Fingerprint = [7; 16];
const OTHER: Fingerprint = [8; 16];

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

/// A device logs in with a key, or none: what was decided is applied.
fn log_in(
    shards: &mut Shards,
    engine: &MemoryEngine,
    (user, device): (u64, u16),
    key: Option<Fingerprint>,
    proof: Proof,
) -> Decision {
    let decision = shards.decide_link(engine, UserId(user), DeviceId(device), key, proof, 5).expect("memory reads");
    apply(shards, &decision);
    decision
}

fn token(issued_s: u64) -> Proof {
    Proof::Token { issued_s }
}

/// A token shown in plaintext.
fn plaintext(issued_s: u64) -> Proof {
    Proof::PlaintextToken { issued_s }
}

fn remove(shards: &mut Shards, engine: &MemoryEngine, (user, device): (u64, u16), now_ms: u64) -> Decision {
    let decision = shards.decide_remove(engine, UserId(user), DeviceId(device), now_ms).expect("memory reads");
    apply(shards, &decision);
    decision
}

fn name(shards: &mut Shards, engine: &MemoryEngine, (user, device): (u64, u16), name: &str) -> Decision {
    let decision = shards.decide_name(engine, UserId(user), DeviceId(device), name).expect("memory reads");
    apply(shards, &decision);
    decision
}

/// The names of a user's devices, or that they must be read first.
fn names(shards: &mut Shards, engine: &MemoryEngine, user: u64) -> Option<Vec<(u16, String)>> {
    match shards.names(engine, UserId(user)).expect("memory reads") {
        View::Known(names) => Some(names.into_iter().map(|(device, name)| (device.0, name)).collect()),
        View::Waits(load) => {
            assert_eq!(load, Load::Names(UserId(user)));
            None
        }
    }
}

fn load_names(shards: &mut Shards, engine: &MemoryEngine, user: u64) {
    shards.loaded(Loaded::read(engine, SHARD_COUNT, Load::Names(UserId(user))).expect("memory reads"));
}

/// A ticket from after all that happens.
const PLAIN_TICKET: Proof = Proof::PlaintextTicket { issued_s: u64::MAX };
const UNKNOWN: Decision = Decision::Reject(ErrorCode::DeviceUnknown);

#[test]
fn a_token_registers_a_key_and_who_has_another_is_unknown() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    assert_eq!(log_in(&mut shards, &engine, (1, 1), Some(KEY), Proof::Registered), UNKNOWN, "nobody is there");
    let linked = log_in(&mut shards, &engine, (1, 1), Some(KEY), token(0));
    assert!(matches!(linked, Decision::Apply(Record::DeviceLinked { fingerprint: Some(KEY), .. })), "{linked:?}");
    for _ in 0..2 {
        assert_eq!(log_in(&mut shards, &engine, (1, 1), Some(KEY), Proof::Registered), Decision::Unchanged);
        assert_eq!(log_in(&mut shards, &engine, (1, 1), Some(KEY), token(0)), Decision::Unchanged);
        // Another key, none, another device, another user: the same for all.
        for (of, key) in [((1, 1), Some(OTHER)), ((1, 1), None), ((1, 2), Some(KEY)), ((2, 1), Some(KEY))] {
            assert_eq!(log_in(&mut shards, &engine, of, key, Proof::Registered), UNKNOWN);
        }
        assert_eq!(log_in(&mut shards, &engine, (1, 1), None, token(9)), UNKNOWN, "there is nothing to register");
        if !shards.is_batch_empty() {
            commit(&mut shards, &engine);
        }
        assert_eq!(shards.users.len(), 0, "nobody leaves anything in memory");
        shards = recover(&engine, 5);
    }
    assert!(view(&mut shards, &engine, 1, 1).linked && !view(&mut shards, &engine, 1, 2).linked);
}

#[test]
fn a_token_puts_a_key_in_the_place_of_another() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    log_in(&mut shards, &engine, (1, 1), Some(KEY), token(0));
    commit(&mut shards, &engine);
    let changed = log_in(&mut shards, &engine, (1, 1), Some(OTHER), token(0));
    let (user, device, fingerprint) = (UserId(1), DeviceId(1), OTHER);
    let expected = Record::DeviceRegistered { user, device, fingerprint, replaces: true, day: 0 };
    assert_eq!(changed, Decision::Apply(expected));
    commit(&mut shards, &engine);
    let mut shards = recover(&engine, 5);
    assert_eq!(log_in(&mut shards, &engine, (1, 1), Some(KEY), Proof::Registered), UNKNOWN);
    assert_eq!(log_in(&mut shards, &engine, (1, 1), Some(OTHER), Proof::Registered), Decision::Unchanged);
    let later = shards.decide_link(&engine, user, device, Some(OTHER), Proof::Registered, 3 * DAY_MS);
    assert_eq!(later.expect("memory reads"), Decision::Apply(Record::DeviceSeen { user, device, day: 3 }));
}

#[test]
fn who_shows_no_key_touches_none() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    log_in(&mut shards, &engine, (1, 1), Some(KEY), token(0));
    for (key, plain) in [(None, plaintext(0)), (Some(OTHER), plaintext(0)), (None, PLAIN_TICKET)] {
        assert_eq!(log_in(&mut shards, &engine, (1, 1), key, plain), Decision::Unchanged);
        assert_eq!(log_in(&mut shards, &engine, (1, 1), Some(KEY), Proof::Registered), Decision::Unchanged);
    }
    // What it links has no key, and gets one by a token only.
    let linked = log_in(&mut shards, &engine, (1, 2), Some(OTHER), plaintext(0));
    assert!(matches!(linked, Decision::Apply(Record::DeviceLinked { fingerprint: None, .. })), "{linked:?}");
    for key in [None, Some(OTHER)] {
        assert_eq!(log_in(&mut shards, &engine, (1, 2), key, Proof::Registered), UNKNOWN);
    }
    let registered = log_in(&mut shards, &engine, (1, 2), Some(OTHER), token(0));
    assert!(matches!(registered, Decision::Apply(Record::DeviceRegistered { replaces: false, .. })), "{registered:?}");
    assert_eq!(log_in(&mut shards, &engine, (1, 2), Some(OTHER), Proof::Registered), Decision::Unchanged);
}

#[test]
fn a_removed_device_is_unknown_and_earlier_tokens_register_nothing() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    for of in [(1, 1), (1, 2), (2, 1)] {
        log_in(&mut shards, &engine, of, Some(KEY), token(0));
    }
    let expected = Record::DeviceRemoved { user: UserId(1), device: DeviceId(1), tokens_from_s: 6 };
    assert_eq!(remove(&mut shards, &engine, (1, 1), 5999), Decision::Apply(expected));
    let expired = Decision::Reject(ErrorCode::TokenExpired);
    for _ in 0..2 {
        assert_eq!(remove(&mut shards, &engine, (1, 1), 7000), Decision::Reject(ErrorCode::DeviceNotFound));
        assert_eq!(log_in(&mut shards, &engine, (1, 1), Some(KEY), Proof::Registered), UNKNOWN);
        for issued_s in [0, 5] {
            assert_eq!(log_in(&mut shards, &engine, (1, 1), Some(KEY), token(issued_s)), expired);
            assert_eq!(log_in(&mut shards, &engine, (1, 2), Some(OTHER), token(issued_s)), expired, "nor another");
        }
        assert_eq!(log_in(&mut shards, &engine, (1, 2), Some(KEY), Proof::Registered), Decision::Unchanged);
        for (issued_s, expected) in [(5, Decision::Reject(ErrorCode::TicketStale)), (6, Decision::Unchanged)] {
            let decision = log_in(&mut shards, &engine, (1, 2), Some(KEY), Proof::Ticket { issued_s });
            assert_eq!(decision, expected, "what the user's other devices have had is void, and no more than that");
            assert_eq!(log_in(&mut shards, &engine, (1, 1), Some(KEY), Proof::Ticket { issued_s }), UNKNOWN);
        }
        assert_eq!(log_in(&mut shards, &engine, (2, 1), Some(KEY), token(0)), Decision::Unchanged, "another user");
        if !shards.is_batch_empty() {
            commit(&mut shards, &engine);
        }
        shards = recover(&engine, 5);
    }
    // A clock that went back lets no earlier token in again.
    remove(&mut shards, &engine, (1, 2), 1000);
    assert_eq!(log_in(&mut shards, &engine, (1, 2), Some(KEY), token(5)), expired);
    let linked = log_in(&mut shards, &engine, (1, 2), Some(KEY), token(6));
    assert!(matches!(linked, Decision::Apply(Record::DeviceLinked { fingerprint: Some(KEY), .. })), "{linked:?}");
    // The key that it had is good again, for it has a new token. The tickets that it had are not.
    for (issued_s, expected) in [(5, Decision::Reject(ErrorCode::TicketStale)), (6, Decision::Unchanged)] {
        assert_eq!(log_in(&mut shards, &engine, (1, 2), Some(KEY), Proof::Ticket { issued_s }), expected);
    }
    assert!(!view(&mut shards, &engine, 1, 2).siblings);
}

#[test]
fn a_removed_device_is_not_linked_in_plaintext_by_what_it_had() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    assert_eq!(log_in(&mut shards, &engine, (1, 1), None, PLAIN_TICKET), UNKNOWN, "nobody is there");
    for of in [(1, 1), (1, 2)] {
        let linked = log_in(&mut shards, &engine, of, None, plaintext(0));
        assert!(matches!(linked, Decision::Apply(Record::DeviceLinked { fingerprint: None, .. })), "{linked:?}");
    }
    remove(&mut shards, &engine, (1, 1), 5999);
    for _ in 0..2 {
        for issued_s in [0, 5] {
            for of in [(1, 1), (1, 2), (1, 3)] {
                let refused = log_in(&mut shards, &engine, of, None, plaintext(issued_s));
                assert_eq!(refused, Decision::Reject(ErrorCode::TokenExpired), "{of:?} by a token of {issued_s}");
            }
        }
        // The same for a device that was removed, one that never was, and a user who is not there.
        for of in [(1, 1), (1, 3), (2, 1)] {
            assert_eq!(log_in(&mut shards, &engine, of, None, PLAIN_TICKET), UNKNOWN, "{of:?}");
        }
        assert_eq!(log_in(&mut shards, &engine, (1, 2), None, PLAIN_TICKET), Decision::Unchanged);
        let earlier = log_in(&mut shards, &engine, (1, 2), None, Proof::PlaintextTicket { issued_s: 5 });
        assert_eq!(earlier, Decision::Reject(ErrorCode::TicketStale));
        if !shards.is_batch_empty() {
            commit(&mut shards, &engine);
        }
        shards = recover(&engine, 5);
    }
    let linked = log_in(&mut shards, &engine, (1, 1), None, plaintext(6));
    assert!(matches!(linked, Decision::Apply(Record::DeviceLinked { .. })), "{linked:?}");
    assert_eq!(log_in(&mut shards, &engine, (1, 1), None, PLAIN_TICKET), Decision::Unchanged);
}

#[test]
fn a_user_whose_last_device_is_removed_is_as_one_without_devices() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    link(&mut shards, &engine, 2, 1, 5);
    (0..5).for_each(|id| drop(accept(&mut shards, &engine, &send(1, 2, id), 5)));
    ack(&mut shards, &engine, (2, 1), 3, &[(talk(1, 2), 3)]);
    remove(&mut shards, &engine, (2, 1), 5);
    assert_eq!(ack(&mut shards, &engine, (2, 1), 4, &[(talk(1, 2), 4)]), Decision::Unchanged, "it is not linked");
    commit(&mut shards, &engine);
    for _ in 0..2 {
        assert_eq!(shards.devices(&engine, UserId(2)).expect("memory reads"), View::Known(Vec::new()));
        accept(&mut shards, &engine, &send(1, 2, rand::random()), 5);
        commit(&mut shards, &engine);
        shards = recover(&engine, 5);
    }
    // The first device has all that is kept: nothing was dropped, for nobody was there.
    log_in(&mut shards, &engine, (2, 7), None, plaintext(6));
    let first = view(&mut shards, &engine, 2, 7);
    assert_eq!((first.cursor, first.head, first.linked, first.siblings), (InboxSeq(0), InboxSeq(7), true, false));
}

/// What was told of it was true, and is not told again by who comes after it, nor taken back.
#[test]
fn what_a_removed_device_had_is_told_once() {
    for restarts in [false, true] {
        let engine = MemoryEngine::new();
        let mut shards = recover(&engine, 0);
        link(&mut shards, &engine, 2, 1, 5);
        link(&mut shards, &engine, 2, 2, 5);
        (0..5).for_each(|id| drop(accept(&mut shards, &engine, &send(1, 2, id), 5)));
        let delivered = |shards: &mut Shards, device, through| {
            let decision = ack(shards, &engine, (2, device), through, &[(talk(1, 2), through)]);
            let Decision::Apply(Record::CursorMoved { delivered, .. }) = decision else { panic!("{decision:?}") };
            commit(shards, &engine);
            delivered.iter().map(|acked| acked.seq.0).collect::<Vec<_>>()
        };
        assert_eq!(delivered(&mut shards, 1, 4), [4]);
        remove(&mut shards, &engine, (2, 1), 5);
        commit(&mut shards, &engine);
        if restarts {
            shards = recover(&engine, 5);
        }
        assert_eq!(delivered(&mut shards, 2, 2), [0; 0]);
        assert_eq!(delivered(&mut shards, 2, 5), [5]);
        let report = crate::verify::verify_engine(&engine, SHARD_COUNT).expect("memory reads");
        assert_eq!(report.findings, Vec::<String>::new());
    }
}

/// A device that was just linked says what it has: what was decided is applied.
fn come_back(shards: &mut Shards, engine: &MemoryEngine, (user, device): (u64, u16), claim: u64) -> Decision {
    let decision = shards.decide_return(engine, UserId(user), DeviceId(device), InboxSeq(claim)).expect("memory reads");
    apply(shards, &decision);
    decision
}

/// Both devices of user 2 were removed. The second was linked behind the first entry, which only the first was to fetch
/// and never did, and acknowledged the second; a third came after that. All is durable.
fn both_removed() -> (MemoryEngine, Shards) {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    link(&mut shards, &engine, 2, 1, 5);
    accept(&mut shards, &engine, &send(1, 2, 0), 5);
    link(&mut shards, &engine, 2, 2, 5);
    (1..3).for_each(|id| drop(accept(&mut shards, &engine, &send(3, 2, id), 5)));
    ack(&mut shards, &engine, (2, 2), 2, &[(talk(2, 3), 1)]);
    commit(&mut shards, &engine);
    remove(&mut shards, &engine, (2, 2), 5);
    remove(&mut shards, &engine, (2, 1), 5);
    commit(&mut shards, &engine);
    (engine, shards)
}

/// It drops what precedes its cursor, and acknowledges it: nobody is to be told that it has that.
#[test]
fn who_comes_back_to_a_user_without_devices_starts_behind_its_cursor() {
    for restarts in [false, true] {
        // The last of what it claims it had no time to acknowledge: nobody was told, and it comes again.
        for (claim, expected) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 0)] {
            let (engine, mut shards) = both_removed();
            if restarts {
                shards = recover(&engine, 5);
            }
            log_in(&mut shards, &engine, (2, 2), None, plaintext(6));
            come_back(&mut shards, &engine, (2, 2), claim);
            assert_eq!(view(&mut shards, &engine, 2, 2).cursor, InboxSeq(expected), "it claims {claim}");
            assert_eq!(commit(&mut shards, &engine), [], "nothing is told of that");
            let mut shards = recover(&engine, 6);
            assert_eq!(view(&mut shards, &engine, 2, 2).cursor, InboxSeq(expected), "it claims {claim}");
            // Whoever comes next has its sibling's past.
            log_in(&mut shards, &engine, (2, 1), None, plaintext(6));
            assert_eq!(come_back(&mut shards, &engine, (2, 1), 2), Decision::Unchanged);
            assert_eq!(view(&mut shards, &engine, 2, 1).cursor, InboxSeq(3));
            let decision = ack(&mut shards, &engine, (2, 2), 3, &[(talk(2, 3), 2)]);
            let Decision::Apply(Record::CursorMoved { delivered, .. }) = decision else { panic!("{decision:?}") };
            assert_eq!(delivered.iter().map(|acked| acked.seq.0).collect::<Vec<_>>(), [2]);
        }
    }
}

#[test]
fn a_cursor_that_a_first_login_claims_means_nothing_where_nobody_was_removed() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    accept(&mut shards, &engine, &send(1, 2, 0), 5);
    link(&mut shards, &engine, 2, 1, 5);
    assert_eq!(come_back(&mut shards, &engine, (2, 1), 1), Decision::Unchanged);
    assert_eq!(view(&mut shards, &engine, 2, 1).cursor, InboxSeq(0));
}

#[test]
fn names_are_as_long_as_they_may_be_and_of_devices_that_are_there() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    link(&mut shards, &engine, 1, 1, 5);
    let (none, long) = (ErrorCode::DeviceNotFound, ErrorCode::NameTooLong);
    assert_eq!(name(&mut shards, &engine, (1, 2), "watch"), Decision::Reject(none));
    assert_eq!(name(&mut shards, &engine, (2, 1), "watch"), Decision::Reject(none), "nor of a user");
    assert_eq!(name(&mut shards, &engine, (1, 1), &"n".repeat(65)), Decision::Reject(long));
    assert_eq!(name(&mut shards, &engine, (1, 1), ""), Decision::Unchanged);
    for text in ["phone".to_owned(), "n".repeat(64), "\u{1f426}".repeat(16)] {
        assert!(matches!(name(&mut shards, &engine, (1, 1), &text), Decision::Apply(Record::DeviceNamed { .. })));
        assert_eq!(names(&mut shards, &engine, 1), Some(vec![(1, text)]));
    }
    name(&mut shards, &engine, (1, 1), "");
    assert_eq!(names(&mut shards, &engine, 1), Some(vec![]));
    commit(&mut shards, &engine);
    assert_eq!(names(&mut recover(&engine, 5), &engine, 1), Some(vec![]));
}

#[test]
fn a_name_is_known_at_once_and_read_when_it_is_cold() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    (1..=2).for_each(|device| drop(link(&mut shards, &engine, 1, device, 5)));
    name(&mut shards, &engine, (1, 1), "phone");
    commit(&mut shards, &engine);
    shards = recover(&engine, 5);
    name(&mut shards, &engine, (1, 2), "watch");
    let both = || Some(vec![(1, "phone".to_owned()), (2, "watch".to_owned())]);
    assert_eq!(names(&mut shards, &engine, 1), both(), "one durable, and one not");
    engine.set_cold(true);
    assert_eq!(names(&mut shards, &engine, 1), None);
    load_names(&mut shards, &engine, 1);
    assert_eq!(names(&mut shards, &engine, 1), both());
    // A read that began before a batch was durable does not hold what that batch does.
    assert_eq!(names(&mut shards, &engine, 1), None);
    let early = Loaded::read(&engine, SHARD_COUNT, Load::Names(UserId(1))).expect("memory reads");
    commit(&mut shards, &engine);
    shards.loaded(early);
    assert_eq!(names(&mut shards, &engine, 1), None);
    load_names(&mut shards, &engine, 1);
    assert_eq!(names(&mut shards, &engine, 1), both());
}

#[test]
fn a_name_goes_with_its_device_and_is_not_in_the_users_row() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    log_in(&mut shards, &engine, (1, 1), Some(KEY), token(0));
    let user_row = |shards: &mut Shards| {
        let (mut len, mut rows) = (0, Vec::new());
        let batch = shards.seal(engine.sequence_synced(), true);
        batch.rows(|family, _, value| {
            rows.push(family.name());
            len = if family == crate::engine::Family::User { value.len() } else { len };
        });
        engine.write(&batch).expect("memory writes");
        shards.durable(batch.number());
        (len, rows)
    };
    let (before, _) = user_row(&mut shards);
    name(&mut shards, &engine, (1, 1), &"n".repeat(64));
    assert_eq!(user_row(&mut shards), (before, vec!["device", "user", "meta"]));
    name(&mut shards, &engine, (1, 1), "phone");
    assert_eq!(user_row(&mut shards).1, ["device", "meta"], "the user's row knows that it has one");
    let rows = |engine: &MemoryEngine| {
        let mut found = 0;
        let family = crate::engine::Family::Device;
        let visit = &mut |_: &[u8], _: &[u8]| {
            found += 1;
            std::ops::ControlFlow::Continue(())
        };
        engine.scan(family, &[], &[0xff; 13], crate::engine::Tier::Disk, visit).expect("memory reads");
        found
    };
    engine.compact().expect("memory merges");
    assert_eq!(rows(&engine), 1);
    remove(&mut shards, &engine, (1, 1), 5);
    assert_eq!(names(&mut shards, &engine, 1), Some(vec![]));
    assert_eq!(user_row(&mut shards).1, ["device", "user", "meta"]);
    engine.compact().expect("memory merges");
    assert_eq!(rows(&engine), 0, "nothing is left of it");
    log_in(&mut shards, &engine, (1, 1), Some(KEY), token(9));
    assert_eq!(names(&mut shards, &engine, 1), Some(vec![]), "who comes after it has none");
}

/// The day counts for who is linked, and links nobody.
#[test]
fn a_device_that_is_online_is_seen() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine, 0);
    link(&mut shards, &engine, 1, 1, 5);
    let mut seen = |device, now_ms| {
        let decision = shards.decide_seen(&engine, UserId(1), DeviceId(device), now_ms).expect("memory reads");
        apply(&mut shards, &decision);
        decision
    };
    assert_eq!(seen(1, 5), Decision::Unchanged);
    let expected = Record::DeviceSeen { user: UserId(1), device: DeviceId(1), day: 2 };
    assert_eq!(seen(1, 2 * DAY_MS), Decision::Apply(expected));
    assert_eq!(seen(1, 2 * DAY_MS), Decision::Unchanged);
    assert_eq!(seen(2, 2 * DAY_MS), Decision::Unchanged, "not linked");
}
