//! What the server tells of messages after they have arrived: receipts; and what the clients ask it: which devices it
//! knows, and that something is read.

use culver_protocol::client::Client;
use culver_protocol::error::ErrorCode;
use culver_protocol::proto;
use culver_protocol::proto::rpc::Request;
use culver_protocol::proto::rpc_result::Result as Answered;
use rand::Rng;

use super::driver::PairDriver;
use super::pair::{Asked, Call, Untold, Who};
use crate::links::Links;
use crate::verify::{Note, Place};

/// Of the pairs that read, the recipient marks as read once in so many times that it has persisted something.
const READ_ONE_IN: u32 = 8;
/// After a refusal to mark as read, the next attempt comes so much later.
const READ_AGAIN_US: u64 = 20_000;
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

    /// A client may have to wait until the server knows its device: a message sent before that is none of its.
    pub(super) fn make_ready(&mut self, who: Who, client: &mut Client) {
        let must_wait = self.settings.awaits_linking && self.user(who.user).devices.len() > 1;
        let device = self.device(who);
        if device.is_ready {
            return;
        }
        if !must_wait {
            device.is_ready = true;
            self.shared.count_login();
        } else if let Ok(id) = client.call(Request::ListDevices(proto::ListDevices {})) {
            device.call = Some(Call { id, asked: Asked::Devices });
        }
    }

    pub(super) fn handle_answer(
        &mut self,
        who: Who,
        client: &mut Client,
        (id, result): (u64, Result<Answered, u32>),
        now_us: u64,
    ) {
        let Some(call) = self.end_call(who, id) else { return };
        if let Err(code) = &result {
            *self.errors.entry(*code).or_default() += 1;
        }
        match (call.asked, result) {
            (Asked::Devices, Ok(Answered::Devices(known))) => {
                let own = u32::from(client.device().0);
                if known.devices.iter().any(|device| device.device == own) {
                    self.device(who).is_ready = true;
                    self.shared.count_login();
                } else {
                    self.make_ready(who, client);
                }
            }
            (Asked::Devices, _) => self.make_ready(who, client),
            (Asked::Read, result) => self.handle_read(who, result, now_us),
        }
    }

    fn handle_read(&mut self, who: Who, result: Result<Answered, u32>, now_us: u64) {
        let Some(pair) = self.user(who.user).receives else { return };
        let place = self.pair(pair).place(who);
        match result {
            Ok(Answered::MarkedRead(answer)) => {
                self.note(pair, Note::ReadAnswered { place, seq: answer.seq });
            }
            Ok(other) => self.violated(who, &format!("to mark as read was answered with {other:?}")),
            Err(code) => {
                // What a client claims at login is acknowledged a little later: until then it is not delivered.
                self.pair(pair).next_read_us = now_us + READ_AGAIN_US;
                let expected = [ErrorCode::ReadBeyondDelivered, ErrorCode::Busy];
                if !expected.iter().any(|expected| expected.number() == code) {
                    self.violated(who, &format!("to mark as read was refused with {code}"));
                }
            }
        }
    }

    /// The request is over, if it is the one under way.
    pub(super) fn end_call(&mut self, who: Who, id: u64) -> Option<Call> {
        self.device(who).call.take_if(|call| call.id == id)
    }

    /// Some recipients say now and then that they have read what they have persisted.
    pub(super) fn read_sometimes(&mut self, who: Who, client: &mut Client) {
        let Some(pair) = self.user(who.user).receives else { return };
        if self.pair(pair).start.reads && self.settings.rng.random_range(0..READ_ONE_IN) == 0 {
            let seq = self.device(who).store.given.received;
            self.mark_read(pair, who, client, seq);
        }
    }

    /// In the end everything is read.
    pub(super) fn read_the_rest(&mut self, links: &mut Links, now_us: u64) {
        for pair in 0..self.pairs.len() {
            let place = self.pair(pair);
            let Some(seq) = place.check.unread().filter(|_| place.next_read_us <= now_us) else { continue };
            let user = place.start.recipient;
            let recipient = self.user(user);
            if recipient.devices.iter().any(|device| device.call.is_some()) {
                continue;
            }
            let mut devices = (0..).zip(&recipient.devices).filter(|(_, device)| device.store.given.received >= seq);
            let here = devices.find(|(device, _)| links.is_logged_in(recipient.link(*device)));
            if let Some((device, _)) = here {
                let link = recipient.link(device);
                self.mark_read(pair, Who { user, device, life: 0 }, links.client(link), seq);
            }
        }
    }

    fn mark_read(&mut self, pair: usize, who: Who, client: &mut Client, seq: u64) {
        if seq == 0 || self.device(who).call.is_some() {
            return;
        }
        client.flush_ack(); // what is read is delivered: the server must know that first
        let conversation = bytes::Bytes::copy_from_slice(&self.pair(pair).start.plan.conversation.0);
        let request = Request::MarkRead(proto::MarkRead { conversation, seq });
        if let Ok(id) = client.call(request) {
            let place = self.pair(pair).place(who);
            self.note(pair, Note::ReadAsked { place, seq });
            self.device(who).call = Some(Call { id, asked: Asked::Read });
        }
    }
}
