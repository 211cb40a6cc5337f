//! A listening socket: who has connected and is not accepted yet. A process's own ends with the process, and who waits in
//! it is cut off; one that somebody else keeps goes on, and the next process takes who waits.
//!
//! Owns the queue. Never accepts by itself, and never decides that a process ends.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;

use super::{SimSocket, Wire};

/// A connection that nobody has accepted yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub wire: Wire,
    pub socket: SimSocket,
    pub source: IpAddr,
    since_us: u64,
}

#[derive(Debug)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Somebody else has it as well.
    is_kept: bool,
    /// A process listens, and since when.
    is_open: bool,
    open_since_us: u64,
}

/// See the module. Copies are the same socket.
#[derive(Clone, Debug)]
pub(crate) struct Listener(Rc<RefCell<Queue>>);

impl Listener {
    pub(crate) fn new(is_kept: bool) -> Self {
        let queue = Queue { waiting: VecDeque::new(), is_kept, is_open: false, open_since_us: 0 };
        Self(Rc::new(RefCell::new(queue)))
    }

    /// A process listens from now on.
    pub(crate) fn open(&self, now_us: u64) {
        let mut queue = self.0.borrow_mut();
        (queue.is_open, queue.open_since_us) = (true, now_us);
    }

    /// The process listens no more.
    pub(crate) fn close(&self) {
        let is_kept = self.0.borrow().is_kept;
        self.end(is_kept);
    }

    /// The machine loses its power: nobody keeps anything.
    pub(crate) fn lose(&self) {
        self.end(false);
    }

    fn end(&self, is_kept: bool) {
        let mut queue = self.0.borrow_mut();
        queue.is_open = false;
        if !is_kept {
            queue.waiting.clear();
        }
    }

    /// A client's connection waits to be accepted. Whether anybody listens, or keeps it for who will.
    pub(crate) fn connect(&self, wire: Wire, (socket, source): (SimSocket, IpAddr), now_us: u64) -> bool {
        let mut queue = self.0.borrow_mut();
        let is_there = queue.is_open || queue.is_kept;
        if is_there {
            wire.set_queued(true);
            queue.waiting.push_back(Waiting { wire, socket, source, since_us: now_us });
        }
        is_there
    }

    /// The next that waits, if the process listens.
    pub(crate) fn accept(&self) -> Option<Waiting> {
        let mut queue = self.0.borrow_mut();
        let next = if queue.is_open { queue.waiting.pop_front() } else { None };
        next.inspect(|next| next.wire.set_queued(false))
    }

    /// Whether a process listens and has somebody to accept.
    pub(crate) fn is_due(&self) -> bool {
        let queue = self.0.borrow();
        queue.is_open && !queue.waiting.is_empty()
    }

    /// Since when somebody waits whom the process could accept.
    pub(crate) fn waits_since_us(&self) -> Option<u64> {
        let queue = self.0.borrow();
        let first = queue.waiting.front().filter(|_| queue.is_open)?;
        Some(first.since_us.max(queue.open_since_us))
    }
}
