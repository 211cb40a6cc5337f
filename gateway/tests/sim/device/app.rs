//! What an application does by itself.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use culver_protocol::id::{ConversationId, ConversationSeq, InboxSeq, UserId};
use culver_protocol::proto;
use culver_protocol::proto::rpc::Request;
use culver_protocol::proto::rpc_result::Result as Found;

use super::{Device, Want, client, words};
use crate::oracle::{Known, Oracle};
use crate::source::Source;

/// Acts after which a fetching process ends.
pub(super) const FETCH_ACTS_MAX: u32 = 40;
/// Conversations on a page of the last list: few, so that there are pages.
const LAST_LIMIT: u32 = 2;
/// How long names are. The last is too long.
const NAME_LENS: [usize; 8] = [1, 5, 5, 12, 0, 64, 20, 65];
/// Weights of persisting and of sending among an application's acts, in thousandths.
const PERSISTS: u32 = 400;
const SENDS: u32 = 300;

/// What is asked when all is quiet.
#[derive(Debug)]
pub(super) struct LastQuestions {
    /// The page of conversations to ask for; `None`: there are no more.
    page: Option<Bytes>,
    /// The devices are to be asked for.
    devices: bool,
    /// The calls under way; 0: none.
    list_call: u64,
    devices_call: u64,
}

impl Device {
    /// The application does something: persists, sends to one of `peers` (its own user and unknown users may be among
    /// them), reads, asks, or dies.
    pub(crate) fn act(
        &mut self,
        source: &mut Source,
        oracle: &mut Oracle,
        now_us: u64,
        peers: &[UserId],
    ) -> Option<Want> {
        if self.over {
            return None;
        }
        if self.stopped {
            if self.fetch {
                self.over = true;
            } else if !source.chance(700) {
                // The user opens the app again.
                return Some(self.relaunch(oracle, now_us));
            }
            return None;
        }
        self.acts += 1;
        if self.fetch && self.acts > FETCH_ACTS_MAX {
            self.persist(oracle, usize::MAX, usize::MAX, true);
            self.client.close();
            self.over = !self.witness.is_connected();
            return None;
        }
        let sends = if self.sends_left > 0 { SENDS } else { 0 };
        let nature = self.nature;
        let devices = nature.removes + nature.names;
        let mut roll = source.below(PERSISTS + sends + nature.asks + nature.toggles + devices + nature.killed);
        let mut falls_to = |weight: u32| {
            let is_it = roll < weight;
            roll = roll.wrapping_sub(weight);
            is_it
        };
        if falls_to(PERSISTS) {
            self.persist_some(source, oracle);
        } else if falls_to(sends) {
            self.send(source, oracle, now_us, peers);
        } else if falls_to(nature.asks) {
            self.ask(source, oracle);
        } else if falls_to(nature.toggles) {
            let on = source.below(2) == 0;
            self.call(oracle, Request::SetReadReceipts(proto::SetReadReceipts { on }));
        } else if falls_to(nature.removes) {
            let device = self.any_of_family(source);
            self.call(oracle, Request::RemoveDevice(proto::RemoveDevice { device }));
        } else if falls_to(nature.names) {
            let (device, len) = (self.any_of_family(source), source.pick(&NAME_LENS));
            let letter = char::from(b'a' + source.number::<u8>(0, 25));
            let name = std::iter::repeat_n(letter, len).collect();
            self.call(oracle, Request::NameDevice(proto::NameDevice { device, name }));
        } else {
            if self.fetch {
                self.over = true;
                return Some(Want::Abandon);
            }
            return Some(self.relaunch(oracle, now_us));
        }
        None
    }

    /// One of its user's devices, itself among them, or one that the user has not.
    fn any_of_family(&self, source: &mut Source) -> u32 {
        let strange = u32::from(source.chance(50));
        1 + source.below(u32::from(self.nature.family) + strange)
    }

    /// The application behaves: it persists what has come, and comes back if it had stopped. To be called again and
    /// again until all is quiet.
    pub(crate) fn act_calmly(&mut self, oracle: &mut Oracle, now_us: u64) -> Option<Want> {
        self.calm = true;
        if self.over {
            return None;
        }
        if self.fetch {
            self.persist(oracle, usize::MAX, usize::MAX, true);
            self.over = true;
            return Some(Want::Abandon);
        }
        if self.stopped {
            return Some(self.relaunch(oracle, now_us));
        }
        self.persist(oracle, usize::MAX, usize::MAX, true);
        if !self.knocked && self.knock.is_none() {
            self.knock = self.call(oracle, Request::ListDevices(proto::ListDevices {}));
        }
        self.ask_on(oracle);
        None
    }

