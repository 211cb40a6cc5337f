//! What restarts came to: their figures, their thresholds, their table.

use std::collections::BTreeMap;

use serde::Serialize;

use super::options::RestartOptions;
use super::round::Round;
use crate::dense::{Counts, CrowdOutcome};
use crate::report::table::{LATENCY_HEAD, Table, duration, grouped, latency_row};
use crate::report::{Misses, limited};
use crate::scenario::pairs::PairOutcome;
use crate::scenario::storm::Attempts;
use crate::units::Span;
use crate::verify::Findings;

#[derive(Serialize)]
pub(super) struct RestartResult {
    connections: u64,
    users: u64,
    restarts: Vec<Round>,
    /// Of the pairs.
    #[serde(flatten)]
    findings: Findings,
    pair_reconnects: u64,
    pair_connect_failures: u64,
    pair_errors_by_code: BTreeMap<u32, u64>,
    violations: Vec<String>,
    /// Of the crowd's messages, one each, which lay in storage.
    crowd_delivered: u64,
    crowd_redelivered: u64,
    crowd_errors_by_code: BTreeMap<u32, u64>,
    faults: Vec<String>,
    clients: Counts,
}

impl RestartResult {
    pub(super) fn new(
        (connections, users): (u64, u64),
        restarts: Vec<Round>,
        outcome: CrowdOutcome,
        pairs: PairOutcome,
    ) -> Self {
        Self {
            connections,
            users,
            restarts,
            findings: pairs.findings,
            pair_reconnects: pairs.links.disconnects,
            pair_connect_failures: pairs.links.connect_failures,
            pair_errors_by_code: pairs.errors,
            violations: pairs.violations,
            crowd_delivered: outcome.counts.delivered,
            crowd_redelivered: outcome.counts.duplicated,
            crowd_errors_by_code: outcome.errors,
            faults: outcome.faults,
            clients: outcome.counts,
        }
    }

    pub(super) fn check(&self, options: &RestartOptions, misses: &mut Misses) {
        let bounds = &options.thresholds;
        for (round, number) in self.restarts.iter().zip(1..) {
            let mut within = |found_us: Option<u64>, max: Span, what: &str| {
                misses.expect(found_us.is_some_and(|found_us| found_us <= max.us()), || {
                    let found = found_us.map_or_else(|| "never".to_owned(), duration);
                    format!("restart {number}: {what}: {found}, not {max}")
                });
            };
            within(Some(round.not_ready_us), bounds.not_ready_max, "until /readyz said no");
            within(round.first_login_us, bounds.first_login_max, "from the old server's end to the first login");
            within(Some(round.back_us), bounds.back_max, "until all were back");
            let first = || self.faults.first().map_or_else(String::new, |fault| format!(": {fault}"));
            misses.expect(round.missing == 0, || {
                format!("restart {number}: {} clients were not back within {}", round.missing, options.patience)
            });
            let Attempts { refused, reset, unopened, lost, .. } = round.attempts;
            misses.expect(refused + reset <= options.refused_max(), || {
                format!("restart {number}: {refused} attempts were refused and {reset} reset")
            });
            misses.expect(unopened == 0, || format!("{unopened} attempts failed on this side{}", first()));
            misses.expect(lost == 0, || format!("restart {number}: {lost} clients stay away for good{}", first()));
            misses.expect(round.exit_is_clean, || format!("restart {number}: it ended with {}", round.exit_status));
        }
        let found = &self.findings;
        misses.expect(found.is_clean() && found.unanswered == 0, || format!("the pairs: {found:?}"));
        misses.expect(self.violations.is_empty(), || format!("protocol broken: {:?}", self.violations));
        misses.expect_unlimited(limited(&self.pair_errors_by_code));
        let refused = self.pair_connect_failures;
        misses.expect(refused <= options.refused_max(), || format!("{refused} connections of the pairs failed"));
        let Counts { delivered, duplicated, strange, damaged, overtaken, .. } = self.clients;
        let is_clean = duplicated == 0 && strange == 0 && damaged == 0 && overtaken == 0;
        misses.expect(delivered == self.connections && is_clean, || {
            format!(
                "of {} messages to the crowd {delivered} came, {duplicated} twice, {strange} to somebody else, {damaged} \
                 damaged",
                self.connections
            )
        });
    }

    pub(super) fn render(&self) -> String {
        let mut restarts =
            Table::new(["restart", "not ready", "last GOAWAY", "ended", "start", "first login", "all back"]);
        let mut met = Table::new(["", "attempts", "busy", "refused", "reset", "cut", "unanswered", "retried"]);
        let mut waits = Table::new(LATENCY_HEAD);
        for (round, number) in self.restarts.iter().zip(1..) {
            let told = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), duration);
            restarts.row(vec![
                format!("{number}"),
                duration(round.not_ready_us),
                told(round.last_goaway_us),
                duration(round.exit_us),
                duration(round.start_us),
                told(round.first_login_us),
                duration(round.back_us),
            ]);
            let Attempts { attempts, busy, refused, reset, cut, unanswered, retried, .. } = round.attempts;
            let cells = [attempts, busy, refused, reset, cut, unanswered, retried].map(grouped);
            met.row([format!("restart {number}")].into_iter().chain(cells).collect());
            waits.row(latency_row(&format!("away, restart {number}"), &round.wait_us));
            waits.row(latency_row("attempted late", &round.attempt_lag_us));
        }
        let found = &self.findings;
        format!(
            "{}\n{}\n{}\n{} of {} users were there; pairs: {} acknowledged, {} lost, {} duplicated, {} reordered\n",
            restarts.render(),
            waits.render(),
            met.render(),
            grouped(self.connections),
            grouped(self.users),
            grouped(found.acked),
            found.lost,
            found.duplicated,
            found.reordered
        )
    }
}
