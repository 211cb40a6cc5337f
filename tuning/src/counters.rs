//! The kernel's counters that tell whether a setting matters: proc(5), /proc/net.
//!
//! Owns where each stands and how it is read. Never judges it.

use std::fmt;

use anyhow::Result;

use crate::machine::Machine;

/// Where a counter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    None,
    /// A column of /proc/net/netstat, by its row and name.
    Netstat(&'static str, &'static str),
    /// A number of /proc/net/sockstat, by its row and name.
    Sockstat(&'static str, &'static str),
    /// The second column of /proc/net/softnet_stat, over all CPUs.
    SoftnetDropped,
    /// The first number of a setting that is none.
    Sysctl(&'static str),
    /// A line of /proc/meminfo, in bytes.
    Meminfo(&'static str),
}

impl Counter {
    /// Its present value; `None`: there is none on this machine.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(crate) fn read(self, machine: &Machine) -> Result<Option<u64>> {
        let namespace = machine.namespace();
        Ok(match self {
            Self::None => None,
            Self::Netstat(row, name) => namespace.net("netstat")?.and_then(|text| column(&text, row, name)),
            Self::Sockstat(row, name) => namespace.net("sockstat")?.and_then(|text| pair(&text, row, name)),
            Self::SoftnetDropped => namespace.net("softnet_stat")?.map(|text| dropped(&text)),
            Self::Sysctl(name) => machine.number(name)?,
            Self::Meminfo(name) => machine.host().memory_bytes(name).ok(),
        })
    }
}

impl fmt::Display for Counter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(out, "none"),
            Self::Netstat(row, name) | Self::Sockstat(row, name) => write!(out, "{row} {name}"),
            Self::SoftnetDropped => write!(out, "softnet_stat dropped"),
            Self::Sysctl(name) | Self::Meminfo(name) => write!(out, "{name}"),
        }
    }
}

/// netstat has each row twice: its names, then its numbers.
fn column(text: &str, row: &str, name: &str) -> Option<u64> {
    let mut rows = text.lines().filter_map(|line| line.strip_prefix(row)?.strip_prefix(':'));
    let (names, numbers) = (rows.next()?, rows.next()?);
    let (_, number) = names.split_whitespace().zip(numbers.split_whitespace()).find(|(known, _)| *known == name)?;
    number.parse().ok()
}

/// sockstat has names and numbers in turn.
fn pair(text: &str, row: &str, name: &str) -> Option<u64> {
    let mut words = text.lines().find_map(|line| line.strip_prefix(row)?.strip_prefix(':'))?.split_whitespace();
    words.find(|word| *word == name)?;
    words.next()?.parse().ok()
}

fn dropped(text: &str) -> u64 {
    let column = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    text.lines().filter_map(column).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_row_and_name() {
        let netstat = "TcpExt: SyncookiesSent ListenOverflows\nTcpExt: 3 17\nIpExt: InOctets\nIpExt: 9\n";
        assert_eq!(column(netstat, "TcpExt", "ListenOverflows"), Some(17));
        assert_eq!(column(netstat, "IpExt", "InOctets"), Some(9));
        assert_eq!(column(netstat, "TcpExt", "InOctets"), None);
        let sockstat = "sockets: used 22\nTCP: inuse 1 orphan 5 tw 0 alloc 1 mem 274\nUDP: inuse 7 mem 0\n";
        assert_eq!(pair(sockstat, "TCP", "orphan"), Some(5));
        assert_eq!(pair(sockstat, "UDP", "inuse"), Some(7));
        assert_eq!(pair(sockstat, "UDP", "orphan"), None);
        assert_eq!(dropped("00000a 00000010 0\n00000b 00000001 0\n"), 17);
    }

    #[test]
    fn a_torn_file_has_no_counters() {
        for text in ["", "TcpExt:", "TcpExt: A B\nTcpExt: 1", "TCP: inuse", "x"] {
            assert_eq!(column(text, "TcpExt", "B"), None);
            assert_eq!(pair(text, "TCP", "inuse"), None);
        }
        assert_eq!(dropped(""), 0);
        assert_eq!(dropped("0001\n0001 x\n"), 0);
    }
}
