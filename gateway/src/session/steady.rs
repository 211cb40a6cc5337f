//! Records of a logged-in client, and the answers to what it sends.

use bytes::Bytes;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ClientMessageId, ConversationId, InboxSeq};
use culver_protocol::limits::{CREDIT_BYTES_MAX, CREDIT_BYTES_MIN, CREDIT_ENTRIES_MAX, PAYLOAD_LEN_MAX};
use culver_protocol::message::{Accepted, SendView, decode_ack};
use culver_protocol::proto;
use culver_protocol::proto::error::Scope;
use culver_protocol::record::{Record, RecordType, may_be_ignored};
use culver_storage::command::Send;
use culver_storage::planted::{self, Bug};
use culver_storage::topology::HubId;
use prost::Message;

use super::records::Records;
use super::{Context, Phase, Session, error_message, frame_error};
use crate::config::KeepAlive;
use crate::hub::command::{Address, Command, Credit};

impl Session {
    /// One record.
    pub(super) fn handle_record(&mut self, body: &[u8], context: &mut Context<'_>) -> Result<(), ErrorCode> {
        let record = Record::parse(body).map_err(frame_error)?;
        let Some(kind) = RecordType::from_number(record.kind) else {
            if !may_be_ignored(record.kind) {
                self.write_error(ErrorCode::TypeUnknown, Scope::Request, &[record.kind], &mut context.out);
            }
            return Ok(());
        };
        match kind {
            RecordType::Ready => {
                proto::Ready::decode(record.body).map_err(|_| ErrorCode::BadProtobuf)?;
                self.become_ready(context)
            }
            RecordType::Ping => {
                let ping = proto::Ping::decode(record.body).map_err(|_| ErrorCode::BadProtobuf)?;
                let keep_alive_s = self.promised(ping.keep_alive_s, context.keep_alive);
                context.out.seal_message(RecordType::Pong, &proto::Pong { nonce: ping.nonce, keep_alive_s });
                Ok(())
            }
            RecordType::Pong => proto::Pong::decode(record.body).map(drop).map_err(|_| ErrorCode::BadProtobuf),
            RecordType::Rekey if context.out.is_sealed() => {
                context.out.follow_key();
                Ok(())
            }
            RecordType::Send if self.is_steady() => self.handle_send(record.body, context),
            RecordType::Ack if self.is_steady() => self.handle_ack(record.body),
            RecordType::Rpc if self.is_steady() => self.handle_rpc(record.body, context),
            _ => Err(ErrorCode::OutOfState),
        }
    }

    /// The client promises to send something at least this often from now on; 0: as before. Returns what holds, within
    /// the bounds, to be told to whom has promised something.
    fn promised(&mut self, wanted_s: u32, bounds: KeepAlive) -> u32 {
        if wanted_s == 0 {
            return 0;
        }
        // Planted: what holds stays.
        if !planted::is(Bug::KeepAliveNotShortened) {
            self.keep_alive_s = bounds.bring_within(wanted_s);
        }
        u32::from(self.keep_alive_s)
    }

    fn handle_send(&mut self, body: &[u8], context: &mut Context<'_>) -> Result<(), ErrorCode> {
        let view = SendView::decode(body).map_err(|_| ErrorCode::BadProtobuf)?;
        let Ok(client_message_id) = ClientMessageId::try_from(view.client_message_id) else {
            self.write_error(ErrorCode::ClientMessageIdInvalid, Scope::Request, &[], &mut context.out);
            return Ok(());
        };
        let Ok(conversation) = ConversationId::try_from(view.conversation) else {
            self.write_rejected(client_message_id, ErrorCode::ConversationInvalid, 0, &mut context.out);
            return Ok(());
        };
        if view.payload.len() > PAYLOAD_LEN_MAX {
            self.write_rejected(client_message_id, ErrorCode::PayloadTooLong, 0, &mut context.out);
            return Ok(());
        }
        let payload = Bytes::copy_from_slice(view.payload);
        let (sender, device, copy) = (self.user, self.device, self.copy);
        let send = Send { sender, device, client_message_id, conversation, payload, copy };
        let hub = context.topology.hub_of_conversation(conversation);
        self.post(hub, Command::Send { session: context.address, send }, context);
        Ok(())
    }

    fn handle_ack(&mut self, body: &[u8]) -> Result<(), ErrorCode> {
        let (through, entries, bytes) = decode_ack(body).map_err(|_| ErrorCode::BadProtobuf)?;
        if through > self.told() {
            let is_of_before = matches!(self.phase, Phase::SteadyAnew { .. });
            return if is_of_before { Ok(()) } else { Err(ErrorCode::AckBeyondSent) };
        }
        self.acked = self.acked.max(through);
        let entries = if entries == 0 { u32::from(self.credit_entries) } else { entries.min(CREDIT_ENTRIES_MAX) };
        self.ack_entries = u16::try_from(entries).expect("the maximum fits");
        self.ack_bytes = if bytes == 0 { self.credit_bytes } else { bytes.clamp(CREDIT_BYTES_MIN, CREDIT_BYTES_MAX) };
        self.ack_pending = true;
        Ok(())
    }

    /// Whether the user's hub must be told something that is not refused when its mailbox is full.
    #[must_use]
    pub fn has_pending(&self, unsent: bool) -> bool {
        self.ack_pending || (self.resume_pending && !unsent)
    }

    /// The next of the commands that wait to be passed on. Deliveries resume only when nothing is unsent.
    pub fn take_pending(&mut self, session: Address, unsent: bool) -> Option<Command> {
        let device = self.device();
        if std::mem::take(&mut self.ack_pending) {
            let credit = Credit { entries: self.ack_entries, bytes: self.ack_bytes };
            // Of what the client knew before it came, the hub hears as it comes by.
            return Some(Command::Ack { session, device, through: self.acked.min(self.sent), credit });
        }
        if !unsent && std::mem::take(&mut self.resume_pending) {
            return Some(Command::Resume { session, device, sent: self.sent });
        }
        None
    }

    /// Tells the sender that its message is durable. `skips`: the sender's own copy is what comes next.
    pub fn write_accepted(&mut self, accepted: &Accepted, skips: bool, out: &mut Records<'_>) {
        if skips {
            self.skip(InboxSeq(accepted.inbox_seq.0.saturating_sub(1)), accepted.inbox_seq);
        }
        out.seal(RecordType::SendResult, |out| accepted.encode(out));
    }

    /// Tells the sender that its message was not accepted.
    pub fn write_rejected(
        &mut self,
        client_message_id: ClientMessageId,
        code: ErrorCode,
        retry_after_ms: u32,
        out: &mut Records<'_>,
    ) {
        let id = Bytes::copy_from_slice(&client_message_id.0);
        let scope = if code == ErrorCode::AfterRejected { Scope::Conversation } else { Scope::Request };
        let error = proto::Error { retry_after_ms, ..error_message(code, scope, &[]) };
        let result = proto::SendResult { client_message_id: id, error: Some(error), ..Default::default() };
        out.seal_message(RecordType::SendResult, &result);
    }

    /// The user has other devices or not: whether their copies are to be looked for.
    pub fn set_siblings(&mut self, siblings: bool) {
        self.copy = siblings;
    }

    /// A command for a hub, which knows this session from now on.
    pub(super) fn post(&mut self, hub: HubId, command: Command, context: &mut Context<'_>) {
        self.hubs |= 1 << hub.0;
        context.commands.push((hub, command));
    }
}
