//! How fast devices and users may send, and how often a user may log in: token buckets, for each hub by itself, so that
//! nothing is shared. Owns no clock, and refuses nothing by itself.

use std::fmt;

use culver_protocol::id::UserId;
use culver_protocol::limits::LOGIN_RETRY_MS_MIN;

use super::command::Device;
use crate::buckets::{Bucket, Buckets, Limit, NOW_NS_MAX, NS_PER_MS, PARTS_MAX, SWEEP_MAX};

const _: () = assert!(PARTS_MAX as u64 * 1000 <= u32::MAX as u64, "a wait can be told");

/// What a hub takes of one device, and of all devices of a user together; `None`: as much as comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of a device.
    pub device: Option<Limit>,
    /// Of a user.
    pub user: Option<Limit>,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (who, limit) in [("device", self.device), ("user", self.user)] {
            match limit {
                Some(limit) => write!(f, "{separator}{who} {limit}")?,
                None => write!(f, "{separator}{who} unlimited")?,
            }
            separator = "; ";
        }
        Ok(())
    }
}

/// The buckets of one hub.
#[derive(Debug)]
pub(super) struct Rates {
    devices: Option<Buckets<Device>>,
    users: Option<Buckets<UserId>>,
    now_ns: u64,
}

impl Rates {
    pub(super) fn new(limits: Limits) -> Self {
        Self { devices: limits.device.map(Buckets::new), users: limits.user.map(Buckets::new), now_ns: 0 }
    }

    /// Whether anything is limited.
    pub(super) fn are_limited(&self) -> bool {
        self.devices.is_some() || self.users.is_some()
    }

    /// It is this late, by a clock that should not go back.
    pub(super) fn pass(&mut self, mono_ms: u64) {
        self.now_ns = mono_ms.saturating_mul(NS_PER_MS).min(NOW_NS_MAX);
    }

    /// Takes a message of the device into account, if its own bucket and its user's have room. If not, neither notices,
    /// and the device is to wait for so many milliseconds.
    pub(super) fn charge(&mut self, device: Device) -> Result<(), u32> {
        let now_ns = self.now_ns;
        let of_device = self.devices.as_mut().map(|buckets| buckets.look(device, now_ns));
        let of_user = self.users.as_mut().map(|buckets| buckets.look(device.user, now_ns));
        let waits = [of_device.as_ref().and_then(Bucket::wait_ns), of_user.as_ref().and_then(Bucket::wait_ns)];
        if let Some(wait_ns) = waits.into_iter().flatten().max() {
            return Err(wait_ms(wait_ns));
        }
        of_device.into_iter().for_each(Bucket::charge);
        of_user.into_iter().for_each(Bucket::charge);
        Ok(())
    }

    /// Forgets some of the buckets that are full again. It is done with every upkeep: that is more in a second than a hub
    /// decides messages.
    pub(super) fn sweep(&mut self) {
        let now_ns = self.now_ns;
        self.devices.iter_mut().for_each(|buckets| buckets.sweep(now_ns, SWEEP_MAX));
        self.users.iter_mut().for_each(|buckets| buckets.sweep(now_ns, SWEEP_MAX));
    }

    /// How many buckets there are.
    pub(super) fn len(&self) -> usize {
        self.devices.as_ref().map_or(0, Buckets::len) + self.users.as_ref().map_or(0, Buckets::len)
    }
}

/// How often users log in, in one hub.
#[derive(Debug)]
pub(super) struct LoginRates {
    users: Option<Buckets<UserId>>,
    now_ns: u64,
}

impl LoginRates {
    pub(super) fn new(limit: Option<Limit>) -> Self {
        Self { users: limit.map(Buckets::new), now_ns: 0 }
    }

    /// It is this late, by a clock that should not go back.
    pub(super) fn pass(&mut self, mono_ms: u64) {
        self.now_ns = mono_ms.saturating_mul(NS_PER_MS).min(NOW_NS_MAX);
    }

    /// For how many milliseconds whoever logs in as this user is to wait. `None`: there is room.
    pub(super) fn wait_ms(&mut self, user: UserId) -> Option<u32> {
        let wait_ns = self.users.as_mut()?.look(user, self.now_ns).wait_ns()?;
        Some(wait_ms(wait_ns).max(LOGIN_RETRY_MS_MIN))
    }

    /// Somebody has logged in as this user.
    pub(super) fn charge(&mut self, user: UserId) {
        self.users.iter_mut().for_each(|users| users.look(user, self.now_ns).charge());
    }

    /// Forgets some of the buckets that are full again.
    pub(super) fn sweep(&mut self) {
        self.users.iter_mut().for_each(|users| users.sweep(self.now_ns, SWEEP_MAX));
    }

    /// How many buckets there are.
    pub(super) fn len(&self) -> usize {
        self.users.as_ref().map_or(0, Buckets::len)
    }
}

fn wait_ms(wait_ns: u64) -> u32 {
    u32::try_from(wait_ns.div_ceil(NS_PER_MS)).expect("a wait is no longer than its room")
}

#[cfg(test)]
mod tests {
    use culver_protocol::id::DeviceId;

    use super::*;
    use crate::buckets::RATE_MAX;

    fn device(user: u64, device: u16) -> Device {
        Device { user: UserId(user), device: DeviceId(device) }
    }

    fn rates(device: Option<(u32, u32)>, user: Option<(u32, u32)>) -> Rates {
        let limit = |(per_s, burst)| Limit::new(per_s, burst);
        let mut rates = Rates::new(Limits { device: device.map(limit), user: user.map(limit) });
        rates.pass(1_000_000);
        rates
    }

