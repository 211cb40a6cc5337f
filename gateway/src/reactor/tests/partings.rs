//! Clients that are asked to go, a few at a time, while the server stays or ends.

use std::sync::Arc;

use culver_protocol::proto;
use culver_protocol::record::RecordType;
use prost::Message;

use super::super::parting::{Order, Pace};
use super::super::{Bounds, Reactor, Wait};
use super::world::{Peer, World};

fn order(pace: Pace, finish_us: u64) -> Arc<Order> {
    let goaway = proto::Goaway {
        reason: proto::goaway::Reason::Drain.into(),
        reconnect_min_ms: 500,
        reconnect_max_ms: 1500,
        alternates: vec!["b.example:7400".to_owned()],
    };
    Arc::new(Order { goaway, pace, finish_us: Some(finish_us) })
}

/// A world with so many who are logged in and have heard nothing.
fn populated(users: u64, partings_a_turn: usize) -> (World, Vec<Peer>) {
    let mut world = World::with(|around| around.bounds = Bounds { partings_a_turn, ..Bounds::default() });
    let peers: Vec<Peer> = (0..users).map(|user| world.log_in(user).0).collect();
    peers.iter().for_each(|peer| drop(peer.take()));
    (world, peers)
}

fn told(peers: &[Peer]) -> usize {
    peers.iter().flat_map(Peer::take).filter(|kind| *kind == RecordType::Goaway).count()
}

/// Who was turned back: the time after which it may come again.
fn turned_back(peer: &Peer) -> u32 {
    let records = peer.take_records();
    let [(RecordType::Error, body)] = records.as_slice() else { panic!("no error alone: {records:?}") };
    let error = proto::Error::decode(body.as_slice()).expect("a good error");
    assert_eq!(error.code, 2001);
    error.retry_after_ms
}

#[test]
fn a_server_that_leaves_tells_a_few_in_each_turn() {
    let (mut world, peers) = populated(7, 3);
    for expected in [3, 3, 1] {
        world.turn(Reactor::leave);
        assert_eq!(told(&peers), expected);
        assert!(!world.reactor.has_left());
        let is_last = expected == 1;
        assert_eq!(world.reactor.plan_wait() == Wait::Not, !is_last, "there is more to do, or not");
    }
    world.turn(|_| ());
    assert!(world.reactor.has_left());
    assert_eq!(world.metrics.reactor(0).goaways.get(), 7);
}

#[test]
fn a_drain_is_paced_and_who_stays_is_ended() {
    let (mut world, peers) = populated(10, 64);
    let silent = world.connect(100, usize::MAX).expect("there is room");
    let spread = order(Pace::Within { spread_us: 5_500_000 }, 2_000_000);
    world.turn(|reactor| reactor.drain(&spread));
    assert_eq!(told(&peers), 0);
    let late = world.connect(101, usize::MAX).expect("there is room for a word");
    world.turn(|_| ());
    assert!((500..1500).contains(&turned_back(&late)));
    for _ in 0..10 {
        world.now_us += 500_000;
        world.turn(|_| ());
        assert_eq!(told(&peers), 1);
    }
    world.now_us += 500_000;
    world.turn(|_| ());
    assert!((500..1500).contains(&turned_back(&silent)), "who has not logged in");
    world.now_us += 1_999_999;
    world.turn(|_| ());
    assert!(peers.iter().all(|peer| peer.take().is_empty() && !peer.pipe.borrow().server_is_done));
    world.now_us += 1;
    world.turn(|_| ());
    let mut times: Vec<u32> = peers.iter().map(turned_back).collect();
    times.sort_unstable();
    times.dedup();
    assert_eq!((times.len(), world.reactor.open_connections()), (10, 0), "each has a time of its own");
}

#[test]
fn an_aborted_drain_tells_and_ends_nobody_and_lets_in_who_comes() {
    let (mut world, peers) = populated(4, 64);
    let paced = order(Pace::PerSecond { connections: 1, reactors: 1 }, 0);
    world.turn(|reactor| reactor.drain(&paced));
    world.now_us += 2_000_000;
    world.turn(|_| ());
    assert_eq!(told(&peers), 2);
    world.turn(Reactor::abort_drain);
    let (late, _) = world.log_in(9);
    world.pass(30);
    assert_eq!((told(&peers), told(&[late])), (0, 0));
    assert_eq!(world.reactor.open_connections(), 5, "who was told may stay");
    // Another drain begins with the first again.
    world.turn(|reactor| reactor.drain(&order(Pace::AtOnce, u64::MAX)));
    assert_eq!(told(&peers), 4);
}

#[test]
fn the_end_takes_the_place_of_a_drain_and_names_where_it_sent_clients() {
    let (mut world, peers) = populated(1, 64);
    world.turn(|reactor| reactor.drain(&order(Pace::AtOnce, 0)));
    peers[0].take();
    world.turn(Reactor::leave);
    let records = peers[0].take_records();
    let (RecordType::Goaway, body) = &records[0] else { panic!("{records:?}") };
    let goaway = proto::Goaway::decode(body.as_slice()).expect("a good record");
    assert_eq!(
        (goaway.reason(), goaway.alternates),
        (proto::goaway::Reason::Shutdown, vec!["b.example:7400".to_owned()])
    );
    assert_eq!((goaway.reconnect_min_ms, goaway.reconnect_max_ms), (2_000, 32_000));
    world.turn(Reactor::abort_drain);
    world.turn(|_| ());
    assert!(world.reactor.has_left(), "it ends all the same");
}
