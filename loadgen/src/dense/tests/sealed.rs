//! Sealed clients, against the protocol's own server side.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use culver_protocol::crypto::{PublicKey, Secret, Suite};
use culver_protocol::handshake::Kind;
use culver_protocol::handshake::server::split_ticket;
use culver_protocol::id::UserId;
use culver_protocol::limits::TAG_LEN;
use culver_protocol::preamble::Preamble;

use super::*;
use crate::dense::{CrowdSealing, HandshakeOption};
use crate::plan::DEVICE;
use crate::target::peer::{Peer, read_message, write_handshake};
use crate::target::sealing::{Sealing, device_key};

/// A server that knows the keys of twenty users, and what each login was.
struct Server {
    peer: Peer,
    users: BTreeMap<PublicKey, UserId>,
    kinds: Mutex<Vec<(Kind, bool)>>,
}

impl Server {
    fn new() -> Self {
        let users = (FIRST_USER..FIRST_USER + 20).map(UserId);
        let users = users.map(|user| (*device_key(user, DEVICE).public(), user)).collect();
        Self { peer: Peer::new(), users, kinds: Mutex::default() }
    }

    /// Takes so many connections, one after the other; each gets a message and must acknowledge it.
    fn serve(&self, listener: &TcpListener, connections: u64) -> Vec<TcpStream> {
        (0..connections).map(|_| self.serve_one(listener)).collect()
    }

    fn serve_one(&self, listener: &TcpListener) -> TcpStream {
        let (mut socket, _) = listener.accept().expect("somebody comes");
        let mut head = [0; 8];
        socket.read_exact(&mut head).expect("a preamble");
        let preamble = Preamble::decode(head).expect("a good one");
        let suite = Suite::from_number(preamble.suite).expect("a suite");
        let kind = Kind::from_number(preamble.handshake).expect("a handshake");
        let message = read_message(&mut socket).expect("a message");
        let accepted = self.peer.accept(&mut socket, (kind, suite), head, &message).expect("a good message");
        let login = proto::Login::decode(accepted.login.as_slice()).expect("a login");
        self.kinds.lock().expect("nobody panics").push((kind, login.credential.is_some()));
        if let Some(answer) = &accepted.answer {
            write_handshake(&mut socket, answer);
        }
        let user = if matches!(kind, Kind::Ik | Kind::Xx) {
            let user = accepted.established.other.and_then(|key| self.users.get(&key).copied());
            let user = user.expect("a device's own key");
            assert!(login.credential.is_some() || (login.user, login.device) == (user.0, 1), "it says who it is");
            user.0
        } else {
            assert_eq!((login.credential, login.user), (None, 0), "the ticket says it all");
            let ticket = split_ticket(&message).expect("as above").0;
            u64::from_be_bytes(*ticket.first_chunk().expect("a ticket begins with the user"))
        };
        let mut cipher = Cipher::Sealed(suite, accepted.established.keys);
        let ticket = self.peer.give_ticket(&user.to_be_bytes(), accepted.established.resumption);
        let welcome = proto::Welcome { version: 1, incarnation: 5, ticket: ticket.into(), ..Default::default() };
        let mut out = Vec::new();
        cipher.seal_message(&mut out, RecordType::Welcome, &welcome);
        // The key changes in between, as it does after an hour.
        cipher.change_key(&mut out);
        let entries = vec![entry(9, 1, user - FIRST_USER)];
        cipher.seal_message(&mut out, RecordType::Deliver, &proto::Deliver { previous: 0, entries });
        for piece in out.chunks(7) {
            socket.write_all(piece).expect("it reads");
        }
        assert_eq!(read_record(&mut socket, &mut cipher).0, RecordType::Ready as u8);
        let (kind, ack) = read_record(&mut socket, &mut cipher);
        assert_eq!((kind, proto::Ack::decode(ack.as_slice()).expect("an ACK").inbox_seq), (RecordType::Ack as u8, 9));
        socket
    }
}

fn read_record(socket: &mut TcpStream, cipher: &mut Cipher) -> (u8, Vec<u8>) {
    let mut sealed = read_message(socket).expect("a record");
    assert!(sealed.len() > TAG_LEN);
    let opened = cipher.open(&mut sealed).expect("the client's next record");
    (opened[0], opened[2..].to_vec())
}

