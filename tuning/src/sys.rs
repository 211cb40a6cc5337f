//! The only unsafe code of this program: a socket option for which no safe wrapper exists.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// The number of the network namespace that the calling thread is in. Unlike its inode it is never given to another
/// one before the next boot (SO_NETNS_COOKIE, Linux 5.14). `None`: this kernel has none to give.
///
/// # Errors
/// No socket can be opened.
pub(crate) fn namespace_cookie() -> io::Result<Option<u64>> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    Ok(cookie_of(&socket))
}

#[expect(unsafe_code, reason = "SO_NETNS_COOKIE has no safe wrapper")]
fn cookie_of(socket: &OwnedFd) -> Option<u64> {
    let mut cookie = 0u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).ok()?;
    // SAFETY: the descriptor is open for the whole call; `cookie` and `len` are ours alone, and `len` is cookie's size,
    // so the kernel writes at most those eight bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(cookie)
}
