//! What clients do, and what their sessions and reactors keep: as `Session` does, without its bytes.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use culver_protocol::id::{ClientMessageId, ConversationId, ConversationSeq, InboxSeq, UserId};
use culver_protocol::limits::ENTRY_OVERHEAD;
use culver_protocol::message::MarkView;
use culver_storage::command::Send;
use culver_storage::record::InboxEntry;
use culver_storage::topology::HubId;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::owners::Credential;
use super::{INCARNATION, Message, USERS, World};
use crate::hub::command::{Address, Command, Credit, Device, Request};

/// Wide enough for any payload of this world, narrow enough to fill up.
const CREDIT_BYTES: u32 = 600;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub::tests) enum Life {
    LoggingIn,
    Steady,
    /// It has sent its Closes.
    Closing,
    Over,
}

/// One client's session, as `Session` and the reactor keep it.
pub(in crate::hub::tests) struct Client {
    pub(in crate::hub::tests) address: Address,
    pub(in crate::hub::tests) device: Device,
    pub(in crate::hub::tests) fetch: bool,
    pub(in crate::hub::tests) life: Life,
    pub(in crate::hub::tests) credit: Credit,
    /// Where the hub's deliveries have come to, and what the client was told: more, if it knew more than the hub.
    pub(in crate::hub::tests) sent: InboxSeq,
    pub(in crate::hub::tests) told: InboxSeq,
    pub(in crate::hub::tests) acked: InboxSeq,
    /// An acknowledgement of what the client knew before it came is due.
    pub(in crate::hub::tests) ack_pending: bool,
    /// Its socket takes nothing.
    pub(in crate::hub::tests) blocked: bool,
    /// Deliveries were dropped.
    pub(in crate::hub::tests) resume: bool,
    pub(in crate::hub::tests) replaced: bool,
    pub(super) credential: Credential,
    /// It was told that it is let in.
    pub(super) is_in: bool,
    /// It was refused, or its device is no longer what it was: nothing is to come any more.
    pub(super) is_cut_off: bool,
    pub(super) removed: bool,
    /// The user has other devices.
    pub(in crate::hub::tests) siblings: bool,
    /// Entries delivered and not acknowledged.
    pub(in crate::hub::tests) under_way: VecDeque<InboxEntry>,
    /// Receipts that came and are not persisted.
    pub(in crate::hub::tests) receipts: VecDeque<(u64, Vec<MarkView>)>,
    /// The last version that came.
    pub(in crate::hub::tests) version: u64,
    /// The end of its backlog, between SYNC_START and SYNC_DONE.
    pub(in crate::hub::tests) sync: Option<InboxSeq>,
    pub(in crate::hub::tests) was_synced: bool,
    pub(in crate::hub::tests) gaps: usize,
    pub(in crate::hub::tests) deliveries: usize,
    /// Hubs that know it.
    pub(in crate::hub::tests) hubs: BTreeSet<HubId>,
    pub(in crate::hub::tests) closes: usize,
}

impl World {
    /// Some client does something.
    pub(super) fn act(&mut self) {
        if self.has_keys && self.random.random_bool(0.06) {
            return self.manage();
        }
        // Where there are keys, nothing is passed on for a session before it is let in.
        let has_keys = self.has_keys;
        let is_up = |client: &Client| match client.life {
            Life::LoggingIn => !has_keys,
            life => life == Life::Steady,
        };
        let is_steady = |client: &Client| client.life == Life::Steady;
        match self.random.random_range(0..39) {
            0..2 => {
                let device = self.random_device();
                let fetch = self.random.random_bool(0.25);
                let entries = self.random.random_range(1..6);
                self.connect(device, entries, fetch);
            }
            2..22 => {
                // Older connections send on until they are told.
                if let Some(slot) = self.pick(is_up) {
                    self.send(slot);
                }
            }
            22..33 => {
                let entries = self.random.random_range(1..5);
                if let Some(slot) = self.pick(is_steady) {
                    self.acknowledge(slot, entries);
                    self.keep_receipts(slot, entries);
                }
            }
            33..35 => {
                if let Some(slot) = self.pick(is_steady) {
                    let blocked = self.clients[slot as usize].blocked;
                    self.block(slot, !blocked);
                    self.resume(slot);
                }
            }
            35..37 => {
                if let Some(slot) = self.pick(is_steady) {
                    self.ask(slot);
                }
            }
            _ => {
                if let Some(slot) = self.pick(is_up).filter(|_| self.random.random_bool(0.5)) {
                    self.close(slot);
                }
            }
        }
    }

