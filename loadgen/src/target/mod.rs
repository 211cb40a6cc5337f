//! What is put under load: a Culver server found by its address and ops port, or a floor that is started here.

pub(crate) mod bare;
pub(crate) mod child;
pub(crate) mod credentials;
pub(crate) mod culver;
pub(crate) mod cutdisk;
pub(crate) mod floor;
#[cfg(test)]
pub(crate) mod peer;
pub(crate) mod program;
pub(crate) mod refuser;
pub(crate) mod relay;
pub(crate) mod sealing;
pub(crate) mod tap;

use std::net::SocketAddr;

use anyhow::Result;
use culver_protocol::client::{ClientConfig, Credential, Encryption};
use culver_protocol::id::{DeviceId, InboxSeq, Incarnation, UserId};

/// A reading of the server's counters, from outside or as it reports them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// User and system time of all its threads.
    pub(crate) cpu_us: u64,
    /// Resident memory of the process.
    pub(crate) rss_bytes: u64,
    /// What the storage engine itself reports as memtables and cache.
    pub(crate) engine_bytes: u64,
    /// What its process has of its allocator, the engine's among it; `None`: it does not tell.
    pub(crate) allocated_bytes: Option<u64>,
}

impl Sample {
    /// Resident memory that is neither memtable nor cache.
    pub(crate) fn plain_bytes(&self) -> u64 {
        self.rss_bytes.saturating_sub(self.engine_bytes)
    }
}

/// Something that speaks the protocol and whose CPU time can be read.
pub(crate) trait Target {
    /// Where clients connect.
    fn address(&self) -> SocketAddr;

    /// What a device shows at its first login.
    fn credential(&self, user: UserId, device: DeviceId) -> Result<Credential>;

    /// How a device's connections are sealed; `None`: not at all, as at every floor.
    fn encryption(&self, _user: UserId, _device: DeviceId) -> Option<Encryption> {
        None
    }

    /// Whether a device gets what is sent only once the target knows it, and tells which it knows.
    fn links_devices(&self) -> bool {
        true
    }

    /// Reads its counters now.
    fn sample(&mut self) -> Result<Sample>;
}

/// A client's settings for one device with an empty history.
pub(crate) fn client_config(target: &dyn Target, user: UserId, device: DeviceId, seed: u64) -> Result<ClientConfig> {
    Ok(ClientConfig {
        user,
        device,
        credential: target.credential(user, device)?,
        encryption: target.encryption(user, device),
        cursor: InboxSeq(0),
        incarnation: Incarnation(0),
        seed: seed ^ user.0 ^ (u64::from(device.0) << 48),
        ..ClientConfig::default()
    })
}
