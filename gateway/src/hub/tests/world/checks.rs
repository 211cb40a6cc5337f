//! What clients see, and what must hold when all is calm.

use std::collections::HashSet;

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{ConversationId, ConversationSeq, InboxSeq, UserId};
use culver_protocol::message::{Accepted, MarkView};
use culver_storage::command::View;
use culver_storage::record::InboxEntry;

use super::clients::{Client, Life};
use super::{Debt, Owed, USERS, World};
use crate::hub::command::{Address, Device};
use crate::hub::effect::{Answer, Effect, EffectKind};

/// Whether an effect lets its session know anything that only its user may, but for answers to what it asked itself.
fn says_something(kind: &EffectKind) -> bool {
    match kind {
        EffectKind::LoggedIn { .. } => true,
        EffectKind::Siblings(_) | EffectKind::Replaced | EffectKind::Removed => false,
        kind => !kind.is_reply(),
    }
}

impl World {
    pub(in crate::hub::tests) fn take_effects(&mut self) {
        while self.nodes.iter().any(|node| !node.effects.is_empty()) {
            for node in 0..self.nodes.len() {
                self.take_effect_at(node);
            }
        }
    }

    pub(super) fn take_effect_at(&mut self, at: usize) {
        let Some(effect) = self.nodes[at].effects.pop_front() else { return };
        let slot = effect.session.slot;
        let client = &mut self.clients[slot as usize];
        let device = client.device;
        assert_eq!(client.address, effect.session, "addresses name sessions");
        let is_refused_more = client.is_cut_off && says_something(&effect.kind);
        assert!(!is_refused_more, "{device:?} of slot {slot} is to get nothing more: {:?}", effect.kind);
        match effect.kind {
            EffectKind::LoggedIn { cursor, reset, gap, siblings } => {
                self.settle_debt(at, device, effect.session, Owed::LoggedIn);
                self.let_in(slot, cursor);
                self.logged_in(slot, cursor, reset, gap, siblings);
            }
            EffectKind::Refused { code, .. } => {
                self.settle_debt(at, device, effect.session, Owed::LoggedIn);
                self.refused(slot, code);
            }
            EffectKind::Removed => self.removed(slot),
            EffectKind::Accepted { accepted, skips } => {
                let debt = self.settle_debt(at, device, effect.session, Owed::Result(accepted.client_message_id));
                self.check_accepted(accepted, debt.submitted);
                if skips {
                    self.skip(slot, InboxSeq(accepted.inbox_seq.0 - 1), accepted.inbox_seq);
                }
            }
            EffectKind::Rejected { client_message_id, code, .. } => {
                self.settle_debt(at, device, effect.session, Owed::Result(client_message_id));
                panic!("nothing is wrong with it: {code:?}");
            }
            EffectKind::Closed => {
                self.settle_debt(at, device, effect.session, Owed::Closed);
                let client = &mut self.clients[slot as usize];
                client.closes -= 1;
                if client.closes == 0 {
                    client.life = Life::Over;
                }
            }
            EffectKind::Replaced => {
                assert!(!std::mem::replace(&mut client.replaced, true), "told once");
                let (address, fetch, key) = (client.address, client.fetch, client.credential.fingerprint);
                let is_newer = |c: &Client| {
                    let is_another = c.credential.registers() && c.credential.fingerprint != key;
                    c.device == device && (c.fetch == fetch || is_another) && c.address.slot > address.slot
                };
                assert!(self.clients.iter().any(is_newer), "somebody must have replaced it");
                if matches!(self.clients[slot as usize].life, Life::LoggingIn | Life::Steady) {
                    self.close(slot);
                }
            }
            EffectKind::Siblings(siblings) => client.siblings = siblings,
            EffectKind::Deliver { previous, entry, .. } => self.deliver(slot, previous, &[entry]),
            EffectKind::DeliverPage { previous, entries, .. } => self.deliver(slot, previous, &entries),
            EffectKind::Skipped { previous, through, .. } => self.skip(slot, previous, through),
            EffectKind::Gap { previous, start, .. } => self.write_gap(slot, previous, start),
            EffectKind::SyncStart { entries, through, conversations, .. } => {
                assert!(entries > 0 && !conversations.is_empty(), "of nothing there is no story");
                assert!(client.sync.is_none() && !client.was_synced, "told once");
                assert_eq!(client.deliveries, 0, "it comes before the first entry");
                client.sync = Some(through);
            }
            EffectKind::SyncDone { through, .. } => {
                assert_eq!(client.sync, Some(through), "it comes once, after its beginning");
                if through <= client.sent {
                    client.sync = None;
                    client.was_synced = true;
                }
            }
            EffectKind::Receipt { version, marks, .. } => self.check_receipt(slot, version, marks),
            EffectKind::Answer { id, result } => self.check_answer(at, effect.session, device, id, result),
        }
    }

