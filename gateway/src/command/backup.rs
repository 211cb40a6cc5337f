//! `culver backup`: asks the running server for a backup; or takes one of a directory that no server has open.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Args;
use culver::config::Config;
use culver_storage::backup::{self, BackedUp, BackupOrder, Origin};
use culver_storage::error::OpenError;
use culver_storage::gate::Gate;
use culver_storage::layout::DataDir;
use culver_storage::rocks::{RocksEngine, RocksOptions};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

use super::JsonArg;

/// How long the server may take to be connected to: it is on this machine.
const CONNECT: Duration = Duration::from_secs(5);
/// The longest answer.
const ANSWER_LEN_MAX: u64 = 1 << 20;

/// Take a backup of the running server, or of a data directory that no server has open
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                        culver backup --to /backup/monday                          of the server on this machine\n  \
                        culver backup --to /backup/monday --ops 127.0.0.1:7501     of one with another operators' port\n  \
                        culver backup --to /backup/monday --data-dir ./data        with the server stopped\n  \
                        culver backup --to /backup/monday --json                   for scripts\n\n\
                        A running server goes on; its writers are held for some milliseconds. What was acknowledged\n\
                        before the command began is in the backup. The server writes it, as its own user: name a\n\
                        directory that it may write to, best on another disk. It holds keys as well as messages.\n\
                        On the disk of the data directory most files are links, which take no room at first and\n\
                        do not survive that disk.\n\
                        Interrupted, or when anything fails, it leaves nothing behind. Make a data directory of it\n\
                        with `culver restore`.")]
pub(crate) struct Backup {
    /// Where to: an empty directory, or one that is not there yet
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// The operators' port of the server [default: 127.0.0.1:7401]
    #[arg(long, value_name = "IP:PORT", conflicts_with = "data_dir")]
    ops: Option<SocketAddr>,
    /// A data directory that no server has open, instead of a server
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArg,
}

impl Backup {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        // The server works in a directory of its own.
        let to = std::path::absolute(&self.to).with_context(|| format!("{} is no path", self.to.display()))?;
        let backed_up = match &self.data_dir {
            Some(data_dir) => offline(data_dir, &to)?,
            None => ask(self.ops.unwrap_or(Config::default().ops), &to)?,
        };
        self.json.write(&backed_up, || words(&backed_up))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// An answer that is no backup.
#[derive(Deserialize)]
struct Refused {
    error: String,
}

fn ask(ops: SocketAddr, to: &Path) -> anyhow::Result<BackedUp> {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_connect(Some(CONNECT));
    // Never by way of a proxy: it is this machine.
    let agent: ureq::Agent = config.proxy(None).build().into();
    let request = serde_json::json!({ "to": to }).to_string();
    let mut response = agent
        .post(format!("http://{ops}/backup"))
        .content_type("application/json")
        .send(request)
        .with_context(|| {
            format!(
                "no server answers at {ops}, or it ended before the backup was complete: name its operators' port with \
                 --ops IP:PORT, or, if none runs, the data directory with --data-dir DIR"
            )
        })?;
    let status = response.status();
    let body = response.body_mut().with_config().limit(ANSWER_LEN_MAX).read_to_string();
    let body = body.with_context(|| format!("the server at {ops} ended before the backup was complete"))?;
    if status.is_success() {
        return serde_json::from_str(&body).with_context(|| format!("{ops} gives an answer of another version"));
    }
    match serde_json::from_str::<Refused>(&body) {
        Ok(refused) => bail!("the server at {ops} took no backup: {}", refused.error),
        Err(_) => {
            bail!("{ops} answers {status}, as no server of this version does: name the operators' port with --ops")
        }
    }
}

fn offline(data_dir: &Path, to: &Path) -> anyhow::Result<BackedUp> {
    let data_dir = DataDir::open(data_dir).map_err(|error| match error {
        OpenError::Held { .. } => anyhow::anyhow!(
            "{error}; or ask the running server for its backup: culver backup --to {} --ops 127.0.0.1:7401",
            to.display()
        ),
        error => error.into(),
    })?;
    let opened = RocksEngine::open_all(data_dir.volume_paths(), &RocksOptions::default(), &Arc::default())?;
    let volumes: Vec<Arc<RocksEngine>> = opened.into_iter().map(Arc::new).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let taken_at_ms = u64::try_from(now.as_millis())?;
    let interrupted = interrupted()?;
    let is_cancelled = || interrupted.load(Ordering::Acquire);
    let order = BackupOrder { to, taken_at_ms, version: env!("CARGO_PKG_VERSION"), is_cancelled: &is_cancelled };
    Ok(backup::take(&Origin::of(&data_dir), &volumes, &Gate::default(), &order)?)
}

/// What is set at the first SIGINT or SIGTERM from here on: neither ends the process by itself any more.
fn interrupted() -> anyhow::Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let flag = Arc::new(AtomicBool::default());
    let set = Arc::clone(&flag);
    // It ends with the process.
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        set.store(true, Ordering::Release);
    })?;
    Ok(flag)
}

fn words(backed_up: &BackedUp) -> String {
    let BackedUp { to, volumes, files, bytes, bytes_linked, held_us, took_ms, .. } = backed_up;
    let to = to.display();
    let plural = if *volumes == 1 { "" } else { "s" };
    let mut text = format!(
        "{to} is complete: {volumes} volume{plural}, {files} files, {}, in {:.1} s; writers were held for {:.1} ms",
        super::size(*bytes),
        Duration::from_millis(*took_ms).as_secs_f64(),
        Duration::from_micros(*held_us).as_secs_f64() * 1000.0,
    );
    if *bytes_linked > 0 {
        text.push_str(&format!(
            "\n{} of it are links to files of the data directory: copy the backup to another disk too",
            super::size(*bytes_linked)
        ));
    }
    text.push_str(&format!("\nTry next:\n  culver restore --from {to} --data-dir NEW"));
    text
}
