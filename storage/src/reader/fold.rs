//! What raising a floor leaves behind: one scan of what lies between.

use std::ops::ControlFlow;

use bytes::Bytes;
use culver_protocol::id::{ConversationId, ConversationSeq, InboxSeq};
use culver_protocol::message::EntryView;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::inbox::{Inbox, preview};
use super::{Engines, Fold, Folded};
use crate::error::EngineError;
use crate::record::Expired;
use crate::value::{self, ListRow};

/// Rows folded at once, at most: a longer way takes several folds.
pub const FOLD_ROWS_MAX: usize = 20_000;
/// Conversations folded at once, at most: each becomes a row of one batch.
pub const FOLD_CONVERSATIONS_MAX: usize = 1024;

/// Reads what raising a floor leaves behind, as [`super::Read::Fold`] says. Where the way is long, `floor` is less far
/// than it may rise: another fold goes on from there.
///
/// # Errors
/// The engine failed, or a row cannot be read.
pub fn read_fold(engines: &Engines, fold: Fold) -> Result<Folded, EngineError> {
    let mut folding = Folding { fold, rows: 0, floor: fold.after, freed_bytes: 0, talks: HashMap::new() };
    Inbox::of(engines, fold.user).scan(fold.after, |entry| folding.take(entry))?;
    Ok(folding.done())
}

struct Folding {
    fold: Fold,
    rows: usize,
    floor: InboxSeq,
    freed_bytes: u64,
    talks: HashMap<ConversationId, Talk>,
}

struct Talk {
    /// Its last entry so far.
    last: ListRow,
    /// From the first to the last that nobody had.
    expired: Option<(ConversationSeq, ConversationSeq)>,
}

impl Folding {
    fn take(&mut self, entry: &EntryView<'_>) -> ControlFlow<()> {
        let Fold { user, through, greatest, expire_before_ms, .. } = self.fold;
        let is_expired = entry.inbox_seq > through;
        if is_expired && entry.server_time_ms >= expire_before_ms {
            return ControlFlow::Break(());
        }
        let talks = self.talks.len();
        let talk = match self.talks.entry(entry.conversation) {
            Entry::Occupied(talk) => talk.into_mut(),
            Entry::Vacant(_) if talks >= FOLD_CONVERSATIONS_MAX => return ControlFlow::Break(()),
            Entry::Vacant(talk) => talk.insert(Talk { last: ListRow::default(), expired: None }),
        };
        talk.last = list_row(entry);
        if is_expired && entry.inbox_seq > greatest && entry.sender != user {
            let before = ConversationSeq(entry.conversation_seq.0.saturating_sub(1));
            let (after, _) = talk.expired.unwrap_or((before, before));
            talk.expired = Some((after, entry.conversation_seq));
        }
        self.floor = entry.inbox_seq;
        self.freed_bytes += value::waiting_bytes(entry.payload.len());
        self.rows += 1;
        if self.rows < FOLD_ROWS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    fn done(self) -> Folded {
        let Self { fold, floor, freed_bytes, talks, .. } = self;
        let (mut lists, mut expired) = (Vec::with_capacity(talks.len()), Vec::new());
        for (conversation, talk) in talks {
            lists.push((conversation, talk.last));
            expired.extend(talk.expired.map(|(after, through)| Expired { conversation, after, through }));
        }
        // In the same order wherever it is read: a record is the same on every replica.
        lists.sort_unstable_by_key(|(conversation, _)| *conversation);
        expired.sort_unstable_by_key(|expired| expired.conversation);
        Folded { fold, floor, freed_bytes, lists, expired }
    }
}

fn list_row(entry: &EntryView<'_>) -> ListRow {
    ListRow {
        seq: entry.conversation_seq,
        message_id: entry.message_id,
        sender: entry.sender,
        device: entry.sender_device,
        preview: Bytes::copy_from_slice(preview(entry.payload)),
    }
}
