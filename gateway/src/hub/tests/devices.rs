//! Keys, names and removals of devices: a rule each, without chance.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, InboxSeq, UserId};

use super::rules::{answer_to_shown, calm, logged_in};
use super::world::{INCARNATION, World};
use crate::hub::command::{Address, Command, Credit, Device, Fingerprint, Proof, Request};
use crate::hub::effect::{Answer, DeviceInfo, EffectKind};

const KEY: Fingerprint = [7; 16];
const OTHER: Fingerprint = [8; 16];

/// What a login of one of user 1's devices is answered.
fn shows(world: &mut World, device: u16, key: Fingerprint, proof: Proof) -> EffectKind {
    answer_to_shown(world, device, (0, INCARNATION), (Some(key), proof))
}

/// The error that a login is refused with.
fn refusal(kind: &EffectKind) -> ErrorCode {
    match kind {
        EffectKind::Refused { code, .. } => *code,
        other => panic!("{other:?}"),
    }
}

fn token(world: &World) -> Proof {
    Proof::Token { issued_s: world.now_ms / 1000 }
}

fn remove(device: u16) -> Request {
    Request::RemoveDevice { device: DeviceId(device) }
}

fn name(device: u16, name: &str) -> Request {
    Request::NameDevice { device: DeviceId(device), name: name.to_owned() }
}

/// What was told to whom, in order.
fn told(world: &mut World) -> Vec<(u32, EffectKind)> {
    world.drain_effects().into_iter().map(|effect| (effect.session.slot, effect.kind)).collect()
}

/// Asks, and gives the answer.
fn answer(world: &mut World, slot: u32, request: Request) -> Result<Answer, ErrorCode> {
    let asked = world.request(slot, request);
    world.take_commands();
    world.read_all();
    world.take_commands();
    let answer = told(world).into_iter().find_map(|(of, kind)| match kind {
        EffectKind::Answer { id, result } if (of, id) == (slot, asked) => Some(result),
        _ => None,
    });
    answer.expect("it is answered")
}

