//! What a reactor needs of a socket: it reads, writes, and can say that nothing more will come. Whoever watches it says
//! when it may be read or written again.

use std::io::{Read, Write};
use std::net::Shutdown;

use mio::net::TcpStream;

/// A byte stream that never blocks. As with read(2), a read that gives less than was asked for has emptied it.
pub trait Socket: Read + Write {
    /// No more will be written: the peer sees the end of the stream behind the last byte.
    fn finish(&mut self);
}

impl Socket for TcpStream {
    fn finish(&mut self) {
        // A peer that is gone already needs no end.
        drop(self.shutdown(Shutdown::Write));
    }
}
