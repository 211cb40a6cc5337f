//! `floor`: what this machine needs at least for the same messages, by a bare relay of the same frames.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use culver_protocol::limits::KEEP_ALIVE_S_DEFAULT;
use serde::Serialize;

use super::chat::{PairMeasurement, measure_floor, render_runs};
use super::idle::{BareFigures, Guard};
use super::pairs::PairLoad;
use crate::dense::CrowdLoad;
use crate::dense::sources::Sources;
use crate::options::{PairOptions, RunOptions, TimeOptions};
use crate::plan::{self, Devices, RunId};
use crate::report::progress::Progress;
use crate::report::{Document, JsonTo, Misses};
use crate::target::floor::FloorSettings;

/// How long they are held before memory is read.
const HOLD: Duration = Duration::from_secs(1);

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
    /// Each ACK becomes a RECEIPT to the sender
    #[arg(long)]
    receipts: bool,
    /// Devices of each user, all online
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=4))]
    devices: u8,
    /// Where the synced file goes [default: the temporary directory]
    #[arg(long, requires = "sync", value_name = "DIR")]
    data_dir: Option<std::path::PathBuf>,
    /// Idle connections that logins and bytes are counted with; 0: neither is measured
    #[arg(long, default_value_t = 5000, value_name = "N")]
    connections: u32,
}

#[derive(Serialize)]
struct FloorResult {
    #[serde(flatten)]
    measured: PairMeasurement,
    #[serde(flatten)]
    idle: Option<IdleFloor>,
}

/// What an idle connection costs a bare program.
#[derive(Serialize)]
struct IdleFloor {
    login_cpu_us: f64,
    bytes_per_connection: f64,
    kernel_bytes_per_connection: f64,
}

impl FloorOptions {
    pub(crate) fn json_to(&self) -> JsonTo {
        self.run.json_to()
    }
}

/// Runs the scenario.
pub(crate) fn run(mut options: FloorOptions) -> Result<Document> {
    let seed = options.run.fix_seed();
    options.pairs.default_to_closed_loop();
    let progress = options.run.progress("floor");
    let settings = FloorSettings { sync: options.sync, data_dir: options.data_dir.clone(), receipts: options.receipts };
    let devices = Devices::of_each(options.devices, options.devices);
    let load = PairLoad { devices, ..options.pairs.load(&options.run, seed, 0) };
    let measured = measure_floor(&settings, &load, &options.time, &progress)?;
    let idle = (options.connections > 1).then(|| measure_idle(&options, seed, &progress)).transpose()?;
    let mut misses = Misses::default();
    measured.check(&mut misses);
    let mut text = render_runs([(0, &measured)].into_iter());
    if let Some(IdleFloor { login_cpu_us, bytes_per_connection, kernel_bytes_per_connection }) = &idle {
        text += &format!(
            "\nidle: {login_cpu_us:.1} us of CPU per login, {bytes_per_connection:.0} bytes per connection, \
             {kernel_bytes_per_connection:.0} of the kernel's\n"
        );
    }
    Document::new("floor", seed, &options, &FloorResult { measured, idle }, text, misses.into_vec())
}

fn measure_idle(options: &FloorOptions, seed: u64, progress: &Progress) -> Result<IdleFloor> {
    let connections = u64::from(options.connections);
    let load = CrowdLoad {
        target: (Ipv4Addr::LOCALHOST, 0).into(), // the bare floor's own, once it is there
        connections,
        workers: options.run.workers_asked(),
        first_user: plan::first_user(seed),
        sources: Sources::choose(None, (Ipv4Addr::LOCALHOST, 0).into(), connections)?,
        rate: None,
        keep_alive_us: u64::from(KEEP_ALIVE_S_DEFAULT) * 1_000_000,
        tickets: None,
        run: RunId(0),
        sends_ready: false,
        measures_delivery: false,
        returns: None,
    };
    let mut guard = Guard::new(0);
    let bare = BareFigures::measure(&load, (connections / 5).max(1), HOLD, &mut guard, progress)?;
    Ok(IdleFloor {
        login_cpu_us: bare.login_cpu_us,
        bytes_per_connection: bare.slope.user_bytes_per_connection,
        kernel_bytes_per_connection: bare.slope.kernel_bytes_per_connection,
    })
}
