//! Encryption: every handshake to WELCOME, and what each login shows.

mod forged;
mod keys;
mod refusals;
mod standing;

use super::peer::{
    CERTIFIED_MS, Opening, Peer, UNIX_MS, certificate, handshake, pair, root_public, secret, server_key, welcome,
};
use super::*;
use crate::client::{Encryption, ServerKey};
use crate::crypto::{KEY_LEN, Secret, Suite};
use crate::handshake::{Kind, server};
use crate::id::DeviceId;
use crate::record::FrameError;

const ID: ClientMessageId = ClientMessageId([7; 16]);

fn forged() -> Event {
    Event::Violation(Violation::Frame(FrameError::Forged))
}

fn encryption() -> Encryption {
    Encryption {
        suite: Suite::ChaCha20Poly1305,
        own: pair(1),
        roots: root_public().into(),
        server: None,
        forward_secret: false,
        entropy: secret(5),
        unix_ms: UNIX_MS,
    }
}

fn with(credential: Credential, encryption: Encryption) -> Client {
    let mut client = Client::new(ClientConfig {
        user: UserId(1),
        device: DeviceId(2),
        credential,
        cursor: InboxSeq(3),
        keep_alive_s: 60,
        seed: 1,
        encryption: Some(encryption),
        ..ClientConfig::default()
    });
    assert_eq!(client.poll_event(), Some(Event::Connect));
    client.handle_connected(0);
    client
}

fn token() -> Credential {
    Credential::Token("token".into())
}

fn ticket() -> Credential {
    Credential::Ticket(SavedTicket { bytes: Bytes::from_static(b"an older ticket"), secret: Some(secret(4)) })
}

fn knowing_the_server() -> Encryption {
    Encryption { server: Some(server_key()), ..encryption() }
}

/// A client for each kind of handshake, that has everything which a lesser kind needs.
fn each_kind(suite: Suite) -> impl Iterator<Item = (Kind, Client)> {
    Kind::ALL.into_iter().map(move |kind| {
        let known = Encryption { suite, forward_secret: kind == Kind::ResumeForwardSecret, ..knowing_the_server() };
        let client = match kind {
            Kind::Xx => with(token(), Encryption { server: None, ..known }),
            Kind::Ik => with(token(), known),
            Kind::Resume | Kind::ResumeForwardSecret => {
                let mut client = with(ticket(), known);
                client.set_credential(token());
                client
            }
        };
        (kind, client)
    })
}

fn send(client: &mut Client) {
    let conversation = ConversationId::direct(UserId(1), UserId(2));
    client.send(ID, conversation, Bytes::from_static(b"hello"), 0).expect("there is room");
}

/// The connection is over; it comes back when it is due.
fn reconnect(client: &mut Client, now_us: u64) {
    client.handle_disconnected(now_us);
    if let Some(due_us) = client.poll_timeout() {
        client.handle_timeout(due_us.max(now_us));
    }
    assert_eq!(events(client).last(), Some(&Event::Connect), "{client:?}");
    client.handle_connected(now_us);
}

/// It comes back at once.
fn comes_back_at_once(client: &mut Client, now_us: u64) {
    assert_eq!(events(client).last(), Some(&Event::Disconnect));
    client.handle_disconnected(now_us);
    assert_eq!(events(client), [Event::Connect]);
    client.handle_connected(now_us);
}

/// It comes back, but not at once. The events up to here are taken.
fn comes_back_after_a_while(client: &mut Client, now_us: u64) {
    client.handle_disconnected(now_us);
    assert_eq!(events(client), []);
    let due_us = client.poll_timeout().expect("a backoff");
    client.handle_timeout(due_us);
    assert_eq!(events(client), [Event::Connect]);
    client.handle_connected(due_us);
}

/// Logged in by IK, with nothing unread on either side.
fn welcomed() -> (Client, Peer) {
    let mut client = with(token(), knowing_the_server());
    let mut peer = Peer::welcome(&mut client, &Secret::default(), 1);
    assert_eq!(peer.kinds(&mut client), [RecordType::Ready]);
    assert!(matches!(events(&mut client).as_slice(), [Event::LoggedIn(_)]));
    (client, peer)
}

