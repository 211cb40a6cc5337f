//! A data directory and the server that runs on it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use culver::auth::keys::{CREDENTIALS_FILE, DevCredentials};
use culver_protocol::proto::login::Credential;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

/// No wait takes longer, unless something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How a server is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One hub on one volume.
    OneHub,
    /// Four hubs on two volumes, and two reactors with descriptor tables of their own.
    FourHubs,
}

/// Runs each of these tests on every layout.
macro_rules! on_every_layout {
    ($($test:ident,)*) => {
        mod one_hub {
            $(#[test] fn $test() { super::$test($crate::home::Layout::OneHub); })*
        }
        mod four_hubs {
            $(#[test] fn $test() { super::$test($crate::home::Layout::FourHubs); })*
        }
    };
}
pub(crate) use on_every_layout;

/// An initialised data directory.
pub(crate) struct Home {
    _scratch: TempDir,
    pub(crate) data_dir: PathBuf,
    layout: Layout,
    pub(crate) credentials: DevCredentials,
}

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) listen: SocketAddr,
    pub(crate) ops: SocketAddr,
}

pub(crate) fn now_s() -> u64 {
    now_ms() / 1000
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("milliseconds fit 64 bits for a while")
}

impl Home {
    pub(crate) fn new() -> Self {
        Self::on(Layout::OneHub)
    }

    pub(crate) fn on(layout: Layout) -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        let data_dir = scratch.path().join("data");
        let mut init = Command::new(env!("CARGO_BIN_EXE_culver"));
        init.arg("init").arg("--data-dir").arg(&data_dir);
        if layout == Layout::FourHubs {
            for volume in ["one", "two"] {
                init.arg("--volume").arg(scratch.path().join(volume));
            }
        }
        let output = init.output().expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let credentials = DevCredentials::read(&data_dir.join(CREDENTIALS_FILE)).expect("made by init");
        let home = Self { _scratch: scratch, data_dir, layout, credentials };
        home.configure("");
        home
    }

    /// What `culver restore` makes of a backup: it has found every invariant to hold.
    pub(crate) fn restored(&self, backup: &Path) -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        let data_dir = scratch.path().join("data");
        let mut restore = Command::new(env!("CARGO_BIN_EXE_culver"));
        let output = restore.arg("restore").arg("--from").arg(backup).arg("--data-dir").arg(&data_dir).output();
        let output = output.expect("the binary runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && said.contains("every invariant holds"), "{said}");
        Self { _scratch: scratch, data_dir, layout: self.layout, credentials: self.credentials.clone() }
    }

    /// From the next start on, these are the settings. How full the disk is that tests run on means nothing, where they
    /// do not say otherwise.
    pub(crate) fn configure(&self, settings: &str) {
        let no_reserve = if settings.contains("[disk]") { "" } else { "\n[disk]\nreserve_mib = 0\n" };
        std::fs::write(self.data_dir.join("culver.toml"), format!("{settings}{no_reserve}")).expect("written");
    }

    pub(crate) fn token(&self, user: u64) -> Credential {
        self.token_of(user, 1)
    }

    pub(crate) fn token_of(&self, user: u64, device: u16) -> Credential {
        Credential::Token(self.credentials.mint(user, device, now_s(), 3600, None).expect("a token"))
    }

    pub(crate) fn start(&self) -> Server {
        self.start_with_hubs(if self.layout == Layout::FourHubs { 4 } else { 1 })
    }

    pub(crate) fn start_with_hubs(&self, hubs: u16) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culver"));
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--listen", "127.0.0.1:0", "--ops", "127.0.0.1:0", "--hubs", &hubs.to_string()])
            .args(if self.layout == Layout::FourHubs { &["--reactors", "2", "--private-fd-tables"][..] } else { &[] });
        Server::begin(command)
    }

    /// As whoever keeps these sockets starts it.
    pub(crate) fn start_on(&self, sockets: &Sockets) -> Server {
        Server::begin(sockets.command(&self.data_dir, &["--ops", "127.0.0.1:0"]))
    }

    /// With the server stopped: every invariant of its data must hold.
    pub(crate) fn verify(&self) {
        let mut verify = Command::new(env!("CARGO_BIN_EXE_culver"));
        verify.arg("verify").arg("--data-dir").arg(&self.data_dir);
        let output = verify.output().expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Listening sockets that outlive servers, on one address: what systemd keeps of a socket unit.
pub(crate) struct Sockets {
    pub(crate) address: SocketAddr,
    /// Their numbers are beyond those that they get in a server.
    kept: Vec<OwnedFd>,
}

impl Sockets {
    pub(crate) fn new(count: usize) -> Self {
        let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut kept = Vec::new();
        for _ in 0..count {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.set_reuse_port(true).expect("set");
            socket.bind(&address.into()).expect("a port");
            socket.listen(128).expect("it listens");
            address = socket.local_addr().expect("bound").as_socket().expect("an IP address");
            let kept_fd = fcntl_dupfd_cloexec(&socket, 100).expect("a descriptor");
            // Whoever is started gets it.
            fcntl_setfd(&kept_fd, FdFlags::empty()).expect("open");
            kept.push(kept_fd);
        }
        Self { address, kept }
    }

    /// `culver serve` with these flags, and the sockets from descriptor 3 on: what is handed over names the process
    /// that gets it, so a shell does it and becomes that process.
    pub(crate) fn command(&self, data_dir: &Path, flags: &[&str]) -> Command {
        let moved = (3..).zip(&self.kept).map(|(to, from)| format!(" {to}<&{from} {from}<&-", from = from.as_raw_fd()));
        let mut command = Command::new("bash");
        command
            .arg("-c")
            .arg(format!("exec{}; LISTEN_PID=${{PID-$$}} exec \"$@\"", moved.collect::<String>()))
            .args(["bash", env!("CARGO_BIN_EXE_culver"), "serve", "--data-dir"])
            .arg(data_dir)
            .args(flags)
            .env("LISTEN_FDS", self.kept.len().to_string());
        command
    }
}

/// A fresh directory and its server, with default settings.
pub(crate) fn serve() -> (Home, Server) {
    serve_on(Layout::OneHub)
}

/// A fresh directory and its server, spread like this.
pub(crate) fn serve_on(layout: Layout) -> (Home, Server) {
    let home = Home::on(layout);
    let server = home.start();
    (home, server)
}

impl Server {
    pub(crate) fn begin(mut command: Command) -> Self {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
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
        Self { listen: address("listens on ", ' '), ops: address("http://", '/'), child }
    }

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

    /// Nothing is on its way between hubs any more.
    pub(crate) fn wait_for_hubs(&self) {
        self.wait_for("culver_outbox_behind", |behind| behind == 0);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a pid");
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
