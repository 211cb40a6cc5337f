//! How the bodies of a connection travel: as they are, or sealed with the keys that a handshake leaves.
//!
//! ```text
//!  Plaintext                                 a client without encryption, from end to end
//!  Handshake ──the server's message──→ Sealed   nothing is written between; what comes in clear is a hint
//! ```
//!
//! Owns the handshake under way, the keys, and when they change. Never decides how to log in, and never goes from
//! encryption back to plaintext.

use std::fmt;

use bytes::BytesMut;

use crate::crypto::{Secret, Suite};
use crate::handshake::HandshakeError;
use crate::handshake::certificate::Certificate;
use crate::handshake::client::{Done, Waiting};
#[cfg(test)]
use crate::keys::Keys;
use crate::limits::{BODY_LEN_MAX, HANDSHAKE_LEN_MAX, HEADER_LEN, REKEY_MS, TAG_LEN};
use crate::record::{Cipher, FrameError, Record, RecordType};

#[derive(Debug, Default)]
pub(in crate::client) enum Guard {
    #[default]
    Plaintext,
    /// The server's message is awaited; `None` once it has come and was not good.
    Handshake(Option<Box<Handshake>>),
    Sealed(Box<Sealed>),
}

#[derive(Debug)]
pub(in crate::client) struct Handshake {
    suite: Suite,
    waiting: Waiting,
}

pub(in crate::client) struct Sealed {
    cipher: Cipher,
    /// The secret of the ticket that WELCOME will bring.
    resumption: Option<Secret>,
    /// When the sending key was agreed on or changed.
    changed_us: u64,
    /// Since when the record that is coming has not been whole. Lengths are not sealed: somebody on the way could
    /// otherwise have the client wait for the rest of a record that never was, with PONGs to fill it.
    incomplete_us: Option<u64>,
    /// The server has not shown yet that it has the keys too: as long as the client's second message of Noise XX is
    /// under way, it refuses in clear.
    may_refuse_in_clear: bool,
}

/// How far a record is to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::client) enum Trust {
    /// The server's, as far as this connection can tell.
    Full,
    /// It came in clear where everything should be sealed: anybody may have written it.
    Hint,
}

impl Guard {
    pub(super) fn waiting(suite: Suite, waiting: Waiting) -> Self {
        Self::Handshake(Some(Box::new(Handshake { suite, waiting })))
    }

