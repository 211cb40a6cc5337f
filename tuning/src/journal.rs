//! What `apply` has written, kept so that it can be undone whatever happens in between.
//!
//! Owns the file: who may have it, how its lines look, and what a torn one means. Never touches a setting.
//!
//! ```text
//!  journal.jsonl   one JSON object a line, only ever added to; each line is synced before what it announces is done
//!    {"event":"write","sequence":1,"boot_id":…,"setting":…,"place":…,"old":…,"new":…,…,"crc32c":"9a71bb4c"}
//!    {"event":"done","sequence":1,"value":…,"crc32c":…}         it was written, and read back as `value`
//!    {"event":"settled","sequence":1,"how":…,"crc32c":…}        nothing of it is left to undo
//!  journal.jsonl.lock   locked (flock(2)) by whoever applies or rolls back, and holds its process id
//! ```
//!
//! The checksum is CRC-32C of all that stands before it. A last line without its end is one whose writer was killed: it
//! announces nothing, because nothing is done before the line is synced.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::machine::Place;
use crate::namespace::NamespaceId;

/// Beyond it this is no journal of ours: an apply writes some dozen lines.
const JOURNAL_LEN_MAX: u64 = 16 * 1024 * 1024;
const CHECKSUM: &str = ",\"crc32c\":\"";

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum Record {
    Write(Intent),
    Done { sequence: u64, value: String },
    Settled { sequence: u64, how: Settled },
}

/// What is about to be written, told whole: no other line is needed to undo it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intent {
    pub(crate) sequence: u64,
    pub(crate) boot_id: String,
    pub(crate) pid: u32,
    pub(crate) time_unix_ms: u64,
    pub(crate) setting: String,
    pub(crate) place: Place,
    pub(crate) namespace: NamespaceId,
    pub(crate) old: String,
    pub(crate) new: String,
}

/// Why nothing of a write is left to undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Settled {
    /// The kernel refused it, or somebody else came first: nothing was written.
    Failed,
    Restored,
    /// The old value was there already.
    Back,
    /// Its boot or its namespace is gone, and the setting with it.
    Gone,
}

/// A write that is not settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) intent: Intent,
    /// What was read back; `None`: whether it was written at all is not known.
    pub(crate) read_back: Option<String>,
}

impl Open {
    /// What the setting holds if nobody has changed it since.
    pub(crate) fn written(&self) -> &str {
        self.read_back.as_deref().unwrap_or(&self.intent.new)
    }
}

/// The journal, held by this process alone.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    open: Vec<Open>,
    next_sequence: u64,
    /// Held until this is dropped.
    _lock: File,
}

impl Journal {
    /// Takes the journal at `path` for this process, and makes it if there is none. A torn last line is cut off.
    ///
    /// # Errors
    /// Another process has it, it is damaged, or its folder cannot be written.
    pub(crate) fn take(path: &Path) -> Result<Self> {
        let folder = folder_of(path);
        if !folder.exists() {
            fs::create_dir_all(folder).with_context(|| format!("making {} for the journal", folder.display()))?;
            sync_folder(folder_of(folder))?;
        }
        let lock = lock(path)?;
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("opening the journal {}", path.display()))?;
        sync_folder(folder)?;
        let (records, whole_len) = read(&mut file, path)?;
        if file.metadata()?.len() > whole_len {
            file.set_len(whole_len)?;
            file.sync_all()?;
        }
        let (open, next_sequence) = replay(records);
        Ok(Self { path: path.to_owned(), file, open, next_sequence, _lock: lock })
    }

    /// What is not settled, oldest first, read without taking the journal.
    ///
    /// # Errors
    /// It is damaged or cannot be read.
    pub(crate) fn look(path: &Path) -> Result<Vec<Open>> {
        match File::open(path) {
            Ok(mut file) => Ok(replay(read(&mut file, path)?.0).0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("opening the journal {}", path.display())),
        }
    }

    /// What is not settled, oldest first.
    pub(crate) fn open(&self) -> &[Open] {
        &self.open
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Adds a line; it is on the disk when this returns.
    ///
    /// # Errors
    /// It cannot be written or synced; then nothing of what it announces may be done.
    pub(crate) fn add(&mut self, record: Record) -> Result<()> {
        let line = line(&record)?;
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data())
            .with_context(|| format!("writing the journal {}", self.path.display()))?;
        take_in(&mut self.open, &mut self.next_sequence, record);
        Ok(())
    }

    /// Puts the journal aside, under a name that tells the boot and the time, and begins another.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub(crate) fn put_aside(self, boot_id: &str, time_unix_ms: u64) -> Result<(PathBuf, Self)> {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // The boot's name may come from a file that anybody has written.
        let boot: String =
            boot_id.chars().filter(|character| character.is_ascii_alphanumeric() || *character == '-').collect();
        let aside = self.path.with_file_name(format!("{stem}-{boot}-{time_unix_ms}.jsonl"));
        fs::rename(&self.path, &aside).with_context(|| format!("renaming {}", self.path.display()))?;
        sync_folder(folder_of(&self.path))?;
        let file = OpenOptions::new().read(true).append(true).create(true).open(&self.path)?;
        sync_folder(folder_of(&self.path))?;
        Ok((aside, Self { file, open: Vec::new(), next_sequence: 1, ..self }))
    }
}

