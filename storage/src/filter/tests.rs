use std::collections::BTreeSet;
use std::ops::ControlFlow;

use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::message::EntryView;
use proptest::prelude::*;

use super::*;
use crate::batch::{Batch, BatchNumber};
use crate::engine::{Engine, Tier};
use crate::key::{DedupKey, ShardId};
use crate::memory::{Loss, MemoryEngine};
use crate::record::{Lane, Stream};

pub(crate) const DEDUP_BEFORE_MS: u64 = 1_000_000;

/// What is written, and which of it must be there after a merge.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) batches: Vec<Batch>,
    pub(crate) kept: BTreeSet<(Family, Vec<u8>)>,
    written: usize,
}

/// Rows of a few users, streams and messages; floors and heads are written last, and some are not there at all.
pub(crate) fn worlds() -> impl Strategy<Value = World> {
    let users = proptest::collection::btree_map(any::<u64>(), (1..20u64, proptest::option::of(0..25u64)), 0..6);
    let streams =
        proptest::collection::btree_map((0..4u16, 0..4u16, 1..3u8), (1..20u64, proptest::option::of(0..25u64)), 0..6);
    let dedup = proptest::collection::btree_map(any::<u128>(), DEDUP_BEFORE_MS - 2..DEDUP_BEFORE_MS + 2, 0..20);
    let odd = proptest::collection::btree_map((0..9usize, any::<Vec<u8>>()), any::<Vec<u8>>(), 0..20);
    (users, streams, dedup, odd).prop_map(|(users, streams, dedup, odd)| {
        let mut world = World { batches: Vec::new(), kept: BTreeSet::new(), written: 0 };
        for (user, (head, _)) in &users {
            let floor = users.get(user).and_then(|(_, floor)| *floor).unwrap_or(0);
            for seq in 1..=*head {
                world.put(Family::Inbox, &inbox_key(*user, seq), &entry(seq), seq > floor);
            }
        }
        for (stream, (last, head)) in &streams {
            for n in 1..=*last {
                world.put(Family::Outbox, &outbox_key(*stream, n), &item(n), n > head.unwrap_or(0));
            }
        }
        for (id, time_ms) in dedup {
            world.put(Family::Dedup, &dedup_key(id), &dedup_row(time_ms), time_ms >= DEDUP_BEFORE_MS);
        }
        // Whatever cannot be understood stays.
        for ((family, key), value) in odd {
            let key = [b"?".as_slice(), &key].concat();
            world.put(*Family::ALL.get(family).expect("there are nine"), &key, &value, true);
        }
        for (user, (_, floor)) in users {
            if let Some(floor) = floor {
                world.put(Family::User, &key::user(ShardId(3), UserId(user)), &user_row(floor), true);
            }
        }
        for ((from, to, lane), (_, head)) in streams {
            if let Some(number) = head {
                let head = key::head(stream((from, to, lane)));
                world.put(Family::Meta, &head, &NumberRow { number }.encode(), true);
            }
        }
        world
    })
}

impl World {
    fn put(&mut self, family: Family, key: &[u8], value: &[u8], is_kept: bool) {
        // Some rows a batch, so that merges meet several files.
        if self.written.is_multiple_of(16) {
            self.batches.push(Batch::with_capacity(BatchNumber(0), 0));
        }
        self.written += 1;
        self.batches.last_mut().expect("one was just pushed").put(family, key, (value, &[]));
        if is_kept {
            self.kept.insert((family, key.to_vec()));
        }
    }
}

/// Merges, and sees that what is needed is there and nothing else.
pub(crate) fn merges_to(engine: &dyn Engine, kept: &BTreeSet<(Family, Vec<u8>)>) {
    engine.compact().expect("it merges");
    let mut found = BTreeSet::new();
    for family in Family::ALL {
        let visit = &mut |key: &[u8], _: &[u8]| {
            found.insert((family, key.to_vec()));
            ControlFlow::Continue(())
        };
        engine.scan(family, &[], &[0xff; 64], Tier::Disk, visit).expect("it reads");
    }
    assert_eq!(&found, kept);
}

pub(crate) fn inbox_key(user: u64, seq: u64) -> Vec<u8> {
    key::inbox(ShardId(3), UserId(user), InboxSeq(seq)).to_vec()
}

fn entry(seq: u64) -> Vec<u8> {
    let entry = EntryView {
        inbox_seq: InboxSeq(seq),
        conversation: ConversationId::direct(UserId(1), UserId(2)),
        conversation_seq: ConversationSeq(seq),
        message_id: MessageId::new(seq, 3, 0),
        server_time_ms: seq,
        sender: UserId(1),
        sender_device: DeviceId(1),
        payload: b"hello",
    };
    [value::encode_inbox_header(&entry).as_slice(), entry.payload].concat()
}

fn stream((from, to, lane): (u16, u16, u8)) -> Stream {
    Stream { from: ShardId(from), to: ShardId(to), lane: Lane::from_number(lane).expect("1 and 2 are lanes") }
}

fn outbox_key(of: (u16, u16, u8), n: u64) -> Vec<u8> {
    key::outbox(stream(of), n).to_vec()
}

