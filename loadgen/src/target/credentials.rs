//! Development credentials: the key that `culver init` leaves beside its data, and tokens made with it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use culver_protocol::id::{DeviceId, UserId};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::{Deserialize, Serialize};

use crate::clock::unix_ms;

/// How long a generated token is valid: longer than any run.
const TOKEN_LIFE_S: u64 = 24 * 3600;

#[derive(Deserialize)]
struct CredentialsFile {
    issuer: String,
    audience: String,
    algorithm: String,
    key_id: String,
    private_key_pem: String,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: String,
    device: u16,
    iss: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
}

/// What tokens are made with.
pub(crate) struct Credentials {
    issuer: String,
    audience: String,
    header: Header,
    key: EncodingKey,
}

impl Credentials {
    /// Reads a `dev-credentials.json`.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read {}: name the file that `culver init` wrote with --credentials", path.display())
        })?;
        let file: CredentialsFile =
            serde_json::from_str(&text).with_context(|| format!("{} is no credentials file", path.display()))?;
        if file.algorithm != "EdDSA" {
            bail!("{} names the algorithm {}, and only EdDSA is known", path.display(), file.algorithm);
        }
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(file.key_id);
        let key = EncodingKey::from_ed_pem(file.private_key_pem.as_bytes()).context("the private key is unreadable")?;
        Ok(Self { issuer: file.issuer, audience: file.audience, header, key })
    }

    /// A token that the server accepts.
    pub(crate) fn token(&self, user: UserId, device: DeviceId) -> Result<String> {
        let now_s = unix_ms() / 1000;
        self.sign(user, device, &self.audience, now_s, now_s + TOKEN_LIFE_S)
    }

    /// A token for another service.
    pub(crate) fn token_for_audience(&self, user: UserId, device: DeviceId, audience: &str) -> Result<String> {
        let now_s = unix_ms() / 1000;
        self.sign(user, device, audience, now_s, now_s + TOKEN_LIFE_S)
    }

    /// A token signed with a shared secret, which no server of this kind may accept.
    pub(crate) fn token_otherwise_signed(&self, user: UserId, device: DeviceId) -> Result<String> {
        let now_s = unix_ms() / 1000;
        let claims = self.claims(user, device, &self.audience, now_s, now_s + TOKEN_LIFE_S);
        encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(b"secret")).context("signing a token")
    }

    /// A token whose time has passed, by more than any clock leeway.
    pub(crate) fn token_expired(&self, user: UserId, device: DeviceId) -> Result<String> {
        let now_s = unix_ms() / 1000;
        self.sign(user, device, &self.audience, now_s - 7200, now_s - 3600)
    }

    fn sign(&self, user: UserId, device: DeviceId, audience: &str, iat: u64, exp: u64) -> Result<String> {
        encode(&self.header, &self.claims(user, device, audience, iat, exp), &self.key).context("signing a token")
    }

    fn claims<'a>(&'a self, user: UserId, device: DeviceId, aud: &'a str, iat: u64, exp: u64) -> Claims<'a> {
        Claims { sub: user.0.to_string(), device: device.0, iss: &self.issuer, aud, iat, exp }
    }
}
