//! A model of a server: small enough to be plainly right, and as unhelpful as the protocol allows one to be.
//!
//! What must outlive a connection is in [`Server`], what dies with it in [`Session`]. It panics where the client
//! breaks the protocol.

mod outgoing;
mod receipts;
mod vault;

use std::collections::HashMap;

use bytes::Bytes;
use culver_protocol::crypto::{PublicKey, Secret};
use culver_protocol::error::ErrorCode;
use culver_protocol::handshake::server::Awaiting;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::limits::{CLIENT_BODY_LEN_MAX, HANDSHAKE_LEN_MAX, HEADER_LEN, PREAMBLE_LEN, RPCS_IN_FLIGHT_MAX};
use culver_protocol::message::{Accepted, SendView, decode_ack};
use culver_protocol::preamble::Preamble;
use culver_protocol::proto;
use culver_protocol::proto::error::Scope;
use culver_protocol::record::{Cipher, FrameError, Record, RecordType, split};
use prost::Message;
use rand::Rng;
use rand::rngs::SmallRng;

pub(crate) use receipts::Marks;
pub(crate) use vault::{UNIX_MS, Vault};

/// The client's user.
pub(crate) const USER: UserId = UserId(1);
/// The client's device.
pub(crate) const DEVICE: DeviceId = DeviceId(3);

/// How often, in percent, the server does what it need not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) reject_for_now: u32,
    pub(crate) reject_for_good: u32,
    pub(crate) refuse_ticket: u32,
    pub(crate) goaway: u32,
    pub(crate) redeliver: u32,
    pub(crate) noise: u32,
    pub(crate) expire: u32,
    pub(crate) busy: u32,
    /// The device is forgotten when it comes without a token.
    pub(crate) unregister: u32,
    /// The server's key is unknown to it.
    pub(crate) forget_key: u32,
    pub(crate) rekey: u32,
}

/// Who sent an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Peer,
    /// Another device of the client's user.
    Sibling,
    /// The client itself: it never gets that back.
    Client,
}

/// An entry of the client's inbox; the first has inbox seq 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) conversation: ConversationId,
    pub(crate) seq: u64,
    pub(crate) sender: Sender,
}

#[derive(Default)]
pub(crate) struct Server {
    pub(crate) faults: Faults,
    /// `None`: everything is plaintext.
    pub(crate) vault: Option<Vault>,
    /// Whether the user has other devices, and so gets copies.
    siblings: bool,
    fetch: bool,
    /// In the order accepted.
    pub(crate) accepted: Vec<(ConversationId, ClientMessageId)>,
    /// Rejected for good, once is enough.
    pub(crate) refused: Vec<ClientMessageId>,
    results: HashMap<ClientMessageId, Accepted>,
    pub(crate) inbox: Vec<Row>,
    /// The device's cursor: acknowledged by it, skipped for it, or expired.
    pub(crate) acked: u64,
    /// The greatest that the client has acknowledged itself.
    acked_by_client: u64,
    /// Expired up to here.
    pub(crate) floor: u64,
    pub(crate) marks: Marks,
    seqs: HashMap<ConversationId, u64>,
}

#[derive(Default)]
pub(crate) struct Session {
    incoming: Vec<u8>,
    /// The preamble.
    opening: Option<[u8; PREAMBLE_LEN]>,
    /// Noise XX, between the client's two messages.
    awaiting: Option<Awaiting>,
    cipher: Cipher,
    /// The device's key, and the secret of the ticket to come.
    key: Option<PublicKey>,
    resumption: Option<Secret>,
    /// The login showed a ticket, outside of itself.
    resumed: bool,
    login: Option<proto::Login>,
    welcomed: bool,
    ready: bool,
    /// Everything up to here was sent or skipped.
    sent: u64,
    /// The last that the client was told of: the next `previous`.
    told: u64,
    acked: u64,
    acked_by_client: u64,
    gap: bool,
    sync: Option<proto::SyncStart>,
    sync_through: Option<u64>,
    /// What the client's application had persisted when it connected.
    receipts_persisted: u64,
    receipts_told: u64,
    answers: Vec<proto::RpcResult>,
    /// Rejected for now, so that what follows it in its conversation must wait.
    rejected: HashMap<ConversationId, ClientMessageId>,
    /// The server closes as soon as its bytes are out.
    pub(crate) closing: bool,
}

impl Session {
    pub(crate) fn new(receipts_persisted: u64) -> Self {
        Self { receipts_persisted, ..Self::default() }
    }

    fn seal(&mut self, out: &mut Vec<u8>, kind: RecordType, write: impl FnOnce(&mut Vec<u8>)) {
        self.cipher.seal(out, kind, write);
    }

