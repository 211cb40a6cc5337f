//! Counts, for each kind of attack, how often the server did what it must.

use std::collections::BTreeMap;

use serde::Serialize;

/// One kind's counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Kind {
    pub(crate) met: u64,
    pub(crate) unmet: u64,
    /// Attacks that this side could not carry out.
    pub(crate) failed: u64,
    /// What went wrong the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first: Option<String>,
}

/// All kinds' counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Tally {
    pub(crate) kinds: BTreeMap<String, Kind>,
}

impl Tally {
    pub(crate) fn met(&mut self, name: &str) {
        self.kind(name).met += 1;
    }

    pub(crate) fn unmet(&mut self, name: &str, why: &str) {
        let kind = self.kind(name);
        kind.unmet += 1;
        kind.first.get_or_insert_with(|| why.to_owned());
    }

    pub(crate) fn failed(&mut self, name: &str, why: &str) {
        let kind = self.kind(name);
        kind.failed += 1;
        kind.first.get_or_insert_with(|| why.to_owned());
    }

    pub(crate) fn add(&mut self, other: Self) {
        for (name, theirs) in other.kinds {
            let kind = self.kinds.entry(name).or_default();
            kind.met += theirs.met;
            kind.unmet += theirs.unmet;
            kind.failed += theirs.failed;
            kind.first = kind.first.take().or(theirs.first);
        }
    }

    fn kind(&mut self, name: &str) -> &mut Kind {
        self.kinds.entry(name.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up_and_keep_the_first_reason() {
        let (mut one, mut two) = (Tally::default(), Tally::default());
        one.met("a");
        two.met("a");
        two.unmet("a", "first");
        two.unmet("a", "second");
        two.failed("b", "no socket");
        one.add(two);
        let wanted = Kind { met: 2, unmet: 2, failed: 0, first: Some("first".to_owned()) };
        assert_eq!(one.kinds.get("a"), Some(&wanted));
        assert_eq!(one.kinds.get("b").map(|kind| kind.failed), Some(1));
    }
}
