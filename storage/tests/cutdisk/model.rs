//! A disk in memory that keeps apart what was synced and what was not. Pure: no thread, no clock, no kernel.
//!
//! - A file's pages and length are durable when it is synced.
//! - A name that was made, moved or taken away is durable when its folder is synced: strict, and what POSIX promises.
//!   A file without a durable name is gone after a power cut, whatever was synced of it.
//! - Owners, permissions and times are durable at once: nothing stands on them.

mod fault;
mod file;
mod nodes;
mod power;
mod tree;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::time::SystemTime;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::io::Errno;

pub(crate) use fault::{Armed, Counts, CutKind, Faults, Files, Moment, Times, WriteError};
pub(crate) use file::PAGE_LEN;
pub(crate) use tree::NodeId;

use nodes::{Body, Node};
use tree::{Change, Folder};

/// The disk.
#[derive(Debug)]
pub(crate) struct Model {
    nodes: BTreeMap<NodeId, Node>,
    next_node: u64,
    /// Changes to names that are not durable, oldest first.
    changes: Vec<Change>,
    handles: HashMap<u64, Handle>,
    next_handle: u64,
    is_on: bool,
    faults: Faults,
    /// Pages that files take, and the most they may take.
    pages: u64,
    pages_max: Option<u64>,
    counts: Counts,
    random: SmallRng,
}

/// What an open file or folder is known by. Those from before a power cut are unknown after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HandleId(pub(crate) u64);

#[derive(Debug)]
struct Handle {
    node: NodeId,
    /// A folder's names, as they were when its first was asked for.
    names: Vec<Name>,
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) name: OsString,
    pub(crate) node: NodeId,
    pub(crate) is_folder: bool,
}

/// Whose a node is, who may do what with it, and when that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) permissions: u16,
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) accessed: SystemTime,
    pub(crate) modified: SystemTime,
    pub(crate) changed: SystemTime,
}

/// What there is to know of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) node: NodeId,
    pub(crate) is_folder: bool,
    pub(crate) len: u64,
    pub(crate) pages: u64,
    pub(crate) links: u32,
    pub(crate) attributes: Attributes,
}

/// What is to be changed of a node.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Changes {
    pub(crate) permissions: Option<u16>,
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
    pub(crate) len: Option<u64>,
    pub(crate) accessed: Option<SystemTime>,
    pub(crate) modified: Option<SystemTime>,
}

/// What a disk without a limit says is free.
const FREE_PAGES_ANY: u64 = (64 << 30) / PAGE_LEN as u64;

impl Model {
    /// An empty disk, with its power on.
    pub(crate) fn new(seed: u64, root: Attributes) -> Self {
        let folder = Node::new(Body::Folder(Folder::default()), root, Files::Any);
        Self {
            nodes: BTreeMap::from([(NodeId::ROOT, folder)]),
            next_node: NodeId::ROOT.0 + 1,
            changes: Vec::new(),
            handles: HashMap::new(),
            next_handle: 1,
            is_on: true,
            faults: Faults::default(),
            pages: 0,
            pages_max: None,
            counts: Counts::default(),
            random: SmallRng::seed_from_u64(seed),
        }
    }

    pub(crate) fn faults(&mut self) -> &mut Faults {
        &mut self.faults
    }

    /// So many bytes may be written beyond what is there; `None`: any.
    pub(crate) fn set_free(&mut self, bytes: Option<u64>) {
        self.pages_max = bytes.map(|bytes| self.pages.saturating_add(bytes / PAGE_LEN as u64));
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts { bytes: self.pages * PAGE_LEN as u64, ..self.counts }
    }

    /// Pages in use, and free.
    pub(crate) fn room(&self) -> Result<(u64, u64), Errno> {
        self.powered()?;
        Ok((self.pages, self.free_pages()))
    }

    pub(crate) fn open(&mut self, node: NodeId) -> Result<HandleId, Errno> {
        self.powered()?;
        self.node_mut(node)?.handles += 1;
        let id = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(id, Handle { node, names: Vec::new() });
        Ok(HandleId(id))
    }

    /// Closes a handle. Nothing can be wrong with that.
    pub(crate) fn close(&mut self, handle: HandleId) {
        let Some(Handle { node, .. }) = self.handles.remove(&handle.0) else { return };
        if let Ok(of) = self.node_mut(node) {
            of.handles -= 1;
        }
        self.settle(node);
    }

    pub(crate) fn read(&self, handle: HandleId, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        self.powered()?;
        Ok(self.node(self.opened(handle)?)?.file()?.read(offset, len))
    }

