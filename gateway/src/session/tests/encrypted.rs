//! Encrypted logins and records, against the protocol's own client side of the handshake.

use std::sync::Arc;

use culver_protocol::crypto::{KeyPair, Secret, Suite, fingerprint, random};
use culver_protocol::handshake::Kind;
use culver_protocol::handshake::client::{Done, How, ServerKey, Waiting, begin};

use super::*;
use crate::hub::command::Proof;

/// A device with a key of its own, and what it knows of the connection.
struct Client {
    own: Arc<KeyPair>,
    suite: Suite,
    cipher: Cipher,
    resumption: Option<Secret>,
    ticket: Vec<u8>,
}

impl Client {
    fn new(suite: Suite) -> Self {
        let own = Arc::new(KeyPair::new(&random()));
        Self { own, suite, cipher: Cipher::Plaintext, resumption: None, ticket: Vec::new() }
    }

    fn how(&self, kind: Kind, bench: &Bench) -> How {
        let own = Arc::clone(&self.own);
        let server = bench.authenticator.current_server_key();
        match kind {
            Kind::Xx => How::Xx { own, roots: bench.root.into() },
            Kind::Ik => {
                let server = ServerKey { id: server.id, public: *server.pair.public(), not_after_ms: u64::MAX };
                How::Ik { own, server }
            }
            Kind::Resume | Kind::ResumeForwardSecret => How::Ticket {
                ticket: self.ticket.clone(),
                secret: self.resumption.clone().expect("a ticket came before"),
                forward_secret: kind == Kind::ResumeForwardSecret,
            },
        }
    }

    fn open(&self, kind: Kind, login: &proto::Login, bench: &Bench) -> (Vec<u8>, Waiting) {
        let how = self.how(kind, bench);
        let (preamble, message, waiting) = begin(&how, self.suite, &login.encode_to_vec(), random()).expect("begins");
        let mut bytes = preamble.encode().to_vec();
        bytes.extend(framed(&message));
        (bytes, waiting)
    }

    fn finish(&mut self, done: Done) -> Option<Vec<u8>> {
        self.cipher = Cipher::Sealed(self.suite, done.established.keys);
        self.resumption = Some(done.established.resumption);
        done.last
    }

    fn seal(&mut self, kind: RecordType, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.cipher.seal(&mut out, kind, |out| out.extend_from_slice(body));
        out
    }

