//! What dies with a connection: the bytes on their way in and out, and the times that keep it alive.

use bytes::{Bytes, BytesMut};
use prost::Message;

use super::Violation;
use super::outbox::Outbox;
use crate::id::InboxSeq;
use crate::limits::{BODY_LEN_MAX, HANDSHAKE_LEN_MAX, HEADER_LEN, LENGTH_LEN};
use crate::preamble::Preamble;
use crate::proto;
use crate::record::{self, Cipher, Record, RecordType};

/// Holds buffers only while there is something in them.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// At most one incomplete record, save while `handle_bytes` runs.
    incoming: BytesMut,
    outgoing: Vec<u8>,
    /// How much of `outgoing` is written already.
    outgoing_start: usize,
    cipher_in: Cipher,
    cipher_out: Cipher,
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

impl Link {
    pub(super) fn connected(now_us: u64) -> Self {
        Self { connected_us: now_us, heard_us: now_us, sent_us: now_us, awaiting_us: now_us, ..Self::default() }
    }

    pub(super) fn connected_us(&self) -> u64 {
        self.connected_us
    }

    pub(super) fn leave_us(&self) -> Option<u64> {
        self.leave_us
    }

    pub(super) fn leave_at(&mut self, leave_us: u64) {
        self.leave_us = Some(leave_us);
    }

    pub(super) fn agree_keep_alive(&mut self, keep_alive_s: u32) {
        self.keep_alive_us = u64::from(keep_alive_s.max(1)) * 1_000_000;
    }

    // ---- in ----

    pub(super) fn handle_bytes(&mut self, bytes: &[u8], now_us: u64) {
        self.incoming.extend_from_slice(bytes);
        self.heard_us = now_us;
        self.ping_us = None;
    }

    /// Takes the next whole record: its type and its protobuf.
    pub(super) fn next_record(&mut self) -> Result<Option<(u8, Bytes)>, Violation> {
        let Some(range) = record::split(&self.incoming, HEADER_LEN, BODY_LEN_MAX)? else {
            if self.incoming.is_empty() {
                self.incoming = BytesMut::new();
            }
            return Ok(None);
        };
        let mut frame = self.incoming.split_to(range.end);
        let mut body = frame.split_off(LENGTH_LEN);
        let opened_len = self.cipher_in.open(&mut body)?.len();
        body.truncate(opened_len);
        let kind = Record::parse(&body)?.kind;
        Ok(Some((kind, body.freeze().slice(HEADER_LEN..))))
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

    pub(super) fn write_login(&mut self, login: &proto::Login) {
        self.outgoing.extend_from_slice(&Preamble::PLAINTEXT.encode());
        let login = login.encode_to_vec();
        // A longer one cannot be framed for what it is: as an empty message the server refuses it as no login.
        let login = if login.len() <= HANDSHAKE_LEN_MAX { login } else { Vec::new() };
        let len = u16::try_from(login.len()).expect("HANDSHAKE_LEN_MAX fits a u16");
        self.outgoing.extend_from_slice(&len.to_be_bytes());
        self.outgoing.extend_from_slice(&login);
        self.cipher_out.seal_message(&mut self.outgoing, RecordType::Ready, &proto::Ready {});
    }

    pub(super) fn write_sends(&mut self, outbox: &mut Outbox, now_us: u64) {
        // Written bytes at the front of the buffer do not count as waiting: away with them first.
        if self.outgoing_start > self.outgoing.len() / 2 {
            self.outgoing.drain(..self.outgoing_start);
            self.outgoing_start = 0;
        }
        outbox.write(&mut self.outgoing, &mut self.cipher_out, now_us);
    }

    pub(super) fn write_rpc(&mut self, rpc: &proto::Rpc) {
        self.cipher_out.seal_message(&mut self.outgoing, RecordType::Rpc, rpc);
    }

    pub(super) fn write_ack(&mut self, through: InboxSeq) {
        let ack = proto::Ack { inbox_seq: through.0, credit_entries: 0, credit_bytes: 0 };
        self.cipher_out.seal_message(&mut self.outgoing, RecordType::Ack, &ack);
    }

    pub(super) fn write_pong(&mut self, nonce: u64) {
        self.cipher_out.seal_message(&mut self.outgoing, RecordType::Pong, &proto::Pong { nonce });
    }

    // ---- keep-alive ----

    /// No answer is owed that was asked for before this time.
    pub(super) fn await_from(&mut self, now_us: u64) {
        self.awaiting_us = now_us;
    }

    /// When [`Link::keep_alive`] has something to do: a PING, or a connection given up.
    pub(super) fn due_us(&self, is_awaiting: bool, answer_timeout_us: u64) -> u64 {
        if let Some(ping_us) = self.ping_us {
            return ping_us.saturating_add(answer_timeout_us);
        }
        let quiet_us = self.sent_us.saturating_add(self.keep_alive_us);
        if !is_awaiting {
            return quiet_us;
        }
        quiet_us.min(self.heard_us.max(self.awaiting_us).saturating_add(answer_timeout_us))
    }

    /// Writes a PING if one is due. `false`: the last one was not answered in time.
    pub(super) fn keep_alive(&mut self, now_us: u64, is_awaiting: bool, answer_timeout_us: u64) -> bool {
        if now_us < self.due_us(is_awaiting, answer_timeout_us) {
            return true;
        }
        if self.ping_us.is_some() {
            return false;
        }
        self.ping_us = Some(now_us);
        self.ping_nonce += 1;
        let ping = proto::Ping { nonce: self.ping_nonce };
        self.cipher_out.seal_message(&mut self.outgoing, RecordType::Ping, &ping);
        true
    }
}
