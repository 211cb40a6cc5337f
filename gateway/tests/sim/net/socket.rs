//! The server's end of a connection, as its reactors hold it.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::rc::Rc;

use culver::reactor::socket::Socket;

use super::pipe::Fin;
use super::{Conn, End};

/// The server's end, as its socket.
#[derive(Debug)]
pub(crate) struct SimSocket(pub(super) Rc<RefCell<Conn>>);

thread_local! {
    /// Reads and writes of the server's sockets that moved bytes: each is an event.
    pub static MOVED: Cell<u64> = const { Cell::new(0) };
}

impl Read for SimSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut conn = self.0.borrow_mut();
        if conn.server == End::Reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let len = conn.to_server.arrived.len().min(buffer.len());
        if len == 0 {
            return if conn.to_server.fin == Fin::Arrived { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        buffer[..len].copy_from_slice(&conn.to_server.arrived.front()[..len]);
        conn.to_server.arrived.pop(len);
        MOVED.set(MOVED.get() + 1);
        Ok(len)
    }
}

impl Write for SimSocket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut conn = self.0.borrow_mut();
        if conn.server == End::Reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if conn.to_client.fin != Fin::Open {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let len = conn.to_client.send(buffer);
        conn.wants_room |= len < buffer.len();
        if len == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        MOVED.set(MOVED.get() + 1);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket for SimSocket {
    fn finish(&mut self) {
        let mut conn = self.0.borrow_mut();
        if conn.to_client.fin == Fin::Open {
            conn.to_client.fin = Fin::Sent;
        }
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let mut conn = self.0.borrow_mut();
        if conn.server == End::Reset {
            conn.server = End::Closed;
            conn.is_watched = false;
            conn.to_server.arrived.clear();
        } else {
            conn.close_server(false);
        }
    }
}
