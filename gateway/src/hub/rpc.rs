//! RPCs: questions about the user's own things, and wishes. Each is answered once, whatever becomes of its session.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, ConversationSeq};
use culver_protocol::limits::RPCS_IN_FLIGHT_MAX;
use culver_protocol::message::MarkView;
use culver_storage::command::{Decision, View};
use culver_storage::error::EngineError;
use culver_storage::reader::{ConversationView, Read};
use culver_storage::record::Record;

use super::command::{Address, Command, Device, Request};
use super::effect::{Answer, EffectKind};
use super::reads::{split_tag, tag_of};
use super::{Hub, Tried};

/// Who waits for a page of conversations.
pub(super) struct Asking {
    session: Address,
    device: Device,
    id: u64,
}

impl Hub {
    /// Whether a command may begin: of RPCs each session has few at a time.
    pub(super) fn admit(&mut self, command: &Command) -> bool {
        let Command::Rpc { session, device, id, .. } = command else { return true };
        // If it is not current it is answered so in its turn.
        let Some(index) = self.directory.current(*device, *session) else { return true };
        let extra = self.extras.get_or_default(&mut self.directory, index);
        if extra.rpcs >= RPCS_IN_FLIGHT_MAX {
            self.tell(*session, EffectKind::Answer { id: *id, result: Err(ErrorCode::Busy) });
            return false;
        }
        extra.rpcs += 1;
        true
    }

    pub(super) fn answer(&mut self, session: Address, device: Device, id: u64, result: Result<Answer, ErrorCode>) {
        if let Some(index) = self.directory.current(device, session)
            && let Some(extra) = self.extras.get(&self.directory, index)
        {
            // One that came before its session's login was not counted.
            extra.rpcs = extra.rpcs.saturating_sub(1);
            self.extras.settle(&mut self.directory, index);
        }
        self.tell(session, EffectKind::Answer { id, result });
    }

    pub(super) fn rpc(
        &mut self,
        session: Address,
        device: Device,
        id: u64,
        request: &Request,
        now_ms: u64,
    ) -> Result<Tried, EngineError> {
        if self.directory.current(device, session).is_none() {
            self.answer(session, device, id, Err(ErrorCode::Replaced));
            return Ok(Tried::Done);
        }
        let user = device.user;
        let result = match request {
            Request::Conversations { limit, page } => {
                let read = self.number_read();
                self.asking.insert(read, Asking { session, device, id });
                let (tag, limit, page) = (tag_of(read, 0), *limit, page.clone());
                self.want(Read::Conversations { tag, user, limit, page });
                return Ok(Tried::Done);
            }
            Request::MarkRead { conversation, seq } => {
                match self.shards.decide_mark_read(&*self.engine, user, *conversation, *seq)? {
                    Decision::Waits(load) => return Ok(Tried::Waits(load)),
                    Decision::Reject(code) => Err(code),
                    Decision::Apply(record) => {
                        self.shards.apply(&record);
                        self.tell_own_read(session, &record);
                        Ok(Answer::MarkedRead { seq: *seq })
                    }
                    Decision::Duplicate(_) | Decision::Unchanged => Ok(Answer::MarkedRead { seq: *seq }),
                }
            }
            Request::Devices => match self.device_list(device)? {
                View::Known(devices) => Ok(Answer::Devices(devices)),
                View::Waits(load) => return Ok(Tried::Waits(load)),
            },
            Request::SetReadReceipts { on } => match self.shards.decide_read_receipts(&*self.engine, user, *on)? {
                Decision::Waits(load) => return Ok(Tried::Waits(load)),
                Decision::Reject(code) => Err(code),
                Decision::Apply(record) => {
                    self.apply_at_leisure(&record, now_ms);
                    Ok(Answer::ReadReceiptsSet { on: *on })
                }
                Decision::Duplicate(_) | Decision::Unchanged => Ok(Answer::ReadReceiptsSet { on: *on }),
            },
            Request::NameDevice { device, name } => match self.name_device(user, *device, name)? {
                View::Known(result) => result,
                View::Waits(load) => return Ok(Tried::Waits(load)),
            },
            Request::RemoveDevice { device: removed } => {
                return self.remove_device(session, device, id, *removed, now_ms);
            }
        };
        self.answer(session, device, id, result);
        Ok(Tried::Done)
    }

    /// The user's other sessions learn how far the user has read.
    fn tell_own_read(&mut self, session: Address, record: &Record) {
        if let Record::MarkedRead { user, conversation, seq, version, .. } = record {
            let mark = own_read(*conversation, *seq);
            self.tell_mark(*user, mark, *version, Some(session));
        }
    }

    /// A page of conversations has been read.
    pub(super) fn answer_conversations(
        &mut self,
        tag: u64,
        result: Result<(Vec<ConversationView>, Vec<u8>), ErrorCode>,
    ) {
        let Asking { session, device, id } =
            self.asking.remove(&split_tag(tag).0).expect("each read is asked for once, and comes back once");
        let result = result.map(|(items, next)| Answer::Conversations { items, next });
        self.answer(session, device, id, result);
    }
}

fn own_read(conversation: ConversationId, seq: ConversationSeq) -> MarkView {
    MarkView { conversation, own_read: seq, ..MarkView::default() }
}
