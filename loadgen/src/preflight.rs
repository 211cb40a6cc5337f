//! Whether this machine has what a number of connections needs: asked before the first of them, and told all at once.
//! Reads limits; changes none but the soft limit of descriptors.

use std::fmt;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, getrlimit};

use crate::{procfs, sys};

/// Descriptors of a table beside its connections: standard streams, an epoll, a waker, a file of tickets.
pub(crate) const TABLE_RESERVE: u64 = 32;
/// Descriptors of a server's table beside its connections, as `culver-tune` counts them.
const SERVER_TABLE_RESERVE: u64 = 64;
/// Connections come to a server's tables by hash, so the fullest has more than its share: percent of it.
const SPREAD_PERCENT: u64 = 105;
/// Of the ports of a source address, so many in a hundred are used at most: the kernel looks long for the last ones.
const PORTS_USED_PERCENT: u64 = 90;
/// Kernel memory of one end of an idle connection.
const KERNEL_BYTES_PER_END: u64 = 4040;
/// Memory that this program may take for a connection.
const OWN_BYTES_PER_CONNECTION: u64 = 400;
/// Memory that stays for everything else.
const MEMORY_SLACK_BYTES: u64 = 512 << 20;

/// What is asked of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    pub(crate) connections: u64,
    /// Tables of descriptors on this side: one for each worker.
    pub(crate) workers: u64,
    pub(crate) source_addresses: u64,
    /// The server's ends of the connections are on this machine too.
    pub(crate) server_here: bool,
    pub(crate) server_bytes_per_connection: u64,
}

impl Demand {
    /// Ends of a connection on this machine.
    fn ends(&self) -> u64 {
        if self.server_here { 2 } else { 1 }
    }

    /// Descriptors of one worker's table.
    fn table_len(&self) -> u64 {
        self.connections.div_ceil(self.workers.max(1)).saturating_add(TABLE_RESERVE)
    }

    /// Memory that a connection takes on this machine.
    fn bytes_per_connection(&self) -> u64 {
        let server_bytes = if self.server_here { self.server_bytes_per_connection } else { 0 };
        KERNEL_BYTES_PER_END * self.ends() + OWN_BYTES_PER_CONNECTION + server_bytes
    }
}

/// What the machine has left; `None`: no such limit here.
#[derive(Clone, Copy, Debug)]
struct Supply {
    /// The hard limit, of each table by itself.
    descriptors_per_table: u64,
    files: Option<u64>,
    epoll_watches: Option<u64>,
    ports_per_address: u64,
    memory_bytes: u64,
    tracked_connections: Option<u64>,
}

/// One thing of which there is not enough.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shortage {
    what: &'static str,
    needed: u64,
    found: u64,
    /// What would do, where it can be had on the command line.
    mend: Option<String>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} needed, {} there", self.what, self.needed, self.found)?;
        self.mend.iter().try_for_each(|mend| write!(f, " ({mend})"))
    }
}

/// Raises the soft limit of descriptors to what is needed, and tells everything that is short as one error.
pub(crate) fn check(demand: &Demand) -> Result<()> {
    let supply = Supply::look()?;
    let shortages = judge(demand, &supply);
    if !shortages.is_empty() {
        bail!(explain(demand, &supply, &shortages));
    }
    sys::raise_descriptor_limit(demand.table_len() + sys::DESCRIPTORS_BESIDE).context("the limit of descriptors")?;
    Ok(())
}

/// How many workers, each with a table of descriptors of its own, so many connections need here.
pub(crate) fn workers_needed(connections: u64) -> u64 {
    tables_needed(connections, descriptors_per_table())
}

/// Tables of at most `limit` descriptors that hold so many connections.
pub(crate) fn tables_needed(connections: u64, limit: u64) -> u64 {
    connections.div_ceil(limit.saturating_sub(TABLE_RESERVE).max(1)).max(1)
}

/// The hard limit of descriptors, which holds for each table by itself.
pub(crate) fn descriptors_per_table() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

impl Supply {
    fn look() -> Result<Self> {
        let left = |total: &str, used: &str| Some(first_number(total)?.saturating_sub(first_number(used)?));
        let tracking = first_number("net/netfilter/nf_conntrack_count").is_some_and(|count| count > 0);
        let tracked = || left("net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_count");
        Ok(Self {
            descriptors_per_table: descriptors_per_table(),
            files: left("fs/file-max", "fs/file-nr"),
            epoll_watches: first_number("fs/epoll/max_user_watches"),
            ports_per_address: sysctl("net/ipv4/ip_local_port_range")
                .and_then(|range| port_count(&range))
                .context("net.ipv4.ip_local_port_range cannot be read")?,
            memory_bytes: procfs::memory_available_bytes()?,
            tracked_connections: if tracking { tracked() } else { None },
        })
    }
}

