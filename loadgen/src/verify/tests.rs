//! Planted faults: each must be found, and a good run must be clean.

use super::{Findings, FlowCheck, Note, Place, Shape};
use crate::plan::MessageIndex;

fn flow(count: u64) -> FlowCheck {
    let mut check = FlowCheck::default();
    for index in 0..count {
        assert_eq!(check.sent(index, 1), MessageIndex(index));
    }
    check
}

fn ack(check: &mut FlowCheck, indices: impl IntoIterator<Item = u64>) {
    for index in indices {
        check.acked(MessageIndex(index), index + 1);
    }
}

fn deliver(check: &mut FlowCheck, indices: impl IntoIterator<Item = u64>) {
    for index in indices {
        check.delivered(MessageIndex(index), index + 1);
    }
}

#[test]
fn a_good_run_is_clean_and_keeps_no_memory() {
    let mut check = flow(100);
    ack(&mut check, 0..100);
    deliver(&mut check, 0..100);
    assert!(check.is_settled());
    let found = check.findings();
    assert!(found.is_clean());
    assert_eq!((found.sent, found.acked, found.delivered, found.unanswered), (100, 100, 100, 0));
}

#[test]
fn delivery_may_come_before_the_acknowledgement() {
    let mut check = flow(3);
    deliver(&mut check, 0..3);
    ack(&mut check, 0..3);
    assert!(check.is_settled() && check.findings().is_clean());
}

#[test]
fn a_planted_loss_is_found() {
    let mut check = flow(10);
    ack(&mut check, 0..10);
    deliver(&mut check, (0..10).filter(|index| *index != 4));
    let found = check.findings();
    assert_eq!((found.lost, found.skipped, found.duplicated, found.reordered), (1, 1, 0, 0));
    assert!(!found.is_clean() && !check.is_settled());
}

#[test]
fn a_loss_at_the_end_is_found() {
    let mut check = flow(10);
    ack(&mut check, 0..10);
    deliver(&mut check, 0..8);
    assert_eq!(check.findings().lost, 2);
}

#[test]
fn what_was_never_acknowledged_is_not_lost() {
    let mut check = flow(10);
    ack(&mut check, 0..5);
    deliver(&mut check, 0..5);
    let found = check.findings();
    assert_eq!((found.lost, found.unanswered), (0, 5));
    assert!(found.is_clean() && !check.is_settled());
}

#[test]
fn a_planted_duplicate_is_found_inside_and_below_the_window() {
    let mut check = flow(4);
    deliver(&mut check, 0..2);
    deliver(&mut check, [1]);
    ack(&mut check, 0..2);
    deliver(&mut check, [0]);
    assert_eq!(check.findings().duplicated, 2);
    assert!(!check.findings().is_clean());
}

#[test]
fn a_planted_reorder_is_found() {
    let mut check = flow(4);
    ack(&mut check, 0..4);
    deliver(&mut check, [0, 2, 1, 3]);
    let found = check.findings();
    assert_eq!((found.reordered, found.lost), (1, 0));
    assert!(!found.is_clean());
}

#[test]
fn the_order_of_the_sender_counts_too() {
    let mut check = flow(2);
    check.delivered(MessageIndex(1), 1);
    check.delivered(MessageIndex(0), 2);
    assert_eq!(check.findings().reordered, 1);
}

#[test]
fn answers_that_contradict_each_other_are_found() {
    let mut check = flow(3);
    check.acked(MessageIndex(0), 1);
    check.acked(MessageIndex(0), 1);
    check.acked(MessageIndex(1), 2);
    check.delivered(MessageIndex(0), 1);
    check.delivered(MessageIndex(1), 3);
    check.delivered(MessageIndex(9), 4);
    assert_eq!(check.findings().inconsistent, 3);
}

#[test]
fn a_refused_message_is_neither_lost_nor_unanswered() {
    let mut check = flow(3);
    check.rejected(MessageIndex(1));
    check.acked(MessageIndex(0), 1);
    check.acked(MessageIndex(2), 2);
    check.delivered(MessageIndex(0), 1);
    check.delivered(MessageIndex(2), 2);
    assert!(check.is_settled() && check.findings().is_clean());
    assert_eq!(check.findings().rejected, 1);
}

