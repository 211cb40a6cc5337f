//! A request that a server can read comes back the same after encoding.
#![no_main]

use culver_protocol::proto;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(rpc) = proto::Rpc::decode(bytes) {
        assert_eq!(proto::Rpc::decode(rpc.encode_to_vec().as_slice()), Ok(rpc));
    }
});
