//! Messages: what is decided, and the order that holds after one was refused.

use culver_protocol::error::{ErrorClass, ErrorCode};
use culver_protocol::id::{ClientMessageId, ConversationId};
use culver_storage::command::{Decision, Send};
use culver_storage::error::EngineError;
use culver_storage::planted::{self, Bug};
use culver_storage::record::{InboxEntry, MessageRecord, Place, Record};

use super::command::{Address, Device};
use super::effect::{Effect, EffectKind};
use super::{Hub, Tried};
use crate::crash_point::{self, CrashPoint};

/// How long who is refused for want of room on a disk is to wait: that lasts until somebody makes some.
const WITHOUT_SPACE_MS: u32 = 2000;
/// And who is refused for want of room in a queue.
const BUSY_MS: u32 = 200;

/// A send that was refused with a retryable error and has not returned.
pub(super) struct Rejected {
    conversation: ConversationId,
    client_message_id: ClientMessageId,
    arrival: u64,
}

impl Hub {
    /// A message. Whether its session is still current is not asked, for that may be another hub's to know: what a
    /// session sends that was replaced is the device's all the same, and dedup knows it when it comes again.
    pub(super) fn send(
        &mut self,
        session: Address,
        arrival: u64,
        send: &Send,
        now_ms: u64,
    ) -> Result<Tried, EngineError> {
        if let Some(code) = self.after_rejected(session, arrival, send) {
            self.reject(session, arrival, send, code);
            return Ok(Tried::Done);
        }
        match self.shards.decide_send(&*self.engine, send, now_ms)? {
            // What was accepted before is answered all the same, and what can never be accepted is told so.
            Decision::Apply(_) if self.is_space_low && !planted::is(Bug::SpaceForgotten) => {
                self.reject(session, arrival, send, ErrorCode::Busy);
            }
            Decision::Apply(record) => {
                self.shards.apply(&record);
                if let Record::Message(message) = &record {
                    self.counts.accepted += 1;
                    self.tell(session, EffectKind::Accepted { accepted: message.accepted(), skips: false });
                    self.deliver_message(message, now_ms);
                    crash_point::reached(CrashPoint::Decided);
                }
            }
            Decision::Duplicate(accepted) => {
                self.counts.duplicate += 1;
                if planted::is(Bug::ResendAnsweredEarly) {
                    self.released.push(Effect { session, kind: EffectKind::Accepted { accepted, skips: false } });
                    return Ok(Tried::Done);
                }
                self.tell(session, EffectKind::Accepted { accepted, skips: false });
            }
            Decision::Waits(load) => return Ok(Tried::Waits(load)),
            Decision::Reject(code) => self.reject(session, arrival, send, code),
            Decision::Unchanged => {}
        }
        Ok(Tried::Done)
    }

    fn deliver_message(&mut self, message: &MessageRecord, now_ms: u64) {
        if let Place::Local(_) = message.place {
            self.deliver_live(message.recipient, &message.entry, now_ms);
        }
        if let Some(Place::Local(inbox_seq)) = message.copy {
            let copy = InboxEntry { inbox_seq, ..message.entry.clone() };
            self.deliver_live(copy.sender, &copy, now_ms);
        }
    }

    /// A send that was refused with a retryable error has come back: whatever becomes of it now, it is the first of its
    /// conversation no longer.
    pub(super) fn note_returned(&mut self, session: Address, send: &Send) {
        if self.rejected.is_empty() {
            return;
        }
        let Some(rejected) = self.rejected.get_mut(&session) else { return };
        let is_back = |first: &Rejected| {
            first.client_message_id == send.client_message_id && first.conversation == send.conversation
        };
        rejected.retain(|first| !is_back(first));
        if rejected.is_empty() {
            self.rejected.remove(&session);
        }
    }

    /// Whether a message that arrives comes no faster than its sender may send; else it is refused, and what follows it
    /// waits for it as for any that was refused. Asked once: what is parked has its place. What would be refused on
    /// account of an earlier one is refused here, so that it spends nothing.
    pub(super) fn is_within_rates(&mut self, session: Address, send: &Send) -> bool {
        if !self.rates.are_limited() {
            return true;
        }
        let arrival = self.arrivals + 1;
        let refused = match self.after_rejected(session, arrival, send) {
            Some(code) => Some((code, 0)),
            None => {
                let charged = self.rates.charge(Device { user: send.sender, device: send.device });
                charged.err().map(|wait_ms| (ErrorCode::RateLimited, wait_ms))
            }
        };
        let Some((code, retry_after_ms)) = refused else { return true };
        self.arrivals = arrival;
        self.counts.limited += u64::from(code == ErrorCode::RateLimited);
        self.refuse(session, arrival, send, code, retry_after_ms);
        false
    }

    /// Refuses what follows a send that was refused with a retryable error and has not come back. What came before
    /// it, and was parked meanwhile, does not follow it.
    fn after_rejected(&self, session: Address, arrival: u64, send: &Send) -> Option<ErrorCode> {
        if self.rejected.is_empty() || planted::is(Bug::SendAfterRejected) {
            return None;
        }
        let first = self.rejected.get(&session)?.iter().find(|first| first.conversation == send.conversation)?;
        (first.arrival < arrival).then_some(ErrorCode::AfterRejected)
    }

    pub(super) fn reject(&mut self, session: Address, arrival: u64, send: &Send, code: ErrorCode) {
        let retry_after_ms = match code {
            ErrorCode::Busy if self.is_space_low => WITHOUT_SPACE_MS,
            ErrorCode::Busy => BUSY_MS,
            _ => 0,
        };
        self.refuse(session, arrival, send, code, retry_after_ms);
    }

    fn refuse(&mut self, session: Address, arrival: u64, send: &Send, code: ErrorCode, retry_after_ms: u32) {
        self.counts.rejected += 1;
        let is_forgotten = code == ErrorCode::RateLimited && planted::is(Bug::RateRefusalForgotten);
        if code.class() == ErrorClass::RetryHere && code != ErrorCode::AfterRejected && !is_forgotten {
            let (conversation, client_message_id) = (send.conversation, send.client_message_id);
            let rejected = self.rejected.entry(session).or_default();
            let this = Rejected { conversation, client_message_id, arrival };
            match rejected.iter_mut().find(|first| first.conversation == conversation) {
                None => {
                    if rejected.len() >= self.bounds.rejected {
                        rejected.remove(0);
                    }
                    rejected.push(this);
                }
                Some(first) if arrival < first.arrival => *first = this,
                Some(_) => {}
            }
        }
        let client_message_id = send.client_message_id;
        self.tell(session, EffectKind::Rejected { client_message_id, code, retry_after_ms });
    }
}
