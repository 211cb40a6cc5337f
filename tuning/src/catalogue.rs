//! What a machine needs for N connections: every setting with its formula, its reason, its source, and what it may be
//! set to.
//!
//! Owns the formulas and the list of what may be written at all. Never reads a machine, never prints, and never decides
//! whether a machine will do.

mod files;
mod sockets;

use serde::Serialize;

use crate::counters::Counter;

/// Kernel memory of one end of an idle connection, measured: `culver-loadgen density`.
pub(crate) const KERNEL_BYTES_PER_END: u64 = 4040;
/// The server's own memory of one idle, logged-in connection, measured in the same way.
const SERVER_BYTES_PER_CONNECTION: u64 = 200;
/// What a process needs before the first connection: code, RocksDB's memtables and block cache.
const BYTES_BASE: u64 = 512 * MEBIBYTE;
/// Files open besides connections in a table that all threads share: RocksDB's tables and logs, listeners, wakers.
const DESCRIPTORS_RESERVED: u64 = 1024;
/// Files open besides connections in the table of one thread: listener, epoll, waker, and what is just being opened.
const DESCRIPTORS_RESERVED_PER_TABLE: u64 = 64;
/// Connections come to tables by hash, so the fullest has more than its share: percent of it.
const TABLE_SHARE_PERCENT: u64 = 105;
/// What others use of the same is never the same for long: percent of what is required, on top of it.
const SPARE_PERCENT: u64 = 10;
/// Seconds within which everyone comes back after a restart.
const HERD_S: u64 = 60;
/// Without `--rate`, logins expected in a second are N / 60, but within these.
const LOGINS_PER_S_MIN: u64 = 1000;
const LOGINS_PER_S_MAX: u64 = 50_000;
/// The kernel's own default for the queue of a listener, and the length that the server asks listen(2) for.
const ACCEPT_QUEUE_MIN: u64 = 4096;
const ACCEPT_QUEUE_MAX: u64 = 65_535;
/// Ports below it take a privilege to bind, and servers live there.
const PORT_MIN: i64 = 1024;
const PORT_MAX: i64 = 65_535;
pub(crate) const MEBIBYTE: u64 = 1024 * 1024;

const _: () = assert!(ACCEPT_QUEUE_MIN <= ACCEPT_QUEUE_MAX && LOGINS_PER_S_MIN <= LOGINS_PER_S_MAX);
const _: () = assert!(DESCRIPTORS_RESERVED_PER_TABLE <= DESCRIPTORS_RESERVED && TABLE_SHARE_PERCENT >= 100);

/// What is to run on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// The server; its clients are elsewhere
    Server,
    /// The clients; their server is elsewhere
    Clients,
    /// Server and clients, as in a test on one machine
    Both,
}

impl Role {
    /// How many ends of a connection are on this machine.
    fn ends(self) -> u64 {
        match self {
            Self::Server | Self::Clients => 1,
            Self::Both => 2,
        }
    }

    fn has_server(self) -> bool {
        self != Self::Clients
    }

    fn has_clients(self) -> bool {
        self != Self::Server
    }
}

/// For what the machine is to be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Goal {
    pub(crate) connections: u64,
    pub(crate) role: Role,
    /// Addresses that the clients connect from.
    pub(crate) source_addresses: u64,
    pub(crate) logins_per_s: u64,
    /// Descriptor tables that the connections of a process are spread over.
    pub(crate) descriptor_tables: u64,
}

impl Goal {
    /// Logins expected in a second when nobody says: everyone is back within a minute.
    pub(crate) fn default_logins_per_s(connections: u64) -> u64 {
        (connections / HERD_S).clamp(LOGINS_PER_S_MIN, LOGINS_PER_S_MAX)
    }

    /// Files that one descriptor table has to hold.
    fn descriptors_per_table(&self) -> u64 {
        let shared = self.connections.saturating_add(DESCRIPTORS_RESERVED);
        if self.descriptor_tables <= 1 {
            return shared;
        }
        let hundredths = u128::from(self.connections) * u128::from(TABLE_SHARE_PERCENT);
        let share = hundredths.div_ceil(u128::from(self.descriptor_tables) * 100);
        // RocksDB's files are in the table of the threads that have none of their own.
        u64::try_from(share)
            .unwrap_or(u64::MAX)
            .saturating_add(DESCRIPTORS_RESERVED_PER_TABLE)
            .clamp(DESCRIPTORS_RESERVED, shared)
    }

