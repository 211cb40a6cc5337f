//! The hub under chance: see [`world`]. What chance finds rarely has a test of its own.

mod devices;
mod drivers;
mod rates;
mod retention;
mod rules;
mod space;
mod world;

use std::ops::RangeInclusive;

use culver_protocol::error::ErrorCode::{AfterRejected, Busy};

use rand::Rng;

use self::world::World;
use super::bounds::Bounds;
use super::effect::EffectKind;

/// Lives of a hub in one run.
const LIVES: u64 = 100;
/// Times in each that it calms down, and everything must have arrived.
const CALMS: usize = 8;
/// Steps of chance before each.
const STEPS: usize = 200;

/// The first seed, from the environment variable `SEED` if one failed before.
fn first_seed() -> u64 {
    std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random)
}

fn live(hubs: RangeInclusive<u16>, devices: RangeInclusive<u16>) {
    live_with(hubs, devices, false);
}

fn live_with(hubs: RangeInclusive<u16>, devices: RangeInclusive<u16>, has_keys: bool) {
    let first = first_seed();
    for seed in (0..LIVES).map(|index| first.wrapping_add(index)) {
        println!("SEED={seed}");
        let choice = usize::try_from(seed % 16).expect("small");
        let devices = devices.clone().cycle().nth(choice).expect("it goes on for ever");
        let mut world = World::new(seed, *hubs.start(), devices);
        world.has_keys = has_keys;
        for _ in 0..CALMS {
            for _ in 0..STEPS {
                world.step();
            }
            if world.random.random_bool(0.3) {
                let hubs = world.random.random_range(hubs.clone());
                world.restart_with(hubs);
            }
            world.calm_down();
        }
    }
}

#[test]
fn nothing_is_lost_early_twice_or_out_of_order() {
    live(1..=1, 1..=1);
}

#[test]
fn nor_is_it_with_several_devices() {
    live(1..=1, 2..=4);
}

#[test]
fn nor_is_it_with_several_hubs() {
    live(2..=2, 1..=3);
    live(3..=3, 1..=2);
}

#[test]
fn nor_is_it_when_the_number_of_hubs_changes() {
    live(1..=3, 1..=3);
}

#[test]
fn nor_is_it_where_devices_have_keys_and_are_removed() {
    live_with(1..=1, 1..=3, true);
}

#[test]
fn nor_is_it_where_several_hubs_have_devices_removed() {
    live_with(1..=3, 1..=3, true);
}

/// A calm world in which users 1 and 2 are online.
fn two_users() -> (World, u32, u32) {
    let mut world = World::new(first_seed(), 1, 1);
    world.calm = true;
    let (one, two) = (world.log_in_with(World::device(1), 3), world.log_in_with(World::device(2), 3));
    world.settle();
    (world, one, two)
}

/// Deliveries of a later batch were on their way when an earlier one was refused: they do not join on, and the log
/// did not hold them yet when it was read.
#[test]
fn what_was_not_durable_when_a_delivery_was_refused_comes_again() {
    let (mut world, one, _) = two_users();
    world.send_to(one, 2, 1);
    world.take_command();
    world.move_hub();
    world.send_to(one, 2, 2);
    world.take_command();
    world.finish_write();
    world.refusals = 1;
    world.move_hub();
    world.read_all();
    world.drain();
    world.check_drained(World::device(2));
}

/// The same, where the socket took nothing.
#[test]
fn what_was_not_durable_when_delivery_resumed_comes_again() {
    let (mut world, one, two) = two_users();
    world.block(two, true);
    world.send_to(one, 2, 1);
    world.take_command();
    world.move_hub();
    world.send_to(one, 2, 2);
    world.take_command();
    world.finish_write();
    world.move_hub();
    world.take_effects();
    world.block(two, false);
    world.resume(two);
    world.take_command();
    world.read_all();
    world.drain();
    world.check_drained(World::device(2));
}

/// The log holds it already, and a page with it is on its way, when its live copy finds no room.
#[test]
fn what_is_refused_from_before_a_session_was_set_back_sets_nothing_back() {
    let (mut world, one, two) = two_users();
    world.block(two, true);
    for number in 1..=3 {
        world.send_to(one, 2, number);
        world.take_command();
        if number < 3 {
            world.finish_write();
            world.move_hub();
        }
    }
    world.finish_write();
    world.move_hub();
    world.take_effects();
    world.block(two, false);
    world.resume(two);
    world.take_command();
    world.move_hub();
    world.finish_write();
    world.make_read();
    world.take_result();
    world.refusals = 1;
    world.move_hub();
    world.drain();
    world.check_drained(World::device(2));
}

/// The index of a session is used again at once, and readers may be slow.
#[test]
fn a_page_of_an_earlier_session_says_nothing_about_the_next() {
    let (mut world, one, two) = two_users();
    world.close(two);
    world.send_to(one, 2, 1);
    world.settle();
    // An earlier session has found the end of the log, but the hub does not know yet.
    world.log_in_with(World::device(2), 3);
    world.take_command();
    world.move_hub();
    world.move_hub();
    world.make_read();
    world.take_result();
    world.move_hub();
    world.make_read();
    world.take_effects();
    world.acknowledge_all();
    world.take_command();
    // What came later is behind the end that it found.
    world.send_to(one, 2, 2);
    world.take_command();
    world.log_in(World::device(2));
    world.take_command();
    world.move_hub();
    world.finish_write();
    world.move_hub();
    world.take_result();
    world.drain();
    world.check_drained(World::device(2));
}

