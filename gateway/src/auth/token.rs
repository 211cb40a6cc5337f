//! Tokens: JWTs (RFC 7519) signed with EdDSA or ES256, made by the application's own login service.
//!
//! Claims: `sub` (the numeric user id, as a string), `device` (a number), `exp`, `iss`, `aud`; `nbf` and `iat` are
//! honoured, and `cnf.jkt` (RFC 7800, RFC 9449 section 6) names the device's key. Every mistake has its own error code.
//! Never looks at a clock and never logs a token.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culver_protocol::crypto::{KEY_LEN, PublicKey, key_thumbprint};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, UserId};
use serde::{Deserialize, Serialize};

use super::jwks::KeySet;
use super::{Identity, KeyError};
use crate::config;

/// What a token says, once it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenClaims {
    /// Who it is for.
    pub identity: Identity,
    /// The thumbprint (RFC 7638) of the device's key: `cnf.jkt`.
    pub thumbprint: Option<[u8; KEY_LEN]>,
    /// When it was made, in seconds since 1970: `iat`. 0: it does not say.
    pub issued_s: u64,
}

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
    /// The device's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Confirmation>,
}

/// The key whose holder a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// Its thumbprint, in base64url.
    pub jkt: String,
}

impl Confirmation {
    /// Names this key.
    #[must_use]
    pub fn of(device_key: &PublicKey) -> Self {
        Self { jkt: URL_SAFE_NO_PAD.encode(key_thumbprint(device_key)) }
    }

    fn thumbprint(&self) -> Option<[u8; KEY_LEN]> {
        URL_SAFE_NO_PAD.decode(&self.jkt).ok()?.try_into().ok()
    }
}

/// What a stranger's token may say; everything is checked by hand, so that each mistake gets its own code.
#[derive(Deserialize)]
struct Received {
    sub: String,
    device: u16,
    exp: NumericDate,
    nbf: Option<NumericDate>,
    iat: Option<NumericDate>,
    /// Of another form it is no token of ours: to take it for one that names no key would be to ignore what it says.
    cnf: Option<Confirmation>,
    iss: String,
    aud: Audience,
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

/// Verifies tokens.
pub struct TokenVerifier {
    keys: KeySet,
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
        Ok(Self::with_keys(KeySet::of_pem(public_key_pem)?, settings))
    }

    /// A verifier for tokens signed with the private half of one of these.
    #[must_use]
    pub fn with_keys(keys: KeySet, settings: &config::Token) -> Self {
        Self {
            keys,
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            leeway_ms: settings.leeway_s.saturating_mul(1000),
        }
    }

    /// How many keys there are.
    pub(super) fn key_count(&self) -> usize {
        self.keys.count()
    }

    /// What a token says.
    ///
    /// # Errors
    /// What [`KeySet::verify`] says; then `TokenMalformed`, `TokenAudience`, `TokenNotYetValid` or `TokenExpired`: the
    /// first that applies, in this order. A token of another issuer counts as one of another audience.
    pub fn verify(&self, token: &str, now_ms: u64) -> Result<TokenClaims, ErrorCode> {
        let payload = self.keys.verify(token)?;
        let claims: Received = serde_json::from_slice(&payload).map_err(|_| ErrorCode::TokenMalformed)?;
        self.check_claims(&claims, now_ms)
    }

    fn check_claims(&self, claims: &Received, now_ms: u64) -> Result<TokenClaims, ErrorCode> {
        let malformed = ErrorCode::TokenMalformed;
        let user = parse_user(&claims.sub).ok_or(malformed)?;
        let expires_ms = claims.exp.to_ms().ok_or(malformed)?;
        let optional = |date: Option<NumericDate>| date.map_or(Some(0), NumericDate::to_ms).ok_or(malformed);
        let (valid_from_ms, issued_ms) = (optional(claims.nbf)?, optional(claims.iat)?);
        let thumbprint = match &claims.cnf {
            Some(confirmation) => Some(confirmation.thumbprint().ok_or(malformed)?),
            None => None,
        };
        if claims.iss != self.issuer || !claims.aud.names(&self.audience) {
            return Err(ErrorCode::TokenAudience);
        }
        if valid_from_ms.max(issued_ms) > now_ms.saturating_add(self.leeway_ms) {
            return Err(ErrorCode::TokenNotYetValid);
        }
        if expires_ms.saturating_add(self.leeway_ms) <= now_ms {
            return Err(ErrorCode::TokenExpired);
        }
        let identity = Identity { user, device: DeviceId(claims.device) };
        Ok(TokenClaims { identity, thumbprint, issued_s: issued_ms / 1000 })
    }
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
