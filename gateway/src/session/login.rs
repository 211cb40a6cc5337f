//! From the preamble to WELCOME.

use culver_protocol::crypto::{self, Secret, Suite};
use culver_protocol::error::ErrorCode;
use culver_protocol::handshake::server::{self, Accepted, Resumed};
use culver_protocol::handshake::{Established, HandshakeError, Kind};
use culver_protocol::id::{DeviceId, InboxSeq, Incarnation, UserId};
use culver_protocol::limits::{
    CREDIT_BYTES_DEFAULT, CREDIT_BYTES_MAX, CREDIT_BYTES_MIN, CREDIT_ENTRIES_DEFAULT, CREDIT_ENTRIES_MAX,
    HANDSHAKE_LEN_MAX, PREAMBLE_LEN,
};
use culver_protocol::preamble::{HANDSHAKE_NONE, Preamble, SUITE_PLAINTEXT};
use culver_protocol::proto::{self, login::Credential};
use culver_protocol::record::{Cipher, RecordType, split};
use culver_storage::planted::{self, Bug};
use prost::Message;

use super::handshakes::{Admission, Shown};
use super::{Context, Known, Offer, Phase, Session, Step};
use crate::auth::{Identity, OpenedTicket, TicketContents};
use crate::hub::command::{Command, Proof};

