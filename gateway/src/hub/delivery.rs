//! Delivery: what goes to a session when, within its window.
//!
//! An entry just accepted goes out live if the session has everything before it and room for it. Otherwise it is
//! skipped, for it is in the log; once its batch is durable the session is marked `behind` and the log is read
//! from `sent` on, page by page, as far as the window allows. No queue of payloads is kept for anybody.
//!
//! What a device sent itself does not come back to it: the session steps over it with the answer that tells it so, and
//! where nothing is under way the device's cursor follows before cursors are written. A step that did not reach the
//! session is owed to it (`Owed`).

use culver_protocol::id::{InboxSeq, UserId};
use culver_protocol::limits::{DELIVER_BYTES_MAX, DELIVER_ENTRIES_MAX};
use culver_storage::command::View;
use culver_storage::error::EngineError;
use culver_storage::planted::{self, Bug};
use culver_storage::reader::Read;
use culver_storage::record::InboxEntry;

use super::Hub;
use super::command::Address;
use super::directory::{Flag, NO_WINDOW, Online};
use super::effect::{Effect, EffectKind};
use super::extra::{Owed, Sync};
use super::reads::{split_tag, tag_of};
use super::windows::counted_bytes;

/// Effects looked at for the last of the same session: an answer and the deliveries of its message come together.
const MERGE_DEPTH: usize = 8;

/// A page from the log.
pub(super) struct Page {
    pub(super) user: UserId,
    pub(super) after: InboxSeq,
    /// Without what the device sent itself.
    pub(super) entries: Vec<InboxEntry>,
    /// The last row looked at.
    pub(super) through: InboxSeq,
}

fn is_own(online: &Online, entry: &InboxEntry) -> bool {
    let device = online.device();
    entry.sender == device.user && entry.sender_device == device.device
}

/// A step of a session without entries: what lies between is no longer kept, or its own.
fn step(online: u32, set_backs: u16, previous: InboxSeq, through: InboxSeq, gap: bool) -> EffectKind {
    if gap && !planted::is(Bug::GapUntold) {
        EffectKind::Gap { online, set_backs, previous, start: InboxSeq(through.0 + 1) }
    } else {
        EffectKind::Skipped { online, set_backs, previous, through }
    }
}

impl Hub {
    /// An entry was accepted for a user: to each of the user's sessions it goes live, or is skipped.
    pub(super) fn deliver_live(&mut self, user: UserId, entry: &InboxEntry, now_ms: u64) {
        // Few sessions a user, so their indexes fit a small list on the hub.
        let mut sessions = std::mem::take(&mut self.scratch);
        sessions.clear();
        sessions.extend(self.directory.of_user(user));
        sessions.sort_unstable();
        for index in &sessions {
            self.deliver_to(*index, entry, now_ms);
        }
        self.scratch = sessions;
    }

    fn deliver_to(&mut self, index: u32, entry: &InboxEntry, now_ms: u64) {
        let online = self.directory.get_mut(index).expect("the directory names what is there");
        let previous = online.sent;
        let joins_on = previous.0 + 1 == entry.inbox_seq.0 && !online.is(Flag::Held);
        if joins_on && is_own(online, entry) {
            self.step_over(index, previous, entry.inbox_seq, now_ms);
            return;
        }
        let fits = self.windows.len(online)
            < usize::from(online.credit_entries) + usize::from(planted::is(Bug::WindowOffByOne))
            && online.used_bytes + counted_bytes(entry) <= online.credit_bytes;
        if joins_on && fits {
            self.windows.push(online, entry);
            let (session, device, set_backs) = (online.address(), online.device(), online.set_backs);
            self.tell(session, EffectKind::Deliver { online: index, set_backs, previous, entry: entry.clone() });
            if planted::is(Bug::CursorMovedWhenSent) {
                self.move_cursor(device, entry.inbox_seq, &[], now_ms).expect("planted where engines can be read");
            }
        } else {
            self.building.skipped.push(index);
        }
    }

