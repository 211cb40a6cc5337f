//! What the clients ask the server: which devices it knows, that something is read, and what there is.

use culver_protocol::client::Client;
use culver_protocol::error::ErrorCode;
use culver_protocol::proto;
use culver_protocol::proto::rpc::Request;
use culver_protocol::proto::rpc_result::Result as Answered;
use rand::Rng;

use super::driver::PairDriver;
use super::pair::{Asked, Call, Who};
use crate::links::Links;
use crate::verify::Note;

/// Of the pairs that read, the recipient marks as read once in so many times that it has persisted something.
const READ_ONE_IN: u32 = 8;
/// After a refusal to mark as read, the next attempt comes so much later.
const READ_AGAIN_US: u64 = 20_000;

impl PairDriver {
    /// A client may have to wait until the server knows its device: a message sent before that is none of its.
    pub(super) fn make_ready(&mut self, who: Who, client: &mut Client) {
        let user = self.user(who.user);
        let must_wait = user.devices.len() > 1;
        let must_hide_reads = user.must_hide_reads && who.device == 0;
        let must_wait = must_wait && self.settings.awaits_linking;
        if self.device(who).is_ready {
            return;
        }
        if must_hide_reads {
            let request = Request::SetReadReceipts(proto::SetReadReceipts { on: false });
            self.ask(who, client, Asked::HideReads, request);
        } else if must_wait {
            self.ask(who, client, Asked::Devices, Request::ListDevices(proto::ListDevices {}));
        } else {
            self.device(who).is_ready = true;
            self.shared.count_login();
        }
    }

    fn ask(&mut self, who: Who, client: &mut Client, asked: Asked, request: Request) -> bool {
        let Ok(id) = client.call(request) else { return false };
        self.device(who).call = Some(Call { id, asked });
        true
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
            (Asked::HideReads, Ok(Answered::ReadReceiptsSet(proto::ReadReceiptsSet { on: false }))) => {
                self.user(who.user).must_hide_reads = false;
                self.make_ready(who, client);
            }
            (Asked::List, Ok(Answered::Conversations(list))) => self.handle_list(who, &list),
            (Asked::Devices | Asked::HideReads, _) => self.make_ready(who, client),
            (Asked::List, _) => {}
            (Asked::Read, result) => self.handle_read(who, result, now_us),
        }
    }

    /// When everything has arrived, every device asks for its list once. Returns whether all have it.
    pub(super) fn look_at_lists(&mut self, links: &mut Links) -> bool {
        if !self.settings.lists {
            return true;
        }
        let mut has_all = true;
        for user in 0..self.users.len() {
            for device in (0..).take(self.user(user).devices.len()) {
                let (who, link) = (Who { user, device, life: 0 }, self.user(user).link(device));
                let device = self.device(who);
                has_all &= device.is_listed;
                if !device.is_listed && device.call.is_none() && links.is_logged_in(link) {
                    links.client(link).flush_ack(); // nothing waits any more
                    let request = Request::ListConversations(proto::ListConversations::default());
                    self.ask(who, links.client(link), Asked::List, request);
                }
            }
        }
        has_all
    }

    fn handle_list(&mut self, who: Who, list: &proto::Conversations) {
        self.device(who).is_listed = true;
        for pair in self.user(who.user).pairs() {
            let (plan, place) = (self.pair(pair).start.plan, self.pair(pair).place(who));
            let item = list.items.iter().find(|item| item.conversation.as_ref() == plan.conversation.0);
            // A user with one device keeps nothing of what it sends: what it only sent to is not in its list.
            if item.is_none() && place.seat == 0 && plan.sender_devices == 1 {
                continue;
            }
            let (last_seq, unread) = item.map_or((0, 0), |item| (item.last_seq, item.unread));
            self.note(pair, Note::Listed { place, last_seq, unread });
            if let Some(item) = item.filter(|item| item.waiting > 0) {
                self.violated(who, &format!("the list has {} waiting of {last_seq}", item.waiting));
            }
            let last = item.and_then(|item| item.last.as_ref());
            if last.is_some_and(|last| last.conversation_seq != last_seq || last.sender != plan.sender.0) {
                self.violated(who, &format!("the list ends at {last_seq} with another message: {last:?}"));
            }
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
        if self.ask(who, client, Asked::Read, request) {
            let place = self.pair(pair).place(who);
            self.note(pair, Note::ReadAsked { place, seq });
        }
    }
}
