//! What a device has for all its life where it encrypts: its key, and what it knows of servers.

use std::sync::Arc;

use culver_protocol::crypto::{KeyPair, Suite, hkdf};

use super::DeviceKey;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Secrecy {
    pub suite: Suite,
    pub forward_secret: bool,
    pub own: Arc<KeyPair>,
    pub root: [u8; 32],
}

/// A device's key, the same in every world.
pub(crate) fn key_pair(key: DeviceKey) -> Arc<KeyPair> {
    let DeviceKey { user, device } = key;
    let secret = hkdf(&user.0.to_be_bytes(), &device.0.to_be_bytes(), b"culver sim device");
    Arc::new(KeyPair::new(&secret))
}
