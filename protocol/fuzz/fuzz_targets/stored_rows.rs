//! No bytes panic as a key, a value or a batch of the inbox log; what decodes as a user's row encodes to itself.
#![no_main]

use std::ops::ControlFlow;

use culver_protocol::id::InboxSeq;
use culver_storage::wal::LoggedBatch;
use culver_storage::{batch, key, value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    key::decode_meta(bytes);
    key::decode_conversation(bytes);
    key::decode_user(bytes);
    if let Some((shard, user, seq)) = key::decode_inbox(bytes) {
        assert_eq!(key::inbox(shard, user, seq).as_slice(), bytes);
    }
    if let Some((shard, of)) = key::decode_dedup(bytes) {
        assert_eq!(key::dedup(shard, &of).as_slice(), bytes);
    }
    value::decode_inbox(InboxSeq(1), bytes).ok();
    value::ConversationRow::decode(bytes).ok();
    value::UserRow::decode(bytes).ok();
    value::DedupRow::decode(bytes).ok();
    value::BatchRow::decode(bytes).ok();
    value::TimeRow::decode(bytes).ok();
    batch::decode(bytes, |_| ControlFlow::Continue(())).ok();
    LoggedBatch::decode(bytes);
});
