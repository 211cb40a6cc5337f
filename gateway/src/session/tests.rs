use culver_protocol::crypto::{KeyPair, random};
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, MessageId};
use culver_protocol::limits::PAYLOAD_LEN_MAX;
use culver_protocol::message::SendView;
use culver_protocol::preamble::Preamble;
use culver_protocol::record::{Cipher, Record};
use culver_storage::command::Send;
use culver_storage::record::InboxEntry;
use culver_storage::topology::HUBS_MAX;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::auth::keys::{DevCredentials, TicketKey, TokenKeys};
use crate::auth::{Identity, Root, ServerKeys, TicketContents, TicketSealer, TokenVerifier};
use crate::config::Config;

mod encrypted;
mod inbox;
mod rpc;

const NOW_MS: u64 = 1_800_000_000_000;
const INCARNATION: Incarnation = Incarnation(42);
const ADDRESS: Address = Address { reactor: 0, slot: 1, generation: 2, epoch: 3 };

/// Where records go that nothing seals.
fn plain(bytes: &mut Vec<u8>) -> Records<'_> {
    Records::new(bytes, Box::leak(Box::default()))
}

/// A session, and what it would have done to the world.
struct Bench {
    session: Session,
    authenticator: Authenticator,
    commands: Vec<(HubId, Command)>,
    topology: Topology,
    out: Vec<u8>,
    cipher: Cipher,
    offer: Offer,
    handshakes: Handshakes,
    /// The root of the server's keys, and what makes tokens.
    root: [u8; 32],
    issuer: DevCredentials,
    room: usize,
    slot: u32,
}

impl Bench {
    fn new() -> Self {
        let config = Config::default();
        let keys = TokenKeys::generate().expect("keys");
        let verifier = TokenVerifier::new(&keys.public_pem, &config.token).expect("a fresh key");
        let key = TicketKey::generate().expect("a key");
        let tickets = TicketSealer::new(&key, config.ticket, INCARNATION);
        let root = Root::generate();
        let server = root.certify_pair(1, KeyPair::new(&random()), (0, u64::MAX));
        let authenticator = Authenticator::new(verifier, tickets, ServerKeys::new(vec![server], NOW_MS));
        let topology = Topology::new(64, vec![0; 64], HUBS_MAX).expect("possible");
        let (session, commands, out) = (Session::default(), Vec::new(), Vec::new());
        let (cipher, handshakes) = (Cipher::Plaintext, Handshakes::new(1_000_000));
        let issuer = DevCredentials {
            issuer: config.token.issuer.clone(),
            audience: config.token.audience.clone(),
            algorithm: "EdDSA".to_owned(),
            key_id: "dev".to_owned(),
            private_key_pem: keys.private_pem.to_string(),
            server_root: None,
        };
        let (root, offer, room, slot) = (root.public(), config.offer(), 1000, ADDRESS.slot);
        Self { session, authenticator, commands, topology, out, cipher, offer, handshakes, root, issuer, room, slot }
    }

    /// A token for user 7, device 1, that names this key.
    fn token(&self, device_key: Option<&culver_protocol::crypto::PublicKey>) -> String {
        self.issuer.mint(7, 1, NOW_MS / 1000, 3600, device_key).expect("a token")
    }

    fn give(&mut self, bytes: &[u8]) -> (usize, Outcome) {
        let mut bytes = bytes.to_vec();
        let mut context = Context {
            now_ms: NOW_MS,
            authenticator: &self.authenticator,
            incarnation: INCARNATION,
            topology: &self.topology,
            keep_alive: Config::default().keep_alive,
            address: Address { slot: self.slot, ..ADDRESS },
            room: self.room,
            commands: &mut self.commands,
            out: Records::new(&mut self.out, &mut self.cipher),
            offer: &self.offer,
            handshakes: &mut self.handshakes,
            entropy: &culver_protocol::crypto::random,
        };
        self.session.handle_bytes(&mut bytes, &mut context)
    }

    fn opening(&self) -> Vec<u8> {
        self.opening_with(proto::Login { cursor: 10, ..Default::default() })
    }

