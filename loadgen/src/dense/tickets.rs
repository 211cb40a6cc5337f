//! Resume tickets and their secrets in a file, so that the next run logs in without signatures, and nobody keeps them in
//! memory.
//!
//! ```text
//! header, 64 bytes: "CVTICKET" ‖ version u32 ‖ slot length u32 ‖ first user u64 ‖ zeros
//! slots, 172 bytes each, by user: incarnation u64 ‖ ticket length u8 ‖ secret length u8 ‖ secret ‖ ticket ‖ zeros
//! ```
//!
//! Each worker reads and writes its own range of slots by blocks, through a descriptor of its own. An empty slot has a
//! length of 0, a ticket of plaintext no secret. A ticket is shown only to the server's data it came from; whether it is still good, the server says.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use culver_protocol::crypto::{KEY_LEN, Secret};
use culver_protocol::limits::TICKET_LEN_MAX;
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"CVTICKET";
const VERSION: u32 = 2;
/// Nobody else reads or writes it.
const MODE: u32 = 0o600;
const HEADER_LEN: usize = 64;
/// Bytes of a slot in front of secret and ticket.
const TAG_LEN: usize = 8 + 1 + 1;
const SLOT_LEN: usize = (TAG_LEN + KEY_LEN + TICKET_LEN_MAX).next_multiple_of(4);
/// Slots read and written at once.
const BLOCK_SLOTS: u64 = 1024;

/// Makes the file, or makes sure that it is for these users.
///
/// # Errors
/// It cannot be read or made, or belongs to other users or to another program.
pub(super) fn prepare(path: &Path, first_user: u64) -> Result<()> {
    let told = || format!("the tickets in {}", path.display());
    // Whoever reads a ticket and its secret is its user.
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE);
    let file = options.open(path).with_context(told)?;
    // One that was there already may be open to others.
    let close_to_others = || file.set_permissions(Permissions::from_mode(MODE)).with_context(told);
    let wanted = header(first_user);
    if file.metadata().with_context(told)?.len() == 0 {
        close_to_others()?;
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
    close_to_others()
}

fn header(first_user: u64) -> [u8; HEADER_LEN] {
    let slot_len = u32::try_from(SLOT_LEN).expect("a slot is short");
    let parts = [MAGIC.as_slice(), &VERSION.to_be_bytes(), &slot_len.to_be_bytes(), &first_user.to_be_bytes()].concat();
    let mut header = [0; HEADER_LEN];
    header.get_mut(..parts.len()).expect("the header has room").copy_from_slice(&parts);
    header
}

/// What a WELCOME gave for the next login.
#[cfg_attr(test, derive(PartialEq))]
pub(super) struct Ticket {
    pub(super) bytes: Bytes,
    /// `None`: it is of a plaintext session.
    pub(super) secret: Option<Secret>,
}

/// One worker's part of the file.
pub(super) struct Tickets {
    file: File,
    /// The slots of this worker.
    slots: Range<u64>,
    /// The slots in memory.
    loaded: Range<u64>,
    bytes: Zeroizing<Vec<u8>>,
    is_changed: bool,
}

