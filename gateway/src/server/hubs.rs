//! The volumes, and the hubs on them: opened, recovered, and started with their writers and readers.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use culver_protocol::id::Incarnation;
use culver_storage::engine::Engine;
use culver_storage::error::{Error, OpenError};
use culver_storage::filter::Retention;
use culver_storage::gate::Gate;
use culver_storage::layout::DataDir;
use culver_storage::reader::{Engines, Readers};
use culver_storage::rocks::{RocksEngine, RocksOptions};
use culver_storage::shard::{DAY_MS, Policy, Shards};
use culver_storage::topology::{HubId, Topology};
use culver_storage::writer::Writer;
use tracing::warn;

use super::backups::Backups;
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::crash_point::{self, CrashPoint};
use crate::hub::Hub;
use crate::hub::bounds::Bounds;
use crate::hub::driver::{Driver, HubPort, Inbox, ReactorPort};
use crate::hub::thread::{self as hub_thread, Sleeper, Threads};
use crate::mailbox::HubLink;
use crate::metrics::Metrics;
use crate::reactor::thread::Stage;
use crate::space::Space;

/// What writers, readers and other hubs tell each hub, by number.
pub(super) type Inboxes = Vec<Arc<Inbox>>;

/// The open volumes.
pub(super) struct Volumes {
    engines: Vec<Arc<dyn Engine>>,
    /// The same, as what they are.
    rocks: Vec<Arc<RocksEngine>>,
    /// Passed by every writer for each batch.
    gate: Gate,
    /// What their compactions go by.
    retention: Arc<Retention>,
    /// Whether there is room on their disks.
    space: Arc<Space>,
}

impl Volumes {
    /// Writes what is in memory to files: the next process has no log to read before clients can log in. If that fails,
    /// it has one.
    pub(super) fn write_out(&self) {
        for engine in &self.rocks {
            if let Err(error) = engine.flush() {
                warn!(%error, "what is in memory could not be written out: the next start reads it from the log");
            }
        }
    }

    /// Opens all volumes of a data directory.
    pub(super) fn open(data_dir: &DataDir, space: Arc<Space>) -> Result<Self, OpenError> {
        let retention = Arc::<Retention>::default();
        let paths = data_dir.volume_paths();
        let all = RocksOptions::default();
        // Descriptors are set aside for one volume's files; memory the volumes share by themselves.
        let volumes = i32::try_from(paths.len()).expect("there are a few volumes");
        let options = RocksOptions { open_files_max: all.open_files_max / volumes, ..all };
        let opened = RocksEngine::open_all(paths, &options, &retention)?;
        let rocks: Vec<Arc<RocksEngine>> = opened.into_iter().map(Arc::new).collect();
        let mut engines: Vec<Arc<dyn Engine>> = Vec::new();
        for engine in &rocks {
            for cut in engine.cuts() {
                warn!(file = %cut.file.display(), offset = cut.offset, copy = %cut.copy.display(), reason = cut.reason,
                    "the log ended in what was never synced: cut off, and nobody had been told of it");
            }
            engines.push(Arc::clone(engine) as Arc<dyn Engine>);
        }
        Ok(Self { engines, rocks, gate: Gate::default(), retention, space })
    }

    /// What takes backups of them.
    pub(super) fn backups(&self, data_dir: &DataDir, dirs: &[PathBuf], stage: &Arc<Stage>) -> Backups {
        Backups::new(data_dir, dirs, &self.rocks, self.gate.clone(), Arc::clone(stage))
    }

    pub(super) fn engines(&self) -> &[Arc<dyn Engine>] {
        &self.engines
    }

    /// All hubs, by number, over what their volumes hold.
    pub(super) fn recover_hubs(
        &self,
        topology: &Arc<Topology>,
        incarnation: Incarnation,
        config: &Config,
    ) -> Result<Vec<Hub>, Error> {
        let ids = (0..topology.hub_count()).map(HubId);
        let mut recovered = Vec::new();
        for hub in ids.clone() {
            let engine = self.engine_of(topology, hub);
            let (policy, now) = (policy(config), SystemClock.now());
            let (wall_ms, mono_ms) = (now.wall_ms, now.mono_ms());
            recovered.push(Shards::recover(&**engine, Arc::clone(topology), hub, policy, wall_ms, mono_ms)?);
        }
        Shards::begin_together(&mut recovered);
        let bounds = Bounds { sends: config.send_limits(), logins: config.user_login_limit(), ..Bounds::default() };
        let hubs = recovered.into_iter().zip(ids).map(|(shards, hub)| {
            let engine = Arc::clone(self.engine_of(topology, hub));
            Hub::new(engine, shards, incarnation, Arc::clone(topology), hub, bounds)
        });
        Ok(hubs.collect())
    }

