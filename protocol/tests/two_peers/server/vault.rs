//! The model server's keys: its side of each handshake, the tickets it gave, and the device it knows.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use culver_protocol::client::ServerKey;
use culver_protocol::crypto::{KeyPair, PublicKey, Secret, Suite};
use culver_protocol::error::ErrorCode;
use culver_protocol::handshake::certificate::{Certificate, SIGNATURE_LEN};
use culver_protocol::handshake::server::{Accepted, Resumed, accept_ik, accept_ticket, begin_xx, split_ticket};
use culver_protocol::handshake::{HandshakeError, Kind};
use culver_protocol::preamble::Preamble;
use culver_protocol::record::{Cipher, RecordType};
use rand::Rng;
use rand::rngs::SmallRng;
use zeroize::Zeroizing;

use super::{Faults, Session, chance};

/// Milliseconds since 1970 at which a world begins.
pub(crate) const UNIX_MS: u64 = 1_800_000_000_000;
const KEY_ID: u16 = 7;
/// Longer than any world.
const CERTIFIED_MS: u64 = 365 * 86_400_000;

pub(crate) struct Vault {
    pair: Arc<KeyPair>,
    pub(crate) root: [u8; 32],
    certificate: Vec<u8>,
    /// Each with its secret and the key of the device that got it.
    tickets: HashMap<Vec<u8>, (Secret, PublicKey)>,
    /// The device's key, where a token has registered it.
    pub(crate) registered: Option<PublicKey>,
    /// The network changes bytes: what comes may be anything.
    pub(super) tampered: bool,
    /// How many handshakes of each kind were through.
    pub(crate) handshakes: [u32; 4],
    /// How often the client changed its key.
    pub(crate) rekeys: u32,
}

impl Vault {
    pub(crate) fn new(tampered: bool) -> Self {
        let root = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).expect("any seed is a key");
        let pair = Arc::new(KeyPair::new(&[2; 32]));
        let certificate = Certificate {
            key_id: KEY_ID,
            public: *pair.public(),
            not_before_ms: UNIX_MS,
            not_after_ms: UNIX_MS + CERTIFIED_MS,
        };
        let signature = root.sign(&certificate.signed_bytes());
        let signature: &[u8; SIGNATURE_LEN] = signature.as_ref().try_into().expect("64 bytes");
        Self {
            pair,
            root: root.public_key().as_ref().try_into().expect("32 bytes"),
            certificate: certificate.encode(signature).to_vec(),
            tickets: HashMap::new(),
            registered: None,
            tampered,
            handshakes: [0; 4],
            rekeys: 0,
        }
    }

    pub(crate) fn server_key(&self) -> ServerKey {
        ServerKey { id: KEY_ID, public: *self.pair.public(), not_after_ms: UNIX_MS + CERTIFIED_MS }
    }

    /// Takes a handshake message: the login, or `None` where another message must come first.
    pub(super) fn greet(
        &mut self,
        session: &mut Session,
        message: &[u8],
        faults: &Faults,
        rng: &mut SmallRng,
        out: &mut Vec<u8>,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, ErrorCode> {
        let opening = session.opening.expect("a preamble comes first");
        let preamble = Preamble::decode(opening)?;
        let suite = Suite::from_number(preamble.suite).ok_or(ErrorCode::SuiteRefused)?;
        let kind = Kind::from_number(preamble.handshake).ok_or(ErrorCode::HandshakeUnsupported)?;
        let entropy = Secret::new(rng.random());
        let tampered = self.tampered;
        let failed = |error: HandshakeError| {
            assert!(tampered, "the client's handshake fails: {error}");
            ErrorCode::HandshakeFailed
        };
        let (accepted, shown) = match kind {
            Kind::Ik => {
                if preamble.server_key != KEY_ID || chance(rng, faults.forget_key) {
                    return Err(ErrorCode::ServerKeyUnknown);
                }
                (accept_ik(suite, opening, &self.pair, message, entropy).map_err(failed)?, None)
            }
            Kind::Xx => match session.awaiting.take() {
                None => {
                    let own = (&self.pair, self.certificate.as_slice());
                    let (awaiting, answer) = begin_xx(suite, opening, own, message, entropy).map_err(failed)?;
                    session.awaiting = Some(awaiting);
                    session.seal(out, RecordType::Handshake, |out| out.extend_from_slice(&answer));
                    return Ok(None);
                }
                Some(awaiting) => (awaiting.finish(message).map_err(failed)?, None),
            },
            Kind::Resume | Kind::ResumeForwardSecret => {
                if chance(rng, faults.refuse_ticket) {
                    let code = rng.random_range(ErrorCode::TicketExpired.number()..=ErrorCode::TicketInvalid.number());
                    return Err(ErrorCode::from_number(code).expect("a ticket's"));
                }
                let (ticket, rest) = split_ticket(message).map_err(failed)?;
                let Some((secret, key)) = self.tickets.get(ticket) else {
                    assert!(tampered, "a ticket of nobody's");
                    return Err(ErrorCode::TicketInvalid);
                };
                let resumed = Resumed { ticket, secret };
                let accepted = accept_ticket((kind, suite), opening, resumed, rest, entropy).map_err(failed)?;
                (accepted, Some(*key))
            }
        };
        for (_, count) in Kind::ALL.into_iter().zip(&mut self.handshakes).filter(|(of, _)| *of == kind) {
            *count += 1;
        }
        let Accepted { login, answer, established } = accepted;
        if let Some(answer) = answer {
            session.seal(out, RecordType::Handshake, |out| out.extend_from_slice(&answer));
        }
        session.key = shown.or(established.other);
        session.resumed = shown.is_some();
        session.resumption = Some(established.resumption);
        session.cipher = Cipher::Sealed(suite, established.keys);
        Ok(Some(login))
    }

    /// A ticket for the session's device.
    pub(super) fn issue(&mut self, session: &mut Session) -> Vec<u8> {
        let ticket = format!("ticket {}", self.tickets.len()).into_bytes();
        let secret = session.resumption.take().expect("one ticket a session");
        self.tickets.insert(ticket.clone(), (secret, session.key.expect("every handshake shows one")));
        ticket
    }

    /// What the hub would say at READY.
    pub(super) fn check_device(
        &mut self,
        session: &Session,
        has_token: bool,
        faults: &Faults,
        rng: &mut SmallRng,
    ) -> Result<(), ErrorCode> {
        if has_token {
            self.registered = session.key;
        } else if chance(rng, faults.unregister) {
            self.registered = None;
        }
        if self.registered.is_none() || self.registered != session.key {
            return Err(ErrorCode::DeviceUnknown);
        }
        Ok(())
    }
}
