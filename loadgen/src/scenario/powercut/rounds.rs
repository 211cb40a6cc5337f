//! What happens in a round: how the power goes off, and what the server has to do about it.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::rngs::SmallRng;

use super::plan::{self, Round, Starting, When};
use super::result::{ShortOfSpace, Tallies};
use crate::plan::rng;
use crate::report::Broken;
use crate::scenario::restarts::Restarts;
use crate::target::child::Started;
use crate::target::cutdisk::{Cutdisk, DiskStat, Kind, Order};

/// Longest wait for the event that an armed cut waits for.
const REACH_MAX: Duration = Duration::from_secs(5);
/// Longest wait for a merge of tables, which may come now or after many a start.
const MERGE_MAX: Duration = Duration::from_secs(2);
/// Longest wait until a server whose log has failed has ended.
const ABORT_MAX: Duration = Duration::from_secs(20);
/// What it says before it does.
const ABORT_WORDS: &str = "nothing more can be promised";
/// How soon after a fault the power goes off, in milliseconds, at random within.
const CUT_AFTER_MS: std::ops::RangeInclusive<u64> = 0..=300;
/// Free space that is below any server's reserve.
const SHORT_BYTES: u64 = 64 << 20;
/// Longest wait until a server has noticed how much space there is.
const NOTICE_MAX: Duration = Duration::from_secs(30);
/// How long space is short, in milliseconds, at random within.
const SHORT_MS: std::ops::RangeInclusive<u64> = 1000..=2000;

/// The disk, and what has been done with it.
pub(super) struct Power {
    disk: Cutdisk,
    rng: SmallRng,
    tallies: Tallies,
    starting: Starting,
    short: ShortOfSpace,
}

impl Power {
    pub(super) fn new(disk: Cutdisk, seed: u64) -> Self {
        let (tallies, starting) = (Tallies::default(), Starting::default());
        Self { disk, rng: rng(seed, "power cuts"), tallies, starting, short: ShortOfSpace::default() }
    }

    /// Copies what is on the disk now: it is gone with the disk. Powered off, it comes back for that.
    pub(super) fn copy_to(&mut self, folder: &Path) -> Result<()> {
        if !self.disk.is_on()? {
            self.disk.tell(Order::On)?;
        }
        copy_folder(self.disk.mountpoint(), folder)
    }

    pub(super) fn into_parts(mut self) -> Result<(Tallies, DiskStat, ShortOfSpace)> {
        let stat = self.disk.stat()?;
        Ok((self.tallies, stat, self.short))
    }

    /// From a running server to a running server.
    pub(super) fn round(&mut self, restarts: &mut Restarts, round: Round) -> Result<()> {
        self.tallies.begin(round);
        self.end_and_begin(restarts, round).with_context(|| round.to_string())
    }

    fn end_and_begin(&mut self, restarts: &mut Restarts, round: Round) -> Result<()> {
        restarts.live()?;
        match round.when {
            When::Load => self.cut(restarts, round)?,
            When::LogWrite | When::LogSync | When::LogSynced => self.cut_at_log(restarts, round)?,
            When::Recovery | When::Table => self.cut_while_starting(restarts, round)?,
            When::SyncFails => self.fail_log(restarts, round, Order::FailLogSyncOnce)?,
            When::WriteFails => self.fail_log(restarts, round, Order::FailLogWrites)?,
            When::LogFull => self.fail_log(restarts, round, Order::FillLog)?,
            When::Space => self.be_short_of_space(restarts, round)?,
        }
        self.come_back(restarts)
    }

    /// The power goes off now, and with it the server.
    fn cut(&mut self, restarts: &mut Restarts, round: Round) -> Result<()> {
        restarts.server.check_alive()?;
        self.cut_disk(round.kind)?;
        self.tallies.cut(round);
        restarts.server.kill()
    }

    fn cut_disk(&mut self, kind: Kind) -> Result<()> {
        self.disk.tell(Order::Cut(kind))?;
        Ok(())
    }

    /// The power comes back, and the server.
    fn come_back(&mut self, restarts: &mut Restarts) -> Result<()> {
        self.disk.tell(Order::On)?;
        restarts.verify()?;
        let before = self.disk.stat()?;
        restarts.start()?;
        let after = self.disk.stat()?;
        self.starting = Starting { writes: after.writes - before.writes, syncs: after.syncs - before.syncs };
        Ok(())
    }

    fn arm(&mut self, round: Round) -> Result<()> {
        let order = plan::arming(round, self.starting, &mut self.rng).context("this round has no event to wait for")?;
        self.disk.tell(order)?;
        Ok(())
    }

    /// The server lives until the power is off, or `max` is over: what the cut waited for has not come then.
    fn wait_for_cut(&mut self, restarts: &mut Restarts, max: Duration) -> Result<bool> {
        restarts.wait_until(max, |restarts| {
            // In this order: an end before a cut is no consequence of it.
            let alive = restarts.server.check_alive();
            let is_off = !self.disk.is_on()?;
            if !is_off {
                alive?;
            }
            Ok(is_off)
        })
    }

