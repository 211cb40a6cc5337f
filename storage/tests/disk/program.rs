//! The disk as a process of its own, which outlives whatever the test does to itself: this test, run again.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use crate::cutdisk;

/// Where the process that is the disk mounts it, and its seed.
const AT: &str = "CULVER_CUTDISK_AT";
const SEED: &str = "CULVER_CUTDISK_SEED";
/// The machine has no FUSE, and that is known.
const NO_FUSE: &str = "CULVER_NO_FUSE";

/// A mounted disk.
pub(crate) struct CutDisk {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// After the process that has it mounted.
    directory: TempDir,
}

impl CutDisk {
    /// Mounts a disk with an empty folder for a volume. `None` where the machine cannot, and that is known.
    ///
    /// # Panics
    /// The machine cannot: a check that did not run has not passed.
    pub(crate) fn mount(seed: u64) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let test = std::env::current_exe().expect("this test has a file");
        let mut child = Command::new(test)
            .args(["--exact", "program::is_the_disk", "--nocapture"])
            .env(AT, directory.path())
            .env(SEED, seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this test can be run again");
        let input = child.stdin.take();
        let mut output = BufReader::new(child.stdout.take().expect("it was piped"));
        // The test's own words come first.
        let mut line = String::new();
        while output.read_line(&mut line).expect("its words are text") > 0 {
            if line.trim_end().ends_with("ready") {
                let disk = Self { child, input, output, directory };
                // As a data directory does it: RocksDB syncs the volume's folder, and not the one it lies in.
                let make = || {
                    std::fs::create_dir(disk.volume())?;
                    std::fs::File::open(disk.path())?.sync_all()
                };
                make().expect("an empty disk takes a folder");
                return Some(disk);
            }
            line.clear();
        }
        let mut reason = String::new();
        child.stderr.take().expect("it was piped").read_to_string(&mut reason).expect("its words are text");
        let code = child.wait().expect("it was started").code();
        assert_eq!(code, Some(i32::from(cutdisk::NO_FUSE)), "the disk did not start: {reason}");
        println!("NOT RUN: {}", reason.trim());
        let is_known = std::env::var_os(NO_FUSE).is_some_and(|value| value == "1");
        assert!(is_known, "NOT RUN: {}; where that is how it is, say so with {NO_FUSE}=1", reason.trim());
        None
    }

    /// The folder for a volume.
    pub(crate) fn volume(&self) -> PathBuf {
        self.path().join("volume")
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Gives a command that must be obeyed, and returns what is said to it.
    pub(crate) fn obey(&mut self, command: &str) -> String {
        let input = self.input.as_mut().expect("it is there until the end");
        writeln!(input, "{command}").expect("the disk listens");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("its words are text");
        let said = line.trim_end().strip_prefix("ok").unwrap_or_else(|| panic!("{command}: {line}"));
        said.trim_start().to_owned()
    }

    pub(crate) fn is_on(&mut self) -> bool {
        self.obey("state") == "on"
    }

    /// Cuts the power, if it did not go off by itself, and brings it back.
    pub(crate) fn power_cycle(&mut self, kind: &str) {
        if self.is_on() {
            self.obey(&format!("cut {kind}"));
        }
        self.obey("on");
    }
}

impl Drop for CutDisk {
    fn drop(&mut self) {
        drop(self.input.take());
        let status = self.child.wait().expect("it was started");
        // A test that failed says more than this would.
        assert!(status.success() || std::thread::panicking(), "the disk: {status}");
    }
}

/// No test: the disk itself, if it is started as that.
#[test]
fn is_the_disk() {
    let Some(at) = std::env::var_os(AT) else { return };
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).expect("whoever starts it names the seed");
    let code = cutdisk::run(Path::new(&at), seed, std::io::stdin().lock(), std::io::stdout());
    std::process::exit(i32::from(code));
}
