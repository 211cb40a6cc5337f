//! Sessions come and go: who replaces whom, where a session starts, and what its user's other sessions are told.

use culver_protocol::id::{InboxSeq, Incarnation, UserId};
use culver_protocol::limits::FETCH_SESSIONS_MAX;
use culver_storage::command::{Decision, UserView, View};
use culver_storage::error::EngineError;
use culver_storage::record::Record;

use super::command::{Address, Command, Device};
use super::directory::Flag;
use super::effect::EffectKind;
use super::extra::Sync;
use super::{Hub, Tried};

/// Where a session starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Start {
    /// The hub reads on from here.
    from: InboxSeq,
    /// The session stands here: up to here the client has everything by its own account.
    cursor: InboxSeq,
    reset: bool,
    gap: bool,
}

impl Start {
    /// From what the client claims and what is known. `is_new`: the device has only now got its cursor.
    fn new(claim: InboxSeq, is_stranger: bool, is_new: bool, known: &UserView) -> Self {
        let from = known.cursor;
        if claim > known.head || (is_stranger && claim > InboxSeq(0)) {
            return Self { from, cursor: from, reset: true, gap: false };
        }
        // A device that has its cursor has acknowledged what precedes it, or sent it itself.
        let lost = if is_new { from } else { known.lost_through };
        let gap = claim > InboxSeq(0) && claim < lost;
        Self { from, cursor: from.max(claim), reset: false, gap }
    }
}

impl Hub {
    pub(super) fn login(&mut self, arrival: u64, login: &Command, now_ms: u64) -> Result<Tried, EngineError> {
        let Command::Login { session, device, cursor, incarnation, credit, fetch, receipts } = login else {
            unreachable!("the caller has looked");
        };
        let (session, device, is_fetch) = (*session, *device, *fetch);
        let mut is_new = false;
        match self.shards.decide_link(&*self.engine, device.user, device.device, now_ms)? {
            Decision::Apply(record) => {
                is_new = matches!(record, Record::DeviceLinked { .. });
                self.shards.apply(&record);
            }
            Decision::Waits(load) => return Ok(Tried::Waits(load)),
            Decision::Reject(code) => {
                self.tell(session, EffectKind::Refused(code));
                return Ok(Tried::Done);
            }
            Decision::Duplicate(_) | Decision::Unchanged => {}
        }
        let known = match self.shards.user(&*self.engine, device.user, device.device)? {
            View::Known(view) => view,
            View::Waits(load) => return Ok(Tried::Waits(load)),
        };
        self.replace(device, is_fetch);
        let is_stranger = *incarnation != Incarnation(0) && *incarnation != self.incarnation;
        let start = Start::new(*cursor, is_stranger, is_new, &known);
        let index = self.directory.insert(device, session, start.from, is_fetch);
        let online = self.directory.get_mut(index).expect("just inserted");
        online.credit_entries = credit.entries;
        online.credit_bytes = credit.bytes;
        let Start { from, cursor, reset, gap } = start;
        self.tell(session, EffectKind::LoggedIn { cursor, reset, gap, siblings: known.siblings });
        if is_fetch || from < known.head {
            let extra = self.extras.get_or_default(&mut self.directory, index);
            extra.arrival = arrival;
            extra.claimed = if cursor > from { cursor } else { InboxSeq(0) };
            if cursor < known.head {
                extra.sync = Sync::Wanted;
            }
            self.extras.settle(&mut self.directory, index);
        }
        if from < known.head {
            // The newest may not be durable yet; what is not will be skipped as "missed" when it is.
            self.building.skipped.push(index);
        }
        let told = if reset || *receipts > known.receipts_head { 0 } else { *receipts };
        if told < known.receipts_head {
            self.miss_receipts(index, told);
        }
        if is_new && known.siblings {
            self.tell_siblings(device.user, |other| other != device, true);
        }
        Ok(Tried::Done)
    }

    /// A new session of a device takes the place of the exclusive one, or of the oldest fetch session if there are as
    /// many as there may be.
    fn replace(&mut self, device: Device, is_fetch: bool) {
        let older = if is_fetch { self.oldest_fetch(device) } else { self.directory.find(device) };
        if let Some(older) = older {
            let older = self.remove_session(older);
            self.tell(older, EffectKind::Replaced);
        }
    }

    fn oldest_fetch(&mut self, device: Device) -> Option<u32> {
        let is_fetch = |index: &u32| {
            self.directory.get(*index).is_some_and(|online| online.device() == device && online.is(Flag::Fetch))
        };
        let all: Vec<u32> = self.directory.of_user(device.user).filter(is_fetch).collect();
        if all.len() < FETCH_SESSIONS_MAX {
            return None;
        }
        all.into_iter().min_by_key(|index| self.extras.get(&self.directory, *index).map(|extra| extra.arrival))
    }

    /// Tells sessions of a user whether there are other devices.
    pub(super) fn tell_siblings(&mut self, user: UserId, is_meant: impl Fn(Device) -> bool, siblings: bool) {
        let sessions: Vec<u32> = self.directory.of_user(user).collect();
        for index in sessions {
            let online = self.directory.get(index).expect("just found");
            if is_meant(online.device()) {
                let session = online.address();
                self.tell(session, EffectKind::Siblings(siblings));
            }
        }
    }

    pub(super) fn close(&mut self, session: Address, device: Device) {
        if let Some(index) = self.directory.current(device, session) {
            self.remove_session(index);
        }
        self.rejected.remove(&session);
        self.tell(session, EffectKind::Closed);
    }

    fn remove_session(&mut self, index: u32) -> Address {
        let online = self.directory.get_mut(index).expect("the caller found it");
        self.windows.release(online);
        let online = self.directory.remove(index).expect("the caller found it");
        if online.is(Flag::Extra) {
            self.extras.remove(index);
        }
        online.address()
    }
}
