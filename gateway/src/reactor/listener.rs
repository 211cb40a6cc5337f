//! Listening sockets: one for each reactor, sharing an address. The kernel spreads connections over those that listen,
//! and a full reactor's does not, as long as there is another.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Poll, Token};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::Shutdown;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::Peers;
use crate::sys::{defer_accept, epoll_of};

/// Seconds for which the kernel keeps a connection to itself until its client, who speaks first, has said something:
/// so a login wakes its reactor once and not twice, and who says nothing costs a reactor nothing until then.
const SILENT_S: i32 = 1;

/// What accept4(2) says of a connection that has ended while it waited.
const PEER_GONE: [Errno; 8] = [
    Errno::CONNABORTED,
    Errno::PROTO,
    Errno::NOPROTOOPT,
    Errno::OPNOTSUPP,
    Errno::NETDOWN,
    Errno::NETUNREACH,
    Errno::HOSTDOWN,
    Errno::HOSTUNREACH,
];

/// Sets all options of a socket that listens, or is to: those that it has for itself, and those that the sockets which
/// it accepts begin with, for on Linux they are copies of it.
///
/// - `TCP_NODELAY`: small records leave at once.
/// - `TCP_DEFER_ACCEPT`: who says nothing costs a reactor nothing.
/// - `TCP_USER_TIMEOUT`: a peer that acknowledges nothing is dead, and one whose window stays shut is as good as that. The
///   kernel's own patience is a quarter of an hour, and with a shut window without end.
/// - `TCP_NOTSENT_LOWAT`: the kernel takes little ahead of what the peer lets it send, and not the megabytes that a send
///   buffer may grow to. What it does not take is in the inbox, or counts as unsent.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_options(listener: &impl AsFd, peers: &Peers) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(peers.user_timeout_s.into())))?;
    socket.set_tcp_notsent_lowat(peers.notsent_kib.saturating_mul(1024))?;
    defer_accept(listener.as_fd(), SILENT_S)
}

/// How many listeners of an address listen.
#[derive(Debug, Default)]
pub struct Group(AtomicUsize);

impl Group {
    fn join(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether somebody else goes on listening.
    fn leave(&self) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |all| if all > 1 { Some(all - 1) } else { None })
            .is_ok()
    }
}

/// A listening socket among those that share its address. Watched level-triggered: who took a connection need not ask
/// in vain whether there is another, for the next look at the poll says so.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    group: Arc<Group>,
    /// Connections that may wait to be accepted. The kernel caps it at net.core.somaxconn.
    queue_len: i32,
    /// Somebody else has it too, and its queue outlives this process: it never stops to listen.
    is_inherited: bool,
    is_listening: bool,
    is_watched: bool,
}

