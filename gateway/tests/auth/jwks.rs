//! Sets of keys: which key verifies which token, and every way for a set to be unusable.

use culver::auth::TokenVerifier;
use culver::auth::jwks::{JWKS_KEYS_MAX, JWKS_LEN_MAX, KeySet};
use culver::auth::keys::TokenKeys;
use culver::config;
use culver_protocol::error::ErrorCode;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Home, NOW_MS, SEVEN, claims, sign, token_of};

/// A pair for ES256, as an application's own login service would have it.
struct EcKeys {
    private: EncodingKey,
    jwk: Value,
}

impl EcKeys {
    fn generate(kid: &str) -> Self {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a pair");
        let private = EncodingKey::from_ec_der(pair.to_pkcs8v1().expect("a document").as_ref());
        let mut jwk = Jwk::from_encoding_key(&private, Algorithm::ES256).expect("its public half");
        jwk.common.key_id = Some(kid.to_owned());
        Self { private, jwk: serde_json::to_value(jwk).expect("JSON") }
    }

    fn token(&self, kid: &str) -> String {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &claims(), &self.private).expect("a signature")
    }
}

fn verifier(keys: &[Value]) -> TokenVerifier {
    let set = KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).expect("a set");
    TokenVerifier::with_keys(set, &config::Token::default())
}

fn keys() -> TokenKeys {
    TokenKeys::generate().expect("a pair")
}

#[test]
fn the_kid_picks_the_key() {
    let (old, new, ec) = (keys(), keys(), EcKeys::generate("ec"));
    let verifier = verifier(&[old.jwk("old"), new.jwk("new"), ec.jwk.clone()]);
    let verify = |token: &str| verifier.verify(token, NOW_MS).map(|claims| claims.identity);
    for good in [token_of(&old, "old"), token_of(&new, "new"), ec.token("ec")] {
        assert_eq!(verify(&good), Ok(SEVEN), "{good}");
    }
    assert_eq!(verify(&token_of(&old, "new")), Err(ErrorCode::TokenSignature));
    assert_eq!(verify(&token_of(&new, "old")), Err(ErrorCode::TokenSignature));
    for unknown in ["", "OLD", "old ", "other"] {
        assert_eq!(verify(&token_of(&old, unknown)), Err(ErrorCode::TokenSignature), "{unknown:?}");
    }
    // Among several there is none that is meant by itself.
    let nameless = sign(&Header::new(Algorithm::EdDSA), &claims(), &old);
    assert_eq!(verify(&nameless), Err(ErrorCode::TokenSignature));
}

#[test]
fn the_key_says_which_algorithm() {
    let (ed, ec) = (keys(), EcKeys::generate("ec"));
    let verifier = verifier(&[ed.jwk("ed"), ec.jwk.clone()]);
    let verify = |token: &str| verifier.verify(token, NOW_MS).map(|claims| claims.identity);
    assert_eq!(verify(&ec.token("ed")), Err(ErrorCode::TokenAlgorithm));
    assert_eq!(verify(&token_of(&ed, "ec")), Err(ErrorCode::TokenAlgorithm));
    // The public key, known to everybody, taken for a shared secret.
    for secret in
        [ed.public_pem.clone(), ed.jwk("ed").to_string(), ed.jwk("ed")["x"].as_str().expect("text").to_owned()]
    {
        let header = Header { kid: Some("ed".to_owned()), ..Header::new(Algorithm::HS256) };
        let token = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(secret.as_bytes()));
        assert_eq!(verify(&token.expect("a signature")), Err(ErrorCode::TokenAlgorithm));
    }
}