/// The first letters tell whether it makes sense to wait for the rest.
fn check_start(bytes: &[u8]) -> Result<(), ErrorCode> {
    let expected = [b'C', b'V'];
    if bytes.iter().zip(expected).any(|(byte, letter)| *byte != letter) {
        return Err(ErrorCode::BadMagic);
    }
    Ok(())
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protection {
    Plaintext,
    Encrypted(Kind, Suite),
}

/// Whether this server speaks what the client proposes.
fn check_preamble(bytes: [u8; PREAMBLE_LEN], offer: &Offer) -> Result<(Preamble, Protection), ErrorCode> {
    let preamble = Preamble::decode(bytes)?;
    preamble.agree_version()?;
    if preamble.handshake == HANDSHAKE_NONE {
        let is_refused = preamble.suite != SUITE_PLAINTEXT || !offer.plaintext;
        return if is_refused { Err(ErrorCode::SuiteRefused) } else { Ok((preamble, Protection::Plaintext)) };
    }
    let kind = Kind::from_number(preamble.handshake).ok_or(ErrorCode::HandshakeUnsupported)?;
    let suite = Suite::from_number(preamble.suite).filter(|suite| offer.suites.contains(suite));
    Ok((preamble, Protection::Encrypted(kind, suite.ok_or(ErrorCode::SuiteRefused)?)))
}

fn handshake_error(error: HandshakeError) -> ErrorCode {
    match error {
        HandshakeError::Unreadable => ErrorCode::BadHandshake,
        HandshakeError::Failed | HandshakeError::Certificate(_) => ErrorCode::HandshakeFailed,
    }
}

fn fresh_secret(context: &Context<'_>) -> Secret {
    if planted::is(Bug::FreshSecretRepeated) { Secret::default() } else { (context.entropy)() }
}

/// Whether a handshake may be answered now, or in a later turn. What can be refused without a Diffie-Hellman has been.
fn admit(kind: Kind, context: &mut Context<'_>) -> Result<bool, ErrorCode> {
    match context.handshakes.admit(kind) {
        Admission::Now => Ok(true),
        Admission::Later => Ok(false),
        Admission::Busy => Err(ErrorCode::LoginsBusy),
    }
}

/// Who logs in, and how that is known.
struct Caller {
    identity: Identity,
    shown: Shown,
    /// The next ticket's secret.
    secret: Option<Secret>,
}

impl Session {
    /// Preamble and first message, once both are there.
    pub(super) fn open(&mut self, bytes: &mut [u8], context: &mut Context<'_>) -> Result<Step, ErrorCode> {
        let Some((head, rest)) = bytes.split_first_chunk_mut::<PREAMBLE_LEN>() else {
            return check_start(bytes).map(|()| Step::Incomplete);
        };
        let (preamble, protection) = check_preamble(*head, context.offer)?;
        let found = split(rest, 1, HANDSHAKE_LEN_MAX).map_err(|_| ErrorCode::BadHandshake)?;
        let Some(range) = found else { return Ok(Step::Incomplete) };
        let taken = PREAMBLE_LEN + range.end;
        let message = rest.get(range).expect("split gives a range within");
        let Protection::Encrypted(kind, suite) = protection else {
            self.log_in_plaintext(message, context)?;
            return Ok(Step::Taken(taken));
        };
        let is_through = match kind {
            Kind::Xx => self.begin_xx(suite, *head, message, context)?,
            Kind::Ik => self.log_in_by_ik(suite, (*head, preamble.server_key), message, context)?,
            Kind::Resume | Kind::ResumeForwardSecret => {
                self.log_in_by_ticket((kind, suite), *head, message, context)?
            }
        };
        Ok(if is_through { Step::Taken(taken) } else { Step::Later })
    }

    /// The third message of Noise XX.
    pub(super) fn go_on(&mut self, bytes: &mut [u8], context: &mut Context<'_>) -> Result<Step, ErrorCode> {
        let found = split(bytes, 1, HANDSHAKE_LEN_MAX).map_err(|_| ErrorCode::BadHandshake)?;
        let Some(range) = found else { return Ok(Step::Incomplete) };
        let taken = range.end;
        let message = bytes.get(range).expect("split gives a range within");
        let (suite, awaiting) = context.handshakes.go_on(context.address.slot).ok_or(ErrorCode::LoginsBusy)?;
        let accepted = awaiting.finish(message).map_err(handshake_error)?;
        self.log_in_by_key(suite, accepted, context)?;
        Ok(Step::Taken(taken))
    }

    fn begin_xx(
        &mut self,
        suite: Suite,
        preamble: [u8; PREAMBLE_LEN],
        message: &[u8],
        context: &mut Context<'_>,
    ) -> Result<bool, ErrorCode> {
        if !admit(Kind::Xx, context)? {
            return Ok(false);
        }
        let own = context.authenticator.current_server_key();
        let entropy = fresh_secret(context);
        let (awaiting, answer) = server::begin_xx(suite, preamble, (&own.pair, &own.certificate), message, entropy)
            .map_err(handshake_error)?;
        context.handshakes.wait(context.address.slot, suite, awaiting);
        context.out.seal(RecordType::Handshake, |out| out.extend_from_slice(&answer));
        self.phase = Phase::Handshake;
        Ok(true)
    }

    fn log_in_by_ik(
        &mut self,
        suite: Suite,
        (preamble, server_key): ([u8; PREAMBLE_LEN], u16),
        message: &[u8],
        context: &mut Context<'_>,
    ) -> Result<bool, ErrorCode> {
        let own = context.authenticator.server_key(server_key).ok_or(ErrorCode::ServerKeyUnknown)?;
        if !admit(Kind::Ik, context)? {
            return Ok(false);
        }
        let entropy = fresh_secret(context);
        let accepted = server::accept_ik(suite, preamble, &own.pair, message, entropy).map_err(handshake_error)?;
        self.log_in_by_key(suite, accepted, context)?;
        Ok(true)
    }

    fn log_in_plaintext(&mut self, message: &[u8], context: &mut Context<'_>) -> Result<(), ErrorCode> {
        let login = proto::Login::decode(message).map_err(|_| ErrorCode::BadHandshake)?;
        let (identity, proof) = match &login.credential {
            Some(Credential::Token(token)) => {
                let claims = context.authenticator.token(token, context.now_ms)?;
                // Who has it need not be who has its key.
                if claims.thumbprint.is_some() {
                    return Err(ErrorCode::TokenKey);
                }
                (claims.identity, Proof::PlaintextToken { issued_s: claims.issued_s })
            }
            Some(Credential::Ticket(ticket)) => {
                let OpenedTicket { contents, issued_s } = context.authenticator.open_ticket(ticket, context.now_ms)?;
                // What was said under its secret is not said in plaintext.
                if contents.fingerprint.is_some() {
                    return Err(ErrorCode::TicketInvalid);
                }
                (contents.identity, Proof::PlaintextTicket { issued_s })
            }
            None => return Err(ErrorCode::TokenMalformed),
        };
        let shown = Shown { fingerprint: None, proof };
        self.log_in(&login, Caller { identity, shown, secret: None }, context);
        Ok(())
    }

    fn log_in_by_ticket(
        &mut self,
        (kind, suite): (Kind, Suite),
        preamble: [u8; PREAMBLE_LEN],
        message: &[u8],
        context: &mut Context<'_>,
    ) -> Result<bool, ErrorCode> {
        if context.offer.forward_secrecy && kind == Kind::Resume {
            return Err(ErrorCode::TicketStale);
        }
        let (ticket, rest) = server::split_ticket(message).map_err(handshake_error)?;
        let OpenedTicket { contents, issued_s } = context.authenticator.open_ticket(ticket, context.now_ms)?;
        let (Some(secret), Some(fingerprint)) = (&contents.secret, contents.fingerprint) else {
            return Err(ErrorCode::TicketInvalid);
        };
        if !admit(kind, context)? {
            return Ok(false);
        }
        let resumed = Resumed { ticket, secret };
        let entropy = fresh_secret(context);
        let accepted =
            server::accept_ticket((kind, suite), preamble, resumed, rest, entropy).map_err(handshake_error)?;
        let login = proto::Login::decode(accepted.login.as_slice()).map_err(|_| ErrorCode::BadHandshake)?;
        let secret = self.seal_from_now_on(suite, accepted, context);
        let shown = Shown { fingerprint: Some(fingerprint), proof: Proof::Ticket { issued_s } };
        self.log_in(&login, Caller { identity: contents.identity, shown, secret: Some(secret) }, context);
        Ok(true)
    }

    /// A device that has shown its key: it has a token that names the key, or is registered with it already, which its
    /// hub will know.
    fn log_in_by_key(&mut self, suite: Suite, accepted: Accepted, context: &mut Context<'_>) -> Result<(), ErrorCode> {
        let key = accepted.established.other.expect("both patterns show the device's key");
        let login = proto::Login::decode(accepted.login.as_slice());
        // From here on errors are for the client alone.
        let secret = self.seal_from_now_on(suite, accepted, context);
        let login = login.map_err(|_| ErrorCode::BadHandshake)?;
        let (identity, proof) = match &login.credential {
            Some(Credential::Token(token)) => {
                let claims = context.authenticator.token(token, context.now_ms)?;
                let is_its = claims.thumbprint == Some(crypto::key_thumbprint(&key));
                if !is_its && !planted::is(Bug::TokenKeyNotCompared) {
                    return Err(ErrorCode::TokenKey);
                }
                (claims.identity, Proof::Token { issued_s: claims.issued_s })
            }
            Some(Credential::Ticket(_)) => return Err(ErrorCode::TicketInvalid),
            None => {
                let device = u16::try_from(login.device).map_err(|_| ErrorCode::BadHandshake)?;
                (Identity { user: UserId(login.user), device: DeviceId(device) }, Proof::Registered)
            }
        };
        let shown = Shown { fingerprint: Some(crypto::fingerprint(&key)), proof };
        self.log_in(&login, Caller { identity, shown, secret: Some(secret) }, context);
        Ok(())
    }

    /// Answers a handshake; everything behind the answer is sealed. Returns the next ticket's secret.
    fn seal_from_now_on(&mut self, suite: Suite, accepted: Accepted, context: &mut Context<'_>) -> Secret {
        if let Some(answer) = accepted.answer {
            context.out.seal(RecordType::Handshake, |out| out.extend_from_slice(&answer));
        }
        let Established { keys, resumption, .. } = accepted.established;
        context.out.seal_with(Cipher::Sealed(suite, keys));
        resumption
    }

    /// Answers WELCOME. Needs no storage: what the device has shown goes to its hub with READY, before anything is
    /// delivered.
    fn log_in(&mut self, login: &proto::Login, caller: Caller, context: &mut Context<'_>) {
        let Caller { identity, shown, secret } = caller;
        let contents = TicketContents { identity, fingerprint: shown.fingerprint, secret };
        let ticket = context.authenticator.issue_ticket(&contents, context.now_ms);
        context.handshakes.show(context.address.slot, shown);
        self.user = identity.user;
        self.device = identity.device;
        self.agree(login, context);
        // What the client says it has: true until the hub says better.
        self.acked = InboxSeq(login.cursor);
        self.sent = InboxSeq(login.receipts);
        let known = match Incarnation(login.incarnation) {
            Incarnation(0) => Known::Nothing,
            known if known == context.incarnation => Known::This,
            _ => Known::Other,
        };
        self.phase = Phase::Greeted { fetch: login.fetch, known };
        let welcome = proto::Welcome {
            ticket: ticket.bytes,
            ticket_expires_ms: ticket.expires_ms,
            incarnation: context.incarnation.0,
            server_time_ms: context.now_ms,
            keep_alive_s: u32::from(self.keep_alive_s),
            credit_entries: u32::from(self.credit_entries),
            credit_bytes: self.credit_bytes,
            version: u32::from(culver_protocol::limits::VERSION_MAX),
            keep_alive_min_s: context.keep_alive.min_s,
            keep_alive_max_s: context.keep_alive.max_s,
        };
        context.out.seal_message(RecordType::Welcome, &welcome);
        if planted::is(Bug::ReadyNotAwaited) && context.out.is_sealed() {
            self.become_ready(context).expect("just greeted");
        }
    }

    /// READY: the session takes over, and delivery starts.
    pub(super) fn become_ready(&mut self, context: &mut Context<'_>) -> Result<(), ErrorCode> {
        if planted::is(Bug::ReadyNotAwaited) && self.is_steady() {
            return Ok(());
        }
        let Phase::Greeted { fetch, known } = self.phase else { return Err(ErrorCode::OutOfState) };
        self.epoch = context.address.epoch;
        let receipts = std::mem::replace(&mut self.sent, self.acked).0;
        let incarnation = match known {
            Known::Nothing => Incarnation(0),
            Known::This => context.incarnation,
            // Which one does not matter.
            Known::Other => Incarnation(context.incarnation.0.wrapping_add(1).max(1)),
        };
        let shown = context.handshakes.take_shown(context.address.slot);
        let Shown { fingerprint, proof } = shown.expect("what was shown is kept until READY");
        let is_early = planted::is(Bug::CommandsBeforeKey);
        self.phase = if is_early { Phase::Steady { in_sync: false } } else { Phase::Entering };
        let command = Command::Login {
            fingerprint,
            proof,
            session: context.address,
            device: self.device(),
            cursor: self.acked,
            incarnation,
            credit: self.agreed_credit(),
            fetch,
            receipts,
        };
        self.post(context.topology.hub_of_user(self.user), command, context);
        Ok(())
    }

    fn agree(&mut self, login: &proto::Login, context: &Context<'_>) {
        let bounds = context.keep_alive;
        let is_wish_lost = login.keep_alive_s == 0 || planted::is(Bug::KeepAliveNotShortened);
        let wanted = if is_wish_lost { bounds.default_s } else { login.keep_alive_s };
        self.keep_alive_s = bounds.bring_within(wanted);
        let entries = if login.credit_entries == 0 { CREDIT_ENTRIES_DEFAULT } else { login.credit_entries };
        self.credit_entries = u16::try_from(entries.clamp(1, CREDIT_ENTRIES_MAX)).expect("the maximum fits");
        let bytes = if login.credit_bytes == 0 { CREDIT_BYTES_DEFAULT } else { login.credit_bytes };
        self.credit_bytes = bytes.clamp(CREDIT_BYTES_MIN, CREDIT_BYTES_MAX);
        (self.ack_entries, self.ack_bytes) = (self.credit_entries, self.credit_bytes);
    }
}