    /// What follows `previous` up to `through` is the session's own. The device's cursor follows, unless there is more
    /// under way.
    fn step_over(&mut self, index: u32, previous: InboxSeq, through: InboxSeq, now_ms: u64) {
        let online = self.directory.get_mut(index).expect("the caller found it");
        let (session, set_backs) = (online.address(), online.set_backs);
        online.sent = through;
        if !online.is(Flag::Stepped) {
            online.set(Flag::Stepped, true);
            self.stepped.push(index);
        }
        self.cursors_since_ms.get_or_insert(now_ms);
        if !self.step_with_last(session, set_backs, previous, through) {
            self.tell(session, EffectKind::Skipped { online: index, set_backs, previous, through });
        }
    }

    /// Lets the last thing that the session is told tell of the step, too, if it can: the answer to what the device
    /// sent, or a step before this one.
    fn step_with_last(&mut self, session: Address, of: u16, previous: InboxSeq, through: InboxSeq) -> bool {
        let mut latest = self.building.effects.iter_mut().rev().take(MERGE_DEPTH);
        match latest.find(|effect| effect.session == session).map(|effect| &mut effect.kind) {
            Some(EffectKind::Accepted { accepted, skips })
                if accepted.inbox_seq == through && previous.0 + 1 == through.0 =>
            {
                *skips = true;
                true
            }
            Some(EffectKind::Skipped { set_backs, through: end, .. }) if *set_backs == of && *end == previous => {
                *end = through;
                true
            }
            _ => false,
        }
    }

    /// The cursors of devices that have stepped over their own follow where nothing is under way: once, however many
    /// the steps were. Those of cold users follow when these are read: with a cursor that stays behind, an inbox could
    /// be full of what nobody is going to acknowledge.
    pub(super) fn move_stepped(&mut self, now_ms: u64) -> Result<(), EngineError> {
        let mut stepped = std::mem::take(&mut self.stepped);
        let mut waiting = Vec::new();
        for index in stepped.drain(..) {
            let Some(online) = self.directory.get_mut(index).filter(|online| online.is(Flag::Stepped)) else {
                continue;
            };
            online.set(Flag::Stepped, false);
            let (device, through) = (online.device(), online.sent);
            // Of what lies between `acked` and `sent` then, all is the device's own, or below the floor. Otherwise the
            // next acknowledgement covers it.
            if online.window != NO_WINDOW || online.acked >= through {
                continue;
            }
            let waits = self.step_cursor(device, through, now_ms)?;
            let online = self.directory.get_mut(index).expect("found above");
            match waits {
                None => online.acked = through,
                Some(load) => {
                    online.set(Flag::Stepped, true);
                    waiting.push(index);
                    self.request(load);
                }
            }
        }
        self.stepped = stepped;
        self.stepped.append(&mut waiting);
        Ok(())
    }

    /// What was skipped is durable now: the log holds it.
    pub(super) fn mark_behind(&mut self, skipped: Vec<u32>) {
        for index in skipped {
            if let Some(online) = self.directory.get_mut(index) {
                online.set(Flag::Behind, true);
                if online.is(Flag::Reading) {
                    online.set(Flag::Missed, true);
                }
                self.pump_unless_hungry(index);
            }
        }
    }

    /// Who found no room reads when there is some, or would find none again and again.
    fn pump_unless_hungry(&mut self, index: u32) {
        let Some(online) = self.directory.get(index) else { return };
        if !self.hungry.contains(&(online.address().reactor, index)) {
            self.pump(index);
        }
    }

    /// Tells the session what it is owed, then reads on from the log, if it is behind and has room.
    pub(super) fn pump(&mut self, index: u32) {
        let Some(online) = self.directory.get(index) else { return };
        if online.is(Flag::Extra) {
            self.pay(index);
            self.tell_sync(index);
        }
        let Some(online) = self.directory.get_mut(index) else { return };
        if !online.is(Flag::Behind) || online.is(Flag::Reading) || online.is(Flag::Held) {
            return;
        }
        let entries_max =
            usize::from(online.credit_entries).saturating_sub(self.windows.len(online)).min(DELIVER_ENTRIES_MAX);
        let bytes_max = (online.credit_bytes.saturating_sub(online.used_bytes) as usize).min(DELIVER_BYTES_MAX);
        let nothing_under_way = online.sent == online.acked;
        // A page costs a read whatever it holds: wait until half of it is free.
        let worth_it = entries_max * 2 >= usize::from(online.credit_entries).min(DELIVER_ENTRIES_MAX)
            && bytes_max * 2 >= (online.credit_bytes as usize).min(DELIVER_BYTES_MAX);
        if !nothing_under_way && !worth_it {
            return;
        }
        let (device, after) = (online.device(), online.sent);
        let tag = self.begin_read(index);
        let (user, skip_device) = (device.user, device.device);
        self.want(Read::Inbox { tag, user, skip_device, after, entries_max, bytes_max });
    }

