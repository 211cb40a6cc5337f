//! Logging in with forged, stale and damaged credentials: each mistake has its own error code.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use culver::auth::keys::{DevCredentials, TicketKey, TokenKeys};
use culver::auth::{Authenticator, Identity, TICKET_LEN, TicketSealer, TokenVerifier};
use culver::config;
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, Incarnation, UserId};
use culver_protocol::limits::TOKEN_LEN_MAX;
use culver_protocol::proto::{Login, login::Credential};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

const NOW_S: u64 = 1_800_000_000;
const NOW_MS: u64 = NOW_S * 1000;
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
        Self { authenticator: Authenticator::new(tokens, sealer(1, 1)), keys }
    }

    fn try_token(&self, token: &str) -> Result<Identity, ErrorCode> {
        let login = Login { credential: Some(Credential::Token(token.to_owned())), ..Login::default() };
        self.authenticator.login(&login, NOW_MS)
    }

    fn try_claims(&self, claims: &Value) -> Result<Identity, ErrorCode> {
        self.try_token(&sign(&Header::new(Algorithm::EdDSA), claims, &self.keys))
    }

    /// What becomes of a valid token with one claim changed (`Null`: left out).
    fn try_with(&self, claim: &str, value: Value) -> Result<Identity, ErrorCode> {
        let mut claims = claims();
        let fields = claims.as_object_mut().expect("claims are an object");
        if value.is_null() {
            fields.remove(claim)
        } else {
            fields.insert(claim.to_owned(), value)
        };
        self.try_claims(&claims)
    }
}

fn claims() -> Value {
    json!({ "sub": "7", "device": 1, "iss": "culver-dev", "aud": "culver", "iat": NOW_S, "exp": NOW_S + 3600 })
}

fn sign(header: &Header, claims: &Value, keys: &TokenKeys) -> String {
    let key = EncodingKey::from_ed_pem(keys.private_pem.as_bytes()).expect("a private key");
    jsonwebtoken::encode(header, claims, &key).expect("a signature")
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

#[test]
fn a_valid_token_names_user_and_device() {
    let world = World::new();
    assert_eq!(world.try_claims(&claims()), Ok(SEVEN));
    assert_eq!(world.try_with("sub", json!(u64::MAX.to_string())).map(|who| who.user), Ok(UserId(u64::MAX)));
    assert_eq!(world.try_with("device", json!(u16::MAX)).map(|who| who.device), Ok(DeviceId(u16::MAX)));
    assert_eq!(world.try_with("aud", json!(["other", "culver"])), Ok(SEVEN));
    assert_eq!(world.try_with("exp", json!(NOW_S as f64 + 0.5)), Ok(SEVEN));
    assert_eq!(world.try_with("nbf", json!(NOW_S)), Ok(SEVEN));
}

#[test]
fn development_credentials_mint_valid_tokens() {
    let world = World::new();
    let credentials = DevCredentials {
        issuer: "culver-dev".to_owned(),
        audience: "culver".to_owned(),
        algorithm: "EdDSA".to_owned(),
        key_id: "dev".to_owned(),
        private_key_pem: world.keys.private_pem.clone(),
    };
    let token = credentials.mint(7, 1, NOW_S, 60).expect("a token");
    assert_eq!(world.try_token(&token), Ok(SEVEN));
}

#[test]
fn times_are_held_against_the_clock_with_leeway() {
    let world = World::new();
    let leeway_s = config::Token::default().leeway_s;
    assert_eq!(world.try_with("exp", json!(NOW_S - leeway_s)), Err(ErrorCode::TokenExpired));
    assert_eq!(world.try_with("exp", json!(NOW_S - leeway_s + 1)), Ok(SEVEN));
    assert_eq!(world.try_with("exp", json!(0)), Err(ErrorCode::TokenExpired));
    assert_eq!(world.try_with("nbf", json!(NOW_S + leeway_s + 1)), Err(ErrorCode::TokenNotYetValid));
    assert_eq!(world.try_with("nbf", json!(NOW_S + leeway_s)), Ok(SEVEN));
    assert_eq!(world.try_with("nbf", json!(u64::MAX)), Err(ErrorCode::TokenNotYetValid));
    assert_eq!(world.try_with("exp", json!(u64::MAX)), Ok(SEVEN));
}

#[test]
fn another_audience_or_issuer_is_refused() {
    let world = World::new();
    assert_eq!(world.try_with("aud", json!("someone-else")), Err(ErrorCode::TokenAudience));
    assert_eq!(world.try_with("aud", json!([])), Err(ErrorCode::TokenAudience));
    assert_eq!(world.try_with("iss", json!("someone-else")), Err(ErrorCode::TokenAudience));
}

#[test]
fn missing_and_misshapen_claims_are_malformed() {
    let world = World::new();
    for claim in ["sub", "device", "exp", "iss", "aud"] {
        assert_eq!(world.try_with(claim, Value::Null), Err(ErrorCode::TokenMalformed), "without {claim}");
    }
    for (claim, value) in [
        ("sub", json!("alice")),
        ("sub", json!("")),
        ("sub", json!("+7")),
        ("sub", json!("-7")),
        ("sub", json!("18446744073709551616")),
        ("sub", json!(7)),
        ("device", json!(65_536)),
        ("device", json!(-1)),
        ("device", json!("1")),
        ("exp", json!("soon")),
        ("exp", json!(-1)),
        ("exp", json!(1e300)),
        ("nbf", json!("now")),
        ("nbf", json!(-5)),
        ("aud", json!(3)),
    ] {
        assert_eq!(world.try_with(claim, value.clone()), Err(ErrorCode::TokenMalformed), "{claim} = {value}");
    }
}

#[test]
fn a_signature_by_another_key_is_refused() {
    let world = World::new();
    let stranger = TokenKeys::generate().expect("a key pair");
    let token = sign(&Header::new(Algorithm::EdDSA), &claims(), &stranger);
    assert_eq!(world.try_token(&token), Err(ErrorCode::TokenSignature));
    let header = json!({ "alg": "EdDSA", "typ": "JWT" });
    for signature in [&[][..], &[0; 64], &[0; 63], &[1; 65]] {
        assert_eq!(world.try_token(&forge(&header, &claims(), signature)), Err(ErrorCode::TokenSignature));
    }
}

#[test]
fn claims_changed_after_signing_are_refused() {
    let world = World::new();
    let token = sign(&Header::new(Algorithm::EdDSA), &claims(), &world.keys);
    let [header, _, signature] = token.split('.').collect::<Vec<_>>().try_into().expect("three parts");
    let mut changed = claims();
    changed["sub"] = json!("8");
    let changed = URL_SAFE_NO_PAD.encode(changed.to_string());
    assert_eq!(world.try_token(&format!("{header}.{changed}.{signature}")), Err(ErrorCode::TokenSignature));
}

#[test]
fn any_other_algorithm_is_refused() {
    let world = World::new();
    for algorithm in ["none", "None", "HS256", "RS256", "ES256", "PS512", "ed25519", "EDDSA", ""] {
        let token = forge(&json!({ "alg": algorithm, "typ": "JWT" }), &claims(), &[0; 64]);
        assert_eq!(world.try_token(&token), Err(ErrorCode::TokenAlgorithm), "alg {algorithm}");
    }
    assert_eq!(world.try_token(&forge(&json!({ "alg": "none" }), &claims(), &[])), Err(ErrorCode::TokenAlgorithm));
    // The classic confusion: the public key, known to everybody, taken for a shared secret.
    let secret = EncodingKey::from_secret(world.keys.public_pem.as_bytes());
    let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &secret).expect("a signature");
    assert_eq!(world.try_token(&token), Err(ErrorCode::TokenAlgorithm));
    // A genuine signature under a header that says otherwise.
    let genuine = sign(&Header::new(Algorithm::EdDSA), &claims(), &world.keys);
    let (_, rest) = genuine.split_once('.').expect("three parts");
    let header = URL_SAFE_NO_PAD.encode(json!({ "alg": "RS256", "typ": "JWT" }).to_string());
    assert_eq!(world.try_token(&format!("{header}.{rest}")), Err(ErrorCode::TokenAlgorithm));
}

