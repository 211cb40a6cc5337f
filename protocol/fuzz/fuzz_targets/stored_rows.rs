//! No bytes panic as a key, a value or a batch of the inbox log; what decodes as a key encodes to the same bytes, and
//! what decodes as a row comes back the same.
#![no_main]

use std::fmt::Debug;
use std::hint::black_box;
use std::ops::ControlFlow;

use culver_protocol::id::InboxSeq;
use culver_storage::value::{self, DecodeError};
use culver_storage::wal::LoggedBatch;
use culver_storage::{batch, key};
use libfuzzer_sys::fuzz_target;

fn keys(bytes: &[u8]) {
    if let Some((shard, conversation)) = key::decode_conversation(bytes) {
        assert_eq!(key::conversation(shard, conversation).as_slice(), bytes);
    }
    if let Some((shard, user)) = key::decode_user(bytes) {
        assert_eq!(key::user(shard, user).as_slice(), bytes);
    }
    if let Some((shard, user, device)) = key::decode_device(bytes) {
        let key = key::device(shard, user, device);
        assert_eq!(key.as_slice(), bytes);
        let (least, beyond) = key::devices_range(shard, user);
        assert!(least <= key && key.as_slice() < beyond.as_slice());
    }
    if let Some((shard, kind, id)) = key::decode_meta(bytes)
        && let Some(stream) = key::stream_of(shard, kind, id)
    {
        assert!(key::watermark(stream) == bytes || key::head(stream) == bytes);
    }
    if let Some((shard, user, seq)) = key::decode_inbox(bytes) {
        assert_eq!(key::inbox(shard, user, seq).as_slice(), bytes);
    }
    if let Some((shard, of)) = key::decode_dedup(bytes) {
        assert_eq!(key::dedup(shard, &of).as_slice(), bytes);
    }
    if let Some((shard, user, conversation, kind)) = key::decode_talk(bytes) {
        let key = key::talk(shard, user, conversation, kind);
        assert_eq!(key.as_slice(), bytes);
        let (least, greatest) = key::talks_range(shard, user);
        assert!((least..=greatest).contains(&key));
    }
    if let Some((stream, n)) = key::decode_outbox(bytes) {
        assert_eq!(key::outbox(stream, n).as_slice(), bytes);
    }
}

fn comes_back<R: PartialEq + Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<R, DecodeError>,
    encode: impl Fn(&R) -> Vec<u8>,
) {
    if let Ok(row) = decode(bytes) {
        assert_eq!(decode(&encode(&row)).as_ref(), Ok(&row));
    }
}

fn values(bytes: &[u8]) {
    value::decode_inbox(InboxSeq(1), bytes).ok();
    value::decode_item(bytes).ok();
    comes_back(bytes, value::ConversationRow::decode, |row| row.encode().to_vec());
    comes_back(bytes, value::DedupRow::decode, |row| row.encode().to_vec());
    comes_back(bytes, value::BatchRow::decode, |row| row.encode().to_vec());
    comes_back(bytes, value::TimeRow::decode, |row| row.encode().to_vec());
    comes_back(bytes, value::NumberRow::decode, |row| row.encode().to_vec());
    comes_back(bytes, value::ClockRow::decode, |row| row.encode().to_vec());
    comes_back(bytes, value::SeqRow::decode, |row| row.encode().to_vec());
    comes_back(bytes, value::MarkRow::decode, |row| row.encode().to_vec());
    comes_back(bytes, value::ExpiredRow::decode, |row| row.encode().to_vec());
    comes_back(bytes, value::ListRow::decode, |row| [&row.encode_header(), row.preview.as_ref()].concat());
    comes_back(bytes, value::NameRow::decode, value::NameRow::encode);
    comes_back(bytes, value::UserRow::decode, |row| {
        let mut encoded = Vec::new();
        row.encode(&mut encoded);
        encoded
    });
}

fuzz_target!(|bytes: &[u8]| {
    keys(bytes);
    values(bytes);
    batch::decode(bytes, |_| ControlFlow::Continue(())).ok();
    black_box(LoggedBatch::decode(bytes));
});
