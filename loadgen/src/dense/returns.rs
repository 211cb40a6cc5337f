//! How the clients of a crowd come back: when, after what, and who waits until then. Sans-io: time and randomness are
//! arguments.
//!
//! The rules are those of the protocol: after a loss a wait of its own, with full jitter and longer each time; after
//! `busy` not before the time that the server named; after GOAWAY at a random time between the two that it named.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;

use clap::ValueEnum;
use culver_protocol::error::{ErrorClass, ErrorCode};
use rand::Rng;
use serde::Serialize;

/// The longest wait before the first attempt after a loss; it doubles with each failure.
const BACKOFF_US: u64 = 100_000;
/// And its longest.
const BACKOFF_US_MAX: u64 = 30_000_000;
/// What is added to the time that a busy server named is at most one in so many parts of it.
const LATER_PART: u64 = 10;
/// A client that has waited so long for the answer to its login gives the connection up.
pub(super) const ANSWER_US_MAX: u64 = 15_000_000;
/// The queue gives its memory back when it is empty and has had room for more than this.
const ROOM_KEPT: usize = 64;
const _: () = assert!(BACKOFF_US <= BACKOFF_US_MAX);

/// How the clients of a crowd leave when all leave at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DropWay {
    /// With a reset: the server hears of it at once
    #[default]
    Rst,
    /// With an orderly end
    Fin,
    /// With nothing: the old connection stays half open until the server has replaced it
    Silent,
}

impl fmt::Display for DropWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rst => "a reset",
            Self::Fin => "an orderly end",
            Self::Silent => "no word",
        })
    }
}

/// How a crowd's clients come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Returns {
    /// When all leave at once: each makes its first attempt after a random time up to this.
    pub(crate) within_us: u64,
    pub(crate) drop: DropWay,
    /// A time that was named in clear on a connection to be sealed counts up to this.
    pub(crate) clear_wait_us_max: u64,
    /// Logins under way over all workers, at most.
    pub(crate) under_way_max: u64,
    /// How far the workers stand back for others: nice(2).
    pub(crate) nice: i32,
    pub(crate) seed: u64,
}

/// What is known of a client that is away, or about to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Away {
    /// Since when; `None`: it is still there, or has never been.
    pub(super) since_us: Option<u64>,
    /// Failures since the last WELCOME.
    pub(super) failures: u8,
    /// What it has beside its token was refused.
    pub(super) with_token: bool,
}

/// What ended a connection, or an attempt at one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The server said why.
    Told(Told),
    /// Nobody did.
    Silent,
}

/// An error that ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) code: u32,
    pub(super) retry_us: u64,
    /// The connection was to be sealed, and was not yet: anybody could have said it.
    pub(super) is_in_clear: bool,
    /// So is every connection of this crowd in the end.
    pub(super) is_sealed: bool,
    /// The attempt has shown a token.
    pub(super) is_by_token: bool,
}

/// What a client does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It comes again after so long.
    After(u64),
    /// It comes again after so long, with its token.
    WithTokenAfter(u64),
    /// It stays away for good.
    Never,
}

/// What follows when a connection has ended after so many failures since the last WELCOME.
pub(super) fn next(rules: &Returns, ending: Ending, failures: u8, rng: &mut impl Rng) -> Next {
    let Ending::Told(told) = ending else { return Next::After(backoff_us(failures, rng)) };
    let retry_us = if told.is_in_clear { told.retry_us.min(rules.clear_wait_us_max) } else { told.retry_us };
    let known = ErrorCode::from_number(told.code);
    if retry_us > 0 && matches!(known, Some(ErrorCode::LoginsBusy | ErrorCode::ConnectionsFull)) {
        // This client's own time: the server has spread them.
        return Next::After(retry_us + rng.random_range(0..=retry_us / LATER_PART));
    }
    let waited_us = backoff_us(failures, rng).max(retry_us);
    let is_about_credential = ErrorClass::of(told.code) == ErrorClass::RefreshToken;
    if is_about_credential || known == Some(ErrorCode::ServerKeyUnknown) {
        return Next::WithTokenAfter(if told.is_by_token { waited_us } else { 0 });
    }
    let is_about_handshake =
        matches!(known, Some(ErrorCode::HandshakeFailed | ErrorCode::HandshakeUnsupported | ErrorCode::BadHandshake));
    if told.is_in_clear && is_about_handshake {
        return Next::WithTokenAfter(waited_us);
    }
    // Somebody on the way may have changed what the server then complained of.
    let is_about_length = matches!(known, Some(ErrorCode::RecordEmpty | ErrorCode::RecordTooLong));
    let is_anybodys = told.is_in_clear || known == Some(ErrorCode::RecordForged) || told.is_sealed && is_about_length;
    match ErrorClass::of(told.code) {
        ErrorClass::Reconnect => Next::After(waited_us),
        _ if is_anybodys => Next::After(waited_us),
        _ => Next::Never,
    }
}

