//! Every choice of a world comes from a [`Source`], and is noted, so that a run can be replayed and shrunk.
//!
//! Owns the random numbers; never looks at what they are used for. 0 is always the tamest choice: no fault, no delay,
//! the first of several, the smallest. A list of choices is therefore a run whichever of them are lowered or left out.

use std::fmt::Debug;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

/// Where choices come from.
#[derive(Debug)]
pub(crate) struct Source {
    from: From,
    taken: Vec<u32>,
}

#[derive(Debug)]
enum From {
    Seed(SmallRng),
    /// The beginning of a run before, and what a seed makes of the rest.
    Begun(std::vec::IntoIter<u32>, SmallRng),
    /// The choices of a run before, or what a shrinker left of them; beyond their end all is tame.
    Recorded(std::vec::IntoIter<u32>),
}

impl Source {
    /// Choices that follow from `seed`.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self { from: From::Seed(SmallRng::seed_from_u64(seed)), taken: Vec::with_capacity(4096) }
    }

    /// These choices first, then such as follow from `seed`.
    pub(crate) fn begun(choices: Vec<u32>, seed: u64) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        Self { from: From::Begun(choices.into_iter(), random), taken: Vec::with_capacity(4096) }
    }

    /// The same choices again.
    pub(crate) fn replay(choices: Vec<u32>) -> Self {
        let taken = Vec::with_capacity(choices.len());
        Self { from: From::Recorded(choices.into_iter()), taken }
    }

    /// One of `0..n`; 0 if `n` is 0.
    #[inline]
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        if n <= 1 {
            return 0;
        }
        let of = |random: &mut SmallRng| ((u64::from(random.next_u32()) * u64::from(n)) >> 32) as u32;
        let choice = match &mut self.from {
            From::Seed(random) => of(random),
            From::Begun(left, random) => left.next().map_or_else(|| of(random), |choice| choice.min(n - 1)),
            From::Recorded(left) => left.next().unwrap_or(0).min(n - 1),
        };
        self.taken.push(choice);
        choice
    }

    /// Whether something happens that happens so often in a thousand times; 0 and beyond 1,000 are no choice.
    #[inline]
    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        match per_mille {
            0 => false,
            1000.. => true,
            // So that 0 means "it does not happen".
            _ => self.below(1000) >= 1000 - per_mille,
        }
    }

    /// One of `lo..=hi`.
    #[inline]
    pub(crate) fn range(&mut self, lo: u64, hi: u64) -> u64 {
        let choices = hi.saturating_sub(lo).saturating_add(1);
        match u32::try_from(choices) {
            Ok(choices) => lo + u64::from(self.below(choices)),
            // Too wide for one choice: the share of it is chosen.
            Err(_) => {
                let share = u128::from(self.below(u32::MAX)) * u128::from(choices) / u128::from(u32::MAX);
                lo + u64::try_from(share).expect("less than all there are")
            }
        }
    }

    /// One of `lo..=hi`, as a number of another width.
    pub(crate) fn number<T: TryFrom<u64, Error: Debug>>(&mut self, lo: u64, hi: u64) -> T {
        self.range(lo, hi).try_into().expect("the width asked for holds the greatest")
    }

    /// A place in a list of so many; 0 if it is empty.
    #[inline]
    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.below(u32::try_from(len).expect("a world's lists are short")) as usize
    }

    /// One of a list; the first is the tamest.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }

    /// What was chosen so far.
    pub(crate) fn taken(&self) -> &[u32] {
        &self.taken
    }
}

#[test]
fn the_same_seed_gives_the_same_choices() {
    let mut seeded = Source::seeded(7);
    let first: Vec<u64> = (0..100).map(|n| seeded.range(0, n)).collect();
    let mut again = Source::replay(seeded.taken().to_vec());
    assert_eq!(first, (0..100).map(|n| again.range(0, n)).collect::<Vec<_>>());
    assert_eq!((again.below(9), again.chance(999), again.range(3, 9)), (0, false, 3), "beyond the end all is tame");
}
