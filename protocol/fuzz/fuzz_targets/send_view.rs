//! The copy-free SEND decoder accepts what prost accepts, and reads the same.
#![no_main]

use culver_protocol::message::SendView;
use culver_protocol::proto;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    match (SendView::decode(bytes), proto::Send::decode(bytes)) {
        (Ok(view), Ok(send)) => {
            assert_eq!(view.client_message_id, send.client_message_id);
            assert_eq!(view.conversation, send.conversation);
            assert_eq!(view.payload, send.payload);
            let mut encoded = Vec::new();
            view.encode(&mut encoded);
            assert_eq!(encoded, send.encode_to_vec());
        }
        (view, send) => assert_eq!(view.is_err(), send.is_err()),
    }
});
