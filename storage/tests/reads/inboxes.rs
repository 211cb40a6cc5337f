//! Pages of an inbox, and what waits for a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use culver_protocol::id::{ConversationSeq, DeviceId, InboxSeq};
use culver_storage::batch::Batch;
use culver_storage::engine::{Engine, EngineMemory, Family, Lookup, ScanEnd, Tier, Visitor};
use culver_storage::error::EngineError;
use culver_storage::reader::{Engines, INBOX_ROWS_MAX, Page, read_inbox, read_sync};
use culver_storage::record::InboxEntry;
use culver_storage::value::{ConversationRow, UserRow};

use super::world::{ME, World, cut, entry, with};

fn seqs(page: &Page) -> (Vec<u64>, u64) {
    (page.entries.iter().map(|entry| entry.inbox_seq.0).collect(), page.through.0)
}

fn page(engines: &Engines, device: u16, after: u64, entries_max: usize) -> (Vec<u64>, u64) {
    let page = read_inbox(engines, ME, DeviceId(device), InboxSeq(after), entries_max, 1 << 20);
    seqs(&page.expect("memory reads"))
}

/// Ten entries; the 3rd, 4th, 8th and 10th are one's own, of device 1.
fn ten() -> World {
    let world = World::new();
    for seq in 1..=10 {
        let own = matches!(seq, 3 | 4 | 8 | 10);
        world.entry(ME, &entry(seq, 2 + seq % 2, seq, if own { ME.0 } else { 2 + seq % 2 }, 1000 + seq));
    }
    world
}

#[test]
fn a_device_does_not_get_what_it_sent() {
    let world = ten();
    assert_eq!(page(&world.engines, 1, 0, 50), (vec![1, 2, 5, 6, 7, 9], 10));
    assert_eq!(page(&world.engines, 2, 0, 50), (vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 10));
    // A page that is full goes on over what is left out, and no further.
    assert_eq!(page(&world.engines, 1, 0, 2), (vec![1, 2], 4));
    assert_eq!(page(&world.engines, 1, 7, 1), (vec![9], 10));
    assert_eq!(page(&world.engines, 1, 9, 50), (vec![], 10));
    assert_eq!(page(&world.engines, 1, 10, 50), (vec![], 10));
    let by_bytes = read_inbox(&world.engines, ME, DeviceId(1), InboxSeq(0), 50, 1).expect("memory reads");
    assert_eq!(seqs(&by_bytes), (vec![1], 1), "the first comes whatever its size");
}

#[test]
fn nothing_comes_from_below_the_floor() {
    let world = ten();
    world.user(ME, &UserRow { head: InboxSeq(10), floor: InboxSeq(6), ..UserRow::default() });
    assert_eq!(page(&world.engines, 2, 0, 50), (vec![7, 8, 9, 10], 10));
    world.user(ME, &UserRow { head: InboxSeq(10), floor: InboxSeq(10), ..UserRow::default() });
    assert_eq!(page(&world.engines, 2, 3, 50), (vec![], 3));
}

#[test]
fn a_page_looks_at_a_bounded_number_of_rows() {
    let world = World::new();
    let rows = INBOX_ROWS_MAX as u64;
    (1..=rows + 1).for_each(|seq| world.entry(ME, &entry(seq, 2, seq, ME.0, 1000)));
    assert_eq!(page(&world.engines, 1, 0, 50), (vec![], rows));
    assert_eq!(page(&world.engines, 1, rows, 50), (vec![], rows + 1));
}

/// Between the look at the floor and the first scan the floor rises, and a merge takes what it left.
struct Rising {
    before: Arc<dyn Engine>,
    after: Arc<dyn Engine>,
    has_risen: AtomicBool,
}

impl Rising {
    fn engine(&self) -> &dyn Engine {
        if self.has_risen.load(Ordering::Relaxed) { &*self.after } else { &*self.before }
    }
}

impl Engine for Rising {
    fn get(&self, family: Family, key: &[u8], tier: Tier) -> Result<Lookup<Vec<u8>>, EngineError> {
        self.engine().get(family, key, tier)
    }

