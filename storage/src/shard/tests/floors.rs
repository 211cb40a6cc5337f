//! Floors, expiry, unlinking, quotas, and how long ids are known.

use culver_protocol::error::ErrorCode;

use super::super::{Bounds, DAY_MS};
use super::*;
use crate::command::{DeviceView, Fold, Folded, UserView, View};
use crate::reader::{Engines, read_fold};
use crate::record::{Arrival, Item, Place};

const NOW_MS: u64 = 1000 * DAY_MS;
/// Longer than a device may be away.
const AWAY_MS: u64 = 91 * DAY_MS;

struct World {
    engine: Arc<MemoryEngine>,
    engines: Engines,
    shards: Shards,
    mail: Vec<Outgoing>,
}

impl World {
    fn new(policy: Policy) -> Self {
        let engine = Arc::new(MemoryEngine::new());
        let engines = Engines::single(Arc::clone(&engine) as Arc<dyn Engine>, SHARD_COUNT);
        let topology = Arc::new(Topology::single(SHARD_COUNT));
        let shards = Shards::recover(&*engine, topology, HubId(0), policy, NOW_MS, 0).expect("memory reads");
        Self { engine, engines, shards, mail: Vec::new() }
    }

    fn fill(&mut self, messages: u128, now_ms: u64) {
        for id in 0..messages {
            accept(&mut self.shards, &self.engine, &send(1, 2, id), now_ms);
        }
        commit(&mut self.shards, &self.engine);
    }

    fn ack(&mut self, device: u16, through: u64) {
        let decision = ack(&mut self.shards, &self.engine, (2, device), through, &[(talk(1, 2), through)]);
        assert!(matches!(decision, Decision::Apply(_)), "{decision:?}");
        self.mail.extend(commit(&mut self.shards, &self.engine));
    }

    /// What the sweep would have folded.
    fn fold(&mut self) -> Option<Fold> {
        match self.shards.fold_user(&*self.engine, UserId(2), NOW_MS) {
            Ok(View::Known(fold)) => fold,
            other => panic!("{other:?}"),
        }
    }

    fn folded(&self, fold: Fold) -> Folded {
        read_fold(&self.engines, fold).expect("memory reads")
    }

    fn decide(&mut self, folded: &Folded) -> Decision {
        let decision = self.shards.decide_floor(&*self.engine, folded, NOW_MS).expect("memory reads");
        apply(&mut self.shards, &decision);
        decision
    }

    /// User 2, as the first device sees it.
    fn user(&mut self) -> UserView {
        match self.shards.user(&*self.engine, UserId(2), DeviceId(1)) {
            Ok(View::Known(view)) => view,
            other => panic!("{other:?}"),
        }
    }

    fn floor(&mut self) -> u64 {
        self.user().floor.0
    }

