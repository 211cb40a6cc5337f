//! `powercut`: like `crash`, on a disk that loses power, and now and then fails or is short of space.
//!
//! The data lie on a mounted cutdisk; the server's log and the journals lie outside it. What survives a cut is what the
//! disk says, no more than what was synced and what chance adds to that.

mod plan;
mod result;
mod rounds;

use std::path::PathBuf;

use anyhow::Result;
use clap::{ArgAction, Args};
use serde::Serialize;

use self::result::PowercutResult;
use self::rounds::Power;
use super::restarts::{Folder, RestartOptions, Restarts};
use crate::report::{Document, JsonTo};
use crate::target::cutdisk::Cutdisk;

/// Where the disk's content goes at the end, if the files of the run are to stay.
const DISK_AT_END: &str = "disk-at-end";

/// Options of `powercut`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct PowercutOptions {
    /// The `cutdisk` program, whose disk the server's data go to
    #[arg(long, value_name = "PATH")]
    disk: PathBuf,
    /// Rounds too in which the log's writes or syncs fail, or space is short: on or off
    #[arg(long, default_value = "on", value_name = "on|off", action = ArgAction::Set, value_parser = on_or_off)]
    faults: bool,
    #[command(flatten)]
    #[serde(flatten)]
    restarts: RestartOptions,
}

impl PowercutOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.restarts.run.json_to()
    }
}

fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off"),
    }
}

/// Runs the scenario.
pub(crate) fn run(mut options: PowercutOptions) -> Result<Document> {
    let seed = options.restarts.run.fix_seed();
    let progress = options.restarts.run.progress("powercut");
    let folder = Folder::make(&options.restarts)?;
    let disk = Cutdisk::mount(&options.disk, &folder.path().join("disk"), seed)?;
    let data = disk.mountpoint().join("data");
    let mut power = Power::new(disk, seed);
    // The server is gone before its disk is: what comes later is dropped first.
    let mut restarts = Restarts::begin(&options.restarts, seed, (&data, folder.path()), &progress)?;
    let whens = plan::whens(options.faults);
    let broken = restarts.run_rounds(|restarts, number| power.round(restarts, plan::round(&whens, number)))?;
    let busy = restarts.counters().busy;
    let result = restarts.finish(broken)?;
    if let Some(kept) = folder.kept() {
        power.copy_to(&kept.join(DISK_AT_END))?;
    }
    let (tallies, disk, short) = power.into_parts()?;
    let result = PowercutResult::new(result, tallies, disk, busy, short);
    let missed = result.check();
    let text = result.render();
    Document::new("powercut", seed, &options, &result, text, missed)
}
