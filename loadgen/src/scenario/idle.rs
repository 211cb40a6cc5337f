//! What `density`, `idle-burst` and `floor` have in common: readings of memory and CPU, how fast they grow with idle
//! connections, and when a run has to stop.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use crate::clock::{Clock, micros};
use crate::dense::{Crowd, CrowdLoad, LoginWith};
use crate::procfs::{self, KernelMemory};
use crate::report::progress::Progress;
use crate::sys::is_interrupted;
use crate::target::bare::Bare;
use crate::target::{Sample, Target};

/// How often the machine's memory is looked at while connections come.
const MEMORY_LOOK: Duration = Duration::from_millis(500);

/// What a server says of its resident memory and what its process has are this far apart at most.
const RSS_APART_PERCENT: u64 = 20;

/// Attempts to read a target's counters; each waits for some seconds.
const SAMPLE_ATTEMPTS: u32 = 6;

/// A reading at some number of connections.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct IdleSample {
    pub(crate) connections: u64,
    /// Resident memory of the server less what its storage reports as its own.
    pub(crate) user_bytes: u64,
    pub(crate) rss_bytes: u64,
    /// What its storage reports.
    pub(crate) engine_bytes: u64,
    /// What its process has of its allocator, less what its storage reports.
    pub(crate) allocated_bytes: Option<u64>,
    /// Its proportional share of memory, with what its storage has, where its process is known.
    pub(crate) pss_bytes: Option<u64>,
    pub(crate) kernel: KernelMemory,
    /// Resident memory of this generator.
    pub(crate) own_bytes: u64,
    pub(crate) available_bytes: u64,
    pub(crate) cpu_us: u64,
}

/// Bytes per connection between two readings.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct IdleSlope {
    pub(crate) user_bytes_per_connection: f64,
    /// Of them, those that the allocator has given out. The rest is free and cannot be given back.
    pub(crate) allocated_bytes_per_connection: Option<f64>,
    /// One end's share of the kernel's growth: both are on this machine.
    pub(crate) kernel_bytes_per_connection: f64,
    pub(crate) own_bytes_per_connection: f64,
    pub(crate) pss_bytes_per_connection: Option<f64>,
}

