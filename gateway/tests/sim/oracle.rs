//! What always holds: a model of what was asked, told, persisted and read, held against everything that devices see.
//!
//! Checks that cost little are made as events come; what only shows when all is quiet is checked at the end. Owns no
//! device and no server, and never looks into either. A broken promise is a panic that says which, in plain words.

use crate::device::Device;

/// What of the promises a world's plan weakens.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Entries may expire and devices may be unlinked: a GAP may say so.
    pub may_expire: bool,
    /// Entries older than this, in milliseconds of undisturbed time, may expire.
    pub retention_ms: u64,
    /// The operator lets senders be told what was delivered and read.
    pub receipts: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self { may_expire: false, retention_ms: u64::MAX, receipts: true }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Oracle {
    terms: Terms,
}

impl Oracle {
    /// A model of a world in which nothing has happened.
    pub fn new(terms: Terms) -> Self {
        Self { terms }
    }

    /// Everything has come to rest with all devices connected: from now on every device is known everywhere.
    pub fn everything_is_known(&mut self) {}

    /// What must hold when all is quiet: after [`Device::say_last`] and [`Device::ask_last`] have come to rest.
    pub fn check_end(&self, devices: &[Device]) {
        assert!(devices.iter().all(Device::is_settled), "everything comes to rest");
    }
}
