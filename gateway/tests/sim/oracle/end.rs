//! What must hold when all is quiet and everybody has everything.

use std::collections::BTreeMap;

use culver_protocol::id::{ConversationId, UserId};
use culver_protocol::limits::PREVIEW_LEN_MAX;
use culver_protocol::message::MarkView;
use culver_protocol::proto;

use super::inboxes::{Linked, User, last_of};
use super::messages::{Message, MessageIndex, Validity};
use super::{Oracle, Who, name, side_of};
use crate::device::{Device, DeviceKey};

/// What a device's application knows in the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Its receipts.
    pub marks: BTreeMap<ConversationId, MarkView>,
    /// All conversations, as last listed.
    pub list: Vec<proto::ConversationItem>,
    /// All devices, as last listed.
    pub devices: Vec<proto::Device>,
}

impl Oracle {
    /// What must hold when all is quiet: after [`Device::say_last`] and [`Device::ask_last`] have come to rest.
    pub(crate) fn check_end<'a>(&self, devices: impl IntoIterator<Item = &'a Device>, now_us: u64) {
        let apps = devices.into_iter().filter(|device| !device.is_fetch());
        let apps: Vec<(DeviceKey, Known)> = apps.map(|device| (device.key(), device.known())).collect();
        self.check_known(&apps, now_us);
    }

    /// The same, of what applications know.
    pub(super) fn check_known(&self, apps: &[(DeviceKey, Known)], now_us: u64) {
        self.check_answers();
        self.check_conversations();
        for user in &self.users {
            self.check_inbox(user, now_us);
            for linked in user.devices.iter().filter(|linked| linked.evidence.is_some()) {
                self.check_complete(user, linked, now_us);
            }
        }
        for (key, known) in apps {
            let Some(user) = self.user(key.user) else { continue };
            let who = name(key.user, key.device);
            for conversation in self.talks.keys() {
                self.check_receipts_complete(user, *conversation, known, who);
            }
            self.check_list(user, known, who);
            self.check_devices_listed(user, known, who);
        }
    }

    /// Everything that an application remembers is answered, and accepted in the order in which it was sent.
    fn check_answers(&self) {
        let mut last: BTreeMap<(DeviceKey, ConversationId), u64> = BTreeMap::new();
        for message in self.messages.iter().filter(|message| !message.forgotten) {
            let (id, who) = (message.id, name(message.from.user, message.from.device));
            assert!(
                message.answer.is_some() || message.rejected.is_some(),
                "everything sent is answered: {id} of {who} to {:?} is not",
                message.conversation
            );
            let Some(fact) = message.fact else { continue };
            let last = last.entry((message.from, message.conversation)).or_default();
            assert!(
                *last < fact.seq,
                "messages are accepted in the order they were sent: {id} of {who} has {} of {:?}, and one before it \
                 {last}",
                fact.seq,
                message.conversation
            );
            *last = fact.seq;
        }
    }

    /// The sequence of a conversation has no holes, save for what nobody remembers.
    fn check_conversations(&self) {
        for (conversation, talk) in &self.talks {
            let holes = talk.by_seq.iter().filter(|known| known.is_none()).count();
            let lost = self.unknown_in(*conversation);
            assert!(
                holes <= lost,
                "a conversation is dense: {conversation:?} lacks {holes} of its {}, and only {lost} messages may be \
                 there unknown",
                talk.by_seq.len()
            );
        }
    }

    /// Messages that may have been accepted without anybody's knowing.
    fn unknown_in(&self, conversation: ConversationId) -> usize {
        let of = |message: &&Message| {
            message.conversation == conversation && message.fact.is_none() && message.validity == Validity::Good
        };
        self.messages.iter().filter(of).count()
    }

    /// A message that nobody has got may have waited for so long that it was dropped.
    pub(super) fn may_be_gone(&self, message: &Message, now_us: u64) -> bool {
        let age_us = now_us.saturating_sub(message.submitted_us);
        self.terms.expires_after_us.is_some_and(|expires_after_us| age_us >= expires_after_us)
    }

    /// An inbox that somebody reads has everything, and has it in the conversations' order.
    fn check_inbox(&self, user: &User, now_us: u64) {
        if user.devices.iter().all(|linked| linked.evidence.is_none()) {
            return;
        }
        let id = user.id;
        let mut last: BTreeMap<ConversationId, u64> = BTreeMap::new();
        // The sender of a note to oneself is not always told where it is, and does not get it back.
        let own_notes = |message: &&Message| {
            message.from.user == id && message.conversation.direct_peer(id) == Some(id) && message.places[0] == 0
        };
        let mut untold = self.messages.iter().filter(own_notes).count();
        for (place, index) in (1_u64..).zip(&user.places) {
            let Some(message) = index.map(|index| &self.messages[index.0 as usize]) else {
                let is_excused = self.terms.may_gap() || user.is_restless();
                assert!(is_excused || untold > 0, "an inbox is dense: nothing is at {place} of user {id}'s");
                untold = untold.saturating_sub(1);
                continue;
            };
            let seq = message.fact.expect("a place comes with it").seq;
            let last = last.entry(message.conversation).or_default();
            assert!(
                *last < seq,
                "an inbox has the conversations' order: user {id}'s has {seq} of {:?} at {place}, behind {last}",
                message.conversation
            );
            *last = seq;
        }
        for message in &self.messages {
            let is_its = message.conversation.direct_peer(message.from.user) == Some(id);
            let is_there = message.fact.is_some() && is_its && message.validity == Validity::Good;
            let is_own_note = message.from.user == id;
            // What is sent when a device is linked is looked for there.
            let is_unseen = self.terms.may_unlink || user.is_restless();
            let is_excused = is_own_note || is_unseen || self.may_be_gone(message, now_us);
            assert!(
                !is_there || message.places[0] > 0 || is_excused,
                "what is accepted is delivered: {} of {:?}, {:?}, never came to user {id}",
                message.id,
                message.conversation,
                message.fact
            );
        }
    }

    /// A device has everything that it is entitled to: what has come into the inbox since it was linked, and what was
    /// sent when it surely was; save what a GAP has covered. Where devices may be unlinked, and so come back at the
    /// head, that is what was sent since it came back.
    fn check_complete(&self, user: &User, linked: &Linked, now_us: u64) {
        let who = name(user.id, linked.device);
        let from = match (linked.is_first, linked.first) {
            _ if self.terms.may_unlink => u64::MAX,
            (true, _) => 1,
            (false, 0) => u64::MAX,
            (false, first) => first,
        };
        let is_own = |message: &Message| message.from == DeviceKey { user: user.id, device: linked.device };
        for place in from..=user.places.len() as u64 {
            let Some(index) = user.at(place) else { continue };
            let message = &self.messages[index.0 as usize];
            // Whoever has acknowledged nothing is told of no GAP.
            let is_gone = linked.claimed == 0 && self.may_be_gone(message, now_us);
            assert!(
                linked.stored.has(place) || is_own(message) || place < linked.gap || is_gone,
                "what is accepted is delivered to every device: {who} never got {} of {:?}, {:?}, at {place}",
                message.id,
                message.conversation,
                message.fact
            );
        }
        let evidence = if self.terms.may_unlink { linked.last_evidence } else { linked.evidence };
        let since = evidence.unwrap_or(u64::MAX);
        for message in self.messages.iter().filter(|message| message.fact.is_some() && !is_own(message)) {
            let is_to_user = message.conversation.direct_peer(message.from.user) == Some(user.id);
            let (is_owed, place) = if is_to_user {
                (since < message.submitted, message.places[0])
            } else if message.from.user == user.id {
                (since < message.session_began, message.places[1])
            } else {
                continue;
            };
            let is_there = place > 0 && (linked.stored.has(place) || place < linked.gap);
            // Where nothing is known of its place it may be one of those that a GAP covered.
            let is_excused = place == 0 && self.may_be_gone(message, now_us);
            assert!(
                !is_owed || is_there || is_excused,
                "what is sent when a device is linked is delivered to it: {who} never got {} of {} in {:?}, {:?}, \
                 whose place is {place}",
                message.id,
                name(message.from.user, message.from.device),
                message.conversation,
                message.fact
            );
        }
    }

    /// Everybody knows what became of what they sent, and how far they have read.
    fn check_receipts_complete(&self, user: &User, conversation: ConversationId, known: &Known, who: Who) {
        let Some(peer) = conversation.direct_peer(user.id).filter(|peer| *peer != user.id) else { return };
        let talk = &self.talks[&conversation];
        let (own, other) = (&talk.sides[side_of(conversation, user.id)], &talk.sides[side_of(conversation, peer)]);
        let mark = known.marks.get(&conversation).copied().unwrap_or_default();
        if self.terms.receipts {
            let has = self.acknowledged_in(conversation, peer).unwrap_or(other.persisted);
            assert!(
                mark.delivered.0 >= has,
                "receipts are complete: {who} knows that {} of {conversation:?} is delivered, but user {peer} has {has}",
                mark.delivered
            );
            let is_told = user.setting.untouched && self.user(peer).is_none_or(|peer| peer.setting.untouched);
            assert!(
                !is_told || mark.read.0 >= other.read.answered,
                "receipts are complete: {who} knows that {} of {conversation:?} is read, but user {peer} marked {}",
                mark.read,
                other.read.answered
            );
        }
        assert!(
            mark.own_read.0 >= own.read.answered,
            "receipts are complete: {who} knows of having read {} of {conversation:?}, but {} was marked",
            mark.own_read,
            own.read.answered
        );
    }

    /// Of a user whose devices come and go: the last of a conversation that one has which was never removed. What a
    /// device acknowledged as it was removed, nobody may have heard.
    fn acknowledged_in(&self, conversation: ConversationId, user: UserId) -> Option<u64> {
        let user = self.user(user).filter(|user| user.is_restless())?;
        let stay = || user.devices.iter().filter(|linked| linked.standing.is_undoubted());
        let is_had = |message: &&Message| {
            let place = message.places[0];
            let is_its = message.conversation == conversation && message.from.user != user.id && place > 0;
            is_its && stay().any(|linked| linked.stored.has(place) && place <= linked.claimed)
        };
        let had = self.messages.iter().filter(is_had).filter_map(|message| message.fact);
        Some(had.map(|fact| fact.seq).max().unwrap_or(0))
    }

    /// The list shows each conversation of the inbox, and all of it as it is.
    fn check_list(&self, user: &User, known: &Known, who: Who) {
        let ids: Vec<u64> =
            known.list.iter().map(|item| item.last.as_ref().map_or(0, |last| last.message_id)).collect();
        assert!(ids.is_sorted_by(|a, b| a > b), "the most recent comes first: {who} was listed {ids:?}");
        let mut expected: Vec<ConversationId> = Vec::new();
        for conversation in self.talks.keys().filter(|talk| talk.direct_peer(user.id).is_some()) {
            let listed = known.list.iter().filter(|item| item.conversation.as_ref() == conversation.0);
            let listed: Vec<_> = listed.collect();
            let last = self.last_in_list(user, *conversation);
            assert!(
                listed.len() == usize::from(last.is_some()) || (self.terms.may_gap() && listed.len() < 2),
                "a list shows each conversation once: {who} was listed {} of {conversation:?}, whose last is {last:?}",
                listed.len()
            );
            if let (Some(item), Some(last)) = (listed.first(), last) {
                self.check_listed(user, *conversation, item, last, who);
            }
            expected.push(*conversation);
        }
        for item in &known.list {
            assert!(
                expected.iter().any(|conversation| conversation.0 == item.conversation.as_ref()),
                "nobody gets what is not theirs: {who} was listed {item:?}"
            );
        }
    }

    /// The last entry of a conversation in a user's inbox, and its place there. Of notes to oneself the places are not
    /// all known, but all of them are there.
    fn last_in_list(&self, user: &User, conversation: ConversationId) -> Option<(u64, MessageIndex)> {
        if conversation.direct_peer(user.id) != Some(user.id) {
            return last_of(self, user, conversation);
        }
        let index = self.talks[&conversation].by_seq.iter().rev().find_map(|known| *known)?;
        Some((self.messages[index.0 as usize].places[0], index))
    }

    fn check_listed(
        &self,
        user: &User,
        conversation: ConversationId,
        item: &proto::ConversationItem,
        (place, index): (u64, MessageIndex),
        who: Who,
    ) {
        let talk = &self.talks[&conversation];
        let known_last = talk.by_seq.len() as u64;
        let unknown = self.unknown_in(conversation) as u64;
        assert!(
            (known_last..=known_last + unknown).contains(&item.last_seq),
            "a list shows the last: {who} was listed {} of {conversation:?}, where {known_last} is known",
            item.last_seq
        );
        let read = &talk.sides[side_of(conversation, user.id)].read;
        assert!(
            (read.answered..=read.asked).contains(&item.read),
            "a list shows what is read: {who} was listed {} of {conversation:?}, where {} is marked",
            item.read,
            read.answered
        );
        let by_user = |index: &&Option<MessageIndex>| {
            index.is_some_and(|index| self.messages[index.0 as usize].from.user == user.id)
        };
        let own_last = talk.by_seq.iter().rposition(|index| by_user(&index)).map_or(0, |at| at as u64 + 1);
        let unread = item.last_seq - item.read.max(own_last).min(item.last_seq);
        assert!(
            item.unread == unread || (unknown > 0 && item.unread < unread),
            "a list shows how much is unread: {who} was listed {} of {conversation:?}, which are {unread}: {item:?}",
            item.unread
        );
        let message = &self.messages[index.0 as usize];
        let Some(last) = &item.last else { panic!("a list shows the last: {who} was listed none of {conversation:?}") };
        let cut = message.payload.len().min(PREVIEW_LEN_MAX);
        let is_it = Some(last.conversation_seq) == message.fact.map(|fact| fact.seq)
            && (last.inbox_seq == 0 || place == 0 || last.inbox_seq == place)
            && last.payload.as_ref() == &message.payload[..cut];
        assert!(
            is_it,
            "a list shows the last: {who} was listed {} at {} for {:?} of {conversation:?}, at {place}",
            last.conversation_seq, last.inbox_seq, message.fact
        );
    }

    /// Everybody is there, and nothing waits for anybody.
    fn check_devices_listed(&self, user: &User, known: &Known, who: Who) {
        for linked in user.devices.iter().filter(|linked| linked.evidence.is_some()) {
            let found = known.devices.iter().find(|info| info.device == u32::from(linked.device.0));
            assert!(
                found.is_some_and(|info| info.online && info.waiting == 0),
                "all devices are there and have everything: {who} was listed {found:?} for {}",
                linked.device
            );
        }
    }
}
