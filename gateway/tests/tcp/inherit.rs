//! Servers that end and begin on listening sockets which outlive them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use culver_protocol::proto::login::Credential;

use super::home::{Home, PATIENCE, Server, Sockets};
use super::peer::{Got, Peer, opening, with};

/// What `culver serve` says of sockets that it does not take; it exits with this code.
fn refused(sockets: &Sockets, variables: &[(&str, &str)], flags: &[&str], code: i32) -> String {
    let home = Home::new();
    let mut command = sockets.command(&home.data_dir, &[&["--ops", "127.0.0.1:0"], flags].concat());
    let output = command.envs(variables.iter().copied()).stdin(Stdio::null()).output().expect("the binary runs");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

/// In a table of descriptors, by the thread's name: how often each of these sockets is open.
fn copies(server: &Server) -> BTreeMap<String, usize> {
    let listening = fs::read_to_string(format!("/proc/{}/net/tcp", server.pid())).expect("it runs");
    let here = format!(":{:04X} ", server.listen.port());
    let is_ours = |line: &&str| line.contains(&here) && line.contains(" 0A ");
    let inode = |line: &str| format!("socket:[{}]", line.split_whitespace().nth(9).unwrap_or_default());
    let inodes: Vec<PathBuf> = listening.lines().filter(is_ours).map(|line| inode(line).into()).collect();
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).expect("it runs");
    let count = |task: &Path| {
        let open = fs::read_dir(task.join("fd")).expect("it is ours");
        open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).filter(|path| inodes.contains(path)).count()
    };
    let name = |task: &Path| fs::read_to_string(task.join("comm")).expect("it runs").trim().to_owned();
    tasks.map(|task| task.expect("it runs").path()).map(|task| (name(&task), count(&task))).collect()
}

/// Logs in until it is let in, and says how often it took. It is never refused.
fn get_in(sockets: &Sockets, credential: Credential) -> (TcpStream, u32) {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut stream = TcpStream::connect(sockets.address).expect("somebody listens always");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        // A server that ends closes what it has not let in.
        let is_written = stream.write_all(&opening(&with(credential.clone()))).is_ok();
        let mut byte = [0];
        if is_written && matches!(stream.read(&mut byte), Ok(1)) {
            return (stream, tries);
        }
    }
}

#[test]
fn who_comes_while_no_server_runs_waits_and_gets_in() {
    for private in [false, true] {
        let (home, sockets) = (Home::new(), Sockets::new(3));
        home.configure(&format!("private_fd_tables = {private}\n"));
        let server = home.start_on(&sockets);
        assert_eq!((server.listen, server.metric("culver_reactors")), (sockets.address, 3));
        let copies = copies(&server);
        let of_others = if private { 0 } else { 3 };
        for (thread, count) in &copies {
            let is_reactor = thread.starts_with("reactor-");
            assert_eq!(*count, if is_reactor && private { 1 } else { of_others }, "{thread} of {copies:?}");
        }
        let before: Vec<Peer> = (0..12).map(|user| Peer::online(&home, &server, user)).collect();
        server.stop();
        drop(before);
        let login = |user| opening(&with(home.token(user)));
        let mut waiting: Vec<Peer> = (0..40).map(|_| Peer::connect(sockets.address)).collect();
        waiting.iter_mut().zip(0..).for_each(|(peer, user)| peer.write(&login(user)));
        let server = home.start_on(&sockets);
        for peer in &mut waiting {
            assert!(matches!(peer.next(), Some(Got::Welcome(_))));
        }
        server.stop();
    }
}

#[test]
fn nobody_is_refused_while_servers_end_and_begin() {
    for private in [false, true] {
        let (home, sockets) = (Home::new(), Sockets::new(2));
        home.configure(&format!("private_fd_tables = {private}\n"));
        let (told, comes) = mpsc::sync_channel(0);
        let last = thread::scope(|scope| {
            let (home, sockets) = (&home, &sockets);
            let mut server = home.start_on(sockets);
            scope.spawn(move || {
                // Each is let in before the next: some by one server, some by another.
                (0..).find(|user| told.send(get_in(sockets, home.token(*user)).1).is_err());
            });
            let mut tries = 0;
            for _ in 0..3 {
                (0..20).for_each(|_| tries += comes.recv().expect("they come"));
                server.stop();
                server = home.start_on(sockets);
            }
            (0..20).for_each(|_| tries += comes.recv().expect("they come"));
            drop(comes);
            // At each end one at most was under way and closed.
            assert!((80..=83).contains(&tries), "{tries} tries");
            server
        });
        last.stop();
        home.verify();
    }
}

#[test]
fn sockets_of_another_process_are_none_of_ours() {
    let (home, sockets) = (Home::new(), Sockets::new(1));
    let mut command = sockets.command(&home.data_dir, &["--ops", "127.0.0.1:0", "--listen", "127.0.0.1:0"]);
    command.env("PID", "1");
    let server = Server::begin(command);
    assert_ne!(server.listen, sockets.address);
    server.stop();
}

#[test]
fn what_is_handed_over_must_be_what_it_is_said_to_be() {
    const USAGE: i32 = 2;
    let sockets = Sockets::new(2);
    let said = refused(&sockets, &[("LISTEN_FDS", "two")], &[], USAGE);
    assert!(said.contains("LISTEN_FDS=two, which is no number"), "{said}");
    let said = refused(&sockets, &[("LISTEN_FDS", "3")], &[], USAGE);
    assert!(said.contains("descriptor 5") && said.contains("ListenStream=IP:PORT, once for each reactor"), "{said}");
    let said = refused(&sockets, &[("LISTEN_FDNAMES", "one")], &[], USAGE);
    assert!(said.contains("LISTEN_FDNAMES=one, which is not a name for each of 2"), "{said}");
    let said = refused(&sockets, &[], &["--reactors", "3"], USAGE);
    assert!(said.contains("reactors = 3, but 2 sockets"), "{said}");
    let said = refused(&sockets, &[], &["--listen", "127.0.0.1:7769"], USAGE);
    assert!(said.contains("--listen 127.0.0.1:7769") && said.contains(&sockets.address.to_string()), "{said}");
    let said = refused(&sockets, &[("LISTEN_FDNAMES", "ops:ops")], &[], USAGE);
    assert!(said.contains("FileDescriptorName=ops"), "{said}");
}

#[test]
fn the_operators_port_is_handed_over_by_its_name() {
    let (home, ops) = (Home::new(), Sockets::new(1));
    let mut command = ops.command(&home.data_dir, &["--listen", "127.0.0.1:0"]);
    command.env("LISTEN_FDNAMES", "ops");
    let server = Server::begin(command);
    assert_eq!(server.ops, ops.address);
    assert_eq!(server.metric("culver_connections"), 0);
    server.stop();
}
