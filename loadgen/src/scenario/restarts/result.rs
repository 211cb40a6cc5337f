//! What a run of restarts came to, its misses, and its table.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::report::histogram::Percentiles;
use crate::report::table::{LATENCY_HEAD, Table, grouped, latency_row};
use crate::report::{Misses, limited};
use crate::verify::Findings;

/// What a run came to, whatever ended the server.
#[derive(Serialize)]
pub(crate) struct RestartResult {
    pub(super) rounds: u32,
    #[serde(flatten)]
    pub(super) findings: Findings,
    /// Entries delivered again after a crash or a cut, before the client's dedup. Only plaintext tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) redelivered: Option<u64>,
    /// Devices of all users.
    pub(super) devices: u64,
    pub(super) reconnects: u64,
    pub(super) cut_by_clients: u64,
    /// Devices that left for a while, and of them those that came back with only what they had persisted.
    pub(super) leaves: u64,
    pub(super) device_restarts: u64,
    pub(super) fetch_logins: u64,
    /// From the start of the process until it says that it is ready.
    pub(super) restart_us: Percentiles,
    /// Rounds in which nothing at all was acknowledged.
    pub(super) rounds_without_progress: u32,
    pub(super) settled_s: f64,
    pub(super) errors_by_code: BTreeMap<u32, u64>,
    pub(super) violations: Vec<String>,
    /// The first thing that was wrong in each pair, in words.
    pub(super) faults: Vec<String>,
    /// A promise was broken so that no further round made sense: what was still due counts as neither lost nor missing.
    pub(super) ended_early: bool,
    /// How it was broken.
    pub(super) broken: Option<String>,
}

impl RestartResult {
    /// Notes what no run may have.
    pub(crate) fn check(&self, misses: &mut Misses) {
        misses.expect(self.broken.is_none(), || self.broken.clone().unwrap_or_default());
        let found = &self.findings;
        let others = [(found.rejected, "refused for good"), (found.unanswered, "never answered")];
        for (count, what) in found.broken().chain(others) {
            misses.expect(count == 0, || format!("{count} {what}"));
        }
        misses.expect(self.faults.is_empty() || self.ended_early, || self.faults.join("\n  "));
        misses.expect(self.violations.is_empty(), || format!("protocol broken: {:?}", self.violations));
        misses.expect_unlimited(limited(&self.errors_by_code));
        misses.expect(found.acked > 0, || "nothing was acknowledged at all".to_owned());
    }

    pub(crate) fn render(&self) -> String {
        let head = ["rounds", "sent", "acked", "delivered", "copied", "lost", "reordered", "duplicated", "redelivered"];
        let found = &self.findings;
        let mut checks = Table::new(head);
        let counts = [found.sent, found.acked, found.delivered, found.copied];
        let faults = [found.lost, found.reordered, found.duplicated];
        let cells = [u64::from(self.rounds)].into_iter().chain(counts).chain(faults).map(grouped);
        let redelivered = self.redelivered.map_or_else(|| "sealed".to_owned(), grouped);
        checks.row(cells.chain([redelivered]).collect());
        let mut receipts = Table::new(["receipts", "untrue", "going back", "missing", "reads missing", "lists wrong"]);
        let told = [
            found.receipts,
            found.untrue,
            found.receipts_back,
            found.receipts_missing,
            found.reads_missing,
            found.lists_wrong,
        ];
        receipts.row(told.into_iter().map(grouped).collect());
        let mut times = Table::new(LATENCY_HEAD);
        times.row(latency_row("restart", &self.restart_us));
        let early = if self.ended_early {
            "The rounds ended early: what was still due is counted as neither lost nor missing.\n"
        } else {
            ""
        };
        format!(
            "{}\n{}\n{}\n{early}{} devices, {} reconnects, {} connections cut by clients, {} leaves, {} fetch logins, settled in {:.1} s\n",
            checks.render(),
            receipts.render(),
            times.render(),
            grouped(self.devices),
            grouped(self.reconnects),
            grouped(self.cut_by_clients),
            grouped(self.leaves),
            grouped(self.fetch_logins),
            self.settled_s
        )
    }
}
