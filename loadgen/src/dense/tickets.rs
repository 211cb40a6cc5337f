//! Resume tickets in a file, so that the next run logs in without signatures, and nobody keeps them in memory.
//!
//! ```text
//! header, 64 bytes: "CVTICKET" ‖ version u32 ‖ slot length u32 ‖ first user u64 ‖ zeros
//! slots, 72 bytes each, by user: incarnation u64 ‖ ticket length u8 ‖ ticket ‖ zeros       big-endian
//! ```
//!
//! Each worker reads and writes its own range of slots by blocks, through a descriptor of its own. An empty slot has a
//! length of 0. A ticket is shown only to the server's data it came from; whether it is still good, the server says.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;

const MAGIC: &[u8; 8] = b"CVTICKET";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 64;
const SLOT_LEN: usize = 72;
/// Bytes of a slot in front of the ticket.
const TAG_LEN: usize = 9;
/// Longest ticket that is kept; a longer one is asked for again with a token.
const TICKET_LEN_MAX: usize = SLOT_LEN - TAG_LEN;
/// Slots read and written at once.
const BLOCK_SLOTS: u64 = 1024;

/// Makes the file, or makes sure that it is for these users.
///
/// # Errors
/// It cannot be read or made, or belongs to other users or to another program.
pub(super) fn prepare(path: &Path, first_user: u64) -> Result<()> {
    let told = || format!("the tickets in {}", path.display());
    // Whoever reads a ticket is its user.
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).with_context(told)?;
    let wanted = header(first_user);
    if file.metadata().with_context(told)?.len() == 0 {
        return file.write_all_at(&wanted, 0).with_context(told);
    }
    let mut found = [0; HEADER_LEN];
    file.read_exact_at(&mut found, 0).with_context(told)?;
    if !found.starts_with(MAGIC) {
        bail!("{} is no ticket file: name another with --tickets", path.display());
    }
    if found != wanted {
        bail!(
            "{} is for other users or of another version: use the --seed or --first-user it was made with, or name \
             another file with --tickets",
            path.display()
        );
    }
    Ok(())
}

fn header(first_user: u64) -> [u8; HEADER_LEN] {
    let slot_len = u32::try_from(SLOT_LEN).expect("a slot is short");
    let parts = [MAGIC.as_slice(), &VERSION.to_be_bytes(), &slot_len.to_be_bytes(), &first_user.to_be_bytes()].concat();
    let mut header = [0; HEADER_LEN];
    header.get_mut(..parts.len()).expect("the header has room").copy_from_slice(&parts);
    header
}

/// One worker's part of the file.
#[derive(Debug)]
pub(super) struct Tickets {
    file: File,
    /// The slots of this worker.
    slots: Range<u64>,
    /// The slots in memory.
    loaded: Range<u64>,
    bytes: Vec<u8>,
    is_changed: bool,
}

