//! A server that this program starts, kills and starts again.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::Rng;

use super::culver::{Culver, Ops};
use super::sealing::SuiteOption;
use crate::report::Broken;
use crate::{plan, sys};

/// How often a starting server is asked whether it is ready.
const READY_STEP: Duration = Duration::from_millis(5);
/// Ports are looked for here: below those that the kernel gives to connecting sockets, so that a client can never
/// meet itself while the server is down.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// Lines of its log that are shown when a server ends by itself.
const LAST_LINES: usize = 10;
/// The variable that tells a server with crash points where to kill itself.
const FAIL_POINTS: &str = "FAILPOINTS";
/// Says whom the descriptors of LISTEN_FDS are for, and becomes it: a process knows its number only when it is there.
const AS_LISTENER: &str = "LISTEN_PID=$$ exec \"$0\" \"$@\"";
/// Ports tried before giving up.
const PORT_TRIES_MAX: usize = 100;

/// What became of a start.
pub(crate) enum Started {
    /// It is ready, after so long.
    Ready(Duration),
    /// It ended before it was.
    Ended(ExitStatus),
    /// Nobody waits any more: it runs.
    Stopped,
}

/// A server process of our own. Dropping it kills it.
pub(crate) struct ServerChild {
    program: PathBuf,
    data_dir: PathBuf,
    /// Folders beside it that the log is spread over; none: it lies within.
    volumes: Vec<PathBuf>,
    /// Hubs of the next start; `None`: as its arguments say.
    hubs: Option<u8>,
    args: Vec<String>,
    /// Where the next start kills itself, as its environment says it.
    fail_points: Option<String>,
    listen: SocketAddr,
    ops: SocketAddr,
    /// Listening sockets that each process is handed, and that outlive it; none: it opens its own.
    listeners: Vec<OwnedFd>,
    /// Where its standard error goes: beside the data, not into it.
    log: PathBuf,
    /// Where in it begins what the running process says.
    log_from: u64,
    child: Option<Child>,
}

impl ServerChild {
    /// Initialises a data directory, with so many volumes beside it, and chooses ports. Nothing runs yet.
    pub(crate) fn prepare(
        program: &Path,
        data_dir: &Path,
        log: PathBuf,
        volumes: u8,
        args: &[String],
        seed: u64,
    ) -> Result<Self> {
        let volumes: Vec<_> = (0..volumes).map(|number| data_dir.with_extension(format!("volume-{number}"))).collect();
        let mut command = Command::new(program);
        command.arg("init").arg("--data-dir").arg(data_dir).stdout(Stdio::null());
        let status = with_volumes(&mut command, &volumes).status();
        let status = status.with_context(|| format!("cannot run {}", program.display()))?;
        if !status.success() {
            bail!("`{} init` failed: {status}", program.display());
        }
        let (listen, ops) = free_ports(seed)?;
        Ok(Self {
            program: program.to_owned(),
            data_dir: data_dir.to_owned(),
            volumes,
            hubs: None,
            args: args.to_vec(),
            fail_points: None,
            listen,
            ops,
            listeners: Vec::new(),
            log,
            log_from: 0,
            child: None,
        })
    }

    /// How many hubs the next start has; `None`: what its arguments say.
    pub(crate) fn set_hubs(&mut self, hubs: Option<u8>) {
        self.hubs = hubs;
    }

    /// From now on this program listens for the server, on so many sockets, and hands them to each process.
    pub(crate) fn listen_for_it(&mut self, count: u8) -> Result<()> {
        let listeners = (0..count).map(|_| sys::listen_for_others(self.listen, count)).collect::<Result<_, _>>();
        self.listeners = listeners.with_context(|| format!("cannot listen on {}", self.listen))?;
        Ok(())
    }

    /// Where the next start kills itself, if it has crash points.
    pub(crate) fn set_fail_points(&mut self, fail_points: Option<String>) {
        self.fail_points = fail_points;
    }

    /// Starts the server and waits until it is ready; returns how long that took.
    pub(crate) fn start(&mut self, max: Duration) -> Result<Duration> {
        match self.start_unless(max, || Ok(false))? {
            Started::Ready(time) => Ok(time),
            Started::Ended(status) => bail!(self.ended_by_itself(status)),
            Started::Stopped => unreachable!("nobody stops it"),
        }
    }

