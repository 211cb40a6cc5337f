//! Signatures against published vectors: Project Wycheproof's, and that of RFC 8037.

use culver::auth::jwks::KeySet;
use culver_protocol::error::ErrorCode;
use serde_json::{Value, json};

/// RFC 8037, appendices A.2 and A.4.
const ED25519_JWK: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
const ED25519_JWS: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
                           hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

fn set(key: &Value) -> Result<KeySet, String> {
    KeySet::parse(json!({ "keys": [key] }).to_string().as_bytes()).map_err(|error| error.to_string())
}

fn groups() -> Vec<Value> {
    let file: Value =
        serde_json::from_str(include_str!("../vectors/wycheproof-json-web-signature.json")).expect("JSON");
    file.get("testGroups").and_then(Value::as_array).expect("groups").clone()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

#[test]
fn the_signature_of_rfc_8037_is_believed() {
    let keys = set(&serde_json::from_str(ED25519_JWK).expect("JSON")).expect("a key");
    assert_eq!(keys.verify(ED25519_JWS).as_deref(), Ok(&b"Example of Ed25519 signing"[..]));
    let (signed, _) = ED25519_JWS.rsplit_once('.').expect("three parts");
    assert_eq!(keys.verify(&format!("{signed}.")), Err(ErrorCode::TokenSignature));
}

/// Keys of kinds that tokens are verified with: what is valid is believed, and nothing else.
#[test]
fn signatures_of_known_algorithms_are_told_apart() {
    let (mut valid, mut invalid, mut unusable) = (0, 0, 0);
    for group in groups().iter().filter(|group| group["public"]["crv"] == "P-256") {
        let keys = set(&group["public"]);
        for test in group["tests"].as_array().expect("tests") {
            let is_believed = keys.as_ref().is_ok_and(|keys| keys.verify(text(&test["jws"])).is_ok());
            assert_eq!(is_believed, test["result"] == "valid", "{test}");
            match &keys {
                Err(_) => unusable += 1,
                Ok(_) if is_believed => valid += 1,
                Ok(_) => invalid += 1,
            }
        }
    }
    // So many are there: none was left out by mistake.
    assert_eq!((valid, invalid, unusable), (2, 37, 2));
}

/// Keys of all other kinds: no set has one, and whatever they have signed is refused by the keys that there are.
#[test]
fn all_other_algorithms_are_refused() {
    let groups = groups();
    let ec = groups.iter().find(|group| group["comment"] == "es256").expect("a P-256 key");
    let keys = [set(&ec["public"]), set(&serde_json::from_str(ED25519_JWK).expect("JSON"))];
    let keys = keys.map(|keys| keys.expect("a key"));
    let mut count = 0;
    for group in groups.iter().filter(|group| group["public"]["crv"] != "P-256") {
        let key = if group["public"].is_null() { &group["private"] } else { &group["public"] };
        set(key).expect_err("a key of another kind");
        for test in group["tests"].as_array().expect("tests") {
            count += 1;
            // One is signed in the other form of a JWS, which is no text at all.
            let token = test["jws"].as_str().map_or_else(|| test["jws"].to_string(), str::to_owned);
            for keys in &keys {
                let code = keys.verify(&token).expect_err("refused");
                assert!(matches!(code, ErrorCode::TokenAlgorithm | ErrorCode::TokenMalformed), "{test}: {code:?}");
            }
        }
    }
    assert_eq!(count, 401 - 41);
}