/// Everything of which there is not enough.
fn judge(demand: &Demand, supply: &Supply) -> Vec<Shortage> {
    let ends = demand.connections.saturating_mul(demand.ends());
    let memory = demand.connections.saturating_mul(demand.bytes_per_connection()).saturating_add(MEMORY_SLACK_BYTES);
    let ports = supply.ports_per_address.saturating_mul(demand.source_addresses);
    let rows = [
        (
            "descriptors in the table of each worker",
            demand.table_len(),
            Some(supply.descriptors_per_table),
            Some(format!("--workers {}", tables_needed(demand.connections, supply.descriptors_per_table))),
        ),
        ("open files, fs.file-max", ends, supply.files, None),
        ("watches, fs.epoll.max_user_watches", ends, supply.epoll_watches, None),
        (
            "ports of the source addresses, net.ipv4.ip_local_port_range",
            ports_needed(demand.connections),
            Some(ports),
            Some(format!("--source-ips {}", addresses_needed(demand, supply))),
        ),
        (
            "bytes of memory",
            memory,
            Some(supply.memory_bytes),
            Some(format!("enough for {} connections", connections_that_fit(demand, supply.memory_bytes))),
        ),
        ("tracked connections, net.netfilter.nf_conntrack_max", demand.connections, supply.tracked_connections, None),
    ];
    let short = rows.into_iter().filter_map(|(what, needed, found, mend)| {
        let found = found.filter(|found| *found < needed)?;
        Some(Shortage { what, needed, found, mend })
    });
    short.collect()
}

fn explain(demand: &Demand, supply: &Supply, shortages: &[Shortage]) -> String {
    let mut text = format!("this machine has not enough for {} connections:\n", demand.connections);
    for shortage in shortages {
        text += &format!("  {shortage}\n");
    }
    let role = if demand.server_here { "both" } else { "clients" };
    let source_ips = demand.source_addresses.max(addresses_needed(demand, supply));
    let tables = demand.workers.max(tables_of_a_server(demand.connections, supply.descriptors_per_table));
    text + &format!(
        "what can be mended, this mends: culver-tune apply --connections {} --role {role} --source-ips {source_ips} \
         --fd-tables {tables}",
        demand.connections
    )
}

/// Tables over which a server has to spread so many connections.
fn tables_of_a_server(connections: u64, limit: u64) -> u64 {
    let spread = connections.saturating_mul(SPREAD_PERCENT).div_ceil(100);
    spread.div_ceil(limit.saturating_sub(SERVER_TABLE_RESERVE).max(1)).max(1)
}

/// Ports that must be there for so many to be used.
fn ports_needed(connections: u64) -> u64 {
    connections.saturating_mul(100).div_ceil(PORTS_USED_PERCENT)
}

fn addresses_needed(demand: &Demand, supply: &Supply) -> u64 {
    ports_needed(demand.connections).div_ceil(supply.ports_per_address.max(1))
}

fn connections_that_fit(demand: &Demand, memory_bytes: u64) -> u64 {
    memory_bytes.saturating_sub(MEMORY_SLACK_BYTES) / demand.bytes_per_connection()
}

fn sysctl(name: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/{name}")).ok()
}

fn first_number(name: &str) -> Option<u64> {
    sysctl(name)?.split_whitespace().next()?.parse().ok()
}

