//! What the client makes of each record that a server sends.

use bytes::Bytes;

use super::link::Trust;
use super::login::Standing;
use super::{Client, Event, Goaway, Next, Phase, SavedTicket, Violation, decode, sixteen};
use crate::error::{ErrorClass, ErrorCode};
use crate::id::{ClientMessageId, ConversationId, ConversationSeq, InboxSeq, Incarnation, MessageId};
use crate::limits::{VERSION_MAX, VERSION_MIN};
use crate::message::Accepted;
use crate::proto;
use crate::proto::error::Scope;
use crate::record::RecordType;

/// First wait before a message that was rejected for now, where the server named none; it doubles.
const RETRY_BASE_MS: u32 = 50;
/// Longest such wait.
const RETRY_MAX_MS: u32 = 10_000;
/// How often that wait doubles.
const RETRY_DOUBLINGS_MAX: u32 = 8;
/// How often a message that was rejected because of another, of which nothing is known, is sent again without a wait.
const AT_ONCE_MAX: u32 = 3;

impl Client {
    pub(super) fn read_records(&mut self) {
        while self.has_connection() {
            let outcome = match self.link.next_record(self.now_us) {
                Ok(None) => return,
                Ok(Some(incoming)) if incoming.trust == Trust::Hint => self.handle_hint(incoming),
                Ok(Some(incoming)) => self.handle_record(incoming.kind, incoming.body),
                Err(violation) => Err(violation),
            };
            if let Err(violation) = outcome {
                self.events.push_back(Event::Violation(violation));
                self.disconnect(Next::Reconnect);
            }
        }
    }

    fn handle_record(&mut self, kind: u8, body: Bytes) -> Result<(), Violation> {
        // An unknown type with bit 7 may be ignored; of any other there is nobody to tell.
        let Some(known) = RecordType::from_number(kind) else {
            return Ok(());
        };
        let is_welcome = known == RecordType::Welcome;
        let is_any_time = matches!(
            known,
            RecordType::Ping | RecordType::Pong | RecordType::Goaway | RecordType::Error | RecordType::Rekey
        );
        if !is_any_time && is_welcome == self.is_logged_in() {
            return Err(Violation::OutOfState { kind });
        }
        match known {
            RecordType::Welcome => self.handle_welcome(decode(kind, body)?),
            RecordType::Ping => {
                let ping: proto::Ping = decode(kind, body)?;
                self.link.write_pong(ping.nonce, self.now_us);
                Ok(())
            }
            RecordType::Pong => decode(kind, body).map(|pong| self.handle_pong(&pong)),
            RecordType::Goaway => {
                self.handle_goaway(decode(kind, body)?);
                Ok(())
            }
            RecordType::Error => {
                self.handle_error(decode(kind, body)?);
                Ok(())
            }
            RecordType::SendResult => self.handle_send_result(decode(kind, body)?),
            RecordType::Deliver => {
                let mut deliver: proto::Deliver = decode(kind, body)?;
                self.inbox.handle_deliver(&mut deliver)?;
                self.events.extend(deliver.entries.into_iter().map(Event::Delivered));
                Ok(())
            }
            RecordType::Gap => {
                let gap: proto::Gap = decode(kind, body)?;
                self.inbox.handle_gap(&gap);
                if gap.reset {
                    self.receipts = 0;
                }
                self.events.push_back(Event::Gap(gap));
                Ok(())
            }
            RecordType::Receipt => {
                let receipt: proto::Receipt = decode(kind, body)?;
                are_conversations(receipt.marks.iter().map(|mark| &mark.conversation))?;
                self.events.push_back(Event::Receipt(receipt));
                Ok(())
            }
            RecordType::SyncStart => {
                let start: proto::SyncStart = decode(kind, body)?;
                are_conversations(start.conversations.iter().map(|item| &item.conversation))?;
                self.events.push_back(Event::SyncStart(start));
                Ok(())
            }
            RecordType::SyncDone => {
                self.events.push_back(Event::SyncDone(decode(kind, body)?));
                Ok(())
            }
            RecordType::RpcResult => self.handle_rpc_result(decode(kind, body)?),
            RecordType::Rekey if self.link.follow_rekey() => Ok(()),
            RecordType::Ready
            | RecordType::Rekey
            | RecordType::Handshake
            | RecordType::Send
            | RecordType::Ack
            | RecordType::Rpc => Err(Violation::OutOfState { kind }),
        }
    }

    fn handle_welcome(&mut self, welcome: proto::Welcome) -> Result<(), Violation> {
        if !(u32::from(VERSION_MIN)..=u32::from(VERSION_MAX)).contains(&welcome.version) {
            return Err(Violation::Version { version: welcome.version });
        }
        self.phase = Phase::LoggedIn;
        self.backoff.reset();
        self.not_before_us = 0;
        self.link.agree_keep_alive(welcome.keep_alive_s);
        if let Some(keep_alives) = &mut self.keep_alives {
            let bounds = (welcome.keep_alive_min_s, welcome.keep_alive_max_s);
            keep_alives.welcomed(welcome.keep_alive_s, bounds, self.now_us);
            self.promise(false);
        }
        self.inbox.handle_welcome(Incarnation(welcome.incarnation));
        let secret = self.link.take_resumption();
        if !welcome.ticket.is_empty() {
            // A copy: the ticket outlives the bytes it came in.
            let bytes = Bytes::copy_from_slice(&welcome.ticket);
            self.ticket = Some(Box::new(SavedTicket { bytes, secret }));
        }
        self.standing = Standing::Registered;
        self.events.push_back(Event::LoggedIn(welcome));
        Ok(())
    }