    fn last(&self, family: Family, from: &[u8], to: &[u8], tier: Tier) -> Result<Lookup<Vec<u8>>, EngineError> {
        self.engine().last(family, from, to, tier)
    }

    fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        tier: Tier,
        visit: &mut Visitor<'_>,
    ) -> Result<ScanEnd, EngineError> {
        self.has_risen.store(true, Ordering::Relaxed);
        self.engine().scan(family, from, to, tier, visit)
    }

    fn write(&self, batch: &Batch) -> Result<(), EngineError> {
        self.after.write(batch)
    }

    #[cfg(feature = "answer-before-sync")]
    fn write_unsynced(&self, batch: &Batch) -> Result<(), EngineError> {
        self.after.write_unsynced(batch)
    }

    #[cfg(feature = "answer-before-sync")]
    fn sync(&self) -> Result<(), EngineError> {
        self.after.sync()
    }

    fn sequence_synced(&self) -> u64 {
        self.after.sequence_synced()
    }

    fn memory(&self) -> EngineMemory {
        EngineMemory::default()
    }

    fn compact(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

#[test]
fn a_floor_that_rises_under_a_read_leaves_no_hole_below_it() {
    let (before, after) = (ten(), World::new());
    before.user(ME, &UserRow { head: InboxSeq(10), floor: InboxSeq(1), ..UserRow::default() });
    after.user(ME, &UserRow { head: InboxSeq(10), floor: InboxSeq(5), ..UserRow::default() });
    // A merge has dropped some of what may go.
    for seq in [2, 5, 6, 7, 8, 9, 10] {
        after.entry(ME, &entry(seq, 2, seq, 2, 1000));
    }
    let engines = before.engines.engines.iter().zip(&after.engines.engines).map(|(before, after)| -> Arc<dyn Engine> {
        Arc::new(Rising { before: Arc::clone(before), after: Arc::clone(after), has_risen: AtomicBool::new(false) })
    });
    let engines = Engines { engines: engines.collect(), topology: before.engines.topology.clone() };
    assert_eq!(page(&engines, 2, 0, 50), (vec![6, 7, 8, 9, 10], 10));
}

#[test]
fn what_waits_is_counted_by_conversation() {
    let world = ten();
    let row = |last_seq, last_by_lesser| ConversationRow {
        last_seq: ConversationSeq(last_seq),
        last_by_lesser: ConversationSeq(last_by_lesser),
        ..ConversationRow::default()
    };
    world.conversation(with(2), &row(10, 10));
    world.conversation(with(3), &row(9, 3));
    let synced = read_sync(&world.engines, ME, DeviceId(1), InboxSeq(1)).expect("memory reads");
    assert_eq!((synced.entries, synced.through), (5, InboxSeq(10)));
    let seen: Vec<_> = synced
        .conversations
        .iter()
        .map(|view| (view.conversation, view.waiting, view.unread, view.last.clone()))
        .collect();
    let last = |seq, sender: u64| Some(cut(&entry(seq, 2 + seq % 2, seq, sender, 1000 + seq)));
    assert_eq!(seen, [(with(2), 2, 0, last(10, ME.0)), (with(3), 3, 6, last(9, 3))]);
    let nothing = read_sync(&world.engines, ME, DeviceId(1), InboxSeq(9)).expect("memory reads");
    assert_eq!((nothing.entries, nothing.through, nothing.conversations), (0, InboxSeq(10), Vec::new()));
}

#[test]
fn of_many_conversations_the_most_recent_fifty_are_shown() {
    let world = World::new();
    (1..=80).for_each(|seq| world.entry(ME, &entry(seq, 100 + seq, 1, 100 + seq, 1000 + seq)));
    let synced = read_sync(&world.engines, ME, DeviceId(1), InboxSeq(0)).expect("memory reads");
    assert_eq!(synced.entries, 80);
    let shown: Vec<_> = synced.conversations.iter().map(|view| view.conversation).collect();
    assert_eq!(shown, (131..=180).rev().map(with).collect::<Vec<_>>());
    let all_cut = |last: &InboxEntry| last.payload.len() <= 256;
    assert!(synced.conversations.iter().filter_map(|view| view.last.as_ref()).all(all_cut));
}
