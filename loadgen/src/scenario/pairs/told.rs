//! What the server tells of messages after they have arrived: receipts.

use culver_protocol::client::Client;
use culver_protocol::proto;

use super::driver::PairDriver;
use super::pair::{Untold, Who};
use crate::verify::{Note, Place};

/// Receipts awaited in a pair, at most: more are not measured.
const UNTOLD_MAX: usize = 65_536;

impl PairDriver {
    /// Remembers when this was persisted by a device of the recipient's, if the receipt is to be measured.
    pub(super) fn await_receipt(&mut self, pair: usize, seq: u64, now_us: u64) {
        let slot = self.shared.slot();
        let untold = &mut self.pair(pair).untold;
        let is_new = untold.back().is_none_or(|last| last.seq < seq);
        if slot != 0 && is_new && untold.len() < UNTOLD_MAX {
            untold.push_back(Untold { seq, persisted_us: now_us, slot });
        }
    }

    /// One client was told what became of messages.
    pub(super) fn take_receipt(&mut self, who: Who, receipt: &proto::Receipt, now_us: u64) {
        self.counts.marks += receipt.marks.len() as u64;
        self.turn.marks += receipt.marks.len() as u64;
        if !self.settings.receipts {
            return;
        }
        let version = receipt.version;
        for mark in &receipt.marks {
            let Some(pair) = self.pair_of(who, &mark.conversation) else {
                self.foreign += 1;
                continue;
            };
            let place = self.pair(pair).place(who);
            if mark.delivered > 0 {
                self.note(pair, Note::ToldDelivered { place, version, seq: mark.delivered });
                self.measure_receipt(pair, place, mark.delivered, now_us);
            }
            if mark.read > 0 {
                self.note(pair, Note::ToldRead { place, version, seq: mark.read });
            }
            if mark.own_read > 0 {
                self.note(pair, Note::ToldOwnRead { place, version, seq: mark.own_read });
            }
            if mark.expired_through > 0 {
                self.note(pair, Note::ToldExpired { place, version, seq: mark.expired_through });
            }
        }
    }

    /// The device's application has stored every receipt that this client was told.
    pub(super) fn save_receipts(&mut self, who: Who, client: &mut Client, version: u64) {
        client.receipts_persisted(version);
        let store = &mut self.device(who).store;
        store.receipts = store.receipts.max(version);
        if self.settings.receipts {
            self.note_everywhere(who, |place| Note::ReceiptsSaved { place, version });
        }
    }

    fn measure_receipt(&mut self, pair: usize, place: Place, seq: u64, now_us: u64) {
        if place != Place::default() {
            return;
        }
        while let Some(untold) = self.pair(pair).untold.pop_front_if(|untold| untold.seq <= seq) {
            if let Some(latencies) = self.slot(untold.slot) {
                latencies.receipt.record(now_us.saturating_sub(untold.persisted_us));
            }
        }
    }
}
