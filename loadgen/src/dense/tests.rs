//! Clients over byte strings, cut anywhere; a whole crowd over real sockets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use culver_protocol::proto::{self, login};
use culver_protocol::record::{Cipher, RecordType};
use prost::Message;

use super::client::{Client, Expected, Heard, Phase, Verdict, write_login, write_ping};
use super::partials::{Partials, next_record};
use super::sources::Sources;
use super::*;
use crate::plan::{MessageIndex, RunId};

fn record(kind: RecordType, message: &impl Message) -> Vec<u8> {
    let mut out = Vec::new();
    Cipher::default().seal_message(&mut out, kind, message);
    out
}

fn entry(inbox_seq: u64, run: u64, message: u64) -> proto::Entry {
    let payload = senders::payload(RunId(run), MessageIndex(message), 5);
    proto::Entry { inbox_seq, payload, ..Default::default() }
}

fn deliver(entries: impl IntoIterator<Item = proto::Entry>) -> Vec<u8> {
    record(RecordType::Deliver, &proto::Deliver { previous: 0, entries: entries.into_iter().collect() })
}

/// Hands a client all bytes in pieces of `piece`; returns what it heard, what it answered, and its buffers.
fn feed(client: &mut Client, bytes: &[u8], piece: usize) -> Result<(Vec<Heard>, Vec<u8>), String> {
    feed_sealed(client, &mut Cipher::Plaintext, bytes, piece)
}

/// The same, over a cipher.
fn feed_sealed(
    client: &mut Client,
    cipher: &mut Cipher,
    bytes: &[u8],
    piece: usize,
) -> Result<(Vec<Heard>, Vec<u8>), String> {
    let (mut partials, mut heard, mut out) = (Partials::default(), Vec::new(), Vec::new());
    for piece in bytes.to_vec().chunks_mut(piece) {
        let mut joined = partials.join(client.partial, piece);
        let mut rest = joined.bytes();
        while let Some(record) = next_record(&mut rest, cipher).map_err(|error| error.to_string())? {
            heard.push(client.handle_record((record.kind, record.body), cipher, &mut out)?);
        }
        client.partial = partials.keep(client.partial, rest);
    }
    assert_eq!(client.partial, None, "what is whole needs no buffer");
    Ok((heard, out))
}

fn client_at(phase: Phase) -> Client {
    Client { phase, ..Client::default() }
}

#[test]
fn a_session_is_the_same_however_it_is_cut() {
    let welcome = proto::Welcome { ticket: Bytes::from_static(&[7; 60]), version: 1, ..Default::default() };
    let bytes = [
        record(RecordType::Welcome, &welcome),
        vec![0, 3, 0xFE, 0, 1], // unknown, and to be ignored
        record(RecordType::SyncStart, &proto::SyncStart { entries: 2, ..Default::default() }),
        deliver([entry(4, 1, 0), entry(9, 1, 0)]),
        record(RecordType::SyncDone, &proto::SyncDone { inbox_seq: 9 }),
        record(RecordType::Ping, &proto::Ping { nonce: 3, ..Default::default() }),
        record(RecordType::Pong, &proto::Pong { nonce: 1, ..Default::default() }),
        record(RecordType::Gap, &proto::Gap::default()),
        record(RecordType::Error, &proto::Error { code: 1001, ..Default::default() }),
        record(RecordType::Goaway, &proto::Goaway::default()),
    ]
    .concat();
    let whole = feed(&mut client_at(Phase::LoggingIn), &bytes, bytes.len()).expect("a good session");
    let ack = record(RecordType::Ack, &proto::Ack { inbox_seq: 9, ..Default::default() });
    assert_eq!(
        whole.1,
        [ack, record(RecordType::Pong, &proto::Pong { nonce: 3, ..Default::default() })].concat(),
        "the last of the two"
    );
    assert_eq!(whole.0.len(), 10);
    assert_eq!(whole.0.first(), Some(&Heard::Welcome(welcome)));
    for piece in 1..bytes.len() {
        let mut client = client_at(Phase::LoggingIn);
        assert_eq!(feed(&mut client, &bytes, piece).expect("a good session"), whole, "in pieces of {piece}");
        assert_eq!(client.phase, Phase::Live);
    }
}

