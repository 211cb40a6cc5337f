//! The places of a message's way at which a server with crash points kills itself, and how it is told. Pure.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use rand::Rng;
use rand::rngs::SmallRng;
use serde::{Serialize, Serializer};

/// In the order in which a message comes by.
const NAMES: [&str; 9] = [
    "received",
    "decided",
    "submitted",
    "durable",
    "answered",
    "delivered",
    "cursor-saved",
    "receipt-handed",
    "outbox-handed",
];

/// Some crash points, which come in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CrashPoints(Vec<&'static str>);

impl CrashPoints {
    pub(super) fn names(&self) -> &[&'static str] {
        &self.0
    }

    /// The point of round `number`, from 1.
    pub(super) fn of_round(&self, number: u32) -> &'static str {
        let turn = number.checked_sub(1).expect("rounds are counted from 1") as usize;
        self.0.get(turn % self.0.len()).expect("below the length, and there is one")
    }
}

impl FromStr for CrashPoints {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "all" {
            return Ok(Self(NAMES.to_vec()));
        }
        let names = text.split(',').map(|wanted| {
            let Some(name) = NAMES.iter().find(|name| **name == wanted) else {
                bail!("`{wanted}` is no crash point: all, or some of {}", NAMES.join(","));
            };
            Ok(*name)
        });
        Ok(Self(names.collect::<Result<_>>()?))
    }
}

impl fmt::Display for CrashPoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl Serialize for CrashPoints {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How often a point is passed before it kills, at most `max`: as often within 1 to 10 as within 100 to 1,000, so that
/// both the login after a start and the load that follows are hit.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and a u32")]
pub(super) fn draw_hits(max: u32, rng: &mut SmallRng) -> u32 {
    let hits = (f64::from(max) + 1.0).powf(rng.random_range(0.0..1.0)).floor() - 1.0;
    (hits as u32).min(max)
}

/// What the environment says to a server that is to kill itself at `point` after so many passes.
pub(super) fn fail_points(point: &str, hits: u32) -> String {
    format!("{point}={hits}*off->return")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;

    #[test]
    fn points_are_named_or_all() {
        let all: CrashPoints = "all".parse().expect("all of them");
        assert_eq!(all.names(), NAMES);
        let some: CrashPoints = "durable,received".parse().expect("good names");
        assert_eq!((1..=3).map(|number| some.of_round(number)).collect::<Vec<_>>(), ["durable", "received", "durable"]);
        assert_eq!(some.to_string().parse::<CrashPoints>().expect("as it was written"), some);
        for text in ["", "durable,", "Durable", "all,durable", "nowhere"] {
            let refused = text.parse::<CrashPoints>().expect_err(text).to_string();
            assert!(refused.contains("received,decided"), "{refused}");
        }
    }

    #[test]
    fn few_passes_are_as_likely_as_many() {
        let mut rng = plan::rng(3, "hits");
        let drawn: Vec<u32> = (0..3000).map(|_| draw_hits(999, &mut rng)).collect();
        assert!(drawn.iter().all(|hits| *hits <= 999));
        for decade in [0..9_u32, 9..99, 99..999] {
            let count = drawn.iter().filter(|hits| decade.contains(*hits)).count();
            assert!((800..1200).contains(&count), "{count} within {decade:?}");
        }
        assert!((0..100).all(|_| draw_hits(0, &mut rng) == 0));
    }

    #[test]
    fn the_server_is_told_in_the_syntax_that_it_reads() {
        assert_eq!(fail_points("cursor-saved", 12), "cursor-saved=12*off->return");
    }
}
