//! What time does: entries expire, devices that stay away are unlinked, inboxes fill up, and clocks jump.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, InboxSeq, UserId};
use culver_storage::command::View;
use culver_storage::shard::{Bounds, DAY_MS, Policy};

use super::first_seed;
use super::rules::{answer_to, calm, logged_in};
use super::world::{INCARNATION, World};

fn calm_with(policy: Policy, hubs: u16) -> World {
    let mut world = World::with_policy(first_seed(), hubs, 1, policy);
    world.calm = true;
    world
}

/// Time passes in steps, without a command.
fn pass(world: &mut World, steps: u64, step_ms: u64) {
    for _ in 0..steps {
        world.pass(step_ms);
        world.move_hub();
        world.finish_write();
        world.read_all();
    }
    world.settle();
}

/// So many days pass, and then the sweep looks at every shard again.
fn pass_days(world: &mut World, days: u64) {
    pass(world, days, DAY_MS);
    pass(world, 300, 10_000);
}

#[test]
fn what_nobody_fetched_for_a_year_expires_and_the_sender_is_told() {
    for hubs in [1, 2] {
        expire(hubs);
    }
}

fn expire(hubs: u16) {
    let mut world = calm(hubs, 1);
    let one = world.log_in_with(World::device(1), 5);
    // The first has one message of three when it leaves; the others never come.
    let two = world.log_in_with(World::device(2), 5);
    world.settle();
    world.send_to(one, 2, 1);
    world.drain();
    world.close(two);
    world.settle();
    for (number, to) in [(2, 2), (3, 2), (4, 3), (5, 4), (6, 4)] {
        world.send_to(one, to, number);
    }
    world.settle();
    let told = |world: &World, peer| {
        let mark = world.mark(World::device(1), peer);
        (mark.delivered.0, mark.expired_after.0, mark.expired_through.0)
    };
    pass_days(&mut world, 364);
    world.drain();
    assert_eq!([2, 3, 4].map(|peer| told(&world, peer)), [(1, 0, 0), (0, 0, 0), (0, 0, 0)]);
    pass_days(&mut world, 2);
    world.drain();
    assert_eq!([2, 3, 4].map(|peer| told(&world, peer)), [(1, 1, 3), (0, 0, 1), (0, 0, 2)]);
    // Who comes back is told of the gap, and goes on behind it.
    let two = world.log_in_with(World::device(2), 5);
    world.settle();
    assert_eq!((world.clients[two as usize].gaps, world.clients[two as usize].sent), (1, InboxSeq(3)));
    world.send_to(one, 2, 7);
    world.drain();
    assert_eq!(world.clients[two as usize].deliveries, 1);
    assert_eq!(told(&world, 2), (4, 1, 3));
}

#[test]
fn a_device_that_stays_away_is_unlinked_and_its_return_is_a_gap() {
    let mut world = calm(1, 2);
    let one = world.log_in_with(World::device(1), 5);
    let two = world.log_in_with(World::device(2), 5);
    world.settle();
    let away = World::device_of(1, 2);
    let other = world.log_in_with(away, 5);
    world.settle();
    for number in 1..=2 {
        world.send_to(two, 1, number);
    }
    world.drain();
    world.close(other);
    for number in 3..=5 {
        world.send_to(two, 1, number);
    }
    world.drain();
    let devices = |world: &mut World| {
        let engine = world.engine.clone();
        let View::Known(devices) = world.nodes[0].hub.shards.devices(&*engine, UserId(1)).expect("readable") else {
            panic!("the engine is warm")
        };
        devices.into_iter().map(|device| (device.device.0, device.cursor.0)).collect::<Vec<_>>()
    };
    pass_days(&mut world, 89);
    assert_eq!(devices(&mut world), [(1, 5), (2, 2)]);
    assert!(world.clients[one as usize].siblings);
    // One that is online is not away, however long ago it logged in.
    pass_days(&mut world, 3);
    assert_eq!(devices(&mut world), [(1, 5)]);
    assert!(!world.clients[one as usize].siblings, "it is alone now");
    assert_eq!(world.nodes[0].hub.take_counts().floors_moved, 2, "nothing holds the log back any more");
    assert_eq!(logged_in(&answer_to(&mut world, 2, 2, INCARNATION)), (5, false, true, true));
    assert_eq!(devices(&mut world), [(1, 5), (2, 5)]);
}

