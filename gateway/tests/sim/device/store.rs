//! What an application has persisted, and so has again after it was killed. Two processes of a device share one.

use std::collections::BTreeMap;

use bytes::Bytes;
use culver_protocol::id::{ConversationId, ConversationSeq, InboxSeq, Incarnation};
use culver_protocol::message::MarkView;
use culver_protocol::proto;

use crate::oracle::MessageIndex;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// Everything up to here that this device gets is stored.
    pub(super) cursor: InboxSeq,
    pub(super) incarnation: Incarnation,
    pub(super) receipts: u64,
    pub(super) marks: BTreeMap<ConversationId, MarkView>,
    pub(super) ticket: Bytes,
    pub(super) ticket_generation: u32,
    /// What was sent and is not known to be answered, in its order.
    pub(super) outbox: Vec<MessageIndex>,
    /// The last stored message from somebody else.
    pub(super) readable: BTreeMap<ConversationId, u64>,
}

impl Store {
    /// Merges each number by maximum, as clients must.
    pub(super) fn merge(&mut self, news: &proto::Mark) {
        let conversation = ConversationId::try_from(news.conversation.as_ref()).expect("the client checks it");
        let mark = self.mark(conversation);
        mark.delivered = mark.delivered.max(ConversationSeq(news.delivered));
        mark.read = mark.read.max(ConversationSeq(news.read));
        mark.own_read = mark.own_read.max(ConversationSeq(news.own_read));
        if news.expired_through > mark.expired_through.0 {
            mark.expired_after = ConversationSeq(news.expired_after);
            mark.expired_through = ConversationSeq(news.expired_through);
        }
    }

    pub(super) fn mark(&mut self, conversation: ConversationId) -> &mut MarkView {
        self.marks.entry(conversation).or_insert(MarkView { conversation, ..MarkView::default() })
    }
}
