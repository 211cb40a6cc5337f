//! Listening sockets that whoever started this process opened for it (sd_listen_fds(3)): they outlive it, so that who
//! connects while one process ends and the next begins waits in their queues and is not refused.
//!
//! ```text
//! LISTEN_PID      the process that they are for; another: they are none of ours
//! LISTEN_FDS      how many, from descriptor 3 on
//! LISTEN_FDNAMES  a name for each, with colons between; "ops" is the operators' port, all others are for clients
//! ```
//!
//! Owns what is checked of them before anything else begins. Never binds, never accepts.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use socket2::{Socket, Type};
use thiserror::Error;

use crate::config::{Config, REACTORS_MAX};
use crate::sys::{adopt, forget_variables};

/// The first descriptor behind the standard ones (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// Most sockets: one for each reactor, and the operators' port.
const SOCKETS_MAX: usize = REACTORS_MAX + 1;
/// The name of the operators' port.
const OPS: &str = "ops";
/// The variables, and one by which newer versions of systemd say the same of the process in another way.
const VARIABLES: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"];

/// Why sockets that were handed over cannot be used. Each says how to mend it.
#[derive(Debug, Error)]
pub enum InheritedError {
    /// The variables contradict each other, or are none.
    #[error(
        "sockets were handed over with {name}={value}, which is {why}. What starts culver must follow sd_listen_fds(3), \
         or leave LISTEN_PID away."
    )]
    Variable {
        /// Which.
        name: &'static str,
        /// What it is.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// Not what was promised.
    #[error(
        "descriptor {number}, which was handed over, is no listening TCP socket{because}. Of a socket unit use \
         ListenStream=IP:PORT, once for each reactor, with Accept=no (docs/systemd has one)."
    )]
    Socket {
        /// Which.
        number: RawFd,
        /// The system's reason, if it gave one.
        because: String,
    },
    /// They lead to several places.
    #[error(
        "the sockets that were handed over listen on {first} and on {other}: clients have one address. Name it in all \
         ListenStream= lines, with ReusePort=yes; that of the operators' port belongs into a unit of its own with \
         FileDescriptorName=ops."
    )]
    Addresses {
        /// Where the first is.
        first: SocketAddr,
        /// Where another is.
        other: SocketAddr,
    },
    /// `--listen` or `--ops` names another place.
    #[error(
        "{option} {named}, but the socket that was handed over is {found}: leave {option} away, or change the socket unit."
    )]
    Listen {
        /// The option.
        option: &'static str,
        /// What it names.
        named: SocketAddr,
        /// Where the sockets are.
        found: SocketAddr,
    },
    /// As many reactors as sockets, or the queue of one would be nobody's.
    #[error(
        "reactors = {reactors}, but {sockets} sockets for clients were handed over, and each reactor has one: leave \
         `reactors` (--reactors) away, or have as many ListenStream= lines."
    )]
    Reactors {
        /// Reactors asked for.
        reactors: usize,
        /// Sockets for clients.
        sockets: usize,
    },
}

/// What was handed over.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Where clients connect, and a socket for each reactor there. None: each opens its own.
    pub clients: Option<(SocketAddr, Vec<Socket>)>,
    /// The operators' port.
    pub ops: Option<(SocketAddr, Socket)>,
}

/// Takes what the environment says is for this process, and takes it out of the environment. Once, and before there is
/// any other thread.
///
/// # Errors
/// What is said is wrong, or what is there is not what can be used.
pub fn take() -> Result<Inherited, InheritedError> {
    let [pid, fds, names, _] = VARIABLES.map(|name| std::env::var(name).ok());
    if pid != Some(std::process::id().to_string()) {
        return Ok(Inherited::default());
    }
    forget_variables(&VARIABLES);
    let names = names_of(fds.as_deref(), names.as_deref())?;
    let mut inherited = Inherited::default();
    for (number, name) in (FIRST..).zip(names) {
        let (address, socket) = listening(number)?;
        inherited.add(&name, address, socket)?;
    }
    Ok(inherited)
}

/// A name for each of the descriptors.
fn names_of(fds: Option<&str>, names: Option<&str>) -> Result<Vec<String>, InheritedError> {
    let value = fds.unwrap_or_default();
    let wrong = |name, value: &str, why| InheritedError::Variable { name, value: value.to_owned(), why };
    let count: usize = value.parse().map_err(|_| wrong("LISTEN_FDS", value, "no number".to_owned()))?;
    if count > SOCKETS_MAX {
        return Err(wrong("LISTEN_FDS", value, format!("more than {SOCKETS_MAX}, one for each reactor and one more")));
    }
    let Some(text) = names else { return Ok(vec![String::new(); count]) };
    let names: Vec<String> = text.split(':').map(str::to_owned).collect();
    if names.len() != count {
        return Err(wrong("LISTEN_FDNAMES", text, format!("not a name for each of {count}")));
    }
    Ok(names)
}