/// Two devices each; seat 0 sends, 1 gets copies, 2 and 3 receive.
fn wide(count: u64) -> FlowCheck {
    let mut check = FlowCheck::new(Shape { senders: 2, recipients: 2, receipts: true, reads: true, tells_reads: true });
    for index in 0..count {
        check.sent(index, 1);
        check.acked(MessageIndex(index), index + 1);
    }
    check
}

fn place(seat: u8) -> Place {
    Place { seat, life: 0 }
}

fn give(check: &mut FlowCheck, place: Place, seqs: impl IntoIterator<Item = u64>) {
    for seq in seqs {
        check.apply(Note::Delivered { place, index: MessageIndex(seq - 1), seq });
    }
}

fn give_and_persist(check: &mut FlowCheck, place: Place, seqs: impl IntoIterator<Item = u64>) {
    for seq in seqs {
        give(check, place, [seq]);
        check.apply(Note::Persisted { place, seq });
    }
}

fn tell(check: &mut FlowCheck, seat: u8, version: u64, seq: u64) {
    check.apply(Note::ToldDelivered { place: place(seat), version, seq });
}

fn found(check: &FlowCheck) -> Findings {
    check.findings()
}

#[test]
fn a_good_run_of_many_devices_is_clean() {
    let mut check = wide(10);
    for seat in 1..4 {
        give_and_persist(&mut check, place(seat), 1..=10);
    }
    for seat in 0..2 {
        tell(&mut check, seat, 1, 4);
        tell(&mut check, seat, 2, 10);
    }
    assert_eq!(check.unread(), Some(10));
    assert_eq!((found(&check).receipts_missing, found(&check).reads_missing), (0, 4));
    check.apply(Note::ReadAsked { place: place(3), seq: 10 });
    check.apply(Note::ReadAnswered { place: place(3), seq: 10 });
    assert_eq!(check.unread(), None);
    for seat in 0..2 {
        check.apply(Note::ToldRead { place: place(seat), version: 3, seq: 10 });
    }
    check.apply(Note::ToldOwnRead { place: place(2), version: 1, seq: 10 });
    assert!(check.is_settled() && found(&check).is_clean(), "{:?}", check.first_fault());
    assert_eq!((found(&check).delivered, found(&check).copied, found(&check).receipts), (20, 10, 7));
}

#[test]
fn a_planted_loss_is_found_on_every_device() {
    for seat in 1..4 {
        let mut check = wide(10);
        for other in 1..4 {
            give_and_persist(&mut check, place(other), (1..=10).filter(|seq| other != seat || *seq != 5));
        }
        let found = found(&check);
        assert_eq!((found.lost, found.skipped, found.duplicated, found.reordered), (1, 1, 0, 0), "device {seat}");
        assert!(!check.is_settled());
    }
}

#[test]
fn a_planted_duplicate_or_reorder_is_found_on_every_device() {
    for seat in 1..4 {
        let mut check = wide(10);
        for other in 1..4 {
            give_and_persist(&mut check, place(other), 1..=10);
        }
        give(&mut check, place(seat), [7]);
        assert_eq!(found(&check).duplicated, 1, "device {seat}");
        let mut check = wide(3);
        give(&mut check, place(seat), [1, 3, 2]);
        assert_eq!((found(&check).reordered, found(&check).duplicated), (1, 0), "device {seat}");
    }
}

#[test]
fn what_a_device_sent_never_comes_back_to_it() {
    let mut check = wide(1);
    give(&mut check, place(0), [1]);
    assert_eq!(found(&check).inconsistent, 1);
}

#[test]
fn what_was_not_persisted_must_come_again_to_a_new_client() {
    let mut check = wide(10);
    for seat in 1..4 {
        give(&mut check, place(seat), 1..=10);
    }
    check.apply(Note::Persisted { place: place(2), seq: 6 });
    check.apply(Note::Began { place: place(2) });
    assert_eq!((found(&check).lost, found(&check).delivered), (4, 16));
    give(&mut check, place(2), 7..=10);
    assert_eq!((found(&check).lost, found(&check).delivered), (0, 20));
    assert!(found(&check).duplicated == 0 && found(&check).skipped == 0);

    check.apply(Note::Began { place: place(2) });
    give(&mut check, place(2), [6]);
    assert_eq!(found(&check).duplicated, 1, "what is persisted may not come again");
    check.apply(Note::Began { place: place(2) });
    give(&mut check, place(2), [8]);
    assert_eq!(found(&check).skipped, 1, "and nothing else may be left out");
}

