//! What a drain came to: the figures, the thresholds, the table.

use anyhow::Result;
use serde::Serialize;

use super::DrainOptions;
use super::calm::CalmResult;
use crate::procfs;
use crate::report::Misses;
use crate::report::table::{Table, grouped};
use crate::target::{Sample, Target};
use crate::verify::Findings;

/// The server's memory at rest.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct MemoryReading {
    /// Messages that wait in inboxes.
    pub(super) waiting_messages: u64,
    /// Resident, seen from outside where that is possible.
    rss_bytes: u64,
    /// What the storage reports as its memtables and cache.
    engine_bytes: u64,
    /// The difference.
    pub(super) waiting_rss_bytes: u64,
}

impl MemoryReading {
    /// Reads it now; `pid` is the server's, where it runs on this machine and is known.
    pub(super) fn take(waiting_messages: u64, target: &mut dyn Target, pid: Option<u32>) -> Result<Self> {
        let mut sample = target.sample()?;
        if let Some(pid) = pid {
            sample.rss_bytes = procfs::rss_bytes(pid)?;
        }
        Ok(Self::of(waiting_messages, &sample))
    }

    fn of(waiting_messages: u64, sample: &Sample) -> Self {
        let Sample { rss_bytes, engine_bytes, .. } = *sample;
        Self { waiting_messages, rss_bytes, engine_bytes, waiting_rss_bytes: sample.plain_bytes() }
    }
}

/// What was measured while the inboxes drained.
pub(super) struct Drained {
    pub(super) drain_s: f64,
    pub(super) before: Sample,
    /// When what follows the last delivery was over too.
    pub(super) after: Sample,
    pub(super) rss_bytes_max: u64,
    /// Messages that came too fast for the server while the inboxes were filled.
    pub(super) limited: u64,
    pub(super) calm: Option<CalmResult>,
}

#[derive(Serialize)]
pub(super) struct DrainResult {
    #[serde(flatten)]
    findings: Findings,
    fill_s: f64,
    drain_s: f64,
    entries_per_s: f64,
    /// Without what the calm pairs cost by themselves.
    entries_per_server_cpu_s: f64,
    /// As if the calm pairs' CPU time were the drain's.
    entries_per_server_cpu_s_raw: f64,
    server_cpu_us_per_entry: f64,
    /// The most that the server's memory grew while it drained, without memtables and cache.
    rss_growth_bytes: u64,
    waiting: Vec<MemoryReading>,
    /// From the first reading to the last.
    waiting_growth_bytes: u64,
    waiting_bytes_per_message: f64,
    after: MemoryReading,
    disconnects: u64,
    sync_starts: u64,
    sync_starts_wrong: u64,
    limited: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    calm: Option<CalmResult>,
}

impl DrainResult {
    pub(super) fn new(
        findings: Findings,
        fill_s: f64,
        drained: Drained,
        waiting: Vec<MemoryReading>,
        after: MemoryReading,
        disconnects: u64,
        (sync_starts, sync_starts_wrong): (u64, u64),
    ) -> Self {
        let Drained { drain_s, before, after: last, rss_bytes_max, limited, calm } = drained;
        let delivered = float(findings.delivered);
        let raw_us = float(last.cpu_us.saturating_sub(before.cpu_us));
        let net_us = (raw_us - calm.as_ref().map_or(0.0, CalmResult::cpu_us_in_drain)).max(0.0);
        let engine_growth = last.engine_bytes.saturating_sub(before.engine_bytes);
        let (waiting_growth_bytes, waiting_bytes_per_message) = growth(&waiting);
        Self {
            entries_per_s: quotient(delivered, drain_s),
            entries_per_server_cpu_s: quotient(delivered * 1e6, net_us),
            entries_per_server_cpu_s_raw: quotient(delivered * 1e6, raw_us),
            server_cpu_us_per_entry: quotient(net_us, delivered),
            rss_growth_bytes: rss_bytes_max.max(last.rss_bytes).saturating_sub(before.rss_bytes + engine_growth),
            findings,
            fill_s,
            drain_s,
            waiting,
            waiting_growth_bytes,
            waiting_bytes_per_message,
            after,
            disconnects,
            sync_starts,
            sync_starts_wrong,
            limited,
            calm,
        }
    }

