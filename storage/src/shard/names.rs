//! Names of devices: rows of their own, for a user's row is written anew with every cursor. What batches hold that are not
//! durable is in memory, the rest is read when somebody asks.

use std::collections::BTreeMap;

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, UserId};
use culver_protocol::limits::DEVICE_NAME_LEN_MAX;

use super::Shards;
use super::decide::known;
use super::state::{Awaited, Names};
use crate::batch::BatchNumber;
use crate::command::{Decision, Load, View};
use crate::engine::{Engine, Family, Lookup, Tier};
use crate::error::EngineError;
use crate::key::{self, ShardId};
use crate::planted::{self, Bug};
use crate::reader::read_names;
use crate::record::Record;
use crate::value::encode_name;

/// The names that batches hold which are not durable, each with the last such batch.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    names: BTreeMap<(UserId, DeviceId), (String, BatchNumber)>,
}

impl Unwritten {
    fn of_user(&self, user: UserId) -> impl Iterator<Item = (DeviceId, &String)> {
        let of_user = (user, DeviceId(0))..=(user, DeviceId(u16::MAX));
        self.names.range(of_user).map(|((_, device), (name, _))| (*device, name))
    }
}

impl Shards {
    /// Decides that a device has this name from now on; an empty one is none. More than 64 bytes are `NameTooLong`, and a
    /// device that is not linked is `DeviceNotFound`.
    ///
    /// # Errors
    /// The engine failed.
    pub fn decide_name(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
        device: DeviceId,
        name: &str,
    ) -> Result<Decision, EngineError> {
        if name.len() > DEVICE_NAME_LEN_MAX {
            return Ok(Decision::Reject(ErrorCode::NameTooLong));
        }
        let state = known!(self.user_mut(engine, user)?);
        match state.device(device) {
            None => Ok(Decision::Reject(ErrorCode::DeviceNotFound)),
            Some(row) if name.is_empty() && !row.is_named => Ok(Decision::Unchanged),
            Some(_) => Ok(Decision::Apply(Record::DeviceNamed { user, device, name: name.to_owned() })),
        }
    }

    /// The names of a user's devices, those left out that have none. They need not be asked for where no device
    /// [`is_named`](crate::command::DeviceView::is_named).
    ///
    /// # Errors
    /// The engine failed.
    pub fn names(
        &mut self,
        engine: &dyn Engine,
        user: UserId,
    ) -> Result<View<BTreeMap<DeviceId, String>>, EngineError> {
        let load = Load::Names(user);
        let mut names = match self.awaited.remove(&load) {
            Some(Awaited::Names(names)) => names,
            under_way => match read_names(engine, self.shard_count, user, Tier::Memory)? {
                Lookup::Absent => Names::new(),
                Lookup::Present(names) => names,
                Lookup::Unknown => {
                    // Who asked earlier may have what was begun earlier.
                    under_way.into_iter().for_each(|awaited| drop(self.awaited.insert(load, awaited)));
                    return Ok(self.wait(engine, load));
                }
            },
        };
        names.extend(self.unwritten_names.of_user(user).map(|(device, name)| (device, name.clone())));
        names.retain(|_, name| !name.is_empty());
        Ok(View::Known(names))
    }

    pub(super) fn apply_named(&mut self, id: UserId, device: DeviceId, name: &str) {
        let user = self.touch(id);
        let row = user.row.devices.iter_mut().find(|row| row.device == device).expect("`decide` found it linked");
        let was_named = std::mem::replace(&mut row.is_named, !name.is_empty());
        user.dirty |= was_named == name.is_empty();
        self.put_name(id, device, name);
    }

    /// Puts a name into the batch under construction; an empty one in the place of what was there.
    pub(super) fn put_name(&mut self, user: UserId, device: DeviceId, name: &str) {
        let shard = ShardId::of_user(user, self.shard_count);
        let (version, text) = encode_name(name);
        if !planted::is(Bug::NameForgotten) {
            self.building.batch.put(Family::Device, &key::device(shard, user, device), (&version, text));
        }
        self.unwritten_names.names.insert((user, device), (name.to_owned(), self.building.batch.number()));
    }

    /// A batch is durable: the names in it can be read.
    pub(super) fn forget_names(&mut self, durable: BatchNumber) {
        let awaited = &mut self.awaited;
        self.unwritten_names.names.retain(|(user, _), (_, batch)| {
            if *batch > durable {
                return true;
            }
            // What is being read may not hold these, and from now on nothing is put on top of it.
            awaited.remove(&Load::Names(*user));
            false
        });
    }
}
