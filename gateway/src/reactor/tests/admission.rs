//! Connections that are refused where they come: what they are told, and that nothing is kept of them.

use culver_protocol::error::ErrorCode;
use culver_protocol::limits::LOGIN_RETRY_MS_MIN;
use culver_protocol::proto;
use culver_protocol::record::RecordType;
use prost::Message;

use super::super::*;
use super::world::{SOURCE, World};
use crate::buckets::Limit;

/// A reactor that takes so many at once, and one a second.
fn limited(all: Option<u32>, source: Option<u32>) -> World {
    let limit = |burst| Limit::new(1, burst);
    World::with(|around| {
        around.logins = admission::Limits { all: all.map(limit), source: source.map(limit) };
        around.connections_max = 5;
    })
}

/// What a connection that has said this is told, as the only record, before its socket is closed.
fn refused(world: &mut World, said: &[u8]) -> proto::Error {
    let before = (world.reactor.connections(), world.reactor.buffers_taken(), world.reactor.timers());
    let peer = world.knock(SOURCE, said).err().expect("it is refused");
    assert!(peer.is_closed());
    assert!(peer.pipe.borrow().to_server.is_empty(), "what it has said is read: closing does not reset it");
    assert_eq!((world.reactor.connections(), world.reactor.buffers_taken(), world.reactor.timers()), before);
    assert!(world.reactor.plan_wait() != Wait::Not, "there is nothing to be done for it");
    let records = peer.take_records();
    let [(RecordType::Error, body)] = records.as_slice() else { panic!("{records:?}") };
    proto::Error::decode(body.as_slice()).expect("as written")
}

#[test]
fn who_comes_too_fast_is_told_when_to_come_again_and_nothing_is_kept() {
    let mut world = limited(Some(2), None);
    let taken: Vec<_> = (1..=2).map(|user| world.connect(user, usize::MAX).expect("there is room")).collect();
    let errors: Vec<_> = (0..5).map(|_| refused(&mut world, &[7; 3000])).collect();
    assert!(errors.iter().all(|error| error.code == ErrorCode::LoginsBusy.number() && !error.detail.is_empty()));
    let retries: Vec<u32> = errors.iter().map(|error| error.retry_after_ms).collect();
    let spaces = retries.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(retries[0] >= LOGIN_RETRY_MS_MIN && spaces.min() >= Some(1176), "each has a place of its own: {retries:?}");
    let counters = world.metrics.reactor(0);
    assert_eq!(
        (counters.logins_shed.get(), counters.logins_shed_by_source.get(), counters.turned_away.get()),
        (5, 0, 0)
    );
    assert!((6000..8000).contains(&counters.calendar_ms.get()), "{}", counters.calendar_ms.get());
    world.pass(3);
    let calendar_ms = world.metrics.reactor(0).calendar_ms.get();
    assert!((3000..5000).contains(&calendar_ms), "time passes though nobody comes: {calendar_ms}");
    assert!(world.connect(3, usize::MAX).is_some(), "there is room again");
    drop(taken);
}

#[test]
fn one_address_keeps_no_other_out() {
    let mut world = limited(Some(4), Some(2));
    let taken: Vec<_> = (1..=2).map(|user| world.connect(user, usize::MAX).expect("there is room")).collect();
    for _ in 0..100 {
        let error = refused(&mut world, b"CV");
        assert_eq!(error.code, ErrorCode::LoginsBusy.number());
    }
    let counters = world.metrics.reactor(0);
    assert_eq!((counters.logins_shed.get(), counters.logins_shed_by_source.get()), (0, 100));
    assert_eq!(counters.calendar_ms.get(), 0);
    let other = IpAddr::from([198, 51, 100, 9]);
    assert!((0..2).all(|_| world.knock(other, &[]).is_ok()));
    drop(taken);
}

#[test]
fn who_finds_no_room_takes_nothing_of_the_rate() {
    let mut world = limited(Some(6), None);
    let taken: Vec<_> = (1..=5).map(|user| world.connect(user, usize::MAX).expect("there is room")).collect();
    for _ in 0..20 {
        let error = refused(&mut world, b"CV");
        assert_eq!(error.code, ErrorCode::ConnectionsFull.number());
        assert!((5_000..=30_000).contains(&error.retry_after_ms), "{error:?}");
    }
    let counters = world.metrics.reactor(0);
    assert_eq!((counters.logins_shed.get(), counters.turned_away.get()), (0, 20));
    for peer in taken {
        world.turn(|reactor| reactor.discard(peer.slot));
    }
    assert!(world.connect(6, usize::MAX).is_some());
}
