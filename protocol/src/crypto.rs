//! The primitives that everything secret here stands on, all of them aws-lc-rs's: nothing is computed by hand.
//!
//! Nonces are laid out as Noise lays them out (The Noise Protocol Framework, section 12), so that any Noise library's
//! transport reads our records.

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey as SignaturePublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::limits::TAG_LEN;

/// Bytes of every key, secret and hash here.
pub const KEY_LEN: usize = 32;

/// Secret bytes: wiped when they are dropped.
pub type Secret = Zeroizing<[u8; KEY_LEN]>;

/// A public key of X25519 (RFC 7748).
pub type PublicKey = [u8; KEY_LEN];

/// A cipher for records and handshakes; the numbers are those of the preamble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Suite {
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305 = 1,
    /// AES-256-GCM (NIST SP 800-38D).
    Aes256Gcm = 2,
}

impl Suite {
    /// All suites, ascending.
    pub const ALL: [Self; 2] = [Self::ChaCha20Poly1305, Self::Aes256Gcm];

    /// The suite with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| *suite as u8 == number)
    }

    /// Its name in command lines and settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "chacha20",
            Self::Aes256Gcm => "aes256",
        }
    }

    fn key(self, key: &[u8; KEY_LEN]) -> LessSafeKey {
        let algorithm = match self {
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Self::Aes256Gcm => &AES_256_GCM,
        };
        LessSafeKey::new(UnboundKey::new(algorithm, key).expect("both ciphers take 32 bytes"))
    }

    fn nonce(self, number: u64) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        let counter = match self {
            Self::ChaCha20Poly1305 => number.to_le_bytes(),
            Self::Aes256Gcm => number.to_be_bytes(),
        };
        let (_, place) = nonce.split_last_chunk_mut().expect("a nonce has 12 bytes");
        *place = counter;
        nonce
    }

    /// Seals `bytes` in place under the nonce of this number, which no key may see twice, and returns the tag.
    ///
    /// # Panics
    /// Never: no input is too long for either cipher.
    #[must_use]
    pub fn seal(self, key: &[u8; KEY_LEN], number: u64, aad: &[u8], bytes: &mut [u8]) -> [u8; TAG_LEN] {
        self.seal_with(key, self.nonce(number), aad, bytes)
    }

    /// The same under a nonce given whole.
    ///
    /// # Panics
    /// Never: no input is too long for either cipher.
    #[must_use]
    pub fn seal_with(self, key: &[u8; KEY_LEN], nonce: [u8; NONCE_LEN], aad: &[u8], bytes: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.key(key).seal_in_place_separate_tag(nonce, Aad::from(aad), bytes);
        let tag = tag.expect("within the cipher's bounds");
        tag.as_ref().try_into().expect("both tags have 16 bytes")
    }

    /// Opens `sealed`, which ends with its tag, in place; `None`: it was not sealed so.
    #[must_use]
    pub fn open<'a>(self, key: &[u8; KEY_LEN], number: u64, aad: &[u8], sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.open_with(key, self.nonce(number), aad, sealed)
    }

    /// The same under a nonce given whole.
    #[must_use]
    pub fn open_with<'a>(
        self,
        key: &[u8; KEY_LEN],
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        self.key(key).open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), sealed).ok()
    }

    /// The key that follows `key` (Noise, section 4.2).
    #[must_use]
    pub fn next_key(self, key: &[u8; KEY_LEN]) -> Secret {
        let mut next = Secret::default();
        // The tag is not part of it.
        let _tag = self.seal(key, u64::MAX, &[], next.as_mut_slice());
        next
    }
}

/// A key pair of X25519.
pub struct KeyPair {
    secret: PrivateKey,
    public: PublicKey,
}

impl KeyPair {
    /// The pair of this secret, which should come from a good generator; its public half is computed here.
    ///
    /// # Panics
    /// Never: any 32 bytes are a secret.
    #[must_use]
    pub fn new(secret: &[u8; KEY_LEN]) -> Self {
        let secret = PrivateKey::from_private_key(&X25519, secret).expect("any 32 bytes are a secret");
        let public = secret.compute_public_key().expect("every secret has a public key");
        Self { secret, public: public.as_ref().try_into().expect("a public key has 32 bytes") }
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// What both sides alone know; `None`: the other's key is one of the few that give the same to everybody.
    #[must_use]
    pub fn agree(&self, other: &PublicKey) -> Option<Secret> {
        agree(&self.secret, UnparsedPublicKey::new(&X25519, other), (), |shared| {
            shared.try_into().map(Secret::new).map_err(|_| ())
        })
        .ok()
    }
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("public", &format_args!("{:02x?}…", self.public.first_chunk::<4>())).finish()
    }
}

/// SHA-256 of parts, one behind the other.
#[must_use]
pub fn sha256(parts: &[&[u8]]) -> [u8; KEY_LEN] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// HKDF-SHA-256 (RFC 5869): `N` bytes for this purpose.
///
/// # Panics
/// Beyond 255 × 32 bytes.
#[must_use]
pub fn hkdf<const N: usize>(salt: &[u8], secret: &[u8], purpose: &[u8]) -> Zeroizing<[u8; N]> {
    struct Len(usize);
    impl KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut out = Zeroizing::new([0; N]);
    let purpose = [purpose];
    let extracted = Salt::new(HKDF_SHA256, salt).extract(secret);
    let expanded = extracted.expand(&purpose, Len(N)).expect("callers keep within 255 x 32 bytes");
    expanded.fill(out.as_mut_slice()).expect("the length is the one asked for");
    out
}

/// Whether `signature` is the Ed25519 signature (RFC 8032) of `message` by the holder of `public`.
#[must_use]
pub fn is_signed(public: &[u8; KEY_LEN], message: &[u8], signature: &[u8]) -> bool {
    SignaturePublicKey::new(&ED25519, public).verify(message, signature).is_ok()
}

/// Whether two secrets are the same, in a time that does not tell where they differ.
#[must_use]
pub fn are_equal(left: &[u8], right: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(left, right).is_ok()
}

/// Bytes of a [`fingerprint`].
pub const FINGERPRINT_LEN: usize = 16;

/// What stands for a device's public key where it is stored, and in tickets: the first bytes of its SHA-256. Nobody
/// finds another key with the same.
#[must_use]
pub fn fingerprint(public: &PublicKey) -> [u8; FINGERPRINT_LEN] {
    *sha256(&[public]).first_chunk().expect("a hash is longer")
}

/// The JWK thumbprint (RFC 7638) of an X25519 key (RFC 8037): what a token's `cnf.jkt` names it by.
#[must_use]
pub fn key_thumbprint(public: &PublicKey) -> [u8; KEY_LEN] {
    let x = URL_SAFE_NO_PAD.encode(public);
    sha256(&[br#"{"crv":"X25519","kty":"OKP","x":""#, x.as_bytes(), br#""}"#])
}

/// Fresh secret bytes from the system.
///
/// # Panics
/// If the system has no randomness to give.
#[must_use]
pub fn random() -> Secret {
    let mut bytes = Secret::default();
    aws_lc_rs::rand::fill(bytes.as_mut_slice()).expect("the system's random generator works");
    bytes
}
