//! The check of every invariant of the log, offline, over all volumes. Changes no row.
//!
//! Memory: about 50 bytes for each message that waits or is on its way, and 300 for each user and conversation.
//! Messages that all devices have leave only their dedup row and the list behind; those are checked one conversation
//! at a time.

mod devices;
mod inboxes;
mod messages;
mod meta;
mod streams;
mod talks;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::ControlFlow;

use culver_protocol::id::{ConversationId, UserId};

use self::inboxes::User;
use self::streams::StreamState;
use self::talks::Talk;
use crate::engine::{Engine, Family, Tier};
use crate::error::{EngineError, Error};
use crate::key::ShardId;
#[cfg(feature = "rocks")]
use crate::layout::DataDir;
use crate::reader::Engines;
use crate::record::Stream;
use crate::topology::Topology;

/// Findings that are listed.
pub const FINDINGS_MAX: usize = 1000;

/// Beyond every key.
const KEY_END: [u8; 64] = [0xff; 64];

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Users with rows.
    pub users: u64,
    /// Names of devices, those included that were taken away and no merge has dropped yet.
    pub name_rows: u64,
    /// Conversations.
    pub conversations: u64,
    /// Inbox entries, those included that no device needs any more and no merge has dropped yet.
    pub messages: u64,
    /// Dedup rows.
    pub dedup_rows: u64,
    /// Watermarks and list rows of users.
    pub talk_rows: u64,
    /// Rows on their way to other shards, those included that have arrived and no merge has dropped yet.
    pub outbox_rows: u64,
    /// Batches written, by all hubs.
    pub batch: u64,
    /// What is wrong, in words; at most [`FINDINGS_MAX`].
    pub findings: Vec<String>,
    /// Findings beyond those listed.
    pub findings_unlisted: u64,
}

impl Report {
    /// Whether every invariant holds.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    fn found(&mut self, finding: impl fmt::Display) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding.to_string());
        } else {
            self.findings_unlisted += 1;
        }
    }
}

/// Checks a data directory that no other process has open.
///
/// # Errors
/// A volume cannot be opened or read.
#[cfg(feature = "rocks")]
pub fn verify(data_dir: &DataDir) -> Result<Report, Error> {
    use std::sync::Arc;

    use crate::filter::Retention;
    use crate::rocks::{RocksEngine, RocksOptions};
    use crate::topology::TopologyError;

    let opened =
        RocksEngine::open_all(data_dir.volume_paths(), &RocksOptions::default(), &Arc::new(Retention::default()))?;
    // Which hub owns what is of no interest here; as many as there are volumes always fit.
    let volumes = u16::try_from(data_dir.volume_count()).unwrap_or(u16::MAX);
    let topology = Topology::new(data_dir.shard_count(), data_dir.volume_of_shard(), volumes);
    let topology = topology.map_err(|error: TopologyError| EngineError::Failed {
        action: "spreading the shards over the volumes",
        source: error.into(),
    })?;
    let engines = opened.into_iter().map(|engine| -> Arc<dyn Engine> { Arc::new(engine) }).collect();
    verify_engines(&Engines { engines, topology })
}

/// Checks all rows of all volumes.
///
/// # Errors
/// An engine cannot read.
pub fn verify_engines(engines: &Engines) -> Result<Report, Error> {
    check(engines.engines.iter().map(|engine| &**engine).collect(), &engines.topology)
}

/// Checks all rows of an engine that is the only volume.
///
/// # Errors
/// The engine cannot read.
pub fn verify_engine(engine: &dyn Engine, shard_count: u16) -> Result<Report, Error> {
    check(vec![engine], &Topology::single(shard_count))
}

fn check(volumes: Vec<&dyn Engine>, topology: &Topology) -> Result<Report, Error> {
    let mut check = Check::new(volumes, topology);
    check.meta()?;
    check.users()?;
    check.names()?;
    check.inboxes()?;
    check.streams()?;
    check.talk_rows()?;
    check.conversations()?;
    check.messages()?;
    Ok(check.report)
}

struct Check<'a> {
    volumes: Vec<&'a dyn Engine>,
    topology: &'a Topology,
    report: Report,
    reserved_until_ms: HashMap<ShardId, u64>,
    /// The latest of the expiry clocks; 0: there is none yet.
    clock_ms: u64,
    users: HashMap<UserId, User>,
    streams: BTreeMap<Stream, StreamState>,
    talks: HashMap<ConversationId, Talk>,
}

impl<'a> Check<'a> {
    fn new(volumes: Vec<&'a dyn Engine>, topology: &'a Topology) -> Self {
        Self {
            volumes,
            topology,
            report: Report::default(),
            reserved_until_ms: HashMap::new(),
            clock_ms: 0,
            users: HashMap::new(),
            streams: BTreeMap::new(),
            talks: HashMap::new(),
        }
    }

    fn shard_count(&self) -> u16 {
        self.topology.shard_count()
    }

    /// Shows every row of a family on every volume; a row on a volume that does not have its shard is a finding, and
    /// is shown none the less.
    fn every_row(&mut self, family: Family, mut visit: impl FnMut(&mut Self, &[u8], &[u8])) -> Result<(), EngineError> {
        for volume in 0..self.volumes.len() {
            let engine = *self.volumes.get(volume).expect("below their number");
            engine.scan(family, &[], &KEY_END, Tier::Disk, &mut |key, value| {
                self.place(family, volume, key);
                visit(self, key, value);
                ControlFlow::Continue(())
            })?;
        }
        Ok(())
    }

    fn place(&mut self, family: Family, volume: usize, key: &[u8]) {
        // A key too short is found by who reads it.
        let Some((shard, _)) = crate::key::split_u16(key) else { return };
        let name = family.name();
        if shard >= self.shard_count() {
            self.report.found(format_args!("a row of `{name}` is of shard {shard}, which does not exist"));
        } else if usize::from(self.topology.volume_of_shard(ShardId(shard))) != volume {
            self.report
                .found(format_args!("a row of `{name}` is of shard {shard}, which volume {volume} does not have"));
        }
    }
}
