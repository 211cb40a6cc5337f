//! Logging in with forged, stale and damaged credentials: each mistake has its own error code. And keys on disk: made,
//! rotated, retired, damaged, and followed by a running server.

mod jwks;
mod keys;
mod published;
mod server_keys;
mod tickets;
mod tokens;

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culver::auth::keys::{TicketKey, TokenKeys};
use culver::auth::{
    Authenticator, Identity, KeyError, Root, ServerKeys, TicketContents, TicketSealer, TokenClaims, TokenVerifier,
};
use culver::config::{self, Config};
use culver_protocol::crypto::{KeyPair, Secret};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, Incarnation, UserId};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

const NOW_S: u64 = 1_800_000_000;
const NOW_MS: u64 = NOW_S * 1000;
const DAY_MS: u64 = 24 * 3600 * 1000;
const SEVEN: Identity = Identity { user: UserId(7), device: DeviceId(1) };

/// A server's keys and its authenticator.
struct World {
    keys: TokenKeys,
    authenticator: Authenticator,
}

impl World {
    fn new() -> Self {
        let keys = TokenKeys::generate().expect("a key pair");
        let tokens = TokenVerifier::new(&keys.public_pem, &config::Token::default()).expect("its public half");
        let server = Root::new(&secret(8)).certify_pair(1, KeyPair::new(&[9; 32]), (0, u64::MAX));
        let server = ServerKeys::new(vec![server], NOW_MS);
        Self { authenticator: Authenticator::new(tokens, sealer(1, 1), server), keys }
    }

    fn claims_of(&self, token: &str) -> Result<TokenClaims, ErrorCode> {
        self.authenticator.token(token, NOW_MS)
    }

    fn try_token(&self, token: &str) -> Result<Identity, ErrorCode> {
        self.claims_of(token).map(|claims| claims.identity)
    }

    fn try_claims(&self, claims: &Value) -> Result<Identity, ErrorCode> {
        self.try_token(&sign(&Header::new(Algorithm::EdDSA), claims, &self.keys))
    }

    /// What becomes of a valid token with one claim changed (`Null`: left out).
    fn claims_with(&self, claim: &str, value: Value) -> Result<TokenClaims, ErrorCode> {
        let mut claims = claims();
        let fields = claims.as_object_mut().expect("claims are an object");
        if value.is_null() {
            fields.remove(claim)
        } else {
            fields.insert(claim.to_owned(), value)
        };
        self.claims_of(&sign(&Header::new(Algorithm::EdDSA), &claims, &self.keys))
    }

    fn try_with(&self, claim: &str, value: Value) -> Result<Identity, ErrorCode> {
        self.claims_with(claim, value).map(|claims| claims.identity)
    }
}

/// A data directory with development keys.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        let home = Self { dir: tempfile::tempdir().expect("a directory") };
        home.create_missing();
        home
    }

    fn create_missing(&self) {
        culver::auth::keys::create_missing(self.path(), "culver-dev", "culver", NOW_MS).expect("keys");
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn config(&self) -> Config {
        Config { data_dir: self.path().to_path_buf(), ..Config::default() }
    }

    fn try_load(&self) -> Result<Authenticator, KeyError> {
        Authenticator::load(&self.config(), Incarnation(9), NOW_MS)
    }

    fn load(&self) -> Authenticator {
        self.try_load().expect("keys")
    }

    /// Why the keys cannot be read.
    fn fault(&self) -> String {
        self.try_load().expect_err("refused").to_string()
    }

    /// Writes a file as a program would that cares for its readers.
    fn write(&self, name: &str, text: &str) {
        culver::auth::keys::write_whole(&self.path().join(name), text, 0o600).expect("written");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).expect(name)
    }
}

fn claims() -> Value {
    json!({ "sub": "7", "device": 1, "iss": "culver-dev", "aud": "culver", "iat": NOW_S, "exp": NOW_S + 3600 })
}

fn sign(header: &Header, claims: &Value, keys: &TokenKeys) -> String {
    let key = EncodingKey::from_ed_pem(keys.private_pem.as_bytes()).expect("a private key");
    jsonwebtoken::encode(header, claims, &key).expect("a signature")
}

/// A good token by the key of this number.
fn token_of(keys: &TokenKeys, kid: &str) -> String {
    sign(&Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::EdDSA) }, &claims(), keys)
}

/// A token with this header and whatever signature.
fn forge(header: &Value, claims: &Value, signature: &[u8]) -> String {
    [header.to_string().as_bytes(), claims.to_string().as_bytes(), signature]
        .map(|part| URL_SAFE_NO_PAD.encode(part))
        .join(".")
}

fn sealer(generation: u32, incarnation: u64) -> TicketSealer {
    let settings = config::Ticket { generation, ..config::Ticket::default() };
    TicketSealer::new(&TicketKey::new([5; 32]), settings, Incarnation(incarnation))
}

fn secret(byte: u8) -> Secret {
    Secret::new([byte; 32])
}

fn plaintext() -> TicketContents {
    TicketContents::plaintext(SEVEN)
}

fn encrypted() -> TicketContents {
    TicketContents::encrypted(SEVEN, [3; 16], secret(4))
}
