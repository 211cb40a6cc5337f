//! A user's devices, as the user sees and changes them: the list, the names, and the end of one.

use std::collections::BTreeMap;

use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, UserId};
use culver_storage::command::{Decision, DeviceView, View};
use culver_storage::error::EngineError;
use culver_storage::planted::{self, Bug};
use culver_storage::shard::DAY_MS;

use super::command::{Address, Device};
use super::effect::{Answer, DeviceInfo, EffectKind};
use super::{Hub, Tried};

/// What a request comes to, unless something must be read first.
type Found = View<Result<Answer, ErrorCode>>;

impl Hub {
    /// The devices of a user, for one of them.
    pub(super) fn device_list(&mut self, device: Device) -> Result<View<Vec<DeviceInfo>>, EngineError> {
        let user = device.user;
        let head = match self.shards.user(&*self.engine, user, device.device)? {
            View::Known(view) => view.head,
            View::Waits(load) => return Ok(View::Waits(load)),
        };
        let devices = match self.shards.devices(&*self.engine, user)? {
            View::Known(devices) => devices,
            View::Waits(load) => return Ok(View::Waits(load)),
        };
        let mut names = BTreeMap::new();
        if devices.iter().any(|view| view.is_named) {
            names = match self.shards.names(&*self.engine, user)? {
                View::Known(names) => names,
                View::Waits(load) => return Ok(View::Waits(load)),
            };
        }
        let info = |view: &DeviceView| DeviceInfo {
            device: view.device,
            last_seen_ms: u64::from(view.seen_day) * DAY_MS,
            online: !self.sessions_of(Device { user, device: view.device }).is_empty(),
            waiting: head.0.saturating_sub(view.cursor.0),
            name: names.remove(&view.device).unwrap_or_default(),
            registered: view.is_registered,
        };
        Ok(View::Known(devices.iter().map(info).collect()))
    }

    /// A device gets a name, or none.
    pub(super) fn name_device(&mut self, user: UserId, device: DeviceId, name: &str) -> Result<Found, EngineError> {
        Ok(match self.shards.decide_name(&*self.engine, user, device, name)? {
            Decision::Waits(load) => View::Waits(load),
            Decision::Reject(code) => View::Known(Err(code)),
            Decision::Apply(record) => {
                self.shards.apply(&record);
                View::Known(Ok(Answer::DeviceNamed))
            }
            Decision::Duplicate(_) | Decision::Unchanged => View::Known(Ok(Answer::DeviceNamed)),
        })
    }

    /// A device is removed: whoever asked is told, which may be the device itself, and its sessions are over.
    pub(super) fn remove_device(
        &mut self,
        session: Address,
        device: Device,
        id: u64,
        removed: DeviceId,
        now_ms: u64,
    ) -> Result<Tried, EngineError> {
        let user = device.user;
        let result = match self.shards.decide_remove(&*self.engine, user, removed, now_ms)? {
            Decision::Waits(load) => return Ok(Tried::Waits(load)),
            Decision::Reject(code) => Err(code),
            Decision::Apply(record) => {
                self.shards.apply(&record);
                Ok(Answer::DeviceRemoved)
            }
            Decision::Duplicate(_) | Decision::Unchanged => Ok(Answer::DeviceRemoved),
        };
        let is_removed = result.is_ok();
        self.answer(session, device, id, result);
        if is_removed {
            if !planted::is(Bug::RemovedStaysConnected) {
                self.end_sessions(Device { user, device: removed }, &EffectKind::Removed);
            }
            self.tell_alone(user)?;
        }
        Ok(Tried::Done)
    }

    /// Ends all sessions of a device, fetch sessions among them: what comes for it goes to none of them.
    pub(super) fn end_sessions(&mut self, device: Device, why: &EffectKind) {
        for index in self.sessions_of(device) {
            let session = self.remove_session(index);
            self.tell(session, why.clone());
        }
    }

    /// Devices of a user are gone: a last one that is online has no siblings any more.
    pub(super) fn tell_alone(&mut self, user: UserId) -> Result<(), EngineError> {
        if let View::Known(devices) = self.shards.devices(&*self.engine, user)?
            && let [last] = devices.as_slice()
        {
            let last = last.device;
            self.tell_siblings(user, |device| device.device == last, false);
        }
        Ok(())
    }

    /// The sessions of a device, by ascending index.
    fn sessions_of(&self, device: Device) -> Vec<u32> {
        let is_of = |index: &u32| self.directory.get(*index).is_some_and(|online| online.device() == device);
        let mut sessions: Vec<u32> = self.directory.of_user(device.user).filter(is_of).collect();
        sessions.sort_unstable();
        sessions
    }
}
