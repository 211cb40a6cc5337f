//! A client that does exactly what it is told, right or wrong.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, UserId};
use culver_protocol::limits::{BODY_LEN_MAX, HEADER_LEN};
use culver_protocol::message::SendView;
use culver_protocol::preamble::Preamble;
use culver_protocol::proto::rpc::Request;
use culver_protocol::proto::rpc_result::Result as Answer;
use culver_protocol::proto::{self, login::Credential};
use culver_protocol::record::{Record, RecordType, split};
use prost::Message;
use socket2::{Domain, Socket, Type};

use crate::home::{Home, PATIENCE, Server};

/// A record from the server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Got {
    Welcome(proto::Welcome),
    Pong(u64),
    Goaway(proto::Goaway),
    Error(proto::Error),
    Result(proto::SendResult),
    Deliver(proto::Deliver),
    Gap(proto::Gap),
    Receipt(proto::Receipt),
    SyncStart(proto::SyncStart),
    SyncDone(proto::SyncDone),
    Answer(proto::RpcResult),
}

pub(crate) struct Peer {
    pub(crate) user: u64,
    pub(crate) stream: TcpStream,
    received: Vec<u8>,
    /// Came while something else was waited for.
    kept: VecDeque<Got>,
    /// Everything up to here has come on this connection.
    pub(crate) position: u64,
    /// Numbers are left out where the device has sent the entries itself.
    pub(crate) has_siblings: bool,
    /// What all RECEIPTs so far have said, by conversation.
    marks: BTreeMap<Vec<u8>, proto::Mark>,
    /// The version of the last.
    pub(crate) receipts: u64,
    nonce: u64,
}

/// The record of this type and protobuf.
pub(crate) fn record(kind: RecordType, message: &impl Message) -> Vec<u8> {
    raw(kind as u8, &message.encode_to_vec())
}

/// A record of any type and body.
pub(crate) fn raw(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(body.len() + HEADER_LEN).expect("short").to_be_bytes().to_vec();
    bytes.extend([kind, 0]);
    bytes.extend(body);
    bytes
}

/// Preamble, login and READY in one flight.
pub(crate) fn opening(login: &proto::Login) -> Vec<u8> {
    let mut bytes = Preamble::PLAINTEXT.encode().to_vec();
    bytes.extend(u16::try_from(login.encoded_len()).expect("short").to_be_bytes());
    bytes.extend(login.encode_to_vec());
    bytes.extend(record(RecordType::Ready, &proto::Ready {}));
    bytes
}

pub(crate) fn with(credential: Credential) -> proto::Login {
    proto::Login { credential: Some(credential), ..Default::default() }
}

/// The conversation of two users.
pub(crate) fn conversation(one: u64, other: u64) -> Vec<u8> {
    ConversationId::direct(UserId(one), UserId(other)).0.to_vec()
}

/// The id of the `number`th message of a user.
pub(crate) fn message_id(user: u64, number: u64) -> [u8; 16] {
    ((u128::from(user) << 64) | u128::from(number)).to_be_bytes()
}

pub(crate) fn send_record(from: u64, to: u64, number: u64, payload: &[u8]) -> Vec<u8> {
    let conversation = ConversationId::direct(UserId(from), UserId(to));
    let id = message_id(from, number);
    let mut body = Vec::new();
    SendView { client_message_id: &id, conversation: &conversation.0, payload }.encode(&mut body);
    raw(RecordType::Send as u8, &body)
}

impl Peer {
    /// A bare connection.
    pub(crate) fn connect(listen: SocketAddr) -> Self {
        Self::over(TcpStream::connect(listen).expect("it listens"))
    }

