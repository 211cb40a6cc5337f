//! Marks that a user has not been told.

use std::collections::BTreeMap;

use culver_protocol::id::{ConversationId, ConversationSeq, UserId};
use culver_protocol::limits::RECEIPT_MARKS_MAX;
use culver_protocol::message::MarkView;
use hashbrown::HashMap;

use super::Engines;
use super::inbox::Inbox;
use super::talks::scan_talks;
use crate::error::EngineError;
use crate::key::TalkKind;
use crate::value::{DecodeError, ExpiredRow, MarkRow};

/// Marks that a user has not been told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipts {
    /// Everything up to this version is among the marks, or was told before.
    pub version: u64,
    /// One a conversation, by ascending version; at most `RECEIPT_MARKS_MAX`.
    pub marks: Vec<MarkView>,
    /// There are later ones.
    pub more: bool,
}

/// Reads marks, as [`super::Read::Receipts`] says. While the user has read receipts off, the peers' reads are not
/// among them.
///
/// # Errors
/// The engine failed, or a row cannot be read.
pub fn read_receipts(engines: &Engines, user: UserId, after_version: u64) -> Result<Receipts, EngineError> {
    let shows_reads = !Inbox::of(engines, user).user_row()?.unwrap_or_default().read_receipts_off;
    // What each version told. All rows with one version are of one conversation.
    let mut news: BTreeMap<u64, MarkView> = BTreeMap::new();
    let mut more = false;
    scan_talks(engines, user, |conversation, kind, value| {
        let Some((version, mut mark)) = news_of(conversation, kind, value)? else { return Ok(()) };
        if !shows_reads {
            mark.read = ConversationSeq(0);
        }
        if version <= after_version {
            return Ok(());
        }
        news.entry(version).and_modify(|known| merge(known, &mark)).or_insert(mark);
        if news.len() > RECEIPT_MARKS_MAX {
            news.pop_last();
            more = true;
        }
        Ok(())
    })?;
    let version = news.last_key_value().map_or(after_version, |(version, _)| *version);
    let marks = by_conversation(news);
    Ok(Receipts { version, marks, more })
}

/// The version of a row and what it tells, if it tells something.
fn news_of(conversation: ConversationId, kind: TalkKind, value: &[u8]) -> Result<Option<(u64, MarkView)>, DecodeError> {
    let mark = MarkView { conversation, ..MarkView::default() };
    Ok(match kind {
        TalkKind::List | TalkKind::Delivered => None,
        TalkKind::Read => {
            let row = MarkRow::decode(value)?;
            Some((row.version, MarkView { own_read: row.seq, ..mark }))
        }
        TalkKind::PeerDelivered => {
            let row = MarkRow::decode(value)?;
            Some((row.version, MarkView { delivered: row.seq, ..mark }))
        }
        TalkKind::PeerRead => {
            let row = MarkRow::decode(value)?;
            Some((row.version, MarkView { read: row.seq, ..mark }))
        }
        TalkKind::PeerExpired => {
            let row = ExpiredRow::decode(value)?;
            Some((row.version, MarkView { expired_after: row.after, expired_through: row.through, ..mark }))
        }
    })
}

/// One mark a conversation, by the greatest version in it.
fn by_conversation(news: BTreeMap<u64, MarkView>) -> Vec<MarkView> {
    let mut marks: HashMap<ConversationId, (u64, MarkView)> = HashMap::with_capacity(news.len());
    for (version, mark) in news {
        let known = marks.entry(mark.conversation).or_insert((version, mark));
        known.0 = version;
        merge(&mut known.1, &mark);
    }
    let mut marks: Vec<_> = marks.into_values().collect();
    marks.sort_unstable_by_key(|(version, _)| *version);
    // A version may tell nothing any more, such as a read that is not shown.
    let tells = |mark: &MarkView| *mark != MarkView { conversation: mark.conversation, ..MarkView::default() };
    marks.into_iter().map(|(_, mark)| mark).filter(tells).collect()
}

/// Each number has a row of its own, so at most one of the two is not 0.
fn merge(known: &mut MarkView, news: &MarkView) {
    known.delivered = known.delivered.max(news.delivered);
    known.read = known.read.max(news.read);
    known.expired_after = known.expired_after.max(news.expired_after);
    known.expired_through = known.expired_through.max(news.expired_through);
    known.own_read = known.own_read.max(news.own_read);
}