    /// Files that all processes here open together.
    fn descriptors_of_machine(&self) -> u64 {
        let own = self.descriptor_tables.saturating_mul(DESCRIPTORS_RESERVED_PER_TABLE);
        self.connections.saturating_add(DESCRIPTORS_RESERVED).saturating_add(own).saturating_mul(self.role.ends())
    }

    /// Sockets of this machine's ends.
    fn ends(&self) -> u64 {
        self.connections.saturating_mul(self.role.ends())
    }

    /// Connections that a listener has to hold until they are accepted: a second of logins.
    fn accept_queue(&self) -> u64 {
        self.logins_per_s.clamp(ACCEPT_QUEUE_MIN, ACCEPT_QUEUE_MAX)
    }
}

/// What of the machine a formula depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) memory_bytes: u64,
    pub(crate) page_bytes: u64,
    pub(crate) syncookies: bool,
}

/// What a setting holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// One process, inherited by what it starts.
    Process,
    /// The whole machine.
    Host,
    /// One network namespace.
    Namespace,
    /// Sockets of one network namespace that do not choose for themselves by setsockopt(2).
    Socket,
}

/// What a setting's value is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One number.
    Number,
    /// One number, of which the first number of another setting is taken already.
    Beside(&'static str),
    /// Low, pressure and high water, in pages.
    Pages,
    /// First and last port.
    Ports,
}

/// Where a setting is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    OpenFilesSoft,
    OpenFilesHard,
    MemoryAvailable,
    /// Below /proc/sys, and `apply` may write it if the machine needs it.
    Written(Shape),
    /// Below /proc/sys, and only shown.
    Shown,
}

/// One thing that has to be large enough, or is worth knowing.
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) kind: Kind,
    pub(crate) scope: Scope,
    pub(crate) takes_effect: &'static str,
    /// `required` in words; N is the number of connections.
    pub(crate) formula: &'static str,
    /// What happens when it is too small; or why nothing is required.
    pub(crate) reason: &'static str,
    /// Where the meaning of the setting is written down.
    pub(crate) source: &'static str,
    /// What tells whether it matters.
    pub(crate) counter: Counter,
    /// `None`: nothing is required, it is information.
    pub(crate) required: fn(&Goal, &Facts) -> Option<u64>,
}

impl Setting {
    /// Whether `apply` may write it: nothing else is ever written.
    pub(crate) fn is_written(&self) -> bool {
        matches!(self.kind, Kind::Written(_))
    }
}

/// Every setting, in the order in which a growing server meets them.
pub(crate) fn settings() -> impl Iterator<Item = &'static Setting> {
    files::SETTINGS.iter().chain(&sockets::SETTINGS)
}

/// The setting of that name, if `apply` may write it.
pub(crate) fn written(name: &str) -> Option<&'static Setting> {
    settings().find(|setting| setting.is_written() && setting.name == name)
}

impl Shape {
    /// How much of what is required the numbers of a setting give; `None`: they are too few.
    pub(crate) fn amount(self, numbers: &[i64], goal: &Goal) -> Option<u64> {
        match self {
            Self::Number | Self::Beside(_) => amount(*numbers.first()?),
            Self::Pages => amount(*numbers.get(2)?),
            Self::Ports => {
                let (first, last) = (*numbers.first()?, *numbers.get(1)?);
                let ports = u64::try_from(last.saturating_add(1).saturating_sub(first)).unwrap_or(0);
                Some(ports.saturating_mul(goal.source_addresses))
            }
        }
    }

    /// What is asked for so that `required` is still there when others use a little more.
    pub(crate) fn spare(self, required: u64) -> u64 {
        match self {
            Self::Beside(_) => required.saturating_add(required / 100 * SPARE_PERCENT),
            Self::Number | Self::Pages | Self::Ports => required,
        }
    }

