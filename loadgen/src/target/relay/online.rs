//! Who is connected where, and what the peers of each were told of it. Knows numbers of connections, no connection.

use culver_protocol::id::{ConversationId, ConversationSeq, UserId};
use hashbrown::HashMap;

use super::connection::Unacknowledged;

/// All users that are logged in.
#[derive(Debug, Default)]
pub(super) struct Online {
    users: HashMap<u64, Present>,
    /// By connection.
    user_of_slot: Vec<Option<UserId>>,
    several_devices: bool,
}

#[derive(Debug, Default)]
struct Present {
    slots: Vec<usize>,
    /// The last place of each conversation whose receipt went out: seldom more than one.
    told: Vec<(ConversationId, ConversationSeq)>,
}

impl Online {
    /// A user's connection, perhaps one more.
    pub(super) fn enter(&mut self, user: UserId, slot: usize) {
        let present = self.users.entry(user.0).or_default();
        present.slots.push(slot);
        self.several_devices |= present.slots.len() > 1;
        if self.user_of_slot.len() <= slot {
            self.user_of_slot.resize(slot + 1, None);
        }
        *self.user_of_slot.get_mut(slot).expect("resized above") = Some(user);
    }

    /// A connection has ended.
    pub(super) fn leave(&mut self, slot: usize) {
        let Some(user) = self.user_of_slot.get_mut(slot).and_then(Option::take) else { return };
        let Some(present) = self.users.get_mut(&user.0) else { return };
        present.slots.retain(|other| *other != slot);
        if present.slots.is_empty() {
            self.users.remove(&user.0);
        }
    }

    /// The connections of a user.
    pub(super) fn slots(&self, user: UserId) -> &[usize] {
        self.users.get(&user.0).map_or(&[], |present| &present.slots)
    }

    /// Whether somebody has had two connections at once.
    pub(super) fn several_devices(&self) -> bool {
        self.several_devices
    }

    /// Whom to tell that this connection has acknowledged `entry`; `None`: it is the user's own, or was told before.
    pub(super) fn first_to_acknowledge(&mut self, slot: usize, entry: &Unacknowledged) -> Option<UserId> {
        let user = (*self.user_of_slot.get(slot)?)?;
        if user == entry.sender {
            return None;
        }
        let told = &mut self.users.get_mut(&user.0)?.told;
        match told.iter_mut().find(|(conversation, _)| *conversation == entry.conversation) {
            Some((_, seq)) if *seq >= entry.conversation_seq => return None,
            Some((_, seq)) => *seq = entry.conversation_seq,
            None => told.push((entry.conversation, entry.conversation_seq)),
        }
        Some(entry.sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culver_protocol::id::InboxSeq;

    const ALICE: UserId = UserId(2);
    const BOB: UserId = UserId(3);

    fn from_alice(seq: u64) -> Unacknowledged {
        Unacknowledged {
            inbox_seq: InboxSeq(seq),
            sender: ALICE,
            conversation: ConversationId::direct(ALICE, BOB),
            conversation_seq: ConversationSeq(seq),
        }
    }

    #[test]
    fn the_first_device_counts() {
        let mut online = Online::default();
        online.enter(ALICE, 0);
        online.enter(BOB, 1);
        assert!(!online.several_devices());
        online.enter(BOB, 2);
        assert!(online.several_devices());
        assert_eq!(online.slots(BOB), [1, 2]);
        assert_eq!(online.first_to_acknowledge(1, &from_alice(3)), Some(ALICE));
        assert_eq!(online.first_to_acknowledge(2, &from_alice(3)), None);
        assert_eq!(online.first_to_acknowledge(2, &from_alice(2)), None);
        assert_eq!(online.first_to_acknowledge(2, &from_alice(4)), Some(ALICE));
    }

    #[test]
    fn nobody_is_told_of_their_own_copy() {
        let mut online = Online::default();
        online.enter(ALICE, 0);
        assert_eq!(online.first_to_acknowledge(0, &from_alice(1)), None);
        assert_eq!(online.first_to_acknowledge(7, &from_alice(1)), None);
    }

    #[test]
    fn who_has_left_gets_nothing() {
        let mut online = Online::default();
        online.enter(BOB, 1);
        online.enter(BOB, 2);
        online.leave(1);
        online.leave(1);
        assert_eq!(online.slots(BOB), [2]);
        online.leave(2);
        assert!(online.slots(BOB).is_empty());
    }
}
