//! One connection of the relay: takes frames apart and puts frames together. Knows no epoll and no other connection.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;

use anyhow::{Result, bail};
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::limits::{
    CLIENT_BODY_LEN_MAX, CREDIT_BYTES_DEFAULT, CREDIT_ENTRIES_DEFAULT, HANDSHAKE_LEN_MAX, HEADER_LEN,
    KEEP_ALIVE_S_DEFAULT, PREAMBLE_LEN, VERSION_MAX,
};
use culver_protocol::message::{Accepted, EntryView, MarkView, SendView, decode_ack, encode_deliver, encode_receipt};
use culver_protocol::proto::login::Credential;
use culver_protocol::proto::{Device, Devices, Login, Ping, Pong, Rpc, RpcResult, Welcome, rpc_result};
use culver_protocol::record::{Cipher, Record, RecordType, split};
use prost::Message;

use crate::target::floor::ticket;

/// What a connection asks the relay to do.
pub(super) enum Relayed<'a> {
    /// The connection belongs to this user now.
    Login(UserId),
    /// A message for other connections; its inbox seq is still to be given.
    Message { recipient: UserId, entry: EntryView<'a> },
    /// Everything that was delivered to this connection up to here is persisted.
    Ack(InboxSeq),
}

/// A delivered entry that is not acknowledged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unacknowledged {
    pub(super) inbox_seq: InboxSeq,
    pub(super) sender: UserId,
    pub(super) conversation: ConversationId,
    pub(super) conversation_seq: ConversationSeq,
}

pub(super) struct Connection {
    pub(super) socket: TcpStream,
    /// It is in the relay's list of those with something to write.
    pub(super) is_dirty: bool,
    state: State,
    /// Entries delivered so far.
    inbox_seq: u64,
    /// What a receipt will be owed for, in the order of delivery; empty where the relay sends none.
    unacknowledged: VecDeque<Unacknowledged>,
    /// Receipts told so far.
    receipts: u64,
    out: Vec<u8>,
}

/// What reading needs; it leaves the connection while the relay touches other connections.
#[derive(Default)]
pub(super) struct State {
    /// The beginning of a frame that is not complete yet.
    partial: Vec<u8>,
    user: Option<UserId>,
    device: DeviceId,
    preamble_done: bool,
    /// The conversations this user sends to: seldom more than one.
    conversations: Vec<(ConversationId, u64)>,
    messages: u64,
    out: Vec<u8>,
}

impl Connection {
    pub(super) fn new(socket: TcpStream) -> Self {
        let (state, unacknowledged) = (State::default(), VecDeque::new());
        Self { socket, is_dirty: false, state, inbox_seq: 0, unacknowledged, receipts: 0, out: Vec::new() }
    }

    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// What has been written and not been sent.
    #[cfg(test)]
    pub(super) fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Takes the reading half out.
    pub(super) fn take(&mut self) -> State {
        let mut state = std::mem::take(&mut self.state);
        state.out = std::mem::take(&mut self.out);
        state
    }

    /// Puts the reading half back.
    pub(super) fn restore(&mut self, mut state: State) {
        let meanwhile = std::mem::replace(&mut self.out, std::mem::take(&mut state.out));
        self.out.extend_from_slice(&meanwhile);
        self.state = state;
    }

    /// Appends a DELIVER of one entry.
    pub(super) fn deliver(&mut self, mut entry: EntryView<'_>) {
        let previous = InboxSeq(self.inbox_seq);
        self.inbox_seq += 1;
        entry.inbox_seq = InboxSeq(self.inbox_seq);
        Cipher::Plaintext.seal(&mut self.out, RecordType::Deliver, |out| encode_deliver(out, previous, [entry]));
    }

    /// Remembers the entry just delivered until it is acknowledged.
    pub(super) fn expect_ack(&mut self, entry: &EntryView<'_>) {
        self.unacknowledged.push_back(Unacknowledged {
            inbox_seq: InboxSeq(self.inbox_seq),
            sender: entry.sender,
            conversation: entry.conversation,
            conversation_seq: entry.conversation_seq,
        });
    }

    /// Forgets what is acknowledged now; puts the last entry of each conversation into `last`.
    pub(super) fn acknowledge(&mut self, through: InboxSeq, last: &mut Vec<Unacknowledged>) {
        last.clear();
        while let Some(entry) = self.unacknowledged.pop_front_if(|entry| entry.inbox_seq <= through) {
            match last.iter_mut().find(|known| known.conversation == entry.conversation) {
                Some(known) => *known = entry,
                None => last.push(entry),
            }
        }
    }

    /// Appends a RECEIPT of one conversation.
    pub(super) fn tell_delivered(&mut self, conversation: ConversationId, delivered: ConversationSeq) {
        self.receipts += 1;
        let (version, mark) = (self.receipts, MarkView { conversation, delivered, ..MarkView::default() });
        Cipher::Plaintext.seal(&mut self.out, RecordType::Receipt, |out| encode_receipt(out, version, [mark]));
    }