    fn put(&mut self, out: &mut Vec<u8>, kind: RecordType, message: &impl Message) {
        self.cipher.seal_message(out, kind, message);
    }

    /// A record of a type that nobody knows.
    fn put_unknown(&mut self, out: &mut Vec<u8>, body: &[u8]) {
        let len = u16::try_from(body.len() + self.cipher.overhead()).expect("short");
        let mut body = body.to_vec();
        out.extend_from_slice(&len.to_be_bytes());
        let tag = match &mut self.cipher {
            Cipher::Plaintext => Vec::new(),
            Cipher::Sealed(suite, keys) => keys.sending.seal(*suite, &mut body).to_vec(),
        };
        out.extend_from_slice(&body);
        out.extend_from_slice(&tag);
    }

    fn put_rejection(&mut self, out: &mut Vec<u8>, id: ClientMessageId, code: ErrorCode, retry_after_ms: u32) {
        let client_message_id = Bytes::copy_from_slice(&id.0);
        let scope = Scope::Conversation.into();
        let error = proto::Error { code: code.number(), retry_after_ms, scope, ..Default::default() };
        let result = proto::SendResult { client_message_id, error: Some(error), ..Default::default() };
        self.put(out, RecordType::SendResult, &result);
    }

    /// The last word on this connection.
    fn refuse(&mut self, out: &mut Vec<u8>, code: ErrorCode) {
        self.put(out, RecordType::Error, &proto::Error { code: code.number(), ..Default::default() });
        self.closing = true;
    }
}

impl Server {
    pub(crate) fn new(faults: Faults, siblings: bool, fetch: bool, vault: Option<Vault>) -> Self {
        Self { faults, siblings, fetch, vault, ..Self::default() }
    }

    /// The network changes bytes, so what comes may be anything that is not sealed.
    fn is_tampered(&self) -> bool {
        self.vault.as_ref().is_some_and(|vault| vault.tampered)
    }

    /// Somebody sends something, and the client is to get it.
    pub(crate) fn receive_from_elsewhere(&mut self, conversation: ConversationId, rng: &mut SmallRng) {
        let sender = if self.siblings && chance(rng, 30) { Sender::Sibling } else { Sender::Peer };
        let seq = self.next_seq(conversation);
        self.inbox.push(Row { conversation, seq, sender });
        if chance(rng, self.faults.expire) {
            self.floor = rng.random_range(self.floor..=self.head());
            self.acked = self.acked.max(self.floor);
        }
    }

    pub(crate) fn head(&self) -> u64 {
        self.inbox.len() as u64
    }