    fn logged_in(&mut self, slot: u32, cursor: InboxSeq, reset: bool, gap: bool, siblings: bool) {
        let may_expire = self.may_expire();
        let client = &mut self.clients[slot as usize];
        let may_gap = may_expire || self.kept[&client.device].may_gap;
        assert!(!reset && (!gap || may_gap), "every cursor of this world is honest, and nothing expires");
        client.sent = cursor;
        client.told = client.told.max(cursor);
        client.acked = client.told;
        client.gaps += usize::from(gap);
        client.siblings = siblings;
        if client.life == Life::LoggingIn {
            client.life = Life::Steady;
        }
    }

    /// It lasts for so long already.
    fn may_expire(&self) -> bool {
        self.mono_ms > self.policy.retention_ms
    }

    /// The oldest debt to a device is paid: nothing of one device overtakes within a hub.
    fn settle_debt(&mut self, at: usize, device: Device, session: Address, paid: Owed) -> Debt {
        let debt = self.nodes[at].owed.get_mut(&device).and_then(|owed| owed.pop_front()).expect("no reply is owed");
        let order = "replies come once, in the order of a device's commands";
        assert_eq!((debt.session, debt.owed), (session, paid), "{order}");
        debt
    }

    fn check_accepted(&mut self, accepted: Accepted, submitted: u64) {
        let id = accepted.client_message_id;
        let message = &mut self.messages[self.by_id[&id]];
        let conversation = message.send.conversation;
        let is_news = message.accepted.is_none();
        let first = *message.accepted.get_or_insert(accepted);
        if is_news && !accepted.duplicate {
            let before = self.told.insert(conversation, (accepted.conversation_seq, submitted));
            let (last, last_submitted) = before.unwrap_or_default();
            // After a restart the first answer may be the second.
            assert!(accepted.conversation_seq > last, "told in order");
            assert!(submitted > last_submitted, "within a conversation nothing overtakes");
        } else {
            let same = Accepted { duplicate: accepted.duplicate, ..first };
            assert_eq!(accepted, same, "the same id gives the same result");
        }
        let recipient = message.send.conversation.direct_peer(message.send.sender).expect("direct");
        if self.topology.hub_of_user(recipient) == self.topology.hub_of_conversation(conversation) {
            let found = self.inboxes[&recipient].values().find(|entry| entry.message_id == accepted.message_id);
            let entry = found.expect("told before it was durable");
            assert_eq!(entry.conversation_seq, accepted.conversation_seq);
            assert_eq!(entry.payload, message.send.payload);
        }
    }

    /// No mark says more than is so.
    fn check_receipt(&mut self, slot: u32, version: u64, marks: Vec<MarkView>) {
        let may_expire = self.may_expire();
        let client = &mut self.clients[slot as usize];
        let user = client.device.user;
        assert!(version >= client.version, "versions do not go back: {version} after {}", client.version);
        client.version = version;
        for mark in &marks {
            let peer = mark.conversation.direct_peer(user).expect("a user is told of the user's own");
            let of = |known: &std::collections::HashMap<_, ConversationSeq>, user: UserId| {
                known.get(&(user, mark.conversation)).copied().unwrap_or_default()
            };
            assert!(mark.delivered <= of(&self.delivered, peer), "delivered before it was: {mark:?}");
            assert!(mark.read <= of(&self.read_asked, peer), "read before it was: {mark:?}");
            assert!(mark.own_read <= of(&self.read_asked, user), "read before it was: {mark:?}");
            assert!(mark.expired_through == ConversationSeq(0) || may_expire, "nothing expires");
        }
        if client.life != Life::Over && client.life != Life::Closing {
            client.receipts.push_back((version, marks));
        }
    }

