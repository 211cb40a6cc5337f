//! Several devices: own copies, receipts, what has waited, requests, fetch logins, and gaps in the middle.

use super::*;
use crate::proto::rpc::Request;
use crate::proto::rpc_result::Result as Found;

fn login_of(flight: &[u8]) -> proto::Login {
    let (_, rest) = flight.split_at(8);
    let (length, rest) = rest.split_first_chunk::<2>().expect("a length");
    let body = rest.get(..usize::from(u16::from_be_bytes(*length))).expect("a login");
    proto::Login::decode(body).expect("protobuf")
}

fn come_back(client: &mut Client) -> proto::Login {
    client.handle_disconnected(10);
    client.handle_timeout(60_000_000);
    assert_eq!(events(client).last(), Some(&Event::Connect));
    client.handle_connected(60_000_000);
    let login = login_of(&take(client));
    client.handle_bytes(&welcome(), 60_000_001);
    assert!(matches!(events(client).as_slice(), [Event::LoggedIn(_)]));
    login
}

fn mark(delivered: u64, read: u64) -> proto::Mark {
    let conversation = Bytes::copy_from_slice(&ConversationId::direct(UserId(1), UserId(2)).0);
    proto::Mark { conversation, delivered, read, ..Default::default() }
}

fn answer(id: u64, result: Found) -> Vec<u8> {
    record(RecordType::RpcResult, &proto::RpcResult { id, error: None, result: Some(result) })
}

fn list_devices() -> Request {
    Request::ListDevices(proto::ListDevices {})
}

/// One of a million idle ones: what it holds is what a density run pays for.
#[test]
fn an_idle_client_is_small() {
    assert!(size_of::<Client>() <= 568, "{}", size_of::<Client>());
    let mut client = logged_in();
    assert!(client.transmit().is_empty() && client.link.is_unallocated());
    assert!(client.calls.is_unallocated());
}

#[test]
fn a_login_says_fetch_and_the_receipts_persisted() {
    let credential = Credential::Token("token".into());
    let mut client = Client::new(ClientConfig { credential, fetch: true, receipts: 7, ..Default::default() });
    client.handle_connected(0);
    let login = login_of(&take(&mut client));
    assert_eq!((login.fetch, login.receipts), (true, 7));
    client.handle_bytes(&welcome(), 1);
    let receipt = proto::Receipt { version: 9, marks: vec![mark(4, 3)] };
    client.handle_bytes(&record(RecordType::Receipt, &receipt), 2);
    assert_eq!(events(&mut client).last(), Some(&Event::Receipt(receipt)));
    assert!(take(&mut client).is_empty(), "receipts are not acknowledged");
    assert_eq!(client.receipts(), 7, "told, not persisted");
    client.receipts_persisted(9);
    client.receipts_persisted(8);
    let login = come_back(&mut client);
    assert_eq!((login.fetch, login.receipts), (true, 9));
}

#[test]
fn a_reset_forgets_the_receipts_too() {
    let mut client = logged_in();
    client.receipts_persisted(9);
    client.handle_bytes(&record(RecordType::Gap, &proto::Gap { start: 5, ..Default::default() }), 2);
    assert_eq!(client.receipts(), 9, "expired entries leave receipts alone");
    client.handle_bytes(&record(RecordType::Gap, &proto::Gap { start: 1, reset: true, incarnation: 9 }), 3);
    assert_eq!(come_back(&mut client).receipts, 0);
}

#[test]
fn what_has_waited_is_announced_and_done() {
    let mut client = logged_in();
    let item = proto::ConversationItem { conversation: mark(0, 0).conversation, waiting: 2, ..Default::default() };
    let start = proto::SyncStart { entries: 2, through: 5, conversations: vec![item] };
    let done = proto::SyncDone { inbox_seq: 5 };
    client.handle_bytes(&record(RecordType::SyncStart, &start), 2);
    client.handle_bytes(&deliver(3, [4, 5]), 2);
    client.handle_bytes(&record(RecordType::SyncDone, &done), 2);
    let expected =
        [Event::SyncStart(start), Event::Delivered(entry(4)), Event::Delivered(entry(5)), Event::SyncDone(done)];
    assert_eq!(events(&mut client), expected);
}

