//! Attacks on encryption itself: on handshakes, on what they prove, and on sealed records.

use std::sync::Arc;

use anyhow::{Context, Result};
use culver_protocol::crypto::{self, KeyPair};
use culver_protocol::error::ErrorCode;
use culver_protocol::handshake::Kind;
use culver_protocol::handshake::client::{How, ServerKey};
use culver_protocol::id::UserId;
use culver_protocol::limits::PREAMBLE_LEN;
use culver_protocol::preamble::Preamble;
use culver_protocol::proto::{Login, Ping, Ready, login};
use culver_protocol::record::RecordType;
use prost::Message;
use rand::Rng;

use super::attack::Material;
use super::raw::{Answer, PATIENCE, Raw, login_with_token, message};
use super::way::{Flight, Way, begun, opening, with_length};
use crate::plan::DEVICE;
use crate::target::sealing::Sealing;

/// Bytes of a garbage message.
const GARBAGE_LEN: usize = 300;
/// What no root of ours would call a server's key.
const NO_KEY_ID: u16 = 0x7fff;

/// One kind of attack on encryption.
pub(crate) struct SealedAttack {
    pub(crate) name: &'static str,
    /// Any of these, then the end.
    expected: &'static [ErrorCode],
    /// Leaves a connection on which the answer is awaited.
    strike: fn(&mut Scene<'_>) -> Result<Raw>,
}

/// What such an attack is made from.
struct Scene<'a> {
    material: &'a mut Material,
    way: Way,
    sealing: Sealing,
    server: ServerKey,
}

impl SealedAttack {
    /// Strikes once; `Some` says how the server failed.
    pub(crate) fn strike(&self, material: &mut Material) -> Result<Option<String>> {
        let way = material.way;
        let (sealing, server) = way.sealed.context("nothing is sealed here")?;
        let mut raw = (self.strike)(&mut Scene { material, way, sealing, server })?;
        let (code, ended) = raw.error_and_end(PATIENCE)?;
        Ok(judge(self.expected, code, ended))
    }
}

fn judge(expected: &[ErrorCode], code: Option<u32>, ended: bool) -> Option<String> {
    if !expected.iter().any(|wanted| code == Some(wanted.number())) {
        let wanted: Vec<u32> = expected.iter().map(|wanted| wanted.number()).collect();
        return Some(format!("{wanted:?} expected, {code:?} came, ended: {ended}"));
    }
    (!ended).then(|| "the connection lives".to_owned())
}

/// What a handshake that makes no sense is told: which of the two depends on how far it makes some.
const NO_HANDSHAKE: &[ErrorCode] = &[ErrorCode::HandshakeFailed, ErrorCode::BadHandshake];
/// What becomes of a suite or a type that is not meant: refused as such, or it does not open.
const NO_DOWNGRADE: &[ErrorCode] = &[
    ErrorCode::HandshakeFailed,
    ErrorCode::BadHandshake,
    ErrorCode::SuiteRefused,
    ErrorCode::HandshakeUnsupported,
    ErrorCode::TicketInvalid,
];
const FORGED: &[ErrorCode] = &[ErrorCode::RecordForged];

