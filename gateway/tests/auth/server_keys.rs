//! The server's own keys: certified, rotated, retired, and followed by a running server.

use culver::auth::server_folder::{CERTIFIED_DAYS, SERVER_KEYS_MAX, ServerFolder, Standing};
use culver::auth::{Authenticator, Root, ServerKeys};
use culver_protocol::crypto::KeyPair;
use culver_protocol::handshake::certificate::{Certificate, CertificateError};

use super::{DAY_MS, Home, NOW_MS, secret};

fn root_of(home: &Home) -> Root {
    Root::read(&ServerFolder::of(home.path()).root_path()).expect("made by init")
}

fn rotate(home: &Home, now_ms: u64) -> Result<u16, String> {
    let folder = ServerFolder::of(home.path());
    folder.rotate(&root_of(home), CERTIFIED_DAYS, now_ms).map_err(|error| error.to_string())
}

fn retire(home: &Home, id: Option<u16>) -> Result<u16, String> {
    ServerFolder::of(home.path()).retire(id).map_err(|error| error.to_string())
}

/// The current key, and whether each of these is known.
fn known(authenticator: &Authenticator, ids: &[u16]) -> (u16, Vec<bool>) {
    let known = |id: &u16| authenticator.server_key(*id).is_some_and(|key| key.id == *id);
    (authenticator.current_server_key().id, ids.iter().map(known).collect())
}

#[test]
fn a_new_key_is_certified_by_the_root() {
    let home = Home::new();
    let (root, key) = (root_of(&home), home.load().current_server_key());
    let verify = |now_ms| Certificate::verify(&key.certificate, &root.public().into(), now_ms);
    let certificate = verify(NOW_MS).expect("good");
    assert_eq!((certificate.key_id, certificate.public), (key.id, *key.pair.public()));
    // Clocks of clients may be a day slow.
    assert!(verify(NOW_MS - DAY_MS).is_ok() && verify(NOW_MS + 400 * DAY_MS - 1).is_ok());
    assert_eq!(verify(NOW_MS - DAY_MS - 1), Err(CertificateError::Early));
    assert_eq!(verify(NOW_MS + 400 * DAY_MS), Err(CertificateError::Late));
    assert_eq!(
        Certificate::decode(&key.certificate, &Root::new(&secret(1)).public()),
        Err(CertificateError::Signature)
    );
}

#[test]
fn two_keys_are_good_at_once_and_a_third_is_refused() {
    let home = Home::new();
    let authenticator = home.load();
    assert_eq!(known(&authenticator, &[0, 1, 2]), (1, vec![false, true, false]));
    assert_eq!(rotate(&home, NOW_MS + 1), Ok(2));
    assert_eq!(known(&authenticator, &[1, 2]), (1, vec![true, false]), "not before it looks");
    authenticator.refresh(NOW_MS + 1);
    assert_eq!(known(&authenticator, &[1, 2]), (2, vec![true, true]));
    let full = rotate(&home, NOW_MS + 2).expect_err("two are the most");
    assert!(full.contains("holds 1, 2") && full.contains("culver keys retire"), "{full}");
    assert_eq!(retire(&home, None), Ok(1));
    authenticator.refresh(NOW_MS + 2);
    assert_eq!(known(&authenticator, &[1, 2]), (2, vec![false, true]));
    assert_eq!(rotate(&home, NOW_MS + 3), Ok(3));
    authenticator.refresh(NOW_MS + 3);
    assert_eq!(known(&authenticator, &[2, 3]), (3, vec![true, true]));
    assert_eq!(known(&home.load(), &[2, 3]), (3, vec![true, true]));
}

#[test]
fn the_last_key_stays() {
    let home = Home::new();
    let last = retire(&home, None).expect_err("it is the last");
    assert!(last.contains("culver keys rotate"), "{last}");
    retire(&home, Some(1)).expect_err("it is the last");
    assert!(retire(&home, Some(2)).expect_err("there is none").contains("no server key 2"));
    assert_eq!(rotate(&home, NOW_MS), Ok(2));
    // The newer may go as well: the older is current again.
    assert_eq!(retire(&home, Some(2)), Ok(2));
    assert_eq!(home.load().current_server_key().id, 1);
    assert!(!home.path().join("keys/server/2.key").exists() && !home.path().join("keys/server/2.cert").exists());
}

