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

use anyhow::{Context, Error, Result, anyhow, bail};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use crate::sys;

/// Where `ip netns` keeps the namespaces that it makes (ip-netns(8)).
const NAMED: &str = "/run/netns";
const OWN: &str = "/proc/thread-self/ns/net";
/// The first process's, where settings of the whole machine are shown.
pub(crate) const INITIAL: &str = "/proc/1/ns/net";

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

/// What became of something that was to be found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found<T> {
    Here(T),
    /// The kernel says that it is no more.
    Gone,
    /// It may still be there: a file that is open, or a mount that this process does not see, keeps a namespace.
    Unseen,
}

impl<T> Found<T> {
    pub(crate) fn map<U>(self, with: impl FnOnce(T) -> U) -> Found<U> {
        match self {
            Self::Here(found) => Found::Here(with(found)),
            Self::Gone => Found::Gone,
            Self::Unseen => Found::Unseen,
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

    /// The namespace that `id` tells, wherever it can be found.
    ///
    /// # Errors
    /// The processes cannot be listed, or what may be the namespace cannot be entered.
    pub(crate) fn find(id: NamespaceId) -> Result<Found<Self>> {
        find(id, Self::open_path)
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

fn find(id: NamespaceId, open: impl Fn(&Path) -> Result<Namespace>) -> Result<Found<Namespace>> {
    let mut refused = None;
    for path in candidates(id)? {
        match open(&path) {
            Ok(found) if found.id == id => return Ok(Found::Here(found)),
            // An inode number is given again only when the namespace that had it is freed. So one with the same inode
            // and another cookie proves that the one looked for is no more.
            Ok(Namespace { id: other, .. })
                if other.inode == id.inode && other.cookie.is_some() && id.cookie.is_some() =>
            {
                return Ok(Found::Gone);
            }
            Ok(_) => {}
            Err(error) if has_ended(&error) => {}
            Err(error) => refused = Some(error.context(format!("entering {}", path.display()))),
        }
    }
    // Elsewhere it might have been entered; only where that fails everywhere, it is an error.
    refused.map_or(Ok(Found::Unseen), Err)
}

/// What has to stand before a command so that it runs in the namespace, as far as that can be told without entering
/// it; `None`: it is not found from here.
///
/// # Errors
/// The processes cannot be listed.
pub(crate) fn prefix_of(id: NamespaceId) -> Result<Option<String>> {
    let paths = candidates(id)?;
    if paths.iter().any(|path| path == Path::new(OWN)) {
        return Ok(Some(String::new()));
    }
    Ok(paths.iter().find_map(|path| prefix_for(path)))
}

/// Goes into a line that somebody pastes into a shell: of a name that this reads otherwise nothing is told.
fn prefix_for(path: &Path) -> Option<String> {
    let plain = |text: &str| text.chars().all(|one| one.is_ascii_alphanumeric() || "._-/".contains(one));
    let text = path.to_str().filter(|text| plain(text))?;
    Some(match path.strip_prefix(NAMED) {
        Ok(name) => format!("ip netns exec {} ", name.display()),
        Err(_) => format!("nsenter --net={text} "),
    })
}

/// Every path from here to a namespace of that inode.
fn candidates(id: NamespaceId) -> Result<Vec<PathBuf>> {
    let mut paths = vec![PathBuf::from(OWN), PathBuf::from(INITIAL)];
    paths.extend(entries_of(Path::new(NAMED))?);
    for process in entries_of(Path::new("/proc"))? {
        if process.file_name().is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok()) {
            paths.push(process.join("ns/net"));
        }
    }
    // All namespaces are files of one file system, and of another one's files the inode says nothing.
    let device = fs::metadata(OWN)?.dev();
    let same = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|metadata| metadata.ino() == id.inode && metadata.dev() == device)
    };
    paths.retain(same);
    Ok(paths)
}

/// Whether it failed because what was opened ended meanwhile.
fn has_ended(error: &Error) -> bool {
    let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    number.is_some_and(|number| [Errno::NOENT, Errno::SRCH].map(Errno::raw_os_error).contains(&number))
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
        let Found::Here(found) = Namespace::find(own.id()).expect("readable") else { panic!("it is there") };
        assert_eq!(found.id(), own.id());
        assert_eq!(prefix_of(own.id()).expect("readable").as_deref(), Some(""));
        assert_eq!(found.within(|| Ok(7)).expect("entered"), 7);
    }

    /// It is gone only if the kernel has given its inode to another since.
    #[test]
    fn a_namespace_is_gone_when_another_has_its_inode() {
        let own = Namespace::open(&Target::Own).expect("every process has one").id();
        let gone = NamespaceId { cookie: own.cookie.map(|cookie| cookie + 1_000_000).or(Some(1)), ..own };
        let found = Namespace::find(gone).expect("readable").map(|found| found.id());
        assert_eq!(found, if own.cookie.is_some() { Found::Gone } else { Found::Unseen });
    }

    #[test]
    fn a_namespace_that_nothing_here_leads_to_may_still_be_there() {
        let unseen = NamespaceId { inode: 1, cookie: Some(1) };
        assert_eq!(Namespace::find(unseen).expect("readable").map(|found| found.id()), Found::Unseen);
        assert_eq!(prefix_of(unseen).expect("readable"), None);
    }

    #[test]
    fn a_namespace_that_cannot_be_entered_is_not_gone() {
        let own = Namespace::open(&Target::Own).expect("every process has one").id();
        for errno in [Errno::PERM, Errno::ACCESS, Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INVAL] {
            let error = find(own, |_| Err(io::Error::from(errno).into())).expect_err("it is there");
            assert!(format!("{error:#}").starts_with("entering /proc/"), "{error:#}");
            assert!(find(own, |_| Err(Error::from(errno).context("entering"))).is_err());
        }
        for errno in [Errno::NOENT, Errno::SRCH] {
            let found = find(own, |_| Err(io::Error::from(errno).into())).expect("it has ended");
            assert_eq!(found.map(|found| found.id()), Found::Unseen);
        }
    }

    /// One way in that is barred does not matter where another is open.
    #[test]
    fn it_is_entered_by_whatever_leads_to_it() {
        let own = Namespace::open(&Target::Own).expect("every process has one").id();
        let open = |path: &Path| match path == Path::new(OWN) {
            true => Err(io::Error::from(Errno::PERM).into()),
            false => Namespace::open_path(path),
        };
        assert_eq!(find(own, open).expect("entered").map(|found| found.id()), Found::Here(own));
    }

    #[test]
    fn a_command_is_told_only_with_a_plain_name() {
        assert_eq!(prefix_for(Path::new("/run/netns/blue")).as_deref(), Some("ip netns exec blue "));
        assert_eq!(prefix_for(Path::new("/proc/7/ns/net")).as_deref(), Some("nsenter --net=/proc/7/ns/net "));
        assert_eq!(prefix_for(Path::new("/run/netns/a;reboot")), None);
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
