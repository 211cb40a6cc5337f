//! What users have of conversations: watermarks, versions, lists; and whether the two sides of each agree.

use std::collections::HashMap;

use culver_protocol::id::{ConversationId, ConversationSeq, DeviceId, MessageId, UserId};

use super::Check;
use super::inboxes::side;
use crate::engine::Family;
use crate::error::EngineError;
use crate::key::{self, ShardId, TalkKind};
use crate::value::{ConversationRow, DecodeError, ExpiredRow, ListRow, MarkRow, SeqRow};

/// What is kept of a conversation.
#[derive(Debug, Default)]
pub(super) struct Talk {
    /// Entries above floors, and on their way.
    pub(super) entries: Vec<Held>,
    /// The lesser user's and the greater's.
    pub(super) sides: [Side; 2],
    pub(super) row: Option<ConversationRow>,
}

/// An entry that waits, or is on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// Its place in the inbox, or behind all that are there.
    pub(super) order: u64,
    pub(super) seq: u64,
    pub(super) id: MessageId,
    pub(super) device: DeviceId,
    pub(super) owner: u8,
    pub(super) sender: u8,
}

/// What one user of a conversation has of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Side {
    pub(super) list: (u64, MessageId),
    pub(super) delivered: u64,
    /// With receipts off: the peer was told less.
    pub(super) is_untold: bool,
    pub(super) read: u64,
    /// As the user was told, or is about to be.
    pub(super) peer_delivered: u64,
    pub(super) peer_read: u64,
    pub(super) peer_expired: u64,
}

/// The versions of one user's rows, and the conversation of each.
#[derive(Default)]
struct Versions {
    user: Option<UserId>,
    known: HashMap<u64, ConversationId>,
}

