//! One idle client: the few bytes that are kept of it, and what it makes of each record of the server. Sans-io.
//!
//! It is far smaller than the protocol's own client and can do far less: log in, keep alive, take messages and
//! acknowledge them. It never sends a message and remembers no inbox; whether and when it comes back, its worker knows.

use std::os::fd::OwnedFd;

use culver_protocol::id::UserId;
use culver_protocol::limits::{HANDSHAKE_LEN_MAX, REKEY_MS, VERSION_MAX, VERSION_MIN};
use culver_protocol::preamble::Preamble;
use culver_protocol::proto::{self, login};
use culver_protocol::record::{Cipher, RecordType};
use prost::Message;

use super::partials::PartialIndex;
use super::senders;
use crate::plan::{self, RunId};

/// Name and version, for the operator's eyes.
const NAME: &str = "culver-loadgen";

/// Where a client stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Never opened.
    #[default]
    Absent,
    /// The login waits until the socket can be written.
    Connecting,
    /// The login is written, WELCOME awaited.
    LoggingIn,
    Live,
    /// It ended, or could not log in.
    Ended,
}

/// All that is kept of one connection.
#[derive(Debug, Default)]
pub(super) struct Client {
    pub(super) socket: Option<OwnedFd>,
    /// Seconds of the run's clock at which something last came.
    pub(super) heard_s: u32,
    /// The buffer of an incomplete record, while there is one.
    pub(super) partial: Option<PartialIndex>,
    pub(super) phase: Phase,
    /// Messages of this run that have come: also the round of the next.
    pub(super) messages: u8,
}

/// What there is for each idle connection, beside the kernel's share.
pub(crate) const CLIENT_LEN: usize = size_of::<Client>();
const _: () = assert!(CLIENT_LEN <= 12);
/// Beside it, what seals and opens its records, where anything does.
pub(crate) const SEALED_LEN: usize = size_of::<Cipher>();
const _: () = assert!(SEALED_LEN <= 76);

/// What tells one client's messages from all others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) run: RunId,
    /// The client's place among all.
    pub(super) index: u64,
    /// All of them: message `round * connections + index` is this client's in that round.
    pub(super) connections: u64,
}

/// What a record of the server is about.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    Welcome(proto::Welcome),
    /// Entries, acknowledged through the last of them.
    Entries(proto::Deliver),
    Pong,
    /// The server closes the connection after some of these.
    Error(proto::Error),
    /// It is to leave.
    Goaway(proto::Goaway),
    /// Nothing that an idle client cares for.
    Other,
}

/// What an entry is to the client that got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The next of this run, sent at this time of the run's clock; so many before it were left out.
    Due { sent_us: u64, missing: u64 },
    /// It had come before.
    Again,
    /// It is somebody else's.
    Strange,
    /// It is not what was sent.
    Damaged,
    /// Of an earlier run, which ended before it was acknowledged.
    Older,
}

impl Client {
    /// A record has come whole and was opened; what it must be answered with is sealed and appended to `out`.
    ///
    /// # Errors
    /// What the server may not send, in words.
    pub(super) fn handle_record(
        &mut self,
        (kind, body): (u8, &[u8]),
        cipher: &mut Cipher,
        out: &mut Vec<u8>,
    ) -> Result<Heard, String> {
        // A type that this side does not know is nothing to a client.
        let Some(known) = RecordType::from_number(kind) else { return Ok(Heard::Other) };
        let is_any_time = matches!(known, RecordType::Ping | RecordType::Pong | RecordType::Goaway | RecordType::Error);
        let is_live = self.phase == Phase::Live;
        if !is_any_time && (known == RecordType::Welcome) == is_live {
            return Err(format!("a record of type {kind:#04x} out of its time"));
        }
        match known {
            RecordType::Welcome => self.handle_welcome(decode(kind, body)?),
            RecordType::Ping => {
                let proto::Ping { nonce, .. } = decode(kind, body)?;
                cipher.seal_message(out, RecordType::Pong, &proto::Pong { nonce, ..Default::default() });
                Ok(Heard::Other)
            }
            RecordType::Deliver => {
                let deliver: proto::Deliver = decode(kind, body)?;
                if let Some(last) = deliver.entries.last() {
                    let ack = proto::Ack { inbox_seq: last.inbox_seq, credit_entries: 0, credit_bytes: 0 };
                    cipher.seal_message(out, RecordType::Ack, &ack);
                }
                Ok(Heard::Entries(deliver))
            }
            RecordType::Pong => decode::<proto::Pong>(kind, body).map(|_| Heard::Pong),
            RecordType::Error => decode(kind, body).map(Heard::Error),
            RecordType::Goaway => decode(kind, body).map(Heard::Goaway),
            RecordType::Gap | RecordType::SyncStart | RecordType::SyncDone | RecordType::Receipt => Ok(Heard::Other),
            RecordType::Rekey if cipher.overhead() > 0 => {
                cipher.follow_key();
                Ok(Heard::Other)
            }
            RecordType::Rekey
            | RecordType::Handshake
            | RecordType::Ready
            | RecordType::Send
            | RecordType::SendResult
            | RecordType::Ack
            | RecordType::Rpc
            | RecordType::RpcResult => Err(format!("a record of type {kind:#04x}, which was not asked for")),
        }
    }