    /// Any byte shows that the server lives: the link has noted it.
    fn handle_pong(&mut self, pong: &proto::Pong) {
        if pong.keep_alive_s > 0 && self.keep_alives.is_some() {
            self.link.agree_keep_alive(pong.keep_alive_s);
        }
    }

    fn handle_goaway(&mut self, goaway: proto::Goaway) {
        let low_us = u64::from(goaway.reconnect_min_ms) * 1000;
        let high_us = u64::from(goaway.reconnect_max_ms) * 1000;
        let leave_us = self.now_us.saturating_add(self.jitter.between(low_us, high_us));
        self.link.leave_at(leave_us);
        self.events.push_back(Event::Goaway(Goaway { asked: goaway, leave_us }));
    }

    fn handle_error(&mut self, error: proto::Error) {
        let code = error.code;
        let class = ErrorClass::of(code);
        let retry_us = u64::from(error.retry_after_ms) * 1000;
        let request = ClientMessageId::try_from(error.request_id.as_ref()).ok();
        let request = request.filter(|id| self.outbox.contains(*id));
        let is_about_connection = error.scope() == Scope::Connection;
        let is_fatal = match ErrorCode::from_number(code) {
            Some(known) => known.closes(),
            None => is_about_connection && class != ErrorClass::RetryHere,
        };
        self.events.push_back(Event::ServerError(error.clone()));
        if is_fatal {
            if !self.take_place(&error) {
                self.not_before_us = self.now_us.saturating_add(retry_us);
            }
            self.handle_fatal(code);
        } else if let Some(id) = request {
            self.handle_rejection(id, &error);
        } else if code == ErrorCode::TypeUnknown.number() && error.request_id.as_ref() == [RecordType::Rpc as u8] {
            // A server without requests says so once for each, in their order.
            self.events.extend(self.calls.end_oldest().map(|id| Event::Answer { id, result: Err(code) }));
        } else if class == ErrorClass::RetryHere {
            let wait_us = self.retry_wait_us(&error, 1);
            self.outbox.hold(None, self.now_us.saturating_add(wait_us));
        }
    }

    fn handle_send_result(&mut self, result: proto::SendResult) -> Result<(), Violation> {
        let id: ClientMessageId = sixteen(&result.client_message_id)?;
        if let Some(error) = result.error {
            self.handle_rejection(id, &error);
        } else if self.outbox.remove(id) {
            self.events.push_back(Event::Sent(Accepted {
                client_message_id: id,
                conversation_seq: ConversationSeq(result.conversation_seq),
                message_id: MessageId(result.message_id),
                server_time_ms: result.server_time_ms,
                inbox_seq: InboxSeq(result.inbox_seq),
                duplicate: result.duplicate,
            }));
        }
        Ok(())
    }

    fn handle_rpc_result(&mut self, answer: proto::RpcResult) -> Result<(), Violation> {
        use proto::rpc_result::Result::Conversations;
        if let Some(Conversations(page)) = &answer.result {
            are_conversations(page.items.iter().map(|item| &item.conversation))?;
        }
        if self.calls.end(answer.id) {
            let result = match (answer.error, answer.result) {
                (None, Some(result)) => Ok(result),
                (Some(error), _) => Err(error.code),
                // Of a later version, or nothing: this client has no use for it.
                (None, None) => Err(ErrorCode::RequestInvalid.number()),
            };
            self.events.push_back(Event::Answer { id: answer.id, result });
        }
        Ok(())
    }

    fn handle_rejection(&mut self, id: ClientMessageId, error: &proto::Error) {
        let code = error.code;
        if !matches!(ErrorClass::of(code), ErrorClass::RetryHere | ErrorClass::Reconnect) {
            if self.outbox.remove(id) {
                self.events.push_back(Event::Rejected { id, code, retry: false });
            }
            return;
        }
        let Some(rejections) = self.outbox.requeue(id) else {
            return;
        };
        // What was rejected only because of another waits for that other, however often, not for a time of its own:
        // of a long backlog a server that limits the rate accepts a part each time.
        let is_consequence = code == ErrorCode::AfterRejected.number();
        let is_at_once = is_consequence && (rejections <= AT_ONCE_MAX || self.outbox.waits_behind(id));
        let wait_us = if is_at_once { 0 } else { self.retry_wait_us(error, rejections) };
        let held = (error.scope() != Scope::Connection).then_some(id);
        self.outbox.hold(held, self.now_us.saturating_add(wait_us));
        if !is_consequence {
            self.events.push_back(Event::Rejected { id, code, retry: true });
        }
    }

    /// What the server asked for and up to a quarter more, or a backoff of our own.
    fn retry_wait_us(&mut self, error: &proto::Error, rejections: u32) -> u64 {
        let asked_us = u64::from(error.retry_after_ms) * 1000;
        if asked_us > 0 {
            return self.jitter.between(asked_us, asked_us + asked_us / 4);
        }
        let doubled_ms = RETRY_BASE_MS << rejections.saturating_sub(1).min(RETRY_DOUBLINGS_MAX);
        self.jitter.between(0, u64::from(doubled_ms.min(RETRY_MAX_MS)) * 1000)
    }
}

fn are_conversations<'a>(ids: impl IntoIterator<Item = &'a Bytes>) -> Result<(), Violation> {
    ids.into_iter().try_for_each(|id| sixteen::<ConversationId>(id).map(drop))
}
