//! What the client's application does with receipts, requests and the announcement of what has waited.
//!
//! It forgets with each connection what it has not persisted, as a phone does whose battery is empty.

use std::collections::HashMap;

use bytes::Bytes;
use culver_protocol::client::Client;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, ConversationSeq};
use culver_protocol::message::MarkView;
use culver_protocol::proto;
use culver_protocol::proto::rpc::Request;
use culver_protocol::proto::rpc_result::Result as Found;
use rand::Rng;
use rand::rngs::SmallRng;

#[derive(Default)]
pub(crate) struct App {
    /// Persisted.
    marks: HashMap<ConversationId, MarkView>,
    unpersisted: Vec<proto::Receipt>,
    version_told: u64,
    /// Asked, neither answered nor cancelled.
    asked: HashMap<u64, Request>,
    pub(crate) answered: u32,
    /// The last persisted message of somebody else's.
    readable: HashMap<ConversationId, u64>,
    /// What SYNC_START announced on this connection.
    sync_through: Option<u64>,
}

impl App {
    pub(crate) fn mark(&self, conversation: ConversationId) -> MarkView {
        self.marks.get(&conversation).copied().unwrap_or(MarkView { conversation, ..Default::default() })
    }

    pub(crate) fn forget_connection(&mut self) {
        self.unpersisted.clear();
        self.version_told = 0;
        self.sync_through = None;
    }

    pub(crate) fn handle_receipt(&mut self, receipt: proto::Receipt) {
        assert!(receipt.version > self.version_told, "versions ascend on a connection");
        self.version_told = receipt.version;
        self.unpersisted.push(receipt);
    }

    /// Persists the first few receipts, or forgets to.
    pub(crate) fn persist(&mut self, client: &mut Client, rng: &mut SmallRng) {
        let count = rng.random_range(0..=self.unpersisted.len());
        for receipt in self.unpersisted.drain(..count) {
            for news in receipt.marks {
                let conversation = ConversationId::try_from(news.conversation.as_ref()).expect("16 bytes");
                let mark = self.marks.entry(conversation).or_insert(MarkView { conversation, ..Default::default() });
                mark.delivered = mark.delivered.max(ConversationSeq(news.delivered));
                mark.read = mark.read.max(ConversationSeq(news.read));
                mark.own_read = mark.own_read.max(ConversationSeq(news.own_read));
                if news.expired_through > mark.expired_through.0 {
                    mark.expired_after = ConversationSeq(news.expired_after);
                    mark.expired_through = ConversationSeq(news.expired_through);
                }
            }
            client.receipts_persisted(receipt.version);
        }
    }

    /// A message of somebody else's is persisted.
    pub(crate) fn may_read(&mut self, conversation: ConversationId, seq: u64) {
        let last = self.readable.entry(conversation).or_default();
        *last = (*last).max(seq);
    }

    /// `false`: there is no connection to ask on.
    pub(crate) fn ask(&mut self, client: &mut Client, rng: &mut SmallRng) -> bool {
        let readable = self.readable.iter().nth(rng.random_range(0..=self.readable.len()));
        let request = match (rng.random_range(0..5), readable) {
            (0, _) => Request::ListDevices(proto::ListDevices {}),
            (1, _) => Request::SetReadReceipts(proto::SetReadReceipts { on: rng.random() }),
            (2, _) => Request::ListConversations(proto::ListConversations { limit: 5, page: Bytes::new() }),
            (3, Some((conversation, _))) => Request::MarkRead(mark_read(*conversation, u64::MAX)),
            (_, Some((conversation, seq))) => Request::MarkRead(mark_read(*conversation, *seq)),
            (_, None) => Request::ListDevices(proto::ListDevices {}),
        };
        let Ok(id) = client.call(request.clone()) else {
            return false;
        };
        assert!(self.asked.insert(id, request).is_none(), "a number used twice");
        true
    }

    pub(crate) fn handle_answer(&mut self, id: u64, result: Result<Found, u32>) {
        let request = self.asked.remove(&id).expect("each request is answered once");
        self.answered += 1;
        let is_busy = result == Err(ErrorCode::Busy.number());
        let fits = match (request, result) {
            (Request::ListConversations(_), Ok(Found::Conversations(page))) => !page.next.is_empty(),
            (Request::ListDevices(_), Ok(Found::Devices(_))) => true,
            (Request::SetReadReceipts(set), Ok(Found::ReadReceiptsSet(is))) => set.on == is.on,
            // Always beyond; or persisted, but not to be acknowledged before it has come on this connection too.
            (Request::MarkRead(_), Err(code)) => code == ErrorCode::ReadBeyondDelivered.number(),
            (Request::MarkRead(mark), Ok(Found::MarkedRead(marked))) => mark.seq < u64::MAX && marked.seq >= mark.seq,
            _ => false,
        };
        assert!(fits || is_busy, "another answer than asked for");
    }

    pub(crate) fn handle_cancelled(&mut self, id: u64) {
        assert!(self.asked.remove(&id).is_some(), "cancelled, but not under way");
        self.answered += 1;
    }

    pub(crate) fn handle_sync_start(&mut self, start: &proto::SyncStart) {
        assert!(self.sync_through.is_none() && start.entries > 0);
        self.sync_through = Some(start.through);
    }

    pub(crate) fn handle_sync_done(&mut self, done: proto::SyncDone) {
        assert_eq!(self.sync_through.take(), Some(done.inbox_seq), "as announced");
    }
}

fn mark_read(conversation: ConversationId, seq: u64) -> proto::MarkRead {
    proto::MarkRead { conversation: Bytes::copy_from_slice(&conversation.0), seq }
}
