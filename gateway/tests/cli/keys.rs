//! `culver keys`: keys are rotated, certified and retired, and a running server follows.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::ChildStderr;

use serde_json::Value;

use crate::{FAILURE, Server, USAGE, culver, initialised, stderr, stdout, text};

fn keys(data_dir: &Path, action: &str, flags: &[&str]) -> std::process::Output {
    let mut arguments = vec!["keys", action, "--data-dir", text(data_dir)];
    arguments.extend(flags);
    culver(&arguments)
}

fn done(data_dir: &Path, action: &str, flags: &[&str]) -> String {
    let output = keys(data_dir, action, flags);
    assert!(output.status.success(), "{action} {flags:?}: {}", stderr(&output));
    stdout(&output)
}

/// It fails, and says all of this.
fn fails(data_dir: &Path, action: &str, flags: &[&str], expected: &[&str]) {
    let output = keys(data_dir, action, flags);
    assert_eq!(output.status.code(), Some(FAILURE), "{action} {flags:?}");
    for part in expected {
        assert!(stderr(&output).contains(part), "{part:?} is missing in {:?}", stderr(&output));
    }
}

/// The number and the standing of each server key.
fn listed(data_dir: &Path) -> Vec<(u64, String)> {
    let listed: Value = serde_json::from_str(&done(data_dir, "list", &["--json"])).expect("JSON");
    let keys = listed.get("server_keys").and_then(Value::as_array).expect("a list");
    let id = |key: &Value| key.get("id").and_then(Value::as_u64).expect("a number");
    let standing = |key: &Value| key.get("standing").and_then(Value::as_str).expect("text").to_owned();
    keys.iter().map(|key| (id(key), standing(key))).collect()
}

fn standings(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    expected.iter().map(|(id, standing)| (*id, (*standing).to_owned())).collect()
}

#[test]
fn server_keys_are_rotated_and_retired() {
    let (_scratch, data_dir) = initialised();
    assert_eq!(listed(&data_dir), standings(&[(1, "current")]));
    let said = done(&data_dir, "rotate", &["--days", "90"]);
    assert!(said.contains("key 2") && said.contains("90 days"), "{said}");
    assert_eq!(listed(&data_dir), standings(&[(1, "good"), (2, "current")]));
    fails(&data_dir, "rotate", &[], &["two server keys are the most", "culver keys retire"]);
    let said = done(&data_dir, "retire", &[]);
    assert!(said.contains("server key 1 is retired") && said.contains("XX"), "{said}");
    fails(&data_dir, "retire", &[], &["key 2 is the last", "culver keys rotate"]);
    fails(&data_dir, "retire", &["--id", "9"], &["no server key 9", "culver keys list"]);
    let said = done(&data_dir, "list", &[]);
    for part in ["root: ", "server key 2: current, 89 days left, ", "ticket key 1: seals, 0 days old"] {
        assert!(said.contains(part), "{part:?} is missing in {said:?}");
    }
    let secret = fs::read_to_string(data_dir.join("keys/server/2.key")).expect("there");
    assert!(!said.contains(secret.trim()));
}

#[test]
fn a_root_on_another_machine_certifies() {
    let (scratch, data_dir) = initialised();
    let (root, request) = (scratch.path().join("root-private.pem"), scratch.path().join("new.request"));
    fs::rename(data_dir.join("keys/root-private.pem"), &root).expect("moved");
    fails(&data_dir, "rotate", &[], &["root-private.pem", "--request"]);
    let said = done(&data_dir, "rotate", &["--request", text(&request)]);
    assert!(said.contains("culver keys certify --root ROOT --request") && said.contains("culver keys add"), "{said}");
    assert_eq!(listed(&data_dir), standings(&[(1, "current"), (2, "waiting")]));
    let certificate = scratch.path().join("new.cert");
    let certify = |root: &Path, request: &Path| {
        culver(&["keys", "certify", "--root", text(root), "--request", text(request), "--out", text(&certificate)])
    };
    let nonsense = scratch.path().join("nonsense");
    for words in ["no hex", "0123", ""] {
        fs::write(&nonsense, words).expect("written");
        let output = certify(&root, &nonsense);
        assert_eq!(output.status.code(), Some(FAILURE));
        assert!(stderr(&output).contains("is no request"), "{}", stderr(&output));
        fails(&data_dir, "add", &["--cert", text(&nonsense)], &["is no", "certificate"]);
    }
    let output = certify(&nonsense, &request);
    assert!(stderr(&output).contains("no Ed25519 private key in PEM"), "{}", stderr(&output));
    let output = certify(&root, &request);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("certifies key 2") && stdout(&output).contains("culver keys add"));
    done(&data_dir, "add", &["--cert", text(&certificate)]);
    assert_eq!(listed(&data_dir), standings(&[(1, "good"), (2, "current")]));
    // With the root at hand, in one step.
    done(&data_dir, "retire", &[]);
    done(&data_dir, "rotate", &["--root", text(&root)]);
    assert_eq!(listed(&data_dir), standings(&[(2, "good"), (3, "current")]));
    assert!(Server::start(&data_dir, &[]).greeting.contains("listens on"));
}