    /// A new connection of a device logs in.
    pub(in crate::hub::tests) fn log_in(&mut self, device: Device) -> u32 {
        let entries = self.random.random_range(1..6);
        self.connect(device, entries, false)
    }

    /// A new connection of a device logs in with a window of so many entries.
    pub(in crate::hub::tests) fn log_in_with(&mut self, device: Device, entries: u16) -> u32 {
        self.connect(device, entries, false)
    }

    pub(in crate::hub::tests) fn connect(&mut self, device: Device, entries: u16, fetch: bool) -> u32 {
        let credential = self.credential(device);
        self.connect_as(device, entries, fetch, credential)
    }

    pub(super) fn connect_as(&mut self, device: Device, entries: u16, fetch: bool, credential: Credential) -> u32 {
        let kept = self.kept.entry(device).or_default();
        let (cursor, receipts) = (kept.cursor, kept.receipts);
        self.connect_whole(device, entries, fetch, (cursor, receipts), credential)
    }

    pub(in crate::hub::tests) fn connect_claiming(
        &mut self,
        device: Device,
        entries: u16,
        fetch: bool,
        cursor: InboxSeq,
        receipts: u64,
    ) -> u32 {
        self.connect_whole(device, entries, fetch, (cursor, receipts), Credential::NONE)
    }

    pub(super) fn connect_whole(
        &mut self,
        device: Device,
        entries: u16,
        fetch: bool,
        (cursor, receipts): (InboxSeq, u64),
        credential: Credential,
    ) -> u32 {
        let slot = u32::try_from(self.clients.len()).expect("few");
        let address = Address { reactor: u16::from(slot % 2 == 1), slot, generation: 1, epoch: slot + 1 };
        let credit = Credit { entries, bytes: CREDIT_BYTES };
        self.clients.push(Client {
            address,
            device,
            fetch,
            life: Life::LoggingIn,
            credit,
            sent: cursor,
            told: cursor,
            acked: cursor,
            ack_pending: false,
            blocked: false,
            resume: false,
            replaced: false,
            credential,
            is_in: false,
            is_cut_off: false,
            removed: false,
            siblings: true,
            under_way: VecDeque::new(),
            receipts: VecDeque::new(),
            version: receipts,
            sync: None,
            was_synced: false,
            gaps: 0,
            deliveries: 0,
            hubs: BTreeSet::new(),
            closes: 0,
        });
        let (session, incarnation) = (address, INCARNATION);
        let Credential { fingerprint, proof, .. } = credential;
        let login =
            Command::Login { session, device, cursor, incarnation, credit, fetch, receipts, fingerprint, proof };
        self.post(login);
        slot
    }

    /// A client sends something new, or something again.
    fn send(&mut self, slot: u32) {
        let device = self.clients[slot as usize].device;
        let is_mine = |index: &usize| {
            let send = &self.messages[*index].send;
            send.sender == device.user && send.device == device.device
        };
        let mine: Vec<usize> = (0..self.messages.len()).filter(is_mine).rev().take(5).collect();
        let again = self.random.random_bool(0.2).then(|| mine.choose(&mut self.random).copied()).flatten();
        let index = again.unwrap_or_else(|| {
            let peer = UserId(self.random.random_range(1..=USERS));
            let mut id = [0; 16];
            self.random.fill(&mut id);
            let len = self.random.random_range(0..60);
            self.new_message(device, peer, ClientMessageId(id), Bytes::from(vec![7; len]))
        });
        self.submit_message(slot, index);
    }

    fn new_message(&mut self, from: Device, to: UserId, id: ClientMessageId, payload: Bytes) -> usize {
        let conversation = ConversationId::direct(from.user, to);
        let (sender, device) = (from.user, from.device);
        let send = Send { sender, device, client_message_id: id, conversation, payload, copy: true };
        self.by_id.insert(id, self.messages.len());
        self.messages.push(Message { send, accepted: None, wants_copy: true });
        self.messages.len() - 1
    }

    pub(super) fn submit_message(&mut self, slot: u32, index: usize) {
        let client = &self.clients[slot as usize];
        let session = client.address;
        let has_others = !self.has_keys || self.registry.has_siblings(client.device);
        let knows_of_others = client.life == Life::Steady && client.siblings && has_others;
        let message = &mut self.messages[index];
        message.wants_copy &= knows_of_others;
        let send = Send { copy: client.siblings, ..message.send.clone() };
        self.post(Command::Send { session, send });
    }

    /// A client sends a message of this number to a user.
    pub(in crate::hub::tests) fn send_to(&mut self, slot: u32, to: u64, number: u128) {
        let device = self.clients[slot as usize].device;
        let id = ClientMessageId(number.to_be_bytes());
        let index = match self.by_id.get(&id) {
            Some(index) => *index,
            None => self.new_message(device, UserId(to), id, Bytes::from_static(b"hello")),
        };
        self.submit_message(slot, index);
    }

