//! The crowd: tens of thousands of connections at once that send nothing, garbage, half a handshake or what somebody
//! else has sent before, opened again as soon as the server has ended them.
//!
//! Its threads may use no more than their share of the CPU: what the honest notice beyond that is the server's doing.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culver_protocol::handshake::client::How;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rand::Rng;
use rand::rngs::SmallRng;
use serde::Serialize;

use super::raw::login_with_token;
use super::slow::Who;
use super::way::{Way, begun, opening};
use crate::plan;
use crate::sys;

/// Connections of one thread, at most: its table of descriptors is its own.
const THREAD_MAX: usize = 15_000;
/// Connections opened between two looks at what has come, and how many of those are looked at: a crowd that came in waves
/// would keep the machine from the honest for longer than its share.
const A_TURN: usize = 2;
const EVENTS_A_TURN: usize = 8;
/// Longest wait for something to come.
const POLL_WAIT: Duration = Duration::from_millis(5);
/// Longest pause of a thread that has used more than its share.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// Halves of handshakes that are made once and then sent again and again: an attacker saves their cost.
const HALVES: usize = 64;
/// A source address has some 28,000 ports, and those of connections just ended are not free at once.
const PER_SOURCE: usize = 4000;
/// Length of garbage behind a good preamble.
const GARBAGE_LEN: usize = 200;

/// What the members of a crowd do, in turn.
#[derive(Clone, Copy, Debug)]
enum Member {
    /// Nothing.
    Silent,
    /// Bytes that mean nothing.
    Garbage,
    /// A good preamble, and garbage for a handshake.
    GarbledHandshake,
    /// The first of three messages.
    Half,
    /// A first flight that was somebody else's.
    Replay,
}

/// Eight of ten stay for as long as they are let.
const MEMBERS: [Member; 10] = [
    Member::Silent,
    Member::Half,
    Member::Replay,
    Member::Garbage,
    Member::Silent,
    Member::Half,
    Member::Replay,
    Member::GarbledHandshake,
    Member::Silent,
    Member::Half,
];

/// A crowd to be.
#[derive(Debug)]
pub(crate) struct Crowd {
    pub(crate) way: Way,
    /// Connections at once.
    pub(crate) connections: usize,
    /// Per cent of one core, for all threads together.
    pub(crate) cpu_percent: f64,
    /// No connection may live longer: the server's patience with logins, and some for its timers.
    pub(crate) life_max: Duration,
    pub(crate) seed: u64,
    halves: Vec<Vec<u8>>,
    replays: Vec<Vec<u8>>,
    /// Opened and not ended, of all threads.
    open: AtomicU64,
}

/// What a crowd did, and what became of it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct CrowdFigures {
    /// Connections opened.
    pub(crate) opened: u64,
    /// At once, at most.
    pub(crate) at_once_max: u64,
    /// Ended by the server.
    pub(crate) ended: u64,
    /// Not let in at all.
    pub(crate) not_opened: u64,
    /// Still there when no login may take so long.
    pub(crate) outlived: u64,
    /// What the crowd's threads used, in per cent of one core.
    pub(crate) cpu_percent: f64,
}

impl CrowdFigures {
    /// Of several rounds or threads that ran at the same time, or one after another.
    pub(crate) fn add(&mut self, other: Self) {
        self.opened += other.opened;
        self.at_once_max = self.at_once_max.max(other.at_once_max);
        self.ended += other.ended;
        self.not_opened += other.not_opened;
        self.outlived += other.outlived;
        self.cpu_percent = self.cpu_percent.max(other.cpu_percent);
    }
}

impl Crowd {
    /// A crowd of so many, who use so much of a core.
    pub(crate) fn new(
        way: Way,
        (connections, cpu_percent): (usize, f64),
        life_max: Duration,
        seed: u64,
        attacker: &Who,
        recorded: Vec<Vec<u8>>,
    ) -> Result<Self> {
        let halves = match way.sealed {
            Some((sealing, _)) => {
                let how = || How::Xx { own: Arc::clone(&attacker.own), roots: sealing.root.into() };
                (0..HALVES).map(|_| Ok(begun(&how(), sealing, &[])?.bytes)).collect::<Result<_>>()?
            }
            None => {
                let login = prost::Message::encode_to_vec(&login_with_token(&attacker.token));
                let mut flight = way.flight(&attacker.own, &login)?.bytes;
                flight.truncate(flight.len() / 2);
                vec![flight]
            }
        };
        Ok(Self { way, connections, cpu_percent, life_max, seed, halves, replays: recorded, open: AtomicU64::new(0) })
    }

