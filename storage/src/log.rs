//! RocksDB's log format: reads it, also where it is damaged, and writes it. Judges nothing; any bytes may come in.
//!
//! A file is a row of blocks of 32 KiB; a record lies in one block, or its fragments in several:
//!
//! ```text
//! crc:4 (LE, CRC-32C of type and payload, masked)  length:2 (LE)  type:1  payload:length
//! type: 1 whole record, 2 first fragment, 3 middle, 4 last
//! ```
//!
//! A block's last bytes, too few for a header, are padding. Records of reused (types 5 to 8) or compressed files (9)
//! are not read: a volume is opened with neither. Types from 128 may be skipped.
//! Source: RocksDB's `db/log_format.h`, `db/log_reader.cc`.

use std::io::{self, Read};

/// Bytes of a block.
pub const BLOCK_LEN: usize = 32 * 1024;
/// Bytes in front of each payload.
pub const HEADER_LEN: usize = 7;
/// Longest record; more is damage.
pub const RECORD_LEN_MAX: usize = 512 << 20;

const WHOLE: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;
const SKIPPABLE: u8 = 128;

/// Adds a record to the bytes of a log that ends with a whole record, or is empty.
pub fn append_record(log: &mut Vec<u8>, record: &[u8]) {
    let mut rest = record;
    let mut is_first = true;
    loop {
        let left = BLOCK_LEN - log.len() % BLOCK_LEN;
        if left < HEADER_LEN {
            log.resize(log.len() + left, 0);
            continue;
        }
        let (now, after) = rest.split_at(rest.len().min(left - HEADER_LEN));
        let kind = match (is_first, after.is_empty()) {
            (true, true) => WHOLE,
            (true, false) => FIRST,
            (false, false) => MIDDLE,
            (false, true) => LAST,
        };
        let sum = masked(crc32c::crc32c_append(crc32c::crc32c(&[kind]), now));
        log.extend_from_slice(&sum.to_le_bytes());
        log.extend_from_slice(&u16::try_from(now.len()).expect("shorter than a block").to_le_bytes());
        log.push(kind);
        log.extend_from_slice(now);
        (rest, is_first) = (after, false);
        if rest.is_empty() {
            break;
        }
    }
}

/// What a log holds next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A record.
    Record {
        /// Where it begins.
        offset: u64,
        /// Where the next may begin.
        end: u64,
        /// What it holds.
        bytes: Vec<u8>,
    },
    /// Bytes that are no record. Reading goes on where the next record is found.
    Damage {
        /// Where the record they may have been begins.
        offset: u64,
        /// How it shows.
        reason: &'static str,
    },
    /// A record, unharmed, of a kind that is not written here.
    Foreign {
        /// Where it begins.
        offset: u64,
        /// Its type.
        kind: u8,
    },
}

/// Reads one log file, front to back.
#[derive(Debug)]
pub struct LogReader<R> {
    source: R,
    block: Vec<u8>,
    /// Where the block begins in the file.
    block_offset: u64,
    /// Where the next header begins in the block.
    position: usize,
    is_last_block: bool,
    /// The fragments of the record that is being put together, and where it begins.
    fragments: Option<(u64, Vec<u8>)>,
    /// After damage: fragments without a beginning belong to what is lost, and are no news.
    is_resuming: bool,
}

/// A header that fits its block and whose sum is right.
struct Fragment<'a> {
    kind: u8,
    payload: &'a [u8],
}

impl<R: Read> LogReader<R> {
    /// Reads from the beginning of a file.
    #[must_use]
    pub fn new(source: R) -> Self {
        Self {
            source,
            block: Vec::new(),
            block_offset: 0,
            position: 0,
            is_last_block: false,
            fragments: None,
            is_resuming: false,
        }
    }

