use std::time::Duration;

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, UserId};
use culver_protocol::limits::PAYLOAD_LEN_MAX;
use culver_protocol::record::RecordType;
use culver_storage::topology::HubId;

use self::world::{MAIL, Peer, World, conversation_at, opening, ping, send, sync_start};
use super::{Bounds, ENDING_S, Wait};
use crate::config::Config;
use crate::hub::command::{Address, Command};
use crate::hub::effect::EffectKind;

mod admission;
mod handshakes;
mod keep_alives;
mod partings;
mod refusals;
mod world;

/// The next command at this hub, which must be a SEND: which, and it is refused.
fn take_send(world: &mut World, hub: HubId) -> Option<u8> {
    let Command::Send { session, send } = world.links[hub.index()].take_command()? else { panic!("no SEND") };
    let client_message_id = send.client_message_id;
    world.reply(hub, session, EffectKind::Rejected { client_message_id, code: ErrorCode::Busy, retry_after_ms: 1 });
    Some(client_message_id.0[0])
}

#[test]
fn a_socket_put_aside_is_read_again_when_there_is_room() {
    let mut world = World::new();
    let (peer, _) = world.log_in(1);
    let hub = HubId(0);
    let conversation = conversation_at(&world.topology, hub);
    // Half of the last frame, too.
    let mut bytes: Vec<u8> = (0..40).flat_map(|number| send(number, conversation, b"hello")).collect();
    let rest = bytes.split_off(bytes.len() - 10);
    world.give(&peer, &bytes);
    assert_eq!(world.links[hub.index()].commands_room(), MAIL.kept, "what is kept for others stays free");
    let mut taken = Vec::new();
    while taken.len() < 39 {
        assert!(matches!(world.reactor.plan_wait(), Wait::For(_)), "it waits, it does not spin");
        let number = take_send(&mut world, hub).expect("whoever sleeps has posted all it could");
        taken.push(number);
        assert!(world.links[hub.index()].reactor_waited() || taken.len() > 33, "who waits for room is woken");
        world.turn(|_| ());
        world.settle();
    }
    world.give(&peer, &rest);
    taken.extend(take_send(&mut world, hub));
    assert_eq!(taken, (0..40).collect::<Vec<u8>>(), "in order, each once");
    world.turn(|_| ());
    assert_eq!(peer.take().iter().filter(|kind| **kind == RecordType::SendResult).count(), 40);
}

#[test]
fn a_socket_put_aside_while_its_peer_reads_nothing_is_read_again_when_it_does() {
    let bounds = Bounds { unsent_len: 100, read_len: 64, ..Bounds::default() };
    let mut world = World::with(|around| around.bounds = bounds);
    let (peer, _) = world.log_in(1);
    peer.take();
    peer.pipe.borrow_mut().room = 0;
    let pings: Vec<u8> = std::iter::repeat_with(ping).take(100).flatten().collect();
    world.give(&peer, &pings);
    world.settle();
    let unsent = world.reactor.buffers.get(world.reactor.connections.get(peer.slot).expect("there").outgoing).len();
    assert!((100..300).contains(&unsent), "{unsent} bytes wait");
    for _ in 0..100 {
        world.make_room(&peer, 130);
        world.settle();
    }
    assert_eq!(peer.take(), [RecordType::Pong; 100]);
    assert_eq!(world.reactor.buffers_taken(), 0);
}

#[test]
fn what_is_longer_than_a_turns_share_is_read_in_several() {
    let bounds = Bounds { read_len: 1000, reads_a_turn: 3, ..Bounds::default() };
    let mut world = World::with(|around| around.bounds = bounds);
    let (peer, _) = world.log_in(1);
    let hub = HubId(3);
    let conversation = conversation_at(&world.topology, hub);
    world.give(&peer, &send(9, conversation, &[7; PAYLOAD_LEN_MAX]));
    assert_eq!(world.reactor.plan_wait(), Wait::Not, "nobody else says that there is more");
    let turns_before = world.metrics.reactor(0).turns.get();
    world.settle();
    assert_eq!(world.metrics.reactor(0).turns.get() - turns_before, 10);
    assert_eq!(take_send(&mut world, hub), Some(9));
}