    /// Connections that are open now.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Attacks until `stop`, with as many threads as the descriptors need.
    pub(crate) fn run(&self, stop: &AtomicBool) -> Result<CrowdFigures> {
        let began = Instant::now();
        let threads = self.connections.div_ceil(THREAD_MAX);
        let run = |index: usize| {
            let mut thread = CrowdThread::new(self, index, threads)?;
            let result = thread.attack(stop);
            self.open.fetch_sub(thread.open as u64, Ordering::Relaxed);
            result.map(|()| (thread.figures, sys::thread_cpu_ns()))
        };
        let done: Vec<Result<(CrowdFigures, u64)>> = std::thread::scope(|scope| {
            let spawn = |index: usize| {
                std::thread::Builder::new().name("crowd".to_owned()).spawn_scoped(scope, move || run(index))
            };
            let threads: Vec<_> = (0..threads).map(spawn).collect();
            let join = |thread: std::io::Result<std::thread::ScopedJoinHandle<'_, _>>| {
                thread.context("cannot start a thread")?.join().map_err(|_| anyhow::anyhow!("the crowd panicked"))?
            };
            threads.into_iter().map(join).collect()
        });
        let (mut figures, mut cpu_ns) = (CrowdFigures::default(), 0);
        for one in done {
            let (of_thread, cpu_of_thread) = one?;
            figures.add(of_thread);
            cpu_ns += cpu_of_thread;
        }
        figures.cpu_percent = Duration::from_nanos(cpu_ns).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
        Ok(figures)
    }
}

/// A connection of the crowd.
struct Attacking {
    socket: TcpStream,
    opened: Instant,
    member: Member,
    has_written: bool,
}

struct CrowdThread<'a> {
    crowd: &'a Crowd,
    poll: Poll,
    rng: SmallRng,
    /// By the token of the poll.
    slots: Vec<Option<Attacking>>,
    free: Vec<usize>,
    open: usize,
    turn: usize,
    source_first: u8,
    sources: usize,
    /// This thread's share of a core.
    share: f64,
    figures: CrowdFigures,
}

impl<'a> CrowdThread<'a> {
    fn new(crowd: &'a Crowd, index: usize, threads: usize) -> Result<Self> {
        sys::take_private_descriptors(&[]).context("a table of descriptors of its own")?;
        let count = crowd.connections / threads + usize::from(index < crowd.connections % threads);
        let sources = count.div_ceil(PER_SOURCE).max(1);
        Ok(Self {
            crowd,
            poll: Poll::new()?,
            rng: plan::rng(crowd.seed, &format!("crowd {index}")),
            slots: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            open: 0,
            turn: index,
            source_first: u8::try_from(10 + index * sources).unwrap_or(u8::MAX),
            sources,
            share: crowd.cpu_percent / 100.0 / threads as f64,
            figures: CrowdFigures::default(),
        })
    }

