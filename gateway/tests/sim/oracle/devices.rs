//! Which devices a user has, and what they are called: who was removed, what of theirs is void since then, and names.
//!
//! From the moment a removal is asked for nothing is certain of its device, until the removal is answered, or surely came
//! to nothing, and the device has begun another connection after that.

use culver_protocol::error::ErrorCode;
use culver_protocol::id::DeviceId;
use culver_protocol::limits::DEVICE_NAME_LEN_MAX;
use culver_protocol::proto;

use super::inboxes::{Linked, User};
use super::{Asked, Bits, Oracle, Who, Witness};
use crate::device::DeviceKey;

/// A removal that was answered: between these two it was done.
#[derive(Clone, Copy, Debug)]
struct Gone {
    asked: u64,
    answered: u64,
}

/// A name that was asked for; nothing was, at the beginning and where a device is removed.
#[derive(Clone, Debug)]
struct Naming {
    name: String,
    asked: u64,
    /// `None`: it is under way, or nobody was told what became of it.
    answered: Option<u64>,
}

/// Whether a device is linked, as far as that is certain.
#[derive(Debug)]
pub(super) struct Standing {
    /// Removals of it that may still be done.
    open: u32,
    /// Removals that were ever asked for.
    asks: u32,
    /// When the last removal was asked for, or was over.
    doubted: u64,
    gone: Option<Gone>,
    /// When the last token was made with which it may register.
    token: u64,
    /// How often it began anew, with another key, and when it last did.
    era: u32,
    renewed: u64,
    names: Vec<Naming>,
}

impl Default for Standing {
    fn default() -> Self {
        let unnamed = Naming { name: String::new(), asked: 0, answered: Some(0) };
        Self { open: 0, asks: 0, doubted: 0, gone: None, token: 0, era: 0, renewed: 0, names: vec![unnamed] }
    }
}

impl Standing {
    /// Which of its lives with a key it is in.
    pub(super) fn era(&self) -> u32 {
        self.era
    }

    /// Whether what a process of it sees on its connection tells of the present.
    pub(super) fn is_sure_of(&self, witness: &Witness) -> bool {
        self.open == 0 && self.doubted < witness.began && self.era == witness.era
    }

    /// Whether what it had was void when something happened: it was removed before, and there was no token since.
    fn was_void_at(&self, order: u64) -> bool {
        self.gone.is_some_and(|gone| gone.answered < order && self.token < gone.asked)
    }

    /// Whether nobody ever wanted it removed.
    pub(super) fn is_undoubted(&self) -> bool {
        self.asks == 0
    }

    /// Whether a removal may have met what this process began.
    fn may_have_met(&self, witness: &Witness) -> bool {
        self.open > 0 || witness.began < self.doubted || self.era != witness.era
    }

    fn note_name(&mut self, name: &str, asked: u64) {
        self.names.push(Naming { name: name.to_owned(), asked, answered: None });
    }

    /// What was asked then was done, and that was told now.
    fn name_told(&mut self, asked: u64, order: u64) {
        let naming = self.names.iter_mut().find(|naming| naming.asked == asked);
        naming.expect("it was noted when it was asked").answered = Some(order);
    }

    /// It was not done.
    fn name_refused(&mut self, asked: u64) {
        self.names.retain(|naming| naming.asked != asked);
    }

    /// Whether a list that was asked for then may show this name now.
    fn may_be_called(&self, name: &str, asked: u64) -> bool {
        let is_over = |naming: &Naming| {
            let later = |other: &Naming| naming.answered.is_some_and(|answered| answered < other.asked);
            self.names.iter().any(|other| later(other) && other.answered.is_some_and(|answered| answered < asked))
        };
        self.names.iter().any(|naming| naming.name == name && !is_over(naming))
    }
}

impl User {
    /// Somebody once wanted one of its devices removed.
    pub(super) fn is_restless(&self) -> bool {
        self.devices.iter().any(|linked| !linked.standing.is_undoubted())
    }

    fn find(&self, device: DeviceId) -> Option<&Linked> {
        self.devices.iter().find(|linked| linked.device == device)
    }
}

impl Oracle {
    fn standing(&mut self, key: DeviceKey) -> &mut Standing {
        let (user, device) = self.device_index(key);
        &mut self.users[user].devices[device].standing
    }