    /// A client persists some of what it has, and says so.
    pub(in crate::hub::tests) fn acknowledge(&mut self, slot: u32, entries_max: usize) {
        let client = &mut self.clients[slot as usize];
        let count = client.under_way.len().min(entries_max);
        let entries: Vec<InboxEntry> = client.under_way.drain(..count).collect();
        let Some(last) = entries.last() else { return };
        client.acked = client.acked.max(last.inbox_seq);
        client.ack_pending = true;
        let (device, is_cut_off) = (client.device, client.is_cut_off);
        let kept = self.kept.get_mut(&device).expect("it has logged in");
        let is_kept = client.credential.install == kept.install;
        if is_kept {
            kept.cursor = kept.cursor.max(last.inbox_seq);
        }
        for entry in entries {
            if entry.sender != device.user {
                let of = (device.user, entry.conversation);
                let last = self.delivered.entry(of).or_default();
                if !is_kept || is_cut_off {
                    self.unsure.insert(of);
                } else if entry.conversation_seq > *last {
                    self.unsure.remove(&of);
                }
                *last = entry.conversation_seq.max(*last);
            }
            if is_kept {
                kept.entries.insert(entry.inbox_seq, entry);
            }
        }
        self.post_ack(slot);
    }

    /// As `Session::take_pending` does.
    pub(super) fn post_ack(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        if client.life == Life::Steady && std::mem::take(&mut client.ack_pending) {
            let (session, device, credit) = (client.address, client.device, client.credit);
            let through = client.acked.min(client.sent);
            self.post(Command::Ack { session, device, through, credit });
        }
    }

    /// A client persists receipts that have come.
    pub(super) fn keep_receipts(&mut self, slot: u32, count: usize) {
        let client = &mut self.clients[slot as usize];
        let kept = self.kept.get_mut(&client.device).expect("it has logged in");
        let count = client.receipts.len().min(count);
        let is_kept = client.credential.install == kept.install;
        for (version, marks) in client.receipts.drain(..count).filter(|_| is_kept) {
            kept.receipts = kept.receipts.max(version);
            for mark in marks {
                let known = kept.marks.entry(mark.conversation).or_default();
                known.delivered = known.delivered.max(mark.delivered);
                known.read = known.read.max(mark.read);
                known.own_read = known.own_read.max(mark.own_read);
                known.expired_after = known.expired_after.max(mark.expired_after);
                known.expired_through = known.expired_through.max(mark.expired_through);
            }
        }
    }

    /// A client asks for something.
    fn ask(&mut self, slot: u32) {
        let user = self.clients[slot as usize].device.user;
        let mut known: Vec<_> =
            self.delivered.iter().filter(|((of, _), _)| *of == user).map(|(key, seq)| (key.1, *seq)).collect();
        known.sort_by_key(|(conversation, _)| conversation.0);
        let request = match self.random.random_range(0..6) {
            0 => Request::Devices,
            1 => Request::Conversations { limit: 2, page: Vec::new() },
            _ => match known.choose(&mut self.random).copied() {
                Some((conversation, ConversationSeq(last))) => {
                    let seq = ConversationSeq(self.random.random_range(1..=last));
                    Request::MarkRead { conversation, seq }
                }
                None => return,
            },
        };
        self.request(slot, request);
    }

    pub(in crate::hub::tests) fn request(&mut self, slot: u32, request: Request) -> u64 {
        self.rpcs += 1;
        let (session, device, id) =
            (self.clients[slot as usize].address, self.clients[slot as usize].device, self.rpcs);
        if let Request::RemoveDevice { device: removed } = &request {
            self.note_removal(Device { device: *removed, ..device });
        }
        if let Request::MarkRead { conversation, seq } = &request {
            let asked = self.read_asked.entry((device.user, *conversation)).or_default();
            *asked = (*asked).max(*seq);
            self.marking.insert(id, (device.user, *conversation));
        }
        self.post(Command::Rpc { session, device, id, request });
        id
    }

    /// Tells the hub that deliveries were dropped, once the socket takes bytes again.
    pub(in crate::hub::tests) fn resume(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        if !client.blocked && client.life == Life::Steady && std::mem::take(&mut client.resume) {
            let (session, device, sent) = (client.address, client.device, client.sent);
            self.post(Command::Resume { session, device, sent });
        }
    }

    pub(in crate::hub::tests) fn close(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        client.life = Life::Closing;
        client.closes = client.hubs.len();
        let (session, device) = (client.address, client.device);
        for hub in client.hubs.clone() {
            self.post_to(hub, Command::Close { session, device });
        }
    }

