//! Values come back as they were written, and no bytes panic.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::record::{InboxEntry, Item};

proptest! {
    #[test]
    fn values_come_back(a: u64, b: u64, c: u64, d: u64, device: u16, conversation: [u8; 16], payload: Vec<u8>) {
        let (seq, row_seq) = (ConversationSeq(a), ConversationSeq(d));
        let row = ConversationRow { last_seq: seq, last_message: MessageId(b), last_by_lesser: row_seq, last_by_greater: seq };
        prop_assert_eq!(ConversationRow::decode(&row.encode()), Ok(row));
        let row = DedupRow { conversation_seq: seq, message_id: MessageId(b), inbox_seq: InboxSeq(c) };
        prop_assert_eq!(DedupRow::decode(&row.encode()), Ok(row));
        let row = BatchRow { number: a, synced_through: b, applied: c };
        prop_assert_eq!(BatchRow::decode(&row.encode()), Ok(row));
        let row = TimeRow { until_ms: a };
        prop_assert_eq!(TimeRow::decode(&row.encode()), Ok(row));
        let row = NumberRow { number: a };
        prop_assert_eq!(NumberRow::decode(&row.encode()), Ok(row));
        let row = ClockRow { ms: a };
        prop_assert_eq!(ClockRow::decode(&row.encode()), Ok(row));
        let row = SeqRow { seq, is_untold: seq.0 % 2 == 1 };
        prop_assert_eq!(SeqRow::decode(&row.encode()), Ok(row));
        let row = MarkRow { seq, version: b };
        prop_assert_eq!(MarkRow::decode(&row.encode()), Ok(row));
        let row = ExpiredRow { after: seq, through: row_seq, version: c };
        prop_assert_eq!(ExpiredRow::decode(&row.encode()), Ok(row));
        let row = ListRow { seq, message_id: MessageId(b), sender: UserId(c), device: DeviceId(device), preview: Bytes::from(payload.clone()) };
        prop_assert_eq!(ListRow::decode(&[row.encode_header().as_slice(), &payload].concat()), Ok(row));
        let entry = EntryView {
            inbox_seq: InboxSeq(a), conversation: ConversationId(conversation), conversation_seq: ConversationSeq(b),
            message_id: MessageId(c), server_time_ms: MessageId(c).time_ms(), sender: UserId(a),
            sender_device: DeviceId(device), payload: &payload,
        };
        let bytes = [encode_inbox_header(&entry).as_slice(), &payload].concat();
        prop_assert_eq!(decode_inbox(InboxSeq(a), &bytes), Ok(entry));
        let bytes = [encode_item_entry(UserId(d), &entry).as_slice(), &payload].concat();
        let expected = Item::Entry { user: UserId(d), entry: InboxEntry { inbox_seq: InboxSeq(0), ..InboxEntry::from(entry) } };
        prop_assert_eq!(decode_item(&bytes), Ok(expected));
        let (user, conversation, expired) = (UserId(d), ConversationId(conversation), (row_seq, seq));
        let bytes = encode_item_receipt(user, conversation, seq, row_seq, expired);
        let expected = Item::Receipt { user, conversation, delivered: seq, read: row_seq, expired };
        prop_assert_eq!(decode_item(&bytes), Ok(expected));
    }

    #[test]
    fn user_rows_come_back(numbers: [u64; 4], off: bool, devices: std::collections::BTreeMap<u16, (u64, u32)>) {
        let [head, floor, waiting_bytes, receipts_head] = numbers;
        let devices = devices.into_iter();
        let devices = devices.map(|(device, (cursor, seen_day))| device_row(device, cursor, seen_day)).collect();
        let row = UserRow {
            read_receipts_off: off, head: InboxSeq(head), floor: InboxSeq(floor), waiting_bytes, receipts_head, devices,
        };
        let mut bytes = Vec::new();
        row.encode(&mut bytes);
        prop_assert_eq!(UserRow::decode(&bytes), Ok(row));
        bytes.push(0);
        prop_assert_eq!(UserRow::decode(&bytes), Err(DecodeError::Length));
    }

    #[test]
    fn no_bytes_panic(mut bytes: Vec<u8>, version in 0..4u8) {
        if let (1.., Some(first)) = (version, bytes.first_mut()) {
            *first = version;
        }
        let first = [
            DedupRow::decode(&bytes).is_ok(), BatchRow::decode(&bytes).is_ok(), TimeRow::decode(&bytes).is_ok(),
            decode_inbox(InboxSeq(1), &bytes).is_ok(), decode_item(&bytes).is_ok(), ListRow::decode(&bytes).is_ok(),
            MarkRow::decode(&bytes).is_ok(), ExpiredRow::decode(&bytes).is_ok(), NumberRow::decode(&bytes).is_ok(),
            ClockRow::decode(&bytes).is_ok(),
        ];
        prop_assert!(!first.contains(&true) || bytes.first() == Some(&VERSION));
        let second = [
            ConversationRow::decode(&bytes).is_ok(), UserRow::decode(&bytes).is_ok(), SeqRow::decode(&bytes).is_ok(),
        ];
        prop_assert!(!second.contains(&true) || matches!(bytes.first(), Some(&(VERSION | VERSION_2))));
    }
}

fn device_row(device: u16, cursor: u64, day: u32) -> DeviceRow {
    let lost_through = match day >> 30 {
        0 | 1 => 0,
        2 => cursor,
        _ => cursor / 2,
    };
    let (seen_day, lost_through) = (day & (u32::MAX >> 2), InboxSeq(lost_through));
    DeviceRow { device: DeviceId(device), cursor: InboxSeq(cursor), seen_day, lost_through }
}

#[test]
fn rows_of_version_1_are_read() {
    let mut bytes = vec![1, 1, 0];
    [7u64, 8].iter().for_each(|number| bytes.extend_from_slice(&number.to_be_bytes()));
    let last_seq = ConversationSeq(7);
    let row =
        ConversationRow { last_seq, last_message: MessageId(8), last_by_lesser: last_seq, last_by_greater: last_seq };
    assert_eq!(ConversationRow::decode(&bytes), Ok(row));

    let mut bytes = vec![1, 0];
    [9u64, 4].iter().for_each(|number| bytes.extend_from_slice(&number.to_be_bytes()));
    bytes.extend_from_slice(&2u16.to_be_bytes());
    for (device, cursor) in [(1u16, 4u64), (3, 6)] {
        bytes.extend_from_slice(&device.to_be_bytes());
        bytes.extend_from_slice(&cursor.to_be_bytes());
    }
    let devices = vec![device_row(1, 4, 0), device_row(3, 6, 0)];
    let row = UserRow { head: InboxSeq(9), floor: InboxSeq(0), devices, ..UserRow::default() };
    assert_eq!(UserRow::decode(&bytes), Ok(row));
    bytes.pop();
    assert_eq!(UserRow::decode(&bytes), Err(DecodeError::Length));
}

#[test]
fn devices_out_of_order_are_refused() {
    let row = UserRow { devices: vec![device_row(2, 1, 0), device_row(1, 1, 0)], ..UserRow::default() };
    let mut bytes = Vec::new();
    row.encode(&mut bytes);
    assert_eq!(UserRow::decode(&bytes), Err(DecodeError::Order));
}
