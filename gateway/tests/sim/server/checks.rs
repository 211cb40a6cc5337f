//! What one life is checked for, and what of it is told when it hangs.

use std::sync::Arc;

use culver::hub::holdings::Holdings;
use culver_protocol::limits::{DEVICES_MAX, RPCS_IN_FLIGHT_MAX};
use culver_storage::batch::Batch;
use culver_storage::shard::replay;
use culver_storage::topology::HubId;

use super::Life;
use super::threads::HubThread;
use crate::plan::Plan;

/// Notices that a connection may be owed: it was replaced, and devices of its user came and went.
const NOTICES_MAX: usize = 1 + 2 * DEVICES_MAX;
/// Reads that a session may want at once: of its inbox or backlog, of receipts, and of conversations.
const READS_MAX: usize = 2 + RPCS_IN_FLIGHT_MAX;
/// Longest time in which a process accepts who waits, for threads are lazy.
const ACCEPT_MAX_US: u64 = 1_000_000;
/// Lanes of a stream between two shards.
const LANES: usize = 2;
/// What a session may have parked and is not refused: a login, a close, an acknowledgement, a resume.
const PARKED_MAX: usize = 4;

impl HubThread {
    /// What is parked and what is owed is within its bounds. (Queues have a fixed capacity and cannot exceed it.)
    pub(super) fn check_bounds(&self, connections: usize, shards: u16) {
        let Some(driver) = &self.driver else { return };
        let (bounds, holdings) = (driver.hub().bounds(), driver.hub().holdings());
        let Holdings { parked, parked_sends, parked_arrivals, .. } = holdings;
        // One for what is parked for it, one of each kind for a session, one for each stream, one for each floor, a sweep.
        let streams = LANES * usize::from(shards).pow(2);
        let wanted_max = holdings.loads + READS_MAX * connections + streams + 2 * bounds.folds + 1;
        let reads_max = bounds.reads_outstanding + bounds.reads_outstanding.max(2 * wanted_max);
        let others = parked - parked_sends - parked_arrivals;
        assert!(
            parked_sends <= bounds.parked_sends
                && parked_arrivals <= bounds.parked_arrivals
                && others <= PARKED_MAX * connections + 2 * bounds.folds
                && holdings.reads <= reads_max
                && driver.notices() <= NOTICES_MAX * connections,
            "hub {} holds no more than it may, with {connections} connections: {holdings:?}, {} notices",
            self.id,
            driver.notices()
        );
    }
}

impl Life {
    /// Who waits for a listener is accepted soon, also who came when no process ran.
    pub(crate) fn check_waiting(&self, now_us: u64) {
        for (number, thread) in self.reactors.iter().enumerate() {
            let waits_us = thread.listener.waits_since_us().map_or(0, |since_us| now_us - since_us);
            assert!(
                waits_us <= ACCEPT_MAX_US,
                "who waits is accepted: of reactor {number} somebody was not for {waits_us} µs"
            );
        }
    }

    /// What each hub decided gives, applied again to what its disk held at the beginning, the very batches that it wrote:
    /// so a recovered state is the one that was.
    pub(crate) fn check_journals(&mut self, plan: &Plan) {
        let Some((disks, now)) = self.begun_with.take() else { return };
        for (hub, thread) in (0..).map(HubId).zip(&mut self.hubs) {
            let journal = match &mut thread.driver {
                Some(driver) => driver.hub_mut().take_journal(),
                None => std::mem::take(&mut thread.journal),
            };
            let (disk, topology) = (&disks[usize::from(thread.volume)], Arc::clone(&self.topology));
            let replayed = replay(disk, topology, hub, plan.policy(), now.wall_ms, now.mono_ms(), &journal)
                .expect("what was written can be read");
            let sealed = thread.sealed.take().unwrap_or_default();
            let bytes = |batches: &[Batch]| batches.iter().map(|batch| batch.as_bytes().to_vec()).collect::<Vec<_>>();
            assert!(
                bytes(&sealed) == bytes(&replayed),
                "the same records give the same batches: those of hub {hub} differ from the {}th of {} on",
                sealed.iter().zip(&replayed).take_while(|(a, b)| a.as_bytes() == b.as_bytes()).count(),
                sealed.len()
            );
        }
    }

    /// Whether nothing is under way anywhere in the server.
    pub(crate) fn is_quiet(&self) -> bool {
        self.busy().is_none()
    }

    /// What is under way, for people.
    pub(crate) fn busy(&self) -> Option<String> {
        for (number, thread) in self.reactors.iter().enumerate() {
            if thread.reactor.as_ref().is_some_and(|reactor| !reactor.is_idle()) || thread.listener.is_due() {
                return Some(format!("reactor {number} has something under way"));
            }
        }
        for thread in &self.hubs {
            let Some(driver) = &thread.driver else { continue };
            let (hub, waiting) = (driver.hub(), thread.waiting());
            let (reads, held) = (thread.asked.reads.len(), thread.held.len());
            let is_quiet = hub.is_settled()
                && !hub.has_untaken()
                && !hub.is_hungry()
                && !hub.has_unsent_mail()
                && driver.notices() == 0
                && hub.holdings().reads + hub.holdings().effects == 0
                && waiting + reads + held == 0;
            if !is_quiet {
                return Some(format!(
                    "hub {}: settled {}, untaken {}, hungry {}, unsent mail {}, notices {}, waiting {waiting}, \
                     reads {reads}, held {held}, parked {}, writing {}",
                    thread.id,
                    hub.is_settled(),
                    hub.untaken(),
                    hub.is_hungry(),
                    hub.has_unsent_mail(),
                    driver.notices(),
                    hub.parked(),
                    hub.is_writing()
                ));
            }
        }
        let log = self.logs.iter().position(|log| log.can_append() || !log.syncing.is_empty() || log.can_tell());
        log.map(|volume| format!("the log of volume {volume} has something to write"))
    }

    /// Who sleeps until when, for people.
    pub(crate) fn sleepers(&self) -> String {
        let reactors: Vec<_> = self.reactors.iter().map(|thread| thread.sleep.until_us).collect();
        let hubs: Vec<_> = self.hubs.iter().map(|thread| thread.sleep.until_us).collect();
        format!("reactors sleep until {reactors:?}, hubs until {hubs:?}")
    }
}
