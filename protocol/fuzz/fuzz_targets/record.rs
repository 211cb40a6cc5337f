//! Sealed records on their way: in order and as they were sealed they open to what was sealed, and nothing else opens.
//! What does not open moves no counter, so what comes behind it does not open in its place.
#![no_main]

use culver_protocol::crypto::{KEY_LEN, Secret, Suite, sha256};
use culver_protocol::keys::{Key, Keys};
use culver_protocol::limits::{BODY_LEN_MAX, HEADER_LEN, LENGTH_LEN, TAG_LEN};
use culver_protocol::record::{Cipher, Record, RecordType, split};
use libfuzzer_sys::fuzz_target;

/// Operations in one input.
const STEPS_MAX: usize = 64;
/// Bytes sealed by one input, the longest record among them.
const SEALED_MAX: usize = 2 * BODY_LEN_MAX;
/// Longest protobuf of most records: what matters is what becomes of them.
const SHORT_MAX: usize = 300;

/// One direction: who seals, what is under way, and who opens.
struct Way {
    sender: Cipher,
    receiver: Cipher,
    /// As sealed, and what was: type, flags and protobuf.
    records: Vec<(Vec<u8>, Vec<u8>)>,
    opened: usize,
}

fn count(cipher: &Cipher, is_receiving: bool) -> u32 {
    let Cipher::Sealed(_, keys) = cipher else { unreachable!("made with keys") };
    if is_receiving { keys.receiving.records() } else { keys.sending.records() }
}

impl Way {
    fn new(suite: Suite, sender: [u8; KEY_LEN], receiver: [u8; KEY_LEN]) -> Self {
        let key = |bytes: [u8; KEY_LEN]| Key::new(&Secret::new(bytes));
        Self {
            sender: Cipher::Sealed(suite, Keys { sending: key(sender), receiving: key(receiver) }),
            receiver: Cipher::Sealed(suite, Keys { sending: key(receiver), receiving: key(sender) }),
            records: Vec::new(),
            opened: 0,
        }
    }

    fn seal(&mut self, kind: RecordType, protobuf: &[u8]) {
        let mut out = Vec::new();
        let plain = if kind == RecordType::Rekey {
            self.sender.change_key(&mut out);
            vec![kind as u8, 0]
        } else {
            self.sender.seal(&mut out, kind, |out| out.extend_from_slice(protobuf));
            [&[kind as u8, 0], protobuf].concat()
        };
        assert_eq!(out.len(), LENGTH_LEN + plain.len() + TAG_LEN);
        self.records.push((out, plain));
        assert_eq!(usize::try_from(count(&self.sender, false)), Ok(self.records.len()));
    }

    /// Bytes come in the place of the next record: they open exactly if they begin with it.
    fn receive(&mut self, stream: &[u8]) {
        let next = self.records.get(self.opened);
        let is_next = next.is_some_and(|(sealed, _)| stream.starts_with(sealed));
        let Ok(Some(range)) = split(stream, HEADER_LEN + TAG_LEN, BODY_LEN_MAX + TAG_LEN) else {
            assert!(!is_next);
            return;
        };
        let mut body = stream[range].to_vec();
        let opened = self.receiver.open(&mut body);
        if let (true, Some((_, plain))) = (is_next, next) {
            let opened = opened.expect("the next record, as it was sealed");
            assert_eq!(opened, plain.as_slice());
            let record = Record::parse(opened).expect("type and flags");
            if record.kind == RecordType::Rekey as u8 {
                self.receiver.follow_key();
            }
            self.opened += 1;
        } else {
            assert!(opened.is_err(), "nothing else opens");
        }
        assert_eq!(usize::try_from(count(&self.receiver, true)), Ok(self.opened));
    }

    /// Any record that was ever sealed here.
    fn any(&self, number: u8) -> Vec<u8> {
        let place = usize::from(number) % self.records.len().max(1);
        self.records.get(place).map_or_else(Vec::new, |(sealed, _)| sealed.clone())
    }

    fn next(&self) -> Vec<u8> {
        self.records.get(self.opened).map_or_else(Vec::new, |(sealed, _)| sealed.clone())
    }
}

/// What the input makes of the next record, or of what might take its place.
fn forge(ways: &[Way; 2], way: usize, operation: u8, at: usize, arg: u8, rest: &mut &[u8]) -> Vec<u8> {
    let (this, other) = (&ways[way], &ways[1 - way]);
    let mut bytes = this.next();
    let len = bytes.len();
    match operation {
        // A bit or more of it.
        0 if len > 0 => bytes[at % len] ^= arg,
        1 => bytes.truncate(at % (len + 1)),
        // Longer than its length says, which is only the next record's beginning.
        2 => bytes.extend(std::iter::repeat_n(arg, at % 64)),
        // Another length, and bytes for it.
        3 if len > LENGTH_LEN => {
            bytes[..LENGTH_LEN].copy_from_slice(&u16::try_from(at).unwrap_or(u16::MAX).to_be_bytes());
            bytes.resize(len.max(LENGTH_LEN + at), arg);
        }
        // Repeated, or before its turn.
        4 => bytes = this.any(arg),
        // Back to who sealed it.
        5 => bytes = other.any(arg),
        // One's beginning with another's end.
        6 => {
            let from = this.any(arg);
            bytes.truncate(at % (len + 1));
            bytes.extend_from_slice(from.get(bytes.len()..).unwrap_or_default());
        }
        // Anything in a frame.
        _ => {
            let taken = rest.len().min(at);
            let (body, behind) = rest.split_at(taken);
            *rest = behind;
            let framed = u16::try_from(taken).unwrap_or(u16::MAX);
            bytes = [&framed.to_be_bytes(), body].concat();
        }
    }
    bytes
}

fuzz_target!(|input: &[u8]| {
    let Some((&head, mut rest)) = input.split_first() else {
        return;
    };
    let suite = Suite::ALL[usize::from(head & 1)];
    // Of the whole input: a fuzzer that has seen what one input sealed cannot show it to another.
    let (client, server) = (sha256(&[b"client", input]), sha256(&[b"server", input]));
    let mut ways = [Way::new(suite, client, server), Way::new(suite, server, client)];
    let mut room = SEALED_MAX;
    for _ in 0..STEPS_MAX {
        let Some(([operation, high, low, arg], behind)) = rest.split_first_chunk() else {
            break;
        };
        rest = behind;
        let (way, at) = (usize::from(operation >> 7), usize::from(u16::from_be_bytes([*high, *low])));
        match operation & 0x0f {
            0..=2 => {
                let is_short = operation & 0x0f != 0;
                let len = if is_short { at % SHORT_MAX } else { at.min(BODY_LEN_MAX - HEADER_LEN) };
                room = room.saturating_sub(len);
                if room > 0 {
                    let kind = RecordType::ALL[usize::from(*arg) % RecordType::ALL.len()];
                    ways[way].seal(kind, &vec![*arg; len]);
                }
            }
            3 => ways[way].seal(RecordType::Rekey, &[]),
            4..=7 => {
                let next = ways[way].next();
                ways[way].receive(&next);
            }
            forgery => {
                let bytes = forge(&ways, way, forgery - 8, at, *arg, &mut rest);
                ways[way].receive(&bytes);
            }
        }
    }
    // Whatever came between: what was sealed still opens, to the last.
    for way in &mut ways {
        while way.opened < way.records.len() {
            let next = way.next();
            way.receive(&next);
        }
    }
});