    /// The session's inbox is read from now on. Returns what is to come back with the result.
    pub(super) fn begin_read(&mut self, index: u32) -> u64 {
        let read = self.number_read();
        let online = self.directory.get_mut(index).expect("the caller found it");
        online.read = read;
        online.set(Flag::Reading, true);
        online.set(Flag::Missed, false);
        tag_of(read, index)
    }

    /// The session that began this read, if it is still there; it is over now.
    pub(super) fn end_read(&mut self, tag: u64) -> Option<u32> {
        let (read, index) = split_tag(tag);
        let online = self.directory.get_mut(index)?;
        if !online.is(Flag::Reading) || online.read != read {
            return None; // of an earlier session
        }
        online.set(Flag::Reading, false);
        Some(index)
    }

    /// A page from the log.
    pub(super) fn deliver_page(&mut self, tag: u64, page: Page, now_ms: u64) -> Result<(), EngineError> {
        let Some(index) = self.end_read(tag) else { return Ok(()) };
        let online = self.directory.get_mut(index).expect("found above");
        assert!(online.user() == page.user, "reads are numbered");
        let before = online.sent;
        if page.after > before || online.is(Flag::Held) {
            // The session was set back meanwhile: the page no longer joins on.
            self.pump_unless_hungry(index);
            return Ok(());
        }
        if page.through == page.after && !online.is(Flag::Missed) {
            online.set(Flag::Behind, false);
        }
        let mut entries = Vec::new();
        let mut is_cut = false;
        for entry in page.entries.into_iter().filter(|entry| entry.inbox_seq > before) {
            let under_way = self.windows.len(online);
            let fits = under_way < usize::from(online.credit_entries)
                && online.used_bytes + counted_bytes(&entry) <= online.credit_bytes;
            if under_way > 0 && !fits {
                is_cut = true;
                break;
            }
            self.windows.push(online, &entry);
            entries.push(entry);
        }
        if !entries.is_empty() {
            let (session, set_backs) = (online.address(), online.set_backs);
            self.tell(session, EffectKind::DeliverPage { online: index, set_backs, previous: before, entries });
        }
        let sent = self.directory.get(index).expect("found above").sent;
        if is_cut {
            return Ok(()); // there is an acknowledgement to come, and with it room: until then a read would find the same
        }
        if page.through > sent {
            self.step_over(index, sent, page.through, now_ms);
        }
        self.pump(index);
        Ok(())
    }

    /// Deliveries beyond `sent` did not reach the client: they come again from the log.
    pub(super) fn resume(&mut self, index: u32, sent: InboxSeq) {
        let online = self.directory.get(index).expect("the caller found it");
        if sent < online.sent {
            self.set_back(index, sent);
        }
        self.pump(index);
    }

    /// Nothing beyond `sent` has reached the session.
    fn set_back(&mut self, index: u32, sent: InboxSeq) {
        let (floor, lost_through) = self.floor_of(index);
        let gap = sent < lost_through;
        let online = self.directory.get_mut(index).expect("the caller found it");
        let reached = sent.max(online.acked);
        self.windows.rewind(online, reached);
        online.set_backs = online.set_backs.wrapping_add(1);
        online.set(Flag::Behind, true);
        if online.is(Flag::Reading) {
            online.set(Flag::Missed, true);
        }
        if floor > reached {
            online.sent = floor;
            if gap || online.window == NO_WINDOW {
                self.windows.acknowledge(online, floor);
            }
        }
        if sent < online.sent {
            let extra = self.extras.get_or_default(&mut self.directory, index);
            let owed = extra.owed.get_or_insert(Owed { from: sent, gap: false });
            owed.from = owed.from.min(sent);
            owed.gap |= owed.from < lost_through;
        }
        if let Some(extra) = self.extras.get(&self.directory, index)
            && let Sync::Begun { through, told } = &mut extra.sync
        {
            *told &= sent >= *through;
        }
        self.extras.settle(&mut self.directory, index);
        // Some of it may not be durable yet: the log is looked at again when it is.
        self.building.skipped.push(index);
    }

