//! The check of a volume's log before RocksDB opens it. Never opens a database, never changes what had been synced.
//!
//! After a crash the end of the log may be torn: what was written and not yet synced. Nobody was told of it, so it is
//! cut off. But the same damage where the log *had* been synced means that acknowledged messages are gone: then the
//! volume must not be opened as if nothing had happened. To tell them apart each batch carries in its `meta` row what
//! had been synced when it was sealed (`synced_through`), over the volume's whole log:
//!
//! - some batch that survives beyond the damage has `synced_through` beyond the last good batch before it: refuse;
//! - none has: everything from the damage on is copied aside (`cut-…`), and cut off.
//!
//! Sequence numbers are dense, so a gap between records is damage too. What RocksDB then finds is whole, and it is
//! opened in the mode that tolerates no damage at all.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::batch;
use crate::engine::Family;
use crate::error::OpenError;
use crate::key::{self, MetaKind};
use crate::log::{Item, LogReader};
use crate::planted::{self, Bug};
use crate::value::BatchRow;

/// What was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// From which file.
    pub file: PathBuf,
    /// From where to its end.
    pub offset: u64,
    /// How the damage showed; empty for files that follow the damaged one.
    pub reason: String,
    /// Where the copy is.
    pub copy: PathBuf,
}

/// Copies of cut parts are numbered up to this.
const CUTS_MAX: u32 = 100_000;

/// Checks the log of a volume that is not open, and cuts off what was never synced.
///
/// # Errors
/// It is damaged where it had been synced, or cannot be read or cut.
pub fn mend(volume: &Path) -> Result<Vec<Cut>, OpenError> {
    let files = log_files(volume)?;
    let mut check = Check::default();
    for path in &files {
        let file = File::open(path).map_err(unwritable("read", path))?;
        check.scan(BufReader::new(file), |_, _| {}).map_err(unwritable("read", path))?;
    }
    let file_of = |damage: &Damage| files.get(damage.log).expect("the damage is in one of the files");
    let damage = match check.verdict() {
        Verdict::Whole => return Ok(Vec::new()),
        Verdict::Refused(damage) => {
            let file = file_of(&damage).clone();
            return Err(OpenError::Damaged { file, offset: damage.offset, reason: damage.reason });
        }
        Verdict::Torn(damage) => damage,
    };
    // From the last file backwards: a crash while cutting leaves the damage to be found again.
    let mut cuts = Vec::new();
    for later in files.iter().skip(damage.log + 1).rev() {
        cuts.extend(cut(volume, later, 0, String::new())?);
    }
    cuts.extend(cut(volume, file_of(&damage), damage.good_end, damage.reason)?);
    cuts.reverse();
    Ok(cuts)
}

/// Where a log is no longer whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// In which log, in the order they were scanned.
    pub log: usize,
    /// Where it begins there.
    pub offset: u64,
    /// How it shows.
    pub reason: String,
    /// Where the last good record of its log ends.
    pub good_end: u64,
    /// A later batch proves that it had been synced.
    is_synced: bool,
}

/// What a check comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong.
    Whole,
    /// All from the end of the last good record on was never synced: it is to be cut off, before anything is written.
    Torn(Damage),
    /// What had been synced is gone: nothing may be changed, and the volume not be opened.
    Refused(Damage),
}

/// The check itself, over the bytes of the logs: pure.
#[derive(Debug, Default)]
pub struct Check {
    logs: usize,
    /// The last sequence number before the damage.
    last_good: Option<u64>,
    damage: Option<Damage>,
    /// A record of a kind that is not written here.
    foreign: Option<Damage>,
}

