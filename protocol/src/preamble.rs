//! The eight bytes that open a connection, and the handshake message behind them.
//!
//! ```text
//!  0   1   2         3          4            5         6        8
//!  ┌───┬───┬─────────┬──────────┬────────────┬─────────┬────────┐
//!  │ C │ V │ version │ version  │ handshake  │ cipher  │ server │   then the handshake message:
//!  │   │   │ lowest  │ highest  │ type       │ suite   │ key id │   u16 length ‖ bytes
//!  └───┴───┴─────────┴──────────┴────────────┴─────────┴────────┘
//! ```
//!
//! With handshake type 0 the handshake message is a `Login` protobuf as it is, and records follow at once.

use crate::error::ErrorCode;
use crate::limits::{PREAMBLE_LEN, VERSION_MAX, VERSION_MIN};

/// Handshake type 0: none.
pub const HANDSHAKE_NONE: u8 = 0;
/// Cipher suite 0: plaintext.
pub const SUITE_PLAINTEXT: u8 = 0;

/// What a client opens with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// Lowest version the client speaks.
    pub version_min: u8,
    /// Highest version the client speaks.
    pub version_max: u8,
    /// Handshake type.
    pub handshake: u8,
    /// Cipher suite.
    pub suite: u8,
    /// Which of the server's keys the client knows; 0: none.
    pub server_key: u16,
}

impl Preamble {
    /// What this code opens a plaintext connection with.
    pub const PLAINTEXT: Self = Self {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        handshake: HANDSHAKE_NONE,
        suite: SUITE_PLAINTEXT,
        server_key: 0,
    };

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; PREAMBLE_LEN] {
        let [key_high, key_low] = self.server_key.to_be_bytes();
        [b'C', b'V', self.version_min, self.version_max, self.handshake, self.suite, key_high, key_low]
    }

    /// Reads a preamble.
    ///
    /// # Errors
    /// [`ErrorCode::BadMagic`], or [`ErrorCode::VersionUnsupported`] where lowest exceeds highest.
    pub fn decode(bytes: [u8; PREAMBLE_LEN]) -> Result<Self, ErrorCode> {
        let [b'C', b'V', version_min, version_max, handshake, suite, key_high, key_low] = bytes else {
            return Err(ErrorCode::BadMagic);
        };
        if version_min > version_max {
            return Err(ErrorCode::VersionUnsupported);
        }
        let server_key = u16::from_be_bytes([key_high, key_low]);
        Ok(Self { version_min, version_max, handshake, suite, server_key })
    }

    /// The highest version that both sides speak.
    ///
    /// # Errors
    /// [`ErrorCode::VersionUnsupported`]: there is none.
    pub fn agree_version(self) -> Result<u8, ErrorCode> {
        let version = self.version_max.min(VERSION_MAX);
        if version < self.version_min.max(VERSION_MIN) { Err(ErrorCode::VersionUnsupported) } else { Ok(version) }
    }
}