    /// Tells a session of the step that did not reach it.
    fn pay(&mut self, index: u32) {
        let Some(extra) = self.extras.get(&self.directory, index) else { return };
        let Some(Owed { from: previous, gap }) = extra.owed.take() else { return };
        self.extras.settle(&mut self.directory, index);
        let online = self.directory.get(index).expect("it has more about it");
        let (session, set_backs, through) = (online.address(), online.set_backs, online.sent);
        self.tell(session, step(index, set_backs, previous, through, gap));
    }

    /// Up to where the log does not hold what a session's device would be sent, and up to where that is lost to it: the
    /// rest some session of the device has acknowledged, or the device has sent it.
    fn floor_of(&mut self, index: u32) -> (InboxSeq, InboxSeq) {
        let device = self.directory.get(index).expect("the caller found it").device();
        match self.shards.user(&*self.engine, device.user, device.device) {
            Ok(View::Known(view)) => (view.floor, view.lost_through),
            // Who is cold has not changed.
            Ok(View::Waits(_)) | Err(_) => (InboxSeq(0), InboxSeq(0)),
        }
    }

    /// The floor of a user has risen: sessions below it are told that they go on there.
    pub(super) fn lift_sessions(&mut self, user: UserId, floor: InboxSeq) {
        for index in self.directory.sorted_of_user(user) {
            let (_, lost_through) = self.floor_of(index);
            let online = self.directory.get_mut(index).expect("just found");
            let gap = online.sent < lost_through;
            if online.sent >= floor {
                continue;
            }
            let (previous, session, set_backs) = (online.sent, online.address(), online.set_backs);
            online.sent = floor;
            // Whoever is told of a gap has acknowledged what precedes it: of what is under way we would never hear.
            if gap || online.window == NO_WINDOW {
                self.windows.acknowledge(online, floor);
            }
            online.set(Flag::Behind, true);
            if online.is(Flag::Reading) {
                online.set(Flag::Missed, true);
            }
            match self.extras.get(&self.directory, index).and_then(|extra| extra.owed.as_mut()) {
                Some(owed) => owed.gap |= gap,
                None => self.tell(session, step(index, set_backs, previous, floor, gap)),
            }
            // What is beyond the floor may not be durable yet.
            self.building.skipped.push(index);
        }
    }

    /// A delivery found no room in the reactor's mailbox: it will be read from the log, which is the queue.
    pub fn handle_refused(&mut self, effect: Effect) {
        let Effect { session, kind } = effect;
        let (index, of, previous) = match &kind {
            EffectKind::Deliver { online, set_backs, previous, .. }
            | EffectKind::DeliverPage { online, set_backs, previous, .. }
            | EffectKind::Skipped { online, set_backs, previous, .. }
            | EffectKind::Gap { online, set_backs, previous, .. } => (*online, *set_backs, *previous),
            EffectKind::SyncStart { online, .. } | EffectKind::SyncDone { online, .. } => {
                return self.handle_refused_sync(*online, session, kind);
            }
            EffectKind::Receipt { online, turn, after, .. } => {
                return self.handle_refused_receipt(*online, session, *turn, *after);
            }
            _ => return,
        };
        let Some(online) = self.directory.get_mut(index).filter(|online| online.address() == session) else {
            return;
        };
        // One from before the session was set back would not have joined on, and is made up for already.
        if of == online.set_backs && previous < online.sent {
            self.set_back(index, previous);
            self.hungry.insert((session.reactor, index));
        }
    }

    /// There is room at a reactor: its sessions whose deliveries found none read from the log. Whether there were any.
    pub fn feed_hungry(&mut self, reactor: u16) -> bool {
        let of_reactor = (reactor, 0)..=(reactor, u32::MAX);
        let fed: Vec<(u16, u32)> = self.hungry.extract_if(of_reactor, |_| true).collect();
        for (_, index) in &fed {
            self.pump(*index);
            self.pump_receipts(*index);
        }
        !fed.is_empty()
    }

    /// Whether deliveries were refused and not made up for.
    #[must_use]
    pub fn is_hungry(&self) -> bool {
        !self.hungry.is_empty()
    }
}
