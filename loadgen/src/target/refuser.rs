//! The least that refusing a connection costs on this machine: accept, one write, close, and nothing else. This same
//! program, started as a process of its own and stopped with its handle.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::{process, thread};

use anyhow::{Context, Result};
use culver_protocol::error::ErrorCode;
use culver_protocol::proto;
use culver_protocol::record::{Cipher, RecordType};

use super::program::Program;

/// A running refuser. Dropping it ends the process.
pub(crate) struct Refuser(Program);

impl Refuser {
    /// Starts it on a port of its own choice.
    pub(crate) fn start() -> Result<Self> {
        Program::start("the bare refuser", &["refuser".to_owned()]).map(Self)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }
}

/// What every connection is told: a record as long as a server's.
fn record() -> Vec<u8> {
    let error = proto::Error {
        code: ErrorCode::LoginsBusy.number(),
        retry_after_ms: 90_000,
        detail: ErrorCode::LoginsBusy.text().to_owned(),
        ..proto::Error::default()
    };
    let mut out = Vec::new();
    Cipher::Plaintext.seal_message(&mut out, RecordType::Error, &error);
    out
}

/// Refuses connections until its standard input closes.
pub(crate) fn run() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port to listen on")?;
    println!("{}", listener.local_addr()?);
    io::stdout().flush()?;
    thread::spawn(|| {
        io::stdin().read_to_end(&mut Vec::new()).ok();
        process::exit(0);
    });
    let record = record();
    loop {
        let (mut stream, _) = listener.accept()?;
        // Who has gone already hears nothing.
        stream.write_all(&record).ok();
    }
}
