//! Project Wycheproof's vectors for the ciphers and X25519, through the very functions that handshakes and records call.

use culver_protocol::crypto::{KeyPair, Suite};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File<T> {
    number_of_tests: usize,
    test_groups: Vec<Group<T>>,
}

#[derive(Deserialize)]
struct Group<T> {
    tests: Vec<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AeadCase {
    tc_id: u32,
    key: String,
    iv: String,
    aad: String,
    msg: String,
    ct: String,
    tag: String,
    result: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AgreementCase {
    tc_id: u32,
    public: String,
    private: String,
    shared: String,
    result: String,
}

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text).expect("hex")
}

/// What was opened and what was refused, among those whose keys and nonces have the length that records use.
fn check_aead(suite: Suite, text: &str) -> (usize, usize) {
    let file: File<AeadCase> = serde_json::from_str(text).expect("the published form");
    let (mut opened, mut refused, mut seen) = (0, 0, 0);
    for case in file.test_groups.into_iter().flat_map(|group| group.tests) {
        seen += 1;
        let (Ok(key), Ok(nonce)) = (bytes(&case.key).try_into(), bytes(&case.iv).try_into()) else {
            assert_eq!(case.result, "invalid", "case {}", case.tc_id);
            continue;
        };
        let (aad, plain) = (bytes(&case.aad), bytes(&case.msg));
        let mut sealed = bytes(&format!("{}{}", case.ct, case.tag));
        let found = suite.open_with(&key, nonce, &aad, &mut sealed).map(|found| found.to_vec());
        if case.result == "valid" {
            assert_eq!(found, Some(plain.clone()), "case {}", case.tc_id);
            let mut body = plain;
            let tag = suite.seal_with(&key, nonce, &aad, &mut body);
            assert_eq!((hex::encode(body), hex::encode(tag)), (case.ct, case.tag), "case {}", case.tc_id);
            opened += 1;
        } else {
            assert_eq!(found, None, "case {}", case.tc_id);
            refused += 1;
        }
    }
    assert_eq!(seen, file.number_of_tests.min(seen));
    (opened, refused)
}

#[test]
fn chacha20_poly1305_is_that_of_wycheproof() {
    let text = include_str!("vectors/published/wycheproof-chacha20-poly1305.json");
    let (opened, refused) = check_aead(Suite::ChaCha20Poly1305, text);
    assert!(opened > 200 && refused > 40, "{opened} opened, {refused} refused");
}

#[test]
fn aes_256_gcm_is_that_of_wycheproof() {
    let text = include_str!("vectors/published/wycheproof-aes-gcm.json");
    let (opened, refused) = check_aead(Suite::Aes256Gcm, text);
    assert!(opened > 30 && refused > 20, "{opened} opened, {refused} refused");
}

#[test]
fn x25519_is_that_of_wycheproof_and_refuses_what_gives_everybody_the_same() {
    let text = include_str!("vectors/published/wycheproof-x25519.json");
    let file: File<AgreementCase> = serde_json::from_str(text).expect("the published form");
    let (mut agreed, mut refused) = (0, 0);
    for case in file.test_groups.into_iter().flat_map(|group| group.tests) {
        let secret = bytes(&case.private).try_into().expect("32 bytes");
        let public = bytes(&case.public).try_into().expect("32 bytes");
        let found = KeyPair::new(&secret).agree(&public);
        if bytes(&case.shared).iter().all(|byte| *byte == 0) {
            assert!(found.is_none(), "case {}", case.tc_id);
            refused += 1;
        } else {
            assert_ne!(case.result, "invalid", "case {}", case.tc_id);
            assert_eq!(found.map(hex::encode), Some(case.shared), "case {}", case.tc_id);
            agreed += 1;
        }
    }
    assert_eq!(agreed + refused, file.number_of_tests);
    assert!(refused > 0);
}
