//! The ACK decoder accepts what prost accepts, and reads the same where no number is out of range.
#![no_main]

use culver_protocol::message::decode_ack;
use culver_protocol::proto;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    match (decode_ack(bytes), proto::Ack::decode(bytes)) {
        (Ok((through, entries, window)), Ok(ack)) => {
            assert_eq!(through.0, ack.inbox_seq);
            assert!(entries == ack.credit_entries || entries == u32::MAX);
            assert!(window == ack.credit_bytes || window == u32::MAX);
        }
        (ours, theirs) => assert_eq!(ours.is_err(), theirs.is_err()),
    }
});
