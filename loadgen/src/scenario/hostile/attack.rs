//! The attacks that are over at once: what each sends, and what the server must answer.

use std::sync::Arc;

use anyhow::{Result, ensure};
use culver_protocol::crypto::{self, KeyPair};
use culver_protocol::error::ErrorCode;
use culver_protocol::handshake::client::How;
use culver_protocol::id::{ConversationId, UserId};
use culver_protocol::limits::{CLIENT_BODY_LEN_MAX, HANDSHAKE_LEN_MAX, PAYLOAD_LEN_MAX, PREAMBLE_LEN, TAG_LEN};
use culver_protocol::preamble::Preamble;
use culver_protocol::proto::{Ack, Deliver, Login, Ready, Send, Welcome, login};
use culver_protocol::record::RecordType;
use prost::Message;
use rand::Rng;
use rand::rngs::SmallRng;

use super::raw::{PATIENCE, Raw, login_with_token, message, record};
use super::way::{Flight, Way, begun};

/// What a server must do about an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// This error, then the end of the connection.
    ErrorAndEnd(ErrorCode),
    /// This error, and the connection lives.
    ErrorAndLife(ErrorCode),
    /// A record of this type, whatever comes before it, and the connection lives.
    RecordAndLife(RecordType),
    /// No error, and the connection lives.
    Life,
    /// The end; an error may come before it.
    End,
}

/// When the attacker strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Instead of a login.
    Opening,
    /// After a login, before READY.
    BeforeReady,
    /// Logged in.
    Steady,
    /// Instead of a login, when the user has as many devices as a user may have.
    DevicesFull,
}

/// What an attacker sends.
pub(crate) enum Strike {
    /// As they are.
    Bytes(Vec<u8>),
    /// Records, which are sealed one by one where connections are; what is no record goes as it is.
    Records(Vec<u8>),
    /// What opens a connection, and records behind it.
    Opening(Flight, Vec<u8>),
}

/// One kind of attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    stage: Stage,
    pub(crate) expected: Expected,
    strike: fn(&mut Material) -> Result<Strike>,
    /// The attacker half-closes afterwards.
    finishes: bool,
}

/// What attacks are made from.
pub(crate) struct Material {
    pub(crate) way: Way,
    pub(crate) rng: SmallRng,
    pub(crate) user: UserId,
    /// The device's key, which no plaintext shows.
    pub(crate) own: Arc<KeyPair>,
    pub(crate) token: String,
    /// Keys and tokens of as many other devices of the user's as a user may have; empty once they have logged in.
    pub(crate) others: Vec<(Arc<KeyPair>, String)>,
    pub(crate) token_without_key: String,
    pub(crate) token_expired: String,
    pub(crate) token_elsewhere: String,
    pub(crate) token_otherwise_signed: String,
}

impl Attack {
    /// Strikes once; `Some` says how the server failed.
    pub(crate) fn strike(&self, material: &mut Material) -> Result<Option<String>> {
        let target = material.way.target;
        if self.stage == Stage::DevicesFull {
            for (own, token) in std::mem::take(&mut material.others) {
                let mut raw = Raw::connect(target)?;
                raw.login(&material.way, &own, &token)?;
                ensure!(raw.is_alive()?, "a device within the limit was not let in");
            }
        }
        let suite = material.way.sealed.map(|(sealing, _)| sealing.suite);
        let strike = (self.strike)(material)?;
        let mut raw = Raw::connect(target)?;
        match self.stage {
            Stage::Opening | Stage::DevicesFull => {}
            Stage::BeforeReady => raw.open(suite, material.flight(&login_with_token(&material.token))?)?,
            Stage::Steady => raw.login(&material.way, &material.own, &material.token)?,
        }
        match strike {
            Strike::Bytes(bytes) => raw.write(&bytes)?,
            Strike::Records(bytes) => raw.write_records(&bytes)?,
            Strike::Opening(flight, records) => {
                raw.open(suite, flight)?;
                raw.write_records(&records)?;
            }
        }
        if self.finishes {
            raw.finish_writing();
        }
        let (code, ended) = match self.expected {
            Expected::ErrorAndEnd(_) | Expected::End => raw.error_and_end(PATIENCE)?,
            Expected::ErrorAndLife(_) => (raw.error()?, !raw.is_alive()?),
            Expected::RecordAndLife(wanted) => {
                if !raw.record_came(wanted)? {
                    return Ok(Some(format!("{wanted:?} expected, and did not come")));
                }
                (None, !raw.is_alive()?)
            }
            Expected::Life => (None, !raw.is_alive()?),
        };
        Ok(self.judge(code, ended))
    }

