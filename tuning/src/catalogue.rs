//! What a machine needs for N connections: every setting with its formula, its source, and how to change it.
//!
//! Owns the formulas. Never prints and never decides whether the machine will do.

use anyhow::Result;

use crate::procfs::Procfs;

/// Files a server holds open besides its connections: RocksDB's tables and logs, listeners, epolls, wakers.
const DESCRIPTORS_RESERVED: u64 = 1024;
/// Kernel and user memory of one idle, logged-in connection, on either side of it.
const BYTES_PER_CONNECTION: u64 = 4300;
/// What a process needs before the first connection: code, RocksDB's memtables and block cache.
const BYTES_BASE: u64 = 512 * MEBIBYTE;
/// Seconds within which everyone comes back after a restart.
const HERD_S: u64 = 60;
/// The kernel's own default for the queue of a listener, and the least worth asking for.
const ACCEPT_QUEUE_MIN: u64 = 4096;
const ACCEPT_QUEUE_MAX: u64 = 65_535;
const MEBIBYTE: u64 = 1024 * 1024;

const _: () = assert!(ACCEPT_QUEUE_MIN <= ACCEPT_QUEUE_MAX);

/// What is to run on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) connections: u64,
    pub(crate) role: Role,
    /// Addresses that the clients connect from.
    pub(crate) source_addresses: u64,
}

/// What the machine has: of `total`, `used` is taken already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Supply {
    pub(crate) total: u64,
    pub(crate) used: u64,
}

impl Supply {
    fn all(total: u64) -> Self {
        Self { total, used: 0 }
    }

    /// What is left.
    pub(crate) fn free(self) -> u64 {
        self.total.saturating_sub(self.used)
    }
}

/// One thing that has to be large enough.
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// `required` in words; N is the number of connections.
    pub(crate) formula: &'static str,
    /// Where the meaning of the setting is written down.
    pub(crate) source: &'static str,
    pub(crate) applies: fn(&Plan) -> bool,
    pub(crate) required: fn(&Plan) -> u64,
    /// `None`: this kernel has no such limit.
    pub(crate) supply: fn(&Procfs, &Plan) -> Result<Option<Supply>>,
    /// How to get there, given what the setting would have to be.
    pub(crate) mend: fn(u64) -> String,
}

