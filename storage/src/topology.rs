//! Which volume a shard lies on, and which hub owns it. Pure: holds no state that changes, reads nothing.
//!
//! The volumes of the shards are a stored format, fixed when the data directory is made. The hubs are not: their number
//! may change at every start. Hub `h` works on volume `h mod V`, and the shards of a volume are dealt to its hubs in
//! turn.

use culver_protocol::id::{ConversationId, UserId};

use crate::key::ShardId;

/// The most hubs there can be: a session keeps a bit for each.
pub const HUBS_MAX: u16 = 16;

/// The number of a hub, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HubId(pub u16);

impl HubId {
    /// Its place in a list of all hubs.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl std::fmt::Display for HubId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Why shards cannot be spread like that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// Too few or too many hubs.
    #[error("{hubs} hubs: there can be 1 to {HUBS_MAX}")]
    Hubs {
        /// How many were asked for.
        hubs: u16,
    },
    /// A volume would have no hub.
    #[error("{hubs} hubs for {volumes} volumes: every volume needs a hub of its own, so ask for at least {volumes}")]
    HubsBelowVolumes {
        /// How many were asked for.
        hubs: u16,
        /// How many volumes there are.
        volumes: u16,
    },
    /// A hub would have no shard.
    #[error("{hubs} hubs: volume {volume} has too few shards for its share of them, so ask for fewer")]
    HubWithoutShard {
        /// How many were asked for.
        hubs: u16,
        /// The volume.
        volume: u16,
    },
    /// The list of volumes has not one entry a shard, or leaves out a volume.
    #[error("the shards are not spread over volumes counted from 0")]
    Volumes,
}

/// Where every shard is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// By shard.
    volumes: Vec<u16>,
    /// By shard.
    hubs: Vec<HubId>,
    volume_count: u16,
    hub_count: u16,
}

impl Topology {
    /// Spreads shards over hubs. `volume_of_shard` holds the volume of each shard.
    ///
    /// # Errors
    /// See [`TopologyError`].
    pub fn new(shard_count: u16, volume_of_shard: Vec<u16>, hubs: u16) -> Result<Self, TopologyError> {
        let volume_count = volume_of_shard.iter().max().map_or(0, |greatest| greatest.saturating_add(1));
        let is_used = |volume| volume_of_shard.contains(&volume);
        if volume_count == 0 || volume_of_shard.len() != usize::from(shard_count) || !(0..volume_count).all(is_used) {
            return Err(TopologyError::Volumes);
        }
        if hubs == 0 || hubs > HUBS_MAX {
            return Err(TopologyError::Hubs { hubs });
        }
        if hubs < volume_count {
            return Err(TopologyError::HubsBelowVolumes { hubs, volumes: volume_count });
        }
        let mut owners = vec![HubId(0); volume_of_shard.len()];
        for volume in 0..volume_count {
            let its_hubs: Vec<u16> = (volume..hubs).step_by(usize::from(volume_count)).collect();
            let its_shards = owners.iter_mut().zip(&volume_of_shard).filter(|(_, of)| **of == volume);
            let mut shards = 0;
            for ((owner, _), hub) in its_shards.zip(its_hubs.iter().cycle()) {
                *owner = HubId(*hub);
                shards += 1;
            }
            if shards < its_hubs.len() {
                return Err(TopologyError::HubWithoutShard { hubs, volume });
            }
        }
        Ok(Self { volumes: volume_of_shard, hubs: owners, volume_count, hub_count: hubs })
    }

    /// One hub on one volume.
    ///
    /// # Panics
    /// If there is no shard.
    #[must_use]
    pub fn single(shard_count: u16) -> Self {
        let volumes = vec![0; usize::from(shard_count)];
        Self::new(shard_count, volumes, 1).expect("one hub on one volume takes any number of shards")
    }

