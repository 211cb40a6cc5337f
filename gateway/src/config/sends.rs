//! `[sends]`: how fast devices and users may send.

use serde::{Deserialize, Serialize};

use super::{ConfigError, within};
use crate::buckets::{Limit, RATE_MAX};
use crate::hub::rates::Limits;

/// What holds where nothing is set and others than this machine can connect.
const DEVICE: (u32, u32) = (50, 1000);
const USER: (u32, u32) = (100, 2000);

/// How fast devices and users may send, to each hub. What is not set depends on where the server listens: see
/// [`super::Config::send_limits`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sends {
    /// Messages a second of a device; 0: no limit.
    pub device_per_s: Option<u32>,
    /// Messages at once of a device.
    pub device_burst: Option<u32>,
    /// Messages a second of a user's devices together; 0: no limit.
    pub user_per_s: Option<u32>,
    /// Messages at once of a user's devices together.
    pub user_burst: Option<u32>,
}

impl Sends {
    /// What the defaults come to where they limit anything.
    #[cfg(test)]
    pub(super) const LIMITED: Self = Self {
        device_per_s: Some(DEVICE.0),
        device_burst: Some(DEVICE.1),
        user_per_s: Some(USER.0),
        user_burst: Some(USER.1),
    };

    /// Holds every value against its bounds, and against the other of its pair.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let Self { device_per_s, device_burst, user_per_s, user_burst } = *self;
        pair(("sends.device_per_s", device_per_s), ("sends.device_burst", device_burst))?;
        pair(("sends.user_per_s", user_per_s), ("sends.user_burst", user_burst))
    }

    /// The limits; `is_exposed`: others than this machine can connect.
    pub(super) fn limits(&self, is_exposed: bool) -> Limits {
        let of = |per_s: Option<u32>, burst: Option<u32>, default: (u32, u32)| match (per_s, burst) {
            (Some(0), _) => None,
            (Some(per_s), Some(burst)) => Some(Limit::new(per_s, burst)),
            _ => is_exposed.then(|| Limit::new(default.0, default.1)),
        };
        Limits {
            device: of(self.device_per_s, self.device_burst, DEVICE),
            user: of(self.user_per_s, self.user_burst, USER),
        }
    }
}

pub(super) fn pair(
    (rate_name, per_s): (&'static str, Option<u32>),
    (burst_name, burst): (&'static str, Option<u32>),
) -> Result<(), ConfigError> {
    if let Some(per_s) = per_s {
        within(rate_name, per_s.into(), 0, RATE_MAX.into())?;
    }
    if let Some(burst) = burst {
        within(burst_name, burst.into(), 1, RATE_MAX.into())?;
    }
    let alone = |setting, value: u32, remedy| Err(ConfigError::Value { setting, value: value.to_string(), remedy });
    match (per_s, burst) {
        (Some(per_s), None) if per_s > 0 => {
            alone(rate_name, per_s, format!("say as well how many may come at once, {burst_name} = 1 to {RATE_MAX}"))
        }
        (None, Some(burst)) => alone(
            burst_name,
            burst,
            format!("say as well how many may come in a second, {rate_name} = 1 to {RATE_MAX}"),
        ),
        _ => Ok(()),
    }
}
