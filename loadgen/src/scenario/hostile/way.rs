//! How an attacker opens connections: in plaintext, or by Noise IK with the server's key, which is asked for once.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use culver_protocol::crypto::{self, KeyPair};
use culver_protocol::handshake::client::{How, ServerKey, Waiting, begin};
use culver_protocol::preamble::Preamble;
use culver_protocol::record::RecordType;

use super::raw::{PATIENCE, Raw};
use crate::clock::unix_ms;
use crate::target::sealing::Sealing;

/// Where the attackers strike, and how they open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) target: SocketAddr,
    /// `None`: in plaintext.
    pub(crate) sealed: Option<(Sealing, ServerKey)>,
}

/// What opens a connection.
pub(crate) struct Flight {
    pub(crate) bytes: Vec<u8>,
    /// Until the server has answered; nothing in plaintext.
    pub(crate) waiting: Option<Waiting>,
}

impl Way {
    /// Asks the server for its key, where connections are sealed.
    pub(crate) fn find(target: SocketAddr, sealing: Option<Sealing>) -> Result<Self> {
        let sealed = sealing.map(|sealing| Ok::<_, anyhow::Error>((sealing, ask_key(target, sealing)?))).transpose();
        Ok(Self { target, sealed: sealed.context("asking the server for its key")? })
    }

    /// The flight that carries the bytes of a login; it shows this key.
    pub(crate) fn flight(&self, own: &Arc<KeyPair>, login: &[u8]) -> Result<Flight> {
        match self.sealed {
            None => Ok(Flight { bytes: opening(Preamble::PLAINTEXT, login), waiting: None }),
            Some((sealing, server)) => begun(&How::Ik { own: Arc::clone(own), server }, sealing, login),
        }
    }

    /// What a good flight begins with.
    pub(crate) fn preamble(&self) -> Preamble {
        match self.sealed {
            None => Preamble::PLAINTEXT,
            Some((sealing, server)) => {
                Preamble { handshake: 1, suite: sealing.suite as u8, server_key: server.id, ..Preamble::PLAINTEXT }
            }
        }
    }
}

/// The first flight of a handshake.
pub(crate) fn begun(how: &How, sealing: Sealing, login: &[u8]) -> Result<Flight> {
    let (preamble, message, waiting) = begin(how, sealing.suite, login, crypto::random())?;
    Ok(Flight { bytes: opening(preamble, &message), waiting: Some(waiting) })
}

/// A preamble, and a handshake message with its length.
pub(crate) fn opening(preamble: Preamble, message: &[u8]) -> Vec<u8> {
    [preamble.encode().as_slice(), &with_length(message)].concat()
}

/// A handshake message with its length.
pub(crate) fn with_length(message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).expect("asked for by this program");
    [len.to_be_bytes().as_slice(), message].concat()
}

/// Noise XX as far as the server's key.
fn ask_key(target: SocketAddr, sealing: Sealing) -> Result<ServerKey> {
    let own = Arc::new(KeyPair::new(&crypto::random()));
    let Flight { bytes, waiting } = begun(&How::Xx { own, roots: sealing.root.into() }, sealing, &[])?;
    let mut raw = Raw::connect(target)?;
    raw.write(&bytes)?;
    let (kind, body) = raw.record(PATIENCE)?.context("no answer")?;
    if kind != RecordType::Handshake as u8 {
        bail!("a record of type {kind:#04x} instead of its handshake message: does it offer encryption?");
    }
    let done = waiting.context("a handshake was begun")?.finish(&body, unix_ms())?;
    let certificate = done.server.context("a certificate comes with it")?;
    Ok(certificate.into())
}
