//! The bare floor as a process: thousands of logins over several threads, none of which could hold them all.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use culver_protocol::limits::LENGTH_LEN;
use culver_protocol::preamble::Preamble;
use culver_protocol::proto::{Login, Ping, Ready, Welcome, login};
use culver_protocol::record::{Cipher, Record, RecordType};
use prost::Message;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const CONNECTIONS: usize = 2000;
/// Too few for one table, or two: a third of the connections is 667, with a standard deviation of 21.
const DESCRIPTORS_MAX: usize = 900;
const THREADS: usize = 3;
/// Connections that are opened before any of them is answered.
const HERD: usize = 100;
/// Bound of a wait for what happens at once or never.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bare {
    child: Child,
    commands: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Bare {
    fn start(connections: usize, descriptors_max: usize) -> (Self, SocketAddr) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_culver-loadgen"))
            .args(["bare", "--connections", &connections.to_string()])
            .args(["--descriptors-max", &descriptors_max.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it is built");
        let commands = child.stdin.take().expect("asked for above");
        let reports = BufReader::new(child.stdout.take().expect("asked for above"));
        let mut bare = Self { child, commands, reports };
        let address = bare.read_line().trim().parse().expect("it says where it listens");
        (bare, address)
    }

    fn read_line(&mut self) -> String {
        let mut line = String::new();
        self.reports.read_line(&mut line).expect("it runs");
        line
    }

    /// Logins answered and connections held.
    fn report(&mut self) -> (u64, u64) {
        self.commands.write_all(b"m").expect("it runs");
        let report: serde_json::Value = serde_json::from_str(&self.read_line()).expect("JSON");
        let number = |name: &str| report.get(name).and_then(serde_json::Value::as_u64).expect("a number");
        assert!(number("cpu_us") > 0);
        (number("logins"), number("connections"))
    }

    /// Open sockets in the table of each thread, the largest first.
    fn sockets_of_each_thread(&self) -> Vec<usize> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it runs");
        let sockets = |task: fs::DirEntry| {
            let descriptors = fs::read_dir(task.path().join("fd")).expect("it runs").flatten();
            let links = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
            links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
        };
        let mut counts: Vec<_> = tasks.flatten().map(sockets).collect();
        counts.sort_unstable_by(|left, right| right.cmp(left));
        counts
    }

    fn end(mut self) {
        drop(self.commands);
        assert!(self.child.wait().expect("it was started").success());
    }
}

fn login_bytes() -> Vec<u8> {
    let credential = Some(login::Credential::Ticket(vec![7; 64].into()));
    let login = Login { credential, ..Login::default() }.encode_to_vec();
    let len = u16::try_from(login.len()).expect("a login is short").to_be_bytes();
    [Preamble::PLAINTEXT.encode().as_slice(), &len, &login].concat()
}

fn frame(kind: RecordType, message: &impl Message) -> Vec<u8> {
    let mut out = Vec::new();
    Cipher::Plaintext.seal_message(&mut out, kind, message);
    out
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("longer than nothing");
    socket
}

fn read_welcome(socket: &mut TcpStream) -> Welcome {
    let mut len = [0; LENGTH_LEN];
    socket.read_exact(&mut len).expect("an answer");
    let mut body = vec![0; usize::from(u16::from_be_bytes(len))];
    socket.read_exact(&mut body).expect("the rest of it");
    let record = Record::parse(&body).expect("a record");
    assert_eq!(record.kind, RecordType::Welcome as u8);
    Welcome::decode(record.body).expect("protobuf")
}

fn allow_descriptors(wanted: usize) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < wanted as u64) {
        let raised = Rlimit { current: Some(wanted as u64), maximum };
        setrlimit(Resource::Nofile, raised).expect("the hard limit allows a few thousand");
    }
}

#[test]
fn more_logins_than_one_table_holds_are_answered_once_each() {
    allow_descriptors(CONNECTIONS + 100);
    let (mut bare, address) = Bare::start(CONNECTIONS, DESCRIPTORS_MAX);
    let login = login_bytes();
    let mut sockets = Vec::new();
    for _ in 0..CONNECTIONS / HERD {
        let herd = sockets.len();
        sockets.extend((0..HERD).map(|_| connect(address)));
        for socket in &mut sockets[herd..] {
            socket.write_all(&login).expect("it reads");
        }
        for socket in &mut sockets[herd..] {
            let welcome = read_welcome(socket);
            assert_eq!((welcome.ticket.len(), welcome.keep_alive_s), (60, 240));
        }
    }
    assert_eq!(bare.report(), (CONNECTIONS as u64, CONNECTIONS as u64));
    let each = bare.sockets_of_each_thread();
    assert_eq!(each.len(), 1 + THREADS, "each thread of it, and the one that reports: {each:?}");
    assert_eq!(each.iter().sum::<usize>(), CONNECTIONS + THREADS, "connections and listeners: {each:?}");
    assert!(each.iter().all(|sockets| *sockets < DESCRIPTORS_MAX), "{each:?}");
    assert_eq!(each.last(), Some(&0), "what reports holds nothing open: {each:?}");

    for socket in &mut sockets {
        socket.write_all(&frame(RecordType::Ready, &Ready {})).expect("it reads");
        socket.write_all(&frame(RecordType::Ping, &Ping { nonce: 1, ..Default::default() })).expect("it reads");
        socket.shutdown(Shutdown::Write).expect("it is connected");
        let mut rest = Vec::new();
        // What it has not read when it closes resets the connection.
        let read = socket.read_to_end(&mut rest);
        assert!(
            rest.is_empty() && read.map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |_| true)
        );
    }
    assert_eq!(bare.report(), (CONNECTIONS as u64, 0));
    assert_eq!(bare.sockets_of_each_thread().iter().sum::<usize>(), THREADS);
    bare.end();
}

#[test]
fn a_full_table_ends_it_with_a_word() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_culver-loadgen"))
        .args(["bare", "--connections", "50", "--descriptors-max", "128"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it is built");
    // As long as this is open, nothing but the full table ends it.
    let _commands = child.stdin.take().expect("asked for above");
    let mut reports = BufReader::new(child.stdout.take().expect("asked for above"));
    let mut line = String::new();
    reports.read_line(&mut line).expect("it runs");
    let address: SocketAddr = line.trim().parse().expect("it says where it listens");
    let _sockets: Vec<_> = (0..200).map_while(|_| TcpStream::connect(address).ok()).collect();
    let output = child.wait_with_output().expect("it was started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("accepting"), "{said}");
}

#[test]
fn bad_usage_is_told() {
    let output = Command::new(env!("CARGO_BIN_EXE_culver-loadgen"))
        .args(["bare", "--connections", "0"])
        .output()
        .expect("it is built");
    assert_eq!(output.status.code(), Some(2));
}