#[test]
fn an_only_key_needs_no_name() {
    let pair = keys();
    let nameless = sign(&Header::new(Algorithm::EdDSA), &claims(), &pair);
    let named = verifier(&[pair.jwk("one")]);
    assert!(named.verify(&nameless, NOW_MS).is_ok());
    assert!(named.verify(&token_of(&pair, "one"), NOW_MS).is_ok());
    assert_eq!(named.verify(&token_of(&pair, "two"), NOW_MS), Err(ErrorCode::TokenSignature));
    let mut jwk = pair.jwk("one");
    jwk.as_object_mut().expect("an object").remove("kid");
    let without = verifier(&[jwk]);
    assert!(without.verify(&nameless, NOW_MS).is_ok());
    assert!(without.verify(&token_of(&pair, "two"), NOW_MS).is_ok());
}

#[test]
fn what_does_not_matter_in_a_key_may_be_there_or_not() {
    let pair = keys();
    for (member, value) in [
        ("alg", Value::Null),
        ("use", Value::Null),
        ("key_ops", json!(["verify"])),
        ("key_ops", json!(["sign", "verify"])),
        ("x5t", json!("whatever")),
    ] {
        let mut jwk = pair.jwk("one");
        let members = jwk.as_object_mut().expect("an object");
        if value.is_null() {
            members.remove(member)
        } else {
            members.insert(member.to_owned(), value)
        };
        assert!(verifier(&[jwk]).verify(&token_of(&pair, "one"), NOW_MS).is_ok(), "{member}");
    }
}

