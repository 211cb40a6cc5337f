//! Devices that send faster than they may: who is refused, and that what follows waits for it.

use culver_protocol::error::ErrorCode::{self, AfterRejected, LoginsBusy, RateLimited};
use culver_protocol::id::UserId;

use super::super::rates::{Limits, LoginRates, Rates};
use super::rules::{answer_to_shown, calm};
use super::two_users;
use super::world::{INCARNATION, World};
use crate::buckets::Limit;
use crate::hub::command::{Fingerprint, Proof};
use crate::hub::effect::EffectKind;

const KEY: Fingerprint = [7; 16];

/// From now on a device may send so many messages at once, and one a second.
fn limit(world: &mut World, burst: u32) {
    let hub = &mut world.nodes[0].hub;
    hub.rates = Rates::new(Limits { device: Some(Limit::new(1, burst)), user: None });
    hub.rates.pass(0);
}

fn outcomes(world: &mut World, sends: &[(u32, u64, u128)]) -> Vec<(u128, Option<ErrorCode>)> {
    sends.iter().for_each(|(slot, to, number)| world.send_to(*slot, *to, *number));
    world.take_commands();
    world.outcomes()
}

#[test]
fn what_follows_a_message_that_came_too_fast_waits_for_it_though_there_is_room() {
    let (mut world, one, _) = two_users();
    world.outcomes();
    limit(&mut world, 2);
    let at_once = outcomes(&mut world, &[(one, 2, 1), (one, 2, 2), (one, 2, 3), (one, 2, 4), (one, 3, 10)]);
    let refused = [(3, Some(RateLimited)), (4, Some(AfterRejected)), (10, Some(RateLimited))];
    assert_eq!(at_once, [[(1, None), (2, None)].as_slice(), &refused].concat());
    world.nodes[0].hub.rates.pass(1000);
    // What follows is refused without spending anything, and there is room for one message.
    assert_eq!(outcomes(&mut world, &[(one, 2, 4), (one, 2, 5)]), [(4, Some(AfterRejected)), (5, Some(AfterRejected))]);
    assert_eq!(outcomes(&mut world, &[(one, 2, 3), (one, 2, 4)]), [(3, None), (4, Some(RateLimited))]);
    world.nodes[0].hub.rates.pass(2000);
    assert_eq!(outcomes(&mut world, &[(one, 2, 5)]), [(5, Some(AfterRejected))]);
    assert_eq!(outcomes(&mut world, &[(one, 3, 10)]), [(10, None)], "each conversation by itself");
    world.nodes[0].hub.rates.pass(9000);
    assert_eq!(outcomes(&mut world, &[(one, 2, 4), (one, 2, 5)]), [(4, None), (5, None)]);
    let counts = world.nodes[0].hub.take_counts();
    assert_eq!((counts.limited, counts.rejected), (3, 7));
}

#[test]
fn who_came_too_fast_is_told_when_there_will_be_room() {
    let (mut world, one, _) = two_users();
    world.outcomes();
    limit(&mut world, 8);
    let sends: Vec<_> = (1..=10).map(|number| (one, 2, number)).collect();
    sends.iter().for_each(|(slot, to, number)| world.send_to(*slot, *to, *number));
    world.take_commands();
    let waits = world.drain_effects().into_iter().filter_map(|effect| match effect.kind {
        EffectKind::Rejected { code, retry_after_ms, .. } => Some((code, retry_after_ms)),
        _ => None,
    });
    assert_eq!(waits.collect::<Vec<_>>(), [(RateLimited, 1000), (AfterRejected, 0)]);
}

/// What is parked has its place: it is decided as ever, is not counted again, and nothing overtakes it.
#[test]
fn what_was_parked_before_a_message_that_came_too_fast_is_decided_as_ever() {
    let (mut world, one, _) = two_users();
    world.outcomes();
    limit(&mut world, 2);
    world.engine.set_cold(true);
    let refused = [(3, Some(RateLimited)), (4, Some(AfterRejected))];
    assert_eq!(outcomes(&mut world, &[(one, 4, 1), (one, 4, 2), (one, 4, 3), (one, 4, 4)]), refused);
    assert_eq!(world.nodes[0].hub.parked(), 2);
    // There is room when the first refused returns, but not before what is parked.
    world.nodes[0].hub.rates.pass(1000);
    assert_eq!(outcomes(&mut world, &[(one, 4, 4), (one, 4, 3)]), [(4, Some(AfterRejected))]);
    world.engine.set_cold(false);
    world.read_all();
    world.take_commands();
    assert_eq!(world.outcomes(), [(1, None), (2, None), (3, None)]);
    assert_eq!(outcomes(&mut world, &[(one, 4, 4)]), [(4, Some(RateLimited))], "each was counted once");
}