    fn opening_with(&self, login: proto::Login) -> Vec<u8> {
        let identity = Identity { user: UserId(7), device: DeviceId(1) };
        let ticket = self.authenticator.issue_ticket(&TicketContents::plaintext(identity), NOW_MS).bytes;
        let login = proto::Login { credential: Some(proto::login::Credential::Ticket(ticket)), ..login };
        let mut bytes = Preamble::PLAINTEXT.encode().to_vec();
        bytes.extend(u16::try_from(login.encoded_len()).expect("short").to_be_bytes());
        bytes.extend(login.encode_to_vec());
        bytes.extend(record(RecordType::Ready, &[]));
        bytes
    }

    fn steady() -> Self {
        let mut bench = Self::new();
        let opening = bench.opening();
        assert_eq!(bench.give(&opening), (opening.len(), Outcome::Hungry));
        bench.session.logged_in(InboxSeq(10), false, false, false, INCARNATION, &mut plain(&mut bench.out));
        bench.commands.clear();
        bench.out.clear();
        bench
    }

    fn deliver(&mut self, previous: u64, seqs: &[u64], unsent: bool) -> usize {
        let entries: Vec<InboxEntry> = seqs.iter().copied().map(entry).collect();
        self.session.deliver(InboxSeq(previous), &entries, unsent, &mut plain(&mut self.out))
    }

    /// What is to be acknowledged to the hub.
    fn ack_pending(&mut self) -> Option<u64> {
        match self.session.take_pending(ADDRESS, true)? {
            Command::Ack { through, .. } => Some(through.0),
            other => panic!("{other:?}"),
        }
    }

    /// The body of the last record, which must be of this type.
    fn last<T: Message + Default>(&self, kind: RecordType) -> T {
        let (found, body) = self.written().pop().expect("a record");
        assert_eq!(found, kind as u8);
        T::decode(body.as_slice()).expect("good protobuf")
    }

    /// The records written so far.
    fn written(&self) -> Vec<(u8, Vec<u8>)> {
        let mut rest = self.out.as_slice();
        let mut records = Vec::new();
        while let Some(range) = split(rest, HEADER_LEN, usize::MAX).expect("sessions write good frames") {
            let end = range.end;
            let record = Record::parse(rest.get(range).expect("split gives a range within")).expect("not empty");
            records.push((record.kind, record.body.to_vec()));
            rest = rest.get(end..).expect("within");
        }
        assert!(rest.is_empty(), "whole records only");
        records
    }

    fn error(&self) -> Option<u32> {
        let (_, body) = self.written().into_iter().rfind(|(kind, _)| *kind == RecordType::Error as u8)?;
        Some(proto::Error::decode(body.as_slice()).expect("a good error").code)
    }
}

fn raw(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(body.len() + 2).expect("short").to_be_bytes().to_vec();
    bytes.extend([kind, 0]);
    bytes.extend(body);
    bytes
}

fn record(kind: RecordType, body: &[u8]) -> Vec<u8> {
    raw(kind as u8, body)
}

fn send(id: &[u8], conversation: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    SendView { client_message_id: id, conversation, payload }.encode(&mut body);
    record(RecordType::Send, &body)
}

fn ack(through: u64) -> Vec<u8> {
    record(RecordType::Ack, &proto::Ack { inbox_seq: through, ..Default::default() }.encode_to_vec())
}

fn entry(seq: u64) -> InboxEntry {
    InboxEntry {
        inbox_seq: InboxSeq(seq),
        conversation: ConversationId([1; 16]),
        conversation_seq: ConversationSeq(seq),
        message_id: MessageId(seq),
        server_time_ms: NOW_MS,
        sender: UserId(8),
        sender_device: DeviceId(1),
        payload: bytes::Bytes::from_static(b"hello"),
    }
}

#[test]
fn a_login_in_one_flight_is_welcomed_and_announced() {
    let mut bench = Bench::new();
    let opening = bench.opening();
    assert_eq!(bench.give(&opening), (opening.len(), Outcome::Hungry));
    assert_eq!(bench.written().first().map(|(kind, _)| *kind), Some(RecordType::Welcome as u8));
    assert!(matches!(bench.commands.as_slice(), [(_, Command::Login { cursor: InboxSeq(10), fetch: false, .. })]));
}

