//! Pooled buffers: a connection holds one only while it has a partial frame or unsent bytes.

/// Free buffers kept for the next that needs one.
const POOLED_MAX: usize = 256;
/// A buffer that has grown beyond this is not kept.
const POOLED_LEN_MAX: usize = 128 * 1024;

/// Buffers by number.
#[derive(Default)]
pub struct Buffers {
    buffers: Vec<Vec<u8>>,
    free: Vec<u32>,
}

/// No buffer.
pub const NO_BUFFER: u32 = u32::MAX;

impl Buffers {
    /// The contents of a buffer, empty where there is none.
    #[must_use]
    pub fn get(&self, index: u32) -> &[u8] {
        self.buffers.get(index as usize).map_or(&[], Vec::as_slice)
    }

    /// Takes a buffer's contents to work with; `put` gives them back.
    pub fn take(&mut self, index: &mut u32) -> Vec<u8> {
        if *index == NO_BUFFER {
            *index = self.free.pop().unwrap_or_else(|| {
                self.buffers.push(Vec::new());
                u32::try_from(self.buffers.len() - 1).expect("fewer buffers than connections")
            });
        }
        std::mem::take(self.buffers.get_mut(*index as usize).expect("numbers name buffers"))
    }

    /// Gives the contents back. An empty buffer returns to the pool, and the connection holds none any more.
    pub fn put(&mut self, index: &mut u32, buffer: Vec<u8>) {
        let pooled = self.free.len();
        let place = self.buffers.get_mut(*index as usize).expect("numbers name buffers");
        *place = buffer;
        if place.is_empty() {
            if pooled >= POOLED_MAX || place.capacity() > POOLED_LEN_MAX {
                *place = Vec::new();
            }
            self.free.push(*index);
            *index = NO_BUFFER;
        }
    }

    /// Buffers that connections hold.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.buffers.len() - self.free.len()
    }

    /// Drops a buffer's contents.
    pub fn release(&mut self, index: &mut u32) {
        if *index != NO_BUFFER {
            let mut buffer = self.take(index);
            buffer.clear();
            self.put(index, buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_buffer_returns_to_the_pool() {
        let mut buffers = Buffers::default();
        let (mut first, mut second) = (NO_BUFFER, NO_BUFFER);
        let mut contents = buffers.take(&mut first);
        contents.extend_from_slice(b"partial");
        buffers.put(&mut first, contents);
        assert_eq!((buffers.get(first), buffers.taken()), (&b"partial"[..], 1));
        buffers.release(&mut first);
        assert_eq!(first, NO_BUFFER);
        assert_eq!((buffers.get(first), buffers.taken()), (&b""[..], 0));
        let contents = buffers.take(&mut second);
        assert!(contents.is_empty() && contents.capacity() > 0, "the pooled buffer is used again");
        assert_eq!(second, 0);
    }
}
