//! Makes a failing run short: leaves choices out and lowers them, as long as the same promise is still broken.
//!
//! Knows nothing of worlds: a run is a list of choices, of which 0 is always the tamest and what is missing is 0. (After
//! Hypothesis, whose "internal reduction" works the same way.)

use std::time::{Duration, Instant};

/// Makes the world smaller in which something fails: tames its first choices, which decide sizes, habits and faults, one
/// at a time, and looks whether some way to go on from there fails, too. `run` makes a run of a beginning and a number,
/// and gives its choices if it fails in the same way.
pub(crate) fn tame(
    choices: Vec<u32>,
    first: usize,
    budget: Duration,
    mut run: impl FnMut(&[u32], u64) -> Option<Vec<u32>>,
) -> Vec<u32> {
    let until = Instant::now() + budget;
    let mut best = choices;
    for at in (0..first).chain(0..first) {
        if best.get(at).is_none_or(|choice| *choice == 0) {
            continue;
        }
        let mut beginning = best[..first.min(best.len())].to_vec();
        beginning[at] = 0;
        let fails = (0..TRIES).take_while(|_| Instant::now() < until).find_map(|number| run(&beginning, number));
        best = fails.unwrap_or(best);
    }
    // Of the runs of the tamest world, the one that fails first.
    let beginning = best[..first.min(best.len())].to_vec();
    for number in (0..TRIES * 10).take_while(|_| Instant::now() < until + budget / 4) {
        if let Some(choices) = run(&beginning, number).filter(|choices| choices.len() < best.len()) {
            best = choices;
        }
    }
    best
}

/// Ways to go on from a beginning that are tried out.
const TRIES: u64 = 40;

/// Shortens `choices` while `fails` says that they fail in the same way, for so long at most.
pub(crate) fn shrink(choices: Vec<u32>, budget: Duration, mut fails: impl FnMut(&[u32]) -> bool) -> Vec<u32> {
    let mut shrinking = Shrinking { best: choices, until: Instant::now() + budget, fails: &mut fails };
    shrinking.truncate();
    loop {
        let before = shrinking.best.clone();
        shrinking.tame_chunks();
        shrinking.drop_chunks();
        shrinking.lower();
        if shrinking.best == before || shrinking.is_over() {
            return shrinking.best;
        }
    }
}

struct Shrinking<'a> {
    best: Vec<u32>,
    until: Instant,
    fails: &'a mut dyn FnMut(&[u32]) -> bool,
}

impl Shrinking<'_> {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Keeps the candidate if it fails, too.
    fn try_out(&mut self, mut candidate: Vec<u32>) -> bool {
        while candidate.last() == Some(&0) {
            candidate.pop();
        }
        let is_better = candidate != self.best && !self.is_over() && (self.fails)(&candidate);
        if is_better {
            self.best = candidate;
        }
        is_better
    }

    /// The shortest beginning that fails.
    fn truncate(&mut self) {
        let (mut passes, mut fails) = (0, self.best.len());
        while passes + 1 < fails && !self.is_over() {
            let middle = passes.midpoint(fails);
            if self.try_out(self.best[..middle].to_vec()) {
                fails = self.best.len().min(middle);
            } else {
                passes = middle;
            }
        }
    }

    fn chunks(&self) -> impl Iterator<Item = usize> + use<> {
        let longest = self.best.len() / 2;
        std::iter::successors(Some(longest), |len| Some(len / 2)).take_while(|len| *len > 0)
    }

    fn drop_chunks(&mut self) {
        for len in self.chunks() {
            let mut end = self.best.len();
            while end > 0 && !self.is_over() {
                let start = end.saturating_sub(len);
                let mut candidate = self.best.clone();
                candidate.drain(start..end.min(candidate.len()));
                self.try_out(candidate);
                end = start.min(self.best.len());
            }
        }
    }

    fn tame_chunks(&mut self) {
        for len in self.chunks() {
            let mut start = 0;
            while start < self.best.len() && !self.is_over() {
                let end = (start + len).min(self.best.len());
                if self.best[start..end].iter().any(|choice| *choice != 0) {
                    let mut candidate = self.best.clone();
                    candidate[start..end].fill(0);
                    self.try_out(candidate);
                }
                start += len;
            }
        }
    }

    fn lower(&mut self) {
        let mut at = 0;
        while at < self.best.len() && !self.is_over() {
            let mut step = self.best[at] / 2;
            while step > 0 && at < self.best.len() {
                let mut candidate = self.best.clone();
                candidate[at] -= step;
                if !self.try_out(candidate) {
                    step /= 2;
                }
                step = step.min(self.best.get(at).map_or(0, |choice| choice / 2));
            }
            at += 1;
        }
    }
}

#[test]
fn what_does_not_matter_goes() {
    let noise = |n: u32| n.wrapping_mul(2_654_435_761) % 1000;
    let mut choices: Vec<u32> = (0..500).map(noise).collect();
    choices[100] = 700;
    choices[321] = 900;
    // It fails where a large choice is followed, anywhere, by a larger one of at least 900.
    let fails = |choices: &[u32]| {
        let first = choices.iter().position(|choice| *choice >= 700);
        first.is_some_and(|at| choices[at + 1..].iter().any(|choice| *choice >= 900))
    };
    assert_eq!(shrink(choices, Duration::from_secs(20), fails), [700, 900]);
}
