//! Bytes between the sockets and the clients.

use std::io::{ErrorKind, Read, Write};

use super::{LinkIndex, Links, READS_MAX, Readiness};

impl Links {
    /// The socket became readable or writable.
    pub(crate) fn handle_ready(&mut self, index: LinkIndex, event: Readiness, now_us: u64) {
        if event.writable {
            self.handle_writable(index, now_us);
        }
        if event.readable {
            self.handle_readable(index, event.read_closed, now_us);
        }
    }

    fn handle_writable(&mut self, index: LinkIndex, now_us: u64) {
        let link = self.link(index);
        if !link.is_connecting {
            if link.is_blocked {
                link.is_blocked = false;
                self.mark_dirty(index);
            }
            return;
        }
        let Some(socket) = &link.socket else { return };
        if !matches!(socket.take_error(), Ok(None)) {
            self.counts.connect_failures += 1;
            self.close_socket(index);
            self.client(index).handle_disconnected(now_us);
        } else if socket.peer_addr().is_ok() {
            link.is_connecting = false;
            self.client(index).handle_connected(now_us);
        }
    }

    fn handle_readable(&mut self, index: LinkIndex, read_closed: bool, now_us: u64) {
        if self.link(index).is_deaf {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..READS_MAX {
            let link = self.link(index);
            let Some(socket) = link.socket.as_mut().filter(|_| !link.is_connecting) else { break };
            match socket.read(&mut buffer) {
                Ok(0) => {
                    self.disconnect(index, now_us);
                    break;
                }
                Ok(len) => {
                    let bytes = buffer.get(..len).expect("a read stays within its buffer");
                    if let Some(tap) = &mut link.tap {
                        tap.handle_bytes(bytes);
                    }
                    self.client(index).handle_bytes(bytes, now_us);
                    if len < buffer.len() && !read_closed {
                        break; // drained: what comes later raises a new event
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.disconnect(index, now_us);
                    break;
                }
            }
            self.note_unread(index);
        }
        self.buffer = buffer;
    }

    /// Remembers a socket whose reads came back full; reading it once more than needed does no harm.
    fn note_unread(&mut self, index: LinkIndex) {
        if self.unread.last() != Some(&index) {
            self.unread.push(index);
        }
    }

    pub(super) fn write(&mut self, index: LinkIndex, now_us: u64) {
        let link = self.link(index);
        if link.is_connecting || link.is_blocked {
            return;
        }
        let Some(socket) = &mut link.socket else { return };
        // The second round is for what an interrupted write left.
        for _ in 0..2 {
            let bytes = link.client.transmit();
            if bytes.is_empty() {
                return;
            }
            let asked = bytes.len();
            match socket.write(bytes) {
                Ok(written) => {
                    link.client.transmitted(written);
                    link.is_blocked = written < asked;
                    return;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    link.is_blocked = true;
                    return;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.disconnect(index, now_us);
                    return;
                }
            }
        }
    }
}