/// Every setting, in the order in which a growing server meets them.
pub(crate) const SETTINGS: [Setting; 10] = [
    Setting {
        name: "open files, soft limit",
        unit: "files",
        formula: "N + 1,024 for RocksDB, listeners and wakers",
        source: "getrlimit(2), RLIMIT_NOFILE",
        applies: |_| true,
        required: descriptors,
        supply: |procfs, _| Ok(Some(Supply::all(procfs.open_files()?.soft))),
        mend: |value| format!("ulimit -n {value}   (in the shell that starts it; systemd: LimitNOFILE={value})"),
    },
    Setting {
        name: "open files, hard limit",
        unit: "files",
        formula: "N + 1,024: the soft limit cannot be raised beyond it",
        source: "getrlimit(2), limits.conf(5)",
        applies: |_| true,
        required: descriptors,
        supply: |procfs, _| Ok(Some(Supply::all(procfs.open_files()?.hard))),
        mend: |value| {
            format!("a line \"* hard nofile {value}\" in /etc/security/limits.d/culver.conf, then log in again")
        },
    },
    Setting {
        name: "fs.nr_open",
        unit: "files",
        formula: "N + 1,024: no hard limit can be raised beyond it",
        source: "proc(5); kernel, admin-guide/sysctl/fs.rst",
        applies: |_| true,
        required: descriptors,
        supply: |procfs, _| total(procfs, "fs.nr_open", 0),
        mend: |value| sysctl("fs.nr_open", value),
    },
    Setting {
        name: "fs.file-max, free",
        unit: "files",
        formula: "(N + 1,024) for each end of a connection on this machine, beside what is open now",
        source: "proc(5); kernel, admin-guide/sysctl/fs.rst",
        applies: |_| true,
        required: |plan| descriptors(plan).saturating_mul(plan.role.ends()),
        supply: |procfs, _| {
            let used = procfs.sysctl_number("fs.file-nr", 0)?.unwrap_or(0);
            Ok(procfs.sysctl_number("fs.file-max", 0)?.map(|total| Supply { total, used }))
        },
        mend: |value| sysctl("fs.file-max", value),
    },
    Setting {
        name: "fs.epoll.max_user_watches",
        unit: "watches",
        formula: "N for each end of a connection on this machine: every socket is watched once",
        source: "epoll(7)",
        applies: |_| true,
        required: |plan| plan.connections.saturating_mul(plan.role.ends()),
        supply: |procfs, _| total(procfs, "fs.epoll.max_user_watches", 0),
        mend: |value| sysctl("fs.epoll.max_user_watches", value),
    },
    Setting {
        name: "net.core.somaxconn",
        unit: "connections",
        formula: "N / 60, within 4,096..65,535: one second of a herd that comes back within a minute",
        source: "listen(2); kernel, networking/ip-sysctl.rst",
        applies: |plan| plan.role.has_server(),
        required: |plan| (plan.connections / HERD_S).clamp(ACCEPT_QUEUE_MIN, ACCEPT_QUEUE_MAX),
        supply: |procfs, _| total(procfs, "net.core.somaxconn", 0),
        mend: |value| sysctl("net.core.somaxconn", value),
    },
    Setting {
        name: "net.ipv4.ip_local_port_range",
        unit: "ports",
        formula: "N: the range's ports on each source address, towards one port of the server",
        source: "ip(7); kernel, networking/ip-sysctl.rst",
        applies: |plan| plan.role.has_clients(),
        required: |plan| plan.connections,
        supply: local_ports,
        mend: |value| {
            format!(
                "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\", and {} source addresses (on loopback all of \
                 127.0.0.0/8 is there)",
                value.div_ceil(65_535 - 1024 + 1)
            )
        },
    },
    Setting {
        name: "net.ipv4.tcp_mem, third value",
        unit: "pages",
        formula: "N pages for each end on this machine: a herd in which each has one record unread",
        source: "tcp(7); kernel, networking/ip-sysctl.rst",
        applies: |_| true,
        required: |plan| plan.connections.saturating_mul(plan.role.ends()),
        supply: |procfs, _| total(procfs, "net.ipv4.tcp_mem", 2),
        mend: |value| {
            format!("sysctl -w net.ipv4.tcp_mem=\"{} {} {value}\"", value.div_ceil(2), (value / 4).saturating_mul(3))
        },
    },
    Setting {
        name: "net.netfilter.nf_conntrack_max",
        unit: "connections",
        formula: "N beside what is tracked now, where connections are tracked at all",
        source: "kernel, networking/nf_conntrack-sysctl.rst",
        applies: |_| true,
        required: |plan| plan.connections,
        supply: |procfs, _| {
            let used = procfs.sysctl_number("net.netfilter.nf_conntrack_count", 0)?.unwrap_or(0);
            Ok(procfs.sysctl_number("net.netfilter.nf_conntrack_max", 0)?.map(|total| Supply { total, used }))
        },
        mend: |value| sysctl("net.netfilter.nf_conntrack_max", value),
    },
    Setting {
        name: "memory, available",
        unit: "MiB",
        formula: "N x 4,300 bytes (kernel and user) + 512 MiB, for each end on this machine",
        source: "proc(5), MemAvailable",
        applies: |_| true,
        required: |plan| {
            let bytes = plan.connections.saturating_mul(BYTES_PER_CONNECTION).saturating_add(BYTES_BASE);
            bytes.saturating_mul(plan.role.ends()).div_ceil(MEBIBYTE)
        },
        supply: |procfs, _| Ok(Some(Supply::all(procfs.memory_bytes("MemAvailable")? / MEBIBYTE))),
        mend: |value| format!("a machine, or a smaller share of this one for others, with {value} MiB to spare"),
    },
];

fn descriptors(plan: &Plan) -> u64 {
    plan.connections.saturating_add(DESCRIPTORS_RESERVED)
}

fn total(procfs: &Procfs, name: &str, index: usize) -> Result<Option<Supply>> {
    Ok(procfs.sysctl_number(name, index)?.map(Supply::all))
}

fn local_ports(procfs: &Procfs, plan: &Plan) -> Result<Option<Supply>> {
    const NAME: &str = "net.ipv4.ip_local_port_range";
    let (Some(low), Some(high)) = (procfs.sysctl_number(NAME, 0)?, procfs.sysctl_number(NAME, 1)?) else {
        return Ok(None);
    };
    let ports = high.saturating_add(1).saturating_sub(low);
    Ok(Some(Supply::all(ports.saturating_mul(plan.source_addresses))))
}

fn sysctl(name: &str, value: u64) -> String {
    format!("sysctl -w {name}={value}")
}
