//! From the preamble to WELCOME.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{InboxSeq, Incarnation};
use culver_protocol::limits::{
    CREDIT_BYTES_DEFAULT, CREDIT_BYTES_MAX, CREDIT_BYTES_MIN, CREDIT_ENTRIES_DEFAULT, CREDIT_ENTRIES_MAX, PREAMBLE_LEN,
};
use culver_protocol::preamble::{HANDSHAKE_NONE, Preamble, SUITE_PLAINTEXT};
use culver_protocol::proto;
use culver_protocol::record::RecordType;
use prost::Message;

use super::{Context, Known, Phase, Session};
use crate::hub::command::Command;

/// The first letters tell whether it makes sense to wait for the rest.
pub(super) fn check_start(bytes: &[u8]) -> Result<(), ErrorCode> {
    let expected = [b'C', b'V'];
    if bytes.iter().zip(expected).any(|(byte, letter)| *byte != letter) {
        return Err(ErrorCode::BadMagic);
    }
    Ok(())
}

/// Whether this server speaks what the client proposes.
pub(super) fn check_preamble(bytes: [u8; PREAMBLE_LEN]) -> Result<(), ErrorCode> {
    let preamble = Preamble::decode(bytes)?;
    preamble.agree_version()?;
    if preamble.handshake != HANDSHAKE_NONE {
        return Err(ErrorCode::HandshakeUnsupported);
    }
    if preamble.suite != SUITE_PLAINTEXT {
        return Err(ErrorCode::SuiteRefused);
    }
    Ok(())
}

impl Session {
    /// Checks a login and answers WELCOME. Needs no storage.
    pub(super) fn log_in(&mut self, message: &[u8], context: &mut Context<'_>) -> Result<(), ErrorCode> {
        let login = proto::Login::decode(message).map_err(|_| ErrorCode::BadHandshake)?;
        let identity = context.authenticator.login(&login, context.now_ms)?;
        let ticket = context.authenticator.issue_ticket(identity, context.now_ms);
        self.user = identity.user;
        self.device = identity.device;
        self.agree(&login, context);
        // What the client says it has: true until the hub says better.
        self.acked = InboxSeq(login.cursor);
        self.sent = InboxSeq(login.receipts);
        let known = match Incarnation(login.incarnation) {
            Incarnation(0) => Known::Nothing,
            known if known == context.incarnation => Known::This,
            _ => Known::Other,
        };
        self.phase = Phase::Greeted { fetch: login.fetch, known };
        let welcome = proto::Welcome {
            ticket: ticket.bytes,
            ticket_expires_ms: ticket.expires_ms,
            incarnation: context.incarnation.0,
            server_time_ms: context.now_ms,
            keep_alive_s: u32::from(self.keep_alive_s),
            credit_entries: u32::from(self.credit_entries),
            credit_bytes: self.credit_bytes,
            version: u32::from(culver_protocol::limits::VERSION_MAX),
        };
        self.cipher.seal_message(context.out, RecordType::Welcome, &welcome);
        Ok(())
    }

    /// READY: the session takes over, and delivery starts.
    pub(super) fn become_ready(&mut self, context: &mut Context<'_>) -> Result<(), ErrorCode> {
        let Phase::Greeted { fetch, known } = self.phase else { return Err(ErrorCode::OutOfState) };
        self.phase = Phase::Steady { in_sync: false };
        self.epoch = context.address.epoch;
        let receipts = std::mem::replace(&mut self.sent, self.acked).0;
        let incarnation = match known {
            Known::Nothing => Incarnation(0),
            Known::This => context.incarnation,
            // Which one does not matter.
            Known::Other => Incarnation(context.incarnation.0.wrapping_add(1).max(1)),
        };
        let command = Command::Login {
            session: context.address,
            device: self.device(),
            cursor: self.acked,
            incarnation,
            credit: self.agreed_credit(),
            fetch,
            receipts,
        };
        self.post(context.topology.hub_of_user(self.user), command, context);
        Ok(())
    }

    fn agree(&mut self, login: &proto::Login, context: &Context<'_>) {
        let bounds = context.keep_alive;
        let wanted = if login.keep_alive_s == 0 { bounds.default_s } else { login.keep_alive_s };
        let keep_alive_s = wanted.clamp(bounds.min_s, bounds.max_s);
        self.keep_alive_s = u16::try_from(keep_alive_s).unwrap_or(u16::MAX);
        let entries = if login.credit_entries == 0 { CREDIT_ENTRIES_DEFAULT } else { login.credit_entries };
        self.credit_entries = u16::try_from(entries.clamp(1, CREDIT_ENTRIES_MAX)).expect("the maximum fits");
        let bytes = if login.credit_bytes == 0 { CREDIT_BYTES_DEFAULT } else { login.credit_bytes };
        self.credit_bytes = bytes.clamp(CREDIT_BYTES_MIN, CREDIT_BYTES_MAX);
        (self.ack_entries, self.ack_bytes) = (self.credit_entries, self.credit_bytes);
    }
}
