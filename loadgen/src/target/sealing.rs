//! How connections to a server are sealed: with which suite, by whose word a server's key is good, and which key each
//! device has.
//!
//! A device's key follows from who it is, so that runs agree about it without keeping anything: it is no secret, and
//! good for nothing but users that a generator has made. Never opens or seals anything.

use std::sync::Arc;

use clap::ValueEnum;
use culver_protocol::client::{ClientConfig, Encryption};
use culver_protocol::crypto::{self, KEY_LEN, KeyPair, Suite};
use culver_protocol::id::{DeviceId, UserId};
use serde::Serialize;

use crate::clock::unix_ms;

/// What a device's key is derived with, beside user and device.
const DEVICE_KEY_CONTEXT: &[u8] = b"culver-loadgen device key";

/// The suites by their names on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SuiteOption {
    /// Plaintext, which a server must offer
    None,
    /// ChaCha20-Poly1305
    #[default]
    Chacha20,
    /// AES-256-GCM
    Aes256,
}

impl SuiteOption {
    /// The suite; `None`: nothing is sealed.
    pub(crate) fn suite(self) -> Option<Suite> {
        match self {
            Self::None => None,
            Self::Chacha20 => Some(Suite::ChaCha20Poly1305),
            Self::Aes256 => Some(Suite::Aes256Gcm),
        }
    }
}

/// How connections are sealed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealing {
    pub(crate) suite: Suite,
    /// Whose signature makes a server's key good.
    pub(crate) root: [u8; KEY_LEN],
}

impl Sealing {
    /// What the protocol's own client needs for one device. The server's key is not known yet.
    pub(crate) fn encryption(&self, user: UserId, device: DeviceId) -> Encryption {
        Encryption {
            suite: self.suite,
            own: Arc::new(device_key(user, device)),
            roots: self.root.into(),
            server: None,
            forward_secret: false,
            entropy: crypto::random(),
            unix_ms: unix_ms(),
        }
    }
}

/// Gives settings that were made a while ago, or serve for several clients, randomness of their own and the time of now.
pub(crate) fn refresh(config: &mut ClientConfig) {
    if let Some(encryption) = &mut config.encryption {
        encryption.entropy = crypto::random();
        encryption.unix_ms = unix_ms();
    }
}

/// The key of a device.
pub(crate) fn device_key(user: UserId, device: DeviceId) -> KeyPair {
    KeyPair::new(&crypto::sha256(&[DEVICE_KEY_CONTEXT, &user.0.to_be_bytes(), &device.0.to_be_bytes()]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_device_has_a_key_of_its_own_and_keeps_it() {
        let keys = || (0..20).flat_map(|user| (1..5).map(move |device| device_key(UserId(user), DeviceId(device))));
        let publics: Vec<_> = keys().map(|key| *key.public()).collect();
        assert_eq!(publics, keys().map(|key| *key.public()).collect::<Vec<_>>());
        assert_eq!(publics.iter().collect::<BTreeSet<_>>().len(), 80);
    }

    #[test]
    fn suites_go_by_the_protocols_names() {
        for option in SuiteOption::value_variants() {
            let name = option.to_possible_value().expect("none is hidden").get_name().to_owned();
            assert_eq!(option.suite().map_or("none", Suite::name), name);
            assert_eq!(serde_json::to_value(option).expect("a word"), name.as_str());
        }
    }
}
