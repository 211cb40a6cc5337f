//! Inboxes: which message has which place, and what each device is given of it.

use culver_protocol::id::{ConversationId, DeviceId, UserId};
use culver_protocol::limits::{DELIVER_ENTRIES_MAX, ENTRY_OVERHEAD};
use culver_protocol::proto;

use super::devices::Standing;
use super::messages::MessageIndex;
use super::receipts::Setting;
use super::{Asked, Bits, Oracle, Who, Witness, side_of, slot};

/// A user, and what is known of the inbox.
#[derive(Debug)]
pub(super) struct User {
    pub(super) id: UserId,
    /// By place in the inbox, from 1.
    pub(super) places: Vec<Option<MessageIndex>>,
    pub(super) devices: Vec<Linked>,
    pub(super) setting: Setting,
    /// When clients of the user's came; only where that is limited.
    pub(super) came_us: Vec<u64>,
}

/// One device of a user.
#[derive(Debug)]
pub(super) struct Linked {
    pub(super) device: DeviceId,
    /// When it first connected.
    pub(super) tried: Option<u64>,
    /// It was surely linked by then: it has been given something that only a linked device gets.
    pub(super) evidence: Option<u64>,
    /// The same, of its last connection.
    pub(super) last_evidence: Option<u64>,
    /// No other device of the user had tried to connect by then: it gets the inbox from its beginning.
    pub(super) is_first: bool,
    /// Another device was linked, and had got up to here, before this one first connected: that is not for this one.
    pub(super) not_before: u64,
    /// The first place that it was given; 0: none.
    pub(super) first: u64,
    /// What its applications have in their store.
    pub(super) stored: Bits,
    /// What of that was told to a client, or claimed by a login.
    pub(super) claimed: u64,
    /// A GAP said that nothing below this comes any more.
    pub(super) gap: u64,
    /// Connections so far: the app's, and fetching processes'.
    pub(super) connections: [u32; 2],
    pub(super) standing: Standing,
}

impl User {
    pub(super) fn new(id: UserId) -> Self {
        Self { id, places: Vec::new(), devices: Vec::new(), setting: Setting::default(), came_us: Vec::new() }
    }

    pub(super) fn device_index(&mut self, device: DeviceId) -> usize {
        self.devices.iter().position(|linked| linked.device == device).unwrap_or_else(|| {
            self.devices.push(Linked {
                device,
                tried: None,
                evidence: None,
                last_evidence: None,
                is_first: false,
                not_before: 0,
                first: 0,
                stored: Bits::default(),
                claimed: 0,
                gap: 0,
                connections: [0; 2],
                standing: Standing::default(),
            });
            self.devices.len() - 1
        })
    }

    /// Which message has a place, if that is known.
    pub(super) fn at(&self, place: u64) -> Option<MessageIndex> {
        self.places.get((place > 0).then(|| slot(place))?).copied().flatten()
    }
}

impl Oracle {
    /// A connection opens: its login claims that everything up to `cursor` is persisted, and all receipts up to
    /// `version`.
    pub(crate) fn connected(&mut self, witness: &mut Witness, cursor: u64, version: u64, generations: (u32, u32)) {
        let order = self.next();
        let (user, device) = witness.at;
        let linked_before = self.users[user].devices.iter().any(|linked| linked.evidence.is_some());
        let is_restless = self.users[user].is_restless();
        let head = self.users[user].places.len() as u64;
        let linked = &mut self.users[user].devices[device];
        linked.connections[usize::from(witness.fetch)] += 1;
        linked.last_evidence = None;
        if linked.tried.is_none() {
            linked.tried = Some(order);
            linked.not_before = if linked_before && !is_restless { head } else { 0 };
        }
        witness.disconnected();
        witness.connected = true;
        witness.began = order;
        (witness.cursor, witness.position, witness.version) = (cursor, cursor, version);
        (witness.deliveries, witness.last_here, witness.credit) = (0, 0, (u64::MAX, u64::MAX));
        (witness.sync, witness.synced) = (None, false);
        (witness.ticket_generation, witness.server_generation) = generations;
        self.claim(witness, cursor);
    }