    /// The entries beyond `after`, up to `through`, with their inbox seqs.
    pub(crate) fn rows(&self, after: u64, through: u64) -> impl Iterator<Item = (u64, Row)> + '_ {
        let rows = (1..).zip(self.inbox.iter().copied());
        rows.filter(move |(inbox_seq, _)| *inbox_seq > after && *inbox_seq <= through)
    }

    fn next_seq(&mut self, conversation: ConversationId) -> u64 {
        let seq = self.seqs.entry(conversation).or_default();
        *seq += 1;
        *seq
    }

    /// Takes bytes of the client's, appends bytes for it.
    pub(crate) fn handle_bytes(&mut self, session: &mut Session, bytes: &[u8], rng: &mut SmallRng, out: &mut Vec<u8>) {
        session.incoming.extend_from_slice(bytes);
        while !session.closing && self.handle_next(session, rng, out) {}
        self.deliver(session, rng, out);
    }

    /// `false`: nothing whole is there.
    fn handle_next(&mut self, session: &mut Session, rng: &mut SmallRng, out: &mut Vec<u8>) -> bool {
        if session.opening.is_none() {
            let Some(preamble) = session.incoming.first_chunk::<PREAMBLE_LEN>().copied() else {
                return false;
            };
            session.incoming.drain(..PREAMBLE_LEN);
            session.opening = Some(preamble);
            let is_plain = Preamble::decode(preamble) == Ok(Preamble::PLAINTEXT);
            assert!(is_plain == self.vault.is_none() || self.is_tampered(), "it encrypts, or it does not");
            return true;
        }
        let overhead = session.cipher.overhead();
        let (len_min, len_max) = match &session.login {
            None => (1, HANDSHAKE_LEN_MAX),
            Some(_) => (HEADER_LEN + overhead, CLIENT_BODY_LEN_MAX + overhead),
        };
        let range = match split(&session.incoming, len_min, len_max) {
            Ok(None) => return false,
            Ok(Some(range)) => range,
            Err(error) => {
                assert!(self.is_tampered(), "the client frames well: {error}");
                let is_long = matches!(error, FrameError::TooLong(_));
                session.refuse(out, if is_long { ErrorCode::RecordTooLong } else { ErrorCode::RecordEmpty });
                return false;
            }
        };
        let mut frame: Vec<u8> = session.incoming.drain(..range.end).collect();
        let body = frame.get_mut(range).expect("drained whole");
        if session.login.is_none() {
            self.handle_handshake(session, body, rng, out);
            return true;
        }
        match session.cipher.open(body) {
            Ok(body) => {
                let record = Record::parse(body).expect("split asked for a header");
                self.handle_record(session, record, rng, out);
            }
            Err(error) => {
                assert!(self.is_tampered(), "{error}");
                session.refuse(out, ErrorCode::RecordForged);
            }
        }
        true
    }

    fn handle_handshake(&mut self, session: &mut Session, body: &[u8], rng: &mut SmallRng, out: &mut Vec<u8>) {
        let Some(vault) = &mut self.vault else {
            self.handle_login(session, body, rng, out);
            return;
        };
        match vault.greet(session, body, &self.faults, rng, out) {
            Ok(Some(login)) => self.handle_login(session, &login, rng, out),
            Ok(None) => {}
            Err(code) => session.refuse(out, code),
        }
    }

    fn handle_login(&mut self, session: &mut Session, body: &[u8], rng: &mut SmallRng, out: &mut Vec<u8>) {
        let login = proto::Login::decode(body).expect("the client writes a login");
        match &login.credential {
            Some(proto::login::Credential::Token(token)) => assert_eq!(token, "token"),
            Some(proto::login::Credential::Ticket(_)) if chance(rng, self.faults.refuse_ticket) => {
                let code = if chance(rng, 50) { ErrorCode::TicketExpired } else { ErrorCode::TicketStale };
                session.refuse(out, code);
            }
            Some(proto::login::Credential::Ticket(ticket)) => {
                assert_eq!(ticket.as_ref(), b"ticket");
                assert!(self.vault.is_none(), "a ticket in an encrypted login");
            }
            None if session.resumed => {}
            None => {
                assert!(self.vault.is_some(), "no credential");
                assert_eq!((login.user, login.device), (USER.0, DEVICE.0.into()), "who is it?");
            }
        }
        assert_eq!(login.fetch, self.fetch);
        assert!(login.cursor <= self.head(), "a cursor beyond the head");
        assert!(login.cursor >= self.acked_by_client, "the cursor went back");
        assert!(login.receipts <= self.marks.version(), "receipts that never were");
        assert_eq!(login.receipts, session.receipts_persisted, "the receipts cursor as it is kept");
        session.receipts_told = login.receipts;
        session.gap = login.cursor < self.floor;
        self.acked = self.acked.max(login.cursor);
        session.sent = self.acked;
        session.acked = self.acked;
        session.acked_by_client = login.cursor;
        if chance(rng, self.faults.redeliver) {
            session.sent -= rng.random_range(0..=(self.acked - self.floor).min(7));
        }
        // What was skipped at the end of an earlier session may be told of again, or not.
        session.told = if chance(rng, 50) { session.sent } else { session.sent.min(login.cursor) };
        session.login = Some(login);
        if !session.closing && chance(rng, 50) {
            self.welcome(session, out);
        }
    }

    /// WELCOME waits for nothing; here it comes before READY or after it.
    fn welcome(&mut self, session: &mut Session, out: &mut Vec<u8>) {
        let ticket = match &mut self.vault {
            None => Bytes::from_static(b"ticket"),
            Some(vault) => vault.issue(session).into(),
        };
        let (keep_alive_s, version) = (60, 1);
        let welcome = proto::Welcome { ticket, keep_alive_s, version, ..Default::default() };
        session.put(out, RecordType::Welcome, &welcome);
        session.welcomed = true;
    }

    fn handle_ready(&mut self, session: &mut Session, rng: &mut SmallRng, out: &mut Vec<u8>) {
        session.ready = true;
        let credential = session.login.as_ref().and_then(|login| login.credential.as_ref());
        let has_token = matches!(credential, Some(proto::login::Credential::Token(_)));
        if let Some(vault) = &mut self.vault
            && let Err(code) = vault.check_device(session, has_token, &self.faults, rng)
        {
            session.refuse(out, code);
            return;
        }
        if !session.welcomed {
            self.welcome(session, out);
        }
        self.announce(session);
    }

    fn handle_record(&mut self, session: &mut Session, record: Record<'_>, rng: &mut SmallRng, out: &mut Vec<u8>) {
        let known = RecordType::from_number(record.kind).expect("the client sends known types");
        assert_eq!(session.ready, known != RecordType::Ready, "READY comes first, and once");
        match known {
            RecordType::Ready => self.handle_ready(session, rng, out),
            RecordType::Rekey => {
                self.vault.as_mut().expect("no REKEY in plaintext").rekeys += 1;
                session.cipher.follow_key();
                session.cipher.change_key(out);
            }
            RecordType::Ping => {
                let ping = proto::Ping::decode(record.body).expect("a ping");
                session.put(out, RecordType::Pong, &proto::Pong { nonce: ping.nonce, ..Default::default() });
            }
            RecordType::Pong => {}
            RecordType::Send => self.handle_send(session, record.body, rng, out),
            RecordType::Ack => {
                let (through, ..) = decode_ack(record.body).expect("an ack");
                assert!(through.0 >= session.acked_by_client, "an ACK went back");
                let claimed = session.login.as_ref().map_or(0, |login| login.cursor);
                assert!(through.0 <= session.told.max(claimed), "an ACK beyond what was sent");
                session.acked_by_client = through.0;
                self.acked_by_client = self.acked_by_client.max(through.0);
                // With everything told acknowledged, what was skipped behind it is as well.
                let acked = if through.0 == session.told { session.sent } else { through.0 };
                session.acked = session.acked.max(acked);
                self.acked = self.acked.max(session.acked);
            }
            RecordType::Rpc => {
                let rpc = proto::Rpc::decode(record.body).expect("a request");
                let answer = self.answer(&rpc, rng);
                session.answers.push(answer);
                assert!(session.answers.len() <= RPCS_IN_FLIGHT_MAX, "too many requests");
            }
            other => panic!("a client never sends {other:?}"),
        }
        if session.closing {
            return;
        }
        if self.vault.is_some() && chance(rng, self.faults.rekey) {
            session.cipher.change_key(out);
        }
        if chance(rng, self.faults.noise) {
            match rng.random_range(0..3) {
                0 => session.put(out, RecordType::Ping, &proto::Ping { nonce: 9, ..Default::default() }),
                1 => session.put_unknown(out, &[0xA1, 0xFF, 0x77]),
                _ => session.put_unknown(out, &[0x2F, 0]),
            }
        }
        if chance(rng, self.faults.goaway) {
            let goaway = proto::Goaway { reconnect_min_ms: 10, reconnect_max_ms: 200, ..Default::default() };
            session.put(out, RecordType::Goaway, &goaway);
        }
    }

    fn handle_send(&mut self, session: &mut Session, body: &[u8], rng: &mut SmallRng, out: &mut Vec<u8>) {
        let send = SendView::decode(body).expect("a send");
        let id = ClientMessageId::try_from(send.client_message_id).expect("16 bytes");
        let conversation = ConversationId::try_from(send.conversation).expect("16 bytes");
        if let Some(first) = self.results.get(&id) {
            session.rejected.retain(|_, rejected| *rejected != id);
            session.seal(out, RecordType::SendResult, |out| Accepted { duplicate: true, ..*first }.encode(out));
            return;
        }
        match session.rejected.get(&conversation) {
            Some(rejected) if *rejected != id => {
                session.put_rejection(out, id, ErrorCode::AfterRejected, 0);
                return;
            }
            _ => drop(session.rejected.remove(&conversation)),
        }
        // What was refused for good stays refused, so that a lost refusal changes nothing.
        let is_refused = self.refused.contains(&id);
        if !is_refused && chance(rng, self.faults.reject_for_now) {
            session.rejected.insert(conversation, id);
            let code = if chance(rng, 50) { ErrorCode::Busy } else { ErrorCode::RecipientFull };
            session.put_rejection(out, id, code, if chance(rng, 50) { 0 } else { 20 });
            return;
        }
        if is_refused || chance(rng, self.faults.reject_for_good) {
            self.refused.push(id);
            session.put_rejection(out, id, ErrorCode::NotAMember, 0);
            return;
        }
        let seq = self.next_seq(conversation);
        let mut inbox_seq = InboxSeq(0);
        if self.siblings {
            self.inbox.push(Row { conversation, seq, sender: Sender::Client });
            inbox_seq = InboxSeq(self.head());
        }
        let accepted = Accepted {
            client_message_id: id,
            conversation_seq: ConversationSeq(seq),
            message_id: MessageId(self.accepted.len() as u64 + 1),
            server_time_ms: 1,
            inbox_seq,
            duplicate: false,
        };
        self.accepted.push((conversation, id));
        self.results.insert(id, accepted);
        session.seal(out, RecordType::SendResult, |out| accepted.encode(out));
    }
}

fn chance(rng: &mut SmallRng, percent: u32) -> bool {
    percent > 0 && rng.random_range(0..100) < percent
}
