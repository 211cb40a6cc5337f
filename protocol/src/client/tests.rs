//! The client alone: what it writes and does, byte by byte and deadline by deadline.

use bytes::Bytes;
use prost::Message;

use super::{Client, ClientConfig, Credential, Event};
use crate::id::{ClientMessageId, ConversationId, InboxSeq, UserId};
use crate::proto;
use crate::record::{Cipher, RecordType};

fn client() -> Client {
    Client::new(ClientConfig {
        user: UserId(1),
        credential: Credential::Token("token".into()),
        cursor: InboxSeq(3),
        keep_alive_s: 60,
        seed: 1,
        ..ClientConfig::default()
    })
}

fn record(kind: RecordType, message: &impl Message) -> Vec<u8> {
    let mut out = Vec::new();
    Cipher::default().seal_message(&mut out, kind, message);
    out
}

fn welcome() -> Vec<u8> {
    let ticket = Bytes::from_static(b"ticket");
    record(RecordType::Welcome, &proto::Welcome { ticket, keep_alive_s: 60, version: 1, ..Default::default() })
}

fn take(client: &mut Client) -> Vec<u8> {
    let bytes = client.transmit().to_vec();
    client.transmitted(bytes.len());
    bytes
}

fn logged_in() -> Client {
    let mut client = client();
    assert_eq!(client.poll_event(), Some(Event::Connect));
    client.handle_connected(0);
    take(&mut client);
    client.handle_bytes(&welcome(), 1);
    assert!(matches!(client.poll_event(), Some(Event::LoggedIn(_))));
    client
}

#[test]
fn login_send_result_deliver_ack() {
    let mut client = client();
    assert_eq!(client.poll_event(), Some(Event::Connect));
    client.handle_connected(0);
    let flight = take(&mut client);
    assert_eq!(flight.get(..8), Some([b'C', b'V', 1, 1, 0, 0, 0, 0].as_slice()));
    assert!(flight.ends_with(&[0, 2, 1, 0]), "READY ends the flight");
    client.handle_bytes(&welcome(), 1);
    assert!(matches!(client.poll_event(), Some(Event::LoggedIn(_))));
    assert_eq!(client.ticket(), Some(&Bytes::from_static(b"ticket")));

    let id = ClientMessageId([7; 16]);
    let conversation = ConversationId::direct(UserId(1), UserId(2));
    client.send(id, conversation, Bytes::from_static(b"hello"), 2).expect("there is room");
    assert_eq!(client.in_flight(), 1);
    assert_eq!(take(&mut client).get(2), Some(&0x10));
    let id_bytes = Bytes::copy_from_slice(&id.0);
    let result = proto::SendResult { client_message_id: id_bytes, conversation_seq: 1, ..Default::default() };
    client.handle_bytes(&record(RecordType::SendResult, &result), 3);
    assert!(matches!(client.poll_event(), Some(Event::Sent(accepted)) if accepted.client_message_id == id));
    assert_eq!(client.in_flight(), 0);

    let entry = |inbox_seq| proto::Entry {
        inbox_seq,
        conversation: Bytes::copy_from_slice(&conversation.0),
        conversation_seq: inbox_seq,
        ..Default::default()
    };
    let deliver = proto::Deliver { previous: 3, entries: vec![entry(4), entry(5)] };
    client.handle_bytes(&record(RecordType::Deliver, &deliver), 4);
    assert_eq!(client.poll_event(), Some(Event::Delivered(entry(4))));
    assert_eq!(client.poll_event(), Some(Event::Delivered(entry(5))));
    assert_eq!(client.poll_event(), None);
    client.persisted(InboxSeq(4));
    client.persisted(InboxSeq(5));
    assert_eq!(take(&mut client), record(RecordType::Ack, &proto::Ack { inbox_seq: 5, ..Default::default() }));
    assert!(take(&mut client).is_empty(), "one ACK for all");
}

#[test]
fn keeps_alive_and_gives_up() {
    let mut client = logged_in();
    let due = client.poll_timeout().expect("a keep-alive");
    assert!(due <= 60_000_001);
    client.handle_timeout(due);
    assert_eq!(take(&mut client), record(RecordType::Ping, &proto::Ping { nonce: 1 }));
    let given_up = client.poll_timeout().expect("a deadline for the PONG");
    client.handle_timeout(given_up - 1);
    assert_eq!(client.poll_event(), None);
    client.handle_timeout(given_up);
    assert_eq!(client.poll_event(), Some(Event::Disconnect));
    client.handle_disconnected(given_up);
    let back = client.poll_timeout().unwrap_or(given_up);
    client.handle_timeout(back);
    assert_eq!(client.poll_event(), Some(Event::Connect));
}
