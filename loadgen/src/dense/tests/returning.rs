//! Clients that come back, against a server that is this thread.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use culver_protocol::error::ErrorCode;
use socket2::{Domain, Protocol, Socket, Type};

use super::*;
use crate::dense::{DropWay, Returns};

const CLIENTS: u64 = 20;
/// Every wait here is for what happens soon or never.
const PATIENCE: Duration = Duration::from_secs(60);

fn returns(drop: DropWay) -> Returns {
    let clear_wait_us_max = u64::MAX;
    Returns { within_us: 1000, drop, clear_wait_us_max, under_way_max: 8, nice: 0, seed: 1 }
}

fn crowd_of(target: SocketAddr, clients: u64, drop: DropWay) -> Crowd {
    let load = CrowdLoad { returns: Some(returns(drop)), ..load(target, clients, 2) };
    let crowd = Crowd::start(load, &LoginWith::Nothing, Clock::start()).expect("two workers");
    crowd.watch_returns(0);
    assert!(crowd.ask_for(clients), "few enough for one turn");
    crowd
}

/// Accepts a client and reads its login; returns whose it is.
fn accept(listener: &TcpListener) -> (TcpStream, u64) {
    let (mut socket, _) = listener.accept().expect("somebody comes");
    let mut head = [0; 10];
    socket.read_exact(&mut head).expect("a preamble and a length");
    let mut login = vec![0; usize::from(u16::from_be_bytes([head[8], head[9]])) + 4];
    socket.read_exact(&mut login).expect("a login, and READY behind it");
    let credential = proto::Login::decode(&login[..login.len() - 4]).expect("a login").credential;
    let Some(login::Credential::Ticket(ticket)) = credential else { panic!("no ticket: {credential:?}") };
    (socket, u64::from_be_bytes(*ticket.first_chunk().expect("a floor's ticket begins with the user")))
}

/// Welcomes so many, each another client.
fn welcome(listener: &TcpListener, clients: u64) -> BTreeMap<u64, TcpStream> {
    let welcome = proto::Welcome { version: 1, incarnation: 5, ..Default::default() };
    let mut there = BTreeMap::new();
    for _ in 0..clients {
        let (mut socket, user) = accept(listener);
        socket.write_all(&record(RecordType::Welcome, &welcome)).expect("it reads");
        assert!(there.insert(user, socket).is_none(), "user {user} comes twice");
    }
    there
}

fn error(code: ErrorCode, retry_after_ms: u32) -> Vec<u8> {
    record(RecordType::Error, &proto::Error { code: code.number(), retry_after_ms, ..Default::default() })
}

fn wait_for(crowd: &Crowd, what: impl Fn(&Counts, u64) -> bool) {
    let is_so = || Ok(what(&crowd.counts(), crowd.live()));
    let is_so = Progress::hidden().wait_until(PATIENCE, is_so).expect("nothing fails");
    assert!(is_so, "{:?}, {} live: {}", crowd.counts(), crowd.live(), crowd.first_faults());
}

/// Reads until the client has ended the connection.
fn read_to_end(mut socket: TcpStream) -> std::io::Result<usize> {
    socket.read_to_end(&mut Vec::new())
}

#[test]
fn whoever_is_told_that_the_server_is_busy_comes_in_its_own_time() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let crowd = crowd_of(listener.local_addr().expect("an address"), CLIENTS, DropWay::Rst);
    let mut told = BTreeMap::new();
    for number in 0..CLIENTS {
        let (mut socket, user) = accept(&listener);
        let retry_after_ms = u32::try_from(100 + 10 * number).expect("small");
        let code = if number % 2 == 0 { ErrorCode::LoginsBusy } else { ErrorCode::ConnectionsFull };
        told.insert(user, (Instant::now(), Duration::from_millis(retry_after_ms.into())));
        socket.write_all(&error(code, retry_after_ms)).expect("it reads");
    }
    assert_eq!(told.len() as u64, CLIENTS);
    let welcome = record(RecordType::Welcome, &proto::Welcome { version: 1, ..Default::default() });
    let mut there = Vec::new();
    for _ in 0..CLIENTS {
        let (mut socket, user) = accept(&listener);
        let (when, wait) = told.remove(&user).expect("told before, and it comes once");
        assert!(when.elapsed() >= wait, "user {user} comes before its time");
        socket.write_all(&welcome).expect("it reads");
        there.push(socket);
    }
    wait_for(&crowd, |_, live| live == CLIENTS);
    assert_eq!(crowd.returned().expect("watched").waits_us().count, 0, "they had never been there");
    assert_eq!(crowd.returned().expect("watched").lag_us().count, CLIENTS, "each attempt that was due");
    let (outcome, _) = crowd.close().expect("all workers end");
    let half = CLIENTS / 2;
    assert_eq!(
        outcome.counts,
        Counts { attempts: 2 * CLIENTS, logins: CLIENTS, logins_busy: half, full: half, ..Counts::default() }
    );
    assert_eq!(outcome.errors, [(2004, half), (2006, half)].into());
}