/// All kinds, but those that take their time.
pub(crate) const SEALED: &[SealedAttack] = &[
    kind("garbage as Noise IK", NO_HANDSHAKE, |scene| scene.garbage(Kind::Ik)),
    kind("garbage as Noise XX", NO_HANDSHAKE, |scene| scene.garbage(Kind::Xx)),
    kind("garbage as a ticket", &[ErrorCode::TicketInvalid, ErrorCode::BadHandshake], |scene| {
        scene.garbage(Kind::Resume)
    }),
    kind("garbage as a ticket with forward secrecy", &[ErrorCode::TicketInvalid, ErrorCode::BadHandshake], |scene| {
        scene.garbage(Kind::ResumeForwardSecret)
    }),
    kind("garbage behind a good ticket", NO_HANDSHAKE, |scene| scene.garbage_behind_ticket(false)),
    kind("garbage behind a good ticket, with forward secrecy", NO_HANDSHAKE, |scene| scene.garbage_behind_ticket(true)),
    kind("garbage as the last message of Noise XX", NO_HANDSHAKE, |scene| {
        let own = Arc::clone(&scene.material.own);
        let flight = begun(&How::Xx { own, roots: scene.sealing.root.into() }, scene.sealing, &[])?;
        let mut raw = scene.connect(&flight.bytes)?;
        raw.record(PATIENCE)?.context("no answer to the first message")?;
        raw.write(&with_length(&scene.random(GARBAGE_LEN)))?;
        Ok(raw)
    }),
    kind("a ticket without its secret", NO_HANDSHAKE, |scene| {
        let (ticket, _) = scene.ticket()?;
        let how = How::Ticket { ticket, secret: crypto::random(), forward_secret: false };
        let flight = begun(&how, scene.sealing, &Login::default().encode_to_vec())?;
        scene.connect(&flight.bytes)
    }),
    kind("unknown server key", &[ErrorCode::ServerKeyUnknown], |scene| {
        let server = ServerKey { id: NO_KEY_ID, ..scene.server };
        let how = How::Ik { own: Arc::clone(&scene.material.own), server };
        let login = login_with_token(&scene.material.token).encode_to_vec();
        scene.connect(&begun(&how, scene.sealing, &login)?.bytes)
    }),
    kind("a key of the server that is not its own", &[ErrorCode::HandshakeFailed], |scene| {
        let public = *KeyPair::new(&crypto::random()).public();
        let how = How::Ik { own: Arc::clone(&scene.material.own), server: ServerKey { public, ..scene.server } };
        let login = login_with_token(&scene.material.token).encode_to_vec();
        scene.connect(&begun(&how, scene.sealing, &login)?.bytes)
    }),
    kind("versions changed on the way", &[ErrorCode::HandshakeFailed], |scene| {
        scene.with_preamble(false, |good| Preamble { version_max: good.version_max + 1, ..good })
    }),
    kind("suite changed on the way", NO_DOWNGRADE, |scene| {
        scene.with_preamble(false, |good| Preamble { suite: 3 - good.suite, ..good })
    }),
    kind("suite changed to none on the way", NO_DOWNGRADE, |scene| {
        scene.with_preamble(false, |good| Preamble { suite: 0, ..good })
    }),
    kind("handshake changed to none on the way", NO_DOWNGRADE, |scene| {
        scene.with_preamble(false, |good| Preamble { handshake: 0, suite: 0, server_key: 0, ..good })
    }),
    kind("forward secrecy taken off on the way", NO_DOWNGRADE, |scene| {
        scene.with_preamble(true, |good| Preamble { handshake: Kind::Resume as u8, ..good })
    }),
    kind("token for another key", &[ErrorCode::TokenKey], |scene| {
        let own = Arc::new(KeyPair::new(&crypto::random()));
        scene.log_in(&own, &login_with_token(&scene.material.token))
    }),
    kind("token for no key", &[ErrorCode::TokenKey], |scene| {
        scene.log_in(&scene.material.own, &login_with_token(&scene.material.token_without_key))
    }),
    kind("device of nobody", &[ErrorCode::DeviceUnknown], |scene| {
        let login = Login { user: scene.material.user.0 ^ 2, device: DEVICE.0.into(), ..Login::default() };
        scene.log_in(&scene.material.own, &login)
    }),
    kind("device with another key", &[ErrorCode::DeviceUnknown], |scene| {
        scene.session()?;
        let login = Login { user: scene.material.user.0, device: DEVICE.0.into(), ..Login::default() };
        scene.log_in(&Arc::new(KeyPair::new(&crypto::random())), &login)
    }),
    kind("key of another user's device", &[ErrorCode::DeviceUnknown], |scene| {
        scene.session()?;
        let other = UserId(scene.material.user.0 ^ 1);
        let login = Login { user: other.0, device: DEVICE.0.into(), ..Login::default() };
        scene.log_in(&scene.material.own, &login)
    }),
    kind("record with a flipped bit", FORGED, |scene| {
        scene.records(|mut sealed| {
            let place = middle(&sealed);
            sealed.first_mut().and_then(|record| record.get_mut(place)).into_iter().for_each(|byte| *byte ^= 0x10);
            sealed
        })
    }),
    kind("records in another order", FORGED, |scene| {
        scene.records(|mut sealed| {
            sealed.swap(0, 1);
            sealed
        })
    }),
    kind("record left out", FORGED, |scene| scene.records(|sealed| sealed.into_iter().skip(1).collect())),
    kind("record that is repeated", FORGED, |scene| {
        scene.records(|sealed| sealed.into_iter().flat_map(|record| [record.clone(), record]).collect())
    }),
    kind("record that is cut short", FORGED, |scene| {
        scene.records(|sealed| {
            let shorter = |record: Vec<u8>| with_length(record.get(2..record.len() - 1).unwrap_or_default());
            sealed.into_iter().map(shorter).collect()
        })
    }),
    kind("record of another session", FORGED, |scene| {
        let sealed = scene.session()?.seal(&ping(1));
        let mut raw = scene.session()?;
        raw.write(&sealed)?;
        Ok(raw)
    }),
    kind("record in clear", &[ErrorCode::RecordForged, ErrorCode::RecordEmpty], |scene| {
        let mut raw = scene.session()?;
        raw.write(&ping(1))?;
        Ok(raw)
    }),
    kind(
        "ticket of plaintext, sealed",
        &[ErrorCode::TicketInvalid, ErrorCode::TicketStale, ErrorCode::HandshakeFailed, ErrorCode::SuiteRefused],
        |scene| {
            let plain = Way { sealed: None, ..scene.way };
            let mut raw = Raw::connect(scene.way.target)?;
            // A token that names a key is of no use without it, and in plaintext nobody shows one.
            let login = login_with_token(&scene.material.token_without_key);
            let flight = plain.flight(&scene.material.own, &login.encode_to_vec())?;
            raw.open(None, flight)?;
            raw.write_records(&message(RecordType::Ready, &Ready {}))?;
            if !raw.is_welcomed()? {
                // It gives none: refusing that is the whole answer.
                return scene.connect(&opening(Preamble::PLAINTEXT, &login_with_token("").encode_to_vec()));
            }
            let (ticket, _) = raw.ticket().context("a welcome without a ticket")?;
            let how = How::Ticket { ticket, secret: crypto::random(), forward_secret: false };
            scene.connect(&begun(&how, scene.sealing, &Login::default().encode_to_vec())?.bytes)
        },
    ),
    kind(
        "ticket of a sealed session, in plaintext",
        &[ErrorCode::TicketInvalid, ErrorCode::TicketStale, ErrorCode::SuiteRefused],
        |scene| {
            let (ticket, _) = scene.ticket()?;
            let credential = Some(login::Credential::Ticket(ticket.into()));
            let login = Login { credential, ..Login::default() };
            scene.connect(&opening(Preamble::PLAINTEXT, &login.encode_to_vec()))
        },
    ),
];

