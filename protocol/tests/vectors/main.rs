//! The fixed byte vectors: hex in, meaning out, and the same hex from the meaning where the form is canonical.
//!
//! The `*.json` beside this file are written from the schema and docs/protocol.md, not by this code: by hand, and
//! `handshake.json` by the client in `protocol/tests/peer`. In them 64-bit numbers are decimal strings and bytes are hex. A field that is absent from `canonical` is `true`: our encoders give these very bytes.

mod handshakes;
mod meaning;

use bytes::Bytes;
use culver_protocol::client::{Client, ClientConfig, Credential, Event};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationId, DeviceId, InboxSeq, UserId};
use culver_protocol::limits::{BODY_LEN_MAX, CLIENT_BODY_LEN_MAX, HANDSHAKE_LEN_MAX, HEADER_LEN};
use culver_protocol::message::{SendView, decode_ack};
use culver_protocol::preamble::Preamble;
use culver_protocol::proto;
use culver_protocol::record::{Cipher, FrameError, Record, RecordType, may_be_ignored, split};
use prost::Message;
use serde_json::{Value, json};

use meaning::meaning;

#[test]
fn preambles() {
    for vector in read(include_str!("preamble.json")) {
        let bytes = hex_of(&vector).try_into().expect("a preamble has 8 bytes");
        let preamble = match Preamble::decode(bytes) {
            Ok(preamble) => preamble,
            Err(error) => {
                assert_eq!(vector.get("error"), Some(&json!(format!("{error:?}"))), "{vector}");
                continue;
            }
        };
        assert_eq!(preamble.encode(), bytes, "{vector}");
        let fields = json!([
            preamble.version_min,
            preamble.version_max,
            preamble.handshake,
            preamble.suite,
            preamble.server_key
        ]);
        let expected = ["version_min", "version_max", "handshake", "suite", "server_key"].map(|name| vector.get(name));
        assert_eq!(fields, json!(expected), "{vector}");
        match preamble.agree_version() {
            Ok(version) => assert_eq!(vector.get("agreed"), Some(&json!(version)), "{vector}"),
            Err(error) => assert_eq!(vector.get("agreed_error"), Some(&json!(format!("{error:?}"))), "{vector}"),
        }
    }
}

#[test]
fn logins() {
    for vector in read(include_str!("login.json")) {
        let bytes = hex_of(&vector);
        let login = match split(&bytes, 1, HANDSHAKE_LEN_MAX) {
            Ok(None) => {
                assert_eq!(vector.get("incomplete"), Some(&json!(true)), "{vector}");
                continue;
            }
            Ok(Some(range)) => {
                assert_eq!(range.end, bytes.len(), "{vector}");
                bytes.get(range).and_then(|body| proto::Login::decode(body).ok())
            }
            Err(_) => None,
        };
        let Some(login) = login else {
            assert_eq!(vector.get("error"), Some(&json!("BadHandshake")), "{vector}");
            continue;
        };
        let mut fields = json!({
            "cursor": login.cursor.to_string(),
            "incarnation": login.incarnation.to_string(),
            "keep_alive_s": login.keep_alive_s,
            "credit_entries": login.credit_entries,
            "credit_bytes": login.credit_bytes,
            "client": login.client,
            "fetch": login.fetch,
            "receipts": login.receipts.to_string(),
            "user": login.user.to_string(),
            "device": login.device,
        });
        let credential = match login.credential.as_ref() {
            Some(proto::login::Credential::Token(token)) => Some(("token", token.clone())),
            Some(proto::login::Credential::Ticket(ticket)) => Some(("ticket", hex::encode(ticket))),
            None => None,
        };
        if let Some((name, value)) = credential {
            fields.as_object_mut().expect("an object").insert(name.into(), value.into());
        }
        assert_eq!(vector.get("fields"), Some(&fields));
        if is_canonical(&vector) {
            assert_eq!(login.encode_to_vec(), bytes.get(2..).expect("after the length"), "{vector}");
        }
    }
}

