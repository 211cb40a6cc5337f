//! What dies with a connection: the bytes on their way in and out, and the times that keep it alive.

mod guard;

use bytes::{Bytes, BytesMut};
use prost::Message;

pub(super) use self::guard::{Guard, Trust};

use super::Violation;
use super::outbox::Outbox;
use crate::crypto::{Secret, Suite};
use crate::handshake::HandshakeError;
use crate::handshake::certificate::Certificate;
use crate::handshake::client::Waiting;
use crate::id::InboxSeq;
use crate::limits::{HANDSHAKE_LEN_MAX, HEADER_LEN, LENGTH_LEN};
use crate::preamble::Preamble;
use crate::proto;
use crate::record::{self, Record, RecordType};

/// How many times longer than an answer a record may take from its first byte to its last: with the default a slow
/// link has a minute for the longest.
const RECORD_TIMEOUTS: u64 = 4;

/// Holds buffers only while there is something in them.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// At most one incomplete record, save while `handle_bytes` runs.
    incoming: BytesMut,
    outgoing: Vec<u8>,
    /// How much of `outgoing` is written already.
    outgoing_start: usize,
    guard: Guard,
    connected_us: u64,
    /// When bytes last came.
    heard_us: u64,
    /// When bytes last went.
    sent_us: u64,
    /// When the oldest message or request that may await an answer was written, at the earliest.
    awaiting_us: u64,
    /// As WELCOME said.
    keep_alive_us: u64,
    /// When the unanswered PING was written.
    ping_us: Option<u64>,
    ping_nonce: u64,
    /// When a GOAWAY wants this connection left.
    leave_us: Option<u64>,
}

/// A record as it came.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The type's number.
    pub(super) kind: u8,
    /// The protobuf.
    pub(super) body: Bytes,
    pub(super) trust: Trust,
}

impl Link {
    pub(super) fn connected(now_us: u64) -> Self {
        Self { connected_us: now_us, heard_us: now_us, sent_us: now_us, awaiting_us: now_us, ..Self::default() }
    }

    pub(super) fn connected_us(&self) -> u64 {
        self.connected_us
    }

    /// When this connection is to be left, if it is.
    pub(super) fn leave_us(&self) -> Option<u64> {
        if self.guard.is_spent() { Some(0) } else { self.leave_us }
    }

    pub(super) fn leave_at(&mut self, leave_us: u64) {
        self.leave_us = Some(leave_us);
    }

    pub(super) fn agree_keep_alive(&mut self, keep_alive_s: u32) {
        self.keep_alive_us = u64::from(keep_alive_s.max(1)) * 1_000_000;
    }

    // ---- in ----

    pub(super) fn handle_bytes(&mut self, bytes: &[u8], now_us: u64) {
        if bytes.is_empty() {
            // No sign of life.
            return;
        }
        self.incoming.extend_from_slice(bytes);
        self.heard_us = now_us;
        self.ping_us = None;
    }

    /// Takes the next whole record.
    pub(super) fn next_record(&mut self, now_us: u64) -> Result<Option<Incoming>, Violation> {
        let (len_min, len_max) = self.guard.body_lens();
        let Some(range) = record::split(&self.incoming, len_min, len_max)? else {
            self.guard.note_incomplete(!self.incoming.is_empty(), now_us);
            if self.incoming.is_empty() {
                self.incoming = BytesMut::new();
            }
            return Ok(None);
        };
        let mut frame = self.incoming.split_to(range.end);
        let mut body = frame.split_off(LENGTH_LEN);
        let trust = self.guard.open(&mut body)?;
        let kind = Record::parse(&body)?.kind;
        Ok(Some(Incoming { kind, body: body.freeze().slice(HEADER_LEN..), trust }))
    }

    /// The server's handshake message has come: the one still to be sent follows, where there is one, and READY.
    pub(super) fn finish_handshake(
        &mut self,
        answer: &[u8],
        unix_ms: u64,
        now_us: u64,
    ) -> Result<Option<Certificate>, HandshakeError> {
        let (last, server) = self.guard.finish(answer, unix_ms, now_us)?;
        if let Some(last) = last {
            self.write_handshake(&last);
        }
        self.write(now_us, RecordType::Ready, &proto::Ready {});
        Ok(server)
    }

    /// The server's records are sealed with its next key from here on. `false`: nothing is sealed here.
    pub(super) fn follow_rekey(&mut self) -> bool {
        self.guard.follow()
    }

    /// The secret of the ticket that WELCOME brings.
    pub(super) fn take_resumption(&mut self) -> Option<Secret> {
        self.guard.take_resumption()
    }

    // ---- out ----

    pub(super) fn outgoing(&self) -> &[u8] {
        self.outgoing.get(self.outgoing_start..).expect("never more is written than there is")
    }

    pub(super) fn transmitted(&mut self, len: usize, now_us: u64) {
        self.outgoing_start += len;
        assert!(self.outgoing_start <= self.outgoing.len(), "more was written than there is");
        if len > 0 {
            self.sent_us = now_us;
        }
        if self.outgoing_start == self.outgoing.len() {
            self.clear();
        }
    }

    #[cfg(test)]
    pub(super) fn is_unallocated(&self) -> bool {
        self.incoming.capacity() == 0 && self.outgoing.capacity() == 0
    }

    pub(super) fn clear(&mut self) {
        self.outgoing = Vec::new();
        self.outgoing_start = 0;
    }

    pub(super) fn write_login(&mut self, login: &proto::Login, now_us: u64) {
        self.outgoing.extend_from_slice(&Preamble::PLAINTEXT.encode());
        let login = login.encode_to_vec();
        // A longer one cannot be framed for what it is: as an empty message the server refuses it as no login.
        let login = if login.len() <= HANDSHAKE_LEN_MAX { login } else { Vec::new() };
        self.write_handshake(&login);
        self.write(now_us, RecordType::Ready, &proto::Ready {});
    }

