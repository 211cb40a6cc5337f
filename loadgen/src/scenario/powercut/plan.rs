//! Which round does what. Pure.

use std::fmt;

use rand::Rng;
use rand::rngs::SmallRng;
use serde::Serialize;

use crate::target::cutdisk::{Event, Files, Kind, Order};

/// A cut that is armed under load comes at one of so many events.
const LOG_EVENTS_MAX: u32 = 16;
/// Tables that a start writes are few and small; merges write more, but seldom.
const TABLE_EVENTS_MAX: u32 = 20;

/// When the power goes off in a round, or what fails before it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum When {
    /// At a random time.
    Load,
    /// Before a write to the log.
    LogWrite,
    /// Before a sync of the log.
    LogSync,
    /// When a sync of the log has taken effect, and nobody knows yet.
    LogSynced,
    /// While the server starts.
    Recovery,
    /// While a flush or a merge writes a table.
    Table,
    /// A moment after a sync of the log has failed.
    SyncFails,
    /// A moment after writes to the log have failed.
    WriteFails,
    /// A moment after the log has found no space.
    LogFull,
    /// A moment after space was short and is there again.
    Space,
}

impl When {
    const CUTS: [Self; 6] = [Self::Load, Self::LogWrite, Self::LogSync, Self::LogSynced, Self::Recovery, Self::Table];
    const FAULTS: [Self; 4] = [Self::SyncFails, Self::WriteFails, Self::LogFull, Self::Space];
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Load => "load",
            Self::LogWrite => "log-write",
            Self::LogSync => "log-sync",
            Self::LogSynced => "log-synced",
            Self::Recovery => "recovery",
            Self::Table => "table",
            Self::SyncFails => "sync-fails",
            Self::WriteFails => "write-fails",
            Self::LogFull => "log-full",
            Self::Space => "space",
        })
    }
}

/// What a round is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) when: When,
    pub(crate) kind: Kind,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.when, self.kind)
    }
}

/// The kinds of round, in the order in which they come in turn.
pub(crate) fn whens(faults: bool) -> Vec<When> {
    let faults: &[When] = if faults { &When::FAULTS } else { &[] };
    When::CUTS.iter().chain(faults).copied().collect()
}

/// What round `number`, from 1, is about: after 3 rounds of each kind of round every combination has come once.
pub(crate) fn round(whens: &[When], number: u32) -> Round {
    let turn = number.checked_sub(1).expect("rounds are counted from 1") as usize;
    let place = turn % whens.len();
    let kind = (turn / whens.len() + place) % Kind::ALL.len();
    let when = *whens.get(place).expect("below the length");
    Round { when, kind: *Kind::ALL.get(kind).expect("below the length") }
}

/// What arms the disk in a round whose cut waits for an event; `starting`: events of the last start.
pub(crate) fn arming(round: Round, starting: Starting, rng: &mut SmallRng) -> Option<Order> {
    let either = if rng.random() { Event::Write } else { Event::Sync };
    let (event, files, events_max) = match round.when {
        When::LogWrite => (Event::Write, Files::Log, LOG_EVENTS_MAX),
        When::LogSync => (Event::Sync, Files::Log, LOG_EVENTS_MAX),
        When::LogSynced => (Event::Synced, Files::Log, LOG_EVENTS_MAX),
        When::Recovery => (either, Files::Any, starting.of(either)),
        When::Table => (either, Files::Table, TABLE_EVENTS_MAX.min(starting.of(either))),
        When::Load | When::SyncFails | When::WriteFails | When::LogFull | When::Space => return None,
    };
    Some(Order::Arm(round.kind, event, files, rng.random_range(1..=events_max)))
}

/// What the disk saw while the server started last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Starting {
    pub(crate) writes: u64,
    pub(crate) syncs: u64,
}

impl Starting {
    /// How many of these there were, at least one.
    fn of(self, event: Event) -> u32 {
        let count = if event == Event::Write { self.writes } else { self.syncs };
        u32::try_from(count).unwrap_or(u32::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::plan;

    #[test]
    fn every_combination_comes_equally_often() {
        for faults in [false, true] {
            let whens = whens(faults);
            let cycle = u32::try_from(3 * whens.len()).expect("few");
            let mut counts = BTreeMap::new();
            for number in 1..=4 * cycle {
                let Round { when, kind } = round(&whens, number);
                *counts.entry((when, kind)).or_insert(0) += 1;
            }
            assert_eq!(counts.len(), 3 * whens.len());
            assert!(counts.values().all(|count| *count == 4), "{counts:?}");
        }
    }

    #[test]
    fn a_few_rounds_are_of_every_kind() {
        let whens = whens(true);
        let first: Vec<_> = (1..=10).map(|number| round(&whens, number)).collect();
        assert!(whens.iter().all(|when| first.iter().any(|round| round.when == *when)), "{first:?}");
        assert!(Kind::ALL.iter().all(|kind| first.iter().any(|round| round.kind == *kind)), "{first:?}");
        assert!(super::whens(false).iter().all(|when| !When::FAULTS.contains(when)));
    }

    #[test]
    fn what_is_armed_lies_within_what_happens() {
        let mut rng = plan::rng(7, "arming");
        let starting = Starting { writes: 40, syncs: 5 };
        let mut seen = BTreeMap::new();
        for number in 1..=3000 {
            let round = round(&whens(true), number);
            let Some(Order::Arm(kind, event, files, count)) = arming(round, starting, &mut rng) else {
                assert!(When::FAULTS.contains(&round.when) || round.when == When::Load);
                continue;
            };
            assert_eq!(kind, round.kind);
            let max = match (round.when, event) {
                (When::Recovery, Event::Write) => 40,
                (When::Recovery | When::Table, Event::Sync) => 5,
                (When::Table, _) => TABLE_EVENTS_MAX,
                _ => LOG_EVENTS_MAX,
            };
            assert!((1..=max).contains(&count), "{round}: {event} {files} {count}");
            let most = seen.entry((round.when, event == Event::Write)).or_insert(0);
            *most = count.max(*most);
        }
        assert_eq!(seen.get(&(When::Recovery, true)), Some(&40), "{seen:?}");
        assert_eq!(seen.get(&(When::Recovery, false)), Some(&5), "{seen:?}");
        assert_eq!(seen.get(&(When::LogSync, false)), Some(&LOG_EVENTS_MAX), "{seen:?}");
    }

    #[test]
    fn nothing_seen_yet_is_no_empty_range() {
        let round = Round { when: When::Recovery, kind: Kind::Drop };
        let armed = arming(round, Starting::default(), &mut plan::rng(1, "arming"));
        assert!(matches!(armed, Some(Order::Arm(_, _, Files::Any, 1))), "{armed:?}");
    }
}
