//! Those that are not let in: told so in one record, and closed. Nothing is kept of them, and nothing allocated.

use culver_protocol::error::ErrorCode;
use culver_protocol::proto;
use culver_protocol::record::{Cipher, RecordType};

use super::Reactor;
use super::admission::Refused;
use super::socket::Socket;
use crate::session::error_message;

/// What they are told, made once.
#[derive(Debug)]
pub(super) struct Shedding {
    busy: proto::Error,
    full: proto::Error,
    /// The record on its way.
    out: Vec<u8>,
}

impl Default for Shedding {
    fn default() -> Self {
        let message = |code| error_message(code, proto::error::Scope::Connection, &[]);
        Self { busy: message(ErrorCode::LoginsBusy), full: message(ErrorCode::ConnectionsFull), out: Vec::new() }
    }
}

impl<S: Socket> Reactor<S> {
    /// Tells a connection that is refused so, and closes it.
    pub(super) fn refuse(&mut self, socket: S, refused: Refused) {
        let counters = self.counters();
        let (counter, retry_after_ms) = match refused {
            Refused::All(retry_after_ms) => (&counters.logins_shed, retry_after_ms),
            Refused::Source(retry_after_ms) => (&counters.logins_shed_by_source, retry_after_ms),
        };
        counter.add(1);
        self.shedding.busy.retry_after_ms = retry_after_ms;
        self.shed(socket, |shedding| &shedding.busy);
        self.count_calendar();
    }

    /// Tells a connection for which there is no room so, and closes it.
    pub(super) fn turn_away(&mut self, socket: S) {
        self.counters().turned_away.add(1);
        self.shedding.full.retry_after_ms = self.admission.without_room_ms();
        self.shed(socket, |shedding| &shedding.full);
    }

    fn shed(&mut self, mut socket: S, message: impl FnOnce(&Shedding) -> &proto::Error) {
        // The kernel hands a connection over once its client has said something. What is unread when it is closed would
        // reset it, and could destroy the record on its way.
        drop(socket.read(&mut self.read_buffer));
        let mut out = std::mem::take(&mut self.shedding.out);
        out.clear();
        Cipher::Plaintext.seal_message(&mut out, RecordType::Error, message(&self.shedding));
        // A fresh socket has room for one small record; if not, closing says it too.
        drop(socket.write(&out));
        self.shedding.out = out;
        self.counters().errors_sent.add(1);
    }

    /// How far places are given away, for the metrics.
    pub(super) fn count_calendar(&self) {
        self.counters().calendar_ms.set(self.admission.calendar_ms(self.mono_us));
    }
}