impl Check {
    /// Scans the next log, oldest first, and shows each good record before any damage: where it begins, and its bytes.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn scan(&mut self, log: impl Read, mut good: impl FnMut(u64, Vec<u8>)) -> io::Result<()> {
        let mut reader = LogReader::new(log);
        let mut good_end = 0;
        while let Some(item) = reader.next_item()? {
            match item {
                Item::Record { offset, end, bytes } => {
                    self.record(offset, good_end, &bytes);
                    good_end = end;
                    if self.damage.is_none() {
                        good(offset, bytes);
                    }
                }
                Item::Damage { offset, reason } => self.damaged(offset, good_end, reason.to_owned()),
                Item::Foreign { offset, kind } => {
                    let reason = format!("a record of type {kind}, which this version does not write");
                    let damage = Damage { log: self.logs, offset, reason, good_end, is_synced: true };
                    self.foreign.get_or_insert(damage);
                    break;
                }
            }
        }
        self.logs += 1;
        Ok(())
    }

    /// The last sequence number before any damage, if there is a good record.
    #[must_use]
    pub fn last_good(&self) -> Option<u64> {
        self.last_good
    }

    /// The first damage, whatever it comes to.
    #[must_use]
    pub fn damage(&self) -> Option<&Damage> {
        self.foreign.as_ref().or(self.damage.as_ref())
    }

    /// What all that was scanned comes to.
    #[must_use]
    pub fn verdict(self) -> Verdict {
        let Some(damage) = self.foreign.or(self.damage) else { return Verdict::Whole };
        if damage.is_synced && !planted::is(Bug::DamagedMiddleAccepted) {
            Verdict::Refused(damage)
        } else if planted::is(Bug::TornTailAccepted) {
            Verdict::Whole
        } else {
            Verdict::Torn(damage)
        }
    }

    fn record(&mut self, offset: u64, good_end: u64, bytes: &[u8]) {
        let Some(batch) = LoggedBatch::decode(bytes) else {
            return self.damaged(offset, good_end, "a record that is no batch".to_owned());
        };
        if let Some(last) = self.last_good
            && batch.first != last + 1
        {
            let reason = format!("sequence number {} where {} was due", batch.first, last + 1);
            self.damaged(offset, good_end, reason);
        }
        match &mut self.damage {
            Some(damage) => damage.is_synced |= batch.synced_through > self.last_good.unwrap_or(0),
            None => self.last_good = Some(batch.last),
        }
    }

    /// Only the first damage counts: all after it is later.
    fn damaged(&mut self, offset: u64, good_end: u64, reason: String) {
        let log = self.logs;
        self.damage.get_or_insert(Damage { log, offset, reason, good_end, is_synced: false });
    }
}

/// A batch as the log holds it; several batches written together are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggedBatch {
    /// Its first sequence number.
    pub first: u64,
    /// Its last.
    pub last: u64,
    /// What was known to be synced when it was sealed.
    pub synced_through: u64,
}

impl LoggedBatch {
    /// Reads a record of the log. Any bytes may come in; none panics.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut synced_through = 0;
        let header = batch::decode(bytes, |row| {
            if row.family == Family::Meta.number()
                && key::decode_meta(row.key).is_some_and(|(_, kind, _)| kind == MetaKind::Batch as u8)
                && let Ok(of_batch) = BatchRow::decode(row.value)
            {
                synced_through = of_batch.synced_through.max(synced_through);
            }
            ControlFlow::Continue(())
        });
        let header = header.ok()?;
        let last = header.sequence.checked_add(u64::from(header.count))?.checked_sub(1)?;
        Some(Self { first: header.sequence, last, synced_through })
    }
}

/// The log files of a volume, oldest first.
fn log_files(volume: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let entries = match fs::read_dir(volume) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unwritable("read", volume)(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unwritable("read", volume))?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        if let (Some(number), true) = (number, path.extension().is_some_and(|extension| extension == "log")) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// Copies a file from `offset` on, then cuts it there. Both are on disk when this returns.
fn cut(volume: &Path, path: &Path, offset: u64, reason: String) -> Result<Option<Cut>, OpenError> {
    let failed = |error| unwritable("cut", path)(error);
    let mut file = File::options().read(true).write(true).open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    if offset >= len {
        return Ok(None);
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let (copy_path, mut copy) = new_copy(volume, stem, offset)?;
    let mut keep = || {
        file.seek(SeekFrom::Start(offset))?;
        io::copy(&mut (&mut file).take(len - offset), &mut copy)?;
        copy.sync_all()?;
        File::open(volume)?.sync_all()?;
        file.set_len(offset)?;
        file.sync_all()
    };
    keep().map_err(failed)?;
    Ok(Some(Cut { file: path.to_owned(), offset, reason, copy: copy_path }))
}

fn new_copy(volume: &Path, stem: &str, offset: u64) -> Result<(PathBuf, File), OpenError> {
    for number in 1..=CUTS_MAX {
        let path = volume.join(format!("cut-{number}-{stem}-{offset}"));
        match File::create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(unwritable("write", &path)(error)),
        }
    }
    Err(unwritable("number another copy in", volume)(io::ErrorKind::AlreadyExists.into()))
}

fn unwritable(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Unwritable { action, path, source }
}
