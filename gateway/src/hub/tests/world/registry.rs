//! Who may log in, as the answers say: replies of a hub come in the order in which it decided, so each is checked
//! against those before it. After a restart the disk says what was decided last: all that was told is there, and nothing
//! that nobody asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, UserId};
use culver_protocol::limits::DEVICE_NAME_LEN_MAX;
use culver_storage::engine::{Engine, Family, Lookup, Tier};
use culver_storage::key::{self, ShardId};
use culver_storage::value::{NameRow, UserRow};

use crate::hub::command::{Command, Device, Fingerprint, Proof, Request};
use crate::hub::effect::DeviceInfo;

/// One device that is linked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Linked {
    key: Option<Fingerprint>,
    name: String,
}

/// What was told last of a user's devices.
#[derive(Clone, Debug, Default)]
struct Known {
    devices: BTreeMap<DeviceId, Linked>,
    /// Tokens issued before the first register nothing, and from the second on they do. What lies between hangs on when
    /// exactly a removal was decided.
    tokens_from_s: (u64, u64),
}

/// Something that a hub was asked and has not answered.
#[derive(Clone, Debug)]
enum Asked {
    Login { device: DeviceId, key: Option<Fingerprint>, proof: Proof },
    Remove { device: DeviceId, at_s: u64 },
    Name { device: DeviceId, name: String },
}

/// What became of a login.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LetIn {
    /// The device was not linked before.
    pub(super) linked: bool,
    /// It had another key before.
    pub(super) replaced: bool,
}

#[derive(Default)]
pub(super) struct Registry {
    users: BTreeMap<UserId, Known>,
    /// By number: slots of logins, numbers of requests.
    logins: BTreeMap<u32, (UserId, Asked)>,
    requests: BTreeMap<u64, (UserId, Asked)>,
    /// Answers were taken away unseen: what was told last is not known.
    pub(super) is_blind: bool,
}

impl Registry {
    /// Something was asked of a hub.
    pub(super) fn asked(&mut self, command: &Command, now_ms: u64) {
        match command {
            Command::Login { session, device: Device { user, device }, fingerprint, proof, .. } => {
                let asked = Asked::Login { device: *device, key: *fingerprint, proof: *proof };
                self.logins.insert(session.slot, (*user, asked));
            }
            Command::Rpc { device: Device { user, .. }, id, request, .. } => {
                let asked = match request {
                    Request::RemoveDevice { device } => Asked::Remove { device: *device, at_s: now_ms / 1000 },
                    Request::NameDevice { device, name } => Asked::Name { device: *device, name: name.clone() },
                    _ => return,
                };
                self.requests.insert(*id, (*user, asked));
            }
            _ => {}
        }
    }

    /// Whether a request is a removal or a naming that was not answered.
    pub(super) fn is_asked(&self, id: u64) -> bool {
        self.requests.contains_key(&id)
    }

    /// A login was answered.
    pub(super) fn login_told(&mut self, slot: u32, result: Result<(), ErrorCode>) -> LetIn {
        let (user, asked) = self.logins.remove(&slot).expect("a login is answered once");
        let Asked::Login { device, key, proof } = asked else { panic!("{asked:?}") };
        if self.is_blind {
            return LetIn::default();
        }
        let known = self.users.entry(user).or_default();
        let before = known.devices.get(&device);
        let (never, surely) = known.tokens_from_s;
        let unknown = Err(ErrorCode::DeviceUnknown);
        let is_registered = before.is_some_and(|of| key.is_some() && of.key == key);
        let unless_void = |issued_s, code| match issued_s {
            issued_s if issued_s < never => Err(code),
            issued_s if issued_s < surely && result.is_err() => Err(code),
            _ => Ok(()),
        };
        let expected = match proof {
            Proof::PlaintextTicket { .. } if before.is_none() => unknown,
            Proof::Registered | Proof::Ticket { .. } if !is_registered => unknown,
            Proof::Token { .. } if key.is_none() => unknown,
            Proof::Registered => Ok(()),
            Proof::PlaintextTicket { issued_s } | Proof::Ticket { issued_s } => {
                unless_void(issued_s, ErrorCode::TicketStale)
            }
            Proof::Token { issued_s } | Proof::PlaintextToken { issued_s } => {
                unless_void(issued_s, ErrorCode::TokenExpired)
            }
        };
        assert_eq!(result, expected, "user {user} device {device} with {key:?} and {proof:?}: {known:?}");
        if result.is_err() {
            return LetIn::default();
        }
        let linked = before.is_none();
        let of = known.devices.entry(device).or_default();
        let registers = matches!(proof, Proof::Token { .. });
        let replaced = registers && of.key.is_some() && of.key != key;
        if registers {
            of.key = key;
        }
        LetIn { linked, replaced }
    }

