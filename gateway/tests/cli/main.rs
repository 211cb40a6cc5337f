//! The real binary and bad input: every refusal says what is wrong and how to mend it, and exits before it listens.

mod backup;
mod keys;
mod sandbox;
mod volumes;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const ANY_PORT: &str = "127.0.0.1:0";
const FAILURE: i32 = 1;
const USAGE: i32 = 2;

fn culver(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_culver")).args(arguments).output().expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Runs `serve`, which must refuse with this exit code and say all of `expected`.
fn refused(data_dir: &Path, flags: &[&str], code: i32, expected: &[&str]) {
    let output = culver(&serve_arguments(data_dir, flags));
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in expected {
        assert!(said.contains(part), "{part:?} is missing in {said:?}");
    }
    assert!(!stdout(&output).contains("listens on"), "it must not have listened");
}

/// Flags named twice are refused by the parser, so the defaults step back.
fn serve_arguments<'a>(data_dir: &'a Path, flags: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["serve", "--data-dir", text(data_dir)];
    for default in ["--listen", "--ops"] {
        if !flags.contains(&default) {
            arguments.extend([default, ANY_PORT]);
        }
    }
    arguments.extend(flags);
    arguments
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn scratch() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn initialised() -> (TempDir, PathBuf) {
    let scratch = scratch();
    let data_dir = scratch.path().join("data");
    let output = culver(&["init", "--data-dir", text(&data_dir)]);
    assert!(output.status.success(), "{}", stderr(&output));
    (scratch, data_dir)
}

/// A running server; killed when dropped.
struct Server {
    child: Child,
    greeting: String,
    listen: SocketAddr,
    ops: SocketAddr,
}

impl Server {
    fn start(data_dir: &Path, flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_culver"))
            .args(serve_arguments(data_dir, flags))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut greeting = String::new();
        // Ends with the line about tokens, or with the output when the server does.
        while !greeting.contains("culver token") {
            let Some(line) = lines.next() else { break };
            greeting.push_str(&line.expect("UTF-8"));
            greeting.push('\n');
        }
        let address = |before: &str, after: char| {
            let (_, rest) = greeting.split_once(before).unwrap_or_else(|| panic!("no {before:?} in {greeting:?}"));
            rest.split_once(after).expect("an end").0.parse().expect("an address")
        };
        let (listen, ops) = (address("listens on ", ' '), address("http://", '/'));
        Self { child, greeting, listen, ops }
    }

    fn get(&self, path: &str) -> (u16, String) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut response = agent.get(format!("http://{}{path}", self.ops)).call().expect("the operators' port answers");
        (response.status().as_u16(), response.body_mut().read_to_string().expect("text"))
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill_process(Pid::from_raw(pid).expect("not 0"), signal).expect("it runs");
    }

    /// Its exit code (`None`: killed) and what it logged.
    fn wait(mut self) -> (Option<i32>, String) {
        // To its end first: a full pipe would keep the process from ending.
        let mut logged = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut logged).expect("UTF-8");
        (self.child.wait().expect("our child").code(), logged)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail harmlessly where the process has ended already.
        self.child.kill().unwrap_or_default();
        self.child.wait().expect("our child");
    }
}