/// Whether an error ends its connection.
pub(super) fn ends(code: u32) -> bool {
    let by_class = ErrorClass::of(code) != ErrorClass::RetryHere;
    ErrorCode::from_number(code).map_or(by_class, ErrorCode::closes)
}

/// A client's own wait after so many failures, with full jitter.
fn backoff_us(failures: u8, rng: &mut impl Rng) -> u64 {
    let doubled = BACKOFF_US.checked_shl(failures.into()).filter(|us| *us >= BACKOFF_US);
    rng.random_range(0..=doubled.map_or(BACKOFF_US_MAX, |us| us.min(BACKOFF_US_MAX)))
}

/// Who waits to come again, in the order of their times. Bounded by the worker's slots: each is in it once at most.
#[derive(Debug, Default)]
pub(super) struct WaitQueue {
    due: BinaryHeap<Reverse<(u64, u32)>>,
    away: HashMap<u32, Away>,
}

impl WaitQueue {
    /// Lets a slot wait until then.
    ///
    /// # Panics
    /// If it waits already.
    pub(super) fn put(&mut self, slot: u32, due_us: u64, away: Away) {
        assert!(self.away.insert(slot, away).is_none(), "slot {slot} waits already");
        self.due.push(Reverse((due_us, slot)));
    }

    /// What is known of a slot that waits.
    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Away> {
        self.away.get_mut(&slot)
    }

    /// When the first has to come.
    pub(super) fn due_us(&self) -> Option<u64> {
        self.due.peek().map(|Reverse((due_us, _))| *due_us)
    }

    /// The first whose time has come: when that was, and who.
    pub(super) fn pop(&mut self, now_us: u64) -> Option<(u64, u32, Away)> {
        if self.due_us()? > now_us {
            return None;
        }
        let Reverse((due_us, slot)) = self.due.pop()?;
        let away = self.away.remove(&slot).expect("both have the same slots");
        if self.due.is_empty() && self.due.capacity() > ROOM_KEPT {
            *self = Self::default();
        }
        Some((due_us, slot, away))
    }

