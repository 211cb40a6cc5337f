//! The keys of encrypted connections, beside the slab of connections: by the same slots, in chunks of their own that
//! exist only where an encrypted connection is. A plaintext connection has no byte here.

use culver_protocol::record::Cipher;

use crate::slab::CHUNK_LEN;

/// Bytes of one connection's keys, as docs/benchmarks/memory.md counts them.
const CIPHER_LEN: usize = 76;

const _: () = assert!(size_of::<Cipher>() == CIPHER_LEN);

/// Ciphers by slot.
#[derive(Debug, Default)]
pub struct Ciphers {
    chunks: Vec<Option<Chunk>>,
}

#[derive(Debug)]
struct Chunk {
    ciphers: Box<[Cipher]>,
    /// The bits of the slots that have one.
    used: u128,
}

impl Ciphers {
    /// Takes the cipher of a slot out, to be put back when it has sealed and opened.
    #[must_use]
    pub fn take(&mut self, slot: u32) -> Cipher {
        let (index, offset) = split(slot);
        let chunk = self.chunks.get_mut(index).and_then(Option::as_mut);
        chunk.and_then(|chunk| chunk.ciphers.get_mut(offset)).map(std::mem::take).unwrap_or_default()
    }

    /// Puts it back.
    pub fn put(&mut self, slot: u32, cipher: Cipher) {
        if let Cipher::Plaintext = cipher {
            return;
        }
        let (index, offset) = split(slot);
        if self.chunks.len() <= index {
            self.chunks.resize_with(index + 1, || None);
        }
        let place = self.chunks.get_mut(index).expect("there are so many");
        let chunk = place.get_or_insert_with(|| Chunk {
            ciphers: std::iter::repeat_with(Cipher::default).take(CHUNK_LEN).collect(),
            used: 0,
        });
        chunk.used |= 1 << offset;
        *chunk.ciphers.get_mut(offset).expect("a chunk has so many") = cipher;
    }

    /// The connection in a slot is gone: its keys are wiped, and a chunk without any is given back.
    pub fn forget(&mut self, slot: u32) {
        let (index, offset) = split(slot);
        let Some(place) = self.chunks.get_mut(index) else { return };
        let Some(chunk) = place else { return };
        *chunk.ciphers.get_mut(offset).expect("a chunk has so many") = Cipher::Plaintext;
        chunk.used &= !(1 << offset);
        if chunk.used == 0 {
            *place = None;
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().all(Option::is_none)
    }
}

fn split(slot: u32) -> (usize, usize) {
    (slot as usize / CHUNK_LEN, slot as usize % CHUNK_LEN)
}

#[cfg(test)]
mod tests {
    use culver_protocol::crypto::{Secret, Suite};
    use culver_protocol::keys::{Key, Keys};

    use super::*;

    fn sealed(byte: u8) -> Cipher {
        let key = Key::new(&Secret::new([byte; 32]));
        Cipher::Sealed(Suite::Aes256Gcm, Keys { sending: key.clone(), receiving: key })
    }

    #[test]
    fn a_plaintext_connection_has_nothing_here() {
        let mut ciphers = Ciphers::default();
        for slot in 0..1000 {
            assert!(matches!(ciphers.take(slot), Cipher::Plaintext));
            ciphers.put(slot, Cipher::Plaintext);
            ciphers.forget(slot);
        }
        assert!(ciphers.chunks.is_empty());
    }

    #[test]
    fn each_slot_has_its_own_and_empty_chunks_are_given_back() {
        let mut ciphers = Ciphers::default();
        for slot in [5, 300, 301] {
            ciphers.put(slot, sealed(1));
        }
        let mut taken = ciphers.take(300);
        let mut out = Vec::new();
        taken.seal(&mut out, culver_protocol::record::RecordType::Ping, |_| {});
        ciphers.put(300, taken);
        let counted = |cipher: &Cipher| match cipher {
            Cipher::Sealed(_, keys) => keys.sending.records(),
            Cipher::Plaintext => panic!("it seals"),
        };
        assert_eq!(counted(&ciphers.take(301)), 0);
        assert_eq!(counted(&ciphers.take(300)), 1, "what it has sealed is not forgotten");
        ciphers.forget(300);
        assert!(matches!(ciphers.take(300), Cipher::Plaintext));
        ciphers.forget(301);
        assert_eq!(ciphers.chunks.iter().filter(|chunk| chunk.is_some()).count(), 1);
        ciphers.forget(5);
        assert!(ciphers.is_empty());
    }
}
