//! The root of trust: an Ed25519 pair. Its private half certifies server keys; its public half is what clients are built
//! with. Never part of a running server: only commands have a private root.

use std::path::Path;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use culver_protocol::crypto::{KEY_LEN, KeyPair, Secret, random};
use culver_protocol::handshake::certificate::{CERTIFICATE_LEN, Certificate, SIGNATURE_LEN};
use jsonwebtoken::DecodingKey;
use zeroize::Zeroizing;

use super::KeyError;
use super::files::{PUBLIC_MODE, SECRET_MODE, read, write_whole};
use super::server::CertifiedKey;

/// Bytes of the part of a certificate that says something.
const BODY_LEN: usize = CERTIFICATE_LEN - SIGNATURE_LEN;

/// A root with its private half.
pub struct Root {
    pair: Ed25519KeyPair,
}

impl Root {
    /// The root of these 32 bytes, which should come from a good generator.
    ///
    /// # Panics
    /// Never: any 32 bytes are a seed.
    #[must_use]
    pub fn new(seed: &Secret) -> Self {
        Self { pair: Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).expect("any 32 bytes are a seed") }
    }

    /// A fresh random root.
    #[must_use]
    pub fn generate() -> Self {
        Self::new(&random())
    }

    /// Reads a private key in PEM (PKCS #8).
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let remedy = "`culver init --data-dir DIR` makes one for development. Where the root is kept elsewhere: culver \
                      keys rotate --request FILE (see culver keys --help).";
        let text = read(path, remedy)?;
        let not_a_root = |_| KeyError::NotARoot(path.to_path_buf());
        let document = pem::parse(text.as_bytes()).map_err(not_a_root)?;
        let document = Zeroizing::new(document.into_contents());
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&document);
        Ok(Self { pair: pair.map_err(|_| KeyError::NotARoot(path.to_path_buf()))? })
    }

    /// Writes the private half in PEM, for its owner alone.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        write_whole(path, &private_pem(&self.pair)?, SECRET_MODE)
    }

    /// Writes the public half in PEM.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_public(&self, path: &Path) -> Result<(), KeyError> {
        write_whole(path, &public_pem(&self.pair)?, PUBLIC_MODE)
    }

    /// The public half: what clients are built with.
    ///
    /// # Panics
    /// Never: a public key has 32 bytes.
    #[must_use]
    pub fn public(&self) -> [u8; KEY_LEN] {
        self.pair.public_key().as_ref().try_into().expect("a public key has 32 bytes")
    }

    /// Certifies a server key.
    ///
    /// # Panics
    /// Never: a signature has 64 bytes.
    #[must_use]
    pub fn certify(&self, certificate: &Certificate) -> [u8; CERTIFICATE_LEN] {
        let signature = self.pair.sign(&certificate.signed_bytes());
        let signature: &[u8; SIGNATURE_LEN] = signature.as_ref().try_into().expect("a signature has 64 bytes");
        certificate.encode(signature)
    }

    /// Certifies what a request asks for: the bytes to sign. `None`: it is no request.
    #[must_use]
    pub fn certify_request(&self, request: &[u8]) -> Option<(Certificate, Vec<u8>)> {
        let body = request.last_chunk::<BODY_LEN>()?;
        let bytes = [body.as_slice(), self.pair.sign(request).as_ref()].concat();
        // Reading it again shows whether all that was signed is a certificate, and nothing besides.
        let certificate = Certificate::decode(&bytes, &self.public()).ok()?;
        (certificate.signed_bytes() == request && certificate.key_id != 0).then_some((certificate, bytes))
    }

    /// A server key with this number, certified from `not_before_ms` until `not_after_ms`.
    #[must_use]
    pub fn certify_pair(&self, id: u16, pair: KeyPair, (not_before_ms, not_after_ms): (u64, u64)) -> CertifiedKey {
        let certificate = Certificate { key_id: id, public: *pair.public(), not_before_ms, not_after_ms };
        CertifiedKey::new(certificate, self.certify(&certificate).to_vec(), pair)
    }
}

/// Reads the public half of a root, in PEM.
pub(super) fn read_root_public(path: &Path) -> Result<[u8; KEY_LEN], KeyError> {
    let remedy =
        "It is the public key of the root that certifies server keys: `culver init` writes one for development.";
    let text = read(path, remedy)?;
    let not_a_root = || KeyError::NotARootPublic(path.to_path_buf());
    let key = DecodingKey::from_ed_pem(text.as_bytes()).map_err(|_| not_a_root())?;
    key.as_bytes().try_into().map_err(|_| not_a_root())
}

/// The private half of a pair, in PEM (PKCS #8).
pub(super) fn private_pem(pair: &Ed25519KeyPair) -> Result<Zeroizing<String>, KeyError> {
    let document = pair.to_pkcs8v1().map_err(|_| KeyError::Generate)?;
    Ok(Zeroizing::new(encode("PRIVATE KEY", document.as_ref())))
}

/// The public half of a pair, in PEM (`SubjectPublicKeyInfo`).
pub(super) fn public_pem(pair: &Ed25519KeyPair) -> Result<String, KeyError> {
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| KeyError::Generate)?;
    Ok(encode("PUBLIC KEY", public.as_ref()))
}

fn encode(tag: &str, der: &[u8]) -> String {
    pem::encode_config(&pem::Pem::new(tag, der), pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Root(…)")
    }
}