#[test]
fn a_message_that_is_sent_again_counts_again_and_gets_its_first_answer() {
    let (mut world, one, _) = two_users();
    world.outcomes();
    limit(&mut world, 1);
    world.send_to(one, 2, 1);
    world.settle();
    world.outcomes();
    assert_eq!(outcomes(&mut world, &[(one, 2, 1), (one, 2, 2)]), [(1, Some(RateLimited)), (2, Some(AfterRejected))]);
    world.nodes[0].hub.rates.pass(1000);
    world.send_to(one, 2, 1);
    world.take_commands();
    let again = world.drain_effects().into_iter().find_map(|effect| match effect.kind {
        EffectKind::Accepted { accepted, .. } => Some((accepted.conversation_seq.0, accepted.duplicate)),
        _ => None,
    });
    assert_eq!(again, Some((1, true)));
    world.nodes[0].hub.rates.pass(2000);
    assert_eq!(outcomes(&mut world, &[(one, 2, 2)]), [(2, None)]);
}

#[test]
fn a_new_session_has_its_devices_bucket_and_owes_nothing_to_the_old_one() {
    let (mut world, one, _) = two_users();
    world.outcomes();
    limit(&mut world, 1);
    let refused = outcomes(&mut world, &[(one, 2, 1), (one, 2, 2), (one, 2, 3)]);
    assert_eq!(refused, [(1, None), (2, Some(RateLimited)), (3, Some(AfterRejected))]);
    let newer = world.log_in(World::device(1));
    assert_eq!(outcomes(&mut world, &[(newer, 2, 3)]), [(3, Some(RateLimited))]);
    world.nodes[0].hub.rates.pass(1000);
    assert_eq!(outcomes(&mut world, &[(newer, 2, 3)]), [(3, None)], "what the old one never returned does not matter");
    world.close(one);
    world.close(newer);
    world.take_commands();
    let holdings = world.nodes[0].hub.holdings();
    assert_eq!((holdings.rejected, holdings.rates), (0, 1));
    world.nodes[0].hub.rates.pass(2000);
    world.pass(1000);
    world.move_hub();
    assert_eq!(world.nodes[0].hub.holdings().rates, 0, "nobody is remembered for long");
}

/// From now on a user may log in so many times at once, and once a second.
fn limit_logins(world: &mut World, burst: u32) {
    let hub = &mut world.nodes[0].hub;
    hub.logins = LoginRates::new(Some(Limit::new(1, burst)));
    hub.logins.pass(0);
}

/// What a login of user 1's device is told: how long to wait, if it is refused for coming too often.
fn log_in(world: &mut World, device: u16, key: Fingerprint) -> Result<(), (ErrorCode, u32)> {
    let token = Proof::Token { issued_s: world.now_ms / 1000 };
    let proof = if key == KEY { token } else { Proof::Registered };
    match answer_to_shown(world, device, (0, INCARNATION), (Some(key), proof)) {
        EffectKind::LoggedIn { .. } => Ok(()),
        EffectKind::Refused { code, retry_after_ms } => Err((code, retry_after_ms)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_user_logs_in_so_often_with_all_devices_together() {
    let mut world = calm(1, 1);
    limit_logins(&mut world, 3);
    assert_eq!([1, 2, 1].map(|device| log_in(&mut world, device, KEY)), [Ok(()); 3]);
    let refused = log_in(&mut world, 1, KEY);
    assert_eq!(refused, Err((LoginsBusy, 1000)));
    assert!((0..10).all(|_| log_in(&mut world, 2, KEY) == refused), "who is refused takes nothing");
    world.nodes[0].hub.logins.pass(1000);
    assert_eq!((log_in(&mut world, 2, KEY), log_in(&mut world, 2, KEY).is_err()), (Ok(()), true));
    let counts = world.nodes[0].hub.take_counts();
    assert_eq!((counts.logins_limited, counts.limited, counts.rejected), (12, 0, 0));
}

/// Who has not the key spends nothing of the user's.
#[test]
fn only_logins_with_the_right_key_count() {
    let mut world = calm(1, 1);
    limit_logins(&mut world, 2);
    assert_eq!(log_in(&mut world, 1, KEY), Ok(()));
    for _ in 0..20 {
        assert_eq!(log_in(&mut world, 1, [8; 16]), Err((ErrorCode::DeviceUnknown, 0)));
    }
    assert_eq!(log_in(&mut world, 1, KEY), Ok(()));
    // And is told so, not that there are too many.
    assert_eq!(log_in(&mut world, 1, [8; 16]), Err((ErrorCode::DeviceUnknown, 0)));
}

/// A login that waits for a row counts once.
#[test]
fn a_login_that_was_parked_counts_once() {
    let mut world = calm(1, 1);
    let before = world.log_in_with(World::device(1), 5);
    world.settle();
    world.close(before);
    world.settle();
    limit_logins(&mut world, 2);
    world.engine.set_cold(true);
    world.log_in_with(World::device(1), 5);
    world.take_commands();
    assert!(world.nodes[0].hub.parked() > 0, "it waits");
    world.engine.set_cold(false);
    world.settle();
    let logins = &mut world.nodes[0].hub.logins;
    assert_eq!((logins.len(), logins.wait_ms(UserId(1))), (1, None), "one of two");
    logins.charge(UserId(1));
    assert!(logins.wait_ms(UserId(1)).is_some());
}
