//! The record layer: how bytes become records and records bytes.
//!
//! ```text
//!  0        2      3       4
//!  ┌────────┬──────┬───────┬──────────────┬─────┐
//!  │ length │ type │ flags │ protobuf …   │ tag │   length: u16, big-endian, of all that follows it
//!  └────────┴──────┴───────┴──────────────┴─────┘
//!           └───────── sealed ────────────┘         suite 0 seals nothing and has no tag
//! ```
//!
//! Owns framing, and where a body is sealed and opened. Never looks into the protobuf.

use std::ops::Range;

use prost::Message;
use thiserror::Error;

use crate::crypto::Suite;
use crate::keys::Keys;
use crate::limits::{BODY_LEN_MAX, HEADER_LEN, LENGTH_LEN, TAG_LEN};

/// The known record types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordType {
    /// Client: take over and deliver.
    Ready = 0x01,
    /// Server: logged in.
    Welcome = 0x02,
    /// Either side: are you there?
    Ping = 0x03,
    /// Either side: I am.
    Pong = 0x04,
    /// Server: reconnect elsewhere or later.
    Goaway = 0x05,
    /// Server: what went wrong.
    Error = 0x06,
    /// Either side: what it sends from now on is sealed with its next key.
    Rekey = 0x07,
    /// Server: its handshake message. The only record besides an error that is never sealed.
    Handshake = 0x09,
    /// Client: a message.
    Send = 0x10,
    /// Server: what became of it.
    SendResult = 0x11,
    /// Server: entries of the inbox.
    Deliver = 0x12,
    /// Client: persisted up to here.
    Ack = 0x13,
    /// Server: what others have received and read.
    Receipt = 0x14,
    /// Server: this much waits, and these are the conversations.
    SyncStart = 0x15,
    /// Server: what had waited has all been sent.
    SyncDone = 0x16,
    /// Server: entries are gone; delivery goes on from here.
    Gap = 0x17,
    /// Client: a request.
    Rpc = 0x30,
    /// Server: its answer.
    RpcResult = 0x31,
}

impl RecordType {
    /// All known types, ascending.
    pub const ALL: [Self; 18] = [
        Self::Ready,
        Self::Welcome,
        Self::Ping,
        Self::Pong,
        Self::Goaway,
        Self::Error,
        Self::Rekey,
        Self::Handshake,
        Self::Send,
        Self::SendResult,
        Self::Deliver,
        Self::Ack,
        Self::Receipt,
        Self::SyncStart,
        Self::SyncDone,
        Self::Gap,
        Self::Rpc,
        Self::RpcResult,
    ];

    /// The type with this number, if it is known.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == number)
    }
}

/// Whether a record of this type may be ignored where it is unknown: bit 7 is set.
#[must_use]
pub fn may_be_ignored(kind: u8) -> bool {
    kind & 0x80 != 0
}

/// What breaks the framing: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The length says less than a record needs.
    #[error("a record of {0} bytes is too short to hold type and flags")]
    TooShort(usize),
    /// The length says more than the sender may send.
    #[error("a record of {0} bytes is too long")]
    TooLong(usize),
    /// It does not open: it was changed, repeated, left out or made by somebody else.
    #[error("a record does not open: it is not the peer's next")]
    Forged,
}

/// Finds the first frame in `bytes`: the range of its body, which ends where the next frame begins.
/// `None`: the frame is not complete yet, which is no error. An error is found as soon as the length is there.
///
/// # Errors
/// The length is under `len_min` or over `len_max`.
pub fn split(bytes: &[u8], len_min: usize, len_max: usize) -> Result<Option<Range<usize>>, FrameError> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_LEN>() else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes(*length));
    if len < len_min {
        return Err(FrameError::TooShort(len));
    }
    if len > len_max {
        return Err(FrameError::TooLong(len));
    }
    Ok((rest.len() >= len).then_some(LENGTH_LEN..LENGTH_LEN + len))
}

/// One opened record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The type's number, known or not.
    pub kind: u8,
    /// No flag is defined yet; senders write 0 and receivers ignore what they do not know.
    pub flags: u8,
    /// The protobuf.
    pub body: &'a [u8],
}