impl Tickets {
    pub(super) fn open(path: &Path, slots: Range<u64>) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file, slots, loaded: 0..0, bytes: Zeroizing::default(), is_changed: false })
    }

    /// The ticket of a slot, unless it is of other data than `incarnation`; 0: the server's is not known yet.
    pub(super) fn take(&mut self, slot: u64, incarnation: u64) -> io::Result<Option<Ticket>> {
        if !self.loaded.contains(&slot) {
            // Clients come in order at first, and later anyhow: a block for each of those would be read in vain.
            if !(slot - self.slots.start).is_multiple_of(BLOCK_SLOTS) {
                let mut alone = Zeroizing::new([0; SLOT_LEN]);
                read_into(&self.file, alone.as_mut_slice(), offset(slot))?;
                return Ok(decode(alone.as_slice(), incarnation));
            }
            self.load(slot)?;
        }
        Ok(decode(self.slot(slot), incarnation))
    }

    /// Keeps a ticket for the next run.
    pub(super) fn put(
        &mut self,
        slot: u64,
        incarnation: u64,
        ticket: &[u8],
        secret: Option<&Secret>,
    ) -> io::Result<()> {
        if ticket.len() > TICKET_LEN_MAX {
            return Ok(());
        }
        let secret = secret.map_or([].as_slice(), |secret| secret.as_slice());
        let lens = [ticket, secret].map(|part| u8::try_from(part.len()).expect("both are shorter than 256"));
        let mut kept = Zeroizing::new([incarnation.to_be_bytes().as_slice(), &lens, secret, ticket].concat());
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
        (self.loaded, self.bytes, self.is_changed) = (0..0, Zeroizing::default(), false);
        Ok(())
    }

    /// Blocks begin with the worker's first slot and end with its last: no two workers write the same bytes.
    fn load(&mut self, slot: u64) -> io::Result<()> {
        self.flush()?;
        let start = slot - (slot - self.slots.start) % BLOCK_SLOTS;
        let end = (start + BLOCK_SLOTS).min(self.slots.end);
        let len = usize::try_from(end - start).expect("a block is short") * SLOT_LEN;
        let mut bytes = Zeroizing::new(vec![0; len]);
        read_into(&self.file, &mut bytes, offset(start))?;
        (self.loaded, self.bytes) = (start..end, bytes);
        Ok(())
    }

    fn slot(&mut self, slot: u64) -> &mut [u8] {
        let at = usize::try_from(slot - self.loaded.start).expect("a block is short") * SLOT_LEN;
        self.bytes.get_mut(at..at + SLOT_LEN).expect("callers ask for what is loaded")
    }
}

/// Fills zeroed bytes from the file. Beyond its end nobody has a ticket.
fn read_into(file: &File, bytes: &mut [u8], from: u64) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, from + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn decode(slot: &[u8], incarnation: u64) -> Option<Ticket> {
    let (of, rest) = slot.split_first_chunk::<8>()?;
    let ([len, secret_len], rest) = rest.split_first_chunk::<2>()?;
    let (secret, rest) = rest.split_at_checked(usize::from(*secret_len))?;
    let is_of_these = incarnation == 0 || u64::from_be_bytes(*of) == incarnation;
    let ticket = rest.get(..usize::from(*len)).filter(|ticket| !ticket.is_empty() && is_of_these)?;
    let secret = secret.try_into().ok().map(Secret::new);
    Some(Ticket { bytes: Bytes::copy_from_slice(ticket), secret })
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
        let secret =
            |slot: u64| slot.is_multiple_of(2).then(|| Secret::new([u8::try_from(slot % 250).expect("below"); 32]));
        let kept = |slot| Some(Ticket { bytes: ticket(slot).into(), secret: secret(slot) });
        for part in [0..1500, 1500..3000] {
            let mut tickets = Tickets::open(&path, part.clone()).expect("the file is there");
            for slot in part.clone() {
                assert!(tickets.take(slot, 0).expect("readable").is_none());
                // What comes late is of a block that has been left.
                if slot >= part.start + 10 {
                    tickets.put(slot - 10, 7, &ticket(slot - 10), secret(slot - 10).as_ref()).expect("writable");
                }
            }
            tickets.flush().expect("writable");
        }
        prepare(&path, 100).expect("the same users");
        let mut tickets = Tickets::open(&path, 0..3000).expect("the file is there");
        for slot in (0..3000).filter(|slot| slot % 1500 < 1490) {
            assert!(tickets.take(slot, 7).expect("readable") == kept(slot), "{slot}");
        }
        assert!(tickets.take(5, 8).expect("readable").is_none(), "of other data");
        assert!(tickets.take(5, 0).expect("readable").is_some(), "nothing is known against it");
        assert!(tickets.take(1495, 7).expect("readable").is_none(), "never kept");
        tickets.flush().expect("nothing has changed");
        for slot in [1477, 3, 2977, 1025] {
            assert!(tickets.take(slot, 7).expect("readable") == kept(slot), "{slot}, out of order");
            assert!(tickets.loaded.is_empty(), "no block is read for one");
        }
        tickets.put(1025, 7, &ticket(9), None).expect("writable");
        assert!(tickets.take(1025, 7).expect("readable").is_some_and(|found| found.bytes == ticket(9)), "the newest");
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "secrets are nobody else's");
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
        tickets.put(0, 1, &[1; TICKET_LEN_MAX + 1], None).expect("nothing to do");
        tickets.put(1, 1, &[1; TICKET_LEN_MAX], Some(&Secret::new([9; 32]))).expect("writable");
        assert!(tickets.take(0, 1).expect("readable").is_none());
        assert!(tickets.take(1, 1).expect("readable").is_some());
    }
}
