//! The hot path's RECEIPT is what prost makes of the same marks.
#![no_main]

use culver_protocol::id::{ConversationId, ConversationSeq};
use culver_protocol::message::{MarkView, encode_receipt};
use culver_protocol::proto;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fn view(mark: &proto::Mark) -> Option<MarkView> {
    Some(MarkView {
        conversation: ConversationId::try_from(mark.conversation.as_ref()).ok()?,
        delivered: ConversationSeq(mark.delivered),
        read: ConversationSeq(mark.read),
        expired_after: ConversationSeq(mark.expired_after),
        expired_through: ConversationSeq(mark.expired_through),
        own_read: ConversationSeq(mark.own_read),
    })
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut receipt) = proto::Receipt::decode(bytes) else {
        return;
    };
    receipt.marks.retain(|mark| view(mark).is_some());
    let mut encoded = Vec::new();
    encode_receipt(&mut encoded, receipt.version, receipt.marks.iter().filter_map(view));
    assert_eq!(encoded, receipt.encode_to_vec());
});