    pub(super) fn len(&self) -> usize {
        self.due.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;

    const RULES: Returns = Returns {
        within_us: 100_000,
        drop: DropWay::Rst,
        clear_wait_us_max: 30_000_000,
        under_way_max: 100,
        nice: 0,
        seed: 1,
    };

    fn told(code: ErrorCode, retry_us: u64) -> Told {
        Told { code: code.number(), retry_us, is_in_clear: false, is_sealed: true, is_by_token: false }
    }

    /// What follows, many times over.
    fn draws(told: Told, failures: u8) -> Vec<Next> {
        let mut rng = plan::rng(7, "returns");
        (0..2000).map(|_| next(&RULES, Ending::Told(told), failures, &mut rng)).collect()
    }

    /// Least and most of the waits, all without a token.
    fn waits(told: Told, failures: u8) -> (u64, u64) {
        let waits = draws(told, failures).into_iter().map(|next| match next {
            Next::After(us) => us,
            other => panic!("{other:?}"),
        });
        let waits: Vec<u64> = waits.collect();
        (*waits.iter().min().expect("many"), *waits.iter().max().expect("many"))
    }

    #[test]
    fn whoever_is_told_when_comes_then_or_a_tenth_later() {
        for code in [ErrorCode::LoginsBusy, ErrorCode::ConnectionsFull] {
            let (least, most) = waits(told(code, 5_000_000), 3);
            assert!((5_000_000..5_010_000).contains(&least), "{least}");
            assert!((5_490_000..=5_500_000).contains(&most), "{most}");
            let in_clear = Told { is_in_clear: true, ..told(code, 90_000_000) };
            let (least, most) = waits(in_clear, 0);
            assert!(least >= RULES.clear_wait_us_max && most <= RULES.clear_wait_us_max / 10 * 11, "{least} {most}");
            // Without a time: the client's own.
            let (least, most) = waits(told(code, 0), 2);
            assert!(least < 4000 && (396_000..=400_000).contains(&most), "{least} {most}");
        }
    }

    #[test]
    fn ones_own_wait_is_anywhere_below_a_bound_that_doubles() {
        let mut rng = plan::rng(7, "returns");
        for (failures, bound_us) in [(0, 100_000), (1, 200_000), (5, 3_200_000), (9, 30_000_000), (255, 30_000_000)] {
            let waits = (0..2000).map(|_| match next(&RULES, Ending::Silent, failures, &mut rng) {
                Next::After(us) => us,
                other => panic!("{other:?}"),
            });
            let waits: Vec<u64> = waits.collect();
            assert!(waits.iter().all(|us| *us <= bound_us), "after {failures}");
            assert!(waits.iter().any(|us| *us < bound_us / 50) && waits.iter().any(|us| *us > bound_us / 50 * 49));
        }
        let (least, _) = waits(told(ErrorCode::ShuttingDown, 700_000), 0);
        assert_eq!(least, 700_000, "not before what was told");
    }

    #[test]
    fn a_refused_ticket_is_replaced_at_once_and_a_refused_token_later() {
        let refused = told(ErrorCode::TicketStale, 0);
        assert_eq!(draws(refused, 0).first(), Some(&Next::WithTokenAfter(0)));
        assert_eq!(draws(told(ErrorCode::ServerKeyUnknown, 0), 0).first(), Some(&Next::WithTokenAfter(0)));
        let by_token = draws(Told { is_by_token: true, ..refused }, 4);
        assert!(by_token.iter().all(|next| matches!(next, Next::WithTokenAfter(us) if *us <= 1_600_000)));
        assert!(by_token.iter().any(|next| matches!(next, Next::WithTokenAfter(us) if *us > 800_000)));
    }

    #[test]
    fn only_the_server_itself_can_send_a_client_away_for_good() {
        for code in [ErrorCode::Replaced, ErrorCode::DeviceRemoved, ErrorCode::OutOfState] {
            assert_eq!(draws(told(code, 0), 0).first(), Some(&Next::Never), "{code:?}");
            let in_clear = draws(Told { is_in_clear: true, ..told(code, 0) }, 0);
            assert!(in_clear.iter().all(|next| matches!(next, Next::After(_))), "{code:?}");
        }
        let failed = Told { is_in_clear: true, ..told(ErrorCode::HandshakeFailed, 0) };
        assert!(draws(failed, 0).iter().all(|next| matches!(next, Next::WithTokenAfter(_))));
        assert!(draws(told(ErrorCode::RecordForged, 0), 0).iter().all(|next| matches!(next, Next::After(_))));
        let plain = Told { is_sealed: false, ..told(ErrorCode::RecordTooLong, 0) };
        assert_eq!(draws(plain, 0).first(), Some(&Next::Never));
        assert!(matches!(draws(told(ErrorCode::RecordTooLong, 0), 0).first(), Some(Next::After(_))));
        assert!(!ends(ErrorCode::Busy.number()) && !ends(ErrorCode::TypeUnknown.number()));
        assert!(ends(ErrorCode::LoginsBusy.number()) && ends(2999) && !ends(1999));
    }

    #[test]
    fn those_who_wait_come_in_the_order_of_their_times() {
        let mut queue = WaitQueue::default();
        for slot in 0..1000_u32 {
            let away = Away { failures: u8::try_from(slot % 7).expect("below"), ..Away::default() };
            queue.put(slot, u64::from(slot) * 7919 % 1009, away);
        }
        assert_eq!((queue.len(), queue.due_us()), (1000, Some(0)));
        queue.get_mut(500).expect("it waits").since_us = Some(9);
        assert_eq!(queue.get_mut(1000), None);
        let (mut last_us, mut count) = (0, 0);
        for now_us in 0..1009 {
            while let Some((due_us, slot, away)) = queue.pop(now_us) {
                assert!(due_us >= last_us && due_us == now_us, "neither early nor late");
                assert_eq!(u32::from(away.failures), slot % 7);
                assert_eq!(away.since_us, (slot == 500).then_some(9));
                (last_us, count) = (due_us, count + 1);
            }
        }
        assert_eq!((count, queue.len(), queue.due_us(), queue.due.capacity()), (1000, 0, None, 0));
    }

    #[test]
    #[should_panic(expected = "waits already")]
    fn nobody_waits_twice() {
        let mut queue = WaitQueue::default();
        queue.put(1, 5, Away::default());
        queue.put(1, 6, Away::default());
    }
}
