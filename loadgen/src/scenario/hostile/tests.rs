//! Attacks on encryption against the protocol's own server side: each is what it says, and is found.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culver_protocol::crypto::{PublicKey, Suite, key_thumbprint};
use culver_protocol::error::ErrorCode;
use culver_protocol::handshake::Kind;
use culver_protocol::preamble::Preamble;
use culver_protocol::proto::{self, Login, Pong, Welcome, login};
use culver_protocol::record::{Cipher, RecordType};
use prost::Message;
use serde_json::Value;

use super::sealed::SEALED;
use super::*;
use crate::target::peer::{Peer, read_message, write_handshake};
use crate::target::sealing::Sealing;

/// A server that judges encrypted logins as a gateway does, and signatures not at all.
struct Server {
    peer: Peer,
    devices: Mutex<BTreeMap<(u64, u32), PublicKey>>,
}

impl Server {
    fn serve(&self, socket: &mut TcpStream) {
        let mut cipher = Cipher::Plaintext;
        let Err(code) = self.session(socket, &mut cipher) else { return };
        let mut out = Vec::new();
        let error = proto::Error { code: code.number(), ..Default::default() };
        cipher.seal_message(&mut out, RecordType::Error, &error);
        socket.write_all(&out).ok();
        // What was not read would make the end a reset, and that may overtake the error.
        socket.shutdown(std::net::Shutdown::Write).ok();
        socket.read_to_end(&mut Vec::new()).ok();
    }

    fn session(&self, socket: &mut TcpStream, cipher: &mut Cipher) -> Result<(), ErrorCode> {
        let mut head = [0; 8];
        socket.read_exact(&mut head).map_err(|_| ErrorCode::LoginTimeout)?;
        let preamble = Preamble::decode(head)?;
        preamble.agree_version()?;
        let suite = Suite::from_number(preamble.suite).ok_or(ErrorCode::SuiteRefused)?;
        let kind = Kind::from_number(preamble.handshake).ok_or(ErrorCode::HandshakeUnsupported)?;
        if kind == Kind::Ik && preamble.server_key != self.peer.key().id {
            return Err(ErrorCode::ServerKeyUnknown);
        }
        let message = read_message(socket).map_err(|_| ErrorCode::LoginTimeout)?;
        let accepted = self.peer.accept(socket, (kind, suite), head, &message)?;
        if let Some(answer) = &accepted.answer {
            write_handshake(socket, answer);
        }
        *cipher = Cipher::Sealed(suite, accepted.established.keys);
        let login = Login::decode(accepted.login.as_slice()).map_err(|_| ErrorCode::BadHandshake)?;
        self.judge(&login, accepted.established.other)?;
        let ticket = self.peer.give_ticket(&[], accepted.established.resumption);
        let mut out = Vec::new();
        cipher.seal_message(&mut out, RecordType::Welcome, &Welcome { ticket: ticket.into(), ..Default::default() });
        socket.write_all(&out).ok();
        while let Ok(mut body) = read_message(socket) {
            let opened = cipher.open(&mut body).map_err(|_| ErrorCode::RecordForged)?;
            if opened.first() == Some(&(RecordType::Ping as u8)) {
                let mut out = Vec::new();
                cipher.seal_message(&mut out, RecordType::Pong, &Pong::default());
                socket.write_all(&out).ok();
            }
        }
        Ok(())
    }

    fn judge(&self, login: &Login, key: Option<PublicKey>) -> Result<(), ErrorCode> {
        let Some(key) = key else { return Ok(()) };
        let mut devices = self.devices.lock().expect("nobody panics");
        let Some(login::Credential::Token(token)) = &login.credential else {
            let found = devices.get(&(login.user, login.device));
            return if found == Some(&key) { Ok(()) } else { Err(ErrorCode::DeviceUnknown) };
        };
        let claims = token.split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
        let claims: Value = claims.and_then(|claims| serde_json::from_slice(&claims).ok()).unwrap_or_default();
        let thumbprint = URL_SAFE_NO_PAD.encode(key_thumbprint(&key));
        if claims.pointer("/cnf/jkt").and_then(Value::as_str) != Some(thumbprint.as_str()) {
            return Err(ErrorCode::TokenKey);
        }
        let user = claims.get("sub").and_then(Value::as_str).and_then(|user| user.parse().ok());
        let device = claims.get("device").and_then(Value::as_u64).and_then(|device| u32::try_from(device).ok());
        devices.insert(user.zip(device).ok_or(ErrorCode::TokenMalformed)?, key);
        Ok(())
    }
}

fn start() -> (Arc<Server>, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = listener.local_addr().expect("an address");
    let server = Arc::new(Server { peer: Peer::new(), devices: Mutex::default() });
    let serving = Arc::clone(&server);
    // It goes on until the tests end: nobody waits for it.
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (server, mut socket) = (Arc::clone(&serving), socket.expect("somebody comes"));
            std::thread::spawn(move || server.serve(&mut socket));
        }
    });
    (server, target)
}

fn material(credentials: &crate::target::credentials::Credentials, way: Way, number: u64) -> Material {
    let user = UserId(1000 + 4 * number);
    let own = Arc::new(device_key(user, DEVICE));
    let token = credentials.token(user, DEVICE, Some(own.public())).expect("signed");
    Material {
        way,
        rng: plan::rng(number, "test"),
        user,
        own,
        others: Vec::new(),
        token_without_key: credentials.token(user, DEVICE, None).expect("signed"),
        token_expired: token.clone(),
        token_elsewhere: token.clone(),
        token_otherwise_signed: token.clone(),
        token,
    }
}

#[test]
fn every_attack_on_encryption_is_what_it_says() {
    let (server, target) = start();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let credentials = server.peer.credentials(dir.path());
    for suite in Suite::ALL {
        let way = Way::find(target, Some(Sealing { suite, root: server.peer.root })).expect("it tells its key");
        assert_eq!(way.sealed.map(|(_, key)| key), Some(server.peer.key()));
        for (number, attack) in (0..).zip(SEALED) {
            let outcome = attack.strike(&mut material(&credentials, way, number));
            assert_eq!(outcome.expect("it can be carried out"), None, "{}", attack.name);
        }
    }
}

#[test]
fn a_sealed_session_of_an_attacker_is_a_good_one() {
    let (server, target) = start();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let credentials = server.peer.credentials(dir.path());
    let sealing = Sealing { suite: Suite::Aes256Gcm, root: server.peer.root };
    let way = Way::find(target, Some(sealing)).expect("it tells its key");
    let Material { own, token, .. } = material(&credentials, way, 0);
    let mut raw = raw::Raw::connect(target).expect("it listens");
    raw.login(&way, &own, &token).expect("a good login");
    assert!(raw.is_alive().expect("it answers") && raw.is_alive().expect("again"));
    assert!(raw.ticket().is_some_and(|(ticket, secret)| ticket.len() == 32 && secret.is_some()));
    let other = Sealing { root: [1; 32], ..sealing };
    assert!(Way::find(target, Some(other)).is_err(), "a server of another root is not believed");
}
