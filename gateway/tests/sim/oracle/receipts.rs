//! Receipts: never a lie, never back, complete in the end; and what whoever has them off is spared, and spares others.

use culver_protocol::id::{ConversationId, UserId};
use culver_protocol::message::MarkView;
use culver_protocol::proto;

use super::{Asked, Oracle, Who, Witness, side_of, slot};

/// What concerns one user in a conversation.
#[derive(Debug, Default)]
pub(super) struct Side {
    /// The last of the other's messages that some device of this user has persisted, and told its client.
    pub(super) persisted: u64,
    /// This user was told that everything up to here was delivered.
    pub(super) delivered_told: u64,
    /// Of it, everything up to here was checked.
    delivered_checked: u64,
    pub(super) read: Reading,
}

/// How far a user has read a conversation.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// The greatest that was asked to be marked.
    pub(super) asked: u64,
    /// The greatest that was answered.
    pub(super) answered: u64,
    /// The greatest that the other side may be told.
    pub(super) tellable: u64,
    /// Asked while receipts were off: to be told only if they were on again when it was marked.
    pending: Vec<(u64, u64)>,
}

/// Whether a user gives and sees read receipts, as far as that is certain.
#[derive(Debug)]
pub(super) struct Setting {
    /// Surely off, or surely on, and since when.
    surely: Option<(bool, u64)>,
    /// Wishes for off, and for on, that may still be granted.
    open: [u32; 2],
    /// When the last of each was answered.
    closed: [u64; 2],
    /// They were never asked to be off.
    pub(super) untouched: bool,
}

impl Default for Setting {
    fn default() -> Self {
        Self { surely: Some((true, 0)), open: [0; 2], closed: [0; 2], untouched: true }
    }
}

impl Setting {
    pub(super) fn off_since(&self) -> Option<u64> {
        self.surely.filter(|(on, _)| !on).map(|(_, since)| since)
    }

    fn ask(&mut self, on: bool) {
        self.untouched &= on;
        self.open[usize::from(on)] += 1;
        if self.surely.is_some_and(|(is, _)| is != on) {
            self.surely = None;
        }
    }

    /// A wish was refused, or came to nothing.
    pub(super) fn close(&mut self, on: bool, order: u64) {
        self.open[usize::from(on)] -= 1;
        self.closed[usize::from(on)] = order;
    }

    fn grant(&mut self, on: bool, asked: u64, order: u64) {
        self.close(on, order);
        let other = usize::from(!on);
        let is_certain = self.open[other] == 0 && self.closed[other] < asked;
        match self.surely {
            Some((is, _)) if is == on => {}
            _ => self.surely = is_certain.then_some((on, order)),
        }
    }
}

impl Oracle {
    /// A RECEIPT came.
    pub(crate) fn receipt(&mut self, witness: &mut Witness, receipt: &proto::Receipt, now_us: u64) {
        self.prove_linked(witness);
        let who = witness.name();
        assert!(
            receipt.version > witness.version,
            "versions of receipts ascend: {who} got {} after {}",
            receipt.version,
            witness.version
        );
        witness.version = receipt.version;
        for mark in &receipt.marks {
            let conversation = ConversationId::try_from(mark.conversation.as_ref()).expect("the client checks it");
            let peer = conversation.direct_peer(witness.key.user).filter(|peer| *peer != witness.key.user);
            let Some(peer) = peer else {
                panic!("nobody gets what is not theirs: {who} was told of {conversation:?}, {mark:?}");
            };
            let before = witness.marks.entry(conversation).or_insert(MarkView { conversation, ..MarkView::default() });
            let goes_back = |news: u64, before: u64| news != 0 && news < before;
            assert!(
                !goes_back(mark.delivered, before.delivered.0)
                    && !goes_back(mark.read, before.read.0)
                    && !goes_back(mark.own_read, before.own_read.0)
                    && !goes_back(mark.expired_through, before.expired_through.0),
                "receipts never go back: {who} was told {mark:?} after {before:?}"
            );
            before.delivered.0 = before.delivered.0.max(mark.delivered);
            before.read.0 = before.read.0.max(mark.read);
            before.own_read.0 = before.own_read.0.max(mark.own_read);
            before.expired_through.0 = before.expired_through.0.max(mark.expired_through);
            self.check_mark(witness, conversation, peer, mark, who);
            self.check_expired(conversation, witness.key.user, mark, now_us, who);
        }
    }

    fn check_mark(
        &mut self,
        witness: &Witness,
        conversation: ConversationId,
        peer: UserId,
        mark: &proto::Mark,
        who: Who,
    ) {
        let user = witness.key.user;
        let is_off = self.users[witness.at.0].setting.off_since().is_some_and(|since| since < witness.began);
        let is_simple = self.has_one_device(conversation, user);
        let Self { talks, messages, terms, .. } = self;
        let talk = talks.entry(conversation).or_default();
        let other = &talk.sides[side_of(conversation, peer)];
        assert!(
            mark.delivered <= other.persisted,
            "no receipt lies: {who} was told that {} of {conversation:?} is delivered, but no device of user {peer} \
             has persisted more than {}",
            mark.delivered,
            other.persisted
        );
        assert!(
            mark.read <= other.read.tellable,
            "no receipt lies: {who} was told that {} of {conversation:?} is read, but user {peer} has marked {} for \
             others to see, {} in all",
            mark.read,
            other.read.tellable,
            other.read.asked
        );
        assert!(
            mark.read == 0 || !is_off,
            "who has read receipts off sees none: {who} was told that {} of {conversation:?} is read",
            mark.read
        );
        assert!(
            terms.receipts || (mark.delivered == 0 && mark.read == 0),
            "receipts are off for everybody: {who} was told {mark:?}"
        );
        let own = &mut talk.sides[side_of(conversation, user)];
        assert!(
            mark.own_read <= own.read.asked,
            "no receipt lies: {who} was told to have read {} of {conversation:?}, but marked {}",
            mark.own_read,
            own.read.asked
        );
        if mark.delivered > own.delivered_told {
            own.delivered_told = mark.delivered;
        }
        // Of a peer with several devices a later one may have had what an earlier one still lacks.
        while is_simple && own.delivered_checked < own.delivered_told {
            own.delivered_checked += 1;
            let Some(index) = talk.by_seq.get(slot(own.delivered_checked)).copied().flatten() else { continue };
            let message = &messages[index.0 as usize];
            assert!(
                message.from.user != user || message.persisted,
                "no receipt lies: {who} was told that everything up to {} of {conversation:?} is delivered, but {} was \
                 never persisted by user {peer}",
                own.delivered_told,
                own.delivered_checked
            );
        }
    }

