//! Where the session and its client stand, and what is written of the inbox.

use culver_protocol::message::MarkView;
use culver_storage::reader::ConversationView;

use super::*;

#[test]
fn what_the_device_sent_itself_is_no_hole() {
    let mut bench = Bench::steady();
    assert_eq!(bench.deliver(10, &[11], false), 1);
    bench.out.clear();
    bench.session.skip(InboxSeq(11), InboxSeq(13));
    bench.session.skip(InboxSeq(12), InboxSeq(19));
    assert!(bench.out.is_empty(), "no byte is written, and what does not join on is dropped");
    assert_eq!(bench.give(&ack(12)).1, Outcome::Over(ErrorCode::AckBeyondSent), "it was never told of 12");
    let mut bench = Bench::steady();
    bench.deliver(10, &[11], false);
    bench.session.skip(InboxSeq(11), InboxSeq(13));
    // A page may begin with some of its own as well.
    assert_eq!(bench.deliver(13, &[15, 17], false), 2);
    let deliver: proto::Deliver = bench.last(RecordType::Deliver);
    assert_eq!(deliver.previous, 11, "it joins on to what the client has");
    assert_eq!(bench.give(&ack(17)).1, Outcome::Hungry);
    assert_eq!(bench.ack_pending(), Some(17));
}

#[test]
fn a_client_that_knows_more_than_the_server_is_spared_it_and_the_hub_hears_of_it() {
    let mut bench = Bench::new();
    let opening = bench.opening();
    bench.give(&opening);
    bench.out.clear();
    // It has persisted 10; the server remembers 4.
    bench.session.logged_in(InboxSeq(4), false, false, false, INCARNATION, &mut plain(&mut bench.out));
    assert_eq!(bench.deliver(4, &[5, 6], false), 0);
    assert_eq!(bench.ack_pending(), Some(6));
    bench.session.skip(InboxSeq(6), InboxSeq(8));
    assert_eq!(bench.ack_pending(), Some(8));
    assert!(bench.out.is_empty());
    assert_eq!(bench.give(&ack(10)).1, Outcome::Hungry, "it was told of them once");
    assert_eq!(bench.ack_pending(), Some(8), "but the hub is not ahead of itself");
    assert_eq!(bench.deliver(8, &[9, 10, 11, 12], true), 0, "not behind unsent bytes");
    assert!(matches!(bench.session.take_pending(ADDRESS, false), Some(Command::Resume { sent: InboxSeq(8), .. })));
    assert_eq!(bench.deliver(8, &[9, 10, 11, 12], false), 2);
    let deliver: proto::Deliver = bench.last(RecordType::Deliver);
    assert_eq!((deliver.previous, deliver.entries.len()), (10, 2));
    assert_eq!(bench.ack_pending(), Some(10));
    assert_eq!(bench.session.told(), InboxSeq(12));
}

#[test]
fn a_gap_says_where_it_goes_on() {
    let mut bench = Bench::steady();
    bench.session.logged_in(InboxSeq(20), false, true, false, INCARNATION, &mut plain(&mut bench.out));
    let gap: proto::Gap = bench.last(RecordType::Gap);
    assert_eq!((gap.start, gap.reset), (21, false));
    // And between deliveries.
    bench.out.clear();
    bench.session.write_gap(InboxSeq(19), InboxSeq(30), INCARNATION, false, &mut plain(&mut bench.out));
    bench.session.write_gap(InboxSeq(20), InboxSeq(30), INCARNATION, true, &mut plain(&mut bench.out));
    assert!(bench.out.is_empty(), "it does not join on, or waits for what is unsent");
    bench.session.write_gap(InboxSeq(20), InboxSeq(30), INCARNATION, false, &mut plain(&mut bench.out));
    let gap: proto::Gap = bench.last(RecordType::Gap);
    assert_eq!((gap.start, gap.reset), (30, false));
    assert_eq!(bench.deliver(29, &[30], false), 1);
    let deliver: proto::Deliver = bench.last(RecordType::Deliver);
    assert_eq!(deliver.previous, 29);
}

#[test]
fn a_backlog_is_through_when_all_of_it_was_sent() {
    let mut bench = Bench::steady();
    let view = ConversationView {
        conversation: ConversationId([1; 16]),
        last_seq: ConversationSeq(4),
        unread: 3,
        waiting: 2,
        read: ConversationSeq(1),
        last: Some(entry(12)),
    };
    bench.session.write_sync_start(2, InboxSeq(12), vec![view], &mut plain(&mut bench.out));
    let start: proto::SyncStart = bench.last(RecordType::SyncStart);
    let item = start.conversations.first().expect("the only one");
    assert_eq!(
        (start.entries, start.through, item.last_seq, item.unread, item.waiting, item.read),
        (2, 12, 4, 3, 2, 1)
    );
    assert_eq!(item.last.as_ref().map(|entry| &entry.payload[..]), Some(&b"hello"[..]));
    bench.deliver(10, &[11], false);
    bench.session.write_sync_done(InboxSeq(12), &mut plain(&mut bench.out));
    assert_eq!(bench.written().last().map(|(kind, _)| *kind), Some(RecordType::Deliver as u8), "not yet");
    bench.deliver(11, &[12], false);
    bench.session.write_sync_done(InboxSeq(12), &mut plain(&mut bench.out));
    let done: proto::SyncDone = bench.last(RecordType::SyncDone);
    assert_eq!(done.inbox_seq, 12);
    let len = bench.out.len();
    bench.session.write_sync_done(InboxSeq(12), &mut plain(&mut bench.out));
    assert_eq!(bench.out.len(), len, "once");
}

