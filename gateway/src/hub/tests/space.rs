//! A disk has less room than its reserve: nothing new is accepted, and all else goes on.

use culver_protocol::error::ErrorCode::{AfterRejected, Busy};

use super::rules::calm;
use super::two_users;
use super::world::World;
use crate::hub::effect::EffectKind;

fn set_low(world: &mut World, is_low: bool) {
    world.nodes.iter_mut().for_each(|node| node.hub.set_space_low(is_low));
}

#[test]
fn without_room_on_a_disk_what_is_new_is_refused_and_what_was_accepted_is_answered_again() {
    let (mut world, one, _) = two_users();
    world.send_to(one, 2, 1);
    world.settle();
    set_low(&mut world, true);
    world.send_to(one, 2, 1);
    world.settle();
    // (The world has checked that it is the same answer.)
    world.send_to(one, 2, 2);
    world.send_to(one, 3, 3);
    world.send_to(one, 2, 4);
    world.take_commands();
    assert_eq!(world.outcomes(), [(2, Some(Busy)), (3, Some(Busy)), (4, Some(AfterRejected))]);
    // There is room, and what follows the first that was refused waits for it all the same.
    set_low(&mut world, false);
    for (number, outcome) in [(4, Some(AfterRejected)), (2, None), (4, None)] {
        world.send_to(one, 2, number);
        world.take_commands();
        assert_eq!(world.outcomes(), [(number, outcome)]);
    }
}

#[test]
fn who_is_refused_without_room_on_a_disk_is_not_asked_back_at_once() {
    let (mut world, one, _) = two_users();
    let mut wait_of = |is_low: bool, is_cold: bool, number: u128| {
        set_low(&mut world, is_low);
        world.engine.set_cold(is_cold);
        world.send_to(one, if is_cold { 3 } else { 4 }, number);
        world.take_commands();
        let waits = world.drain_effects().into_iter().filter_map(|effect| match effect.kind {
            EffectKind::Rejected { code, retry_after_ms, .. } => Some((code, retry_after_ms)),
            _ => None,
        });
        waits.last()
    };
    assert_eq!(wait_of(true, false, 1), Some((Busy, 2000)));
    assert_eq!(wait_of(true, false, 2), Some((AfterRejected, 0)));
    assert_eq!(wait_of(false, false, 1), None, "accepted");
    // Without room in a queue somebody else will have gone in a moment.
    let full = crate::hub::bounds::Bounds::default().parked_sends as u128;
    let waits: Vec<_> = (0..=full).map(|number| wait_of(false, true, 10 + number)).collect();
    assert_eq!(waits.last(), Some(&Some((Busy, 200))));
}

/// What waits for a read when the room goes has not been accepted.
#[test]
fn what_is_parked_when_the_room_goes_is_refused_in_order() {
    let (mut world, one, _) = two_users();
    world.outcomes();
    world.engine.set_cold(true);
    world.send_to(one, 4, 1);
    world.send_to(one, 4, 2);
    world.take_commands();
    assert_eq!((world.outcomes(), world.nodes[0].hub.parked()), (Vec::new(), 2));
    set_low(&mut world, true);
    world.engine.set_cold(false);
    world.read_all();
    world.take_commands();
    assert_eq!(world.outcomes(), [(1, Some(Busy)), (2, Some(AfterRejected))]);
}

#[test]
fn without_room_on_a_disk_deliveries_cursors_receipts_and_logins_go_on() {
    for hubs in [1, 3] {
        let mut world = calm(hubs, 1);
        let one = world.log_in(World::device(1));
        world.log_in(World::device(2));
        world.settle();
        world.send_to(one, 2, 1);
        world.send_to(one, 2, 2);
        world.send_to(one, 3, 3);
        // Accepted by the conversation's hub, and perhaps not yet taken in by the recipient's.
        world.take_commands();
        set_low(&mut world, true);
        world.log_in(World::device(3));
        world.drain();
        for (user, count) in [(2, 2), (3, 1)] {
            world.check_drained(World::device(user));
            assert_eq!(world.mark(World::device(1), user).delivered.0, count, "{hubs} hubs, user {user}");
        }
        assert_eq!(world.inbox(3).len(), 1, "{hubs} hubs");
    }
}
