//! Where a session's records go: bytes on their way to the client, sealed as they are written.

use culver_protocol::record::{Cipher, RecordType};
use culver_storage::planted::{self, Bug};
use prost::Message;

/// The unsent bytes of a connection, and what seals them.
#[derive(Debug)]
pub struct Records<'a> {
    bytes: &'a mut Vec<u8>,
    cipher: &'a mut Cipher,
}

impl<'a> Records<'a> {
    /// Records are appended to `bytes`.
    #[must_use]
    pub fn new(bytes: &'a mut Vec<u8>, cipher: &'a mut Cipher) -> Self {
        Self { bytes, cipher }
    }

    /// Unsent bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing is unsent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What opens the client's records.
    pub fn cipher(&mut self) -> &mut Cipher {
        self.cipher
    }

    /// Whether they are sealed.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        matches!(self.cipher, Cipher::Sealed(..))
    }

    /// From now on records are sealed so.
    pub fn seal_with(&mut self, cipher: Cipher) {
        *self.cipher = cipher;
    }

    /// Appends a record; `write` appends its protobuf.
    pub fn seal(&mut self, kind: RecordType, write: impl FnOnce(&mut Vec<u8>)) {
        self.cipher.seal(self.bytes, kind, write);
    }

    /// Appends a record that holds `message`.
    pub fn seal_message(&mut self, kind: RecordType, message: &impl Message) {
        self.cipher.seal_message(self.bytes, kind, message);
    }

    /// The client has changed its key: it is followed, and the server changes its own.
    pub fn follow_key(&mut self) {
        if !planted::is(Bug::RekeyIgnored) {
            self.cipher.follow_key();
        }
        self.cipher.change_key(self.bytes);
    }
}
