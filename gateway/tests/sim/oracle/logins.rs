//! How often a user may log in: who is refused for it must have logged in as often.

use culver_protocol::error::ErrorCode;
use culver_protocol::proto;

use super::{Oracle, Witness};

/// From a connection to the hub's look at its login, and from a refusal to the client: a login has ten seconds, and a
/// device may read nothing for a while.
const ON_THE_WAY_US: u64 = 60_000_000;

impl Oracle {
    /// A client of the user's comes: whatever counts against a user begins so.
    pub(crate) fn comes(&mut self, witness: &Witness, now_us: u64) {
        if self.terms.user_logins.is_some() {
            self.users[witness.at.0].came_us.push(now_us);
        }
    }

    /// A client was told an error: if behind WELCOME that its user logs in too often, it must be so. It came itself, and
    /// does not count.
    pub(crate) fn check_busy(&self, witness: &Witness, error: &proto::Error, now_us: u64) {
        if error.code != ErrorCode::LoginsBusy.number() || !witness.is_greeted {
            return;
        }
        let (who, user) = (witness.name(), &self.users[witness.at.0]);
        let limit = self.terms.user_logins.unwrap_or_else(|| panic!("nobody logs in too often: {who} was told so"));
        let since_us = now_us.saturating_sub(limit.ahead_ns() / 1000 + ON_THE_WAY_US);
        let logins = user.came_us.iter().rev().take_while(|came_us| **came_us >= since_us).count();
        assert!(
            logins > limit.burst() as usize,
            "nobody spends the logins of a user without its keys: {who} was told that there are too many, and there were \
             {logins}, of {limit}"
        );
    }
}
