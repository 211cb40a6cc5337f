//! The damage.

use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_storage::engine::Family;
use culver_storage::key::{self, MetaKind, ShardId, TalkKind};
use culver_storage::record::Stream;
use culver_storage::value::{
    ConversationRow, DedupRow, DeviceRow, ExpiredRow, MarkRow, NameRow, NumberRow, SeqRow, TimeRow, UserRow,
    decode_inbox, encode_inbox_header,
};

use super::world::{
    ALICE, BOB, SHARD_COUNT, World, dedup_key, device_key, healthy, home, inbox_key, shard_of, talk, talk_key,
    time_key, to_alice, user_key,
};

/// Plants damage into a healthy log, and sees that a finding says so.
fn found(plant: impl FnOnce(&World), words: &str) {
    let world = healthy();
    plant(&world);
    let findings = world.verify().findings;
    assert!(findings.iter().any(|finding| finding.contains(words)), "{words}: {findings:#?}");
}

/// Takes a row away.
fn without(family: Family, key: Vec<u8>) -> impl FnOnce(&World) {
    move |world| world.plant(family, &key, None)
}

/// Puts a row.
fn with(family: Family, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> impl FnOnce(&World) {
    move |world| world.plant(family, key.as_ref(), Some(value.as_ref()))
}

/// Changes an entry of Bob.
fn entry(seq: u64, change: impl FnOnce(&mut culver_protocol::message::EntryView<'_>)) -> impl FnOnce(&World) {
    move |world| {
        let value = world.get(Family::Inbox, &inbox_key(BOB, seq));
        let mut entry = decode_inbox(InboxSeq(seq), &value).expect("it was written");
        change(&mut entry);
        world.plant(Family::Inbox, &inbox_key(BOB, seq), Some(&encode_inbox_header(&entry)));
    }
}

fn bob(change: impl FnOnce(&mut UserRow)) -> impl FnOnce(&World) {
    move |world| world.plant_user(BOB, change)
}

fn mark(seq: u64, version: u64) -> [u8; 17] {
    MarkRow { seq: ConversationSeq(seq), version }.encode()
}

#[test]
fn a_healthy_log_has_no_findings() {
    let report = healthy().verify();
    assert!(report.is_clean(), "{:#?}", report.findings);
    assert_eq!((report.users, report.conversations, report.dedup_rows, report.name_rows), (2, 1, 202, 1));
    // Alice's and Bob's, with what no device needs any more.
    assert_eq!(report.messages, 100 + 202);
    // Bob: list, delivered, Alice's delivered and read; Alice: delivered, read, Bob's delivered.
    assert_eq!(report.talk_rows, 7);
    assert!(report.outbox_rows > 202 && report.batch > 400, "{report:?}");
}

#[test]
fn what_merges_drop_is_not_missed() {
    let world = healthy();
    (1..=50).filter(|seq| seq % 3 > 0).for_each(|seq| world.plant(Family::Inbox, &inbox_key(BOB, seq), None));
    (1..=192).for_each(|n| world.plant(Family::Outbox, &key::outbox(to_alice(), n), None));
    world.plant(Family::Device, &device_key(BOB, 9), Some(&NameRow::default().encode()));
    let findings = world.verify().findings;
    assert!(findings.is_empty(), "{findings:#?}");
}

#[test]
fn rows_in_a_wrong_place() {
    found(with(Family::Inbox, key::inbox(ShardId(63), BOB, InboxSeq(101)), [1]), "is in shard 63");
    found(with(Family::User, key::user(ShardId(63), BOB), [1]), "user 7: its row is in shard 63");
    let row = ConversationRow::default().encode();
    found(with(Family::Conversation, key::conversation(ShardId(63), talk()), row), "is in shard 63");
    let list = key::talk(ShardId(63), BOB, talk(), TalkKind::Read);
    found(with(Family::Member, list, mark(1, 1)), "the read mark of 00000000000000010000000000000007 is in shard 63");
    found(
        with(Family::Meta, time_key(ShardId(99)), TimeRow { until_ms: 1 }.encode()),
        "shard 99, which does not exist",
    );
    let elsewhere = |world: &World| {
        let other = world.volumes.get(usize::from(shard_of(BOB).0 + 1) % 2).expect("there are two");
        other.plant(Family::User, &user_key(BOB), Some(&world.get(Family::User, &user_key(BOB))));
    };
    found(elsewhere, "of shard 60, which volume 1 does not have");
}

#[test]
fn keys_and_values_that_cannot_be_read() {
    found(with(Family::Inbox, inbox_key(BOB, 90), [9, 9]), "entry 90 cannot be read");
    found(with(Family::Inbox, b"short", [1]), "a key of `inbox` has a wrong length");
    found(with(Family::User, user_key(BOB), [7]), "user 7: its row cannot be read");
    found(with(Family::User, b"short", [7]), "a key of `user` has a wrong length");
    found(with(Family::Conversation, key::conversation(home(), talk()), [7]), "its row cannot be read");
    found(with(Family::Conversation, b"short", [7]), "a key of `conversation` has a wrong length");
    found(with(Family::Dedup, dedup_key(10), []), "cannot be read");
    found(with(Family::Dedup, b"short", []), "a key of `dedup` has a wrong length");
    found(with(Family::Member, talk_key(BOB, TalkKind::List), [7]), "the list row of");
    found(with(Family::Member, b"short", []), "a key of `member` is not known here");
    found(with(Family::Outbox, key::outbox(to_alice(), 202), [7]), "item 202 cannot be read");
    found(with(Family::Outbox, b"short", []), "a key of `outbox` is not known here");
    found(with(Family::Meta, key::meta(ShardId(0), MetaKind::Batch, 0), [1]), "the batch row");
    found(with(Family::Meta, time_key(home()), [1]), "the time reservation of shard");
    found(with(Family::Meta, key::head(to_alice()), [1]), "a head of shard");
    found(with(Family::Meta, key::watermark(to_alice()), [1]), "a watermark of shard");
    found(with(Family::Meta, key::meta(ShardId(0), MetaKind::Clock, 0), [1]), "the expiry clock of shard");
    found(with(Family::Meta, [0, 0, 99, 0, 0, 0, 0, 0, 0, 0, 0], [1]), "kind 99");
    found(with(Family::Meta, b"x", [1]), "a key of `meta` has a wrong length");
    let head = NumberRow { number: 1 }.encode();
    found(with(Family::Meta, key::meta(ShardId(0), MetaKind::Head, u64::MAX), head), "names no stream");
}

#[test]
fn inboxes_with_holes() {
    found(without(Family::Inbox, inbox_key(BOB, 90)), "user 7: after entry 89 comes 91");
    found(without(Family::Inbox, inbox_key(BOB, 51)), "user 7: after entry 50 comes 52");
    found(without(Family::Inbox, inbox_key(BOB, 91)), "message 91 is neither in the inbox of user 7 nor on its way");
    // His own copy.
    found(without(Family::Inbox, inbox_key(BOB, 90)), "names message 90, which does not fit it");
    found(without(Family::Inbox, inbox_key(ALICE, 100)), "message 200 is neither in the inbox of user 1");
}

#[test]
fn entries_that_are_not_what_they_should_be() {
    let stranger = |entry: &mut culver_protocol::message::EntryView<'_>| entry.sender = UserId(77);
    found(entry(90, stranger), "user 7: entry 90 is of conversation");
    found(entry(91, stranger), "names message 91, which does not fit it");
    found(entry(90, stranger), "message 90 is not the same in all inboxes");
    let id = |id: MessageId| move |entry: &mut culver_protocol::message::EntryView<'_>| entry.message_id = id;
    found(entry(91, id(MessageId::new(5, home().0, 0))), "the id of message 91 does not ascend");
    found(entry(91, id(MessageId::new(1098, home().0 + 1, 0))), "the id of entry 91 is of shard");
    found(entry(91, id(MessageId::new(1 << 40, home().0, 0))), "reserved");
    let swap = |world: &World| {
        let [a, b] = [inbox_key(BOB, 90), inbox_key(BOB, 92)].map(|key| (world.get(Family::Inbox, &key), key));
        world.plant(Family::Inbox, &a.1, Some(&b.0));
        world.plant(Family::Inbox, &b.1, Some(&a.0));
    };
    found(swap, "stands after message 92");
}

#[test]
fn heads_floors_and_cursors() {
    found(bob(|row| row.head = InboxSeq(203)), "the head is 202, and its row says 203");
    found(bob(|row| row.head = InboxSeq(138)), "the head is 202, and its row says 138");
    found(bob(|row| row.floor = InboxSeq(row.head.0 + 1)), "beyond the head");
    let device =
        |device, cursor| DeviceRow { device: DeviceId(device), cursor: InboxSeq(cursor), ..DeviceRow::default() };
    found(bob(|row| row.devices = vec![device(1, 203)]), "the cursor of device 1 is 203, beyond the head 202");
    found(bob(|row| row.devices = vec![device(1, 49)]), "the cursor of device 1 is 49, below the floor 50");
    let lost = DeviceRow { lost_through: InboxSeq(61), ..device(1, 60) };
    found(bob(|row| row.devices = vec![lost]), "device 1 has lost what precedes 61, beyond its cursor 60");
    found(bob(|row| row.devices = (1..=9).map(|id| device(id, 60)).collect()), "9 devices, 8 are allowed");
    found(bob(|row| row.waiting_bytes += 1), "bytes wait up to entry");
    found(bob(|row| row.floor = InboxSeq(48)), "message 49 of 00000000000000010000000000000007 waits, and the list");
}

#[test]
fn names_of_devices() {
    let name = |name: &str| NameRow { name: name.to_owned() }.encode();
    let plant = |user, device, value: &[u8]| with(Family::Device, device_key(user, device), value.to_vec());
    found(without(Family::Device, device_key(BOB, 1)), "user 7: the name of device 1 is missing");
    found(plant(BOB, 1, &name("")), "user 7: the name of device 1 is missing");
    found(plant(BOB, 2, &name("tablet")), "user 7: a name of device 2, which is not linked, or has none");
    found(plant(BOB, 9, &name("watch")), "user 7: a name of device 9, which is not linked, or has none");
    found(plant(UserId(9), 1, &name("watch")), "user 9: a name of device 1, which is not linked, or has none");
    found(bob(|row| row.devices[0].is_named = false), "user 7: a name of device 1, which is not linked, or has none");
    found(plant(BOB, 1, &name(&"n".repeat(65))), "the name of device 1 cannot be read: its name is longer than 64");
    found(plant(BOB, 1, &[1, 0xff]), "the name of device 1 cannot be read: its name is not UTF-8");
    found(plant(BOB, 1, &[7]), "the name of device 1 cannot be read: version 7");
    found(with(Family::Device, b"short", [1]), "a key of `device` has a wrong length");
    let astray = key::device(ShardId(63), BOB, DeviceId(1));
    found(with(Family::Device, astray, name("phone")), "user 7: the name of device 1 is in shard 63");
}

#[test]
fn devices_that_were_removed() {
    let removed = |tokens_from_s, had| bob(move |row| (row.tokens_from_s, row.had) = (tokens_from_s, InboxSeq(had)));
    found(removed(1, 203), "user 7: a device that was removed had entry 203, beyond the head 202");
    found(removed(0, 100), "user 7: a device was removed, and its tokens still register others");
    let world = healthy();
    removed(1, 202)(&world);
    assert!(world.verify().is_clean());
}

/// A key is of a device, and a user row with half of one is none.
#[test]
fn keys_of_devices() {
    let cut = |world: &World| {
        let row = world.get(Family::User, &user_key(BOB));
        let decoded = UserRow::decode(&row).expect("it was written");
        assert_eq!(decoded.devices.first().and_then(|device| device.fingerprint), Some([7; 16]));
        world.plant(Family::User, &user_key(BOB), row.get(..row.len() - 1));
    };
    found(cut, "user 7: its row cannot be read: its length does not fit its layout");
}

#[test]
fn users_without_a_row_or_without_entries() {
    found(without(Family::User, user_key(BOB)), "user 7: entries up to 202, and no row");
    found(without(Family::User, user_key(BOB)), "user 7: the list row of");
    let mut row = Vec::new();
    UserRow { head: InboxSeq(3), ..UserRow::default() }.encode(&mut row);
    found(with(Family::User, user_key(UserId(9)), row), "user 9: the head is 0, and its row says 3");
}

#[test]
fn streams() {
    let number = |number| NumberRow { number }.encode();
    found(without(Family::Outbox, key::outbox(to_alice(), 201).to_vec()), "after item 200 comes 202");
    found(
        with(Family::Meta, key::head(to_alice()), number(202)),
        "the stream of messages from shard 36 to 51: item 202 is said to have arrived, and only 201 have",
    );
    found(
        with(Family::Meta, key::watermark(to_alice()), number(203)),
        "203 items have arrived, and only 202 were sent",
    );
    // A message on its way is lost, or taken for arrived.
    found(without(Family::Outbox, key::outbox(to_alice(), 202).to_vec()), "message 202 is neither in the inbox of");
    found(with(Family::Meta, key::watermark(to_alice()), number(202)), "message 202 is neither in the inbox of");
    let astray = |world: &World| {
        let item = world.get(Family::Outbox, &key::outbox(to_alice(), 202));
        let other = Stream { to: ShardId(3), ..to_alice() };
        world.plant(Family::Outbox, &key::outbox(other, 1), Some(&item));
    };
    found(astray, "item 1 for user 1 does not belong there");
}

#[test]
fn marks_and_versions() {
    let plant = |user, kind, value: &[u8]| with(Family::Member, talk_key(user, kind), value.to_vec());
    let delivered = SeqRow { seq: ConversationSeq(203), is_untold: false }.encode();
    found(plant(BOB, TalkKind::Delivered, &delivered), "the delivered mark of");
    found(plant(BOB, TalkKind::Delivered, &delivered), "is at message 203, and the last is 202");
    found(plant(ALICE, TalkKind::Read, &mark(203, 1)), "the read mark of");
    let expired = ExpiredRow { after: ConversationSeq(5), through: ConversationSeq(205), version: 1 }.encode();
    found(plant(ALICE, TalkKind::PeerExpired, &expired), "the peer's expired mark of");
    // Too much and too little was told.
    found(plant(ALICE, TalkKind::PeerDelivered, &mark(61, 1)), "user 1: was told that message 61 of");
    found(plant(ALICE, TalkKind::PeerDelivered, &mark(57, 1)), "is delivered, and 59 is");
    found(without(Family::Member, talk_key(BOB, TalkKind::PeerDelivered)), "told that message 0 of");
    found(plant(BOB, TalkKind::PeerRead, &mark(11, 1)), "user 7: was told that message 11 of");
    // Versions.
    found(plant(BOB, TalkKind::PeerRead, &mark(10, 1 << 40)), "has version 1099511627776, and its row says");
    found(plant(BOB, TalkKind::PeerRead, &mark(10, 0)), "has version 0, and its row says");
    let other = ConversationId::direct(BOB, UserId(9));
    let same = key::talk(shard_of(BOB), BOB, other, TalkKind::PeerRead);
    found(with(Family::Member, same, mark(0, 1)), "have the same version 1");
    let strange = key::talk(shard_of(BOB), BOB, ConversationId::direct(ALICE, UserId(9)), TalkKind::PeerRead);
    found(with(Family::Member, strange, mark(0, 1)), "to which it does not belong");
}

#[test]
fn lists() {
    // What is below the floor is gone without it.
    found(
        without(Family::Member, talk_key(BOB, TalkKind::List)),
        "message 49 is neither in the inbox of user 7 nor on its way there",
    );
    let with_id = |world: &World| {
        let mut row = world.get(Family::Member, &talk_key(BOB, TalkKind::List));
        *row.get_mut(16).expect("the last byte of its id") ^= 1;
        world.plant(Family::Member, &talk_key(BOB, TalkKind::List), Some(&row));
    };
    found(with_id, "gives message 50 another id");
}

#[test]
fn conversation_rows_that_disagree() {
    let key = key::conversation(home(), talk());
    found(without(Family::Conversation, key.to_vec()), "its row says 0, and its last message is 202");
    let row =
        ConversationRow { last_seq: ConversationSeq(7), last_message: MessageId(7), ..ConversationRow::default() };
    found(with(Family::Conversation, key, row.encode()), "its row says 7, and its last message is 202");
    found(with(Family::Conversation, key, row.encode()), "its row says 7, and of its users' last messages 0");
    let change = |change: fn(&mut ConversationRow)| {
        move |world: &World| {
            let mut row = ConversationRow::decode(&world.get(Family::Conversation, &key)).expect("it was written");
            change(&mut row);
            world.plant(Family::Conversation, &key, Some(&row.encode()));
        }
    };
    found(
        change(|row| row.last_by_lesser = ConversationSeq(5)),
        "its row says that the last message of user 1 is 5, and it is 201",
    );
    let nobody = ConversationId([0; 16]);
    let other = key::conversation(ShardId::of_conversation(nobody, SHARD_COUNT), nobody);
    found(with(Family::Conversation, other, row.encode()), "its row says 7, and it has no messages");
}

#[test]
fn dedup_rows_and_messages_that_disagree() {
    found(without(Family::Dedup, dedup_key(110)), "message 111 has no dedup row");
    found(without(Family::Dedup, dedup_key(10)), "after message 10 comes 12");
    let row = DedupRow { conversation_seq: ConversationSeq(12), message_id: MessageId(1), inbox_seq: InboxSeq(0) };
    found(with(Family::Dedup, dedup_key(10), row.encode()), "names message 12, which does not fit it");
    let twice = healthy().get(Family::Dedup, &dedup_key(10));
    found(with(Family::Dedup, dedup_key(1000), &twice), "names message 11, which does not fit it");
}

#[test]
fn a_time_reservation_that_was_passed() {
    found(without(Family::Meta, time_key(home())), "reserved 0");
    found(with(Family::Meta, time_key(home()), TimeRow { until_ms: 1150 }.encode()), "reserved 1150");
}

#[test]
fn dedup_rows_past_their_time_are_not_missed() {
    const DAY_MS: u64 = 86_400_000;
    // By this clock what is older than about 1100 ms may be forgotten: 300 s of it are its lag.
    let clock = |world: &World| {
        let row = NumberRow { number: 1100 + 30 * DAY_MS - 300_000 }.encode();
        world.plant(Family::Meta, &key::meta(ShardId(1), MetaKind::Clock, 0), Some(&row));
    };
    let world = healthy();
    (0..100).filter(|index| index % 3 > 0).for_each(|index| world.plant(Family::Dedup, &dedup_key(index), None));
    assert!(!world.verify().is_clean());
    clock(&world);
    let findings = world.verify().findings;
    assert!(findings.is_empty(), "{findings:#?}");
    let recent = |index| {
        move |world: &World| {
            clock(world);
            world.plant(Family::Dedup, &dedup_key(index), None);
        }
    };
    found(recent(110), "message 111 has no dedup row");
}
