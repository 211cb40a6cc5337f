//! A server that has given up what it does not need: all of its threads, and it works as ever.

use std::fs;

use rustix::process::Signal;

use super::{Server, initialised};

/// Whether no thread of the server can get more than it has: what comes with being confined. All are of one mind.
fn is_confined(server: &Server) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.child.id())).expect("it runs");
    let said: Vec<bool> = tasks
        .map(|task| {
            // One that has just ended says nothing.
            let status = fs::read_to_string(task.expect("listed").path().join("status")).unwrap_or_default();
            status.is_empty() || status.contains("NoNewPrivs:\t1\n")
        })
        .collect();
    assert!(said.len() > 5, "{} threads", said.len());
    assert!(said.iter().all(|one| Some(one) == said.first()), "{said:?}");
    said.contains(&true)
}

#[test]
fn every_thread_is_confined_unless_the_settings_say_otherwise() {
    let (_scratch, data_dir) = initialised();
    let server = Server::start(&data_dir, &["--private-fd-tables"]);
    assert!(is_confined(&server));
    assert!(!server.get("/metrics").1.contains("\nculver_process_resident_bytes 0\n"), "it sees its own memory");
    server.signal(Signal::TERM);
    let (code, logged) = server.wait();
    assert!(code == Some(0) && logged.contains("confined"), "{logged}");
    fs::write(data_dir.join("culver.toml"), "sandbox = false").expect("written");
    let server = Server::start(&data_dir, &[]);
    // Where these tests are confined themselves, so is everything that they start.
    let inherited = fs::read_to_string("/proc/self/status").expect("there").contains("NoNewPrivs:\t1\n");
    assert_eq!(is_confined(&server), inherited);
    server.signal(Signal::TERM);
    let (_, logged) = server.wait();
    assert!(!logged.contains("confined"), "{logged}");
}
