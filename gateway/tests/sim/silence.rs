//! Networks that forget a connection which is silent for too long, and tell nobody: NATs, carriers, firewalls. Devices
//! that find out how long they may be silent lose a few connections on each, and then no more.
//!
//! Owns who comes from which network, and how often each has lost a connection there. What a network forgets is `net.rs`'s.

use culver_protocol::client::NetworkId;

use crate::net::Wire;
use crate::world::World;

/// How long nobody says anything, for whoever does not find out how long to have lost many connections by then: each
/// takes a silence and the client's wait for an answer.
const SILENT_US: u64 = 600_000_000;
/// Steps in that time, at most.
const SILENT_STEPS_MAX: u64 = 400_000;
/// Connections that a device may lose by silence on one network until it knows how long it may be silent.
const LOSSES_MAX: u32 = 6;

impl World {
    /// A party is to come from a network: another than before, unless all is calm.
    pub(crate) fn choose_network(&mut self, at: usize) {
        if self.plan.silences_s.is_empty() || self.parties[at].device.is_fetch() {
            return;
        }
        if !self.is_calm {
            self.parties[at].network = self.source.index(self.plan.silences_s.len());
        }
        let now_us = self.now_us();
        let party = &mut self.parties[at];
        let own_us = party.device.own_us(now_us);
        let number = u64::try_from(party.network).expect("few");
        party.device.client.set_network(NetworkId(1 + number), own_us);
    }

    /// A connection of a party's is there: its network forgets it some time.
    pub(crate) fn come_from_network(&self, at: usize, wire: &Wire) {
        let party = &self.parties[at];
        if let Some(silence_s) = self.plan.silences_s.get(party.network).filter(|_| !party.device.is_fetch()) {
            wire.be_forgotten_after(u64::from(*silence_s) * 1_000_000, self.now_us());
        }
    }

    /// Something is to pass on a wire: whether it does.
    pub(crate) fn pass(&mut self, at: usize) -> bool {
        let (now_us, wire) = (self.now_us(), &self.wires[at]);
        if wire.pass(now_us) {
            return true;
        }
        let is_its = |party: &&mut crate::world::Party| party.wire.as_ref().is_some_and(|its| its.is(wire));
        if let Some(party) = self.parties.iter_mut().find(is_its) {
            party.losses += 1;
            party.device.excuse();
            self.trace.event(|| format!("its network has forgotten the connection of {}", party.device.name()));
        }
        false
    }

    /// Nobody says anything for a while: whoever loses its connection by that learns to say something sooner.
    pub(crate) fn be_silent(&mut self) {
        if self.plan.silences_s.is_empty() {
            return;
        }
        self.trace.event(|| "silence".to_owned());
        self.parties.iter_mut().for_each(|party| party.losses = 0);
        let (until_us, until_steps) = (self.now_us() + SILENT_US, self.steps + SILENT_STEPS_MAX);
        while self.now_us() < until_us {
            self.step();
            self.check_leaving();
            assert!(self.steps < until_steps, "time passes while nobody says anything: {}", self.stuck());
        }
        for party in &self.parties {
            let (name, losses) = (party.device.name(), party.losses);
            assert!(
                losses <= LOSSES_MAX,
                "whoever loses connections by silence learns to be silent for less: {name} has lost {losses}, on a \
                 network that forgets after {} s",
                self.plan.silences_s[party.network]
            );
            self.oracle.tally.forgotten += u64::from(losses);
        }
    }
}
