//! Tokens: what is believed, and every way to be refused.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use culver::auth::TokenClaims;
use culver::auth::keys::{DevCredentials, TokenKeys};
use culver::config;
use culver_protocol::crypto::{KeyPair, key_thumbprint};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, UserId};
use culver_protocol::limits::TOKEN_LEN_MAX;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{NOW_S, SEVEN, World, claims, forge, sign};

/// The JWS of a header and a payload that no library would sign.
fn signed_with(keys: &TokenKeys, signed: &str) -> String {
    let key = EncodingKey::from_ed_pem(keys.private_pem.as_bytes()).expect("a private key");
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::EdDSA).expect("a signature");
    format!("{signed}.{signature}")
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
        private_key_pem: world.keys.private_pem.to_string(),
        server_root: None,
    };
    let token = credentials.mint(7, 1, NOW_S, 60, None).expect("a token");
    assert_eq!(world.claims_of(&token), Ok(TokenClaims { identity: SEVEN, thumbprint: None, issued_s: NOW_S }));
    let key = *KeyPair::new(&[1; 32]).public();
    let token = credentials.mint(7, 1, NOW_S, 60, Some(&key)).expect("a token");
    assert_eq!(world.claims_of(&token).map(|claims| claims.thumbprint), Ok(Some(key_thumbprint(&key))));
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
    assert_eq!(world.try_with("iat", json!(NOW_S + leeway_s + 1)), Err(ErrorCode::TokenNotYetValid));
    assert_eq!(world.try_with("iat", json!(u64::MAX)), Err(ErrorCode::TokenNotYetValid));
    assert_eq!(world.try_with("iat", json!(NOW_S + leeway_s)), Ok(SEVEN));
}

#[test]
fn a_token_says_when_it_was_made() {
    let world = World::new();
    let issued = |value| world.claims_with("iat", value).map(|claims| claims.issued_s);
    assert_eq!(issued(json!(NOW_S - 5)), Ok(NOW_S - 5));
    assert_eq!(issued(json!(NOW_S as f64 - 0.5)), Ok(NOW_S - 1));
    assert_eq!(issued(Value::Null), Ok(0));
    assert_eq!(issued(json!(0)), Ok(0));
}

#[test]
fn a_token_names_the_devices_key() {
    let world = World::new();
    let named = |value| world.claims_with("cnf", value).map(|claims| claims.thumbprint);
    assert_eq!(named(Value::Null), Ok(None));
    assert_eq!(named(json!({ "jkt": URL_SAFE_NO_PAD.encode([5; 32]) })), Ok(Some([5; 32])));
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
        ("iat", json!("then")),
        ("iat", json!(-1)),
        ("cnf", json!("jkt")),
        ("cnf", json!({})),
        ("cnf", json!({ "kid": "another kind of proof" })),
        ("cnf", json!({ "jkt": 7 })),
        ("cnf", json!({ "jkt": "" })),
        ("cnf", json!({ "jkt": URL_SAFE_NO_PAD.encode([0; 31]) })),
        ("cnf", json!({ "jkt": URL_SAFE_NO_PAD.encode([0; 33]) })),
        ("cnf", json!({ "jkt": URL_SAFE.encode([0; 32]) })),
        ("cnf", json!({ "jkt": STANDARD_NO_PAD.encode([0xFF; 32]) })),
        ("cnf", json!({ "jkt": format!("{}B", "A".repeat(42)) })),
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
    // Extensions that must be understood, under a genuine signature.
    for header in [r#"{"alg":"EdDSA","crit":["exp"],"exp":1}"#, r#"{"alg":"EdDSA","b64":false,"crit":["b64"]}"#] {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims().to_string()));
        assert_eq!(world.try_token(&signed_with(&world.keys, &signed)), Err(ErrorCode::TokenMalformed), "{header}");
    }
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
fn what_a_header_says_twice_is_malformed() {
    let world = World::new();
    for header in [r#"{"alg":"none","alg":"EdDSA"}"#, r#"{"alg":"EdDSA","kid":"a","kid":"b"}"#, r#"["EdDSA"]"#, "null"]
    {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims().to_string()));
        assert_eq!(world.try_token(&signed_with(&world.keys, &signed)), Err(ErrorCode::TokenMalformed), "{header}");
    }
    let twice = r#"{"sub":"7","sub":"8","device":1,"iss":"culver-dev","aud":"culver","exp":1800003600}"#;
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA"}"#), URL_SAFE_NO_PAD.encode(twice));
    assert_eq!(world.try_token(&signed_with(&world.keys, &signed)), Err(ErrorCode::TokenMalformed));
}

proptest! {
    /// Whatever comes is refused, with one of the codes for tokens.
    #[test]
    fn no_token_panics(noise in ".{0,200}", header in ".{0,60}", payload in ".{0,60}", signature in vec(any::<u8>(), 0..80)) {
        let world = World::new();
        let encode = |part: &str| URL_SAFE_NO_PAD.encode(part);
        let shaped = format!("{}.{}.{}", encode(&header), encode(&payload), URL_SAFE_NO_PAD.encode(&signature));
        let known = format!("{}.{}.{}", encode(r#"{"alg":"EdDSA"}"#), encode(&payload), URL_SAFE_NO_PAD.encode(&signature));
        for token in [noise, shaped, known] {
            world.try_token(&token).expect_err("nobody signed it");
        }
    }

    /// Claims of any form, under a genuine signature.
    #[test]
    fn no_claims_panic(payload in ".{0,200}", number in any::<f64>()) {
        let world = World::new();
        for payload in [payload, format!(r#"{{"sub":"7","device":1,"iss":"culver-dev","aud":"culver","exp":{number:e}}}"#)] {
            let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA"}"#), URL_SAFE_NO_PAD.encode(payload));
            _ = world.try_token(&signed_with(&world.keys, &signed));
        }
    }
}
