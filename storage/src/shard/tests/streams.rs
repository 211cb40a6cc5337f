//! Streams: in order, once, whatever is lost or comes again.

use super::*;
use crate::command::{StreamState, View};
use crate::key::ShardId;
use crate::record::{Lane, Place, Stream};

/// Two hubs on one engine.
fn hubs(engine: &MemoryEngine) -> [Shards; 2] {
    [0, 1].map(|hub| recover_of(engine, 2, hub))
}

fn recover_of(engine: &MemoryEngine, hubs: u16, hub: u16) -> Shards {
    let topology = Topology::new(SHARD_COUNT, vec![0; usize::from(SHARD_COUNT)], hubs).expect("few hubs");
    Shards::recover(engine, Arc::new(topology), HubId(hub), Policy::default(), 5, 0).expect("memory reads")
}

/// A sender and a recipient such that the conversation is at home in hub 0 and the recipient in hub 1.
fn across() -> (u64, u64) {
    let topology = Topology::new(SHARD_COUNT, vec![0; usize::from(SHARD_COUNT)], 2).expect("two hubs are few");
    let fits = |recipient: &u64| {
        topology.hub_of_user(UserId(*recipient)) == HubId(1)
            && topology.hub_of_conversation(talk(1, *recipient)) == HubId(0)
    };
    (1, (2..).find(fits).expect("half of a half of all users"))
}

fn stream_of(sender: u64, recipient: u64) -> Stream {
    Stream {
        from: ShardId::of_conversation(talk(sender, recipient), SHARD_COUNT),
        to: ShardId::of_user(UserId(recipient), SHARD_COUNT),
        lane: Lane::Message,
    }
}

