//! A connection by hand, for bytes that no client would send. Blocking, with a short patience.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use culver_protocol::crypto::{KeyPair, Secret, Suite};
use culver_protocol::handshake::client::Waiting;
use culver_protocol::limits::{BODY_LEN_MAX, HEADER_LEN};
use culver_protocol::proto::{self, Login, Ping, Ready, RpcResult, SendResult, Welcome};
use culver_protocol::record::{Cipher, Record, RecordType, split};
use prost::Message;

use super::way::{Flight, Way, with_length};
use crate::clock::unix_ms;

/// Longest wait for an answer or a close that should come at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
/// Records read while waiting for one answer.
const RECORDS_MAX: usize = 64;

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// An ERROR, or a SEND_RESULT or RPC_RESULT with an error.
    Error(u32),
    /// A record of another type.
    Other(u8),
    /// The server closed the connection.
    Closed,
    /// Nothing within the time allowed.
    Silence,
}

/// A socket, what was read of it, and what seals its records once there are keys.
pub(crate) struct Raw {
    socket: TcpStream,
    input: Vec<u8>,
    cipher: Cipher,
    /// The handshake whose answer is to come.
    waiting: Option<(Suite, Waiting)>,
    /// What WELCOME gave for the next login, and its secret.
    welcome: Option<Welcome>,
    resumption: Option<Secret>,
}

impl Raw {
    pub(crate) fn connect(target: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect_timeout(&target, PATIENCE).context("connecting")?;
        Self::of(socket)
    }

