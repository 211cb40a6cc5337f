//! Folds, sweeps and streams.

use std::collections::BTreeMap;

use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId, InboxSeq, UserId};
use culver_storage::key::{self, ShardId};
use culver_storage::reader::{FOLD_CONVERSATIONS_MAX, FOLD_ROWS_MAX, Fold, Folded, read_fold, read_outbox, read_sweep};
use culver_storage::record::{Expired, InboxEntry, Item, Lane, Stream};
use culver_storage::value::{DeviceRow, ListRow, UserRow, waiting_bytes};
use proptest::prelude::*;

use super::world::{ME, World, entry, list_row, with};

/// The same, one entry after the other.
fn naive(entries: &[InboxEntry], fold: Fold) -> Folded {
    let is_folded =
        |entry: &&InboxEntry| entry.inbox_seq <= fold.through || entry.server_time_ms < fold.expire_before_ms;
    let folded: Vec<&InboxEntry> =
        entries.iter().filter(|entry| entry.inbox_seq > fold.after).take_while(is_folded).collect();
    let mut lists: BTreeMap<ConversationId, ListRow> = BTreeMap::new();
    lists.extend(folded.iter().map(|entry| (entry.conversation, list_row(entry))));
    let mut expired: BTreeMap<ConversationId, Vec<u64>> = BTreeMap::new();
    let nobody_had = |entry: &&&InboxEntry| entry.inbox_seq > fold.greatest.max(fold.through) && entry.sender != ME;
    for entry in folded.iter().filter(nobody_had) {
        expired.entry(entry.conversation).or_default().push(entry.conversation_seq.0);
    }
    let range = |(conversation, seqs): (ConversationId, Vec<u64>)| Expired {
        conversation,
        after: ConversationSeq(seqs.iter().min().map_or(0, |seq| seq - 1)),
        through: ConversationSeq(seqs.iter().max().copied().unwrap_or(0)),
    };
    Folded {
        fold,
        floor: folded.last().map_or(fold.after, |entry| entry.inbox_seq),
        freed_bytes: folded.iter().map(|entry| waiting_bytes(entry.payload.len())).sum(),
        lists: lists.into_iter().collect(),
        expired: expired.into_iter().map(range).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn folds_are_what_one_entry_after_the_other_would_leave(
        messages in proptest::collection::vec((2..8u64, any::<bool>()), 0..60),
        after in 0..30u64, cursor in 0..40u64, beyond in 0..30u64, expire_before_ms in prop_oneof![Just(0), 1000..1070u64],
    ) {
        let world = World::new();
        let mut seqs = BTreeMap::new();
        let entries: Vec<InboxEntry> = (1..).zip(messages).map(|(inbox_seq, (peer, own))| {
            let seq = seqs.entry(peer).and_modify(|seq| *seq += 1).or_insert(1);
            entry(inbox_seq, peer, *seq, if own { ME.0 } else { peer }, 1000 + inbox_seq)
        }).collect();
        entries.iter().for_each(|entry| world.entry(ME, entry));
        let head = entries.len() as u64;
        let (after, through) = (after.min(head), (after + cursor).min(head));
        let greatest = InboxSeq((through + beyond).min(head));
        let fold = Fold { user: ME, after: InboxSeq(after), through: InboxSeq(through), greatest, expire_before_ms };
        prop_assert_eq!(read_fold(&world.engines, fold).expect("memory reads"), naive(&entries, fold));
    }
}

fn fold_all(world: &World, after: u64) -> Folded {
    let (through, greatest) = (InboxSeq(1 << 40), InboxSeq(1 << 40));
    let fold = Fold { user: ME, after: InboxSeq(after), through, greatest, expire_before_ms: 0 };
    read_fold(&world.engines, fold).expect("memory reads")
}

#[test]
fn a_long_way_takes_several_folds() {
    let world = World::new();
    let rows = FOLD_ROWS_MAX as u64;
    (1..=rows + 5).for_each(|seq| world.entry(ME, &entry(seq, 2, seq, 2, 1000)));
    assert_eq!(fold_all(&world, 0).floor, InboxSeq(rows));
    assert_eq!(fold_all(&world, rows).floor, InboxSeq(rows + 5));
}

#[test]
fn many_conversations_take_several_folds() {
    let world = World::new();
    let most = FOLD_CONVERSATIONS_MAX as u64;
    (1..=most + 5).for_each(|seq| world.entry(ME, &entry(seq, seq + 1, 1, seq + 1, 1000)));
    // Another one of a conversation that is there already adds none.
    world.entry(ME, &entry(most + 6, 2, 2, 2, 1000));
    let first = fold_all(&world, 0);
    assert_eq!((first.floor, first.lists.len()), (InboxSeq(most), FOLD_CONVERSATIONS_MAX));
    let second = fold_all(&world, most);
    assert_eq!((second.floor, second.lists.len()), (InboxSeq(most + 6), 6));
}

/// Everybody found in a shard, by sweeps of `limit` users.
fn swept(world: &World, shard: u16, limit: usize, expire_before_ms: u64) -> Vec<UserId> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let (users, next) =
            read_sweep(&world.engines, ShardId(shard), after, limit, 1000, expire_before_ms, 90).expect("memory reads");
        found.extend(users);
        match next {
            Some(next) => after = Some(next),
            None => return found,
        }
    }
}

