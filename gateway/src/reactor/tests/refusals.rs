//! Who is let in, who is refused, and when they are told so.

use std::time::Duration;

use culver_protocol::error::ErrorCode;
use culver_protocol::proto;
use culver_protocol::record::RecordType;
use prost::Message;

use super::take_send;
use super::world::{Peer, World, conversation_at, ping, send};
use crate::hub::effect::EffectKind;
use crate::reactor::entering::REFUSAL_US;
use crate::reactor::{Reactor, Wait};

const UNKNOWN: EffectKind = EffectKind::Refused { code: ErrorCode::DeviceUnknown, retry_after_ms: 0 };

/// The error that has come, and nothing else.
fn error(peer: &Peer) -> Option<ErrorCode> {
    let records = peer.take_records();
    let [(kind, body)] = records.as_slice() else { return None };
    assert_eq!(*kind, RecordType::Error);
    ErrorCode::from_number(proto::Error::decode(body.as_slice()).expect("a good error").code)
}

/// A hub that finds nobody in memory says so at once, one that has to read a device's row some time later.
#[test]
fn who_is_unknown_is_told_so_at_the_same_time_however_long_the_hub_has_looked() {
    for looked_us in [0, 1000, 120_000, REFUSAL_US - 1] {
        let mut world = World::new();
        let (peer, hub, session) = world.enter(1, b"");
        let ready_us = world.now_us;
        world.now_us += looked_us;
        world.reply(hub, session, UNKNOWN);
        world.turn(|_| ());
        let left = Duration::from_micros(REFUSAL_US - looked_us);
        assert_eq!(world.reactor.plan_wait(), Wait::For(left), "{looked_us} us");
        world.now_us = ready_us + REFUSAL_US - 1;
        world.turn(|_| ());
        assert_eq!((peer.take(), world.reactor.is_idle()), (vec![], false), "{looked_us} us");
        world.now_us += 1;
        world.turn(|_| ());
        assert_eq!(error(&peer), Some(ErrorCode::DeviceUnknown), "{looked_us} us");
        assert!(peer.pipe.borrow().server_is_done);
        world.close(hub, session);
        world.pass(5);
        world.assert_empty();
    }
}

#[test]
fn nobody_waits_longer_for_a_hub_that_took_longer_or_for_another_answer() {
    for (looked_us, code) in [(REFUSAL_US, ErrorCode::DeviceUnknown), (0, ErrorCode::TokenExpired)] {
        let mut world = World::new();
        let (peer, hub, session) = world.enter(1, b"");
        world.now_us += looked_us;
        world.reply(hub, session, EffectKind::Refused { code, retry_after_ms: 0 });
        world.turn(|_| ());
        assert_eq!(error(&peer), Some(code));
        world.close(hub, session);
        world.pass(5);
        world.assert_empty();
    }
}

#[test]
fn nothing_is_passed_on_of_who_is_refused_and_what_it_says_is_read_away() {
    let mut world = World::new();
    let conversation = conversation_at(&world.topology, super::HubId(3));
    let (peer, hub, session) = world.enter(1, &send(1, conversation, b"in the same flight"));
    world.give(&peer, &ping());
    world.reply(hub, session, UNKNOWN);
    world.turn(|_| ());
    world.give(&peer, &[send(2, conversation, b"while it waits"), ping()].concat());
    let Wait::For(longest) = world.reactor.plan_wait() else { panic!("it waits, it does not spin") };
    assert_eq!(longest, Duration::from_micros(REFUSAL_US));
    world.now_us += REFUSAL_US;
    world.turn(|_| ());
    world.settle();
    assert_eq!(error(&peer), Some(ErrorCode::DeviceUnknown), "and no PONG");
    world.close(hub, session);
    assert!(world.links.iter().all(|link| link.take_command().is_none()), "no SEND goes to any hub");
    assert_eq!(world.reactor.buffers_taken(), 0);
    world.pass(5);
    world.assert_empty();
}

#[test]
fn who_hangs_up_while_a_refusal_waits_leaves_nothing_behind() {
    let mut world = World::new();
    let (peer, hub, session) = world.enter(1, b"");
    world.reply(hub, session, UNKNOWN);
    world.turn(|_| ());
    world.hang_up(&peer, &ping());
    assert_eq!(world.reactor.connections(), 1);
    world.now_us += REFUSAL_US;
    world.turn(|_| ());
    world.settle();
    assert!(peer.is_closed());
    world.close(hub, session);
    world.assert_empty();
    // Whoever has the slot next hears nothing of it.
    let (next, _) = world.log_in(2);
    assert_eq!(next.slot, peer.slot);
    next.take();
    world.now_us += REFUSAL_US;
    world.turn(|_| ());
    assert_eq!((next.take(), next.is_closed()), (vec![], false));
}

#[test]
fn a_server_that_leaves_tells_those_it_refuses_and_no_sooner() {
    let mut world = World::new();
    let (peer, hub, session) = world.enter(1, b"");
    world.reply(hub, session, UNKNOWN);
    world.turn(Reactor::leave);
    assert_eq!(peer.take(), [RecordType::Goaway]);
    for _ in 0..3 {
        world.turn(|_| ());
        assert!(!world.reactor.has_left(), "somebody is to be told");
    }
    assert_eq!(world.reactor.plan_wait(), Wait::For(Duration::from_millis(20)));
    world.now_us += REFUSAL_US;
    world.turn(|_| ());
    assert_eq!(error(&peer), Some(ErrorCode::DeviceUnknown));
    world.close(hub, session);
    world.turn(|_| ());
    assert!(world.reactor.has_left());
}

#[test]
fn a_login_that_is_neither_let_in_nor_refused_ends_by_its_time() {
    let mut world = World::new();
    let (peer, hub, session) = world.enter(1, b"");
    world.pass(1000);
    assert!(peer.is_closed());
    world.close(hub, session);
    // The hub's answer comes at last, and is nobody's.
    world.reply(hub, session, UNKNOWN);
    world.turn(|_| ());
    world.assert_empty();
}

#[test]
fn what_is_said_before_the_hub_lets_a_client_in_is_read_when_it_does() {
    let mut world = World::new();
    let to = super::HubId(3);
    let conversation = conversation_at(&world.topology, to);
    let (peer, hub, session) = world.enter(1, &send(1, conversation, b"in the same flight"));
    assert_eq!(world.reactor.plan_wait(), Wait::For(Duration::from_millis(1)), "nobody says when the hub has answered");
    world.give(&peer, &send(2, conversation, b"behind it"));
    assert!(world.links[to.index()].take_command().is_none());
    world.let_in(hub, session);
    assert_eq!((take_send(&mut world, to), take_send(&mut world, to)), (Some(1), Some(2)));
    assert_eq!(take_send(&mut world, to), None);
    world.turn(|_| ());
    assert_eq!(world.reactor.plan_wait(), Wait::For(Duration::from_secs(1)));
}
