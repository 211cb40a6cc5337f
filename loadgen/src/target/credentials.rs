//! Development credentials: what `culver init` leaves beside its data, the root of the server's keys among it, and
//! tokens made with them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culver_protocol::crypto::{KEY_LEN, PublicKey, key_thumbprint};
use culver_protocol::id::{DeviceId, UserId};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::{Deserialize, Serialize};

use super::sealing::{Sealing, SuiteOption};
use crate::clock::unix_ms;
use crate::report::BadUsage;

/// How long a generated token is valid: longer than any run.
const TOKEN_LIFE_S: u64 = 24 * 3600;

#[derive(Deserialize)]
struct CredentialsFile {
    issuer: String,
    audience: String,
    algorithm: String,
    key_id: String,
    private_key_pem: String,
    /// Hex: whose signature makes a server's key good. A server that offers no encryption has none.
    server_root: Option<String>,
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: String,
    device: u16,
    iss: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cnf: Option<Confirmation>,
}

/// The key that a token is for (RFC 7800).
#[derive(Serialize)]
struct Confirmation {
    jkt: String,
}

/// What tokens are made with.
pub(crate) struct Credentials {
    issuer: String,
    audience: String,
    header: Header,
    key: EncodingKey,
    root: Option<[u8; KEY_LEN]>,
    path: PathBuf,
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
        let root = file.server_root.map(|hex| key_of_hex(&hex)).transpose();
        let root = root.with_context(|| format!("{}: server_root", path.display()))?;
        Ok(Self { issuer: file.issuer, audience: file.audience, header, key, root, path: path.to_owned() })
    }

    /// How connections are sealed with this suite; `None`: not at all.
    ///
    /// # Errors
    /// They are to be sealed, and nothing says by whose word a server's key is good.
    pub(crate) fn sealing(&self, suite: SuiteOption) -> Result<Option<Sealing>> {
        match (suite.suite(), self.root) {
            (None, _) => Ok(None),
            (Some(suite), Some(root)) => Ok(Some(Sealing { suite, root })),
            (Some(suite), None) => bail!(BadUsage(format!(
                "{} has no server_root, by which a server's key is known, so nothing can be sealed with {}: name the \
                 file of a server that encrypts, or ask for --suite none",
                self.path.display(),
                suite.name()
            ))),
        }
    }

    /// A token that the server accepts: over an encrypted connection, from who has `key`.
    pub(crate) fn token(&self, user: UserId, device: DeviceId, key: Option<&PublicKey>) -> Result<String> {
        let now_s = unix_ms() / 1000;
        self.sign(&self.claims((user, device, key), &self.audience, now_s, now_s + TOKEN_LIFE_S))
    }

    /// A token for another service.
    pub(crate) fn token_for_audience(
        &self,
        user: UserId,
        device: DeviceId,
        key: Option<&PublicKey>,
        audience: &str,
    ) -> Result<String> {
        let now_s = unix_ms() / 1000;
        self.sign(&self.claims((user, device, key), audience, now_s, now_s + TOKEN_LIFE_S))
    }

    /// A token signed with a shared secret, which no server of this kind may accept.
    pub(crate) fn token_otherwise_signed(
        &self,
        user: UserId,
        device: DeviceId,
        key: Option<&PublicKey>,
    ) -> Result<String> {
        let now_s = unix_ms() / 1000;
        let claims = self.claims((user, device, key), &self.audience, now_s, now_s + TOKEN_LIFE_S);
        encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(b"secret")).context("signing a token")
    }

    /// A token whose time has passed, by more than any clock leeway.
    pub(crate) fn token_expired(&self, user: UserId, device: DeviceId, key: Option<&PublicKey>) -> Result<String> {
        let now_s = unix_ms() / 1000;
        self.sign(&self.claims((user, device, key), &self.audience, now_s - 7200, now_s - 3600))
    }

    fn sign(&self, claims: &Claims<'_>) -> Result<String> {
        encode(&self.header, claims, &self.key).context("signing a token")
    }

    fn claims<'a>(
        &'a self,
        (user, device, key): (UserId, DeviceId, Option<&PublicKey>),
        aud: &'a str,
        iat: u64,
        exp: u64,
    ) -> Claims<'a> {
        let cnf = key.map(|key| Confirmation { jkt: URL_SAFE_NO_PAD.encode(key_thumbprint(key)) });
        Claims { sub: user.0.to_string(), device: device.0, iss: &self.issuer, aud, iat, exp, cnf }
    }
}

fn key_of_hex(hex: &str) -> Result<[u8; KEY_LEN]> {
    let told = || format!("{KEY_LEN} bytes of hex, not `{hex}`");
    let mut key = [0; KEY_LEN];
    hex::decode_to_slice(hex, &mut key).with_context(told)?;
    Ok(key)
}

#[cfg(test)]
pub(crate) mod tests {
    use culver_protocol::crypto::Suite;
    use serde_json::{Value, json};

    use super::*;
    use crate::target::sealing::device_key;

    /// A key pair of Ed25519 as PKCS #8 (RFC 8410), of a fixed seed.
    pub(crate) const KEY_PEM: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH\n-----END PRIVATE KEY-----\n";

    fn load(root: Option<&str>) -> Result<Credentials> {
        let mut file = json!({ "issuer": "i", "audience": "a", "algorithm": "EdDSA", "key_id": "k",
            "private_key_pem": KEY_PEM });
        if let Some(root) = root {
            file.as_object_mut().expect("an object").insert("server_root".to_owned(), root.into());
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("credentials.json");
        std::fs::write(&path, file.to_string()).expect("a disk with room");
        Credentials::load(&path)
    }

    fn claims(token: &str) -> Value {
        let claims = token.split('.').nth(1).expect("three parts");
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).expect("base64")).expect("JSON")
    }

    #[test]
    fn a_token_names_the_key_of_its_device() {
        let credentials = load(None).expect("a good file");
        let (user, device) = (UserId(5), DeviceId(2));
        let key = *device_key(user, device).public();
        let told = claims(&credentials.token(user, device, Some(&key)).expect("signed"));
        assert_eq!(told.pointer("/cnf/jkt"), Some(&URL_SAFE_NO_PAD.encode(key_thumbprint(&key)).into()));
        assert_eq!((told.get("sub"), told.get("device")), (Some(&"5".into()), Some(&2.into())));
        assert!(told.get("iat").and_then(Value::as_u64).is_some_and(|iat| iat > 1_700_000_000));
        let plain = claims(&credentials.token(user, device, None).expect("signed"));
        assert_eq!(plain.get("cnf"), None);
    }

    #[test]
    fn what_is_sealed_needs_a_root() {
        let sealed = load(Some(&"ab".repeat(32))).expect("a good file").sealing(SuiteOption::Aes256);
        let sealed = sealed.expect("there is a root").expect("it is sealed");
        assert_eq!((sealed.root, sealed.suite), ([0xab; 32], Suite::Aes256Gcm));
        let without = load(None).expect("a good file");
        assert!(without.sealing(SuiteOption::None).expect("nothing is needed").is_none());
        let told = without.sealing(SuiteOption::Chacha20).expect_err("no root").to_string();
        assert!(told.contains("server_root") && told.contains("--suite none"), "{told}");
        assert!(load(Some("abc")).is_err() && load(Some("ab")).is_err());
    }
}
