//! The journal of a run: what was sent, acknowledged, delivered, persisted and told, in the order this side learned
//! it. Written before anything goes out to the server, so that what is in it is what the applications have.
//!
//! ```text
//!  0      1      2      3        7       15      23
//!  ┌──────┬──────┬──────┬────────┬───────┬───────┐
//!  │ what │ seat │ life │ pair   │ first │ second│   integers big-endian; one record after the other
//!  │ u8   │ u8   │ u8   │ u32    │ u64   │ u64   │
//!  └──────┴──────┴──────┴────────┴───────┴───────┘
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::plan::MessageIndex;
use crate::verify::{Findings, FlowCheck, Note, Place, Shape};

const RECORD_LEN: usize = 23;

/// A journal being written.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
}

impl Journal {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write the journal {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, buffer: Vec::new() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a record; it is in the file after the next [`Journal::flush`].
    pub(crate) fn note(&mut self, pair: usize, note: Note) {
        let (what, place, first, second) = to_fields(note);
        self.buffer.extend_from_slice(&[what, place.seat, place.life]);
        self.buffer.extend_from_slice(&u32::try_from(pair).expect("pairs are few").to_be_bytes());
        self.buffer.extend_from_slice(&first.to_be_bytes());
        self.buffer.extend_from_slice(&second.to_be_bytes());
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

/// Reads a journal through a fresh checker for each pair.
pub(crate) fn check(path: &Path) -> Result<Findings> {
    let file = File::open(path).with_context(|| format!("cannot read the journal {}", path.display()))?;
    let mut input = BufReader::with_capacity(1 << 20, file);
    let mut checks: BTreeMap<u32, FlowCheck> = BTreeMap::new();
    let mut record = [0; RECORD_LEN];
    loop {
        match input.read_exact(&mut record) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            result => result.context("reading the journal")?,
        }
        let [what, seat, life, rest @ ..] = record;
        let (pair, rest) = rest.split_first_chunk::<4>().expect("the record is longer");
        let (first, rest) = rest.split_first_chunk::<8>().expect("the record is longer");
        let (second, _) = rest.split_first_chunk::<8>().expect("the record ends here");
        let (first, second) = (u64::from_be_bytes(*first), u64::from_be_bytes(*second));
        let Some(note) = from_fields(what, Place { seat, life }, first, second) else {
            bail!("{} is no journal", path.display());
        };
        let pair = u32::from_be_bytes(*pair);
        if let Note::Pair(shape) = note {
            checks.insert(pair, FlowCheck::new(shape));
        }
        checks.entry(pair).or_default().apply(note);
    }
    let mut findings = Findings::default();
    for check in checks.values() {
        findings.add(&check.findings());
    }
    Ok(findings)
}

fn to_fields(note: Note) -> (u8, Place, u64, u64) {
    let nowhere = Place::default();
    match note {
        Note::Pair(Shape { senders, recipients, receipts, reads, tells_reads }) => {
            let place = Place { seat: senders, life: recipients };
            (1, place, u64::from(receipts), u64::from(reads) | (u64::from(tells_reads) << 1))
        }
        Note::Sent { index } => (2, nowhere, index.0, 0),
        Note::Acked { index, seq } => (3, nowhere, index.0, seq),
        Note::Rejected { index } => (4, nowhere, index.0, 0),
        Note::Began { place } => (5, place, 0, 0),
        Note::LoggedIn { place, version } => (6, place, version, 0),
        Note::Delivered { place, index, seq } => (7, place, index.0, seq),
        Note::Persisted { place, seq } => (8, place, seq, 0),
        Note::ReadAsked { place, seq } => (9, place, seq, 0),
        Note::ReadAnswered { place, seq } => (10, place, seq, 0),
        Note::ToldDelivered { place, version, seq } => (11, place, version, seq),
        Note::ToldRead { place, version, seq } => (12, place, version, seq),
        Note::ToldOwnRead { place, version, seq } => (13, place, version, seq),
        Note::ToldExpired { place, version, seq } => (14, place, version, seq),
        Note::ReceiptsSaved { place, version } => (15, place, version, 0),
        Note::Listed { place, last_seq, unread } => (16, place, last_seq, unread),
    }
}

fn from_fields(what: u8, place: Place, first: u64, second: u64) -> Option<Note> {
    let (index, version, seq) = (MessageIndex(first), first, second);
    Some(match what {
        1 => {
            let (senders, recipients) = (place.seat, place.life);
            let (reads, tells_reads) = (second & 1 != 0, second & 2 != 0);
            Note::Pair(Shape { senders, recipients, receipts: first != 0, reads, tells_reads })
        }
        2 => Note::Sent { index },
        3 => Note::Acked { index, seq },
        4 => Note::Rejected { index },
        5 => Note::Began { place },
        6 => Note::LoggedIn { place, version },
        7 => Note::Delivered { place, index, seq },
        8 => Note::Persisted { place, seq: first },
        9 => Note::ReadAsked { place, seq: first },
        10 => Note::ReadAnswered { place, seq: first },
        11 => Note::ToldDelivered { place, version, seq },
        12 => Note::ToldRead { place, version, seq },
        13 => Note::ToldOwnRead { place, version, seq },
        14 => Note::ToldExpired { place, version, seq },
        15 => Note::ReceiptsSaved { place, version },
        16 => Note::Listed { place, last_seq: first, unread: second },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_read_as_it_was_written() {
        let (place, index, seq, version) = (Place { seat: 3, life: 2 }, MessageIndex(77), 1 << 40, 9);
        let shape = Shape { senders: 2, recipients: 4, receipts: true, reads: false, tells_reads: true };
        for note in [
            Note::Pair(shape),
            Note::Sent { index },
            Note::Acked { index, seq },
            Note::Rejected { index },
            Note::Began { place },
            Note::LoggedIn { place, version },
            Note::Delivered { place, index, seq },
            Note::Persisted { place, seq },
            Note::ReadAsked { place, seq },
            Note::ReadAnswered { place, seq },
            Note::ToldDelivered { place, version, seq },
            Note::ToldRead { place, version, seq },
            Note::ToldOwnRead { place, version, seq },
            Note::ToldExpired { place, version, seq },
            Note::ReceiptsSaved { place, version },
            Note::Listed { place, last_seq: 5, unread: 3 },
        ] {
            let (what, place, first, second) = to_fields(note);
            assert_eq!(from_fields(what, place, first, second), Some(note));
        }
        assert_eq!(from_fields(0, place, 0, 0), None);
        assert_eq!(from_fields(17, place, 0, 0), None);
    }

    #[test]
    fn a_journal_tells_what_was_lost() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("journal");
        let mut journal = Journal::create(&path).expect("a fresh file");
        let place = Place { seat: 1, life: 0 };
        for pair in 0..2 {
            for index in 0..10 {
                journal.note(pair, Note::Sent { index: MessageIndex(index) });
                journal.note(pair, Note::Acked { index: MessageIndex(index), seq: index + 1 });
            }
            journal.flush().expect("a disk with room");
            for index in (0..10).filter(|index| (pair, *index) != (1, 9)) {
                journal.note(pair, Note::Delivered { place, index: MessageIndex(index), seq: index + 1 });
                journal.note(pair, Note::Persisted { place, seq: index + 1 });
            }
        }
        journal.flush().expect("a disk with room");
        let found = check(&path).expect("the journal just written");
        assert_eq!((found.sent, found.acked, found.delivered, found.lost), (20, 20, 19, 1));
    }

    #[test]
    fn a_journal_tells_of_every_device_and_receipt() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("journal");
        let mut journal = Journal::create(&path).expect("a fresh file");
        let index = MessageIndex(0);
        journal.note(0, Note::Pair(Shape { senders: 2, recipients: 2, receipts: true, ..Shape::default() }));
        journal.note(0, Note::Sent { index });
        journal.note(0, Note::Acked { index, seq: 1 });
        for seat in [1, 2] {
            journal.note(0, Note::Delivered { place: Place { seat, life: 0 }, index, seq: 1 });
            journal.note(0, Note::Persisted { place: Place { seat, life: 0 }, seq: 1 });
        }
        journal.note(0, Note::ToldDelivered { place: Place { seat: 0, life: 0 }, version: 1, seq: 1 });
        journal.flush().expect("a disk with room");
        let found = check(&path).expect("the journal just written");
        assert_eq!((found.delivered, found.copied, found.lost), (1, 1, 1));
        assert_eq!((found.receipts, found.untrue, found.receipts_missing), (1, 0, 1));
    }
}