/// Clients remember which number has which key.
#[test]
fn a_number_never_comes_again_with_another_key() {
    let home = Home::new();
    assert_eq!(rotate(&home, NOW_MS), Ok(2));
    assert_eq!(retire(&home, Some(2)), Ok(2));
    assert_eq!(rotate(&home, NOW_MS), Ok(3));
    assert_eq!(retire(&home, Some(1)), Ok(1));
    home.write("keys/server/last-id", "65534\n");
    assert_eq!(rotate(&home, NOW_MS + 1), Ok(65_535));
    assert_eq!(retire(&home, Some(3)), Ok(3));
    // After the last comes the first: 0 is none.
    assert_eq!(rotate(&home, NOW_MS + 2), Ok(1));
    assert_eq!(known(&home.load(), &[0, 1, 65_535]), (1, vec![false, true, true]));
}

#[test]
fn a_root_elsewhere_certifies_a_request() {
    let home = Home::new();
    let (folder, authenticator) = (ServerFolder::of(home.path()), home.load());
    let (id, request) = folder.request(90, NOW_MS + 1).expect("a request");
    assert_eq!(id, 2);
    authenticator.refresh(NOW_MS);
    assert_eq!(known(&authenticator, &[1, 2]), (1, vec![true, false]), "it waits for its certificate");
    assert!(matches!(folder.entries().expect("two")[1].standing, Standing::Waiting(_)));
    let (certificate, bytes) = root_of(&home).certify_request(&request).expect("a request");
    assert_eq!((certificate.key_id, certificate.not_after_ms), (2, NOW_MS + 1 + 90 * DAY_MS));
    let path = home.path().join("new.cert");
    let refused = |bytes: &[u8], now_ms: u64| folder.add(bytes, &path, now_ms).expect_err("refused").to_string();
    // By another root, cut short, changed, too late, for a key that is not here, for another of the same number.
    let (_, other) = Root::new(&secret(1)).certify_request(&request).expect("a request");
    assert!(refused(&other, NOW_MS).contains("root-public.pem"), "{}", refused(&other, NOW_MS));
    assert!(refused(&bytes[1..], NOW_MS).contains("cannot be read"));
    assert!(refused(&[], NOW_MS).contains("cannot be read"));
    assert!(refused(&bytes, NOW_MS + 1 + 90 * DAY_MS).contains("its time is over"));
    let sign = |certificate: Certificate| root_of(&home).certify(&certificate);
    assert!(refused(&sign(Certificate { key_id: 3, ..certificate }), NOW_MS).contains("no key 3"));
    assert!(refused(&sign(Certificate { public: [5; 32], ..certificate }), NOW_MS).contains("is another"));
    assert_eq!(known(&home.load(), &[1, 2]), (1, vec![true, false]));
    assert_eq!(folder.add(&bytes, &path, NOW_MS).expect("the right one"), 2);
    authenticator.refresh(NOW_MS);
    assert_eq!(known(&authenticator, &[1, 2]), (2, vec![true, true]));
}

#[test]
fn a_root_signs_nothing_but_requests() {
    let (home, root) = (Home::new(), Root::new(&secret(1)));
    let (_, request) = ServerFolder::of(home.path()).request(90, NOW_MS).expect("a request");
    assert!(root.certify_request(&request).is_some());
    for len in 0..request.len() {
        assert!(root.certify_request(&request[..len]).is_none(), "cut to {len}");
        assert!(root.certify_request(&request[len + 1..]).is_none(), "without {len}");
    }
    assert!(root.certify_request(&[request.as_slice(), &[0]].concat()).is_none());
    assert!(root.certify_request(&[&[0], request.as_slice()].concat()).is_none());
    let numberless = Certificate { key_id: 0, public: [5; 32], not_before_ms: 0, not_after_ms: 1 };
    assert!(root.certify_request(&numberless.signed_bytes()).is_none());
}