    /// WELCOME.
    pub(crate) fn logged_in(&mut self, witness: &mut Witness, welcome: &proto::Welcome) {
        assert!(
            witness.ticket_generation >= witness.server_generation,
            "a stale ticket opens nothing: {} logged in with one of generation {} where {} is asked for",
            witness.name(),
            witness.ticket_generation,
            witness.server_generation
        );
        witness.is_greeted = true;
        witness.credit = (u64::from(welcome.credit_entries), u64::from(welcome.credit_bytes));
    }

    /// Something came that only a linked device gets.
    pub(super) fn prove_linked(&mut self, witness: &mut Witness) {
        self.check_void(witness, witness.began);
        let order = self.next();
        let (at, device) = witness.at;
        let user = &mut self.users[at];
        if user.devices[device].standing.is_sure_of(witness) {
            if user.devices[device].evidence.is_none() {
                let tried = user.devices.iter().filter(|linked| linked.tried.is_some()).count();
                let is_first = tried == 1 && !user.is_restless();
                let linked = &mut user.devices[device];
                (linked.evidence, linked.is_first) = (Some(order), is_first);
            }
            user.devices[device].last_evidence.get_or_insert(order);
        }
        // An older session of this device does nothing any more.
        for lost in witness.lost.drain(..) {
            match lost {
                Asked::Receipts { on, .. } => self.users[at].setting.close(on, order),
                Asked::Removal { device, .. } => self.close_removal(at, device),
                _ => {}
            }
        }
    }

    /// A client handed an entry to its application.
    pub(crate) fn delivered(&mut self, witness: &mut Witness, entry: &proto::Entry, now_us: u64) {
        self.prove_linked(witness);
        let who = witness.name();
        let index = self.recognise(entry, None, who);
        let message = &self.messages[index.0 as usize];
        let (from, conversation, place, id) = (message.from, message.conversation, entry.inbox_seq, message.id);
        self.check_void(witness, message.submitted);
        assert!(
            conversation.direct_peer(witness.key.user).is_some(),
            "nobody gets what is not theirs: {who} got {id} of {conversation:?}"
        );
        assert!(from != witness.key, "what a device sends does not come back to it: {who} got {id}");
        let is_copy = from.user == witness.key.user && conversation.direct_peer(from.user) != Some(from.user);
        self.set_place(witness.at.0, index, usize::from(is_copy), place);
        let seq = entry.conversation_seq;
        assert!(!witness.seen.has(place), "nothing is delivered twice: {who} got {id} again, at {place}");
        assert!(place > witness.last, "an inbox comes in its order: {who} got {place} after {}", witness.last);
        let last_of = witness.last_of.entry(conversation).or_default();
        assert!(seq > *last_of, "a conversation comes in its order: {who} got {seq} after {last_of}");
        *last_of = seq;
        if witness.cursor == 0 && witness.deliveries == 0 {
            self.skip_expired(witness, place, now_us);
        }
        self.check_between(witness, place, who);
        witness.seen.set(place);
        (witness.last, witness.last_here, witness.position) = (place, place, witness.position.max(place));
        witness.deliveries += 1;
        let linked = &mut self.users[witness.at.0].devices[witness.at.1];
        assert!(
            place > linked.not_before || self.terms.may_unlink,
            "a further device gets what comes from its link on: {who} got {place}, and {} were there before",
            linked.not_before
        );
        if linked.standing.is_sure_of(witness) && (linked.first == 0 || place < linked.first) {
            linked.first = place;
        }
        check_window(witness, place, entry.payload.len(), who);
    }

    /// A login without a cursor is told of no GAP: what has expired before the first entry that it gets is gone for it.
    fn skip_expired(&mut self, witness: &Witness, place: u64, now_us: u64) {
        let (user, device) = witness.at;
        if self.users[user].devices[device].standing.era() != witness.era {
            return;
        }
        for between in witness.position + 1..place {
            let linked = &self.users[user].devices[device];
            let is_had = witness.seen.has(between) || linked.stored.has(between) || between < linked.gap;
            let message = self.users[user].at(between).map(|index| &self.messages[index.0 as usize]);
            let Some(message) = message.filter(|message| !is_had && message.from != witness.key) else { continue };
            if !self.may_be_gone(message, now_us) {
                return;
            }
            self.users[user].devices[device].gap = between + 1;
        }
        // Of what nobody was told the place of yet nothing better can be said.
        let linked = &mut self.users[user].devices[device];
        linked.gap = linked.gap.max(place);
    }

