//! What happened in a world, for people. Costs a branch while nobody reads it.
//!
//! Owns the lines; never decides anything. Lines may name only what is the same in every run of the same choices: no
//! addresses, no times of the machine, no order of a hash table.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher as _};

/// Longest trace kept: of a longer one, the end counts.
const LINES_MAX: usize = 200_000;

/// The trace of one run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// Virtual time: whoever moves it says so here.
    pub now_us: u64,
    is_on: bool,
    lines: std::collections::VecDeque<(u64, String)>,
    hash: DefaultHasher,
}

impl Trace {
    /// One that keeps nothing.
    pub(crate) fn off() -> Self {
        Self::default()
    }

    /// One that keeps everything.
    pub(crate) fn on() -> Self {
        Self { is_on: true, ..Self::default() }
    }

    /// Whether anybody reads it.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// Notes what happens now.
    #[inline]
    pub(crate) fn event(&mut self, line: impl FnOnce() -> String) {
        if self.is_on {
            self.note(line());
        }
    }

    #[cold]
    fn note(&mut self, line: String) {
        self.hash.write_u64(self.now_us);
        self.hash.write(line.as_bytes());
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back((self.now_us, line));
    }

    /// A number that differs, as good as certainly, between two runs that differ in anything.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// The last lines, each with its time.
    pub(crate) fn text(&self, lines_max: usize) -> String {
        let mut text = String::new();
        let left_out = self.lines.len().saturating_sub(lines_max);
        if left_out > 0 {
            writeln!(text, "  … {left_out} earlier events").expect("a string takes everything");
        }
        for (at_us, line) in self.lines.iter().skip(left_out) {
            let (ms, us) = (at_us / 1000, at_us % 1000);
            writeln!(text, "{ms:>9}.{us:03} ms  {line}").expect("a string takes everything");
        }
        text
    }
}
