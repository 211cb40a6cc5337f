//! What a message costs the server beside its idle connections, against what it costs without them.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::steps::Run;
use crate::dense::Crowd;
use crate::options::{PairOptions, TimeOptions};
use crate::report::Misses;
use crate::report::histogram::median;
use crate::report::machine::cores;
use crate::scenario::chat::{self, PairMeasurement, median_of};
use crate::scenario::idle::{Guard, ratio};
use crate::scenario::pairs::{Pace, PairLoad};
use crate::target::culver::Culver;
use crate::units::Span;

/// Messages that each pair has under way.
const IN_FLIGHT: usize = 8;
/// Bytes of a payload.
const PAYLOAD_LEN: usize = 256;
/// How long the same load runs before it is measured.
const WARM_UP: Duration = Duration::from_secs(2);

/// The chats without the idle connections, and those beside them.
pub(super) struct Beside {
    pairs: u32,
    alone: Vec<PairMeasurement>,
    beside: Vec<PairMeasurement>,
}

/// What became of them.
#[derive(Debug, Serialize)]
pub(super) struct BesideFigures {
    pairs: u32,
    server_cpu_us_per_msg_alone: Vec<f64>,
    server_cpu_us_per_msg_beside: Vec<f64>,
    msgs_per_s_alone: f64,
    msgs_per_s_beside: f64,
    /// Median beside, over median alone, before and after.
    pub(super) server_cpu_us_per_msg_ratio: f64,
    #[serde(skip)]
    pub(super) missed: Vec<String>,
}

impl Beside {
    pub(super) fn new(pairs: u32) -> Self {
        Self { pairs, alone: Vec::new(), beside: Vec::new() }
    }

    /// Before there are idle connections, and again when they have left: what messages cost rises with what is stored, and
    /// so the time in between is compared with both. The very first run is that of a server that has just been started,
    /// with users it has never seen: it counts for nothing.
    pub(super) fn measure_alone(&mut self, run: &Run<'_>, culver: &mut Culver, guard: &mut Guard) -> Result<()> {
        guard.check()?;
        if self.alone.is_empty() {
            self.measure(run, culver, 0)?;
        }
        for number in 0..run.options.beside_runs {
            guard.check()?;
            let measured = self.measure(run, culver, number)?;
            self.alone.push(measured);
        }
        Ok(())
    }

    /// The same users again, while no keep-alive goes out.
    pub(super) fn measure_beside(
        &mut self,
        run: &Run<'_>,
        crowd: &Crowd,
        culver: &mut Culver,
        guard: &mut Guard,
    ) -> Result<()> {
        for number in 0..run.options.beside_runs {
            let measured = run.with_held_keep_alives(crowd, guard, |_| self.measure(run, culver, number))?;
            self.beside.push(measured);
        }
        Ok(())
    }

    fn measure(&self, run: &Run<'_>, culver: &mut Culver, number: u32) -> Result<PairMeasurement> {
        let pace = Pace::Closed { in_flight: IN_FLIGHT };
        let pairs = PairOptions::of(self.pairs, pace, PAYLOAD_LEN, run.first_talker());
        let load = pairs.load(&run.options.run, run.seed, u64::from(number));
        // The workers asked for are those of the idle connections.
        let load = PairLoad { workers: (cores() / 2).max(1), ..load };
        let time = TimeOptions { duration: run.options.beside_duration, warmup: Span(WARM_UP) };
        chat::measure("culver", culver, &load, &time, run.progress)
    }

    pub(super) fn finish(self) -> BesideFigures {
        let costs = |runs: &[PairMeasurement]| runs.iter().map(|run| run.server_cpu_us_per_msg).collect::<Vec<_>>();
        let (alone, beside) = (costs(&self.alone), costs(&self.beside));
        let mut misses = Misses::default();
        for run in self.alone.iter().chain(&self.beside) {
            run.check(&mut misses);
        }
        let without = median(&alone);
        BesideFigures {
            pairs: self.pairs,
            server_cpu_us_per_msg_ratio: ratio(median(&beside), without),
            server_cpu_us_per_msg_alone: alone,
            server_cpu_us_per_msg_beside: beside,
            msgs_per_s_alone: median_of(&self.alone, |run| run.msgs_per_s),
            msgs_per_s_beside: median_of(&self.beside, |run| run.msgs_per_s),
            missed: misses.into_vec(),
        }
    }
}
