//! Descriptors and memory: what a process and the whole machine may hold.

use super::{BYTES_BASE, KERNEL_BYTES_PER_END, Kind, MEBIBYTE, SERVER_BYTES_PER_CONNECTION, Scope, Setting, Shape};
use crate::counters::Counter;

pub(super) static SETTINGS: [Setting; 6] = [
    Setting {
        name: "open files, soft limit",
        unit: "files",
        kind: Kind::OpenFilesSoft,
        scope: Scope::Process,
        takes_effect: "in processes started after it",
        formula: "none: server and load generator raise it to the hard limit themselves",
        reason: "accept(2) and socket(2) fail with EMFILE beyond it",
        source: "getrlimit(2), RLIMIT_NOFILE",
        counter: Counter::None,
        required: |_, _| None,
    },
    Setting {
        name: "open files, hard limit",
        unit: "files a table",
        kind: Kind::OpenFilesHard,
        scope: Scope::Process,
        takes_effect: "in processes started after it",
        formula: "N + 1,024; with T tables 1.05 N / T + 64, and 1,024 for the one that holds RocksDB's files",
        reason: "the limit is one of each descriptor table; a full one accepts nobody, and the soft limit cannot be \
                 raised beyond it",
        source: "getrlimit(2), RLIMIT_NOFILE; unshare(2), CLONE_FILES; limits.conf(5)",
        counter: Counter::None,
        required: |goal, _| Some(goal.descriptors_per_table()),
    },
    Setting {
        name: "fs.nr_open",
        unit: "files a table",
        kind: Kind::Written(Shape::Number),
        scope: Scope::Host,
        takes_effect: "at once, when a limit is raised",
        formula: "as the hard limit",
        reason: "no hard limit can be raised beyond it",
        source: "proc(5); kernel, admin-guide/sysctl/fs.rst",
        counter: Counter::None,
        required: |goal, _| Some(goal.descriptors_per_table()),
    },
    Setting {
        name: "fs.file-max",
        unit: "files free",
        kind: Kind::Written(Shape::Beside("fs.file-nr")),
        scope: Scope::Host,
        takes_effect: "at once",
        formula: "(N + 1,024 + 64 for each table) for each end of a connection on this machine, beside what others have open",
        reason: "beyond it accept(2) and socket(2) fail with ENFILE for everybody who is not root",
        source: "proc(5); kernel, admin-guide/sysctl/fs.rst",
        counter: Counter::Sysctl("fs.file-nr"),
        required: |goal, _| Some(goal.descriptors_of_machine()),
    },
    Setting {
        name: "fs.epoll.max_user_watches",
        unit: "watches",
        kind: Kind::Written(Shape::Number),
        scope: Scope::Host,
        takes_effect: "at once",
        formula: "N for each end of a connection on this machine: every socket is watched once",
        reason: "beyond it epoll_ctl(2) fails with ENOSPC; it bounds each user, not each process",
        source: "epoll(7)",
        counter: Counter::None,
        required: |goal, _| Some(goal.ends()),
    },
    Setting {
        name: "memory, available",
        unit: "MiB",
        kind: Kind::MemoryAvailable,
        scope: Scope::Host,
        takes_effect: "at once",
        formula: "N x 4,040 bytes for each end on this machine (kernel) + N x 200 bytes (server) + 512 MiB for each end",
        reason: "an idle connection costs this much, measured; the kernel's part cannot be swapped",
        source: "proc(5), MemAvailable; culver-loadgen density",
        counter: Counter::Meminfo("MemAvailable"),
        required: |goal, _| {
            let kernel = goal.ends().saturating_mul(KERNEL_BYTES_PER_END);
            let server = if goal.role.has_server() { SERVER_BYTES_PER_CONNECTION } else { 0 };
            let base = BYTES_BASE.saturating_mul(goal.role.ends());
            let bytes = kernel.saturating_add(goal.connections.saturating_mul(server)).saturating_add(base);
            Some(bytes.div_ceil(MEBIBYTE))
        },
    },
];
