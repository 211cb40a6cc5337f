//! What the kernel itself holds for connections, the whole machine's: sums of /proc/meminfo and /proc/net/sockstat, and
//! the slabs one by one.

use anyhow::{Context, Result};
use serde::Serialize;

use super::{kibibytes, read};

/// The slabs that a connection has objects in: the socket, its inode, its file, the file's name, its place in an epoll,
/// and what security modules keep of them.
const CONNECTION_SLABS: [&str; 10] = [
    "TCP",
    "sock_inode_cache",
    "filp",
    "dentry",
    "eventpoll_epi",
    "eventpoll_pwq",
    "ep_head",
    "lsm_inode_cache",
    "lsm_file_cache",
    "request_sock_TCP",
];

/// Memory of the kernel that grows with connections and with the threads that serve them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct KernelMemory {
    /// Sockets, files, poll entries; small tables of descriptors, and small packets that wait to be read.
    pub(crate) slab_bytes: u64,
    /// What TCP has set aside for bytes on their way.
    pub(crate) socket_buffer_bytes: u64,
    pub(crate) page_table_bytes: u64,
    pub(crate) kernel_stack_bytes: u64,
    /// Large tables of descriptors, and the kernel's stacks once more.
    pub(crate) vmalloc_bytes: u64,
}

impl KernelMemory {
    /// All of it, the stacks once: they are a part of what vmalloc gave out (CONFIG_VMAP_STACK).
    pub(crate) fn total(&self) -> u64 {
        let vmalloc_bytes = self.vmalloc_bytes.max(self.kernel_stack_bytes);
        self.slab_bytes + self.socket_buffer_bytes + self.page_table_bytes + vmalloc_bytes
    }

    /// `meminfo` and `sockstat` are the texts of these files.
    fn parse(meminfo: &str, sockstat: &str, page_bytes: u64) -> Result<Self> {
        let part = |label: &str| kibibytes(meminfo, label).with_context(|| format!("/proc/meminfo tells no {label}"));
        let pages = tcp_memory_pages(sockstat).context("/proc/net/sockstat tells no memory of TCP")?;
        Ok(Self {
            slab_bytes: part("Slab:")?,
            socket_buffer_bytes: pages * page_bytes,
            page_table_bytes: part("PageTables:")?,
            kernel_stack_bytes: part("KernelStack:")?,
            vmalloc_bytes: part("VmallocUsed:")?,
        })
    }
}

/// Reads what the kernel holds now.
pub(crate) fn kernel_memory() -> Result<KernelMemory> {
    KernelMemory::parse(&read("/proc/meminfo")?, &read("/proc/net/sockstat")?, page_bytes())
}

/// The objects of one slab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct SlabObjects {
    pub(crate) name: String,
    /// In use; the kernel counts what its processors keep at hand as used.
    pub(crate) objects: u64,
    pub(crate) object_bytes: u64,
    /// The pages of the slab, those of free objects included.
    pub(crate) slab_bytes: u64,
}

/// Every slab that a connection has objects in, as far as it can be told: only root may read them, and a kernel may keep
/// these objects in a slab of another name.
pub(crate) fn connection_slabs() -> Vec<SlabObjects> {
    let table = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    CONNECTION_SLABS.iter().filter_map(|name| find_slab(&table, name, page_bytes())).collect()
}

fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// The line `TCP: inuse 1 orphan 0 tw 0 alloc 1 mem 274`.
fn tcp_memory_pages(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    line.split_whitespace().skip_while(|word| *word != "mem").nth(1)?.parse().ok()
}

/// Columns: name, objects in use, all objects, bytes of one, objects of a slab, pages of a slab, `: tunables` and three
/// numbers, `: slabdata`, slabs in use, all slabs, ….
fn find_slab(table: &str, name: &str, page_bytes: u64) -> Option<SlabObjects> {
    let line = table.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    let columns: Vec<&str> = line.split_whitespace().collect();
    let number = |column: usize| columns.get(column)?.parse::<u64>().ok();
    Some(SlabObjects {
        name: name.to_owned(),
        objects: number(1)?,
        object_bytes: number(3)?,
        slab_bytes: number(5)? * number(14)? * page_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24684092 kB\nMemAvailable:   24064468 kB\nSlab:             530468 kB\n\
        SReclaimable:     437452 kB\nKernelStack:        1360 kB\nPageTables:         2176 kB\n\
        SecPageTables:         7 kB\nVmallocTotal:   34359738367 kB\nVmallocUsed:       14220 kB\n";
    const SOCKSTAT: &str = "sockets: used 12\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 274\nUDP: inuse 0 mem 3\n";

    #[test]
    fn the_parts_of_the_kernels_memory_are_told_apart() {
        let memory = KernelMemory::parse(MEMINFO, SOCKSTAT, 4096).expect("all of them are there");
        let expected = KernelMemory {
            slab_bytes: 530_468 * 1024,
            socket_buffer_bytes: 274 * 4096,
            page_table_bytes: 2176 * 1024,
            kernel_stack_bytes: 1360 * 1024,
            vmalloc_bytes: 14_220 * 1024,
        };
        assert_eq!(memory, expected);
        assert_eq!(memory.total(), (530_468 + 274 * 4 + 2176 + 14_220) * 1024, "the stacks are counted once");
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = KernelMemory::parse("Slab: 1 kB\n", SOCKSTAT, 4096).expect_err("no page tables");
        assert!(error.to_string().contains("PageTables"), "{error}");
        let error = KernelMemory::parse(MEMINFO, "sockets: used 1\n", 4096).expect_err("no TCP");
        assert!(error.to_string().contains("sockstat"), "{error}");
    }

    #[test]
    fn a_slab_is_found_by_its_whole_name() {
        let table = "slabinfo - version: 2.1\n\
            # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit>\n\
            TCPv6                 26     26   2496   13    8 : tunables    0    0    0 : slabdata      2      2      0\n\
            TCP                   91    156   2368   13    8 : tunables    0    0    0 : slabdata     11     12      0\n";
        let slab = find_slab(table, "TCP", 4096).expect("it is there");
        assert_eq!((slab.objects, slab.object_bytes, slab.slab_bytes), (91, 2368, 12 * 8 * 4096));
        assert_eq!(find_slab(table, "filp", 4096), None);
        assert_eq!(find_slab("TCP 91 156\n", "TCP", 4096), None, "a line cut short");
    }

    #[test]
    fn this_kernel_tells_its_memory() {
        let memory = kernel_memory().expect("Linux");
        assert!(memory.slab_bytes > 0 && memory.total() > memory.slab_bytes);
        assert!(connection_slabs().iter().all(|slab| CONNECTION_SLABS.contains(&slab.name.as_str())));
    }
}