impl IdleSample {
    /// Reads the target; `pid` is the server's, where it runs on this machine and is known.
    pub(crate) fn take(target: &mut dyn Target, pid: Option<u32>, connections: u64) -> Result<Self> {
        let mut sample = sample(target)?;
        if let Some(pid) = pid {
            let told_bytes = sample.rss_bytes;
            sample.rss_bytes = procfs::rss_bytes(pid)?;
            if told_bytes.abs_diff(sample.rss_bytes) > told_bytes / 100 * RSS_APART_PERCENT {
                bail!(
                    "process {pid} has {} bytes resident, and the server says of itself that it has {told_bytes}: that is \
                     another process; name the right one with --server-pid",
                    sample.rss_bytes
                );
            }
        }
        Ok(Self {
            connections,
            user_bytes: sample.plain_bytes(),
            rss_bytes: sample.rss_bytes,
            engine_bytes: sample.engine_bytes,
            allocated_bytes: sample.allocated_bytes.map(|bytes| bytes.saturating_sub(sample.engine_bytes)),
            // Of another user's process it cannot be read.
            pss_bytes: pid.and_then(|pid| procfs::pss_bytes(pid).ok()),
            kernel: procfs::kernel_memory()?,
            own_bytes: procfs::rss_bytes(std::process::id())?,
            available_bytes: procfs::memory_available_bytes()?,
            cpu_us: sample.cpu_us,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes of memory are below 2^52")]
    pub(crate) fn slope_from(&self, earlier: &Self) -> IdleSlope {
        let connections = self.connections.saturating_sub(earlier.connections).max(1) as f64;
        let growth = |to: u64, from: u64| (to as f64 - from as f64) / connections;
        IdleSlope {
            user_bytes_per_connection: growth(self.user_bytes, earlier.user_bytes),
            allocated_bytes_per_connection: self
                .allocated_bytes
                .zip(earlier.allocated_bytes)
                .map(|(to, from)| growth(to, from)),
            kernel_bytes_per_connection: growth(self.kernel.total(), earlier.kernel.total()) / 2.0,
            own_bytes_per_connection: growth(self.own_bytes, earlier.own_bytes),
            pss_bytes_per_connection: self.pss_bytes.zip(earlier.pss_bytes).map(|(to, from)| growth(to, from)),
        }
    }
}

/// Reads the target's counters. On a machine that is busy to the last, a reading may take several attempts: a run of
/// an hour does not end for one that was late.
pub(crate) fn sample(target: &mut dyn Target) -> Result<Sample> {
    for _ in 1..SAMPLE_ATTEMPTS {
        if let Ok(sample) = target.sample() {
            return Ok(sample);
        }
    }
    target.sample()
}

/// Ends a run that is asked to end, or that takes the machine's last memory.
pub(crate) struct Guard {
    memory_floor_bytes: u64,
    looked: Option<Instant>,
}

impl Guard {
    pub(crate) fn new(memory_floor_mib: u64) -> Self {
        Self { memory_floor_bytes: memory_floor_mib << 20, looked: None }
    }

    /// Whether the run may go on.
    ///
    /// # Errors
    /// It may not, and why.
    pub(crate) fn check(&mut self) -> Result<()> {
        if is_interrupted() {
            bail!("interrupted: all connections are closed");
        }
        if self.looked.is_none_or(|looked| looked.elapsed() >= MEMORY_LOOK) {
            self.looked = Some(Instant::now());
            let available_bytes = procfs::memory_available_bytes()?;
            if available_bytes < self.memory_floor_bytes {
                bail!(
                    "only {} MiB of memory are left, less than --memory-floor-mib {}: all connections are closed; ask \
                     for fewer, or give the machine more memory",
                    available_bytes >> 20,
                    self.memory_floor_bytes >> 20
                );
            }
        }
        Ok(())
    }
}

/// What idle connections cost a bare program.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BareFigures {
    #[serde(flatten)]
    pub(crate) slope: IdleSlope,
    pub(crate) login_cpu_us: f64,
    pub(crate) logins_per_s: f64,
    #[serde(skip)]
    pub(crate) failures: u64,
}

impl BareFigures {
    /// Starts a bare floor, lets the clients of `load` come to it as they would to a server, and ends it.
    pub(crate) fn measure(
        load: &CrowdLoad,
        slope_from: u64,
        settle: Duration,
        guard: &mut Guard,
        progress: &Progress,
    ) -> Result<Self> {
        guard.check()?;
        let mut bare = Bare::start(load.connections)?;
        let pid = Some(bare.pid());
        let load = CrowdLoad {
            target: bare.address(),
            tickets: None,
            sends_ready: false,
            keep_alive_us: NEVER_US,
            ..load.clone()
        };
        let connections = load.connections;
        let crowd = Crowd::start(load, &LoginWith::Nothing, Clock::start())?;
        let mut grow = |to: u64| {
            let took = crowd.grow_to(to, progress, || guard.check())?;
            guard.check()?;
            let grown = IdleSample::take(&mut bare, pid, to)?;
            progress.wait(settle, || guard.check())?;
            anyhow::Ok((took, grown, IdleSample::take(&mut bare, pid, to)?))
        };
        let (took_first, _, low) = grow(slope_from)?;
        let (took_rest, grown, high) = grow(connections)?;
        let (outcome, _) = crowd.close()?;
        Ok(Self {
            slope: high.slope_from(&low),
            login_cpu_us: quotient(grown.cpu_us.saturating_sub(low.cpu_us), connections - slope_from),
            logins_per_s: per_second(connections, took_first + took_rest),
            failures: outcome.counts.login_failures + outcome.counts.disconnects,
        })
    }
}

/// A keep-alive interval beyond every run: nobody answers at a floor.
const NEVER_US: u64 = 24 * 3600 * 1_000_000;

/// So many times a measured figure; one that is nothing or less was not measured, and no ratio to it is a good one.
pub(crate) fn ratio(of: f64, by: f64) -> f64 {
    if of > 0.0 && by > 0.0 { of / by } else { f64::INFINITY }
}

/// The quotient of two counts; 0 where there is nothing to divide by.
#[expect(clippy::cast_precision_loss, reason = "counts, bytes and microseconds of a run are below 2^52")]
pub(crate) fn quotient(of: u64, by: u64) -> f64 {
    if by > 0 { of as f64 / by as f64 } else { 0.0 }
}

/// So many in so long, a second.
pub(crate) fn per_second(count: u64, span: Duration) -> f64 {
    1e6 * quotient(count, micros(span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_ratio_to_what_was_not_measured_is_a_good_one() {
        assert!((ratio(3.0, 2.0) - 1.5).abs() < 1e-9);
        for (of, by) in [(1.0, 0.0), (1.0, -2.0), (0.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (f64::NAN, 1.0)] {
            assert!(ratio(of, by).is_infinite(), "{of} to {by}");
        }
    }
}