    /// A device gets a token, with which it may register.
    pub(crate) fn token_issued(&mut self, key: DeviceKey) {
        let order = self.next();
        self.standing(key).token = order;
    }

    /// A device has heard that it was removed, and forgets everything: it will begin anew, with another key.
    pub(crate) fn renewed(&mut self, key: DeviceKey) {
        let order = self.next();
        let (user, device) = self.device_index(key);
        let linked = &mut self.users[user].devices[device];
        (linked.stored, linked.claimed, linked.gap) = (Bits::default(), 0, 0);
        linked.doubt();
        linked.standing.era += 1;
        linked.standing.renewed = order;
    }

    /// An application wants a device removed.
    pub(super) fn ask_removal(&mut self, witness: &Witness, device: u32, order: u64) -> Asked {
        let device = DeviceId(u16::try_from(device).expect("applications know numbers"));
        let user = &mut self.users[witness.at.0];
        let mut surely = None;
        if let Some(linked) = user.devices.iter_mut().find(|linked| linked.device == device) {
            let standing = &mut linked.standing;
            (standing.open, standing.asks, standing.doubted) = (standing.open + 1, standing.asks + 1, order);
            standing.note_name("", order);
            surely = linked.evidence.map(|_| linked.standing.asks);
            linked.doubt();
        }
        // Where the inbox begins for whom, nobody knows any more.
        user.devices.iter_mut().for_each(|linked| linked.not_before = 0);
        Asked::Removal { device, order, surely }
    }

    /// An application gives a device a name.
    pub(super) fn ask_name(&mut self, witness: &Witness, named: &proto::NameDevice, order: u64) -> Asked {
        let device = DeviceId(u16::try_from(named.device).expect("applications know numbers"));
        let user = &mut self.users[witness.at.0];
        if let Some(linked) = user.devices.iter_mut().find(|linked| linked.device == device) {
            linked.standing.note_name(&named.name, order);
        }
        Asked::Name { device, len: named.name.len(), order }
    }

    /// A removal is over, and may have been done.
    pub(super) fn close_removal(&mut self, user: usize, device: DeviceId) {
        let order = self.next();
        let Some(linked) = self.users[user].devices.iter_mut().find(|linked| linked.device == device) else { return };
        linked.standing.open -= 1;
        linked.standing.doubted = order;
        linked.doubt();
    }

    /// A device was removed.
    pub(super) fn removed(&mut self, witness: &Witness, device: DeviceId, asked: u64, who: Who) {
        self.check_there(witness, device, asked, who);
        self.close_removal(witness.at.0, device);
        let answered = self.order;
        let linked = self.users[witness.at.0].devices.iter_mut().find(|linked| linked.device == device);
        let standing = &mut linked.expect("it was there").standing;
        standing.gone = Some(Gone { asked, answered });
        standing.name_told(asked, answered);
        self.tally.removals += 1;
    }

    /// A device has a name.
    pub(super) fn named(&mut self, witness: &Witness, (device, len): (DeviceId, usize), asked: u64, who: Who) {
        assert!(len <= DEVICE_NAME_LEN_MAX, "a name has its length: {who} gave {device} one of {len} bytes");
        self.check_there(witness, device, asked, who);
        let order = self.next();
        let linked = self.users[witness.at.0].devices.iter_mut().find(|linked| linked.device == device);
        linked.expect("it was there").standing.name_told(asked, order);
        self.tally.names += 1;
    }

    /// What was done with a device at this time was done with one that was there.
    fn check_there(&self, witness: &Witness, device: DeviceId, asked: u64, who: Who) {
        let linked = self.users[witness.at.0].find(device);
        assert!(
            linked.is_some_and(|linked| linked.tried.is_some()),
            "only who has logged in is linked: {who} removed or named {device}"
        );
        let is_void = linked.is_some_and(|linked| linked.standing.was_void_at(asked));
        assert!(!is_void, "who was removed is gone: {who} removed or named {device} a second time");
    }

