//! `[logins]`: how fast clients may log in.

use serde::{Deserialize, Serialize};

use super::sends::pair;
use super::{ConfigError, within};
use crate::buckets::{Limit, PARTS_MAX, RATE_MAX};
use crate::reactor::admission;

/// Where nothing is set, for each core: a login by ticket takes a tenth of a millisecond, so that half of each is left
/// for who is connected.
pub(super) const PER_S_OF_A_CORE: u32 = 5_000;
/// What holds where nothing is set and others than this machine can connect.
const SOURCE: (u32, u32) = (500, 5_000);
const USER: (u32, u32) = (1, 30);

const _: () = assert!(super::REACTORS_MAX <= PARTS_MAX as usize);

/// How fast clients may log in. What is not set depends on the machine, and on where the server listens: see
/// [`super::Config::login_limits`] and [`super::Config::user_login_limit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logins {
    /// Logins a second; 0: no limit.
    pub per_s: Option<u32>,
    /// Logins a second from one address; 0: no limit.
    pub source_per_s: Option<u32>,
    /// Logins at once from one address.
    pub source_burst: Option<u32>,
    /// Logins a second of a user; 0: no limit.
    pub user_per_s: Option<u32>,
    /// Logins at once of a user.
    pub user_burst: Option<u32>,
}

impl Logins {
    /// What the defaults come to where they limit anything, on a machine with one core.
    #[cfg(test)]
    pub(super) const LIMITED: Self = Self {
        per_s: Some(PER_S_OF_A_CORE),
        source_per_s: Some(SOURCE.0),
        source_burst: Some(SOURCE.1),
        user_per_s: Some(USER.0),
        user_burst: Some(USER.1),
    };

    /// Holds every value against its bounds, and against the other of its pair.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let Self { per_s, source_per_s, source_burst, user_per_s, user_burst } = *self;
        within("logins.per_s", per_s.unwrap_or(0).into(), 0, RATE_MAX.into())?;
        pair(("logins.source_per_s", source_per_s), ("logins.source_burst", source_burst))?;
        pair(("logins.user_per_s", user_per_s), ("logins.user_burst", user_burst))
    }

    /// What all reactors take together; `is_exposed`: others than this machine can connect.
    pub(super) fn of_all(&self, is_exposed: bool, cores: usize) -> admission::Limits {
        let cores = u32::try_from(cores).unwrap_or(u32::MAX);
        let per_s = self.per_s.unwrap_or(PER_S_OF_A_CORE.saturating_mul(cores).min(RATE_MAX));
        // All that comes in a second may come at once.
        let all = (per_s > 0).then(|| Limit::new(per_s, per_s));
        admission::Limits { all, source: one(self.source_per_s, self.source_burst, SOURCE, is_exposed) }
    }

    /// What each hub takes of a user.
    pub(super) fn of_user(&self, is_exposed: bool) -> Option<Limit> {
        one(self.user_per_s, self.user_burst, USER, is_exposed)
    }
}

fn one(per_s: Option<u32>, burst: Option<u32>, default: (u32, u32), is_exposed: bool) -> Option<Limit> {
    match (per_s, burst) {
        (Some(0), _) => None,
        (Some(per_s), Some(burst)) => Some(Limit::new(per_s, burst)),
        _ => is_exposed.then(|| Limit::new(default.0, default.1)),
    }
}
