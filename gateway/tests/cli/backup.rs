//! `culver backup` and `culver restore`: what they make, what they refuse, and what is left when they are cut short.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{FAILURE, Server, USAGE, culver, initialised, stderr, stdout, text};

/// Asks a running server for a backup.
fn back_up(server: &Server, to: &Path) -> Output {
    culver(&["backup", "--to", text(to), "--ops", &server.ops.to_string()])
}

fn restore(from: &Path, data_dir: &Path, flags: &[&str]) -> Output {
    culver(&[&["restore", "--from", text(from), "--data-dir", text(data_dir)], flags].concat())
}

/// It failed, and said all of this.
fn failed(output: &Output, expected: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(FAILURE), "{said}{}", stdout(output));
    for part in expected {
        assert!(said.contains(part), "{part:?} is missing in {said:?}");
    }
}

/// It is as good as what it says of itself.
fn done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}{}", stderr(output), stdout(output));
    stdout(output)
}

fn json(output: &Output) -> Value {
    done(output);
    serde_json::from_slice(&output.stdout).expect("JSON and nothing else")
}

/// A data directory and a backup of it, taken with no server.
fn backed_up() -> (TempDir, PathBuf, PathBuf) {
    let (scratch, data_dir) = initialised();
    let backup = scratch.path().join("backup");
    done(&culver(&["backup", "--to", text(&backup), "--data-dir", text(&data_dir)]));
    (scratch, data_dir, backup)
}

#[test]
fn a_running_server_is_backed_up_and_goes_on() {
    let (scratch, data_dir) = initialised();
    let (backup, again, restored) = ["backup", "again", "restored"].map(|name| scratch.path().join(name)).into();
    let server = Server::start(&data_dir, &[]);
    let said = done(&back_up(&server, &backup));
    for part in ["is complete: 1 volume,", "writers were held for", "culver restore --from"] {
        assert!(said.contains(part), "{part:?} is missing in {said:?}");
    }
    let ops = server.ops.to_string();
    let told = json(&culver(&["backup", "--to", text(&again), "--ops", &ops, "--json"]));
    assert_eq!((&told["volumes"], &told["to"]), (&1.into(), &text(&again).into()));
    assert!(told["bytes"].as_u64() > Some(0) && told["files"].as_u64() > Some(5), "{told}");
    let metrics = server.get("/metrics").1;
    assert!(metrics.contains("\nculver_backups_total 2\n"), "{metrics}");
    assert!(!metrics.contains("\nculver_backup_last_ms 0\n") && !metrics.contains("\nculver_backup_held_us 0\n"));
    server.signal(Signal::TERM);
    let (code, logged) = server.wait();
    assert!(code == Some(0) && logged.contains("a backup is complete") && logged.contains("held_us"), "{logged}");
    for file in [
        "",
        "BACKUP",
        "culver.toml",
        "dev-credentials.json",
        "keys/ticket.key",
        "keys/server/1.key",
        "volume-0/CURRENT",
    ] {
        let of = fs::metadata(backup.join(file)).expect(file);
        let is_secret = file.is_empty() || file.contains("key") || file.contains("dev");
        assert!(!is_secret || of.permissions().mode() & 0o077 == 0, "{file:?} is for its owner alone");
    }
    let said = done(&restore(&backup, &restored, &[]));
    for part in ["is a data directory", "GAP with `reset`", "every invariant holds", "culver serve --data-dir"] {
        assert!(said.contains(part), "{part:?} is missing in {said:?}");
    }
    let server = Server::start(&restored, &[]);
    assert_eq!(server.get("/readyz").0, 200);
}