#[test]
fn records() {
    let mut kinds_seen = Vec::new();
    for vector in read(include_str!("records.json")) {
        let bytes = hex_of(&vector);
        let is_client = vector.get("from") == Some(&json!("client"));
        let len_max = if is_client { CLIENT_BODY_LEN_MAX } else { BODY_LEN_MAX };
        let range = split(&bytes, HEADER_LEN, len_max).expect("well framed").expect("complete");
        assert_eq!(range.end, bytes.len(), "{vector}");
        let record = Record::parse(bytes.get(range).expect("split found it")).expect("type and flags");
        let kind = RecordType::from_number(record.kind).expect("a known type");
        kinds_seen.push(kind);
        assert_eq!(vector.get("type"), Some(&json!(type_name(kind))), "{vector}");
        let (fields, encoded) = meaning(kind, record.body);
        assert_eq!(vector.get("fields"), Some(&fields), "{vector}");
        if is_canonical(&vector) {
            let mut sealed = Vec::new();
            Cipher::default().seal(&mut sealed, kind, |out| out.extend_from_slice(&encoded));
            assert_eq!(hex::encode(sealed), hex::encode(&bytes), "{vector}");
        }
    }
    for kind in RecordType::ALL {
        assert!(kinds_seen.contains(&kind), "no vector for {kind:?}");
    }
}

#[test]
fn mistakes_of_a_client() {
    for vector in read(include_str!("errors.json")) {
        let outcome = judge(&hex_of(&vector)).unwrap_or_else(|error| format!("{error:?}"));
        assert_eq!(vector.get("outcome"), Some(&json!(outcome)), "{vector}");
    }
}

/// The client plays its part of the recorded session, byte for byte.
#[test]
fn session() {
    let mut client = Client::new(ClientConfig {
        user: UserId(1),
        device: DeviceId(1),
        credential: Credential::Token("TOKEN".into()),
        keep_alive_s: 60,
        name: "example/1".into(),
        ..ClientConfig::default()
    });
    let conversation = ConversationId::direct(UserId(1), UserId(2));
    let id = |first: u8| ClientMessageId(std::array::from_fn(|index| first + u8::try_from(index).expect("under 16")));
    let mut now_us = 0;
    let mut written = Vec::new();
    assert_eq!(client.poll_event(), Some(Event::Connect));
    client.handle_connected(now_us);
    for step in read(include_str!("session.json")) {
        let what = step.get("what").and_then(Value::as_str).expect("each step says what it is");
        let bytes = hex_of(&step);
        match step.get("from").and_then(Value::as_str) {
            Some("client") => {
                if what.starts_with("SEND: id 0001") {
                    client.send(id(0), conversation, Bytes::from_static(b"hi"), now_us).expect("room");
                } else if what.starts_with("SEND: id 1011") {
                    client.send(id(16), conversation, Bytes::from_static(b"again"), now_us).expect("room");
                } else if what.starts_with("PING") {
                    now_us = client.poll_timeout().expect("a keep-alive");
                    client.handle_timeout(now_us);
                } else if what.starts_with("ACK") {
                    client.persisted(InboxSeq(1));
                } else if what.starts_with("RPC") {
                    let mark = proto::MarkRead { conversation: Bytes::copy_from_slice(&conversation.0), seq: 1 };
                    client.call(proto::rpc::Request::MarkRead(mark)).expect("logged in");
                }
                let outgoing = client.transmit().to_vec();
                client.transmitted(outgoing.len());
                written.extend_from_slice(&outgoing);
                assert!(written.starts_with(&bytes), "{what}: {}", hex::encode(&written));
                written.drain(..bytes.len());
            }
            Some("server") => client.handle_bytes(&bytes, now_us),
            Some("both") => {
                client.receipts_persisted(5);
                client.handle_disconnected(now_us);
                now_us = client.poll_timeout().unwrap_or(now_us);
                client.handle_timeout(now_us);
                client.handle_connected(now_us);
            }
            other => panic!("a step from {other:?}"),
        }
    }
    assert!(written.is_empty(), "the client wrote more than the session has");
    let events: Vec<Event> = std::iter::from_fn(|| client.poll_event()).collect();
    let sent: Vec<(u64, bool)> = events
        .iter()
        .filter_map(|event| match event {
            Event::Sent(accepted) => Some((accepted.conversation_seq.0, accepted.duplicate)),
            _ => None,
        })
        .collect();
    assert_eq!(sent, [(2, false), (3, true)]);
    for text in ["hello", "bye"] {
        assert!(events.iter().any(|event| matches!(event, Event::Delivered(entry) if entry.payload == text)));
    }
    let marked = Ok(proto::rpc_result::Result::MarkedRead(proto::MarkedRead { seq: 1 }));
    assert!(events.contains(&Event::Answer { id: 1, result: marked }));
    assert!(events.iter().any(|event| matches!(event, Event::Receipt(receipt) if receipt.version == 5)));
    assert!(matches!(events.last(), Some(Event::Goaway(_))));
}

