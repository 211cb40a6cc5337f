//! Who sends faster than `[sends]` lets them: told so, and everything arrives all the same.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use culver_protocol::client::{Client, ClientConfig, Credential, Event};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationId, DeviceId, UserId};
use culver_protocol::proto::login;
use rustix::process::Signal;

use crate::home::{Home, Layout, PATIENCE, Server, on_every_layout, serve_on};
use crate::peer::{Peer, message_id};

on_every_layout! {
    who_sends_too_fast_is_told_so_and_what_follows_waits,
    what_came_too_fast_arrives_once_and_in_order,
    nobody_is_told_so_where_nothing_is_set,
}

fn who_sends_too_fast_is_told_so_and_what_follows_waits(layout: Layout) {
    const BURST: u64 = 5;
    let home = Home::on(layout);
    home.configure(&format!("[sends]\ndevice_per_s = 1\ndevice_burst = {BURST}\n"));
    let server = home.start();
    let mut one = Peer::online(&home, &server, 1);
    // On a machine so slow that a second passes from one to the next, a few more.
    let (number, error) = one.send_until_refused(2, 999);
    assert!(number > BURST, "{number}");
    assert_eq!(error.code, ErrorCode::RateLimited.number());
    assert!((1..=1000).contains(&error.retry_after_ms), "{error:?}");
    one.send(2, number + 1, b"later");
    let code = one.outcome(number + 1).error.map(|error| error.code);
    assert_eq!(code, Some(ErrorCode::AfterRejected.number()));
    // Another device has a bucket of its own, and the connection lives.
    Peer::online(&home, &server, 2).send_and_wait(1, 1, b"hello");
    server.wait_for("culver_sends_limited_total", |limited| limited == 1);
    server.wait_for("culver_messages_rejected_total", |rejected| rejected == 2);
    server.signal(Signal::TERM);
    let (_, logged) = server.wait();
    assert_eq!(logged.matches("device 1/s, 5 at once; user unlimited").count(), 1, "{logged}");
}

/// The client a phone has, with the time that really passes.
struct Phone {
    client: Client,
    stream: TcpStream,
    began: Instant,
    sent: BTreeMap<ClientMessageId, u64>,
    limited: u64,
}

impl Phone {
    fn new(home: &Home, server: &Server, user: u64) -> Self {
        let login::Credential::Token(token) = home.token(user) else { unreachable!("a token") };
        let credential = Credential::Token(token);
        let (user, device) = (UserId(user), DeviceId(1));
        let mut client = Client::new(ClientConfig { user, device, credential, seed: user.0, ..Default::default() });
        assert_eq!(client.poll_event(), Some(Event::Connect));
        let stream = TcpStream::connect(server.listen).expect("it listens");
        client.handle_connected(0);
        Self { client, stream, began: Instant::now(), sent: BTreeMap::new(), limited: 0 }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).expect("a short test")
    }

    fn send(&mut self, to: u64, number: u64) {
        let conversation = ConversationId::direct(self.client.user(), UserId(to));
        let id = ClientMessageId(message_id(self.client.user().0, number));
        let payload = Bytes::copy_from_slice(&number.to_be_bytes());
        self.client.send(id, conversation, payload, self.now_us()).expect("there is room");
    }

    /// Writes what is to be written, then waits for the socket or the client's own time, whichever is first.
    fn turn(&mut self) {
        let bytes = self.client.transmit().to_vec();
        self.stream.write_all(&bytes).expect("the server takes it");
        self.client.transmitted(bytes.len());
        let due_us = self.client.poll_timeout().unwrap_or(u64::MAX);
        let wait = Duration::from_micros(due_us.saturating_sub(self.now_us())).min(PATIENCE);
        self.stream.set_read_timeout(Some(wait.max(Duration::from_micros(100)))).expect("a time");
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => panic!("the server has closed"),
            Ok(len) => self.client.handle_bytes(buffer.get(..len).expect("as read"), self.now_us()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                self.client.handle_timeout(self.now_us());
            }
            Err(error) => panic!("{error}"),
        }
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::LoggedIn(_) => {}
                Event::Sent(accepted) => {
                    self.sent.insert(accepted.client_message_id, accepted.conversation_seq.0);
                }
                Event::Rejected { code, retry: true, .. } => {
                    assert_eq!(code, ErrorCode::RateLimited.number());
                    self.limited += 1;
                }
                Event::Receipt(receipt) => self.client.receipts_persisted(receipt.version),
                other => panic!("{other:?}"),
            }
        }
    }
}

fn what_came_too_fast_arrives_once_and_in_order(layout: Layout) {
    let home = Home::on(layout);
    home.configure("[sends]\nuser_per_s = 100\nuser_burst = 10\n");
    let server = home.start();
    let mut one = Phone::new(&home, &server, 1);
    let mut count = 0;
    // Until some came too fast.
    while one.limited < 3 {
        assert!(count < 100_000, "nothing is ever too fast");
        (1..=20).for_each(|more| one.send(2, count + more));
        count += 20;
        while one.limited < 3 && one.client.in_flight() > 10 {
            one.turn();
        }
    }
    while one.client.in_flight() > 0 {
        one.turn();
    }
    assert!(one.sent.values().copied().eq(1..=count), "accepted in order");
    server.wait_for("culver_sends_limited_total", |limited| limited == one.limited);
    let mut two = Peer::online(&home, &server, 2);
    let mut number = 0;
    while number < count {
        for entry in two.deliver() {
            number += 1;
            assert_eq!((entry.conversation_seq, &entry.payload[..]), (number, &number.to_be_bytes()[..]));
        }
        two.ack(number);
    }
    server.stop();
    home.verify();
}

/// These servers listen on loopback.
fn nobody_is_told_so_where_nothing_is_set(layout: Layout) {
    const COUNT: u64 = 3000;
    let (home, server) = serve_on(layout);
    let mut one = Peer::online(&home, &server, 1);
    for first in (1..=COUNT).step_by(100) {
        (first..first + 100).for_each(|number| one.send(2, number, b"more"));
        (first..first + 100).for_each(|number| assert_eq!(one.outcome(number).error, None));
    }
    assert_eq!(server.metric("culver_sends_limited_total"), 0);
}
