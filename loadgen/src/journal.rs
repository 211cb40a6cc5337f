//! The journal of a run: what was sent, acknowledged and delivered, in the order this side learned it. Written
//! before the recipient's client acknowledges, so that what is in it is what the application has.
//!
//! ```text
//!  0      1        5         13      21
//!  ┌──────┬────────┬─────────┬───────┐
//!  │ what │ pair   │ message │ conv. │   integers big-endian; one record after the other
//!  │ u8   │ u32    │ u64     │ seq   │
//!  └──────┴────────┴─────────┴───────┘
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::plan::MessageIndex;
use crate::verify::{Findings, FlowCheck};

const RECORD_LEN: usize = 21;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Noted {
    Sent = 1,
    Acked = 2,
    Delivered = 3,
    Rejected = 4,
}

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
    pub(crate) fn note(&mut self, what: Noted, pair: usize, index: MessageIndex, seq: u64) {
        self.buffer.push(what as u8);
        self.buffer.extend_from_slice(&u32::try_from(pair).expect("pairs are few").to_be_bytes());
        self.buffer.extend_from_slice(&index.0.to_be_bytes());
        self.buffer.extend_from_slice(&seq.to_be_bytes());
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
        let [what, rest @ ..] = record;
        let (pair, rest) = rest.split_first_chunk::<4>().expect("the record is longer");
        let (index, rest) = rest.split_first_chunk::<8>().expect("the record is longer");
        let (seq, _) = rest.split_first_chunk::<8>().expect("the record ends here");
        let (index, seq) = (MessageIndex(u64::from_be_bytes(*index)), u64::from_be_bytes(*seq));
        let check = checks.entry(u32::from_be_bytes(*pair)).or_default();
        match what {
            1 => {
                if check.sent(0, 0) != index {
                    bail!("{} has lost a record", path.display());
                }
            }
            2 => drop(check.acked(index, seq)),
            3 => drop(check.delivered(index, seq)),
            4 => check.rejected(index),
            _ => bail!("{} is no journal", path.display()),
        }
    }
    let mut findings = Findings::default();
    for check in checks.values() {
        findings.add(&check.findings());
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_tells_what_was_lost() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("journal");
        let mut journal = Journal::create(&path).expect("a fresh file");
        for pair in 0..2 {
            for index in 0..10 {
                journal.note(Noted::Sent, pair, MessageIndex(index), 0);
                journal.note(Noted::Acked, pair, MessageIndex(index), index + 1);
            }
            journal.flush().expect("a disk with room");
            for index in (0..10).filter(|index| (pair, *index) != (1, 9)) {
                journal.note(Noted::Delivered, pair, MessageIndex(index), index + 1);
            }
        }
        journal.flush().expect("a disk with room");
        let found = check(&path).expect("the journal just written");
        assert_eq!((found.sent, found.acked, found.delivered, found.lost), (20, 20, 19, 1));
    }
}
