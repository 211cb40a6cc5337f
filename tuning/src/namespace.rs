//! Network namespaces: which there are, which is which, and work done within one (network_namespaces(7), setns(2)).
//!
//! Owns entering and telling apart. A thread that has entered a namespace ends with its work, so that no other work is
//! done there by mistake. Never reads or writes a setting.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use crate::sys;

/// Where `ip netns` keeps the namespaces that it makes (ip-netns(8)).
const NAMED: &str = "/run/netns";
const OWN: &str = "/proc/thread-self/ns/net";
const INITIAL: &str = "/proc/1/ns/net";

/// What tells a namespace from every other of this boot. The inode may be another's later; the cookie never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamespaceId {
    pub(crate) inode: u64,
    pub(crate) cookie: Option<u64>,
}

/// Whose namespace is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Own,
    Process(u32),
    Named(String),
}

impl Target {
    fn path(&self) -> Result<PathBuf> {
        match self {
            Self::Own => Ok(OWN.into()),
            Self::Process(pid) => Ok(format!("/proc/{pid}/ns/net").into()),
            Self::Named(name) if name.is_empty() || name.contains('/') || name.starts_with('.') => {
                bail!("{name:?} is no name of a namespace; `ip netns list` tells them")
            }
            Self::Named(name) => Ok(Path::new(NAMED).join(name)),
        }
    }

    /// What has to stand before a command so that it runs there.
    pub(crate) fn prefix(&self) -> String {
        match self {
            Self::Own => String::new(),
            Self::Process(pid) => format!("nsenter --net --target {pid} "),
            Self::Named(name) => format!("ip netns exec {name} "),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => write!(out, "own"),
            Self::Process(pid) => write!(out, "of process {pid}"),
            Self::Named(name) => write!(out, "{name}"),
        }
    }
}

/// An open network namespace; it stays while this does.
#[derive(Debug)]
pub(crate) struct Namespace {
    id: NamespaceId,
    /// `None`: this process is in it anyway.
    file: Option<File>,
}

impl Namespace {
    /// # Errors
    /// There is no such namespace, or it may not be entered.
    pub(crate) fn open(target: &Target) -> Result<Self> {
        let path = target.path()?;
        Self::open_path(&path).with_context(|| match target {
            Target::Own => "opening the network namespace of this process".to_owned(),
            Target::Process(pid) => {
                format!("opening the network namespace of process {pid} (is it running, and are you root?)")
            }
            Target::Named(name) => format!(
                "opening the network namespace {name} (`ip netns list` tells which there are; entering one takes root)"
            ),
        })
    }

    /// The namespace of the first process, where settings of the whole machine are shown; this process's own where
    /// the first's may not be entered, as within a container.
    ///
    /// # Errors
    /// Not even the own one can be opened.
    pub(crate) fn initial() -> Result<Self> {
        match Self::open_path(Path::new(INITIAL)) {
            Ok(namespace) => Ok(namespace),
            Err(_) => Self::open(&Target::Own),
        }
    }

    /// The namespace that `id` tells, wherever it can be found; `None`: it is gone.
    ///
    /// # Errors
    /// The processes cannot be listed.
    pub(crate) fn find(id: NamespaceId) -> Result<Option<Self>> {
        let mut paths = vec![PathBuf::from(OWN), PathBuf::from(INITIAL)];
        paths.extend(entries_of(Path::new(NAMED))?);
        for process in entries_of(Path::new("/proc"))? {
            if process.file_name().is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok()) {
                paths.push(process.join("ns/net"));
            }
        }
        for path in paths {
            // Cheap first: most are namespaces already looked at. What ends meanwhile is not the one looked for.
            let same_inode = fs::metadata(&path).is_ok_and(|metadata| metadata.ino() == id.inode);
            if let Some(found) = same_inode.then(|| Self::open_path(&path).ok()).flatten()
                && found.id == id
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    pub(crate) fn id(&self) -> NamespaceId {
        self.id
    }

    /// Does `work` in this namespace, in a thread of its own where this process is in another.
    ///
    /// # Errors
    /// Those of `work`, or the namespace cannot be entered.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match &self.file {
            None => work(),
            Some(file) => within(file, work),
        }
    }

    fn open_path(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        let own = fs::metadata(OWN)?.ino();
        if inode == own {
            let cookie = sys::namespace_cookie()?;
            return Ok(Self { id: NamespaceId { inode, cookie }, file: None });
        }
        let cookie = within(&file, || Ok(sys::namespace_cookie()?))?;
        Ok(Self { id: NamespaceId { inode, cookie }, file: Some(file) })
    }
}

fn within<T: Send>(file: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let enter_and_work = || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering the network namespace (it takes root)")?;
        work()
    };
    thread::scope(|scope| scope.spawn(enter_and_work).join())
        .map_err(|_| anyhow!("the thread within the namespace panicked"))?
}

fn entries_of(folder: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_namespace_is_found_by_its_id() {
        let own = Namespace::open(&Target::Own).expect("every process has one");
        let found = Namespace::find(own.id()).expect("readable").expect("it is there");
        assert_eq!(found.id(), own.id());
        assert_eq!(found.within(|| Ok(7)).expect("entered"), 7);
    }

    #[test]
    fn a_namespace_that_is_gone_is_not_found_again_by_its_inode() {
        let own = Namespace::open(&Target::Own).expect("every process has one").id();
        let gone = NamespaceId { cookie: own.cookie.map(|cookie| cookie + 1_000_000).or(Some(1)), ..own };
        assert!(Namespace::find(gone).expect("readable").is_none());
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in ["", "../x", "a/b", ".."] {
            let error = Namespace::open(&Target::Named(name.to_owned())).expect_err("no name");
            assert!(format!("{error:#}").contains("ip netns list"), "{error:#}");
        }
        let error = Namespace::open(&Target::Named("no-such-namespace".to_owned())).expect_err("not there");
        assert!(format!("{error:#}").contains("no-such-namespace"), "{error:#}");
    }
}
