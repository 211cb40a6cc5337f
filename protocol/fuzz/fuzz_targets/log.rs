//! RocksDB's log with any bytes in it: the reader ends, and never panics.
#![no_main]

use culver_storage::log::LogReader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = LogReader::new(bytes);
    // Every item takes a header's bytes at least, or a block's.
    for _ in 0..=bytes.len() {
        match reader.next_item() {
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => panic!("reading from memory does not fail: {error}"),
        }
    }
    panic!("more items than bytes");
});
