//! `report`: result files of earlier runs as one table.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::report::table::{Table, duration, grouped};

/// Options of `report`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct ReportOptions {
    /// Result files, as `--json FILE` writes them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// How a figure is shown.
#[derive(Clone, Copy)]
enum Shown {
    Count,
    Duration,
    Fraction,
}

/// A figure: where it is in the result, what it is called, and how it is shown.
type Figure = (&'static str, &'static str, Shown);

const CHECKS: [Figure; 11] = [
    ("/acked", "acknowledged", Shown::Count),
    ("/delivered", "delivered", Shown::Count),
    ("/lost", "lost", Shown::Count),
    ("/duplicated", "duplicated", Shown::Count),
    ("/reordered", "reordered", Shown::Count),
    ("/copied", "copies delivered", Shown::Count),
    ("/receipts", "receipts checked", Shown::Count),
    ("/untrue", "receipts untrue", Shown::Count),
    ("/receipts_back", "receipts going back", Shown::Count),
    ("/receipts_missing", "receipts missing", Shown::Count),
    ("/reads_missing", "reads missing", Shown::Count),
];
const LATENCIES: [Figure; 6] = [
    ("/ack_us/p50", "acknowledgement p50", Shown::Duration),
    ("/ack_us/p99", "acknowledgement p99", Shown::Duration),
    ("/delivery_us/p50", "delivery p50", Shown::Duration),
    ("/delivery_us/p99", "delivery p99", Shown::Duration),
    ("/receipt_us/p50", "receipt p50", Shown::Duration),
    ("/receipt_us/p99", "receipt p99", Shown::Duration),
];
const FIGURES: [Figure; 61] = [
    ("/rounds", "rounds", Shown::Count),
    ("/disk/cuts", "power cuts", Shown::Count),
    ("/busy", "answers busy", Shown::Count),
    ("/redelivered", "redelivered before dedup", Shown::Count),
    ("/restart_us/p50", "restart p50", Shown::Duration),
    ("/restart_us/max", "restart max", Shown::Duration),
    ("/msgs_per_s", "messages per second", Shown::Fraction),
    ("/server_cpu_us_per_msg", "server CPU us per message", Shown::Fraction),
    ("/msgs_per_server_cpu_s", "messages per server CPU second", Shown::Fraction),
    ("/comparison/cpu_ratio_median", "CPU per message, x the floor's", Shown::Fraction),
    ("/comparison/ack_p99_ratio_median", "acknowledgement p99, x the floor's", Shown::Fraction),
    ("/fdatasync_us/p50", "fdatasync p50", Shown::Duration),
    ("/login_cpu_us", "CPU us per login, the relay's", Shown::Fraction),
    ("/bytes_per_connection", "bytes per connection, the relay's", Shown::Fraction),
    ("/connections", "connections", Shown::Count),
    ("/user_bytes_per_connection", "user bytes per connection", Shown::Fraction),
    ("/kernel_bytes_per_connection", "kernel bytes per connection", Shown::Fraction),
    ("/kernel_and_user_ratio", "kernel and user bytes, x the bare floor's", Shown::Fraction),
    ("/own_bytes_per_connection", "generator bytes per connection", Shown::Fraction),
    ("/clients/pongs", "keep-alives answered", Shown::Count),
    ("/clients/disconnects", "connections lost", Shown::Count),
    ("/login_cpu_ratio", "CPU per login, x the bare floor's", Shown::Fraction),
    ("/server_cpu_s_idle", "server CPU seconds in the quiet time", Shown::Fraction),
    ("/beside/server_cpu_us_per_msg_ratio", "CPU per message beside the idle, x without", Shown::Fraction),
    ("/logins_per_s", "logins per second", Shown::Fraction),
    ("/server_cpu_us_per_login", "server CPU us per login", Shown::Fraction),
    ("/given_back_ratio", "share of memory given back", Shown::Fraction),
    ("/entries_per_server_cpu_s", "entries per server CPU second", Shown::Fraction),
    ("/rss_growth_bytes", "memory growth in bytes", Shown::Count),
    ("/waiting_growth_bytes", "memory growth with what waits, in bytes", Shown::Count),
    ("/calm/ack_p99_ratio", "calm acknowledgement p99, x without the drain", Shown::Fraction),
    ("/calm/delivery_p99_ratio", "calm delivery p99, x without the drain", Shown::Fraction),
    ("/calm/calm_ack_us/p99", "calm acknowledgement p99", Shown::Duration),
    ("/calm/drain_ack_us/p99", "calm acknowledgement p99 during the drain", Shown::Duration),
    ("/added_us_per_msg_median", "added server CPU us per message", Shown::Fraction),
    ("/added_share_median", "added share of server CPU per message", Shown::Fraction),
    ("/floor/added_us_per_msg_median", "added floor CPU us per message", Shown::Fraction),
    ("/added_to_floor_ratio", "added CPU per message, x the floor's", Shown::Fraction),
    ("/floor_receipt_cpu/added_us_per_msg_median", "CPU us that receipts add to the floor", Shown::Fraction),
    ("/kinds/0/us_per_login_median", "server CPU us of a login by ticket, in plaintext", Shown::Fraction),
    ("/kinds/1/us_per_login_median", "server CPU us of a login by ticket, sealed", Shown::Fraction),
    ("/kinds/3/us_per_login_median", "server CPU us of a login by ticket, with forward secrecy", Shown::Fraction),
    ("/kinds/6/us_per_login_median", "server CPU us of a login by Noise IK", Shown::Fraction),
    ("/kinds/7/us_per_login_median", "server CPU us of a login by Noise XX and a token", Shown::Fraction),
    ("/ik_added_ratio", "CPU that Noise IK adds, x the X25519 operations in it", Shown::Fraction),
    ("/expectations_met", "attacks answered as expected", Shown::Count),
    ("/expectations_unmet", "attacks answered otherwise", Shown::Count),
    ("/memory_kept_bytes", "memory kept in bytes", Shown::Count),
    ("/last_login_s", "seconds from the loss to the last login", Shown::Fraction),
    ("/steady_logins_per_s", "logins per second without first and last", Shown::Fraction),
    ("/max_wait_ratio", "longest wait, x the ideal", Shown::Fraction),
    ("/attempts/attempts", "attempts to come back", Shown::Count),
    ("/attempts/busy", "of them told that the server is busy", Shown::Count),
    ("/attempts/refused", "of them refused", Shown::Count),
    ("/pairs/ack_p99_ratio", "pairs' acknowledgement p99, x the calm one", Shown::Fraction),
    ("/pairs/delivery_p99_ratio", "pairs' delivery p99, x the calm one", Shown::Fraction),
    ("/rss_ratio", "memory when all have left, x that before", Shown::Fraction),
    ("/restarts/0/not_ready_us", "from SIGTERM until not ready", Shown::Duration),
    ("/restarts/0/exit_us", "until the old server had ended", Shown::Duration),
    ("/restarts/0/first_login_us", "from its end to the first login", Shown::Duration),
    ("/restarts/0/back_us", "until all were back", Shown::Duration),
];