#[test]
fn a_stopped_directory_is_backed_up_and_its_volumes_are_put_elsewhere() {
    let (scratch, data_dir, backup) = backed_up();
    let incarnation = |of: &Path| -> Value {
        serde_json::from_slice::<Value>(&fs::read(of.join("CULVER")).expect("a marker")).expect("JSON")["incarnation"]
            .clone()
    };
    let (restored, volume) = (scratch.path().join("restored"), scratch.path().join("disk/volume"));
    let told = json(&restore(&backup, &restored, &["--volume", text(&volume), "--json"]));
    assert_eq!(told["incarnation_before"], incarnation(&data_dir));
    assert_eq!(told["incarnation"], incarnation(&restored));
    assert_ne!(told["incarnation"], told["incarnation_before"]);
    assert_eq!(told["verify"]["findings"], serde_json::json!([]));
    assert!(volume.join("VOLUME").exists() && !restored.join("volume-0").exists());
    for file in ["culver.toml", "keys/ticket.key", "keys/jwks.json", "keys/server/1.key", "dev-credentials.json"] {
        assert_eq!(fs::read(restored.join(file)).expect(file), fs::read(data_dir.join(file)).expect(file));
    }
    // To a file, and unchecked.
    let (second, file) = (scratch.path().join("second"), scratch.path().join("report.json"));
    let said = done(&restore(&backup, &second, &["--no-verify", "--json", text(&file)]));
    assert!(said.contains("not checked: culver verify"), "{said}");
    let told: Value = serde_json::from_slice(&fs::read(file).expect("written")).expect("JSON");
    assert_eq!(told.get("verify"), None);
    let server = Server::start(&data_dir, &[]);
    let held = culver(&["backup", "--to", text(&scratch.path().join("held")), "--data-dir", text(&data_dir)]);
    failed(&held, &[&format!("in use by process {}", server.child.id()), "culver backup --to", "--ops"]);
    assert!(!scratch.path().join("held").exists());
}

#[test]
fn what_cannot_be_backed_up_is_refused() {
    let (scratch, data_dir) = initialised();
    let server = Server::start(&data_dir, &[]);
    let full = scratch.path().join("full");
    fs::create_dir(&full).expect("made");
    fs::write(full.join("holiday.jpg"), "not ours").expect("written");
    failed(&back_up(&server, &full), &["took no backup", "is not empty", "name an empty directory"]);
    assert_eq!(fs::read_dir(&full).expect("there").count(), 1);
    let within = data_dir.join("volume-0/backup");
    failed(&back_up(&server, &within), &["lies within", "name a directory outside it"]);
    assert!(!within.exists());
    failed(&back_up(&server, Path::new("/proc/culver")), &["cannot create /proc/culver", "took no backup"]);
    let nobody = culver(&["backup", "--to", text(&scratch.path().join("none")), "--ops", "127.0.0.1:1"]);
    failed(&nobody, &["no server answers at 127.0.0.1:1", "--ops IP:PORT", "--data-dir DIR"]);
    // The port of clients is none of operators'.
    let clients = server.listen.to_string();
    failed(&culver(&["backup", "--to", text(&scratch.path().join("none")), "--ops", &clients]), &["--ops"]);
    for usage in [
        &["backup"][..],
        &["backup", "--to", "x", "--ops", "nowhere"],
        &["backup", "--to", "x", "--ops", "127.0.0.1:1", "--data-dir", "y"],
        &["restore", "--from", "x"],
        &["restore", "--data-dir", "x"],
    ] {
        assert_eq!(culver(usage).status.code(), Some(USAGE), "{usage:?}");
    }
    assert!(!scratch.path().join("none").exists());
    assert_eq!(server.get("/readyz").0, 200);
}

#[test]
fn backups_go_where_the_settings_say_and_nowhere_else() {
    let (scratch, data_dir) = initialised();
    let (backups, elsewhere) = (scratch.path().join("backups"), scratch.path().join("elsewhere"));
    fs::create_dir(&backups).expect("made");
    let settings = format!("[backup]\ndirs = [{:?}]\n[disk]\nreserve_mib = 0", text(&backups));
    fs::write(data_dir.join("culver.toml"), settings).expect("written");
    let server = Server::start(&data_dir, &[]);
    let monday = backups.join("monday");
    done(&back_up(&server, &monday));
    assert!(monday.join("BACKUP").exists() && monday.join("keys/ticket.key").exists());
    for to in [&elsewhere, &backups.join("../elsewhere")] {
        failed(&back_up(&server, to), &["took no backup", "[backup] dirs"]);
    }
    assert!(!elsewhere.exists());
}

