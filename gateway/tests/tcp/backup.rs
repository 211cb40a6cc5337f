//! A backup under load: what was acknowledged before it began is in it, once, and clients notice what they are told from.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use culver_protocol::error::ErrorCode;
use culver_protocol::proto::{self, login::Credential};
use rustix::process::{Pid, Signal, kill_process};

use crate::home::{Home, Layout, PATIENCE, Server};
use crate::peer::{Got, Peer, opening, with};

/// Who sends, and to whom: enough that every hub sends to every other.
const SENDERS: std::ops::RangeInclusive<u64> = 1..=6;
const RECIPIENTS: std::ops::RangeInclusive<u64> = 101..=112;
/// Of those, one was there before the backup.
const REGULAR: u64 = 101;
/// Messages of one sender that wait for their answers.
const IN_FLIGHT: u64 = 16;
/// Messages acknowledged before the backup is asked for, and after it is complete.
const SOME: u64 = 1500;

/// What was acknowledged: sender and number, by recipient.
#[derive(Default)]
struct Acknowledged {
    messages: Mutex<BTreeMap<u64, BTreeSet<(u64, u64)>>>,
    count: AtomicU64,
}

impl Acknowledged {
    fn note(&self, from: u64, number: u64) {
        let mut messages = self.messages.lock().expect("nobody panicked");
        assert!(messages.entry(recipient(number)).or_default().insert((from, number)), "once");
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    fn wait_for(&self, count: u64) {
        let since = Instant::now();
        while self.count.load(Ordering::SeqCst) < count {
            assert!(since.elapsed() < PATIENCE, "nothing is acknowledged any more");
            std::thread::yield_now();
        }
    }
}

/// Ends the senders, however the test ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// To whom a sender's `number`th message goes: to all in turn.
fn recipient(number: u64) -> u64 {
    RECIPIENTS.start() + number % (RECIPIENTS.end() - RECIPIENTS.start() + 1)
}

fn payload(from: u64, number: u64) -> Vec<u8> {
    // Long enough that files are written meanwhile.
    [&from.to_be_bytes()[..], &number.to_be_bytes(), &[7; 200]].concat()
}

fn unpack(entry: &proto::Entry) -> (u64, u64) {
    let number = |at: usize| u64::from_be_bytes(entry.payload[at..at + 8].try_into().expect("eight bytes"));
    (number(0), number(8))
}

/// Sends until it is told to stop; all of it is acknowledged then.
fn send(home: &Home, server: &Server, from: u64, acknowledged: &Acknowledged, is_over: &AtomicBool) {
    let mut peer = Peer::online(home, server, from);
    let mut sent = 0;
    for answered in 1.. {
        while sent < answered + IN_FLIGHT - 1 && !is_over.load(Ordering::SeqCst) {
            sent += 1;
            peer.send(recipient(sent), sent, &payload(from, sent));
        }
        if answered > sent {
            return;
        }
        peer.result(answered);
        acknowledged.note(from, answered);
    }
}

/// All that waits for a user who knows nothing, or until `expected` has come. Each entry once, each sender's in order.
fn fetch(home: &Home, server: &Server, user: u64, expected: &BTreeSet<(u64, u64)>) -> BTreeSet<(u64, u64)> {
    let login = proto::Login { credit_entries: 1000, credit_bytes: 1 << 20, ..with(home.token(user)) };
    let mut peer = Peer::resume(server, user, &login).0;
    let (mut found, mut last) = (BTreeSet::new(), BTreeMap::new());
    while !expected.is_subset(&found) {
        for entry in peer.deliver() {
            let (from, number) = unpack(&entry);
            assert_eq!(entry.sender, from);
            assert!(found.insert((from, number)), "{number} of {from} has come twice");
            let before = last.insert(from, number);
            assert!(before.is_none_or(|before| before < number), "{number} of {from} comes behind {before:?}");
        }
        peer.ack(peer.position);
    }
    found
}

fn back_up(server: &Server, to: &std::path::Path) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culver"));
    let output = command.arg("backup").arg("--to").arg(to).args(["--ops", &server.ops.to_string()]).output();
    let output = output.expect("the binary runs");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn a_backup_under_load_holds_all_that_was_acknowledged_before_it_began() {
    let home = Home::on(Layout::FourHubs);
    let server = home.start_with_hubs(3);
    let scratch = tempfile::tempdir().expect("a directory");
    let backups: Vec<_> = ["one", "two"].iter().map(|name| scratch.path().join(name)).collect();
    // Somebody who keeps a cursor.
    let mut regular = Peer::online(&home, &server, REGULAR);
    Peer::online(&home, &server, 7).send_and_wait(REGULAR, 1, &payload(7, 1));
    regular.entries(1);
    regular.ack(1);
    regular.settle();
    drop(regular);
    let (acknowledged, is_over) = (Acknowledged::default(), AtomicBool::new(false));
    let (before, taken) = std::thread::scope(|scope| {
        let _over = Over(&is_over);
        for from in SENDERS {
            let (home, server, acknowledged, is_over) = (&home, &server, &acknowledged, &is_over);
            scope.spawn(move || send(home, server, from, acknowledged, is_over));
        }
        acknowledged.wait_for(SOME);
        let before = acknowledged.messages.lock().expect("nobody panicked").clone();
        // Two at once: one is taken, and the other too, or it is told of the first.
        let asking: Vec<_> = backups.iter().map(|to| scope.spawn(|| back_up(&server, to))).collect();
        let told: Vec<_> = asking.into_iter().map(|thread| thread.join().expect("it ends")).collect();
        let count = acknowledged.count.load(Ordering::SeqCst);
        acknowledged.wait_for(count + SOME);
        for ((is_taken, said), to) in told.iter().zip(&backups) {
            assert_eq!(*is_taken, to.join("BACKUP").exists(), "{said}");
            assert!(*is_taken || said.contains("another backup is under way"), "{said}");
        }
        (before, told.into_iter().map(|(is_taken, _)| is_taken).collect::<Vec<_>>())
    });
    assert!(taken.contains(&true), "one of two is the first");
    let (_, told) = Peer::resume(&server, REGULAR, &with(home.token(REGULAR)));
    // The old server is not disturbed.
    server.stop();
    home.verify();
    for (backup, _) in backups.iter().zip(taken).filter(|(_, is_taken)| *is_taken) {
        check_restored(&home.restored(backup), &before, &told);
    }
}

/// It is whole; and what clients find in it.
fn check_restored(home: &Home, before: &BTreeMap<u64, BTreeSet<(u64, u64)>>, told: &proto::Welcome) {
    let server = home.start_with_hubs(2);
    // A ticket of the other incarnation, then the token and the cursor.
    let mut peer = Peer::connect(server.listen);
    peer.write(&opening(&with(Credential::Ticket(told.ticket.clone()))));
    peer.refused(ErrorCode::TicketStale);
    let login = proto::Login { cursor: 900, incarnation: told.incarnation, ..with(home.token(REGULAR)) };
    let (mut regular, welcome) = Peer::resume(&server, REGULAR, &login);
    assert_ne!(welcome.incarnation, told.incarnation);
    let gap = proto::Gap { start: 2, reset: true, incarnation: welcome.incarnation };
    assert_eq!(regular.next(), Some(Got::Gap(gap)), "it goes on behind what it had acknowledged");
    drop(regular);
    server.wait_for_hubs();
    let mut found = BTreeMap::new();
    for user in RECIPIENTS {
        let of = before.get(&user).expect("everybody was sent something");
        if user != REGULAR {
            found.insert(user, fetch(home, &server, user, of));
        }
    }
    // Whoever missed an answer sends again: what is there is known, and stays there once.
    for from in SENDERS {
        let mut peer = Peer::online(home, &server, from);
        let sent = before.values().flatten().filter(|(sender, _)| *sender == from);
        let last = sent.map(|(_, number)| *number).max().expect("everybody has sent something");
        let again: Vec<u64> = (last.saturating_sub(20).max(1)..=last).collect();
        again.iter().for_each(|number| peer.send(recipient(*number), *number, &payload(from, *number)));
        for number in again {
            assert!(peer.result(number).duplicate, "{number} of {from}");
        }
        // And goes on from there.
        assert!(!peer.send_and_wait(150, 1_000_000, b"on").duplicate);
    }
    server.wait_for_hubs();
    server.stop();
    home.verify();
}

#[test]
fn a_backup_without_a_server_that_is_interrupted_leaves_nothing_behind() {
    let home = Home::new();
    home.start().stop();
    let scratch = tempfile::tempdir().expect("a directory");
    let to = scratch.path().join("backup");
    let mut command = Command::new(env!("CARGO_BIN_EXE_culver"));
    command.arg("backup").arg("--to").arg(&to).arg("--data-dir").arg(&home.data_dir);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary runs");
    let since = Instant::now();
    while !to.exists() {
        assert!(since.elapsed() < PATIENCE, "it does not begin");
        std::thread::yield_now();
    }
    let pid = i32::try_from(child.id()).expect("a pid");
    kill_process(Pid::from_raw(pid).expect("not 0"), Signal::TERM).expect("it runs");
    let ended = child.wait().expect("it ends");
    // It may have been complete before it was told.
    let is_complete = to.join("BACKUP").exists();
    assert_eq!(ended.code(), Some(i32::from(!is_complete)), "{ended}");
    assert_eq!(to.exists(), is_complete);
    assert!(!home.data_dir.join("volume-0/backup-under-way").exists());
    home.verify();
}
