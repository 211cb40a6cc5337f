//! The engine on disk answers every read as the one in memory does.

use std::ops::ControlFlow;
use std::sync::Arc;

use culver_protocol::id::{ConversationSeq, DeviceId, InboxSeq, UserId};
use culver_storage::batch::{Batch, BatchNumber};
use culver_storage::engine::{Engine, Family, Tier};
use culver_storage::filter::Retention;
use culver_storage::key::{self, ShardId, TalkKind};
use culver_storage::reader::{Engines, Fold, Read, read};
use culver_storage::record::{Lane, Stream};
use culver_storage::rocks::{RocksEngine, RocksOptions};
use culver_storage::value::{ConversationRow, DeviceRow, UserRow};

use super::world::{ME, World, entry, list_row, with};

/// The same rows on disk: half in files, half in memtables.
fn on_disk(world: &World, directory: &std::path::Path) -> Engines {
    let copy = |(index, from): (usize, &Arc<dyn Engine>)| -> Arc<dyn Engine> {
        let path = directory.join(index.to_string());
        let options = RocksOptions::default();
        let to = RocksEngine::open(&path, options, Arc::new(Retention::default())).expect("an empty directory opens");
        for half in 0..2 {
            let mut batch = Batch::with_capacity(BatchNumber(half), 0);
            for family in Family::ALL {
                let mut rows = 0;
                from.scan(family, &[], &[0xff; 64], Tier::Disk, &mut |key, value| {
                    rows += 1;
                    if rows % 2 == half {
                        batch.put(family, key, (value, &[]));
                    }
                    ControlFlow::Continue(())
                })
                .expect("memory reads");
            }
            to.write(&batch).expect("a new volume takes rows");
            if half == 0 {
                to.compact().expect("a new volume merges");
            }
        }
        Arc::new(to)
    };
    Engines {
        engines: world.engines.engines.iter().enumerate().map(copy).collect(),
        topology: world.engines.topology.clone(),
    }
}

fn world() -> World {
    let world = World::new();
    for user in 1..=40 {
        let device = DeviceRow { device: DeviceId(1), cursor: InboxSeq(user % 3 + 5), ..DeviceRow::default() };
        let row = UserRow { head: InboxSeq(60), floor: InboxSeq(5), devices: vec![device], ..UserRow::default() };
        world.user(UserId(user), &row);
    }
    for seq in 1..=60u64 {
        let peer = 2 + seq % 11;
        let entry = entry(seq, peer, seq, if seq % 4 == 0 { ME.0 } else { peer }, 1000 + seq);
        let row =
            ConversationRow { last_seq: ConversationSeq(seq), last_message: entry.message_id, ..Default::default() };
        world.conversation(with(peer), &row);
        if seq > 5 {
            world.entry(ME, &entry);
        } else {
            world.list(ME, with(peer), &list_row(&entry));
        }
        world.mark(ME, with(peer), TalkKind::PeerDelivered, seq, seq);
        world.mark(UserId(peer), with(peer), TalkKind::Delivered, seq, seq);
        for to in [1, 2] {
            let stream = Stream { from: ShardId(1), to: ShardId(to), lane: Lane::Receipt };
            let ids = [ME.0.to_be_bytes().as_slice(), &with(peer).0].concat();
            let numbers = [seq, 0, 0, 0].map(u64::to_be_bytes).concat();
            world.outbox(&key::outbox(stream, seq), ShardId(1), &[[1u8, 2].as_slice(), &ids, &numbers].concat());
        }
    }
    world
}

#[test]
fn both_engines_answer_alike() {
    let (world, directory) = (world(), tempfile::tempdir().expect("a temporary directory can be made"));
    let disk = on_disk(&world, directory.path());
    let (tag, user, page) = (7, ME, Vec::new());
    let stream = Stream { from: ShardId(1), to: ShardId(1), lane: Lane::Receipt };
    let fold = Fold { user, after: InboxSeq(5), through: InboxSeq(33), greatest: InboxSeq(40), expire_before_ms: 1050 };
    let mut reads = vec![
        Read::Inbox { tag, user, skip_device: DeviceId(1), after: InboxSeq(7), entries_max: 20, bytes_max: 1 << 20 },
        Read::Sync { tag, user, device: DeviceId(1), after: InboxSeq(9) },
        Read::Receipts { tag, user, after_version: 20 },
        Read::Conversations { tag, user, limit: 4, page },
        Read::Fold(fold),
        Read::Outbox { stream, after: 10, through: 50, limit: 30 },
    ];
    let (after, today, unlink_days) = (Some(UserId(9)), 1000, 90);
    let sweep =
        |shard| Read::Sweep { shard: ShardId(shard), after, limit: 5, today, expire_before_ms: 1008, unlink_days };
    reads.extend((0..4).map(sweep));
    for asked in reads {
        let in_memory = read(&world.engines, 0, asked.clone()).expect("memory reads");
        assert_eq!(read(&disk, 0, asked).expect("the disk reads"), in_memory);
        let told = format!("{in_memory:?}");
        assert!(!told.contains("entries: []") && !told.contains("marks: []"), "something to compare: {told}");
    }
}
