//! What the model server sends by itself: what has waited, entries, gaps, receipts and late answers.

use culver_protocol::id::{ConversationSeq, DeviceId, InboxSeq, MessageId, UserId};
use culver_protocol::message::{EntryView, encode_deliver, encode_receipt};
use culver_protocol::proto;
use culver_protocol::record::RecordType;
use rand::Rng;
use rand::rngs::SmallRng;

use super::{Row, Sender, Server, Session, USER, chance};

const WINDOW: u64 = 5;

impl Server {
    /// Plans what comes before the first DELIVER.
    pub(super) fn announce(&self, session: &mut Session) {
        let through = self.head();
        if session.sent < through {
            let entries = through - session.sent;
            session.sync = Some(proto::SyncStart { entries, through, conversations: Vec::new() });
            session.sync_through = Some(through);
        }
    }

    pub(super) fn deliver(&mut self, session: &mut Session, rng: &mut SmallRng, out: &mut Vec<u8>) {
        if !session.ready || session.closing {
            return;
        }
        self.tell_receipts(session, rng, out);
        while !session.answers.is_empty() && chance(rng, 30) {
            let answer = session.answers.remove(rng.random_range(0..session.answers.len()));
            session.put(out, RecordType::RpcResult, &answer);
        }
        self.tell_gap(session, rng, out);
        if let Some(start) = session.sync.take() {
            session.put(out, RecordType::SyncStart, &start);
        }
        while session.sent < self.head().min(session.acked + WINDOW) {
            if chance(rng, 50) {
                // Later: what the application persists of an earlier connection may be ahead of this one.
                break;
            }
            let through = rng.random_range(session.sent + 1..=self.head().min(session.acked + WINDOW));
            self.deliver_through(session, through, out);
        }
        if let Some(through) = session.sync_through.filter(|through| *through <= session.sent) {
            session.put(out, RecordType::SyncDone, &proto::SyncDone { inbox_seq: through });
            session.sync_through = None;
        }
    }

    fn tell_gap(&mut self, session: &mut Session, rng: &mut SmallRng, out: &mut Vec<u8>) {
        if session.gap || session.sent < self.floor {
            session.gap = false;
            session.sent = session.sent.max(self.floor);
            session.told = session.sent;
            session.put(out, RecordType::Gap, &proto::Gap { start: session.sent + 1, ..Default::default() });
        } else if session.acked < self.floor && chance(rng, 50) {
            // What is under way may yet arrive.
            session.put(out, RecordType::Gap, &proto::Gap { start: self.floor + 1, ..Default::default() });
        }
        session.acked = session.acked.max(self.floor);
        self.acked = self.acked.max(self.floor);
    }

    fn deliver_through(&mut self, session: &mut Session, through: u64, out: &mut Vec<u8>) {
        let rows: Vec<(u64, Row)> =
            self.rows(session.sent, through).filter(|(_, row)| row.sender != Sender::Client).collect();
        let previous = InboxSeq(session.told);
        let is_all_acked = session.acked >= session.sent;
        session.sent = through;
        let Some((last, _)) = rows.last() else {
            // Nothing but the client's own: it is told nothing, and where nothing is under way it has that too.
            if is_all_acked {
                session.acked = session.acked.max(through);
                self.acked = self.acked.max(session.acked);
            }
            return;
        };
        session.told = *last;
        let payload = previous.0.to_be_bytes();
        let entries = rows.iter().map(|(inbox_seq, row)| EntryView {
            inbox_seq: InboxSeq(*inbox_seq),
            conversation: row.conversation,
            conversation_seq: ConversationSeq(row.seq),
            message_id: MessageId(*inbox_seq),
            server_time_ms: 1,
            sender: if row.sender == Sender::Peer { UserId(2) } else { USER },
            sender_device: DeviceId(7),
            payload: &payload,
        });
        session.seal(out, RecordType::Deliver, |out| encode_deliver(out, previous, entries));
    }

    fn tell_receipts(&self, session: &mut Session, rng: &mut SmallRng, out: &mut Vec<u8>) {
        while session.receipts_told < self.marks.version() && chance(rng, 50) {
            let news = self.marks.beyond(session.receipts_told);
            let (version, marks) = match news.get(..rng.random_range(1..=news.len().max(1))) {
                Some(page @ [.., (version, _)]) => (*version, page),
                // A change that was overwritten since: nothing is new up to here.
                _ => (self.marks.version(), [].as_slice()),
            };
            let marks = marks.iter().map(|(_, mark)| *mark);
            session.seal(out, RecordType::Receipt, |out| encode_receipt(out, version, marks));
            session.receipts_told = version;
        }
    }
}
