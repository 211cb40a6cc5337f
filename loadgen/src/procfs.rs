//! Memory and machine as /proc tells them. Read-only.

mod kernel;

use anyhow::{Context, Result};

pub(crate) use self::kernel::{KernelMemory, SlabObjects, connection_slabs, kernel_memory};

/// Resident memory of a process.
pub(crate) fn rss_bytes(pid: u32) -> Result<u64> {
    told(&format!("/proc/{pid}/status"), "VmRSS:", kibibytes)
}

/// Resident memory of a process, where pages that several share count in parts: each its own.
pub(crate) fn pss_bytes(pid: u32) -> Result<u64> {
    told(&format!("/proc/{pid}/smaps_rollup"), "Pss:", kibibytes)
}

/// Memory that can still be had without swapping.
pub(crate) fn memory_available_bytes() -> Result<u64> {
    told("/proc/meminfo", "MemAvailable:", kibibytes)
}

/// Memory of the machine.
pub(crate) fn memory_bytes() -> Option<u64> {
    kibibytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// The processor's name.
pub(crate) fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The process that listens on a TCP port of this machine, if this user may see it. It looks at every descriptor of
/// every process, and the kernel keeps an inode and a name for each that was looked at: to be asked before there are
/// many, where the kernel's memory is measured.
pub(crate) fn listener_pid(port: u16) -> Option<u32> {
    let inode = listener_inode(&std::fs::read_to_string("/proc/net/tcp").ok()?, port)?;
    let wanted = format!("socket:[{inode}]");
    let numbers = |path: &str| -> Vec<u32> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    };
    let processes = numbers("/proc");
    let mut of_processes = processes.iter().copied();
    // Most have one table of descriptors; a thread may have one of its own.
    of_processes.find(|pid| has_open(&format!("/proc/{pid}/fd"), &wanted)).or_else(|| {
        let threads = |pid: u32| numbers(&format!("/proc/{pid}/task"));
        let holds = |pid: u32, thread: u32| has_open(&format!("/proc/{pid}/task/{thread}/fd"), &wanted);
        processes.iter().copied().find(|pid| threads(*pid).into_iter().any(|thread| holds(*pid, thread)))
    })
}

/// Whether one of a table's descriptors is this file.
fn has_open(table: &str, wanted: &str) -> bool {
    let mut descriptors = std::fs::read_dir(table).into_iter().flatten();
    descriptors.any(|descriptor| {
        descriptor.and_then(|entry| std::fs::read_link(entry.path())).is_ok_and(|link| link.as_os_str() == wanted)
    })
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

/// What the line of a file that begins with `label` says.
fn told(path: &str, label: &str, parse: fn(&str, &str) -> Option<u64>) -> Result<u64> {
    parse(&read(path)?, label).with_context(|| format!("{path} tells no {}", label.trim_end_matches(':')))
}

fn number(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(label))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn kibibytes(text: &str, label: &str) -> Option<u64> {
    Some(number(text, label)? * 1024)
}

/// Columns of /proc/net/tcp: slot, local address:port in hex, remote, state (0A: listening), …, inode is the tenth.
fn listener_inode(table: &str, port: u16) -> Option<u64> {
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let listens = columns.get(1)?.ends_with(&suffix) && *columns.get(3)? == "0A";
        if listens { columns.get(9)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_is_told_from_its_connections() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1CE8 0100007F:8000 01 00000000:00000000 00:00000000 00000000     0        0 111 1\n\
             1: 0100007F:1CE8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1\n";
        assert_eq!(listener_inode(table, 7400), Some(222));
        assert_eq!(listener_inode(table, 7401), None);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(rss_bytes(std::process::id()).expect("this process exists") > 0);
        assert!(pss_bytes(std::process::id()).expect("this process exists") > 0);
        assert!(memory_available_bytes().expect("Linux") > 0);
        assert_eq!(kibibytes("VmRSS:\t  12 kB\n", "VmRSS:"), Some(12 * 1024));
    }

    #[test]
    fn a_label_is_the_whole_first_word() {
        let rollup = "7f00-7f01 ---p 00000000 00:00 0  [rollup]\nRss:  9 kB\nPss:  5 kB\nPss_Dirty:  3 kB\n";
        assert_eq!(kibibytes(rollup, "Pss:"), Some(5 * 1024));
        assert_eq!(number("Threads:\t121\n", "Threads:"), Some(121));
        assert_eq!(number("Threads:\n", "Threads:"), None);
        let error = told("/proc/self/status", "Nothing:", number).expect_err("no such line");
        assert!(error.to_string().ends_with("tells no Nothing"), "{error}");
    }
}
