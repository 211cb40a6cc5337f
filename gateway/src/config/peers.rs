//! `[peers]`: what is done for clients that take nothing, and for how long.

use serde::{Deserialize, Serialize};

use super::{ConfigError, within};
use crate::reactor::UNSENT_LEN_MAX;

/// A shorter time would end clients that are between two cells of a mobile network.
const USER_TIMEOUT_S_MIN: u32 = 5;
const USER_TIMEOUT_S_MAX: u32 = 3600;
/// A segment or two at least, or each would be a wake-up of its own.
const NOTSENT_KIB_MIN: u32 = 4;
const NOTSENT_KIB_MAX: u32 = 16 * 1024;
const UNSENT_MIB_MIN: u64 = 1;
const UNSENT_MIB_MAX: u64 = 1 << 20;

/// Clients that take nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Peers {
    /// Seconds after which a peer is dead whose kernel acknowledges nothing of what was sent, or takes nothing more.
    pub user_timeout_s: u32,
    /// KiB that the kernel takes of a connection ahead of what it has sent.
    pub notsent_kib: u32,
    /// MiB of what sockets have not taken, of all connections together.
    pub unsent_mib: u64,
}

impl Peers {
    /// Holds every value against its bounds.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let Self { user_timeout_s, notsent_kib, unsent_mib } = *self;
        let (from, to) = (USER_TIMEOUT_S_MIN, USER_TIMEOUT_S_MAX);
        within("peers.user_timeout_s", user_timeout_s.into(), from.into(), to.into())?;
        within("peers.notsent_kib", notsent_kib.into(), NOTSENT_KIB_MIN.into(), NOTSENT_KIB_MAX.into())?;
        within("peers.unsent_mib", unsent_mib, UNSENT_MIB_MIN, UNSENT_MIB_MAX)
    }

    /// Bytes that sockets may leave of what each of so many reactors has for them: no fewer than one connection may.
    #[must_use]
    pub fn unsent_len_of_each(&self, reactors: usize) -> usize {
        let all = usize::try_from(self.unsent_mib << 20).unwrap_or(usize::MAX);
        (all / reactors.max(1)).max(UNSENT_LEN_MAX)
    }
}

impl Default for Peers {
    fn default() -> Self {
        Self { user_timeout_s: 120, notsent_kib: 64, unsent_mib: 64 }
    }
}
