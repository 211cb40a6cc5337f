//! A batch: rows that reach the disk together or not at all, in one arena. Knows no engine.
//!
//! The arena is laid out as RocksDB lays out its write batches, so that an engine on RocksDB hands it over in one
//! call, and so that what the log holds can be read back with the same code:
//!
//! ```text
//! sequence:8 (LE)  count:4 (LE)  count × { 05  family:varint  key length:varint  key  value length:varint  value }
//! ```

use std::ops::ControlFlow;

use crate::engine::Family;

/// Bytes in front of the first row.
pub const HEADER_LEN: usize = 12;

const PUT: u8 = 5;

/// The number of a batch: a hub's batches are numbered densely, across restarts too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchNumber(pub u64);

impl BatchNumber {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("2^64 batches are never written"))
    }
}

/// Rows that reach the disk together or not at all.
#[derive(Clone, Debug)]
pub struct Batch {
    number: BatchNumber,
    rows: u32,
    bytes: Vec<u8>,
}

impl Batch {
    /// An empty batch with room for `capacity` bytes.
    #[must_use]
    pub fn with_capacity(number: BatchNumber, capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity.max(HEADER_LEN));
        bytes.resize(HEADER_LEN, 0);
        Self { number, rows: 0, bytes }
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> BatchNumber {
        self.number
    }

    /// Rows in it.
    #[must_use]
    pub fn row_count(&self) -> u32 {
        self.rows
    }

    /// Bytes it holds, header and keys included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it holds no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds a row; `value` comes in two parts that are joined.
    pub fn put(&mut self, family: Family, key: &[u8], value: (&[u8], &[u8])) {
        self.bytes.push(PUT);
        put_varint(&mut self.bytes, family.number());
        put_varint(&mut self.bytes, length(key.len()));
        self.bytes.extend_from_slice(key);
        put_varint(&mut self.bytes, length(value.0.len() + value.1.len()));
        self.bytes.extend_from_slice(value.0);
        self.bytes.extend_from_slice(value.1);
        self.rows += 1;
        let count = self.bytes.get_mut(8..HEADER_LEN).expect("a batch begins with its header");
        count.copy_from_slice(&self.rows.to_le_bytes());
    }

    /// The arena: header and rows.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same rows in the order of families and keys. An ordered memtable takes them in for less: each goes next to
    /// the one before, and the same few nodes stay in the processor's cache.
    #[must_use]
    pub fn sorted(&self) -> Self {
        let mut rows = Vec::with_capacity(self.rows as usize);
        let whole = decode(&self.bytes, |row| {
            rows.push(row);
            ControlFlow::Continue(())
        });
        whole.expect("a batch is filled through `put`");
        // Stable: of two rows with one key the later still comes later.
        rows.sort_by(|a, b| (a.family, a.key).cmp(&(b.family, b.key)));
        let mut sorted = Self::with_capacity(self.number, self.bytes.len());
        for row in rows {
            let family = Family::from_number(row.family).expect("a batch is filled through `put`");
            sorted.put(family, row.key, (row.value, &[]));
        }
        sorted
    }

    /// Shows every row in order.
    pub fn rows(&self, mut visit: impl FnMut(Family, &[u8], &[u8])) {
        let whole = decode(&self.bytes, |row| {
            let family = Family::from_number(row.family).expect("a batch is filled through `put`");
            visit(family, row.key, row.value);
            ControlFlow::Continue(())
        });
        whole.expect("a batch is filled through `put`");
    }
}

/// One row of a batch's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The number of the family, which this version need not know.
    pub family: u32,
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

/// The header of a batch as the log holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The engine's sequence number of the first row.
    pub sequence: u64,
    /// Rows, each of which takes one sequence number.
    pub count: u32,
}

/// The bytes are no batch of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a batch of rows")]
pub struct NotABatch;

/// Reads a batch's bytes and shows its rows until the visitor breaks. Any bytes may come in; none panics.
///
/// # Errors
/// The bytes are no batch, or hold something else than puts.
pub fn decode<'a>(bytes: &'a [u8], mut visit: impl FnMut(Row<'a>) -> ControlFlow<()>) -> Result<Header, NotABatch> {
    let (sequence, rest) = bytes.split_first_chunk().ok_or(NotABatch)?;
    let (count, mut rest) = rest.split_first_chunk().ok_or(NotABatch)?;
    let header = Header { sequence: u64::from_le_bytes(*sequence), count: u32::from_le_bytes(*count) };
    for _ in 0..header.count {
        let (row, after) = take_row(rest).ok_or(NotABatch)?;
        rest = after;
        if visit(row).is_break() {
            return Ok(header);
        }
    }
    if rest.is_empty() { Ok(header) } else { Err(NotABatch) }
}

fn take_row(bytes: &[u8]) -> Option<(Row<'_>, &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    if tag != PUT {
        return None;
    }
    let (family, rest) = take_varint(rest)?;
    let (key, rest) = take_bytes(rest)?;
    let (value, rest) = take_bytes(rest)?;
    Some((Row { family, key, value }, rest))
}

fn take_bytes(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = take_varint(bytes)?;
    rest.split_at_checked(usize::try_from(len).ok()?)
}

fn take_varint(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((u32::try_from(value).ok()?, bytes.get(index + 1..)?));
        }
    }
    None
}

fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            return out.push(low & 0x7f);
        }
        out.push(low | 0x80);
    }
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("a row is far shorter than 4 GiB")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_come_back(rows: Vec<(usize, Vec<u8>, Vec<u8>)>) {
            let mut batch = Batch::with_capacity(BatchNumber(1), 0);
            let family = |index: usize| *Family::ALL.get(index % Family::ALL.len()).expect("a remainder is below its modulus");
            for (index, key, value) in &rows {
                let (front, back) = value.split_at(value.len() / 2);
                batch.put(family(*index), key, (front, back));
            }
            let mut back = Vec::new();
            batch.rows(|family, key, value| back.push((family, key.to_vec(), value.to_vec())));
            let expected: Vec<_> = rows.into_iter().map(|(index, key, value)| (family(index), key, value)).collect();
            prop_assert_eq!(back, expected);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let mut seen = 0u32;
            let read = decode(&bytes, |_| { seen += 1; ControlFlow::Continue(()) });
            prop_assert!(read.is_err() || read.is_ok_and(|header| header.count == seen));
        }

        #[test]
        fn varints_come_back(value: u32) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            prop_assert_eq!(take_varint(&bytes), Some((value, [].as_slice())));
        }
    }
}