/// Renders all files.
pub(crate) fn run(options: &ReportOptions) -> Result<String> {
    let mut table = Table::new(["scenario", "figure", "value"]).with_words(2);
    let mut circumstances = Vec::new();
    let mut missed = Vec::new();
    for path in &options.files {
        let document = read(path)?;
        let told = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or("unknown").to_owned();
        let scenario = told("/scenario");
        let verdict = if document.pointer("/passed") == Some(&Value::Bool(true)) { "kept" } else { "MISSED" };
        add_rows(&mut table, &scenario, verdict, document.get("result").unwrap_or(&Value::Null));
        let cores = document.pointer("/machine/cores").and_then(Value::as_u64).unwrap_or(0);
        let (processor, kernel) = (told("/machine/processor"), told("/machine/kernel"));
        circumstances.push(format!("{processor}, {cores} cores, {kernel}; commit {}", told("/commit")));
        let misses = document.pointer("/missed").and_then(Value::as_array);
        missed.extend(misses.into_iter().flatten().filter_map(Value::as_str).map(|miss| format!("{scenario}: {miss}")));
    }
    circumstances.dedup();
    let mut text = table.render();
    for line in circumstances.iter().chain(&missed) {
        writeln!(text, "{line}")?;
    }
    Ok(text)
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no result", path.display()))
}

fn add_rows(table: &mut Table, scenario: &str, verdict: &str, result: &Value) {
    table.row(vec![scenario.to_owned(), "promises".to_owned(), verdict.to_owned()]);
    for (pointer, name, shown) in CHECKS.into_iter().chain(FIGURES).chain(LATENCIES) {
        if let Some(value) = result.pointer(pointer).and_then(|value| show(value, shown)) {
            table.row(vec![String::new(), name.to_owned(), value]);
        }
    }
}

fn show(value: &Value, shown: Shown) -> Option<String> {
    match shown {
        Shown::Count => value.as_u64().map(grouped),
        Shown::Duration => value.as_u64().map(duration),
        Shown::Fraction => value.as_f64().map(|value| format!("{value:.2}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_become_rows() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("chat.json");
        let text = r#"{"scenario":"chat","passed":false,"missed":["1 lost"],"commit":"abc",
            "machine":{"processor":"P","cores":2,"kernel":"K"},
            "result":{"acked":1234,"lost":1,"ack_us":{"p99":1500},"msgs_per_s":2.5}}"#;
        std::fs::write(&path, text).expect("a disk with room");
        let shown = run(&ReportOptions { files: vec![path] }).expect("a good file");
        for part in ["MISSED", "1,234", "1.50 ms", "2.50", "chat: 1 lost", "P, 2 cores, K; commit abc"] {
            assert!(shown.contains(part), "{part} in\n{shown}");
        }
    }
}