/// What a server makes of the first record that a logged-in client sends.
fn judge(bytes: &[u8]) -> Result<String, ErrorCode> {
    let range = split(bytes, HEADER_LEN, CLIENT_BODY_LEN_MAX).map_err(|error| match error {
        FrameError::TooShort(_) => ErrorCode::RecordEmpty,
        FrameError::TooLong(_) => ErrorCode::RecordTooLong,
        FrameError::Forged => unreachable!("these are plaintext"),
    })?;
    let Some(range) = range else {
        return Ok("incomplete".into());
    };
    let record = Record::parse(bytes.get(range).expect("split found it")).map_err(|_| ErrorCode::RecordEmpty)?;
    let Some(kind) = RecordType::from_number(record.kind) else {
        return if may_be_ignored(record.kind) { Ok("ignored".into()) } else { Err(ErrorCode::TypeUnknown) };
    };
    let bad = |_| ErrorCode::BadProtobuf;
    match kind {
        RecordType::Ping => drop(proto::Ping::decode(record.body).map_err(bad)?),
        RecordType::Pong => drop(proto::Pong::decode(record.body).map_err(bad)?),
        RecordType::Ack => drop(decode_ack(record.body).map_err(bad)?),
        RecordType::Send => {
            let send = SendView::decode(record.body).map_err(bad)?;
            ClientMessageId::try_from(send.client_message_id).map_err(|_| ErrorCode::ClientMessageIdInvalid)?;
            ConversationId::try_from(send.conversation).map_err(|_| ErrorCode::ConversationInvalid)?;
        }
        RecordType::Rpc => {
            let rpc = proto::Rpc::decode(record.body).map_err(bad)?;
            let is_good = match rpc.request.ok_or(ErrorCode::RequestInvalid)? {
                proto::rpc::Request::MarkRead(mark) => ConversationId::try_from(mark.conversation.as_ref()).is_ok(),
                _ => true,
            };
            return if is_good { Ok("accepted".into()) } else { Err(ErrorCode::RequestInvalid) };
        }
        _ => return Err(ErrorCode::OutOfState),
    }
    Ok("accepted".into())
}

fn read(file: &str) -> Vec<Value> {
    let vectors: Vec<Value> = serde_json::from_str(file).expect("the vectors are JSON");
    assert!(!vectors.is_empty());
    vectors
}

fn hex_of(vector: &Value) -> Vec<u8> {
    let text = vector.get("hex").and_then(Value::as_str).expect("each vector has hex");
    hex::decode(text).expect("it is hex")
}

fn is_canonical(vector: &Value) -> bool {
    vector.get("canonical") != Some(&json!(false))
}

/// The name of the documentation: `SendResult` is `SEND_RESULT`.
fn type_name(kind: RecordType) -> String {
    let mut name = String::new();
    for letter in format!("{kind:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