#[test]
fn conversations_have_sixteen_bytes() {
    let conversation = Bytes::from_static(b"short");
    let item = proto::ConversationItem { conversation: conversation.clone(), ..Default::default() };
    let page = proto::Conversations { items: vec![item.clone()], next: Bytes::new() };
    let bad_mark = proto::Mark { conversation, ..Default::default() };
    for bad in [
        record(RecordType::Receipt, &proto::Receipt { version: 1, marks: vec![bad_mark] }),
        record(RecordType::SyncStart, &proto::SyncStart { conversations: vec![item], ..Default::default() }),
        answer(1, Found::Conversations(page)),
    ] {
        let mut client = logged_in();
        client.handle_bytes(&bad, 2);
        assert_eq!(events(&mut client), [Event::Violation(Violation::Id { len: 5 }), Event::Disconnect]);
    }
}

#[test]
fn own_messages_are_left_out_and_own_copies_are_entries() {
    let mut client = logged_in();
    client.handle_bytes(&deliver(3, [5]), 2);
    let copy = proto::Entry { sender: 1, sender_device: 2, ..entry(8) };
    let copied = proto::Deliver { previous: 5, entries: vec![copy.clone()] };
    client.handle_bytes(&record(RecordType::Deliver, &copied), 3);
    assert_eq!(events(&mut client), [Event::Delivered(entry(5)), Event::Delivered(copy)]);
    client.handle_bytes(&record(RecordType::Deliver, &copied), 4);
    assert_eq!(events(&mut client), [], "seen like any other");
    client.persisted(InboxSeq(8));
    assert_eq!(take(&mut client), record(RecordType::Ack, &proto::Ack { inbox_seq: 8, ..Default::default() }));
    // The server has moved the device's cursor over what it sent last: 9 and 10.
    assert_eq!(come_back(&mut client).cursor, 8);
    client.handle_bytes(&deliver(10, [11]), 60_000_002);
    assert_eq!(events(&mut client), [Event::Delivered(entry(11))], "nothing is missed");
    client.handle_bytes(&deliver(12, [13]), 60_000_003);
    let hole = Violation::Hole { previous: 12, position: 11 };
    assert_eq!(events(&mut client), [Event::Violation(hole), Event::Disconnect]);
}

#[test]
fn a_gap_moves_the_cursor_and_never_back() {
    let mut client = logged_in();
    client.handle_bytes(&deliver(3, [4, 5, 6]), 2);
    assert_eq!(events(&mut client).len(), 3);
    let gap = |start| record(RecordType::Gap, &proto::Gap { start, ..Default::default() });
    // Below what has come: the chain goes on from there.
    client.handle_bytes(&gap(5), 3);
    assert_eq!(client.cursor(), InboxSeq(4));
    assert!(take(&mut client).is_empty(), "the server knows");
    client.handle_bytes(&deliver(6, [7]), 4);
    // Beyond it.
    client.handle_bytes(&gap(20), 5);
    client.handle_bytes(&deliver(19, [20]), 6);
    client.handle_bytes(&gap(2), 7);
    assert_eq!(client.cursor(), InboxSeq(19));
    let told = events(&mut client);
    assert_eq!(told.iter().filter(|event| matches!(event, Event::Gap(_))).count(), 3);
    assert_eq!(told.iter().filter(|event| matches!(event, Event::Delivered(_))).count(), 2);
    client.persisted(InboxSeq(20));
    assert_eq!(take(&mut client), record(RecordType::Ack, &proto::Ack { inbox_seq: 20, ..Default::default() }));
}

#[test]
fn each_request_is_answered_or_cancelled() {
    let mut client = logged_in();
    let mark_read = proto::MarkRead { conversation: mark(0, 0).conversation, seq: 4 };
    let request = Request::MarkRead(mark_read);
    let ids: Vec<u64> = (0..4).map(|_| client.call(request.clone()).expect("logged in")).collect();
    assert_eq!(ids, [1, 2, 3, 4]);
    let written: Vec<u8> = ids
        .iter()
        .flat_map(|id| record(RecordType::Rpc, &proto::Rpc { id: *id, request: Some(request.clone()) }))
        .collect();
    assert_eq!(take(&mut client), written);
    let marked = Found::MarkedRead(proto::MarkedRead { seq: 4 });
    client.handle_bytes(&answer(2, marked.clone()), 2);
    client.handle_bytes(&answer(2, marked.clone()), 2);
    client.handle_bytes(&answer(99, marked.clone()), 2);
    let refused = proto::Error { code: ErrorCode::ReadBeyondDelivered.number(), ..Default::default() };
    let refusal = proto::RpcResult { id: 1, error: Some(refused), result: None };
    client.handle_bytes(&record(RecordType::RpcResult, &refusal), 3);
    client.handle_bytes(&record(RecordType::RpcResult, &proto::RpcResult { id: 3, ..Default::default() }), 4);
    let expected = [
        Event::Answer { id: 2, result: Ok(marked) },
        Event::Answer { id: 1, result: Err(4011) },
        Event::Answer { id: 3, result: Err(4012) },
    ];
    assert_eq!(events(&mut client), expected);
    client.handle_disconnected(5);
    assert_eq!(client.poll_event(), Some(Event::Cancelled { id: 4 }));
    assert_eq!(client.call(list_devices()), Err(ClientError::NotLoggedIn));
    come_back(&mut client);
    assert!(take(&mut client).is_empty(), "nothing is asked again");
    assert_eq!(client.call(list_devices()), Ok(5), "no number is used again");
}

