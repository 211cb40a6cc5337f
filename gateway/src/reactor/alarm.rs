//! What other threads wake a reactor with: an eventfd, watched by epoll like any socket. Unlike mio's waker it can also
//! be waited for alone, while the sockets gather what they have.
//!
//! There are two ends of it, each with a descriptor of its own: the reactor's may be in a table that only the reactor
//! has, and all others wake it by one in theirs.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use culver_storage::descriptors::Table;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::sys::take_private_descriptors;

/// One end of an eventfd.
#[derive(Debug)]
pub struct Alarm {
    descriptor: OwnedFd,
    /// Whose number it is.
    table: Table,
}

impl Alarm {
    /// Makes one, for those who set it off.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Self> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { descriptor, table: Table::current() })
    }

    /// The other end, for the calling thread, which shares its table of descriptors with all.
    ///
    /// # Errors
    /// Those of dup(2).
    pub fn share(&self) -> io::Result<Self> {
        Ok(Self { descriptor: self.descriptor.try_clone()?, table: Table::current() })
    }

    /// The other end, for the calling thread, which from now on has a table of descriptors to itself, and nothing else
    /// in it but `listener`, where there is one: that comes along.
    ///
    /// # Errors
    /// Those of close_range(2).
    pub fn take_along(&self, listener: Option<&OwnedFd>) -> io::Result<(Self, Option<OwnedFd>)> {
        let (descriptor, listener) = match listener {
            Some(listener) => {
                let [descriptor, listener] = take_private_descriptors([&self.descriptor, listener])?;
                (descriptor, Some(listener))
            }
            None => {
                let [descriptor] = take_private_descriptors([&self.descriptor])?;
                (descriptor, None)
            }
        };
        Ok((Self { descriptor, table: Table::current() }, listener))
    }

    /// Has `registry` watch it.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn watch(&self, registry: &Registry, token: Token) -> io::Result<()> {
        self.table.assert_current();
        registry.register(&mut SourceFd(&self.descriptor.as_raw_fd()), token, Interest::READABLE)
    }

    /// Sets it off. Any thread that uses this end's table.
    pub fn set_off(&self) {
        self.table.assert_current();
        // The only error is a full counter: then it is set off already.
        rustix::io::write(&self.descriptor, &1_u64.to_ne_bytes()).ok();
    }

    /// Waits until it is set off, whatever sockets do meanwhile.
    pub fn wait(&self, timeout: Duration) {
        let timeout = Timespec::try_from(timeout).expect("timeouts are short");
        // An interruption or a timeout: either way the reactor looks for itself.
        poll(&mut [PollFd::new(&self.descriptor, PollFlags::IN)], Some(&timeout)).ok();
    }

    /// Makes it silent again.
    pub fn silence(&self) {
        // The only error is that it was silent.
        rustix::io::read(&self.descriptor, &mut [0_u8; 8]).ok();
    }
}

impl Drop for Alarm {
    /// Its number is closed now, and must not be a stranger's.
    fn drop(&mut self) {
        self.table.assert_current();
    }
}
