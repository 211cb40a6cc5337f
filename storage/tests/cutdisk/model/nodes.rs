//! Files and folders: making, naming, renaming and removing them, and how long each is kept.

use std::ffi::OsStr;
use std::time::SystemTime;

use rustix::io::Errno;

use super::file::FileData;
use super::tree::{Change, Folder, NodeId};
use super::{Attributes, Files, Model, Status};

#[derive(Debug)]
pub(super) struct Node {
    pub(super) body: Body,
    pub(super) attributes: Attributes,
    /// Which faults are about it: follows from its latest name.
    pub(super) files: Files,
    /// Names that are seen.
    pub(super) links: u32,
    /// Names on the disk.
    pub(super) durable_links: u32,
    /// Changes not yet durable that speak of it.
    pub(super) pending: u32,
    pub(super) handles: u32,
    /// Whether what it takes counts as used.
    pub(super) is_counted: bool,
}

#[derive(Debug)]
pub(super) enum Body {
    File(FileData),
    Folder(Folder),
}

impl Node {
    pub(super) fn new(body: Body, attributes: Attributes, files: Files) -> Self {
        Self { body, attributes, files, links: 0, durable_links: 0, pending: 0, handles: 0, is_counted: true }
    }

    pub(super) fn file(&self) -> Result<&FileData, Errno> {
        match &self.body {
            Body::File(file) => Ok(file),
            Body::Folder(_) => Err(Errno::ISDIR),
        }
    }

    pub(super) fn file_mut(&mut self) -> Result<&mut FileData, Errno> {
        match &mut self.body {
            Body::File(file) => Ok(file),
            Body::Folder(_) => Err(Errno::ISDIR),
        }
    }

    pub(super) fn folder(&self) -> Result<&Folder, Errno> {
        match &self.body {
            Body::Folder(folder) => Ok(folder),
            Body::File(_) => Err(Errno::NOTDIR),
        }
    }

    pub(super) fn folder_mut(&mut self) -> Result<&mut Folder, Errno> {
        match &mut self.body {
            Body::Folder(folder) => Ok(folder),
            Body::File(_) => Err(Errno::NOTDIR),
        }
    }
}

/// Where a name is to stand.
pub(crate) type At<'a> = (NodeId, &'a OsStr);

impl Model {
    pub(crate) fn create(&mut self, at: At<'_>, attributes: Attributes) -> Result<Status, Errno> {
        self.make(at, Body::File(FileData::default()), attributes)
    }

    pub(crate) fn make_folder(&mut self, at: At<'_>, attributes: Attributes) -> Result<Status, Errno> {
        self.make(at, Body::Folder(Folder::default()), attributes)
    }

    pub(crate) fn link(&mut self, node: NodeId, at: At<'_>) -> Result<Status, Errno> {
        self.powered()?;
        self.node(node)?.file()?;
        self.vacant(at)?;
        self.name(node, at)?;
        self.status(node)
    }

    pub(crate) fn unlink(&mut self, at: At<'_>, now: SystemTime) -> Result<(), Errno> {
        let node = self.lookup(at.0, at.1)?.node;
        self.node(node)?.file()?;
        self.take_away(node, at, now)
    }

    pub(crate) fn remove_folder(&mut self, at: At<'_>, now: SystemTime) -> Result<(), Errno> {
        let node = self.lookup(at.0, at.1)?.node;
        if !self.node(node)?.folder()?.current.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.take_away(node, at, now)
    }

    /// Moves a name; what stands at `to` is replaced if it may be.
    pub(crate) fn rename(&mut self, from: At<'_>, to: At<'_>, may_replace: bool, now: SystemTime) -> Result<(), Errno> {
        let moved = self.lookup(from.0, from.1)?;
        let replaced = match self.lookup(to.0, to.1) {
            Ok(_) if !may_replace => return Err(Errno::EXIST),
            Ok(there) if there.node == moved.node => return Ok(()),
            Ok(there) => {
                match (moved.is_folder, there.is_folder) {
                    (true, false) => return Err(Errno::NOTDIR),
                    (false, true) => return Err(Errno::ISDIR),
                    (true, true) if !self.node(there.node)?.folder()?.current.is_empty() => {
                        return Err(Errno::NOTEMPTY);
                    }
                    _ => {}
                }
                Some(there.node)
            }
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        self.node_mut(to.0)?.folder_mut()?.current.insert(to.1.to_owned(), moved.node);
        self.node_mut(from.0)?.folder_mut()?.current.remove(from.1);
        let node = self.node_mut(moved.node)?;
        if !moved.is_folder {
            node.files = Files::of(to.1);
        }
        node.attributes.changed = now;
        let (from, to) = ((from.0, from.1.to_owned()), (to.0, to.1.to_owned()));
        self.note(Change::Rename { from, to, node: moved.node, replaced });
        if let Some(replaced) = replaced {
            self.node_mut(replaced)?.links -= 1;
            self.settle(replaced);
        }
        Ok(())
    }

    pub(super) fn node(&self, id: NodeId) -> Result<&Node, Errno> {
        self.nodes.get(&id).ok_or(Errno::NOENT)
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&id).ok_or(Errno::NOENT)
    }

