//! Holds the catalogue against a machine, and tells the result as a table or as JSON.
//!
//! Owns the verdict. Never changes a setting.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use crate::catalogue::{Plan, Role, SETTINGS, Setting};
use crate::procfs::Procfs;

/// Beyond this a limit is none.
const UNLIMITED_MIN: u64 = 1 << 60;

/// One setting on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) required: u64,
    pub(crate) current: u64,
    pub(crate) enough: bool,
    pub(crate) formula: &'static str,
    pub(crate) source: &'static str,
    /// How to get there; only where it is not enough.
    pub(crate) mend: Option<String>,
}

/// All settings on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    pub(crate) version: &'static str,
    pub(crate) kernel: String,
    pub(crate) memory_bytes: u64,
    pub(crate) connections: u64,
    pub(crate) role: Role,
    pub(crate) source_addresses: u64,
    pub(crate) ready: bool,
    pub(crate) findings: Vec<Finding>,
}

/// Checks every setting that the plan needs and this kernel has.
///
/// # Errors
/// A setting cannot be read.
pub(crate) fn check(procfs: &Procfs, plan: &Plan) -> Result<Report> {
    let mut findings = Vec::with_capacity(SETTINGS.len());
    for setting in SETTINGS.iter().filter(|setting| (setting.applies)(plan)) {
        findings.extend(examine(setting, procfs, plan)?);
    }
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        kernel: procfs.kernel()?,
        memory_bytes: procfs.memory_bytes("MemTotal")?,
        connections: plan.connections,
        role: plan.role,
        source_addresses: plan.source_addresses,
        ready: findings.iter().all(|finding| finding.enough),
        findings,
    })
}

fn examine(setting: &Setting, procfs: &Procfs, plan: &Plan) -> Result<Option<Finding>> {
    let Some(supply) = (setting.supply)(procfs, plan)? else { return Ok(None) };
    let required = (setting.required)(plan);
    let current = supply.free();
    let enough = current >= required;
    Ok(Some(Finding {
        name: setting.name,
        unit: setting.unit,
        required,
        current,
        enough,
        formula: setting.formula,
        source: setting.source,
        mend: (!enough).then(|| (setting.mend)(required.saturating_add(supply.used))),
    }))
}

/// The report as a table; `explain` adds formula and source of each line.
pub(crate) struct Table<'a> {
    pub(crate) report: &'a Report,
    pub(crate) explain: bool,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        writeln!(out, "{:<9}{:<34}{:>14}{:>14}  unit", "", "what", "required", "current")?;
        for finding in &report.findings {
            let state = if finding.enough { "ok" } else { "MISSING" };
            let (required, current) = (amount(finding.required), amount(finding.current));
            writeln!(out, "{state:<9}{:<34}{required:>14}{current:>14}  {}", finding.name, finding.unit)?;
            if self.explain {
                writeln!(out, "{:<9}  {} [{}]", "", finding.formula, finding.source)?;
            }
            if let Some(mend) = &finding.mend {
                writeln!(out, "{:<9}  mend: {mend}", "")?;
            }
        }
        let missing = report.findings.iter().filter(|finding| !finding.enough).count();
        let connections = amount(report.connections);
        if missing == 0 {
            return writeln!(out, "\nready for {connections} connections (Linux {})", report.kernel);
        }
        writeln!(out, "\nnot ready for {connections} connections: {missing} of {} missing", report.findings.len())?;
        writeln!(out, "what sysctl -w sets lasts until the next boot; a line in /etc/sysctl.d/culver.conf keeps it")
    }
}