#[test]
fn nothing_behind_ready_is_passed_on_before_the_hub_has_let_the_session_in() {
    let mut bench = Bench::new();
    let opening = bench.opening();
    let behind = [send(&[4; 16], &[0; 16], b"early"), record(RecordType::Ping, &[])].concat();
    assert_eq!(bench.give(&[opening.clone(), behind.clone()].concat()), (opening.len(), Outcome::Entering));
    assert_eq!((bench.commands.len(), bench.written().len()), (1, 1), "the login and its WELCOME");
    bench.session.logged_in(InboxSeq(10), false, false, false, INCARNATION, &mut plain(&mut bench.out));
    assert_eq!(bench.give(&behind), (behind.len(), Outcome::Hungry));
    assert_eq!((bench.commands.len(), bench.written().len()), (2, 2));
}

#[test]
fn what_was_acknowledged_before_a_reset_was_heard_of_moves_nothing() {
    for reset in [true, false] {
        let mut bench = Bench::new();
        let opening = bench.opening();
        bench.give(&opening);
        bench.session.logged_in(InboxSeq(3), reset, !reset, false, INCARNATION, &mut plain(&mut bench.out));
        let outcome = if reset { Outcome::Hungry } else { Outcome::Over(ErrorCode::AckBeyondSent) };
        assert_eq!(bench.give(&ack(10)).1, outcome);
        assert_eq!(bench.ack_pending(), None);
    }
}

#[test]
fn what_is_wrong_is_named_once_and_ends_the_session() {
    let cases: [(&str, Vec<u8>, ErrorCode); 10] = [
        ("zero length", vec![0, 0], ErrorCode::RecordEmpty),
        ("one byte", vec![0, 1, 3], ErrorCode::RecordEmpty),
        ("oversized", vec![0xff, 0xff], ErrorCode::RecordTooLong),
        ("READY again", record(RecordType::Ready, &[]), ErrorCode::OutOfState),
        ("a server's record", record(RecordType::Welcome, &[]), ErrorCode::OutOfState),
        ("bad ping", record(RecordType::Ping, &[0xff]), ErrorCode::BadProtobuf),
        ("bad send", record(RecordType::Send, &[0x0a, 0x7f]), ErrorCode::BadProtobuf),
        ("bad ack", record(RecordType::Ack, &[0x0a]), ErrorCode::BadProtobuf),
        ("ack beyond", ack(11), ErrorCode::AckBeyondSent),
        ("ack far beyond", ack(u64::MAX), ErrorCode::AckBeyondSent),
    ];
    for (name, bytes, code) in cases {
        let mut bench = Bench::steady();
        let mut twice = bytes.clone();
        twice.extend(&bytes);
        assert_eq!(bench.give(&twice).1, Outcome::Over(code), "{name}");
        assert_eq!(bench.error(), Some(code.number()), "{name}");
        assert_eq!(bench.written().len(), 1, "{name}: one error");
        assert!(bench.commands.is_empty(), "{name}");
        assert_eq!(bench.give(&ack(1)).1, Outcome::Hungry, "{name}: deaf from now on");
    }
}

#[test]
fn what_is_wrong_before_the_login_is_named_too() {
    let mut bad_suite = Preamble::PLAINTEXT.encode();
    bad_suite[5] = 9;
    let mut bad_version = Preamble::PLAINTEXT.encode();
    bad_version[2] = 9;
    bad_version[3] = 12;
    let mut garbage = Preamble::PLAINTEXT.encode().to_vec();
    garbage.extend([0, 4, 0xff, 0xff, 0xff, 0xff]);
    let mut long = Preamble::PLAINTEXT.encode().to_vec();
    long.extend([0xff, 0xff]);
    let cases: [(Vec<u8>, ErrorCode); 5] = [
        (b"GET / HTTP/1.1\r\n".to_vec(), ErrorCode::BadMagic),
        (bad_suite.to_vec(), ErrorCode::SuiteRefused),
        (bad_version.to_vec(), ErrorCode::VersionUnsupported),
        (garbage, ErrorCode::BadHandshake),
        (long, ErrorCode::BadHandshake),
    ];
    for (bytes, code) in cases {
        let mut bench = Bench::new();
        assert_eq!(bench.give(&bytes).1, Outcome::Over(code));
        assert_eq!(bench.error(), Some(code.number()));
    }
    let mut bench = Bench::new();
    assert_eq!(bench.give(b"G").1, Outcome::Over(ErrorCode::BadMagic), "the first wrong letter is enough");
}

