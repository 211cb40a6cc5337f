//! Values come back as they were written, and no bytes panic.

use std::collections::BTreeMap;

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
    fn user_rows_come_back(
        numbers: [u64; 4],
        removed: Option<(u64, u64)>,
        off: bool,
        devices: BTreeMap<u16, (u64, u32, Option<[u8; 16]>, bool)>,
    ) {
        let [head, floor, waiting_bytes, receipts_head] = numbers;
        let (tokens_from_s, had) = removed.unwrap_or_default();
        let device = |(device, (cursor, day, fingerprint, is_named))| {
            DeviceRow { fingerprint, is_named, ..device_row(device, cursor, day) }
        };
        let row = UserRow {
            read_receipts_off: off, head: InboxSeq(head), floor: InboxSeq(floor), waiting_bytes, receipts_head,
            tokens_from_s, had: InboxSeq(had), devices: devices.into_iter().map(device).collect(),
        };
        let mut bytes = Vec::new();
        row.encode(&mut bytes);
        prop_assert_eq!(UserRow::decode(&bytes), Ok(row.clone()));
        bytes.push(0);
        prop_assert_eq!(UserRow::decode(&bytes), Err(DecodeError::Length));
        for len in 0..bytes.len() - 1 {
            prop_assert!(UserRow::decode(&bytes[..len]).is_err(), "cut to {}", len);
        }
        let keys = row.devices.iter().filter(|device| device.fingerprint.is_some()).count();
        let below = row.devices.iter().filter(|device| ![InboxSeq(0), device.cursor].contains(&device.lost_through)).count();
        let is_removed = removed.is_some_and(|removed| removed != (0, 0));
        let len = 36 + 16 * usize::from(is_removed) + 14 * row.devices.len() + 16 * keys + 8 * below;
        prop_assert_eq!(bytes.len() - 1, len, "no more than what is there");
    }

    #[test]
    fn names_come_back_if_they_may_be(name: String, bytes: Vec<u8>) {
        let row = NameRow { name: name.clone() };
        let expected = if name.len() > DEVICE_NAME_LEN_MAX { Err(DecodeError::NameLength) } else { Ok(row.clone()) };
        prop_assert_eq!(NameRow::decode(&row.encode()), expected);
        let is_text = std::str::from_utf8(&bytes).is_ok();
        let decoded = NameRow::decode(&[&[VERSION], bytes.as_slice()].concat());
        prop_assert_eq!(decoded.is_ok(), is_text && bytes.len() <= DEVICE_NAME_LEN_MAX);
    }

    #[test]
    fn no_bytes_panic(mut bytes: Vec<u8>, version in 0..5u8) {
        if let (1.., Some(first)) = (version, bytes.first_mut()) {
            *first = version;
        }
        let first = [
            DedupRow::decode(&bytes).is_ok(), BatchRow::decode(&bytes).is_ok(), TimeRow::decode(&bytes).is_ok(),
            decode_inbox(InboxSeq(1), &bytes).is_ok(), decode_item(&bytes).is_ok(), ListRow::decode(&bytes).is_ok(),
            MarkRow::decode(&bytes).is_ok(), ExpiredRow::decode(&bytes).is_ok(), NumberRow::decode(&bytes).is_ok(),
            ClockRow::decode(&bytes).is_ok(), NameRow::decode(&bytes).is_ok(),
        ];
        prop_assert!(!first.contains(&true) || bytes.first() == Some(&VERSION));
        let second = [ConversationRow::decode(&bytes).is_ok(), SeqRow::decode(&bytes).is_ok()];
        prop_assert!(!second.contains(&true) || matches!(bytes.first(), Some(&(VERSION | VERSION_2))));
        let third = UserRow::decode(&bytes).is_ok();
        prop_assert!(!third || matches!(bytes.first(), Some(&(VERSION | VERSION_2 | VERSION_3))));
    }
}

fn device_row(device: u16, cursor: u64, day: u32) -> DeviceRow {
    let lost_through = match day >> 30 {
        0 | 1 => 0,
        2 => cursor,
        _ => cursor / 2,
    };
    let (seen_day, lost_through) = (day & (u32::MAX >> 4), InboxSeq(lost_through));
    DeviceRow { device: DeviceId(device), cursor: InboxSeq(cursor), seen_day, lost_through, ..DeviceRow::default() }
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

/// As the version before this one wrote it: a device that lacks nothing, one that lacks what precedes its cursor, and one
/// that has stepped on.
#[test]
fn user_rows_of_version_2_are_read() {
    let mut bytes = vec![2, 1];
    [9u64, 4, 500, 70].iter().for_each(|number| bytes.extend_from_slice(&number.to_be_bytes()));
    bytes.extend_from_slice(&3u16.to_be_bytes());
    for (device, day, below) in
        [(1u16, 20_000u32, None), (3, 20_001 | 1 << 31, None), (4, 20_002 | 1 << 30, Some(5u64))]
    {
        bytes.extend_from_slice(&device.to_be_bytes());
        bytes.extend_from_slice(&6u64.to_be_bytes());
        bytes.extend_from_slice(&day.to_be_bytes());
        bytes.extend(below.into_iter().flat_map(u64::to_be_bytes));
    }
    let device = |device, seen_day, lost_through| DeviceRow {
        device: DeviceId(device),
        cursor: InboxSeq(6),
        seen_day,
        lost_through: InboxSeq(lost_through),
        ..DeviceRow::default()
    };
    let row = UserRow {
        read_receipts_off: true,
        head: InboxSeq(9),
        floor: InboxSeq(4),
        waiting_bytes: 500,
        receipts_head: 70,
        devices: vec![device(1, 20_000, 0), device(3, 20_001, 6), device(4, 20_002, 5)],
        ..UserRow::default()
    };
    assert_eq!(UserRow::decode(&bytes), Ok(row.clone()));
    // What it did not know it did not write: neither the flag nor the bits mean anything there.
    bytes[1] |= 1 << 1;
    bytes[36 + 10] |= 0x30;
    assert_eq!(UserRow::decode(&bytes), Ok(row));
    bytes[0] = 4;
    assert_eq!(UserRow::decode(&bytes), Err(DecodeError::Version(4)));
}

#[test]
fn devices_out_of_order_are_refused() {
    let row = UserRow { devices: vec![device_row(2, 1, 0), device_row(1, 1, 0)], ..UserRow::default() };
    let mut bytes = Vec::new();
    row.encode(&mut bytes);
    assert_eq!(UserRow::decode(&bytes), Err(DecodeError::Order));
}
