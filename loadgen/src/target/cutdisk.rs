//! A mounted `cutdisk`: a disk that loses power and fails when it is told to. One line asks, one line answers.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam::channel::{self, Receiver};
use serde::{Deserialize, Serialize};

/// With this exit code it says that this machine mounts nothing.
const NO_FUSE: i32 = 4;
/// Longest wait for an answer: a disk of many files takes a while to be cut.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Longest wait until it has unmounted.
const UNMOUNT_MAX: Duration = Duration::from_secs(10);
/// How often it is asked whether it has ended.
const END_STEP: Duration = Duration::from_millis(5);

/// This machine has no FUSE.
#[derive(Debug)]
pub(crate) struct NoFuse(String);

impl std::error::Error for NoFuse {}

impl fmt::Display for NoFuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What survives a power cut of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Nothing.
    Drop,
    /// Any pages.
    Subset,
    /// The first pages, the last of them in part.
    Torn,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Drop, Self::Subset, Self::Torn];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Drop => "drop",
            Self::Subset => "subset",
            Self::Torn => "torn",
        })
    }
}

/// At what an armed cut happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Before a write takes effect.
    Write,
    /// Before a sync takes effect.
    Sync,
    /// When a sync has taken effect, and its caller does not know.
    Synced,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Synced => "synced",
        })
    }
}

/// Of which files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// The log.
    Log,
    /// The tables that flushes and merges write.
    Table,
    /// All.
    Any,
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Log => "log",
            Self::Table => "table",
            Self::Any => "any",
        })
    }
}

/// What the disk is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The power goes off now.
    Cut(Kind),
    /// It goes off at so many events from now.
    Arm(Kind, Event, Files, u32),
    /// It does not go off by itself any more.
    Disarm,
    /// Is it on?
    State,
    /// It comes back.
    On,
    /// One sync of the log fails, and what it should have made durable stays lost.
    FailLogSyncOnce,
    /// Every write to the log fails with an input/output error.
    FailLogWrites,
    /// Every write to the log finds no space.
    FillLog,
    /// Nothing fails any more.
    FailNone,
    /// So many bytes are free; `None`: any number.
    Free(Option<u64>),
    /// What it has done and lost so far.
    Stat,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut(kind) => write!(f, "cut {kind}"),
            Self::Arm(kind, event, files, count) => write!(f, "arm {kind} {event} {files} {count}"),
            Self::Disarm => f.write_str("disarm"),
            Self::State => f.write_str("state"),
            Self::On => f.write_str("on"),
            Self::FailLogSyncOnce => f.write_str("fail sync log once"),
            Self::FailLogWrites => f.write_str("fail write log eio"),
            Self::FillLog => f.write_str("fail write log enospc"),
            Self::FailNone => f.write_str("fail none"),
            Self::Free(Some(bytes)) => write!(f, "free {bytes}"),
            Self::Free(None) => f.write_str("free any"),
            Self::Stat => f.write_str("stat"),
        }
    }
}

/// What the disk has done and lost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskStat {
    pub(crate) writes: u64,
    pub(crate) syncs: u64,
    pub(crate) cuts: u64,
    pub(crate) pages_dropped: u64,
    pub(crate) pages_kept: u64,
    pub(crate) pages_torn: u64,
    pub(crate) entries_dropped: u64,
    pub(crate) bytes: u64,
}

/// A mounted disk. Dropping it unmounts it; what is on it is gone then.
pub(crate) struct Cutdisk {
    child: Child,
    /// Taken away to end it.
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
    mountpoint: PathBuf,
}

impl Cutdisk {
    /// Mounts an empty disk at `mountpoint`, a folder that is made here.
    pub(crate) fn mount(program: &Path, mountpoint: &Path, seed: u64) -> Result<Self> {
        std::fs::create_dir_all(mountpoint).with_context(|| format!("cannot create {}", mountpoint.display()))?;
        let mut command = Command::new(program);
        command.arg(mountpoint).arg("--seed").arg(seed.to_string());
        // A group of its own: an interrupt from the terminal ends this program, and then the disk unmounts itself.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().map(listen).context("a pipe was asked for")?;
        let mut disk = Self { child, orders, answers, mountpoint: mountpoint.to_owned() };
        match disk.answer() {
            Ok(line) if line == "ready" => {
                pass_on(&mut disk.child);
                Ok(disk)
            }
            Ok(line) => bail!("cutdisk began with `{line}`, not with `ready`"),
            Err(_) => Err(disk.why_it_ended()),
        }
    }

    pub(crate) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Gives an order; returns what the answer says beyond `ok`.
    pub(crate) fn tell(&mut self, order: Order) -> Result<String> {
        let mut pipe = self.orders.as_ref().context("the disk is unmounted")?;
        writeln!(pipe, "{order}").with_context(|| format!("cutdisk takes no `{order}`"))?;
        let line = self.answer().with_context(|| format!("cutdisk and `{order}`"))?;
        parse_answer(&line).with_context(|| format!("cutdisk and `{order}`"))
    }

    pub(crate) fn is_on(&mut self) -> Result<bool> {
        match self.tell(Order::State)?.as_str() {
            "on" => Ok(true),
            "off" => Ok(false),
            other => bail!("cutdisk says that it is `{other}`"),
        }
    }