#[test]
fn help_has_examples_and_exits_with_0() {
    for arguments in [
        &["--help"][..],
        &["init", "--help"],
        &["serve", "--help"],
        &["token", "--help"],
        &["keys", "--help"],
        &["keys", "list", "--help"],
        &["keys", "rotate", "--help"],
        &["keys", "certify", "--help"],
        &["keys", "add", "--help"],
        &["keys", "retire", "--help"],
        &["verify", "--help"],
        &["backup", "--help"],
        &["restore", "--help"],
    ] {
        let output = culver(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(stdout(&output).contains("Examples:"), "{arguments:?}");
    }
}

#[test]
fn bad_usage_exits_with_2() {
    for arguments in [
        &[][..],
        &["fly"],
        &["serve", "--listen", "nowhere"],
        &["serve", "--wings", "2"],
        &["serve", "--reactors", "-1"],
        &["serve", "--hubs", "many"],
        &["serve", "--hubs", "65536"],
        &["serve", "--volume"],
        &["token"],
        &["token", "--user", "bob"],
        &["token", "--user", "7", "--device", "65536"],
        &["token", "--user", "7", "--life", "10"],
        &["token", "--user", "7", "--device-key", "short"],
        &["keys"],
        &["keys", "rotate", "--days", "0"],
        &["keys", "rotate", "--days", "3661"],
        &["keys", "rotate", "--tickets", "--request", "new.request"],
        &["keys", "rotate", "--root", "root.pem", "--request", "new.request"],
        &["keys", "retire", "--id", "65536"],
        &["keys", "certify", "--request", "new.request"],
        &["keys", "add"],
    ] {
        let output = culver(arguments);
        assert_eq!(output.status.code(), Some(USAGE), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("--help"), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn plaintext_is_refused_off_loopback() {
    let scratch = scratch();
    let (data_dir, settings) = (scratch.path().join("data"), scratch.path().join("culver.toml"));
    fs::write(&settings, "[security]\nsuites = [\"aes256\", \"none\"]").expect("written");
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:7400"] {
        let expected = ["not a loopback address", "security.suites", "--listen 127.0.0.1:7400"];
        refused(&data_dir, &["--listen", address, "--config", text(&settings)], USAGE, &expected);
    }
    assert!(!data_dir.exists(), "nothing is made by a refused start");
}

/// Keys for development are not made behind anybody's back where others can connect.
#[test]
fn a_directory_for_others_is_made_by_init_alone() {
    let scratch = scratch();
    let data_dir = scratch.path().join("data");
    refused(&data_dir, &["--listen", "0.0.0.0:0"], FAILURE, &["culver init"]);
    assert!(!data_dir.exists(), "nothing is made by a refused start");
    assert!(culver(&["init", "--data-dir", text(&data_dir)]).status.success());
    fs::remove_dir_all(data_dir.join("keys/server")).expect("removed");
    refused(&data_dir, &["--listen", "0.0.0.0:0"], FAILURE, &["holds no server key", "culver keys rotate"]);
    assert!(Server::start(&data_dir, &[]).greeting.contains("root-private.pem certifies"));
}

#[test]
fn bad_settings_are_refused() {
    let (_scratch, data_dir) = initialised();
    let settings = data_dir.join("culver.toml");
    for (written, expected) in [
        ("listne = \"127.0.0.1:7400\"", "listne"),
        ("listen = 7400", "listen"),
        ("[ticket]\nlife_s = 0", "ticket.life_s = 0 is not possible: choose 1 to"),
        ("[inbox]\nretention_days = 29", "inbox.retention_days = 29 is not possible: choose 30 to"),
        ("hubs = 17", "hubs = 17 is not possible: choose 0 to 16"),
        ("[keep_alive]\nmin_s = 100\nmax_s = 50", "keep_alive.max_s = 50"),
        ("login_timeout_s = \"soon\"", "login_timeout_s"),
        ("= =", "culver.toml"),
    ] {
        fs::write(&settings, written).expect("written");
        refused(&data_dir, &[], USAGE, &[expected]);
    }
    fs::remove_file(&settings).expect("removed");
    refused(&data_dir, &["--reactors", "10000"], USAGE, &["reactors = 10000 is not possible: choose 0 to 256"]);
    refused(&data_dir, &["--config", "/nonexistent/culver.toml"], USAGE, &["/nonexistent/culver.toml", "--config"]);
}

#[test]
fn a_bad_log_filter_is_refused() {
    let (_scratch, data_dir) = initialised();
    fs::write(data_dir.join("culver.toml"), "[log]\nfilter = \"=== what\"").expect("written");
    refused(&data_dir, &[], FAILURE, &["=== what", "log.filter"]);
}

#[test]
fn a_port_in_use_is_refused() {
    let (_scratch, data_dir) = initialised();
    let taken = TcpListener::bind(ANY_PORT).expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    for option in ["--listen", "--ops"] {
        let remedy = format!("another port with {option} IP:PORT");
        refused(&data_dir, &[option, &address], FAILURE, &[&address, "in use by another process", &remedy]);
    }
}

#[test]
fn the_port_of_another_culver_is_refused() {
    let (_first, first) = initialised();
    let (_second, second) = initialised();
    let server = Server::start(&first, &[]);
    refused(&second, &["--listen", &server.listen.to_string()], FAILURE, &["in use by another process", "--listen"]);
    refused(&second, &["--ops", &server.ops.to_string()], FAILURE, &["in use by another process", "--ops"]);
}

#[test]
fn an_address_of_no_interface_is_refused() {
    let (_scratch, data_dir) = initialised();
    refused(&data_dir, &["--ops", "192.0.2.1:7401"], FAILURE, &["cannot use 192.0.2.1:7401", "--ops"]);
}

#[test]
fn a_foreign_directory_is_refused() {
    let scratch = scratch();
    fs::write(scratch.path().join("holiday.jpg"), "not ours").expect("written");
    refused(scratch.path(), &[], FAILURE, &["is no data directory of Culver", "name another directory"]);
    let output = culver(&["init", "--data-dir", text(scratch.path())]);
    assert_eq!(output.status.code(), Some(FAILURE));
    assert!(stderr(&output).contains("is no data directory of Culver"), "{}", stderr(&output));
    assert_eq!(fs::read_dir(scratch.path()).expect("there").count(), 1, "nothing is written into it");
}

#[test]
fn an_unwritable_directory_is_refused() {
    let scratch = scratch();
    let file = scratch.path().join("file");
    fs::write(&file, "").expect("written");
    // Holds for root as well, which permissions do not stop.
    for data_dir in [file.join("data"), PathBuf::from("/proc/culver/data")] {
        refused(&data_dir, &[], FAILURE, &[text(&data_dir), "see that the directory is there"]);
    }
}

#[test]
fn a_newer_format_is_refused() {
    let (_scratch, data_dir) = initialised();
    let marker = data_dir.join("CULVER");
    let mut fields: serde_json::Value = serde_json::from_slice(&fs::read(&marker).expect("there")).expect("JSON");
    let format = fields.get_mut("format").expect("a format");
    *format = serde_json::json!(format.as_u64().expect("a number") + 1);
    fs::write(&marker, fields.to_string()).expect("written");
    refused(&data_dir, &[], FAILURE, &["knows formats up to", "use the version that wrote it"]);
}

#[test]
fn a_directory_that_another_process_holds_is_refused() {
    let (_scratch, data_dir) = initialised();
    let server = Server::start(&data_dir, &[]);
    let holder = format!("in use by process {}", server.child.id());
    refused(&data_dir, &[], FAILURE, &[&holder, "stop that process first"]);
    let output = culver(&["verify", "--data-dir", text(&data_dir)]);
    assert_eq!(output.status.code(), Some(FAILURE));
    assert!(stderr(&output).contains(&holder), "{}", stderr(&output));
}

#[test]
fn too_few_descriptors_are_refused() {
    let (_scratch, data_dir) = initialised();
    let limited = |limit: u32, flags: &str| {
        let command = format!(
            "ulimit -n {limit} && exec {} serve --data-dir {} --listen {ANY_PORT} --ops {ANY_PORT} {flags}",
            env!("CARGO_BIN_EXE_culver"),
            data_dir.display()
        );
        let output = Command::new("sh").args(["-c", &command]).output().expect("a shell");
        assert_eq!(output.status.code(), Some(FAILURE), "{}", stderr(&output));
        stderr(&output)
    };
    let said = limited(1000, "--reactors 1 --connections-max 5000");
    for part in
        ["5000 connections need 5644", "limit is 1000", "ulimit -n 5644", "LimitNOFILE=5644", "--connections-max 356"]
    {
        assert!(said.contains(part), "{part:?} is missing in {said:?}");
    }
    let said = limited(1000, "--private-fd-tables --reactors 2 --connections-max 5000");
    for part in ["5000 connections need 6 reactors", "--reactors 6", "culver-tune plan", "--connections-max 1874"] {
        assert!(said.contains(part), "{part:?} is missing in {said:?}");
    }
    let said = limited(200, "");
    assert!(said.contains("leaves none for connections") && said.contains("LimitNOFILE="), "{said}");
}

#[test]
fn damaged_keys_are_refused() {
    let (_scratch, data_dir) = initialised();
    fs::write(data_dir.join("keys/jwks.json"), "nonsense").expect("written");
    refused(&data_dir, &[], FAILURE, &["jwks.json cannot be used", "no JWK Set", "token.jwks_file"]);
    fs::remove_file(data_dir.join("keys/jwks.json")).expect("removed");
    refused(&data_dir, &[], FAILURE, &["jwks.json", "token.jwks_file", "culver init"]);
    // As the message says.
    assert!(culver(&["init", "--data-dir", text(&data_dir)]).status.success());
    Server::start(&data_dir, &[]);
}

#[test]
fn init_makes_a_directory_once() {
    let (_scratch, data_dir) = initialised();
    for file in ["CULVER", "culver.toml", "dev-credentials.json", "keys/ticket.key", "keys/jwks.json"] {
        assert!(data_dir.join(file).exists(), "{file}");
    }
    let again = culver(&["init", "--data-dir", text(&data_dir)]);
    assert_eq!(again.status.code(), Some(FAILURE));
    assert!(stderr(&again).contains("is a data directory already"), "{}", stderr(&again));
}

#[test]
fn a_data_directory_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (_scratch, data_dir) = initialised();
    let secrets = ["keys/ticket.key", "keys/token-private.pem", "keys/root-private.pem", "keys/server/1.key"];
    for made in ["", "keys", "keys/server", "volume-0", "dev-credentials.json"].into_iter().chain(secrets) {
        let mode = fs::metadata(data_dir.join(made)).expect(made).permissions().mode();
        assert_eq!(mode & 0o077, 0, "{made:?} has mode {mode:o}");
    }
}

/// Runs this very test in a process of its own, where a thread panics: hooks are the whole process's.
#[test]
fn a_panic_in_any_thread_ends_the_process() {
    use std::os::unix::process::ExitStatusExt;
    const CHILD: &str = "CULVER_TEST_PANICS";
    if std::env::var_os(CHILD).is_some() {
        culver::logging::abort_on_panic();
        let thread = std::thread::Builder::new().name("doomed".to_owned()).spawn(|| panic!("a bug of ours"));
        thread.expect("a thread").join().expect_err("the process has ended before");
        return;
    }
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "a_panic_in_any_thread_ends_the_process", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("it runs");
    assert_eq!(output.status.signal(), Some(Signal::ABORT.as_raw()), "{}", stderr(&output));
    assert!(stderr(&output).contains("a bug of ours") && stderr(&output).contains("doomed"), "{}", stderr(&output));
}

#[test]
fn token_prints_a_token_and_nothing_else() {
    let (_scratch, data_dir) = initialised();
    let output = culver(&["token", "--data-dir", text(&data_dir), "--user", "7", "--device", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).trim_end().split('.').count(), 3, "{}", stdout(&output));
    assert_eq!(stdout(&output).lines().count(), 1);
    let nowhere = culver(&["token", "--data-dir", "/nonexistent", "--user", "7"]);
    assert_eq!(nowhere.status.code(), Some(FAILURE));
    assert!(stderr(&nowhere).contains("culver init"), "{}", stderr(&nowhere));
}

#[test]
fn verify_reports_on_a_fresh_directory() {
    let (_scratch, data_dir) = initialised();
    let output = culver(&["verify", "--data-dir", text(&data_dir), "--json", "-"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(report["findings"], serde_json::json!([]));
    let missing = culver(&["verify", "--data-dir", "/nonexistent/data"]);
    assert_eq!(missing.status.code(), Some(FAILURE));
    assert!(stderr(&missing).contains("culver init"), "{}", stderr(&missing));
}

#[test]
fn an_empty_directory_is_initialised_and_served_until_a_signal() {
    for signal in [Signal::TERM, Signal::INT] {
        let scratch = scratch();
        let server = Server::start(scratch.path(), &["--log-format", "json"]);
        assert!(server.greeting.contains("was empty: it is a data directory now"), "{}", server.greeting);
        assert!(server.greeting.contains("culver-loadgen chat --target"), "{}", server.greeting);
        assert_eq!(server.get("/healthz"), (200, "ok\n".to_owned()));
        assert_eq!(server.get("/readyz"), (200, "ready\n".to_owned()));
        assert_eq!(server.get("/nowhere").0, 404);
        let (status, metrics) = server.get("/metrics");
        assert_eq!(status, 200);
        assert!(
            metrics.contains("\nculver_process_cpu_seconds_total ") && metrics.contains("\nculver_connections 0\n"),
            "{metrics}"
        );
        TcpStream::connect(server.listen).expect("it listens");
        server.signal(signal);
        let (code, logged) = server.wait();
        assert_eq!(code, Some(0), "{logged}");
        for line in logged.lines() {
            serde_json::from_str::<serde_json::Value>(line).expect(line);
        }
        for secret in ["keys/ticket.key", "keys/server/1.key"] {
            let key = fs::read_to_string(scratch.path().join(secret)).expect("there");
            let digits = key.split_whitespace().last().expect("64 digits");
            assert!(!logged.contains(digits), "secrets are not logged");
        }
    }
}

#[test]
fn a_server_starts_again_on_the_same_ports() {
    let (_scratch, data_dir) = initialised();
    let server = Server::start(&data_dir, &[]);
    let (listen, ops) = (server.listen.to_string(), server.ops.to_string());
    // The server closes this connection, so that its end lingers in TIME_WAIT.
    let client = TcpStream::connect(server.listen).expect("it listens");
    server.signal(Signal::TERM);
    assert_eq!(server.wait().0, Some(0));
    drop(client);
    let again = Server::start(&data_dir, &["--listen", &listen, "--ops", &ops]);
    assert_eq!(again.listen.to_string(), listen);
}
