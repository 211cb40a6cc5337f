//! Reactors with descriptor tables of their own, and reactors that are full.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use culver_protocol::error::ErrorCode;

use super::home::{Home, PATIENCE, Server};
use super::peer::{Got, Peer, opening, with};

/// What each thread has open, by its name.
fn open_by_thread(server: &Server) -> Vec<(String, Vec<PathBuf>)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).expect("it runs");
    let of_task = |task: PathBuf| {
        let name = fs::read_to_string(task.join("comm")).expect("it runs").trim().to_owned();
        let open = fs::read_dir(task.join("fd")).expect("it is ours");
        // One may be closed meanwhile.
        (name, open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect())
    };
    tasks.map(|task| of_task(task.expect("it runs").path())).collect()
}

#[test]
fn a_reactor_holds_nothing_but_its_sockets() {
    let home = Home::new();
    home.configure("reactors = 3\nprivate_fd_tables = true\n");
    let server = home.start();
    let peers: Vec<Peer> = (0..24).map(|user| Peer::online(&home, &server, user)).collect();
    let (mut reactors, mut sockets) = (0, 0);
    for (thread, open) in open_by_thread(&server) {
        let is_of_data = |path: &PathBuf| path.starts_with(&home.data_dir);
        if thread.starts_with("reactor-") {
            reactors += 1;
            // Standard input, output and error; a poll; an alarm; a listener.
            let own = open.iter().filter(|path| path.to_string_lossy().starts_with("socket:")).count();
            sockets += own - 1;
            assert_eq!(open.len() - own, 5, "{thread}: {open:?}");
            assert!(!open.iter().any(is_of_data), "{thread}: {open:?}");
        } else {
            assert!(open.iter().any(is_of_data), "{thread}: {open:?}");
        }
    }
    assert_eq!((reactors, sockets), (3, peers.len()));
}

#[test]
fn a_full_reactor_leaves_connections_to_those_with_room() {
    const REACTORS: u64 = 8;
    for private in [false, true] {
        let home = Home::new();
        home.configure(&format!(
            "connections_max = {REACTORS}\nreactors = {REACTORS}\nprivate_fd_tables = {private}\n"
        ));
        let server = home.start();
        // With tables of their own reactors take a little more than their share: two each.
        let room = if private { 2 * REACTORS } else { REACTORS };
        // The kernel alone would give some reactor one too many.
        let mut peers: Vec<Peer> = (0..room).map(|user| Peer::online(&home, &server, user)).collect();
        Peer::connect(server.listen).refused(ErrorCode::ConnectionsFull);
        peers.iter_mut().for_each(Peer::ping);
        drop(peers.pop());
        let since = Instant::now();
        loop {
            let mut late = Peer::connect(server.listen);
            late.write(&opening(&with(home.token(99))));
            match late.next() {
                Some(Got::Welcome(_)) => break,
                _ => assert!(since.elapsed() < PATIENCE, "there is never room again"),
            }
        }
        peers.iter_mut().for_each(Peer::ping);
    }
}
