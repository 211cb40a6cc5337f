//! Any stream in any two pieces gives the same records and the same error as in one.
#![no_main]

use culver_protocol::limits::{CLIENT_BODY_LEN_MAX, HEADER_LEN, LENGTH_LEN};
use culver_protocol::record::{Cipher, FrameError, Record, RecordType, split};
use libfuzzer_sys::fuzz_target;

fn read(stream: &[u8], at: &mut usize, found: &mut Vec<(usize, usize)>) -> Result<(), FrameError> {
    loop {
        let rest = &stream[*at..];
        let Some(range) = split(rest, HEADER_LEN, CLIENT_BODY_LEN_MAX)? else {
            return Ok(());
        };
        assert_eq!(range.start, LENGTH_LEN);
        let record = Record::parse(&rest[range.clone()]).expect("split asked for a header");
        if let Some(kind) = RecordType::from_number(record.kind)
            && record.flags == 0
        {
            let mut sealed = Vec::new();
            Cipher::default().seal(&mut sealed, kind, |out| out.extend_from_slice(record.body));
            assert_eq!(sealed, rest[..range.end]);
        }
        found.push((*at + range.start, *at + range.end));
        *at += range.end;
    }
}

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let cut = usize::from(cut).min(stream.len());
    let (mut whole, mut at) = (Vec::new(), 0);
    let outcome = read(stream, &mut at, &mut whole);
    let (mut pieces, mut at) = (Vec::new(), 0);
    let early = read(&stream[..cut], &mut at, &mut pieces);
    let late = early.and_then(|()| read(stream, &mut at, &mut pieces));
    assert_eq!((outcome, whole), (late, pieces));
});