impl Tickets {
    pub(super) fn open(path: &Path, slots: Range<u64>) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file, slots, loaded: 0..0, bytes: Vec::new(), is_changed: false })
    }

    /// The ticket of a slot, unless it is of other data than `incarnation`; 0: the server's is not known yet.
    pub(super) fn take(&mut self, slot: u64, incarnation: u64) -> io::Result<Option<Bytes>> {
        if !self.loaded.contains(&slot) {
            self.load(slot)?;
        }
        let found = self.slot(slot);
        let (of, rest) = found.split_first_chunk::<8>().expect("a slot begins with its incarnation");
        let (len, rest) = rest.split_first().expect("and goes on with a length");
        let is_of_these = incarnation == 0 || u64::from_be_bytes(*of) == incarnation;
        let ticket = rest.get(..usize::from(*len)).filter(|ticket| !ticket.is_empty() && is_of_these);
        Ok(ticket.map(Bytes::copy_from_slice))
    }

    /// Keeps a ticket for the next run.
    pub(super) fn put(&mut self, slot: u64, incarnation: u64, ticket: &[u8]) -> io::Result<()> {
        if ticket.len() > TICKET_LEN_MAX {
            return Ok(());
        }
        let len = u8::try_from(ticket.len()).expect("a slot is shorter than 256");
        let mut kept = [incarnation.to_be_bytes().as_slice(), &[len], ticket].concat();
        kept.resize(SLOT_LEN, 0);
        if !self.loaded.contains(&slot) {
            // A late one: its block has been written already.
            return self.file.write_all_at(&kept, offset(slot));
        }
        self.slot(slot).copy_from_slice(&kept);
        self.is_changed = true;
        Ok(())
    }

    /// Writes what changed, and lets go of the memory.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.is_changed {
            self.file.write_all_at(&self.bytes, offset(self.loaded.start))?;
        }
        (self.loaded, self.bytes, self.is_changed) = (0..0, Vec::new(), false);
        Ok(())
    }

    /// Blocks begin with the worker's first slot and end with its last: no two workers write the same bytes.
    fn load(&mut self, slot: u64) -> io::Result<()> {
        self.flush()?;
        let start = slot - (slot - self.slots.start) % BLOCK_SLOTS;
        let end = (start + BLOCK_SLOTS).min(self.slots.end);
        let len = usize::try_from(end - start).expect("a block is short") * SLOT_LEN;
        let mut bytes = vec![0; len];
        let mut filled = 0;
        // Beyond the end of the file nobody has a ticket.
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset(start) + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        (self.loaded, self.bytes) = (start..end, bytes);
        Ok(())
    }

    fn slot(&mut self, slot: u64) -> &mut [u8] {
        let at = usize::try_from(slot - self.loaded.start).expect("a block is short") * SLOT_LEN;
        self.bytes.get_mut(at..at + SLOT_LEN).expect("callers ask for what is loaded")
    }
}

fn offset(slot: u64) -> u64 {
    HEADER_LEN as u64 + slot * SLOT_LEN as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_survive_in_the_slots_of_their_users() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tickets");
        prepare(&path, 100).expect("a new file");
        let ticket = |slot: u64| vec![u8::try_from(slot % 251).expect("below"); 60];
        for part in [0..1500, 1500..3000] {
            let mut tickets = Tickets::open(&path, part.clone()).expect("the file is there");
            for slot in part.clone() {
                assert_eq!(tickets.take(slot, 0).expect("readable"), None);
                // What comes late is of a block that has been left.
                if slot >= part.start + 10 {
                    tickets.put(slot - 10, 7, &ticket(slot - 10)).expect("writable");
                }
            }
            tickets.flush().expect("writable");
        }
        prepare(&path, 100).expect("the same users");
        let mut tickets = Tickets::open(&path, 0..3000).expect("the file is there");
        for slot in (0..3000).filter(|slot| slot % 1500 < 1490) {
            assert_eq!(tickets.take(slot, 7).expect("readable").as_deref(), Some(ticket(slot).as_slice()), "{slot}");
        }
        assert_eq!(tickets.take(5, 8).expect("readable"), None, "of other data");
        assert!(tickets.take(5, 0).expect("readable").is_some(), "nothing is known against it");
        assert_eq!(tickets.take(1495, 7).expect("readable"), None, "never kept");
    }

    #[test]
    fn a_file_of_others_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tickets");
        prepare(&path, 100).expect("a new file");
        assert!(prepare(&path, 101).expect_err("other users").to_string().contains("--tickets"));
        std::fs::write(&path, [b'x'; 100]).expect("a disk with room");
        assert!(prepare(&path, 100).expect_err("no tickets").to_string().contains("no ticket file"));
    }

    #[test]
    fn a_ticket_that_is_too_long_is_not_kept() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tickets");
        prepare(&path, 1).expect("a new file");
        let mut tickets = Tickets::open(&path, 0..2).expect("the file is there");
        tickets.put(0, 1, &[1; TICKET_LEN_MAX + 1]).expect("nothing to do");
        tickets.put(1, 1, &[1; TICKET_LEN_MAX]).expect("writable");
        assert_eq!(tickets.take(0, 1).expect("readable"), None);
        assert!(tickets.take(1, 1).expect("readable").is_some());
    }
}
