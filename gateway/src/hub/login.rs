//! Sessions come and go: who replaces whom, where a session starts, and what its user's other sessions are told.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{InboxSeq, Incarnation, UserId};
use culver_protocol::limits::FETCH_SESSIONS_MAX;
use culver_storage::command::{Decision, UserView, View};
use culver_storage::error::EngineError;
use culver_storage::planted::{self, Bug};
use culver_storage::record::Record;

use super::command::{Address, Command, Device};
use super::directory::Flag;
use super::effect::EffectKind;
use super::extra::Sync;
use super::{Hub, Tried};

/// Why a login is refused, and for how long; 0: nobody knows.
struct Refusal {
    code: ErrorCode,
    retry_after_ms: u32,
}

/// How a login joins on to what the client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joint {
    /// It claims something that cannot be.
    Reset,
    /// What follows its claim is no longer kept.
    Gap,
    Joins,
}

/// The device has acknowledged what precedes its cursor, or sent it itself, unless that expired or the device was
/// linked anew, and it has acknowledged nothing since.
fn joint(claim: InboxSeq, is_stranger: bool, known: &UserView) -> Joint {
    match claim {
        InboxSeq(0) => Joint::Joins,
        _ if is_stranger || claim > known.head => Joint::Reset,
        _ if claim < known.lost_through => Joint::Gap,
        _ => Joint::Joins,
    }
}

impl Hub {
    pub(super) fn login(&mut self, arrival: u64, login: &Command, now_ms: u64) -> Result<Tried, EngineError> {
        let Command::Login { session, device, cursor: claim, incarnation, credit, fetch, receipts, .. } = login else {
            unreachable!("the caller has looked");
        };
        let (session, device, is_fetch) = (*session, *device, *fetch);
        let is_new = match self.let_in(login, now_ms)? {
            View::Known(Ok(is_new)) => is_new,
            View::Known(Err(Refusal { code, retry_after_ms })) => {
                self.shards.let_pass(device.user);
                self.tell(session, EffectKind::Refused { code, retry_after_ms });
                return Ok(Tried::Done);
            }
            View::Waits(load) => return Ok(Tried::Waits(load)),
        };
        let known = match self.shards.user(&*self.engine, device.user, device.device)? {
            View::Known(view) => view,
            View::Waits(load) => return Ok(Tried::Waits(load)),
        };
        self.logins.charge(device.user);
        self.replace(device, is_fetch);
        let joint = joint(*claim, self.is_strange(*incarnation), &known);
        let index = self.directory.insert(device, session, known.cursor, is_fetch);
        let online = self.directory.get_mut(index).expect("just inserted");
        online.credit_entries = credit.entries;
        online.credit_bytes = credit.bytes;
        let (reset, gap) = (joint == Joint::Reset, joint == Joint::Gap && !planted::is(Bug::GapUntold));
        self.tell(session, EffectKind::LoggedIn { cursor: known.cursor, reset, gap, siblings: known.siblings });
        let has = if reset { known.cursor } else { known.cursor.max(*claim) };
        if is_fetch || has < known.head {
            let extra = self.extras.get_or_default(&mut self.directory, index);
            extra.arrival = arrival;
            if has < known.head {
                extra.sync = Sync::Wanted(has);
            }
            self.extras.settle(&mut self.directory, index);
        }
        if known.cursor < known.head {
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
        self.shards.let_pass(device.user);
        Ok(Tried::Done)
    }

    /// Links and registers the device, as far as its login may: whether it is new, or why it is refused, and for how many
    /// milliseconds if that will pass.
    fn let_in(&mut self, login: &Command, now_ms: u64) -> Result<View<Result<bool, Refusal>>, EngineError> {
        let Command::Login { session, device, cursor, incarnation, fetch, fingerprint, proof, .. } = login else {
            unreachable!("the caller has looked");
        };
        let (user, number) = (device.user, device.device);
        // First of all, so that who has not the right key is told nothing else.
        let decision = self.shards.decide_link(&*self.engine, user, number, *fingerprint, *proof, now_ms)?;
        match &decision {
            Decision::Waits(load) => return Ok(View::Waits(*load)),
            Decision::Reject(code) => {
                if planted::is(Bug::LoginChargedBeforeKey) {
                    self.logins.charge(user);
                }
                return Ok(View::Known(Err(Refusal { code: *code, retry_after_ms: 0 })));
            }
            Decision::Apply(_) | Decision::Duplicate(_) | Decision::Unchanged => {}
        }
        if !fetch && self.has_newer(*device, *session) {
            return Ok(View::Known(Err(Refusal { code: ErrorCode::Replaced, retry_after_ms: 0 })));
        }
        // Of who has the key: nobody else spends what a user has.
        if let Some(retry_after_ms) = self.logins.wait_ms(user) {
            self.counts.logins_limited += 1;
            return Ok(View::Known(Err(Refusal { code: ErrorCode::LoginsBusy, retry_after_ms })));
        }
        let Decision::Apply(record) = decision else { return Ok(View::Known(Ok(false))) };
        self.shards.apply(&record);
        if let Record::DeviceRegistered { replaces: true, .. } = record {
            // What another key began is over, the sessions that fetch too.
            self.end_sessions(*device, &EffectKind::Replaced);
        }
        let is_new = matches!(record, Record::DeviceLinked { .. });
        if is_new && !self.is_strange(*incarnation) {
            let waits = self.return_cursor(*device, *cursor, now_ms)?;
            assert!(waits.is_none(), "whoever was just linked is in memory");
        }
        Ok(View::Known(Ok(is_new)))
    }

    /// Whether a client's cursor is of other data than this.
    fn is_strange(&self, incarnation: Incarnation) -> bool {
        incarnation != Incarnation(0) && incarnation != self.incarnation
    }

    /// Whether a session that began later is there already: reactors are heard in turn, and not in the order in which
    /// their clients came.
    fn has_newer(&self, device: Device, session: Address) -> bool {
        let current = self.directory.find(device).and_then(|index| self.directory.get(index));
        current.is_some_and(|current| current.address().is_newer_than(session))
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
        for index in self.directory.sorted_of_user(user) {
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

    pub(super) fn remove_session(&mut self, index: u32) -> Address {
        let online = self.directory.get_mut(index).expect("the caller found it");
        self.windows.release(online);
        let online = self.directory.remove(index).expect("the caller found it");
        if online.is(Flag::Extra) {
            self.extras.remove(index);
        }
        online.address()
    }
}
