//! The conversation list, against all messages there ever were.

use std::collections::BTreeMap;

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, ConversationSeq, InboxSeq, UserId};
use culver_storage::key::TalkKind;
use culver_storage::reader::{ConversationView, read_conversations};
use culver_storage::record::InboxEntry;
use culver_storage::value::{ConversationRow, UserRow};
use proptest::prelude::*;

use super::world::{ME, World, cut, entry, list_row, with};

/// All entries of an inbox, and up to where each conversation was read.
struct Model {
    world: World,
    entries: Vec<InboxEntry>,
    floor: u64,
    reads: BTreeMap<ConversationId, u64>,
}

impl Model {
    /// Each message: with whom, and whether it is one's own.
    fn new(messages: &[(u64, bool)], floor: u64, undropped: u64) -> Self {
        let mut model = Self {
            world: World::new(),
            entries: Vec::new(),
            floor: floor.min(messages.len() as u64),
            reads: BTreeMap::new(),
        };
        for (peer, own) in messages {
            model.arrive(*peer, *own);
        }
        let floor = model.floor;
        for entry in model.entries.iter().filter(|entry| entry.inbox_seq.0 <= floor) {
            model.world.list(ME, entry.conversation, &list_row(entry));
        }
        let kept = model.entries.iter().filter(|entry| entry.inbox_seq.0 + undropped > floor);
        kept.for_each(|entry| model.world.entry(ME, entry));
        let head = InboxSeq(messages.len() as u64);
        model.world.user(ME, &UserRow { head, floor: InboxSeq(floor), ..UserRow::default() });
        model
    }

    fn arrive(&mut self, peer: u64, own: bool) -> &InboxEntry {
        let of = with(peer);
        let seq = 1 + self.entries.iter().filter(|entry| entry.conversation == of).count() as u64;
        let (inbox_seq, sender) = (1 + self.entries.len() as u64, if own { ME.0 } else { peer });
        let new = entry(inbox_seq, peer, seq, sender, 1000 + inbox_seq);
        let row = self.row(of, &new);
        self.world.conversation(of, &row);
        self.entries.push(new);
        self.entries.last().expect("it was just put there")
    }

    fn row(&self, of: ConversationId, new: &InboxEntry) -> ConversationRow {
        let all = self.entries.iter().chain([new]).filter(|entry| entry.conversation == of);
        let last_by =
            |user: UserId| all.clone().filter(move |entry| entry.sender == user).map(|entry| entry.conversation_seq);
        let (lesser, greater) = of.direct_users().expect("it is direct");
        ConversationRow {
            last_seq: new.conversation_seq,
            last_message: new.message_id,
            last_by_lesser: last_by(lesser).max().unwrap_or_default(),
            last_by_greater: last_by(greater).max().unwrap_or_default(),
        }
    }

    fn read(&mut self, peer: u64, seq: u64, version: u64) {
        self.world.mark(ME, with(peer), TalkKind::Read, seq, version);
        self.reads.insert(with(peer), seq);
    }

    fn expected(&self) -> Vec<ConversationView> {
        let mut last: BTreeMap<ConversationId, &InboxEntry> = BTreeMap::new();
        last.extend(self.entries.iter().map(|entry| (entry.conversation, entry)));
        let mut views: Vec<_> = last.into_iter().map(|(of, entry)| self.view(of, entry)).collect();
        views.sort_by_key(|view| std::cmp::Reverse(view.last.as_ref().map(|last| last.message_id)));
        views
    }

    fn view(&self, of: ConversationId, last: &InboxEntry) -> ConversationView {
        let read = self.reads.get(&of).copied().unwrap_or(0);
        let unread = self.entries.iter().filter(|entry| entry.conversation == of && entry.conversation_seq.0 > read);
        // What one's own message answers was read.
        let unread = unread.rev().take_while(|entry| entry.sender != ME).count() as u64;
        let inbox_seq = if last.inbox_seq.0 <= self.floor { InboxSeq(0) } else { last.inbox_seq };
        ConversationView {
            conversation: of,
            last_seq: last.conversation_seq,
            unread,
            waiting: 0,
            read: ConversationSeq(read),
            last: Some(InboxEntry { inbox_seq, ..cut(last) }),
        }
    }

    fn page(&self, limit: u16, page: &[u8]) -> (Vec<ConversationView>, Vec<u8>) {
        let read = read_conversations(&self.world.engines, ME, limit, page).expect("memory reads");
        read.expect("the page was named by the page before")
    }
}

fn messages() -> impl Strategy<Value = Vec<(u64, bool)>> {
    // The peer 1 is oneself: notes.
    proptest::collection::vec((1..25u64, any::<bool>()), 0..80)
        .prop_map(|messages| messages.into_iter().map(|(peer, own)| (peer, own || peer == ME.0)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pages_make_the_whole_list(
        messages in messages(), floor in 0..90u64, undropped in 0..10u64, limit in 1..12u16,
        reads in proptest::collection::vec((2..25u64, 1..6u64), 0..10),
    ) {
        let mut model = Model::new(&messages, floor, undropped);
        for (version, (peer, seq)) in (1..).zip(reads) {
            let last = model.entries.iter().filter(|entry| entry.conversation == with(peer)).count() as u64;
            model.read(peer, seq.min(last), version);
        }
        let (mut views, mut page) = (Vec::new(), Vec::new());
        loop {
            let (items, next) = model.page(limit, &page);
            prop_assert!(items.len() <= usize::from(limit));
            prop_assert!(next.is_empty() || items.len() == usize::from(limit));
            views.extend(items);
            if next.is_empty() {
                break;
            }
            page = next;
        }
        prop_assert_eq!(views, model.expected());
    }

    #[test]
    fn what_arrives_between_pages_makes_none_come_twice_and_hides_no_other(
        messages in messages(), floor in 0..90u64, limit in 1..6u16, arrivals in proptest::collection::vec(2..30u64, 0..20),
    ) {
        let mut model = Model::new(&messages, floor, 0);
        let before = model.expected();
        let (mut seen, mut page, mut touched) = (Vec::new(), Vec::new(), Vec::new());
        let mut arrivals = arrivals.into_iter();
        loop {
            let (items, next) = model.page(limit, &page);
            seen.extend(items.into_iter().map(|item| item.conversation));
            if next.is_empty() {
                break;
            }
            page = next;
            if let Some(peer) = arrivals.next() {
                let new = model.arrive(peer, false).clone();
                model.world.entry(ME, &new);
                touched.push(with(peer));
            }
        }
        let mut once = seen.clone();
        once.sort();
        once.dedup();
        prop_assert_eq!(once.len(), seen.len(), "none comes twice");
        for view in before.iter().filter(|view| !touched.contains(&view.conversation)) {
            prop_assert!(seen.contains(&view.conversation), "{} is missing", view.conversation);
        }
    }

    #[test]
    fn a_page_that_was_never_named(page in proptest::collection::vec(any::<u8>(), 1..40)) {
        let read = read_conversations(&World::new().engines, ME, 5, &page).expect("memory reads");
        prop_assert_eq!(read, Err(ErrorCode::RequestInvalid));
    }
}

#[test]
fn a_limit_of_none_or_too_many_is_the_greatest() {
    let messages: Vec<(u64, bool)> = (2..70).map(|peer| (peer, false)).collect();
    let model = Model::new(&messages, 30, 0);
    for limit in [0, 51, u16::MAX] {
        assert_eq!(model.page(limit, &[]).0.len(), 50);
    }
}
