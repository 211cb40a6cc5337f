//! One connection of the relay: takes frames apart and puts frames together. Knows no epoll and no other connection.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;

use anyhow::{Result, bail};
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, InboxSeq, MessageId, UserId};
use culver_protocol::limits::{
    CLIENT_BODY_LEN_MAX, CREDIT_BYTES_DEFAULT, CREDIT_ENTRIES_DEFAULT, HANDSHAKE_LEN_MAX, HEADER_LEN,
    KEEP_ALIVE_S_DEFAULT, PREAMBLE_LEN, VERSION_MAX,
};
use culver_protocol::message::{Accepted, EntryView, SendView, decode_ack, encode_deliver};
use culver_protocol::proto::login::Credential;
use culver_protocol::proto::{Login, Ping, Pong, Welcome};
use culver_protocol::record::{Cipher, Record, RecordType, split};
use prost::Message;

use crate::plan::DEVICE;
use crate::target::floor::ticket;

/// What a connection asks the relay to do.
pub(super) enum Relayed<'a> {
    /// The connection belongs to this user now.
    Login(UserId),
    /// A message for another connection; its inbox seq is still to be given.
    Message { recipient: UserId, entry: EntryView<'a> },
}

pub(super) struct Connection {
    pub(super) socket: TcpStream,
    /// It is in the relay's list of those with something to write.
    pub(super) is_dirty: bool,
    state: State,
    /// Entries delivered so far.
    inbox_seq: u64,
    out: Vec<u8>,
}

/// What reading needs; it leaves the connection while the relay touches other connections.
#[derive(Default)]
pub(super) struct State {
    /// The beginning of a frame that is not complete yet.
    partial: Vec<u8>,
    user: Option<UserId>,
    preamble_done: bool,
    /// The conversations this user sends to: seldom more than one.
    conversations: Vec<(ConversationId, u64)>,
    messages: u64,
    out: Vec<u8>,
}

impl Connection {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self { socket, is_dirty: false, state: State::default(), inbox_seq: 0, out: Vec::new() }
    }

    pub(super) fn user(&self) -> Option<UserId> {
        self.state.user
    }

    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty()
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
            if self.user.is_some() {
                self.handle_record(Record::parse(body)?, now_ms, relay)?;
            } else {
                let user = self.handle_login(body, now_ms)?;
                relay(Relayed::Login(user));
            }
        }
    }

    fn handle_login(&mut self, body: &[u8], now_ms: u64) -> Result<UserId> {
        let login = Login::decode(body)?;
        let Some(Credential::Ticket(shown)) = login.credential else { bail!("the relay knows only its own tickets") };
        let Some((user, _)) = shown.split_first_chunk::<8>() else { bail!("a short ticket") };
        let user = UserId(u64::from_be_bytes(*user));
        self.user = Some(user);
        let or_default = |wanted: u32, default| if wanted == 0 { default } else { wanted };
        let welcome = Welcome {
            ticket: ticket(user),
            ticket_expires_ms: now_ms + 30 * 24 * 3600 * 1000,
            incarnation: 1,
            server_time_ms: now_ms,
            keep_alive_s: or_default(login.keep_alive_s, KEEP_ALIVE_S_DEFAULT),
            credit_entries: or_default(login.credit_entries, CREDIT_ENTRIES_DEFAULT),
            credit_bytes: or_default(login.credit_bytes, CREDIT_BYTES_DEFAULT),
            version: u32::from(VERSION_MAX),
        };
        Cipher::Plaintext.seal_message(&mut self.out, RecordType::Welcome, &welcome);
        Ok(user)
    }

    fn handle_record(&mut self, record: Record<'_>, now_ms: u64, relay: &mut impl FnMut(Relayed<'_>)) -> Result<()> {
        const SEND: u8 = RecordType::Send as u8;
        const ACK: u8 = RecordType::Ack as u8;
        const PING: u8 = RecordType::Ping as u8;
        match record.kind {
            SEND => self.handle_send(SendView::decode(record.body)?, now_ms, relay)?,
            ACK => {
                decode_ack(record.body)?;
            }
            PING => {
                let pong = Pong { nonce: Ping::decode(record.body)?.nonce };
                Cipher::Plaintext.seal_message(&mut self.out, RecordType::Pong, &pong);
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_send(&mut self, send: SendView<'_>, now_ms: u64, relay: &mut impl FnMut(Relayed<'_>)) -> Result<()> {
        let sender = self.user.expect("only called after the login");
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
            sender_device: DEVICE,
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

/// A ticket must hold at least the user.
const _: () = assert!(crate::target::floor::TICKET_LEN >= size_of::<u64>());
