//! What the server tells of messages after they have arrived: receipts; and what the clients ask it: which devices it
//! knows, and that something is read.

use culver_protocol::client::Client;
use culver_protocol::error::ErrorCode;
use culver_protocol::proto;
use culver_protocol::proto::rpc::Request;
use culver_protocol::proto::rpc_result::Result as Answered;
use rand::Rng;

use super::driver::PairDriver;
use super::pair::{Asked, Call, Untold};
use crate::links::Links;
use crate::verify::{Note, Place};

/// Of the pairs that read, the recipient marks as read once in so many times that it has persisted something.
const READ_ONE_IN: u32 = 8;
/// After a refusal to mark as read, the next attempt comes so much later.
const READ_AGAIN_US: u64 = 20_000;
/// Receipts awaited in a pair, at most: more are not measured.
const UNTOLD_MAX: usize = 65_536;

impl PairDriver {
    /// Remembers when this was persisted, if the receipt is to be measured.
    pub(super) fn await_receipt(&mut self, pair: usize, seat: u8, seq: u64, now_us: u64) {
        let slot = self.shared.slot();
        let place = self.pair(pair);
        let is_new = place.untold.back().is_none_or(|last| last.seq < seq);
        if slot != 0 && is_new && place.is_recipient(seat) && place.untold.len() < UNTOLD_MAX {
            place.untold.push_back(Untold { seq, persisted_us: now_us, slot });
        }
    }

    /// One client was told what became of messages.
    pub(super) fn take_receipt(&mut self, pair: usize, place: Place, receipt: &proto::Receipt, now_us: u64) {
        self.counts.marks += receipt.marks.len() as u64;
        self.turn.marks += receipt.marks.len() as u64;
        if !self.settings.receipts {
            return;
        }
        let conversation = self.pair(pair).plan.conversation;
        let version = receipt.version;
        for mark in &receipt.marks {
            if mark.conversation.as_ref() != conversation.0 {
                self.foreign += 1;
                continue;
            }
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

    /// The device's application has stored every receipt it was told.
    pub(super) fn save_receipts(&mut self, pair: usize, place: Place, client: &mut Client, version: u64) {
        client.receipts_persisted(version);
        let device = self.pair(pair).device(place.seat);
        device.store.receipts = device.store.receipts.max(version);
        if self.settings.receipts {
            self.note(pair, Note::ReceiptsSaved { place, version });
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
    pub(super) fn make_ready(&mut self, pair: usize, seat: u8, client: &mut Client) {
        let must_wait = self.settings.awaits_linking && self.pair(pair).plan.seats() > 2;
        let device = self.pair(pair).device(seat);
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
        pair: usize,
        seat: u8,
        client: &mut Client,
        (id, result): (u64, Result<Answered, u32>),
        now_us: u64,
    ) {
        let Some(call) = self.end_call(pair, seat, id) else { return };
        if let Err(code) = &result {
            *self.errors.entry(*code).or_default() += 1;
        }
        let place = Place { seat, life: 0 };
        match (call.asked, result) {
            (Asked::Devices, Ok(Answered::Devices(known))) => {
                let own = u32::from(client.device().0);
                if known.devices.iter().any(|device| device.device == own) {
                    self.pair(pair).device(seat).is_ready = true;
                    self.shared.count_login();
                } else {
                    self.make_ready(pair, seat, client);
                }
            }
            (Asked::Devices, _) => self.make_ready(pair, seat, client),
            (Asked::Read(_), Ok(Answered::MarkedRead(answer))) => {
                self.note(pair, Note::ReadAnswered { place, seq: answer.seq });
            }
            (Asked::Read(_), Err(code)) => {
                // What a client claims at login is acknowledged a little later: until then it is not delivered.
                self.pair(pair).next_read_us = now_us + READ_AGAIN_US;
                if code != ErrorCode::ReadBeyondDelivered.number() && code != ErrorCode::Busy.number() {
                    self.violated(format!("to mark as read was refused with {code}"));
                }
            }
            (Asked::Read(_), Ok(other)) => self.violated(format!("to mark as read was answered with {other:?}")),
        }
    }

    /// The request is over, if it is the one under way.
    pub(super) fn end_call(&mut self, pair: usize, seat: u8, id: u64) -> Option<Call> {
        self.pair(pair).device(seat).call.take_if(|call| call.id == id)
    }

    /// Some recipients say now and then that they have read what they have persisted.
    pub(super) fn read_sometimes(&mut self, pair: usize, seat: u8, client: &mut Client) {
        let place = self.pair(pair);
        if place.reads && place.is_recipient(seat) && self.settings.rng.random_range(0..READ_ONE_IN) == 0 {
            let seq = self.pair(pair).device(seat).store.seq;
            self.mark_read(pair, seat, client, seq);
        }
    }

    /// In the end everything is read.
    pub(super) fn read_the_rest(&mut self, links: &mut Links, now_us: u64) {
        for pair in 0..self.pairs.len() {
            let place = self.pair(pair);
            let Some(seq) = place.check.unread().filter(|_| place.next_read_us <= now_us) else { continue };
            let seats = place.plan.sender_devices..place.plan.seats();
            if seats.clone().any(|seat| place.device(seat).call.is_some()) {
                continue;
            }
            let can_read = |seat: &u8| place.device(*seat).store.seq >= seq;
            let readers: Vec<u8> = seats.filter(can_read).collect();
            let here = readers.into_iter().map(|seat| (seat, self.pair(pair).link(seat)));
            if let Some((seat, link)) = here.into_iter().find(|(_, link)| links.is_logged_in(*link)) {
                self.mark_read(pair, seat, links.client(link), seq);
            }
        }
    }

    fn mark_read(&mut self, pair: usize, seat: u8, client: &mut Client, seq: u64) {
        let conversation = self.pair(pair).plan.conversation;
        if seq == 0 || self.pair(pair).device(seat).call.is_some() {
            return;
        }
        client.flush_ack(); // what is read is delivered: the server must know that first
        let conversation = bytes::Bytes::copy_from_slice(&conversation.0);
        let request = Request::MarkRead(proto::MarkRead { conversation, seq });
        if let Ok(id) = client.call(request) {
            self.note(pair, Note::ReadAsked { place: Place { seat, life: 0 }, seq });
            self.pair(pair).device(seat).call = Some(Call { id, asked: Asked::Read(seq) });
        }
    }
}