#[test]
fn what_a_server_may_not_send_is_a_fault() {
    let welcome = |version| record(RecordType::Welcome, &proto::Welcome { version, ..Default::default() });
    let refused = |phase, bytes: &[u8]| feed(&mut client_at(phase), bytes, bytes.len()).is_err();
    assert!(refused(Phase::Live, &welcome(1)), "welcome twice");
    assert!(refused(Phase::LoggingIn, &welcome(9)), "a version that was not offered");
    assert!(refused(Phase::LoggingIn, &deliver([entry(1, 1, 0)])), "entries before the welcome");
    assert!(refused(Phase::Live, &record(RecordType::Ready, &proto::Ready {})), "a client's record");
    assert!(refused(Phase::Live, &[0, 0]), "a record of no bytes");
    assert!(refused(Phase::Live, &[0, 4, RecordType::Deliver as u8, 0, 0xFF, 0xFF]), "no protobuf");
}

#[test]
fn messages_count_once_and_for_their_recipient() {
    let expected = Expected { run: RunId(1), index: 3, connections: 10 };
    let mut client = client_at(Phase::Live);
    let due = |missing| Verdict::Due { sent_us: 5, missing };
    assert_eq!(client.handle_entry(&entry(1, 1, 3), &expected), due(0));
    assert_eq!(client.handle_entry(&entry(2, 1, 3), &expected), Verdict::Again);
    assert_eq!(client.handle_entry(&entry(3, 1, 4), &expected), Verdict::Strange);
    assert_eq!(client.handle_entry(&entry(4, 2, 13), &expected), Verdict::Older);
    assert_eq!(client.handle_entry(&entry(5, 1, 13), &expected), due(0), "the second round");
    assert_eq!(client.handle_entry(&entry(6, 1, 43), &expected), due(2), "two rounds were left out");
    assert_eq!(client.handle_entry(&entry(7, 1, 33), &expected), Verdict::Again, "and are given up");
    let mut cut = entry(8, 1, 53);
    cut.payload.truncate(63);
    assert_eq!(client.handle_entry(&cut, &expected), Verdict::Damaged);
    let bare = proto::Entry::default();
    assert_eq!(client.handle_entry(&bare, &expected), Verdict::Older);
}

#[test]
fn buffers_are_shared_by_those_who_need_one() {
    let mut partials = Partials::default();
    let places: Vec<_> = (0..100_u8).map(|byte| partials.keep(None, &[byte]).expect("there is room")).collect();
    for (byte, place) in (0..100).zip(&places) {
        assert_eq!(partials.len(Some(*place)), 1);
        assert_eq!(partials.join(Some(*place), &mut [200]).bytes(), [byte, 200]);
        assert_eq!(partials.keep(Some(*place), &[]), None);
    }
    let again = partials.keep(None, &[1]).expect("there is room");
    assert!(usize::from(again.get()) <= places.len());
}

#[test]
fn a_login_is_what_the_protocol_says() {
    let mut out = Vec::new();
    write_login(&mut out, login::Credential::Ticket(Bytes::from_static(b"ticket")), 240, true);
    assert!(out.starts_with(b"CV"));
    assert!(out.ends_with(&[0, 2, RecordType::Ready as u8, 0]));
    let len = usize::from(u16::from_be_bytes([out[8], out[9]]));
    let login = proto::Login::decode(&out[10..10 + len]).expect("a login");
    assert_eq!((login.keep_alive_s, login.cursor), (240, 0));
    assert_eq!(login.credential, Some(login::Credential::Ticket(Bytes::from_static(b"ticket"))));
    out.clear();
    write_login(&mut out, login::Credential::Token(String::new()), 240, false);
    assert!(!out.ends_with(&[0, 2, RecordType::Ready as u8, 0]));
    out.clear();
    write_ping(&mut out, &mut Cipher::Plaintext, 1);
    assert_eq!(out, record(RecordType::Ping, &proto::Ping { nonce: 1, ..Default::default() }));
}

