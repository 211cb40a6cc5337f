//! The only unsafe code of the gateway: calls for which no safe wrapper exists.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use culver_storage::descriptors::Table;

/// Descriptors that every process has: standard input, output and error.
const STANDARD: u32 = 3;

/// Gives the calling thread a descriptor table of its own with nothing open in it but 0, 1, 2 and `kept`, and returns
/// what those are in the new table: the same files by the same numbers. (`kept` itself stays the shared table's.) The
/// limit of descriptors holds for each table by itself, and threads that open and close many do not wait for each other.
///
/// Before the files of others are opened, and before this thread has made anything: copies left behind would keep
/// deleted files on the disk and closed listeners accepting. The thread must start no other, which would share its
/// table.
///
/// # Errors
/// Those of close_range(2).
///
/// # Panics
/// If the thread has a table of its own already.
pub fn take_private_descriptors<const KEPT: usize>(kept: [&OwnedFd; KEPT]) -> io::Result<[OwnedFd; KEPT]> {
    let numbers = kept.map(AsRawFd::as_raw_fd);
    let mut places = numbers.map(|number| u32::try_from(number).expect("open descriptors are not negative"));
    places.sort_unstable();
    // The first call leaves the shared table, and only then closes.
    let (mut first, mut flags) = (STANDARD, libc::CLOSE_RANGE_UNSHARE);
    for place in places {
        assert!(place >= first, "standard descriptors are kept anyway, and each has a number of its own");
        if place > first {
            close_range(first, place - 1, flags)?;
            flags = 0;
        }
        first = place + 1;
    }
    close_range(first, u32::MAX, flags)?;
    Table::note_left();
    Ok(numbers.map(own))
}

/// A descriptor that this process was started with; nothing else in it knows the number.
///
/// # Errors
/// It is not open.
///
/// # Panics
/// If it is a standard one.
#[expect(unsafe_code, reason = "a number that the environment names becomes a descriptor")]
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    assert!(number > 2, "standard descriptors have owners");
    // SAFETY: the call takes a number, open or not, and changes nothing.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(own(number))
}

/// Takes variables out of the environment.
///
/// # Panics
/// If there is another thread.
#[expect(unsafe_code, reason = "nobody may read the environment meanwhile")]
pub fn forget_variables(names: &[&str]) {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    assert_eq!(threads, 1, "the environment is changed before there are threads");
    for name in names {
        // SAFETY: there is no other thread that could look at the environment.
        unsafe { std::env::remove_var(name) };
    }
}

#[expect(unsafe_code, reason = "no safe wrapper knows close_range(2)")]
fn close_range(first: u32, last: u32, flags: libc::c_uint) -> io::Result<()> {
    let flags = libc::c_int::try_from(flags).expect("flags are a few bits");
    // SAFETY: the call takes three numbers. What it closes, it closes in a table that is this thread's alone: by then
    // the thread owns no descriptor but those it keeps.
    let result = unsafe { libc::close_range(first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[expect(unsafe_code, reason = "a number becomes a descriptor with an owner")]
fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the number is open in the table that the thread has just got to itself, or that the process has begun with,
    // and nothing there owns it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Leaves SIGTERM and SIGINT to other threads: their handler writes to a descriptor by its number in the shared table.
///
/// # Errors
/// Those of pthread_sigmask(3).
#[expect(unsafe_code, reason = "no safe wrapper knows signal masks")]
pub fn leave_signals_to_others() -> io::Result<()> {
    let mut signals = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: it makes the set that it is given empty, and with that a valid one.
    let mut signals = unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        signals.assume_init()
    };
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the set is valid, and so is the signal's number.
        unsafe { libc::sigaddset(&raw mut signals, signal) };
    }
    // SAFETY: the set is valid; nothing is asked of what was blocked before.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut()) };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Has a listening socket pass on a connection only when its client has said something, or this time is over.
///
/// # Errors
/// Those of setsockopt(2).
#[expect(unsafe_code, reason = "no safe wrapper knows TCP_DEFER_ACCEPT")]
pub fn defer_accept(listener: BorrowedFd<'_>, seconds: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&seconds)).expect("a few bytes");
    // SAFETY: the value is read for as many bytes as it has, and the descriptor is open while it is borrowed.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            len,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Bytes that a TCP socket has taken and its peer's kernel has not acknowledged (tcp(7), SIOCOUTQ).
///
/// # Errors
/// Those of ioctl(2).
#[expect(unsafe_code, reason = "no safe wrapper knows SIOCOUTQ")]
pub fn unacknowledged_len(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut len: libc::c_int = 0;
    // SAFETY: the call writes one int, to one that lives, and the descriptor is open while it is borrowed.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut len) };
    if result == 0 { u32::try_from(len).map_err(io::Error::other) } else { Err(io::Error::last_os_error()) }
}

/// The epoll instance of a poll, for what mio does not do: watching a socket level-triggered.
#[expect(unsafe_code, reason = "mio tells the number of its epoll instance, and lends nothing")]
#[must_use]
pub fn epoll_of(poll: &mio::Poll) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as the poll is there, which is borrowed for as long as the result.
    unsafe { BorrowedFd::borrow_raw(poll.as_raw_fd()) }
}

/// Gives free memory of the allocator's arenas back to the kernel (malloc_trim(3), glibc).
#[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
pub fn return_free_memory() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> i32;
    }
    // SAFETY: malloc_trim takes a number, touches only the allocator's own free memory and may be called from any thread.
    let _released: i32 = unsafe { malloc_trim(0) };
}

