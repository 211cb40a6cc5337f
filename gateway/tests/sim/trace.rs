//! What happened in a world, for people. Costs a branch while nobody reads it.
//!
//! Owns the lines; never decides anything. Lines may name only what is the same in every run of the same choices: no
//! addresses, no times of the machine, no order of a hash table.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher as _};

/// Longest trace kept: of a longer one, the end counts.
const LINES_MAX: usize = 200_000;

/// Of so many lines at a story's end none is left out.
const STEPS_KEPT: usize = 60;

#[derive(Debug)]
struct Line {
    at_us: u64,
    text: String,
    /// It only says that something moved.
    is_step: bool,
}

/// The trace of one run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// Virtual time: whoever moves it says so here.
    pub now_us: u64,
    is_on: bool,
    /// What the world is.
    title: String,
    lines: VecDeque<Line>,
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

    /// Notes what the world is.
    pub(crate) fn title(&mut self, line: impl FnOnce() -> String) {
        if self.is_on {
            self.title = line();
            self.hash.write(self.title.as_bytes());
        }
    }

    /// Notes what happens now.
    #[inline]
    pub(crate) fn event(&mut self, line: impl FnOnce() -> String) {
        if self.is_on {
            self.note(line(), false);
        }
    }

    /// Notes what says only that something moved: stories leave it out.
    #[inline]
    pub(crate) fn step(&mut self, line: impl FnOnce() -> String) {
        if self.is_on {
            self.note(line(), true);
        }
    }

    #[cold]
    fn note(&mut self, text: String, is_step: bool) {
        self.hash.write_u64(self.now_us);
        self.hash.write(text.as_bytes());
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(Line { at_us: self.now_us, text, is_step });
    }

    /// A number that differs, as good as certainly, between two runs that differ in anything.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// The last lines, each with its time.
    pub(crate) fn text(&self, lines_max: usize) -> String {
        self.print(self.lines.iter().collect(), lines_max)
    }

    /// The last lines that matter, and all from shortly before the end.
    pub(crate) fn story(&self, lines_max: usize) -> String {
        let end = self.lines.len().saturating_sub(STEPS_KEPT);
        let lines = self.lines.iter().enumerate().filter(|(at, line)| !line.is_step || *at >= end);
        self.print(lines.map(|(_, line)| line).collect(), lines_max)
    }

    fn print(&self, lines: Vec<&Line>, lines_max: usize) -> String {
        let mut text = format!("  {}\n", self.title);
        let left_out = lines.len().saturating_sub(lines_max);
        if left_out > 0 {
            writeln!(text, "  … {left_out} earlier lines").expect("a string takes everything");
        }
        let mut last_us = u64::MAX;
        for Line { at_us, text: line, .. } in lines.into_iter().skip(left_out) {
            let (ms, us) = (at_us / 1000, at_us % 1000);
            let time = if *at_us == last_us { String::new() } else { format!("{ms}.{us:03} ms") };
            last_us = *at_us;
            writeln!(text, "{time:>16}  {line}").expect("a string takes everything");
        }
        text
    }
}

#[test]
fn a_story_leaves_steps_out_but_at_its_end() {
    let mut trace = Trace::on();
    trace.title(|| "a world".to_owned());
    for number in 0..200 {
        trace.now_us = number / 2;
        trace.step(|| format!("step {number}"));
        trace.event(|| format!("event {number}"));
    }
    let (all, story) = (trace.text(1000), trace.story(1000));
    let count = |text: &str, word: &str| text.lines().filter(|line| line.contains(word)).count();
    assert_eq!((count(&all, "step"), count(&all, "event"), count(&all, " ms ")), (200, 200, 100));
    assert_eq!((count(&story, "step"), count(&story, "event")), (STEPS_KEPT / 2, 200));
    assert_eq!(story.lines().next(), Some("  a world"));
    assert_eq!(trace.story(3).lines().count(), 5, "a title, what is left out, and three lines");
}
