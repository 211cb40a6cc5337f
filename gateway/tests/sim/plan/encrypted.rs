//! How the worlds of a half of all seeds encrypt.

use culver::session::handshakes::BURST_US;
use culver_protocol::crypto::Suite;

use crate::source::Source;

/// What a seed decides of encryption.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encrypted {
    pub suite: Suite,
    /// Devices resume with forward secrecy.
    pub forward_secret: bool,
    /// The server lets nobody resume without.
    pub is_insisted: bool,
    /// How long tokens are good.
    pub token_life_s: u64,
    /// Per cent of a reactor's time that handshakes may take.
    pub handshake_cpu_percent: u8,
    /// What they may take at once, in microseconds: of a herd only the first get in where that is little.
    pub handshake_burst_us: u64,
    /// Connections, in a thousand, of which something is changed, and of which what was sent before is played again as
    /// they begin; only where such is done at all.
    pub tampered: u32,
    pub replayed: u32,
}

impl Encrypted {
    /// `None`: everything travels in plaintext.
    pub(super) fn new(source: &mut Source) -> Option<Self> {
        let suite = source.pick(&[None, None, Some(Suite::ChaCha20Poly1305), Some(Suite::Aes256Gcm)])?;
        Some(Self {
            suite,
            forward_secret: source.chance(400),
            is_insisted: source.chance(150),
            token_life_s: source.pick(&[10 * 365 * 86_400, 7200]),
            handshake_cpu_percent: source.pick(&[50, 1]),
            handshake_burst_us: source.pick(&[BURST_US, BURST_US, 300, 700]),
            tampered: source.pick(&[0, 0, 100, 500]),
            replayed: source.pick(&[0, 0, 100, 500]),
        })
    }
}
