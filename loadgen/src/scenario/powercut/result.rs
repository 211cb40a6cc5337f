//! What the power cuts came to.

use std::collections::BTreeMap;

use serde::Serialize;

use super::plan::{Round, When};
use crate::report::Misses;
use crate::report::table::{Table, grouped};
use crate::scenario::restarts::RestartResult;
use crate::target::cutdisk::{DiskStat, Kind};

/// The rounds of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Tally {
    rounds: u32,
    /// Cuts that hit what they were meant to hit.
    cuts: BTreeMap<Kind, u32>,
    /// Rounds in which what the cut waited for did not come: the power went off all the same.
    not_reached: u32,
    /// Times that the server ended by itself, as it had to.
    aborts: u32,
}

/// What was counted, by kind of round.
#[derive(Debug, Default)]
pub(super) struct Tallies(BTreeMap<When, Tally>);

impl Tallies {
    pub(super) fn begin(&mut self, round: Round) {
        self.of(round).rounds += 1;
    }

    pub(super) fn cut(&mut self, round: Round) {
        *self.of(round).cuts.entry(round.kind).or_default() += 1;
    }

    pub(super) fn not_reached(&mut self, round: Round) {
        self.of(round).not_reached += 1;
    }

    pub(super) fn aborted(&mut self, round: Round) {
        self.of(round).aborts += 1;
    }

    fn of(&mut self, round: Round) -> &mut Tally {
        self.0.entry(round.when).or_default()
    }
}

/// The result of `powercut`.
#[derive(Serialize)]
pub(super) struct PowercutResult {
    #[serde(flatten)]
    pub(super) restarts: RestartResult,
    pub(super) by_when: BTreeMap<When, Tally>,
    /// What the disk did; its cuts are all there were.
    pub(super) disk: DiskStat,
    /// Messages that were answered `busy`, and came again.
    pub(super) busy: u64,
    #[serde(flatten)]
    pub(super) short: ShortOfSpace,
}

/// What went on while sends were refused for want of space.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct ShortOfSpace {
    /// Entries that reached an application.
    pub(super) delivered_short_of_space: u64,
    /// Messages that were acknowledged: decided before, or resends of such.
    pub(super) acked_short_of_space: u64,
}

impl PowercutResult {
    pub(super) fn new(
        restarts: RestartResult,
        tallies: Tallies,
        disk: DiskStat,
        busy: u64,
        short: ShortOfSpace,
    ) -> Self {
        Self { restarts, by_when: tallies.0, disk, busy, short }
    }

    pub(super) fn check(&self) -> Vec<String> {
        let mut misses = Misses::default();
        self.restarts.check(&mut misses);
        misses.into_vec()
    }

    pub(super) fn render(&self) -> String {
        let mut rounds = Table::new(["power cut", "rounds", "drop", "subset", "torn", "not reached", "server aborted"]);
        for (when, tally) in &self.by_when {
            let cuts = Kind::ALL.map(|kind| tally.cuts.get(&kind).copied().unwrap_or(0));
            let [drop, subset, torn] = cuts;
            let cells = [tally.rounds, drop, subset, torn, tally.not_reached, tally.aborts];
            let cells = cells.into_iter().map(|cell| grouped(u64::from(cell)));
            rounds.row([when.to_string()].into_iter().chain(cells).collect());
        }
        let DiskStat { writes, syncs, cuts, pages_dropped, pages_kept, pages_torn, entries_dropped, .. } = self.disk;
        let mut disk = Table::new([
            "disk",
            "writes",
            "syncs",
            "cuts",
            "pages dropped",
            "pages kept",
            "pages torn",
            "entries dropped",
        ]);
        let cells = [writes, syncs, cuts, pages_dropped, pages_kept, pages_torn, entries_dropped].map(grouped);
        disk.row([String::new()].into_iter().chain(cells).collect());
        format!(
            "{}\n{}\n{}{} answers `busy`; while space was short {} entries were delivered, {} messages acknowledged\n",
            rounds.render(),
            disk.render(),
            self.restarts.render(),
            grouped(self.busy),
            grouped(self.short.delivered_short_of_space),
            grouped(self.short.acked_short_of_space)
        )
    }
}
