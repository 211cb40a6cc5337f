//! A rule each, without chance.

use std::sync::atomic::{AtomicU32, Ordering};

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, ConversationSeq, InboxSeq, Incarnation, UserId};
use culver_protocol::limits::RPCS_IN_FLIGHT_MAX;
use culver_storage::key::ShardId;
use culver_storage::reader::read;
use culver_storage::record::{Item, Lane, Outgoing, Stream};
use culver_storage::shard::DAY_MS;

use super::first_seed;
use super::world::{INCARNATION, World};
use crate::hub::bounds::Bounds;
use crate::hub::command::{Address, Command, Credit, Fingerprint, Proof, Request};
use crate::hub::effect::{Answer, Effect, EffectKind};
use crate::hub::mail::HubMail;

/// A calm world with users who have this many devices, none online.
pub(super) fn calm(hubs: u16, devices: u16) -> World {
    let mut world = World::new(first_seed(), hubs, devices);
    world.calm = true;
    world
}

fn is_for(effect: &Effect, slot: u32) -> bool {
    effect.session.slot == slot
}

/// What a login with this claim is answered.
pub(super) fn answer_to(world: &mut World, number: u16, cursor: u64, incarnation: Incarnation) -> EffectKind {
    answer_to_shown(world, number, (cursor, incarnation), (None, Proof::PlaintextToken { issued_s: u64::MAX }))
}

/// What a login is answered that shows this.
pub(super) fn answer_to_shown(
    world: &mut World,
    number: u16,
    (cursor, incarnation): (u64, Incarnation),
    shown: (Option<Fingerprint>, Proof),
) -> EffectKind {
    let device = World::device_of(1, number);
    let slot = 900 + u32::from(number);
    // Later than all before it.
    static EPOCHS: AtomicU32 = AtomicU32::new(1 << 20);
    let epoch = EPOCHS.fetch_add(1, Ordering::Relaxed);
    let session = Address { reactor: 0, slot, generation: 1, epoch };
    let credit = Credit { entries: 3, bytes: 1000 };
    let (cursor, fetch, receipts) = (InboxSeq(cursor), false, 0);
    let (fingerprint, proof) = shown;
    world.nodes[0]
        .hub
        .handle_command(
            Command::Login { session, device, cursor, incarnation, credit, fetch, receipts, fingerprint, proof },
            world.now_ms,
        )
        .expect("readable");
    world.take_commands();
    let is_answer = |kind: &EffectKind| matches!(kind, EffectKind::LoggedIn { .. } | EffectKind::Refused { .. });
    let answers: Vec<EffectKind> =
        world.drain_effects().into_iter().map(|effect| effect.kind).filter(|kind| is_answer(kind)).collect();
    let [answer] = <[EffectKind; 1]>::try_from(answers).expect("one answer");
    answer
}

pub(super) fn logged_in(kind: &EffectKind) -> (u64, bool, bool, bool) {
    match kind {
        EffectKind::LoggedIn { cursor, reset, gap, siblings } => (cursor.0, *reset, *gap, *siblings),
        other => panic!("{other:?}"),
    }
}

/// Users 2 and 3 have sent user 1 so many messages, all acknowledged by device 1.
fn with_history(messages: u128) -> World {
    let mut world = calm(1, 1);
    let one = world.log_in_with(World::device(1), 5);
    let two = world.log_in_with(World::device(2), 5);
    world.settle();
    for number in 1..=messages {
        world.send_to(two, 1, number);
    }
    world.drain();
    world.close(one);
    world.close(two);
    world.settle();
    world
}

#[test]
fn a_claim_that_cannot_be_is_reset_and_one_below_what_is_kept_is_a_gap() {
    let mut world = with_history(4);
    assert_eq!(logged_in(&answer_to(&mut world, 1, 4, INCARNATION)), (4, false, false, false));
    assert_eq!(logged_in(&answer_to(&mut world, 1, 5, INCARNATION)), (4, true, false, false), "beyond the head");
    assert_eq!(logged_in(&answer_to(&mut world, 1, 2, Incarnation(9))), (4, true, false, false), "other data");
    assert_eq!(logged_in(&answer_to(&mut world, 1, 0, Incarnation(9))), (4, false, false, false), "nothing claimed");
    // It has acknowledged what follows its claim: that is no gap.
    assert_eq!(logged_in(&answer_to(&mut world, 1, 2, INCARNATION)), (4, false, false, false));
    // A further device starts at the head. If it had more before it was unlinked it is told what it misses.
    assert_eq!(logged_in(&answer_to(&mut world, 2, 0, INCARNATION)), (4, false, false, true));
    assert_eq!(logged_in(&answer_to(&mut world, 3, 2, INCARNATION)), (4, false, true, true));
    // It may not have heard: it is told so until it has acknowledged what follows.
    assert_eq!(logged_in(&answer_to(&mut world, 3, 2, INCARNATION)), (4, false, true, true));
    assert_eq!(logged_in(&answer_to(&mut world, 3, 4, INCARNATION)), (4, false, false, true));
}