fn lock(path: &Path) -> Result<File> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let path = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        // It is emptied and written to: a link laid here by somebody else must not lead that to another file.
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .with_context(|| format!("opening {} (it must not be a symbolic link)", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            let holder = holder.trim();
            let holder = if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
            bail!(
                "another culver-tune{holder} is applying or rolling back: wait until it has ended; nothing was changed"
            );
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("locking {}", path.display())),
    }
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes())?;
    Ok(file)
}

/// All whole lines of the journal, and how many bytes they are.
fn read(file: &mut File, path: &Path) -> Result<(Vec<Record>, u64)> {
    let len = file.metadata()?.len();
    ensure!(len <= JOURNAL_LEN_MAX, "{} is {len} bytes long: that is no journal of culver-tune", path.display());
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).with_context(|| format!("reading the journal {}", path.display()))?;
    let whole_len = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |index| index + 1);
    bytes.truncate(whole_len);
    let text = String::from_utf8_lossy(&bytes);
    let records = text
        .lines()
        .enumerate()
        .map(|(index, line)| {
            parse(line).with_context(|| {
                format!(
                    "line {} of the journal {} is damaged; nothing was changed. Look at it, take it out, and run this \
                     again",
                    index + 1,
                    path.display()
                )
            })
        })
        .collect::<Result<_>>()?;
    Ok((records, u64::try_from(whole_len)?))
}

fn line(record: &Record) -> Result<String> {
    let json = serde_json::to_string(record)?;
    let covered = json.strip_suffix('}').context("a record is a JSON object")?;
    Ok(format!("{covered}{CHECKSUM}{:08x}\"}}\n", crc32c::crc32c(covered.as_bytes())))
}

fn parse(line: &str) -> Result<Record> {
    let (covered, checksum) = line.rsplit_once(CHECKSUM).context("it has no checksum")?;
    let expected = format!("{:08x}\"}}", crc32c::crc32c(covered.as_bytes()));
    ensure!(checksum == expected, "its checksum is wrong");
    Ok(serde_json::from_str(&format!("{covered}}}"))?)
}

fn replay(records: Vec<Record>) -> (Vec<Open>, u64) {
    let (mut open, mut next_sequence) = (Vec::new(), 1);
    for record in records {
        take_in(&mut open, &mut next_sequence, record);
    }
    (open, next_sequence)
}

fn take_in(open: &mut Vec<Open>, next_sequence: &mut u64, record: Record) {
    match record {
        Record::Write(intent) => {
            *next_sequence = (*next_sequence).max(intent.sequence.saturating_add(1));
            open.push(Open { intent, read_back: None });
        }
        Record::Done { sequence, value } => {
            if let Some(done) = open.iter_mut().find(|open| open.intent.sequence == sequence) {
                done.read_back = Some(value);
            }
        }
        Record::Settled { sequence, how: _ } => open.retain(|open| open.intent.sequence != sequence),
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => Path::new("/"),
    }
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("syncing the folder {}", folder.display()))
}

#[cfg(test)]
mod tests;