    /// Writes as much as is taken, and says how much that is.
    pub(crate) fn write(
        &mut self,
        handle: HandleId,
        offset: u64,
        bytes: &[u8],
        now: SystemTime,
    ) -> Result<usize, Errno> {
        self.powered()?;
        let id = self.opened(handle)?;
        let files = self.node(id)?.files;
        self.cut_at(Moment::Write, files)?;
        self.counts.writes += 1;
        match self.faults.write_fails(files) {
            Some(WriteError::Io) => return Err(Errno::IO),
            Some(WriteError::NoSpace) => return Err(Errno::NOSPC),
            None => {}
        }
        let asked = match bytes.len() {
            len @ 2.. if self.faults.is_short => self.random.random_range(1..=len),
            len => len,
        };
        let free = self.free_pages();
        let node = self.node_mut(id)?;
        let (len, added) = node.file()?.fitting(offset, asked, free);
        if len == 0 && asked > 0 {
            return Err(Errno::NOSPC);
        }
        let (fitting, _) = bytes.split_at(len);
        node.file_mut()?.write(offset, fitting);
        node.attributes.modified = now;
        node.attributes.changed = now;
        self.pages += added;
        Ok(len)
    }

    /// Makes a file as long as this at least, with zeros.
    pub(crate) fn extend(&mut self, handle: HandleId, len: u64) -> Result<(), Errno> {
        self.powered()?;
        let id = self.opened(handle)?;
        let file = self.node_mut(id)?.file_mut()?;
        if len > file.len() {
            file.set_len(len);
        }
        Ok(())
    }

    /// The first half of a sync: what happens before it takes effect. Says how long it takes, in milliseconds.
    pub(crate) fn begin_sync(&mut self, handle: HandleId) -> Result<u64, Errno> {
        self.powered()?;
        let files = self.node(self.opened(handle)?)?.files;
        self.cut_at(Moment::Sync, files)?;
        self.counts.syncs += 1;
        Ok(self.faults.sync_ms)
    }

    /// The second half: it takes effect.
    pub(crate) fn end_sync(&mut self, handle: HandleId) -> Result<(), Errno> {
        self.powered()?;
        let id = self.opened(handle)?;
        let files = self.node(id)?.files;
        let fails = self.faults.sync_fails(files);
        match &mut self.node_mut(id)?.body {
            Body::File(file) if fails => file.lose(),
            Body::File(file) => file.sync(),
            Body::Folder(_) if fails => {}
            Body::Folder(_) => {
                let changes = tree::take_for(&mut self.changes, id);
                self.make_durable(changes);
            }
        }
        if fails {
            return Err(Errno::IO);
        }
        self.cut_at(Moment::Synced, files)
    }

    /// A folder's names from a place on. From the first, they are taken anew.
    pub(crate) fn names(&mut self, handle: HandleId, from: usize) -> Result<&[Name], Errno> {
        self.powered()?;
        let id = self.opened(handle)?;
        if from == 0 {
            let named = |(name, node): (&OsString, &NodeId)| {
                let is_folder = self.nodes.get(node).is_some_and(|node| matches!(node.body, Body::Folder(_)));
                Name { name: name.clone(), node: *node, is_folder }
            };
            let names = self.node(id)?.folder()?.current.iter().map(named).collect();
            self.handles.get_mut(&handle.0).ok_or(Errno::IO)?.names = names;
        }
        let handle = self.handles.get(&handle.0).ok_or(Errno::IO)?;
        Ok(handle.names.get(from..).unwrap_or_default())
    }

    pub(crate) fn lookup(&self, folder: NodeId, name: &OsStr) -> Result<Status, Errno> {
        self.powered()?;
        let node = self.node(folder)?.folder()?.current.get(name).ok_or(Errno::NOENT)?;
        self.status(*node)
    }

    pub(crate) fn status(&self, id: NodeId) -> Result<Status, Errno> {
        self.powered()?;
        let node = self.node(id)?;
        let (is_folder, len, pages, links) = match &node.body {
            Body::File(file) => (false, file.len(), file.page_total(), node.links),
            Body::Folder(_) => (true, 0, 0, 2),
        };
        Ok(Status { node: id, is_folder, len, pages, links, attributes: node.attributes })
    }

    pub(crate) fn change(&mut self, id: NodeId, changes: Changes, now: SystemTime) -> Result<Status, Errno> {
        self.powered()?;
        let node = self.node_mut(id)?;
        let attributes = &mut node.attributes;
        attributes.permissions = changes.permissions.unwrap_or(attributes.permissions);
        attributes.user = changes.user.unwrap_or(attributes.user);
        attributes.group = changes.group.unwrap_or(attributes.group);
        attributes.accessed = changes.accessed.unwrap_or(attributes.accessed);
        attributes.modified = changes.modified.or(changes.len.map(|_| now)).unwrap_or(attributes.modified);
        attributes.changed = now;
        if let Some(len) = changes.len {
            let file = node.file_mut()?;
            let before = file.page_total();
            file.set_len(len);
            let gone = before.saturating_sub(file.page_total());
            self.pages -= gone;
        }
        self.status(id)
    }

    fn powered(&self) -> Result<(), Errno> {
        if self.is_on { Ok(()) } else { Err(Errno::IO) }
    }

    fn free_pages(&self) -> u64 {
        self.pages_max.map_or(FREE_PAGES_ANY, |most| most.saturating_sub(self.pages))
    }

    fn opened(&self, handle: HandleId) -> Result<NodeId, Errno> {
        self.handles.get(&handle.0).map(|handle| handle.node).ok_or(Errno::IO)
    }
}