    fn attack(&mut self, stop: &AtomicBool) -> Result<()> {
        let began = Instant::now();
        let mut events = Events::with_capacity(EVENTS_A_TURN);
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..A_TURN {
                self.open_one()?;
            }
            self.poll.poll(&mut events, Some(POLL_WAIT)).or_else(interrupted)?;
            for event in &events {
                self.hear(event.token().0);
            }
            let fair = Duration::from_secs_f64(sys::thread_cpu_ns() as f64 / 1e9 / self.share);
            std::thread::sleep(fair.saturating_sub(began.elapsed()).min(PAUSE_MAX));
        }
        let left = self.slots.iter().flatten().filter(|one| one.opened.elapsed() > self.crowd.life_max);
        self.figures.outlived += left.filter(|one| !has_ended(&one.socket)).count() as u64;
        Ok(())
    }

    fn open_one(&mut self) -> Result<()> {
        let Some(slot) = self.free.pop() else { return Ok(()) };
        self.turn += 1;
        let member = MEMBERS.get(self.turn % MEMBERS.len()).copied().unwrap_or(Member::Silent);
        let last = self.source_first.wrapping_add(u8::try_from(self.turn % self.sources).unwrap_or(0));
        let source: IpAddr = Ipv4Addr::new(127, 0, 1, last).into();
        let Ok(socket) = sys::connect_nonblocking(self.crowd.way.target, Some(source)) else {
            self.figures.not_opened += 1;
            self.free.push(slot);
            return Ok(());
        };
        let mut socket = TcpStream::from_std(socket);
        self.poll.registry().register(&mut socket, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
        let attacking = Attacking { socket, opened: Instant::now(), member, has_written: false };
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(attacking);
        }
        self.open += 1;
        self.figures.opened += 1;
        let open = self.crowd.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.figures.at_once_max = self.figures.at_once_max.max(open);
        Ok(())
    }

    /// Something has come on this connection, or it can be written to.
    fn hear(&mut self, slot: usize) {
        let Some(place) = self.slots.get_mut(slot) else { return };
        let Some(attacking) = place else { return };
        if !attacking.has_written {
            attacking.has_written = true;
            let bytes = self.crowd.bytes(attacking.member, &mut self.rng);
            // The server may have closed already: the read that follows sees it. A first flight finds room, whole.
            std::io::Write::write_all(&mut attacking.socket, &bytes).ok();
        }
        if !has_ended(&attacking.socket) {
            return;
        }
        self.figures.ended += 1;
        self.figures.outlived += u64::from(attacking.opened.elapsed() > self.crowd.life_max);
        *place = None;
        self.free.push(slot);
        self.open -= 1;
        self.crowd.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Crowd {
    /// What this member sends.
    fn bytes(&self, member: Member, rng: &mut SmallRng) -> Vec<u8> {
        let one_of = |all: &[Vec<u8>], rng: &mut SmallRng| {
            all.get(rng.random_range(0..all.len().max(1))).cloned().unwrap_or_default()
        };
        let mut garbage = vec![0; GARBAGE_LEN];
        match member {
            Member::Silent => Vec::new(),
            Member::Garbage => {
                rng.fill(garbage.as_mut_slice());
                garbage
            }
            Member::GarbledHandshake => {
                rng.fill(garbage.as_mut_slice());
                opening(self.way.preamble(), &garbage)
            }
            Member::Half => one_of(&self.halves, rng),
            Member::Replay => one_of(&self.replays, rng),
        }
    }
}

/// Reads what is there, which is not wanted; whether the server has ended the connection.
fn has_ended(mut socket: &TcpStream) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock || error.kind() == ErrorKind::NotConnected => {
                return false;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
}

fn interrupted(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use culver_protocol::crypto::KeyPair;

    use super::*;

    #[test]
    fn who_is_ended_comes_again_and_all_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let target = listener.local_addr().expect("bound");
        let attacker = Who { own: Arc::new(KeyPair::new(&[1; 32])), token: "a token".to_owned() };
        let way = Way { target, sealed: None };
        let crowd = Crowd::new(way, (20, 100.0), Duration::MAX, 7, &attacker, vec![b"recorded".to_vec()]);
        let (crowd, stop) = (crowd.expect("plaintext needs no handshake"), AtomicBool::new(false));
        let figures = std::thread::scope(|scope| {
            let running = scope.spawn(|| crowd.run(&stop));
            for _ in 0..100 {
                drop(listener.accept().expect("they come again and again"));
            }
            stop.store(true, Ordering::Relaxed);
            running.join().expect("no panic").expect("it attacks")
        });
        assert!(figures.at_once_max <= 20 && figures.at_once_max > 0, "{figures:?}");
        assert!(figures.opened >= 100 && figures.ended >= 80 && figures.outlived == 0, "{figures:?}");
        assert_eq!(crowd.open(), 0, "none is left");
    }
}
