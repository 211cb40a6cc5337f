//! A data directory and the server that runs on it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use culver::auth::keys::{CREDENTIALS_FILE, DevCredentials};
use culver_protocol::proto::login::Credential;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// No wait takes longer, unless something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// An initialised data directory.
pub(crate) struct Home {
    _scratch: TempDir,
    pub(crate) data_dir: PathBuf,
    pub(crate) credentials: DevCredentials,
}

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) listen: SocketAddr,
    pub(crate) ops: SocketAddr,
}

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

impl Home {
    pub(crate) fn new() -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        let data_dir = scratch.path().join("data");
        let output = Command::new(env!("CARGO_BIN_EXE_culver")).arg("init").arg("--data-dir").arg(&data_dir).output();
        let output = output.expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let credentials = DevCredentials::read(&data_dir.join(CREDENTIALS_FILE)).expect("made by init");
        Self { _scratch: scratch, data_dir, credentials }
    }

    /// From the next start on, these are the settings.
    pub(crate) fn configure(&self, settings: &str) {
        std::fs::write(self.data_dir.join("culver.toml"), settings).expect("written");
    }

    pub(crate) fn token(&self, user: u64) -> Credential {
        Credential::Token(self.credentials.mint(user, 1, now_s(), 3600).expect("a token"))
    }

    pub(crate) fn start(&self) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_culver"))
            .arg("serve")
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--listen", "127.0.0.1:0", "--ops", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let Some(Ok(greeting)) = lines.next() else {
            let mut said = String::new();
            child.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
            panic!("it does not start: {said}");
        };
        let address = |before: &str, after: char| {
            let (_, rest) = greeting.split_once(before).unwrap_or_else(|| panic!("no {before:?} in {greeting:?}"));
            rest.split_once(after).expect("an end").0.parse().expect("an address")
        };
        Server { listen: address("listens on ", ' '), ops: address("http://", '/'), child }
    }
}

/// A fresh directory and its server, with default settings.
pub(crate) fn serve() -> (Home, Server) {
    let home = Home::new();
    let server = home.start();
    (home, server)
}

impl Server {
    /// One number of the metrics page.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let agent = ureq::Agent::new_with_defaults();
        let url = format!("http://{}/metrics", self.ops);
        let page = agent.get(url).call().expect("it answers").body_mut().read_to_string().expect("text");
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::parse);
        line.unwrap_or_else(|| panic!("no {name} in {page}")).expect("a whole number")
    }

    /// Looks at a metric until it is as wanted.
    pub(crate) fn wait_for(&self, name: &str, is_wanted: impl Fn(u64) -> bool) {
        let since = Instant::now();
        loop {
            let value = self.metric(name);
            if is_wanted(value) {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "{name} stays at {value}");
            std::thread::yield_now();
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill_process(Pid::from_raw(pid).expect("not 0"), signal).expect("it runs");
    }

    /// SIGKILL.
    pub(crate) fn kill(self) {
        self.signal(Signal::KILL);
        assert_eq!(self.wait().0, None);
    }

    /// SIGTERM, which must end well.
    pub(crate) fn stop(self) {
        self.signal(Signal::TERM);
        let (code, logged) = self.wait();
        assert_eq!(code, Some(0), "{logged}");
    }

    /// Its exit code (`None`: killed) and what it logged.
    pub(crate) fn wait(mut self) -> (Option<i32>, String) {
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