#[test]
fn each_handshake_to_welcome() {
    for (kind, mut client) in Suite::ALL.into_iter().flat_map(each_kind) {
        send(&mut client);
        let mut peer = Peer::accept(&mut client, &secret(4), 1);
        assert_eq!(peer.opening.kind, kind);
        assert_eq!(peer.opening.preamble.server_key, if kind == Kind::Ik { 7 } else { 0 });
        let shows_key = matches!(kind, Kind::Ik | Kind::Xx);
        assert_eq!(peer.other, shows_key.then_some(*pair(1).public()));
        let credential = shows_key.then(|| proto::login::Credential::Token("token".into()));
        assert_eq!(peer.login.credential, credential, "{kind:?}: a ticket is shown outside the login");
        assert_eq!((peer.login.user, peer.login.device), (0, 0), "token and ticket say that");
        assert_eq!((peer.login.cursor, peer.login.keep_alive_s), (3, 60));
        assert_eq!(peer.kinds(&mut client), [RecordType::Ready, RecordType::Send], "{kind:?}");
        let record = peer.seal(RecordType::Welcome, &welcome());
        client.handle_bytes(&record, 2);
        let told = events(&mut client);
        let learned = (kind == Kind::Xx).then_some(Event::ServerKey(server_key()));
        let expected: Vec<Event> = learned.into_iter().chain([Event::LoggedIn(welcome())]).collect();
        assert_eq!(told, expected);
        let bytes = welcome().ticket;
        assert_eq!(client.ticket(), Some(&SavedTicket { bytes, secret: Some(peer.resumption.clone()) }));
        assert_eq!(client.server_key(), Some(server_key()));

        let client_message_id = Bytes::copy_from_slice(&ID.0);
        let result = proto::SendResult { client_message_id, conversation_seq: 1, ..Default::default() };
        let record = peer.seal(RecordType::SendResult, &result);
        client.handle_bytes(&record, 3);
        assert!(matches!(events(&mut client).as_slice(), [Event::Sent(_)]));
    }
}

#[test]
fn any_split_of_the_stream_will_do() {
    for (kind, mut client) in each_kind(Suite::Aes256Gcm) {
        // XX has its own way, byte by byte; the others' answer and WELCOME come in one flight.
        let opening = Opening::take(&mut client);
        if kind == Kind::Xx {
            continue;
        }
        let mut other = each_kind(Suite::Aes256Gcm).find(|(of, _)| *of == kind).expect("the same client").1;
        let mut peer = Peer::accept(&mut other, &secret(4), 1);
        assert_eq!(peer.opening.message, opening.message, "all randomness comes from outside");
        let answer = match kind {
            Kind::Ik => server::accept_ik(peer.suite, opening.bytes, &pair(2), &opening.message, secret(6)),
            _ => {
                let (ticket, rest) = server::split_ticket(&opening.message).expect("a ticket");
                let resumed = server::Resumed { ticket, secret: &secret(4) };
                server::accept_ticket((kind, peer.suite), opening.bytes, resumed, rest, secret(6))
            }
        };
        peer.incoming.clear();
        let mut flight = handshake(&answer.expect("good").answer.expect("two messages"));
        flight.extend(peer.seal(RecordType::Welcome, &welcome()));
        flight.extend(peer.seal(RecordType::Ping, &proto::Ping { nonce: 9, ..Default::default() }));
        for byte in &flight {
            client.handle_bytes(&[*byte], 2);
        }
        assert!(client.is_logged_in());
        assert_eq!(peer.kinds(&mut client), [RecordType::Ready, RecordType::Pong]);
    }
}

#[test]
fn a_registered_device_needs_nothing_but_its_key() {
    let mut client = with(Credential::DeviceKey, encryption());
    for kind in [Kind::Xx, Kind::Ik] {
        let peer = Peer::accept(&mut client, &Secret::default(), 1);
        assert_eq!((peer.opening.kind, peer.other), (kind, Some(*pair(1).public())));
        assert_eq!((peer.login.credential, peer.login.user, peer.login.device), (None, 1, 2));
        reconnect(&mut client, 1);
    }
}