#[test]
fn a_ninth_device_is_refused_and_the_others_are_told_of_the_second() {
    let mut world = calm(1, 1);
    let one = world.log_in_with(World::device(1), 5);
    world.settle();
    assert!(!world.clients[one as usize].siblings);
    for number in 2..=8 {
        answer_to(&mut world, number, 0, INCARNATION);
    }
    let refused = answer_to(&mut world, 9, 0, INCARNATION);
    assert!(matches!(refused, EffectKind::Refused { code: ErrorCode::DevicesFull, .. }), "{refused:?}");
    assert_eq!(logged_in(&answer_to(&mut world, 8, 0, INCARNATION)), (0, false, false, true), "state is unchanged");
}

#[test]
fn an_older_login_that_is_heard_later_replaces_nobody() {
    let mut world = calm(1, 1);
    answer_to(&mut world, 1, 0, INCARNATION);
    // The numbers of the world's own clients are lower.
    let older = world.log_in_with(World::device(1), 5);
    world.take_commands();
    let told: Vec<Effect> = world.drain_effects();
    let refused = |effect: &Effect| matches!(effect.kind, EffectKind::Refused { code: ErrorCode::Replaced, .. });
    assert!(told.iter().any(|effect| is_for(effect, older) && refused(effect)), "{told:?}");
    assert!(!told.iter().any(|effect| matches!(effect.kind, EffectKind::Replaced)), "{told:?}");
}

#[test]
fn a_device_that_links_is_news_for_its_siblings() {
    let mut world = calm(1, 2);
    let one = world.log_in(World::device(1));
    world.settle();
    assert!(!world.clients[one as usize].siblings);
    world.log_in(World::device_of(1, 2));
    world.settle();
    assert!(world.clients[one as usize].siblings);
}

#[test]
fn fetch_logins_stand_beside_the_live_session_and_the_oldest_goes() {
    let mut world = calm(1, 1);
    let device = World::device(1);
    let live = world.log_in_with(device, 5);
    world.settle();
    let fetches = [0, 1, 2].map(|_| world.connect(device, 5, true));
    world.settle();
    let gone: Vec<bool> = fetches.iter().map(|slot| world.clients[*slot as usize].replaced).collect();
    assert_eq!(gone, [true, false, false]);
    assert!(!world.clients[live as usize].replaced);
    assert_eq!(world.nodes[0].hub.sessions(), 3);
    // What a fetch acknowledges moves the device's cursor; the live session goes its own way.
    let two = world.log_in(World::device(2));
    world.send_to(two, 1, 1);
    world.settle();
    world.acknowledge(fetches[2], 1);
    world.settle();
    assert_eq!(world.clients[live as usize].acked, InboxSeq(0));
    world.drain();
    world.check_drained(device);
}

#[test]
fn a_backlog_is_announced_before_it_comes_and_its_end_is_told() {
    let mut world = calm(1, 1);
    let one = world.log_in_with(World::device(1), 2);
    world.settle();
    for number in 1..=5 {
        world.send_to(one, 2, number);
    }
    world.settle();
    let two = world.log_in_with(World::device(2), 2);
    world.take_commands();
    world.read_all();
    // It finds no room: nothing overtakes it.
    world.refusals = 1;
    world.take_commands();
    world.drain();
    assert!(world.clients[two as usize].was_synced);
    world.check_drained(World::device(2));
    // Who has everything is told no story.
    world.close(two);
    world.settle();
    let two = world.log_in(World::device(2));
    world.drain();
    assert!(!world.clients[two as usize].was_synced);
}

