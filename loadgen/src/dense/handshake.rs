//! How the clients of a crowd that seals its connections log in: which handshake, what it shows, and what comes of the
//! server's answer. Sans-io.

use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use culver_protocol::crypto::{self, PublicKey, Secret, Suite};
use culver_protocol::handshake::client::{How, ServerKey, Waiting, begin};
use culver_protocol::id::{DeviceId, UserId};
use culver_protocol::limits::HANDSHAKE_LEN_MAX;
use culver_protocol::proto::{self, login};
use culver_protocol::record::{Cipher, RecordType};
use prost::Message;
use serde::Serialize;

use super::client;
use super::tickets::Ticket;
use crate::target::sealing::{Sealing, device_key};

/// How a device logs in that the server knows; others come by XX, with a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HandshakeOption {
    /// With a ticket
    #[default]
    Resume,
    /// With a ticket, and with forward secrecy
    ResumeFs,
    /// By Noise IK
    Ik,
    /// By Noise XX
    Xx,
}

/// How a crowd's connections are sealed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrowdSealing {
    pub(crate) sealing: Sealing,
    pub(crate) handshake: HandshakeOption,
    /// The server's key, where it is known before anybody has come.
    pub(crate) server: Option<ServerKey>,
}

/// Who comes, and what is known of it and of the server.
pub(super) struct Comer<'a> {
    pub(super) user: UserId,
    pub(super) device: DeviceId,
    /// Of a sealed session before: with one the device is registered.
    pub(super) ticket: Option<&'a Ticket>,
    pub(super) server: Option<ServerKey>,
    pub(super) keep_alive_s: u32,
}

/// A first flight.
pub(super) struct Begun {
    pub(super) flight: Vec<u8>,
    pub(super) waiting: Waiting,
    pub(super) is_by_token: bool,
}

/// Begins a login; `token` signs one for this key, where it comes to that.
pub(super) fn begin_login(
    sealing: &CrowdSealing,
    comer: &Comer<'_>,
    token: impl FnOnce(&PublicKey) -> Result<String>,
) -> Result<Begun> {
    let Comer { user, device, ticket, server, keep_alive_s } = *comer;
    let CrowdSealing { sealing: Sealing { suite, root }, handshake, .. } = *sealing;
    let roots = root.into();
    let (how, login) = match (ticket, handshake) {
        (Some(Ticket { bytes, secret: Some(secret) }), HandshakeOption::Resume | HandshakeOption::ResumeFs) => {
            let forward_secret = handshake == HandshakeOption::ResumeFs;
            let how = How::Ticket { ticket: bytes.to_vec(), secret: secret.clone(), forward_secret };
            (how, client::login(None, keep_alive_s))
        }
        (Some(_), _) => {
            let own = Arc::new(device_key(user, device));
            let how = match (handshake, server) {
                (HandshakeOption::Ik, Some(server)) => How::Ik { own, server },
                // Who does not know the server's key asks for it.
                _ => How::Xx { own, roots },
            };
            let who = proto::Login { user: user.0, device: device.0.into(), ..client::login(None, keep_alive_s) };
            (how, who)
        }
        (None, _) => {
            let own = Arc::new(device_key(user, device));
            let credential = login::Credential::Token(token(own.public())?);
            (How::Xx { own, roots }, client::login(Some(credential), keep_alive_s))
        }
    };
    let is_by_token = login.credential.is_some();
    let (preamble, message, waiting) = begin(&how, suite, &login.encode_to_vec(), crypto::random())?;
    let mut flight = preamble.encode().to_vec();
    write_message(&mut flight, &message);
    Ok(Begun { flight, waiting, is_by_token })
}

/// What the server's answer has led to.
pub(super) struct Agreed {
    pub(super) cipher: Cipher,
    /// Of the ticket that WELCOME will give.
    pub(super) resumption: Secret,
    /// Where the handshake taught it.
    pub(super) server: Option<ServerKey>,
}

/// Reads the server's answer, and appends what follows it.
///
/// # Errors
/// The answer is not the server's, in words.
pub(super) fn finish(
    waiting: Waiting,
    suite: Suite,
    answer: &[u8],
    now_ms: u64,
    sends_ready: bool,
    out: &mut Vec<u8>,
) -> std::result::Result<Agreed, String> {
    let done = waiting.finish(answer, now_ms).map_err(|error| error.to_string())?;
    if let Some(last) = &done.last {
        write_message(out, last);
    }
    let mut cipher = Cipher::Sealed(suite, done.established.keys);
    if sends_ready {
        cipher.seal_message(out, RecordType::Ready, &proto::Ready {});
    }
    let server = done.server.map(ServerKey::from);
    Ok(Agreed { cipher, resumption: done.established.resumption, server })
}

/// Appends a handshake message with its length.
fn write_message(out: &mut Vec<u8>, message: &[u8]) {
    assert!(message.len() <= HANDSHAKE_LEN_MAX, "tokens and tickets have their limits");
    out.extend_from_slice(&u16::try_from(message.len()).expect("HANDSHAKE_LEN_MAX fits").to_be_bytes());
    out.extend_from_slice(message);
}