/// A number with its thousands apart.
fn amount(number: u64) -> String {
    if number >= UNLIMITED_MIN {
        return "unlimited".to_owned();
    }
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units\n\
        Max processes             1                    2                    processes\n\
        Max open files            20000                1048576              files\n";

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("every path here has a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    /// A machine that is ready for 15,000 connections of a server, and of its clients from one address.
    fn machine() -> (tempfile::TempDir, Procfs) {
        let root = tempfile::tempdir().expect("a folder for a machine");
        for (path, text) in [
            ("self/limits", LIMITS),
            ("meminfo", "MemTotal:       8000000 kB\nMemFree:  5 kB\nMemAvailable:    4000000 kB\n"),
            ("sys/kernel/osrelease", "6.1.0-test\n"),
            ("sys/fs/nr_open", "1048576\n"),
            ("sys/fs/file-max", "9223372036854775807\n"),
            ("sys/fs/file-nr", "1000\t0\t9223372036854775807\n"),
            ("sys/fs/epoll/max_user_watches", "1000000\n"),
            ("sys/net/core/somaxconn", "4096\n"),
            ("sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
            ("sys/net/ipv4/tcp_mem", "90000\t120000\t180000\n"),
        ] {
            write(root.path(), path, text);
        }
        let procfs = Procfs::new(root.path());
        (root, procfs)
    }

    fn plan(connections: u64, role: Role) -> Plan {
        Plan { connections, role, source_addresses: 1 }
    }

    fn missing(report: &Report) -> Vec<&'static str> {
        report.findings.iter().filter(|finding| !finding.enough).map(|finding| finding.name).collect()
    }

    #[test]
    fn a_machine_with_enough_is_ready() {
        let (_root, procfs) = machine();
        let report = check(&procfs, &plan(15_000, Role::Both)).expect("readable");
        assert_eq!(missing(&report), Vec::<&str>::new());
        assert!(report.ready);
        assert_eq!(report.kernel, "6.1.0-test");
        assert_eq!(report.memory_bytes, 8_000_000 * 1024);
    }

    #[test]
    fn what_is_short_is_named_with_what_it_would_have_to_be() {
        let (root, procfs) = machine();
        write(root.path(), "sys/net/core/somaxconn", "128\n");
        let report = check(&procfs, &plan(30_000, Role::Both)).expect("readable");
        assert!(!report.ready);
        assert_eq!(missing(&report), ["open files, soft limit", "net.core.somaxconn", "net.ipv4.ip_local_port_range"]);
        let soft = report.findings.first().expect("the soft limit comes first");
        assert_eq!((soft.required, soft.current), (31_024, 20_000));
        assert!(soft.mend.as_deref().expect("it is short").starts_with("ulimit -n 31024 "));
    }

    #[test]
    fn each_end_on_the_machine_counts() {
        let (_root, procfs) = machine();
        let required = |role| {
            let report = check(&procfs, &plan(10_000, role)).expect("readable");
            report.findings.iter().map(|finding| (finding.name, finding.required)).collect::<Vec<_>>()
        };
        let (server, clients, both) = (required(Role::Server), required(Role::Clients), required(Role::Both));
        assert!(!server.iter().any(|(name, _)| *name == "net.ipv4.ip_local_port_range"));
        assert!(!clients.iter().any(|(name, _)| *name == "net.core.somaxconn"));
        assert!(both.contains(&("fs.file-max, free", 2 * 11_024)));
        assert!(both.contains(&("open files, soft limit", 11_024)));
        assert!(both.contains(&("net.ipv4.tcp_mem, third value", 20_000)));
    }

    #[test]
    fn more_source_addresses_bring_more_ports() {
        let (_root, procfs) = machine();
        let ports_missing = |source_addresses| {
            let plan = Plan { connections: 50_000, role: Role::Clients, source_addresses };
            missing(&check(&procfs, &plan).expect("readable")).contains(&"net.ipv4.ip_local_port_range")
        };
        assert!(ports_missing(1));
        assert!(!ports_missing(2));
    }

    #[test]
    fn what_is_open_or_tracked_already_is_taken() {
        let (root, procfs) = machine();
        write(root.path(), "sys/fs/file-max", "12000\n");
        write(root.path(), "sys/net/netfilter/nf_conntrack_max", "10500\n");
        write(root.path(), "sys/net/netfilter/nf_conntrack_count", "700\n");
        let report = check(&procfs, &plan(10_000, Role::Server)).expect("readable");
        assert_eq!(missing(&report), ["fs.file-max, free", "net.netfilter.nf_conntrack_max"]);
        let tracked = report.findings.iter().find(|finding| finding.name.contains("conntrack")).expect("it is there");
        assert_eq!((tracked.required, tracked.current), (10_000, 9_800));
        assert_eq!(tracked.mend.as_deref(), Some("sysctl -w net.netfilter.nf_conntrack_max=10700"));
    }

    #[test]
    fn a_limit_this_kernel_does_not_have_is_left_out() {
        let (_root, procfs) = machine();
        let report = check(&procfs, &plan(10, Role::Server)).expect("readable");
        assert!(!report.findings.iter().any(|finding| finding.name.contains("conntrack")));
    }

    #[test]
    fn unreadable_settings_are_an_error_that_names_them() {
        let (root, procfs) = machine();
        write(root.path(), "sys/net/core/somaxconn", "many\n");
        let error = check(&procfs, &plan(10, Role::Server)).expect_err("not a number");
        assert!(format!("{error:#}").contains("net.core.somaxconn"), "{error:#}");
    }

    #[test]
    fn no_number_of_connections_overflows() {
        let (_root, procfs) = machine();
        let report = check(&procfs, &plan(u64::MAX, Role::Both)).expect("readable");
        assert!(!report.ready);
        assert!(!Table { report: &report, explain: true }.to_string().is_empty());
    }

    #[test]
    fn the_table_shows_required_current_and_mend() {
        let (_root, procfs) = machine();
        let report = check(&procfs, &plan(1_000_000, Role::Server)).expect("readable");
        let table = Table { report: &report, explain: false }.to_string();
        assert!(table.contains("MISSING  open files, soft limit"), "{table}");
        assert!(table.contains("1,001,024        20,000  files"), "{table}");
        assert!(table.contains("mend: ulimit -n 1001024"), "{table}");
        assert!(table.contains("unlimited"), "{table}");
    }
}