#[test]
fn a_receipt_goes_with_what_comes_next_or_soon_alone() {
    let mut world = World::new();
    let (peer, session) = world.log_in(1);
    peer.take();
    let hub = world.topology.hub_of_user(peer.user);
    let receipt = |version| EffectKind::Receipt { online: 0, turn: 0, after: version - 1, version, marks: Vec::new() };
    world.deliver(hub, session, receipt(1));
    world.turn(|_| ());
    world.deliver(hub, session, receipt(2));
    world.turn(|_| ());
    assert_eq!(peer.take(), []);
    assert!(!world.reactor.is_idle());
    world.give(&peer, &ping());
    assert_eq!(peer.take(), [RecordType::Receipt, RecordType::Receipt, RecordType::Pong]);

    world.deliver(hub, session, receipt(3));
    world.turn(|_| ());
    let Wait::For(longest) = world.reactor.plan_wait() else { panic!("nothing is to be done at once") };
    assert!(longest <= Duration::from_micros(Bounds::default().receipt_wait_us), "{longest:?}");
    assert_eq!(peer.take(), []);
    world.pass(1);
    assert_eq!(peer.take(), [RecordType::Receipt]);
    assert!(world.reactor.is_idle());
    assert_eq!(world.reactor.buffers_taken(), 0);
}

#[test]
fn an_effect_of_an_earlier_generation_reaches_nobody() {
    let mut world = World::new();
    let (first, earlier) = world.log_in(1);
    let hub = world.topology.hub_of_user(first.user);
    world.hang_up(&first, &[]);
    world.close(hub, earlier);
    let (second, present) = world.log_in(2);
    assert_eq!(second.slot, first.slot);
    second.take();
    // The same but for the generation, the same but for the epoch, and what the hub told the one before.
    for session in
        [Address { generation: earlier.generation, ..present }, Address { epoch: earlier.epoch, ..present }, earlier]
    {
        world.deliver(hub, session, EffectKind::Replaced);
        world.turn(|_| ());
        assert_eq!((second.take(), second.is_closed()), (vec![], false));
    }
    world.deliver(hub, present, EffectKind::Replaced);
    world.turn(|_| ());
    assert_eq!(second.take(), [RecordType::Error]);
}

#[test]
fn an_event_of_an_earlier_connection_is_nobodys() {
    let mut world = World::new();
    let earlier = world.connect(1, usize::MAX).expect("there is room");
    let tag = world.reactor.tag(earlier.slot).expect("it is there");
    assert_eq!(world.reactor.slot_of(tag), Some(earlier.slot));
    world.hang_up(&earlier, &[]);
    assert_eq!(world.reactor.slot_of(tag), None);
    let present = world.connect(2, usize::MAX).expect("there is room");
    assert_eq!(present.slot, earlier.slot);
    assert_eq!(world.reactor.slot_of(tag), None);
    let tag = world.reactor.tag(present.slot).expect("it is there");
    assert_eq!(world.reactor.slot_of(tag), Some(present.slot));
}

#[test]
fn a_slot_is_free_when_every_hub_that_knew_the_session_has_said_so() {
    let mut world = World::new();
    let (peer, address) = world.log_in(1);
    let home = world.topology.hub_of_user(peer.user);
    let others = [HubId(2), HubId(5), HubId(11)];
    for (number, hub) in (0..).zip(others) {
        let conversation = conversation_at(&world.topology, hub);
        world.give(&peer, &send(number, conversation, b"hello"));
        assert_eq!(take_send(&mut world, hub), Some(number));
    }
    world.hang_up(&peer, &[]);
    assert!(peer.is_closed());
    assert_eq!(world.metrics.reactor(0).connections.get(), 0);
    let mut hubs: Vec<HubId> = others.into_iter().chain([home]).collect();
    hubs.sort_unstable_by_key(|hub| (hub.0 % 5, hub.0));
    hubs.dedup();
    for hub in hubs {
        assert_eq!(world.reactor.connections(), 1);
        let next = world.connect(2, usize::MAX).expect("there is room");
        assert_ne!(next.slot, peer.slot, "before {hub:?} has said that it knows");
        world.hang_up(&next, &[]);
        world.close(hub, address);
    }
    world.assert_empty();
    assert_eq!(world.connect(2, 0).expect("there is room").slot, peer.slot);
}

