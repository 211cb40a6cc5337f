//! The power: what is left when it goes off, and what is there when it comes back.

use rand::Rng;
use rustix::io::Errno;

use super::nodes::Body;
use super::tree::NodeId;
use super::{CutKind, Faults, Files, Model, Moment};

impl Model {
    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// The power goes off. What survives is settled here and now.
    pub(crate) fn cut(&mut self, kind: CutKind) {
        self.is_on = false;
        self.handles.clear();
        self.counts.cuts += 1;
        for node in self.nodes.values_mut() {
            if let Body::File(file) = &mut node.body {
                let fate = file.cut(kind, &mut self.random);
                self.counts.pages_dropped += fate.dropped;
                self.counts.pages_kept += fate.kept;
                self.counts.pages_torn += fate.torn;
            }
        }
        let survivors = match kind {
            CutKind::Drop => 0,
            CutKind::Subset | CutKind::Torn => self.random.random_range(0..=self.changes.len()),
        };
        let mut changes = std::mem::take(&mut self.changes);
        self.counts.entries_dropped += (changes.len() - survivors) as u64;
        changes.truncate(survivors);
        self.make_durable(changes);
        self.keep_reachable();
    }

    /// The power comes back, and nothing is wrong any more. A disk that was full is still full.
    pub(crate) fn power_on(&mut self) {
        self.is_on = true;
        self.faults = Faults::default();
    }

    /// Cuts the power if it is armed for this moment.
    pub(super) fn cut_at(&mut self, moment: Moment, files: Files) -> Result<(), Errno> {
        match self.faults.cut_at(moment, files) {
            Some(kind) => {
                self.cut(kind);
                Err(Errno::IO)
            }
            None => Ok(()),
        }
    }

    /// What has a name on the disk is what is there; all else is gone.
    fn keep_reachable(&mut self) {
        for node in self.nodes.values_mut() {
            (node.links, node.durable_links, node.pending, node.handles) = (0, 0, 0, 0);
            node.is_counted = true;
        }
        let mut folders = vec![NodeId::ROOT];
        let mut reached = std::collections::BTreeSet::from([NodeId::ROOT]);
        while let Some(id) = folders.pop() {
            let Some(Body::Folder(folder)) = self.nodes.get_mut(&id).map(|node| &mut node.body) else { continue };
            folder.current = folder.durable.clone();
            let names: Vec<_> = folder.durable.iter().map(|(name, child)| (name.clone(), *child)).collect();
            for (name, child) in names {
                let Some(node) = self.nodes.get_mut(&child) else { continue };
                node.links += 1;
                node.durable_links += 1;
                if matches!(node.body, Body::File(_)) {
                    node.files = Files::of(&name);
                } else if !reached.contains(&child) {
                    folders.push(child);
                }
                reached.insert(child);
            }
        }
        self.nodes.retain(|id, _| reached.contains(id));
        let of = |body: &Body| if let Body::File(file) = body { file.page_total() } else { 0 };
        self.pages = self.nodes.values().map(|node| of(&node.body)).sum();
    }
}
