//! The rules of the tree, as code: which crate may know which, and what may stand where.
//!
//! They are checked here because this crate depends on none of the others and so is built first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A file longer than this, before its tests, hides a noun that wants its own file.
const FILE_LINES_MAX: usize = 600;

/// Each crate, its folder, and the crates of this workspace that it may depend on.
const CRATES: [(&str, &str, &[&str]); 5] = [
    ("culver-protocol", "protocol", &[]),
    ("culver-storage", "storage", &["culver-protocol"]),
    ("culver", "gateway", &["culver-storage", "culver-protocol"]),
    ("culver-loadgen", "loadgen", &["culver-protocol"]),
    ("culver-tune", "tuning", &["culver-protocol"]),
];

#[test]
fn dependencies_run_one_way() {
    for (name, dependencies) in dependencies_by_crate() {
        let (_, _, allowed) = CRATES
            .iter()
            .find(|(known, _, _)| *known == name)
            .unwrap_or_else(|| panic!("{name} is new: say in CRATES what it may depend on"));
        let foreign: Vec<_> = dependencies
            .iter()
            .filter(|dependency| CRATES.iter().any(|(known, _, _)| known == *dependency))
            .filter(|dependency| !allowed.contains(&dependency.as_str()))
            .collect();
        assert!(foreign.is_empty(), "{name} must not depend on {foreign:?}");
    }
}

#[test]
fn only_storage_depends_on_rocksdb() {
    for (name, dependencies) in dependencies_by_crate() {
        let depends = dependencies.iter().any(|dependency| dependency.contains("rocksdb"));
        assert!(!depends || name == "culver-storage", "{name} depends on RocksDB");
    }
}

#[test]
fn protocol_has_no_io_clock_or_threads() {
    let words =
        ["std::net", "std::thread", "std::fs", "std::process", "std::env", "Instant::now", "SystemTime", "File::"];
    assert_absent("protocol/src", &words, |_| false);
}

#[test]
fn storage_has_no_sockets_and_no_wire_format() {
    let words =
        ["std::net", "TcpStream", "mio::", "socket2::", "culver_protocol::proto", "culver_protocol::record", "prost::"];
    assert_absent("storage/src", &words, |_| false);
}

#[test]
fn only_rocks_names_rocksdb() {
    for (_, folder, _) in CRATES {
        assert_absent(folder, &[concat!("rocks", "db::")], |path| {
            path == "storage/src/rocks.rs" || path.starts_with("storage/src/rocks/")
        });
    }
}

#[test]
fn only_sys_rs_is_unsafe() {
    for (_, folder, _) in CRATES {
        for word in [" {", " fn", " impl", " extern"].map(|after| format!("{}{after}", concat!("un", "safe"))) {
            assert_absent(folder, &[&word], |path| path.ends_with("/sys.rs"));
        }
    }
}

#[test]
fn lints_are_never_allowed_and_tests_never_ignored() {
    for (_, folder, _) in CRATES {
        assert_absent(folder, &[concat!("[al", "low("), concat!("#[ig", "nore")], |_| false);
    }
}

#[test]
fn files_are_short() {
    for (_, folder, _) in CRATES {
        let files = sources(&format!("{folder}/src"));
        for (path, text) in files.iter().filter(|(path, _)| !path.contains("/tests/") && !path.ends_with("/tests.rs")) {
            let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
            assert!(lines <= FILE_LINES_MAX, "{path} has {lines} lines before its tests; at most {FILE_LINES_MAX}");
        }
    }
}

/// Every crate of the workspace with the names of all its dependencies: normal, build and dev.
fn dependencies_by_crate() -> Vec<(String, Vec<String>)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo starts, for it has started this test");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata.get("packages").and_then(Value::as_array).expect("cargo metadata lists packages");
    assert_eq!(packages.len(), CRATES.len(), "CRATES lists every crate of the workspace");
    packages.iter().map(|package| (name_of(package), dependencies_of(package))).collect()
}

fn dependencies_of(package: &Value) -> Vec<String> {
    let dependencies = package.get("dependencies").and_then(Value::as_array).expect("a package lists dependencies");
    dependencies.iter().map(name_of).collect()
}

fn name_of(value: &Value) -> String {
    value.get("name").and_then(Value::as_str).expect("packages and dependencies have names").to_owned()
}

/// Fails where the code (comments aside) of a file in `folder` has one of `words`.
fn assert_absent(folder: &str, words: &[&str], is_exempt: impl Fn(&str) -> bool) {
    let files = sources(folder);
    assert!(!files.is_empty(), "{folder} has no source: a check of nothing proves nothing");
    for (path, text) in files.iter().filter(|(path, _)| !is_exempt(path)) {
        for (index, line) in text.lines().enumerate() {
            let code = line.split_once("//").map_or(line, |(code, _)| code);
            for word in words {
                assert!(!code.contains(word), "{path}:{} must not have `{word}`: {}", index + 1, line.trim());
            }
        }
    }
}

/// The Rust files of a folder, with their paths from the project's root; fuzz crates and their build are left out.
fn sources(folder: &str) -> Vec<(String, String)> {
    let root = root();
    let (mut folders, mut files) = (vec![root.join(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("the folder stays while it is read").path();
            if path.is_dir() && !path.ends_with("fuzz") && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let name = path.strip_prefix(&root).expect("every file here is under the root");
                files.push((name.to_string_lossy().into_owned(), text));
            }
        }
    }
    files
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate's folder is in the root").to_owned()
}