impl Check<'_> {
    pub(super) fn talk_rows(&mut self) -> Result<(), EngineError> {
        let mut versions = Versions::default();
        self.every_row(Family::Member, |check, key, value| {
            check.report.talk_rows += 1;
            let Some((shard, user, conversation, kind)) = key::decode_talk(key) else {
                return check.report.found("a key of `member` is not known here");
            };
            let name = kind_name(kind);
            if shard != ShardId::of_user(user, check.shard_count()) {
                check.report.found(format_args!(
                    "user {user}: {name} of {conversation} is in shard {}, where it does not belong",
                    shard.0
                ));
            }
            if !check.users.contains_key(&user) {
                check.report.found(format_args!("user {user}: {name} of {conversation}, and no row of its own"));
            }
            let side = usize::from(side(conversation, user));
            if side > 1 {
                return check
                    .report
                    .found(format_args!("user {user}: {name} of {conversation}, to which it does not belong"));
            }
            match check.talk_row(conversation, side, kind, value) {
                Ok(None) => {}
                Ok(Some(version)) => check.version(&mut versions, user, conversation, version),
                Err(error) => {
                    check.report.found(format_args!("user {user}: {name} of {conversation} cannot be read: {error}"));
                }
            }
        })
    }

    /// Keeps what a row says; its version, if it has one.
    fn talk_row(
        &mut self,
        conversation: ConversationId,
        side: usize,
        kind: TalkKind,
        value: &[u8],
    ) -> Result<Option<u64>, DecodeError> {
        let talk = self.talk(conversation);
        let side = talk.sides.get_mut(side).expect("the caller knows which of the two it is");
        Ok(match kind {
            TalkKind::List => {
                let row = ListRow::decode(value)?;
                side.list = (row.seq.0, row.message_id);
                None
            }
            TalkKind::Delivered => {
                let row = SeqRow::decode(value)?;
                (side.delivered, side.is_untold) = (row.seq.0, row.is_untold);
                None
            }
            TalkKind::Read => {
                let row = MarkRow::decode(value)?;
                side.read = row.seq.0;
                Some(row.version)
            }
            TalkKind::PeerDelivered => {
                let row = MarkRow::decode(value)?;
                side.peer_delivered = side.peer_delivered.max(row.seq.0);
                Some(row.version)
            }
            TalkKind::PeerRead => {
                let row = MarkRow::decode(value)?;
                side.peer_read = side.peer_read.max(row.seq.0);
                Some(row.version)
            }
            TalkKind::PeerExpired => {
                let row = ExpiredRow::decode(value)?;
                side.peer_expired = row.through.0;
                Some(row.version)
            }
        })
    }

    fn version(&mut self, versions: &mut Versions, user: UserId, conversation: ConversationId, version: u64) {
        if versions.user.replace(user) != Some(user) {
            versions.known.clear();
        }
        let head = self.users.get(&user).map_or(0, |known| known.receipts_head);
        if version == 0 || version > head {
            self.report.found(format_args!(
                "user {user}: a receipt of {conversation} has version {version}, and its row says {head}"
            ));
        }
        if let Some(other) = versions.known.insert(version, conversation)
            && other != conversation
        {
            self.report.found(format_args!(
                "user {user}: receipts of {other} and of {conversation} have the same version {version}"
            ));
        }
    }

    pub(super) fn conversations(&mut self) -> Result<(), EngineError> {
        self.every_row(Family::Conversation, |check, key, value| {
            check.report.conversations += 1;
            let Some((shard, id)) = key::decode_conversation(key) else {
                return check.report.found("a key of `conversation` has a wrong length");
            };
            if shard != ShardId::of_conversation(id, check.shard_count()) {
                check.report.found(format_args!(
                    "conversation {id}: its row is in shard {}, where it does not belong",
                    shard.0
                ));
            }
            match ConversationRow::decode(value) {
                Ok(row) => check.talk(id).row = Some(row),
                Err(error) => check.report.found(format_args!("conversation {id}: its row cannot be read: {error}")),
            }
        })
    }

    /// What a conversation's row and the watermarks of its two users must say, compared with each other.
    pub(super) fn sides(&mut self, id: ConversationId, talk: &Talk) {
        let row = talk.row.unwrap_or_default();
        let by_either = row.last_by_lesser.max(row.last_by_greater);
        if by_either != row.last_seq {
            self.report.found(format_args!(
                "conversation {id}: its row says {}, and of its users' last messages {by_either}",
                row.last_seq
            ));
        }
        let Some((lesser, greater)) = id.direct_users() else { return };
        let [of_lesser, of_greater] = talk.sides;
        for (user, side, peer) in [(lesser, of_lesser, of_greater), (greater, of_greater, of_lesser)] {
            self.side(id, row.last_seq, user, side);
            if lesser == greater {
                return;
            }
            let is_untold = peer.is_untold && side.peer_delivered < peer.delivered;
            if side.peer_delivered != peer.delivered && !is_untold {
                self.report.found(format_args!(
                    "user {user}: was told that message {} of {id} is delivered, and {} is",
                    side.peer_delivered, peer.delivered
                ));
            }
            if side.peer_read > peer.read {
                self.report.found(format_args!(
                    "user {user}: was told that message {} of {id} is read, and {} is",
                    side.peer_read, peer.read
                ));
            }
        }
    }

    fn side(&mut self, id: ConversationId, last: ConversationSeq, user: UserId, side: Side) {
        let Side { list: (list, _), delivered, is_untold: _, read, peer_delivered, peer_read, peer_expired } = side;
        let marks = [
            (TalkKind::List, list),
            (TalkKind::Delivered, delivered),
            (TalkKind::Read, read),
            (TalkKind::PeerDelivered, peer_delivered),
            (TalkKind::PeerRead, peer_read),
            (TalkKind::PeerExpired, peer_expired),
        ];
        for (kind, seq) in marks.into_iter().filter(|(_, seq)| *seq > last.0) {
            let name = kind_name(kind);
            self.report.found(format_args!("user {user}: {name} of {id} is at message {seq}, and the last is {last}"));
        }
    }
}

fn kind_name(kind: TalkKind) -> &'static str {
    match kind {
        TalkKind::List => "the list row",
        TalkKind::Delivered => "the delivered mark",
        TalkKind::Read => "the read mark",
        TalkKind::PeerDelivered => "the peer's delivered mark",
        TalkKind::PeerRead => "the peer's read mark",
        TalkKind::PeerExpired => "the peer's expired mark",
    }
}