    /// A removal or a naming was answered: the device that was removed.
    pub(super) fn request_told(&mut self, id: u64, result: Result<(), ErrorCode>, now_ms: u64) -> Option<Device> {
        let (user, asked) = self.requests.remove(&id).expect("a request is answered once");
        if self.is_blind || matches!(result, Err(ErrorCode::Replaced | ErrorCode::Busy)) {
            return None;
        }
        let known = self.users.entry(user).or_default();
        let (device, name) = match &asked {
            Asked::Remove { device, .. } => (*device, ""),
            Asked::Name { device, name } => (*device, name.as_str()),
            Asked::Login { .. } => panic!("{asked:?}"),
        };
        let expected = match known.devices.get_mut(&device) {
            _ if name.len() > DEVICE_NAME_LEN_MAX => Err(ErrorCode::NameTooLong),
            None => Err(ErrorCode::DeviceNotFound),
            Some(of) => {
                of.name = name.to_owned();
                Ok(())
            }
        };
        assert_eq!(result, expected, "user {user}: {asked:?} {known:?}");
        let Asked::Remove { at_s, .. } = asked else { return None };
        result.ok()?;
        known.devices.remove(&device);
        let (never, surely) = known.tokens_from_s;
        known.tokens_from_s = (never.max(at_s + 1), surely.max(now_ms / 1000 + 1));
        Some(Device { user, device })
    }

    /// A list of a user's devices was told.
    pub(super) fn list_told(&self, user: UserId, list: &[DeviceInfo]) {
        if self.is_blind {
            return;
        }
        let known = self.users.get(&user).map(|known| &known.devices);
        let known: Vec<_> =
            known.into_iter().flatten().map(|(device, of)| (*device, of.key.is_some(), &of.name)).collect();
        let told: Vec<_> = list.iter().map(|info| (info.device, info.registered, &info.name)).collect();
        assert_eq!(told, known, "user {user}");
    }

    /// Whether a user has other devices than this one, and will have them.
    pub(super) fn has_siblings(&self, of: Device) -> bool {
        let devices = self.users.get(&of.user).map_or(0, |known| known.devices.len());
        let is_removal = |(user, asked): &(UserId, Asked)| *user == of.user && matches!(asked, Asked::Remove { .. });
        devices > 1 && !self.requests.values().any(is_removal)
    }

    /// The server has begun anew on this disk. Returns the devices that came or went without anybody's being told.
    pub(super) fn begin_anew(&mut self, engine: &dyn Engine, shard_count: u16, now_ms: u64) -> Vec<Device> {
        let asked: Vec<(UserId, Asked)> = std::mem::take(&mut self.logins)
            .into_values()
            .chain(std::mem::take(&mut self.requests).into_values())
            .collect();
        let users: BTreeSet<UserId> = self.users.keys().chain(asked.iter().map(|(user, _)| user)).copied().collect();
        let mut changed = Vec::new();
        for user in users {
            let found = read(engine, shard_count, user);
            let known = self.users.entry(user).or_default();
            let asked: Vec<&Asked> = asked.iter().filter(|(of, _)| *of == user).map(|(_, asked)| asked).collect();
            if !self.is_blind {
                changed.extend(check(known, &found, &asked, now_ms).into_iter().map(|device| Device { user, device }));
            }
            *known = found;
        }
        changed
    }
}