#[test]
fn a_clock_that_jumps_expires_nothing_and_holds_nothing_up() {
    const YEAR_MS: u64 = 366 * DAY_MS;
    let mut world = calm(2, 1);
    let (one, two) = (world.log_in_with(World::device(1), 5), world.log_in_with(World::device(2), 5));
    world.settle();
    world.close(two);
    for number in 1..=3 {
        world.send_to(one, 2, number);
    }
    world.settle();
    let changes = |world: &mut World| [0, 1].map(|hub: usize| world.nodes[hub].hub.take_expiry_change());
    assert_eq!(changes(&mut world), [None; 2]);
    world.now_ms += YEAR_MS;
    pass(&mut world, 300, 10_000);
    assert_eq!(changes(&mut world), [Some(true); 2]);
    assert_eq!(changes(&mut world), [None; 2], "told once");
    let two = world.log_in_with(World::device(2), 2);
    world.send_to(one, 2, 4);
    world.settle();
    assert_eq!((world.clients[two as usize].gaps, world.clients[two as usize].sent), (0, InboxSeq(2)));
    // A cursor waits for company, and what is under way between hubs is lost, when it goes back.
    world.acknowledge(two, 1);
    world.send_to(one, 2, 5);
    world.send_to(two, 1, 6);
    world.take_command();
    world.move_hub();
    world.finish_write();
    world.move_hub();
    world.lose_mail();
    world.now_ms -= 2 * YEAR_MS;
    world.drain();
    for (user, count) in [(1, 1), (2, 5)] {
        world.check_drained(World::device(user));
        let ids: Vec<_> = world.inbox(user).iter().map(|entry| entry.message_id).collect();
        assert!(ids.len() == count && ids.is_sorted(), "ids ascend: {ids:?}");
    }
    assert_eq!(world.mark(World::device(1), 2).delivered.0, 5);
    assert!(world.nodes.iter().all(|node| node.hub.is_expiry_stopped()));
    world.now_ms += YEAR_MS;
    pass(&mut world, 1, 1000);
    assert_eq!(changes(&mut world), [Some(false); 2]);
}

#[test]
fn a_full_inbox_takes_no_more_whichever_hub_it_is_of() {
    let mut cases = [0; 2];
    for to in 2..=4 {
        let is_across = fill_up(to);
        cases[usize::from(is_across)] += 1;
    }
    assert!(cases.iter().all(|count| *count > 0), "both were seen: {cases:?}");
}

/// Whether conversation and inbox are different hubs'.
fn fill_up(to: u64) -> bool {
    const QUOTA: u64 = 3;
    let mut world = calm_with(Policy { quota_entries: QUOTA, ..Policy::default() }, 2);
    let home = world.topology.hub_of_conversation(ConversationId::direct(UserId(1), UserId(to)));
    let is_across = home != world.topology.hub_of_user(UserId(to));
    let one = world.log_in_with(World::device(1), 5);
    let recipient = world.log_in_with(World::device(to), 5);
    world.settle();
    world.close(recipient);
    world.settle();
    let send = |world: &mut World, number| {
        world.send_to(one, to, number);
        for _ in 0..100 {
            world.pass(1);
            world.take_command();
            world.take_mail();
            world.move_hub();
            world.finish_write();
        }
        let [(of, code)] = <[_; 1]>::try_from(world.outcomes()).expect("one outcome");
        assert_eq!(of, number);
        code
    };
    let taken = (1..).find(|number| send(&mut world, *number).is_some()).expect("there is an end to it") - 1;
    let taken = u64::try_from(taken).expect("few");
    // The other hub takes what is on its way when it says that it is full.
    assert!(if is_across { (QUOTA..=QUOTA + 1).contains(&taken) } else { taken == QUOTA }, "{taken} taken");
    assert_eq!(send(&mut world, u128::from(taken) + 1), Some(ErrorCode::RecipientFull));
    assert_eq!(world.inbox(to).len() as u64, taken, "what was refused left nothing");
    world.log_in_with(World::device(to), 5);
    world.drain();
    world.pass(Bounds::default().full_ms);
    assert_eq!(send(&mut world, u128::from(taken) + 1), None, "there is room again");
    is_across
}

#[test]
fn a_floor_that_rises_over_a_live_session_is_a_gap() {
    for refusals in 0..3 {
        rise_over_a_live_session(refusals);
    }
}

/// So many deliveries find no room, the gap the first of them.
fn rise_over_a_live_session(refusals: usize) {
    let policy = Policy { retention_ms: 30 * DAY_MS, ..Policy::default() };
    let mut world = World::with_policy(first_seed(), 1, 1, policy);
    world.calm = true;
    let (one, two) = (world.log_in_with(World::device(1), 2), world.log_in_with(World::device(2), 2));
    world.settle();
    for number in 1..=5 {
        world.send_to(one, 2, number);
    }
    world.settle();
    world.refusals = refusals;
    // It acknowledges nothing for as long as anything is kept; the clock for that goes on.
    for _ in 0..31 * 24 * 4 {
        world.pass(DAY_MS / 24 / 4);
        world.move_hub();
        world.finish_write();
        world.read_all();
    }
    world.settle();
    assert_eq!(world.clients[two as usize].gaps, 1);
    assert_eq!(world.clients[two as usize].sent, InboxSeq(5));
    // What was under way counts no more, for nobody is going to acknowledge it.
    assert_eq!(world.clients[two as usize].under_way.len(), 0);
    world.send_to(one, 2, 6);
    world.send_to(one, 2, 7);
    world.drain();
    assert_eq!(world.clients[two as usize].sent, InboxSeq(7));
}