/// A descriptor that listens, and where.
fn listening(number: RawFd) -> Result<(SocketAddr, Socket), InheritedError> {
    let because = |error: &io::Error| format!(": {error}");
    let found = adopt(number).map(Socket::from).and_then(|socket| {
        socket.set_cloexec(true)?;
        socket.set_nonblocking(true)?;
        let is_fit = socket.r#type()? == Type::STREAM && socket.is_listener()?;
        Ok((socket.local_addr()?.as_socket().filter(|_| is_fit), socket))
    });
    match found {
        Ok((Some(address), socket)) => Ok((address, socket)),
        Ok((None, _)) => Err(InheritedError::Socket { number, because: String::new() }),
        Err(error) => Err(InheritedError::Socket { number, because: because(&error) }),
    }
}

impl Inherited {
    fn add(&mut self, name: &str, address: SocketAddr, socket: Socket) -> Result<(), InheritedError> {
        if name == OPS {
            return match self.ops.replace((address, socket)) {
                None => Ok(()),
                Some((first, _)) => Err(InheritedError::Addresses { first, other: address }),
            };
        }
        let (first, sockets) = self.clients.get_or_insert_with(|| (address, Vec::new()));
        if *first != address {
            return Err(InheritedError::Addresses { first: *first, other: address });
        }
        sockets.push(socket);
        Ok(())
    }

    /// Puts what the sockets say into the settings: addresses, and how many reactors there are. `listen` and `ops` are
    /// those of the command line. What of the settings file is overridden is said, to be warned of.
    ///
    /// # Errors
    /// The command line, or `reactors`, contradicts the sockets.
    pub fn apply(
        &self,
        config: &mut Config,
        listen: Option<SocketAddr>,
        ops: Option<SocketAddr>,
    ) -> Result<Vec<String>, InheritedError> {
        let mut overridden = Vec::new();
        let mut settle = |option, named: Option<SocketAddr>, found, setting: &mut SocketAddr, default| {
            if let Some(named) = named.filter(|named| *named != found) {
                return Err(InheritedError::Listen { option, named, found });
            }
            if *setting != found && *setting != default {
                overridden.push(format!("{setting} of the settings gives way to the socket handed over, {found}"));
            }
            *setting = found;
            Ok(())
        };
        let defaults = Config::default();
        if let Some((found, sockets)) = &self.clients {
            settle("--listen", listen, *found, &mut config.listen, defaults.listen)?;
            let sockets = sockets.len();
            if config.reactors != 0 && config.reactors != sockets {
                return Err(InheritedError::Reactors { reactors: config.reactors, sockets });
            }
            config.reactors = sockets;
        }
        if let Some((found, _)) = &self.ops {
            settle("--ops", ops, *found, &mut config.ops, defaults.ops)?;
        }
        Ok(overridden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn socket() -> Socket {
        Socket::new(socket2::Domain::IPV4, Type::STREAM, None).expect("a socket")
    }

    fn two() -> Inherited {
        let mut inherited = Inherited::default();
        inherited.add("culver.socket", at(7400), socket()).expect("the first");
        inherited.add("", at(7400), socket()).expect("of the same address");
        inherited.add(OPS, at(7405), socket()).expect("another port");
        inherited
    }

    #[test]
    fn variables_say_how_many_and_their_names() {
        assert_eq!(names_of(Some("2"), None).expect("no names"), ["", ""]);
        assert_eq!(names_of(Some("2"), Some("a:ops")).expect("as many names"), ["a", "ops"]);
        assert_eq!(names_of(Some("0"), None).expect("none"), [""; 0]);
        for (fds, names, expected) in [
            (None, None, "LISTEN_FDS=, which is no number"),
            (Some("many"), None, "LISTEN_FDS=many, which is no number"),
            (Some("-1"), None, "LISTEN_FDS=-1, which is no number"),
            (Some("258"), None, "LISTEN_FDS=258, which is more than 257"),
            (Some("2"), Some("a"), "LISTEN_FDNAMES=a, which is not a name for each of 2"),
        ] {
            let error = names_of(fds, names).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn sockets_say_where_and_how_many() {
        let mut config = Config::default();
        assert_eq!(two().apply(&mut config, None, Some(at(7405))).expect("they agree"), [""; 0]);
        assert_eq!((config.listen, config.ops, config.reactors), (at(7400), at(7405), 2));
        let mut config = Config { listen: at(9), reactors: 2, ..Config::default() };
        let overridden = two().apply(&mut config, None, None).expect("the sockets go before the file");
        assert!(overridden.iter().any(|line| line.contains("127.0.0.1:9 of the settings")), "{overridden:?}");
        let mut config = Config { reactors: 3, ..Config::default() };
        let error = two().apply(&mut config, None, None).expect_err("a third would have none").to_string();
        assert!(error.contains("reactors = 3, but 2 sockets"), "{error}");
        let error = two().apply(&mut Config::default(), Some(at(9)), None).expect_err("elsewhere").to_string();
        assert!(error.contains("--listen 127.0.0.1:9") && error.contains("127.0.0.1:7400"), "{error}");
    }

    #[test]
    fn clients_have_one_address() {
        let error = two().add("", at(7402), socket()).expect_err("another").to_string();
        assert!(error.contains("127.0.0.1:7400 and on 127.0.0.1:7402") && error.contains("ReusePort=yes"), "{error}");
        two().add(OPS, at(7405), socket()).expect_err("operators have one port");
    }
}