    fn check_expired(&self, conversation: ConversationId, user: UserId, mark: &proto::Mark, now_us: u64, who: Who) {
        if mark.expired_through == 0 {
            return;
        }
        let Some(expires_after_us) = self.terms.expires_after_us else {
            panic!("nothing expires here: {who} was told {mark:?}");
        };
        assert!(mark.expired_after < mark.expired_through, "what has expired is a range: {who} was told {mark:?}");
        let Some(talk) = self.talks.get(&conversation) else { return };
        let last = talk.by_seq.get(slot(mark.expired_through)).copied().flatten();
        let Some(message) = last.map(|index| &self.messages[index.0 as usize]) else { return };
        let age_us = now_us.saturating_sub(message.submitted_us);
        assert!(
            message.from.user == user && age_us >= expires_after_us,
            "nothing expires before its time: {who} was told of {} in {conversation:?}, which is {age_us} µs old",
            mark.expired_through
        );
    }

    /// Whether everything that a user writes in a conversation goes to one device alone, and to all that ever was.
    pub(super) fn has_one_device(&self, conversation: ConversationId, from: UserId) -> bool {
        let peer = conversation.direct_peer(from).and_then(|peer| self.user(peer));
        !self.terms.may_gap() && peer.is_none_or(|peer| peer.devices.len() <= 1 && !peer.is_restless())
    }

    /// An application asks for something.
    pub(crate) fn asked(&mut self, witness: &mut Witness, id: u64, request: &proto::rpc::Request) {
        use proto::rpc::Request;
        let order = self.next();
        let asked = match request {
            Request::ListConversations(_) => Asked::List,
            Request::ListDevices(_) => Asked::Devices { order },
            Request::MarkRead(mark) => self.ask_mark(witness, mark, order),
            Request::SetReadReceipts(set) => {
                self.users[witness.at.0].setting.ask(set.on);
                if set.on {
                    self.release_reads(witness.key.user);
                }
                Asked::Receipts { on: set.on, order }
            }
            Request::RemoveDevice(removed) => self.ask_removal(witness, removed.device, order),
            Request::NameDevice(named) => self.ask_name(witness, named, order),
        };
        assert!(witness.calls.insert(id, asked).is_none(), "a client numbers its requests");
    }

    fn ask_mark(&mut self, witness: &Witness, mark: &proto::MarkRead, order: u64) -> Asked {
        let conversation = ConversationId::try_from(mark.conversation.as_ref()).expect("applications know ids");
        let is_off = self.users[witness.at.0].setting.off_since().is_some();
        let side = side_of(conversation, witness.key.user);
        let talk = self.talks.entry(conversation).or_default();
        let reading = &mut talk.sides[side].read;
        // What is asked for only to be refused cannot be read.
        if mark.seq < u64::MAX {
            reading.asked = reading.asked.max(mark.seq);
            if is_off {
                reading.pending.push((order, mark.seq));
            } else {
                reading.tellable = reading.tellable.max(mark.seq);
            }
        }
        let message = usize::try_from(mark.seq).ok().and_then(|seq| talk.by_seq.get(seq.checked_sub(1)?).copied());
        // Of what the user wrote itself the place is one in the other's inbox.
        let message = message.flatten().map(|index| &self.messages[index.0 as usize]);
        let place =
            message.filter(|message| message.from.user != witness.key.user).map_or(0, |message| message.places[0]);
        let linked = &self.users[witness.at.0].devices[witness.at.1];
        let came_here = witness.seen.has(place) && place > witness.cursor && place <= witness.last_here;
        let acknowledged = came_here && linked.stored.has(place) && place <= witness.told;
        Asked::Mark { conversation, seq: mark.seq, order, acknowledged }
    }

    /// Receipts may be on again: what was marked meanwhile and is not surely through may be told.
    fn release_reads(&mut self, user: UserId) {
        for (conversation, talk) in &mut self.talks {
            if conversation.direct_peer(user).is_some() {
                let reading = &mut talk.sides[side_of(*conversation, user)].read;
                for (_, seq) in reading.pending.drain(..) {
                    reading.tellable = reading.tellable.max(seq);
                }
            }
        }
    }

    /// A mark was answered.
    pub(super) fn marked(&mut self, witness: &Witness, conversation: ConversationId, seq: u64, order: u64) {
        let talk = self.talks.entry(conversation).or_default();
        let reading = &mut talk.sides[side_of(conversation, witness.key.user)].read;
        reading.answered = reading.answered.max(seq);
        // What is marked by now, and was not to be told: it never is.
        reading.pending.retain(|(asked, _)| *asked != order);
    }

    /// Receipts were turned on or off.
    pub(super) fn receipts_set(&mut self, witness: &Witness, on: bool, asked: u64) {
        let order = self.next();
        self.users[witness.at.0].setting.grant(on, asked, order);
    }
}