    fn judge(&self, code: Option<u32>, ended: bool) -> Option<String> {
        let (wanted, end) = match self.expected {
            Expected::ErrorAndEnd(wanted) => (Some(wanted), true),
            Expected::ErrorAndLife(wanted) => (Some(wanted), false),
            Expected::Life | Expected::RecordAndLife(_) => (None, false),
            Expected::End => (None, true),
        };
        if wanted.is_some_and(|wanted| code != Some(wanted.number())) {
            return Some(format!("{:?} expected, {code:?} came", wanted.map(ErrorCode::number)));
        }
        match (end, ended) {
            (true, false) => Some("the connection lives".to_owned()),
            (false, true) => Some("the connection ended".to_owned()),
            _ => None,
        }
    }
}

pub(super) const fn attack(
    name: &'static str,
    stage: Stage,
    expected: Expected,
    strike: fn(&mut Material) -> Result<Strike>,
) -> Attack {
    Attack { name, stage, expected, strike, finishes: false }
}

const fn cut_short(name: &'static str, stage: Stage, strike: fn(&mut Material) -> Result<Strike>) -> Attack {
    Attack { name, stage, expected: Expected::End, strike, finishes: true }
}

/// All kinds.
pub(crate) fn attacks() -> impl Iterator<Item = &'static Attack> {
    BASIC.iter().chain(super::inbox::INBOX)
}

use Expected::{ErrorAndEnd, ErrorAndLife, Life};
use Stage::{BeforeReady, Steady};
use Strike::{Bytes, Opening, Records};