    /// Starts every hub with its writer and readers.
    pub(super) fn spawn_hubs(
        &self,
        hubs: Vec<(Hub, Sleeper)>,
        topology: &Topology,
        config: &Config,
        inboxes: &Inboxes,
        reactors: Vec<Vec<ReactorPort>>,
        metrics: &Arc<Metrics>,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let mut threads = Vec::new();
        let links = links_between(inboxes.len());
        let ids = (0..topology.hub_count()).map(HubId);
        let queues = inboxes.iter().zip(reactors).zip(links);
        for (((hub, sleeper), id), ((inbox, reactors), links)) in hubs.into_iter().zip(ids).zip(queues) {
            let volume = topology.volume_of_hub(id);
            let to_hub = Arc::clone(inbox);
            let engine = Arc::clone(self.engine_of(topology, id));
            let done = move |number| {
                crash_point::reached(CrashPoint::Durable);
                to_hub.post_durable(number);
            };
            let writer = Writer::spawn_behind(self.gate.clone(), engine, Box::new(done));
            let to_hub = Arc::clone(inbox);
            let done = Arc::new(move |result| to_hub.post_read(result));
            let engines = Engines { engines: self.engines.clone(), topology: topology.clone() };
            let share = readers_of(topology, id, config.readers);
            let readers = Arc::new(Readers::spawn(engines, volume, share, hub.bounds().reads_outstanding, done));
            let hubs = links.into_iter().zip(inboxes).map(|(link, other)| HubPort::new(link, other)).collect();
            let (retention, space) = (Arc::clone(&self.retention), Arc::clone(&self.space));
            let driver = Driver::new(hub, Arc::clone(inbox), reactors, hubs, retention, space);
            let disk = Threads { writer, readers };
            let metrics = Arc::clone(metrics);
            threads.push(thread::Builder::new().name(format!("hub-{id}")).spawn(move || {
                hub_thread::run(driver, disk, &sleeper, metrics.hub(id.index()));
            })?);
        }
        Ok(threads)
    }

    fn engine_of(&self, topology: &Topology, hub: HubId) -> &Arc<dyn Engine> {
        let volume = usize::from(topology.volume_of_hub(hub));
        self.engines.get(volume).expect("the topology was made for these volumes")
    }
}

/// What is kept for how long, as it is set.
fn policy(config: &Config) -> Policy {
    Policy {
        retention_ms: u64::from(config.inbox.retention_days) * DAY_MS,
        unlink_days: config.inbox.device_days,
        quota_entries: config.inbox.quota_entries,
        quota_bytes: config.inbox.quota_bytes,
        receipts: config.inbox.receipts,
        ..Policy::default()
    }
}

/// A hub's share of its volume's reader threads; at least one.
fn readers_of(topology: &Topology, hub: HubId, readers: usize) -> usize {
    let volume = topology.volume_of_hub(hub);
    let on_volume = (0..topology.hub_count()).map(HubId).filter(|other| topology.volume_of_hub(*other) == volume);
    readers.div_ceil(on_volume.count()).max(1)
}

/// The links of each hub to every hub, by number. The one to itself is never used.
fn links_between(hubs: usize) -> Vec<Vec<Arc<HubLink>>> {
    let mut links: Vec<Vec<Arc<HubLink>>> = Vec::new();
    for hub in 0..hubs {
        let mut row = Vec::new();
        for other in 0..hubs {
            let made = links.get(other).and_then(|row: &Vec<Arc<HubLink>>| row.get(hub)).map(Arc::clone);
            let new = || if other == hub { Arc::new(HubLink::unused()) } else { Arc::default() };
            row.push(made.unwrap_or_else(new));
        }
        links.push(row);
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hubs_share_a_link_and_no_others_do() {
        let links = links_between(4);
        for (one, row) in links.iter().enumerate() {
            assert_eq!(row.len(), 4);
            for (other, link) in row.iter().enumerate() {
                assert!(Arc::ptr_eq(link, &links[other][one]));
                let same = links.iter().flatten().filter(|found| Arc::ptr_eq(found, link)).count();
                assert_eq!(same, if one == other { 1 } else { 2 });
            }
        }
    }

    #[test]
    fn the_hubs_of_a_volume_share_its_readers() {
        let topology = Topology::new(4, vec![0, 1, 0, 1], 3).expect("possible");
        // Hubs 0 and 2 are on one volume, hub 1 is alone on the other.
        assert_eq!([0, 1, 2].map(|hub| readers_of(&topology, HubId(hub), 2)), [1, 2, 1]);
        assert_eq!(readers_of(&Topology::single(4), HubId(0), 8), 8);
    }
}