    /// Starts the server and waits until it is ready, has ended, or `stop` says that nobody waits any more.
    pub(crate) fn start_unless(&mut self, max: Duration, mut stop: impl FnMut() -> Result<bool>) -> Result<Started> {
        assert!(self.child.is_none(), "one process at a time");
        let began = Instant::now();
        let mut command = self.command();
        command.arg("serve").arg("--data-dir").arg(&self.data_dir);
        with_volumes(&mut command, &self.volumes);
        if let Some(hubs) = self.hubs {
            command.arg("--hubs").arg(hubs.to_string());
        }
        command.arg("--listen").arg(self.listen.to_string()).arg("--ops").arg(self.ops.to_string());
        match &self.fail_points {
            Some(fail_points) => command.env(FAIL_POINTS, fail_points),
            None => command.env_remove(FAIL_POINTS),
        };
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        self.log_from = log.metadata().with_context(|| format!("cannot look at {}", self.log.display()))?.len();
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?);
        let ops = Ops::new(self.ops);
        while !ops.is_ready() {
            if let Some(status) = self.ended()? {
                return Ok(Started::Ended(status));
            }
            if stop()? {
                return Ok(Started::Stopped);
            }
            if began.elapsed() > max {
                bail!(Broken(format!("the server was not ready within {max:?}; {}", self.last_words())));
            }
            std::thread::sleep(READY_STEP);
        }
        Ok(Started::Ready(began.elapsed()))
    }

    /// The program, with the listening sockets that are kept for it.
    fn command(&self) -> Command {
        if self.listeners.is_empty() {
            return Command::new(&self.program);
        }
        let mut command = Command::new("sh");
        command.arg("-c").arg(AS_LISTENER).arg(&self.program).env("LISTEN_FDS", self.listeners.len().to_string());
        sys::hand_over(&mut command, &self.listeners);
        command
    }

    /// SIGTERM: it shall end in its own time.
    pub(crate) fn terminate(&self) -> Result<()> {
        let child = self.child.as_ref().context("the server is not running")?;
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("cannot end the server")
    }

    /// How the process ended, if it did: then another can be started.
    pub(crate) fn take_ended(&mut self) -> Result<Option<ExitStatus>> {
        let ended = self.ended()?;
        if ended.is_some() {
            self.child = None;
        }
        Ok(ended)
    }

    /// The ops port.
    pub(crate) fn ops(&self) -> Ops {
        Ops::new(self.ops)
    }

    /// An error if the process ended by itself.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!(self.ended_by_itself(status)),
        }
    }

    /// How the process ended, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let child = self.child.as_mut().context("the server is not running")?;
        child.try_wait().context("asking for the server's state")
    }

    /// It should not have.
    pub(crate) fn ended_by_itself(&self, status: ExitStatus) -> Broken {
        Broken(format!("the server ended by itself: {status}; {}", self.last_words()))
    }

    /// What the process that was started last has said.
    pub(crate) fn said(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let from = usize::try_from(self.log_from).unwrap_or(usize::MAX);
        String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
    }

    /// Its last lines, as a clause.
    pub(crate) fn last_words(&self) -> String {
        let text = self.said();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default();
        if last.is_empty() { "it said nothing".to_owned() } else { format!("it said last:\n{}", last.join("\n")) }
    }

    /// SIGKILL, if it has not ended by itself, and waits for the end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("cannot kill the server")?;
            child.wait().context("waiting for the killed server")?;
        }
        Ok(())
    }

    /// Runs the offline check of the data directory.
    pub(crate) fn verify(&self) -> Result<()> {
        assert!(self.child.is_none(), "a running server holds its data");
        let output = Command::new(&self.program).arg("verify").arg("--data-dir").arg(&self.data_dir).output();
        let output = output.context("cannot run verify")?;
        if !output.status.success() {
            let told = [output.stdout, output.stderr].concat();
            bail!(Broken(format!("verify: {}\n{}", output.status, String::from_utf8_lossy(&told))));
        }
        Ok(())
    }

    /// The running server as a target.
    pub(crate) fn target(&self, suite: SuiteOption) -> Result<Culver> {
        Culver::find(self.listen, self.ops, &self.credentials(), suite)
    }

    /// The development credentials in its data directory.
    pub(crate) fn credentials(&self) -> PathBuf {
        self.data_dir.join("dev-credentials.json")
    }
}

impl Drop for ServerChild {
    fn drop(&mut self) {
        self.kill().ok();
    }
}

fn with_volumes<'a>(command: &'a mut Command, volumes: &[PathBuf]) -> &'a mut Command {
    for volume in volumes {
        command.arg("--volume").arg(volume);
    }
    command
}

fn free_ports(seed: u64) -> Result<(SocketAddr, SocketAddr)> {
    let mut rng = plan::rng(seed, "ports");
    let mut found = Vec::new();
    for _ in 0..PORT_TRIES_MAX {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rng.random_range(PORTS)));
        if !found.contains(&address) && TcpListener::bind(address).is_ok() {
            found.push(address);
        }
        if let [listen, ops] = found.as_slice() {
            return Ok((*listen, *ops));
        }
    }
    bail!("no two free ports between {} and {}", PORTS.start, PORTS.end)
}
