//! Reads the kernel's settings and state as /proc shows them (proc(5)).
//!
//! Owns paths and the parsing of what they hold; the root is an argument, so tests bring their own. Never writes,
//! and never judges a value.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};

/// A tree like /proc.
#[derive(Clone, Debug)]
pub(crate) struct Procfs {
    root: PathBuf,
}

/// Limits of one process (getrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl Procfs {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The numbers of a setting under /proc/sys, by its sysctl name; `None` if this kernel has no such setting.
    ///
    /// # Errors
    /// The file cannot be read, or holds something other than numbers.
    pub(crate) fn sysctl(&self, name: &str) -> Result<Option<Vec<u64>>> {
        let path = format!("sys/{}", name.replace('.', "/"));
        let Some(text) = self.read(&path)? else { return Ok(None) };
        let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        Ok(Some(numbers.with_context(|| format!("{name} holds {:?}, which is not numbers", text.trim()))?))
    }

    /// One number of a setting: `index` counts from 0.
    ///
    /// # Errors
    /// As [`Self::sysctl`], or the setting has fewer numbers.
    pub(crate) fn sysctl_number(&self, name: &str, index: usize) -> Result<Option<u64>> {
        let Some(numbers) = self.sysctl(name)? else { return Ok(None) };
        let number = numbers.get(index).ok_or_else(|| anyhow!("{name} has fewer than {} numbers", index + 1))?;
        Ok(Some(*number))
    }

    /// How many files this process, and what it starts, may hold open.
    ///
    /// # Errors
    /// /proc/self/limits is missing or has no such line.
    pub(crate) fn open_files(&self) -> Result<Limit> {
        let text = self.read("self/limits")?.ok_or_else(|| anyhow!("{} has no self/limits", self.root.display()))?;
        let mut words = text
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .ok_or_else(|| anyhow!("self/limits does not tell \"Max open files\""))?
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

    fn read(&self, path: &str) -> Result<Option<String>> {
        let path = self.root.join(path);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }
}

fn limit(word: Option<&str>) -> Result<u64> {
    match word {
        Some("unlimited") => Ok(u64::MAX),
        Some(number) => number.parse().with_context(|| format!("a limit of {number:?}")),
        None => Err(anyhow!("\"Max open files\" has fewer than two limits")),
    }
}