#[test]
fn what_is_no_token_is_malformed() {
    let world = World::new();
    let good = sign(&Header::new(Algorithm::EdDSA), &claims(), &world.keys);
    let (unsigned, _) = good.rsplit_once('.').expect("three parts");
    let extended = format!("{good}.extra");
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA"}"#);
    for token in ["", ".", "..", "...", "a.b.c", "é.é.é", "{}", unsigned, extended.as_str(), header.as_str()] {
        assert_eq!(world.try_token(token), Err(ErrorCode::TokenMalformed), "{token:?}");
    }
    let critical = forge(&json!({ "alg": "EdDSA", "crit": ["exp"] }), &claims(), &[0; 64]);
    assert_eq!(world.try_token(&critical), Err(ErrorCode::TokenMalformed));
    assert_eq!(world.authenticator.login(&Login::default(), NOW_MS), Err(ErrorCode::TokenMalformed));
}

#[test]
fn a_token_that_is_too_long_is_malformed() {
    let world = World::new();
    let padding = "x".repeat(TOKEN_LEN_MAX);
    assert_eq!(world.try_with("padding", json!(padding)), Err(ErrorCode::TokenMalformed));
    let huge = "A".repeat(1 << 20);
    assert_eq!(world.try_token(&huge), Err(ErrorCode::TokenMalformed));
    // The longest that fits is read.
    let plain = sign(&Header::new(Algorithm::EdDSA), &claims(), &world.keys);
    let room = (TOKEN_LEN_MAX - plain.len()) * 3 / 4 - 16;
    assert_eq!(world.try_with("padding", json!("x".repeat(room))), Ok(SEVEN));
}

#[test]
fn every_damaged_byte_of_a_token_is_noticed() {
    let world = World::new();
    let good = sign(&Header::new(Algorithm::EdDSA), &claims(), &world.keys);
    for position in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        let byte = &mut bytes[position];
        *byte = if *byte == b'A' { b'B' } else { b'A' };
        let damaged = String::from_utf8(bytes).expect("ASCII");
        world.try_token(&damaged).expect_err("a damaged token must not log in");
    }
}

