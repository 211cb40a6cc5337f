//! Names: the folders as they are seen, as they are on the disk, and the changes in between, in their order.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

/// A file or folder. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(pub(crate) u64);

impl NodeId {
    /// The uppermost folder.
    pub(crate) const ROOT: Self = Self(1);
}

/// Where a name stands.
pub(super) type Place = (NodeId, OsString);

/// A folder's names.
#[derive(Debug, Default)]
pub(super) struct Folder {
    pub(super) current: BTreeMap<OsString, NodeId>,
    pub(super) durable: BTreeMap<OsString, NodeId>,
}

/// A change to names that is not durable yet.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A name was added.
    Link { at: Place, node: NodeId },
    /// A name was taken away.
    Unlink { at: Place, node: NodeId },
    /// A name was moved, and what stood in its new place is gone.
    Rename { from: Place, to: Place, node: NodeId, replaced: Option<NodeId> },
}

impl Change {
    fn folders(&self) -> [NodeId; 2] {
        match self {
            Self::Link { at, .. } | Self::Unlink { at, .. } => [at.0, at.0],
            Self::Rename { from, to, .. } => [from.0, to.0],
        }
    }

    /// The nodes that must stay for as long as this may come about.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        let (node, replaced) = match self {
            Self::Link { node, .. } | Self::Unlink { node, .. } => (*node, None),
            Self::Rename { node, replaced, .. } => (*node, *replaced),
        };
        [Some(node), replaced].into_iter().flatten()
    }
}

/// Takes from a list of changes those that a sync of `folder` makes durable: its own, and what those build on, for a
/// name that was moved in must have left the other folder.
pub(super) fn take_for(changes: &mut Vec<Change>, folder: NodeId) -> Vec<Change> {
    let mut folders = BTreeSet::from([folder]);
    let (mut taken, mut kept) = (Vec::new(), Vec::new());
    for change in std::mem::take(changes).into_iter().rev() {
        if change.folders().iter().any(|of| folders.contains(of)) {
            folders.extend(change.folders());
            taken.push(change);
        } else {
            kept.push(change);
        }
    }
    taken.reverse();
    kept.reverse();
    *changes = kept;
    taken
}