#[test]
fn a_fetch_login_shares_what_the_device_has_persisted() {
    let (fetch, lasting) = (Place { seat: 2, life: 1 }, place(2));
    let mut check = wide(10);
    give_and_persist(&mut check, lasting, 1..=4);
    check.apply(Note::Began { place: fetch });
    give_and_persist(&mut check, fetch, 5..=8);
    give(&mut check, lasting, 5..=6); // also live, at the same time
    give_and_persist(&mut check, lasting, 9..=10); // 7 and 8 are acknowledged already
    assert_eq!(found(&check).delivered, 10);
    assert_eq!((found(&check).duplicated, found(&check).skipped, found(&check).reordered), (0, 0, 0));
    check.apply(Note::Began { place: fetch });
    give(&mut check, fetch, [10]);
    assert_eq!(found(&check).duplicated, 1, "persisted before this login");
}

#[test]
fn a_receipt_for_what_nobody_has_persisted_is_untrue() {
    let mut check = wide(10);
    give_and_persist(&mut check, place(1), 1..=10);
    give(&mut check, place(2), 1..=10);
    check.apply(Note::Persisted { place: place(2), seq: 3 });
    tell(&mut check, 0, 1, 3);
    assert_eq!(found(&check).untrue, 0);
    tell(&mut check, 0, 2, 4);
    assert_eq!(found(&check).untrue, 1, "had is not persisted, and the sender's copy does not count");
    tell(&mut check, 2, 1, 1);
    assert_eq!(found(&check).untrue, 2, "the recipient sent nothing");
    check.apply(Note::ToldExpired { place: place(0), version: 3, seq: 9 });
    assert_eq!(found(&check).untrue, 3);
}

#[test]
fn a_read_that_nobody_marked_is_untrue() {
    let mut check = wide(10);
    give_and_persist(&mut check, place(2), 1..=10);
    check.apply(Note::ReadAsked { place: place(2), seq: 5 });
    check.apply(Note::ToldRead { place: place(0), version: 1, seq: 5 });
    check.apply(Note::ToldOwnRead { place: place(3), version: 1, seq: 5 });
    assert_eq!(found(&check).untrue, 0);
    check.apply(Note::ToldRead { place: place(0), version: 2, seq: 6 });
    check.apply(Note::ToldOwnRead { place: place(3), version: 2, seq: 6 });
    check.apply(Note::ToldOwnRead { place: place(0), version: 3, seq: 1 });
    check.apply(Note::ReadAnswered { place: place(2), seq: 6 });
    assert_eq!(found(&check).untrue, 4);
}

#[test]
fn receipts_that_go_back_are_found() {
    let mut check = wide(10);
    give_and_persist(&mut check, place(2), 1..=10);
    tell(&mut check, 0, 5, 8);
    tell(&mut check, 0, 6, 7);
    assert_eq!(found(&check).receipts_back, 1, "a mark");
    tell(&mut check, 0, 5, 9);
    assert_eq!(found(&check).receipts_back, 2, "a version");
    tell(&mut check, 1, 1, 2);
    assert_eq!(found(&check).receipts_back, 2, "each device for itself");

    // A new connection of the same client: versions begin at what it claims, marks stay.
    check.apply(Note::LoggedIn { place: place(0), version: 2 });
    tell(&mut check, 0, 3, 9);
    assert_eq!(found(&check).receipts_back, 2);
    tell(&mut check, 0, 4, 8);
    assert_eq!(found(&check).receipts_back, 3, "across reconnects too");
}

