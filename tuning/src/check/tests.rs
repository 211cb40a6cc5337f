use super::*;
use crate::catalogue::Role;
use crate::namespace::Target;
use crate::plan::{Format, changes, told};
use crate::procfs::Procfs;
use crate::testing::{Fake, goal, write};

fn report(fake: &Fake, goal: &Goal) -> Report {
    check(&fake.machine, goal).expect("readable")
}

fn missing(report: &Report) -> Vec<&'static str> {
    report.missing().map(|finding| finding.name).collect()
}

fn find<'a>(report: &'a Report, name: &str) -> &'a Finding {
    report.findings.iter().find(|finding| finding.name == name).expect("every setting is told")
}

#[test]
fn a_machine_with_enough_is_ready() {
    let report = report(&Fake::new(), &goal(15_000, Role::Both));
    assert_eq!(missing(&report), Vec::<&str>::new());
    assert!(report.ready);
    assert_eq!(report.kernel, "6.1.0-test");
    assert_eq!(report.memory_bytes, 8_000_000 * 1024);
}

#[test]
fn what_is_short_is_named_with_what_it_would_have_to_be() {
    let fake = Fake::new();
    fake.set("net.core.somaxconn", "128\n");
    let report = report(&fake, &goal(30_000, Role::Both));
    assert!(!report.ready);
    assert_eq!(missing(&report), ["open files, hard limit", "net.core.somaxconn", "net.ipv4.ip_local_port_range"]);
    let hard = find(&report, "open files, hard limit");
    assert_eq!((hard.required, hard.current), (Some(31_024), Some(20_000)));
    assert!(hard.mend.as_deref().expect("it is short").starts_with("LimitNOFILE=31024 "));
    let queue = find(&report, "net.core.somaxconn");
    assert_eq!(queue.mend.as_deref(), Some("sysctl -w net.core.somaxconn=4096"));
    let ports = find(&report, "net.ipv4.ip_local_port_range");
    assert_eq!(ports.mend.as_deref(), Some("sysctl -w net.ipv4.ip_local_port_range=\"32768 65535\""));
}

#[test]
fn each_end_on_the_machine_counts() {
    let fake = Fake::new();
    let required = |role, name| find(&report(&fake, &goal(10_000, role)), name).required;
    assert_eq!(required(Role::Server, "net.ipv4.ip_local_port_range"), None);
    assert_eq!(required(Role::Clients, "net.core.somaxconn"), None);
    assert_eq!(required(Role::Both, "fs.file-max"), Some(2 * 11_088));
    assert_eq!(required(Role::Both, "open files, hard limit"), Some(11_024));
    assert_eq!(required(Role::Both, "net.ipv4.tcp_mem"), Some(20_000));
    assert_eq!(required(Role::Server, "memory, available"), Some((10_000 * 4240u64).div_ceil(1 << 20) + 512));
}

#[test]
fn what_is_only_told_never_stands_in_the_way() {
    let fake = Fake::new();
    for name in ["net.core.netdev_max_backlog", "net.ipv4.tcp_max_orphans", "net.ipv4.tcp_keepalive_time"] {
        fake.set(name, "0\n");
    }
    let report = report(&fake, &goal(15_000, Role::Both));
    assert!(report.ready);
    assert_eq!(find(&report, "net.ipv4.tcp_max_orphans").state, State::Info);
    assert_eq!(find(&report, "open files, soft limit").state, State::Info, "the server raises it itself");
}

#[test]
fn the_queue_of_half_open_connections_counts_only_without_cookies() {
    let fake = Fake::new();
    fake.set("net.ipv4.tcp_max_syn_backlog", "128\n");
    assert!(report(&fake, &goal(15_000, Role::Server)).ready);
    fake.set("net.ipv4.tcp_syncookies", "0\n");
    let report = report(&fake, &goal(15_000, Role::Server));
    assert_eq!(missing(&report), ["net.ipv4.tcp_max_syn_backlog"]);
    assert_eq!(find(&report, "net.ipv4.tcp_max_syn_backlog").required, Some(5462));
}

#[test]
fn several_tables_need_smaller_ones_and_a_listener_that_hands_over() {
    let fake = Fake::new();
    let spread = Goal { descriptor_tables: 60, ..goal(1_000_000, Role::Server) };
    let spread = report(&fake, &spread);
    assert_eq!(find(&spread, "open files, hard limit").required, Some(17_500 + 64));
    assert!(find(&spread, "open files, hard limit").enough);
    let handing_over = find(&spread, "net.ipv4.tcp_migrate_req");
    assert_eq!((handing_over.required, handing_over.enough), (Some(1), false));
    assert_eq!(handing_over.counter.as_ref().expect("it has one").value, Some(3));
    assert_eq!(find(&report(&fake, &goal(1_000_000, Role::Server)), "net.ipv4.tcp_migrate_req").required, None);
}

