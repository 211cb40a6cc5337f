//! `crash`: kills the server under load again and again, and holds it to what it acknowledged.

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::restarts::{Folder, RestartOptions, RestartResult, Restarts};
use crate::report::{Document, JsonTo, Misses};

/// Options of `crash`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct CrashOptions {
    #[command(flatten)]
    #[serde(flatten)]
    restarts: RestartOptions,
}

impl CrashOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.restarts.run.json_to()
    }
}

/// Runs the scenario.
pub(crate) fn run(mut options: CrashOptions) -> Result<Document> {
    let seed = options.restarts.run.fix_seed();
    let progress = options.restarts.run.progress("crash");
    let folder = Folder::make(&options.restarts)?;
    let places = (&*folder.path().join("data"), folder.path());
    let mut restarts = Restarts::begin(&options.restarts, seed, places, &progress)?;
    let broken = restarts.run_rounds(|restarts, _| {
        restarts.live()?;
        restarts.server.kill()?;
        restarts.verify()?;
        restarts.start()
    })?;
    let result = restarts.finish(broken)?;
    let missed = check(&result);
    let text = result.render();
    Document::new("crash", seed, &options, &result, text, missed)
}

fn check(result: &RestartResult) -> Vec<String> {
    let mut misses = Misses::default();
    result.check(&mut misses);
    misses.into_vec()
}