/// What is on the disk is what was told last, or what was asked since. Returns the devices that may have been linked
/// anew.
fn check(known: &Known, found: &Known, asked: &[&Asked], now_ms: u64) -> Vec<DeviceId> {
    let context = format!("{found:?} after {known:?} and {asked:?}");
    let (never, surely) = known.tokens_from_s;
    let (from_s, _) = found.tokens_from_s;
    assert!(from_s >= never && from_s <= surely.max(now_ms / 1000 + 1), "{context}");
    let devices: BTreeSet<DeviceId> = known.devices.keys().chain(found.devices.keys()).copied().collect();
    let mut changed = Vec::new();
    for device in devices {
        let (before, after) = (known.devices.get(&device), found.devices.get(&device));
        let (mut removed, mut named, mut linked, mut keys) = (false, false, false, Vec::new());
        for asked in asked {
            match asked {
                Asked::Remove { device: of, .. } => removed |= *of == device,
                Asked::Name { device: of, name } => named |= *of == device && after.is_some_and(|it| it.name == *name),
                Asked::Login { device: of, key, proof } if *of == device => match proof {
                    Proof::PlaintextToken { .. } => linked = true,
                    Proof::PlaintextTicket { .. } | Proof::Ticket { .. } | Proof::Registered => {}
                    Proof::Token { .. } => {
                        linked = true;
                        keys.push(*key);
                    }
                },
                Asked::Login { .. } => {}
            }
        }
        let may_be_new = before.is_none() || removed;
        match after {
            None => assert!(may_be_new, "{device} is gone: {context}"),
            Some(after) => {
                assert!(before.is_some() || linked, "{device} came from nowhere: {context}");
                let had = before.is_some_and(|before| before.key == after.key);
                let has_none = after.key.is_none() && may_be_new;
                assert!(had || has_none || keys.contains(&after.key), "{device} has a strange key: {context}");
                let had = before.is_some_and(|before| before.name == after.name);
                let has_none = after.name.is_empty() && may_be_new;
                assert!(had || has_none || named, "{device} has a strange name: {context}");
            }
        }
        if before != after || (removed && linked) {
            changed.push(device);
        }
    }
    changed
}

fn read(engine: &dyn Engine, shard_count: u16, user: UserId) -> Known {
    let shard = ShardId::of_user(user, shard_count);
    let row = match engine.get(Family::User, &key::user(shard, user), Tier::Disk).expect("readable") {
        Lookup::Present(row) => UserRow::decode(&row).expect("a row of ours"),
        _ => return Known::default(),
    };
    let mut names = BTreeMap::new();
    let (from, to) = key::devices_range(shard, user);
    let visit = &mut |key: &[u8], value: &[u8]| {
        let (.., device) = key::decode_device(key).expect("a key of ours");
        names.insert(device, NameRow::decode(value).expect("a row of ours").name);
        ControlFlow::Continue(())
    };
    engine.scan(Family::Device, &from, &to, Tier::Disk, visit).expect("readable");
    names.retain(|_, name| !name.is_empty());
    let linked = |of: &culver_storage::value::DeviceRow| {
        let name = names.remove(&of.device).unwrap_or_default();
        assert_eq!(of.is_named, !name.is_empty(), "the user's row knows of names");
        (of.device, Linked { key: of.fingerprint, name })
    };
    let devices = row.devices.iter().map(linked).collect();
    assert!(names.is_empty(), "names without devices: {names:?}");
    Known { devices, tokens_from_s: (row.tokens_from_s, row.tokens_from_s) }
}
