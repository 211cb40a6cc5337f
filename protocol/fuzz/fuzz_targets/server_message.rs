//! Whatever a server sends, the client neither panics nor breaks its own word: no duplicate, no cursor that goes
//! back without a GAP that resets, each message answered once, each request answered or cancelled once.
#![no_main]

use std::collections::HashSet;

use bytes::Bytes;
use culver_protocol::client::{Client, ClientConfig, Credential, Event};
use culver_protocol::id::{ClientMessageId, ConversationId, InboxSeq, UserId};
use culver_protocol::proto;
use culver_protocol::proto::rpc::Request;
use culver_protocol::record::{Cipher, RecordType};
use libfuzzer_sys::fuzz_target;

const SENDS: u8 = 4;
/// Requests at each login.
const CALLS: usize = 2;

fn connect(client: &mut Client, welcomed: bool) {
    client.handle_connected(0);
    if welcomed {
        let welcome = proto::Welcome { version: 1, keep_alive_s: 30, ..Default::default() };
        let mut record = Vec::new();
        Cipher::default().seal_message(&mut record, RecordType::Welcome, &welcome);
        client.handle_bytes(&record, 1);
    }
}

fuzz_target!(|input: (bool, u8, &[u8])| {
    let (welcomed, piece, stream) = input;
    let credential = Credential::Token("token".into());
    let mut client =
        Client::new(ClientConfig { user: UserId(1), credential, cursor: InboxSeq(2), ..Default::default() });
    for n in 0..SENDS {
        let conversation = ConversationId::direct(UserId(1), UserId(u64::from(n % 2)));
        client.send(ClientMessageId([n; 16]), conversation, Bytes::new(), 0).expect("room");
    }
    let (mut now_us, mut cursor) = (1, client.cursor());
    let mut seen = HashSet::new();
    let mut answered = HashSet::new();
    let mut asked = HashSet::new();
    let mut pieces = stream.chunks(usize::from(piece).max(1));
    loop {
        while let Some(event) = client.poll_event() {
            match event {
                Event::Connect => connect(&mut client, welcomed),
                Event::Disconnect => client.handle_disconnected(now_us),
                Event::Delivered(entry) => {
                    assert!(seen.insert((entry.conversation, entry.conversation_seq)), "twice");
                    client.persisted(InboxSeq(entry.inbox_seq));
                }
                Event::Gap(gap) if gap.reset => {
                    seen.clear();
                    cursor = InboxSeq(0);
                }
                Event::LoggedIn(_) => {
                    for _ in 0..CALLS {
                        if let Ok(id) = client.call(Request::ListDevices(proto::ListDevices {})) {
                            assert!(asked.insert(id));
                        }
                    }
                }
                Event::Answer { id, .. } | Event::Cancelled { id } => assert!(asked.remove(&id), "not asked"),
                Event::Receipt(receipt) => client.receipts_persisted(receipt.version),
                Event::Sent(accepted) => assert!(answered.insert(accepted.client_message_id)),
                Event::Rejected { id, retry: false, .. } => assert!(answered.insert(id)),
                _ => {}
            }
        }
        assert_eq!(answered.len() + client.in_flight(), usize::from(SENDS));
        assert!(client.cursor() >= cursor);
        cursor = client.cursor();
        assert!(asked.is_empty() || client.is_logged_in(), "cancelled with its connection");
        let len = client.transmit().len();
        client.transmitted(len);
        let Some(piece) = pieces.next() else {
            break;
        };
        now_us = client.poll_timeout().map_or(now_us, |due| due.min(now_us + 1000)).max(now_us);
        client.handle_timeout(now_us);
        client.handle_bytes(piece, now_us);
    }
});