fn head(shards: &mut Shards, engine: &MemoryEngine, user: u64) -> u64 {
    match shards.user(engine, UserId(user), DeviceId(1)) {
        Ok(View::Known(view)) => view.head.0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn messages_to_another_hub_go_in_order_and_once() {
    let engine = MemoryEngine::new();
    let [mut home, mut away] = hubs(&engine);
    let (sender, recipient) = across();
    for id in 0..3 {
        let message = accept_whole(&mut home, &engine, &Send { copy: false, ..send(sender, recipient, id) }, 5);
        let n = u64::try_from(id).expect("few messages") + 1;
        assert_eq!((message.place, message.entry.inbox_seq.0), (Place::Stream(stream_of(sender, recipient), n), 0));
    }
    let outgoing = commit(&mut home, &engine);
    let [first, second, third] = outgoing.as_slice() else { panic!("three messages are three items") };
    let unchanged = deliver(&mut away, &engine, std::slice::from_ref(second));
    assert_eq!(unchanged, [Decision::Unchanged], "the first has not come");
    deliver(&mut away, &engine, &[first.clone(), first.clone(), second.clone()]);
    assert_eq!(head(&mut away, &engine, recipient), 2);
    // The destination forgets what was not durable, never what was.
    let decision = away.decide_arrival(&engine, third.stream, third.n, &third.item, 5).expect("memory reads");
    apply(&mut away, &decision);
    away = recover_of(&engine, 2, 1);
    assert_eq!((away.watermark(first.stream), head(&mut away, &engine, recipient)), (2, 2));
    assert_eq!(deliver(&mut away, &engine, &outgoing)[..2], [Decision::Unchanged, Decision::Unchanged]);
    assert_eq!((away.watermark(first.stream), head(&mut away, &engine, recipient)), (3, 3));
}

#[test]
fn a_stream_goes_on_where_it_was_whatever_was_lost() {
    let engine = MemoryEngine::new();
    let [mut home, _] = hubs(&engine);
    let (sender, recipient) = across();
    let stream = stream_of(sender, recipient);
    let message = |id| Send { copy: false, ..send(sender, recipient, id) };
    accept(&mut home, &engine, &message(1), 5);
    commit(&mut home, &engine);
    accept(&mut home, &engine, &message(2), 5);
    let lost = home.seal(0, true);
    drop(lost);
    let mut home = recover_of(&engine, 2, 0);
    assert_eq!(home.streams_behind(), [StreamState { stream, durable: 1, taken: 0 }]);
    accept(&mut home, &engine, &message(3), 5);
    let outgoing = commit(&mut home, &engine);
    assert_eq!(outgoing.first().map(|outgoing| outgoing.n), Some(2));
    home.taken(stream, 1);
    assert_eq!(home.streams_behind(), [StreamState { stream, durable: 2, taken: 1 }]);
    home.taken(stream, 2);
    home.apply(&Record::ClockMoved { ms: 1 });
    commit(&mut home, &engine);
    // Rows that were taken may be merged away: the numbers still go on.
    engine.plant(crate::engine::Family::Outbox, &crate::key::outbox(stream, 1), None);
    engine.plant(crate::engine::Family::Outbox, &crate::key::outbox(stream, 2), None);
    let mut home = recover_of(&engine, 2, 0);
    assert_eq!(home.streams_behind(), []);
    accept(&mut home, &engine, &message(4), 5);
    assert_eq!(commit(&mut home, &engine).first().map(|outgoing| outgoing.n), Some(3));
}

#[test]
fn nothing_overtakes_what_a_stream_still_holds() {
    let engine = MemoryEngine::new();
    let [mut home, _] = hubs(&engine);
    let (sender, recipient) = across();
    let stream = stream_of(sender, recipient);
    let message = |id| Send { copy: false, ..send(sender, recipient, id) };
    accept(&mut home, &engine, &message(1), 5);
    let mut outgoing = commit(&mut home, &engine);
    // From now on one hub has all shards.
    let mut only = recover_of(&engine, 1, 0);
    assert_eq!(accept_whole(&mut only, &engine, &message(2), 5).place, Place::Stream(stream, 2));
    outgoing.extend(commit(&mut only, &engine));
    deliver(&mut only, &engine, &outgoing);
    assert_eq!(accept_whole(&mut only, &engine, &message(3), 5).place, Place::Local(InboxSeq(3)));
}

#[test]
fn a_copy_goes_its_own_way() {
    let engine = MemoryEngine::new();
    let [mut home, mut away] = hubs(&engine);
    // Now user `far` sends to `near`, and has other devices in the other hub.
    let (near, far) = across();
    link(&mut away, &engine, far, 1, 5);
    let message = accept_whole(&mut home, &engine, &send(far, near, 1), 5);
    assert_eq!(message.copy, Some(Place::Stream(stream_of(near, far), 1)));
    let outgoing = commit(&mut home, &engine);
    let to_far: Vec<_> = outgoing.iter().filter(|outgoing| outgoing.stream == stream_of(near, far)).cloned().collect();
    let arrived = deliver(&mut away, &engine, &to_far);
    assert!(matches!(arrived.as_slice(), [Decision::Apply(Record::Arrived { item: Arrival::Nothing, .. })]));
    link(&mut away, &engine, far, 2, 5);
    accept(&mut home, &engine, &send(far, near, 2), 5);
    let to_far: Vec<_> =
        commit(&mut home, &engine).into_iter().filter(|outgoing| outgoing.stream == stream_of(near, far)).collect();
    let arrived = deliver(&mut away, &engine, &to_far);
    assert!(matches!(arrived.as_slice(), [Decision::Apply(Record::Arrived { item: Arrival::Entry { .. }, .. })]));
    assert_eq!(head(&mut away, &engine, far), 1);
}

#[test]
fn a_full_inbox_elsewhere_is_refused_for_a_while() {
    let engine = MemoryEngine::new();
    let [mut home, _] = hubs(&engine);
    let (sender, recipient) = across();
    home.refuse_full(UserId(recipient), 500);
    let message = Send { copy: false, ..send(sender, recipient, 1) };
    let decision = home.decide_send(&engine, &message, 1499).expect("memory reads");
    assert_eq!(decision, Decision::Reject(culver_protocol::error::ErrorCode::RecipientFull));
    for now_ms in [1500, 499] {
        let decision = home.decide_send(&engine, &message, now_ms).expect("memory reads");
        assert!(matches!(decision, Decision::Apply(_)), "a while later, or the clock has gone back");
    }
}
