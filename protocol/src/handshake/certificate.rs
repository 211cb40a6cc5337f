//! A server key's certificate: which key, for how long, signed by a root that clients are built with.
//!
//! ```text
//!  0         1        3            35             43             51          115
//!  ┌─────────┬────────┬────────────┬──────────────┬──────────────┬───────────┐
//!  │ version │ key id │ X25519     │ not before   │ not after    │ Ed25519   │   big-endian, milliseconds since 1970
//!  │ 1       │ u16    │ public key │ u64          │ u64          │ signature │
//!  └─────────┴────────┴────────────┴──────────────┴──────────────┴───────────┘
//!    what is signed: "culver server key" ‖ bytes 0 to 50
//! ```

use thiserror::Error;

use crate::crypto::{KEY_LEN, PublicKey, is_signed};

/// The version byte.
const VERSION: u8 = 1;
/// What is signed begins with this, so that no signature for anything else can be taken for one.
const CONTEXT: &[u8] = b"culver server key";
/// Bytes of the signed part.
const BODY_LEN: usize = 1 + 2 + KEY_LEN + 8 + 8;
/// Bytes of an Ed25519 signature.
pub const SIGNATURE_LEN: usize = 64;
/// Bytes of a certificate.
pub const CERTIFICATE_LEN: usize = BODY_LEN + SIGNATURE_LEN;

/// The Ed25519 keys whose signature makes a server's key good. Usually one; several while one takes the place of
/// another, so that a client is good for a server of either.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Roots {
    keys: [[u8; KEY_LEN]; ROOTS_MAX],
    /// From 1 to `ROOTS_MAX`; the keys behind it are no keys.
    count: usize,
}

/// Roots that a client trusts at most.
pub const ROOTS_MAX: usize = 4;

/// A client trusts no root, or too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a client trusts from 1 to {ROOTS_MAX} roots, not {0}")]
pub struct RootsError(usize);

impl Roots {
    /// Any of these.
    ///
    /// # Errors
    /// There are none, or more than [`ROOTS_MAX`].
    pub fn new(roots: &[[u8; KEY_LEN]]) -> Result<Self, RootsError> {
        let mut keys = [[0; KEY_LEN]; ROOTS_MAX];
        let places = keys.get_mut(..roots.len()).filter(|places| !places.is_empty());
        places.ok_or(RootsError(roots.len()))?.copy_from_slice(roots);
        Ok(Self { keys, count: roots.len() })
    }

    fn iter(&self) -> impl Iterator<Item = &[u8; KEY_LEN]> {
        self.keys.iter().take(self.count)
    }
}

impl From<[u8; KEY_LEN]> for Roots {
    /// This one alone.
    fn from(root: [u8; KEY_LEN]) -> Self {
        Self::new(&[root]).expect("one is neither none nor too many")
    }
}

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let starts = self.iter().map(|root| root.first_chunk::<4>());
        f.debug_list().entries(starts.flatten().map(|start| format!("{start:02x?}…"))).finish()
    }
}

/// What a certificate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The number by which preambles name the key; never 0.
    pub key_id: u16,
    /// The server's static key.
    pub public: PublicKey,
    /// From when it is good, in milliseconds since 1970.
    pub not_before_ms: u64,
    /// And until when.
    pub not_after_ms: u64,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CertificateError {
    /// It has not the form of one.
    #[error("it cannot be read")]
    Unreadable,
    /// No trusted root has signed it.
    #[error("no trusted root has signed it")]
    Signature,
    /// Its time has not begun.
    #[error("its time has not begun")]
    Early,
    /// Its time is over.
    #[error("its time is over")]
    Late,
    /// It is about another key than the one the handshake showed.
    #[error("it is about another key")]
    OtherKey,
}

impl Certificate {
    /// What the root signs.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = CONTEXT.to_vec();
        bytes.extend_from_slice(&self.body());
        bytes
    }

    /// The certificate's bytes.
    #[must_use]
    pub fn encode(&self, signature: &[u8; SIGNATURE_LEN]) -> [u8; CERTIFICATE_LEN] {
        let bytes = [self.body().as_slice(), signature].concat();
        bytes.try_into().expect("body and signature have fixed lengths")
    }

    /// Reads a certificate and checks that one of the roots has signed it, and that now is within its time.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(bytes: &[u8], roots: &Roots, now_ms: u64) -> Result<Self, CertificateError> {
        let mut read = roots.iter().map(|root| Self::decode(bytes, root));
        let is_signed = |outcome: &Result<Self, _>| *outcome != Err(CertificateError::Signature);
        let certificate = read.find(is_signed).unwrap_or(Err(CertificateError::Signature))?;
        if now_ms < certificate.not_before_ms {
            return Err(CertificateError::Early);
        }
        if now_ms >= certificate.not_after_ms {
            return Err(CertificateError::Late);
        }
        Ok(certificate)
    }

    /// Reads a certificate and checks who signed it.
    ///
    /// # Errors
    /// [`CertificateError::Unreadable`] or [`CertificateError::Signature`].
    pub fn decode(bytes: &[u8], root: &[u8; KEY_LEN]) -> Result<Self, CertificateError> {
        let unreadable = CertificateError::Unreadable;
        let (body, signature) = bytes.split_first_chunk::<BODY_LEN>().ok_or(unreadable)?;
        if signature.len() != SIGNATURE_LEN {
            return Err(unreadable);
        }
        let ([version], rest) = body.split_first_chunk().ok_or(unreadable)?;
        let (key_id, rest) = rest.split_first_chunk().ok_or(unreadable)?;
        let (public, rest) = rest.split_first_chunk().ok_or(unreadable)?;
        let (not_before_ms, rest) = rest.split_first_chunk().ok_or(unreadable)?;
        let not_after_ms = rest.first_chunk().ok_or(unreadable)?;
        if *version != VERSION {
            return Err(unreadable);
        }
        let certificate = Self {
            key_id: u16::from_be_bytes(*key_id),
            public: *public,
            not_before_ms: u64::from_be_bytes(*not_before_ms),
            not_after_ms: u64::from_be_bytes(*not_after_ms),
        };
        if is_signed(root, &certificate.signed_bytes(), signature) {
            Ok(certificate)
        } else {
            Err(CertificateError::Signature)
        }
    }

    fn body(&self) -> [u8; BODY_LEN] {
        let parts: [&[u8]; 5] = [
            &[VERSION],
            &self.key_id.to_be_bytes(),
            &self.public,
            &self.not_before_ms.to_be_bytes(),
            &self.not_after_ms.to_be_bytes(),
        ];
        parts.concat().try_into().expect("the fields fill the body")
    }
}
