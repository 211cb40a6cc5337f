//! What the operating system is asked beyond the standard library: sockets from a given source address, limits,
//! CPU time, precise waking, sockets without a record, sockets for other processes, being asked to end. The only file that may hold unsafe code.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::epoll;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use socket2::{Domain, Protocol, Socket, Type};

/// Descriptors that a generator needs beside its connections.
pub(crate) const DESCRIPTORS_BESIDE: u64 = 64;

/// Begins to connect; the socket becomes writable when it is decided.
pub(crate) fn connect_nonblocking(target: SocketAddr, source: Option<IpAddr>) -> io::Result<std::net::TcpStream> {
    connect_narrow_nonblocking(target, source, None)
}

/// The same, where the kernel keeps no more than so many bytes of what nobody reads.
pub(crate) fn connect_narrow_nonblocking(
    target: SocketAddr,
    source: Option<IpAddr>,
    receive_len: Option<usize>,
) -> io::Result<std::net::TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(bytes) = receive_len {
        socket.set_recv_buffer_size(bytes)?; // before it connects: the window that is offered depends on it
    }
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
/// it drops later must not own a descriptor of the table it left: the number would close a stranger's. What it leaves
/// open is closed by the kernel when it ends, which may be a moment after it was joined.
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

/// The first descriptor that a process is handed, as LISTEN_FDS counts them.
const HANDED_FROM: RawFd = 3;
/// Connections that may wait at a socket that others accept from.
const QUEUE_LEN: libc::c_int = 4096;

/// A socket that listens beside others on the same address, for processes that are started later: at most `count` of
/// them are handed over together, so its number is beyond theirs.
pub(crate) fn listen_for_others(address: SocketAddr, count: u8) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(QUEUE_LEN)?;
    Ok(rustix::io::fcntl_dupfd_cloexec(&socket, HANDED_FROM + RawFd::from(count))?)
}