    /// Writes once; returns how many bytes are left.
    pub(super) fn write(&mut self) -> io::Result<usize> {
        match self.socket.write(&self.out) {
            Ok(written) if written == self.out.len() => {
                // An idle connection holds no buffer.
                if self.out.capacity() > 4096 { self.out = Vec::new() } else { self.out.clear() }
            }
            Ok(written) => drop(self.out.drain(..written)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(self.out.len())
    }
}

impl State {
    /// Reads frames; answers go to this connection's output, everything else to `relay`.
    pub(super) fn handle_bytes(&mut self, bytes: &[u8], now_ms: u64, mut relay: impl FnMut(Relayed<'_>)) -> Result<()> {
        if self.partial.is_empty() {
            let consumed = self.handle_frames(bytes, now_ms, &mut relay)?;
            self.partial.extend_from_slice(bytes.get(consumed..).unwrap_or_default());
            return Ok(());
        }
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(bytes);
        let consumed = self.handle_frames(&whole, now_ms, &mut relay)?;
        if consumed < whole.len() {
            whole.drain(..consumed);
            self.partial = whole;
        }
        Ok(())
    }

    /// Returns how many bytes were whole frames.
    fn handle_frames(&mut self, bytes: &[u8], now_ms: u64, relay: &mut impl FnMut(Relayed<'_>)) -> Result<usize> {
        let mut rest = bytes;
        if !self.preamble_done {
            let Some((_, behind)) = rest.split_first_chunk::<PREAMBLE_LEN>() else { return Ok(0) };
            self.preamble_done = true;
            rest = behind;
        }
        loop {
            let len_max = if self.user.is_none() { HANDSHAKE_LEN_MAX } else { CLIENT_BODY_LEN_MAX };
            let Some(range) = split(rest, HEADER_LEN, len_max)? else { return Ok(bytes.len() - rest.len()) };
            let (frame, behind) = rest.split_at(range.end);
            let body = frame.get(range).expect("split gives a range of its input");
            rest = behind;
            match self.user {
                Some(user) => self.handle_record(user, Record::parse(body)?, now_ms, relay)?,
                None => relay(Relayed::Login(self.handle_login(body, now_ms)?)),
            }
        }
    }

    fn handle_login(&mut self, body: &[u8], now_ms: u64) -> Result<UserId> {
        let login = Login::decode(body)?;
        let Some(Credential::Ticket(shown)) = login.credential else { bail!("the relay knows only its own tickets") };
        let Some((user, rest)) = shown.split_first_chunk::<8>() else { bail!("a short ticket") };
        let Some((device, _)) = rest.split_first_chunk::<2>() else { bail!("a short ticket") };
        let user = UserId(u64::from_be_bytes(*user));
        self.user = Some(user);
        self.device = DeviceId(u16::from_be_bytes(*device));
        let or_default = |wanted: u32, default| if wanted == 0 { default } else { wanted };
        let welcome = Welcome {
            ticket: ticket(user, self.device),
            ticket_expires_ms: now_ms + 30 * 24 * 3600 * 1000,
            incarnation: 1,
            server_time_ms: now_ms,
            keep_alive_s: or_default(login.keep_alive_s, KEEP_ALIVE_S_DEFAULT),
            credit_entries: or_default(login.credit_entries, CREDIT_ENTRIES_DEFAULT),
            credit_bytes: or_default(login.credit_bytes, CREDIT_BYTES_DEFAULT),
            version: u32::from(VERSION_MAX),
            ..Default::default()
        };
        Cipher::Plaintext.seal_message(&mut self.out, RecordType::Welcome, &welcome);
        Ok(user)
    }

    fn handle_record(
        &mut self,
        user: UserId,
        record: Record<'_>,
        now_ms: u64,
        relay: &mut impl FnMut(Relayed<'_>),
    ) -> Result<()> {
        const SEND: u8 = RecordType::Send as u8;
        const ACK: u8 = RecordType::Ack as u8;
        const PING: u8 = RecordType::Ping as u8;
        const RPC: u8 = RecordType::Rpc as u8;
        match record.kind {
            SEND => self.handle_send(user, SendView::decode(record.body)?, now_ms, relay)?,
            ACK => relay(Relayed::Ack(decode_ack(record.body)?.0)),
            PING => {
                let pong = Pong { nonce: Ping::decode(record.body)?.nonce, ..Default::default() };
                Cipher::Plaintext.seal_message(&mut self.out, RecordType::Pong, &pong);
            }
            RPC => {
                // Whatever is asked, it is whether this device is known: the generator asks nothing else of a relay.
                let id = Rpc::decode(record.body)?.id;
                let device = Device { device: self.device.0.into(), online: true, ..Device::default() };
                let known = rpc_result::Result::Devices(Devices { devices: vec![device] });
                let answer = RpcResult { id, error: None, result: Some(known) };
                Cipher::Plaintext.seal_message(&mut self.out, RecordType::RpcResult, &answer);
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_send(
        &mut self,
        sender: UserId,
        send: SendView<'_>,
        now_ms: u64,
        relay: &mut impl FnMut(Relayed<'_>),
    ) -> Result<()> {
        let conversation = ConversationId::try_from(send.conversation)?;
        let Some(recipient) = conversation.direct_peer(sender) else { bail!("not a party to the conversation") };
        let conversation_seq = self.next_seq(conversation);
        let counter = u16::try_from(self.messages % (1 << MessageId::COUNTER_BITS)).expect("12 bits fit");
        self.messages += 1;
        let message_id = MessageId::new(now_ms, 0, counter);
        let accepted = Accepted {
            client_message_id: ClientMessageId::try_from(send.client_message_id)?,
            conversation_seq,
            message_id,
            server_time_ms: now_ms,
            inbox_seq: InboxSeq(0),
            duplicate: false,
        };
        Cipher::Plaintext.seal(&mut self.out, RecordType::SendResult, |out| accepted.encode(out));
        let entry = EntryView {
            inbox_seq: InboxSeq(0),
            conversation,
            conversation_seq,
            message_id,
            server_time_ms: now_ms,
            sender,
            sender_device: self.device,
            payload: send.payload,
        };
        relay(Relayed::Message { recipient, entry });
        Ok(())
    }

    fn next_seq(&mut self, conversation: ConversationId) -> ConversationSeq {
        if let Some((_, seq)) = self.conversations.iter_mut().find(|(known, _)| *known == conversation) {
            *seq += 1;
            return ConversationSeq(*seq);
        }
        self.conversations.push((conversation, 1));
        ConversationSeq(1)
    }
}

/// A ticket must hold at least the user and the device.
const _: () = assert!(crate::target::floor::TICKET_LEN >= size_of::<UserId>() + size_of::<DeviceId>());

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use culver_protocol::proto::{Deliver, Receipt};

    use super::*;

    const ALICE: UserId = UserId(2);
    const BOB: UserId = UserId(3);
    const CAROL: UserId = UserId(4);

    fn connection() -> Connection {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("it listens");
        Connection::new(TcpStream::connect(address).expect("the listener's queue takes one"))
    }

    fn entry(sender: UserId, seq: u64) -> EntryView<'static> {
        EntryView {
            inbox_seq: InboxSeq(0),
            conversation: ConversationId::direct(sender, BOB),
            conversation_seq: ConversationSeq(seq),
            message_id: MessageId(seq),
            server_time_ms: 1,
            sender,
            sender_device: DeviceId(1),
            payload: b"payload",
        }
    }

    /// The only record that was written.
    fn written(connection: &Connection) -> (u8, Vec<u8>) {
        let range = split(&connection.out, HEADER_LEN, usize::from(u16::MAX)).expect("framed").expect("complete");
        assert_eq!(range.end, connection.out.len());
        let record = Record::parse(connection.out.get(range).expect("within")).expect("a record");
        (record.kind, record.body.to_vec())
    }

    #[test]
    fn an_ack_names_the_last_of_each_conversation_once() {
        let mut bob = connection();
        for (sender, seq) in [(ALICE, 1), (CAROL, 7), (ALICE, 2), (ALICE, 3)] {
            let entry = entry(sender, seq);
            bob.deliver(entry);
            bob.expect_ack(&entry);
        }
        let mut last = Vec::new();
        bob.acknowledge(InboxSeq(3), &mut last);
        let told: Vec<_> = last.iter().map(|entry| (entry.sender, entry.conversation_seq.0)).collect();
        assert_eq!(told, [(ALICE, 2), (CAROL, 7)]);
        bob.acknowledge(InboxSeq(3), &mut last);
        assert!(last.is_empty());
        bob.acknowledge(InboxSeq(9), &mut last);
        assert_eq!(last.first().map(|entry| entry.conversation_seq.0), Some(3));
    }

    #[test]
    fn a_receipt_is_what_a_client_reads() {
        let mut alice = connection();
        let conversation = ConversationId::direct(ALICE, BOB);
        alice.tell_delivered(conversation, ConversationSeq(5));
        let (kind, body) = written(&alice);
        assert_eq!(kind, RecordType::Receipt as u8);
        let receipt = Receipt::decode(body.as_slice()).expect("protobuf");
        assert_eq!(receipt.version, 1);
        let mark = receipt.marks.first().expect("one mark");
        assert_eq!((mark.conversation.as_ref(), mark.delivered, mark.read), (conversation.0.as_slice(), 5, 0));
    }

    #[test]
    fn each_connection_counts_its_own_inbox() {
        let mut bob = connection();
        bob.deliver(entry(ALICE, 9));
        let (kind, body) = written(&bob);
        assert_eq!(kind, RecordType::Deliver as u8);
        let deliver = Deliver::decode(body.as_slice()).expect("protobuf");
        assert_eq!((deliver.previous, deliver.entries.first().map(|entry| entry.inbox_seq)), (0, Some(1)));
    }
}
