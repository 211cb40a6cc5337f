//! `culver restore`: makes a data directory of a backup, and checks it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Args;
use culver_protocol::id::Incarnation;
use culver_storage::backup::{RestoreOrder, Restored, restore};
use culver_storage::error::Error;
use culver_storage::layout::DataDir;
use culver_storage::verify::{self, Report};
use serde::Serialize;

use super::{JsonArg, init, verify as check};

/// Make a data directory of a backup; exits with 1 if its invariants do not hold
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                        culver restore --from /backup/monday --data-dir ./data\n  \
                        culver restore --from /backup/monday --data-dir ./data --volume /disk1/culver --volume /disk2/culver\n  \
                        culver restore --from /backup/monday --data-dir ./data --no-verify --json\n\n\
                        The backup is copied and stays as it is. The data directory gets another incarnation, by which\n\
                        clients notice: each gets a GAP with `reset` when it next logs in with its cursor, and goes on\n\
                        from what the server knew of it when the backup was taken. Resume tickets are void, so clients\n\
                        log in with tokens once; tokens stay good, for the keys are the same.\n\
                        Settings outside the data directory (serve --config FILE, a public key elsewhere) are not in\n\
                        a backup. Never let both the old data directory and the new one serve clients.")]
pub(crate) struct Restore {
    /// The backup
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The data directory to be: empty, or not there yet
    #[arg(long, value_name = "NEW")]
    data_dir: PathBuf,
    /// A folder for each of its volumes, empty or not there yet, in their order [default: NEW/volume-0, …]
    #[arg(long = "volume", value_name = "DIR")]
    volumes: Vec<PathBuf>,
    /// Do not check every invariant of what was restored
    #[arg(long)]
    no_verify: bool,
    #[command(flatten)]
    json: JsonArg,
}

/// What was done, as others read it.
#[derive(Serialize)]
struct Json<'a> {
    data_dir: PathBuf,
    volumes: &'a [PathBuf],
    taken_at_ms: u64,
    incarnation_before: String,
    incarnation: String,
    files: u64,
    bytes: u64,
    /// Not there with --no-verify.
    #[serde(skip_serializing_if = "Option::is_none")]
    verify: Option<check::Json<'a>>,
}

impl Restore {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let incarnation = init::fresh_incarnation()?;
        let order = RestoreOrder { from: &self.from, data_dir: &self.data_dir, volumes: &self.volumes, incarnation };
        let restored = restore(&order)?;
        let report = if self.no_verify { None } else { Some(self.verify()?) };
        let json = Json {
            data_dir: std::path::absolute(&self.data_dir)?,
            volumes: &restored.volumes,
            taken_at_ms: restored.taken_at_ms,
            incarnation_before: hexadecimal(restored.incarnation_before),
            incarnation: hexadecimal(incarnation),
            files: restored.files,
            bytes: restored.bytes,
            verify: report.as_ref().map(check::Json::of),
        };
        self.json.write(&json, || self.words(&restored, incarnation, report.as_ref()))?;
        let holds = report.is_none_or(|report| report.is_clean());
        Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn verify(&self) -> anyhow::Result<Report> {
        let checked = DataDir::open(&self.data_dir).map_err(Error::from).and_then(|data_dir| verify::verify(&data_dir));
        checked.with_context(|| format!("{} is restored, but cannot be checked", self.data_dir.display()))
    }

    fn words(&self, restored: &Restored, incarnation: Incarnation, report: Option<&Report>) -> String {
        let shown = self.data_dir.display();
        let mut text = format!(
            "{shown} is a data directory: {} in {} files, from a backup that was begun {}",
            super::size(restored.bytes),
            restored.files,
            ago(restored.taken_at_ms)
        );
        for (index, volume) in restored.volumes.iter().enumerate() {
            text.push_str(&format!("\n  volume {index}: {}", volume.display()));
        }
        text.push_str(&format!(
            "\nIts incarnation is {}, and was {}: each client that logs in with a cursor gets a GAP with `reset`, and\n\
             resume tickets are void, so clients log in with tokens once.\n",
            hexadecimal(incarnation),
            hexadecimal(restored.incarnation_before)
        ));
        match report {
            Some(report) => text.push_str(&check::words(report)),
            None => text.push_str(&format!("not checked: culver verify --data-dir {shown}")),
        }
        if report.is_none_or(Report::is_clean) {
            text.push_str(&format!("\nTry next:\n  culver serve --data-dir {shown}"));
        }
        text
    }
}

fn hexadecimal(incarnation: Incarnation) -> String {
    format!("{:016x}", incarnation.0)
}

/// How long ago that was.
fn ago(at_ms: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(at_ms);
    let Ok(since) = SystemTime::now().duration_since(at) else {
        return "in the future, by this machine's clock".to_owned();
    };
    match since.as_secs() {
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7200 => format!("{} min ago", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_words() {
        let now_ms = || u64::try_from(UNIX_EPOCH.elapsed().expect("after 1970").as_millis()).expect("it fits");
        for (before_s, told) in [(600, "10 min ago"), (9000, "2 h ago"), (300_000, "3 days ago")] {
            assert_eq!(ago(now_ms() - before_s * 1000), told);
        }
        assert!(ago(now_ms() + 60_000).contains("future"));
    }
}
