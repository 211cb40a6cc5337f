//! `culver init`: makes a data directory with its settings, keys and development credentials.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use culver::auth::keys;
use culver::auth::server_folder::ServerFolder;
use culver::config::{self, Config};
use culver_protocol::id::Incarnation;
use culver_storage::error::OpenError;
use culver_storage::layout::DataDir;

use super::{DataDirArg, VolumesArg};

/// The mode of the settings file: no secret is in it.
const SETTINGS_MODE: u32 = 0o644;

/// Make a data directory: settings, keys, development credentials
#[derive(Args)]
#[command(after_help = "Examples:\n  \
                        culver init --data-dir ./data\n  \
                        culver init --data-dir /var/lib/culver --volume /disk1/culver --volume /disk2/culver")]
pub(crate) struct Init {
    #[command(flatten)]
    data_dir: DataDirArg,
    #[command(flatten)]
    volumes: VolumesArg,
}

impl Init {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let path = &self.data_dir.path;
        match initialise(path, &self.volumes.volumes) {
            // A start that was cut short after the marker, or files that were deleted on purpose: fill them in.
            Err(OpenedOr::Open(OpenError::Exists { .. })) if is_incomplete(path) => write_missing(path)?,
            other => other?,
        }
        let shown = path.display();
        super::print(&format!(
            "{shown} is ready: settings in {shown}/{}, keys in {shown}/keys/, development credentials in \
             {shown}/{}\n{}\nTry next:\n  culver serve --data-dir {shown}",
            config::FILE_NAME,
            keys::CREDENTIALS_FILE,
            about_the_root(path)
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What making a data directory can end with.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenedOr {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// Makes an empty or missing directory a data directory with these volumes; none: one, within it.
pub(super) fn initialise(path: &Path, volumes: &[PathBuf]) -> Result<(), OpenedOr> {
    DataDir::create(path, fresh_incarnation()?, volumes)?;
    Ok(write_missing(path)?)
}

/// An incarnation that no other data directory has.
pub(super) fn fresh_incarnation() -> anyhow::Result<Incarnation> {
    let mut incarnation = [0; 8];
    getrandom::fill(&mut incarnation).context("the system has no randomness to give")?;
    // 0 is what a client sends that knows none.
    Ok(Incarnation(u64::from_ne_bytes(incarnation).max(1)))
}

/// What is to be known of the root that certifies server keys.
pub(super) fn about_the_root(path: &Path) -> String {
    format!(
        "{} certifies this server's keys. It is here for development: in production a root belongs on another machine, \
         best one without a network (culver keys --help)",
        ServerFolder::of(path).root_path().display()
    )
}

fn is_incomplete(path: &Path) -> bool {
    !path.join(config::FILE_NAME).exists() || !keys::are_complete(path)
}

fn write_missing(path: &Path) -> anyhow::Result<()> {
    let defaults = Config::default().token;
    let settings = path.join(config::FILE_NAME);
    if !settings.exists() {
        keys::write_whole(&settings, config::TEMPLATE, SETTINGS_MODE)?;
    }
    Ok(keys::create_missing(path, &defaults.issuer, &defaults.audience, super::now_ms()?)?)
}