/// On framing, logins and messages.
const BASIC: &[Attack] = &[
    attack("wrong magic", Stage::Opening, ErrorAndEnd(ErrorCode::BadMagic), |_| {
        Ok(Bytes(b"GET / HTTP/1.1\r\n\r\n".to_vec()))
    }),
    attack("random opening", Stage::Opening, ErrorAndEnd(ErrorCode::BadMagic), |m| {
        Ok(Bytes(random_not_culver(&mut m.rng)))
    }),
    attack("unknown version", Stage::Opening, ErrorAndEnd(ErrorCode::VersionUnsupported), |m| {
        preamble(m, |good| Preamble { version_min: 200, version_max: 201, ..good })
    }),
    attack("unknown handshake", Stage::Opening, ErrorAndEnd(ErrorCode::HandshakeUnsupported), |m| {
        preamble(m, |good| Preamble { handshake: 77, ..good })
    }),
    attack("unknown suite", Stage::Opening, ErrorAndEnd(ErrorCode::SuiteRefused), |m| {
        preamble(m, |good| Preamble { suite: 99, ..good })
    }),
    attack("oversized login", Stage::Opening, ErrorAndEnd(ErrorCode::BadHandshake), |m| {
        let len = u16::try_from(HANDSHAKE_LEN_MAX + 1).expect("the limit is below a u16");
        Ok(Bytes([m.way.preamble().encode().as_slice(), &len.to_be_bytes()].concat()))
    }),
    attack("empty login", Stage::Opening, ErrorAndEnd(ErrorCode::BadHandshake), |m| {
        Ok(Bytes([m.way.preamble().encode().as_slice(), &[0, 0]].concat()))
    }),
    attack("login of bad protobuf", Stage::Opening, ErrorAndEnd(ErrorCode::BadHandshake), |m| {
        Ok(Opening(m.way.flight(&m.own, &[0xff; 4])?, Vec::new()))
    }),
    attack("token that is none", Stage::Opening, ErrorAndEnd(ErrorCode::TokenMalformed), |m| {
        m.login_with("not a token")
    }),
    attack("token with a wrong signature", Stage::Opening, ErrorAndEnd(ErrorCode::TokenSignature), |m| {
        m.login_with(&with_other_signature(&m.token))
    }),
    attack("token signed by another algorithm", Stage::Opening, ErrorAndEnd(ErrorCode::TokenAlgorithm), |m| {
        m.login_with(&m.token_otherwise_signed)
    }),
    attack("expired token", Stage::Opening, ErrorAndEnd(ErrorCode::TokenExpired), |m| m.login_with(&m.token_expired)),
    attack("token for another service", Stage::Opening, ErrorAndEnd(ErrorCode::TokenAudience), |m| {
        m.login_with(&m.token_elsewhere)
    }),
    attack("ticket that is none", Stage::Opening, ErrorAndEnd(ErrorCode::TicketInvalid), |m| {
        let mut ticket = vec![0; 64];
        m.rng.fill(ticket.as_mut_slice());
        let Some((sealing, _)) = m.way.sealed else {
            let credential = Some(login::Credential::Ticket(ticket.into()));
            return Ok(Opening(m.flight(&Login { credential, ..Login::default() })?, Vec::new()));
        };
        let how = How::Ticket { ticket, secret: crypto::random(), forward_secret: false };
        Ok(Opening(begun(&how, sealing, &[])?, Vec::new()))
    }),
    cut_short("opening cut short", Stage::Opening, |_| Ok(Bytes(b"CV".to_vec()))),
    cut_short("login cut short", Stage::Opening, |m| {
        let mut bytes = m.flight(&login_with_token(&m.token))?.bytes;
        bytes.truncate(bytes.len() / 2);
        Ok(Bytes(bytes))
    }),
    attack("message before READY", BeforeReady, ErrorAndEnd(ErrorCode::OutOfState), |m| {
        Ok(Records(good_send(m, m.user)))
    }),
    attack("empty record", Steady, ErrorAndEnd(ErrorCode::RecordEmpty), |_| Ok(Bytes(vec![0, 0]))),
    attack("record of one byte", Steady, ErrorAndEnd(ErrorCode::RecordEmpty), |_| Ok(Bytes(vec![0, 1, 0x10]))),
    attack("oversized record", Steady, ErrorAndEnd(ErrorCode::RecordTooLong), |_| {
        let len = u16::try_from(CLIENT_BODY_LEN_MAX + TAG_LEN + 1).expect("the limit is below a u16");
        Ok(Bytes([len.to_be_bytes().as_slice(), &[0x10, 0], &[0; 64]].concat()))
    }),
    attack("unknown type", Steady, ErrorAndLife(ErrorCode::TypeUnknown), |_| {
        Ok(Records(record(0x6f, b"what is this")))
    }),
    attack("unknown type that may be ignored", Steady, Life, |_| Ok(Records(record(0xef, b"ignore me")))),
    attack("second READY", Steady, ErrorAndEnd(ErrorCode::OutOfState), |_| {
        Ok(Records(message(RecordType::Ready, &Ready {})))
    }),
    attack("a server's WELCOME", Steady, ErrorAndEnd(ErrorCode::OutOfState), |_| {
        Ok(Records(message(RecordType::Welcome, &Welcome::default())))
    }),
    attack("a server's DELIVER", Steady, ErrorAndEnd(ErrorCode::OutOfState), |_| {
        Ok(Records(message(RecordType::Deliver, &Deliver::default())))
    }),
    attack("SEND of bad protobuf", Steady, ErrorAndEnd(ErrorCode::BadProtobuf), |_| {
        Ok(Records(record(RecordType::Send as u8, &[0x0a, 0xff, 0x01, 0x02])))
    }),
    attack("ACK of bad protobuf", Steady, ErrorAndEnd(ErrorCode::BadProtobuf), |_| {
        Ok(Records(record(RecordType::Ack as u8, &[0x08, 0xff, 0xff, 0xff])))
    }),
    attack("PING of bad protobuf", Steady, ErrorAndEnd(ErrorCode::BadProtobuf), |_| {
        Ok(Records(record(RecordType::Ping as u8, &[0xff; 16])))
    }),
    attack("ACK beyond what was sent", Steady, ErrorAndEnd(ErrorCode::AckBeyondSent), |_| {
        Ok(Records(message(RecordType::Ack, &Ack { inbox_seq: 1 << 40, ..Ack::default() })))
    }),
    attack("payload too long", Steady, ErrorAndLife(ErrorCode::PayloadTooLong), |m| {
        let payload = vec![0; PAYLOAD_LEN_MAX + 1].into();
        Ok(Records(message(RecordType::Send, &Send { payload, ..send_of(m, m.user) })))
    }),
    attack("short message id", Steady, ErrorAndLife(ErrorCode::ClientMessageIdInvalid), |m| {
        Ok(Records(message(RecordType::Send, &Send { client_message_id: vec![1; 15].into(), ..send_of(m, m.user) })))
    }),
    attack("short conversation id", Steady, ErrorAndLife(ErrorCode::ConversationInvalid), |m| {
        Ok(Records(message(RecordType::Send, &Send { conversation: vec![1; 15].into(), ..send_of(m, m.user) })))
    }),
    attack("conversation of others", Steady, ErrorAndLife(ErrorCode::NotAMember), |m| {
        let others = ConversationId::direct(UserId(m.user.0 ^ 1), UserId(m.user.0 ^ 2));
        Ok(Records(message(RecordType::Send, &Send { conversation: others.0.to_vec().into(), ..send_of(m, m.user) })))
    }),
    cut_short("record cut short", Steady, |m| {
        let mut bytes = good_send(m, m.user);
        bytes.truncate(bytes.len() / 2);
        Ok(Bytes(bytes))
    }),
    cut_short("random records", Steady, |m| {
        let mut bytes = vec![0; m.rng.random_range(1..2048)];
        m.rng.fill(bytes.as_mut_slice());
        Ok(Records(bytes))
    }),
];

