//! A session: one client's side of the protocol, from its first byte to its last. Pure: bytes in, records and
//! commands out; time is an argument. Never touches a socket, a queue or the log.
//!
//! ```text
//! Opening ──preamble, Login──────────────────→ Greeted ──READY──→ Entering ──its hub lets it in──→ Steady ──→ Over
//!    └─────preamble, Noise XX──→ Handshake ──Login──↗
//! ```

pub mod handshakes;
mod inbox;
mod login;
pub mod records;
mod rpc;
mod steady;

use culver_protocol::crypto::{Secret, Suite};
use culver_protocol::error::ErrorCode;
use culver_protocol::id::{DeviceId, InboxSeq, Incarnation, UserId};
use culver_protocol::limits::{CLIENT_BODY_LEN_MAX, HANDSHAKE_LEN_MAX, HEADER_LEN, LENGTH_LEN, PREAMBLE_LEN, TAG_LEN};
use culver_protocol::proto;
use culver_protocol::record::{FrameError, RecordType, split};
use culver_storage::planted::{self, Bug};
use culver_storage::topology::{HUBS_MAX, HubId, Topology};

use self::handshakes::Handshakes;
use self::records::Records;
use crate::auth::Authenticator;
use crate::config::KeepAlive;
use crate::hub::command::{Address, Command, Credit, Device};

/// What a session needs to know of the world while it handles bytes.
pub struct Context<'a> {
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// Checks logins and seals tickets.
    pub authenticator: &'a Authenticator,
    /// Of the data directory.
    pub incarnation: Incarnation,
    /// Which hub owns what.
    pub topology: &'a Topology,
    /// Bounds of the agreed keep-alive.
    pub keep_alive: KeepAlive,
    /// The address of the connection; its epoch is that of the session, should it log in now.
    pub address: Address,
    /// Commands that may be added: the least that any hub has room for. (An RPC may bring an acknowledgement beside it.)
    pub room: usize,
    /// Where commands go, and to which hub.
    pub commands: &'a mut Vec<(HubId, Command)>,
    /// Where records go.
    pub out: Records<'a>,
    /// What of encryption is offered here.
    pub offer: &'a Offer,
    /// Logins under way, of all connections of the reactor.
    pub handshakes: &'a mut Handshakes,
    /// Fresh secrets.
    pub entropy: &'a dyn Fn() -> Secret,
}

/// What a server offers its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Connections that are not encrypted.
    pub plaintext: bool,
    /// Ciphers of those that are.
    pub suites: Vec<Suite>,
    /// A resume ticket is good only with forward secrecy.
    pub forward_secrecy: bool,
}

/// What is left to do after bytes were handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every complete frame was handled: give it more bytes.
    Hungry,
    /// There was no room for another command: give it the rest again when there is.
    Stalled,
    /// It has had its share of this turn: give it the rest again in the next.
    Later,
    /// Its hub has not let it in yet: give it the rest again when it has ([`Session::logged_in`]).
    Entering,
    /// The error has been written: send it and close.
    Over(ErrorCode),
}

impl std::fmt::Display for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.suites.iter().map(|suite| suite.name()).collect();
        let plaintext = if self.plaintext { ", and plaintext, which anybody on the way can read" } else { "" };
        write!(f, "{}{plaintext}", names.join(", "))
    }
}

/// What became of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// So many were handled.
    Taken(usize),
    /// They hold no whole frame yet.
    Incomplete,
    /// There was no room for another command.
    NoRoom,
    /// Not in this turn.
    Later,
    /// Not before the hub has let the session in.
    Entering,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    /// The third message of three is to come.
    Handshake,
    /// With what the login said.
    Greeted {
        /// It comes for the backlog, beside the device's live session.
        fetch: bool,
        known: Known,
    },
    /// It has said READY, and whether it may come in its hub will know: nothing that it says is passed on.
    Entering,
    Steady {
        /// The client was told that a backlog begins, and not yet that it is through.
        in_sync: bool,
    },
    /// As `Steady`, of a client whose cursor means nothing here: what it acknowledges beyond what it was told is of
    /// before it heard so.
    SteadyAnew {
        in_sync: bool,
    },
    Over,
}

