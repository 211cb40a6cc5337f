//! What always holds: a model of what was asked, told, persisted and read, held against everything that devices see.
//!
//! Checks that cost little are made as events come; what only shows when all is quiet is checked at the end. Owns no
//! device and no server, and never looks into either. A broken promise is a panic that says which, in plain words.

mod devices;
mod end;
mod inboxes;
mod logins;
mod messages;
mod receipts;
mod requests;
#[cfg(test)]
mod tests;
mod witness;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use culver::buckets::Limit;
use culver_protocol::id::{ConversationId, DeviceId, UserId};

pub(crate) use self::end::Known;
use self::inboxes::User;
pub(crate) use self::messages::MessageIndex;
use self::messages::{Message, Talk};
pub(crate) use self::witness::{Asked, Witness};
use crate::device::{DeviceKey, Name};

/// What of the promises a world's plan weakens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Entries that have waited for this long, in microseconds of monotonic time, may be dropped: a GAP says so, and
    /// nobody misses them.
    pub expires_after_us: Option<u64>,
    /// Devices that were away may be unlinked: a GAP says so, and they begin anew at the head.
    pub may_unlink: bool,
    /// The operator lets senders be told what was delivered and read.
    pub receipts: bool,
    pub is_encrypted: bool,
    /// The server takes no ticket as these devices show them.
    pub tickets_refused: bool,
    /// The clock on the wall jumps: what is good for a time may not be.
    pub clock_jumps: bool,
    /// Connections are refused where too many come at once.
    pub are_logins_limited: bool,
    /// How often a user may log in.
    pub user_logins: Option<Limit>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            expires_after_us: None,
            may_unlink: false,
            receipts: true,
            is_encrypted: false,
            tickets_refused: false,
            clock_jumps: false,
            are_logins_limited: false,
            user_logins: None,
        }
    }
}

impl Terms {
    fn may_gap(&self) -> bool {
        self.expires_after_us.is_some() || self.may_unlink
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Oracle {
    terms: Terms,
    /// Counts what happens: of two events the one with the lesser number was earlier.
    order: u64,
    messages: Vec<Message>,
    talks: BTreeMap<ConversationId, Talk>,
    users: Vec<User>,
    /// Which message has a message id.
    ids: HashMap<u64, MessageIndex>,
    /// Of each shard, the greatest message id known from a time on; both ascend.
    shards: BTreeMap<u64, Vec<(u64, u64)>>,
    /// Since then every device is known to all sessions of its user.
    known_since: u64,
    /// What came to pass.
    pub tally: Tally,
    /// What applications do and see, for people, if anybody reads it.
    notes: Option<Vec<String>>,
}

/// How often came to pass what is rare: a world in which it never does proves nothing of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Clients were told that there are too many logins at once.
    pub logins_busy: u64,
    /// Devices were removed, and named.
    pub removals: u64,
    pub names: u64,
    /// Clients whose server key was not in use any more learned the new one, and got in by it.
    pub keys_learned: u64,
    /// Connections waited until a process ran.
    pub waited: u64,
    /// Networks forgot connections in a long silence.
    pub forgotten: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.logins_busy += other.logins_busy;
        self.removals += other.removals;
        self.names += other.names;
        self.keys_learned += other.keys_learned;
        self.waited += other.waited;
        self.forgotten += other.forgotten;
    }
}

impl Oracle {
    /// A model of a world in which nothing has happened.
    pub(crate) fn new(terms: Terms) -> Self {
        Self {
            terms,
            order: 0,
            messages: Vec::new(),
            talks: BTreeMap::new(),
            users: Vec::new(),
            ids: HashMap::new(),
            shards: BTreeMap::new(),
            known_since: 0,
            tally: Tally::default(),
            notes: None,
        }
    }

    /// Somebody wants to read what applications do and see.
    pub(crate) fn take_notes(&mut self) {
        self.notes = Some(Vec::new());
    }

    /// What was noted since.
    pub(crate) fn notes(&mut self) -> impl Iterator<Item = String> {
        self.notes.iter_mut().flat_map(std::mem::take)
    }

    /// Notes what an application does or sees.
    #[inline]
    pub(crate) fn note(&mut self, who: Name, line: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.notes {
            notes.push(format!("  {who} {}", line()));
        }
    }

    /// Everything has come to rest, and all devices are there: from now on every device is known to all sessions of its
    /// user.
    pub(crate) fn everything_is_known(&mut self) {
        self.known_since = self.next();
        self.nobody_is_doubted();
    }

    fn next(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    fn user(&self, id: UserId) -> Option<&User> {
        self.users.iter().find(|user| user.id == id)
    }

    fn user_index(&mut self, id: UserId) -> usize {
        self.users.iter().position(|user| user.id == id).unwrap_or_else(|| {
            self.users.push(User::new(id));
            self.users.len() - 1
        })
    }

    /// Where a device stands among its user's; it is new if it was never named before.
    fn device_index(&mut self, key: DeviceKey) -> (usize, usize) {
        let user = self.user_index(key.user);
        (user, self.users[user].device_index(key.device))
    }
}

/// A side of a direct conversation: the lesser user's, or the greater's.
fn side_of(conversation: ConversationId, user: UserId) -> usize {
    usize::from(conversation.direct_users().is_some_and(|(lesser, _)| lesser != user))
}

/// Where a number that counts from 1 stands in a list of what is counted.
fn slot(number: u64) -> usize {
    usize::try_from(number).expect("a machine of 64 bits") - 1
}

fn word_of(number: u64) -> usize {
    usize::try_from(number / 64).expect("a machine of 64 bits")
}

/// A set of numbers, none of them great.
#[derive(Clone, Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, number: u64) {
        let at = word_of(number);
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        self.0[at] |= 1 << (number % 64);
    }

    fn has(&self, number: u64) -> bool {
        self.0.get(word_of(number)).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }
}

/// A process, in words.
#[derive(Clone, Copy)]
struct Who {
    key: DeviceKey,
    fetch: bool,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.fetch { "a fetching process of " } else { "" };
        write!(f, "{what}device {} of user {}", self.key.device, self.key.user)
    }
}

/// Where something was learned, in words.
#[derive(Clone, Copy)]
enum How {
    Answer,
    /// It was shown to this process.
    Shown(Who),
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer => f.write_str("its answer"),
            Self::Shown(who) => write!(f, "what {who} was shown"),
        }
    }
}

/// A device, in words.
fn name(user: UserId, device: DeviceId) -> Who {
    Who { key: DeviceKey { user, device }, fetch: false }
}