#[test]
fn a_rate_of_its_own_sets_the_queue() {
    let fake = Fake::new();
    let queue = |logins_per_s| {
        let goal = Goal { logins_per_s, ..goal(1_000_000, Role::Server) };
        find(&report(&fake, &goal), "net.core.somaxconn").required
    };
    assert_eq!(queue(1), Some(4096));
    assert_eq!(queue(20_000), Some(20_000));
    assert_eq!(queue(1_000_000), Some(65_535));
}

#[test]
fn more_source_addresses_bring_more_ports() {
    let fake = Fake::new();
    let goal = |source_addresses| Goal { source_addresses, ..goal(150_000, Role::Clients) };
    let one = report(&fake, &goal(1));
    let ports = find(&one, "net.ipv4.ip_local_port_range");
    assert!(!ports.enough);
    let mend = ports.mend.as_deref().expect("it is short");
    assert!(mend.starts_with("sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\", and --source-ips 3:"), "{mend}");
    assert!(find(&report(&fake, &goal(6)), "net.ipv4.ip_local_port_range").enough);
    fake.set("net.ipv4.ip_local_port_range", "1024 65535");
    let widest = report(&fake, &goal(1));
    let mend = find(&widest, "net.ipv4.ip_local_port_range").mend.as_deref().expect("it is short");
    assert!(mend.starts_with("--source-ips 3:"), "{mend}");
    assert!(changes(&fake.machine, &goal(1)).expect("readable").iter().all(|change| !change.setting.contains("port")));
}

#[test]
fn what_is_open_or_tracked_already_is_taken() {
    let fake = Fake::new();
    fake.set("fs.file-max", "12000\n");
    fake.set("net.netfilter.nf_conntrack_max", "10500\n");
    fake.set("net.netfilter.nf_conntrack_count", "700\n");
    let report = report(&fake, &goal(10_000, Role::Server));
    assert_eq!(missing(&report), ["fs.file-max", "net.netfilter.nf_conntrack_max"]);
    let tracked = find(&report, "net.netfilter.nf_conntrack_max");
    assert_eq!((tracked.required, tracked.current), (Some(10_000), Some(9_800)));
    assert_eq!(tracked.mend.as_deref(), Some("sysctl -w net.netfilter.nf_conntrack_max=11700"));
}

/// A server that is asked about while it runs has the connections that it is to have.
#[test]
fn the_connections_of_the_process_asked_about_are_not_others() {
    let fake = Fake::new();
    fake.set("fs.file-max", "21000\n");
    fake.set("fs.file-nr", "10900\t0\t21000\n");
    fake.write("thread-self/net/sockstat", "TCP: inuse 9000 orphan 0 tw 0 alloc 9000 mem 1\n");
    fake.write("77/limits", "Max open files            30000                40000                files\n");
    let procfs = fake.machine.host().clone();
    let asked = crate::machine::Machine::of(procfs.clone(), procfs, Target::Process(77));
    let asked = check(&asked, &goal(15_000, Role::Server)).expect("readable");
    let files = find(&asked, "fs.file-max");
    assert_eq!((files.required, files.current, files.enough), (Some(16_088), Some(19_100), true));
    assert_eq!(find(&asked, "open files, hard limit").current, Some(40_000));
    let not_asked = report(&fake, &goal(15_000, Role::Server));
    assert_eq!(find(&not_asked, "fs.file-max").current, Some(10_100));
}

#[test]
fn a_setting_this_kernel_does_not_have_is_absent_and_nothing_more() {
    let fake = Fake::new();
    fake.remove("net.ipv4.tcp_migrate_req");
    let goal = Goal { descriptor_tables: 2, ..goal(10, Role::Server) };
    let report = report(&fake, &goal);
    assert!(report.ready);
    let absent = find(&report, "net.ipv4.tcp_migrate_req");
    assert_eq!((absent.state, absent.current, absent.place), (State::Absent, None, None));
    assert!(changes(&fake.machine, &goal).expect("readable").is_empty());
}

#[test]
fn unreadable_settings_are_an_error_that_names_them() {
    for text in ["many\n", "", "1 x\n"] {
        let fake = Fake::new();
        fake.set("net.core.somaxconn", text);
        let error = check(&fake.machine, &goal(10, Role::Server)).expect_err("not numbers");
        assert!(format!("{error:#}").contains("net.core.somaxconn"), "{error:#}");
    }
    let fake = Fake::new();
    fake.set("net.ipv4.tcp_mem", "5\n");
    let error = check(&fake.machine, &goal(10, Role::Server)).expect_err("too few numbers");
    assert!(format!("{error:#}").contains("net.ipv4.tcp_mem"), "{error:#}");
}

#[test]
fn no_number_of_connections_overflows() {
    let fake = Fake::new();
    for role in [Role::Server, Role::Clients, Role::Both] {
        for (descriptor_tables, source_addresses) in [(1, 1), (65_536, u64::MAX)] {
            let goal = Goal { descriptor_tables, source_addresses, ..goal(u64::MAX, role) };
            let report = report(&fake, &goal);
            assert!(!report.ready);
            assert!(!Table { report: &report, explain: true }.to_string().is_empty());
            for format in [Format::Table, Format::Json, Format::SysctlD, Format::Systemd, Format::LimitsD] {
                assert!(!told(&fake.machine, &goal, format).expect("readable").is_empty());
            }
        }
    }
}

