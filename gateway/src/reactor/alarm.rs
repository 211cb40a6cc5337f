//! What other threads wake a reactor with: an eventfd of its own, watched by epoll like any socket. Unlike mio's
//! waker it can also be waited for alone, while the sockets gather what they have.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// An eventfd.
#[derive(Debug)]
pub struct Alarm(OwnedFd);

impl Alarm {
    /// Makes one, and has `registry` watch it.
    ///
    /// # Errors
    /// Those of eventfd(2) and epoll_ctl(2).
    pub fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Self(fd))
    }

    /// Sets it off. Any thread.
    pub fn set_off(&self) {
        // The only error is a full counter: then it is set off already.
        rustix::io::write(&self.0, &1_u64.to_ne_bytes()).ok();
    }

    /// Waits until it is set off, whatever sockets do meanwhile.
    pub fn wait(&self, timeout: Duration) {
        let timeout = Timespec::try_from(timeout).expect("timeouts are short");
        // An interruption or a timeout: either way the reactor looks for itself.
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)).ok();
    }

    /// Makes it silent again.
    pub fn silence(&self) {
        // The only error is that it was silent.
        rustix::io::read(&self.0, &mut [0_u8; 8]).ok();
    }
}
