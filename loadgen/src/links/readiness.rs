//! What a poll says about a socket.

/// What a poll said about one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) read_closed: bool,
}

impl Readiness {
    /// For sockets that were left with bytes to read.
    pub(crate) const UNREAD: Self = Self { readable: true, writable: false, read_closed: false };

    pub(crate) fn of(event: &mio::event::Event) -> Self {
        let broken = event.is_error();
        Self {
            readable: event.is_readable() || event.is_read_closed() || broken,
            writable: event.is_writable() || broken,
            read_closed: event.is_read_closed() || broken,
        }
    }
}