#[test]
fn the_table_shows_required_current_counter_and_mend() {
    let report = report(&Fake::new(), &goal(1_000_000, Role::Server));
    let table = Table { report: &report, explain: false }.to_string();
    assert!(table.contains("MISSING  open files, hard limit"), "{table}");
    assert!(table.contains("1,001,024        20,000  files a table"), "{table}");
    assert!(table.contains("mend: LimitNOFILE=1001024 in the systemd unit"), "{table}");
    assert!(table.contains("unlimited"), "{table}");
    assert!(table.contains("TcpExt ListenOverflows 17"), "{table}");
}

#[test]
fn names_in_json_are_these() {
    let report = report(&Fake::new(), &goal(1_000_000, Role::Server));
    let json = serde_json::to_value(&report).expect("it is JSON");
    for name in
        ["connections", "role", "source_addresses", "logins_per_s", "descriptor_tables", "memory_bytes", "ready"]
    {
        assert!(json.get(name).is_some(), "{name}");
    }
    let finding = json.get("findings").and_then(|findings| findings.get(6)).expect("there are more");
    assert_eq!(finding["name"], "net.core.somaxconn");
    assert_eq!(finding["scope"], "namespace");
    assert_eq!(finding["state"], "missing");
    assert_eq!(finding["enough"], false);
    assert_eq!(finding["value"], "4096");
    assert_eq!(finding["counter"]["value"], 17);
}

/// What belongs to the whole machine is not shown in another namespace, or read-only; what belongs to it is its own.
#[test]
fn settings_are_told_apart_by_what_the_namespace_shows() {
    use std::os::unix::fs::PermissionsExt;
    let host = Fake::new();
    host.set("net.netfilter.nf_conntrack_max", "300");
    host.set("net.netfilter.nf_conntrack_count", "0");
    let folder = tempfile::tempdir().expect("a folder for a namespace");
    for (path, text) in [
        ("sys/net/core/somaxconn", "128"),
        ("sys/net/ipv4/tcp_migrate_req", "0"),
        ("sys/net/netfilter/nf_conntrack_max", "300"),
        ("sys/net/ipv4/tcp_ehash_entries", "-262144"),
    ] {
        write(folder.path(), path, text);
    }
    let conntrack = folder.path().join("sys/net/netfilter/nf_conntrack_max");
    std::fs::set_permissions(&conntrack, std::fs::Permissions::from_mode(0o444)).expect("it is ours");
    let machine = crate::machine::Machine::of(Procfs::new(folder.path(), 2), host.machine.host().clone(), Target::Own);
    let report = check(&machine, &goal(200_000, Role::Server)).expect("readable");
    assert_eq!(find(&report, "net.core.somaxconn").place, Some(Place::Namespace));
    assert_eq!(find(&report, "net.core.somaxconn").current, Some(128));
    assert_eq!(find(&report, "net.ipv4.tcp_mem").place, Some(Place::Host));
    assert_eq!(find(&report, "net.netfilter.nf_conntrack_max").place, Some(Place::Host));
    assert_eq!(find(&report, "fs.nr_open").place, Some(Place::Host));
    assert_eq!(find(&report, "net.ipv4.tcp_ehash_entries").current, Some(262_144));
    assert_eq!(report.namespace_inode, 2);
}

#[test]
fn plans_come_as_files() {
    let fake = Fake::new();
    let goal = Goal { descriptor_tables: 120, ..goal(2_000_000, Role::Server) };
    let sysctl_d = told(&fake.machine, &goal, Format::SysctlD).expect("readable");
    assert!(sysctl_d.contains("\nnet.core.somaxconn = 33333\n"), "{sysctl_d}");
    assert!(sysctl_d.contains("\nfs.nr_open = 1048576\n"), "what suffices is kept: {sysctl_d}");
    assert!(sysctl_d.contains("\nnet.ipv4.tcp_mem = 500000 750000 1000000\n"), "half of memory: {sysctl_d}");
    let systemd = told(&fake.machine, &goal, Format::Systemd).expect("readable");
    assert!(systemd.ends_with("[Service]\nLimitNOFILE=17564\n"), "{systemd}");
    let limits = told(&fake.machine, &goal, Format::LimitsD).expect("readable");
    assert!(limits.contains("\n* soft nofile 17564\n* hard nofile 17564\n"), "{limits}");
    assert!(limits.ends_with("\nroot soft nofile 17564\nroot hard nofile 17564\n"), "`*` is not root: {limits}");
    let table = told(&fake.machine, &goal, Format::Table).expect("readable");
    assert!(table.contains("net.core.somaxconn (now 4096), of a network namespace"), "{table}");
    let nothing = told(&fake.machine, &crate::testing::goal(100, Role::Server), Format::Table).expect("readable");
    assert!(nothing.starts_with("nothing is to be changed"), "{nothing}");
}
