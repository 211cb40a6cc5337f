//! What clients promise in PINGs, and when those who break it are ended.

use culver_protocol::id::UserId;
use culver_protocol::proto;
use culver_protocol::record::RecordType;
use prost::Message;

use super::world::{Peer, World, record};

/// The longest and the shortest of a default configuration, and what it agrees on where the login names none.
const LONGEST_S: u64 = 1800;
const SHORTEST_S: u64 = 5;
const AGREED_S: u64 = 240;

fn promise(keep_alive_s: u32) -> Vec<u8> {
    record(RecordType::Ping, &proto::Ping { nonce: 9, keep_alive_s }.encode_to_vec())
}

/// What the server says of a promise.
fn told(world: &mut World, peer: &Peer, keep_alive_s: u32) -> u32 {
    world.give(peer, &promise(keep_alive_s));
    world.settle();
    let records = peer.take_records();
    let [(RecordType::Pong, body)] = records.as_slice() else { panic!("a PONG alone: {records:?}") };
    let pong = proto::Pong::decode(body.as_slice()).expect("a PONG");
    assert_eq!(pong.nonce, 9);
    pong.keep_alive_s
}

/// After how many seconds of silence the connection is ended.
fn ended_after_s(world: &mut World, peer: &Peer) -> u64 {
    for second in 0..=2 * LONGEST_S {
        if peer.take().contains(&RecordType::Error) {
            return second;
        }
        world.pass(1);
    }
    panic!("it is never ended")
}

fn logged_in() -> (World, Peer) {
    let mut world = World::new();
    let (peer, _) = world.log_in(1);
    peer.take();
    (world, peer)
}

fn is_patience(after_s: u64, keep_alive_s: u64) -> bool {
    let patience_s = keep_alive_s + keep_alive_s.div_ceil(2);
    // A part of the first second is over, and those whose time has come are looked at within one.
    (patience_s..=patience_s + 3).contains(&after_s)
}

#[test]
fn who_promises_nothing_is_waited_for_as_agreed() {
    let (mut world, peer) = logged_in();
    assert_eq!(told(&mut world, &peer, 0), 0, "nothing was asked");
    let after_s = ended_after_s(&mut world, &peer);
    assert!(is_patience(after_s, AGREED_S), "{after_s} s");
}

#[test]
fn who_promises_longer_is_not_ended_early_and_who_promises_shorter_in_time() {
    for (promised_s, holds_s) in [(600, 600), (60, 60), (u32::MAX, LONGEST_S), (1, SHORTEST_S)] {
        let (mut world, peer) = logged_in();
        assert_eq!(u64::from(told(&mut world, &peer, promised_s)), holds_s);
        let after_s = ended_after_s(&mut world, &peer);
        assert!(is_patience(after_s, holds_s), "{promised_s} s: {after_s} s");
    }
}

#[test]
fn the_last_promise_holds_and_promises_leave_nothing_behind() {
    let (mut world, peer) = logged_in();
    for number in 0..2000 {
        told(&mut world, &peer, 5 + number % 700);
        assert!(world.reactor.timers() <= 1, "one place in the wheel for each connection");
    }
    // Longer, when the earlier deadline has almost come.
    told(&mut world, &peer, 10);
    world.pass(13);
    told(&mut world, &peer, 100);
    let after_s = ended_after_s(&mut world, &peer);
    assert!(is_patience(after_s, 100), "{after_s} s");
}

#[test]
fn a_promise_before_ready_holds_from_ready_on() {
    let mut world = World::new();
    let peer = world.connect(1, usize::MAX).expect("there is room");
    assert_eq!(peer.user, UserId(1));
    let mut flight = super::world::opening(UserId(1));
    let ready = flight.split_off(flight.len() - 4);
    assert_eq!(ready, record(RecordType::Ready, &[]));
    flight.extend(promise(30));
    flight.extend(ready);
    world.give(&peer, &flight);
    let (hub, session) = world.take_login(&peer);
    world.let_in(hub, session);
    world.settle();
    peer.take();
    let after_s = ended_after_s(&mut world, &peer);
    assert!(is_patience(after_s, 30), "{after_s} s");
}
