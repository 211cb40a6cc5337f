//! What the process may still do once all is opened: Landlock (landlock(7)) takes the rest away, for good, from the
//! calling thread and from every thread that it begins. So it comes before any other thread, and nobody in the process
//! gets back what is gone.
//!
//! ```text
//! read, write, create, link, remove   the data directory, its volumes
//! write, create, link, remove         where backups may go: below `[backup] dirs`, or anywhere where none is named
//! read                                the folder of the token keys where they lie elsewhere, what keys are links to,
//!                                     and of the system what the clock, the allocator, RocksDB and a panic's
//!                                     backtrace look at
//! listen (TCP)                        the two ports, or what of them was not handed over
//! ```
//!
//! Nothing is executed, no device is controlled, no connection begun, and no process outside is sent a signal. How much
//! of that holds is the kernel's to say. Descriptors that are open stay as they are: logs, sockets, locks.

use std::fs;
use std::path::{Path, PathBuf};

use culver_storage::layout::DataDir;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
    path_beneath_rules,
};
use thiserror::Error;
use tracing::{info, warn};

use crate::auth::keys_dir;
use crate::config::{Config, Token};
use crate::preflight::Ports;

/// What is asked for: the newest that this has been tried on (Linux 6.15). A kernel that knows less holds to what it knows.
const ASKED: ABI = ABI::V7;

/// What is looked at of the system while the server runs.
const SYSTEM: [&str; 6] = [
    // Memory for /metrics, random ids for RocksDB. What of other processes is secret is kept by the kernel: nothing
    // within may look into what is outside (ptrace(2), "Ptrace access mode checking").
    "/proc",
    // The blocks of disks, processors.
    "/sys",
    // RocksDB's own log tells local time.
    "/etc/localtime",
    "/usr/share/zoneinfo",
    // Where getrandom(2) is not to be had.
    "/dev/urandom",
    // How aws-lc learns that a virtual machine was copied: where it is there, it must be readable.
    "/dev/sysgenid",
];

/// RocksDB gives its threads their names here. Where it may not, they have none.
const NAMES: &str = "/proc/self/task";

/// Why the process cannot be confined.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A folder that the server works in cannot be named.
    #[error("cannot confine the process: {0}")]
    Folder(#[from] PathFdError),
    /// The kernel has refused.
    #[error("cannot confine the process: {0}. `sandbox = false` in the settings does without.")]
    Kernel(#[from] RulesetError),
}

/// What must stay possible.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Folders that are worked in.
    pub own: Vec<PathBuf>,
    /// Folders below which backups are written; none: anywhere.
    pub backups: Vec<PathBuf>,
    /// Files and folders that are read; those that are not there are left out.
    pub read: Vec<PathBuf>,
    /// TCP ports that are listened on.
    pub ports: Vec<u16>,
}

/// What the kernel holds to: the version of its Landlock, `None` where nothing is confined. That is where it has none, or
/// the first, which would keep backups from linking files (Linux before 5.19).
pub type Confined = Option<ABI>;

impl Needs {
    /// Those of a server with these settings.
    #[must_use]
    pub fn of(config: &Config, data_dir: &DataDir, ports: &Ports) -> Self {
        let mut own = vec![data_dir.path().to_owned()];
        own.extend_from_slice(data_dir.volume_paths());
        let mut read: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
        read.extend(std::env::current_exe());
        // Whatever is named here is read again when it changes.
        let Token { issuer: _, audience: _, leeway_s: _, jwks_file, public_key_file } = &config.token;
        read.extend([jwks_file, public_key_file].into_iter().filter_map(|file| elsewhere(&config.data_dir, file)));
        // A rule for a link is one for what it leads to.
        let keys = keys_dir(data_dir.path());
        read.extend([data_dir.path(), &keys, &keys.join("server")].into_iter().flat_map(links));
        Self { own, backups: config.backup.dirs.clone(), read, ports: ports.to_bind() }
    }
}

/// The folder of a file that does not lie in the data directory: a file that is put in its place is another.
fn elsewhere(data_dir: &Path, file: &Path) -> Option<PathBuf> {
    let path = data_dir.join(file);
    if path.starts_with(data_dir) { None } else { path.parent().map(Path::to_owned) }
}

/// The links in a folder: keys may lie elsewhere.
fn links(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_symlink())
}