const fn kind(
    name: &'static str,
    expected: &'static [ErrorCode],
    strike: fn(&mut Scene<'_>) -> Result<Raw>,
) -> SealedAttack {
    SealedAttack { name, expected, strike }
}

fn ping(nonce: u64) -> Vec<u8> {
    message(RecordType::Ping, &Ping { nonce, ..Default::default() })
}

impl Scene<'_> {
    fn random(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.material.rng.fill(bytes.as_mut_slice());
        bytes
    }

    /// A connection on which these bytes were written.
    fn connect(&self, bytes: &[u8]) -> Result<Raw> {
        let mut raw = Raw::connect(self.way.target)?;
        raw.write(bytes)?;
        Ok(raw)
    }

    /// A connection opened with this login, and READY behind it.
    fn log_in(&self, own: &Arc<KeyPair>, login: &Login) -> Result<Raw> {
        let mut raw = Raw::connect(self.way.target)?;
        raw.open(Some(self.sealing.suite), self.way.flight(own, &login.encode_to_vec())?)?;
        raw.write_records(&message(RecordType::Ready, &Ready {}))?;
        Ok(raw)
    }

    /// A good session of the attacker's.
    fn session(&self) -> Result<Raw> {
        let mut raw = Raw::connect(self.way.target)?;
        raw.login(&self.way, &self.material.own, &self.material.token)?;
        Ok(raw)
    }

    /// A good ticket, and its secret.
    fn ticket(&self) -> Result<(Vec<u8>, crypto::Secret)> {
        let (ticket, secret) = self.session()?.ticket().context("a welcome without a ticket")?;
        Ok((ticket, secret.context("a sealed session has a secret")?))
    }

    fn garbage(&mut self, kind: Kind) -> Result<Raw> {
        let mut message = self.random(GARBAGE_LEN);
        if let Some(ticket_len) = message.first_mut() {
            *ticket_len = 64; // for those that begin with a ticket
        }
        let server_key = if kind == Kind::Ik { self.server.id } else { 0 };
        let suite = self.sealing.suite as u8;
        let preamble = Preamble { handshake: kind as u8, suite, server_key, ..Preamble::PLAINTEXT };
        self.connect(&opening(preamble, &message))
    }

    fn garbage_behind_ticket(&mut self, forward_secret: bool) -> Result<Raw> {
        let (ticket, secret) = self.ticket()?;
        let ticket_len = ticket.len();
        let how = How::Ticket { ticket, secret, forward_secret };
        let Flight { mut bytes, .. } = begun(&how, self.sealing, &Login::default().encode_to_vec())?;
        let from = PREAMBLE_LEN + 2 + 1 + ticket_len;
        self.material.rng.fill(bytes.get_mut(from..).context("more follows a ticket")?);
        self.connect(&bytes)
    }

    /// A good flight, with or without a ticket, whose preamble somebody has changed.
    fn with_preamble(&self, with_ticket: bool, change: impl FnOnce(Preamble) -> Preamble) -> Result<Raw> {
        let Flight { bytes, .. } = if with_ticket {
            let (ticket, secret) = self.ticket()?;
            let how = How::Ticket { ticket, secret, forward_secret: true };
            begun(&how, self.sealing, &Login::default().encode_to_vec())?
        } else {
            self.material.flight(&login_with_token(&self.material.token))?
        };
        let (preamble, rest) =
            bytes.split_first_chunk::<PREAMBLE_LEN>().context("a flight begins with its preamble")?;
        let good = Preamble::decode(*preamble).map_err(|code| anyhow::anyhow!(code.text()))?;
        self.connect(&[change(good).encode().as_slice(), rest].concat())
    }

    /// A session in which two good records were sealed, and what somebody has made of them written.
    fn records(&self, change: impl FnOnce(Vec<Vec<u8>>) -> Vec<Vec<u8>>) -> Result<Raw> {
        let mut raw = self.session()?;
        let sealed = [1, 2].map(|nonce| raw.seal(&ping(nonce)));
        raw.write(&change(sealed.to_vec()).concat())?;
        Ok(raw)
    }
}

/// A byte of the first record's body.
fn middle(sealed: &[Vec<u8>]) -> usize {
    sealed.first().map_or(0, Vec::len) / 2
}

impl Raw {
    fn is_welcomed(&mut self) -> Result<bool> {
        Ok(self.read(PATIENCE)? == Answer::Other(RecordType::Welcome as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_each_expects_something() {
        let others = super::super::attack::attacks().map(|attack| attack.name);
        let mut names: Vec<_> = SEALED.iter().map(|attack| attack.name).chain(others).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(SEALED.iter().all(|attack| attack.expected.iter().all(|code| code.closes())));
    }

    #[test]
    fn a_verdict_needs_one_of_the_codes_and_the_end() {
        assert_eq!(judge(NO_HANDSHAKE, Some(4025), true), None);
        assert_eq!(judge(NO_HANDSHAKE, Some(4024), true), None);
        assert!(judge(NO_HANDSHAKE, Some(4025), false).is_some());
        assert!(judge(NO_HANDSHAKE, None, true).is_some());
        assert!(judge(FORGED, Some(4025), true).is_some());
    }
}