/// What the client knew when it logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// No data.
    Nothing,
    /// This data.
    This,
    /// Other data.
    Other,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    user: UserId,
    /// The hub's deliveries have come up to here, whether or not they were written to the client. Before READY, when
    /// nothing can have come, the version up to which the client has receipts.
    sent: InboxSeq,
    /// The client has persisted everything up to here. Invariant: never above what it was told.
    acked: InboxSeq,
    epoch: u32,
    /// The window agreed at login.
    credit_bytes: u32,
    /// The window of the last acknowledgement.
    ack_bytes: u32,
    /// By how much what the client was told differs from `sent`. Below 0: what came last its device has sent itself.
    /// Above: it knows more than the server remembered, and what comes up to there it is spared.
    ahead: i32,
    credit_entries: u16,
    ack_entries: u16,
    device: DeviceId,
    keep_alive_s: u16,
    /// The hubs that know this session: a bit each.
    hubs: u16,
    phase: Phase,
    /// RPCs that are not answered yet.
    rpcs: u8,
    /// An acknowledgement has not been passed on yet. Several merge into the highest.
    ack_pending: bool,
    /// Deliveries were dropped; the hub has not been told yet.
    resume_pending: bool,
    /// The user may have other devices, to which its own messages are copied.
    copy: bool,
}

const _: () = assert!(size_of::<Session>() <= 56);
const _: () = assert!(HUBS_MAX as u32 <= u16::BITS);

impl Default for Session {
    fn default() -> Self {
        Self {
            user: UserId(0),
            sent: InboxSeq(0),
            acked: InboxSeq(0),
            epoch: 0,
            credit_bytes: 0,
            ack_bytes: 0,
            ahead: 0,
            credit_entries: 0,
            ack_entries: 0,
            device: DeviceId(0),
            keep_alive_s: 0,
            hubs: 0,
            phase: Phase::Opening,
            rpcs: 0,
            ack_pending: false,
            resume_pending: false,
            copy: true,
        }
    }
}

impl Session {
    /// Handles bytes, as many frames as are complete and have room, and says how many bytes it has taken.
    pub fn handle_bytes(&mut self, bytes: &mut [u8], context: &mut Context<'_>) -> (usize, Outcome) {
        let mut taken = 0;
        loop {
            let rest = bytes.get_mut(taken..).expect("never takes more than there is");
            match self.step(rest, context) {
                Ok(Step::Taken(len)) => taken += len,
                Ok(Step::Incomplete) => return (taken, Outcome::Hungry),
                Ok(Step::NoRoom) => return (taken, Outcome::Stalled),
                Ok(Step::Later) => return (taken, Outcome::Later),
                Ok(Step::Entering) => return (taken, Outcome::Entering),
                Err(code) => {
                    if code == ErrorCode::LoginsBusy {
                        self.end_with(code, context.handshakes.take_place_ms(), &mut context.out);
                    } else {
                        self.end(code, &mut context.out);
                    }
                    return (bytes.len(), Outcome::Over(code));
                }
            }
        }
    }

    /// Whether its user's hub knows of this session.
    #[must_use]
    pub fn is_logged_in(&self) -> bool {
        self.epoch != 0
    }

    /// The hubs that know of this session and must be told when it ends: a bit each.
    #[must_use]
    pub fn hubs(&self) -> u16 {
        self.hubs
    }

    /// Whether a login has been accepted.
    #[must_use]
    pub fn is_greeted(&self) -> bool {
        matches!(self.phase, Phase::Greeted { .. }) || self.is_ready()
    }