#[test]
fn first_logins_are_by_xx_and_later_ones_as_asked() {
    let server = Server::new();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let credentials = Arc::new(server.peer.credentials(dir.path()));
    let all = [HandshakeOption::Resume, HandshakeOption::ResumeFs, HandshakeOption::Ik, HandshakeOption::Xx];
    for (suite, count) in Suite::ALL.into_iter().zip([1, 2]) {
        let tickets = Some(dir.path().join(suite.name()));
        for handshake in [HandshakeOption::Resume].into_iter().chain(all) {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let target = listener.local_addr().expect("an address");
            let sealing = Sealing { suite, root: server.peer.root };
            let sealing = CrowdSealing { sealing, handshake, server: (count == 2).then(|| server.peer.key()) };
            let login = LoginWith::Tokens(Arc::clone(&credentials), Some(sealing));
            let load = CrowdLoad { tickets: tickets.clone(), ..load(target, 20, 2) };
            let crowd = Crowd::start(load, &login, Clock::start()).expect("two workers");
            std::thread::scope(|scope| {
                let sockets = scope.spawn(|| server.serve(&listener, 20));
                crowd.grow_to(20, &Progress::hidden(), || Ok(())).expect("a server takes them all");
                let sockets = sockets.join().expect("everything was acknowledged");
                let (outcome, _) = crowd.close().expect("all workers end");
                assert_eq!((outcome.counts.logins, outcome.counts.delivered), (20, 20), "{:?}", outcome.faults);
                assert_eq!(outcome.counts.disconnects, 0, "{:?}", outcome.faults);
                drop(sockets);
            });
        }
    }
    let kinds = server.kinds.into_inner().expect("nobody panics");
    let of = |round: usize| kinds.get(round * 20..(round + 1) * 20).expect("twenty logins a round");
    for first in [0, 5] {
        assert!(of(first).iter().all(|kind| *kind == (Kind::Xx, true)), "unknown");
        assert!(of(first + 1).iter().all(|kind| *kind == (Kind::Resume, false)));
        assert!(of(first + 2).iter().all(|kind| *kind == (Kind::ResumeForwardSecret, false)));
        assert!(of(first + 4).iter().all(|kind| *kind == (Kind::Xx, false)));
    }
    assert!(of(3).iter().all(|(_, by_token)| !by_token));
    assert!(of(8).iter().all(|kind| *kind == (Kind::Ik, false)), "the server's key was known");
}

#[test]
fn what_is_in_clear_and_should_not_be_ends_a_login() {
    let server = Server::new();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let credentials = Arc::new(server.peer.credentials(dir.path()));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = listener.local_addr().expect("an address");
    let sealing = Sealing { suite: Suite::Aes256Gcm, root: server.peer.root };
    let sealing = CrowdSealing { sealing, handshake: HandshakeOption::Resume, server: None };
    let login = LoginWith::Tokens(credentials, Some(sealing));
    let crowd = Crowd::start(load(target, 1, 1), &login, Clock::start()).expect("a worker");
    std::thread::scope(|scope| {
        let socket = scope.spawn(|| {
            let (mut socket, _) = listener.accept().expect("somebody comes");
            let welcome = proto::Welcome { version: 1, ..Default::default() };
            socket.write_all(&record(RecordType::Welcome, &welcome)).expect("it reads");
            socket
        });
        crowd.grow_to(1, &Progress::hidden(), || Ok(())).expect("one may fail");
        drop(socket.join().expect("nothing fails"));
    });
    assert_eq!((crowd.counts().logins, crowd.counts().login_failures), (0, 1));
    assert!(crowd.first_faults().contains("in clear"), "{}", crowd.first_faults());
}

#[test]
fn keys_change_with_the_hour() {
    let keys = |number| culver_protocol::keys::Key::new(&Secret::new([number; 32]));
    let cipher = |sending, receiving| {
        let keys = culver_protocol::keys::Keys { sending: keys(sending), receiving: keys(receiving) };
        Cipher::Sealed(Suite::ChaCha20Poly1305, keys)
    };
    let (mut client, mut server) = (cipher(1, 2), cipher(2, 1));
    let mut changes = 0;
    for _ in 0..100 {
        let mut out = Vec::new();
        write_ping(&mut out, &mut client, 240 * 1_000_000);
        let mut rest = out.as_mut_slice();
        while let Some(record) = next_record(&mut rest, &mut server).expect("the client's next") {
            if record.kind == RecordType::Rekey as u8 {
                changes += 1;
                server.follow_key();
            }
        }
    }
    assert!((6..=7).contains(&changes), "{changes} changes in 400 minutes");
}