    /// Everybody knows everybody: a last message to each of `peers`.
    pub(crate) fn say_last(&mut self, oracle: &mut Oracle, now_us: u64, peers: &[UserId]) {
        for peer in peers {
            let conversation = ConversationId::direct(self.key().user, *peer);
            self.submit(oracle, conversation, 8, now_us);
        }
    }

    /// The last questions: all conversations, all devices.
    pub(crate) fn ask_last(&mut self, oracle: &mut Oracle) {
        self.known = Known::default();
        self.last = Some(LastQuestions { page: Some(Bytes::new()), devices: true, list_call: 0, devices_call: 0 });
        self.ask_on(oracle);
    }

    /// Asks what of the last questions is neither answered nor under way.
    fn ask_on(&mut self, oracle: &mut Oracle) {
        let Some(mut last) = self.last.take() else { return };
        if let (Some(page), 0) = (last.page.clone(), last.list_call) {
            let request = Request::ListConversations(proto::ListConversations { limit: LAST_LIMIT, page });
            last.list_call = self.call(oracle, request).unwrap_or(0);
        }
        if last.devices && last.devices_call == 0 {
            last.devices_call = self.call(oracle, Request::ListDevices(proto::ListDevices {})).unwrap_or(0);
        }
        self.last = Some(last);
    }

    /// A new client over what is persisted.
    fn relaunch(&mut self, oracle: &mut Oracle, now_us: u64) -> Want {
        oracle.note(self.name(), || format!("begins anew from {}", self.store.borrow().cursor));
        self.lives += 1;
        if std::mem::take(&mut self.is_removed) {
            self.begin_anew(oracle);
        }
        let seed = self.seed ^ self.lives.rotate_left(32);
        let key = self.key();
        self.client = client(key, &self.nature, seed, false, &mut self.store.borrow_mut());
        self.witness = oracle.launched(key, false, Some(&self.witness));
        self.ticket_generation = self.store.borrow().ticket_generation;
        (self.stopped, self.calls, self.untold) = (false, 0, 0);
        (self.knock, self.knocked) = (None, false);
        if let Some(last) = &mut self.last {
            (last.list_call, last.devices_call) = (0, 0);
        }
        self.unstored.clear();
        self.unstored_receipts.clear();
        let outbox = std::mem::take(&mut self.store.borrow_mut().outbox);
        if self.nature.forgets_sends {
            outbox.iter().for_each(|index| oracle.forgotten(*index));
            return Want::Abandon;
        }
        let own_us = self.own_us(now_us);
        for index in &outbox {
            let (id, conversation, payload) = oracle.old_message(*index);
            self.client.send(id, conversation, payload, own_us).expect("it was sent before");
        }
        self.store.borrow_mut().outbox = outbox;
        Want::Abandon
    }

    /// It has heard that it was removed: it forgets everything, its key first. What another process of it still has open
    /// is nobody's store any more.
    fn begin_anew(&mut self, oracle: &mut Oracle) {
        let key = self.key();
        let renewed = self.store.borrow_mut().renewed(key);
        let Some((store, former)) = renewed else { return };
        oracle.note(self.name(), || "forgets all that it had".to_owned());
        self.store.borrow().outbox.iter().for_each(|index| oracle.forgotten(*index));
        oracle.renewed(key);
        self.store = Rc::new(RefCell::new(store));
        self.former = Some(former);
    }

    fn persist_some(&mut self, source: &mut Source, oracle: &mut Oracle) {
        let entries = if source.chance(self.nature.late) { source.index(self.unstored.len() + 1) } else { usize::MAX };
        let receipts = if source.chance(self.nature.late_receipts) {
            source.index(self.unstored_receipts.len() + 1)
        } else {
            usize::MAX
        };
        let tells = !source.chance(self.nature.late / 4);
        self.persist(oracle, entries, receipts, tells);
    }

    /// Stores the first few entries and receipts, and tells the client, or leaves that for later.
    fn persist(&mut self, oracle: &mut Oracle, entries: usize, receipts: usize, tells: bool) {
        let mut store = self.store.borrow_mut();
        for entry in self.unstored.drain(..entries.min(self.unstored.len())) {
            oracle.stored(&self.witness, entry.place);
            store.cursor = store.cursor.max(InboxSeq(entry.place));
            store.incarnation = self.client.incarnation();
            self.untold = entry.place;
            if entry.from_other {
                let readable = store.readable.entry(entry.conversation).or_default();
                *readable = entry.seq.max(*readable);
            }
        }
        for receipt in self.unstored_receipts.drain(..receipts.min(self.unstored_receipts.len())) {
            receipt.marks.iter().for_each(|mark| store.merge(mark));
            store.receipts = store.receipts.max(receipt.version);
            self.client.receipts_persisted(receipt.version);
        }
        if let Some(ticket) = self.client.ticket() {
            store.ticket = ticket.clone();
            store.ticket_generation = self.ticket_generation;
        }
        if tells && self.untold > 0 {
            let through = std::mem::take(&mut self.untold);
            oracle.note(self.name(), || format!("has persisted all up to {through}"));
            self.client.persisted(InboxSeq(through));
            oracle.persisted(&mut self.witness, through);
        }
    }

