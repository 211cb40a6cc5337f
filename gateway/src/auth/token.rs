//! Tokens: JWTs (RFC 7519) signed with EdDSA, made by the application's own login service.
//!
//! Claims: `sub` (the numeric user id, as a string), `device` (a number), `exp`, `iss`, `aud`; `nbf` is honoured.
//! Every mistake has its own error code. Never looks at a clock and never logs a token.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, UserId};
use culver_protocol::limits::TOKEN_LEN_MAX;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::{Deserialize, Serialize};

use super::{Identity, keys::KeyError};
use crate::config;

/// The claims of a token that `culver token` makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Claims {
    /// The user id, in decimal digits.
    pub sub: String,
    /// The device.
    pub device: u16,
    /// Who made the token.
    pub iss: String,
    /// For whom.
    pub aud: String,
    /// When it was made, in seconds since 1970.
    pub iat: u64,
    /// When it expires, in seconds since 1970.
    pub exp: u64,
}

/// What a stranger's token may say; everything is checked by hand, so that each mistake gets its own code.
#[derive(Deserialize)]
struct Received {
    sub: String,
    device: u16,
    exp: NumericDate,
    nbf: Option<NumericDate>,
    iss: String,
    aud: Audience,
}

#[derive(Deserialize)]
struct AlgorithmOnly {
    alg: String,
    crit: Option<serde::de::IgnoredAny>,
}

/// Seconds since 1970, which RFC 7519 lets have a fraction.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum NumericDate {
    Whole(u64),
    Fraction(f64),
}

/// One audience or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// Verifies tokens against one public key.
pub struct TokenVerifier {
    key: DecodingKey,
    /// The signature and its algorithm only: times and names are checked here, against the caller's clock.
    signature_only: Validation,
    issuer: String,
    audience: String,
    leeway_ms: u64,
}

impl TokenVerifier {
    /// A verifier for tokens signed with the private half of `public_key_pem`.
    ///
    /// # Errors
    /// The PEM holds no Ed25519 public key.
    pub fn new(public_key_pem: &str, settings: &config::Token) -> Result<Self, KeyError> {
        let key = DecodingKey::from_ed_pem(public_key_pem.as_bytes()).map_err(|_| KeyError::NotAPublicKey)?;
        let mut signature_only = Validation::new(Algorithm::EdDSA);
        signature_only.required_spec_claims.clear();
        signature_only.validate_exp = false;
        signature_only.validate_nbf = false;
        signature_only.validate_aud = false;
        Ok(Self {
            key,
            signature_only,
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            leeway_ms: settings.leeway_s.saturating_mul(1000),
        })
    }

    /// Who a token names.
    ///
    /// # Errors
    /// `TokenMalformed`, `TokenAlgorithm`, `TokenSignature`, `TokenAudience`, `TokenNotYetValid` or `TokenExpired`:
    /// the first that applies, in this order. A token of another issuer counts as one of another audience.
    pub fn verify(&self, token: &str, now_ms: u64) -> Result<Identity, ErrorCode> {
        if token.len() > TOKEN_LEN_MAX {
            return Err(ErrorCode::TokenMalformed);
        }
        check_algorithm(token)?;
        let claims = jsonwebtoken::decode::<Received>(token, &self.key, &self.signature_only)
            .map_err(|error| match error.kind() {
                ErrorKind::InvalidSignature => ErrorCode::TokenSignature,
                ErrorKind::InvalidAlgorithm => ErrorCode::TokenAlgorithm,
                _ => ErrorCode::TokenMalformed,
            })?
            .claims;
        self.check_claims(&claims, now_ms)
    }

    fn check_claims(&self, claims: &Received, now_ms: u64) -> Result<Identity, ErrorCode> {
        let user = parse_user(&claims.sub).ok_or(ErrorCode::TokenMalformed)?;
        let expires_ms = claims.exp.to_ms().ok_or(ErrorCode::TokenMalformed)?;
        let valid_from_ms = match claims.nbf {
            Some(date) => date.to_ms().ok_or(ErrorCode::TokenMalformed)?,
            None => 0,
        };
        if claims.iss != self.issuer || !claims.aud.names(&self.audience) {
            return Err(ErrorCode::TokenAudience);
        }
        if valid_from_ms > now_ms.saturating_add(self.leeway_ms) {
            return Err(ErrorCode::TokenNotYetValid);
        }
        if expires_ms.saturating_add(self.leeway_ms) <= now_ms {
            return Err(ErrorCode::TokenExpired);
        }
        Ok(Identity { user, device: DeviceId(claims.device) })
    }
}

/// Looks at the header alone: `jsonwebtoken` cannot even read a header whose algorithm it does not know (`none`).
fn check_algorithm(token: &str) -> Result<(), ErrorCode> {
    let header = token.split('.').next().expect("split yields at least one part");
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| ErrorCode::TokenMalformed)?;
    let header: AlgorithmOnly = serde_json::from_slice(&header).map_err(|_| ErrorCode::TokenMalformed)?;
    if header.alg != "EdDSA" {
        return Err(ErrorCode::TokenAlgorithm);
    }
    // RFC 7515 §4.1.11: extensions that must be understood, and none is.
    if header.crit.is_some() { Err(ErrorCode::TokenMalformed) } else { Ok(()) }
}

/// Decimal digits and nothing else (`u64::from_str` alone would take a plus sign).
fn parse_user(sub: &str) -> Option<UserId> {
    if !sub.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    sub.parse().ok().map(UserId)
}

impl NumericDate {
    fn to_ms(self) -> Option<u64> {
        /// The first millisecond that tokens never reach: no `f64` below it loses its whole milliseconds.
        const SECONDS_MAX: f64 = 1e12;
        match self {
            Self::Whole(seconds) => Some(seconds.saturating_mul(1000)),
            Self::Fraction(seconds) if (0.0..SECONDS_MAX).contains(&seconds) => {
                u64::try_from(std::time::Duration::from_secs_f64(seconds).as_millis()).ok()
            }
            Self::Fraction(_) => None,
        }
    }
}

impl Audience {
    fn names(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|one| one == audience),
        }
    }
}

impl std::fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenVerifier").field("issuer", &self.issuer).field("audience", &self.audience).finish()
    }
}
