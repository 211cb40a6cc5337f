//! The public keys that tokens are verified with, from a JWK Set (RFC 7517), and the check of a signature (RFC 7515).
//!
//! Owns which key may verify what: a token's `kid` picks the key, and the key says which algorithm. Knows no claim.

use std::collections::HashSet;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culver_protocol::error::ErrorCode;
use culver_protocol::limits::TOKEN_LEN_MAX;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use serde::de::IgnoredAny;
use thiserror::Error;

use super::KeyError;
use super::files::FILE_LEN_MAX;

/// Most keys in a set.
pub const JWKS_KEYS_MAX: usize = 32;
/// Longest JWK Set.
pub const JWKS_LEN_MAX: usize = FILE_LEN_MAX;

/// Bytes of a coordinate on either curve.
const COORDINATE_LEN: usize = 32;
/// SEC 1, 2.3.3: a point with both coordinates follows.
const UNCOMPRESSED: u8 = 4;

/// What is wrong with a JWK Set.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JwksError {
    /// It is too long.
    #[error("it is longer than {JWKS_LEN_MAX} bytes")]
    TooLong,
    /// It is no JWK Set.
    #[error("it is no JWK Set, {{\"keys\": […]}}: {0}")]
    Unreadable(String),
    /// It holds no key.
    #[error("it holds no key, so no token could be verified")]
    Empty,
    /// It holds too many keys.
    #[error("it holds {0} keys, and {JWKS_KEYS_MAX} are the most")]
    TooMany(usize),
    /// One of its keys cannot be used.
    #[error("key {key} {fault}")]
    Key {
        /// Its `kid`, or its place.
        key: String,
        /// What is wrong with it.
        fault: KeyFault,
    },
}

/// What is wrong with one key of a JWK Set.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyFault {
    /// It is no public key.
    #[error("holds a secret (`d` or `k`), which does not belong here: make another pair and list its public half")]
    Secret,
    /// It is of another kind.
    #[error("has {0}: tokens are verified with keys of kty OKP and crv Ed25519, or kty EC and crv P-256")]
    Kind(String),
    /// It is for another algorithm.
    #[error("has alg {found}, and a key of its kind verifies {possible}")]
    Algorithm {
        /// Its `alg`.
        found: String,
        /// What it would have to be.
        possible: &'static str,
    },
    /// It is for something else.
    #[error("has use {0}: it must be sig, or left out")]
    Use(String),
    /// It is for something else.
    #[error("has key_ops without verify")]
    Operations,
    /// Its coordinates are none.
    #[error("has an x or y that is no point of its curve in base64url without padding")]
    Point,
    /// It cannot be told from the others.
    #[error("has no kid: where there are several keys, each needs one")]
    NoId,
    /// It cannot be told from the others.
    #[error("has the kid of another")]
    SameId,
}

/// How tokens are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    EdDsa,
    Es256,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::EdDsa, Self::Es256].into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// The keys of whoever makes tokens.
#[derive(Debug)]
pub struct KeySet {
    /// At least one; several have a `kid` each, all different.
    keys: Vec<VerificationKey>,
}

#[derive(Debug)]
struct VerificationKey {
    kid: Option<String>,
    algorithm: Algorithm,
    public: ParsedPublicKey,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Jwk>,
}

/// A key as it is written. What it may say besides means nothing here.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    d: Option<IgnoredAny>,
    k: Option<IgnoredAny>,
}

/// A token's header, as far as it is looked at: keys that it brings along mean nothing.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
}

impl KeySet {
    /// Reads a JWK Set.
    ///
    /// # Errors
    /// The first thing that is wrong with it. A set with one bad key is a bad set: whoever wrote it is to know.
    pub fn parse(bytes: &[u8]) -> Result<Self, JwksError> {
        if bytes.len() > JWKS_LEN_MAX {
            return Err(JwksError::TooLong);
        }
        let set: Set = serde_json::from_slice(bytes).map_err(|error| JwksError::Unreadable(error.to_string()))?;
        match set.keys.len() {
            0 => return Err(JwksError::Empty),
            1..=JWKS_KEYS_MAX => {}
            count => return Err(JwksError::TooMany(count)),
        }
        let is_alone = set.keys.len() == 1;
        let (mut keys, mut ids) = (Vec::with_capacity(set.keys.len()), HashSet::new());
        for (index, jwk) in set.keys.into_iter().enumerate() {
            let name = jwk.kid.as_ref().map_or_else(|| format!("number {}", index + 1), |kid| format!("{kid:?}"));
            let checked = jwk.check().and_then(|key| match &key.kid {
                None if !is_alone => Err(KeyFault::NoId),
                Some(kid) if !ids.insert(kid.clone()) => Err(KeyFault::SameId),
                _ => Ok(key),
            });
            keys.push(checked.map_err(|fault| JwksError::Key { key: name, fault })?);
        }
        Ok(Self { keys })
    }