    fn send(&mut self, source: &mut Source, oracle: &mut Oracle, now_us: u64, peers: &[UserId]) {
        self.sends_left -= 1;
        let user = self.key().user;
        let peer = if peers.is_empty() { user } else { source.pick(peers) };
        let conversation = match source.chance(self.nature.strays) {
            false => ConversationId::direct(user, peer),
            true if source.below(2) == 0 => ConversationId::direct(UserId(user.0 + 1), UserId(user.0 + 2)),
            // The greater first: no kind that is known here.
            true => ConversationId([vec![0xff; 8], user.0.to_be_bytes().to_vec()].concat().try_into().expect("16")),
        };
        let len = match source.below(100) {
            0..90 => source.below(40),
            90..97 => source.below(self.nature.payload_max.min(600)),
            _ => source.below(self.nature.payload_max),
        };
        self.submit(oracle, conversation, len as usize, now_us);
    }

    fn submit(&mut self, oracle: &mut Oracle, conversation: ConversationId, len: usize, now_us: u64) {
        let random_id = self.nature.random_ids;
        let (index, id, payload) = oracle.new_message(&self.witness, conversation, len, random_id, now_us);
        oracle.note(self.name(), || format!("sends message {} in {}", index.0, words::talk(&conversation.0)));
        self.store.borrow_mut().outbox.push(index);
        let own_us = self.own_us(now_us);
        self.client.send(id, conversation, payload, own_us).expect("within the limits, and few");
    }

    fn ask(&mut self, source: &mut Source, oracle: &mut Oracle) {
        let request = match source.below(8) {
            0 => Request::ListDevices(proto::ListDevices {}),
            1 => {
                let limit = source.below(4);
                Request::ListConversations(proto::ListConversations { limit, page: Bytes::new() })
            }
            choice => {
                let readable = {
                    let store = self.store.borrow();
                    let nth = source.index(store.readable.len());
                    store.readable.iter().nth(nth).map(|(conversation, seq)| (*conversation, *seq))
                };
                let Some((conversation, last)) = readable else { return };
                let seq = match choice {
                    2 => u64::MAX,
                    3 => source.range(1, last),
                    _ => last,
                };
                Request::MarkRead(proto::MarkRead { conversation: Bytes::copy_from_slice(&conversation.0), seq })
            }
        };
        self.call(oracle, request);
    }

    /// `None`: there is no connection to ask on, or too much is asked already.
    fn call(&mut self, oracle: &mut Oracle, request: Request) -> Option<u64> {
        let id = self.client.call(request.clone()).ok()?;
        self.calls += 1;
        oracle.note(self.name(), || format!("{}, as {id}", words::request(&request)));
        oracle.asked(&mut self.witness, id, &request);
        Some(id)
    }

    pub(super) fn handle_answer(&mut self, id: u64, result: &Result<Found, u32>, oracle: &mut Oracle) {
        let marked = oracle.answered(&mut self.witness, id, result);
        if let Some((conversation, seq)) = marked {
            // The session that marks is told by the answer alone.
            let mut store = self.store.borrow_mut();
            let mark = store.mark(conversation);
            mark.own_read = mark.own_read.max(ConversationSeq(seq));
        }
        if self.knock == Some(id) {
            (self.knock, self.knocked) = (None, result.is_ok());
        }
        let Some(last) = &mut self.last else { return };
        match result {
            Ok(Found::Conversations(page)) if last.list_call == id => {
                self.known.list.extend(page.items.iter().cloned());
                last.page = Some(page.next.clone()).filter(|next| !next.is_empty());
            }
            Ok(Found::Devices(list)) if last.devices_call == id => {
                self.known.devices.clone_from(&list.devices);
                last.devices = false;
            }
            _ => {}
        }
        last.ended(id);
        self.ask_on(oracle);
    }
}

impl LastQuestions {
    pub(super) fn are_answered(&self) -> bool {
        self.page.is_none() && !self.devices
    }

    /// A call was answered, or came to nothing.
    pub(super) fn ended(&mut self, id: u64) {
        for call in [&mut self.list_call, &mut self.devices_call] {
            if *call == id {
                *call = 0;
            }
        }
    }
}