impl<'a> Record<'a> {
    /// Takes an opened body apart.
    ///
    /// # Errors
    /// The body is shorter than type and flags.
    pub fn parse(body: &'a [u8]) -> Result<Self, FrameError> {
        match body {
            [kind, flags, body @ ..] => Ok(Self { kind: *kind, flags: *flags, body }),
            _ => Err(FrameError::TooShort(body.len())),
        }
    }
}

/// What seals and opens the bodies of one connection, in place.
#[derive(Debug, Default)]
pub enum Cipher {
    /// Suite 0, and every connection before its handshake is through: bodies travel as they are.
    #[default]
    Plaintext,
    /// Each body is sealed and followed by its tag.
    Sealed(Suite, Keys),
}

impl Cipher {
    /// Bytes that sealing adds to a body.
    #[must_use]
    pub fn overhead(&self) -> usize {
        match self {
            Self::Plaintext => 0,
            Self::Sealed(..) => TAG_LEN,
        }
    }

    /// Opens a body in place and returns what was inside.
    ///
    /// # Errors
    /// [`FrameError::Forged`]: it is not the peer's next record. (Plaintext opens everything.)
    pub fn open<'a>(&mut self, body: &'a mut [u8]) -> Result<&'a mut [u8], FrameError> {
        match self {
            Self::Plaintext => Ok(body),
            Self::Sealed(suite, keys) => keys.receiving.open(*suite, body).ok_or(FrameError::Forged),
        }
    }

    /// Whether either direction has carried as many records as it may: the connection is to end.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        match self {
            Self::Plaintext => false,
            Self::Sealed(_, keys) => keys.sending.is_spent() || keys.receiving.is_spent(),
        }
    }

    /// Appends a REKEY: what follows it is sealed with the next key. Nothing where nothing is sealed.
    pub fn change_key(&mut self, out: &mut Vec<u8>) {
        if let Self::Plaintext = self {
            return;
        }
        self.append(out, RecordType::Rekey, |_| {});
        if let Self::Sealed(suite, keys) = self {
            keys.sending.change(*suite);
        }
    }

    /// The peer's REKEY has come: what follows it opens with the next key.
    pub fn follow_key(&mut self) {
        if let Self::Sealed(suite, keys) = self {
            keys.receiving.change(*suite);
        }
    }

    /// Appends one record to `out`; `write` appends its protobuf. A key that has sealed [`crate::limits::REKEY_RECORDS`]
    /// is changed first.
    ///
    /// # Panics
    /// If the protobuf is longer than a record may be: callers keep to the limits.
    pub fn seal(&mut self, out: &mut Vec<u8>, kind: RecordType, write: impl FnOnce(&mut Vec<u8>)) {
        if let Self::Sealed(_, keys) = self
            && keys.sending.is_old()
        {
            self.change_key(out);
        }
        self.append(out, kind, write);
    }

    fn append(&mut self, out: &mut Vec<u8>, kind: RecordType, write: impl FnOnce(&mut Vec<u8>)) {
        let start = out.len();
        out.extend_from_slice(&[0, 0, kind as u8, 0]);
        write(out);
        let body_len = out.len() - start - LENGTH_LEN;
        assert!((HEADER_LEN..=BODY_LEN_MAX).contains(&body_len), "a record of {body_len} bytes");
        let len = u16::try_from(body_len + self.overhead()).expect("BODY_LEN_MAX leaves room for the tag");
        let (length, body) = out.get_mut(start..).and_then(|record| record.split_first_chunk_mut()).expect("as above");
        *length = len.to_be_bytes();
        if let Self::Sealed(suite, keys) = self {
            let tag = keys.sending.seal(*suite, body);
            out.extend_from_slice(&tag);
        }
    }

    /// Appends one record that holds `message`.
    pub fn seal_message(&mut self, out: &mut Vec<u8>, kind: RecordType, message: &impl Message) {
        self.seal(out, kind, |out| message.encode(out).expect("a Vec grows as needed"));
    }
}
