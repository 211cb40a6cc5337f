//! What a device has for all its life where it encrypts: its key, and what it knows of servers.

use std::sync::Arc;

use culver_protocol::client::SavedTicket;
use culver_protocol::crypto::{KeyPair, Suite, hkdf};

use super::DeviceKey;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Secrecy {
    pub suite: Suite,
    pub forward_secret: bool,
    pub own: Arc<KeyPair>,
    pub root: [u8; 32],
    /// How often the device was removed and began anew, each time with another key.
    pub era: u32,
}

/// What a device had before it was removed, as somebody has it who found it.
#[derive(Clone, Debug)]
pub(crate) struct Former {
    pub key: DeviceKey,
    pub secrecy: Secrecy,
    pub ticket: SavedTicket,
    pub token: Option<String>,
}

/// A device's key in this one of its lives, the same in every world.
pub(crate) fn key_pair(key: DeviceKey, era: u32) -> Arc<KeyPair> {
    let DeviceKey { user, device } = key;
    let which = [u32::from(device.0), era].map(u32::to_be_bytes).concat();
    let secret = hkdf(&user.0.to_be_bytes(), &which, b"culver sim device");
    Arc::new(KeyPair::new(&secret))
}
