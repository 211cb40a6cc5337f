//! What each record says, as the vectors write it down.

use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::message::{Accepted, EntryView, MarkView, SendView, decode_ack, encode_deliver, encode_receipt};
use culver_protocol::proto;
use culver_protocol::record::RecordType;
use prost::Message;
use serde_json::{Value, json};

/// What a record says, and the bytes that our encoders give for it.
pub(crate) fn meaning(kind: RecordType, body: &[u8]) -> (Value, Vec<u8>) {
    match kind {
        RecordType::Ready | RecordType::Rekey => read(body, |_: &proto::Ready| json!({})),
        RecordType::Handshake => (json!({ "message": hex::encode(body) }), body.to_vec()),
        RecordType::Welcome => read(body, |welcome: &proto::Welcome| {
            json!({
                "ticket": hex::encode(&welcome.ticket),
                "ticket_expires_ms": welcome.ticket_expires_ms.to_string(),
                "incarnation": welcome.incarnation.to_string(),
                "server_time_ms": welcome.server_time_ms.to_string(),
                "keep_alive_s": welcome.keep_alive_s,
                "credit_entries": welcome.credit_entries,
                "credit_bytes": welcome.credit_bytes,
                "version": welcome.version,
            })
        }),
        RecordType::Ping => read(body, |ping: &proto::Ping| json!({ "nonce": ping.nonce.to_string() })),
        RecordType::Pong => read(body, |pong: &proto::Pong| json!({ "nonce": pong.nonce.to_string() })),
        RecordType::Goaway => read(body, |goaway: &proto::Goaway| {
            json!({
                "reason": goaway.reason().as_str_name(),
                "reconnect_min_ms": goaway.reconnect_min_ms,
                "reconnect_max_ms": goaway.reconnect_max_ms,
                "alternates": goaway.alternates,
            })
        }),
        RecordType::Error => read(body, error_fields),
        RecordType::Send => {
            let view = SendView::decode(body).expect("the vector is a SEND");
            let mut encoded = Vec::new();
            view.encode(&mut encoded);
            let fields = json!({
                "client_message_id": hex::encode(view.client_message_id),
                "conversation": hex::encode(view.conversation),
                "payload": hex::encode(view.payload),
            });
            (fields, encoded)
        }
        RecordType::SendResult => send_result_meaning(body),
        RecordType::Deliver => deliver_meaning(body),
        RecordType::Ack => {
            let (through, credit_entries, credit_bytes) = decode_ack(body).expect("the vector is an ACK");
            let fields = json!({
                "inbox_seq": through.0.to_string(),
                "credit_entries": credit_entries,
                "credit_bytes": credit_bytes,
            });
            (fields, proto::Ack { inbox_seq: through.0, credit_entries, credit_bytes }.encode_to_vec())
        }
        RecordType::Receipt => receipt_meaning(body),
        RecordType::SyncStart => read(body, |start: &proto::SyncStart| {
            json!({
                "entries": start.entries.to_string(),
                "through": start.through.to_string(),
                "conversations": start.conversations.iter().map(item_fields).collect::<Vec<_>>(),
            })
        }),
        RecordType::SyncDone => read(body, |done: &proto::SyncDone| json!({ "inbox_seq": done.inbox_seq.to_string() })),
        RecordType::Rpc => read(body, rpc_fields),
        RecordType::RpcResult => read(body, rpc_result_fields),
        RecordType::Gap => read(body, |gap: &proto::Gap| {
            json!({
                "start": gap.start.to_string(),
                "reset": gap.reset,
                "incarnation": gap.incarnation.to_string(),
            })
        }),
    }
}

fn error_fields(error: &proto::Error) -> Value {
    json!({
        "code": error.code,
        "retry_after_ms": error.retry_after_ms,
        "scope": error.scope().as_str_name(),
        "request_id": hex::encode(&error.request_id),
        "detail": error.detail,
    })
}

/// Accepted ones through the encoder of the hot path, rejections through prost.
fn send_result_meaning(body: &[u8]) -> (Value, Vec<u8>) {
    let result = proto::SendResult::decode(body).expect("the vector is protobuf");
    let fields = json!({
        "client_message_id": hex::encode(&result.client_message_id),
        "conversation_seq": result.conversation_seq.to_string(),
        "message_id": result.message_id.to_string(),
        "server_time_ms": result.server_time_ms.to_string(),
        "inbox_seq": result.inbox_seq.to_string(),
        "duplicate": result.duplicate,
        "error": result.error.as_ref().map(error_fields),
    });
    if result.error.is_some() {
        return (fields, result.encode_to_vec());
    }
    let mut encoded = Vec::new();
    let accepted = Accepted {
        client_message_id: ClientMessageId::try_from(result.client_message_id.as_ref()).expect("16 bytes"),
        conversation_seq: ConversationSeq(result.conversation_seq),
        message_id: MessageId(result.message_id),
        server_time_ms: result.server_time_ms,
        inbox_seq: InboxSeq(result.inbox_seq),
        duplicate: result.duplicate,
    };
    accepted.encode(&mut encoded);
    (fields, encoded)
}

