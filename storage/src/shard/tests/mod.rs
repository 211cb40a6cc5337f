//! What the tests of the shards share: a hub on an engine in memory, spoken to in a few words.

mod devices;
mod direct;
mod floors;
mod hubs;
mod life;
mod messages;
#[cfg(feature = "planted-bugs")]
mod planted;
mod receipts;
mod story;
mod streams;

use std::sync::Arc;

use bytes::Bytes;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, UserId};

use super::{Bounds, Direct, Policy, Shards};
use crate::command::{Acked, Decision, Proof, Send};
use crate::engine::Engine;
use crate::memory::MemoryEngine;
use crate::record::{Arrival, InboxEntry, MessageRecord, Outgoing, Record};
use crate::topology::{HubId, Topology};

const SHARD_COUNT: u16 = 64;

/// The first seed, from the environment variable `SEED` if one failed before.
fn first_seed() -> u64 {
    std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random)
}

fn recover_hub(engine: &dyn Engine, now_ms: u64) -> Shards {
    recover_with(engine, Policy::default(), now_ms)
}

fn recover_with(engine: &dyn Engine, policy: Policy, now_ms: u64) -> Shards {
    let topology = Arc::new(Topology::single(SHARD_COUNT));
    Shards::recover(engine, topology, HubId(0), policy, now_ms, 0).expect("the engine reads")
}

/// Bounds so small that everything is forgotten, read again and put off all the time.
fn small_bounds() -> Bounds {
    Bounds {
        conversations_cached: 4,
        users_cached: 4,
        talks_cached: 4,
        senders_cached: 4,
        awaited: 8,
        lookups_first: 2,
        head_hint_lag: 3,
        time_reservation_ms: 20,
        receipts_head_lead: 5,
        head_lag: 3,
        full_ms: 10,
        full: 2,
        fold_delay_ms: 10,
        folds_queued: 2,
        clock_write_ms: 100,
    }
}

fn recover(engine: &MemoryEngine, now_ms: u64) -> Shards {
    recover_hub(engine, now_ms)
}

fn talk(a: u64, b: u64) -> ConversationId {
    ConversationId::direct(UserId(a), UserId(b))
}

fn send(sender: u64, recipient: u64, id: u128) -> Send {
    Send {
        sender: UserId(sender),
        device: DeviceId(1),
        client_message_id: ClientMessageId(id.to_be_bytes()),
        conversation: talk(sender, recipient),
        payload: Bytes::from_static(b"hello"),
        copy: true,
    }
}

fn accept(shards: &mut Shards, engine: &MemoryEngine, send: &Send, now_ms: u64) -> InboxEntry {
    accept_whole(shards, engine, send, now_ms).entry
}

fn accept_whole(shards: &mut Shards, engine: &MemoryEngine, send: &Send, now_ms: u64) -> MessageRecord {
    let decision = shards.decide_send(engine, send, now_ms).expect("memory reads");
    let Decision::Apply(record) = decision else { panic!("a new message is accepted, not {decision:?}") };
    shards.apply(&record);
    let Record::Message(message) = record else { panic!("a message makes a message") };
    message
}

/// Applies what was decided, if anything.
fn apply(shards: &mut Shards, decision: &Decision) {
    if let Decision::Apply(record) = decision {
        shards.apply(record);
    }
}

fn link(shards: &mut Shards, engine: &MemoryEngine, user: u64, device: u16, now_ms: u64) -> Decision {
    let decision = shards
        .decide_link(engine, UserId(user), DeviceId(device), None, Proof::PlaintextToken { issued_s: 0 }, now_ms)
        .expect("memory reads");
    apply(shards, &decision);
    decision
}

/// Acknowledges up to `through`, where the last of the conversations are `acked`.
fn ack(
    shards: &mut Shards,
    engine: &MemoryEngine,
    device: (u64, u16),
    through: u64,
    acked: &[(ConversationId, u64)],
) -> Decision {
    let acked: Vec<_> = acked
        .iter()
        .map(|(conversation, seq)| Acked { conversation: *conversation, seq: ConversationSeq(*seq) })
        .collect();
    let (user, device) = (UserId(device.0), DeviceId(device.1));
    let decision = shards.decide_ack(engine, user, device, InboxSeq(through), &acked, 5).expect("memory reads");
    apply(shards, &decision);
    decision
}

/// Gives the receipts that need no stream: what came of each.
fn give(shards: &mut Shards, with_cursors: bool) -> Vec<Arrival> {
    let (mut direct, mut given) = (Direct::default(), Vec::new());
    while let Some(record) = shards.decide_direct(with_cursors, &mut direct) {
        shards.apply(&record);
        let Record::ReceiptGiven { item, .. } = record else { panic!("a receipt is given") };
        given.push(item);
    }
    given
}

fn commit(shards: &mut Shards, engine: &MemoryEngine) -> Vec<Outgoing> {
    let batch = shards.seal(engine.sequence_synced(), true);
    let outgoing = shards.take_outgoing();
    engine.write(&batch).expect("memory writes");
    shards.durable(batch.number());
    outgoing
}

/// Hands items over, commits them and says so: what came of each.
fn deliver(shards: &mut Shards, engine: &MemoryEngine, items: &[Outgoing]) -> Vec<Decision> {
    let mut decisions = Vec::new();
    for Outgoing { stream, n, item } in items {
        let decision = shards.decide_arrival(engine, *stream, *n, item, 5).expect("memory reads");
        apply(shards, &decision);
        decisions.push(decision);
    }
    commit(shards, engine);
    for Outgoing { stream, .. } in items {
        let watermark = shards.watermark(*stream);
        shards.taken(*stream, watermark);
    }
    decisions
}
