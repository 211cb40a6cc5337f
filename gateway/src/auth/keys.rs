//! Key files: how they are made, written (0600 where secret) and read. Never logs what is in them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Claims, keys_dir};

/// The mode of a file that holds a secret.
const SECRET_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;
const TICKET_KEY_LEN: usize = 32;

/// Why a key is not there.
#[derive(Debug, Error)]
pub enum KeyError {
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {source}. {remedy}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The ticket key is not 64 hex digits.
    #[error(
        "{0} does not hold 64 hex digits. Delete it, and the next start makes another: clients then log in with tokens."
    )]
    NotATicketKey(PathBuf),
    /// The PEM is not an Ed25519 public key.
    #[error(
        "the public key for tokens is no Ed25519 public key in PEM (`openssl pkey -in private.pem -pubout` prints one); \
         token.public_key_file names the file"
    )]
    NotAPublicKey,
    /// The development credentials cannot be used.
    #[error("{0} holds no usable development credentials. Make another data directory with `culver init`.")]
    NotCredentials(PathBuf),
    /// The cryptographic library refused.
    #[error("the cryptographic library failed to make a key")]
    Generate,
}

/// The key that seals tickets.
pub struct TicketKey([u8; TICKET_KEY_LEN]);

impl TicketKey {
    /// A key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; TICKET_KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// A fresh random key.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = [0; TICKET_KEY_LEN];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Generate)?;
        Ok(Self(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8; TICKET_KEY_LEN] {
        &self.0
    }
}

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

    /// Signs a token for `user` and `device`.
    ///
    /// # Errors
    /// The private key cannot be used.
    pub fn mint(&self, user: u64, device: u16, now_s: u64, life_s: u64) -> Result<String, KeyError> {
        let not_usable = |_| KeyError::NotCredentials(PathBuf::from(CREDENTIALS_FILE));
        let key = EncodingKey::from_ed_pem(self.private_key_pem.as_bytes()).map_err(not_usable)?;
        let claims = Claims {
            sub: user.to_string(),
            device,
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            iat: now_s,
            exp: now_s.saturating_add(life_s),
        };
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, &claims, &key).map_err(not_usable)
    }
}

/// A fresh pair of keys for tokens, in PEM.
pub struct TokenKeys {
    /// PKCS #8.
    pub private_pem: String,
    /// `SubjectPublicKeyInfo`.
    pub public_pem: String,
}

impl TokenKeys {
    /// Makes a pair.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> Result<Self, KeyError> {
        let document = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).map_err(|_| KeyError::Generate)?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(document.as_ref()).map_err(|_| KeyError::Generate)?;
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| KeyError::Generate)?;
        let encode = |tag: &str, der: &[u8]| {
            let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
            pem::encode_config(&pem::Pem::new(tag, der), config)
        };
        Ok(Self {
            private_pem: encode("PRIVATE KEY", document.as_ref()),
            public_pem: encode("PUBLIC KEY", public.as_ref()),
        })
    }
}

/// The development credentials' file inside a data directory.
pub const CREDENTIALS_FILE: &str = "dev-credentials.json";

/// Where the ticket key is.
#[must_use]
pub fn ticket_key_path(data_dir: &Path) -> PathBuf {
    keys_dir(data_dir).join("ticket.key")
}

/// Whether everything that [`create_missing`] would write is there.
#[must_use]
pub fn are_complete(data_dir: &Path) -> bool {
    ticket_key_path(data_dir).exists() && token_public_path(data_dir).exists()
}

fn token_public_path(data_dir: &Path) -> PathBuf {
    keys_dir(data_dir).join("token-public.pem")
}

/// Writes whatever of the keys and credentials is missing in `data_dir`; what is there stays.
///
/// # Errors
/// A file cannot be written.
pub fn create_missing(data_dir: &Path, issuer: &str, audience: &str) -> Result<(), KeyError> {
    let dir = keys_dir(data_dir);
    fs::create_dir_all(&dir).map_err(|source| KeyError::File {
        action: "create",
        path: dir.clone(),
        source,
        remedy: REMEDY_WRITE,
    })?;
    read_or_create_ticket_key(&ticket_key_path(data_dir))?;
    let public_path = token_public_path(data_dir);
    if public_path.exists() {
        return Ok(());
    }
    // The public key comes last: where it is, the rest of the pair is.
    let keys = TokenKeys::generate()?;
    write_whole(&dir.join("token-private.pem"), &keys.private_pem, SECRET_MODE)?;
    let credentials = DevCredentials {
        issuer: issuer.to_owned(),
        audience: audience.to_owned(),
        algorithm: "EdDSA".to_owned(),
        key_id: "dev".to_owned(),
        private_key_pem: keys.private_pem,
    };
    let text = serde_json::to_string_pretty(&credentials).expect("strings are always JSON");
    write_whole(&data_dir.join(CREDENTIALS_FILE), &format!("{text}\n"), SECRET_MODE)?;
    write_whole(&public_path, &keys.public_pem, PUBLIC_MODE)
}

/// The PEM of the public key for tokens.
pub(super) fn read_token_public(path: &Path) -> Result<String, KeyError> {
    read(
        path,
        "Put the login service's Ed25519 public key there, or name it with token.public_key_file; `culver init` writes one for development.",
    )
}

/// The ticket key of a data directory; made where there is none.
pub(super) fn read_or_create_ticket_key(path: &Path) -> Result<TicketKey, KeyError> {
    if !path.exists() {
        let key = TicketKey::generate()?;
        write_whole(path, &format!("{}\n", hex::encode(key.0)), SECRET_MODE)?;
        return Ok(key);
    }
    let text = read(path, "The server's user must be able to read it.")?;
    let mut bytes = [0; TICKET_KEY_LEN];
    hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| KeyError::NotATicketKey(path.to_path_buf()))?;
    Ok(TicketKey(bytes))
}

const REMEDY_WRITE: &str = "The directory must be writable for this user.";

fn read(path: &Path, remedy: &'static str) -> Result<String, KeyError> {
    fs::read_to_string(path).map_err(|source| KeyError::File {
        action: "read",
        path: path.to_path_buf(),
        source,
        remedy,
    })
}

/// Writes a file so that it is there whole, durable and with its mode, or not at all.
///
/// # Errors
/// It cannot be written.
pub fn write_whole(path: &Path, text: &str, mode: u32) -> Result<(), KeyError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&aside)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(parent)?.sync_all()
    };
    write().map_err(|source| KeyError::File { action: "write", path: path.to_path_buf(), source, remedy: REMEDY_WRITE })
}

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKey(…)")
    }
}