#[test]
fn ticket_keys_are_rotated_and_retired() {
    let (_scratch, data_dir) = initialised();
    let said = done(&data_dir, "rotate", &["--tickets"]);
    assert!(said.contains("ticket key 2 seals") && said.contains("30 days"), "{said}");
    fails(&data_dir, "rotate", &["--tickets"], &["two ticket keys are the most", "retire --tickets --id 1"]);
    let said = done(&data_dir, "list", &[]);
    assert!(said.contains("ticket key 1: only opens") && said.contains("ticket key 2: seals"), "{said}");
    let said = done(&data_dir, "retire", &["--tickets"]);
    assert!(said.contains("ticket key 1 is retired"), "{said}");
    fails(&data_dir, "retire", &["--tickets"], &["the only ticket key", "culver keys rotate --tickets"]);
}

#[test]
fn ticket_keys_live_as_long_as_the_settings_of_the_server_say() {
    let (scratch, data_dir) = initialised();
    let config = scratch.path().join("elsewhere.toml");
    fs::write(&config, "[ticket]\nlife_s = 5184000\n").expect("written");
    let said = done(&data_dir, "rotate", &["--tickets", "--config", text(&config)]);
    assert!(said.contains("60 days"), "{said}");
    fs::write(&config, "[ticket]\nlife = 1\n").expect("written");
    // A server key does not hang on it.
    for (flags, expected) in [
        (&["--tickets", "--config", text(&config)][..], "elsewhere.toml"),
        (&["--tickets", "--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (&["--config", text(&config)], "--tickets"),
    ] {
        let output = keys(&data_dir, "rotate", flags);
        assert_eq!(output.status.code(), Some(USAGE), "{flags:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{flags:?}: {}", stderr(&output));
    }
}

#[test]
fn keys_of_no_data_directory_are_refused() {
    let missing = Path::new("/nonexistent/data");
    for action in ["list", "rotate", "retire"] {
        fails(missing, action, &[], &["/nonexistent/data/keys", "culver init"]);
    }
    fails(missing, "rotate", &["--tickets"], &["/nonexistent/data/keys", "culver init"]);
}

/// Reads the log until a line says this.
fn until(log: &mut Lines<BufReader<ChildStderr>>, said: &str) -> String {
    let found = log.map(|line| line.expect("UTF-8")).find(|line| line.contains(said));
    found.unwrap_or_else(|| panic!("the log ended without {said:?}"))
}

#[test]
fn a_running_server_follows() {
    let (_scratch, data_dir) = initialised();
    let mut server = Server::start(&data_dir, &[]);
    let mut log = BufReader::new(server.child.stderr.take().expect("piped")).lines();
    done(&data_dir, "rotate", &[]);
    let line = until(&mut log, "the server keys have changed");
    assert!(line.contains("current=2") && line.contains("[1, 2]"), "{line}");
    done(&data_dir, "rotate", &["--tickets"]);
    let line = until(&mut log, "the ticket keys have changed");
    assert!(line.contains("sealing=2"), "{line}");
    let jwks = data_dir.join("keys/jwks.json");
    let good = fs::read_to_string(&jwks).expect("made by init");
    fs::write(&jwks, "{").expect("written");
    let line = until(&mut log, "the keys in memory stay as they are");
    assert!(line.contains("jwks.json cannot be used") && line.contains("token.jwks_file"), "{line}");
    fs::write(&jwks, good).expect("written");
    until(&mut log, "the keys that tokens are verified with have changed");
}

#[test]
fn token_keys_that_lie_elsewhere_are_followed() {
    let (scratch, data_dir) = initialised();
    let elsewhere = scratch.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("made");
    let (jwks, next) = (elsewhere.join("jwks.json"), elsewhere.join("next"));
    fs::rename(data_dir.join("keys/jwks.json"), &jwks).expect("moved");
    fs::write(data_dir.join("culver.toml"), format!("[token]\njwks_file = {:?}", text(&jwks))).expect("written");
    let mut server = Server::start(&data_dir, &[]);
    let mut log = BufReader::new(server.child.stderr.take().expect("piped")).lines();
    // Another file takes its place.
    fs::copy(&jwks, &next).expect("copied");
    fs::rename(&next, &jwks).expect("moved");
    until(&mut log, "the keys that tokens are verified with have changed");
}

#[test]
fn a_token_names_a_device_key() {
    let (_scratch, data_dir) = initialised();
    let key = "0f".repeat(32);
    let token = culver(&["token", "--data-dir", text(&data_dir), "--user", "7", "--device-key", &key]);
    assert!(token.status.success(), "{}", stderr(&token));
    let payload = stdout(&token).split('.').nth(1).expect("three parts").to_owned();
    let claims: Value = serde_json::from_slice(&decode(&payload)).expect("JSON");
    let thumbprint = culver_protocol::crypto::key_thumbprint(&[15; 32]);
    assert_eq!(decode(claims["cnf"]["jkt"].as_str().expect("text")), thumbprint);
}

fn decode(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).expect("base64url")
}