    fn check_answer(
        &mut self,
        at: usize,
        session: Address,
        device: Device,
        id: u64,
        result: Result<Answer, ErrorCode>,
    ) {
        assert!(self.nodes[at].asked.remove(&(session, id)), "answered once");
        match result {
            Ok(Answer::Devices(devices)) => {
                self.registry.list_told(device.user, &devices);
                assert!(devices.iter().any(|info| info.device == device.device), "the one that asks is among them");
            }
            Ok(Answer::Conversations { items, .. }) => assert!(items.len() <= 2),
            Ok(Answer::MarkedRead { seq }) => {
                let told = self.read_told.entry(self.marking[&id]).or_default();
                *told = seq.max(*told);
            }
            Ok(Answer::ReadReceiptsSet { .. }) => {}
            Ok(Answer::DeviceRemoved | Answer::DeviceNamed) => self.request_told(id, Ok(())),
            Err(code) if self.registry.is_asked(id) => self.request_told(id, Err(code)),
            Err(code) => {
                let expected = [ErrorCode::Replaced, ErrorCode::ReadBeyondDelivered, ErrorCode::Busy];
                assert!(expected.contains(&code), "{code:?}");
            }
        }
    }

    /// What became of the messages of which the hubs have told since, unchecked: their numbers, and why not.
    pub(in crate::hub::tests) fn outcomes(&mut self) -> Vec<(u128, Option<ErrorCode>)> {
        let outcome = |effect: Effect| match effect.kind {
            EffectKind::Accepted { accepted, .. } => Some((u128::from_be_bytes(accepted.client_message_id.0), None)),
            EffectKind::Rejected { client_message_id: id, code, .. } => Some((u128::from_be_bytes(id.0), Some(code))),
            _ => None,
        };
        self.drain_effects().into_iter().filter_map(outcome).collect()
    }

    /// The effects that are on their way, unchecked.
    pub(in crate::hub::tests) fn drain_effects(&mut self) -> Vec<Effect> {
        self.registry.is_blind = true;
        self.nodes.iter_mut().flat_map(|node| node.effects.drain(..)).collect()
    }

    // ---- the end ----

    /// All faults stop and clients behave: everything accepted must reach everybody.
    pub(in crate::hub::tests) fn calm_down(&mut self) {
        self.calm = true;
        for slot in 0..u32::try_from(self.clients.len()).expect("few") {
            self.block(slot, false);
            if self.clients[slot as usize].life == Life::Steady {
                self.resume(slot);
            }
        }
        self.drain();
        let devices: Vec<Device> =
            (1..=USERS).flat_map(|user| (1..=self.devices).map(move |number| Self::device_of(user, number))).collect();
        for device in &devices {
            match self.live(*device) {
                Some(_) => self.check_drained(*device),
                None => drop(self.log_in(*device)),
            }
        }
        if self.has_keys {
            self.log_in_all(&devices);
        }
        // What was sent and not answered is sent again, as clients do.
        for index in 0..self.messages.len() {
            if self.messages[index].accepted.is_none() {
                let send = &self.messages[index].send;
                let device = Device { user: send.sender, device: send.device };
                let slot = self.live(device).expect("everybody is online");
                self.submit_message(slot, index);
            }
        }
        self.drain();
        for device in &devices {
            self.check_drained(*device);
            self.check_receipts(*device);
        }
        for node in &self.nodes {
            assert!(node.owed.values().all(|owed| owed.is_empty()), "every promised reply has come");
            assert!(node.asked.is_empty(), "every question is answered");
        }
        let is_up = |client: &&Client| matches!(client.life, Life::LoggingIn | Life::Steady);
        assert!(!self.clients.iter().filter(is_up).any(|client| client.is_cut_off), "who is cut off is told so");
        self.check_inboxes();
        self.calm = false;
    }

    /// Everybody acknowledges until nothing comes any more.
    pub(in crate::hub::tests) fn drain(&mut self) {
        self.settle();
        while self.acknowledge_all() {
            self.settle();
        }
    }

    /// Whether there was anything to acknowledge.
    pub(in crate::hub::tests) fn acknowledge_all(&mut self) -> bool {
        let is_due =
            |c: &&Client| c.life == Life::Steady && (!c.under_way.is_empty() || !c.receipts.is_empty() || c.resume);
        let slots: Vec<u32> = self.clients.iter().filter(is_due).map(|c| c.address.slot).collect();
        for slot in &slots {
            self.acknowledge(*slot, usize::MAX);
            self.keep_receipts(*slot, usize::MAX);
            self.resume(*slot);
        }
        !slots.is_empty()
    }