/// Confines the calling thread, and whatever it begins from now on, to `needs`; says so in the log.
///
/// # Errors
/// A folder of the server's own is not there, or the kernel does not do what it can.
pub fn enter(needs: &Needs) -> Result<Confined, SandboxError> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ASKED))?
        .handle_access(AccessNet::from_all(ASKED))?
        .scope(Scope::from_all(ASKED))?
        .create()?;
    let rules =
        needs.ports.iter().try_fold(rules, |rules, port| rules.add_rule(NetPort::new(*port, AccessNet::BindTcp)))?;
    let rules = needs.own.iter().try_fold(rules, |rules, folder| with(rules, folder, worked_in()))?;
    let rules = rules.add_rules(path_beneath_rules(&needs.read, AccessFs::ReadFile | AccessFs::ReadDir))?;
    let rules = rules.add_rules(path_beneath_rules([NAMES], AccessFs::WriteFile))?;
    let status = with_backups(rules, &needs.backups)?.restrict_self()?;
    let confined = match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => None,
        (_, LandlockStatus::Available { effective_abi, .. }) => Some(effective_abi),
        _ => None,
    };
    tell(confined, needs);
    Ok(confined)
}

fn with(rules: RulesetCreated, folder: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, SandboxError> {
    Ok(rules.add_rule(PathBeneath::new(PathFd::new(folder)?, access))?)
}

/// Where none is named, backups go anywhere; a place that is not there yet cannot be told from the rest.
fn with_backups(mut rules: RulesetCreated, folders: &[PathBuf]) -> Result<RulesetCreated, SandboxError> {
    if folders.is_empty() {
        return with(rules, Path::new("/"), brought_to());
    }
    for folder in folders {
        match PathFd::new(folder) {
            Ok(opened) => rules = rules.add_rule(PathBeneath::new(opened, brought_to()))?,
            Err(error) => warn!(folder = %folder.display(), %error, "no backup can go there before the next start"),
        }
    }
    Ok(rules)
}

/// Files and folders, made, linked, read, written and removed.
fn worked_in() -> BitFlags<AccessFs> {
    brought_to() | AccessFs::ReadFile
}

/// The same, but for reading what is in files.
fn brought_to() -> BitFlags<AccessFs> {
    make_bitflags!(AccessFs::{
        ReadDir | WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | RemoveDir | Refer
    })
}

fn tell(confined: Confined, needs: &Needs) {
    let Some(version) = confined else {
        warn!("not confined: this kernel has no Landlock that does (Linux 5.19 and later have, where it is not off)");
        return;
    };
    let (tcp, signals) = (version >= ABI::V4, version >= ABI::V6);
    let backups = if needs.backups.is_empty() { "anywhere" } else { "below [backup] dirs" };
    info!(landlock = version as i32, files = true, tcp, signals, backups, "confined to what is needed");
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::symlink;
    use std::process::Command;
    use std::thread;

    use tempfile::TempDir;

    use super::*;

    /// Folders as a server has them, and one that is none of its own.
    struct World {
        _scratch: TempDir,
        own: PathBuf,
        volume: PathBuf,
        backups: PathBuf,
        other: PathBuf,
    }

    fn world() -> World {
        let scratch = tempfile::tempdir().expect("a directory");
        let [own, volume, backups, other] = ["own", "volume", "backups", "other"].map(|name| scratch.path().join(name));
        for folder in [&own, &volume, &backups, &other] {
            fs::create_dir(folder).expect("made");
            fs::write(folder.join("file"), "text").expect("written");
        }
        World { _scratch: scratch, own, volume, backups, other }
    }

    impl World {
        fn needs(&self) -> Needs {
            Needs {
                own: vec![self.own.clone(), self.volume.clone()],
                backups: vec![self.backups.clone()],
                ..Needs::default()
            }
        }
    }

    /// In a thread of its own, which is confined for good: the test's others are not. `false`: this kernel cannot.
    fn confined(needs: &Needs, check: impl FnOnce() + Send) -> bool {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let is_confined = enter(needs).expect("it can, or does without").is_some();
                if is_confined {
                    check();
                } else {
                    eprintln!("this kernel has no Landlock: nothing was checked");
                }
                is_confined
            });
            thread.join().expect("the checks hold")
        })
    }

    fn refused<T>(result: io::Result<T>) {
        let error = result.err().expect("it must not be possible");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    }

    #[test]
    fn own_folders_can_be_worked_in() {
        let world = world();
        confined(&world.needs(), || {
            for folder in [&world.own, &world.volume] {
                let (made, renamed) = (folder.join("made"), folder.join("renamed"));
                fs::create_dir(folder.join("below")).expect("own");
                fs::write(&made, "more than what follows").expect("own");
                File::options().write(true).open(&made).and_then(|file| file.set_len(4)).expect("own");
                assert_eq!(fs::read_to_string(&made).expect("own"), "more");
                fs::rename(&made, &renamed).expect("own");
                fs::hard_link(&renamed, folder.join("below/link")).expect("checkpoints link from folder to folder");
                File::open(folder).and_then(|folder| folder.sync_all()).expect("own");
                fs::remove_dir_all(folder.join("below")).expect("own");
                fs::remove_file(&renamed).expect("own");
            }
        });
    }

    #[test]
    fn what_is_none_of_its_own_is_out_of_reach() {
        let world = world();
        confined(&world.needs(), || {
            refused(fs::read("/etc/passwd"));
            refused(fs::read_dir("/etc").map(drop));
            refused(fs::read(world.other.join("file")));
            refused(fs::read_dir(&world.other).map(drop));
            refused(fs::write(world.other.join("file"), "other"));
            refused(fs::write(world.other.join("new"), "new"));
            refused(fs::create_dir(world.other.join("new")));
            refused(fs::remove_file(world.other.join("file")));
            refused(symlink(&world.other, world.own.join("link")));
            refused(Command::new("/bin/true").status());
            // By whatever name.
            refused(fs::read(world.own.join("../other/file")));
        });
        assert_eq!(fs::read_to_string(world.other.join("file")).expect("not confined"), "text");
    }

    #[test]
    fn backups_go_where_they_may_and_are_not_read() {
        let world = world();
        let check = || {
            let folder = world.backups.join("monday");
            fs::create_dir(&folder).expect("a backup goes there");
            fs::write(folder.join("copy"), "text").expect("a backup goes there");
            fs::hard_link(world.volume.join("file"), folder.join("link")).expect("tables are linked");
            File::open(&folder).and_then(|folder| folder.sync_all()).expect("it is synced");
            refused(fs::read(folder.join("copy")));
            refused(fs::read(world.other.join("file")));
            fs::remove_dir_all(&folder).expect("what fails is removed");
        };
        confined(&world.needs(), check);
        // With no place named, anywhere; and nothing can be read there any more than before.
        confined(&Needs { backups: Vec::new(), ..world.needs() }, || {
            check();
            fs::write(world.other.join("copy"), "text").expect("anywhere");
            refused(fs::read("/etc/passwd"));
            refused(Command::new("/bin/true").status());
        });
        // One that is not there keeps no server from starting.
        let missing = world.backups.join("not there");
        confined(&Needs { backups: vec![missing.clone()], ..world.needs() }, || refused(fs::create_dir(&missing)));
    }

    #[test]
    fn what_is_read_again_can_be_read_and_no_more() {
        let world = world();
        let (key, link) = (world.other.join("file"), world.own.join("link"));
        symlink(&key, &link).expect("not confined yet");
        let read = links(&world.own).collect();
        confined(&Needs { read, ..world.needs() }, || {
            assert_eq!(fs::read_to_string(&link).expect("it was named"), "text");
            refused(fs::write(&link, "other"));
            refused(fs::read_dir(&world.other).map(drop));
        });
    }

    #[test]
    fn no_connection_is_begun_and_its_own_ports_are_taken() {
        let world = world();
        let (mine, other) = (free_port(), TcpListener::bind("127.0.0.1:0").expect("a port"));
        let address = other.local_addr().expect("bound");
        confined(&Needs { ports: vec![mine], ..world.needs() }, || {
            match TcpStream::connect(address) {
                Ok(_) => eprintln!("this kernel's Landlock knows no ports: they were not checked"),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                    refused(TcpListener::bind("127.0.0.1:0"));
                }
            }
            let listener = TcpListener::bind(("127.0.0.1", mine)).expect("its own");
            assert_eq!(listener.local_addr().expect("bound").port(), mine);
        });
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
    }

    #[test]
    fn threads_that_begin_later_are_confined_too() {
        let world = world();
        confined(&world.needs(), || {
            thread::scope(|scope| {
                scope.spawn(|| refused(fs::read("/etc/passwd")));
            });
        });
        fs::read("/etc/passwd").expect("this thread is not confined");
    }

    #[test]
    fn a_folder_of_its_own_must_be_there() {
        let needs = Needs { own: vec![PathBuf::from("/nonexistent/data")], ..Needs::default() };
        let error = enter(&needs).expect_err("it cannot be named").to_string();
        assert!(error.contains("/nonexistent/data"), "{error}");
    }
}
