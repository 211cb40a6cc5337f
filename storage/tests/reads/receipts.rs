//! Receipts by pages: nothing is lost, whatever the page ends with.

use std::collections::BTreeMap;

use culver_protocol::id::{ConversationId, ConversationSeq};
use culver_protocol::limits::RECEIPT_MARKS_MAX;
use culver_protocol::message::MarkView;
use culver_storage::key::TalkKind;
use culver_storage::reader::read_receipts;
use culver_storage::value::{ExpiredRow, UserRow};
use proptest::prelude::*;

use super::world::{ME, World, with};

const KINDS: [TalkKind; 4] = [TalkKind::Read, TalkKind::PeerDelivered, TalkKind::PeerRead, TalkKind::PeerExpired];

fn mark(of: ConversationId, kind: TalkKind, seq: u64) -> MarkView {
    let (mark, seq) = (MarkView { conversation: of, ..MarkView::default() }, ConversationSeq(seq));
    match kind {
        TalkKind::Read => MarkView { own_read: seq, ..mark },
        TalkKind::PeerDelivered => MarkView { delivered: seq, ..mark },
        TalkKind::PeerRead => MarkView { read: seq, ..mark },
        _ => MarkView { expired_after: ConversationSeq(seq.0 - 1), expired_through: seq, ..mark },
    }
}

fn plant(world: &World, of: ConversationId, kind: TalkKind, seq: u64, version: u64) {
    if kind == TalkKind::PeerExpired {
        let (after, through) = (ConversationSeq(seq - 1), ConversationSeq(seq));
        world.talk(ME, of, kind, &ExpiredRow { after, through, version }.encode());
    } else {
        world.mark(ME, of, kind, seq, version);
    }
}

fn merge(into: &mut BTreeMap<ConversationId, MarkView>, mark: &MarkView) {
    let known =
        into.entry(mark.conversation).or_insert(MarkView { conversation: mark.conversation, ..MarkView::default() });
    known.delivered = known.delivered.max(mark.delivered);
    known.read = known.read.max(mark.read);
    known.expired_after = known.expired_after.max(mark.expired_after);
    known.expired_through = known.expired_through.max(mark.expired_through);
    known.own_read = known.own_read.max(mark.own_read);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pages_lose_nothing(
        conversations in 1..500u64, first in 0..900u64, together in 0..4u64, off: bool, seed: u64,
    ) {
        let world = World::new();
        world.user(ME, &UserRow { read_receipts_off: off, ..UserRow::default() });
        // Every row of every conversation in a random order of versions; some come together in one.
        let mut rows: Vec<(u64, TalkKind)> = (2..2 + conversations).flat_map(|peer| KINDS.map(|kind| (peer, kind))).collect();
        rows.sort_by_key(|(peer, kind)| {
            let peer_and_kind = (peer << 3 | *kind as u64).wrapping_add(seed);
            peer_and_kind.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
        });
        let mut told: Vec<(u64, MarkView)> = Vec::new();
        let mut version = 0;
        for (index, (peer, kind)) in rows.iter().enumerate() {
            let is_with_last = told.last().is_some_and(|(_, last)| last.conversation == with(*peer));
            if !(is_with_last && together > 0) {
                version += 1;
            }
            plant(&world, with(*peer), *kind, index as u64 + 1, version);
            let shown = mark(with(*peer), *kind, index as u64 + 1);
            told.push((version, if off { MarkView { read: ConversationSeq(0), ..shown } } else { shown }));
        }
        let (mut known, mut after) = (BTreeMap::new(), first);
        loop {
            let page = read_receipts(&world.engines, ME, after).expect("memory reads");
            prop_assert!(page.marks.len() <= RECEIPT_MARKS_MAX);
            prop_assert!(page.version >= after && (!page.more || page.version > after));
            page.marks.iter().for_each(|mark| merge(&mut known, mark));
            after = page.version;
            let mut expected = BTreeMap::new();
            let through = told.iter().filter(|(version, _)| *version > first && *version <= after);
            through.for_each(|(_, mark)| merge(&mut expected, mark));
            expected.retain(|of, mark| *mark != MarkView { conversation: *of, ..MarkView::default() });
            prop_assert_eq!(&known, &expected);
            if !page.more {
                break;
            }
        }
        prop_assert_eq!(after, version.max(first));
    }
}
