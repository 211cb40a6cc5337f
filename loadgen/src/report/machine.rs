//! The circumstances of a measurement: machine, kernel, commit.

use std::process::{Command, Stdio};

use serde::Serialize;

use crate::procfs;

/// What was measured on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let system = rustix::system::uname();
        let part = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        Self {
            processor: procfs::processor().unwrap_or_else(|| "unknown".to_owned()),
            cores: cores(),
            memory_bytes: procfs::memory_bytes().unwrap_or(0),
            kernel: format!("{} {}", part(system.sysname()), part(system.release())),
        }
    }
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The commit of the working tree that the run was started in, with `-dirty` where it was changed.
pub(crate) fn commit() -> String {
    let described = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
        .stderr(Stdio::null())
        .output();
    let described = described.ok().filter(|output| output.status.success());
    let text = described.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}
