//! The relay behind `floor`: what the messages themselves cost on this machine, without any of a server's promises.
//!
//! One thread, one level-triggered epoll, no storage. A turn reads each readable connection once, hands its SENDs
//! on, and writes each connection once. A message goes to all connections of its recipient and to the sender's others;
//! with receipts, each ACK becomes a RECEIPT to the sender unless another device was first. With a log it appends what came in this turn and calls fdatasync once,
//! before anything of the turn is answered. It trusts its peers: it serves only the generator that started it.

mod connection;
mod online;
mod switch;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::event::epoll;
use rustix::fs::{OFlags, fcntl_setfl};

use self::connection::Connection;
use self::switch::{Switch, mark_dirty};
use super::floor::FloorReport;
use super::program::MARK;
use crate::clock::{micros, unix_ms};
use crate::report::histogram::Latencies;
use crate::sys;

const LISTENER: u64 = u64::MAX;
const COMMANDS: u64 = u64::MAX - 1;
/// Readiness events taken in one turn.
const EVENTS_MAX: usize = 1024;
/// Bytes read from one connection in one turn.
const READ_LEN: usize = 64 * 1024;
/// Connections accepted in one turn.
const ACCEPTS_MAX: usize = 64;
/// Unsent bytes at which a connection that does not read is given up.
const OUT_LEN_MAX: usize = 16 * 1024 * 1024;
/// Length at which the log begins again at its start.
const LOG_LEN_MAX: u64 = 1 << 30;

/// Runs a relay until its standard input closes: says where it listens, and reports whenever it is asked.
pub(crate) fn run(log_dir: Option<&Path>, receipts: bool) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port to listen on")?;
    listener.set_nonblocking(true)?;
    println!("{}", listener.local_addr()?);
    let log = log_dir.map(Log::create).transpose()?;
    let commands = io::stdin();
    fcntl_setfl(commands.as_fd(), OFlags::NONBLOCK)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
    epoll::add(&epoll, commands.as_fd(), epoll::EventData::new_u64(COMMANDS), epoll::EventFlags::IN)?;
    let relay = Relay {
        epoll,
        listener,
        switch: Switch::new(receipts),
        buffer: vec![0; READ_LEN],
        log,
        fdatasync_us: Latencies::new(),
        report: FloorReport::default(),
    };
    relay.run()
}

struct Relay {
    epoll: std::os::fd::OwnedFd,
    listener: TcpListener,
    switch: Switch,
    buffer: Vec<u8>,
    log: Option<Log>,
    fdatasync_us: Latencies,
    report: FloorReport,
}

impl Relay {
    fn run(mut self) -> Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result?,
            };
            self.report.turns += 1;
            let now_ms = unix_ms();
            for event in events.drain(..) {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    COMMANDS => {
                        if !self.handle_commands()? {
                            return Ok(());
                        }
                    }
                    slot => self.handle_ready(usize::try_from(slot).unwrap_or(usize::MAX), event.flags, now_ms),
                }
            }
            self.sync()?;
            self.flush();
        }
    }

    fn accept(&mut self) -> Result<()> {
        for _ in 0..ACCEPTS_MAX {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("accepting"),
            };
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            let entry = self.switch.connections.vacant_entry();
            let data = epoll::EventData::new_u64(entry.key() as u64);
            epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN)?;
            entry.insert(Connection::new(socket));
        }
        Ok(())
    }

    fn handle_ready(&mut self, slot: usize, flags: epoll::EventFlags, now_ms: u64) {
        let Some(connection) = self.switch.connections.get_mut(slot) else { return };
        if flags.contains(epoll::EventFlags::OUT) {
            let data = epoll::EventData::new_u64(slot as u64);
            if epoll::modify(&self.epoll, &connection.socket, data, epoll::EventFlags::IN).is_err() {
                return self.switch.close(slot);
            }
            mark_dirty(&mut self.switch.dirty, connection, slot);
        }
        if !flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            return;
        }
        let len = match connection.socket.read(&mut self.buffer) {
            Ok(0) => return self.switch.close(slot),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => return self.switch.close(slot),
        };
        let bytes = self.buffer.get(..len).expect("a read stays within its buffer");
        if let Some(log) = &mut self.log {
            log.turn.extend_from_slice(bytes);
        }
        self.switch.handle_bytes(slot, bytes, now_ms, &mut self.report);
    }

    /// Makes what came in this turn durable, if anything of it is answered.
    fn sync(&mut self) -> Result<()> {
        let Some(log) = &mut self.log else { return Ok(()) };
        if self.switch.dirty.is_empty() {
            return Ok(());
        }
        let began = log.append()?;
        rustix::fs::fdatasync(&log.file).context("fdatasync")?;
        self.fdatasync_us.record(micros(began.elapsed()));
        Ok(())
    }

    fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.switch.dirty);
        for slot in dirty.drain(..) {
            let Some(connection) = self.switch.connections.get_mut(slot) else { continue };
            connection.is_dirty = false;
            let kept = match connection.write() {
                Ok(0) => true,
                Ok(left) if left > OUT_LEN_MAX => false,
                Ok(_) => {
                    let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT;
                    let data = epoll::EventData::new_u64(slot as u64);
                    epoll::modify(&self.epoll, &connection.socket, data, flags).is_ok()
                }
                Err(_) => false,
            };
            if !kept {
                self.switch.close(slot);
            }
        }
        self.switch.dirty = dirty;
    }

    /// Answers each mark with a report; `false`: standard input has closed.
    fn handle_commands(&mut self) -> Result<bool> {
        let mut commands = [0; 16];
        let asked = match io::stdin().read(&mut commands) {
            Ok(0) => return Ok(false),
            Ok(len) => commands.get(..len).unwrap_or_default().iter().filter(|byte| **byte == MARK).count(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error).context("standard input"),
        };
        for _ in 0..asked {
            self.report.cpu_us = sys::process_cpu_us();
            self.report.connections = self.switch.connections.len() as u64;
            self.report.fdatasync_us = self.fdatasync_us.percentiles();
            self.fdatasync_us.clear();
            println!("{}", serde_json::to_string(&self.report)?);
            io::stdout().flush()?;
        }
        Ok(true)
    }
}

/// The file that stands for a log.
struct Log {
    file: File,
    /// What came in this turn.
    turn: Vec<u8>,
    len: u64,
}

impl Log {
    fn create(dir: &Path) -> Result<Self> {
        let path = dir.join("floor.log");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { file, turn: Vec::new(), len: 0 })
    }

    /// Appends the turn; returns when the sync begins.
    fn append(&mut self) -> Result<Instant> {
        if self.len > LOG_LEN_MAX {
            io::Seek::rewind(&mut self.file)?;
            self.len = 0;
        }
        self.file.write_all(&self.turn).context("writing the log")?;
        self.len += self.turn.len() as u64;
        self.turn.clear();
        Ok(Instant::now())
    }
}