/// What the command starts has these descriptors under the numbers from 3 on.
///
/// # Panics
/// If one has a number among those.
#[expect(unsafe_code, reason = "no safe wrapper gives a child other descriptors than its standard streams")]
pub(crate) fn hand_over(command: &mut Command, descriptors: &[OwnedFd]) {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let end = HANDED_FROM + RawFd::try_from(numbers.len()).expect("a few");
    assert!(numbers.iter().all(|number| *number >= end), "none is in the way of another");
    let place = move || {
        for (number, place) in numbers.iter().zip(HANDED_FROM..) {
            // SAFETY: two numbers. The first is open, for whoever starts the command keeps it; what the second was in the
            // child, which is about to become another program, nothing in that relies on.
            if unsafe { libc::dup2(*number, place) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec it calls nothing but dup2(2), which is safe there, and allocates nothing.
    unsafe { command.pre_exec(place) };
}

/// Lets the calling thread stand back for others, by so much of nice(2). On Linux that is a thread's own; to stand
/// forward again needs a privilege.
pub(crate) fn stand_back(nice: i32) -> io::Result<()> {
    if nice == 0 {
        return Ok(());
    }
    Ok(rustix::process::setpriority_process(None, nice)?)
}

/// The first SIGINT or SIGTERM is noted, so that a run closes its connections; the second ends it.
static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the run was asked to end.
pub(crate) fn is_interrupted() -> bool {
    IS_INTERRUPTED.load(Ordering::Relaxed)
}

/// From now on the first signal only asks.
#[expect(unsafe_code, reason = "no safe wrapper knows sigaction(2)")]
pub(crate) fn catch_interrupts() {
    let handler: extern "C" fn(libc::c_int) = note_interrupt;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: a zeroed sigaction is a valid one, with an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART | libc::SA_RESETHAND;
        // SAFETY: the action is initialised, and its handler does nothing but store into a static atomic.
        let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        assert_eq!(result, 0, "these signals can be caught");
    }
}

extern "C" fn note_interrupt(_signal: libc::c_int) {
    IS_INTERRUPTED.store(true, Ordering::Relaxed);
}

/// User and system time of all threads of this process.
pub(crate) fn process_cpu_us() -> u64 {
    let spent = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(spent.tv_sec).unwrap_or(0);
    seconds * 1_000_000 + u64::try_from(spent.tv_nsec).unwrap_or(0) / 1000
}

/// User and system time of all threads of another process, in microseconds, to the nanosecond that the kernel counts by.
#[expect(unsafe_code, reason = "no safe wrapper knows the clocks of other processes")]
pub(crate) fn cpu_us_of(pid: u32) -> io::Result<u64> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let (mut clock, mut spent) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: the pointer is that of a live clock id, which the call fills in.
    match unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } {
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    // SAFETY: the pointer is that of a live timespec, which the call fills in.
    if unsafe { libc::clock_gettime(clock, &raw mut spent) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (seconds, nanoseconds) = (u64::try_from(spent.tv_sec), u64::try_from(spent.tv_nsec));
    Ok(seconds.unwrap_or(0) * 1_000_000 + nanoseconds.unwrap_or(0) / 1000)
}

/// User and system time of this thread, in nanoseconds.
pub(crate) fn thread_cpu_ns() -> u64 {
    let spent = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(spent.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(spent.tv_nsec).unwrap_or(0)
}

/// What becomes of a socket that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Keep,
    Close,
}

/// Sockets that nothing remembers but their epoll: its events tell their numbers, and that is all there is of them.
/// Dropping the set leaves them open until the process ends.
pub(crate) struct SocketSet {
    epoll: OwnedFd,
    /// Kept for its room.
    events: Vec<epoll::Event>,
}

impl SocketSet {
    /// What the listener is called in the epoll: no descriptor has this number.
    const LISTENER: u64 = u64::MAX;

    /// A set that also tells when `listener` has something to accept. One wait looks at `events_max` sockets at most.
    pub(crate) fn new(listener: impl AsFd, events_max: usize) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, listener, epoll::EventData::new_u64(Self::LISTENER), epoll::EventFlags::IN)?;
        Ok(Self { epoll, events: Vec::with_capacity(events_max) })
    }

    /// Takes a socket over; it is told of once for each time that something comes.
    pub(crate) fn adopt(&self, socket: OwnedFd) -> io::Result<()> {
        let number = u64::try_from(socket.as_raw_fd()).expect("an open descriptor is not negative");
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(number), flags)?;
        let _number = socket.into_raw_fd();
        Ok(())
    }

    /// Waits, and shows each socket that something came for; those that it is told to close are closed. Returns whether
    /// the listener has something.
    #[expect(unsafe_code, reason = "an epoll gives numbers back, not descriptors")]
    pub(crate) fn wait(&mut self, mut look: impl FnMut(BorrowedFd<'_>, epoll::EventFlags) -> Fate) -> io::Result<bool> {
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), None) {
            Err(rustix::io::Errno::INTR) => return Ok(false),
            result => result?,
        };
        let mut listener_ready = false;
        for event in &self.events {
            if event.data.u64() == Self::LISTENER {
                listener_ready = true;
                continue;
            }
            let number = RawFd::try_from(event.data.u64()).expect("`adopt` puts numbers of descriptors there");
            // SAFETY: `adopt` gave the number and its descriptor to this set. It is open: only the lines below close
            // it, that takes it out of the epoll, and a wait names each descriptor once.
            let socket = unsafe { BorrowedFd::borrow_raw(number) };
            if look(socket, event.flags) == Fate::Close {
                // SAFETY: as above, and nobody borrows it any more: `look` cannot keep what it is shown.
                drop(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        Ok(listener_ready)
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::{self, File};
    use std::io::{Read, Seek, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::PathBuf;
    use std::sync::mpsc;
    use std::thread;

    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::time::Timespec;

    use super::*;

    /// Connections tried at a closed listener: a child that another test is just starting holds a copy until it runs.
    /// Fewer than the queue of a listener takes, so that none of them waits.
    const TRIES_MAX: u32 = 100;
    /// Bound of a wait for what happens at once or never.
    const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

    /// The open descriptors of this thread's table, but for the standard streams and the listing's own.
    fn open_descriptors() -> BTreeSet<RawFd> {
        let listed = fs::read_dir("/proc/thread-self/fd").expect("Linux").flatten();
        let numbers: Vec<RawFd> = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        let open = numbers.into_iter().filter(|number| *number > 2);
        open.filter(|number| fs::read_link(format!("/proc/thread-self/fd/{number}")).is_ok()).collect()
    }

    fn open_paths() -> BTreeSet<PathBuf> {
        let listed = fs::read_dir("/proc/thread-self/fd").expect("Linux").flatten();
        listed.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
    }

    /// A thread that has left the table with `kept` and stays until the guard is dropped.
    fn in_private<T: Send>(kept: &[BorrowedFd<'_>], meanwhile: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            let (left, has_left) = mpsc::channel();
            let (stay, stays) = mpsc::channel::<()>();
            scope.spawn(move || {
                left.send(take_private_descriptors(kept)).expect("the test waits");
                stays.recv().expect_err("the test only hangs up");
            });
            has_left.recv().expect("the thread runs").expect("Linux 5.9");
            let result = meanwhile();
            drop(stay);
            result
        })
    }

    #[test]
    fn a_table_of_ones_own_holds_only_what_is_kept() {
        let files: Vec<File> = (0..5).map(|_| tempfile::tempfile().expect("a temporary folder")).collect();
        // Neighbours, one of them twice, and out of order: the ranges between them are empty.
        for kept in [vec![], vec![0], vec![4], vec![2, 1, 2], vec![0, 1, 2, 3, 4]] {
            let kept: Vec<_> = kept.into_iter().map(|index: usize| files[index].as_fd()).collect();
            let expected: BTreeSet<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
            let found = thread::scope(|scope| {
                let left = || take_private_descriptors(&kept).map(|()| open_descriptors());
                scope.spawn(left).join().expect("no panic").expect("Linux 5.9")
            });
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_lowest_number_can_be_kept() {
        let found = thread::spawn(|| {
            take_private_descriptors(&[]).expect("Linux 5.9");
            let file = File::open("/dev/null").expect("Linux");
            let found = thread::scope(|scope| {
                let left = || take_private_descriptors(&[file.as_fd()]).map(|()| open_descriptors());
                scope.spawn(left).join().expect("no panic").expect("Linux 5.9")
            });
            (file.as_raw_fd(), found)
        });
        let (number, found) = found.join().expect("no panic");
        assert_eq!((number, found), (3, BTreeSet::from([3])));
    }

    #[test]
    fn what_one_table_opens_and_closes_is_nothing_to_the_other() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
        let mut file = File::create_new(&ours).expect("a new folder");
        thread::scope(|scope| {
            let (step, steps) = mpsc::channel();
            let (tell, told) = mpsc::channel();
            let theirs = &theirs;
            let thread = scope.spawn(move || {
                take_private_descriptors(&[]).expect("Linux 5.9");
                let file = File::create_new(theirs).expect("a new folder");
                tell.send(open_paths()).expect("the test waits");
                steps.recv().expect("the test goes on");
                drop(file);
                tell.send(open_paths()).expect("the test waits");
            });
            let while_open = told.recv().expect("the thread runs");
            assert!(while_open.contains(theirs) && !while_open.contains(&ours));
            assert!(open_paths().contains(&ours) && !open_paths().contains(theirs));
            step.send(()).expect("the thread waits");
            assert!(!told.recv().expect("the thread runs").contains(theirs));
            thread.join().expect("no panic");
        });
        file.write_all(b"still open").expect("closing a number elsewhere has closed nothing here");
        assert!(open_paths().contains(&ours));
    }

    #[test]
    #[expect(unsafe_code, reason = "no owner can go while what it owns is borrowed")]
    fn what_is_kept_outlives_the_other_tables_copy() {
        let mut file = tempfile::tempfile().expect("a temporary folder");
        file.write_all(b"kept").expect("there is room");
        file.rewind().expect("a plain file");
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        // SAFETY: it is open until the other thread has left, which is all that the borrow is for.
        let kept = unsafe { BorrowedFd::borrow_raw(reader.as_raw_fd()) };
        in_private(&[kept, file.as_fd()], || {
            drop(reader);
            writer.write_all(b"into a pipe that the other table still reads").expect("a reader is left");
        });
        // The kernel takes the table apart a moment after the thread has been joined.
        let mut polled = [PollFd::new(&writer, PollFlags::empty())];
        assert_eq!(poll(&mut polled, Some(&PATIENCE)), Ok(1), "the last reader goes with its thread");
        assert!(polled[0].revents().contains(PollFlags::ERR));
        let mut text = String::new();
        file.read_to_string(&mut text).expect("the thread's end closes only its own copy");
        assert_eq!(text, "kept");
    }

    #[test]
    fn the_last_copy_is_here_once_another_thread_has_left() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        in_private(&[], || {
            drop(writer);
            let mut polled = [PollFd::new(&reader, PollFlags::IN)];
            assert_eq!(poll(&mut polled, Some(&PATIENCE)), Ok(1), "the other table still holds the writing end");
            assert!(polled[0].revents().contains(PollFlags::HUP));
        });
    }

    #[test]
    fn what_is_handed_over_has_the_first_numbers_there_and_stays_open_here() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = listen_for_others(any, 2).expect("a free port");
        let address = std::net::TcpListener::from(first.try_clone().expect("open")).local_addr().expect("bound");
        let listeners = [first, listen_for_others(address, 2).expect("beside the other")];
        let told = |listeners: &[OwnedFd]| {
            let mut command = Command::new("sh");
            command.arg("-c").arg("readlink /proc/self/fd/3 /proc/self/fd/4");
            hand_over(&mut command, listeners);
            String::from_utf8(command.output().expect("there is a shell").stdout).expect("names")
        };
        let name = |listener: &OwnedFd| {
            let link = format!("/proc/self/fd/{}", listener.as_raw_fd());
            fs::read_link(link).expect("open").to_string_lossy().into_owned()
        };
        let [one, two] = listeners.each_ref().map(name);
        assert_eq!(told(&listeners), format!("{one}\n{two}\n"));
        drop(TcpStream::connect(address).expect("it listens when the child has ended, too"));
    }

    #[test]
    fn a_listener_closed_here_accepts_nothing_more() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        in_private(&[], || {
            drop(TcpStream::connect(address).expect("it listens"));
            drop(listener);
            let refused = (0..TRIES_MAX).find_map(|_| TcpStream::connect(address).err());
            let refused = refused.expect("the other table still holds the listener");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        });
    }
}
