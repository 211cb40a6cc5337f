//! One direction of a connection: what is in the sender's kernel, what has arrived in the receiver's, and its end.

use super::tamper::Tamper;

/// A buffer that grows doubles whenever it has carried this many times what it holds.
const FULL_TIMES: usize = 32;
/// It grows no further.
const GROWN_MAX: usize = 65_536;

/// Bytes, first in first out.
#[derive(Debug, Default)]
pub(super) struct Queue {
    bytes: Vec<u8>,
    start: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(super) fn front(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn pop(&mut self, len: usize) {
        self.start += len;
        if self.start >= self.bytes.len() {
            self.clear();
        } else if self.start > 4096 && self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// What was pushed after the first `len` bytes.
    pub(super) fn take_after(&mut self, len: usize) -> Vec<u8> {
        self.bytes.split_off(self.start + len)
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }
}

/// Where the end of a stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fin {
    #[default]
    Open,
    /// Behind the bytes sent.
    Sent,
    /// Behind the bytes that have arrived.
    Arrived,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Pipe {
    /// In the sender's kernel.
    pub(super) sent: Queue,
    pub(super) sent_max: usize,
    /// In the receiver's kernel.
    pub(super) arrived: Queue,
    pub(super) arrived_max: usize,
    pub(super) fin: Fin,
    /// Its buffers grow, and have carried so much since the last time.
    pub(super) grows: bool,
    pub(super) carried: usize,
    /// What will be changed of what is sent, and whether anything was.
    pub(super) tamper: Option<Tamper>,
    pub(super) is_changed: bool,
}

impl Pipe {
    pub(super) fn new((sent_max, arrived_max): (usize, usize)) -> Self {
        let (sent, arrived) = (Queue::default(), Queue::default());
        Self {
            sent,
            sent_max,
            arrived,
            arrived_max,
            fin: Fin::Open,
            grows: false,
            carried: 0,
            tamper: None,
            is_changed: false,
        }
    }

    pub(super) fn room(&self) -> usize {
        self.sent_max.saturating_sub(self.sent.len())
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> usize {
        let (len, before) = (bytes.len().min(self.room()), self.sent.len());
        self.sent.push(&bytes[..len]);
        if self.tamper.is_some() {
            self.change(before);
        }
        len
    }

    /// Somebody changes what was sent after the first `before` bytes, if that has come so far.
    fn change(&mut self, before: usize) {
        let Some(mut tamper) = self.tamper.take() else { return };
        let mut bytes = self.sent.take_after(before);
        if tamper.passes(bytes.len()) {
            self.tamper = Some(tamper);
        } else {
            self.is_changed = true;
            tamper.change(&mut bytes);
            if tamper.ends() {
                self.fin = Fin::Sent;
            }
        }
        self.sent.push(&bytes);
    }

    /// Bytes that the wire could carry now.
    pub(super) fn carryable(&self) -> usize {
        self.sent.len().min(self.arrived_max.saturating_sub(self.arrived.len()))
    }

    pub(super) fn can_carry(&self) -> bool {
        self.carryable() > 0 || (self.fin == Fin::Sent && self.sent.len() == 0)
    }

    /// Whether anything arrived.
    pub(super) fn carry(&mut self, at_most: usize) -> bool {
        let len = self.carryable().min(at_most);
        if len > 0 {
            self.arrived.push(&self.sent.front()[..len]);
            self.sent.pop(len);
            self.grow(len);
        }
        let ends = self.fin == Fin::Sent && self.sent.len() == 0;
        if ends {
            self.fin = Fin::Arrived;
        }
        len > 0 || ends
    }

    pub(super) fn grow(&mut self, carried: usize) {
        self.carried += carried;
        let smaller = self.sent_max.min(self.arrived_max);
        if self.grows && smaller < GROWN_MAX && self.carried >= FULL_TIMES * smaller {
            self.carried = 0;
            for max in [&mut self.sent_max, &mut self.arrived_max] {
                *max = if *max == smaller { 2 * smaller } else { *max };
            }
        }
    }
}
