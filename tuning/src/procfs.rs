//! Reads and writes the kernel's settings, and reads its state, as /proc shows them (proc(5)).
//!
//! Owns paths and the parsing of what they hold; the root is an argument, so tests bring their own. Never judges a
//! value, and never decides what is written.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};

use crate::namespace::{Namespace, NamespaceId};

/// More listeners than a machine has; of what is beyond it no warning is given.
const LISTENERS_MAX: usize = 100_000;

/// A tree like /proc, seen from one network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Procfs {
    root: PathBuf,
    view: View,
}

#[derive(Clone, Debug)]
enum View {
    Namespace(Arc<Namespace>),
    /// A tree of files, which shows the same to everybody.
    #[cfg(test)]
    Files(NamespaceId),
}

/// Limits of one process (getrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl Procfs {
    /// /proc as it is seen from `namespace`.
    pub(crate) fn of(namespace: Namespace) -> Self {
        Self { root: "/proc".into(), view: View::Namespace(Arc::new(namespace)) }
    }

    /// A tree of a test's own, as it is seen from a namespace of that number.
    #[cfg(test)]
    pub(crate) fn new(root: impl Into<PathBuf>, inode: u64) -> Self {
        Self { root: root.into(), view: View::Files(NamespaceId { inode, cookie: None }) }
    }

    /// The network namespace that this is seen from.
    pub(crate) fn namespace(&self) -> NamespaceId {
        match &self.view {
            View::Namespace(namespace) => namespace.id(),
            #[cfg(test)]
            View::Files(id) => *id,
        }
    }

    /// A setting under /proc/sys by its sysctl name, with single spaces between its numbers; `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or holds something other than numbers.
    pub(crate) fn sysctl(&self, name: &str) -> Result<Option<String>> {
        let Some(text) = self.read(&sysctl_path(name))? else { return Ok(None) };
        let words: Vec<_> = text.split_whitespace().collect();
        let numeric = !words.is_empty() && words.iter().all(|word| word.parse::<i128>().is_ok());
        ensure!(numeric, "{name} holds {:?}, which is not numbers", text.trim());
        Ok(Some(words.join(" ")))
    }

    /// Whether anybody may write the setting. What belongs to the whole machine is shown read-only in a namespace.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(crate) fn is_writable(&self, name: &str) -> Result<bool> {
        const WRITE: u32 = 0o222;
        let path = self.root.join(sysctl_path(name));
        self.within(|| Ok(fs::metadata(&path).is_ok_and(|metadata| metadata.permissions().mode() & WRITE != 0)))
    }

    /// Writes a setting, in one write(2) as the kernel wants it.
    ///
    /// # Errors
    /// The kernel refuses the value, or /proc/sys cannot be written.
    pub(crate) fn write_sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = self.root.join(sysctl_path(name));
        let line = format!("{value}\n");
        self.within(|| {
            let written = fs::OpenOptions::new().write(true).truncate(true).open(&path)?.write(line.as_bytes())?;
            ensure!(written == line.len(), "only {written} of {} bytes were taken", line.len());
            Ok(())
        })
        .with_context(|| format!("writing \"{value}\" to {}", path.display()))
    }

    /// How many files a process, and what it starts, may hold open; `process` is a number or `self`.
    ///
    /// # Errors
    /// /proc/PROCESS/limits is missing or has no such line.
    pub(crate) fn open_files(&self, process: &str) -> Result<Limit> {
        let text = self
            .read(&format!("{process}/limits"))?
            .ok_or_else(|| anyhow!("{} has no {process}/limits: is the process running?", self.root.display()))?;
        let mut words = text
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .ok_or_else(|| anyhow!("{process}/limits does not tell \"Max open files\""))?
            .split_whitespace();
        Ok(Limit { soft: limit(words.next())?, hard: limit(words.next())? })
    }

    /// A line of /proc/meminfo, in bytes.
    ///
    /// # Errors
    /// The file or the line is missing or unreadable.
    pub(crate) fn memory_bytes(&self, name: &str) -> Result<u64> {
        let text = self.read("meminfo")?.ok_or_else(|| anyhow!("{} has no meminfo", self.root.display()))?;
        let kibibytes: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.split_whitespace().next())
            .ok_or_else(|| anyhow!("meminfo does not tell {name}"))?
            .parse()
            .with_context(|| format!("{name} in meminfo"))?;
        Ok(kibibytes.saturating_mul(1024))
    }

    /// The kernel's release, as uname(2) gives it.
    ///
    /// # Errors
    /// The file is unreadable.
    pub(crate) fn kernel(&self) -> Result<String> {
        Ok(self.read("sys/kernel/osrelease")?.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned()))
    }

    /// Which boot this is; settings written in another are gone.
    ///
    /// # Errors
    /// The file is missing or unreadable.
    pub(crate) fn boot_id(&self) -> Result<String> {
        let text = self.read("sys/kernel/random/boot_id")?.ok_or_else(|| anyhow!("this kernel has no boot_id"))?;
        Ok(text.trim().to_owned())
    }

    /// A file of counters of this namespace, such as `netstat`; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn net(&self, file: &str) -> Result<Option<String>> {
        // Not /proc/net: that is the namespace of the process, and only a thread of it is in this one.
        self.read(&format!("thread-self/net/{file}"))
    }

    /// A setting that is a list, as the kernel tells it; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn list(&self, name: &str) -> Result<Option<String>> {
        Ok(self.read(&sysctl_path(name))?.map(|text| text.trim().to_owned()))
    }

    /// Ports of this namespace on which somebody listens for TCP connections, as often as somebody does.
    ///
    /// # Errors
    /// The sockets cannot be read.
    pub(crate) fn listening_ports(&self) -> Result<Vec<u16>> {
        let mut ports = Vec::new();
        for file in ["tcp", "tcp6"] {
            let path = self.root.join("thread-self/net").join(file);
            let opened = self.within(|| match File::open(&path) {
                Ok(file) => Ok(Some(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error).with_context(|| format!("opening {}", path.display())),
            })?;
            // Listeners come first: of a million connections behind them only the first is read.
            let lines = opened.into_iter().flat_map(|file| BufReader::new(file).lines().skip(1));
            for line in lines.take(LISTENERS_MAX) {
                let line = line.with_context(|| format!("reading {}", path.display()))?;
                let Some(port) = listening_port(&line) else { break };
                ports.push(port);
            }
        }
        Ok(ports)
    }

    fn read(&self, path: &str) -> Result<Option<String>> {
        let path = self.root.join(path);
        self.within(|| match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        })
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match &self.view {
            View::Namespace(namespace) => namespace.within(work),
            #[cfg(test)]
            View::Files(_) => work(),
        }
    }
}

/// The numbers of a setting's text; what is beyond 64 bits is cut to what they hold.
pub(crate) fn numbers(text: &str) -> Vec<i64> {
    text.split_whitespace()
        .filter_map(|word| word.parse::<i128>().ok())
        .map(|number| i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX }))
        .collect()
}

fn sysctl_path(name: &str) -> String {
    format!("sys/{}", name.replace('.', "/"))
}

/// The port of a line of /proc/net/tcp, if it is a listener's.
fn listening_port(line: &str) -> Option<u16> {
    const LISTEN: &str = "0A";
    let mut words = line.split_whitespace().skip(1);
    let (local, _remote, state) = (words.next()?, words.next()?, words.next()?);
    let (_, port) = local.rsplit_once(':')?;
    (state == LISTEN).then(|| u16::from_str_radix(port, 16).ok()).flatten()
}

fn limit(word: Option<&str>) -> Result<u64> {
    match word {
        Some("unlimited") => Ok(u64::MAX),
        Some(number) => number.parse().with_context(|| format!("a limit of {number:?}")),
        None => Err(anyhow!("\"Max open files\" has fewer than two limits")),
    }
}