    /// A wish about a device was refused. Whether that is fair.
    pub(super) fn is_refused_fairly(&mut self, witness: &Witness, asked: &Asked, code: u32) -> bool {
        let is = |expected: ErrorCode| expected.number() == code;
        match *asked {
            Asked::Removal { device, order, surely } => {
                self.close_removal(witness.at.0, device);
                let linked = self.users[witness.at.0].devices.iter_mut().find(|linked| linked.device == device);
                let asks = linked.map(|linked| {
                    linked.standing.name_refused(order);
                    linked.standing.asks
                });
                let is_known = surely.is_some() && surely == asks && !self.terms.may_unlink;
                is(ErrorCode::DeviceNotFound) && !is_known
            }
            Asked::Name { device, len, order } => {
                let user = &mut self.users[witness.at.0];
                let linked = user.devices.iter_mut().find(|linked| linked.device == device);
                let mut is_known = false;
                if let Some(linked) = linked {
                    linked.standing.name_refused(order);
                    is_known = linked.evidence.is_some_and(|evidence| evidence < order) && !self.terms.may_unlink;
                }
                let is_long = len > DEVICE_NAME_LEN_MAX;
                (is(ErrorCode::NameTooLong) && is_long) || (is(ErrorCode::DeviceNotFound) && !is_long && !is_known)
            }
            _ => false,
        }
    }

    /// Something came to a process of a device that only comes to one that is linked, because of what happened then.
    pub(super) fn check_void(&self, witness: &Witness, cause: u64) {
        let standing = &self.users[witness.at.0].devices[witness.at.1].standing;
        let is_old = standing.era != witness.era && standing.renewed < cause;
        assert!(
            !is_old && !standing.was_void_at(cause),
            "who was removed gets nothing: {} got what came to be at {cause}, and {standing:?}",
            witness.name()
        );
    }

    /// What a list shows of a device was so, some time since it was asked for.
    pub(super) fn check_shown(&self, user: &User, info: &proto::Device, asked: u64, who: Who) {
        let Some(linked) = user.devices.iter().find(|linked| u32::from(linked.device.0) == info.device) else { return };
        let standing = &linked.standing;
        assert!(!standing.was_void_at(asked), "who was removed is gone: {who} was listed {info:?}, and {standing:?}");
        let is_forgotten = self.terms.may_unlink && info.name.is_empty();
        assert!(
            is_forgotten || standing.may_be_called(&info.name, asked),
            "a device has the name that it was given: {who} was listed {info:?}, and {standing:?}"
        );
    }

    /// Whether a server may say so of a device, or of what it has shown, on account of removals.
    pub(super) fn may_be_removed(&self, witness: &Witness, code: ErrorCode) -> bool {
        let user = &self.users[witness.at.0];
        let linked = &user.devices[witness.at.1];
        let standing = &linked.standing;
        let is_strange = standing.era != witness.era;
        match code {
            ErrorCode::DeviceRemoved => standing.asks > 0 && standing.may_have_met(witness),
            // A token from before a removal of any of the user's devices. Whoever fetches has the one of its beginning.
            ErrorCode::TokenExpired => {
                let mut others = user.devices.iter().map(|linked| &linked.standing);
                let is_old = is_strange || (witness.fetch && user.is_restless());
                is_old || others.any(|other| other.open > 0 || standing.token < other.doubted)
            }
            // A ticket from before one: its hub says so, once it has seen what the ticket names.
            ErrorCode::TicketStale => witness.is_greeted && user.devices.iter().any(|linked| linked.standing.asks > 0),
            // What another of its keys began, or what is left of its own.
            ErrorCode::DeviceUnknown | ErrorCode::Replaced => is_strange,
            _ => false,
        }
    }

    /// All devices are there: no removal is under way any more.
    pub(super) fn nobody_is_doubted(&mut self) {
        let order = self.order;
        let devices = self.users.iter_mut().flat_map(|user| &mut user.devices);
        for linked in devices.filter(|linked| !linked.standing.is_undoubted()) {
            (linked.standing.open, linked.standing.doubted) = (0, 0);
            linked.evidence.get_or_insert(order);
            linked.last_evidence.get_or_insert(order);
        }
    }
}

impl Linked {
    /// Nothing is certain any more of whether it is linked, and since when.
    fn doubt(&mut self) {
        (self.evidence, self.last_evidence, self.is_first, self.first) = (None, None, false, 0);
    }
}