    fn devices(&mut self) -> Vec<DeviceView> {
        match self.shards.devices(&*self.engine, UserId(2)) {
            Ok(View::Known(devices)) => devices,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_floor_is_raised_to_the_least_cursor_a_second_later() {
    let mut world = World::new(Policy::default());
    link(&mut world.shards, &world.engine, 2, 1, NOW_MS);
    link(&mut world.shards, &world.engine, 2, 2, NOW_MS);
    world.fill(5, NOW_MS);
    world.ack(1, 4);
    assert_eq!(world.shards.fold_due(NOW_MS), [], "the other device has nothing");
    world.ack(2, 3);
    world.ack(1, 5);
    assert_eq!(world.shards.fold_due(NOW_MS), []);
    let delay_ms = Bounds::default().fold_delay_ms;
    assert_eq!(world.shards.fold_due(NOW_MS + delay_ms - 1), []);
    let folds = world.shards.fold_due(NOW_MS + delay_ms);
    let (after, through, greatest) = (InboxSeq(0), InboxSeq(3), InboxSeq(5));
    assert_eq!(folds, [Fold { user: UserId(2), after, through, greatest, expire_before_ms: 0 }]);
    let folded = world.folded(folds[0]);
    let decision = world.decide(&folded);
    let Decision::Apply(Record::FloorMoved { floor, lists, expired, .. }) = &decision else { panic!("{decision:?}") };
    assert_eq!((floor.0, lists.len(), expired.len()), (3, 1, 0));
    assert_eq!(world.decide(&folded), Decision::Unchanged, "once");
    commit(&mut world.shards, &world.engine);
    assert_eq!(world.floor(), 3);
    world.shards = recover(&world.engine, NOW_MS);
    assert_eq!(world.floor(), 3);
    assert_eq!(world.decide(&folded), Decision::Unchanged, "a floor never falls");
}

#[test]
fn what_nobody_fetched_expires_and_the_sender_is_told() {
    let mut world = World::new(Policy::default());
    link(&mut world.shards, &world.engine, 2, 1, NOW_MS);
    world.fill(5, NOW_MS);
    world.ack(1, 2);
    let year_ms = Policy::default().retention_ms;
    world.shards.tick(NOW_MS + year_ms + 1, year_ms + 1);
    // The device logs in now and then, but acknowledges nothing.
    link(&mut world.shards, &world.engine, 2, 1, NOW_MS + year_ms);
    let fold = world.fold().expect("there is something to fold");
    let folded = world.folded(fold);
    assert!(matches!(world.decide(&folded), Decision::Apply(_)));
    let outgoing = commit(&mut world.shards, &world.engine);
    let [Outgoing { item: Item::Receipt { user, expired, .. }, .. }] = outgoing.as_slice() else {
        panic!("{outgoing:?}")
    };
    assert_eq!((user.0, expired.0.0, expired.1.0), (1, 2, 5));
    let view = world.user();
    assert_eq!((view.floor.0, view.cursor.0, view.lost_through.0), (5, 5, 5));
    accept(&mut world.shards, &world.engine, &send(1, 2, 99), NOW_MS + year_ms);
    world.ack(1, 6);
    let view = world.user();
    assert_eq!(view.lost_through.0, 0, "it has acknowledged since");
    world.mail.insert(1, outgoing.into_iter().next().expect("it was looked at"));
    let arrived = deliver(&mut world.shards, &world.engine, &world.mail);
    let [_, Decision::Apply(Record::Arrived { item: Arrival::Receipt { mark, .. }, .. }), _] = arrived.as_slice()
    else {
        panic!("{arrived:?}")
    };
    assert_eq!((mark.expired_after.0, mark.expired_through.0), (2, 5));
}

#[test]
fn a_clock_a_year_ahead_expires_nothing_and_unlinks_nobody() {
    let mut world = World::new(Policy::default());
    link(&mut world.shards, &world.engine, 2, 1, NOW_MS);
    link(&mut world.shards, &world.engine, 2, 2, NOW_MS);
    world.fill(5, NOW_MS);
    let year_ms = 366 * DAY_MS;
    let fold = Fold {
        user: UserId(2),
        after: InboxSeq(0),
        through: InboxSeq(0),
        greatest: InboxSeq(0),
        expire_before_ms: NOW_MS + 1,
    };
    let expired = world.folded(fold);
    assert_eq!(expired.floor, InboxSeq(5));
    world.shards.tick(NOW_MS + year_ms, 1000);
    let state = world.shards.expiry();
    assert!(state.stopped && state.expire_before_ms == 0 && world.shards.dedup_before_ms() == 0);
    assert_eq!(world.fold(), None);
    assert_eq!(world.decide(&expired), Decision::Unchanged, "even what a reader found before");
    world.shards.tick(NOW_MS + 2000, 2000);
    assert!(!world.shards.expiry().stopped, "it agrees again");
    // Back: ids go on ascending, as `time_never_goes_back_even_if_the_clock_does` has it, and this stops too.
    world.shards.tick(NOW_MS / 2, 3000);
    assert!(world.shards.expiry().stopped);
}

#[test]
fn who_steps_over_its_own_has_still_to_hear_what_is_lost() {
    let mut world = World::new(Policy::default());
    link(&mut world.shards, &world.engine, 2, 1, NOW_MS);
    world.fill(5, NOW_MS);
    let year_ms = Policy::default().retention_ms;
    world.shards.tick(NOW_MS + year_ms + 1, year_ms + 1);
    let fold = world.fold().expect("there is something to fold");
    let folded = world.folded(fold);
    assert!(matches!(world.decide(&folded), Decision::Apply(_)));
    accept(&mut world.shards, &world.engine, &send(1, 2, 99), NOW_MS + year_ms);
    let step = world.shards.decide_step(&*world.engine, UserId(2), DeviceId(1), InboxSeq(6)).expect("memory reads");
    assert!(matches!(&step, Decision::Apply(Record::CursorMoved { step: true, .. })));
    apply(&mut world.shards, &step);
    commit(&mut world.shards, &world.engine);
    world.shards = recover(&world.engine, NOW_MS + year_ms);
    let view = world.user();
    assert_eq!((view.cursor.0, view.lost_through.0), (6, 5));
    accept(&mut world.shards, &world.engine, &send(1, 2, 100), NOW_MS + year_ms);
    world.ack(1, 7);
    assert_eq!(world.user().lost_through.0, 0, "an acknowledgement of what follows says that it has heard");
}

/// Before the jump is noticed, while it lasts, and after a restart that takes the wrong time for the right one.
#[test]
fn who_is_seen_while_the_clock_is_a_year_behind_is_not_away_when_it_is_right_again() {
    let year_ms = 366 * DAY_MS;
    let mut world = World::new(Policy::default());
    let record = world.shards.tick(NOW_MS, 0).expect("a new clock is written at once");
    world.shards.apply(&record);
    link(&mut world.shards, &world.engine, 2, 1, NOW_MS);
    link(&mut world.shards, &world.engine, 2, 2, NOW_MS - year_ms);
    world.shards.tick(NOW_MS - year_ms, 1000);
    link(&mut world.shards, &world.engine, 2, 3, NOW_MS - year_ms);
    commit(&mut world.shards, &world.engine);
    world.shards = recover(&world.engine, NOW_MS - year_ms);
    link(&mut world.shards, &world.engine, 2, 4, NOW_MS - year_ms);
    commit(&mut world.shards, &world.engine);
    world.shards = recover(&world.engine, NOW_MS);
    let today = u32::try_from(NOW_MS / DAY_MS).expect("few days");
    assert_eq!(world.devices().iter().map(|device| device.seen_day).collect::<Vec<_>>(), [today; 4]);
    assert_eq!(world.fold(), None);
}

#[test]
fn downtime_is_no_age() {
    let mut world = World::new(Policy::default());
    let record = world.shards.tick(NOW_MS, 0).expect("a new clock is written at once");
    world.shards.apply(&record);
    commit(&mut world.shards, &world.engine);
    let mut shards = recover(&world.engine, NOW_MS + 400 * DAY_MS);
    assert_eq!(shards.expiry().clock_ms, NOW_MS);
    assert_eq!(shards.tick(NOW_MS + 400 * DAY_MS + 60_000, 60_000), Some(Record::ClockMoved { ms: NOW_MS + 60_000 }));
}

/// What is sent there from the others is no older for it.
#[test]
fn a_clock_that_was_never_written_begins_at_the_others_and_not_at_the_wall() {
    let topology = Arc::new(Topology::new(4, vec![0, 1, 0, 1], 2).expect("possible"));
    let volumes = [MemoryEngine::new(), MemoryEngine::new()];
    let recover_all = |now_ms| {
        let recover = |(number, engine): (u16, &MemoryEngine)| {
            let (topology, hub) = (Arc::clone(&topology), HubId(number));
            Shards::recover(engine, topology, hub, Policy::default(), now_ms, 0).expect("memory reads")
        };
        let mut all: Vec<_> = (0..).zip(&volumes).map(recover).collect();
        Shards::begin_together(&mut all);
        all
    };
    let clocks = |all: &[Shards]| all.iter().map(|shards| shards.expiry().clock_ms).collect::<Vec<_>>();
    let mut all = recover_all(NOW_MS);
    assert_eq!(clocks(&all), [NOW_MS; 2], "there is no other");
    let record = all[0].tick(NOW_MS, 0).expect("a new clock is written at once");
    all[0].apply(&record);
    commit(&mut all[0], &volumes[0]);
    let later_ms = NOW_MS + 800 * DAY_MS;
    let mut all = recover_all(later_ms);
    assert_eq!(clocks(&all), [NOW_MS; 2]);
    // It is written at once all the same, and then has a past of its own.
    let record = all[1].tick(later_ms + 5, 5).expect("a new clock is written at once");
    assert_eq!(record, Record::ClockMoved { ms: NOW_MS + 5 });
    all[1].apply(&record);
    commit(&mut all[1], &volumes[1]);
    assert_eq!(clocks(&recover_all(later_ms)), [NOW_MS, NOW_MS + 5]);
}

/// Two devices of user 2, of which only the second has been seen for so long, and what the sweep would fold.
fn with_a_device_away() -> (World, Fold) {
    let mut world = World::new(Policy::default());
    link(&mut world.shards, &world.engine, 2, 1, NOW_MS);
    link(&mut world.shards, &world.engine, 2, 2, NOW_MS);
    world.fill(5, NOW_MS);
    world.ack(2, 4);
    world.shards.tick(NOW_MS + AWAY_MS, AWAY_MS);
    link(&mut world.shards, &world.engine, 2, 2, NOW_MS + AWAY_MS);
    let fold = world.fold().expect("a device is away");
    (world, fold)
}

#[test]
fn a_device_that_was_not_seen_for_long_is_unlinked_but_never_the_last() {
    let (mut world, fold) = with_a_device_away();
    assert_eq!(fold.through, InboxSeq(4));
    let folded = world.folded(fold);
    let decision = world.decide(&folded);
    let Decision::Apply(Record::FloorMoved { floor, unlinked, .. }) = &decision else { panic!("{decision:?}") };
    assert_eq!((floor.0, unlinked.as_slice()), (4, [DeviceId(1)].as_slice()));
    commit(&mut world.shards, &world.engine);
    // The last one stays however long it is away.
    world.shards.tick(NOW_MS + 10 * AWAY_MS, 10 * AWAY_MS);
    assert_eq!(world.devices().len(), 1);
    let Some(fold) = world.fold() else { return };
    let folded = world.folded(fold);
    world.decide(&folded);
    assert_eq!(world.devices().len(), 1);
}

/// What it had was told as delivered: that never goes back.
#[test]
fn a_device_that_is_ahead_of_the_others_stays_until_they_have_caught_up() {
    let mut world = World::new(Policy::default());
    link(&mut world.shards, &world.engine, 2, 1, NOW_MS);
    link(&mut world.shards, &world.engine, 2, 2, NOW_MS);
    world.fill(5, NOW_MS);
    world.ack(1, 4);
    let later_ms = 91 * DAY_MS;
    world.shards.tick(NOW_MS + later_ms, later_ms);
    link(&mut world.shards, &world.engine, 2, 2, NOW_MS + later_ms);
    let folded = world.fold().map(|fold| world.folded(fold)).expect("entries are old enough to be looked at");
    assert_eq!(world.decide(&folded), Decision::Unchanged);
    ack(&mut world.shards, &world.engine, (2, 2), 2, &[(talk(1, 2), 2)]);
    assert_eq!(commit(&mut world.shards, &world.engine), [], "the other has had it");
    world.ack(2, 5);
    let folded = world.fold().map(|fold| world.folded(fold)).expect("a device is away");
    let decision = world.decide(&folded);
    let Decision::Apply(Record::FloorMoved { floor, unlinked, .. }) = &decision else { panic!("{decision:?}") };
    assert_eq!((floor.0, unlinked.as_slice()), (5, [DeviceId(1)].as_slice()));
}

/// It comes back by a token only, and however old that is: nobody removed it.
#[test]
fn a_device_that_is_unlinked_has_neither_key_nor_name_any_more() {
    let (mut world, fold) = with_a_device_away();
    let (user, device, key) = (UserId(2), DeviceId(1), Some([7; 16]));
    let (token, later_ms) = (Proof::Token { issued_s: 0 }, NOW_MS + AWAY_MS);
    // As if it had been so before it left.
    let registered = world.shards.decide_link(&*world.engine, user, device, key, token, 0).expect("memory reads");
    let Decision::Apply(Record::DeviceRegistered { fingerprint, replaces, .. }) = registered else {
        panic!("{registered:?}")
    };
    let day = u32::try_from(NOW_MS / DAY_MS).expect("few days");
    world.shards.apply(&Record::DeviceRegistered { user, device, fingerprint, replaces, day });
    let named = world.shards.decide_name(&*world.engine, user, device, "phone").expect("memory reads");
    apply(&mut world.shards, &named);
    commit(&mut world.shards, &world.engine);
    let folded = world.folded(fold);
    let decision = world.decide(&folded);
    assert!(matches!(&decision, Decision::Apply(Record::FloorMoved { unlinked, .. }) if unlinked == &[device]));
    commit(&mut world.shards, &world.engine);
    let report = crate::verify::verify_engine(&*world.engine, SHARD_COUNT).expect("memory reads");
    assert_eq!(report.findings, Vec::<String>::new());
    assert!(matches!(world.shards.names(&*world.engine, user), Ok(View::Known(names)) if names.is_empty()));
    let mut log_in = |proof| world.shards.decide_link(&*world.engine, user, device, key, proof, later_ms);
    assert!(matches!(log_in(Proof::Registered), Ok(Decision::Reject(ErrorCode::DeviceUnknown))));
    assert!(matches!(log_in(token), Ok(Decision::Apply(Record::DeviceLinked { .. }))));
}

#[test]
fn a_removed_device_holds_no_floor_back_and_what_it_had_does_not_expire() {
    let mut world = World::new(Policy::default());
    link(&mut world.shards, &world.engine, 2, 1, NOW_MS);
    link(&mut world.shards, &world.engine, 2, 2, NOW_MS);
    world.fill(5, NOW_MS);
    world.ack(1, 3);
    world.ack(2, 2);
    let remove = |world: &mut World, device| {
        let removed = world.shards.decide_remove(&*world.engine, UserId(2), DeviceId(device), NOW_MS);
        apply(&mut world.shards, &removed.expect("memory reads"));
        commit(&mut world.shards, &world.engine);
    };
    // A third that has nothing, and goes.
    link(&mut world.shards, &world.engine, 2, 3, NOW_MS);
    commit(&mut world.shards, &world.engine);
    let due = |world: &mut World| {
        world.shards.fold_due(NOW_MS);
        world.shards.fold_due(NOW_MS + Bounds::default().fold_delay_ms)
    };
    let folds = due(&mut world);
    let folded = world.folded(folds[0]);
    world.decide(&folded);
    commit(&mut world.shards, &world.engine);
    assert_eq!((world.floor(), due(&mut world).len()), (2, 0));
    remove(&mut world, 2);
    let folds = due(&mut world);
    assert_eq!(folds.iter().map(|fold| fold.through).collect::<Vec<_>>(), [InboxSeq(3)], "without waiting for a sweep");
    remove(&mut world, 1);
    remove(&mut world, 3);
    assert!(world.devices().is_empty() && world.floor() == 2, "nobody is left to raise it");
    let year_ms = Policy::default().retention_ms;
    world.shards.tick(NOW_MS + year_ms + 1, year_ms + 1);
    let fold = world.fold().expect("it is old enough");
    // The third was linked when all were there, so that who had what follows the first's is not known: nothing is said.
    assert_eq!(fold.greatest, InboxSeq(5));
    let folded = world.folded(fold);
    assert_eq!((folded.floor, folded.expired.len()), (InboxSeq(5), 0));
    assert!(matches!(world.decide(&folded), Decision::Apply(_)));
}

#[test]
fn a_device_that_comes_back_in_time_keeps_what_it_has_not_fetched() {
    let (mut world, fold) = with_a_device_away();
    let folded = world.folded(fold);
    link(&mut world.shards, &world.engine, 2, 1, NOW_MS + AWAY_MS);
    assert_eq!(world.decide(&folded), Decision::Unchanged);
}

#[test]
fn a_full_inbox_takes_no_more() {
    let mut world = World::new(Policy { quota_entries: 3, ..Policy::default() });
    link(&mut world.shards, &world.engine, 2, 1, NOW_MS);
    world.fill(3, NOW_MS);
    let next = send(1, 2, 9);
    let refused = Decision::Reject(ErrorCode::RecipientFull);
    assert_eq!(world.shards.decide_send(&*world.engine, &next, NOW_MS).expect("memory reads"), refused);
    assert!(world.shards.is_full(UserId(2)) && world.shards.is_batch_empty());
    world.ack(1, 1);
    assert!(matches!(world.shards.decide_send(&*world.engine, &next, NOW_MS), Ok(Decision::Apply(_))));

    let mut world = World::new(Policy { quota_bytes: 3 * crate::value::waiting_bytes(5), ..Policy::default() });
    link(&mut world.shards, &world.engine, 2, 1, NOW_MS);
    world.fill(3, NOW_MS);
    world.ack(1, 2);
    assert_eq!(world.shards.decide_send(&*world.engine, &next, NOW_MS).expect("memory reads"), refused);
    let fold = world.fold().expect("two can go");
    let folded = world.folded(fold);
    world.decide(&folded);
    assert!(matches!(world.shards.decide_send(&*world.engine, &next, NOW_MS), Ok(Decision::Apply(_))));
}

#[test]
fn an_id_is_known_for_thirty_days() {
    let mut world = World::new(Policy::default());
    world.fill(1, NOW_MS);
    world.shards.tick(NOW_MS + 30 * DAY_MS, 30 * DAY_MS);
    let again = |world: &mut World, now_ms| world.shards.decide_send(&*world.engine, &send(1, 2, 0), now_ms);
    assert!(matches!(again(&mut world, NOW_MS + 30 * DAY_MS), Ok(Decision::Duplicate(_))));
    world.shards.tick(NOW_MS + 31 * DAY_MS, 31 * DAY_MS);
    let decision = again(&mut world, NOW_MS + 31 * DAY_MS).expect("memory reads");
    assert!(
        matches!(&decision, Decision::Apply(Record::Message(message)) if message.place == Place::Local(InboxSeq(2)))
    );
    apply(&mut world.shards, &decision);
    commit(&mut world.shards, &world.engine);
    assert!(matches!(again(&mut world, NOW_MS + 31 * DAY_MS), Ok(Decision::Duplicate(_))));
}

#[test]
fn devices_of_rows_from_before_days_were_noted_count_from_now() {
    let mut world = World::new(Policy::default());
    let shard = crate::key::ShardId::of_user(UserId(2), SHARD_COUNT);
    let mut row = vec![1, 0];
    [0u64, 0].iter().for_each(|number| row.extend_from_slice(&number.to_be_bytes()));
    row.extend_from_slice(&2u16.to_be_bytes());
    for device in [1u16, 2] {
        row.extend_from_slice(&device.to_be_bytes());
        row.extend_from_slice(&0u64.to_be_bytes());
    }
    world.engine.plant(crate::engine::Family::User, &crate::key::user(shard, UserId(2)), Some(&row));
    assert_eq!(world.fold(), None);
    let today = u32::try_from(NOW_MS / DAY_MS).expect("few days");
    let devices = world.devices();
    assert!(devices.len() == 2 && devices.iter().all(|device| device.seen_day == today));
    world.fill(3, NOW_MS);
    world.ack(1, 2);
    world.shards = recover(&world.engine, NOW_MS);
    let devices = world.devices();
    assert_eq!(devices.iter().map(|device| device.cursor.0).collect::<Vec<_>>(), [2, 0]);
}