    /// Shards.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        u16::try_from(self.volumes.len()).expect("it was given as a u16")
    }

    /// Hubs.
    #[must_use]
    pub fn hub_count(&self) -> u16 {
        self.hub_count
    }

    /// Volumes.
    #[must_use]
    pub fn volume_count(&self) -> u16 {
        self.volume_count
    }

    /// The hub that owns a shard.
    ///
    /// # Panics
    /// If there is no such shard.
    #[must_use]
    #[inline]
    pub fn hub_of_shard(&self, shard: ShardId) -> HubId {
        *self.hubs.get(usize::from(shard.0)).expect("a shard is below the shard count")
    }

    /// The hub of a user.
    #[must_use]
    #[inline]
    pub fn hub_of_user(&self, user: UserId) -> HubId {
        self.hub_of_shard(ShardId::of_user(user, self.shard_count()))
    }

    /// The hub of a conversation's home shard.
    #[must_use]
    #[inline]
    pub fn hub_of_conversation(&self, conversation: ConversationId) -> HubId {
        self.hub_of_shard(ShardId::of_conversation(conversation, self.shard_count()))
    }

    /// The volume a hub works on.
    #[must_use]
    pub fn volume_of_hub(&self, hub: HubId) -> u16 {
        hub.0 % self.volume_count
    }

    /// The volume a shard lies on.
    ///
    /// # Panics
    /// If there is no such shard.
    #[must_use]
    #[inline]
    pub fn volume_of_shard(&self, shard: ShardId) -> u16 {
        *self.volumes.get(usize::from(shard.0)).expect("a shard is below the shard count")
    }

    /// The shards of a hub, ascending: at least one.
    pub fn shards_of(&self, hub: HubId) -> impl Iterator<Item = ShardId> + '_ {
        self.hubs.iter().zip(0..).filter(move |(owner, _)| **owner == hub).map(|(_, shard)| ShardId(shard))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_robin(shards: u16, volumes: u16) -> Vec<u16> {
        (0..shards).map(|shard| shard % volumes).collect()
    }

    proptest! {
        #[test]
        fn every_shard_has_one_hub_on_its_own_volume(volumes in 1..=8u16, more in 0..=8u16) {
            let hubs = volumes + more;
            let topology = Topology::new(64, round_robin(64, volumes), hubs).expect("64 shards are enough");
            prop_assert_eq!((topology.shard_count(), topology.volume_count(), topology.hub_count()), (64, volumes, hubs));
            let mut counts = Vec::new();
            for hub in (0..hubs).map(HubId) {
                let own: Vec<_> = topology.shards_of(hub).collect();
                for shard in &own {
                    prop_assert_eq!(topology.hub_of_shard(*shard), hub);
                    prop_assert_eq!(topology.volume_of_shard(*shard), topology.volume_of_hub(hub));
                }
                counts.push(own.len());
            }
            prop_assert_eq!(counts.iter().sum::<usize>(), 64);
            prop_assert!(counts.iter().all(|count| *count > 0));
        }
    }

    #[test]
    fn hubs_of_one_volume_share_evenly() {
        let topology = Topology::new(64, vec![0; 64], 4).expect("four hubs are few");
        assert!((0..4).all(|hub| topology.shards_of(HubId(hub)).count() == 16));
        assert_eq!(topology.hub_of_shard(ShardId(6)), HubId(2));
    }

    #[test]
    fn ids_follow_their_shard() {
        let topology = Topology::new(64, round_robin(64, 2), 3).expect("three hubs for two volumes");
        let (user, talk) = (UserId(7), ConversationId::direct(UserId(1), UserId(2)));
        assert_eq!(topology.hub_of_user(user), topology.hub_of_shard(ShardId::of_user(user, 64)));
        assert_eq!(topology.hub_of_conversation(talk), topology.hub_of_shard(ShardId(45)));
        assert_eq!(Topology::single(64).hub_of_user(user), HubId(0));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let new = |volumes: &[u16], hubs| Topology::new(4, volumes.to_vec(), hubs).expect_err("it cannot be");
        assert_eq!(new(&[0, 0, 0, 0], 0), TopologyError::Hubs { hubs: 0 });
        assert_eq!(new(&[0, 0, 0, 0], 17), TopologyError::Hubs { hubs: 17 });
        assert_eq!(new(&[0, 1, 0, 1], 1), TopologyError::HubsBelowVolumes { hubs: 1, volumes: 2 });
        assert_eq!(new(&[0, 0, 0, 1], 4), TopologyError::HubWithoutShard { hubs: 4, volume: 1 });
        for volumes in [&[][..], &[0], &[0, 2, 0, 2], &[0, 0, 0, u16::MAX]] {
            assert_eq!(new(volumes, 4), TopologyError::Volumes);
        }
    }
}
