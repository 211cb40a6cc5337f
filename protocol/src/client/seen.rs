//! What has been handed to the application already: the last `CLIENT_SEEN_MAX` ids, exactly.

use std::collections::{HashSet, VecDeque};

use crate::id::{ConversationId, ConversationSeq};
use crate::limits::CLIENT_SEEN_MAX;

/// A message's name as clients dedup it.
type Name = (ConversationId, ConversationSeq);

/// A bounded set that forgets its oldest. Allocates only as it fills.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Oldest first; the same names as in `names`.
    order: VecDeque<Name>,
    names: HashSet<Name>,
}

impl Seen {
    /// Remembers a name. `false`: it was known.
    pub(super) fn insert(&mut self, conversation: ConversationId, seq: ConversationSeq) -> bool {
        if !self.names.insert((conversation, seq)) {
            return false;
        }
        if self.order.len() == CLIENT_SEEN_MAX {
            let oldest = self.order.pop_front().expect("the maximum is not 0");
            assert!(self.names.remove(&oldest), "both hold the same names");
        }
        self.order.push_back((conversation, seq));
        true
    }

    /// Forgets everything: the server's data are others now.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::UserId;

    #[test]
    fn remembers_exactly_the_last_ones() {
        let conversation = ConversationId::direct(UserId(1), UserId(2));
        let mut seen = Seen::default();
        let count = CLIENT_SEEN_MAX as u64;
        for seq in 1..=count {
            assert!(seen.insert(conversation, ConversationSeq(seq)));
        }
        assert!(!seen.insert(conversation, ConversationSeq(1)), "the oldest is still known");
        assert!(seen.insert(conversation, ConversationSeq(count + 1)));
        assert!(seen.insert(conversation, ConversationSeq(1)), "and now forgotten");
        assert!(!seen.insert(conversation, ConversationSeq(3)));
        assert_eq!(seen.order.len(), seen.names.len());
    }
}