#[test]
fn a_ticket_logs_in_whom_it_was_given_to() {
    let world = World::new();
    let ticket = world.authenticator.issue_ticket(SEVEN, NOW_MS);
    assert_eq!(ticket.bytes.len(), TICKET_LEN);
    assert_eq!(ticket.expires_ms, NOW_MS + config::Ticket::default().life_s * 1000);
    let login = Login { credential: Some(Credential::Ticket(ticket.bytes)), ..Login::default() };
    assert_eq!(world.authenticator.login(&login, NOW_MS + 1), Ok(SEVEN));
}

#[test]
fn tickets_expire() {
    let sealer = sealer(1, 1);
    let ticket = sealer.seal(SEVEN, NOW_MS);
    assert_eq!(sealer.open(&ticket.bytes, ticket.expires_ms - 1), Ok(SEVEN));
    assert_eq!(sealer.open(&ticket.bytes, ticket.expires_ms), Err(ErrorCode::TicketExpired));
}

#[test]
fn tickets_of_other_data_or_a_lower_generation_are_stale() {
    let ticket = sealer(1, 1).seal(SEVEN, NOW_MS);
    assert_eq!(sealer(1, 2).open(&ticket.bytes, NOW_MS), Err(ErrorCode::TicketStale));
    assert_eq!(sealer(2, 1).open(&ticket.bytes, NOW_MS), Err(ErrorCode::TicketStale));
    assert_eq!(sealer(0, 1).open(&ticket.bytes, NOW_MS), Ok(SEVEN));
}

#[test]
fn every_damaged_byte_of_a_ticket_is_noticed() {
    let sealer = sealer(1, 1);
    let good = sealer.seal(SEVEN, NOW_MS).bytes;
    for position in 0..good.len() {
        for flip in [0x01, 0x80, 0xFF] {
            let mut damaged = good.to_vec();
            damaged[position] ^= flip;
            assert_eq!(sealer.open(&damaged, NOW_MS), Err(ErrorCode::TicketInvalid), "byte {position} ^ {flip:#x}");
        }
    }
    for len in 0..good.len() {
        assert_eq!(sealer.open(&good[..len], NOW_MS), Err(ErrorCode::TicketInvalid), "cut to {len}");
    }
    let longer = [good.as_ref(), &[0]].concat();
    assert_eq!(sealer.open(&longer, NOW_MS), Err(ErrorCode::TicketInvalid));
}

#[test]
fn a_ticket_of_another_key_is_invalid() {
    let other = TicketSealer::new(&TicketKey::new([6; 32]), config::Ticket::default(), Incarnation(1));
    let ticket = other.seal(SEVEN, NOW_MS);
    assert_eq!(sealer(1, 1).open(&ticket.bytes, NOW_MS), Err(ErrorCode::TicketInvalid));
}

#[test]
fn two_tickets_for_the_same_login_differ() {
    let sealer = sealer(1, 1);
    let distinct: std::collections::HashSet<Bytes> = (0..100).map(|_| sealer.seal(SEVEN, NOW_MS).bytes).collect();
    assert_eq!(distinct.len(), 100);
}

#[test]
fn keys_persist_and_secrets_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let config = config::Config { data_dir: dir.path().to_path_buf(), ..config::Config::default() };
    let create = || culver::auth::keys::create_missing(dir.path(), "culver-dev", "culver").expect("keys");
    create();
    let ticket = Authenticator::load(&config, Incarnation(9)).expect("keys").issue_ticket(SEVEN, NOW_MS);
    create();
    let login = Login { credential: Some(Credential::Ticket(ticket.bytes)), ..Login::default() };
    let again = Authenticator::load(&config, Incarnation(9)).expect("keys");
    assert_eq!(again.login(&login, NOW_MS + Duration::from_secs(60).as_secs()), Ok(SEVEN));
    for secret in ["keys/ticket.key", "keys/token-private.pem", "dev-credentials.json"] {
        let mode = std::fs::metadata(dir.path().join(secret)).expect(secret).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    std::fs::remove_file(dir.path().join("keys/ticket.key")).expect("removed");
    let renewed = Authenticator::load(&config, Incarnation(9)).expect("keys");
    assert_eq!(renewed.login(&login, NOW_MS), Err(ErrorCode::TicketInvalid));
}

#[test]
fn damaged_key_files_say_how_to_mend_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config::Config { data_dir: dir.path().to_path_buf(), ..config::Config::default() };
    let load = || Authenticator::load(&config, Incarnation(9)).expect_err("refused").to_string();
    assert!(load().contains("token.public_key_file"), "{}", load());
    culver::auth::keys::create_missing(dir.path(), "culver-dev", "culver").expect("keys");
    std::fs::write(dir.path().join("keys/ticket.key"), "short").expect("written");
    assert!(load().contains("64 hex digits"), "{}", load());
    std::fs::write(dir.path().join("keys/token-public.pem"), "no pem").expect("written");
    assert!(load().contains("Ed25519"), "{}", load());
}
