//! What the operating system is asked beyond the standard library: sockets from a given source address, limits,
//! CPU time, precise waking. The only file that may hold unsafe code.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use socket2::{Domain, Protocol, Socket, Type};

/// Descriptors that a generator needs beside its connections.
pub(crate) const DESCRIPTORS_BESIDE: u64 = 64;

/// Begins to connect; the socket becomes writable when it is decided.
pub(crate) fn connect_nonblocking(target: SocketAddr, source: Option<IpAddr>) -> io::Result<std::net::TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        bind_address_no_port(&socket)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Lets `connect` choose the port, so that one source address serves as many ports as there are targets.
#[expect(unsafe_code, reason = "no safe wrapper knows this socket option")]
fn bind_address_no_port(socket: &Socket) -> io::Result<()> {
    let yes: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("the size of an int fits");
    // SAFETY: the descriptor is open for the call, and the pointer and length are those of a live int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            std::ptr::from_ref(&yes).cast(),
            len,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread a descriptor table of its own, in which nothing is open but 0, 1, 2 and `kept`. Limits of
/// descriptors hold for each table by itself. The thread must start no other, for that would share its table; and what
/// it drops later must not own a descriptor of the table it left: the number would close a stranger's.
#[expect(unsafe_code, reason = "no safe wrapper knows close_range(2)")]
pub(crate) fn take_private_descriptors(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let numbers = kept.iter().filter_map(|descriptor| libc::c_uint::try_from(descriptor.as_raw_fd()).ok());
    let mut kept: Vec<libc::c_uint> = numbers.filter(|number| *number > 2).collect();
    kept.sort_unstable();
    kept.dedup();
    kept.push(libc::c_uint::MAX);
    // The first call leaves the shared table, and only then closes (CLOSE_RANGE_UNSHARE).
    let (mut first, mut flags) = (3, libc::CLOSE_RANGE_UNSHARE);
    for next in kept {
        // An empty range is refused: (2^32 - 2) is one in which nothing can be open.
        let range = if first < next { (first, next - 1) } else { (libc::c_uint::MAX - 1, libc::c_uint::MAX - 1) };
        // SAFETY: the call takes three numbers. Nothing that this thread goes on to use is closed: it keeps only `kept`.
        let result = unsafe { libc::close_range(range.0, range.1, libc::c_int::try_from(flags).expect("one bit")) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        (first, flags) = (next.saturating_add(1), 0);
    }
    Ok(())
}

/// Raises the soft limit of descriptors to `wanted` if the hard one allows it; returns the limit that holds then.
pub(crate) fn raise_descriptor_limit(wanted: u64) -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let soft = limit.current.unwrap_or(u64::MAX);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    if soft >= wanted {
        return Ok(soft);
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted.min(hard)), maximum: limit.maximum })?;
    Ok(wanted.min(hard))
}

/// User and system time of all threads of this process.
pub(crate) fn process_cpu_us() -> u64 {
    let spent = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(spent.tv_sec).unwrap_or(0);
    seconds * 1_000_000 + u64::try_from(spent.tv_nsec).unwrap_or(0) / 1000
}

/// A timer that wakes a poll to the microsecond, where the poll's own timeout knows only milliseconds.
pub(crate) struct Alarm {
    timer: OwnedFd,
}

impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self { timer: rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)? })
    }

    /// Rings once after `wait_us`, at least one microsecond; setting it again replaces what was set.
    pub(crate) fn set(&self, wait_us: u64) -> io::Result<()> {
        let wait_us = wait_us.max(1);
        let value = Timespec {
            tv_sec: i64::try_from(wait_us / 1_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(wait_us % 1_000_000 * 1000).expect("below one second"),
        };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: never, it_value: value };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }

    pub(crate) fn descriptor(&self) -> i32 {
        self.timer.as_fd().as_raw_fd()
    }
}