#[test]
fn nothing_is_left_of_those_who_have_gone() {
    let mut world = World::new();
    // One that says nothing, one that says nonsense, one that stops in the middle of its login.
    let silent = world.connect(1, usize::MAX).expect("there is room");
    let nonsense = world.connect(2, 0).expect("there is room");
    world.give(&nonsense, b"GET / HTTP/1.1\r\n\r\n");
    let halting = world.connect(3, usize::MAX).expect("there is room");
    let start = opening(halting.user);
    world.give(&halting, &start[..start.len() / 2]);
    // One that leaves with half a frame said and nothing read, one that is told to go, one that falls silent.
    let (half, half_address) = world.log_in(4);
    let half_hub = world.topology.hub_of_user(half.user);
    half.pipe.borrow_mut().room = 0;
    world.deliver(half_hub, half_address, sync_start());
    let frame = send(1, ConversationId([1; 16]), b"hello");
    world.give(&half, &frame[..frame.len() - 1]);
    let (replaced, replaced_address) = world.log_in(5);
    let replaced_hub = world.topology.hub_of_user(replaced.user);
    let (asleep, asleep_address) = world.log_in(6);
    let asleep_hub = world.topology.hub_of_user(asleep.user);
    assert_eq!((world.reactor.connections(), world.reactor.timers()), (6, 6));
    assert_eq!(world.reactor.buffers_taken(), 4, "half a login, half a frame, and what two do not read");

    world.hang_up(&half, &[]);
    world.close(half_hub, half_address);
    world.deliver(replaced_hub, replaced_address, EffectKind::Replaced);
    world.turn(|_| ());
    world.close(replaced_hub, replaced_address);
    assert!(replaced.pipe.borrow().server_is_done && !replaced.is_closed(), "it has time to read why");
    world.pass(5);
    assert!(replaced.is_closed() && nonsense.is_closed(), "and then it is over");
    world.pass(15);
    assert!(silent.is_closed() && halting.is_closed() && !asleep.is_closed());
    assert_eq!(silent.take(), [RecordType::Error]);
    world.pass(10_000);
    world.close(asleep_hub, asleep_address);
    assert!(asleep.is_closed());
    world.assert_empty();
}

#[test]
fn a_reactor_takes_as_many_as_it_may_hold() {
    let mut world = World::with(|around| around.connections_max = 2);
    let (first, _) = (world.connect(1, 0), world.connect(2, 0).expect("there is room"));
    assert!(world.connect(3, usize::MAX).is_none());
    let first = first.expect("there is room");
    world.turn(|reactor| reactor.discard(first.slot));
    assert!(first.is_closed() && world.reactor.socket_mut(first.slot).is_none());
    assert_eq!((world.reactor.connections(), world.reactor.timers()), (1, 1));
    assert_eq!(world.connect(3, 0).expect("there is room again").slot, first.slot);
}

#[test]
fn those_whose_time_has_come_are_looked_at_a_few_at_a_time() {
    // At the tick's beginning there is time until the next; at its end no more than so many are looked at all the same.
    for (late_us, looks) in [(0, [1, 2, 3, 4, 5].as_slice()), (998_500, &[2, 4, 5])] {
        let mut world = World::with(|around| around.bounds.due_a_turn = 2);
        let peers: Vec<_> = (0..5).map(|user| world.connect(user, usize::MAX).expect("there is room")).collect();
        let ended = |peers: &[world::Peer]| peers.iter().filter(|peer| peer.pipe.borrow().server_is_done).count();
        world.now_us += 12_000_000 + late_us;
        for expected in looks {
            world.turn(|_| ());
            assert_eq!(ended(&peers), *expected, "{late_us} us");
            world.turn(|_| ());
            assert_eq!(ended(&peers), *expected, "not before their time");
            world.now_us += 1_000;
        }
        assert_eq!(world.reactor.plan_wait(), Wait::For(Duration::from_secs(1)));
    }
}

/// What a peer's socket has not taken.
fn unsent_len(world: &World, peer: &Peer) -> usize {
    world.reactor.buffers.get(world.reactor.connections.get(peer.slot).expect("there").outgoing).len()
}