fn deliver_meaning(body: &[u8]) -> (Value, Vec<u8>) {
    let deliver = proto::Deliver::decode(body).expect("the vector is protobuf");
    let entries: Vec<Value> = deliver.entries.iter().map(entry_fields).collect();
    let mut encoded = Vec::new();
    let views = deliver.entries.iter().map(|entry| EntryView {
        inbox_seq: InboxSeq(entry.inbox_seq),
        conversation: ConversationId::try_from(entry.conversation.as_ref()).expect("16 bytes"),
        conversation_seq: ConversationSeq(entry.conversation_seq),
        message_id: MessageId(entry.message_id),
        server_time_ms: entry.server_time_ms,
        sender: UserId(entry.sender),
        sender_device: DeviceId(u16::try_from(entry.sender_device).expect("a device")),
        payload: &entry.payload,
    });
    encode_deliver(&mut encoded, InboxSeq(deliver.previous), views);
    (json!({ "previous": deliver.previous.to_string(), "entries": entries }), encoded)
}

fn entry_fields(entry: &proto::Entry) -> Value {
    json!({
        "inbox_seq": entry.inbox_seq.to_string(),
        "conversation": hex::encode(&entry.conversation),
        "conversation_seq": entry.conversation_seq.to_string(),
        "message_id": entry.message_id.to_string(),
        "server_time_ms": entry.server_time_ms.to_string(),
        "sender": entry.sender.to_string(),
        "sender_device": entry.sender_device,
        "payload": hex::encode(&entry.payload),
    })
}

fn item_fields(item: &proto::ConversationItem) -> Value {
    json!({
        "conversation": hex::encode(&item.conversation),
        "last_seq": item.last_seq.to_string(),
        "unread": item.unread.to_string(),
        "waiting": item.waiting.to_string(),
        "read": item.read.to_string(),
        "last": item.last.as_ref().map(entry_fields),
    })
}

/// Through the encoder of the hot path.
fn receipt_meaning(body: &[u8]) -> (Value, Vec<u8>) {
    let receipt = proto::Receipt::decode(body).expect("the vector is protobuf");
    let fields = |mark: &proto::Mark| {
        json!({
            "conversation": hex::encode(&mark.conversation),
            "delivered": mark.delivered.to_string(),
            "read": mark.read.to_string(),
            "expired_after": mark.expired_after.to_string(),
            "expired_through": mark.expired_through.to_string(),
            "own_read": mark.own_read.to_string(),
        })
    };
    let marks: Vec<Value> = receipt.marks.iter().map(fields).collect();
    let views = receipt.marks.iter().map(|mark| MarkView {
        conversation: ConversationId::try_from(mark.conversation.as_ref()).expect("16 bytes"),
        delivered: ConversationSeq(mark.delivered),
        read: ConversationSeq(mark.read),
        expired_after: ConversationSeq(mark.expired_after),
        expired_through: ConversationSeq(mark.expired_through),
        own_read: ConversationSeq(mark.own_read),
    });
    let mut encoded = Vec::new();
    encode_receipt(&mut encoded, receipt.version, views);
    (json!({ "version": receipt.version.to_string(), "marks": marks }), encoded)
}

fn read<M: Message + Default>(body: &[u8], fields: impl Fn(&M) -> Value) -> (Value, Vec<u8>) {
    let message = M::decode(body).expect("the vector is protobuf");
    (fields(&message), message.encode_to_vec())
}

fn rpc_fields(rpc: &proto::Rpc) -> Value {
    use proto::rpc::Request;
    let id = rpc.id.to_string();
    match &rpc.request {
        None => json!({ "id": id }),
        Some(Request::ListConversations(list)) => {
            json!({ "id": id, "list_conversations": { "limit": list.limit, "page": hex::encode(&list.page) } })
        }
        Some(Request::MarkRead(mark)) => {
            let conversation = hex::encode(&mark.conversation);
            json!({ "id": id, "mark_read": { "conversation": conversation, "seq": mark.seq.to_string() } })
        }
        Some(Request::ListDevices(proto::ListDevices {})) => json!({ "id": id, "list_devices": {} }),
        Some(Request::SetReadReceipts(set)) => json!({ "id": id, "set_read_receipts": { "on": set.on } }),
        Some(Request::RemoveDevice(remove)) => json!({ "id": id, "remove_device": { "device": remove.device } }),
        Some(Request::NameDevice(name)) => {
            json!({ "id": id, "name_device": { "device": name.device, "name": name.name } })
        }
    }
}

fn rpc_result_fields(answer: &proto::RpcResult) -> Value {
    use proto::rpc_result::Result;
    let mut fields = json!({ "id": answer.id.to_string(), "error": answer.error.as_ref().map(error_fields) });
    let result = match &answer.result {
        None => None,
        Some(Result::Conversations(page)) => {
            let items: Vec<Value> = page.items.iter().map(item_fields).collect();
            Some(("conversations", json!({ "items": items, "next": hex::encode(&page.next) })))
        }
        Some(Result::MarkedRead(marked)) => Some(("marked_read", json!({ "seq": marked.seq.to_string() }))),
        Some(Result::Devices(list)) => {
            let device = |device: &proto::Device| {
                json!({
                    "device": device.device,
                    "last_seen_ms": device.last_seen_ms.to_string(),
                    "online": device.online,
                    "waiting": device.waiting.to_string(),
                    "name": device.name,
                    "registered": device.registered,
                })
            };
            Some(("devices", list.devices.iter().map(device).collect()))
        }
        Some(Result::ReadReceiptsSet(set)) => Some(("read_receipts_set", json!({ "on": set.on }))),
        Some(Result::DeviceRemoved(proto::DeviceRemoved {})) => Some(("device_removed", json!({}))),
        Some(Result::DeviceNamed(proto::DeviceNamed {})) => Some(("device_named", json!({}))),
    };
    if let (Some(object), Some((name, value))) = (fields.as_object_mut(), result) {
        object.insert(name.into(), value);
    }
    fields
}