#[test]
fn what_is_persisted_is_acknowledged_before_it_is_marked_as_read() {
    let mut client = logged_in();
    client.handle_bytes(&deliver(3, [4]), 2);
    client.persisted(InboxSeq(4));
    let request = Request::MarkRead(proto::MarkRead { conversation: mark(0, 0).conversation, seq: 4 });
    let id = client.call(request.clone()).expect("logged in");
    let mut written = record(RecordType::Ack, &proto::Ack { inbox_seq: 4, ..Default::default() });
    written.extend(record(RecordType::Rpc, &proto::Rpc { id, request: Some(request) }));
    assert_eq!(take(&mut client), written);
}

#[test]
fn so_many_requests_and_so_long() {
    let mut client = client();
    assert_eq!(client.call(list_devices()), Err(ClientError::NotLoggedIn));
    client = logged_in();
    for _ in 0..RPCS_IN_FLIGHT_MAX {
        client.call(list_devices()).expect("room");
    }
    assert_eq!(client.call(list_devices()), Err(ClientError::CallsFull));
    client.handle_bytes(&answer(1, Found::Devices(proto::Devices::default())), 2);
    client.call(list_devices()).expect("room again");
    let page = Bytes::from(vec![0; CLIENT_BODY_LEN_MAX]);
    let long = Request::ListConversations(proto::ListConversations { limit: 1, page });
    assert_eq!(client.call(long), Err(ClientError::RequestTooLong));
    client.close();
    assert_eq!(client.call(list_devices()), Err(ClientError::Stopped));
}

#[test]
fn a_server_without_requests_says_so() {
    let mut client = logged_in();
    let ids = [1, 2].map(|_| client.call(list_devices()).expect("logged in"));
    let scope = proto::error::Scope::Request.into();
    let request_id = Bytes::from_static(&[0x30]);
    let error = proto::Error { code: 4003, scope, request_id, ..Default::default() };
    client.handle_bytes(&record(RecordType::Error, &error), 2);
    let told = [Event::ServerError(error), Event::Answer { id: ids[0], result: Err(4003) }];
    assert_eq!(events(&mut client), told);
    assert!(client.is_logged_in());
}

#[test]
fn a_server_that_does_not_answer_is_pinged_then_left() {
    let mut client = logged_in();
    client.handle_timeout(2_000_000);
    client.call(list_devices()).expect("logged in");
    take(&mut client);
    client.handle_timeout(3_000_000);
    let due_us = client.poll_timeout().expect("a deadline");
    assert_eq!(due_us, 17_000_000, "fifteen seconds after the request, however often time passes");
    client.handle_timeout(due_us);
    assert_eq!(take(&mut client), record(RecordType::Ping, &proto::Ping { nonce: 1, ..Default::default() }));
    client.handle_timeout(due_us + 15_000_000);
    assert_eq!(events(&mut client), [Event::Disconnect]);
}

#[test]
fn a_ninth_device_stops_and_a_slow_reader_comes_back() {
    // Before WELCOME or after it.
    for is_welcomed in [false, true] {
        let mut client = client();
        client.handle_connected(0);
        if is_welcomed {
            client.handle_bytes(&welcome(), 1);
        }
        client.handle_bytes(&error(ErrorCode::DevicesFull, 0), 2);
        assert!(events(&mut client).contains(&Event::Stopped { code: 5002 }));
        client.handle_disconnected(3);
        assert_eq!((client.poll_timeout(), client.poll_event()), (None, None));
    }
    let mut client = logged_in();
    client.handle_bytes(&error(ErrorCode::SlowReader, 0), 2);
    assert_eq!(events(&mut client).last(), Some(&Event::Disconnect));
    come_back(&mut client);
}