    /// The numbers with which there is `amount` of it, from those it has: none is lowered (of a range: narrowed), and
    /// those that suffice stay. `None`: they are too few.
    pub(crate) fn raised(self, numbers: &[i64], amount: u64, goal: &Goal) -> Option<Vec<i64>> {
        let wanted = i64::try_from(amount).unwrap_or(i64::MAX);
        match self {
            Self::Number | Self::Beside(_) => Some(vec![(*numbers.first()?).max(wanted)]),
            Self::Pages => {
                let (low, pressure, high) = (*numbers.first()?, *numbers.get(1)?, *numbers.get(2)?);
                // In the proportions of the kernel's own defaults: a half, two thirds (here three quarters), all.
                Some(vec![low.max(wanted / 2), pressure.max(wanted / 4 * 3), high.max(wanted)])
            }
            Self::Ports => {
                let (first, last) = (*numbers.first()?, *numbers.get(1)?);
                let each = amount.div_ceil(goal.source_addresses.max(1));
                let each = i64::try_from(each).unwrap_or(i64::MAX);
                let last = if last.saturating_add(1).saturating_sub(first) < each { last.max(PORT_MAX) } else { last };
                let lowest = last.saturating_add(1).saturating_sub(each).max(PORT_MIN);
                // Even, for the kernel wants the ends of the range to be of different parity.
                Some(vec![first.min(lowest - lowest % 2), last])
            }
        }
    }
}

fn amount(number: i64) -> Option<u64> {
    // The size of a hash table is negative where it is another namespace's.
    Some(number.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn goal(connections: u64) -> Goal {
        Goal {
            connections,
            role: Role::Both,
            source_addresses: 1,
            logins_per_s: Goal::default_logins_per_s(connections),
            descriptor_tables: 1,
        }
    }

    #[test]
    fn names_are_told_once_and_each_says_why() {
        let names: Vec<_> = settings().map(|setting| setting.name).collect();
        for (index, setting) in settings().enumerate() {
            assert!(!names[..index].contains(&setting.name), "{} stands twice", setting.name);
            for text in [setting.unit, setting.formula, setting.reason, setting.source, setting.takes_effect] {
                assert!(!text.is_empty(), "{} leaves something open", setting.name);
            }
        }
    }

    #[test]
    fn only_sysctls_that_can_be_required_may_be_written() {
        let facts = Facts { memory_bytes: 1 << 40, page_bytes: 4096, syncookies: false };
        let goal = Goal { descriptor_tables: 120, ..goal(2_000_000) };
        for setting in settings().filter(|setting| setting.is_written()) {
            assert!((setting.required)(&goal, &facts).is_some(), "{} is written, but never required", setting.name);
            assert!(["fs.", "net."].iter().any(|prefix| setting.name.starts_with(prefix)), "{}", setting.name);
        }
        assert!(written("kernel.core_pattern").is_none());
        assert!(written("net.ipv4.tcp_ehash_entries").is_none(), "it is read-only");
    }

    #[test]
    fn tables_share_the_connections_with_some_to_spare() {
        let tables =
            |connections, descriptor_tables| Goal { descriptor_tables, ..goal(connections) }.descriptors_per_table();
        assert_eq!(tables(100_000, 1), 101_024);
        assert_eq!(tables(2_277_846, 120), 19_932 + 64);
        assert_eq!(tables(1000, 120), 1024, "RocksDB's files need a table too");
        assert_eq!(tables(100, 3), 1024);
        assert_eq!(tables(u64::MAX, 1), u64::MAX);
        assert_eq!(tables(u64::MAX, 2), u64::MAX / 2 + u64::MAX / 40 + 1 + 64);
    }

    #[test]
    fn what_suffices_is_kept() {
        let goal = goal(1);
        assert_eq!(Shape::Number.raised(&[100], 50, &goal), Some(vec![100]));
        assert_eq!(Shape::Pages.raised(&[900, 1000, 1100], 1000, &goal), Some(vec![900, 1000, 1100]));
        assert_eq!(Shape::Pages.raised(&[900, 1000, 1100], 4000, &goal), Some(vec![2000, 3000, 4000]));
        assert_eq!(Shape::Ports.raised(&[32_768, 60_999], 20_000, &goal), Some(vec![32_768, 60_999]));
        assert_eq!(Shape::Ports.raised(&[32_768, 60_999], 32_000, &goal), Some(vec![32_768, 65_535]));
        assert_eq!(Shape::Ports.raised(&[32_768, 60_999], 40_001, &goal), Some(vec![25_534, 65_535]));
        assert_eq!(Shape::Ports.raised(&[32_768, 60_999], 90_000, &goal), Some(vec![1024, 65_535]));
        assert_eq!(Shape::Ports.raised(&[32_768], 90_000, &goal), None);
    }
}