#[test]
fn beyond_the_bound_of_all_those_with_the_most_unsent_are_ended() {
    let bounds = Bounds { unsent_all_len: 1000, ..Bounds::default() };
    let mut world = World::with(|around| around.bounds = bounds);
    let sessions: Vec<(Peer, Address)> = (1..=4).map(|user| world.log_in(user)).collect();
    let [one, two, three, four] = [0, 1, 2, 3].map(|at: usize| &sessions[at].0);
    for peer in [one, two, three, four] {
        peer.take();
        peer.pipe.borrow_mut().room = 0;
    }
    let pings = |count| -> Vec<u8> { std::iter::repeat_with(ping).take(count).flatten().collect() };
    world.give(one, &pings(10));
    world.now_us += 5_000_000;
    world.give(two, &pings(30));
    let told = |world: &World| {
        let counters = world.metrics.reactor(0);
        (counters.connections_blocked.get(), counters.unsent_bytes.get(), counters.slow_readers.get())
    };
    let before = unsent_len(&world, one) + unsent_len(&world, two);
    assert_eq!(told(&world), (2, before as u64, 0));
    let worst = world.reactor.worst(9);
    let worst: Vec<_> =
        worst.iter().map(|(_, one)| (one.user, one.unsent_bytes, one.blocked_s, one.silent_s)).collect();
    let (of_one, of_two) = (unsent_len(&world, one), unsent_len(&world, two));
    assert_eq!(worst, [(Some(2), of_two, 0, 0), (Some(1), of_one, 5, 5)]);
    // Together too much: the second has the most, and what is left is within the bound.
    world.give(three, &pings(29));
    assert!(two.is_closed() && !one.is_closed() && !three.is_closed());
    assert_eq!(told(&world).2, 1);
    world.give(four, &pings(2));
    // Those who are left read, and lack nothing; then nobody is blocked.
    for (peer, count) in [(one, 10), (three, 29), (four, 2)] {
        world.make_room(peer, usize::MAX);
        assert_eq!(peer.take(), vec![RecordType::Pong; count]);
    }
    assert_eq!(told(&world), (0, 0, 1));
    // One alone may have more than all may have together.
    one.pipe.borrow_mut().room = 0;
    world.give(one, &pings(100));
    assert!(!one.is_closed() && unsent_len(&world, one) > 1000);
    world.hang_up(one, &[]);
    assert_eq!(told(&world), (0, 0, 1));
    for (peer, session) in &sessions {
        if !peer.is_closed() {
            world.hang_up(peer, &[]);
        }
        let hub = world.topology.hub_of_user(peer.user);
        world.close(hub, *session);
    }
    world.assert_empty();
}

#[test]
fn who_reads_nothing_and_is_not_heard_of_is_ended_in_time() {
    let mut world = World::new();
    let (peer, session) = world.log_in(1);
    peer.take();
    peer.pipe.borrow_mut().room = 0;
    world.give(&peer, &ping());
    assert_eq!(world.reactor.unsent().count(), 1);
    let patience_s = u64::from(Config::default().keep_alive.default_s) * 3 / 2;
    world.pass(patience_s);
    assert!(!peer.is_closed(), "it may still come");
    // The tick that has begun, the next, and the time in which it could read why.
    world.pass(2 + u64::from(ENDING_S) + 1);
    assert!(peer.is_closed());
    assert_eq!(world.metrics.reactor(0).keep_alive_timeouts.get(), 1);
    assert_eq!(world.reactor.unsent().count(), 0);
    let hub = world.topology.hub_of_user(peer.user);
    world.close(hub, session);
    world.assert_empty();
}

#[test]
fn a_server_that_leaves_asks_everybody_to_go_and_answers_what_it_took() {
    let mut world = World::new();
    let (peer, _) = world.log_in(1);
    let hub = HubId(7);
    let conversation = conversation_at(&world.topology, hub);
    world.give(&peer, &send(1, conversation, b"hello"));
    peer.take();
    for _ in 0..3 {
        world.turn(super::Reactor::leave);
        assert!(!world.reactor.has_left(), "somebody is owed an answer");
    }
    assert_eq!(peer.take(), [RecordType::Goaway], "once");
    assert_eq!(world.reactor.plan_wait(), Wait::For(Duration::from_millis(20)));
    assert_eq!(take_send(&mut world, hub), Some(1));
    world.turn(|_| ());
    assert_eq!(peer.take(), [RecordType::SendResult]);
    assert!(!world.reactor.has_left(), "it has just been written");
    world.turn(|_| ());
    assert!(world.reactor.has_left());
}