    /// The next item, or `None` at the end of the file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next_item(&mut self) -> io::Result<Option<Item>> {
        loop {
            if self.block.len() - self.position < HEADER_LEN {
                if let Some(item) = self.torn_header() {
                    return Ok(Some(item));
                }
                if !self.next_block()? {
                    return Ok(self.end_of_file());
                }
                continue;
            }
            let offset = self.offset();
            let fragment = match fragment_at(&self.block, self.position) {
                Ok(fragment) => fragment,
                Err(reason) => {
                    let damaged = self.fragments.take().map_or(offset, |(first, _)| first);
                    let was_resuming = std::mem::replace(&mut self.is_resuming, true);
                    self.resume();
                    if was_resuming {
                        continue;
                    }
                    return Ok(Some(Item::Damage { offset: damaged, reason }));
                }
            };
            let (kind, end) = (fragment.kind, self.position + HEADER_LEN + fragment.payload.len());
            let payload = fragment.payload.to_vec();
            if let Some(item) = self.take_fragment(offset, kind, payload, end) {
                return Ok(Some(item));
            }
        }
    }

    fn offset(&self) -> u64 {
        self.block_offset + self.position as u64
    }

    /// Consumes a fragment. `end` is its end in the block.
    fn take_fragment(&mut self, offset: u64, kind: u8, payload: Vec<u8>, end: usize) -> Option<Item> {
        let begins = kind == WHOLE || kind == FIRST;
        if begins && let Some((first, _)) = self.fragments.take() {
            // Look at this fragment again after the damage has been told.
            return Some(Item::Damage { offset: first, reason: "a record without its end" });
        }
        self.position = end;
        let end = self.offset();
        match kind {
            WHOLE => {
                self.is_resuming = false;
                Some(Item::Record { offset, end, bytes: payload })
            }
            FIRST => {
                self.is_resuming = false;
                self.fragments = Some((offset, payload));
                None
            }
            MIDDLE | LAST => {
                let Some((first, bytes)) = &mut self.fragments else {
                    let is_news = !std::mem::replace(&mut self.is_resuming, true);
                    return is_news.then_some(Item::Damage { offset, reason: "a record without its beginning" });
                };
                if bytes.len() + payload.len() > RECORD_LEN_MAX {
                    let offset = *first;
                    self.fragments = None;
                    self.is_resuming = true;
                    return Some(Item::Damage { offset, reason: "a record too long" });
                }
                bytes.extend_from_slice(&payload);
                if kind == MIDDLE {
                    return None;
                }
                self.fragments.take().map(|(offset, bytes)| Item::Record { offset, end, bytes })
            }
            SKIPPABLE.. => None,
            _ => Some(Item::Foreign { offset, kind }),
        }
    }

    /// After damage: to the next place in this block where a header and its sum are right, or to the next block.
    fn resume(&mut self) {
        let begin = self.position + 1;
        let next = (begin..self.block.len()).find(|position| fragment_at(&self.block, *position).is_ok());
        self.position = next.unwrap_or(self.block.len());
    }

    /// Bytes at the end of the file that are too few for a header, and are no padding.
    fn torn_header(&mut self) -> Option<Item> {
        let is_torn = self.position < self.block.len() && self.block.len() < BLOCK_LEN;
        let offset = self.offset();
        self.position = self.block.len();
        let begin = self.fragments.as_ref().map_or(offset, |(first, _)| *first);
        (is_torn && !self.is_resuming).then(|| {
            self.fragments = None;
            self.is_resuming = true;
            Item::Damage { offset: begin, reason: "the file ends within a header" }
        })
    }

    fn end_of_file(&mut self) -> Option<Item> {
        let (offset, _) = self.fragments.take()?;
        Some(Item::Damage { offset, reason: "the file ends within a record" })
    }

    fn next_block(&mut self) -> io::Result<bool> {
        if self.is_last_block {
            return Ok(false);
        }
        self.block_offset += self.block.len() as u64;
        self.block.clear();
        self.position = 0;
        let read = (&mut self.source).take(BLOCK_LEN as u64).read_to_end(&mut self.block)?;
        self.is_last_block = read < BLOCK_LEN;
        Ok(read > 0)
    }
}

fn fragment_at(block: &[u8], position: usize) -> Result<Fragment<'_>, &'static str> {
    let rest = block.get(position..).ok_or("beyond the block")?;
    let (header, rest) = rest.split_first_chunk::<HEADER_LEN>().ok_or("the file ends within a header")?;
    let [c0, c1, c2, c3, l0, l1, kind] = *header;
    let len = usize::from(u16::from_le_bytes([l0, l1]));
    if kind == 0 && len == 0 {
        return Err("zeroes where a record was due");
    }
    let payload = rest.get(..len).ok_or(if block.len() < BLOCK_LEN {
        "the file ends within a record"
    } else {
        "a length beyond its block"
    })?;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload);
    if masked(sum) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err("a wrong checksum");
    }
    Ok(Fragment { kind, payload })
}

/// As RocksDB stores sums, so that a sum of bytes that hold sums is a good one.
fn masked(sum: u32) -> u32 {
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items(bytes: &[u8]) -> Vec<Item> {
        let mut reader = LogReader::new(bytes);
        std::iter::from_fn(|| reader.next_item().expect("a slice can be read")).collect()
    }

    fn log(records: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        records.iter().for_each(|record| append_record(&mut out, record));
        out
    }

    fn records(lens: &[usize]) -> Vec<Vec<u8>> {
        lens.iter().enumerate().map(|(index, len)| vec![u8::try_from(index % 251).expect("below 251"); *len]).collect()
    }

    fn bodies(items: &[Item]) -> Vec<&[u8]> {
        items
            .iter()
            .filter_map(|item| if let Item::Record { bytes, .. } = item { Some(bytes.as_slice()) } else { None })
            .collect()
    }

    proptest! {
        #[test]
        fn records_come_back(lens in prop::collection::vec(0usize..100_000, 0..12)) {
            let records = records(&lens);
            let bytes = log(&records);
            let items = items(&bytes);
            prop_assert_eq!(bodies(&items), records.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(items.len(), records.len());
        }

        #[test]
        fn a_flipped_bit_costs_one_record_and_is_told(lens in prop::collection::vec(1usize..20_000, 1..12), at: prop::sample::Index, bit in 0u8..8) {
            let records = records(&lens);
            let mut bytes = log(&records);
            let at = at.index(bytes.len());
            *bytes.get_mut(at).expect("an index is within") ^= 1 << bit;
            let items = items(&bytes);
            let is_padding = items.iter().all(|item| matches!(item, Item::Record { .. }));
            if is_padding {
                prop_assert_eq!(items.len(), records.len());
            } else {
                let found = bodies(&items);
                prop_assert!(found.len() + 1 >= records.len(), "{} of {}", found.len(), records.len());
                prop_assert_eq!(items.len() - found.len(), 1, "told once");
                prop_assert!(found.iter().all(|body| records.iter().any(|record| record == body)));
            }
        }

        #[test]
        fn a_cut_costs_the_last_record(lens in prop::collection::vec(1usize..50_000, 1..8), at: prop::sample::Index) {
            let records = records(&lens);
            let whole = log(&records);
            let at = at.index(whole.len());
            let cut = items(whole.get(..at).expect("an index is within"));
            let ends: Vec<u64> = items(&whole).iter().map(|item| if let Item::Record { end, .. } = item { *end } else { 0 }).collect();
            let complete = ends.iter().filter(|end| **end <= at as u64).count();
            prop_assert_eq!(bodies(&cut).len(), complete);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            prop_assert!(items(&bytes).len() <= bytes.len());
        }
    }
}
