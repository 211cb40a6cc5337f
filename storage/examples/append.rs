//! What a durable message costs: sends through decide, apply, seal and a synced write, and the CPU time of all
//! threads for each.
//!
//! ```text
//! cargo run --release -p culver-storage --example append -- [messages] [batch] [pairs]
//! ```

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use culver_protocol::id::{ClientMessageId, ConversationId, DeviceId, InboxSeq, UserId};
use culver_storage::batch::BatchNumber;
use culver_storage::command::{Decision, Proof, Send};
use culver_storage::engine::Engine;
use culver_storage::reader::Loaded;
use culver_storage::rocks::{RocksEngine, RocksOptions};
use culver_storage::shard::{Policy, Shards};
use culver_storage::topology::{HubId, Topology};
use culver_storage::writer::Writer;

const PAYLOAD_LEN: usize = 256;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("arguments are numbers"));
    let messages = arguments.next().unwrap_or(500_000);
    let batch_len = arguments.next().unwrap_or(128);
    let pairs = arguments.next().unwrap_or(64);
    let directory = tempfile::tempdir_in(std::env::var_os("APPEND_DIR").unwrap_or_else(|| ".".into()))
        .expect("a directory can be made here");
    let engine: Arc<dyn Engine> = Arc::new(
        RocksEngine::open(&directory.path().join("volume"), RocksOptions::default(), Arc::default())
            .expect("a new volume opens"),
    );
    let (done, finished) = crossbeam::channel::unbounded();
    let writer = Writer::spawn(
        Arc::clone(&engine),
        Box::new(move |number: BatchNumber| done.send(number).expect("main outlives the writer")),
    );
    let topology = Arc::new(Topology::single(64));
    let shards = Shards::recover(&*engine, topology, HubId(0), Policy::default(), now_ms(), mono_ms());
    let mut shards = shards.expect("a new volume recovers");
    for user in 1..=2 * pairs {
        let decision = shards
            .decide_link(&*engine, UserId(user), DeviceId(1), None, Proof::PlaintextToken { issued_s: 0 }, now_ms())
            .expect("the engine reads");
        let Decision::Apply(record) = decision else { panic!("a new device is linked, not {decision:?}") };
        shards.apply(&record);
    }
    let mut acked = vec![0u64; usize::try_from(2 * pairs).expect("few pairs")];
    let (cpu_before, begin) = (cpu_us(), Instant::now());
    let (mut batches, mut loads) = (0, 0);
    for first in (0..messages).step_by(usize::try_from(batch_len).expect("small")) {
        for index in first..(first + batch_len).min(messages) {
            send(&mut shards, &*engine, index, pairs, &mut acked, &mut loads);
        }
        if batches > 0 {
            shards.durable(finished.recv().expect("the writer calls back"));
        }
        let batch = shards.seal(engine.sequence_synced(), true);
        writer.submit(batch);
        batches += 1;
    }
    shards.durable(finished.recv().expect("the writer calls back"));
    let (cpu, wall) = (cpu_us() - cpu_before, begin.elapsed());
    drop(writer);
    let per_message = |us: f64| us / messages as f64;
    println!(
        "{messages} messages in {batches} batches: {:.2} us CPU a message, {:.0} messages/s, {loads} loads, {:?}",
        per_message(cpu),
        messages as f64 / wall.as_secs_f64(),
        engine.memory(),
    );
}

fn send(shards: &mut Shards, engine: &dyn Engine, index: u64, pairs: u64, acked: &mut [u64], loads: &mut u64) {
    // Pairs talk in both directions.
    let (pair, turn) = (index % pairs, index / pairs % 2);
    let (sender, recipient) = (UserId(1 + 2 * pair + turn), UserId(1 + 2 * pair + (1 - turn)));
    let send = Send {
        sender,
        device: DeviceId(1),
        client_message_id: ClientMessageId(u128::from(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes()),
        conversation: ConversationId::direct(sender, recipient),
        payload: Bytes::from_static(&[7; PAYLOAD_LEN]),
        copy: false,
    };
    loop {
        match shards.decide_send(engine, &send, now_ms()).expect("the engine reads") {
            Decision::Apply(record) => break shards.apply(&record),
            Decision::Waits(load) => {
                *loads += 1;
                shards.loaded(Loaded::read(engine, 64, load).expect("the engine reads"));
            }
            other => panic!("a new message is applied, not {other:?}"),
        }
    }
    // Every eighth message is followed by an acknowledgement of what came before.
    let slot = acked.get_mut(usize::try_from(recipient.0 - 1).expect("few users")).expect("two users a pair");
    *slot += 1;
    if slot.is_multiple_of(8) {
        let through = InboxSeq(*slot - 1);
        // Without what it says of conversations: receipts are measured elsewhere.
        match shards.decide_ack(engine, recipient, DeviceId(1), through, &[], now_ms()).expect("the engine reads") {
            Decision::Apply(record) => shards.apply(&record),
            other => panic!("an acknowledgement moves the cursor, not {other:?}"),
        }
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is after 1970");
    u64::try_from(since.as_millis()).expect("milliseconds fit for half a billion years")
}

/// A clock that never jumps.
fn mono_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).expect("it counts from the start of the machine")
}

/// CPU time of all threads of this process, user and system, in microseconds.
fn cpu_us() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