    /// One Ed25519 key in PEM, which verifies tokens of every `kid`.
    ///
    /// # Errors
    /// [`KeyError::NotAPublicKey`].
    pub fn of_pem(pem: &str) -> Result<Self, KeyError> {
        let key = DecodingKey::from_ed_pem(pem.as_bytes()).map_err(|_| KeyError::NotAPublicKey)?;
        let raw: &[u8; COORDINATE_LEN] = key.as_bytes().try_into().map_err(|_| KeyError::NotAPublicKey)?;
        let public = ParsedPublicKey::new(&ED25519, raw).map_err(|_| KeyError::NotAPublicKey)?;
        Ok(Self { keys: vec![VerificationKey { kid: None, algorithm: Algorithm::EdDsa, public }] })
    }

    /// How many keys there are.
    pub(super) fn count(&self) -> usize {
        self.keys.len()
    }

    /// What a token says, if the key that it names has signed it.
    ///
    /// # Errors
    /// `TokenMalformed`: it is no compact JWS, is too long, or has extensions that must be understood. `TokenAlgorithm`:
    /// its algorithm is unknown, or not its key's. `TokenSignature`: no key is the one it names, or that has not signed
    /// it.
    pub fn verify(&self, token: &str) -> Result<Vec<u8>, ErrorCode> {
        if token.len() > TOKEN_LEN_MAX {
            return Err(ErrorCode::TokenMalformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(ErrorCode::TokenMalformed)?;
        let (header, payload) = signed.split_once('.').ok_or(ErrorCode::TokenMalformed)?;
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| ErrorCode::TokenMalformed)?;
        let algorithm = Algorithm::named(&header.alg).ok_or(ErrorCode::TokenAlgorithm)?;
        // RFC 7515, 4.1.11: extensions that must be understood, and none is.
        if header.crit.is_some() {
            return Err(ErrorCode::TokenMalformed);
        }
        let (payload, signature) = (decode(payload)?, decode(signature)?);
        let key = self.pick(header.kid.as_deref()).ok_or(ErrorCode::TokenSignature)?;
        if key.algorithm != algorithm {
            return Err(ErrorCode::TokenAlgorithm);
        }
        key.public.verify_sig(signed.as_bytes(), &signature).map_err(|_| ErrorCode::TokenSignature)?;
        Ok(payload)
    }

    /// The key of this number. A token that names none means the only key; an only key without a name verifies any.
    fn pick(&self, kid: Option<&str>) -> Option<&VerificationKey> {
        match (self.keys.as_slice(), kid) {
            ([only], None) => Some(only),
            ([only], Some(_)) if only.kid.is_none() => Some(only),
            (keys, kid) => kid.and_then(|kid| keys.iter().find(|key| key.kid.as_deref() == Some(kid))),
        }
    }
}

impl Jwk {
    fn check(self) -> Result<VerificationKey, KeyFault> {
        if self.d.is_some() || self.k.is_some() {
            return Err(KeyFault::Secret);
        }
        let algorithm = match (self.kty.as_str(), self.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => Algorithm::EdDsa,
            ("EC", Some("P-256")) => Algorithm::Es256,
            (kty, None) => return Err(KeyFault::Kind(format!("kty {kty}"))),
            (kty, Some(crv)) => return Err(KeyFault::Kind(format!("kty {kty} and crv {crv}"))),
        };
        if let Some(found) = self.alg.filter(|alg| alg != algorithm.name()) {
            return Err(KeyFault::Algorithm { found, possible: algorithm.name() });
        }
        if let Some(purpose) = self.purpose.filter(|purpose| purpose != "sig") {
            return Err(KeyFault::Use(purpose));
        }
        if self.key_ops.is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
            return Err(KeyFault::Operations);
        }
        let (x, y) = (self.x.as_deref().and_then(coordinate), self.y.as_deref().and_then(coordinate));
        let public = match (algorithm, x, y) {
            (Algorithm::EdDsa, Some(x), _) if self.y.is_none() => ParsedPublicKey::new(&ED25519, x),
            (Algorithm::Es256, Some(x), Some(y)) => {
                let point = [&[UNCOMPRESSED], x.as_slice(), y.as_slice()].concat();
                ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            }
            _ => return Err(KeyFault::Point),
        };
        Ok(VerificationKey { kid: self.kid, algorithm, public: public.map_err(|_| KeyFault::Point)? })
    }
}

fn coordinate(text: &str) -> Option<[u8; COORDINATE_LEN]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

fn decode(part: &str) -> Result<Vec<u8>, ErrorCode> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| ErrorCode::TokenMalformed)
}