    /// What was not kept.
    pub(super) fn check(&self, options: &DrainOptions) -> Vec<String> {
        let mut misses = Misses::default();
        let found = &self.findings;
        misses.expect(found.is_clean(), || {
            format!("{} lost, {} duplicated, {} reordered", found.lost, found.duplicated, found.reordered)
        });
        misses.expect(self.sync_starts_wrong == 0, || {
            format!("{} of {} SYNC_STARTs did not tell what waits", self.sync_starts_wrong, self.sync_starts)
        });
        misses.expect_unlimited(self.limited);
        if let Some(min) = options.entries_per_cpu_s_min {
            let found = self.entries_per_server_cpu_s;
            misses.expect(found >= min, || format!("{found:.0} entries per second of server CPU, not {min}"));
        }
        if let Some(max) = options.rss_growth_bytes_max {
            let found = self.rss_growth_bytes;
            misses.expect(found <= max, || format!("memory grew by {found} bytes, not {max}"));
        }
        if let Some(max) = options.waiting_growth_max {
            let found = self.waiting_growth_bytes;
            misses.expect(found <= max, || format!("what waits takes {found} bytes of memory, not {max}"));
        }
        if let Some(calm) = &self.calm {
            options.calm.check(calm, &mut misses);
        }
        misses.into_vec()
    }

    pub(super) fn render(&self) -> String {
        let found = &self.findings;
        let mut table = Table::new(["drain", ""]);
        let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
        let bytes = |bytes| format!("{} bytes", grouped(bytes));
        row("entries delivered", grouped(found.delivered));
        row("lost · duplicated · reordered", format!("{} · {} · {}", found.lost, found.duplicated, found.reordered));
        row("filled in", format!("{:.2} s", self.fill_s));
        row("drained in", format!("{:.2} s", self.drain_s));
        row("entries per second", format!("{:.0}", self.entries_per_s));
        row("entries per server CPU second", format!("{:.0}", self.entries_per_server_cpu_s));
        if self.calm.is_some() {
            row("… the calm pairs' CPU included", format!("{:.0}", self.entries_per_server_cpu_s_raw));
        }
        row("SYNC_STARTs · wrong", format!("{} · {}", grouped(self.sync_starts), self.sync_starts_wrong));
        for reading in &self.waiting {
            let name = format!("memory, {} waiting", grouped(reading.waiting_messages));
            row(&name, reading.render());
        }
        if self.waiting.len() > 1 {
            row("growth with what waits", bytes(self.waiting_growth_bytes));
            row("… per message", format!("{:.2} bytes", self.waiting_bytes_per_message));
        }
        row("memory growth while draining", bytes(self.rss_growth_bytes));
        row("memory after", self.after.render());
        let calm = self.calm.as_ref().map(|calm| format!("\n{}", calm.render()));
        table.render() + &calm.unwrap_or_default()
    }
}

impl MemoryReading {
    fn render(&self) -> String {
        let [rss, engine, rest] = [self.rss_bytes, self.engine_bytes, self.waiting_rss_bytes].map(grouped);
        format!("{rss} − {engine} = {rest} bytes")
    }
}

/// Bytes from the first reading to the last, and per message.
fn growth(waiting: &[MemoryReading]) -> (u64, f64) {
    let (Some(first), Some(last)) = (waiting.first(), waiting.last()) else { return (0, 0.0) };
    let bytes = last.waiting_rss_bytes.saturating_sub(first.waiting_rss_bytes);
    let messages = last.waiting_messages.saturating_sub(first.waiting_messages);
    (bytes, quotient(float(bytes), float(messages)))
}

/// 0 where there is nothing to divide by.
fn quotient(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "counts, bytes and microseconds of a run are below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(waiting_messages: u64, rss_bytes: u64, engine_bytes: u64) -> MemoryReading {
        MemoryReading::of(waiting_messages, &Sample { cpu_us: 0, rss_bytes, engine_bytes, ..Sample::default() })
    }

    fn result(calm: Option<CalmResult>) -> DrainResult {
        let findings = Findings { delivered: 1_000_000, ..Findings::default() };
        let drained = Drained {
            drain_s: 4.0,
            before: Sample { cpu_us: 1_000_000, rss_bytes: 100, engine_bytes: 50, ..Sample::default() },
            after: Sample { cpu_us: 3_000_000, rss_bytes: 170, engine_bytes: 80, ..Sample::default() },
            rss_bytes_max: 190,
            limited: 0,
            calm,
        };
        let waiting = vec![reading(100_000, 300, 200), reading(1_000_000, 900, 250)];
        DrainResult::new(findings, 1.0, drained, waiting, reading(0, 200, 150), 0, (10, 0))
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    #[test]
    fn memory_counts_without_memtables_and_cache() {
        let result = result(None);
        assert_eq!((result.waiting_growth_bytes, result.rss_growth_bytes), (550, 60));
        assert!(close(result.waiting_bytes_per_message, 550.0 / 900_000.0));
        assert!(result.render().contains("900 − 250 = 650 bytes"), "{}", result.render());
        assert_eq!(growth(&[reading(5, 9, 1)]), (0, 0.0));
        assert_eq!(growth(&[]), (0, 0.0));
    }

    #[test]
    fn entries_count_by_the_drains_own_cpu_time() {
        let result = result(None);
        assert!(close(result.entries_per_server_cpu_s, 500_000.0));
        assert!(close(result.entries_per_server_cpu_s_raw, 500_000.0));
        assert!(close(result.entries_per_s, 250_000.0));
    }
}
