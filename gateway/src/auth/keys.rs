//! What `culver init` puts into `DIR/keys` and beside it for development: keys, a root, and what mints tokens. What is
//! there stays. Never logs what is in them.

use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culver_protocol::crypto::{KEY_LEN, PublicKey};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::files::{PUBLIC_MODE, SECRET_MODE, hold, make_folder, read};
use super::keys_dir;
use super::root::{Root, private_pem, public_pem};
use super::server_folder::{CERTIFIED_DAYS, ServerFolder};
use super::ticket_keys::TicketKeys;
use super::token::{Claims, Confirmation};

pub use super::KeyError;
pub use super::files::write_whole;
pub use super::ticket_keys::TicketKey;

/// The development credentials' file inside a data directory.
pub const CREDENTIALS_FILE: &str = "dev-credentials.json";

/// The `kid` of the development key.
const KEY_ID: &str = "dev";

/// What mints tokens in development: `DIR/dev-credentials.json`.
#[derive(Clone, Serialize, Deserialize)]
pub struct DevCredentials {
    /// The `iss` of tokens.
    pub issuer: String,
    /// The `aud` of tokens.
    pub audience: String,
    /// Always `EdDSA`.
    pub algorithm: String,
    /// The `kid` of tokens.
    pub key_id: String,
    /// PKCS #8.
    pub private_key_pem: String,
    /// The public half of the root that certifies server keys, in hex: what clients pin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_root: Option<String>,
}

impl DevCredentials {
    /// Reads a file that `culver init` wrote.
    ///
    /// # Errors
    /// It cannot be read or understood.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let text = read(path, "`culver init --data-dir DIR` writes one.")?;
        serde_json::from_str(&text).map_err(|_| KeyError::NotCredentials(path.to_path_buf()))
    }

    /// Signs a token for `user` and `device`; with a key, it is good for whoever holds that alone.
    ///
    /// # Errors
    /// The private key cannot be used.
    pub fn mint(
        &self,
        user: u64,
        device: u16,
        now_s: u64,
        life_s: u64,
        device_key: Option<&PublicKey>,
    ) -> Result<String, KeyError> {
        let not_usable = |_| KeyError::NotCredentials(PathBuf::from(CREDENTIALS_FILE));
        let key = EncodingKey::from_ed_pem(self.private_key_pem.as_bytes()).map_err(not_usable)?;
        let claims = Claims {
            sub: user.to_string(),
            device,
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            iat: now_s,
            exp: now_s.saturating_add(life_s),
            cnf: device_key.map(Confirmation::of),
        };
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, &claims, &key).map_err(not_usable)
    }

    fn write(&self, path: &Path) -> Result<(), KeyError> {
        let text = Zeroizing::new(serde_json::to_string_pretty(self).expect("strings are always JSON"));
        write_whole(path, &Zeroizing::new(format!("{}\n", *text)), SECRET_MODE)
    }
}

/// A fresh pair of keys for tokens.
pub struct TokenKeys {
    /// PEM: PKCS #8.
    pub private_pem: Zeroizing<String>,
    /// PEM: `SubjectPublicKeyInfo`.
    pub public_pem: String,
    public: [u8; KEY_LEN],
}

impl TokenKeys {
    /// Makes a pair.
    ///
    /// # Errors
    /// The system has no randomness to give.
    ///
    /// # Panics
    /// Never: a public key has 32 bytes.
    pub fn generate() -> Result<Self, KeyError> {
        let document = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).map_err(|_| KeyError::Generate)?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(document.as_ref()).map_err(|_| KeyError::Generate)?;
        let public = pair.public_key().as_ref().try_into().expect("a public key has 32 bytes");
        Ok(Self { private_pem: private_pem(&pair)?, public_pem: public_pem(&pair)?, public })
    }

    /// The public half as a JWK (RFC 8037) with this `kid`.
    #[must_use]
    pub fn jwk(&self, kid: &str) -> serde_json::Value {
        let x = URL_SAFE_NO_PAD.encode(self.public);
        serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": x })
    }
}

