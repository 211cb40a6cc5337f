//! Machines of tests: trees of files that look like /proc.
//!
//! Owns what such a machine holds. Never used by the program.

use std::fs;
use std::path::Path;

use anyhow::{Result, anyhow};
use tempfile::TempDir;

use crate::apply::{Origin, Step};
use crate::catalogue::{Goal, Role};
use crate::machine::Machine;
use crate::namespace::Target;
use crate::procfs::Procfs;

pub(crate) const BOOT: &str = "11111111-2222-3333-4444-555555555555";

const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units\n\
    Max processes             1                    2                    processes\n\
    Max open files            1024                 20000                files\n";

/// What every machine here shows of itself.
const FILES: [(&str, &str); 14] = [
    ("self/limits", LIMITS),
    ("meminfo", "MemTotal:       8000000 kB\nMemFree:  5 kB\nMemAvailable:    4000000 kB\n"),
    ("sys/kernel/osrelease", "6.1.0-test\n"),
    ("sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n"),
    ("sys/fs/nr_open", "1048576\n"),
    ("sys/fs/file-max", "9223372036854775807\n"),
    ("sys/fs/file-nr", "1000\t0\t9223372036854775807\n"),
    ("sys/fs/epoll/max_user_watches", "1000000\n"),
    ("sys/net/core/somaxconn", "4096\n"),
    ("sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
    ("sys/net/ipv4/tcp_mem", "90000\t120000\t180000\n"),
    ("sys/net/ipv4/tcp_migrate_req", "0\n"),
    ("sys/net/ipv4/tcp_syncookies", "1\n"),
    ("thread-self/net/netstat", "TcpExt: ListenOverflows TCPMigrateReqFailure\nTcpExt: 17 3\n"),
];

/// A machine, the folder that it is, and the journal beside it.
pub(crate) struct Fake {
    pub(crate) folder: TempDir,
    pub(crate) machine: Machine,
}

impl Fake {
    /// A machine that is ready for 15,000 connections of a server, and of its clients from one address.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder for a machine");
        for (path, text) in FILES {
            write(&folder.path().join("proc"), path, text);
        }
        let procfs = Procfs::new(folder.path().join("proc"), 1);
        Self { machine: Machine::of(procfs.clone(), procfs, Target::Own), folder }
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        write(&self.folder.path().join("proc"), path, text);
    }

    pub(crate) fn set(&self, name: &str, value: &str) {
        self.write(&sysctl_path(name), value);
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.folder.path().join("proc").join(sysctl_path(name))).expect("it was there");
    }

    pub(crate) fn get(&self, name: &str) -> String {
        self.machine.host().sysctl(name).expect("readable").expect("it is there")
    }

    pub(crate) fn journal(&self) -> std::path::PathBuf {
        self.folder.path().join("state/journal.jsonl")
    }

    /// Everything that `apply` may write here, with its value.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        crate::catalogue::settings()
            .filter(|setting| setting.is_written())
            .filter_map(|setting| Some((setting.name, self.machine.host().sysctl(setting.name).expect("readable")?)))
            .collect()
    }
}

pub(crate) fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("every path here has a folder")).expect("a folder");
    fs::write(path, text).expect("a file");
}

pub(crate) fn sysctl_path(name: &str) -> String {
    format!("sys/{}", name.replace('.', "/"))
}

pub(crate) fn goal(connections: u64, role: Role) -> Goal {
    Goal {
        connections,
        role,
        source_addresses: 1,
        logins_per_s: Goal::default_logins_per_s(connections),
        descriptor_tables: 1,
    }
}

pub(crate) fn origin() -> Origin {
    Origin { boot_id: BOOT.to_owned(), pid: 7, time_unix_ms: 1_700_000_000_000 }
}

/// Lets `count` steps happen, and kills the program before the next.
pub(crate) fn killed_after(count: usize) -> impl FnMut(Step) -> Result<()> {
    let mut left = count;
    move |step| {
        left = left.checked_sub(1).ok_or_else(|| anyhow!("killed before {step:?}"))?;
        Ok(())
    }
}
