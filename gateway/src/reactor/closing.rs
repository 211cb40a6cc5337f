//! Connections whose peers have gone: a few at a time, however many go at once. Those who stay do not wait for it, and
//! who has gone does not mind. Never looks at a socket by itself.

use super::connection::Life;
use super::socket::Socket;
use super::{CLOSINGS_AT_ONCE, Reactor};
use crate::buckets::{Limit, ns_of_us};

impl<S: Socket> Reactor<S> {
    /// A socket has bytes, perhaps, and the end behind them. Said once: it is read to its end, when its turn comes.
    pub fn handle_closed(&mut self, slot: u32) {
        if self.may_close() {
            return self.handle_readable(slot, true);
        }
        // One that is to be read again anyway is read to its end.
        let is_there = self.connections.get(slot).is_some_and(|connection| connection.life != Life::Closed);
        if is_there && self.put_aside(slot) {
            self.closing.push_back(slot);
        }
    }

    /// Those whose turn has come.
    pub(super) fn close_some(&mut self) {
        while !self.closing.is_empty() && self.may_close() {
            let Some(slot) = self.closing.pop_front() else { return };
            self.take_up(slot);
        }
    }

    /// How long until the next has its turn, where one waits.
    pub(super) fn closing_wait_us(&self) -> Option<u64> {
        if self.closing.is_empty() {
            return None;
        }
        let (now_ns, limit) = self.closings_limit();
        Some(self.closings.at(now_ns, limit).wait_ns(now_ns, limit).map_or(0, |wait_ns| wait_ns.div_ceil(1000)))
    }

    /// Whether one more may be looked at now, which then counts.
    fn may_close(&mut self) -> bool {
        let (now_ns, limit) = self.closings_limit();
        let level = self.closings.at(now_ns, limit);
        let has_room = level.wait_ns(now_ns, limit).is_none();
        self.closings = if has_room { level.charged(limit) } else { level };
        has_room
    }

    fn closings_limit(&self) -> (u64, Limit) {
        (ns_of_us(self.mono_us), Limit::new(self.around.bounds.closings_per_s, CLOSINGS_AT_ONCE))
    }
}