    /// What the cut waited for has not come: the power goes off all the same.
    fn cut_unreached(&mut self, restarts: &mut Restarts, round: Round) -> Result<()> {
        self.tallies.not_reached(round);
        self.disk.tell(Order::Disarm)?;
        if self.disk.is_on()? {
            self.cut_disk(round.kind)?;
        }
        restarts.server.kill()
    }

    fn cut_at_log(&mut self, restarts: &mut Restarts, round: Round) -> Result<()> {
        self.arm(round)?;
        if !self.wait_for_cut(restarts, REACH_MAX)? {
            return self.cut_unreached(restarts, round);
        }
        self.tallies.cut(round);
        self.expect_abort(restarts, round)
    }

    /// The server's log has failed under it: it must end by itself, and say why.
    fn expect_abort(&mut self, restarts: &mut Restarts, round: Round) -> Result<()> {
        let mut status = None;
        restarts.wait_until(ABORT_MAX, |restarts| {
            status = restarts.server.ended()?;
            Ok(status.is_some())
        })?;
        let Some(status) = status else {
            bail!(Broken(format!("the server went on for {ABORT_MAX:?} although its log had failed")));
        };
        if status.signal() != Some(libc::SIGABRT) || !restarts.server.said().contains(ABORT_WORDS) {
            let words = restarts.server.last_words();
            bail!(Broken(format!("the server ended with {status}, not by SIGABRT with `{ABORT_WORDS}`; {words}")));
        }
        self.tallies.aborted(round);
        restarts.server.kill()
    }

    /// The server ends, by a kill or by a power cut, and the cut that counts comes while it starts again.
    fn cut_while_starting(&mut self, restarts: &mut Restarts, round: Round) -> Result<()> {
        restarts.server.check_alive()?;
        if self.rng.random() {
            self.cut_disk(round.kind)?;
        }
        restarts.server.kill()?;
        if !self.disk.is_on()? {
            self.disk.tell(Order::On)?;
        }
        // Not verified here: that opens the log too, and leaves a start nothing to recover.
        self.arm(round)?;
        let started = restarts.start_unless(|| Ok(!self.disk.is_on()?))?;
        let is_hit = match started {
            Started::Stopped => true,
            Started::Ended(_) if !self.disk.is_on()? => true,
            Started::Ended(status) => bail!(restarts.server.ended_by_itself(status)),
            // Tables are written later too, when there are many.
            Started::Ready(_) => round.when == When::Table && self.wait_for_cut(restarts, MERGE_MAX)?,
        };
        if !is_hit {
            return self.cut_unreached(restarts, round);
        }
        self.tallies.cut(round);
        restarts.server.kill()
    }

    /// The log fails, and the server with it. It comes back without a power cut, which comes a moment later.
    fn fail_log(&mut self, restarts: &mut Restarts, round: Round, fault: Order) -> Result<()> {
        self.disk.tell(fault)?;
        self.expect_abort(restarts, round)?;
        self.disk.tell(Order::FailNone)?;
        restarts.start()?;
        let moment = self.rng.random_range(CUT_AFTER_MS);
        restarts.live_for(Duration::from_millis(moment))?;
        self.cut(restarts, round)
    }

    /// Space is short for a while: messages are refused, all else goes on, and messages too as soon as there is space.
    fn be_short_of_space(&mut self, restarts: &mut Restarts, round: Round) -> Result<()> {
        let before = restarts.counters();
        self.disk.tell(Order::Free(Some(SHORT_BYTES)))?;
        let is_noticed = restarts.wait_until(NOTICE_MAX, |restarts| {
            restarts.server.check_alive()?;
            Ok(restarts.counters().busy > before.busy)
        })?;
        if !is_noticed {
            bail!(Broken(format!("no message was answered `busy` within {NOTICE_MAX:?} of a disk almost full")));
        }
        let short = restarts.counters();
        let moment = self.rng.random_range(SHORT_MS);
        restarts.live_for(Duration::from_millis(moment))?;
        let after = restarts.counters();
        self.short.delivered_short_of_space += after.delivered - short.delivered;
        self.short.acked_short_of_space += after.acked - short.acked;
        self.disk.tell(Order::Free(None))?;
        let goes_on = restarts.wait_until(NOTICE_MAX, |restarts| {
            restarts.server.check_alive()?;
            Ok(restarts.counters().acked > after.acked)
        })?;
        if !goes_on {
            bail!(Broken(format!("no message was acknowledged within {NOTICE_MAX:?} of space being there again")));
        }
        self.cut(restarts, round)
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let entries = std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", from.display()))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().with_context(|| format!("cannot look at {}", from.display()))?.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            std::fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}