    /// Of what lies between the last entry that came and this one, nothing is missing.
    fn check_between(&self, witness: &Witness, place: u64, who: Who) {
        let user = &self.users[witness.at.0];
        let linked = &user.devices[witness.at.1];
        if linked.first == 0 && !linked.is_first && witness.cursor == 0 {
            return; // where it was linked, only this entry tells
        }
        for between in witness.position + 1..place {
            self.check_has(witness, between, || format!("{who} got {place}"));
        }
    }

    /// A device has what is at this place, has sent it itself, or was told that it is gone.
    fn check_has(&self, witness: &Witness, place: u64, when: impl Fn() -> String) {
        let user = &self.users[witness.at.0];
        let linked = &user.devices[witness.at.1];
        if linked.standing.era() != witness.era {
            return;
        }
        let Some(index) = user.at(place) else { return };
        let message = &self.messages[index.0 as usize];
        let is_had = witness.seen.has(place) || linked.stored.has(place) || place < linked.gap;
        // Whoever has a cursor is told where anything behind it is left out, though it was removed meanwhile.
        let may_be_before = !linked.is_first && witness.cursor == 0;
        let is_before = may_be_before && (linked.first == 0 || place < linked.first);
        assert!(
            is_had || is_before || message.from == witness.key,
            "nothing is left out: {}, but never had {} at {place}",
            when(),
            message.id
        );
    }

    /// An application has an entry in its store.
    pub(crate) fn stored(&mut self, witness: &Witness, place: u64) {
        let linked = &mut self.users[witness.at.0].devices[witness.at.1];
        // What a process stores of a device that has begun anew is in nobody's store any more.
        if linked.standing.era() == witness.era {
            linked.stored.set(place);
        }
    }

    /// An application told its client that everything up to here is in its store.
    pub(crate) fn persisted(&mut self, witness: &mut Witness, through: u64) {
        self.next();
        self.claim(witness, through);
        witness.told = witness.told.max(through);
        witness.acknowledged(through);
    }

    fn claim(&mut self, witness: &Witness, through: u64) {
        let Self { users, messages, talks, .. } = self;
        let user = &mut users[witness.at.0];
        let linked = &mut user.devices[witness.at.1];
        if linked.standing.era() != witness.era {
            return;
        }
        for place in linked.claimed + 1..=through {
            let index = user.places.get(slot(place)).copied().flatten();
            let Some(index) = index.filter(|_| linked.stored.has(place)) else { continue };
            let message = &mut messages[index.0 as usize];
            if message.from.user != user.id {
                message.persisted = true;
                let seq = message.fact.map_or(0, |fact| fact.seq);
                let talk = talks.get_mut(&message.conversation).expect("it has a message");
                let side = &mut talk.sides[side_of(message.conversation, user.id)];
                side.persisted = side.persisted.max(seq);
            }
        }
        linked.claimed = linked.claimed.max(through);
    }

    /// A GAP.
    pub(crate) fn gap(&mut self, witness: &mut Witness, gap: &proto::Gap, now_us: u64) {
        self.prove_linked(witness);
        let who = witness.name();
        assert!(!gap.reset, "a cursor that the server gave is good for ever: {who} was told to forget it, {gap:?}");
        let (user, device) = witness.at;
        let standing = &self.users[user].devices[device].standing;
        let (is_undoubted, is_past) = (standing.is_undoubted(), standing.era() != witness.era);
        assert!(self.terms.may_gap() || !is_undoubted, "nothing expires here: {who} was told {gap:?}");
        let from = self.users[user].devices[device].claimed + 1;
        if let (false, Some(expires_after_us)) = (self.terms.may_unlink || !is_undoubted, self.terms.expires_after_us) {
            for place in from..gap.start {
                let Some(index) = self.users[user].at(place) else { continue };
                let message = &self.messages[index.0 as usize];
                let is_had = witness.seen.has(place) || self.users[user].devices[device].stored.has(place);
                let age_us = now_us.saturating_sub(message.submitted_us);
                assert!(
                    is_had || message.from == witness.key || age_us >= expires_after_us,
                    "nothing is dropped before its time: {who} was told that {} at {place} is gone, which is {age_us} \
                     µs old",
                    message.id
                );
            }
        }
        let linked = &mut self.users[user].devices[device];
        linked.gap = linked.gap.max(if is_past { 0 } else { gap.start });
        witness.position = witness.position.max(gap.start.saturating_sub(1));
        // It counts as acknowledged.
        witness.acknowledged(gap.start.saturating_sub(1));
    }

