//! The client alone: what it writes and does, byte by byte and deadline by deadline.

mod devices;
mod encrypted;
mod keep_alives;
mod peer;

use bytes::Bytes;
use prost::Message;

use super::{Client, ClientConfig, ClientError, Credential, Event, SavedTicket, Violation};
use crate::error::ErrorCode;
use crate::id::{ClientMessageId, ConversationId, InboxSeq, Incarnation, UserId};
use crate::limits::{CLIENT_BODY_LEN_MAX, LOGIN_RETRY_MS_MAX, LOGIN_RETRY_MS_MIN, RPCS_IN_FLIGHT_MAX};
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

fn connected() -> Client {
    let mut client = client();
    assert_eq!(client.poll_event(), Some(Event::Connect));
    client.handle_connected(0);
    take(&mut client);
    client
}

fn logged_in() -> Client {
    let mut client = connected();
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
    assert_eq!(client.ticket(), Some(&SavedTicket::from(Bytes::from_static(b"ticket"))));

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
    assert_eq!(take(&mut client), record(RecordType::Ping, &proto::Ping { nonce: 1, ..Default::default() }));
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

fn entry(inbox_seq: u64) -> proto::Entry {
    let conversation = Bytes::copy_from_slice(&ConversationId::direct(UserId(1), UserId(2)).0);
    proto::Entry { inbox_seq, conversation, conversation_seq: inbox_seq, ..Default::default() }
}

fn deliver(previous: u64, seqs: impl IntoIterator<Item = u64>) -> Vec<u8> {
    record(RecordType::Deliver, &proto::Deliver { previous, entries: seqs.into_iter().map(entry).collect() })
}

fn events(client: &mut Client) -> Vec<Event> {
    std::iter::from_fn(|| client.poll_event()).collect()
}

fn error(code: ErrorCode, retry_after_ms: u32) -> Vec<u8> {
    record(RecordType::Error, &proto::Error { code: code.number(), retry_after_ms, ..Default::default() })
}

#[test]
fn a_hole_in_delivery_is_a_violation() {
    let mut client = logged_in();
    client.handle_bytes(&deliver(3, [4, 6]), 2);
    assert_eq!(events(&mut client).len(), 2, "what a DELIVER leaves out was left out on purpose");
    client.handle_bytes(&deliver(7, [8]), 3);
    let hole = Violation::Hole { previous: 7, position: 6 };
    assert_eq!(events(&mut client), [Event::Violation(hole), Event::Disconnect]);
    assert!(client.transmit().is_empty());
    client.handle_bytes(&deliver(6, [7]), 4);
    assert_eq!(events(&mut client), [], "nothing is read any more");
}

#[test]
fn entries_come_in_order_or_not_at_all() {
    let mut client = logged_in();
    client.handle_bytes(&deliver(3, [5, 5]), 2);
    let order = Violation::Order { inbox_seq: 5, previous: 5 };
    assert_eq!(events(&mut client), [Event::Violation(order), Event::Disconnect]);
}

#[test]
fn delivery_starts_where_the_device_has_acknowledged() {
    let mut client = logged_in();
    client.handle_bytes(&deliver(10, [11]), 2);
    assert_eq!(events(&mut client), [Event::Delivered(entry(11))]);
    assert_eq!(client.cursor(), InboxSeq(10));
    let config = ClientConfig { credential: Credential::Token("token".into()), ..ClientConfig::default() };
    let mut client = Client::new(config);
    client.handle_connected(0);
    client.handle_bytes(&welcome(), 1);
    client.handle_bytes(&deliver(10, [11]), 2);
    assert_eq!(events(&mut client).get(2..), Some([Event::Delivered(entry(11))].as_slice()), "nothing was expected");
}

#[test]
fn a_reset_forgets_cursor_and_ids() {
    let mut client = logged_in();
    client.handle_bytes(&deliver(3, [4, 5]), 2);
    client.persisted(InboxSeq(5));
    let gap = proto::Gap { start: 1, reset: true, incarnation: 9 };
    client.handle_bytes(&record(RecordType::Gap, &gap), 3);
    client.handle_bytes(&deliver(0, [1, 2, 3, 4]), 4);
    let delivered = events(&mut client).iter().filter(|event| matches!(event, Event::Delivered(_))).count();
    assert_eq!(delivered, 2 + 4, "the same numbers are other messages now");
    assert_eq!((client.cursor(), client.incarnation()), (InboxSeq(0), Incarnation(9)));
    client.persisted(InboxSeq(99));
    assert_eq!(client.cursor(), InboxSeq(4), "what never came cannot be persisted");
}

#[test]
fn another_incarnation_counts_only_with_its_gap() {
    let mut client =
        Client::new(ClientConfig { cursor: InboxSeq(3), incarnation: Incarnation(7), ..Default::default() });
    client.handle_connected(0);
    let other = proto::Welcome { version: 1, keep_alive_s: 60, incarnation: 8, ..Default::default() };
    client.handle_bytes(&record(RecordType::Welcome, &other), 1);
    assert_eq!(client.incarnation(), Incarnation(7));
    client.handle_bytes(&record(RecordType::Gap, &proto::Gap { start: 1, reset: true, incarnation: 8 }), 2);
    assert_eq!((client.cursor(), client.incarnation()), (InboxSeq(0), Incarnation(8)));
}

#[test]
fn being_replaced_is_the_end() {
    let mut client = logged_in();
    client.handle_bytes(&error(ErrorCode::Replaced, 0), 2);
    let events = events(&mut client);
    assert!(events.contains(&Event::Stopped { code: 5001 }) && events.contains(&Event::Disconnect));
    client.handle_disconnected(3);
    assert_eq!((client.poll_timeout(), client.poll_event()), (None, None));
    let conversation = ConversationId::direct(UserId(1), UserId(2));
    let refused = client.send(ClientMessageId([1; 16]), conversation, Bytes::new(), 4);
    assert_eq!(refused, Err(ClientError::Stopped));
}

#[test]
fn a_refused_ticket_falls_back_to_the_token_and_a_refused_token_to_the_application() {
    let mut client = logged_in();
    client.handle_disconnected(10);
    client.handle_timeout(10_000_000);
    assert_eq!(client.poll_event(), Some(Event::Connect));
    client.handle_connected(10_000_001);
    assert!(take(&mut client).windows(6).any(|window| window == b"ticket"));
    client.handle_bytes(&error(ErrorCode::TicketStale, 0), 10_000_002);
    assert_eq!(client.ticket(), None);
    client.handle_disconnected(10_000_003);
    // The Disconnect is not asked for any more: the connection is closed.
    let after = events(&mut client);
    assert!(matches!(after.as_slice(), [Event::ServerError(_), Event::Connect]), "{after:?}");
    client.handle_connected(10_000_004);
    assert!(take(&mut client).windows(5).any(|window| window == b"token"));
    client.handle_bytes(&error(ErrorCode::TokenExpired, 0), 10_000_005);
    assert!(events(&mut client).contains(&Event::CredentialNeeded { code: 3001 }));
    client.handle_disconnected(10_000_006);
    assert_eq!((client.poll_timeout(), client.poll_event()), (None, None));
    client.set_credential(Credential::Token("newer".into()));
    assert_eq!(client.poll_event(), Some(Event::Connect));
    client.handle_connected(10_000_007);
    assert!(take(&mut client).windows(5).any(|window| window == b"newer"));
}

#[test]
fn comes_back_when_the_server_said() {
    let mut client = logged_in();
    let alternates = vec!["b.example:7400".to_owned()];
    let goaway = proto::Goaway { reconnect_min_ms: 1000, reconnect_max_ms: 3000, alternates, ..Default::default() };
    client.handle_bytes(&record(RecordType::Goaway, &goaway), 2);
    let leave_us = client.poll_timeout().expect("a time to leave");
    assert!((1_000_000..=3_000_002).contains(&leave_us), "{leave_us}");
    assert_eq!(
        events(&mut client),
        [Event::Goaway(crate::client::Goaway { asked: goaway, leave_us })],
        "the application knows when"
    );
    client.handle_disconnected(3);
    assert_eq!(client.poll_timeout(), Some(leave_us), "closed early: the time stays");
    let mut client = logged_in();
    client.handle_bytes(&error(ErrorCode::ShuttingDown, 5000), 2);
    client.handle_disconnected(3);
    assert!(client.poll_timeout() >= Some(5_000_002));
}

#[test]
fn comes_at_its_own_time_where_the_server_has_no_room() {
    let told = |code, retry_after_ms| {
        let mut client = connected();
        client.handle_bytes(&error(code, retry_after_ms), 2);
        client.handle_disconnected(3);
        client
    };
    for code in [ErrorCode::LoginsBusy, ErrorCode::ConnectionsFull] {
        for retry_ms in [LOGIN_RETRY_MS_MIN, 77_777, LOGIN_RETRY_MS_MAX] {
            let due_us = told(code, retry_ms).poll_timeout().expect("it comes back") - 2;
            let retry_us = u64::from(retry_ms) * 1000;
            assert!((retry_us..=retry_us + retry_us / 10).contains(&due_us), "{retry_ms} ms: {due_us}");
        }
        // Nothing is longer than the longest, and what is too short is not a time of its own.
        let due_us = told(code, u32::MAX).poll_timeout().expect("it comes back");
        assert!(due_us <= u64::from(LOGIN_RETRY_MS_MAX) * 1100 + 2, "{due_us}");
        let due_us = told(code, 50).poll_timeout().expect("it comes back");
        assert!((50_002..=100_003).contains(&due_us), "its own backoff, and not before: {due_us}");
        let due_us = told(code, 0).poll_timeout().expect("it comes back");
        assert!(due_us <= 100_003, "its own backoff: {due_us}");
    }
}

/// Who is told to come again and again comes no more often than who is never answered, after a few times.
#[test]
fn a_server_without_room_is_asked_less_and_less_often() {
    let mut client = connected();
    let (mut now_us, mut waits) = (1, Vec::new());
    for _ in 0..60 {
        take(&mut client);
        client.handle_bytes(&error(ErrorCode::LoginsBusy, LOGIN_RETRY_MS_MIN), now_us);
        client.handle_disconnected(now_us);
        let due_us = client.poll_timeout().expect("it comes back");
        waits.push((due_us - now_us) / 1000);
        now_us = due_us;
        client.handle_timeout(now_us);
        events(&mut client);
        client.handle_connected(now_us);
    }
    let (first, later) = waits.split_at(8);
    assert!(first.iter().all(|wait_ms| (1000..=1100).contains(wait_ms)), "{first:?}");
    assert!(later.iter().all(|wait_ms| *wait_ms >= 1000) && later.iter().max() > Some(&20_000), "{later:?}");
    // WELCOME ends it.
    client.handle_bytes(&welcome(), now_us);
    client.handle_bytes(&error(ErrorCode::LoginsBusy, 4000), now_us);
    client.handle_disconnected(now_us);
    assert!(client.poll_timeout() <= Some(now_us + 4_400_000));
}

#[test]
fn a_last_ack_goes_out_on_close() {
    let mut client = logged_in();
    client.handle_bytes(&deliver(3, [4]), 2);
    client.persisted(InboxSeq(4));
    client.close();
    assert_eq!(take(&mut client), record(RecordType::Ack, &proto::Ack { inbox_seq: 4, ..Default::default() }));
    assert_eq!(events(&mut client).last(), Some(&Event::Disconnect));
    client.handle_disconnected(3);
    assert_eq!(client.poll_timeout(), None);
}

#[test]
fn out_of_state_and_unknown_records() {
    let mut client = logged_in();
    client.handle_bytes(&[0, 3, 0xFE, 0, 1, 0, 2, 0x2F, 0], 2);
    assert_eq!(events(&mut client), [], "unknown types are nothing to a client");
    client.handle_bytes(&record(RecordType::Ping, &proto::Ping { nonce: 5, ..Default::default() }), 2);
    assert_eq!(take(&mut client), record(RecordType::Pong, &proto::Pong { nonce: 5, ..Default::default() }));
    client.handle_bytes(&welcome(), 3);
    let again = Violation::OutOfState { kind: 2 };
    assert_eq!(events(&mut client), [Event::Violation(again), Event::Disconnect]);
}

/// What the client has written since, as the last bytes of the ids of its SENDs.
fn sends(client: &mut Client) -> Vec<u8> {
    let bytes = take(client);
    let mut rest = bytes.as_slice();
    let mut ids = Vec::new();
    while let [high, low, tail @ ..] = rest {
        let (record, next) = tail.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        if let Some((&[kind, _], body)) = record.split_first_chunk()
            && kind == RecordType::Send as u8
        {
            let send = proto::Send::decode(body).expect("as written");
            ids.extend(send.client_message_id.last());
        }
        rest = next;
    }
    ids
}

/// The answer to the message of this number: refused with this code, or accepted.
fn result(number: u8, error: Option<(ErrorCode, u32)>) -> Vec<u8> {
    let error = error.map(|(code, retry_after_ms)| proto::Error {
        code: code.number(),
        retry_after_ms,
        scope: proto::error::Scope::Request.into(),
        ..Default::default()
    });
    let client_message_id = Bytes::copy_from_slice(&[number; 16]);
    record(RecordType::SendResult, &proto::SendResult { client_message_id, error, ..Default::default() })
}

#[test]
fn what_came_too_fast_comes_again_when_the_server_said_and_in_order() {
    let mut client = logged_in();
    let send = |client: &mut Client, number: u8, to: u64, now_us: u64| {
        let conversation = ConversationId::direct(UserId(1), UserId(to));
        client.send(ClientMessageId([number; 16]), conversation, Bytes::new(), now_us).expect("there is room");
    };
    for number in 1..=4 {
        send(&mut client, number, 2, 10);
    }
    assert_eq!(sends(&mut client), [1, 2, 3, 4]);
    client.handle_bytes(&result(1, None), 20);
    client.handle_bytes(&result(2, Some((ErrorCode::RateLimited, 300))), 30);
    client.handle_bytes(&result(3, Some((ErrorCode::AfterRejected, 0))), 40);
    send(&mut client, 5, 2, 50);
    send(&mut client, 6, 3, 50);
    assert_eq!(sends(&mut client), [6], "another conversation does not wait");
    // The answer to 4 is not there yet: nothing of the conversation goes before it, however late it is.
    client.handle_timeout(400_000);
    assert_eq!(sends(&mut client), [0; 0]);
    client.handle_bytes(&result(4, Some((ErrorCode::AfterRejected, 0))), 400_001);
    assert_eq!(sends(&mut client), [2, 3, 4, 5]);
    // Refused again and again: all wait for as long as the first is told, and up to a quarter more, but never longer.
    client.handle_bytes(&result(6, None), 500_000);
    let mut now_us = 500_000;
    for _ in 0..9 {
        client.handle_bytes(&result(2, Some((ErrorCode::RateLimited, 1000))), now_us);
        for number in 3..=5 {
            client.handle_bytes(&result(number, Some((ErrorCode::AfterRejected, 0))), now_us);
        }
        let due_us = client.poll_timeout().expect("a time to come again");
        assert!((now_us + 1_000_000..=now_us + 1_250_000).contains(&due_us), "{now_us} to {due_us}");
        client.handle_timeout(due_us - 1);
        assert_eq!(sends(&mut client), [0; 0]);
        client.handle_timeout(due_us);
        assert_eq!(sends(&mut client), [2, 3, 4, 5]);
        now_us = due_us;
    }
    for number in 2..=5 {
        client.handle_bytes(&result(number, None), now_us);
    }
    assert_eq!(client.in_flight(), 0);
    let told = events(&mut client);
    let code = ErrorCode::RateLimited.number();
    let again = Event::Rejected { id: ClientMessageId([2; 16]), code, retry: true };
    assert_eq!(told.iter().filter(|event| **event == again).count(), 10);
    let answered = told.iter().filter_map(|event| match event {
        Event::Sent(accepted) => accepted.client_message_id.0.first().copied(),
        _ => None,
    });
    assert_eq!(answered.collect::<Vec<_>>(), [1, 6, 2, 3, 4, 5], "each once, in order");
}
