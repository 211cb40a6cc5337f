//! What the arithmetic costs by itself, on this thread and with the library that the server has too.

use std::hint::black_box;

use culver_protocol::crypto::{self, KeyPair, Suite};
use culver_protocol::keys::{Key, Keys};
use culver_protocol::limits::HEADER_LEN;
use culver_protocol::record::{Cipher, RecordType};
use serde::Serialize;

use crate::report::histogram::median;
use crate::sys;

/// Bytes of a record's body, type and flags among them.
const RECORD_LEN: usize = 256;
/// Records sealed, and then opened, between two looks at the clock.
const RECORDS: usize = 2000;
/// Such turns, of which the median counts.
const TURNS: usize = 101;
/// Times that the five operations are done for one figure.
const OPERATIONS: u32 = 400;

/// Nanoseconds for one record.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct RecordCost {
    pub(super) suite: &'static str,
    pub(super) seal_ns: f64,
    pub(super) open_ns: f64,
}

/// Both suites.
pub(super) fn measure_records() -> Vec<RecordCost> {
    Suite::ALL.map(measure_suite).to_vec()
}

fn measure_suite(suite: Suite) -> RecordCost {
    let turns: Vec<(f64, f64)> = (0..TURNS).map(|_| turn(suite)).collect();
    let of = |pick: fn(&(f64, f64)) -> f64| median(&turns.iter().map(pick).collect::<Vec<_>>());
    RecordCost { suite: suite.name(), seal_ns: of(|turn| turn.0), open_ns: of(|turn| turn.1) }
}

/// Nanoseconds to seal one record, and to open it.
fn turn(suite: Suite) -> (f64, f64) {
    let (one, other) = (crypto::random(), crypto::random());
    let keys = |sending, receiving| Keys { sending: Key::new(sending), receiving: Key::new(receiving) };
    let mut sender = Cipher::Sealed(suite, keys(&one, &other));
    let mut receiver = Cipher::Sealed(suite, keys(&other, &one));
    let payload = [7; RECORD_LEN - HEADER_LEN];
    let mut out = Vec::with_capacity(RECORDS * (RECORD_LEN + 64));
    let (seal_ns, ()) = timed(|| {
        for _ in 0..RECORDS {
            sender.seal(&mut out, RecordType::Send, |out| out.extend_from_slice(black_box(&payload)));
        }
    });
    let frame_len = out.len() / RECORDS;
    let (open_ns, opened) = timed(|| {
        let frames = out.chunks_exact_mut(frame_len).filter_map(|frame| frame.get_mut(2..));
        frames.filter_map(|body| black_box(receiver.open(body).ok())).count()
    });
    assert_eq!(opened, RECORDS, "what one side seals the other opens");
    (seal_ns, open_ns)
}

/// Nanoseconds of this thread's time for each of [`RECORDS`].
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a turn are below 2^52")]
fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let before = sys::thread_cpu_ns();
    let result = work();
    ((sys::thread_cpu_ns() - before) as f64 / RECORDS as f64, result)
}

/// Microseconds for what a server computes on the curve at a login by Noise IK: a key pair and four agreements.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a second are below 2^52")]
pub(super) fn measure_five_operations() -> f64 {
    let own = KeyPair::new(&crypto::random());
    let other = *KeyPair::new(&crypto::random()).public();
    let before = sys::thread_cpu_ns();
    for _ in 0..OPERATIONS {
        black_box(KeyPair::new(&crypto::random()));
        for _ in 0..4 {
            black_box(own.agree(black_box(&other)));
        }
    }
    (sys::thread_cpu_ns() - before) as f64 / f64::from(OPERATIONS) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_the_real_thing() {
        for suite in Suite::ALL {
            let (seal_ns, open_ns) = turn(suite);
            assert!(seal_ns > 0.0 && open_ns > 0.0);
        }
        assert!(measure_five_operations() > 0.0);
    }
}