    /// Everything the server has written since it was last looked at.
    fn read(&mut self, bench: &mut Bench) -> Vec<(u8, Vec<u8>)> {
        let mut rest = std::mem::take(&mut bench.out);
        let mut records = Vec::new();
        while let Some(range) = split(&rest, HEADER_LEN, usize::MAX).expect("good frames") {
            let after = rest.split_off(range.end);
            let body = rest.get_mut(range).expect("within");
            let opened = self.cipher.open(body).expect("the server's next record");
            let record = Record::parse(opened).expect("not empty");
            records.push((record.kind, record.body.to_vec()));
            rest = after;
        }
        assert!(rest.is_empty(), "whole records only");
        records
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(message.len()).expect("short").to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    bytes
}

/// The HANDSHAKE record that a bench's session wrote, taken off what it wrote.
fn handshake(bench: &mut Bench) -> Vec<u8> {
    let range = split(&bench.out, HEADER_LEN, usize::MAX).expect("a good frame").expect("whole");
    let rest = bench.out.split_off(range.end);
    let answer = std::mem::replace(&mut bench.out, rest);
    let record = Record::parse(answer.get(range).expect("within")).expect("not empty");
    assert_eq!(record.kind, RecordType::Handshake as u8, "{record:?}");
    record.body.to_vec()
}

/// Logs in up to WELCOME and keeps its ticket; the login travels in the handshake.
fn log_in(client: &mut Client, kind: Kind, login: &proto::Login, bench: &mut Bench) {
    let (bytes, waiting) = client.open(kind, login, bench);
    assert_eq!(bench.give(&bytes), (bytes.len(), Outcome::Hungry));
    let done = waiting.finish(&handshake(bench), NOW_MS).expect("the server's answer");
    if let Some(last) = client.finish(done) {
        let bytes = framed(&last);
        assert_eq!(bench.give(&bytes), (bytes.len(), Outcome::Hungry));
    }
    let records = client.read(bench);
    let [(kind, body)] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(*kind, RecordType::Welcome as u8);
    client.ticket = proto::Welcome::decode(body.as_slice()).expect("a WELCOME").ticket.to_vec();
}

fn named() -> proto::Login {
    proto::Login { user: 7, device: 1, cursor: 10, ..Default::default() }
}

/// A session anew on the same server.
fn again(bench: &mut Bench) {
    (bench.session, bench.cipher) = (Session::default(), Cipher::Plaintext);
    bench.commands.clear();
    bench.out.clear();
    bench.handshakes.forget(ADDRESS.slot);
    bench.handshakes.begin_turn(1 << 40);
}

fn announced(bench: &Bench) -> (Device, Option<[u8; 16]>, Proof) {
    match bench.commands.as_slice() {
        [(_, Command::Login { device, fingerprint, proof, .. })] => (*device, *fingerprint, *proof),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_handshake_leads_to_a_sealed_session_and_shows_the_hub_the_key() {
    for suite in Suite::ALL {
        let (mut bench, mut client) = (Bench::new(), Client::new(suite));
        let own = fingerprint(client.own.public());
        for kind in [Kind::Xx, Kind::Ik, Kind::Resume, Kind::ResumeForwardSecret] {
            again(&mut bench);
            log_in(&mut client, kind, &named(), &mut bench);
            assert!(bench.commands.is_empty(), "nothing happens before READY");
            let ready = client.seal(RecordType::Ready, &[]);
            assert_eq!(bench.give(&ready), (ready.len(), Outcome::Hungry));
            let device = Device { user: UserId(7), device: DeviceId(1) };
            let proof = match kind {
                Kind::Xx | Kind::Ik => Proof::Registered,
                Kind::Resume | Kind::ResumeForwardSecret => Proof::Ticket { issued_s: NOW_MS / 1000 },
            };
            assert_eq!(announced(&bench), (device, Some(own), proof), "{kind:?}");
            assert!(bench.handshakes.is_empty(), "nothing is kept of a login that is through");
            let ping = client.seal(RecordType::Ping, &proto::Ping { nonce: 3, ..Default::default() }.encode_to_vec());
            assert_eq!(bench.give(&ping), (0, Outcome::Entering), "its hub has not seen the key yet");
            let mut out = Records::new(&mut bench.out, &mut bench.cipher);
            bench.session.logged_in(InboxSeq(10), false, false, false, INCARNATION, &mut out);
            assert_eq!(bench.give(&ping), (ping.len(), Outcome::Hungry));
            assert_eq!(
                client.read(&mut bench),
                [(RecordType::Pong as u8, proto::Pong { nonce: 3, ..Default::default() }.encode_to_vec())]
            );
        }
    }
}

#[test]
fn a_record_that_is_flipped_repeated_left_out_or_cut_ends_the_session() {
    type Attack = fn(Vec<u8>, Vec<u8>) -> Vec<u8>;
    let attacks: [(&str, Attack); 4] = [
        ("a flipped bit", |mut first, _| {
            *first.last_mut().expect("bytes") ^= 1;
            first
        }),
        ("a repeated record", |first, _| [first.clone(), first].concat()),
        ("one left out", |_, second| second),
        ("one cut short", |mut first, second| {
            first.truncate(first.len() - 1);
            [first, second].concat()
        }),
    ];
    for (name, attack) in attacks {
        let (mut bench, mut client) = (Bench::new(), Client::new(Suite::ChaCha20Poly1305));
        log_in(&mut client, Kind::Xx, &named(), &mut bench);
        let first = client.seal(RecordType::Ping, &[]);
        let second = client.seal(RecordType::Ping, &[]);
        let (_, outcome) = bench.give(&attack(first, second));
        assert_eq!(outcome, Outcome::Over(ErrorCode::RecordForged), "{name}");
    }
}

#[test]
fn a_recorded_first_flight_begins_no_session() {
    for kind in [Kind::Ik, Kind::Resume, Kind::ResumeForwardSecret] {
        let (mut bench, mut client) = (Bench::new(), Client::new(Suite::ChaCha20Poly1305));
        log_in(&mut client, Kind::Xx, &named(), &mut bench);
        again(&mut bench);
        let (recorded, waiting) = client.open(kind, &named(), &bench);
        bench.give(&recorded);
        let done = waiting.finish(&handshake(&mut bench), NOW_MS).expect("the server's answer");
        client.finish(done);
        let ready = client.seal(RecordType::Ready, &[]);
        // The same bytes on another connection, READY behind them.
        again(&mut bench);
        let (taken, outcome) = bench.give(&[recorded.clone(), ready].concat());
        assert_eq!((taken, outcome), (recorded.len() + 2 + 2 + 16, Outcome::Over(ErrorCode::RecordForged)), "{kind:?}");
        assert!(bench.commands.is_empty(), "{kind:?}: no hub hears of it");
    }
}

#[test]
fn whoever_has_another_key_sends_nothing() {
    let (mut bench, mut client) = (Bench::new(), Client::new(Suite::ChaCha20Poly1305));
    log_in(&mut client, Kind::Xx, &named(), &mut bench);
    let mut body = Vec::new();
    SendView { client_message_id: &[1; 16], conversation: &[2; 16], payload: b"as another" }.encode(&mut body);
    let bytes = [client.seal(RecordType::Ready, &[]), client.seal(RecordType::Send, &body)].concat();
    let (taken, outcome) = bench.give(&bytes);
    assert_eq!((taken, outcome), (2 + 2 + 16, Outcome::Entering), "READY, and nothing behind it");
    assert!(matches!(bench.commands.as_slice(), [(_, Command::Login { .. })]));
    let mut out = Records::new(&mut bench.out, &mut bench.cipher);
    bench.session.end(ErrorCode::DeviceUnknown, &mut out);
    bench.give(bytes.get(taken..).expect("the SEND"));
    assert_eq!(bench.commands.len(), 1, "no SEND goes to any hub");
}

#[test]
fn a_token_must_name_the_key_that_the_handshake_showed() {
    let (mut bench, mut client) = (Bench::new(), Client::new(Suite::Aes256Gcm));
    let with = |token: String| proto::Login { credential: Some(proto::login::Credential::Token(token)), ..named() };
    let good = with(bench.token(Some(client.own.public())));
    log_in(&mut client, Kind::Xx, &good, &mut bench);
    let ready = client.seal(RecordType::Ready, &[]);
    bench.give(&ready);
    assert!(matches!(announced(&bench).2, Proof::Token { issued_s } if issued_s > 0));
    for token in [bench.token(Some(KeyPair::new(&random()).public())), bench.token(None)] {
        again(&mut bench);
        let (bytes, _) = client.open(Kind::Ik, &with(token), &bench);
        assert_eq!(bench.give(&bytes).1, Outcome::Over(ErrorCode::TokenKey));
    }
}

#[test]
fn a_token_that_names_a_key_is_no_good_in_plaintext() {
    let mut bench = Bench::new();
    let own = KeyPair::new(&random());
    for (key, outcome) in [(None, Outcome::Hungry), (Some(own.public()), Outcome::Over(ErrorCode::TokenKey))] {
        again(&mut bench);
        let token = Some(proto::login::Credential::Token(bench.token(key)));
        let login = proto::Login { credential: token, cursor: 10, ..Default::default() }.encode_to_vec();
        let ready = record(RecordType::Ready, &[]);
        assert_eq!(bench.give(&[Preamble::PLAINTEXT.encode().to_vec(), framed(&login), ready].concat()).1, outcome);
        assert_eq!(bench.commands.len(), usize::from(key.is_none()));
        if key.is_none() {
            assert_eq!(announced(&bench).1, None);
            assert_eq!(announced(&bench).2, Proof::PlaintextToken { issued_s: NOW_MS / 1000 });
        }
    }
    again(&mut bench);
    let opening = bench.opening();
    bench.give(&opening);
    assert_eq!(announced(&bench).2, Proof::PlaintextTicket { issued_s: NOW_MS / 1000 });
}

#[test]
fn tickets_of_plaintext_and_of_encryption_are_not_good_for_each_other() {
    let (mut bench, mut client) = (Bench::new(), Client::new(Suite::Aes256Gcm));
    log_in(&mut client, Kind::Xx, &named(), &mut bench);
    again(&mut bench);
    let ticket = Some(proto::login::Credential::Ticket(client.ticket.clone().into()));
    let login = proto::Login { credential: ticket, ..named() }.encode_to_vec();
    let plaintext = [Preamble::PLAINTEXT.encode().to_vec(), framed(&login)].concat();
    assert_eq!(bench.give(&plaintext).1, Outcome::Over(ErrorCode::TicketInvalid));
    again(&mut bench);
    let identity = Identity { user: UserId(7), device: DeviceId(1) };
    client.ticket = bench.authenticator.issue_ticket(&TicketContents::plaintext(identity), NOW_MS).bytes.to_vec();
    let (bytes, _) = client.open(Kind::Resume, &named(), &bench);
    assert_eq!(bench.give(&bytes).1, Outcome::Over(ErrorCode::TicketInvalid));
}

#[test]
fn what_is_not_offered_is_refused() {
    let (mut bench, mut client) = (Bench::new(), Client::new(Suite::Aes256Gcm));
    log_in(&mut client, Kind::Xx, &named(), &mut bench);
    bench.offer = Offer { plaintext: false, suites: vec![Suite::ChaCha20Poly1305], forward_secrecy: true };
    let mut refusal = |bytes: &[u8]| {
        again(&mut bench);
        match bench.give(bytes).1 {
            Outcome::Over(code) => code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refusal(&Preamble::PLAINTEXT.encode()), ErrorCode::SuiteRefused);
    let noise = |handshake, suite| Preamble { handshake, suite, ..Preamble::PLAINTEXT }.encode();
    assert_eq!(refusal(&noise(2, 2)), ErrorCode::SuiteRefused);
    assert_eq!(refusal(&noise(2, 0)), ErrorCode::SuiteRefused, "no handshake in plaintext");
    assert_eq!(refusal(&noise(5, 1)), ErrorCode::HandshakeUnsupported);
    client.suite = Suite::ChaCha20Poly1305;
    let bench_now = Bench::new();
    let (symmetric, _) = client.open(Kind::Resume, &named(), &bench_now);
    assert_eq!(refusal(&symmetric), ErrorCode::TicketStale, "forward secrecy is demanded");
    let unknown = Preamble { handshake: 1, suite: 1, server_key: 99, ..Preamble::PLAINTEXT }.encode();
    assert_eq!(refusal(&[unknown.as_slice(), &framed(&[0; 96])].concat()), ErrorCode::ServerKeyUnknown);
    let garbage = [noise(2, 1).as_slice(), &framed(&[0xff; 40])].concat();
    assert_eq!(refusal(&garbage), ErrorCode::BadHandshake);
}

#[test]
fn a_client_changes_its_key_and_the_server_follows() {
    let (mut bench, mut client) = (Bench::new(), Client::new(Suite::ChaCha20Poly1305));
    log_in(&mut client, Kind::Xx, &named(), &mut bench);
    let mut bytes = Vec::new();
    client.cipher.change_key(&mut bytes);
    bytes.extend(client.seal(RecordType::Ping, &[]));
    assert_eq!(bench.give(&bytes), (bytes.len(), Outcome::Hungry));
    // The server's REKEY is under its old key, the PONG behind it under its new one.
    let answer = std::mem::take(&mut bench.out);
    let rekey_len = 2 + 2 + 16;
    bench.out = answer.get(..rekey_len).expect("a REKEY").to_vec();
    assert_eq!(client.read(&mut bench), [(RecordType::Rekey as u8, Vec::new())]);
    client.cipher.follow_key();
    bench.out = answer.get(rekey_len..).expect("a PONG").to_vec();
    assert_eq!(client.read(&mut bench), [(RecordType::Pong as u8, Vec::new())]);
}

#[test]
fn handshakes_wait_their_turn_and_are_told_when_there_are_too_many() {
    let mut bench = Bench::new();
    bench.handshakes = Handshakes::new(10_000);
    bench.handshakes.begin_turn(1);
    let client = Client::new(Suite::ChaCha20Poly1305);
    let (bytes, _) = client.open(Kind::Xx, &named(), &bench);
    assert_eq!(bench.give(&bytes), (bytes.len(), Outcome::Hungry));
    // Another in the same turn has to wait for the next, and takes nothing.
    bench.session = Session::default();
    assert_eq!(bench.give(&bytes), (0, Outcome::Later));
    let mut answered = 1;
    loop {
        bench.handshakes.begin_turn(1);
        bench.session = Session::default();
        bench.handshakes.forget(ADDRESS.slot);
        match bench.give(&bytes).1 {
            Outcome::Hungry => answered += 1,
            Outcome::Over(code) => break assert_eq!(code, ErrorCode::LoginsBusy),
            other => panic!("{other:?}"),
        }
        assert!(answered < 10_000, "it never ends");
    }
    // Time brings more.
    bench.handshakes.begin_turn(100_000_000);
    bench.session = Session::default();
    bench.handshakes.forget(ADDRESS.slot);
    assert_eq!(bench.give(&bytes).1, Outcome::Hungry);
    // Where little may be taken at once, the second is told so, however long nothing was.
    bench.handshakes = Handshakes::new(1).with_burst(300);
    for expected in [Outcome::Hungry, Outcome::Over(ErrorCode::LoginsBusy)] {
        bench.handshakes.begin_turn(200_000_000);
        bench.session = Session::default();
        assert_eq!(bench.give(&bytes).1, expected);
    }
}

#[test]
fn handshakes_that_nobody_goes_on_with_keep_nobody_out() {
    const WAITING_MAX: u32 = 1024;
    let mut bench = Bench::new();
    let client = Client::new(Suite::ChaCha20Poly1305);
    let mut begun: Vec<_> = (0..=WAITING_MAX)
        .map(|slot| {
            bench.slot = slot;
            (bench.session, bench.cipher) = (Session::default(), Cipher::Plaintext);
            bench.handshakes.begin_turn(u64::from(slot) * 1_000_000);
            let (bytes, waiting) = client.open(Kind::Xx, &named(), &bench);
            assert_eq!(bench.give(&bytes), (bytes.len(), Outcome::Hungry), "slot {slot}");
            let done = waiting.finish(&handshake(&mut bench), NOW_MS).expect("the server's answer");
            (slot, std::mem::take(&mut bench.session), framed(&done.last.expect("a third message")))
        })
        .collect();
    // The oldest has given way, and nobody else.
    let newest = begun.pop();
    for (slot, session, last) in begun.drain(..2).chain(newest) {
        (bench.slot, bench.session, bench.cipher) = (slot, session, Cipher::Plaintext);
        let expected = if slot == 0 { Outcome::Over(ErrorCode::LoginsBusy) } else { Outcome::Hungry };
        assert_eq!(bench.give(&last), (last.len(), expected), "slot {slot}");
    }
    // Those that have gone on, and those that have gone, make room.
    for slot in 0..=WAITING_MAX {
        bench.handshakes.forget(slot);
    }
    assert!(bench.handshakes.is_empty());
}