/// A server that welcomes everybody, then delivers one message to each and counts what is acknowledged.
fn serve(listener: &TcpListener, connections: u64, run: RunId) -> Vec<TcpStream> {
    let mut sockets = Vec::new();
    for _ in 0..connections {
        let (mut socket, _) = listener.accept().expect("somebody comes");
        let mut head = [0; 10];
        socket.read_exact(&mut head).expect("a preamble and a length");
        let mut login = vec![0; usize::from(u16::from_be_bytes([head[8], head[9]])) + 4];
        socket.read_exact(&mut login).expect("a login, and READY behind it");
        let welcome = proto::Welcome { version: 1, incarnation: 5, ..Default::default() };
        socket.write_all(&record(RecordType::Welcome, &welcome)).expect("it reads");
        let credential = proto::Login::decode(&login[..login.len() - 4]).expect("a login").credential;
        let Some(login::Credential::Ticket(ticket)) = credential else { panic!("no ticket: {credential:?}") };
        let user = u64::from_be_bytes(*ticket.first_chunk().expect("a floor's ticket begins with the user"));
        let bytes = deliver([entry(9, run.0, user - FIRST_USER)]);
        // In two pieces, which may or may not come as one.
        let (one, two) = bytes.split_at(7);
        socket.write_all(one).expect("it reads");
        socket.write_all(two).expect("it reads");
        sockets.push(socket);
    }
    let ack = record(RecordType::Ack, &proto::Ack { inbox_seq: 9, ..Default::default() });
    for socket in &mut sockets {
        let mut found = vec![0; ack.len()];
        socket.read_exact(&mut found).expect("an acknowledgement");
        assert_eq!(found, ack);
    }
    sockets
}

const FIRST_USER: u64 = 1 << 41;

fn load(target: SocketAddr, connections: u64, workers: u64) -> CrowdLoad {
    CrowdLoad {
        target,
        connections,
        workers: Some(workers),
        first_user: FIRST_USER,
        sources: Sources::choose(None, target, connections).expect("loopback"),
        rate: Some(100_000.0),
        keep_alive_us: 3600 * 1_000_000,
        tickets: None,
        run: RunId(1),
        sends_ready: true,
        measures_delivery: true,
        returns: None,
    }
}

#[test]
fn a_crowd_comes_in_steps_takes_its_messages_and_goes_again() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = listener.local_addr().expect("an address");
    let server = std::thread::spawn(move || serve(&listener, 200, RunId(1)));
    let progress = Progress::hidden();
    let crowd = Crowd::start(load(target, 200, 3), &LoginWith::Nothing, Clock::start()).expect("three workers");
    for connections in [50, 200] {
        crowd.grow_to(connections, &progress, || Ok(())).expect("a server takes them all");
        assert_eq!(crowd.counts().logins, connections);
    }
    let mut sockets = server.join().expect("everything was acknowledged");
    let (outcome, delivery) = crowd.close().expect("all workers end");
    assert_eq!(outcome.counts, Counts { logins: 200, delivered: 200, ..Counts::default() });
    assert_eq!((outcome.errors.len(), outcome.faults), (0, Vec::new()));
    assert_eq!(delivery.count, 200);
    for socket in &mut sockets {
        assert_eq!(socket.read(&mut [0; 64]).expect("a clean end"), 0, "every connection is closed");
    }
}

#[test]
fn connections_that_end_are_counted_and_told() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = listener.local_addr().expect("an address");
    let server = std::thread::spawn(move || serve(&listener, 10, RunId(2)));
    let progress = Progress::hidden();
    let crowd = Crowd::start(load(target, 10, 1), &LoginWith::Nothing, Clock::start()).expect("a worker");
    crowd.grow_to(10, &progress, || Ok(())).expect("a server takes them all");
    drop(server.join().expect("everything was acknowledged"));
    let are_gone = progress.wait_until(Duration::from_secs(60), || Ok(crowd.counts().disconnects == 10));
    assert!(are_gone.expect("nothing fails"));
    let (outcome, _) = crowd.close().expect("the worker ends");
    assert_eq!(outcome.counts, Counts { logins: 10, older: 10, disconnects: 10, ..Counts::default() });
    assert!(outcome.faults.iter().all(|fault| fault.contains("closed the connection")), "{:?}", outcome.faults);
}

#[test]
fn a_crowd_that_nobody_answers_says_why() {
    let target = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let crowd = Crowd::start(load(target, 100, 1), &LoginWith::Nothing, Clock::start()).expect("a worker");
    let error = crowd.grow_to(100, &Progress::hidden(), || Ok(())).expect_err("nobody is there").to_string();
    assert!(error.contains("failed or ended") && error.contains("refused"), "{error}");
}

mod returning;
mod sealed;
