//! Entries of an inbox, for one device; and the scan that every read of an inbox stands on.

use std::ops::ControlFlow;

use culver_protocol::id::{DeviceId, InboxSeq, UserId};
use culver_protocol::limits::{ENTRY_OVERHEAD, PREVIEW_LEN_MAX};
use culver_protocol::message::EntryView;

use super::Engines;
use super::load::{get, settled};
use crate::engine::{Engine, Family, Lookup, Tier};
use crate::error::EngineError;
use crate::key::{self, ShardId};
use crate::record::InboxEntry;
use crate::value::{self, DecodeError, UserRow};

/// Rows looked at for a page, at most.
pub const INBOX_ROWS_MAX: usize = 4096;
/// How often a scan begins again because the floor rose under it.
const RESTARTS_MAX: usize = 3;

/// A page of an inbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<InboxEntry>,
    /// The last row looked at, rows left out included; what was asked as `after`: there is nothing.
    pub through: InboxSeq,
}

/// Reads entries of an inbox, as [`super::Read::Inbox`] says. What is at or below the user's floor is not given,
/// whether or not it is still there.
///
/// # Errors
/// The engine failed, or a row cannot be read.
pub fn read_inbox(
    engines: &Engines,
    user: UserId,
    skip_device: DeviceId,
    after: InboxSeq,
    entries_max: usize,
    bytes_max: usize,
) -> Result<Page, EngineError> {
    #[derive(Default)]
    struct Reading {
        page: Page,
        rows: usize,
        bytes: usize,
    }
    let reading = Inbox::of(engines, user).scan_kept(after, |reading: &mut Reading, entry| {
        reading.rows += 1;
        if entry.sender != user || entry.sender_device != skip_device {
            reading.bytes += entry.payload.len() + ENTRY_OVERHEAD;
            let entries = &mut reading.page.entries;
            if entries.len() >= entries_max || (reading.bytes > bytes_max && !entries.is_empty()) {
                return ControlFlow::Break(());
            }
            entries.push(InboxEntry::from(*entry));
        }
        reading.page.through = entry.inbox_seq;
        if reading.rows < INBOX_ROWS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let Page { entries, through } = reading.page;
    Ok(Page { entries, through: through.max(after) })
}

/// One user's inbox, and the engine that has it.
#[derive(Clone, Copy)]
pub(super) struct Inbox<'a> {
    engine: &'a dyn Engine,
    shard: ShardId,
    user: UserId,
}

impl<'a> Inbox<'a> {
    pub(super) fn of(engines: &'a Engines, user: UserId) -> Self {
        let (shard, engine) = engines.of_user(user);
        Self { engine, shard, user }
    }

    /// The user's row; its head is a hint.
    pub(super) fn user_row(&self) -> Result<Option<UserRow>, EngineError> {
        let key = key::user(self.shard, self.user);
        get(self.engine, Family::User, &key, Tier::Disk, UserRow::decode).map(settled)
    }

    /// One entry, its payload cut.
    pub(super) fn preview(&self, seq: InboxSeq) -> Result<Option<InboxEntry>, EngineError> {
        let key = key::inbox(self.shard, self.user, seq);
        match self.engine.get(Family::Inbox, &key, Tier::Disk)? {
            Lookup::Present(value) => match value::decode_inbox(seq, &value) {
                Ok(entry) => Ok(Some(InboxEntry::from(EntryView { payload: preview(entry.payload), ..entry }))),
                Err(source) => Err(EngineError::Row { family: Family::Inbox, key: key.to_vec(), source }),
            },
            Lookup::Absent | Lookup::Unknown => Ok(None),
        }
    }

    /// Shows the entries beyond `after` in order, until the visitor breaks.
    pub(super) fn scan(
        &self,
        after: InboxSeq,
        mut visit: impl FnMut(&EntryView<'_>) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let Some(first) = after.0.checked_add(1) else { return Ok(()) };
        let at = |seq| key::inbox(self.shard, self.user, InboxSeq(seq));
        let mut failure = None;
        self.engine.scan(Family::Inbox, &at(first), &at(u64::MAX), Tier::Disk, &mut |key, value| {
            let seq = key::decode_inbox(key).ok_or(DecodeError::Length).map(|(_, _, seq)| seq);
            match seq.and_then(|seq| value::decode_inbox(seq, value)) {
                Ok(entry) => visit(&entry),
                Err(source) => {
                    failure = Some(EngineError::Row { family: Family::Inbox, key: key.to_vec(), source });
                    ControlFlow::Break(())
                }
            }
        })?;
        failure.map_or(Ok(()), Err)
    }

    /// As [`Inbox::scan`], but never at or below the floor. Where that rises under the scan, and a compaction takes
    /// away what is to be shown next, the scan begins again above it, with a fresh state.
    pub(super) fn scan_kept<T: Default>(
        &self,
        after: InboxSeq,
        mut visit: impl FnMut(&mut T, &EntryView<'_>) -> ControlFlow<()>,
    ) -> Result<T, EngineError> {
        let mut floor = self.user_row()?.unwrap_or_default().floor;
        for restarts in 0.. {
            let start = after.max(floor);
            let (mut state, mut last, mut has_hole) = (T::default(), start, false);
            self.scan(start, |entry| {
                has_hole = last.0.checked_add(1) != Some(entry.inbox_seq.0);
                if has_hole && restarts < RESTARTS_MAX {
                    return ControlFlow::Break(());
                }
                last = entry.inbox_seq;
                visit(&mut state, entry)
            })?;
            if !has_hole || restarts == RESTARTS_MAX {
                return Ok(state);
            }
            floor = self.user_row()?.unwrap_or_default().floor;
        }
        unreachable!("the last restart returns")
    }
}

/// What a list shows of a payload.
pub(super) fn preview(payload: &[u8]) -> &[u8] {
    payload.get(..PREVIEW_LEN_MAX).unwrap_or(payload)
}