/// A receipt found no room, and before the next one is posted a newer login takes the session's place: that one would
/// be told with a hole before it, which a client takes for told.
#[test]
fn behind_a_receipt_without_room_nothing_is_told_to_a_session_that_is_gone() {
    let (mut world, one, two) = two_users();
    for number in 1..=3 {
        world.send_to(one, 2, number);
    }
    world.settle();
    world.acknowledge(two, 1);
    world.settle();
    // What is known by now is told with the batch itself.
    world.acknowledge(two, 1);
    world.take_command();
    world.pass(30);
    world.move_hub();
    world.acknowledge(two, 1);
    world.take_command();
    world.pass(30);
    world.finish_write();
    world.refusals = 1;
    world.move_hub();
    assert_eq!(world.refusals, 0, "the first found no room");
    world.log_in(World::device(1));
    world.take_command();
    world.finish_write();
    world.move_hub();
    let told: Vec<_> = world.nodes[0].effects.iter().map(|effect| &effect.kind).collect();
    assert!(!told.iter().any(|kind| matches!(kind, EffectKind::Receipt { .. })), "{told:?}");
    world.drain();
    assert_eq!(world.mark(World::device(1), 2).delivered.0, 3);
}

#[test]
fn after_a_busy_nothing_of_that_conversation_passes_until_the_rejected_returns() {
    let parked = Bounds::default().parked_sends;
    let full = parked as u128;
    let (mut world, one, _) = two_users();
    world.outcomes();
    world.engine.set_cold(true);
    for number in 1..=full + 2 {
        world.send_to(one, 4, number);
    }
    world.take_commands();
    assert_eq!(world.outcomes(), [(full + 1, Some(Busy)), (full + 2, Some(Busy))]);
    assert_eq!(world.nodes[0].hub.parked(), parked);
    // Its messages to others find no room either; what is no message always does.
    world.send_to(one, 3, full + 10);
    world.acknowledge_all();
    world.take_commands();
    assert_eq!(world.outcomes(), [(full + 10, Some(Busy))]);
    // There is room again.
    world.engine.set_cold(false);
    world.read_all();
    world.take_commands();
    assert_eq!(world.nodes[0].hub.parked(), 0);
    let outcomes = world.outcomes();
    let expected: Vec<_> = (1..=full).map(|number| (number, None)).collect();
    assert!(outcomes == expected, "{} outcomes, the last {:?}", outcomes.len(), outcomes.last());
    let mut outcome = |slot: u32, to: u64, number: u128| {
        world.send_to(slot, to, number);
        world.take_commands();
        world.outcomes()
    };
    assert_eq!(outcome(one, 4, full + 3), [(full + 3, Some(AfterRejected))]);
    assert_eq!(outcome(one, 4, full + 2), [(full + 2, Some(AfterRejected))], "it is not the first that was rejected");
    assert_eq!(outcome(one, 3, full + 11), [(full + 11, Some(AfterRejected))]);
    assert_eq!(outcome(one, 2, full + 20), [(full + 20, None)], "another conversation");
    for number in [full + 1, full + 2, full + 3] {
        assert_eq!(outcome(one, 4, number), [(number, None)]);
    }
    // A new session is not refused on account of an old one, which has not returned its full + 10.
    let newer = world.log_in(World::device(1));
    world.send_to(newer, 3, full + 11);
    world.send_to(one, 3, full + 10);
    world.take_commands();
    assert_eq!(world.outcomes(), [(full + 11, None), (full + 10, None)], "who sends for a device does not matter");
    world.close(one);
    world.close(newer);
    world.take_commands();
    assert!(world.nodes[0].hub.rejected.is_empty() && world.nodes[0].hub.sessions() == 1, "nothing is kept of them");
}

/// What is refused while the first refused, returned, is parked follows it, and nothing that follows passes it.
#[test]
fn what_is_refused_behind_a_rejected_that_has_returned_and_waits_is_not_forgotten() {
    let full = Bounds::default().parked_sends as u128;
    let (mut world, one, _) = two_users();
    world.outcomes();
    world.engine.set_cold(true);
    for number in 1..=full + 1 {
        world.send_to(one, 4, number);
    }
    world.take_commands();
    assert_eq!(world.outcomes(), [(full + 1, Some(Busy))]);
    world.engine.set_cold(false);
    world.read_all();
    world.take_commands();
    assert_eq!(world.outcomes().len(), full as usize, "there is room again");
    world.engine.set_cold(true);
    world.send_to(one, 3, 2 * full);
    world.send_to(one, 4, full + 1);
    for number in 2 * full + 1..=3 * full - 2 {
        world.send_to(one, 3, number);
    }
    world.send_to(one, 4, full + 2);
    world.take_commands();
    assert_eq!(world.outcomes(), [(full + 2, Some(Busy))]);
    world.engine.set_cold(false);
    world.read_all();
    world.take_commands();
    assert!(world.outcomes().contains(&(full + 1, None)), "it has returned");
    for (number, outcome) in [(full + 3, Some(AfterRejected)), (full + 2, None), (full + 3, None)] {
        world.send_to(one, 4, number);
        world.take_commands();
        assert_eq!(world.outcomes(), [(number, outcome)]);
    }
}

/// However many conversations a client is refused in without ever returning to one, little is kept of it.
#[test]
fn what_is_kept_of_refused_sends_is_bounded() {
    let (mut world, one, _) = two_users();
    world.engine.set_cold(true);
    let Bounds { parked_sends, rejected, .. } = Bounds::default();
    let full = parked_sends as u64;
    for number in 1..=full {
        world.send_to(one, 4, number.into());
    }
    for number in full + 1..=full + 2 * rejected as u64 {
        world.send_to(one, number, number.into());
    }
    world.take_commands();
    let kept: usize = world.nodes[0].hub.rejected.values().map(Vec::len).sum();
    assert_eq!(kept, rejected);
}
