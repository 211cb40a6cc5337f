//! What a user's row says is brought up to date when it is loaded.

use std::sync::Arc;

use bytes::Bytes;
use culver_protocol::id::{ClientMessageId, ConversationId, DeviceId, InboxSeq, UserId};
use culver_storage::command::{Decision, Proof, Send};
use culver_storage::engine::{Engine, Family, Lookup, Tier};
use culver_storage::key::{self, ShardId};
use culver_storage::memory::MemoryEngine;
use culver_storage::shard::{Policy, Shards};
use culver_storage::topology::{HubId, Topology};
use culver_storage::value::{UserRow, waiting_bytes};

use super::world::ME;

fn recover(engine: &MemoryEngine) -> Shards {
    let topology = Arc::new(Topology::single(4));
    Shards::recover(engine, topology, HubId(0), Policy::default(), 1000, 0).expect("memory reads")
}

fn commit(shards: &mut Shards, engine: &MemoryEngine, decision: Decision) {
    let Decision::Apply(record) = decision else { panic!("{decision:?}") };
    shards.apply(&record);
    let batch = shards.seal(engine.sequence_synced(), true);
    engine.write(&batch).expect("memory writes");
    shards.durable(batch.number());
}

fn row(engine: &MemoryEngine) -> UserRow {
    match engine.get(Family::User, &key::user(ShardId::of_user(ME, 4), ME), Tier::Disk) {
        Ok(Lookup::Present(value)) => UserRow::decode(&value).expect("it was written"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_came_after_a_row_was_written_counts_when_it_is_loaded() {
    let engine = MemoryEngine::new();
    let mut shards = recover(&engine);
    let mut weight = 0;
    for index in 1..=200u64 {
        let len = usize::try_from(index % 7).expect("a small number");
        let send = Send {
            sender: UserId(2),
            device: DeviceId(1),
            client_message_id: ClientMessageId(u128::from(index).to_be_bytes()),
            conversation: ConversationId::direct(ME, UserId(2)),
            payload: Bytes::from(vec![7; len]),
            copy: false,
        };
        let decision = shards.decide_send(&engine, &send, 1000).expect("memory reads");
        commit(&mut shards, &engine, decision);
        weight += waiting_bytes(len);
        if index % 9 == 0 {
            // Memory is wiped; the row is behind, and what is loaded is not.
            shards = recover(&engine);
            assert!(row(&engine).head <= InboxSeq(index));
        }
    }
    shards = recover(&engine);
    let decision = shards
        .decide_link(&engine, ME, DeviceId(1), None, Proof::PlaintextToken { issued_s: 0 }, 1000)
        .expect("memory reads");
    commit(&mut shards, &engine, decision);
    assert_eq!((row(&engine).head, row(&engine).waiting_bytes), (InboxSeq(200), weight));
}
