//! Keys on disk: made once, private, and clear about what is wrong with them.

use std::os::unix::fs::PermissionsExt;

use culver::auth::keys::{DevCredentials, are_complete, create_missing_identity};
use culver_protocol::error::ErrorCode;

use super::{Home, NOW_MS, plaintext};

#[test]
fn keys_persist_and_secrets_are_private() {
    let home = Home::new();
    assert!(are_complete(home.path()));
    let (ticket, key) = (home.load().issue_ticket(&plaintext(), NOW_MS), home.load().current_server_key());
    home.create_missing();
    let again = home.load();
    assert!(again.open_ticket(&ticket.bytes, NOW_MS + 60).is_ok());
    assert_eq!(again.current_server_key().certificate, key.certificate);
    let secrets = [
        "keys/ticket.key",
        "keys/token-private.pem",
        "keys/root-private.pem",
        "keys/server/1.key",
        "dev-credentials.json",
    ];
    for secret in secrets {
        let mode = std::fs::metadata(home.path().join(secret)).expect(secret).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    std::fs::remove_file(home.path().join("keys/ticket.key")).expect("removed");
    let outcome = home.load().open_ticket(&ticket.bytes, NOW_MS);
    assert_eq!(outcome.err(), Some(ErrorCode::TicketInvalid));
}

#[test]
fn damaged_key_files_say_how_to_mend_them() {
    let home = Home { dir: tempfile::tempdir().expect("a directory") };
    std::fs::create_dir(home.path().join("keys")).expect("made");
    for part in ["jwks.json", "token.jwks_file", "culver init"] {
        assert!(home.fault().contains(part), "{}", home.fault());
    }
    home.create_missing();
    home.write("keys/jwks.json", "{}");
    for part in ["jwks.json cannot be used", "no JWK Set", "token.jwks_file"] {
        assert!(home.fault().contains(part), "{}", home.fault());
    }
    std::fs::remove_file(home.path().join("keys/jwks.json")).expect("removed");
    home.write("keys/token-public.pem", "no pem");
    for part in ["Ed25519", "token.public_key_file"] {
        assert!(home.fault().contains(part), "{}", home.fault());
    }
    home.write("keys/jwks.json", &" ".repeat(100_000));
    assert!(home.fault().contains("longer than 65536 bytes"), "{}", home.fault());
}

#[test]
fn development_credentials_name_the_root() {
    let home = Home::new();
    let path = home.path().join("dev-credentials.json");
    let read = || DevCredentials::read(&path).expect("made by init");
    let root = read().server_root.expect("a root");
    assert_eq!(root.len(), 64);
    let key = home.load().current_server_key();
    let mut public = [0; 32];
    hex::decode_to_slice(&root, &mut public).expect("hex");
    let certificate =
        culver_protocol::handshake::certificate::Certificate::verify(&key.certificate, &public.into(), NOW_MS);
    assert_eq!(certificate.expect("by this root").public, *key.pair.public());
    // Those of an earlier version learn it, and keep the rest.
    let mut fields: serde_json::Value = serde_json::from_str(&home.read("dev-credentials.json")).expect("JSON");
    fields.as_object_mut().expect("an object").remove("server_root");
    home.write("dev-credentials.json", &fields.to_string());
    assert_eq!(read().server_root, None);
    home.create_missing();
    assert_eq!(read().server_root, Some(root));
    assert_eq!(read().private_key_pem, home.read("keys/token-private.pem"));
}

#[test]
fn a_directory_of_an_earlier_version_gets_an_identity() {
    let home = Home::new();
    let tokens = home.read("keys/jwks.json");
    std::fs::remove_dir_all(home.path().join("keys/server")).expect("removed");
    for file in ["root-private.pem", "root-public.pem"] {
        std::fs::remove_file(home.path().join("keys").join(file)).expect("removed");
    }
    assert!(!are_complete(home.path()));
    assert!(home.fault().contains("root-public.pem"), "{}", home.fault());
    assert!(create_missing_identity(home.path(), NOW_MS).expect("made"));
    assert_eq!(home.load().current_server_key().id, 1);
    assert!(!create_missing_identity(home.path(), NOW_MS).expect("there"));
    assert_eq!(home.read("keys/jwks.json"), tokens);
}

#[test]
fn a_root_that_is_kept_elsewhere_is_never_replaced() {
    let home = Home::new();
    let root = home.read("keys/root-public.pem");
    std::fs::remove_dir_all(home.path().join("keys/server")).expect("removed");
    std::fs::remove_file(home.path().join("keys/root-private.pem")).expect("removed");
    assert!(!create_missing_identity(home.path(), NOW_MS).expect("nothing to do"));
    assert_eq!(home.read("keys/root-public.pem"), root);
    assert!(home.fault().contains("culver keys rotate"), "{}", home.fault());
}