fn list(world: &mut World, slot: u32) -> Vec<DeviceInfo> {
    match answer(world, slot, Request::Devices) {
        Ok(Answer::Devices(devices)) => devices,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_removal_is_durable_before_it_is_answered_and_ends_every_session_of_the_device() {
    let mut world = calm(1, 2);
    let one = world.log_in_with(World::device(1), 5);
    let two = world.log_in_with(World::device_of(1, 2), 5);
    let fetch = world.connect(World::device_of(1, 2), 5, true);
    let sender = world.log_in_with(World::device(2), 5);
    world.settle();
    let id = world.request(one, remove(2));
    world.take_command();
    world.move_hub();
    assert_eq!(world.nodes[0].hub.sessions(), 2, "what is decided next goes to none of them");
    assert!(told(&mut world).is_empty() && world.nodes[0].hub.is_writing(), "nothing leaves before it is durable");
    world.finish_write();
    world.move_hub();
    let told_now = told(&mut world);
    let [(of, EffectKind::Answer { id: answered, result: Ok(Answer::DeviceRemoved) }), ended @ .., alone] =
        &told_now[..]
    else {
        panic!("{told_now:?}")
    };
    assert_eq!((*of, *answered), (one, id));
    assert!(matches!(alone, (slot, EffectKind::Siblings(false)) if *slot == one), "{told_now:?}");
    let mut slots: Vec<u32> = ended.iter().map(|(slot, _)| *slot).collect();
    slots.sort_unstable();
    assert_eq!(slots, [two, fetch]);
    assert!(ended.iter().all(|(_, kind)| matches!(kind, EffectKind::Removed)), "{told_now:?}");
    world.send_to(sender, 1, 1);
    world.take_commands();
    let slots: Vec<u32> = told(&mut world).iter().map(|(slot, _)| *slot).collect();
    assert_eq!(slots, [sender, one], "the answer, and the only device");
}

#[test]
fn who_removes_itself_is_answered_first() {
    let mut world = calm(1, 1);
    let one = world.log_in(World::device(1));
    world.settle();
    let id = world.request(one, remove(1));
    world.take_commands();
    let told_now = told(&mut world);
    let [first, second] = &told_now[..] else { panic!("{told_now:?}") };
    assert!(matches!(first, (slot, EffectKind::Answer { id: of, result: Ok(_) }) if (*slot, *of) == (one, id)));
    assert!(matches!(second, (slot, EffectKind::Removed) if *slot == one));
    assert_eq!(answer(&mut world, one, Request::Devices), Err(ErrorCode::Replaced), "it is nobody any more");
    // The user goes on as one without devices, and gets a first one again.
    world.restart();
    let kind = shows(&mut world, 1, KEY, Proof::PlaintextToken { issued_s: u64::MAX });
    assert_eq!(logged_in(&kind), (0, false, false, false));
}

#[test]
fn a_removal_that_finds_no_room_is_told_later() {
    let mut world = calm(1, 2);
    let (one, two) = (world.log_in(World::device(1)), world.log_in(World::device_of(1, 2)));
    world.settle();
    world.request(one, remove(2));
    world.take_command();
    world.move_hub();
    world.finish_write();
    world.refusals = 1;
    world.move_hub();
    let told_now = told(&mut world);
    assert!(matches!(told_now[..], [(_, EffectKind::Answer { .. })]), "{told_now:?}");
    world.move_hub();
    let told_now = told(&mut world);
    assert!(matches!(told_now[..], [(slot, EffectKind::Removed), (_, EffectKind::Siblings(false))] if slot == two));
}

#[test]
fn devices_of_others_and_names_too_long_are_refused() {
    let mut world = calm(1, 2);
    let one = world.log_in(World::device(1));
    world.log_in(World::device_of(2, 2));
    world.settle();
    let not_found = Err(ErrorCode::DeviceNotFound);
    assert_eq!(answer(&mut world, one, remove(2)), not_found);
    assert_eq!(answer(&mut world, one, name(2, "watch")), not_found);
    assert_eq!(answer(&mut world, one, name(1, &"n".repeat(65))), Err(ErrorCode::NameTooLong));
    assert_eq!(world.nodes[0].hub.sessions(), 2);
    assert!(list(&mut world, one).iter().all(|info| info.name.is_empty() && !info.registered));
}

#[test]
fn a_list_says_who_has_a_name_and_a_key() {
    let mut world = calm(1, 2);
    let one = world.log_in(World::device(1));
    world.settle();
    let proof = token(&world);
    assert_eq!(logged_in(&shows(&mut world, 2, KEY, proof)), (0, false, false, true));
    assert_eq!(answer(&mut world, one, name(2, "watch")), Ok(Answer::DeviceNamed));
    let view = |info: DeviceInfo| (info.device.0, info.name, info.registered, info.online);
    let expected = [(1, String::new(), false, true), (2, "watch".to_owned(), true, true)];
    assert_eq!(list(&mut world, one).into_iter().map(view).collect::<Vec<_>>(), expected);
    // The names are read where they are cold, and the question waits.
    world.restart();
    let one = world.log_in(World::device(1));
    world.settle();
    world.engine.set_cold(true);
    let expected = [(1, String::new(), false, true), (2, "watch".to_owned(), true, false)];
    assert_eq!(list(&mut world, one).into_iter().map(view).collect::<Vec<_>>(), expected);
    world.engine.set_cold(false);
    assert_eq!(answer(&mut world, one, remove(2)), Ok(Answer::DeviceRemoved));
    assert_eq!(list(&mut world, one).len(), 1);
}

#[test]
fn who_has_not_the_key_is_unknown_and_leaves_nothing() {
    let mut world = calm(1, 1);
    let unknown = |world: &mut World, device, key| refusal(&shows(world, device, key, Proof::Registered));
    assert_eq!(unknown(&mut world, 1, KEY), ErrorCode::DeviceUnknown, "there is no such user");
    let proof = token(&world);
    logged_in(&shows(&mut world, 1, KEY, proof));
    for _ in 0..2 {
        assert_eq!(unknown(&mut world, 1, OTHER), ErrorCode::DeviceUnknown);
        assert_eq!(unknown(&mut world, 2, KEY), ErrorCode::DeviceUnknown, "there is no such device");
        let sessions = world.nodes[0].hub.sessions();
        assert_eq!(logged_in(&shows(&mut world, 1, KEY, Proof::Registered)), (0, false, false, false));
        assert!(sessions <= 1, "who is refused takes nobody's place");
        world.restart();
    }
}

/// Whoever is told that a newer session is there learns that there is a device.
#[test]
fn who_has_not_the_key_is_not_told_of_a_newer_session() {
    let mut world = calm(1, 1);
    let proof = token(&world);
    logged_in(&shows(&mut world, 1, KEY, proof));
    for (key, code) in [(OTHER, ErrorCode::DeviceUnknown), (KEY, ErrorCode::Replaced)] {
        let login = Command::Login {
            session: Address { reactor: 0, slot: 7, generation: 1, epoch: 1 },
            device: Device { user: UserId(1), device: DeviceId(1) },
            cursor: InboxSeq(0),
            incarnation: INCARNATION,
            credit: Credit { entries: 3, bytes: 1000 },
            fetch: false,
            receipts: 0,
            fingerprint: Some(key),
            proof: Proof::Registered,
        };
        world.nodes[0].hub.handle_command(login, world.now_ms).expect("readable");
        world.take_commands();
        let told_now = told(&mut world);
        assert!(matches!(told_now[..], [(7, EffectKind::Refused { code: of, .. })] if of == code), "{told_now:?}");
    }
}

#[test]
fn another_key_ends_what_the_first_began() {
    let mut world = calm(1, 1);
    let proof = token(&world);
    let key_of = |world: &mut World, key, fetch, epoch| {
        let login = Command::Login {
            session: Address { reactor: 0, slot: epoch, generation: 1, epoch },
            device: Device { user: UserId(1), device: DeviceId(1) },
            cursor: InboxSeq(0),
            incarnation: INCARNATION,
            credit: Credit { entries: 3, bytes: 1000 },
            fetch,
            receipts: 0,
            fingerprint: Some(key),
            proof,
        };
        world.nodes[0].hub.handle_command(login, world.now_ms).expect("readable");
        world.take_commands();
        told(world)
    };
    key_of(&mut world, KEY, false, 1);
    key_of(&mut world, KEY, true, 2);
    assert_eq!(world.nodes[0].hub.sessions(), 2);
    // One that fetches, which ends nobody where the key is the same.
    assert_eq!(key_of(&mut world, KEY, true, 3).len(), 1);
    let told_now = key_of(&mut world, OTHER, true, 4);
    let ended: Vec<u32> =
        told_now.iter().filter(|(_, kind)| matches!(kind, EffectKind::Replaced)).map(|it| it.0).collect();
    assert_eq!(ended.len(), 3, "{told_now:?}");
    assert!(matches!(told_now.last(), Some((4, EffectKind::LoggedIn { .. }))), "{told_now:?}");
    assert_eq!(world.nodes[0].hub.sessions(), 1);
    assert_eq!(refusal(&shows(&mut world, 1, KEY, Proof::Registered)), ErrorCode::DeviceUnknown);
}

#[test]
fn a_removed_device_comes_back_by_a_newer_token_only() {
    let mut world = calm(1, 2);
    let two = world.log_in(World::device_of(1, 2));
    world.settle();
    let before = token(&world);
    logged_in(&shows(&mut world, 1, KEY, before));
    world.pass(5000);
    let meanwhile = token(&world);
    assert_eq!(answer(&mut world, two, remove(1)), Ok(Answer::DeviceRemoved));
    for _ in 0..2 {
        assert_eq!(refusal(&shows(&mut world, 1, KEY, Proof::Registered)), ErrorCode::DeviceUnknown);
        for proof in [before, meanwhile, Proof::Token { issued_s: 0 }] {
            assert_eq!(refusal(&shows(&mut world, 1, KEY, proof)), ErrorCode::TokenExpired);
            assert_eq!(refusal(&shows(&mut world, 3, OTHER, proof)), ErrorCode::TokenExpired, "nor another device");
        }
        world.restart();
    }
    world.pass(1000);
    let after = token(&world);
    logged_in(&shows(&mut world, 1, OTHER, after));
    world.restart();
    assert_eq!(refusal(&shows(&mut world, 1, KEY, Proof::Registered)), ErrorCode::DeviceUnknown);
    logged_in(&shows(&mut world, 1, OTHER, Proof::Registered));
}

/// The second device of user 1 was linked behind what user 2 had sent, which the first never acknowledged. Both are
/// removed, and the second comes back with its cursor.
#[test]
fn who_comes_back_tells_of_nothing_that_only_another_was_to_fetch() {
    let mut world = calm(1, 2);
    let [one, from_two, from_three] = [1, 2, 3].map(|user| world.log_in_with(World::device(user), 5));
    world.settle();
    world.send_to(from_two, 1, 1);
    world.settle();
    let second = world.log_in_with(World::device_of(1, 2), 5);
    world.settle();
    world.send_to(from_three, 1, 2);
    world.settle();
    world.acknowledge(second, 1);
    world.settle();
    for device in [2, 1] {
        assert_eq!(answer(&mut world, one, remove(device)), Ok(Answer::DeviceRemoved));
    }
    world.send_to(from_three, 1, 3);
    world.take_commands();
    told(&mut world);
    let session = Address { reactor: 0, slot: 7, generation: 1, epoch: 1 << 20 };
    let (device, credit) = (World::device_of(1, 2), Credit { entries: 5, bytes: 1000 });
    let login = Command::Login {
        session,
        device,
        cursor: InboxSeq(2),
        incarnation: INCARNATION,
        credit,
        fetch: false,
        receipts: 0,
        fingerprint: None,
        proof: Proof::PlaintextToken { issued_s: u64::MAX },
    };
    let let_in = told_after(&mut world, login);
    let acknowledged = told_after(&mut world, Command::Ack { session, device, through: InboxSeq(3), credit });
    let marks = acknowledged.iter().flat_map(|(slot, kind)| match kind {
        EffectKind::Receipt { marks, .. } => marks.iter().map(|mark| (*slot, mark.delivered.0)).collect(),
        _ => Vec::new(),
    });
    assert_eq!(marks.collect::<Vec<_>>(), [(from_three, 2)], "nobody ever had what user 2 sent");
    let welcome = let_in.iter().find(|(_, kind)| matches!(kind, EffectKind::LoggedIn { .. }));
    assert_eq!(logged_in(&welcome.expect("it is let in").1), (2, false, false, false));
    let entries = let_in.iter().flat_map(|(_, kind)| match kind {
        EffectKind::DeliverPage { entries, .. } => entries.iter().map(|entry| entry.inbox_seq.0).collect(),
        _ => Vec::new(),
    });
    assert_eq!(entries.collect::<Vec<_>>(), [3]);
}

/// Everything that comes of a command, what waits for cursors to be written too.
fn told_after(world: &mut World, command: Command) -> Vec<(u32, EffectKind)> {
    world.nodes[0].hub.handle_command(command, world.now_ms).expect("readable");
    for _ in 0..4 {
        world.pass(100);
        world.take_commands();
        world.read_all();
    }
    world.take_commands();
    told(world)
}