#[test]
fn another_root_takes_the_place_of_the_first() {
    let home = Home::new();
    let (folder, root) = (ServerFolder::of(home.path()), Root::generate());
    let authenticator = home.load();
    assert!(folder.rotate(&root, 1, NOW_MS).expect_err("another").to_string().contains("--root"));
    root.write_public(&folder.root_public_path()).expect("written");
    // Until it has certified a key, a running server goes on with what it has, and a new one does not start.
    authenticator.refresh(NOW_MS);
    assert_eq!(known(&authenticator, &[1]), (1, vec![true]));
    assert!(home.fault().contains("key 1: its certificate is not good: no trusted root has signed it"));
    assert_eq!(folder.rotate(&root, 1, NOW_MS).expect("its own"), 2);
    authenticator.refresh(NOW_MS);
    assert_eq!(known(&authenticator, &[1, 2]), (2, vec![false, true]));
    assert_eq!(retire(&home, Some(1)), Ok(1));
    retire(&home, Some(2)).expect_err("it is the last");
}

#[test]
fn the_newest_good_key_is_current() {
    let root = Root::new(&secret(1));
    let key = |id: u16, from, until| root.certify_pair(id, KeyPair::new(&[2; 32]), (from, until));
    let keys = ServerKeys::new(vec![key(1, 10, 100), key(2, 50, 80)], 10);
    let at = |now_ms| {
        let keys = keys.at(now_ms);
        (keys.current().identity.id, keys.ids())
    };
    assert_eq!(at(49), (1, vec![1]));
    assert_eq!(at(50), (2, vec![1, 2]));
    assert_eq!(at(80), (1, vec![1]));
    // Better one that clients refuse than none: the clock may be wrong.
    assert_eq!(at(100), (2, vec![2]));
    assert_eq!(at(9), (2, vec![2]));
}

#[test]
fn a_running_server_changes_keys_when_their_time_comes() {
    let home = Home::new();
    let authenticator = home.load();
    let folder = ServerFolder::of(home.path());
    assert_eq!(folder.rotate(&root_of(&home), 1, NOW_MS + 1).expect("another"), 2);
    authenticator.refresh(NOW_MS + 1);
    assert_eq!(known(&authenticator, &[1, 2]), (2, vec![true, true]));
    authenticator.refresh(NOW_MS + 1 + DAY_MS);
    assert_eq!(known(&authenticator, &[1, 2]), (1, vec![true, false]));
}

#[test]
fn a_damaged_key_is_not_used() {
    let home = Home::new();
    assert_eq!(rotate(&home, NOW_MS + 1), Ok(2));
    let (key, certificate) = (home.read("keys/server/2.key"), home.read("keys/server/2.cert"));
    let authenticator = home.load();
    let changed = certificate.replacen(certificate.get(20..22).expect("long"), "zz", 1);
    for (file, text) in [
        ("2.key", "short".to_owned()),
        ("2.key", home.read("keys/server/1.key")),
        ("2.cert", home.read("keys/server/1.cert")),
        ("2.cert", String::new()),
        ("2.cert", changed),
    ] {
        home.write(&format!("keys/server/{file}"), &text);
        assert_eq!(known(&home.load(), &[1, 2]), (1, vec![true, false]), "{file}: {text}");
        home.write("keys/server/2.key", &key);
        home.write("keys/server/2.cert", &certificate);
    }
    // Files that are no keys mean nothing.
    for file in ["0.key", "02.key", "65536.key", "notes", "3.cert"] {
        home.write(&format!("keys/server/{file}"), &key);
    }
    assert_eq!(known(&home.load(), &[1, 2]), (2, vec![true, true]));
    // The last good one gone: a running server keeps what it has.
    for id in [1, 2] {
        home.write(&format!("keys/server/{id}.cert"), "");
    }
    authenticator.refresh(NOW_MS + 1);
    assert_eq!(known(&authenticator, &[1, 2]), (2, vec![true, true]));
    let fault = home.fault();
    assert!(fault.contains("key 1: its certificate is not good") && fault.contains("culver keys rotate"), "{fault}");
    assert!(!fault.contains(key.trim()), "{fault}");
    assert_eq!(ServerFolder::of(home.path()).entries().expect("readable").len(), SERVER_KEYS_MAX);
}