#[test]
fn receipts_are_written_as_they_come() {
    let mut bench = Bench::steady();
    let mark = MarkView { conversation: ConversationId([1; 16]), delivered: ConversationSeq(3), ..MarkView::default() };
    bench.session.write_receipt(8, &[mark], &mut plain(&mut bench.out));
    let receipt: proto::Receipt = bench.last(RecordType::Receipt);
    assert_eq!((receipt.version, receipt.marks.len()), (8, 1));
    assert_eq!(receipt.marks.first().map(|mark| (mark.delivered, mark.read)), Some((3, 0)));
}

/// One thing that happens between a hub, its session and the client.
#[derive(Clone, Debug)]
enum Step {
    /// The hub delivers so many of what is next, and earlier bytes are unsent or not.
    Deliver(u64, bool),
    /// What was unsent is sent: the hub hears what waited for that.
    Flush,
    /// The client acknowledges what it was told, or less by so much.
    Ack(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..6_u64, any::<bool>()).prop_map(|(count, unsent)| Step::Deliver(count, unsent)),
        2 => Just(Step::Flush),
        2 => (0..4_u64).prop_map(Step::Ack),
    ];
    proptest::collection::vec(step, 0..60)
}

/// Every third entry the device has sent itself.
fn is_own(seq: u64) -> bool {
    seq.is_multiple_of(3)
}

/// The hub's side: where it is, and what it was told is acknowledged.
struct HubSide {
    sent: u64,
    acked: u64,
}

impl HubSide {
    fn deliver(&mut self, bench: &mut Bench, count: u64, unsent: bool) {
        let last = self.sent + count;
        let others: Vec<u64> = (self.sent + 1..=last).filter(|seq| !is_own(*seq)).collect();
        let delivered = others.last().copied();
        if delivered.is_some() {
            bench.deliver(self.sent, &others, unsent);
        }
        let through = delivered.unwrap_or(self.sent);
        if through < last {
            bench.session.skip(InboxSeq(through), InboxSeq(last));
        }
        self.sent = last;
    }

    fn hear(&mut self, bench: &mut Bench, unsent: bool) {
        while let Some(command) = bench.session.take_pending(ADDRESS, unsent) {
            match command {
                Command::Ack { through, .. } => {
                    assert!(through.0 <= self.sent, "acknowledged {through:?} of {}", self.sent);
                    self.acked = self.acked.max(through.0);
                }
                Command::Resume { sent, .. } => {
                    assert!(sent.0 <= self.sent);
                    self.sent = sent.0;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

proptest! {
    /// Whatever is dropped, skipped and acknowledged: the client is told everything that is not its own and that it did
    /// not know, once, in order, in a chain that joins on; and the hub hears of all that is acknowledged.
    #[test]
    fn the_client_is_told_everything_once(steps in steps(), cursor in 0..12_u64, claim in 0..12_u64) {
        let mut bench = Bench::new();
        let opening = bench.opening_with(proto::Login { cursor: claim, ..Default::default() });
        bench.give(&opening);
        bench.out.clear();
        bench.session.logged_in(InboxSeq(cursor), false, false, true, INCARNATION, &mut plain(&mut bench.out));
        let mut hub = HubSide { sent: cursor, acked: cursor };
        let start = cursor.max(claim);
        let mut acked = claim;
        let end = [Step::Flush, Step::Deliver(20, false), Step::Ack(0), Step::Flush];
        for step in steps.into_iter().chain(end) {
            match step {
                Step::Deliver(count, unsent) => {
                    hub.deliver(&mut bench, count, unsent);
                    hub.hear(&mut bench, true);
                }
                Step::Flush => hub.hear(&mut bench, false),
                Step::Ack(less) => {
                    acked = acked.max(bench.session.told().0.saturating_sub(less));
                    prop_assert_eq!(bench.give(&ack(acked)).1, Outcome::Hungry);
                    hub.hear(&mut bench, true);
                }
            }
        }
        let mut position = start;
        for (kind, body) in bench.written() {
            prop_assert_eq!(kind, RecordType::Deliver as u8);
            let deliver = proto::Deliver::decode(body.as_slice()).expect("good protobuf");
            prop_assert_eq!(deliver.previous, position);
            for entry in deliver.entries {
                let next = (position + 1..).find(|seq| !is_own(*seq)).expect("there is always a next");
                prop_assert_eq!(entry.inbox_seq, next);
                position = next;
            }
        }
        let last = (1..=hub.sent).rfind(|seq| !is_own(*seq)).unwrap_or(0);
        prop_assert_eq!(position, start.max(last));
        prop_assert_eq!(hub.acked, acked.min(hub.sent).max(cursor));
    }
}
