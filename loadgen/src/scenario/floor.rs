//! `floor`: what this machine needs at least for the same messages, by a bare relay of the same frames.

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::chat::{PairMeasurement, measure_floor, render_runs};
use crate::options::{PairOptions, RunOptions, TimeOptions};
use crate::report::{Document, JsonTo, Misses};
use crate::target::floor::FloorSettings;

/// Options of `floor`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct FloorOptions {
    #[command(flatten)]
    pairs: PairOptions,
    #[command(flatten)]
    time: TimeOptions,
    #[command(flatten)]
    run: RunOptions,
    /// One fdatasync per turn before anything is answered
    #[arg(long)]
    sync: bool,
    /// Where the synced file goes [default: the temporary directory]
    #[arg(long, requires = "sync", value_name = "DIR")]
    data_dir: Option<std::path::PathBuf>,
}

#[derive(Serialize)]
struct FloorResult {
    #[serde(flatten)]
    measured: PairMeasurement,
}

impl FloorOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }
}

/// Runs the scenario.
pub(crate) fn run(mut options: FloorOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    let progress = options.run.progress("floor");
    let settings = FloorSettings { sync: options.sync, data_dir: options.data_dir.clone() };
    let load = options.pairs.load(&options.run, seed, 0)?;
    let measured = measure_floor(&settings, &load, &options.time, &progress)?;
    let mut misses = Misses::default();
    measured.check(&mut misses);
    let text = render_runs([(0, &measured)].into_iter());
    Document::new("floor", seed, &options, &FloorResult { measured }, text, misses.into_vec())
}