#[test]
fn what_concerns_one_request_leaves_the_session_alive() {
    let mut bench = Bench::steady();
    let mut bytes = raw(0x6f, b"whatever");
    bytes.extend(raw(0xef, b"may be ignored"));
    bytes.extend(send(&[1; 15], &[0; 16], b"short id"));
    bytes.extend(send(&[2; 16], &[0; 3], b"short conversation"));
    bytes.extend(send(&[3; 16], &[0; 16], &vec![0; PAYLOAD_LEN_MAX + 1]));
    bytes.extend(send(&[4; 16], &[0; 16], b"good"));
    assert_eq!(bench.give(&bytes), (bytes.len(), Outcome::Hungry));
    let kinds: Vec<u8> = bench.written().iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [0x06, 0x06, 0x11, 0x11]);
    assert_eq!(bench.commands.len(), 1);
}

#[test]
fn acknowledgements_merge_into_the_highest() {
    let mut bench = Bench::steady();
    assert_eq!(
        bench.session.deliver(InboxSeq(10), &[entry(11), entry(12), entry(13)], false, &mut plain(&mut bench.out)),
        3
    );
    let mut bytes = ack(11);
    bytes.extend(ack(13));
    bytes.extend(ack(12));
    assert_eq!(bench.give(&bytes).1, Outcome::Hungry);
    let Some(Command::Ack { through, .. }) = bench.session.take_pending(ADDRESS, false) else { panic!("an ACK waits") };
    assert_eq!(through, InboxSeq(13));
    assert!(bench.session.take_pending(ADDRESS, false).is_none());
}

#[test]
fn deliveries_join_on_or_are_dropped() {
    let mut bench = Bench::steady();
    let mut out = Vec::new();
    assert_eq!(bench.session.deliver(InboxSeq(11), &[entry(12)], false, &mut plain(&mut out)), 0, "a hole");
    assert_eq!(
        bench.session.deliver(InboxSeq(10), &[entry(11)], true, &mut plain(&mut out)),
        0,
        "earlier bytes are unsent"
    );
    assert_eq!(
        bench.session.deliver(InboxSeq(11), &[entry(12)], false, &mut plain(&mut out)),
        0,
        "behind a dropped one"
    );
    assert!(bench.session.take_pending(ADDRESS, true).is_none(), "not before the bytes are sent");
    let Some(Command::Resume { sent, .. }) = bench.session.take_pending(ADDRESS, false) else { panic!("resumes") };
    assert_eq!(sent, InboxSeq(10));
    assert_eq!(bench.session.deliver(InboxSeq(10), &[entry(11), entry(12)], false, &mut plain(&mut out)), 2);
    assert_eq!(bench.session.told(), InboxSeq(12));
}

#[test]
fn without_room_for_commands_the_rest_waits() {
    let mut bench = Bench::steady();
    bench.room = 2;
    let one = send(&[4; 16], &[0; 16], b"good");
    let bytes = one.repeat(5);
    assert_eq!(bench.give(&bytes), (one.len() * 2, Outcome::Stalled));
    bench.room = 10;
    assert_eq!(bench.give(&one.repeat(3)), (one.len() * 3, Outcome::Hungry));
    assert_eq!(bench.commands.len(), 5);
}

#[test]
fn a_reset_tells_the_client_where_to_go_on() {
    let mut bench = Bench::steady();
    bench.session.logged_in(InboxSeq(3), true, false, false, INCARNATION, &mut plain(&mut bench.out));
    let written = bench.written();
    let (kind, body) = written.first().expect("a GAP");
    assert_eq!(*kind, RecordType::Gap as u8);
    let gap = proto::Gap::decode(body.as_slice()).expect("good");
    assert_eq!((gap.start, gap.reset, gap.incarnation), (4, true, 42));
}