    /// Forgets a node that neither a name nor a handle, nor the disk, has any more.
    pub(super) fn settle(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if id == NodeId::ROOT || node.links > 0 || node.handles > 0 {
            return;
        }
        if let (true, Body::File(file)) = (node.is_counted, &node.body) {
            // A power cut counts anew when all is settled.
            self.pages = self.pages.saturating_sub(file.page_total());
        }
        node.is_counted = false;
        if node.durable_links > 0 || node.pending > 0 {
            return;
        }
        let Some(Node { body: Body::Folder(folder), .. }) = self.nodes.remove(&id) else { return };
        for child in folder.durable.into_values() {
            self.unlink_durable(child);
        }
    }

    /// Changes to names reach the disk.
    pub(super) fn make_durable(&mut self, changes: Vec<Change>) {
        for change in &changes {
            match change {
                Change::Link { at, node } => self.link_durable(*node, at.0, &at.1),
                Change::Unlink { at, .. } => self.clear_durable(at.0, &at.1),
                Change::Rename { from, to, node, .. } => {
                    self.link_durable(*node, to.0, &to.1);
                    self.clear_durable(from.0, &from.1);
                }
            }
        }
        for node in changes.iter().flat_map(Change::nodes) {
            if let Some(of) = self.nodes.get_mut(&node) {
                of.pending -= 1;
            }
            self.settle(node);
        }
    }

    fn make(&mut self, at: At<'_>, body: Body, attributes: Attributes) -> Result<Status, Errno> {
        self.powered()?;
        self.vacant(at)?;
        let id = NodeId(self.next_node);
        self.next_node += 1;
        self.nodes.insert(id, Node::new(body, attributes, Files::Any));
        self.name(id, at)?;
        self.status(id)
    }

    fn vacant(&self, at: At<'_>) -> Result<(), Errno> {
        match self.lookup(at.0, at.1) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) if self.nodes.contains_key(&at.0) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn name(&mut self, id: NodeId, at: At<'_>) -> Result<(), Errno> {
        self.node_mut(at.0)?.folder_mut()?.current.insert(at.1.to_owned(), id);
        let node = self.node_mut(id)?;
        node.links += 1;
        if matches!(node.body, Body::File(_)) {
            node.files = Files::of(at.1);
        }
        self.note(Change::Link { at: (at.0, at.1.to_owned()), node: id });
        Ok(())
    }

    fn take_away(&mut self, id: NodeId, at: At<'_>, now: SystemTime) -> Result<(), Errno> {
        self.node_mut(at.0)?.folder_mut()?.current.remove(at.1);
        let node = self.node_mut(id)?;
        node.links -= 1;
        node.attributes.changed = now;
        self.note(Change::Unlink { at: (at.0, at.1.to_owned()), node: id });
        self.settle(id);
        Ok(())
    }

    fn note(&mut self, change: Change) {
        for node in change.nodes() {
            if let Some(of) = self.nodes.get_mut(&node) {
                of.pending += 1;
            }
        }
        self.changes.push(change);
    }

    fn link_durable(&mut self, node: NodeId, folder: NodeId, name: &OsStr) {
        let Ok(of) = self.node_mut(folder).and_then(Node::folder_mut) else { return };
        let before = of.durable.insert(name.to_owned(), node);
        if let Some(of) = self.nodes.get_mut(&node) {
            of.durable_links += 1;
        }
        if let Some(before) = before {
            self.unlink_durable(before);
        }
    }

    fn clear_durable(&mut self, folder: NodeId, name: &OsStr) {
        let Ok(of) = self.node_mut(folder).and_then(Node::folder_mut) else { return };
        if let Some(node) = of.durable.remove(name) {
            self.unlink_durable(node);
        }
    }

    fn unlink_durable(&mut self, node: NodeId) {
        if let Some(of) = self.nodes.get_mut(&node) {
            of.durable_links -= 1;
        }
        self.settle(node);
    }
}