    pub(crate) fn stat(&mut self) -> Result<DiskStat> {
        let text = self.tell(Order::Stat)?;
        serde_json::from_str(&text).with_context(|| format!("cutdisk told `{text}`"))
    }

    fn answer(&self) -> Result<String> {
        self.answers.recv_timeout(ANSWER_MAX).context("no answer: it has ended, or hangs")
    }

    /// It has closed its output before it was ready.
    fn why_it_ended(mut self) -> anyhow::Error {
        drop(self.orders.take());
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            std::io::Read::read_to_string(&mut stderr, &mut said).ok();
        }
        let said = said.trim();
        match self.child.wait() {
            Ok(status) if status.code() == Some(NO_FUSE) => NoFuse(said.to_owned()).into(),
            Ok(status) => anyhow::anyhow!("cutdisk ended with {status} before it was ready: {said}"),
            Err(error) => error.into(),
        }
    }
}

impl Drop for Cutdisk {
    fn drop(&mut self) {
        drop(self.orders.take());
        let end = Instant::now() + UNMOUNT_MAX;
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(END_STEP);
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().ok();
            self.child.wait().ok();
            Command::new("fusermount3").arg("-uz").arg(&self.mountpoint).status().ok();
        }
    }
}

/// The lines of a pipe, as they come: so that nobody waits for ever for one that does not.
fn listen(pipe: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel::bounded(1);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// What it complains of from now on goes to our own standard error: a full pipe would hold it up.
fn pass_on(child: &mut Child) {
    if let Some(mut stderr) = child.stderr.take() {
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::stderr()));
    }
}

/// What an answer says beyond `ok`.
fn parse_answer(line: &str) -> Result<String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "ok" => Ok(rest.trim().to_owned()),
        "error" => bail!("{rest}"),
        _ => bail!("`{line}` is no answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_refusals_and_from_noise() {
        assert_eq!(parse_answer("ok").expect("an answer"), "");
        assert_eq!(parse_answer("ok off").expect("an answer"), "off");
        assert_eq!(parse_answer("ok {\"cuts\":1, \"a\":2}").expect("an answer"), "{\"cuts\":1, \"a\":2}");
        assert_eq!(parse_answer("error the power is off").expect_err("a refusal").to_string(), "the power is off");
        for noise in ["", "okay", "ready", "OK on"] {
            assert!(parse_answer(noise).is_err(), "{noise}");
        }
    }

    #[test]
    fn orders_are_written_as_the_disk_reads_them() {
        let orders = [
            (Order::Cut(Kind::Subset), "cut subset"),
            (Order::Arm(Kind::Torn, Event::Synced, Files::Log, 7), "arm torn synced log 7"),
            (Order::Arm(Kind::Drop, Event::Write, Files::Table, 1), "arm drop write table 1"),
            (Order::FailLogSyncOnce, "fail sync log once"),
            (Order::FillLog, "fail write log enospc"),
            (Order::Free(Some(4096)), "free 4096"),
            (Order::Free(None), "free any"),
        ];
        for (order, text) in orders {
            assert_eq!(order.to_string(), text);
        }
    }

    /// A shell script in the place of the disk. A shell writes it: what this process has open for writing while another
    /// test starts a program cannot be started itself.
    fn stand_in(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("stand-in");
        let mut shell = Command::new("sh");
        shell.arg("-c").arg("printf '#!/bin/sh\n%s\n' \"$1\" >\"$2\" && chmod +x \"$2\"").arg("sh");
        let status = shell.arg(script).arg(&path).status();
        assert!(status.expect("a shell").success());
        path
    }

    #[test]
    fn a_disk_is_asked_and_answers() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let script = "echo ready; while read line; do case \"$line\" in state) echo ok off;; \
            stat) echo 'ok {\"writes\":1,\"syncs\":2,\"cuts\":3,\"pages_dropped\":4,\"pages_kept\":5,\"pages_torn\":6,\
            \"entries_dropped\":7,\"bytes\":8,\"later\":9}';; *) echo error what is \"$line\";; esac; done";
        let program = stand_in(dir.path(), script);
        let mut disk = Cutdisk::mount(&program, &dir.path().join("disk"), 1).expect("it says that it is ready");
        assert!(!disk.is_on().expect("an answer"));
        let stat = disk.stat().expect("an answer");
        assert_eq!((stat.writes, stat.cuts, stat.pages_torn, stat.bytes), (1, 3, 6, 8));
        let refused = format!("{:#}", disk.tell(Order::On).expect_err("a refusal"));
        assert!(refused.contains("what is on"), "{refused}");
    }

    #[test]
    fn a_machine_without_fuse_is_told_from_other_failures() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (code, is_known) in [(4, true), (1, false)] {
            let program = stand_in(dir.path(), &format!("echo 'no /dev/fuse here' >&2; exit {code}"));
            let error = Cutdisk::mount(&program, &dir.path().join("disk"), 1).err().expect("it ends at once");
            assert_eq!(error.is::<NoFuse>(), is_known, "{error:#}");
            assert!(error.to_string().contains("no /dev/fuse here"), "{error:#}");
        }
    }
}
