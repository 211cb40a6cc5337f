//! A preamble that is accepted encodes to the bytes it came from, and agrees only on a version both sides speak.
#![no_main]

use culver_protocol::limits::{PREAMBLE_LEN, VERSION_MAX, VERSION_MIN};
use culver_protocol::preamble::Preamble;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: [u8; PREAMBLE_LEN]| {
    if let Ok(preamble) = Preamble::decode(bytes) {
        assert_eq!(preamble.encode(), bytes);
        if let Ok(version) = preamble.agree_version() {
            assert!((VERSION_MIN..=VERSION_MAX).contains(&version));
            assert!((preamble.version_min..=preamble.version_max).contains(&version));
        }
    }
});