    /// Whether it has said READY: before that, the login's deadline applies. A first flight that somebody plays again
    /// never comes to it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_entering() || self.is_steady()
    }

    /// Whether its hub has not let it in yet: it takes no bytes.
    #[must_use]
    pub fn is_entering(&self) -> bool {
        self.phase == Phase::Entering
    }

    fn is_steady(&self) -> bool {
        matches!(self.phase, Phase::Steady { .. } | Phase::SteadyAnew { .. })
    }

    /// The session's number; 0 before it has logged in.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whose session it is.
    #[must_use]
    pub fn device(&self) -> Device {
        Device { user: self.user, device: self.device }
    }

    /// The last entry that the client was told of, or knew.
    #[must_use]
    pub fn told(&self) -> InboxSeq {
        InboxSeq(self.sent.0.saturating_add_signed(self.ahead.into()))
    }

    /// Seconds of the keep-alive that holds: as agreed at login, or as the client has promised since.
    #[must_use]
    pub fn keep_alive_s(&self) -> u16 {
        self.keep_alive_s
    }

    /// Ends the session with an error that the reactor found.
    pub fn end(&mut self, code: ErrorCode, out: &mut Records<'_>) {
        self.end_with(code, 0, out);
    }

    /// The same, with the time before which the client must not come again; 0: as always with this error.
    pub fn end_with(&mut self, code: ErrorCode, retry_after_ms: u32, out: &mut Records<'_>) {
        if self.phase != Phase::Over {
            let mut error = error_message(code, proto::error::Scope::Connection, &[]);
            if retry_after_ms > 0 {
                error.retry_after_ms = retry_after_ms;
            }
            out.seal_message(RecordType::Error, &error);
            self.phase = Phase::Over;
        }
    }

    /// Asks a client that was greeted to go and come back later.
    pub fn write_goaway(&mut self, goaway: &proto::Goaway, out: &mut Records<'_>) {
        if self.is_greeted() {
            out.seal_message(RecordType::Goaway, goaway);
        }
    }

    /// One frame, if it is complete.
    fn step(&mut self, bytes: &mut [u8], context: &mut Context<'_>) -> Result<Step, ErrorCode> {
        match self.phase {
            Phase::Opening => self.open(bytes, context),
            Phase::Handshake => self.go_on(bytes, context),
            Phase::Entering if bytes.is_empty() => Ok(Step::Incomplete),
            Phase::Entering => Ok(Step::Entering),
            Phase::Greeted { .. } | Phase::Steady { .. } | Phase::SteadyAnew { .. } => {
                let cipher = context.out.cipher();
                let overhead = cipher.overhead();
                let found = split(bytes, HEADER_LEN + overhead, CLIENT_BODY_LEN_MAX + overhead).map_err(frame_error)?;
                let Some(range) = found else { return Ok(Step::Incomplete) };
                if context.commands.len() >= context.room {
                    return Ok(Step::NoRoom);
                }
                let taken = range.end;
                let body = bytes.get_mut(range).expect("split gives a range within");
                let opened_len = match cipher.open(body) {
                    Ok(opened) => opened.len(),
                    Err(_) if planted::is(Bug::ForgedRecordRead) => body.len() - overhead,
                    Err(error) => return Err(frame_error(error)),
                };
                let body = body.get_mut(..opened_len).expect("what was sealed is longer");
                if cipher.is_spent() {
                    return Err(ErrorCode::RecordsSpent);
                }
                self.handle_record(body, context)?;
                Ok(Step::Taken(taken))
            }
            Phase::Over => Ok(Step::Incomplete),
        }
    }

    fn write_error(&mut self, code: ErrorCode, scope: proto::error::Scope, request: &[u8], out: &mut Records<'_>) {
        let error = error_message(code, scope, request);
        out.seal_message(RecordType::Error, &error);
    }

    fn agreed_credit(&self) -> Credit {
        Credit { entries: self.credit_entries, bytes: self.credit_bytes }
    }
}

/// An error as it stands on the wire.
pub(crate) fn error_message(code: ErrorCode, scope: proto::error::Scope, request: &[u8]) -> proto::Error {
    proto::Error {
        code: code.number(),
        retry_after_ms: match code {
            ErrorCode::Busy => 200,
            _ => 0,
        },
        scope: scope.into(),
        request_id: bytes::Bytes::copy_from_slice(request),
        detail: code.text().to_owned(),
    }
}

fn frame_error(error: FrameError) -> ErrorCode {
    match error {
        FrameError::TooShort(_) => ErrorCode::RecordEmpty,
        FrameError::TooLong(_) => ErrorCode::RecordTooLong,
        FrameError::Forged => ErrorCode::RecordForged,
    }
}

/// Longest run of bytes of which a session can make nothing yet: one byte less than the longest frame.
pub const UNFINISHED_LEN_MAX: usize = LENGTH_LEN + CLIENT_BODY_LEN_MAX + TAG_LEN - 1;

const _: () = assert!(PREAMBLE_LEN + HANDSHAKE_LEN_MAX <= CLIENT_BODY_LEN_MAX);

#[cfg(test)]
mod tests;