    pub(in crate::hub::tests) fn check_drained(&mut self, device: Device) {
        let slot = self.live(device).expect("it is online");
        let inbox = self.inboxes.get(&device.user).cloned().unwrap_or_default();
        let head = inbox.last_key_value().map_or(InboxSeq(0), |(seq, _)| *seq);
        let client = &self.clients[slot as usize];
        assert_eq!(client.sent, head, "{device:?} of slot {slot} has not got everything");
        assert!(client.under_way.is_empty() && client.sync.is_none(), "{device:?} of slot {slot}");
        let kept = &self.kept[&device];
        let linked_at = kept.linked_at.expect("it has logged in");
        for (seq, entry) in inbox.range(InboxSeq(linked_at.0 + 1)..) {
            let is_own = entry.sender == device.user && entry.sender_device == device.device;
            assert_eq!(kept.entries.get(seq), (!is_own).then_some(entry), "{device:?} at {seq:?}");
        }
        self.engine.set_cold(false);
        let hub = self.topology.hub_of_user(device.user).index();
        let view = self.nodes[hub].hub.shards.user(&*self.engine, device.user, device.device).expect("readable");
        let View::Known(view) = view else { panic!("the engine is warm") };
        assert!(view.head == head && view.cursor == head && view.linked, "{device:?}: {view:?} instead of {head:?}");
    }

    /// What a device has persisted of receipts of the conversation with another user.
    pub(in crate::hub::tests) fn mark(&self, device: Device, peer: u64) -> MarkView {
        let conversation = ConversationId::direct(device.user, UserId(peer));
        self.kept[&device].marks.get(&conversation).copied().unwrap_or_default()
    }

    /// What was ever durable of a user's inbox.
    pub(in crate::hub::tests) fn inbox(&self, user: u64) -> Vec<InboxEntry> {
        self.inboxes[&UserId(user)].values().cloned().collect()
    }

    /// Every device knows what became of what its user sent, and how far its user has read.
    fn check_receipts(&self, device: Device) {
        let user = device.user;
        let marks = &self.kept[&device].marks;
        let known = |conversation: &ConversationId| marks.get(conversation).copied().unwrap_or_default();
        for ((reader, conversation), seq) in &self.delivered {
            let Some(sender) = conversation.direct_peer(*reader).filter(|sender| sender != reader) else { continue };
            if sender == user && self.unsure.contains(&(*reader, *conversation)) {
                assert!(known(conversation).delivered <= *seq, "{device:?} in {conversation:?}");
            } else if sender == user {
                assert_eq!(known(conversation).delivered, *seq, "{device:?} in {conversation:?}");
            }
        }
        for ((reader, conversation), seq) in &self.read_told {
            if conversation.direct_peer(*reader) == Some(user) && *reader != user {
                assert!(known(conversation).read >= *seq, "{device:?} in {conversation:?}");
            }
        }
    }

    fn check_inboxes(&mut self) {
        let mut places: HashSet<(UserId, InboxSeq)> = HashSet::new();
        for message in &self.messages {
            let accepted = message.accepted.expect("everything is accepted in the end");
            let sender = message.send.sender;
            let recipient = message.send.conversation.direct_peer(sender).expect("direct");
            let of = |user: UserId| {
                let inbox = self.inboxes.get(&user).into_iter().flat_map(|inbox| inbox.values());
                inbox.filter(|entry| entry.message_id == accepted.message_id).collect::<Vec<_>>()
            };
            let found = of(recipient);
            assert_eq!(found.len(), 1, "once in the recipient's inbox");
            assert!(places.insert((recipient, found[0].inbox_seq)), "a place of its own");
            if sender != recipient {
                let copies = of(sender);
                assert!(copies.len() <= 1, "at most one copy");
                assert!(!message.wants_copy || copies.len() == 1, "other devices want a copy");
                for copy in copies {
                    assert!(accepted.inbox_seq == InboxSeq(0) || accepted.inbox_seq == copy.inbox_seq);
                    assert!(places.insert((sender, copy.inbox_seq)), "a place of its own");
                }
            }
        }
        let total: usize = self.inboxes.values().map(|inbox| inbox.len()).sum();
        assert_eq!(total, places.len(), "nothing else is in any inbox");
    }
}