    /// Begins with a handshake: no record is written before the server's message has come.
    pub(super) fn begin_handshake(&mut self, preamble: Preamble, message: &[u8], suite: Suite, waiting: Waiting) {
        self.outgoing.extend_from_slice(&preamble.encode());
        self.write_handshake(message);
        self.guard = Guard::waiting(suite, waiting);
    }

    fn write_handshake(&mut self, message: &[u8]) {
        assert!(message.len() <= HANDSHAKE_LEN_MAX, "a handshake message of {} bytes", message.len());
        let len = u16::try_from(message.len()).expect("HANDSHAKE_LEN_MAX fits a u16");
        self.outgoing.extend_from_slice(&len.to_be_bytes());
        self.outgoing.extend_from_slice(message);
    }

    pub(super) fn write_sends(&mut self, outbox: &mut Outbox, now_us: u64) {
        if !self.guard.is_open() {
            return;
        }
        // Written bytes at the front of the buffer do not count as waiting: away with them first.
        if self.outgoing_start > self.outgoing.len() / 2 {
            self.outgoing.drain(..self.outgoing_start);
            self.outgoing_start = 0;
        }
        outbox.write(&mut self.outgoing, &mut self.guard, now_us);
    }

    pub(super) fn write_rpc(&mut self, rpc: &proto::Rpc, now_us: u64) {
        self.write(now_us, RecordType::Rpc, rpc);
    }

    pub(super) fn write_ack(&mut self, through: InboxSeq, now_us: u64) {
        let ack = proto::Ack { inbox_seq: through.0, credit_entries: 0, credit_bytes: 0 };
        self.write(now_us, RecordType::Ack, &ack);
    }

    pub(super) fn write_pong(&mut self, nonce: u64, now_us: u64) {
        self.write(now_us, RecordType::Pong, &proto::Pong { nonce, ..Default::default() });
    }

    fn write(&mut self, now_us: u64, kind: RecordType, message: &impl Message) {
        let write = |out: &mut Vec<u8>| message.encode(out).expect("a Vec grows as needed");
        self.guard.seal(&mut self.outgoing, now_us, kind, write);
    }

    #[cfg(test)]
    pub(super) fn keys_mut(&mut self) -> &mut crate::keys::Keys {
        self.guard.keys_mut()
    }

    // ---- keep-alive ----

    /// No answer is owed that was asked for before this time.
    pub(super) fn await_from(&mut self, now_us: u64) {
        self.awaiting_us = now_us;
    }

    /// Whether this is the interval that holds; 0: whatever holds.
    pub(super) fn keeps_alive_every(&self, keep_alive_s: u32) -> bool {
        keep_alive_s == 0 || self.keep_alive_us == u64::from(keep_alive_s) * 1_000_000
    }

    /// Whether the interval that holds is longer than this one; 0 is none.
    pub(super) fn keeps_alive_less_than_every(&self, keep_alive_s: u32) -> bool {
        keep_alive_s > 0 && self.keep_alive_us > u64::from(keep_alive_s) * 1_000_000
    }

    /// Since when nothing has come and nothing has gone.
    pub(super) fn silent_since_us(&self) -> u64 {
        self.heard_us.max(self.sent_us)
    }

    /// When [`Link::keep_alive`] has something to do: a PING, or a connection given up.
    pub(super) fn due_us(&self, is_awaiting: bool, answer_timeout_us: u64) -> u64 {
        let due_us = self.answer_due_us(is_awaiting, answer_timeout_us);
        self.record_due_us(answer_timeout_us).map_or(due_us, |record_due_us| due_us.min(record_due_us))
    }

    /// Until when the record that is coming must be whole.
    fn record_due_us(&self, answer_timeout_us: u64) -> Option<u64> {
        let since_us = self.guard.incomplete_us()?;
        Some(since_us.saturating_add(answer_timeout_us.saturating_mul(RECORD_TIMEOUTS)))
    }

    fn answer_due_us(&self, is_awaiting: bool, answer_timeout_us: u64) -> u64 {
        if let Some(ping_us) = self.ping_us {
            return ping_us.saturating_add(answer_timeout_us);
        }
        let quiet_us = self.sent_us.saturating_add(self.keep_alive_us);
        if !is_awaiting {
            return quiet_us;
        }
        quiet_us.min(self.heard_us.max(self.awaiting_us).saturating_add(answer_timeout_us))
    }

    /// Writes a PING if one is due, which promises this interval, 0: what holds. `false`: the last one was not answered in
    /// time, or a record has begun and not ended.
    pub(super) fn keep_alive(
        &mut self,
        now_us: u64,
        is_awaiting: bool,
        answer_timeout_us: u64,
        promised_s: u32,
    ) -> bool {
        if now_us < self.due_us(is_awaiting, answer_timeout_us) {
            return true;
        }
        let is_record_late = self.record_due_us(answer_timeout_us).is_some_and(|due_us| due_us <= now_us);
        if self.ping_us.is_some() || is_record_late {
            return false;
        }
        self.ping(promised_s, now_us);
        true
    }

    /// Writes a PING. A shorter interval than the one that holds is kept from now on, a longer one when the server has
    /// said that it holds.
    pub(super) fn ping(&mut self, promised_s: u32, now_us: u64) {
        if self.keeps_alive_less_than_every(promised_s) {
            self.agree_keep_alive(promised_s);
        }
        self.ping_us = Some(now_us);
        self.ping_nonce += 1;
        let ping = proto::Ping { nonce: self.ping_nonce, keep_alive_s: promised_s };
        self.write(now_us, RecordType::Ping, &ping);
    }
}
