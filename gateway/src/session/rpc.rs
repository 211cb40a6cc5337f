//! Requests and their answers: what a client asks, checked, and what the hub found, as it stands on the wire.

use bytes::Bytes;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId};
use culver_protocol::limits::{CONVERSATIONS_PAGE_MAX, DEVICE_NAME_LEN_MAX, RPCS_IN_FLIGHT_MAX};
use culver_protocol::proto;
use culver_protocol::proto::error::Scope;
use culver_protocol::proto::rpc::Request as Asked;
use culver_protocol::proto::rpc_result::Result as Found;
use culver_protocol::record::RecordType;
use culver_storage::reader::ConversationView;
use prost::Message;

use super::records::Records;
use super::{Context, Session, error_message};
use crate::hub::command::{Command, Request};
use crate::hub::effect::{Answer, DeviceInfo};

const _: () = assert!(RPCS_IN_FLIGHT_MAX <= u8::MAX as usize);

impl Session {
    /// A request: passed on to the user's hub, behind what the client has acknowledged before it.
    pub(super) fn handle_rpc(&mut self, body: &[u8], context: &mut Context<'_>) -> Result<(), ErrorCode> {
        let proto::Rpc { id, request } = proto::Rpc::decode(body).map_err(|_| ErrorCode::BadProtobuf)?;
        let request = match request.ok_or(ErrorCode::RequestInvalid).and_then(check) {
            Ok(request) => request,
            Err(code) => {
                self.write_refusal(id, code, &mut context.out);
                return Ok(());
            }
        };
        if usize::from(self.rpcs) >= RPCS_IN_FLIGHT_MAX {
            self.write_refusal(id, ErrorCode::Busy, &mut context.out);
            return Ok(());
        }
        self.rpcs += 1;
        let hub = context.topology.hub_of_user(self.user);
        if self.ack_pending {
            let ack = self.take_pending(context.address, true).expect("an acknowledgement waits");
            self.post(hub, ack, context);
        }
        let device = self.device();
        self.post(hub, Command::Rpc { session: context.address, device, id, request }, context);
        Ok(())
    }

    /// Answers a request that was passed on.
    pub fn write_answer(&mut self, id: u64, result: Result<Answer, ErrorCode>, out: &mut Records<'_>) {
        self.rpcs = self.rpcs.saturating_sub(1);
        match result {
            Ok(answer) => {
                let result = proto::RpcResult { id, error: None, result: Some(found(answer)) };
                out.seal_message(RecordType::RpcResult, &result);
            }
            Err(code) => self.write_refusal(id, code, out),
        }
    }

    fn write_refusal(&mut self, id: u64, code: ErrorCode, out: &mut Records<'_>) {
        let error = Some(error_message(code, Scope::Request, &[]));
        out.seal_message(RecordType::RpcResult, &proto::RpcResult { id, error, result: None });
    }
}

/// What is asked, if every field is as it should be.
fn check(asked: Asked) -> Result<Request, ErrorCode> {
    Ok(match asked {
        Asked::ListConversations(proto::ListConversations { limit, page }) => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(CONVERSATIONS_PAGE_MAX);
            let limit = if limit == 0 { CONVERSATIONS_PAGE_MAX } else { limit };
            let limit = u16::try_from(limit).expect("a page is short");
            Request::Conversations { limit, page: page.to_vec() }
        }
        Asked::MarkRead(proto::MarkRead { conversation, seq }) => {
            let conversation = ConversationId::try_from(&conversation[..]).map_err(|_| ErrorCode::RequestInvalid)?;
            Request::MarkRead { conversation, seq: ConversationSeq(seq) }
        }
        Asked::ListDevices(proto::ListDevices {}) => Request::Devices,
        Asked::SetReadReceipts(proto::SetReadReceipts { on }) => Request::SetReadReceipts { on },
        Asked::RemoveDevice(proto::RemoveDevice { device }) => Request::RemoveDevice { device: number(device)? },
        Asked::NameDevice(proto::NameDevice { device, name }) => {
            // Before it waits anywhere.
            if name.len() > DEVICE_NAME_LEN_MAX {
                return Err(ErrorCode::NameTooLong);
            }
            Request::NameDevice { device: number(device)?, name }
        }
    })
}

/// The number of a device.
fn number(device: u32) -> Result<DeviceId, ErrorCode> {
    u16::try_from(device).map(DeviceId).map_err(|_| ErrorCode::RequestInvalid)
}

fn found(answer: Answer) -> Found {
    match answer {
        Answer::Conversations { items, next } => {
            let items = items.into_iter().map(conversation_item).collect();
            Found::Conversations(proto::Conversations { items, next: next.into() })
        }
        Answer::MarkedRead { seq } => Found::MarkedRead(proto::MarkedRead { seq: seq.0 }),
        Answer::Devices(devices) => {
            Found::Devices(proto::Devices { devices: devices.into_iter().map(device).collect() })
        }
        Answer::ReadReceiptsSet { on } => Found::ReadReceiptsSet(proto::ReadReceiptsSet { on }),
        Answer::DeviceRemoved => Found::DeviceRemoved(proto::DeviceRemoved {}),
        Answer::DeviceNamed => Found::DeviceNamed(proto::DeviceNamed {}),
    }
}

fn device(found: DeviceInfo) -> proto::Device {
    let DeviceInfo { device, last_seen_ms, online, waiting, name, registered } = found;
    proto::Device { device: device.0.into(), last_seen_ms, online, waiting, name, registered }
}

/// A conversation as it stands in lists.
pub(super) fn conversation_item(view: ConversationView) -> proto::ConversationItem {
    let last = view.last.map(|entry| proto::Entry {
        inbox_seq: entry.inbox_seq.0,
        conversation: Bytes::copy_from_slice(&entry.conversation.0),
        conversation_seq: entry.conversation_seq.0,
        message_id: entry.message_id.0,
        server_time_ms: entry.server_time_ms,
        sender: entry.sender.0,
        sender_device: entry.sender_device.0.into(),
        payload: entry.payload,
    });
    proto::ConversationItem {
        conversation: Bytes::copy_from_slice(&view.conversation.0),
        last_seq: view.last_seq.0,
        unread: view.unread,
        waiting: view.waiting,
        read: view.read.0,
        last,
    }
}
