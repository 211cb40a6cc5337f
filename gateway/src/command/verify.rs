//! `culver verify`: every invariant of a data directory, offline.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use culver_storage::layout::DataDir;
use culver_storage::verify::{self, Report};
use serde::Serialize;

use super::DataDirArg;

/// Check every invariant of a data directory that no server has open; exits with 1 if one does not hold
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                        culver verify --data-dir ./data\n  \
                        culver verify --data-dir ./data --json report.json\n  \
                        culver verify --data-dir ./data --json -      (JSON only, on standard output)")]
pub(crate) struct Verify {
    #[command(flatten)]
    data_dir: DataDirArg,
    /// Write the report as JSON; `-` is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The report as others read it.
#[derive(Serialize)]
pub(super) struct Json<'a> {
    users: u64,
    conversations: u64,
    messages: u64,
    dedup_rows: u64,
    talk_rows: u64,
    outbox_rows: u64,
    batch: u64,
    findings: &'a [String],
    findings_unlisted: u64,
}

impl Verify {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let data_dir = DataDir::open(&self.data_dir.path)?;
        let report = verify::verify(&data_dir)?;
        let to_stdout = self.json.as_ref().is_some_and(|file| file.as_os_str() == "-");
        match &self.json {
            Some(_) if to_stdout => super::print(&json(&report))?,
            Some(file) => {
                fs::write(file, json(&report) + "\n").with_context(|| format!("cannot write {}", file.display()))?
            }
            None => {}
        }
        if !to_stdout {
            super::print(&words(&report))?;
        }
        Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl<'a> Json<'a> {
    pub(super) fn of(report: &'a Report) -> Self {
        let Report { users, conversations, messages, dedup_rows, talk_rows, outbox_rows, batch, .. } = *report;
        let (findings, findings_unlisted) = (&report.findings[..], report.findings_unlisted);
        Self { users, conversations, messages, dedup_rows, talk_rows, outbox_rows, batch, findings, findings_unlisted }
    }
}

fn json(report: &Report) -> String {
    serde_json::to_string_pretty(&Json::of(report)).expect("numbers and strings are JSON")
}

pub(super) fn words(report: &Report) -> String {
    let Report { users, conversations, messages, dedup_rows, batch, findings, findings_unlisted, .. } = report;
    let mut text = format!(
        "{messages} messages, {conversations} conversations, {users} users, {dedup_rows} client message ids remembered, \
         {batch} batches"
    );
    for finding in findings {
        text.push_str("\nWRONG: ");
        text.push_str(finding);
    }
    if *findings_unlisted > 0 {
        text.push_str(&format!("\n… and {findings_unlisted} more"));
    }
    text.push_str(if findings.is_empty() { "\nevery invariant holds" } else { "\nnot every invariant holds" });
    text
}