    /// Its socket takes nothing, or takes bytes again.
    pub(in crate::hub::tests) fn block(&mut self, slot: u32, blocked: bool) {
        self.clients[slot as usize].blocked = blocked;
    }

    pub(super) fn pick(&mut self, is_wanted: impl Fn(&Client) -> bool) -> Option<u32> {
        let wanted: Vec<u32> = self.clients.iter().filter(|c| is_wanted(c)).map(|c| c.address.slot).collect();
        wanted.choose(&mut self.random).copied()
    }

    pub(super) fn live(&self, device: Device) -> Option<u32> {
        let is_live = |c: &&Client| {
            c.device == device && !c.fetch && matches!(c.life, Life::LoggingIn | Life::Steady) && !c.replaced
        };
        let is_live = |c: &&Client| is_live(c) && !c.is_cut_off && self.is_kept(c);
        self.clients.iter().rev().find(is_live).map(|client| client.address.slot)
    }

    /// As `Session::deliver` does.
    pub(super) fn deliver(&mut self, slot: u32, previous: InboxSeq, entries: &[InboxEntry]) {
        let device = self.clients[slot as usize].device;
        let durable = &self.inboxes[&device.user];
        let mut seq = previous;
        for entry in entries {
            assert!(entry.inbox_seq > seq, "entries are in order");
            for between in seq.0 + 1..entry.inbox_seq.0 {
                let left_out = durable.get(&InboxSeq(between)).expect("delivered before it was durable");
                let is_own = left_out.sender == device.user && left_out.sender_device == device.device;
                assert!(is_own, "only what the device sent itself is left out");
            }
            seq = entry.inbox_seq;
            assert_eq!(durable.get(&seq), Some(entry), "delivered before it was durable");
            let is_own = entry.sender == device.user && entry.sender_device == device.device;
            assert!(!is_own, "what a device sent does not come back to it");
        }
        let client = &mut self.clients[slot as usize];
        assert!(client.life != Life::LoggingIn && client.life != Life::Over, "deliveries belong to a session");
        if client.life != Life::Steady {
            return;
        }
        if previous != client.sent {
            client.resume |= previous < client.sent;
            return;
        }
        let news: Vec<InboxEntry> = entries.iter().filter(|entry| entry.inbox_seq > client.told).cloned().collect();
        if client.blocked && !news.is_empty() {
            client.resume = true;
            return;
        }
        client.ack_pending |= news.len() < entries.len();
        client.sent = seq;
        client.told = client.told.max(seq);
        client.deliveries += news.len();
        client.under_way.extend(news);
        let bytes: usize = client.under_way.iter().map(|entry| entry.payload.len() + ENTRY_OVERHEAD).sum();
        assert!(client.under_way.len() <= usize::from(client.credit.entries), "more entries than the window");
        assert!(bytes <= client.credit.bytes as usize, "more bytes than the window");
        self.post_ack(slot);
    }

    /// As `Session::skip` does.
    pub(super) fn skip(&mut self, slot: u32, previous: InboxSeq, through: InboxSeq) {
        let device = self.clients[slot as usize].device;
        let is_other = !self.is_kept(&self.clients[slot as usize]);
        for seq in (previous.0 + 1..=through.0).map(InboxSeq) {
            let entry = self.inboxes[&device.user].get(&seq).expect("skipped before it was durable");
            let is_own = entry.sender == device.user && entry.sender_device == device.device;
            let is_known = self.kept[&device].entries.contains_key(&seq);
            assert!(
                is_own || is_known || is_other,
                "only what the device sent itself, or has from another session, is skipped"
            );
        }
        let client = &mut self.clients[slot as usize];
        if client.life == Life::Steady && previous == client.sent {
            client.ack_pending |= client.told > client.sent;
            client.sent = client.sent.max(through);
            self.post_ack(slot);
        }
    }

    /// As `Session::write_gap` does.
    pub(super) fn write_gap(&mut self, slot: u32, previous: InboxSeq, start: InboxSeq) {
        let before = InboxSeq(start.0 - 1);
        let client = &mut self.clients[slot as usize];
        if client.life != Life::Steady || previous != client.sent {
            return;
        }
        if client.told < before {
            if client.blocked {
                client.resume = true;
                return;
            }
            client.gaps += 1;
        }
        client.sent = client.sent.max(before);
        client.told = client.told.max(before);
        client.acked = client.acked.max(before);
        // Its cursor is there: what precedes it is never acknowledged any more.
        client.under_way.retain(|entry| entry.inbox_seq > before);
    }
}