#[test]
fn all_leave_at_once_and_are_all_back() {
    for way in [DropWay::Rst, DropWay::Fin, DropWay::Silent] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let crowd = crowd_of(listener.local_addr().expect("an address"), CLIENTS, way);
        let first = welcome(&listener, CLIENTS);
        wait_for(&crowd, |_, live| live == CLIENTS);
        crowd.drop_all();
        let second = welcome(&listener, CLIENTS);
        assert!(first.keys().eq(second.keys()));
        wait_for(&crowd, |counts, live| live == CLIENTS && counts.dropped == CLIENTS);
        for socket in first.into_values() {
            // Of those that left in silence the old connection is reset once they are back.
            assert_eq!(read_to_end(socket).is_err(), way != DropWay::Fin, "{way}");
        }
        let returned = crowd.returned().expect("watched since the drop");
        assert_eq!((returned.waits_us().count, returned.lag_us().count), (CLIENTS, CLIENTS));
        assert!(returned.took_us() > 0);
        let (outcome, _) = crowd.close().expect("all workers end");
        let expected = Counts {
            attempts: 2 * CLIENTS,
            logins: 2 * CLIENTS,
            dropped: CLIENTS,
            returns: CLIENTS,
            ..Counts::default()
        };
        assert_eq!((outcome.counts, outcome.faults), (expected, Vec::new()), "{way}");
    }
}

#[test]
fn whoever_is_asked_to_leave_does_and_comes_back_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let crowd = crowd_of(listener.local_addr().expect("an address"), CLIENTS, DropWay::Rst);
    let first = welcome(&listener, CLIENTS);
    wait_for(&crowd, |_, live| live == CLIENTS);
    let goaway = proto::Goaway { reconnect_min_ms: 100, reconnect_max_ms: 150, ..Default::default() };
    let asked = Instant::now();
    let mut left = Vec::new();
    for (number, mut socket) in first.into_values().enumerate() {
        socket.write_all(&record(RecordType::Goaway, &goaway)).expect("it reads");
        // Of some the server closes the connection earlier: that time still counts.
        if number % 2 == 0 {
            left.push(socket);
        }
    }
    let (socket, _) = listener.accept().expect("somebody comes back");
    assert!(asked.elapsed() >= Duration::from_millis(100), "before the earliest time");
    drop(socket);
    let second = welcome(&listener, CLIENTS);
    wait_for(&crowd, |counts, live| live == CLIENTS && counts.cut + counts.reset == 1);
    for socket in left {
        assert_eq!(read_to_end(socket).expect("an orderly end"), 0);
    }
    let (outcome, _) = crowd.close().expect("all workers end");
    let counts = outcome.counts;
    assert_eq!((counts.goaways, counts.returns, counts.disconnects), (CLIENTS, CLIENTS, 0));
    assert_eq!((counts.attempts, counts.logins), (2 * CLIENTS + 1, 2 * CLIENTS));
    drop(second);
}

#[test]
fn lost_connections_are_made_again_unless_the_server_forbids_it() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let crowd = crowd_of(listener.local_addr().expect("an address"), CLIENTS, DropWay::Rst);
    let mut there = welcome(&listener, CLIENTS);
    wait_for(&crowd, |_, live| live == CLIENTS);
    let (_, mut replaced) = there.pop_first().expect("many");
    replaced.write_all(&error(ErrorCode::Replaced, 0)).expect("it reads");
    let (_, mut stopped) = there.pop_first().expect("many");
    stopped.write_all(&error(ErrorCode::ShuttingDown, 0)).expect("it reads");
    let (lost, kept) = (there.split_off(&(FIRST_USER + CLIENTS / 2)), there);
    let lost_len = lost.len() as u64 + 1;
    drop(lost);
    let again = welcome(&listener, lost_len);
    wait_for(&crowd, |counts, live| live == CLIENTS - 1 && counts.login_failures == 1);
    let (outcome, _) = crowd.close().expect("all workers end");
    let counts = outcome.counts;
    assert_eq!((counts.disconnects, counts.returns, counts.logins), (lost_len + 1, lost_len, CLIENTS + lost_len));
    assert_eq!(outcome.errors, [(2001, 1), (5001, 1)].into());
    assert!(outcome.faults.iter().all(|fault| fault.contains("stays away")), "{:?}", outcome.faults);
    drop((again, kept));
}

#[test]
fn where_nobody_listens_they_try_until_somebody_does() {
    // Bound, so that the port is nobody else's, and not listening yet.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    socket.bind(&any.into()).expect("a port");
    let target = socket.local_addr().expect("bound").as_socket().expect("an address");
    let crowd = crowd_of(target, 5, DropWay::Rst);
    wait_for(&crowd, |counts, _| counts.refused >= 15);
    assert_eq!(crowd.live(), 0);
    socket.listen(128).expect("a free port");
    let there = welcome(&TcpListener::from(socket), 5);
    wait_for(&crowd, |_, live| live == 5);
    let (outcome, _) = crowd.close().expect("all workers end");
    let counts = outcome.counts;
    assert_eq!((counts.attempts - counts.refused, counts.logins, counts.login_failures), (5, 5, 0));
    drop(there);
}

#[test]
fn a_crowd_that_leaves_in_silence_has_room_for_the_connections_it_left() {
    let target = "127.0.0.1:1".parse().expect("an address");
    let with = |drop| CrowdLoad { returns: Some(returns(drop)), workers: None, ..load(target, 1 << 40, 1) };
    assert_eq!(with(DropWay::Rst).descriptors(), 1 << 40);
    assert_eq!(with(DropWay::Silent).descriptors(), 1 << 41);
    assert!(with(DropWay::Silent).worker_count() > with(DropWay::Rst).worker_count());
    let wanted = crowd_of(target, 1, DropWay::Rst);
    assert_eq!(wanted.posts.iter().map(|(post, _)| post.wanted.load(Ordering::Relaxed)).sum::<u64>(), 1);
}