/// A message or a receipt on its way.
fn item(n: u64) -> Vec<u8> {
    let (user, conversation) = (UserId(2), ConversationId::direct(UserId(1), UserId(2)));
    let seq = ConversationSeq(n);
    if n.is_multiple_of(2) {
        return value::encode_item_receipt(user, conversation, seq, seq, (seq, seq)).to_vec();
    }
    let entry = EntryView {
        inbox_seq: InboxSeq(0),
        conversation,
        conversation_seq: seq,
        message_id: MessageId::new(n, 3, 0),
        server_time_ms: n,
        sender: UserId(1),
        sender_device: DeviceId(1),
        payload: b"hello",
    };
    [value::encode_item_entry(user, &entry).as_slice(), entry.payload].concat()
}

fn dedup_key(id: u128) -> Vec<u8> {
    let of = DedupKey {
        conversation: ConversationId::direct(UserId(1), UserId(2)),
        sender: UserId(1),
        device: DeviceId(1),
        client_message_id: ClientMessageId(id.to_be_bytes()),
    };
    key::dedup(ShardId(3), &of).to_vec()
}

fn dedup_row(time_ms: u64) -> Vec<u8> {
    let message_id = MessageId::new(time_ms, 3, 0);
    DedupRow { conversation_seq: ConversationSeq(1), message_id, inbox_seq: InboxSeq(0) }.encode().to_vec()
}

fn user_row(floor: u64) -> Vec<u8> {
    let mut value = Vec::new();
    UserRow { floor: InboxSeq(floor), ..UserRow::default() }.encode(&mut value);
    value
}

proptest! {
    #[test]
    fn what_is_needed_is_kept_and_nothing_else(world in worlds()) {
        let engine = MemoryEngine::new();
        engine.retention().forget_dedup_before(DEDUP_BEFORE_MS);
        world.batches.iter().for_each(|batch| engine.write(batch).expect("it writes"));
        merges_to(&engine, &world.kept);
    }

    #[test]
    fn no_bytes_panic(family in 0..9usize, key: Vec<u8>, value: Vec<u8>, row: Vec<u8>) {
        let retention = Retention::default();
        let mut filter = Filter::new(*Family::ALL.get(family).expect("there are nine"), &retention);
        prop_assert!(!filter.drops(&key, &value, |_, _| Some(row.clone())) || filter.last.is_some());
    }
}

#[test]
fn one_lookup_an_inbox() {
    let mut filter = Filter::new(Family::Inbox, &Retention::default());
    let mut lookups = 0;
    for user in [7, 8] {
        for seq in 1..10 {
            let drops = filter.drops(&inbox_key(user, seq), &entry(seq), |family, key| {
                lookups += 1;
                assert_eq!((family, key), (Family::User, key::user(ShardId(3), UserId(user)).as_slice()));
                Some(user_row(5))
            });
            assert_eq!(drops, seq <= 5);
        }
    }
    assert_eq!(lookups, 2);
}

#[test]
fn what_cannot_be_read_is_kept() {
    let mut entries = Filter::new(Family::Inbox, &Retention::default());
    assert!(!entries.drops(&inbox_key(7, 1), &entry(1), |_, _| None));
    assert!(!entries.drops(&inbox_key(8, 1), &entry(1), |_, _| Some(b"\xffnot a user row".to_vec())));
    assert!(!entries.drops(&inbox_key(9, 1), b"\xffnot an entry", |_, _| Some(user_row(5))));
    assert!(entries.drops(&inbox_key(9, 1), &entry(1), |_, _| Some(user_row(5))));
    let mut outgoing = Filter::new(Family::Outbox, &Retention::default());
    let key = outbox_key((3, 4, 1), 1);
    assert!(!outgoing.drops(&key, &item(1), |_, _| None));
    let head = |number| NumberRow { number }.encode().to_vec();
    let key = outbox_key((3, 4, 2), 1);
    assert!(!outgoing.drops(&key, &[1, 77, 9], |_, _| Some(head(1))));
    assert!(outgoing.drops(&key, &item(1), |_, _| Some(head(1))));
}

#[test]
fn dedup_is_kept_until_there_is_a_time() {
    let retention = Retention::default();
    let drops = |retention: &Retention| {
        let mut filter = Filter::new(Family::Dedup, retention);
        filter.drops(&dedup_key(1), &dedup_row(5), |_, _| None)
    };
    assert!(!drops(&retention));
    retention.forget_dedup_before(6);
    assert!(drops(&retention));
    retention.forget_dedup_before(5);
    assert!(drops(&retention), "it never goes back");
}

#[test]
fn a_floor_that_is_not_durable_drops_nothing() {
    let engine = MemoryEngine::new();
    let batch = |family, key: &[u8], value: &[u8]| {
        let mut batch = Batch::with_capacity(BatchNumber(0), 0);
        batch.put(family, key, (value, &[]));
        batch
    };
    engine.write(&batch(Family::Inbox, &inbox_key(7, 1), &entry(1))).expect("it writes");
    let user = key::user(ShardId(3), UserId(7));
    engine.write_only(&batch(Family::User, &user, &user_row(1)));
    let entry = (Family::Inbox, inbox_key(7, 1));
    merges_to(&engine, &BTreeSet::from([entry.clone()]));
    engine.crash(&Loss::ALL);
    engine.reopen().expect("it opens again");
    merges_to(&engine, &BTreeSet::from([entry]));
    engine.write(&batch(Family::User, &user, &user_row(1))).expect("it writes");
    merges_to(&engine, &BTreeSet::from([(Family::User, user.to_vec())]));
}
