//! A connection by hand, for bytes that no client would send. Blocking, with a short patience.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use culver_protocol::limits::{BODY_LEN_MAX, HEADER_LEN};
use culver_protocol::preamble::Preamble;
use culver_protocol::proto::{self, Login, Ping, Ready, RpcResult, SendResult};
use culver_protocol::record::{Cipher, Record, RecordType, split};
use prost::Message;

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

/// A socket and what was read of it.
pub(crate) struct Raw {
    socket: TcpStream,
    input: Vec<u8>,
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
        Ok(Self { socket, input: Vec::new() })
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

    /// Logs in with a token and reads the welcome.
    pub(crate) fn login(&mut self, token: &str) -> Result<()> {
        self.write(&opening(&login_with_token(token)))?;
        self.write(&message(RecordType::Ready, &Ready {}))?;
        match self.read(PATIENCE)? {
            Answer::Other(kind) if kind == RecordType::Welcome as u8 => Ok(()),
            answer => bail!("no welcome, but {answer:?}"),
        }
    }

    /// The next record, or what else happens first.
    pub(crate) fn read(&mut self, patience: Duration) -> Result<Answer> {
        let end = Instant::now() + patience;
        let mut buffer = [0; 4096];
        loop {
            if let Some(range) = split(&self.input, HEADER_LEN, BODY_LEN_MAX)? {
                let (len, body) = (range.end, self.input.get(range).context("split gives a range of its input")?);
                let answer = answer(Record::parse(body)?)?;
                self.input.drain(..len);
                return Ok(answer);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Answer::Silence);
            }
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.socket.read(&mut buffer) {
                Ok(0) => return Ok(Answer::Closed),
                Ok(len) => self.input.extend_from_slice(buffer.get(..len).unwrap_or_default()),
                Err(error) if is_end(&error) => return Ok(Answer::Closed),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading"),
            }
        }
    }

    /// Whether a PING is answered, whatever else comes first.
    pub(crate) fn is_alive(&mut self) -> Result<bool> {
        self.write(&message(RecordType::Ping, &Ping { nonce: 7 }))?;
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

/// The bytes that open a connection with this login.
pub(crate) fn opening(login: &Login) -> Vec<u8> {
    let body = login.encode_to_vec();
    let mut bytes = Preamble::PLAINTEXT.encode().to_vec();
    bytes.extend_from_slice(&u16::try_from(body.len()).expect("logins are short").to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
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

fn answer(record: Record<'_>) -> Result<Answer> {
    if record.kind == RecordType::Error as u8 {
        return Ok(Answer::Error(proto::Error::decode(record.body)?.code));
    }
    let error = match record.kind {
        kind if kind == RecordType::SendResult as u8 => SendResult::decode(record.body)?.error,
        kind if kind == RecordType::RpcResult as u8 => RpcResult::decode(record.body)?.error,
        _ => None,
    };
    Ok(error.map_or(Answer::Other(record.kind), |error| Answer::Error(error.code)))
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}