#[test]
fn a_server_that_leaves_waits_until_everybody_was_told_and_has_time_to_read_it() {
    let mut world = World::new();
    let (peer, _) = world.log_in(1);
    let (slow, _) = world.log_in(2);
    peer.take();
    slow.take();
    slow.pipe.borrow_mut().room = 0;
    world.turn(super::Reactor::leave);
    world.turn(|_| ());
    assert!(!world.reactor.has_left());
    world.make_room(&slow, usize::MAX);
    assert_eq!((peer.take(), slow.take()), (vec![RecordType::Goaway], vec![RecordType::Goaway]));
    world.turn(|_| ());
    assert!(world.reactor.has_left());

    let mut world = World::new();
    let (peer, _) = world.log_in(1);
    peer.take();
    world.turn(super::Reactor::leave);
    assert_eq!((peer.take(), world.reactor.has_left()), (vec![RecordType::Goaway], false));
    world.turn(|_| ());
    assert!(world.reactor.has_left());
}

#[test]
fn a_server_that_leaves_waits_for_nobody_for_ever() {
    let mut world = World::new();
    let (slow, _) = world.log_in(2);
    slow.pipe.borrow_mut().room = 0;
    world.turn(super::Reactor::leave);
    world.pass(5);
    assert!(!world.reactor.has_left());
    world.pass(1);
    assert!(world.reactor.has_left());
}

#[test]
fn closes_wait_for_room_and_find_it() {
    let mut world = World::new();
    let hub = HubId(4);
    let users = (0..).map(UserId).filter(|user| world.topology.hub_of_user(*user) == hub);
    let users: Vec<UserId> = users.take(12).collect();
    let sessions: Vec<_> = users.into_iter().map(|user| world.log_in(user.0)).collect();
    for (peer, _) in &sessions {
        world.hang_up(peer, &[]);
    }
    assert_eq!(world.links[hub.index()].commands_room(), 0);
    for (number, (peer, address)) in sessions.iter().enumerate() {
        assert!(matches!(world.reactor.plan_wait(), Wait::For(_)));
        let command = world.links[hub.index()].take_command();
        assert_eq!(world.links[hub.index()].reactor_waited(), number < 12 - MAIL.commands, "who waits is woken");
        assert!(matches!(command, Some(Command::Close { device, .. }) if device == peer.device()), "{command:?}");
        world.reply(hub, *address, EffectKind::Closed);
        assert_eq!(world.reactor.plan_wait(), Wait::Not);
        world.turn(|_| ());
        world.settle();
    }
    world.assert_empty();
}

#[test]
fn who_goes_with_many_others_is_looked_at_when_its_turn_comes() {
    let mut world = World::with(|around| around.bounds = Bounds { closings_per_s: 10, ..Bounds::default() });
    let peers: Vec<Peer> = (1..=40).map(|user| world.connect(user, usize::MAX).expect("there is room")).collect();
    let closed = |peers: &[Peer]| peers.iter().filter(|peer| peer.is_closed()).count();
    let (last, first) = peers.split_last().expect("forty");
    first.iter().for_each(|peer| world.hang_up(peer, b""));
    assert_eq!(closed(&peers), 16, "a few at once");
    let Wait::For(wait) = world.reactor.plan_wait() else { panic!("nothing is to be done now") };
    assert!(wait <= Duration::from_millis(800), "{wait:?}");
    world.pass(1);
    assert_eq!(closed(&peers), 26, "and then the rate holds");
    // Who stays is served meanwhile.
    last.take();
    world.give(last, &world::record(RecordType::Ready, &[]));
    assert!(!last.is_closed());
    world.pass(2);
    assert_eq!(closed(&peers), 39);
    assert!(world.reactor.closing.is_empty() && !last.is_closed());
}