/// Bytes that the process has of its allocator and has not given back to it (mallinfo2(3), glibc): what is resident
/// beyond them is free, and shares its pages with what is not.
#[must_use]
#[expect(unsafe_code, reason = "mallinfo2 has no safe wrapper")]
pub fn allocated_bytes() -> u64 {
    // SAFETY: it takes nothing, looks only at the allocator's own lists, under their locks, and returns numbers.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::thread;

    use rustix::fs::{FlockOperation, flock};

    use super::*;

    /// Runs `look` while another thread has a table of its own.
    fn beside_a_private_table(look: impl FnOnce()) {
        let (kept, _other) = UnixStream::pair().expect("a pair");
        let kept = OwnedFd::from(kept);
        let (told, settled) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let kept = &kept;
            scope.spawn(move || {
                let [own] = take_private_descriptors([kept]).expect("a table");
                told.send(own.as_raw_fd()).expect("somebody waits");
                ended.recv().ok();
                drop(own);
            });
            assert_eq!(settled.recv().expect("it settles"), kept.as_raw_fd());
            look();
            drop(end);
        });
    }

    #[test]
    fn a_file_closed_by_all_others_is_closed() {
        let (_keep, path) = tempfile::NamedTempFile::new().expect("a file").into_parts();
        let file = File::open(&path).expect("it is there");
        flock(&file, FlockOperation::NonBlockingLockExclusive).expect("nobody else has it");
        beside_a_private_table(|| {
            // The lock goes with the last descriptor of the opened file, as does a deleted file's space.
            drop(file);
            let again = File::open(&path).expect("it is there");
            flock(&again, FlockOperation::NonBlockingLockExclusive).expect("no copy of the descriptor was left behind");
        });
    }

    #[test]
    fn what_nobody_reads_and_no_window_takes_is_unacknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut writer = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (_reader, _) = listener.accept().expect("it came");
        assert_eq!(unacknowledged_len(writer.as_fd()).expect("a TCP socket"), 0);
        writer.set_nonblocking(true).expect("a socket");
        while writer.write(&[0; 65536]).is_ok() {}
        assert!(unacknowledged_len(writer.as_fd()).expect("a TCP socket") > 0);
    }

    #[test]
    fn a_listener_closed_by_all_others_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        beside_a_private_table(|| {
            drop(listener);
            let refused = TcpStream::connect(address).expect_err("nobody listens");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        });
    }

    #[test]
    fn several_are_kept_and_what_lies_between_is_closed() {
        let files: [OwnedFd; 5] = std::array::from_fn(|_| File::open("/dev/null").expect("it is there").into());
        let [first, _, between, _, last] = &files;
        thread::scope(|scope| {
            let kept = [last, first];
            let check = move || {
                let own = take_private_descriptors(kept).expect("a table");
                assert_eq!(own.each_ref().map(AsRawFd::as_raw_fd), kept.map(AsRawFd::as_raw_fd), "in the order given");
                let path = format!("/proc/thread-self/fd/{}", between.as_raw_fd());
                std::fs::symlink_metadata(path).expect_err("it is closed here");
            };
            scope.spawn(check).join().expect("it holds");
        });
        adopt(i32::MAX).expect_err("no such descriptor");
    }

    #[test]
    fn what_is_kept_is_the_same_file_in_both_tables() {
        let (mut here, there) = UnixStream::pair().expect("a pair");
        let there = OwnedFd::from(there);
        thread::scope(|scope| {
            scope.spawn(|| {
                let [own] = take_private_descriptors([&there]).expect("a table");
                UnixStream::from(own).write_all(b"from the other table").expect("it is open");
            });
        });
        let mut text = [0; 20];
        here.read_exact(&mut text).expect("it was written");
        assert_eq!(&text, b"from the other table");
        drop(there); // still open here: closing it in the other table closed that copy alone
        assert_eq!(here.read(&mut text).expect("readable"), 0);
    }
}