    /// A connection whose kernel takes only so many bytes that nobody reads.
    pub(crate) fn connect_narrow(listen: SocketAddr, bytes: usize) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(bytes).expect("it may be small");
        socket.connect(&listen.into()).expect("it listens");
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time");
        stream.set_nodelay(true).expect("a socket");
        Self {
            user: 0,
            stream,
            received: Vec::new(),
            kept: VecDeque::new(),
            position: 0,
            has_siblings: false,
            marks: BTreeMap::new(),
            receipts: 0,
            nonce: 0,
        }
    }

    /// A user who has logged in with a token and lost all memory.
    pub(crate) fn online(home: &Home, server: &Server, user: u64) -> Self {
        Self::resume(server, user, &with(home.token(user))).0
    }

    /// One of several devices of a user, with no memory either, and known to the others.
    pub(crate) fn device(home: &Home, server: &Server, user: u64, device: u16) -> Self {
        let mut peer = Self::resume(server, user, &with(home.token_of(user, device))).0;
        peer.has_siblings = true;
        peer.settle();
        peer
    }

    /// A user who has logged in like this.
    pub(crate) fn resume(server: &Server, user: u64, login: &proto::Login) -> (Self, proto::Welcome) {
        let mut peer = Self::connect(server.listen);
        let welcome = peer.log_in(user, login);
        (peer, welcome)
    }

    pub(crate) fn log_in(&mut self, user: u64, login: &proto::Login) -> proto::Welcome {
        self.user = user;
        self.position = login.cursor;
        self.write(&opening(login));
        match self.next() {
            Some(Got::Welcome(welcome)) => welcome,
            other => panic!("no WELCOME but {other:?}"),
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server takes it");
    }

    /// Sends the user's `number`th message.
    pub(crate) fn send(&mut self, to: u64, number: u64, payload: &[u8]) {
        let bytes = send_record(self.user, to, number, payload);
        self.write(&bytes);
    }

    /// Sends it and waits until it is accepted.
    pub(crate) fn send_and_wait(&mut self, to: u64, number: u64, payload: &[u8]) -> proto::SendResult {
        self.send(to, number, payload);
        self.result(number)
    }

    pub(crate) fn ack(&mut self, through: u64) {
        self.write(&record(RecordType::Ack, &proto::Ack { inbox_seq: through, ..Default::default() }));
    }

    /// The answer to the user's `number`th message: it must be accepted.
    pub(crate) fn result(&mut self, number: u64) -> proto::SendResult {
        let result = self.outcome(number);
        assert_eq!(result.error, None, "{result:?}");
        result
    }

    /// The answer to the user's `number`th message.
    pub(crate) fn outcome(&mut self, number: u64) -> proto::SendResult {
        let id = message_id(self.user, number);
        let got = self.wait_for(|got| matches!(got, Got::Result(result) if result.client_message_id == id[..]));
        let Got::Result(result) = got else { unreachable!("as asked for") };
        result
    }

    /// Sends to a user, one message after the other, until one is refused, which must come to pass before more than so
    /// many are accepted: its number, and why.
    pub(crate) fn send_until_refused(&mut self, to: u64, accepted_max: u64) -> (u64, proto::Error) {
        let mut number = 0;
        loop {
            number += 1;
            self.send(to, number, b"more");
            match self.outcome(number).error {
                Some(error) => return (number, error),
                None => assert!(number <= accepted_max, "{number} were accepted"),
            }
        }
    }

    /// The next DELIVER, which must join on.
    pub(crate) fn deliver(&mut self) -> Vec<proto::Entry> {
        let Got::Deliver(deliver) = self.wait_for(|got| matches!(got, Got::Deliver(_))) else {
            unreachable!("as asked for")
        };
        assert_eq!(deliver.previous, self.position, "it joins on");
        for entry in &deliver.entries {
            let next = self.position + 1;
            let joins_on = if self.has_siblings { entry.inbox_seq >= next } else { entry.inbox_seq == next };
            assert!(joins_on, "{} behind {}: in order, none left out", entry.inbox_seq, self.position);
            self.position = entry.inbox_seq;
        }
        deliver.entries
    }

    /// Exactly so many entries, none of them acknowledged.
    pub(crate) fn entries(&mut self, count: usize) -> Vec<proto::Entry> {
        let mut entries = Vec::new();
        while entries.len() < count {
            entries.extend(self.deliver());
        }
        assert_eq!(entries.len(), count, "no more than that");
        entries
    }

    /// What the user's hub was told before this is done, and what it had to say by then has come.
    pub(crate) fn settle(&mut self) {
        self.devices();
    }

    /// The answer to a request, or the code of the error.
    pub(crate) fn call(&mut self, request: Request) -> Result<Answer, u32> {
        self.nonce += 1;
        let id = self.nonce;
        self.write(&record(RecordType::Rpc, &proto::Rpc { id, request: Some(request) }));
        let Got::Answer(answer) = self.wait_for(|got| matches!(got, Got::Answer(answer) if answer.id == id)) else {
            unreachable!("as asked for")
        };
        match answer {
            proto::RpcResult { error: Some(error), result: None, .. } => Err(error.code),
            proto::RpcResult { error: None, result: Some(result), .. } => Ok(result),
            other => panic!("neither or both: {other:?}"),
        }
    }

    pub(crate) fn devices(&mut self) -> Vec<proto::Device> {
        match self.call(Request::ListDevices(proto::ListDevices {})) {
            Ok(Answer::Devices(devices)) => devices.devices,
            other => panic!("{other:?}"),
        }
    }

    /// A page of conversations and where the next begins.
    pub(crate) fn conversations(&mut self, limit: u32, page: &[u8]) -> proto::Conversations {
        let page = page.to_vec().into();
        match self.call(Request::ListConversations(proto::ListConversations { limit, page })) {
            Ok(Answer::Conversations(conversations)) => conversations,
            other => panic!("{other:?}"),
        }
    }

    /// Marks what was exchanged with another user as read.
    pub(crate) fn mark_read(&mut self, with: u64, seq: u64) -> Result<u64, u32> {
        let conversation = conversation(self.user, with).into();
        self.call(Request::MarkRead(proto::MarkRead { conversation, seq })).map(|answer| match answer {
            Answer::MarkedRead(marked) => marked.seq,
            other => panic!("{other:?}"),
        })
    }

    pub(crate) fn set_read_receipts(&mut self, on: bool) {
        let answer = self.call(Request::SetReadReceipts(proto::SetReadReceipts { on }));
        assert_eq!(answer, Ok(Answer::ReadReceiptsSet(proto::ReadReceiptsSet { on })));
    }

    /// What RECEIPTs have said so far of the conversation with another user.
    pub(crate) fn mark(&self, with: u64) -> proto::Mark {
        self.marks.get(&conversation(self.user, with)).cloned().unwrap_or_default()
    }

    /// Waits until they have said this.
    pub(crate) fn wait_for_mark(&mut self, with: u64, is_wanted: impl Fn(&proto::Mark) -> bool) {
        while !is_wanted(&self.mark(with)) {
            let got = self.read().unwrap_or_else(|| panic!("the end, after {}", self.brief()));
            self.kept.push_back(got);
        }
    }

    fn take_receipt(&mut self, receipt: &proto::Receipt) {
        assert!(receipt.version > self.receipts, "versions ascend");
        self.receipts = receipt.version;
        for mark in &receipt.marks {
            let known = self.marks.entry(mark.conversation.to_vec()).or_default();
            for (known, told) in [
                (&mut known.delivered, mark.delivered),
                (&mut known.read, mark.read),
                (&mut known.expired_after, mark.expired_after),
                (&mut known.expired_through, mark.expired_through),
                (&mut known.own_read, mark.own_read),
            ] {
                assert!(told == 0 || told >= *known, "never going back: {told} after {known}");
                *known = told.max(*known);
            }
        }
    }

    /// Everything written to the server so far has been read, and nothing was wrong with it.
    pub(crate) fn ping(&mut self) {
        self.nonce += 1;
        let nonce = self.nonce;
        self.write(&record(RecordType::Ping, &proto::Ping { nonce, ..Default::default() }));
        self.wait_for(|got| *got == Got::Pong(nonce));
    }

    /// Whether something has come, or the end.
    pub(crate) fn is_readable(&self) -> bool {
        self.stream.set_nonblocking(true).expect("a socket");
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).expect("a socket");
        !matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// What has come so far and was not asked for; receipts, and what frames a backlog, are nobody's business here.
    pub(crate) fn kept(&mut self) -> Vec<Got> {
        let is_frame = |got: &Got| matches!(got, Got::Receipt(_) | Got::SyncStart(_) | Got::SyncDone(_));
        self.kept.drain(..).filter(|got| !is_frame(got)).collect()
    }

    /// What has come so far and was not asked for, all of it.
    pub(crate) fn all_kept(&mut self) -> Vec<Got> {
        self.kept.drain(..).collect()
    }

    /// The first record like this; those before it are kept.
    pub(crate) fn wait_for(&mut self, is_wanted: impl Fn(&Got) -> bool) -> Got {
        if let Some(index) = self.kept.iter().position(&is_wanted) {
            return self.kept.remove(index).expect("found above");
        }
        loop {
            let got = self.read().unwrap_or_else(|| panic!("the end, after {}", self.brief()));
            if is_wanted(&got) {
                return got;
            }
            self.kept.push_back(got);
        }
    }

    /// The next record; `None`: the server has closed the connection.
    pub(crate) fn next(&mut self) -> Option<Got> {
        self.kept.pop_front().or_else(|| self.read())
    }

    /// An error of this code must come, and then the end, if it is one that closes.
    pub(crate) fn refused(&mut self, code: ErrorCode) {
        let Got::Error(error) = self.wait_for(|got| matches!(got, Got::Error(_))) else { unreachable!("as asked for") };
        assert_eq!(ErrorCode::from_number(error.code), Some(code), "{}", error.detail);
        if code.closes() {
            self.ended();
        }
    }

    /// Nothing more than the end comes.
    pub(crate) fn ended(&mut self) {
        assert_eq!(self.read(), None, "the connection is closed behind it");
    }

    /// What was kept, in a line.
    fn brief(&self) -> String {
        let last: String =
            self.kept.back().map(|got| format!("{got:?}").chars().take(200).collect()).unwrap_or_default();
        format!("{} records, the last {last}", self.kept.len())
    }

    fn read(&mut self) -> Option<Got> {
        let mut buffer = [0; 16 * 1024];
        loop {
            if let Some(range) = split(&self.received, HEADER_LEN, BODY_LEN_MAX).expect("the server keeps to lengths") {
                let end = range.end;
                let got = parse(self.received.get(range).expect("split gives a range within"));
                self.received.drain(..end);
                if let Got::Receipt(receipt) = &got {
                    self.take_receipt(receipt);
                }
                return Some(got);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    assert!(self.received.is_empty(), "whole records only");
                    return None;
                }
                Ok(len) => self.received.extend(buffer.iter().take(len)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What was under way to the server when it closed resets the connection.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing comes: {error}; so far {}", self.brief()),
            }
        }
    }
}

fn parse(body: &[u8]) -> Got {
    let record = Record::parse(body).expect("type and flags");
    assert_eq!(record.flags, 0);
    let body = record.body;
    match RecordType::from_number(record.kind).expect("a type of version 1") {
        RecordType::Welcome => Got::Welcome(decode(body)),
        RecordType::Pong => Got::Pong(decode::<proto::Pong>(body).nonce),
        RecordType::Goaway => Got::Goaway(decode(body)),
        RecordType::Error => Got::Error(decode(body)),
        RecordType::SendResult => Got::Result(decode(body)),
        RecordType::Deliver => Got::Deliver(decode(body)),
        RecordType::Gap => Got::Gap(decode(body)),
        RecordType::Receipt => Got::Receipt(decode(body)),
        RecordType::SyncStart => Got::SyncStart(decode(body)),
        RecordType::SyncDone => Got::SyncDone(decode(body)),
        RecordType::RpcResult => Got::Answer(decode(body)),
        other => panic!("servers send no {other:?}"),
    }
}

fn decode<T: Message + Default>(body: &[u8]) -> T {
    T::decode(body).expect("good protobuf")
}