    /// Judges one entry that was delivered.
    pub(super) fn handle_entry(&mut self, entry: &proto::Entry, expected: &Expected) -> Verdict {
        let Some(message) = plan::message_index(expected.run, &entry.payload) else { return Verdict::Older };
        let (round, index) = (message.0 / expected.connections, message.0 % expected.connections);
        if index != expected.index {
            return Verdict::Strange;
        }
        if !senders::is_whole(&entry.payload, message) {
            return Verdict::Damaged;
        }
        let due = u64::from(self.messages);
        if round < due {
            return Verdict::Again;
        }
        self.messages = u8::try_from(round.saturating_add(1)).unwrap_or(u8::MAX);
        Verdict::Due { sent_us: sent_us(&entry.payload).unwrap_or(0), missing: round - due }
    }

    /// How long nothing has come.
    pub(super) fn silent_s(&self, now_s: u32) -> u32 {
        now_s.saturating_sub(self.heard_s)
    }

    fn handle_welcome(&mut self, welcome: proto::Welcome) -> Result<Heard, String> {
        if !(u32::from(VERSION_MIN)..=u32::from(VERSION_MAX)).contains(&welcome.version) {
            return Err(format!("the server speaks version {}, which was not offered", welcome.version));
        }
        self.phase = Phase::Live;
        Ok(Heard::Welcome(welcome))
    }
}

/// The time at which a message was sent, which its payload carries behind run and number.
fn sent_us(payload: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*payload.get(plan::PAYLOAD_LEN_MIN..)?.first_chunk()?))
}

/// A login that asks for nothing special.
pub(super) fn login(credential: Option<login::Credential>, keep_alive_s: u32) -> proto::Login {
    proto::Login { credential, keep_alive_s, client: NAME.to_owned(), ..Default::default() }
}

/// Appends a plaintext login, and READY behind it where the server is to deliver at once.
pub(super) fn write_login(out: &mut Vec<u8>, credential: login::Credential, keep_alive_s: u32, is_ready: bool) {
    let login = login(Some(credential), keep_alive_s);
    out.extend_from_slice(&Preamble::PLAINTEXT.encode());
    let len = login.encoded_len();
    assert!(len <= HANDSHAKE_LEN_MAX, "tokens and tickets have their limits");
    out.extend_from_slice(&u16::try_from(len).expect("HANDSHAKE_LEN_MAX fits").to_be_bytes());
    login.encode(out).expect("a Vec grows as needed");
    if is_ready {
        Cipher::Plaintext.seal_message(out, RecordType::Ready, &proto::Ready {});
    }
}

/// Appends a keep-alive, after a change of the key where it has served for [`REKEY_MS`]: a client keeps no time of its
/// own, but knows how many records it has sealed, and that it seals hardly anything but keep-alives.
pub(super) fn write_ping(out: &mut Vec<u8>, cipher: &mut Cipher, keep_alive_us: u64) {
    let pings_per_key = u32::try_from(REKEY_MS * 1000 / keep_alive_us.max(1)).unwrap_or(u32::MAX).max(1);
    if let Cipher::Sealed(_, keys) = cipher
        && keys.sending.records() > 1
        && keys.sending.records() % pings_per_key == 1
    {
        cipher.change_key(out);
    }
    cipher.seal_message(out, RecordType::Ping, &proto::Ping { nonce: 1, ..Default::default() });
}

/// The user behind a place among all clients.
pub(super) fn user(first_user: u64, index: u64) -> UserId {
    UserId(first_user.wrapping_add(index))
}

fn decode<M: Message + Default>(kind: u8, body: &[u8]) -> Result<M, String> {
    M::decode(body).map_err(|_| format!("the protobuf of a record of type {kind:#04x} cannot be read"))
}
