//! The phases of a client: when there is a connection, and what follows one.

use super::config::NO_CREDENTIAL;
use super::link::Link;
use super::{Client, Event};
use crate::error::{ErrorClass, ErrorCode};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// `Connect` was given out.
    Connecting,
    /// Login is written, WELCOME awaited.
    LoggingIn,
    LoggedIn,
    /// `Disconnect` was given out.
    Closing(Next),
    /// No connection until this time.
    BackingOff {
        until_us: u64,
    },
    /// No connection until `set_credential`.
    CredentialNeeded,
    Stopped,
}

/// What follows a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Reconnect,
    /// At once: what was shown is refused, but there is more to show.
    ReconnectNow,
    CredentialNeeded,
    Stop,
}

impl Client {
    /// The connection is closed, or could not be opened. Plans the next one, unless the client was told to stop.
    pub fn handle_disconnected(&mut self, now_us: u64) {
        self.tick(now_us);
        let next = match self.phase {
            Phase::Connecting | Phase::LoggingIn | Phase::LoggedIn => Next::Reconnect,
            Phase::Closing(next) => {
                // Closed already: nobody need be asked to.
                self.events.retain(|event| !matches!(event, Event::Disconnect));
                next
            }
            Phase::BackingOff { .. } | Phase::CredentialNeeded | Phase::Stopped => return,
        };
        let leave_us = self.link.leave_us();
        // Given up for want of an answer, or reset by somebody on the way who has forgotten it.
        if let Some(keep_alives) = &mut self.keep_alives {
            keep_alives.ended(self.now_us);
        }
        self.link = Link::default();
        self.outbox.forget_connection();
        while let Some(id) = self.calls.end_oldest() {
            self.events.push_back(Event::Cancelled { id });
        }
        match next {
            Next::Reconnect => self.phase = Phase::BackingOff { until_us: self.come_back_us(leave_us) },
            Next::ReconnectNow => self.connect(),
            Next::CredentialNeeded => self.phase = Phase::CredentialNeeded,
            Next::Stop => self.phase = Phase::Stopped,
        }
        self.handle_due();
    }

    /// When to log in again. `leave_us`: when a GOAWAY said to.
    fn come_back_us(&mut self, leave_us: Option<u64>) -> u64 {
        let has_place = self.backoff.take_place();
        if has_place && self.backoff.keep_to_place() {
            return self.not_before_us;
        }
        let wait_us = self.backoff.next_us(self.backoff_base_ms, self.backoff_max_ms, &mut self.jitter);
        let own_us = self.now_us.saturating_add(wait_us);
        // A server that said when to come back has spread its clients already.
        let due_us = leave_us.filter(|_| !has_place).unwrap_or(own_us);
        due_us.max(self.not_before_us)
    }

    /// Time has passed. Early calls do no harm.
    pub fn handle_timeout(&mut self, now_us: u64) {
        self.tick(now_us);
        self.handle_due();
    }

    /// When `handle_timeout` is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        match self.phase {
            Phase::BackingOff { until_us } => Some(until_us),
            Phase::LoggingIn => {
                let login_us = self.link.connected_us().saturating_add(self.answer_timeout_us);
                Some(self.link.leave_us().map_or(login_us, |leave_us| leave_us.min(login_us)))
            }
            Phase::LoggedIn => {
                let hold_us = self.outbox.hold_due_us();
                let link_us = self.link.due_us(self.is_awaiting(), self.answer_timeout_us);
                [Some(link_us), hold_us, self.link.leave_us()].into_iter().flatten().min()
            }
            Phase::Connecting | Phase::Closing(_) | Phase::CredentialNeeded | Phase::Stopped => None,
        }
    }

    /// Asks for a connection, if there is anything to log in with.
    pub(super) fn connect(&mut self) {
        // With encryption there is the device's key: whether that will do, the server knows.
        if self.token.is_none() && self.ticket.is_none() && self.security.is_none() {
            self.phase = Phase::CredentialNeeded;
            self.events.push_back(Event::CredentialNeeded { code: NO_CREDENTIAL });
            return;
        }
        self.phase = Phase::Connecting;
        self.events.push_back(Event::Connect);
    }

    pub(super) fn disconnect(&mut self, next: Next) {
        if self.has_connection() {
            self.link.clear();
            self.phase = Phase::Closing(next);
            self.events.push_back(Event::Disconnect);
        }
    }

    pub(super) fn handle_due(&mut self) {
        let now_us = self.now_us;
        match self.phase {
            Phase::BackingOff { until_us } if until_us <= now_us => self.connect(),
            Phase::LoggingIn | Phase::LoggedIn if self.link.leave_us().is_some_and(|leave| leave <= now_us) => {
                self.disconnect(Next::ReconnectNow);
            }
            Phase::LoggingIn if self.poll_timeout().is_some_and(|due| due <= now_us) => {
                self.disconnect(Next::Reconnect);
            }
            Phase::LoggedIn => {
                let is_awaiting = self.is_awaiting();
                let promised_s = self.wanted_s();
                if !self.link.keep_alive(now_us, is_awaiting, self.answer_timeout_us, promised_s) {
                    self.disconnect(Next::Reconnect);
                    return;
                }
                self.write_sends();
            }
            _ => {}
        }
    }

    /// What an error that ends the connection means for the next one.
    pub(super) fn handle_fatal(&mut self, code: u32) {
        let next = match ErrorClass::of(code) {
            ErrorClass::RetryHere | ErrorClass::Reconnect => Next::Reconnect,
            ErrorClass::RefreshToken => self.handle_refusal(code),
            ErrorClass::DoNotRetry if self.security.is_some() && is_of_network(code) => Next::Reconnect,
            ErrorClass::DoNotRetry | ErrorClass::Stop => {
                if code == ErrorCode::DeviceRemoved.number() {
                    self.ticket = None;
                }
                self.events.push_back(Event::Stopped { code });
                Next::Stop
            }
        };
        self.disconnect(next);
    }
}

/// What the server finds wrong with a record where somebody on the way has changed it: lengths are not sealed.
fn is_of_network(code: u32) -> bool {
    use ErrorCode::{HandshakeFailed, RecordEmpty, RecordForged, RecordTooLong};
    let code = ErrorCode::from_number(code);
    matches!(code, Some(HandshakeFailed | RecordEmpty | RecordForged | RecordTooLong))
}