/// Where the ticket keys are.
#[must_use]
pub fn ticket_key_path(data_dir: &Path) -> PathBuf {
    keys_dir(data_dir).join("ticket.key")
}

/// Whether everything that [`create_missing`] would write is there.
#[must_use]
pub fn are_complete(data_dir: &Path) -> bool {
    let folder = ServerFolder::of(data_dir);
    let has_server_key = folder.root_public_path().exists() && folder.is_empty().is_ok_and(|is_empty| !is_empty);
    ticket_key_path(data_dir).exists() && has_token_keys(data_dir) && has_server_key
}

/// A key file of an earlier version is as good as a set.
fn has_token_keys(data_dir: &Path) -> bool {
    jwks_path(data_dir).exists() || keys_dir(data_dir).join("token-public.pem").exists()
}

fn jwks_path(data_dir: &Path) -> PathBuf {
    keys_dir(data_dir).join("jwks.json")
}

/// Writes whatever of the keys and credentials is missing in `data_dir`; what is there stays.
///
/// # Errors
/// A file cannot be written.
pub fn create_missing(data_dir: &Path, issuer: &str, audience: &str, now_ms: u64) -> Result<(), KeyError> {
    make_folder(&keys_dir(data_dir))?;
    read_or_create_ticket_keys(&ticket_key_path(data_dir), now_ms)?;
    if !has_token_keys(data_dir) {
        let keys = TokenKeys::generate()?;
        write_whole(&keys_dir(data_dir).join("token-private.pem"), &keys.private_pem, SECRET_MODE)?;
        let credentials = DevCredentials {
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
            algorithm: "EdDSA".to_owned(),
            key_id: KEY_ID.to_owned(),
            private_key_pem: keys.private_pem.to_string(),
            server_root: None,
        };
        credentials.write(&data_dir.join(CREDENTIALS_FILE))?;
        // The public key comes last: where it is, the rest of the pair is.
        let set = serde_json::json!({ "keys": [keys.jwk(KEY_ID)] });
        write_whole(&jwks_path(data_dir), &format!("{set:#}\n"), PUBLIC_MODE)?;
    }
    create_missing_identity(data_dir, now_ms).map(|_| ())
}

/// Makes the root and the first server key where there is neither, and says whether it did. What clients in
/// development pin is in the credentials then.
///
/// # Errors
/// A file cannot be read or written.
pub fn create_missing_identity(data_dir: &Path, now_ms: u64) -> Result<bool, KeyError> {
    make_folder(&keys_dir(data_dir))?;
    let folder = ServerFolder::of(data_dir);
    let is_missing = folder.is_empty()? && (folder.root_path().exists() || !folder.root_public_path().exists());
    if is_missing {
        let root = create_missing_root(&folder, data_dir)?;
        folder.rotate(&root, CERTIFIED_DAYS, now_ms)?;
    }
    let path = data_dir.join(CREDENTIALS_FILE);
    if path.exists() && folder.root_public_path().exists() {
        let credentials = DevCredentials::read(&path)?;
        if credentials.server_root.is_none() {
            let server_root = Some(hex::encode(folder.root_public()?));
            DevCredentials { server_root, ..credentials }.write(&path)?;
        }
    }
    Ok(is_missing)
}

fn create_missing_root(folder: &ServerFolder, data_dir: &Path) -> Result<Root, KeyError> {
    let _held = hold(&keys_dir(data_dir))?;
    let root = if folder.root_path().exists() {
        Root::read(&folder.root_path())?
    } else {
        let root = Root::generate();
        root.write(&folder.root_path())?;
        root
    };
    if !folder.root_public_path().exists() {
        root.write_public(&folder.root_public_path())?;
    }
    Ok(root)
}

/// The ticket keys of a data directory; made where there are none.
pub(super) fn read_or_create_ticket_keys(path: &Path, now_ms: u64) -> Result<TicketKeys, KeyError> {
    if path.exists() {
        return TicketKeys::read(path);
    }
    let keys = TicketKeys::of(TicketKey::generate()?, now_ms);
    keys.write(path)?;
    Ok(keys)
}
