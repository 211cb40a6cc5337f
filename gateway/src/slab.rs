//! A slab in chunks: stable small indexes, no reallocation as it grows, and empty chunks are given back.
//!
//! New values go to the lowest chunk with room, so that after a mass disconnect the upper chunks empty out.

use std::collections::BTreeSet;

/// Values in one chunk: a bit each in its `free`.
pub const CHUNK_LEN: usize = 128;
const _: () = assert!(CHUNK_LEN == u128::BITS as usize);

/// A growable array of `T` with stable indexes.
pub struct Slab<T> {
    chunks: Vec<Option<Chunk<T>>>,
    /// Chunks with room, allocated or not. Invariant: every index below `chunks.len()` that has room is here.
    open: BTreeSet<usize>,
    len: usize,
}

struct Chunk<T> {
    slots: Box<[Option<T>]>,
    /// The bits of the empty slots: to look at the slots themselves would touch most of the chunk.
    free: u128,
}

impl<T> Chunk<T> {
    fn new() -> Self {
        Self { slots: (0..CHUNK_LEN).map(|_| None).collect(), free: u128::MAX }
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), open: BTreeSet::new(), len: 0 }
    }
}

impl<T> Slab<T> {
    /// Values held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts a value in and returns its index.
    ///
    /// # Panics
    /// Beyond 2³² values.
    pub fn insert(&mut self, value: T) -> u32 {
        let index = match self.open.first() {
            Some(index) => *index,
            None => {
                self.chunks.push(None);
                self.open.insert(self.chunks.len() - 1);
                self.chunks.len() - 1
            }
        };
        let chunk = self.chunks.get_mut(index).expect("open chunks exist").get_or_insert_with(Chunk::new);
        let offset = chunk.free.trailing_zeros() as usize;
        *chunk.slots.get_mut(offset).expect("an open chunk has room") = Some(value);
        chunk.free &= chunk.free - 1;
        if chunk.free == 0 {
            self.open.remove(&index);
        }
        self.len += 1;
        u32::try_from(index * CHUNK_LEN + offset).expect("fewer than 2^32 values")
    }

    /// The value at `index`, if there is one.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        self.chunks.get(index / CHUNK_LEN)?.as_ref()?.slots.get(index % CHUNK_LEN)?.as_ref()
    }

    /// The value at `index`, if there is one, to change it.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        let index = index as usize;
        self.chunks.get_mut(index / CHUNK_LEN)?.as_mut()?.slots.get_mut(index % CHUNK_LEN)?.as_mut()
    }

    /// Takes the value at `index` out. An emptied chunk's memory is given back.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let (index, offset) = (index as usize / CHUNK_LEN, index as usize % CHUNK_LEN);
        let place = self.chunks.get_mut(index)?;
        let chunk = place.as_mut()?;
        let value = chunk.slots.get_mut(offset)?.take()?;
        chunk.free |= 1 << offset;
        if chunk.free == u128::MAX {
            *place = None;
        }
        self.open.insert(index);
        self.len -= 1;
        Some(value)
    }

    /// The first index in use from this one on.
    #[must_use]
    pub fn index_from(&self, from: u32) -> Option<u32> {
        let (first, offset) = (from as usize / CHUNK_LEN, from as usize % CHUNK_LEN);
        self.chunks.iter().enumerate().skip(first).find_map(|(index, chunk)| {
            let begin = if index == first { offset } else { 0 };
            let used = !chunk.as_ref()?.free & (u128::MAX << begin);
            let index = index * CHUNK_LEN + used.trailing_zeros() as usize;
            (used != 0).then(|| u32::try_from(index).expect("fewer than 2^32 values"))
        })
    }

    /// All indexes in use, ascending.
    pub fn indexes(&self) -> impl Iterator<Item = u32> + '_ {
        self.chunks.iter().enumerate().flat_map(|(index, chunk)| {
            let slots = chunk.iter().flat_map(|chunk| chunk.slots.iter().enumerate());
            slots
                .filter(|(_, slot)| slot.is_some())
                .map(move |(offset, _)| u32::try_from(index * CHUNK_LEN + offset).expect("fewer than 2^32 values"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_stable_and_reused_lowest_chunk_first() {
        let mut slab = Slab::default();
        let indexes: Vec<u32> = (0..1000).map(|n| slab.insert(n)).collect();
        assert_eq!(indexes, (0..1000).collect::<Vec<u32>>());
        for index in [900, 5, 700] {
            assert_eq!(slab.remove(index), Some(index));
            assert_eq!(slab.remove(index), None);
        }
        assert_eq!(slab.insert(1), 5);
        assert_eq!(slab.insert(2), 700);
        assert_eq!(slab.len(), 999);
        assert_eq!(slab.get(6), Some(&6));
    }

    #[test]
    fn indexes_are_found_from_any_on() {
        let mut slab = Slab::default();
        (0..1000).for_each(|n| assert_eq!(slab.insert(n), n));
        for index in (0..1000).filter(|index| !matches!(index, 3 | 127 | 128 | 901)) {
            slab.remove(index);
        }
        let next = [0, 3, 4, 127, 128, 129, 901, 902, 5000].map(|from| slab.index_from(from));
        let expected = [Some(3), Some(3), Some(127), Some(127), Some(128), Some(901), Some(901), None, None];
        assert_eq!(next, expected);
    }

    #[test]
    fn empty_chunks_are_given_back() {
        let mut slab = Slab::default();
        for n in 0..1000 {
            slab.insert(n);
        }
        for index in 0..1000 {
            slab.remove(index);
        }
        assert!(slab.is_empty());
        assert!(slab.chunks.iter().all(Option::is_none));
        assert_eq!(slab.indexes().count(), 0);
        assert_eq!(slab.insert(7), 0);
    }
}