/// `32768 60999`: both are given out.
fn port_count(range: &str) -> Option<u64> {
    let mut ends = range.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    Some((last + 1).saturating_sub(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand {
        connections: 2_277_846,
        workers: 120,
        source_addresses: 480,
        server_here: true,
        server_bytes_per_connection: 192,
    };
    const PLENTY: Supply = Supply {
        descriptors_per_table: 20_000,
        files: Some(5_000_000),
        epoll_watches: Some(5_000_000),
        ports_per_address: 28_232,
        memory_bytes: 24 << 30,
        tracked_connections: None,
    };

    /// Names of what is short, by their first words.
    fn short(demand: &Demand, supply: &Supply) -> Vec<&'static str> {
        let words = |what: &'static str| what.split(' ').next().expect("a name has words");
        judge(demand, supply).iter().map(|shortage| words(shortage.what)).collect()
    }

    #[test]
    fn a_machine_that_has_enough_is_not_found_short() {
        assert_eq!(judge(&DEMAND, &PLENTY), []);
        let unlimited = Supply { files: None, epoll_watches: None, ..PLENTY };
        assert_eq!(judge(&DEMAND, &unlimited), []);
    }

    #[test]
    fn each_shortage_is_found_at_its_bound_and_not_before() {
        let ends = 2 * DEMAND.connections;
        let table_len = DEMAND.connections.div_ceil(DEMAND.workers) + TABLE_RESERVE;
        let memory_bytes = DEMAND.connections * (2 * 4040 + 400 + 192) + (512 << 20);
        let tracked = DEMAND.connections;
        let at = |bounds: [u64; 5]| Supply {
            descriptors_per_table: bounds[0],
            files: Some(bounds[1]),
            epoll_watches: Some(bounds[2]),
            memory_bytes: bounds[3],
            tracked_connections: Some(bounds[4]),
            ..PLENTY
        };
        let bounds = [table_len, ends, ends, memory_bytes, tracked];
        assert_eq!(short(&DEMAND, &at(bounds)), [""; 0]);
        for (index, name) in ["descriptors", "open", "watches,", "bytes", "tracked"].into_iter().enumerate() {
            let mut bounds = bounds;
            bounds[index] -= 1;
            assert_eq!(short(&DEMAND, &at(bounds)), [name]);
        }
    }

    #[test]
    fn a_server_elsewhere_takes_nothing_here() {
        let clients = Demand { server_here: false, ..DEMAND };
        let supply = Supply { files: Some(DEMAND.connections), epoll_watches: Some(DEMAND.connections), ..PLENTY };
        assert_eq!(short(&clients, &supply), [""; 0]);
        assert_eq!(short(&DEMAND, &supply), ["open", "watches,"]);
        assert_eq!(clients.bytes_per_connection(), 4040 + 400);
    }

    #[test]
    fn what_a_shortage_advises_does() {
        let demand = Demand { workers: 1, source_addresses: 1, ..DEMAND };
        let shortages = judge(&demand, &PLENTY);
        let advice: Vec<_> = shortages.iter().filter_map(|shortage| shortage.mend.as_deref()).collect();
        assert_eq!(advice, ["--workers 115", "--source-ips 90"]);
        assert_eq!(judge(&Demand { workers: 115, source_addresses: 90, ..DEMAND }, &PLENTY), []);
        assert_eq!(short(&Demand { workers: 114, source_addresses: 89, ..DEMAND }, &PLENTY), ["descriptors", "ports"]);

        let supply = Supply { memory_bytes: 8 << 30, ..PLENTY };
        let fits = connections_that_fit(&DEMAND, supply.memory_bytes);
        assert_eq!(judge(&Demand { connections: fits, ..DEMAND }, &supply), []);
        assert_eq!(short(&Demand { connections: fits + 1, ..DEMAND }, &supply), ["bytes"]);
    }

    #[test]
    fn one_error_tells_all_of_it_and_ends_with_the_command() {
        let demand = Demand { workers: 1, source_addresses: 1, ..DEMAND };
        let text = explain(&demand, &PLENTY, &judge(&demand, &PLENTY));
        assert_eq!(
            text,
            "this machine has not enough for 2277846 connections:\n  \
             descriptors in the table of each worker: 2277878 needed, 20000 there (--workers 115)\n  \
             ports of the source addresses, net.ipv4.ip_local_port_range: 2530940 needed, 28232 there \
             (--source-ips 90)\n\
             what can be mended, this mends: culver-tune apply --connections 2277846 --role both --source-ips 90 \
             --fd-tables 120"
        );
    }

    #[test]
    fn tables_hold_what_they_are_counted_for() {
        for (connections, limit, tables) in [(0, 20_000, 1), (19_968, 20_000, 1), (19_969, 20_000, 2), (3, 1, 3)] {
            assert_eq!(tables_needed(connections, limit), tables, "{connections} of {limit}");
        }
        assert_eq!(tables_needed(u64::MAX, u64::MAX), 2);
        assert_eq!(port_count("32768\t60999\n"), Some(28_232));
        assert_eq!(port_count("9 8"), Some(0));
        assert_eq!(port_count("9"), None);
    }

    #[test]
    fn a_few_connections_pass_here_and_no_machine_holds_all_numbers() {
        let demand = Demand {
            connections: 10,
            workers: 1,
            source_addresses: 1,
            server_here: true,
            server_bytes_per_connection: 192,
        };
        check(&demand).expect("ten connections fit everywhere");
        let error = check(&Demand { connections: u64::MAX / 2, ..demand }).expect_err("too many");
        assert!(error.to_string().contains("culver-tune apply --connections"), "{error}");
        assert!(workers_needed(1) == 1 && workers_needed(u64::MAX / 2) > 1);
    }
}