    /// SYNC_START.
    pub(crate) fn sync_start(&mut self, witness: &mut Witness, start: &proto::SyncStart) {
        self.prove_linked(witness);
        let who = witness.name();
        assert!(
            witness.sync.is_none() && !witness.synced && witness.deliveries == 0,
            "what waits is announced once, before it comes: {who} was told {start:?}"
        );
        assert!(start.entries > 0 && start.through > 0, "of nothing there is nothing to tell: {who} got {start:?}");
        let waiting: u64 = start.conversations.iter().map(|item| item.waiting).sum();
        let is_cut = start.conversations.len() >= DELIVER_ENTRIES_MAX;
        assert!(
            waiting == start.entries || (is_cut && waiting < start.entries),
            "the announcement adds up: {who} was told of {} entries, {waiting} in all conversations",
            start.entries
        );
        for item in &start.conversations {
            self.check_item(witness, item, who);
        }
        witness.sync = Some(start.through);
    }

    /// SYNC_DONE.
    pub(crate) fn sync_done(&mut self, witness: &mut Witness, done: &proto::SyncDone) {
        self.prove_linked(witness);
        let who = witness.name();
        let Some(through) = witness.sync.take() else {
            panic!("what waits ends once, after its beginning: {who} was told {done:?}");
        };
        witness.synced = true;
        assert!(
            done.inbox_seq == through || (self.terms.may_gap() && done.inbox_seq < through),
            "what waited ends where it was announced: {who} was told {} for {through}",
            done.inbox_seq
        );
        for place in witness.cursor + 1..=done.inbox_seq {
            self.check_has(witness, place, || format!("{who} was told that all up to {} has come", done.inbox_seq));
        }
        witness.position = witness.position.max(done.inbox_seq);
    }

    /// A message has this place in a user's inbox: as the recipient's (0) or as the sender's own copy (1).
    pub(super) fn set_place(&mut self, user: usize, index: MessageIndex, which: usize, place: u64) {
        let Self { users, messages, .. } = self;
        let (message_count, user) = (messages.len(), &mut users[user]);
        let message = &mut messages[index.0 as usize];
        let known = std::mem::replace(&mut message.places[which], place);
        let (id, of) = (message.id, user.id);
        assert!(
            known == 0 || known == place,
            "a message is in an inbox once: {id} is at {known} and at {place} of user {of}'s"
        );
        if known == place {
            return;
        }
        assert!(place > 0, "places count from 1: {id} has 0 in user {of}'s inbox");
        let at = slot(place);
        if user.places.len() <= at {
            assert!(
                at < message_count,
                "places are dense: {id} has {place} of user {of}'s, of {message_count} messages"
            );
            user.places.resize(at + 1, None);
        }
        if let Some(other) = user.places[at].replace(index).filter(|other| *other != index) {
            let other = messages[other.0 as usize].id;
            panic!("a place in an inbox belongs to one message: {place} of user {of} is {other}'s and {id}'s");
        }
    }
}

/// No more is under way than the client has room for.
fn check_window(witness: &mut Witness, place: u64, len: usize, who: Who) {
    let weight = (len + ENTRY_OVERHEAD) as u64;
    witness.window.push_back((place, weight));
    witness.window_bytes += weight;
    let (entries, bytes) = (witness.window.len() as u64, witness.window_bytes);
    let (entries_max, bytes_max) = witness.credit;
    assert!(
        entries <= entries_max && bytes <= bytes_max,
        "no more comes than there is room for: {who} has {entries} entries and {bytes} bytes unacknowledged, of \
         {entries_max} and {bytes_max}"
    );
}

/// The greatest place of a conversation in a user's inbox.
pub(super) fn last_of(oracle: &Oracle, user: &User, conversation: ConversationId) -> Option<(u64, MessageIndex)> {
    let of = |index: &MessageIndex| oracle.messages[index.0 as usize].conversation == conversation;
    let at = user.places.iter().rposition(|index| index.as_ref().is_some_and(of))?;
    Some((at as u64 + 1, user.places[at]?))
}
