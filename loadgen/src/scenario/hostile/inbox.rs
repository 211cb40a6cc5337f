//! Attacks on devices, cursors, receipts and requests.

use anyhow::Result;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, UserId};
use culver_protocol::proto::{
    ListConversations, ListDevices, Login, MarkRead, Ready, Receipt, Rpc, RpcResult, SyncDone, SyncStart, rpc,
};
use culver_protocol::record::RecordType;

use super::attack::Expected::{ErrorAndEnd, ErrorAndLife, RecordAndLife};
use super::attack::Stage::{DevicesFull, Opening, Steady};
use super::attack::Strike::{self, Records};
use super::attack::{Attack, Material, attack};
use super::raw::{login_with_token, message, record};

/// More requests than a session may have unanswered.
const REQUESTS: u64 = 40;

/// All attacks of this file.
pub(super) const INBOX: &[Attack] = &[
    attack("ninth device", DevicesFull, ErrorAndEnd(ErrorCode::DevicesFull), |m| login(m, Login::default())),
    attack("cursor beyond the head", Opening, RecordAndLife(RecordType::Gap), |m| {
        login(m, Login { cursor: 1 << 40, ..Login::default() })
    }),
    attack("cursor of another incarnation", Opening, RecordAndLife(RecordType::Gap), |m| {
        login(m, Login { cursor: 1, incarnation: 1, ..Login::default() })
    }),
    attack("receipts from the future", Opening, RecordAndLife(RecordType::Pong), |m| {
        match login(m, Login { receipts: u64::MAX, ..Login::default() })? {
            Strike::Opening(flight, ready) => Ok(Strike::Opening(flight, [ready, ping()].concat())),
            other => Ok(other),
        }
    }),
    attack("request that asks nothing", Steady, ErrorAndLife(ErrorCode::RequestInvalid), |_| {
        Ok(Records(request(1, None)))
    }),
    attack("request of a later version", Steady, ErrorAndLife(ErrorCode::RequestInvalid), |_| {
        // Field 15, an empty message: nothing that this version knows.
        Ok(Records(record(RecordType::Rpc as u8, &[0x08, 0x01, 0x7a, 0x00])))
    }),
    attack("RPC of bad protobuf", Steady, ErrorAndEnd(ErrorCode::BadProtobuf), |_| {
        Ok(Records(record(RecordType::Rpc as u8, &[0x12, 0xff, 0x01, 0x02])))
    }),
    attack("page that nobody gave out", Steady, ErrorAndLife(ErrorCode::RequestInvalid), |_| {
        let asked = ListConversations { limit: u32::MAX, page: b"page".as_slice().into() };
        Ok(Records(request(1, Some(rpc::Request::ListConversations(asked)))))
    }),
    attack("read of a short conversation id", Steady, ErrorAndLife(ErrorCode::RequestInvalid), |_| {
        let asked = MarkRead { conversation: vec![1; 15].into(), seq: 1 };
        Ok(Records(request(1, Some(rpc::Request::MarkRead(asked)))))
    }),
    attack("read of what was never delivered", Steady, ErrorAndLife(ErrorCode::ReadBeyondDelivered), |m| {
        let conversation = ConversationId::direct(m.user, UserId(m.user.0 ^ 1));
        let asked = MarkRead { conversation: conversation.0.to_vec().into(), seq: 7 };
        Ok(Records(request(1, Some(rpc::Request::MarkRead(asked)))))
    }),
    attack("many requests at once", Steady, RecordAndLife(RecordType::RpcResult), |_| {
        let ask = |id| request(id, Some(rpc::Request::ListDevices(ListDevices {})));
        Ok(Records((1..=REQUESTS).flat_map(ask).collect()))
    }),
    attack("a server's RECEIPT", Steady, ErrorAndEnd(ErrorCode::OutOfState), |_| {
        Ok(Records(message(RecordType::Receipt, &Receipt { version: 1, ..Receipt::default() })))
    }),
    attack("a server's SYNC_START", Steady, ErrorAndEnd(ErrorCode::OutOfState), |_| {
        Ok(Records(message(RecordType::SyncStart, &SyncStart::default())))
    }),
    attack("a server's SYNC_DONE", Steady, ErrorAndEnd(ErrorCode::OutOfState), |_| {
        Ok(Records(message(RecordType::SyncDone, &SyncDone { inbox_seq: 1 })))
    }),
    attack("a server's RPC_RESULT", Steady, ErrorAndEnd(ErrorCode::OutOfState), |_| {
        Ok(Records(message(RecordType::RpcResult, &RpcResult { id: 1, ..RpcResult::default() })))
    }),
];

/// A login that is good but for these fields, and READY.
fn login(material: &Material, fields: Login) -> Result<Strike> {
    let Login { credential, client, .. } = login_with_token(&material.token);
    let flight = material.flight(&Login { credential, client, ..fields })?;
    Ok(Strike::Opening(flight, message(RecordType::Ready, &Ready {})))
}

fn request(id: u64, request: Option<rpc::Request>) -> Vec<u8> {
    message(RecordType::Rpc, &Rpc { id, request })
}

fn ping() -> Vec<u8> {
    message(RecordType::Ping, &culver_protocol::proto::Ping { nonce: 9, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn a_later_request_is_protobuf_that_asks_nothing_known() {
        let rpc = Rpc::decode([0x08, 0x01, 0x7a, 0x00].as_slice()).expect("protobuf");
        assert_eq!((rpc.id, rpc.request), (1, None));
        assert!(Rpc::decode([0x12, 0xff, 0x01, 0x02].as_slice()).is_err());
    }
}