#[test]
fn only_a_program_that_means_it_may_ask() {
    let (scratch, data_dir) = initialised();
    let server = Server::start(&data_dir, &[]);
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let url = format!("http://{}/backup", server.ops);
    let to = scratch.path().join("backup");
    let body = serde_json::json!({ "to": to }).to_string();
    let post = |kind: &str, body: &str| {
        let mut response = agent.post(&url).content_type(kind).send(body).expect("it answers");
        (response.status().as_u16(), response.body_mut().read_to_string().expect("text"))
    };
    assert_eq!(agent.get(&url).call().expect("it answers").status(), 405);
    // What a form on a web page can send.
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        assert_eq!(post(kind, &body).0, 415);
    }
    for body in ["", "{}", "[]", r#"{"to": 7}"#, r#"{"to": "here"}"#, r#"{"to": "/x", "from": "/y"}"#] {
        let (status, said) = post("application/json", body);
        assert!(status == 400 && said.contains("absolute"), "{body}: {status} {said}");
    }
    assert!(!to.exists());
    assert_eq!(post("application/json", &body).0, 200);
    assert!(to.join("BACKUP").exists());
}

#[test]
fn what_is_no_backup_is_not_restored() {
    let (scratch, data_dir, backup) = backed_up();
    let fresh = scratch.path().join("fresh");
    let refused = |from: &Path, expected: &[&str]| {
        failed(&restore(from, &fresh, &[]), expected);
        assert!(!fresh.exists(), "nothing is made of it");
    };
    refused(&data_dir, &["is no complete backup", "no file `BACKUP`"]);
    refused(&scratch.path().join("none"), &["is no complete backup", "culver backup --to DIR"]);
    failed(&restore(&backup, &data_dir, &[]), &["is not empty", "name an empty directory"]);
    let volume = scratch.path().join("volume");
    failed(&restore(&backup, &fresh, &["--volume", text(&volume), "--volume", "x"]), &["has 1 volume", "2 were named"]);
    // A backup is no data directory.
    failed(&culver(&["serve", "--data-dir", text(&backup)]), &["is a backup", "culver restore --from"]);
    failed(&culver(&["init", "--data-dir", text(&backup)]), &["is a backup"]);
    failed(&culver(&["verify", "--data-dir", text(&backup)]), &["is a backup"]);
    // Half of one is neither.
    fs::remove_file(backup.join("BACKUP")).expect("there");
    refused(&backup, &["is no complete backup"]);
    let half = Command::new(env!("CARGO_BIN_EXE_culver"))
        .args(["serve", "--data-dir", text(&backup), "--listen", "127.0.0.1:0", "--ops", "127.0.0.1:0"])
        .output()
        .expect("the binary runs");
    failed(&half, &["is not empty"]);
    assert!(!fresh.exists() && !volume.exists());
}

#[test]
fn a_backup_that_fails_leaves_nothing_and_the_server_goes_on() {
    let (scratch, data_dir) = initialised();
    let server = Server::start(&data_dir, &[]);
    let backup = scratch.path().join("backup");
    // Keys are copied behind all volumes.
    let astray = data_dir.join("keys/astray.key");
    std::os::unix::fs::symlink("/nonexistent", &astray).expect("made");
    failed(&back_up(&server, &backup), &["took no backup", "astray.key"]);
    assert!(!backup.exists() && !data_dir.join("volume-0/backup-under-way").exists());
    fs::remove_file(astray).expect("there");
    done(&back_up(&server, &backup));
    let metrics = server.get("/metrics").1;
    assert!(metrics.contains("\nculver_backups_failed_total 1\n") && metrics.contains("\nculver_backups_total 1\n"));
}

