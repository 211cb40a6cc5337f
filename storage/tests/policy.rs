//! What an operator may set for a hub as a whole.

use std::sync::Arc;

use bytes::Bytes;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, UserId};
use culver_storage::command::{Acked, Decision, Proof, Send};
use culver_storage::engine::Engine;
use culver_storage::memory::MemoryEngine;
use culver_storage::record::{Outgoing, Record};
use culver_storage::shard::{Policy, Shards};
use culver_storage::topology::{HubId, Topology};

const SENDER: UserId = UserId(1);
const RECIPIENT: UserId = UserId(2);
const DEVICE: DeviceId = DeviceId(1);

/// One message, acknowledged: what was noted as delivered, what left for the sender, and whether it can be read.
fn acknowledge(policy: Policy) -> (Vec<Acked>, Vec<Outgoing>, Decision) {
    let engine = MemoryEngine::new();
    let topology = Arc::new(Topology::single(64));
    let mut shards = Shards::recover(&engine, topology, HubId(0), policy, 5, 0).expect("memory reads");
    let conversation = ConversationId::direct(SENDER, RECIPIENT);
    let linked = shards
        .decide_link(&engine, RECIPIENT, DEVICE, None, Proof::PlaintextToken { issued_s: 0 }, 5)
        .expect("memory reads");
    applied(&mut shards, linked);
    let send = Send {
        sender: SENDER,
        device: DEVICE,
        client_message_id: ClientMessageId([1; 16]),
        conversation,
        payload: Bytes::from_static(b"hello"),
        copy: false,
    };
    let sent = shards.decide_send(&engine, &send, 5).expect("memory reads");
    applied(&mut shards, sent);
    let acked = [Acked { conversation, seq: ConversationSeq(1) }];
    let moved = shards.decide_ack(&engine, RECIPIENT, DEVICE, InboxSeq(1), &acked, 5).expect("memory reads");
    let Record::CursorMoved { delivered, .. } = applied(&mut shards, moved) else { panic!("a cursor moves") };
    let batch = shards.seal(engine.sequence_synced(), true);
    let outgoing = shards.take_outgoing();
    let read = shards.decide_mark_read(&engine, RECIPIENT, conversation, ConversationSeq(1)).expect("memory reads");
    engine.write(&batch).expect("memory writes");
    shards.durable(batch.number());
    (delivered, outgoing, read)
}

fn applied(shards: &mut Shards, decision: Decision) -> Record {
    let Decision::Apply(record) = decision else { panic!("something new, not {decision:?}") };
    shards.apply(&record);
    record
}

#[test]
fn receipts_can_be_turned_off() {
    let (delivered, outgoing, read) = acknowledge(Policy::default());
    assert_eq!((delivered.len(), outgoing.len()), (1, 1));
    assert!(matches!(read, Decision::Apply(Record::MarkedRead { .. })), "{read:?}");

    let (delivered, outgoing, read) = acknowledge(Policy { receipts: false, ..Policy::default() });
    assert_eq!((delivered.len(), outgoing.len()), (1, 0), "noted, and not told");
    assert!(matches!(read, Decision::Apply(Record::MarkedRead { .. })), "{read:?}");
}