#[test]
fn what_a_device_sent_is_skipped_and_its_cursor_goes_along() {
    let mut world = calm(1, 2);
    let devices = [1, 2].map(|number| World::device_of(1, number));
    let [one, other] = devices.map(|device| world.log_in_with(device, 5));
    world.settle();
    for number in 1..=3 {
        world.send_to(one, 2, number);
    }
    world.drain();
    assert_eq!(world.clients[one as usize].deliveries, 0);
    assert_eq!(world.clients[other as usize].deliveries, 3);
    for device in devices {
        world.check_drained(device);
    }
    // The step found no room: it is owed, and what follows joins on.
    world.refusals = 1;
    world.send_to(one, 2, 4);
    world.settle();
    let two = world.log_in(World::device(2));
    world.send_to(two, 1, 5);
    world.drain();
    for device in devices {
        world.check_drained(device);
    }
}

/// What it sent itself is all that waits for a device that nobody has looked at for long.
#[test]
fn a_cursor_that_a_cold_user_held_back_goes_along_with_the_next_step() {
    let mut world = calm(1, 2);
    let device = World::device(1);
    let (one, _) = (world.log_in_with(device, 5), world.log_in_with(World::device_of(1, 2), 5));
    world.settle();
    world.close(one);
    world.settle();
    world.send_to(one, 2, 1);
    world.settle();
    world.restart();
    let one = world.log_in_with(device, 5);
    world.take_commands();
    world.engine.set_cold(true);
    world.read_all();
    world.engine.set_cold(false);
    assert_eq!(world.nodes[0].hub.parked(), 0);
    world.settle();
    world.send_to(one, 2, 2);
    world.drain();
    world.check_drained(device);
}

/// A row that was written for another reason took a cursor with it: the hub may sleep.
#[test]
fn nothing_waits_for_company_once_all_is_written() {
    let mut world = calm(1, 3);
    let one = world.log_in_with(World::device(1), 5);
    let twos = [1, 2].map(|number| world.log_in_with(World::device_of(2, number), 5));
    world.settle();
    world.send_to(one, 2, 1);
    world.settle();
    world.acknowledge(twos[0], 1);
    world.settle();
    world.acknowledge(twos[1], 1);
    world.log_in(World::device_of(2, 3));
    world.send_to(one, 3, 2);
    world.take_commands();
    assert!(!world.nodes[0].hub.waits_for_company());
    world.drain();
    world.check_drained(World::device_of(2, 2));
}

#[test]
fn receipts_that_find_no_room_are_read_again_in_order() {
    for refused in 1..4 {
        let mut world = calm(1, 1);
        let (one, two) = (world.log_in_with(World::device(1), 5), world.log_in_with(World::device(2), 5));
        world.settle();
        for number in 1..=4 {
            world.send_to(one, 2, number);
            world.settle();
            world.acknowledge(two, 1);
            if number == 2 {
                // The receipt is on its way, and finds no room; nor does what comes after it.
                while !world.nodes[0].hub.is_writing() {
                    world.pass(5);
                    world.take_command();
                    world.move_hub();
                }
                world.refusals = refused;
            }
        }
        world.calm_down();
    }
}

/// The first goes through the stream, for the sender's talk is cold; the second needs one batch, and leaves with it.
#[test]
fn a_receipt_within_a_hub_leaves_with_the_batch_of_its_cursor() {
    let mut world = calm(1, 1);
    let (one, two) = (world.log_in_with(World::device(1), 5), world.log_in_with(World::device(2), 5));
    let is_receipt = |effect: &Effect| matches!(effect.kind, EffectKind::Receipt { .. });
    for number in 1..=2 {
        world.settle();
        world.send_to(one, 2, number);
        world.settle();
        world.acknowledge(two, 1);
        while !world.nodes[0].hub.is_writing() {
            world.pass(5);
            world.take_command();
            world.move_hub();
        }
        assert_eq!(world.nodes[0].hub.has_untaken(), number == 1, "{number}");
        assert!(!world.nodes[0].effects.iter().any(is_receipt), "nothing leaves before it is durable");
        world.finish_write();
        world.move_hub();
        assert_eq!(world.nodes[0].effects.iter().any(is_receipt), number == 2, "{number}");
    }
    world.calm_down();
}