fn send_of(material: &mut Material, user: UserId) -> Send {
    let id: [u8; 16] = material.rng.random();
    Send {
        client_message_id: id.to_vec().into(),
        conversation: ConversationId::direct(user, user).0.to_vec().into(),
        payload: b"from an attacker".as_slice().into(),
    }
}

fn good_send(material: &mut Material, user: UserId) -> Vec<u8> {
    message(RecordType::Send, &send_of(material, user))
}

/// Another preamble before an otherwise good login.
fn preamble(material: &mut Material, change: impl FnOnce(Preamble) -> Preamble) -> Result<Strike> {
    let good = material.flight(&login_with_token(&material.token))?.bytes;
    let behind = good.get(PREAMBLE_LEN..).unwrap_or_default();
    Ok(Strike::Bytes([change(material.way.preamble()).encode().as_slice(), behind].concat()))
}

impl Material {
    /// What opens a connection with this login.
    pub(crate) fn flight(&self, login: &Login) -> Result<Flight> {
        self.way.flight(&self.own, &login.encode_to_vec())
    }

    fn login_with(&self, token: &str) -> Result<Strike> {
        Ok(Strike::Opening(self.flight(&login_with_token(token))?, Vec::new()))
    }
}

fn random_not_culver(rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(8..512)];
    rng.fill(bytes.as_mut_slice());
    if let Some(first) = bytes.first_mut() {
        *first |= 0x80; // `C` has no high bit
    }
    bytes
}

/// The same token with a signature that is as long, but of something else.
fn with_other_signature(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap_or((token, ""));
    let flipped = signature.chars().enumerate().map(|(place, letter)| match (place, letter) {
        (10, 'A') => 'B',
        (10, _) => 'A',
        _ => letter,
    });
    format!("{signed}.{}", flipped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_the_code_and_the_end() {
        let attack = attacks().find(|attack| attack.name == "wrong magic").expect("it is listed");
        assert_eq!(attack.judge(Some(4020), true), None);
        assert!(attack.judge(Some(4020), false).is_some());
        assert!(attack.judge(None, true).is_some());
        assert!(attack.judge(Some(4001), true).is_some());
    }

    #[test]
    fn a_signature_is_changed_and_nothing_else() {
        let other = with_other_signature("aa.bb.cccccccccccccccccccc");
        assert_eq!(other, "aa.bb.ccccccccccAccccccccc");
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = attacks().map(|attack| attack.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), attacks().count());
    }
}
