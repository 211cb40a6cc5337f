//! The server's own keys as it uses them: which there are, and which one is shown to clients that know none.
//!
//! Never reads a file and never looks at a clock.

use std::sync::Arc;

use culver_protocol::crypto::KeyPair;
use culver_protocol::handshake::certificate::Certificate;

/// One of the server's keys.
pub struct ServerIdentity {
    /// The number by which preambles name it.
    pub id: u16,
    /// The key.
    pub pair: Arc<KeyPair>,
    /// What the root says of it.
    pub certificate: Vec<u8>,
}

/// A key with what its certificate says.
#[derive(Clone, Debug)]
pub struct CertifiedKey {
    /// As sessions have it.
    pub identity: Arc<ServerIdentity>,
    /// From when it is good, in milliseconds since 1970.
    pub not_before_ms: u64,
    /// And until when.
    pub not_after_ms: u64,
}

impl CertifiedKey {
    /// A key and its certificate, which must belong together.
    ///
    /// # Panics
    /// If they do not.
    #[must_use]
    pub fn new(certificate: Certificate, bytes: Vec<u8>, pair: KeyPair) -> Self {
        assert_eq!(certificate.public, *pair.public(), "a certificate is about its key");
        let Certificate { key_id: id, not_before_ms, not_after_ms, .. } = certificate;
        let identity = ServerIdentity { id, pair: Arc::new(pair), certificate: bytes };
        Self { identity: Arc::new(identity), not_before_ms, not_after_ms }
    }

    /// Whether its time has begun and is not over.
    #[must_use]
    pub fn is_good(&self, now_ms: u64) -> bool {
        (self.not_before_ms..self.not_after_ms).contains(&now_ms)
    }

    /// Of two good keys the one certified later is the newer.
    fn age(&self) -> (u64, u64, u16) {
        (self.not_before_ms, self.not_after_ms, self.identity.id)
    }
}

/// The keys of a server at one time.
#[derive(Clone, Debug)]
pub struct ServerKeys {
    /// All that are installed; at least one.
    installed: Vec<CertifiedKey>,
    current: CertifiedKey,
    /// For when `current` was chosen.
    now_ms: u64,
}

impl ServerKeys {
    /// These keys. Whoever knows no key is shown the newest of those that are good, or of all if none is.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn new(installed: Vec<CertifiedKey>, now_ms: u64) -> Self {
        let newest = installed.iter().max_by_key(|key| (key.is_good(now_ms), key.age()));
        let current = newest.expect("a server has a key").clone();
        Self { installed, current, now_ms }
    }

    /// The same keys at another time.
    #[must_use]
    pub fn at(&self, now_ms: u64) -> Self {
        Self::new(self.installed.clone(), now_ms)
    }

    /// The key for clients that know none.
    #[must_use]
    pub fn current(&self) -> &CertifiedKey {
        &self.current
    }

    /// The key of this number. One whose time is over is none, unless there is no other: clients are to learn the newer.
    #[must_use]
    pub fn find(&self, id: u16) -> Option<&CertifiedKey> {
        let usable = |key: &&CertifiedKey| key.is_good(self.now_ms) || key.identity.id == self.current.identity.id;
        self.installed.iter().find(|key| key.identity.id == id).filter(usable)
    }

    /// The numbers of the keys that [`ServerKeys::find`] finds.
    #[must_use]
    pub fn ids(&self) -> Vec<u16> {
        self.installed.iter().map(|key| key.identity.id).filter(|id| self.find(*id).is_some()).collect()
    }
}

impl std::fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerIdentity").field("id", &self.id).field("pair", &self.pair).finish_non_exhaustive()
    }
}