#[test]
fn whoever_was_away_is_told_what_became_of_the_messages() {
    let mut world = calm(1, 2);
    let devices = [1, 2].map(|number| World::device_of(1, number));
    let slots = devices.map(|device| world.log_in_with(device, 5));
    let two = world.log_in_with(World::device(2), 5);
    world.settle();
    world.close(slots[1]);
    world.send_to(slots[0], 2, 1);
    world.drain();
    let conversation = ConversationId::direct(UserId(1), UserId(2));
    world.request(two, Request::MarkRead { conversation, seq: ConversationSeq(1) });
    world.drain();
    // A client that claims a version that was never given is told everything.
    let bold = world.connect_claiming(devices[1], 5, false, InboxSeq(0), 1 << 40);
    world.take_commands();
    world.read_all();
    world.take_commands();
    let told = world.drain_effects().into_iter().find_map(|effect| match effect.kind {
        EffectKind::Receipt { version, ref marks, .. } if is_for(&effect, bold) => Some((version, marks.clone())),
        _ => None,
    });
    let (_, marks) = told.expect("it is told");
    let mark = marks.first().expect("one conversation");
    assert_eq!((mark.conversation, mark.delivered, mark.read), (conversation, ConversationSeq(1), ConversationSeq(1)));
}

#[test]
fn reads_of_sessions_that_are_gone_are_forgotten() {
    let mut world = calm(1, 1);
    let one = world.log_in(World::device(1));
    let sender = world.log_in(World::device(2));
    world.settle();
    world.close(one);
    world.send_to(sender, 1, 1);
    world.settle();
    let outstanding_max = world.nodes[0].hub.bounds().reads_outstanding;
    for _ in 0..4 * outstanding_max {
        logged_in(&answer_to(&mut world, 1, 0, INCARNATION));
    }
    let reads = world.nodes[0].hub.holdings().reads;
    assert!(reads <= 2 * outstanding_max + 1, "nothing is read, and devices come again and again: {reads}");
}

#[test]
fn requests_are_answered_once_and_few_at_a_time() {
    let mut world = calm(1, 1);
    let one = world.log_in(World::device(1));
    world.settle();
    let asked: Vec<u64> = (0..=RPCS_IN_FLIGHT_MAX)
        .map(|_| world.request(one, Request::Conversations { limit: 1, page: Vec::new() }))
        .collect();
    world.take_commands();
    let answers = |world: &mut World| {
        let answer = |effect: Effect| match effect.kind {
            EffectKind::Answer { id, result } => Some((id, result)),
            _ => None,
        };
        world.drain_effects().into_iter().filter_map(answer).collect::<Vec<_>>()
    };
    let at_once = answers(&mut world);
    assert_eq!(at_once, [(*asked.last().expect("some"), Err(ErrorCode::Busy))]);
    assert!(!world.nodes[0].hub.is_settled(), "it owes answers");
    world.read_all();
    world.take_commands();
    assert_eq!(answers(&mut world).len(), RPCS_IN_FLIGHT_MAX);
    // What the user never had cannot be read.
    let conversation = ConversationId::direct(UserId(1), UserId(2));
    let id = world.request(one, Request::MarkRead { conversation, seq: ConversationSeq(7) });
    world.read_all();
    world.take_commands();
    assert_eq!(answers(&mut world), [(id, Err(ErrorCode::ReadBeyondDelivered))]);
    let id = world.request(one, Request::Devices);
    world.take_commands();
    let devices = answers(&mut world);
    let [(answered, Ok(Answer::Devices(devices)))] = devices.as_slice() else { panic!("{devices:?}") };
    assert_eq!((*answered, devices.len()), (id, 1));
    let device = devices.first().expect("one");
    assert!(device.online && device.waiting == 0 && device.last_seen_ms == world.now_ms / DAY_MS * DAY_MS);
    // Who was replaced is told so, and nothing is left of it.
    let newer = world.log_in(World::device(1));
    let id = world.request(one, Request::Devices);
    world.take_commands();
    assert_eq!(answers(&mut world), [(id, Err(ErrorCode::Replaced))]);
    world.close(one);
    world.close(newer);
    world.take_commands();
    assert_eq!(world.nodes[0].hub.sessions(), 0);
}

