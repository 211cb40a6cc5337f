//! A worker's handshakes: the server's answer has come, and from here on the connection is sealed.

use culver_protocol::handshake::client::Waiting;

use super::super::handshake::{Agreed, finish};
use super::Worker;
use crate::clock::unix_ms;

impl Worker {
    /// What is to follow the answer is appended to what this turn writes.
    pub(super) fn finish_handshake(&mut self, slot: usize, waiting: Waiting, answer: &[u8]) -> Result<(), String> {
        let suite = self.start.login.sealing().expect("nobody else has a handshake under way").sealing.suite;
        let sends_ready = self.start.load.sends_ready;
        let Agreed { cipher, resumption, server } =
            finish(waiting, suite, answer, unix_ms(), sends_ready, &mut self.out)?;
        *self.ciphers.get_mut(slot).expect("there is one for each client") = cipher;
        self.opening.keep_resumption(slot, resumption);
        if server.is_some() {
            self.start.shared.set_server_key(server);
        }
        Ok(())
    }
}