#[test]
fn a_sweep_finds_whose_floor_may_rise() {
    let world = World::new();
    let device = |device, cursor, seen_day| DeviceRow {
        device: DeviceId(device),
        cursor: InboxSeq(cursor),
        seen_day,
        ..DeviceRow::default()
    };
    let row = |devices| UserRow { head: InboxSeq(9), floor: InboxSeq(5), devices, ..UserRow::default() };
    let (today, away) = (999, 909);
    // Nothing to do; a cursor above the floor; one of two devices away; the only one away; no device.
    let rows = [
        vec![device(1, 5, today), device(2, 8, today)],
        vec![device(1, 6, today), device(2, 8, today)],
        vec![device(1, 5, away), device(2, 8, today)],
        vec![device(1, 5, away)],
        vec![],
    ];
    for user in 0..100u8 {
        let devices = rows.get(usize::from(user % 5)).expect("there are five").clone();
        world.user(UserId(u64::from(user)), &row(devices));
    }
    let expected = |due: &dyn Fn(u64) -> bool| (0..100).filter(|user| due(*user)).map(UserId).collect::<Vec<_>>();
    for limit in [1, 3, 7, 1000] {
        let mut found: Vec<UserId> = (0..4).flat_map(|shard| swept(&world, shard, limit, 0)).collect();
        found.sort();
        assert_eq!(found, expected(&|user| matches!(user % 5, 1 | 2)), "limit {limit}");
    }
    // The first entry above the floor is what counts.
    world.entry(UserId(3), &entry(6, 2, 1, 2, 1000));
    world.entry(UserId(4), &entry(7, 2, 1, 2, 1000));
    let mut found: Vec<UserId> = (0..4).flat_map(|shard| swept(&world, shard, 10, 1001)).collect();
    found.sort();
    assert_eq!(found, expected(&|user| matches!(user % 5, 1 | 2) || user == 3));
    let first_due = |before| (0..4).any(|shard| swept(&world, shard, 10, before).contains(&UserId(3)));
    assert!(!first_due(1000), "what is just as old as the limit is kept");
}

#[test]
fn items_of_a_stream_come_in_order_and_within_bounds() {
    let world = World::new();
    let stream = Stream { from: ShardId(1), to: ShardId(2), lane: Lane::Receipt };
    for other in [Lane::Message, Lane::Receipt] {
        let other = Stream { to: ShardId(3), lane: other, ..stream };
        world.outbox(&key::outbox(other, 5), ShardId(1), b"of another stream");
    }
    for n in 3..=20u64 {
        let mut value = vec![1, 2];
        value.extend_from_slice(&ME.0.to_be_bytes());
        value.extend_from_slice(&with(2).0);
        [n, 0, 0, 0].iter().for_each(|number| value.extend_from_slice(&number.to_be_bytes()));
        world.outbox(&key::outbox(stream, n), ShardId(1), &value);
    }
    let read = |after, through, limit| -> Vec<u64> {
        let items = read_outbox(&world.engines, stream, after, through, limit).expect("memory reads");
        let told = |(n, item): &(u64, Item)| matches!(item, Item::Receipt { delivered, .. } if delivered.0 == *n);
        assert!(items.iter().all(told), "{items:?}");
        items.into_iter().map(|(n, _)| n).collect()
    };
    assert_eq!(read(4, 9, 100), [5, 6, 7, 8, 9]);
    assert_eq!(read(4, 9, 2), [5, 6]);
    assert_eq!(read(18, u64::MAX, 100), [19, 20]);
    assert!(read(20, 30, 100).is_empty());
    assert!(read(9, 9, 100).is_empty());
}