    /// Whether records may be written.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self, Self::Handshake(_))
    }

    /// Whether the connection has carried as many records as it may: what is written now is dropped.
    pub(super) fn is_spent(&self) -> bool {
        match self {
            Self::Plaintext | Self::Handshake(_) => false,
            Self::Sealed(sealed) => sealed.cipher.is_spent(),
        }
    }

    /// The server's message has come: with it the keys are there. Returns the message still to be sent, and what the
    /// server's certificate said, where the handshake has them.
    pub(super) fn finish(
        &mut self,
        answer: &[u8],
        unix_ms: u64,
        now_us: u64,
    ) -> Result<(Option<Vec<u8>>, Option<Certificate>), HandshakeError> {
        let Self::Handshake(handshake) = self else {
            return Err(HandshakeError::Unreadable);
        };
        let Handshake { suite, waiting } = *handshake.take().ok_or(HandshakeError::Unreadable)?;
        let Done { established, last, server } = waiting.finish(answer, unix_ms)?;
        *self = Self::Sealed(Box::new(Sealed {
            cipher: Cipher::Sealed(suite, established.keys),
            resumption: Some(established.resumption),
            changed_us: now_us,
            incomplete_us: None,
            may_refuse_in_clear: last.is_some(),
        }));
        Ok((last, server))
    }

    /// The secret of the ticket that came now.
    pub(super) fn take_resumption(&mut self) -> Option<Secret> {
        match self {
            Self::Plaintext | Self::Handshake(_) => None,
            Self::Sealed(sealed) => sealed.resumption.take(),
        }
    }

    /// Shortest and longest body that may come now, as it lies on the wire.
    pub(super) fn body_lens(&self) -> (usize, usize) {
        match self {
            Self::Plaintext => (HEADER_LEN, BODY_LEN_MAX),
            Self::Handshake(_) => (HEADER_LEN, HEADER_LEN + HANDSHAKE_LEN_MAX),
            Self::Sealed(sealed) if sealed.may_refuse_in_clear => (HEADER_LEN, BODY_LEN_MAX + TAG_LEN),
            Self::Sealed(_) => (HEADER_LEN + TAG_LEN, BODY_LEN_MAX + TAG_LEN),
        }
    }

    /// Opens a body in place.
    pub(super) fn open(&mut self, body: &mut BytesMut) -> Result<Trust, FrameError> {
        match self {
            Self::Plaintext => Ok(Trust::Full),
            Self::Handshake(_) => Ok(Trust::Hint),
            Self::Sealed(sealed) => sealed.open(body),
        }
    }

    /// Since when the record that is coming has not been whole, where that is of interest.
    pub(super) fn incomplete_us(&self) -> Option<u64> {
        match self {
            Self::Plaintext | Self::Handshake(_) => None,
            Self::Sealed(sealed) => sealed.incomplete_us,
        }
    }

    /// A part of a record is there, or not.
    pub(super) fn note_incomplete(&mut self, is_there: bool, now_us: u64) {
        if let Self::Sealed(sealed) = self {
            sealed.incomplete_us = is_there.then(|| sealed.incomplete_us.unwrap_or(now_us));
        }
    }

    /// The peer seals what follows with its next key. `false`: it has none.
    pub(super) fn follow(&mut self) -> bool {
        let Self::Sealed(sealed) = self else {
            return false;
        };
        sealed.cipher.follow_key();
        true
    }

    /// Appends a record to `out`, behind a REKEY where one is due. Drops it on a connection that [is
    /// spent](Self::is_spent), which must end then.
    ///
    /// # Panics
    /// Before there are keys.
    pub(in crate::client) fn seal(
        &mut self,
        out: &mut Vec<u8>,
        now_us: u64,
        kind: RecordType,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.is_spent() {
            return;
        }
        match self {
            Self::Plaintext => Cipher::Plaintext.seal(out, kind, write),
            Self::Handshake(_) => panic!("nothing is written before there are keys"),
            Self::Sealed(sealed) => {
                if sealed.is_key_old(now_us) {
                    sealed.cipher.change_key(out);
                    sealed.changed_us = now_us;
                }
                sealed.cipher.seal(out, kind, write);
            }
        }
    }

    #[cfg(test)]
    pub(in crate::client) fn keys_mut(&mut self) -> &mut Keys {
        let Self::Sealed(sealed) = self else { panic!("no keys: {self:?}") };
        let Cipher::Sealed(_, keys) = &mut sealed.cipher else { unreachable!("made with keys") };
        keys
    }
}

impl Sealed {
    fn is_key_old(&self, now_us: u64) -> bool {
        let is_worn = matches!(&self.cipher, Cipher::Sealed(_, keys) if keys.sending.is_old());
        is_worn || now_us.saturating_sub(self.changed_us) >= REKEY_MS * 1000
    }

    fn open(&mut self, body: &mut BytesMut) -> Result<Trust, FrameError> {
        // Opening in place may spoil what does not open.
        let as_it_came = self.may_refuse_in_clear.then(|| body.clone());
        match self.cipher.open(body) {
            Ok(opened) => {
                let len = opened.len();
                body.truncate(len);
                self.incomplete_us = None;
                self.may_refuse_in_clear = false;
                Ok(Trust::Full)
            }
            Err(forged) => {
                let refusal = as_it_came.filter(|body| is_error(body)).ok_or(forged)?;
                *body = refusal;
                Ok(Trust::Hint)
            }
        }
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("cipher", &self.cipher).finish_non_exhaustive()
    }
}

fn is_error(body: &[u8]) -> bool {
    Record::parse(body).is_ok_and(|record| record.kind == RecordType::Error as u8)
}