    /// How many messages go through at once, and what the next is told.
    fn drain(rates: &mut Rates, device: Device) -> (usize, u32) {
        let refused = (0..).find_map(|count| rates.charge(device).err().map(|wait_ms| (count, wait_ms)));
        refused.expect("it ends")
    }

    #[test]
    fn without_limits_there_are_no_buckets() {
        let mut rates = rates(None, None);
        assert!(!rates.are_limited());
        assert!((0..10_000).all(|_| rates.charge(device(1, 1)).is_ok()));
        assert_eq!(rates.len(), 0);
    }

    #[test]
    fn a_burst_goes_at_once_and_then_the_rate_holds() {
        let mut rates = rates(Some((50, 1000)), None);
        assert_eq!(drain(&mut rates, device(1, 1)), (1000, 1000), "a second's messages are worth waiting for");
        rates.pass(1_000_019);
        assert_eq!(drain(&mut rates, device(1, 1)).0, 0);
        rates.pass(1_000_020);
        assert_eq!(drain(&mut rates, device(1, 1)).0, 1, "50 a second");
        rates.pass(1_001_020);
        assert_eq!(drain(&mut rates, device(1, 1)).0, 50);
        rates.pass(9_000_000);
        assert_eq!(drain(&mut rates, device(1, 1)).0, 1000, "and no more than a burst, however long it was silent");
        assert_eq!(drain(&mut rates, device(1, 2)).0, 1000, "others have buckets of their own");
        assert_eq!(drain(&mut rates, device(2, 1)).0, 1000);
    }

    #[test]
    fn who_waits_as_told_finds_room() {
        for (per_s, burst, wait_ms) in [
            (1, 1, 1000),
            (3, 1, 334),
            (7, 20, 1000),
            (50, 10, 100),
            (1000, 1, 1),
            (RATE_MAX, 4, 1),
            (1, RATE_MAX, 1000),
        ] {
            let mut rates = rates(Some((per_s, burst)), None);
            assert_eq!(drain(&mut rates, device(1, 1)), (burst as usize, wait_ms), "{burst} at once, {per_s}/s");
            rates.pass(1_000_000 + u64::from(wait_ms));
            let worth = (per_s * wait_ms / 1000).clamp(1, burst);
            assert_eq!(drain(&mut rates, device(1, 1)).0, worth as usize, "{burst} at once, {per_s}/s");
        }
    }

    #[test]
    fn a_refused_attempt_spends_nothing() {
        let mut rates = rates(Some((10, 5)), Some((10, 8)));
        assert_eq!(drain(&mut rates, device(1, 1)).0, 5);
        assert!((0..1000).all(|_| rates.charge(device(1, 1)).is_err()));
        assert_eq!(drain(&mut rates, device(1, 2)).0, 3, "the user's bucket has not noticed");
        assert!((0..1000).all(|_| rates.charge(device(1, 2)).is_err()));
        rates.pass(1_000_200);
        assert_eq!(drain(&mut rates, device(1, 2)).0, 2, "nor has the device's, when the user's was empty");
    }

    #[test]
    fn devices_share_their_users_bucket() {
        let mut rates = rates(Some((50, 10)), Some((10, 15)));
        assert_eq!(drain(&mut rates, device(1, 1)).0, 10);
        assert_eq!(drain(&mut rates, device(1, 2)), (5, 750), "it is the user's that is empty, and says how long");
        assert_eq!(drain(&mut rates, device(2, 1)).0, 10, "another user");
        rates.pass(1_000_750);
        assert_eq!(drain(&mut rates, device(1, 1)).0, 7);
    }

    #[test]
    fn a_clock_that_goes_back_or_leaps_locks_nobody_out() {
        let mut rates = rates(Some((10, 5)), None);
        assert_eq!(drain(&mut rates, device(1, 1)), (5, 250));
        rates.pass(10);
        assert_eq!(drain(&mut rates, device(1, 1)), (0, 250), "as if it had just sent, and no longer");
        rates.pass(260);
        assert_eq!(drain(&mut rates, device(1, 1)).0, 2);
        rates.pass(0);
        rates.sweep();
        rates.pass(10_000);
        rates.sweep();
        assert_eq!(rates.len(), 0, "nobody is kept until the clock is where it was");
        rates.pass(u64::MAX);
        assert_eq!(drain(&mut rates, device(1, 1)).0, 5);
    }

    #[test]
    fn who_is_silent_is_forgotten_a_few_at_a_time() {
        const USERS: u64 = 3 * SWEEP_MAX as u64;
        let mut rates = rates(Some((10, 5)), Some((1, 2)));
        for user in 1..=USERS {
            rates.charge(device(user, 1)).expect("the first");
        }
        assert_eq!(rates.len() as u64, 2 * USERS);
        rates.sweep();
        assert_eq!(rates.len() as u64, 2 * USERS, "nobody's time has passed");
        rates.pass(1_000_500);
        rates.charge(device(USERS, 1)).expect("there is room");
        rates.sweep();
        assert_eq!(rates.len() as u64, 2 * USERS - SWEEP_MAX as u64, "a bounded look at devices");
        (0..4).for_each(|_| rates.sweep());
        assert_eq!(rates.len() as u64, USERS + 1, "all but the one that has just sent");
        rates.pass(1_001_000);
        (0..4).for_each(|_| rates.sweep());
        assert_eq!(rates.len(), 1, "the user who has sent twice");
        rates.pass(1_002_000);
        rates.sweep();
        assert_eq!(rates.len(), 0);
        let users = rates.users.expect("limited");
        assert!(users.is_empty() && users.capacity() < SWEEP_MAX, "the room is given back");
    }
}