#[test]
fn without_encryption_a_key_is_no_credential() {
    let mut client = Client::new(ClientConfig { credential: Credential::DeviceKey, ..ClientConfig::default() });
    assert_eq!(events(&mut client), [Event::CredentialNeeded { code: 3005 }]);
    client.set_credential(token());
    assert_eq!(events(&mut client), [Event::Connect]);
}

#[test]
fn xx_then_the_ticket() {
    let mut client = with(token(), encryption());
    let mut shared = Secret::default();
    for kind in [Kind::Xx, Kind::Resume, Kind::Resume] {
        let peer = Peer::welcome(&mut client, &shared, 1);
        assert_eq!(peer.opening.kind, kind);
        shared = peer.resumption;
        reconnect(&mut client, 1);
    }
}

#[test]
fn a_ticket_without_its_secret_is_not_shown() {
    let plain = Credential::Ticket(SavedTicket::from(Bytes::from_static(b"of a plaintext connection")));
    let mut client = with(plain, knowing_the_server());
    let peer = Peer::accept(&mut client, &Secret::default(), 1);
    assert_eq!((peer.opening.kind, peer.login.credential, peer.login.user), (Kind::Ik, None, 1));
}

#[test]
fn what_was_kept_and_is_of_no_use_is_left_out() {
    let small_order = ServerKey { public: [0; KEY_LEN], ..server_key() };
    let long = SavedTicket { bytes: Bytes::from(vec![1; 300]), secret: Some(secret(4)) };
    let mut client = with(Credential::Ticket(long), Encryption { server: Some(small_order), ..encryption() });
    let opening = Opening::take(&mut client);
    assert_eq!((opening.kind, client.ticket(), client.server_key()), (Kind::Xx, None, None));
}

#[test]
fn a_login_that_no_message_has_room_for_stops_the_client() {
    for (kind, len) in [(Kind::Xx, 5000), (Kind::Ik, 100_000)] {
        let server = (kind == Kind::Ik).then(server_key);
        let mut client = with(Credential::Token("t".repeat(len)), Encryption { server, ..encryption() });
        assert_eq!(events(&mut client), [Event::Stopped { code: 4024 }, Event::Disconnect]);
        assert!(client.transmit().is_empty());
        client.handle_disconnected(1);
        assert_eq!((client.poll_event(), client.poll_timeout()), (None, None));
    }
}

#[test]
fn no_two_handshakes_have_the_same_randomness() {
    let mut client = with(ticket(), encryption());
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for _ in 0..4 {
        let Opening { message, .. } = Opening::take(&mut client);
        let random = message.get(1 + b"an older ticket".len()..).and_then(|rest| rest.get(..KEY_LEN)).expect("random");
        assert!(!seen.contains(&random.to_vec()));
        seen.push(random.to_vec());
        reconnect(&mut client, 1);
    }
    let first = crate::crypto::hkdf::<KEY_LEN>(&[0; 8], secret(5).as_slice(), b"culver client");
    assert_eq!(seen.first().map(Vec::as_slice), Some(first.as_slice()));
}

#[test]
fn no_secret_shows_in_what_is_printed() {
    let (client, peer) = welcomed();
    let config = ClientConfig { credential: ticket(), encryption: Some(encryption()), ..ClientConfig::default() };
    let printed = format!("{client:?} {:?} {config:?}", client.ticket());
    for secret in [secret(1), secret(4), secret(5), peer.resumption] {
        let inside = format!("{:?}", secret.first_chunk::<4>().expect("longer"));
        assert!(!printed.contains(inside.trim_matches(['[', ']'])), "{printed}");
    }
    let mut waiting = with(ticket(), encryption());
    let opening = Opening::take(&mut waiting);
    assert_eq!(opening.kind, Kind::Resume);
    assert!(!format!("{waiting:?}").contains("4, 4, 4, 4"));
}

#[test]
fn an_idle_encrypted_client_holds_no_buffers() {
    let (mut client, _) = welcomed();
    assert!(client.transmit().is_empty() && client.link.is_unallocated());
}
