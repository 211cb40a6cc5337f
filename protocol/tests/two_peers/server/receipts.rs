//! The model server's receipts: a few numbers for each conversation, versioned; and its answers to requests.

use std::collections::HashMap;

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, ConversationSeq};
use culver_protocol::message::MarkView;
use culver_protocol::proto;
use culver_protocol::proto::rpc::Request;
use culver_protocol::proto::rpc_result::Result as Found;
use rand::Rng;
use rand::rngs::SmallRng;

use super::{Sender, Server, chance};

#[derive(Debug, Default)]
pub(crate) struct Marks {
    version: u64,
    rows: HashMap<ConversationId, (u64, MarkView)>,
}

impl Marks {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// What changed after that version, by version.
    pub(crate) fn beyond(&self, version: u64) -> Vec<(u64, MarkView)> {
        let mut news: Vec<(u64, MarkView)> = self.rows.values().filter(|(of, _)| *of > version).copied().collect();
        news.sort_unstable_by_key(|(of, _)| *of);
        news
    }

    pub(crate) fn get(&self, conversation: ConversationId) -> MarkView {
        self.rows.get(&conversation).map_or(MarkView { conversation, ..Default::default() }, |(_, mark)| *mark)
    }

    fn put(&mut self, mark: MarkView) {
        self.version += 1;
        self.rows.insert(mark.conversation, (self.version, mark));
    }
}

impl Server {
    /// The other side acknowledges, reads or lets expire what the client sent; another device of the user's reads.
    pub(crate) fn act_elsewhere(&mut self, conversation: ConversationId, rng: &mut SmallRng) {
        let last = self.seqs.get(&conversation).copied().unwrap_or_default();
        let mut mark = self.marks.get(conversation);
        let within = |low: ConversationSeq, high: u64, rng: &mut SmallRng| {
            ConversationSeq(rng.random_range(low.0..=high.max(low.0)))
        };
        match rng.random_range(0..4) {
            0 => mark.delivered = within(mark.delivered.max(mark.expired_through), last, rng),
            1 => mark.read = within(mark.read, mark.delivered.0, rng),
            2 => {
                let after = mark.delivered.max(mark.expired_through);
                let through = within(after, last, rng);
                if through > after {
                    (mark.expired_after, mark.expired_through) = (after, through);
                }
            }
            _ => mark.own_read = within(mark.own_read, self.readable(conversation), rng),
        }
        self.marks.put(mark);
    }

    pub(super) fn answer(&mut self, rpc: &proto::Rpc, rng: &mut SmallRng) -> proto::RpcResult {
        let result = if chance(rng, self.faults.busy) { Err(ErrorCode::Busy) } else { self.find(rpc) };
        match result {
            Ok(found) => proto::RpcResult { id: rpc.id, error: None, result: Some(found) },
            Err(code) => {
                let error = proto::Error { code: code.number(), ..Default::default() };
                proto::RpcResult { id: rpc.id, error: Some(error), result: None }
            }
        }
    }

    fn find(&mut self, rpc: &proto::Rpc) -> Result<Found, ErrorCode> {
        match rpc.request.as_ref().expect("the client asks for something") {
            Request::ListConversations(list) => {
                let next = if list.page.is_empty() { vec![1, 2, 3].into() } else { bytes::Bytes::new() };
                Ok(Found::Conversations(proto::Conversations { items: Vec::new(), next }))
            }
            Request::MarkRead(mark) => {
                let conversation = ConversationId::try_from(mark.conversation.as_ref()).expect("16 bytes");
                if mark.seq > self.readable(conversation) {
                    return Err(ErrorCode::ReadBeyondDelivered);
                }
                let mut row = self.marks.get(conversation);
                if mark.seq > row.own_read.0 {
                    row.own_read = ConversationSeq(mark.seq);
                    self.marks.put(row);
                }
                Ok(Found::MarkedRead(proto::MarkedRead { seq: row.own_read.0 }))
            }
            Request::ListDevices(proto::ListDevices {}) => Ok(Found::Devices(proto::Devices::default())),
            Request::RemoveDevice(_) => Ok(Found::DeviceRemoved(proto::DeviceRemoved {})),
            Request::NameDevice(_) => Ok(Found::DeviceNamed(proto::DeviceNamed {})),
            Request::SetReadReceipts(set) => Ok(Found::ReadReceiptsSet(proto::ReadReceiptsSet { on: set.on })),
        }
    }

    /// The last that the client has acknowledged of somebody else's.
    fn readable(&self, conversation: ConversationId) -> u64 {
        let rows = self.rows(0, self.acked);
        let of_others = rows.filter(|(_, row)| row.conversation == conversation && row.sender == Sender::Peer);
        of_others.map(|(_, row)| row.seq).max().unwrap_or_default()
    }
}
