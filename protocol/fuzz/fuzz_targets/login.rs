//! A handshake message that is a login comes back the same after encoding.
#![no_main]

use culver_protocol::limits::HANDSHAKE_LEN_MAX;
use culver_protocol::proto;
use culver_protocol::record::split;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(range)) = split(bytes, 1, HANDSHAKE_LEN_MAX)
        && let Ok(login) = proto::Login::decode(&bytes[range])
    {
        assert_eq!(proto::Login::decode(login.encode_to_vec().as_slice()), Ok(login));
    }
});