#[test]
fn every_mistake_of_a_set_is_named() {
    let fault = |text: &str| KeySet::parse(text.as_bytes()).expect_err("refused").to_string();
    for (text, said) in [
        ("", "is no JWK Set"),
        ("no JSON", "is no JWK Set"),
        ("{}", "missing field `keys`"),
        (r#"{"keys": {}}"#, "is no JWK Set"),
        (r#"{"keys": []}"#, "holds no key"),
        (r#"{"keys": [{"kid": "a"}]}"#, "missing field `kty`"),
        (r#"{"keys": [{"kty": "OKP", "kty": "EC"}]}"#, "duplicate field `kty`"),
    ] {
        assert!(fault(text).contains(said), "{text}: {}", fault(text));
    }
    let with = |member: &str, value: Value| {
        let mut jwk = keys().jwk("one");
        jwk.as_object_mut().expect("an object").insert(member.to_owned(), value);
        fault(&json!({ "keys": [jwk] }).to_string())
    };
    for (member, value, said) in [
        ("d", json!("secret"), "holds a secret"),
        ("k", json!("secret"), "holds a secret"),
        ("kty", json!("RSA"), "has kty RSA"),
        ("kty", json!("EC"), "has kty EC and crv Ed25519"),
        ("crv", json!("X25519"), "has kty OKP and crv X25519"),
        ("crv", json!("Ed448"), "has kty OKP and crv Ed448"),
        ("alg", json!("ES256"), "has alg ES256, and a key of its kind verifies EdDSA"),
        ("alg", json!("none"), "has alg none"),
        ("use", json!("enc"), "has use enc"),
        ("key_ops", json!(["sign"]), "has key_ops without verify"),
        ("key_ops", json!([]), "has key_ops without verify"),
        ("x", json!("AAAA"), "no point of its curve"),
        ("x", json!("not base64url!"), "no point of its curve"),
        ("y", json!("AAAA"), "no point of its curve"),
        ("kid", json!(7), "is no JWK Set"),
    ] {
        let said_about = with(member, value.clone());
        assert!(said_about.contains(said), "{member} = {value}: {said_about}");
        assert!(!said_about.contains("secret\""), "{said_about}");
    }
    let mut off_the_curve = EcKeys::generate("ec").jwk;
    off_the_curve["y"] = off_the_curve["x"].clone();
    assert!(fault(&json!({ "keys": [off_the_curve] }).to_string()).contains("no point of its curve"));
}

#[test]
fn several_keys_have_a_name_each() {
    let mut nameless = keys().jwk("");
    nameless.as_object_mut().expect("an object").remove("kid");
    let fault =
        |keys: Value| KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).expect_err("refused").to_string();
    assert_eq!(
        fault(json!([keys().jwk("a"), nameless])),
        "key number 2 has no kid: where there are several keys, each needs one"
    );
    assert_eq!(fault(json!([keys().jwk("a"), keys().jwk("b"), keys().jwk("a")])), "key \"a\" has the kid of another");
}

#[test]
fn a_set_has_bounds() {
    let many = |count: usize| {
        let keys: Vec<Value> = (0..count).map(|number| keys().jwk(&number.to_string())).collect();
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
    };
    assert!(many(JWKS_KEYS_MAX).is_ok());
    assert_eq!(many(JWKS_KEYS_MAX + 1).expect_err("too many").to_string(), "it holds 33 keys, and 32 are the most");
    let set = json!({ "keys": [keys().jwk("one")] }).to_string();
    let padded = |len: usize| format!("{set}{}", " ".repeat(len - set.len()));
    assert!(KeySet::parse(padded(JWKS_LEN_MAX).as_bytes()).is_ok());
    let too_long = KeySet::parse(padded(JWKS_LEN_MAX + 1).as_bytes());
    assert_eq!(too_long.expect_err("too long").to_string(), "it is longer than 65536 bytes");
}

#[test]
fn a_running_server_follows_its_set() {
    let home = Home::new();
    let authenticator = home.load();
    let works = |token: &str| authenticator.token(token, NOW_MS).is_ok();
    let (next, other) = (keys(), keys());
    let credentials = culver::auth::keys::DevCredentials::read(&home.path().join("dev-credentials.json"));
    let before = credentials.expect("made by init").mint(7, 1, NOW_MS / 1000, 60, None).expect("a token");
    let after = token_of(&next, "next");
    assert!(works(&before) && !works(&after));
    home.write("keys/jwks.json", &json!({ "keys": [next.jwk("next")] }).to_string());
    assert!(works(&before) && !works(&after), "not before it looks");
    authenticator.refresh(NOW_MS);
    assert!(!works(&before) && works(&after));
    // What cannot be used changes nothing, nor does a set that goes away.
    for broken in ["", "no JSON", r#"{"keys": []}"#] {
        home.write("keys/jwks.json", broken);
        authenticator.refresh(NOW_MS);
        assert!(works(&after), "{broken}");
    }
    home.write("keys/token-public.pem", &other.public_pem);
    std::fs::remove_file(home.path().join("keys/jwks.json")).expect("removed");
    authenticator.refresh(NOW_MS);
    assert!(works(&after) && !works(&token_of(&other, "dev")));
    home.write("keys/jwks.json", &json!({ "keys": [next.jwk("next"), other.jwk("other")] }).to_string());
    authenticator.refresh(NOW_MS);
    assert!(works(&after) && works(&token_of(&other, "other")));
}

#[test]
fn without_a_set_the_single_key_of_old_verifies() {
    let home = Home::new();
    let (old, next) = (keys(), keys());
    std::fs::remove_file(home.path().join("keys/jwks.json")).expect("removed");
    home.write("keys/token-public.pem", &old.public_pem);
    let authenticator = home.load();
    let works = |token: &str| authenticator.token(token, NOW_MS).is_ok();
    assert!(works(&token_of(&old, "dev")) && works(&token_of(&old, "whatever")));
    // A set takes its place.
    home.write("keys/jwks.json", &json!({ "keys": [next.jwk("next")] }).to_string());
    authenticator.refresh(NOW_MS);
    assert!(!works(&token_of(&old, "dev")) && works(&token_of(&next, "next")));
    // The set goes before the key at a start as well.
    assert!(home.load().token(&token_of(&next, "next"), NOW_MS).is_ok());
}

proptest! {
    #[test]
    fn no_set_panics(bytes in vec(any::<u8>(), 0..200), member in "kty|crv|x|y|kid|alg|use|key_ops|d", value in ".{0,60}") {
        _ = KeySet::parse(&bytes);
        let mut jwk = keys().jwk("one");
        jwk.as_object_mut().expect("an object").insert(member, value.into());
        _ = KeySet::parse(json!({ "keys": [jwk] }).to_string().as_bytes());
    }
}