#[test]
fn what_the_login_says_reaches_the_hub() {
    let known = |incarnation| {
        let mut bench = Bench::new();
        let login = proto::Login { cursor: 5, incarnation, fetch: true, receipts: 9, ..Default::default() };
        let opening = bench.opening_with(login);
        bench.give(&opening);
        let [(hub, Command::Login { cursor: InboxSeq(5), incarnation, fetch: true, receipts: 9, .. })] =
            bench.commands.as_slice()
        else {
            panic!("{:?}", bench.commands);
        };
        assert_eq!(*hub, bench.topology.hub_of_user(UserId(7)));
        assert_eq!(bench.session.hubs(), 1 << hub.0);
        *incarnation
    };
    assert_eq!(known(0), Incarnation(0));
    assert_eq!(known(42), INCARNATION);
    assert!(![Incarnation(0), INCARNATION].contains(&known(41)), "other data stays other data");
}

#[test]
fn a_message_goes_to_its_conversations_hub_and_that_is_remembered() {
    let mut bench = Bench::steady();
    let mut hubs = bench.session.hubs();
    for peer in 100..200 {
        let conversation = ConversationId::direct(UserId(7), UserId(peer));
        bench.give(&send(&[1; 16], &conversation.0, b"hello"));
        let (hub, command) = bench.commands.pop().expect("a command");
        assert!(matches!(command, Command::Send { send: Send { copy: false, .. }, .. }));
        assert_eq!(hub, bench.topology.hub_of_conversation(conversation));
        hubs |= 1 << hub.0;
        assert_eq!(bench.session.hubs(), hubs);
    }
    assert_eq!(hubs, u16::MAX, "every hub had one");
}

#[test]
fn copies_are_wanted_where_there_are_other_devices() {
    let mut bench = Bench::new();
    let opening = bench.opening();
    bench.give(&opening);
    let copy = |bench: &mut Bench| {
        bench.give(&send(&[1; 16], &[0; 16], b"hello"));
        let Some((_, Command::Send { send, .. })) = bench.commands.pop() else { panic!("a SEND") };
        send.copy
    };
    bench.session.logged_in(InboxSeq(10), false, false, false, INCARNATION, &mut plain(&mut bench.out));
    assert!(!copy(&mut bench));
    for siblings in [true, false, true] {
        bench.session.set_siblings(siblings);
        assert_eq!(copy(&mut bench), siblings);
    }
}

proptest! {
    /// However the stream is cut, the same commands and records come out.
    #[test]
    fn cuts_do_not_matter(cuts in proptest::collection::vec(1_usize..40, 0..60)) {
        let mut whole = Bench::new();
        let mut stream = whole.opening();
        stream.extend(send(&[4; 16], &ConversationId::direct(UserId(7), UserId(8)).0, b"payload"));
        stream.extend(record(RecordType::Ping, &proto::Ping { nonce: 5, ..Default::default() }.encode_to_vec()));
        stream.extend(ack(10));
        stream.extend(record(RecordType::Rpc, &proto::Rpc { id: 1, request: None }.encode_to_vec()));
        stream.extend(send(&ClientMessageId([5; 16]).0, &[0; 16], &[7; 300]));
        let mut split_up = Bench::new();
        split_up.authenticator = std::mem::replace(&mut whole.authenticator, Bench::new().authenticator);
        let mut pending = Vec::new();
        let mut rest = stream.as_slice();
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            pending.extend(now);
            let (taken, outcome) = split_up.give(&pending);
            pending.drain(..taken);
            if split_up.session.is_entering() {
                prop_assert_eq!(outcome, if pending.is_empty() { Outcome::Hungry } else { Outcome::Entering });
                let mut out = plain(&mut split_up.out);
                split_up.session.logged_in(InboxSeq(10), false, false, false, INCARNATION, &mut out);
                let (taken, outcome) = split_up.give(&pending);
                prop_assert_eq!(outcome, Outcome::Hungry);
                pending.drain(..taken);
            } else {
                prop_assert_eq!(outcome, Outcome::Hungry);
            }
            rest = later;
        }
        prop_assert!(pending.is_empty());
        prop_assert_eq!(split_up.commands.len(), 3);
        let kinds: Vec<u8> = split_up.written().iter().map(|(kind, _)| *kind).collect();
        prop_assert_eq!(kinds, vec![RecordType::Welcome as u8, RecordType::Pong as u8, RecordType::RpcResult as u8]);
    }

    /// No bytes whatever make a session panic or write half a record.
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300), logged_in: bool) {
        let mut bench = if logged_in { Bench::steady() } else { Bench::new() };
        bench.give(&bytes);
        bench.written();
    }
}