impl Listener {
    /// Opens a listening socket; several can share `address`, which names a port (a socket that steps back keeps only a
    /// port that it had asked for). What it accepts treats its peer as `peers` says, and
    /// so many may wait to be accepted.
    ///
    /// # Errors
    /// Those of socket(2), bind(2) and listen(2).
    pub fn open(address: SocketAddr, group: Arc<Group>, peers: &Peers, queue_len: i32) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Self::listen(socket, group, (peers, queue_len), false)
    }

    /// A socket that was handed over and listens already: [`crate::inherited`] has checked it.
    ///
    /// # Errors
    /// Those of listen(2) and setsockopt(2).
    pub fn inherit(socket: OwnedFd, group: Arc<Group>, peers: &Peers, queue_len: i32) -> io::Result<Self> {
        Self::listen(Socket::from(socket), group, (peers, queue_len), true)
    }

    /// Listens, or does so with a queue as long as ours from now on.
    fn listen(
        socket: Socket,
        group: Arc<Group>,
        (peers, queue_len): (&Peers, i32),
        is_inherited: bool,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.listen(queue_len)?;
        set_options(&socket, peers)?;
        group.join();
        let socket = TcpListener::from_std(socket.into());
        Ok(Self { socket, group, queue_len, is_inherited, is_listening: true, is_watched: false })
    }

    /// The next connection, if there is one, and the address that it comes from.
    ///
    /// # Errors
    /// Those of accept4(2) that are about this machine: it is out of descriptors or memory.
    pub fn accept(&self) -> io::Result<Option<(TcpStream, IpAddr)>> {
        loop {
            if !self.is_listening {
                return Ok(None);
            }
            return match self.socket.accept() {
                Ok((stream, peer)) => Ok(Some((stream, peer.ip()))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                // It is out of the queue, and its peer is gone (accept(2), "Error handling"): on to the next.
                Err(error) if Errno::from_io_error(&error).is_some_and(|errno| PEER_GONE.contains(&errno)) => continue,
                Err(error) => Err(error),
            };
        }
    }

    /// Takes connections, or takes them again: `poll` tells of them by `token`.
    ///
    /// # Errors
    /// Those of listen(2) and epoll_ctl(2).
    pub fn step_forward(&mut self, poll: &Poll, token: Token) -> io::Result<()> {
        if !self.is_listening {
            rustix::net::listen(&self.socket, self.queue_len)?;
            self.is_listening = true;
            self.group.join();
        }
        if !self.is_watched {
            epoll::add(epoll_of(poll), &self.socket, epoll::EventData::new_u64(token.0 as u64), epoll::EventFlags::IN)?;
            self.is_watched = true;
        }
        Ok(())
    }

    /// Leaves new connections to the others, unless it is the last: that one stays, to tell clients why they are
    /// turned away. With net.ipv4.tcp_migrate_req, what waits in its queue goes to the others; without, it is reset. An
    /// inherited one stays as well: shutdown(2) would end the socket for all who have it.
    ///
    /// # Errors
    /// Those of epoll_ctl(2) and shutdown(2).
    pub fn step_back(&mut self, poll: &Poll) -> io::Result<()> {
        if self.is_listening && !self.is_inherited && self.group.leave() {
            self.is_listening = false;
            rustix::net::shutdown(&self.socket, Shutdown::Read)?;
            // A socket that does not listen would be told of without end.
            self.pause(poll)?;
        }
        Ok(())
    }

    /// Takes no connections for now: they wait in its queue.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn pause(&mut self, poll: &Poll) -> io::Result<()> {
        if std::mem::take(&mut self.is_watched) {
            epoll::delete(epoll_of(poll), &self.socket)?;
        }
        Ok(())
    }

    /// Whether it takes the connections that come to it.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.is_watched
    }

    /// Whether it takes connections.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.is_listening
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.is_listening {
            self.group.0.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{SocketAddr, TcpStream as Client};

    use super::*;

    const TOKEN: Token = Token(7);
    /// Nothing that any socket begins with.
    const PEERS: Peers = Peers { user_timeout_s: 77, notsent_kib: 48, unsent_mib: 1 };

    /// A client that has said something: one that has not, the kernel keeps to itself.
    fn speak(address: SocketAddr) -> io::Result<Client> {
        let mut client = Client::connect(address)?;
        client.write_all(b"C")?;
        Ok(client)
    }

    /// Of all connections that are there, how many this listener has.
    fn accepted(listener: &Listener) -> usize {
        std::iter::from_fn(|| listener.accept().expect("accept4 works"))
            .filter(|(_, source)| source.is_loopback())
            .count()
    }

    /// Two on a port that the kernel has chosen for a third socket: one that it had chosen for them, they would lose.
    fn two() -> (SocketAddr, Listener, Listener) {
        let hold = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        hold.set_reuse_port(true).expect("set");
        hold.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        let address = hold.local_addr().expect("bound").as_socket().expect("an IP address");
        let group = Arc::new(Group::default());
        let open = || Listener::open(address, Arc::clone(&group), &PEERS, 128).expect("the port is shared");
        (address, open(), open())
    }

    #[test]
    fn who_steps_back_gets_no_connection_until_it_steps_forward() {
        let (poll, (address, mut first, second)) = (Poll::new().expect("a poll"), two());
        first.step_forward(&poll, TOKEN).expect("it listens already");
        first.step_back(&poll).expect("shutdown works");
        assert!(!first.is_listening());
        let mut clients: Vec<_> = (0..32).map(|_| speak(address).expect("the other listens")).collect();
        assert_eq!((accepted(&first), accepted(&second)), (0, 32));
        first.step_forward(&poll, TOKEN).expect("listen works");
        clients.extend((0..64).map(|_| speak(address).expect("both listen")));
        let (of_first, of_second) = (accepted(&first), accepted(&second));
        assert_eq!(of_first + of_second, 64);
        assert!(of_first > 0 && of_second > 0, "{of_first} and {of_second}: the kernel spreads 64 over both");
    }

    #[test]
    fn what_is_accepted_has_the_listeners_options() {
        let (poll, (address, mut first, mut second)) = (Poll::new().expect("a poll"), two());
        second.step_back(&poll).expect("shutdown works");
        let options = |socket: &mio::net::TcpStream| {
            let socket = SockRef::from(socket);
            let patience = socket.tcp_user_timeout().expect("an option");
            (socket.tcp_nodelay().expect("an option"), patience, socket.tcp_notsent_lowat().expect("an option"))
        };
        let expected = (true, Some(Duration::from_secs(77)), 48 * 1024);
        let _one = speak(address).expect("the first listens");
        let accepted = first.accept().expect("accept4 works").expect("it has spoken");
        assert_eq!(options(&accepted.0), expected);
        // And when it listens again.
        second.step_forward(&poll, TOKEN).expect("listen works");
        first.step_back(&poll).expect("shutdown works");
        let _other = speak(address).expect("the second listens");
        assert_eq!(options(&second.accept().expect("accept4 works").expect("it has spoken").0), expected);
    }

    #[test]
    fn nobody_is_told_of_a_client_that_has_said_nothing() {
        let (poll, (address, mut first, second)) = (Poll::new().expect("a poll"), two());
        first.step_back(&poll).expect("shutdown works");
        let mut client = Client::connect(address).expect("the other listens");
        assert_eq!(accepted(&second), 0);
        client.write_all(b"C").expect("it is connected");
        assert_eq!(accepted(&second), 1);
    }

    #[test]
    fn the_last_one_stays() {
        let (poll, (address, mut first, mut second)) = (Poll::new().expect("a poll"), two());
        first.step_back(&poll).expect("shutdown works");
        second.step_back(&poll).expect("nothing to do");
        assert!(second.is_listening());
        let _client = speak(address).expect("the last one listens");
        assert_eq!(accepted(&second), 1);
        first.step_forward(&poll, TOKEN).expect("listen works");
        second.step_back(&poll).expect("shutdown works");
        assert!(first.is_listening() && !second.is_listening());
    }

    #[test]
    fn an_inherited_one_stays_though_others_listen_and_outlives_who_had_it() {
        let hold = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        hold.set_reuse_port(true).expect("set");
        hold.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        hold.listen(1).expect("it listens");
        let address = hold.local_addr().expect("bound").as_socket().expect("an IP address");
        let (poll, group) = (Poll::new().expect("a poll"), Arc::new(Group::default()));
        let inherit = || {
            let copy = hold.try_clone().expect("a descriptor");
            Listener::inherit(copy.into(), Arc::clone(&group), &PEERS, 128).expect("it listens")
        };
        let (mut first, second) = (inherit(), inherit());
        first.step_back(&poll).expect("nothing to do");
        assert!(first.is_listening());
        drop((first, second));
        // More than the queue was long at first.
        let clients: Vec<_> = (0..8).map(|_| speak(address).expect("its queue goes on")).collect();
        assert_eq!(accepted(&inherit()), clients.len());
    }

    #[test]
    fn who_does_not_take_connections_is_not_told_of_them() {
        let (mut poll, (address, mut first, mut second)) = (Poll::new().expect("a poll"), two());
        let mut events = mio::Events::with_capacity(4);
        let mut told = |poll: &mut Poll| {
            poll.poll(&mut events, Some(std::time::Duration::ZERO)).expect("epoll works");
            events.iter().count()
        };
        second.step_back(&poll).expect("shutdown works");
        first.step_forward(&poll, TOKEN).expect("watched");
        let _client = speak(address).expect("the first listens");
        assert_eq!((told(&mut poll), told(&mut poll)), (1, 1), "for as long as it waits");
        first.pause(&poll).expect("it looks away");
        assert_eq!((told(&mut poll), first.is_listening()), (0, true), "the last one, whose queue goes on");
        first.step_forward(&poll, TOKEN).expect("watched");
        assert_eq!((told(&mut poll), accepted(&first)), (1, 1));
        second.step_forward(&poll, TOKEN).expect("listen works");
        first.step_back(&poll).expect("shutdown works");
        assert_eq!((told(&mut poll), first.is_listening()), (0, false), "nor is told of its end without end");
    }
}