#[test]
fn mail_that_is_lost_is_made_up_for_and_the_end_does_not_wait_for_it() {
    let mut world = calm(2, 1);
    let users: Vec<u64> = (1..=4).collect();
    let slots: Vec<u32> = users.iter().map(|user| world.log_in(World::device(*user))).collect();
    world.settle();
    let mut number = 0;
    for slot in &slots {
        for user in &users {
            number += 1;
            world.send_to(*slot, *user, number);
        }
    }
    world.take_commands();
    world.lose_mail();
    assert!(world.nodes.iter().any(|node| node.hub.has_untaken()), "users of both hubs have written to each other");
    assert!(world.nodes.iter().all(|node| node.hub.is_settled()), "what is another's to take is driven again later");
    world.restart();
    for user in &users {
        world.log_in(World::device(*user));
    }
    world.drain();
    assert!(world.nodes.iter().all(|node| !node.hub.has_untaken()));
    world.calm_down();
}

#[test]
fn a_stream_that_stands_still_is_driven_again_after_a_while() {
    let mut world = calm(2, 1);
    let slots: Vec<u32> = (1..=4).map(|user| world.log_in(World::device(user))).collect();
    world.settle();
    for (number, to) in (1..=4).flat_map(|to| (0..4).map(move |_| to)).enumerate() {
        world.send_to(slots[number % 4], to, number as u128 + 1);
    }
    world.take_commands();
    world.lose_mail();
    let untaken = |world: &World| world.nodes.iter().map(|node| node.hub.untaken()).sum::<u64>();
    let lost = untaken(&world);
    assert!(lost > 0);
    world.pass(super::super::streams::REDRIVE_MS - 50);
    world.take_commands();
    world.read_all();
    assert_eq!(untaken(&world), lost, "it is not yet time");
    world.pass(100);
    world.drain();
    assert_eq!(untaken(&world), 0);
}

/// Receipts within the hub are under way until they are durable where they go.
#[test]
fn the_end_waits_for_receipts_of_the_hubs_own_users() {
    let mut world = calm(1, 1);
    let (one, two) = (world.log_in(World::device(1)), world.log_in(World::device(2)));
    world.settle();
    world.send_to(one, 2, 1);
    world.settle();
    world.acknowledge(two, 1);
    world.take_command();
    let mut waited = false;
    while !world.nodes[0].hub.is_settled() {
        waited |= world.nodes[0].hub.has_untaken();
        world.pass(25);
        world.move_hub();
        world.finish_write();
    }
    assert!(waited && !world.nodes[0].hub.has_untaken());
    world.settle();
    assert_eq!(world.clients[one as usize].version, 1);
}

/// Who is cold holds back what arrives, up to a bound; the rest is asked for again.
#[test]
fn a_stream_that_brings_too_much_for_a_cold_user_is_asked_to_come_again() {
    let mut world = calm(2, 1);
    let topology = std::sync::Arc::clone(&world.topology);
    let of = |hub: u16| (1..100).map(UserId).find(|user| topology.hub_of_user(*user).0 == hub).expect("one of many");
    let (user, peer) = (of(0), of(1));
    let shard = |user: UserId| ShardId::of_user(user, topology.shard_count());
    let stream = Stream { from: shard(peer), to: shard(user), lane: Lane::Receipt };
    let conversation = ConversationId::direct(user, peer);
    world.engine.set_cold(true);
    let of_stream = Bounds::default().parked_of_stream;
    let limit = of_stream as u64;
    for n in 1..=limit + 5 {
        let nothing = ConversationSeq(0);
        let item = Item::Receipt {
            user,
            conversation,
            delivered: ConversationSeq(n),
            read: nothing,
            expired: (nothing, nothing),
        };
        let outgoing = Outgoing { stream, n, item };
        let now_ms = world.now_ms;
        world.nodes[0].hub.handle_mail(HubMail::Push { outgoing }, now_ms).expect("readable");
    }
    assert_eq!(world.nodes[0].hub.parked(), of_stream);
    assert!(world.nodes[0].hub.take_mail().is_empty());
    world.engine.set_cold(false);
    let mut said = Vec::new();
    for _ in 0..10 {
        while let Some(asked) = world.nodes[0].hub.next_read() {
            let result = read(&world.engines(), 0, asked).expect("readable");
            let now_ms = world.now_ms;
            world.nodes[0].hub.handle_read(result, now_ms).expect("readable");
            world.nodes[0].hub.retry_parked(now_ms).expect("readable");
        }
        said.extend(world.nodes[0].hub.take_mail().into_iter().map(|(to, mail)| (to.0, mail)));
    }
    let [(1, HubMail::Behind { stream: behind, after })] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!((*behind, *after), (stream, limit));
}