/// A disk that takes no more, so to speak: files may not grow beyond a few KiB.
#[test]
fn a_restore_without_room_leaves_nothing() {
    let (scratch, _data_dir, backup) = backed_up();
    let restored = scratch.path().join("restored");
    let big = backup.join("volume-0").join("999999.sst");
    fs::write(&big, vec![0; 64 << 10]).expect("written");
    let manifest = fs::read_to_string(backup.join("BACKUP")).expect("there");
    let longer = manifest.replacen("\"CURRENT\":", "\"999999.sst\": 65536,\n\"CURRENT\":", 1);
    assert_ne!(manifest, longer);
    fs::write(backup.join("BACKUP"), longer).expect("written");
    let command = format!(
        "trap '' XFSZ; ulimit -f 32; exec {} restore --from {} --data-dir {}",
        env!("CARGO_BIN_EXE_culver"),
        backup.display(),
        restored.display()
    );
    let output = Command::new("sh").args(["-c", &command]).output().expect("a shell");
    failed(&output, &["cannot write", "999999.sst", "has room"]);
    assert!(!restored.exists());
}

/// Whenever that is: there is a whole backup then, or none that could be taken for one.
#[test]
fn a_server_killed_meanwhile_leaves_a_whole_backup_or_none() {
    let (scratch, data_dir) = initialised();
    for round in 0..6 {
        let server = Server::start(&data_dir, &[]);
        let (backup, restored) =
            ["backup", "restored"].map(|name| scratch.path().join(format!("{name}-{round}"))).into();
        let mut asking = Command::new(env!("CARGO_BIN_EXE_culver"))
            .args(["backup", "--to", text(&backup), "--ops", &server.ops.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        // From nothing at all to nearly done.
        let is_far = |of: &Path| match round {
            0 => true,
            1 => of.exists(),
            2 | 3 => of.join("volume-0").exists(),
            4 => of.join("keys").exists(),
            _ => of.join("BACKUP.new").exists() || of.join("BACKUP").exists(),
        };
        while !is_far(&backup) && asking.try_wait().expect("our child").is_none() {
            std::hint::spin_loop();
        }
        server.signal(Signal::KILL);
        assert_eq!(server.wait().0, None);
        let is_done = asking.wait().expect("our child").success();
        let output = restore(&backup, &restored, &[]);
        if backup.join("BACKUP").exists() {
            done(&output);
        } else {
            assert!(!is_done, "it does not say that it is done before it is");
            failed(&output, &["is no complete backup"]);
            assert!(!restored.exists());
        }
    }
    let server = Server::start(&data_dir, &[]);
    assert!(!data_dir.join("volume-0/backup-under-way").exists(), "what was left is removed by the next start");
    done(&back_up(&server, &scratch.path().join("backup")));
}

#[test]
fn whoever_asks_and_goes_breaks_it_off() {
    let (scratch, data_dir) = initialised();
    let server = Server::start(&data_dir, &[]);
    let backup = scratch.path().join("backup");
    let mut asking = Command::new(env!("CARGO_BIN_EXE_culver"))
        .args(["backup", "--to", text(&backup), "--ops", &server.ops.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary runs");
    while !backup.exists() && asking.try_wait().expect("our child").is_none() {
        std::hint::spin_loop();
    }
    // Fails harmlessly where it has ended already.
    asking.kill().unwrap_or_default();
    asking.wait().expect("our child");
    // It ends one way or the other, and the next is taken.
    let next = scratch.path().join("next");
    loop {
        let output = back_up(&server, &next);
        if output.status.success() {
            break;
        }
        failed(&output, &["another backup is under way"]);
    }
    assert_eq!(backup.exists(), backup.join("BACKUP").exists(), "whole or gone");
    assert!(next.join("BACKUP").exists());
    drop(scratch);
}