#[test]
fn receipts_that_were_not_saved_must_be_told_again() {
    let mut check = wide(10);
    for seat in 1..4 {
        give_and_persist(&mut check, place(seat), 1..=10);
    }
    tell(&mut check, 1, 1, 10);
    tell(&mut check, 0, 1, 6);
    check.apply(Note::ReceiptsSaved { place: place(0), version: 1 });
    tell(&mut check, 0, 2, 10);
    assert_eq!(found(&check).receipts_missing, 0);
    check.apply(Note::Began { place: place(0) });
    assert_eq!(found(&check).receipts_missing, 1, "the client is gone, and what it had not saved");
    tell(&mut check, 0, 2, 5);
    assert_eq!(found(&check).receipts_back, 1, "below what was saved");
    tell(&mut check, 0, 3, 10);
    assert_eq!(found(&check).receipts_missing, 0);
}

#[test]
fn a_receipt_saved_by_a_fetch_is_known_to_the_device() {
    let mut check = wide(10);
    give_and_persist(&mut check, place(2), 1..=10);
    let fetch = Place { seat: 0, life: 1 };
    check.apply(Note::Began { place: fetch });
    check.apply(Note::ToldDelivered { place: fetch, version: 9, seq: 10 });
    assert_eq!(found(&check).receipts_missing, 2, "not yet persisted");
    check.apply(Note::ReceiptsSaved { place: fetch, version: 9 });
    assert_eq!(found(&check).receipts_missing, 1);
    tell(&mut check, 0, 3, 4); // still on its way to the lasting client
    assert_eq!(found(&check).receipts_back, 0);
}

#[test]
fn a_missing_read_is_found() {
    let mut check = wide(4);
    for seat in 1..4 {
        give_and_persist(&mut check, place(seat), 1..=4);
    }
    for seat in 0..2 {
        tell(&mut check, seat, 1, 4);
    }
    check.apply(Note::ReadAsked { place: place(2), seq: 4 });
    check.apply(Note::ReadAnswered { place: place(2), seq: 4 });
    check.apply(Note::ToldRead { place: place(0), version: 2, seq: 4 });
    assert_eq!(found(&check).reads_missing, 2, "the sender's other device, and the recipient's");
    assert!(!found(&check).is_clean() && !check.is_settled());
    assert_eq!(found(&check).told(), "2 reads missing");
}

#[test]
fn receipts_of_an_earlier_run_are_not_judged() {
    let mut check = FlowCheck::new(Shape { receipts: true, ..Shape::default() });
    tell(&mut check, 0, 7, 50);
    assert_eq!(found(&check).untrue, 0);
    check.sent(1, 1);
    tell(&mut check, 0, 8, 51);
    assert_eq!(found(&check).untrue, 1);
}

#[test]
fn a_read_receipt_is_untrue_where_they_are_off() {
    let shape = Shape { senders: 1, recipients: 2, receipts: true, reads: true, tells_reads: false };
    let mut check = FlowCheck::new(shape);
    check.sent(1, 1);
    check.acked(MessageIndex(0), 1);
    for seat in 1..3 {
        give_and_persist(&mut check, place(seat), [1]);
    }
    tell(&mut check, 0, 1, 1);
    check.apply(Note::ReadAsked { place: place(1), seq: 1 });
    check.apply(Note::ReadAnswered { place: place(1), seq: 1 });
    assert_eq!(found(&check).reads_missing, 1, "the recipient's other device is told");
    check.apply(Note::ToldOwnRead { place: place(2), version: 1, seq: 1 });
    assert!(check.is_settled() && found(&check).is_clean());
    check.apply(Note::ToldRead { place: place(0), version: 2, seq: 1 });
    assert_eq!(found(&check).untrue, 1);
}

#[test]
fn a_wrong_list_is_found() {
    for reads in [true, false] {
        let mut check = FlowCheck::new(Shape { reads, ..Shape::default() });
        for index in 0..5 {
            check.sent(1, 1);
            check.acked(MessageIndex(index), index + 1);
        }
        let unread = if reads { 0 } else { 5 };
        check.apply(Note::Listed { place: place(0), last_seq: 5, unread: 0 });
        check.apply(Note::Listed { place: place(1), last_seq: 5, unread });
        assert_eq!(found(&check).lists_wrong, 0);
        check.apply(Note::Listed { place: place(1), last_seq: 5, unread: 1 });
        check.apply(Note::Listed { place: place(1), last_seq: 4, unread });
        check.apply(Note::Listed { place: place(0), last_seq: 5, unread: 5 });
        assert_eq!(found(&check).lists_wrong, 3);
    }
}
