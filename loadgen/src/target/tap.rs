//! Listens to what a server delivers on one connection and counts what comes again. Independent of the client on
//! purpose: it reads the bytes for itself.

use culver_protocol::limits::{BODY_LEN_MAX, HEADER_LEN};
use culver_protocol::proto::Deliver;
use culver_protocol::record::{Record, RecordType, split};
use prost::Message;

/// One connection's listener; it outlives reconnects.
#[derive(Debug, Default)]
pub(crate) struct Tap {
    partial: Vec<u8>,
    inbox_seq_max: u64,
    redelivered: u64,
}

impl Tap {
    /// Entries that came with an inbox seq that had come before.
    pub(crate) fn redelivered(&self) -> u64 {
        self.redelivered
    }

    pub(crate) fn handle_disconnected(&mut self) {
        self.partial.clear();
    }

    pub(crate) fn handle_bytes(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        let mut rest = self.partial.as_slice();
        // Broken framing is the client's to report; here it only ends the counting until the next connection.
        while let Ok(Some(body)) = split(rest, HEADER_LEN, BODY_LEN_MAX) {
            let end = body.end;
            let record = rest.get(body).and_then(|body| Record::parse(body).ok());
            if let Some(record) = record.filter(|record| record.kind == RecordType::Deliver as u8) {
                let deliver = Deliver::decode(record.body).unwrap_or_default();
                for entry in deliver.entries {
                    self.redelivered += u64::from(entry.inbox_seq <= self.inbox_seq_max);
                    self.inbox_seq_max = self.inbox_seq_max.max(entry.inbox_seq);
                }
            }
            rest = rest.get(end..).unwrap_or_default();
        }
        let consumed = self.partial.len() - rest.len();
        self.partial.drain(..consumed);
    }
}