    /// Takes over a connected socket.
    pub(crate) fn of(socket: TcpStream) -> Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        let (input, cipher) = (Vec::new(), Cipher::Plaintext);
        Ok(Self { socket, input, cipher, waiting: None, welcome: None, resumption: None })
    }

    /// Writes; a server that has closed already is no failure here, for that is what is asked about.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self.socket.write_all(bytes) {
            Err(error) if !is_end(&error) => Err(error).context("writing"),
            _ => Ok(()),
        }
    }

    /// Says that nothing more will be written.
    pub(crate) fn finish_writing(&mut self) {
        self.socket.shutdown(Shutdown::Write).ok();
    }

    /// Writes what opens a connection, and waits for keys where there are to be some: without them nothing can be said
    /// any more, nor heard.
    pub(crate) fn open(&mut self, suite: Option<Suite>, flight: Flight) -> Result<()> {
        self.write(&flight.bytes)?;
        self.waiting = suite.zip(flight.waiting);
        while self.waiting.is_some() && self.fill(PATIENCE)? {
            self.agree()?;
        }
        Ok(())
    }

    /// Writes whole records as they are to be before they are sealed, and what no record is as it is.
    pub(crate) fn write_records(&mut self, bytes: &[u8]) -> Result<()> {
        let sealed = self.seal(bytes);
        self.write(&sealed)
    }

    /// What [`Raw::write_records`] writes.
    pub(crate) fn seal(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let Cipher::Sealed(suite, keys) = &mut self.cipher else { return bytes.to_vec() };
        let mut sealed = Vec::new();
        while let Ok(Some(range)) = split(bytes, HEADER_LEN, BODY_LEN_MAX) {
            let (frame, rest) = bytes.split_at(range.end);
            let mut body = frame.get(range).unwrap_or_default().to_vec();
            let tag = keys.sending.seal(*suite, &mut body);
            sealed.extend_from_slice(&with_length(&[body.as_slice(), &tag].concat()));
            bytes = rest;
        }
        sealed.extend_from_slice(bytes);
        sealed
    }

    /// Logs in with a token and reads the welcome.
    pub(crate) fn login(&mut self, way: &Way, own: &Arc<KeyPair>, token: &str) -> Result<()> {
        let flight = way.flight(own, &login_with_token(token).encode_to_vec())?;
        self.log_in(way, flight)
    }

    /// Logs in with a flight and reads the welcome.
    pub(crate) fn log_in(&mut self, way: &Way, flight: Flight) -> Result<()> {
        self.open(way.sealed.map(|(sealing, _)| sealing.suite), flight)?;
        self.write_records(&message(RecordType::Ready, &Ready {}))?;
        match self.read(PATIENCE)? {
            Answer::Other(kind) if kind == RecordType::Welcome as u8 => Ok(()),
            answer => bail!("no welcome, but {answer:?}"),
        }
    }

    /// The ticket that the welcome gave, and its secret where the connection is sealed.
    pub(crate) fn ticket(&self) -> Option<(Vec<u8>, Option<Secret>)> {
        let welcome = self.welcome.as_ref().filter(|welcome| !welcome.ticket.is_empty())?;
        Some((welcome.ticket.to_vec(), self.resumption.clone()))
    }

    /// The next record, or what else happens first.
    pub(crate) fn read(&mut self, patience: Duration) -> Result<Answer> {
        match self.record(patience)? {
            Some((kind, body)) => answer(kind, &body),
            None => Ok(if self.has_ended()? { Answer::Closed } else { Answer::Silence }),
        }
    }

    /// The type and the protobuf of the next record; `None`: nothing within the time allowed, or the end.
    pub(crate) fn record(&mut self, patience: Duration) -> Result<Option<(u8, Vec<u8>)>> {
        let end = Instant::now() + patience;
        loop {
            self.agree()?;
            if let Some(record) = self.take_record()? {
                return Ok(Some(record));
            }
            if !self.fill(end.saturating_duration_since(Instant::now()))? {
                return Ok(None);
            }
        }
    }

    /// Whether the connection ends within the time allowed, whatever comes before: nothing of it can be read.
    pub(crate) fn ends(&mut self, patience: Duration) -> Result<bool> {
        let end = Instant::now() + patience;
        while self.fill(end.saturating_duration_since(Instant::now()))? {
            self.input.clear();
        }
        self.has_ended()
    }

    fn take_record(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let overhead = self.cipher.overhead();
        let Some(range) = split(&self.input, HEADER_LEN + overhead, BODY_LEN_MAX + overhead)? else { return Ok(None) };
        let mut frame: Vec<u8> = self.input.drain(..range.end).collect();
        let body = self.cipher.open(frame.get_mut(range).context("split gives a range of its input")?)?;
        let record = Record::parse(body)?;
        if record.kind == RecordType::Welcome as u8 {
            self.welcome = Some(Welcome::decode(record.body)?);
        }
        Ok(Some((record.kind, record.body.to_vec())))
    }

    /// The server's handshake message, if it has come: from then on records are sealed. An error in its place is left
    /// for who asks.
    fn agree(&mut self) -> Result<()> {
        if self.waiting.is_none() {
            return Ok(());
        }
        let Some(range) = split(&self.input, HEADER_LEN, BODY_LEN_MAX)? else { return Ok(()) };
        let record = Record::parse(self.input.get(range.clone()).context("split gives a range of its input")?)?;
        let Some((suite, waiting)) = self.waiting.take().filter(|_| record.kind == RecordType::Handshake as u8) else {
            return Ok(());
        };
        let done = waiting.finish(record.body, unix_ms())?;
        self.input.drain(..range.end);
        if let Some(last) = &done.last {
            self.write(&with_length(last))?;
        }
        self.cipher = Cipher::Sealed(suite, done.established.keys);
        self.resumption = Some(done.established.resumption);
        Ok(())
    }

    /// Reads more; `false`: nothing within the time allowed, or the end.
    fn fill(&mut self, patience: Duration) -> Result<bool> {
        let end = Instant::now() + patience;
        let mut buffer = [0; 4096];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.socket.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(len) => {
                    self.input.extend_from_slice(buffer.get(..len).unwrap_or_default());
                    return Ok(true);
                }
                Err(error) if is_end(&error) => return Ok(false),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading"),
            }
        }
    }

    /// Whether the server has closed the connection, and nothing more is to be read.
    fn has_ended(&mut self) -> Result<bool> {
        self.socket.set_nonblocking(true)?;
        let found = self.socket.peek(&mut [0]);
        self.socket.set_nonblocking(false)?;
        Ok(match found {
            Ok(len) => len == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        })
    }

    /// Whether a PING is answered, whatever else comes first.
    pub(crate) fn is_alive(&mut self) -> Result<bool> {
        self.write_records(&message(RecordType::Ping, &Ping { nonce: 7, ..Default::default() }))?;
        for _ in 0..RECORDS_MAX {
            match self.read(PATIENCE)? {
                Answer::Other(kind) if kind == RecordType::Pong as u8 => return Ok(true),
                Answer::Other(_) | Answer::Error(_) => {}
                Answer::Closed | Answer::Silence => return Ok(false),
            }
        }
        Ok(false)
    }

    /// The first error that comes, whatever else comes before it.
    pub(crate) fn error(&mut self) -> Result<Option<u32>> {
        self.first(|answer| if let Answer::Error(code) = answer { Some(*code) } else { None })
    }

    /// Whether a record of this type comes, whatever else comes before it.
    pub(crate) fn record_came(&mut self, wanted: RecordType) -> Result<bool> {
        let found = self.first(|answer| (*answer == Answer::Other(wanted as u8)).then_some(()))?;
        Ok(found.is_some())
    }

    fn first<T>(&mut self, pick: impl Fn(&Answer) -> Option<T>) -> Result<Option<T>> {
        for _ in 0..RECORDS_MAX {
            let answer = self.read(PATIENCE)?;
            let picked = pick(&answer);
            if picked.is_some() || matches!(answer, Answer::Closed | Answer::Silence) {
                return Ok(picked);
            }
        }
        Ok(None)
    }

    /// The first error before the connection ends, and whether it ends.
    pub(crate) fn error_and_end(&mut self, patience: Duration) -> Result<(Option<u32>, bool)> {
        let mut code = None;
        for _ in 0..RECORDS_MAX {
            match self.read(patience)? {
                Answer::Error(told) => code = code.or(Some(told)),
                Answer::Other(_) => {}
                Answer::Closed => return Ok((code, true)),
                Answer::Silence => return Ok((code, false)),
            }
        }
        Ok((code, false))
    }
}

pub(crate) fn login_with_token(token: &str) -> Login {
    let credential = Some(proto::login::Credential::Token(token.to_owned()));
    Login { credential, client: "culver-loadgen hostile".to_owned(), ..Login::default() }
}

/// One good record.
pub(crate) fn message(kind: RecordType, message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    Cipher::Plaintext.seal_message(&mut bytes, kind, message);
    bytes
}

/// A record with any type and body.
pub(crate) fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len() + HEADER_LEN).expect("asked for by this program");
    [len.to_be_bytes().as_slice(), &[kind, 0], body].concat()
}

fn answer(kind: u8, body: &[u8]) -> Result<Answer> {
    if kind == RecordType::Error as u8 {
        return Ok(Answer::Error(proto::Error::decode(body)?.code));
    }
    let error = match kind {
        kind if kind == RecordType::SendResult as u8 => SendResult::decode(body)?.error,
        kind if kind == RecordType::RpcResult as u8 => RpcResult::decode(body)?.error,
        _ => None,
    };
    Ok(error.map_or(Answer::Other(kind), |error| Answer::Error(error.code)))
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}
